"""The backbone of a head, loaded again by the record in the head's file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.load import load_backbone
from dinoneck.checkpoint.compare import normalisation_differs
from dinoneck.checkpoint.schema import NAMED, STATED, describe_weights, need
from dinoneck.dtypes import WEIGHT_DTYPES
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.images.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

_PART = r"[A-Za-z0-9][\w.\-]{0,95}"  # a hub allows 96 characters
# a model's name, or a hub repository: a path below the working folder at most
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def rebuild(
    record: Mapping[str, Any], file: str | os.PathLike[str] | None = None, *, random: bool = False
) -> Backbone:
    """Load the backbone of a record: by name, with the weights of a local file, or with random ones.

    Nothing in a record is imported or run, and no folder that it names is opened. The caller compares
    the weights of a file with the record.

    Args:
        record: the backbone record of a head file.
        file: its weights, where they are not seeded or published; for transformers also a model
            folder.
        random: seeded random weights instead of those of the record: its own seed, or 0 where it
            names other weights.

    Raises:
        CheckpointError: if the record is incomplete or contradicts itself.
        BackboneError: if the weights cannot be had.
    """
    layers = need(record, "layers")
    norm = need(record, "norm")
    name = str(need(record, "name"))
    origin = need(record, "weights")
    if file is None and not random:
        _check_found_by_name(name, origin)
    dtype = record.get("dtype") or "float32"
    _check_same_repository(name, origin)
    _check_built_by_name(name, record.get("source"))
    _check_dtype(dtype)
    is_model_folder = file is not None and Path(file).is_dir()
    if not is_model_folder:
        _check_names_no_path(name, record.get("source"))
    seed = None  # the weights are published, or in the file
    if file is None:
        if origin.get("kind") == "seeded":
            seed = need(origin, "seed")
        elif random:
            seed = 0
    model = name
    checkpoint = file
    if is_model_folder:  # which holds the weights too
        model = str(file)
        checkpoint = None
    try:
        backbone = load_backbone(
            model,
            pretrained=seed is None,
            checkpoint=checkpoint,
            seed=seed,
            layers=layers,
            norm=norm,
            source=record.get("source") or "timm",
            pos_embed=record.get("pos_embed") or "native",
            dtype=WEIGHT_DTYPES[dtype],
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the head's backbone record cannot be followed: {error}", step="pairing"
        ) from error
    _take_normalisation(backbone, record)
    return backbone


def _check_found_by_name(name: str, origin: Mapping[str, Any]) -> None:
    """Raise a CheckpointError for weights that their record does not say where to find; warn of stated ones."""
    kind = origin.get("kind")
    if kind == STATED:
        logger.warning(
            "%s is loaded with its published weights, as stated by the user for features of "
            "another program; whether they made these features is not known",
            name,
        )
    elif kind not in NAMED:
        raise CheckpointError(
            f"the heads were trained on {name!r} with {describe_weights(origin)}, which cannot be "
            "found by name: load them yourself and pass backbone= (--backbone-file on the command "
            "line)",
            step="pairing",
        )


def _check_same_repository(name: str, origin: Mapping[str, Any]) -> None:
    """Raise a CheckpointError for weights of another hub repository than the model's."""
    if "/" in name and origin.get("kind") == "hub" and origin.get("repo") != name:
        raise CheckpointError(
            f"the record names the model {name!r} and weights of {origin.get('repo')!r}: these do "
            "not belong together",
            step="pairing",
        )


def _check_built_by_name(name: str, source: object) -> None:
    """Raise a CheckpointError for a model of the dinov2 or dinov3 repository."""
    if source == "official":
        raise CheckpointError(
            f"the head was trained on {name!r}, an object of the dinov2 or dinov3 repository, which "
            "is not built by name: load it, and pass backbone=wrap_backbone(model). A file that "
            "holds its weights gives them as HeadCheckpoint.load(file).backbone_weights, for "
            "model.load_state_dict",
            step="pairing",
        )


def _check_dtype(dtype: str) -> None:
    if dtype not in WEIGHT_DTYPES:
        raise CheckpointError(
            f"the record has dtype {dtype!r}; expected one of {', '.join(WEIGHT_DTYPES)}",
            step="pairing",
        )


def _check_names_no_path(name: str, source: object) -> None:
    """Raise a CheckpointError for a name that is, or would be taken for, a local folder."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"the record names the model {name[:200]!r}; expected a name such as "
            "'vit_small_patch16_dinov3', or a hub repository 'user/name'. A head file names no "
            "path: load the backbone yourself and pass backbone=",
            step="pairing",
        )
    # the library transformers takes names and local folders for the same argument
    if source == "transformers" and Path(name).is_dir():
        raise CheckpointError(
            f"the record names the model {name!r}, and the working folder holds a folder of that "
            "name, which would be loaded in its place: start elsewhere, or load the backbone "
            "yourself and pass backbone=",
            step="pairing",
        )


def _take_normalisation(backbone: Backbone, record: Mapping[str, Any]) -> None:
    """Have a backbone take images with the mean and std of a record, which its user may have chosen."""
    mean = record.get("mean")
    std = record.get("std")
    adapter = backbone.adapter
    if mean is None or std is None or len(mean) != adapter.in_chans:
        return
    if normalisation_differs(record, {"mean": adapter.mean, "std": adapter.std}):
        backbone.preprocess = Preprocessing(
            patch_size=adapter.patch_size, mean=tuple(mean), std=tuple(std)
        )
