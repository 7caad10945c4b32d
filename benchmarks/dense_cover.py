"""Cover of soil, crop and weed per cell and per image on real crop images: FPN next to simpler heads, same folds.

    python -m benchmarks.dense_cover DATA --store STORE [--seeds 0 1 2] [--epochs 40] [--backbone NAME] [--pretrained]
    python -m benchmarks.dense_cover DATA --merge ONE.json OTHER.json

DATA is the folder ``crop_cover``; STORE is a feature store of its photos, which is filled first: the photo, its flips,
and each flip with one kind of colour change. The labels are the real masks, averaged over patches; every head is
trained on them alone, with the same photos, patterns, epochs, batches, loss and learning rate. A photo's cover is the
mean over its cells. Every seed is another split of the 16 groups into 5 folds, other first weights and another order.
Writes benchmarks/results/dense_cover.json and docs/images/dense_cover.png, and prints the table of
docs/explanation/results.md. ``--merge`` joins the results of runs with other seeds (``--out``) instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.predictions import predicted
from benchmarks.sources import source_hash, store
from benchmarks.timing import machine
from dinoneck import Backbone, DenseHead, FPNHead, TargetTransform, Task, Tokens, load_backbone
from dinoneck.data import Preprocessing, Views, read_table
from dinoneck.grid import as_maps
from dinoneck.heads import Head
from dinoneck.store import FeatureStore
from dinoneck.training import DataConfig, Recipe, TrainConfig, fit, group_folds, r2
from dinoneck.training.baselines import knn_probe, ridge_probe
from dinoneck.training.scores import Split, method_scores
from dinoneck.training.source import TableTokens
from dinoneck.training.table import Maps, read_maps

CLASSES = ("soil", "crop", "weed")
RESULTS = Path(__file__).with_name("results")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "dense_cover.png"
PATTERNS = (0, 1, 2, 3, 4, 9, 14, 19)  # of color20: the four flips, and each with another kind of colour change


class Plain(Head):
    """The peers: two convolutions of one kernel size and a linear layer on standardised tokens, without a norm."""

    def __init__(self, embed_dim: int, tasks: list[Task], kernel: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.embed_dim, self.tasks = embed_dim, tuple(tasks)
        self.scale = nn.BatchNorm1d(embed_dim, affine=False)
        self.first = nn.Conv2d(embed_dim, hidden_dim, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=kernel // 2)
        self.out = nn.Conv2d(hidden_dim, tasks[0].dim, 1)

    def calibrate(self, batches: Any) -> None:
        """Measure the tokens' channels."""
        x = torch.cat([tokens.patches[-1].flatten(0, 1) for tokens in batches])
        self.scale.running_mean.copy_(x.mean(dim=0))
        self.scale.running_var.copy_(x.var(dim=0))

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Answer per cell."""
        x = tokens.patches[-1]
        x = (x - self.scale.running_mean) / self.scale.running_var.clamp_min(1e-8).sqrt()
        maps = F.relu(self.second(F.relu(self.first(as_maps(x, tokens.grid)))))
        return {self.tasks[0].name: self.out(maps)}


Maker = Callable[[list[Task]], Head]
Probe = Callable[..., np.ndarray]
PROBES: dict[str, Probe] = {"ridge on mean tokens": ridge_probe, "knn on mean tokens": knn_probe}


def methods(backbone: Backbone, width: int) -> dict[str, Maker]:
    """Every head by its name in the table."""
    channels, layers = backbone.embed_dim, backbone.layers
    return {
        "patch MLP (two 1x1)": lambda tasks: Plain(channels, tasks, 1),
        "two 3x3 convolutions": lambda tasks: Plain(channels, tasks, 3),
        "DenseHead": lambda tasks: DenseHead(channels, tasks, width),
        "FPNHead, last layer": lambda tasks: FPNHead(channels, tasks, 1, layers[-1:], fpn_dim=width, tower_depth=1),
        f"FPNHead, {len(layers)} layers": lambda tasks: FPNHead(
            channels, tasks, len(layers), layers, fpn_dim=width, tower_depth=1
        ),
    }


def main() -> None:
    options = _options()
    table = read_table(options.data / "cover.csv", options.data, CLASSES, group="group", labels="mask")
    if options.merge:
        parts = [json.loads(path.read_text()) for path in options.merge]
        if any(part.get("sources") != source_hash("dense_cover") for part in parts):
            raise SystemExit("--merge: a file measured other source files than those that are here; measure it again")
        report = merged(parts)
    else:
        report = {**measured(options, table), "sources": source_hash("dense_cover")}
    options.out.parent.mkdir(exist_ok=True)
    store(options.out, report)
    print(markdown(report["runs"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--store", type=Path, help="feature store of the photos; what it lacks is extracted")
    parser.add_argument("--merge", type=Path, nargs="+", help="results of runs with other seeds, to be joined")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=64, help="channels of DenseHead and FPNHead")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 5, 8, 11])
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "dense_cover.json")
    options = parser.parse_args()
    if not options.merge and options.store is None:
        parser.error("--store says where the photos' features are kept")
    return options


def measured(options: argparse.Namespace, table: pd.DataFrame) -> dict[str, Any]:
    """Train and judge every method on every split."""
    backbone = load_backbone(options.backbone, pretrained=options.pretrained, layers=options.layers)
    source, prepare = stored(backbone, table, options)
    cells = read_maps(TrainConfig(data=DataConfig(labels="mask", classes=CLASSES)), table, prepare)
    assert cells is not None
    runs: dict[str, list[dict[str, dict[str, float]]]] = {}
    shown: dict[str, Tensor] = {}
    for seed in options.seeds:
        folds = group_folds(table.get("group", table.index), 5, seed)
        for name, probe in PROBES.items():
            runs.setdefault(name, []).append(probed(probe, source, table, folds))
        for name, make in methods(backbone, options.width).items():
            maps = out_of_fold(make, source, table, cells, folds, options, seed)
            runs.setdefault(name, []).append(scores(maps, cells, folds))
            shown.setdefault(name, maps)
            print(seed, name, runs[name][-1], flush=True)
    if 0 in options.seeds:
        draw(table, prepare, cells, shown[list(shown)[-1]])
    told = {key: str(value) for key, value in vars(options).items() if key not in ("data", "store", "merge", "out")}
    record = {"photos": len(table), "backbone": backbone.record(), "machine": machine()}
    return {"runs": runs, "options": told, **record}


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Join reports that differ in their seeds alone.

    Raises:
        SystemExit: if they differ in anything else.
    """
    first = {
        **reports[0],
        "options": {**reports[0]["options"]},
        "runs": {k: [*v] for k, v in reports[0]["runs"].items()},
    }
    for other in reports[1:]:
        for key in ("photos", "backbone", "machine"):
            if other[key] != first[key]:
                raise SystemExit(f"the reports differ in {key}: {first[key]} and {other[key]}")
        if {**other["options"], "seeds": ""} != {**first["options"], "seeds": ""}:
            raise SystemExit(f"the reports differ in their options: {first['options']} and {other['options']}")
        first["options"]["seeds"] += f" {other['options']['seeds']}"
        for name, rows in other["runs"].items():
            first["runs"][name] += rows
    return first


def stored(backbone: Backbone, table: pd.DataFrame, options: argparse.Namespace) -> tuple[TableTokens, Preprocessing]:
    """Return the tokens of all photos under all patterns, and how photos were prepared."""
    patterns = Views(tuple(Views.named("color20").views[number] for number in PATTERNS))
    store = FeatureStore.create(options.store, backbone=backbone, views=patterns, image_size=None, resize="crop")
    store.extract([str(photo) for photo in table["images"]], root=options.data)
    return TableTokens(store, list(table.index)), store.preprocess


def out_of_fold(
    make: Maker,
    source: TableTokens,
    table: pd.DataFrame,
    cells: Maps,
    folds: list[Any],
    options: argparse.Namespace,
    seed: int,
) -> Tensor:
    """Maps (n, 3, rows, cols) of photos by heads that saw neither them nor their group."""
    maps = torch.full_like(cells.values, torch.nan)
    for number, (train, valid) in enumerate(folds):
        torch.manual_seed(seed * 100 + number)
        head = make([task_of(cells, train)])
        fit(
            head,
            source,
            {cells.name: cells.values},
            weights={cells.name: cells.weight},
            target_ids=source.ids,
            ids=[source.ids[row] for row in train],
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=seed,
            recipe=Recipe(),
        )
        maps[torch.as_tensor(valid)] = predicted(head, source, [source.ids[row] for row in valid], cells.name)
    return maps


def task_of(cells: Maps, rows: Any) -> Task:
    """The task of the masks, with z-scores of the training images' cells."""
    transform = TargetTransform().fit(cells.values[torch.as_tensor(rows)].movedim(1, -1).flatten(0, -2).numpy())
    return Task(cells.name, len(CLASSES), kind="dense", labels=CLASSES, shares=True, transform=transform)


def photo_means(cells: Maps, values: Tensor) -> np.ndarray:
    """The means of maps over the labelled patches, one row per photo."""
    return replace(cells, values=values).means()


def scores(maps: Tensor, cells: Maps, folds: list[Any]) -> dict[str, dict[str, float]]:
    """R² of cells and of photos by class, over all folds and in the worst fold."""
    own = {
        name: method_scores(
            "map", cells.values[:, i], maps[:, i], Split([valid for _, valid in folds], range(len(maps)))
        )
        for i, name in enumerate(CLASSES)
    }
    return {
        "cells": {name: score["r2"]["pooled"] for name, score in own.items()},
        **photo_scores(photo_means(cells, maps), cells.means(), folds),
    }


def photo_scores(predictions: np.ndarray, true: np.ndarray, folds: list[Any]) -> dict[str, dict[str, float]]:
    """R² of photos by class, over all folds and in the worst fold."""
    worst = {
        name: min(r2(true[valid, i], predictions[valid, i]) for _, valid in folds if np.ptp(true[valid, i]) > 0)
        for i, name in enumerate(CLASSES)
    }
    return {
        "photos": {name: r2(true[:, i], predictions[:, i]) for i, name in enumerate(CLASSES)},
        "worst fold, photos": worst,
    }


def probed(probe: Probe, source: TableTokens, table: pd.DataFrame, folds: list[Any]) -> dict[str, dict[str, float]]:
    """The photos' cover by a baseline on their mean token."""
    true = np.stack([table[name] for name in CLASSES], axis=1)
    predictions = np.maximum(probe(source, true, folds, target_ids=source.ids, groups=table["group"]), 0.0)
    return photo_scores(predictions, true, folds)


def markdown(runs: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """One row per method: means over splits, and the range for weed."""
    titles = {"cells": "cells", "photos": "images"}
    columns = [(of, name) for of in titles for name in CLASSES]
    lines = ["| held-out R² | " + " | ".join(f"{name}, {titles[of]}" for of, name in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for method, rows in runs.items():
        texts = []
        for of, name in columns:
            values = [row[of][name] for row in rows if of in row]
            spread = f" ({min(values):.2f} … {max(values):.2f})" if name == "weed" and len(values) > 1 else ""
            texts.append(f"{np.mean(values):.2f}{spread}" if values else "–")
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def draw(table: pd.DataFrame, prepare: Preprocessing, cells: Maps, maps: Tensor) -> None:
    """Four held-out images next to the true and the predicted crop and weed cover of their cells."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    weed = cells.means()[:, 2]
    order = np.argsort(weed)
    rows = [int(order[int(share * (len(order) - 1))]) for share in (0.3, 0.6, 0.85, 0.95)]
    figure, axes = pyplot.subplots(len(rows), 5, figsize=(12, 7.2), constrained_layout=True)
    for line, row in zip(axes, rows, strict=True):
        line[0].imshow(prepare.picture(table["images"].iloc[row]).permute(1, 2, 0))
        for place, (values, number) in enumerate(((cells.values, 1), (maps, 1), (cells.values, 2), (maps, 2)), 1):
            drawn = line[place].imshow(values[row, number].clamp(0, 1), vmin=0, vmax=1, cmap="viridis")
    for axis, title in zip(
        axes[0], ("photo", "crop, mask", "crop, predicted", "weed, mask", "weed, predicted"), strict=True
    ):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.5, label="share of the cell")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
