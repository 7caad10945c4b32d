"""The backbone of a head file, loaded again from its record: by name only, never from a path or code in the file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.load import load_backbone
from dinoneck.checkpoint.pairing import NAMED, need
from dinoneck.checkpoint.schema import describe_weights
from dinoneck.errors import CheckpointError, ConfigError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_PART = r"[A-Za-z0-9][\w.\-]{0,95}"
# a model's name, or a hub repository: a path below the working folder at most
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def rebuild(record: Mapping[str, Any], file: str | os.PathLike[str] | None = None, *, random: bool = False) -> Backbone:
    """Load the backbone of a record: by name, with the weights of a local file, or with random ones.

    Nothing in a record is imported or run, and no folder that it names is opened. Weights that come from elsewhere are
    compared by who asks for this.

    Args:
        record: the backbone record of a head file.
        file: its weights, where they are not seeded or published; for transformers also a model folder.
        random: seeded random weights instead of those of the record: its own seed, or 0 where it names other weights.

    Raises:
        CheckpointError: if the record is incomplete or contradicts itself.
        BackboneError: if the weights cannot be had.
    """
    name, origin = str(need(record, "name")), need(record, "weights")
    if file is None and not random and origin.get("kind") not in NAMED:
        raise CheckpointError(
            f"the heads were trained on {name!r} with {describe_weights(origin)}, which cannot be found by name: load "
            "them yourself and pass backbone= (--backbone-file on the command line)",
            step="pairing",
        )
    if "/" in name and origin.get("kind") == "hub" and origin.get("repo") != name:
        raise CheckpointError(
            f"the record names the model {name!r} and weights of {origin.get('repo')!r}: these do not belong together",
            step="pairing",
        )
    dtype = record.get("dtype") or "float32"
    if dtype not in _DTYPES:
        raise CheckpointError(f"the record has dtype {dtype!r}; expected one of {', '.join(_DTYPES)}", step="pairing")
    folder = file is not None and Path(file).is_dir()
    if not folder:
        _check_name(name, record.get("source"))
    own = origin.get("kind") == "seeded"
    seeded = file is None and (random or own)
    try:
        return load_backbone(
            str(file) if folder else name,
            pretrained=not seeded,
            checkpoint=None if folder else file,
            seed=(need(origin, "seed") if own else 0) if seeded else None,
            layers=need(record, "layers"),
            norm=need(record, "norm"),
            source=record.get("source") or "timm",
            pos_embed=record.get("pos_embed") or "native",
            dtype=_DTYPES[dtype],
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the backbone record of this head cannot be followed: {error}", step="pairing"
        ) from error


def _check_name(name: str, source: Any) -> None:
    """Refuse a name that would lead into a local folder: the library transformers takes both for the same argument."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"the record names the model {name[:200]!r}; expected a name such as 'vit_small_patch16_dinov3', or a hub "
            "repository 'user/name'. A head file names no path: load the backbone yourself and pass backbone=",
            step="pairing",
        )
    if source == "transformers" and os.path.isdir(name):  # noqa: PTH112 - never raises
        raise CheckpointError(
            f"the record names the model {name!r}, and the working folder holds a folder of that name, which would be "
            "loaded in its place: start elsewhere, or load the backbone yourself and pass backbone=",
            step="pairing",
        )
