"""Heads and detectors on field images and blood cells, trained by the calls that a user makes."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.measure import Row
from dinoneck.backbones.known import KNOWN
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
from dinoneck.training.run import prepare_heads, train_heads

CLASSES = ("soil", "crop", "weed")
SHORT_SIZE = (96, 128)
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
FCOS, DFINE = (
    "--detector fcos --clip-norm 5 --epochs 8",
    "--detector dfine --variant tiny --epochs 10 --clip-norm 0.1",
)
DETECTORS = {
    "D-FINE, SpatialTuningAdapter": f"{DFINE} --head spatial_tuning_adapter",
    "D-FINE, STAPyramid": f"{DFINE} --head sta_pyramid",
    "FCOS, SpatialTuningAdapter": FCOS
    + " --head '{type: spatial_tuning_adapter, out_channels: 96}'",
    "FCOS, STAPyramid": FCOS + " --head '{type: sta_pyramid, out_channels: 96}'",
    "FCOS, torchvision's FPN": FCOS + " --head '{type: torchvision_pyramid, out_channels: 96}' "
    "--import benchmarks.evidence.peers",
}
TRAINED_TOO = "--backbone dinoneck_tiny --layers 1 3 5 --freeze 0=none --backbone-lr 1e-3"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean, and the lowest and highest where there are several."""
    mean, low, high = (
        f"{value:z.{digits}f}" for value in (fmean(values), min(values), max(values))
    )
    return f"{mean} ({low} … {high})" if len(values) > 1 else mean


def layers_of(backbone: str) -> tuple[int, ...]:
    """Return four blocks, evenly spaced; the last one is among them."""
    depth = next((one.depth for one in KNOWN if one.name == backbone.split(".")[0]), 6)
    return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


def config_of(options: Namespace, seed: int, **changes: Any) -> TrainConfig:
    """Return the run on crop_cover that all tables share: folds by group, the last of four layers unless changed."""
    data = options.data / "crop_cover"
    table = data / "cover.csv"
    if options.short:
        head, *rows = table.read_text().splitlines()
        table = options.runs / "cover.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join([head, *rows[::20]]) + "\n")
    layers = changes.pop("layers", layers_of(options.backbone)[-1:])
    more, folds = changes.pop("data", {}), changes.pop("folds", 5)
    recipe = {"seed": seed, **changes.pop("optim", {}), **({"epochs": 1} if options.short else {})}
    size = {"size": SHORT_SIZE} if options.short else {}
    return TrainConfig(
        data=DataConfig(
            csv=str(table), images=str(data), **{"targets": CLASSES, "minimum": 0.0, **size, **more}
        ),
        backbone=BackboneConfig(name=options.backbone, random=options.random, layers=layers),
        folds=FoldsConfig(count=2 if options.short else folds, group=("group",)),
        optim=Recipe(**recipe),
        device=options.device,
        **changes,
    )


def scores_of(options: Namespace, seed: int, out: str, **changes: Any) -> dict[str, Any]:
    """Train on crop_cover and return the scores of the report."""
    scores: dict[str, Any] = train(
        config_of(options, seed, **changes), options.runs / out, overwrite=True
    )["scores"]
    return scores


def cover(options: Namespace) -> dict[str, Row]:
    """Return R² of the cover of images held out by group: PatchMeanHead, ridge regression, their average."""
    runs = [scores_of(options, seed, f"cover/{seed}") for seed in range(options.rounds)]
    return {
        method: {
            name: spread([run[name][method]["r2"]["pooled"] for run in runs]) for name in CLASSES
        }
        for method in runs[0][CLASSES[0]]
    }


def cells(options: Namespace) -> dict[str, Row]:
    """Return R² of the cover of patches, and of images as the mean over their patches."""
    table: dict[str, Row] = {}
    tasks = {name: TaskConfig(from_map="cells") for name in CLASSES}
    for title, (head, last_only) in CELLS.items():
        layers = layers_of(options.backbone)[-1 if last_only else 0 :]
        data = {"labels": "mask", "classes": CLASSES}
        changes = {"layers": layers, "data": data, "head": head, "tasks": tasks}
        runs = [
            scores_of(options, seed, f"cells/{title}-{seed}", **changes)
            for seed in range(options.rounds)
        ]
        targets = [name for name in runs[0] if name.split()[-1] in CLASSES]
        table[title] = {
            name: spread([run[name]["head"]["r2"]["pooled"] for run in runs]) for name in targets
        }
    return table


def masks(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of heads that segment, with intervals over groups, their parameters and seconds."""
    data = {
        "labels": "mask",
        "classes": CLASSES,
        "targets": (),
        "minimum": None,
        "size": (240, 320),
    }
    optim = {"epochs": 10, "lr": 1e-3, "batch_size": 8}
    if options.short:
        data["size"] = SHORT_SIZE
    config = config_of(
        options, 0, layers=layers_of(options.backbone), data=data, optim=optim, folds=2
    )
    out = options.runs / "masks"
    report = train_heads(prepare_heads(config, ("linear", "fpn", "mask"), out, overwrite=True), out)
    [scores] = report["scores"].values()
    return {
        f"`{name}`": {
            "parameters": report["cost"][name]["parameters"],
            "mIoU": own["mean_iou"]["pooled"],
            "95 % interval": list(own["mean_iou"]["interval"] or ()) or None,
            "training, s": report["cost"][name]["seconds"],
        }
        for name, own in scores.items()
    }


def boxes(options: Namespace) -> dict[str, Row]:
    """Return the held-out average precision of detectors; with random weights the backbone is trained too."""
    data = options.data / "blood_cells"
    layers = " ".join(map(str, layers_of(options.backbone)[1:]))
    backbone = (
        TRAINED_TOO
        if options.random
        else f"--backbone {options.backbone} --layers {layers} --freeze 0=all"
    )
    table: dict[str, Row] = {}
    for title, words in list(DETECTORS.items())[-1 if options.short else 0 :]:
        runs = []
        for seed in range(options.rounds):
            out = (
                options.runs
                / "boxes"
                / f"{title.replace(', ', '-').replace('SpatialTuningA', 'a')}-{seed}"
            )
            own = f"{words} {BOXES} {backbone} --seed {seed} --device {options.device}"
            if options.short:
                own += " --epochs 1 --size 96x128 --eval-every 1"
            given = [
                "--boxes",
                str(data / "train.json"),
                "--val-boxes",
                str(data / "val.json"),
                "--out",
                str(out),
            ]
            if dinoneck(["train", *given, *shlex.split(own)]):
                raise RuntimeError(f"{title}, seed {seed} failed; its message is above")
            runs.append(json.loads((out / "report.json").read_text()))
        best = [run["best"] for run in runs]
        each = {
            name: fmean(own["per_class"][name]["AP50"] or 0.0 for own in best)
            for name in best[0]["per_class"]
        }
        table[title] = {
            score: spread([own[score] for own in best]) for score in ("AP", "AP50", "AP75")
        }
        table[title] |= {f"{name}, AP50": value for name, value in each.items()}
        table[title] |= {
            "M parameters": runs[0]["parameters"] / 1e6,
            "minutes": fmean(run["minutes"] for run in runs),
        }
    return table
