"""Heads and detectors on field images and blood cells, trained by the calls that a user makes."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure import Row
from dinoneck.backbones.known import KNOWN, TINY_DEPTH
from dinoneck.cli.main import main as dinoneck
from dinoneck.training import (
    BackboneConfig,
    DataConfig,
    FoldsConfig,
    Recipe,
    TaskConfig,
    TrainConfig,
    train,
)
from dinoneck.training.comparison import prepare_heads, train_heads

CLASSES = ("soil", "crop", "weed")
SIZE = (352, 480)  # height, width: of a field image in whole patches of 16 px
SHORT_SIZE = (96, 128)  # height, width
SHORT_EVERY = 20  # with --short, one image of so many
CELLS_EPOCHS = 12  # a pyramid of four layers takes minutes for 40
# name of the row -> head, and whether it reads the last of the layers alone
CELLS: dict[str, tuple[dict[str, Any], bool]] = {
    "LinearHead": ({"type": "linear"}, True),
    "DenseHead": ({"type": "dense"}, True),
    "FPNHead, last layer": ({"type": "fpn", "fpn_dim": 64, "tower_depth": 1}, True),
    "FPNHead, four layers": ({"type": "fpn", "fpn_dim": 64, "tower_depth": 1}, False),
}
BOXES = (
    "--augment both --batch-size 4 --lr 1e-3 --warmup 0.1 --weight-decay 1e-4 --ema-decay 0.99 "
    "--eval-every 2 --size 256x320"
)
FCOS = "--detector fcos --clip-norm 5 --epochs 8"
DFINE = "--detector dfine --variant tiny --epochs 10 --clip-norm 0.1"
# name of the row -> options of dinoneck train
DETECTORS = {
    "D-FINE, SpatialTuningAdapter": f"{DFINE} --head spatial_tuning_adapter",
    "D-FINE, STAPyramid": f"{DFINE} --head sta_pyramid",
    "FCOS, SpatialTuningAdapter": (
        f"{FCOS} --head '{{type: spatial_tuning_adapter, out_channels: 96}}'"
    ),
    "FCOS, STAPyramid": f"{FCOS} --head '{{type: sta_pyramid, out_channels: 96}}'",
    "FCOS, torchvision's FPN": (
        f"{FCOS} --head '{{type: torchvision_pyramid, out_channels: 96}}' "
        "--import benchmarks.evidence.peers"
    ),
}
SHORT_BOXES = "--epochs 1 --size 96x128 --eval-every 1"
TRAINED_TOO = "--backbone dinoneck_tiny --layers 1 3 5 --freeze 0=none --backbone-lr 1e-3"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean, and the lowest and highest where there are several."""
    mean = f"{fmean(values):z.{digits}f}"
    if len(values) == 1:
        return mean
    lowest = f"{min(values):z.{digits}f}"
    highest = f"{max(values):z.{digits}f}"
    return f"{mean} ({lowest} … {highest})"


def layers_of(backbone: str) -> tuple[int, ...]:
    """Return four blocks, evenly spaced; the last one is among them."""
    architecture = backbone.split(".")[0]
    depth = TINY_DEPTH  # dinoneck_tiny is not among the known models
    for known in KNOWN:
        if known.name == architecture:
            depth = known.depth
    return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


def config_of(options: Namespace, seed: int, **changes: Any) -> TrainConfig:
    """Return the run on crop_cover that all tables share: folds by group, the last of four layers unless changed."""
    images = options.data / "crop_cover"
    data: dict[str, Any] = {"csv": str(images / "cover.csv"), "targets": CLASSES, "minimum": 0.0}
    if options.short:
        data["csv"] = str(short_table(images / "cover.csv", options.runs))
        data["size"] = SHORT_SIZE
    data |= changes.pop("data", {})

    optim = {"seed": seed} | changes.pop("optim", {})
    folds = changes.pop("folds", 5)
    if options.short:
        optim["epochs"] = 1
        folds = 2

    layers = changes.pop("layers", layers_of(options.backbone)[-1:])
    return TrainConfig(
        data=DataConfig(images=str(images), **data),
        backbone=BackboneConfig(name=options.backbone, random=options.random, layers=layers),
        folds=FoldsConfig(count=folds, group=("group",)),
        optim=Recipe(**optim),
        device=options.device,
        **changes,
    )


def short_table(table: Path, runs: Path) -> Path:
    """Write the table of few images and return its path."""
    header, *rows = table.read_text().splitlines()
    lines = [header, *rows[::SHORT_EVERY]]
    runs.mkdir(parents=True, exist_ok=True)
    short = runs / "cover.csv"
    short.write_text("\n".join(lines) + "\n")
    return short


def scores_of(options: Namespace, seed: int, out: str, **changes: Any) -> dict[str, Any]:
    """Train on crop_cover and return the scores of the report."""
    config = config_of(options, seed, **changes)
    report = train(config, options.runs / out, overwrite=True)
    scores: dict[str, Any] = report["scores"]
    return scores


def store_of(options: Namespace, layers: Sequence[int]) -> Path:
    """Extract the tokens of the field images and return their store.

    Several runs read it. A store that is finished already is left as it is.

    Raises:
        RuntimeError: if the command failed.
    """
    data = options.data / "crop_cover"
    height, width = SIZE
    if options.short:
        height, width = SHORT_SIZE
    size = f"{height}x{width}"
    layer_numbers = [str(layer) for layer in layers]
    store = options.runs / f"tokens-{size}-{'-'.join(layer_numbers)}"

    command = ["extract", str(data / "images"), "--root", str(data), "--out", str(store)]
    command += ["--size", size, "--resize", "crop", "--device", options.device]
    command += ["--backbone", options.backbone, "--layers", *layer_numbers]
    if options.random:
        command.append("--random-backbone")
    if dinoneck(command):
        raise RuntimeError("the extraction failed; its message is above")
    return store


def pooled_r2(runs: Sequence[Mapping[str, Any]], target: str, method: str) -> str:
    """Return the spread over runs of the R² of all held-out images."""
    return spread([scores[target][method]["r2"]["pooled"] for scores in runs])


def cover(options: Namespace) -> dict[str, Row]:
    """Return R² of the cover of images held out by group: PatchMeanHead, ridge regression, their average."""
    last_layer = layers_of(options.backbone)[-1:]
    data = {"store": store_of(options, last_layer)}
    runs = []
    for seed in range(options.rounds):
        runs.append(scores_of(options, seed, f"cover/{seed}", data=data))
    table: dict[str, Row] = {}
    for method in runs[0][CLASSES[0]]:
        table[method] = {target: pooled_r2(runs, target, method) for target in CLASSES}
    return table


def cells(options: Namespace) -> dict[str, Row]:
    """Return R² of the cover of patches, and of images as the mean over their patches."""
    table: dict[str, Row] = {}
    tasks = {name: TaskConfig(from_map="cells") for name in CLASSES}
    for title, (head, last_only) in CELLS.items():
        layers = layers_of(options.backbone)
        if last_only:
            layers = layers[-1:]
        store = store_of(options, layers)
        runs = []
        for seed in range(options.rounds):
            scores = scores_of(
                options,
                seed,
                f"cells/{title}-{seed}",
                layers=layers,
                data={"store": store, "labels": "mask", "classes": CLASSES},
                optim={"epochs": CELLS_EPOCHS},
                head=head,
                tasks=tasks,
            )
            runs.append(scores)
        # a target is named by its class, or by words before it
        targets = [name for name in runs[0] if name.split()[-1] in CLASSES]
        table[title] = {target: pooled_r2(runs, target, "head") for target in targets}
    return table


def masks(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of heads that segment, with intervals over groups, their parameters and seconds."""
    data = {
        "labels": "mask",
        "classes": CLASSES,
        "targets": (),
        "minimum": None,
        "size": SHORT_SIZE if options.short else (240, 320),
    }
    config = config_of(
        options,
        seed=0,
        layers=layers_of(options.backbone),
        data=data,
        optim={"epochs": 10, "lr": 1e-3, "batch_size": 8},
        folds=2,
    )
    out = options.runs / "masks"
    trainers = prepare_heads(config, ("linear", "fpn", "mask"), out, overwrite=True)
    report = train_heads(trainers, out)
    [scores_of_heads] = report["scores"].values()
    table: dict[str, Row] = {}
    for name, scores in scores_of_heads.items():
        mean_iou = scores["mean_iou"]
        cost = report["cost"][name]
        interval = mean_iou["interval"]
        table[f"`{name}`"] = {
            "parameters": cost["parameters"],
            "mIoU": mean_iou["pooled"],
            "95 % interval": list(interval) if interval else None,
            "training, s": cost["seconds"],
        }
    return table


def boxes(options: Namespace) -> dict[str, Row]:
    """Return the held-out average precision of detectors; with random weights the backbone is trained too."""
    backbone = TRAINED_TOO
    if not options.random:
        layers = " ".join(str(layer) for layer in layers_of(options.backbone)[1:])
        backbone = f"--backbone {options.backbone} --layers {layers} --freeze 0=all"
    titles = list(DETECTORS)
    if options.short:
        titles = titles[-1:]
    table: dict[str, Row] = {}
    for title in titles:
        reports = []
        for seed in range(options.rounds):
            reports.append(train_detector(options, title, backbone, seed))
        table[title] = detector_row(reports)
    return table


def train_detector(options: Namespace, title: str, backbone: str, seed: int) -> dict[str, Any]:
    """Train a detector on blood_cells by the command and return its report.

    Args:
        options: of the benchmark.
        title: a key of ``DETECTORS``.
        backbone: the options of its backbone.
        seed: of the run.

    Raises:
        RuntimeError: if the command failed.
    """
    data = options.data / "blood_cells"
    name = title.replace(", ", "-").replace("SpatialTuningA", "a")
    out = options.runs / "boxes" / f"{name}-{seed}"
    command = ["train", "--boxes", str(data / "train.json")]
    command += ["--val-boxes", str(data / "val.json")]
    command += ["--out", str(out)]
    command += shlex.split(f"{DETECTORS[title]} {BOXES} {backbone}")
    command += ["--seed", str(seed), "--device", options.device]
    if options.short:
        command += shlex.split(SHORT_BOXES)
    if dinoneck(command):
        raise RuntimeError(f"{title}, seed {seed} failed; its message is above")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def detector_row(reports: Sequence[Mapping[str, Any]]) -> Row:
    """Return the scores of a detector's best epochs over seeds, and its cost."""
    best = [report["best"] for report in reports]
    row: Row = {}
    for score in ("AP", "AP50", "AP75"):
        row[score] = spread([scores[score] for scores in best])
    for name in best[0]["per_class"]:
        row[f"{name}, AP50"] = fmean(scores["per_class"][name]["AP50"] or 0.0 for scores in best)
    row["M parameters"] = reports[0]["parameters"] / 1e6
    row["minutes"] = fmean(report["minutes"] for report in reports)
    return row
