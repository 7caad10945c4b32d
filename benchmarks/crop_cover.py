"""Held-out R² on real crop images: PatchMean heads next to two ridge baselines, several splits.

    python -m benchmarks.crop_cover DATA [--seeds 0 1 2] [--backbone NAME] [--pretrained]

DATA is the folder ``crop_cover`` (photos, cover.csv). Tokens are extracted once; every seed is another split of
the 16 groups into 5 folds and other first weights. Writes benchmarks/results/crop_cover.json and prints the table
of docs/explanation/results.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.timing import machine
from dinoneck import load_backbone
from dinoneck.data import read_table
from dinoneck.training import DataConfig, MemoryTokens, Recipe, TrainConfig, cross_validate
from dinoneck.training.report import scores_of

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
    prepare = backbone.preprocess.changed(resize="crop")
    source = MemoryTokens.extract(backbone, table["images"], table.index, preprocess=prepare)
    runs = {}
    for seed in options.seeds:
        config = TrainConfig(DataConfig(minimum=0.0), optim=Recipe(seed=seed))
        runs[seed] = scores_of(cross_validate(config, table, source))["scores"]
        print(
            seed, {method: {k: round(v, 3) for k, v in row.items()} for method, row in runs[seed].items()}, flush=True
        )
    report = {"runs": runs, "photos": len(table), "backbone": backbone.record(), "machine": machine()}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(runs))


def markdown(runs: dict[int, dict[str, dict[str, float]]]) -> str:
    """Mean and range over splits, one row per method."""
    lines = ["| held-out R² | " + " | ".join(TARGETS) + " |", "|---|" + "---|" * len(TARGETS)]
    for method in next(iter(runs.values())):
        cells = []
        for target in TARGETS:
            values = [run[method][target] for run in runs.values()]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} … {max(values):.2f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
