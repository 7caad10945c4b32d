"""The options of ``dinoneck train``, and what they say: fields of a training config, over those of a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli import backbone_options, numbers
from dinoneck.cli.answers import add_json
from dinoneck.errors import ConfigError
from dinoneck.training.config_keys import HEADS

if TYPE_CHECKING:
    from dinoneck.training.config_file import TrainingConfig

PASTURE_PHOTOS = 120
QUICK = {"head": "patch_mean", "epochs": 40, "batch_size": 8, "lr": 1e-3, "recipe.ema_decay": None}
"""What a run without a file trains: a quick head on few photos."""
_SAME = ("image_column", "unit", "minimum", "backbone", "backbone_source", "backbone_file", "backbone_seed", "fit",
         "policy", "folds", "fold", "epochs", "batch_size", "lr", "seed", "head", "hidden_dim", "device",
         "patterns", "dropout")  # fmt: skip
_PATHS = ("csv", "photos", "store")
_RENAMED = {"labels": "label_column", "size": "image_size", "gate_mode": "gate"}
_LISTS = {"targets": "targets", "aux_targets": "aux_targets", "group": "group_columns", "classes": "classes",
          "layers": "layers"}  # fmt: skip
_RECIPE = {"optimizer": "optimizer", "rho": "rho", "ema": "ema_decay", "mixup_alpha": "mixup_alpha",
           "patience": "patience", "amp": "amp", "weight_decay": "weight_decay"}  # fmt: skip
_OFF = "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments; those that are left out are None, so that a file can speak."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="a training file; options win")
    parser.add_argument("--out", type=Path, required=True, help="folder for heads, predictions and report")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run there")
    _add_data(parser)
    backbone_options.add_backbone(parser)
    parser.set_defaults(backbone_source=None)
    _add_inputs(parser)
    _add_head(parser)
    _add_training(parser)
    add_json(parser)


def config(options: argparse.Namespace) -> TrainingConfig:
    """Return what the file and the options say: options over the file over the defaults.

    Raises:
        ConfigError: if the file cannot be used, or the options contradict each other.
    """
    from dinoneck.training.config_file import config_of, read_config

    said = _said(options)
    if options.config is not None:
        return read_config(options.config, said)
    return config_of(QUICK, said)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that the options give."""
    fields: dict[str, Any] = {name: getattr(options, name) for name in _SAME}
    fields |= {name: _text(getattr(options, name)) for name in _PATHS}
    fields |= {field: getattr(options, name) for name, field in _RENAMED.items()}
    fields |= {field: _tuple(getattr(options, name)) for name, field in _LISTS.items()}
    fields["pretrained"] = False if options.random_backbone else None
    if options.rho is not None and options.optimizer is None and options.config is None:
        raise ConfigError("--rho is SAM's; give it with --optimizer sam")
    recipe = {f"recipe.{field}": getattr(options, name) for name, field in _RECIPE.items()}
    said = {name: value for name, value in {**fields, **recipe}.items() if value is not None}
    return {name: None if name in recipe and value == _OFF else value for name, value in said.items()}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _or_none(kind: Any) -> Any:
    """The kind of a number that may be switched off by the word none."""

    def parse(text: str) -> Any:
        return _OFF if text == _OFF else kind(text)

    return parse


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--csv", type=Path, help="a CSV of image,target,... or a CSIRO train.csv; without it, a pasture")
    data.add_argument("--photos", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)")
    data.add_argument(
        "--store", type=Path, metavar="STORE", help="train from a feature store; photos are only compared"
    )
    data.add_argument("--patterns", type=numbers.count, metavar="N", help="of the store's patterns, the first N only")
    data.add_argument("--targets", nargs="+", metavar="COLUMN", help="columns to predict (CSIRO layout: of its five)")
    data.add_argument("--aux-targets", nargs="+", metavar="COLUMN", help="columns that only help training")
    data.add_argument("--group", nargs="+", metavar="COLUMN", help="rows of equal values stay in one fold")
    data.add_argument("--image-column", metavar="COLUMN", help="column of file names (default image)")
    data.add_argument("--labels", metavar="COLUMN", help="column of class masks (PNG, TIFF), for --head fpn or dense")
    data.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes 0, 1, ... in the masks")
    data.add_argument("--unit", metavar="TEXT", help="unit of the targets, for head files and pictures, such as g")
    data.add_argument("--minimum", type=float, metavar="X", help="no prediction is below it (0 for masses, fractions)")
    data.add_argument(
        "--pasture", type=numbers.count, default=PASTURE_PHOTOS, metavar="N", help="photos to generate, without --csv"
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--size", type=backbone_options.size, metavar="HxW", help="pixels; default: the photos' own")
    inputs.add_argument(
        "--fit",
        choices=("stretch", "keep", "crop", "pad"),
        help="how photos come to --size: stretch bends (default), keep fits inside, crop fills and cuts, pad fills up",
    )
    inputs.add_argument(
        "--policy",
        choices=("error", "crop", "pad", "resize"),
        help="what to do where the patch does not divide a photo (default: crop, the centre is kept)",
    )


def _add_head(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("head")
    group.add_argument(
        "--head",
        choices=HEADS,
        help="patch_mean: every patch answers, the mean counts (default; in a file cls_gating); fpn: a pyramid "
        "that sees arrangement; cls_gating: the CLS token picks patches; dense: class masks alone",
    )
    group.add_argument(
        "--layers", type=int, nargs="+", metavar="BLOCK", help="backbone blocks for --head fpn, such as 2 5 8 11"
    )
    group.add_argument(
        "--hidden-dim", type=numbers.count, metavar="N", help="hidden units, channels of the pyramid (default 128)"
    )
    group.add_argument("--dropout", type=numbers.share, metavar="X", help="of --head cls_gating (default 0.1)")
    group.add_argument("--gate-mode", choices=("mlp", "query", "resized"), help="of --head cls_gating (default mlp)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training (defaults: without a file; a file has its own)")
    group.add_argument("--folds", type=numbers.count, metavar="K", help="folds of the cross-validation (default 5)")
    group.add_argument("--fold", type=numbers.whole, metavar="K", help="train this fold alone, counted from 0")
    group.add_argument("--epochs", type=numbers.count, metavar="N", help="passes over the training photos (default 40)")
    group.add_argument("--batch-size", type=numbers.count, metavar="N", help="photos per step (default 8)")
    group.add_argument("--lr", type=numbers.positive, metavar="X", help="peak learning rate (default 0.001)")
    group.add_argument("--seed", type=numbers.seed, metavar="N", help="of the split and the first weights (default 42)")
    group.add_argument(
        "--optimizer", choices=("adamw", "sam"), help="sam looks around before each step (default adamw)"
    )
    group.add_argument("--rho", type=numbers.positive, metavar="X", help="how far sam looks (default 0.05)")
    group.add_argument("--weight-decay", type=numbers.not_negative, metavar="X", help="of matrices (default 0.01)")
    group.add_argument(
        "--ema",
        type=_or_none(numbers.share),
        metavar="X",
        help="decay of the weights' average (default 0.997), or none",
    )
    group.add_argument(
        "--mixup-alpha", type=_or_none(numbers.positive), metavar="X", help="blend tokens, or none (default)"
    )
    group.add_argument(
        "--patience", type=_or_none(numbers.count), metavar="N", help="stop after N epochs that bring nothing, or none"
    )
    group.add_argument("--amp", choices=("bf16", "fp16", _OFF), help="mixed precision (default none)")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an interrupted run of the same values stopped (default), or begin anew",
    )
    group.add_argument("--preset", help="a whole recipe by name, such as lb066; explicit options win")
    group.add_argument("--device", help="such as cuda; default: the CPU")
