"""load_published: the file of a published head, checked and translated, as a HeadCheckpoint like any other."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from packaging.version import Version

from dinoneck.backbones.known import family_of
from dinoneck.backbones.weight_hashes import state_digest
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.hub_errors import refusal, unreachable
from dinoneck.published.names import backbone_of, translated
from dinoneck.published.table import NOT_STATED, PublishedHead, row_named
from dinoneck.weight_files import read_state

logger = logging.getLogger(__name__)

_SAFE_READER = Version("2.10")  # the weights-only reader of earlier versions had a hole (CVE-2026-24747)
# a checkpoint of mmcv may hold NumPy numbers in its notes
_NUMBERS: list[Any] = [np.float64(0).__reduce__()[0], np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


def load_published(
    name: str, *, weights: str | os.PathLike[str] | None = None, revision: str | None = None
) -> HeadCheckpoint:
    """Load a head that others published for a frozen backbone.

    Every tensor of the file is checked by name and shape. The result names the backbone, its blocks, how images are
    prepared, the unit and the licence, so that ``Predictor(load_published(name))`` needs nothing else.

    Args:
        name: as in :func:`list_published`.
        weights: a local file in the publisher's format, or in that of transformers; the only way for heads without a
            Hub repository that are gated or state no licence. A hash that the publisher states is compared for files of
            its own format.
        revision: branch, tag or commit of the Hub repository with the same weights in safetensors, which is then loaded
            in place of the publisher's file.

    Raises:
        CheckpointError: if the name is unknown, weights and a revision are given, the file does not fit, is damaged or
            has another hash, it cannot be fetched, is gated, or states no licence.
    """
    row = row_named(name)
    if weights is not None and revision is not None:
        raise CheckpointError(
            f"{name}: weights={str(weights)!r} and revision={revision!r}; give one of them", step="file"
        )
    file = _file(row, revision) if weights is None else Path(weights)
    seen = _checked_hash(row, file)
    head = row.build()
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            state = read_state(file)
    except BackboneError as error:
        raise CheckpointError(f"published head {name!r}: {error}", step="file") from error
    head.load_state_dict(translated(state, head.state_dict(), str(file)), strict=True, assign=True)
    tuned, record = backbone_of(state) if row.tuned else None, backbone_record(row)
    if tuned == {}:
        raise CheckpointError(f"{file} lacks the weights of the backbone, tuned with {name}", step="tensors")
    if tuned is not None:
        record |= {"weights": {"kind": "file"}, "license": row.terms, "weights_sha256": state_digest(tuned)}
    inputs = Preprocessing(patch_size=row.model.patch, **row.inputs)
    origin = {"published": name, "url": row.url, "sha256": seen}
    return HeadCheckpoint.from_module(
        head, backbone=record, backbone_weights=tuned, preprocess=inputs, license=row.licence, extra=origin
    )


def backbone_record(row: PublishedHead) -> dict[str, Any]:
    """Return the backbone record of a row: the published weights of its name, whichever copy of them."""
    model, family = row.model, family_of(row.backbone)
    return {
        "name": row.backbone,
        "family": family,
        "source": "timm",
        "patch_size": [model.patch] * 2,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_cls": 1,
        "num_registers": model.registers,
        "layers": list(row.layers),
        "norm": row.norm,
        "pos_embed": "official" if family == "dinov2" and not model.registers else "native",
        "dtype": "float32",
        "weights": {"kind": "hub", "repo": f"timm/{row.backbone}"},
        "weights_sha256": None,
        "license": model.license,
    }


def _checked_hash(row: PublishedHead, file: Path) -> str:
    """The SHA-256 of a file, compared with the publisher's where it states one; safetensors are other bytes.

    Raises:
        CheckpointError: for another hash, a missing file, or a pickle without a known hash and an unsafe reader.
    """
    if not file.is_file():
        raise CheckpointError(f"the weights of {row.name} are to be read from {file}, which is not a file", step="file")
    with file.open("rb") as opened:
        seen = hashlib.file_digest(opened, "sha256").hexdigest()
    if file.suffix == ".safetensors":
        return seen
    if not seen.startswith(row.sha256):
        raise CheckpointError(
            f"{file} has the SHA-256 {seen[:16]}…; the publisher's file of {row.name} begins with {row.sha256}: it is "
            "damaged, or another file. Download it again",
            step="digest",
        )
    if not row.sha256 and Version(torch.__version__) < _SAFE_READER:
        raise CheckpointError(
            f"{file} is a pickle without a known hash, which torch {torch.__version__} does not read safely; install "
            f"torch {_SAFE_READER} or later, or convert it to .safetensors elsewhere",
            step="file",
        )
    return seen


def _file(row: PublishedHead, revision: str | None) -> Path:
    """The local path of a row's file, downloaded once: the Hub's copy of a revision, else the publisher's.

    Raises:
        CheckpointError: if it is gated or without a licence, has no Hub repository, or cannot be fetched.
    """
    if revision is not None or (row.hub and (row.gated or row.tuned)):
        return _from_hub(row, revision)
    if row.gated or row.licence == NOT_STATED:
        why = f"is given only to people who accepted the terms of {row.licence}" if row.gated else "states no licence"
        raise CheckpointError(
            f"{row.name} {why}: take the file from {row.url} and pass it, weights=FILE (--weights FILE)",
            step="hub",
        )
    file = Path(torch.hub.get_dir(), "checkpoints", Path(row.url).name)
    if not file.exists():
        logger.warning("downloading %s, licence %s", row.url, row.licence)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(row.url, str(file), hash_prefix=row.sha256 or None)
        except (URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{row.url} could not be downloaded ({type(error).__name__}: {error}). Try again, or fetch the file "
                "elsewhere and pass it, weights=FILE (--weights FILE)",
                step="hub",
            ) from None
    return file


def _from_hub(row: PublishedHead, revision: str | None) -> Path:
    if row.hub is None:
        raise CheckpointError(f"{row.name} has no Hub repository; leave revision= out", step="hub")
    import huggingface_hub as hub

    if row.gated:
        logger.warning("%s: the terms of %s hold for the file and what is made of it", row.hub, row.licence)
    try:
        return Path(hub.hf_hub_download(row.hub, "model.safetensors", revision=revision))
    except Exception as error:  # the client raises many unrelated types
        reason = refusal(error, row.hub, revision) or unreachable(error)
        raise CheckpointError(f"{row.name} was not fetched: {reason}", step="hub") from None
