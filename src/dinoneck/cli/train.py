"""``dinoneck train``: cross-validated heads from photos and a CSV, beside two baselines."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli import backbone_options, numbers, text
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from dinoneck.data.photos import Photo, Preprocessing
    from dinoneck.data.tables import PhotoTable
    from dinoneck.inference.presets import Preset
    from dinoneck.training.cell_targets import CellTargets

HELP = "train cross-validated heads on a folder of photos and a CSV (or on a generated pasture)"
EXAMPLE = "dinoneck train --csv cover.csv --photos . --targets crop weed --group group --out run"

_PASTURE_PHOTOS = 120
_BENT = 1.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    data = parser.add_argument_group("data")
    data.add_argument("--csv", type=Path, help="a CSV of image,target,... or a CSIRO train.csv; without it, a pasture")
    data.add_argument("--photos", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)")
    data.add_argument("--targets", nargs="+", metavar="COLUMN", help="columns to predict (not for the CSIRO layout)")
    data.add_argument("--group", nargs="+", metavar="COLUMN", help="rows of equal values stay in one fold")
    data.add_argument("--image-column", default="image", metavar="COLUMN", help="column of file names (default image)")
    data.add_argument("--labels", metavar="COLUMN", help="column of class masks (PNG, TIFF) for --head fpn")
    data.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes 0, 1, ... in the masks")
    data.add_argument("--unit", metavar="TEXT", help="unit of the targets, for head files and pictures, such as g")
    data.add_argument("--minimum", type=float, metavar="X", help="no prediction is below it (0 for masses, fractions)")
    data.add_argument(
        "--pasture", type=numbers.count, default=_PASTURE_PHOTOS, metavar="N", help="photos to generate, without --csv"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for heads, predictions and report")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run there")
    backbone_options.add_backbone(parser)
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
        default="crop",
        help="what to do where the patch does not divide a photo (default: crop, the centre is kept)",
    )
    _add_training(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    run_group = parser.add_argument_group("training")
    run_group.add_argument(
        "--folds", type=numbers.count, default=5, metavar="K", help="folds of the cross-validation (default 5)"
    )
    run_group.add_argument(
        "--epochs", type=numbers.count, default=40, metavar="N", help="passes over the training photos (default 40)"
    )
    run_group.add_argument(
        "--batch-size", type=numbers.count, default=8, metavar="N", help="photos per step (default 8)"
    )
    run_group.add_argument(
        "--lr", type=numbers.positive, default=1e-3, metavar="X", help="peak learning rate (default 0.001)"
    )
    run_group.add_argument(
        "--seed",
        type=numbers.seed,
        default=42,
        metavar="N",
        help="of the split and the heads' first weights (default 42)",
    )
    run_group.add_argument(
        "--head",
        choices=("patch_mean", "fpn"),
        default="patch_mean",
        help="patch_mean: every patch answers, the mean counts (default); fpn: a pyramid that sees arrangement",
    )
    run_group.add_argument(
        "--layers", type=int, nargs="+", metavar="BLOCK", help="backbone blocks for --head fpn, such as 2 5 8 11"
    )
    run_group.add_argument(
        "--hidden-dim",
        type=numbers.count,
        default=128,
        metavar="N",
        help="hidden units per head, channels of the pyramid (default 128)",
    )
    run_group.add_argument("--preset", help="a whole recipe by name, such as lb066; explicit options win")
    run_group.add_argument("--device", help="such as cuda; default: the CPU")


def run(options: argparse.Namespace) -> int:
    """Train, print the scores, write the folder."""
    from dinoneck.inference.predictor import usable_device
    from dinoneck.training.crossval import Plan
    from dinoneck.training.experiment import run_experiment

    data = table(options)
    print(f"{len(data)} photos, {len(set(data.groups or data.ids))} groups, targets {', '.join(data.targets)}")
    recipe = _preset(options)
    if options.head != "fpn" and (options.layers or options.labels):
        raise ConfigError("--layers and --labels are for --head fpn; patch_mean reads the last layer, without masks")
    if (options.labels is None) != (options.classes is None):
        raise ConfigError("--labels names the column of class masks and --classes their classes; give both")
    backbone = backbone_options.load(options)
    if options.layers:
        backbone = backbone.with_layers(options.layers)
    if options.device:
        backbone.to(usable_device(options.device))
    preprocess = backbone.preprocess if recipe is None else recipe.preprocess(backbone)
    if options.fit and (options.size or preprocess.size) is None:
        raise ConfigError(f"--fit {options.fit} says how photos come to a size; give it with --size HEIGHTxWIDTH")
    preprocess = preprocess.changed(size=options.size, fit=options.fit, policy=options.policy)
    print("\n".join(told_size(preprocess, data.photos[0])))
    if data.groups is None:
        print("No --group: photos of one place or day may fall into several folds, which flatters every score.")
    if data.minimum is None and all((values >= 0).all() for values in data.targets.values()):
        print("All targets are 0 or more; --minimum 0 keeps predictions so.")
    plan = Plan(
        folds=options.folds,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        hidden_dim=options.hidden_dim,
        activation=None if recipe is None else recipe.activation,
        standardise=recipe is None,
        head=options.head,
    )
    cells = _cells(options, data, preprocess)
    _, _, report = run_experiment(
        data, backbone, preprocess, options.out, plan, overwrite=options.overwrite, cells=cells
    )
    print(text.scores(report["scores"]))
    if cells is not None:
        said = (f"{name} {'–' if score is None else f'{score:.3f}'}" for name, score in report["cell_scores"].items())
        print(f"R² per cell: {', '.join(said)}")
    print(
        f"overall: {'weighted R² over all targets' if data.weights else 'mean over targets'}; worst fold: of overall."
    )
    print("\n".join(verdicts(report["scores"], list(data.targets))))
    print(f"written: {options.out}/heads, out_of_fold.csv, report.json")
    return 0


def table(options: argparse.Namespace) -> PhotoTable:
    """Read the data that the options name."""
    from dinoneck.data.pasture import Pasture
    from dinoneck.data.tables import CSIRO_GROUP, is_csiro, read_csiro, read_csv

    if options.csv is None:
        if options.targets or options.group or options.photos or options.labels or options.minimum is not None:
            raise ConfigError("--targets, --group, --photos, --labels and --minimum describe a CSV; give it with --csv")
        return Pasture(seed=0).table(range(options.pasture))
    photos = options.photos or options.csv.parent
    if is_csiro(options.csv):
        if options.targets or options.labels or options.minimum is not None:
            raise ConfigError(
                "the CSIRO layout has its own five targets, minimum 0 and no masks; leave --targets, --minimum, "
                "--labels out"
            )
        return read_csiro(options.csv, photos, options.group or CSIRO_GROUP)
    if not options.targets:
        raise ConfigError("which columns are to be predicted? Name them with --targets")
    found = read_csv(
        options.csv, photos, options.targets, options.group, options.image_column, options.minimum, options.labels
    )
    return replace(found, units=dict.fromkeys(found.targets, options.unit or ""))


def _cells(options: argparse.Namespace, data: PhotoTable, preprocess: Preprocessing) -> CellTargets | None:
    """The masks' cover fractions per patch, where masks are named."""
    from dinoneck.data.labels import DenseLabels
    from dinoneck.training.cell_targets import CellTargets

    if data.labels is None or options.labels is None:
        return None
    return CellTargets.read(data, DenseLabels(classes=len(options.classes)), preprocess, options.classes)


def told_size(preprocess: Preprocessing, photo: Photo) -> list[str]:
    """Say what a photo is prepared to, and what is lost on the way: nothing is cropped or bent in silence."""
    from dinoneck.data.photos import decode

    before = decode(photo).shape[-2:]
    prepared = preprocess.prepare(photo)
    after, grid = prepared.images.shape[-2:], prepared.grid
    lines = [
        f"The first photo, {before[0]}x{before[1]} px (height x width), becomes {after[0]}x{after[1]} px, "
        f"{grid.rows}x{grid.cols} patches."
    ]
    if tuple(after) != (preprocess.size or tuple(before)):
        lines.append(
            f"The patch of {preprocess.patch_size} px does not divide it: --policy {preprocess.policy} applies."
        )
    if preprocess.size is not None:
        bent = (after[0] / before[0]) / (after[1] / before[1])
        if preprocess.fit == "stretch" and not 1 / _BENT < bent < _BENT:
            lines.append(
                f"--fit stretch changes its proportions by {abs(bent - 1):.0%}; --fit crop, pad or keep would not."
            )
    return lines


def verdicts(scores: dict[str, dict[str, Any]], targets: list[str]) -> list[str]:
    """Say in plain words where the head does not beat the baselines."""
    from dinoneck.training.crossval import not_beaten

    lines = []
    for target in targets:
        better = not_beaten(scores, target)
        if better:
            shown = ", ".join(f"{method} {scores[method][target]:.3f}" for method in better)
            lines.append(f"{target}: the head ({scores['head'][target]:.3f}) does not beat {shown}.")
    lines = lines or ["The head beats both baselines on every target."]
    useless = [target for target in targets if scores["head"][target] <= 0]
    if useless:
        lines.append(f"{', '.join(useless)}: R² is not above 0, so the head is no better than the mean of all photos.")
    return lines


def _preset(options: argparse.Namespace) -> Preset | None:
    """The preset named; and the backbone: the one given, else the preset's, else DINOv3-S."""
    from dinoneck.inference.presets import preset

    recipe = None if options.preset is None else preset(options.preset)
    options.backbone = options.backbone or (recipe.backbone if recipe else DINOV3_SMALL)
    return recipe
