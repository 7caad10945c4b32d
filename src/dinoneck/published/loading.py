"""load_published: the file of a published head, checked and translated, as a HeadCheckpoint like any other.

One translator takes the tensors of publishers' files to those of our modules, strict in names and
shapes; :mod:`dinoneck.published.names` has the names.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor

from dinoneck.backbones.known import family_of, has_several_recipes, license_of
from dinoneck.backbones.weight_hashes import state_digest
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.published.detector_files import load_detector
from dinoneck.published.detectors import PublishedDetector
from dinoneck.published.hub_files import (
    WEIGHTS,
    fetch_weights,
    hub_page,
    not_fetched,
    warn_of_terms,
)
from dinoneck.published.names import (
    BATCH_NORM_COUNT,
    TUNED_BACKBONE,
    backbone_name,
    possible_names,
)
from dinoneck.published.table import NOT_STATED, ROWS, PublishedHead, Rename, row_named
from dinoneck.text import first_line, some_of
from dinoneck.weight_files import read_state

# the weights-only reader of earlier versions had a hole (CVE-2026-24747)
_SAFE_READER = Version("2.10")
# a checkpoint of mmcv may hold NumPy numbers in its notes
_NUMBERS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]

_SHOWN = 5  # names in an error
_BATCH_NORM_EPS = 1e-5  # of the publishers' batch norms
_QKV_ORDER = ("", "q", "k", "v")  # in the tensor of timm; "" is all of it
_BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, Tensor]


def load_published(
    name: str, *, weights: str | os.PathLike[str] | None = None, revision: str | None = None
) -> HeadCheckpoint:
    """Load a head that others published for a frozen backbone, or a whole detector.

    Every tensor of the file is checked by name and shape. Two files with the same names and shapes
    cannot be distinguished where their publisher states no hash. The result names the backbone, its blocks,
    how images are prepared, the unit and the licence, so that ``Predictor(load_published(name))``
    needs nothing else.

    Args:
        name: as in :func:`list_published`.
        weights: a local file in the publisher's format, or in that of transformers (Depth Anything:
            only that; TIPSv2: only ``.safetensors``), or a folder that holds such a file as
            ``model.safetensors``; the only way for heads that state no licence, or are gated and
            without a Hub repository. A file of TIPSv2 that holds the frozen backbone too is the
            ``backbone_file`` of the result, which takes its weights. A hash that the publisher
            states is compared for files of its own format. Of a detector a ``.safetensors`` file,
            or a folder with ``config.json`` and ``model.safetensors`` as the Hub has it, whose
            configuration and labels are compared.
        revision: branch, tag or commit of the Hub repository with the same weights in safetensors,
            which is then loaded in place of the publisher's file.

    Raises:
        CheckpointError: if the name is unknown, or weights and a revision are both given. If the
            file does not fit, is damaged, or has the name or hash of another file. If it cannot be
            fetched, is gated or states no licence, or if the head has no Hub repository for a
            revision.
    """
    row = row_named(name)
    if isinstance(row, PublishedDetector):
        return load_detector(row, weights=weights, revision=revision)
    file, url = _find_file(row, weights, revision)
    sha256 = _checked_hash(row, file)
    head = row.build()
    try:
        with torch.serialization.safe_globals(_NUMBERS):  # noqa: TID251 - numbers of NumPy, for this call
            state = read_state(file)
    except BackboneError as error:
        raise CheckpointError(f"published head {name!r}: {error}", step="file") from error
    _check_finite(state, row, file)
    tensors = translate(state, head.state_dict(), str(file), rename=row.rename)
    head.load_state_dict(tensors, strict=True, assign=True)
    licence = None if row.licence == NOT_STATED else row.licence
    record = backbone_record(row)
    tuned_weights = None
    if row.tuned:
        tuned_weights = _tuned_backbone(row, state, file)
        record["weights"] = {"kind": "file"}
        record["license"] = licence
        record["weights_sha256"] = state_digest(tuned_weights)
    origin = {"published": name, "url": url, "sha256": sha256}
    if row.licence_source:
        origin["license_source"] = row.licence_source
    checkpoint = HeadCheckpoint.from_module(
        head,
        backbone=record,
        backbone_weights=tuned_weights,
        preprocess=Preprocessing(patch_size=row.model.patch, **row.inputs),
        license=licence,
        extra=origin,
    )
    if _holds_frozen_backbone(row, state):
        checkpoint.backbone_file = file
    return checkpoint


def _check_finite(state: Tensors, row: PublishedHead, file: Path) -> None:
    """Raise a CheckpointError for a tensor of a file that is used and not finite."""
    for file_name, tensor in state.items():
        is_of_head = row.rename(file_name) is not None
        is_of_backbone = row.tuned and file_name.startswith(TUNED_BACKBONE)
        if (is_of_head or is_of_backbone) and not tensor.isfinite().all():
            raise CheckpointError(
                f"{file}: {file_name} holds NaN or infinite values; fetch the file again",
                step="tensors",
            )


def _holds_frozen_backbone(row: PublishedHead, state: Tensors) -> bool:
    """Whether a file holds the weights of the frozen backbone next to those of the head."""
    if not row.backbone_prefix:
        return False
    return any(file_name.startswith(row.backbone_prefix) for file_name in state)


def _tuned_backbone(row: PublishedHead, state: Tensors, file: Path) -> dict[str, Tensor]:
    """The backbone's weights in a file of a head that was trained along with it, under timm's names."""
    from dinoneck.backbones import timm  # a heavy library

    with torch.device("meta"):
        expected = timm.build(row.backbone).state_dict()
    return translate(
        backbone_of(state), expected, f"the backbone in {file}", rename=lambda name: name
    )


def backbone_record(row: PublishedHead) -> dict[str, Any]:
    """Return the backbone record of a row: any copy of the weights that were published under its name."""
    model = row.model
    family = family_of(row.backbone)
    has_official_positions = has_several_recipes(family, model.registers)
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
        "pos_embed": "official" if has_official_positions else "native",
        "dtype": "float32",
        "weights": {"kind": "hub", "repo": f"timm/{row.backbone}"},
        "license": license_of(row.backbone),
    }


def _checked_hash(row: PublishedHead, file: Path) -> str:
    """The SHA-256 of a file, compared with the publisher's if it states one.

    It is the hash of the publisher's own format: safetensors of the Hub are not compared.

    Raises:
        CheckpointError: for another hash, the name of another file of the table, or a missing file.
    """
    if not file.is_file():
        raise CheckpointError(
            f"the weights of {row.name} are to be read from {file}, which is not a file",
            step="file",
        )
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if file.suffix.lower() == ".safetensors":
        return sha256
    owners = {Path(other.url).name: other.name for other in ROWS.values()}
    owner = owners.get(file.name, row.name)
    if owner != row.name:
        raise CheckpointError(
            f"{file} has the name of the file of {owner}; expected that of {row.name}", step="file"
        )
    if not sha256.startswith(row.sha256):
        raise CheckpointError(
            f"{file} has the SHA-256 {sha256[:16]}…; the publisher's file of {row.name} begins with "
            f"{row.sha256}: it is damaged, or another file. Download it again",
            step="digest",
        )
    return sha256


def _find_file(
    row: PublishedHead, weights: str | os.PathLike[str] | None, revision: str | None
) -> tuple[Path, str]:
    """The local path of a row's file, downloaded once, and its address: the Hub's copy, else the publisher's.

    Raises:
        CheckpointError: if it is to be fetched, and it is gated, has no licence or does not arrive;
            if a revision is given with a local file or without a Hub repository; before it is
            downloaded, if it is a pickle without a known hash and torch's reader is not safe.
    """
    if revision is not None:
        _check_has_revisions(row, weights, revision)
    if weights is not None:
        file = _local_file(row, Path(weights))
        _check_safe_to_read(row, file)
        return file, row.url
    needs_hub = row.is_on_hub or (row.hub is not None and row.gated)
    if revision is not None or needs_hub:
        _check_may_fetch(row, from_hub=True)
        weights_of_hub = fetch_weights(row, revision or row.revision)
        warn_of_terms(row, hub_page(row))
        return weights_of_hub
    _check_may_fetch(row, from_hub=False)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(row.url).name)  # noqa: TID251 - a folder
    _check_safe_to_read(row, file)
    if not file.exists():
        _download(row, file)
    return file, row.url


def _local_file(row: PublishedHead, path: Path) -> Path:
    """The file that a user names, or the one of weights in a folder as the Hub has it.

    Raises:
        CheckpointError: for a folder without such a file.
    """
    if not path.is_dir():
        return path
    file = path / WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"the folder {path} has no {WEIGHTS}; name the file of {row.name} itself, which is from "
            f"{row.url}",
            step="file",
        )
    return file


def _check_has_revisions(
    row: PublishedHead, weights: str | os.PathLike[str] | None, revision: str
) -> None:
    """Raise a CheckpointError for a revision of a local file, and of a head that has no Hub copy."""
    if weights is not None:
        raise CheckpointError(
            f"revision={revision!r} is for a Hub copy, and weights={str(weights)!r} is a local "
            "file; leave one of them out",
            step="hub",
        )
    if row.hub is None:
        raise CheckpointError(
            f"revision={revision!r} is for a Hub copy, and {row.name} has none; leave revision= out",
            step="hub",
        )


def _check_safe_to_read(row: PublishedHead, file: Path) -> None:
    """Raise a CheckpointError for a pickle that the row excludes, or that torch's reader may not read safely."""
    if file.suffix.lower() == ".safetensors":
        return
    if row.only_safetensors:
        raise CheckpointError(
            f"{file} is no .safetensors file, and {row.name} is read from no other; take {WEIGHTS} "
            f"from {row.url}",
            step="file",
        )
    if row.sha256:
        return
    if Version(torch.__version__) < _SAFE_READER:
        raise CheckpointError(
            f"{file} is a pickle without a known hash, which torch {torch.__version__} does not "
            f"read safely; install torch {_SAFE_READER} or later, or take a .safetensors file "
            "(revision='main' where there is a Hub copy)"
        )


def _download(row: PublishedHead, file: Path) -> None:
    """Download the publisher's file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(row.url, str(file))  # noqa: TID251 - addresses of our own table
    except Exception as error:  # the client raises many unrelated types
        raise not_fetched(row, row.url, first_line(error)) from None
    warn_of_terms(row, row.url)


def _check_may_fetch(row: PublishedHead, from_hub: bool) -> None:
    """Check that the terms of a row let its file be fetched without the user."""
    if row.licence == NOT_STATED:
        reason = "states no licence"
    elif row.gated and not from_hub:
        reason = f"is given only to people who accepted the terms of {row.licence}"
    else:
        return
    raise CheckpointError(
        f"{row.name} {reason}: take the file from {row.url} and pass it, weights=FILE (--weights "
        "FILE)",
        step="hub",
    )


def translate(
    state: Tensors,
    expected: Tensors,
    where: str,
    *,
    rename: Rename,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return the tensors of a file under our names, in our shapes and a dtype, and without batch norms.

    A batch norm in front of a linear layer is folded into it, in float64.

    Args:
        state: of the file.
        expected: the tensors of the module, on any device; only names and shapes are read.
        where: the file, for messages.
        rename: a name in the file -> ours, see :mod:`dinoneck.published.names`.
        dtype: of the result.

    Raises:
        CheckpointError: naming the tensors that are missing, unknown, or of another shape or type.
    """
    file_names: dict[str, str] = {}  # our name -> the file's
    unknown = []
    for file_name in state:
        name = rename(file_name)
        if name is None:  # not part of the head
            continue
        if name in file_names:  # two tensors of the file have one name here
            unknown.append(file_name)
        else:
            file_names[name] = file_name
    normed_layers = _normed_layers(file_names, expected)
    shapes = _shapes_in_file(expected, normed_layers)
    missing = [_name_in_file(name, state, rename) for name in shapes.keys() - file_names.keys()]
    unknown += [file_names[name] for name in file_names.keys() - shapes.keys()]
    _check_all_there(where, missing=missing, unknown=unknown)
    tensors = {name: state[file_name] for name, file_name in file_names.items()}
    for name, tensor in tensors.items():
        _check_tensor(tensor, shapes[name], f"{where}: {file_names[name]}")
    for layer in normed_layers:
        _fold_norm(tensors, layer)
    translated = {}
    for name, tensor in tensors.items():
        translated[name] = tensor.to(dtype).reshape(shapes[name])
    for name in expected:
        if name.endswith(BATCH_NORM_COUNT):
            translated[name] = torch.zeros((), dtype=torch.int64)
    return translated


def _shapes_in_file(
    expected: Tensors, normed_layers: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every tensor that a file has to hold.

    It may leave out the counts of our own batch norms, and has a batch norm in front of some layers.
    """
    shapes = {}
    for name, tensor in expected.items():
        if not name.endswith(BATCH_NORM_COUNT):
            shapes[name] = tuple(tensor.shape)
    for layer in normed_layers:
        in_channels = shapes[f"{layer}.weight"][1:2]
        for suffix in _BATCH_NORM_TENSORS:
            shapes[f"{layer}.norm.{suffix}"] = in_channels
    return shapes


def _check_all_there(where: str, *, missing: Sequence[str], unknown: Sequence[str]) -> None:
    """Raise a CheckpointError for tensors, by their names in the file, that it lacks or has in addition."""
    problems = []
    if missing:
        problems.append(f"lacks {some_of(missing, _SHOWN)}")
    if unknown:
        problems.append(f"holds {some_of(unknown, _SHOWN)} in addition")
    if problems:
        raise CheckpointError(
            f"{where} {', and '.join(problems)}: it is the file of another head", step="tensors"
        )


def _name_in_file(name: str, file_names: Collection[str], rename: Rename) -> str:
    """What a tensor of ours is called in a file: of a publisher's names for it the one most like those that are there.

    Args:
        name: ours.
        file_names: the names in the file.
        rename: as of :func:`translate`.
    """
    best = name
    best_words = (math.inf, 0.0)
    for candidate in possible_names(name):
        if rename(candidate) != name:
            continue  # a name of another publisher
        shared = max((_num_first_words(candidate, other) for other in file_names), default=0)
        num_others = len(candidate.split(".")) - shared
        if (num_others, -shared) < best_words:
            best = candidate
            best_words = (num_others, -shared)
    return best


def _num_first_words(name: str, other: str) -> int:
    """How many words two dotted names have in common at their beginning."""
    count = 0
    for word, other_word in zip(name.split("."), other.split("."), strict=False):
        if word != other_word:
            break
        count += 1
    return count


def _check_tensor(tensor: Tensor, expected_shape: tuple[int, ...], where: str) -> None:
    """Compare the dtype and shape of a file's tensor with those of the head."""
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{where} is {tensor.dtype}; expected floats: it is the file of another head",
            step="tensors",
        )
    shape = tuple(tensor.shape)
    if len(expected_shape) == 2 and shape[2:] == (1, 1):  # a 1x1 convolution is a linear layer
        shape = shape[:2]
    if shape != expected_shape:
        raise CheckpointError(
            f"{where} has the shape {tuple(tensor.shape)}; expected {expected_shape}: it is the "
            "file of another head",
            step="tensors",
        )


def _normed_layers(file_names: Mapping[str, str], expected: Tensors) -> set[str]:
    """Our layers in front of which the file has a batch norm, ``<layer>.norm.*``."""
    layers = {name.rpartition(".")[0] for name in expected}
    normed = {name.partition(".norm.")[0] for name in file_names if ".norm." in name}
    return normed & layers


def _fold_norm(tensors: dict[str, Tensor], layer: str) -> None:
    """Take the batch norm in front of a layer out of the tensors, and fold it into the layer."""
    gain, shift, mean, variance = (
        tensors.pop(f"{layer}.norm.{suffix}").double() for suffix in _BATCH_NORM_TENSORS
    )
    scale = gain / torch.sqrt(variance + _BATCH_NORM_EPS)  # (C_in,)
    weight = tensors[f"{layer}.weight"].double().flatten(1)  # (C_out, C_in)
    bias = tensors[f"{layer}.bias"].double()
    tensors[f"{layer}.weight"] = weight * scale
    tensors[f"{layer}.bias"] = bias + weight @ (shift - mean * scale)


def backbone_of(state: Tensors) -> dict[str, Tensor]:
    """Return the weights of a DINOv2 backbone in transformers' names, ``backbone.*``, under timm's."""
    parts: dict[str, dict[str, Tensor]] = {}  # name -> "q", "k", "v", or "" of a whole tensor
    for file_name, tensor in state.items():
        if not file_name.startswith(TUNED_BACKBONE):
            continue
        name_and_part = backbone_name(file_name.removeprefix(TUNED_BACKBONE))
        if name_and_part is not None:
            name, part = name_and_part
            parts.setdefault(name, {})[part] = tensor
    tensors = {}
    for name, parts_of_name in parts.items():
        in_order = [parts_of_name[part] for part in _QKV_ORDER if part in parts_of_name]
        tensors[name] = torch.cat(in_order)
    return tensors
