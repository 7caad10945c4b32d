"""Held-out R² on real crop images: PatchMean heads next to two ridge baselines, several splits.

    python -m benchmarks.crop_cover DATA [--seeds 0 1 2] [--backbone NAME] [--pretrained]

DATA is the folder ``crop_cover`` (photos, cover.csv). Every seed is another split of the 16 groups into
5 folds and other first weights. Writes benchmarks/results/crop_cover.json and prints the table
of docs/explanation/results.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sources import store
from benchmarks.timing import machine
from dinoneck import load_backbone
from dinoneck.data import read_table
from dinoneck.training import BackboneConfig, DataConfig, Recipe, TrainConfig, train

TARGETS = ("soil", "crop", "weed")
RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "crop_cover.json")
    options = parser.parse_args()
    table = read_table(options.data / "cover.csv", options.data, TARGETS, group="group")
    backbone = load_backbone(options.backbone, pretrained=options.pretrained)
    runs = {}
    for seed in options.seeds:
        own = BackboneConfig(name=options.backbone, random=not options.pretrained)
        config = TrainConfig(data=DataConfig(minimum=0.0), backbone=own, optim=Recipe(seed=seed))
        with tempfile.TemporaryDirectory() as folder:
            runs[seed] = train(config, Path(folder, "run"), table=table)["scores"]
        print(seed, markdown({seed: runs[seed]}), flush=True)
    report = {"runs": runs, "photos": len(table), "backbone": backbone.record(), "machine": machine()}
    options.out.parent.mkdir(exist_ok=True)
    store(options.out, report)
    print(markdown(runs))


def markdown(runs: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Mean and range over splits, one row per method."""
    lines = ["| held-out R² | " + " | ".join(TARGETS) + " |", "|---|" + "---|" * len(TARGETS)]
    for method in next(iter(runs.values()))[TARGETS[0]]:
        cells = []
        for target in TARGETS:
            values = [run[target][method]["r2"]["pooled"] for run in runs.values()]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} … {max(values):.2f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
