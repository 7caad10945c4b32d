"""``dinoneck train``: cross-validated heads from photos and a CSV, beside two baselines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli import backbone_options, numbers, text
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from dinoneck.data.photos import Photo, Preprocessing
    from dinoneck.data.tables import PhotoTable
    from dinoneck.inference.presets import Preset

HELP = "train cross-validated heads on a folder of photos and a CSV (or on a generated pasture)"
EXAMPLE = "dinoneck train --csv cover.csv --photos . --targets crop weed --group group --out run"

_PASTURE_PHOTOS = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    data = parser.add_argument_group("data")
    data.add_argument("--csv", type=Path, help="a CSV of image,target,... or a CSIRO train.csv; without it, a pasture")
    data.add_argument("--photos", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)")
    data.add_argument("--targets", nargs="+", metavar="COLUMN", help="columns to predict (not for the CSIRO layout)")
    data.add_argument("--group", nargs="+", metavar="COLUMN", help="rows of equal values stay in one fold")
    data.add_argument("--image-column", default="image", metavar="COLUMN", help="column of file names (default image)")
    data.add_argument("--minimum", type=float, metavar="X", help="no prediction is below it (0 for masses, fractions)")
    data.add_argument(
        "--pasture", type=numbers.count, default=_PASTURE_PHOTOS, metavar="N", help="photos to generate, without --csv"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for heads, predictions and report")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run there")
    backbone_options.add_backbone(parser)
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--size", type=backbone_options.size, metavar="HxW", help="pixels; default: the photos' own")
    inputs.add_argument("--fit", choices=("stretch", "keep", "crop", "pad"), help="how photos come to --size")
    inputs.add_argument(
        "--policy",
        choices=("error", "crop", "pad", "resize"),
        default="crop",
        help="what to do where the patch does not divide a photo (default: crop, the centre is kept)",
    )
    run_group = parser.add_argument_group("training")
    run_group.add_argument("--folds", type=numbers.count, default=5, metavar="K")
    run_group.add_argument("--epochs", type=numbers.count, default=40, metavar="N")
    run_group.add_argument("--batch-size", type=numbers.count, default=8, metavar="N")
    run_group.add_argument("--lr", type=numbers.positive, default=1e-3, metavar="X")
    run_group.add_argument("--seed", type=numbers.seed, default=42, metavar="N")
    run_group.add_argument("--hidden-dim", type=numbers.count, default=128, metavar="N")
    run_group.add_argument("--preset", help="a whole recipe by name, such as lb066; explicit options win")


def run(options: argparse.Namespace) -> int:
    """Train, print the scores, write the folder."""
    from dinoneck.training.crossval import Plan
    from dinoneck.training.experiment import run_experiment

    data = table(options)
    print(f"{len(data)} photos, {len(set(data.groups or data.ids))} groups, targets {', '.join(data.targets)}")
    recipe = _preset(options)
    backbone = backbone_options.load(options)
    preprocess = backbone.preprocess if recipe is None else recipe.preprocess(backbone)
    if options.fit and (options.size or preprocess.size) is None:
        raise ConfigError(f"--fit {options.fit} says how photos come to a size; give it with --size HEIGHTxWIDTH")
    preprocess = preprocess.changed(size=options.size, fit=options.fit, policy=options.policy)
    print(told_size(preprocess, data.photos[0]))
    plan = Plan(
        folds=options.folds,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        hidden_dim=options.hidden_dim,
        activation=None if recipe is None else recipe.activation,
        standardise=recipe is None,
    )
    _, _, report = run_experiment(data, backbone, preprocess, options.out, plan, overwrite=options.overwrite)
    print(text.scores(report["scores"]))
    print("\n".join(verdicts(report["scores"], list(data.targets))))
    print(f"written: {options.out}/heads, out_of_fold.csv, report.json")
    return 0


def table(options: argparse.Namespace) -> PhotoTable:
    """Read the data that the options name."""
    from dinoneck.data.pasture import Pasture
    from dinoneck.data.tables import CSIRO_GROUP, is_csiro, read_csiro, read_csv

    if options.csv is None:
        if options.targets or options.group or options.photos or options.minimum is not None:
            raise ConfigError("--targets, --group, --photos and --minimum describe a CSV; give it with --csv")
        return Pasture(seed=0).table(range(options.pasture))
    photos = options.photos or options.csv.parent
    if is_csiro(options.csv):
        if options.targets or options.minimum is not None:
            raise ConfigError("the CSIRO layout has its own five targets and minimum 0; leave --targets, --minimum out")
        return read_csiro(options.csv, photos, options.group or CSIRO_GROUP)
    if not options.targets:
        raise ConfigError("which columns are to be predicted? Name them with --targets")
    return read_csv(options.csv, photos, options.targets, options.group, options.image_column, options.minimum)


def told_size(preprocess: Preprocessing, photo: Photo) -> str:
    """Say what a photo is prepared to, and what is lost on the way: nothing is cropped in silence."""
    from dinoneck.data.photos import decode

    before = decode(photo).shape[-2:]
    prepared = preprocess.prepare(photo)
    after, grid = prepared.images.shape[-2:], prepared.grid
    told = f"Photos of {before[0]}x{before[1]} px (height x width) become {after[0]}x{after[1]} px, "
    told += f"{grid.rows}x{grid.cols} patches"
    if preprocess.size is None and before != after:
        told += (
            f": the patch of {preprocess.patch_size} px does not divide them, so --policy {preprocess.policy} applies"
        )
    return f"{told}."


def verdicts(scores: dict[str, dict[str, Any]], targets: list[str]) -> list[str]:
    """Say in plain words where the head does not beat the baselines."""
    from dinoneck.training.crossval import not_beaten

    lines = []
    for target in targets:
        better = not_beaten(scores, target)
        if better:
            shown = ", ".join(f"{method} {scores[method][target]:.3f}" for method in better)
            lines.append(f"{target}: the head ({scores['head'][target]:.3f}) does not beat {shown}.")
    return lines or ["The head beats both baselines on every target."]


def _preset(options: argparse.Namespace) -> Preset | None:
    """The preset named; and the backbone: the one given, else the preset's, else DINOv3-S."""
    from dinoneck.inference.presets import preset

    recipe = None if options.preset is None else preset(options.preset)
    options.backbone = options.backbone or (recipe.backbone if recipe else DINOV3_SMALL)
    return recipe
