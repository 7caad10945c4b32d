"""Held-out R² of PatchMean heads minus that of linear baselines on three data sets, with bootstrap intervals.

    python -m benchmarks.head_vs_ridge DATA [--only crop_cover] [--epochs 12] [--limit N]

DATA is the folder that holds ``crop_cover`` and ``blood_cells``; the pasture is generated. Targets: shares of soil,
crop and weed; grams; cells of each class counted from their boxes. The backbone is a frozen DINOv3-S with seeded random
weights, at 240 x 320 px (the pasture at 128 x 256). ``linear`` is ridge regression on the mean token, ``head + linear``
the average of both, as ``--with-ridge`` keeps it. Folds and intervals keep groups whole; a blood cell image is its own
group. Writes benchmarks/results/head_vs_ridge.json and .md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.crop_cover import TARGETS
from benchmarks.timing import machine
from dinoneck import Backbone, load_backbone
from dinoneck.data import Pasture, read_table
from dinoneck.training import DataConfig, FoldsConfig, Recipe, TrainConfig, train
from dinoneck.training.report import BOTH, COLOUR, HEAD, LINEAR

OTHERS = (LINEAR, BOTH, COLOUR)
RESULTS = Path(__file__).with_name("results")
SIZE, PASTURE_SIZE, PASTURE_IMAGES = (240, 320), (128, 256), 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", default=["crop_cover", "pasture", "blood_cells"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--limit", type=int, help="images per data set, for a trial")
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3")
    parser.add_argument("--out", type=Path, default=RESULTS / "head_vs_ridge.json")
    options = parser.parse_args()
    began, rows = time.process_time(), {}
    backbone = load_backbone(options.backbone, pretrained=False)
    for name, table, size in tables(options):
        config = TrainConfig(optim=Recipe(epochs=options.epochs, seed=0), folds=FoldsConfig(count=options.folds))
        rows[name] = compared(backbone, table, size, config)
        print(name, json.dumps(rows[name]["scores"]), flush=True)
    behind = [(name, *where) for name, row in rows.items() for where in below_zero(row)]
    report = {
        "rows": rows,
        "head_below_another": behind,
        "options": {"folds": options.folds, "epochs": options.epochs, "size": SIZE, "pasture_size": PASTURE_SIZE},
        "backbone": backbone.record(),
        "cpu_seconds": round(time.process_time() - began),
        "machine": machine(),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


def tables(options: argparse.Namespace) -> Iterator[tuple[str, pd.DataFrame, tuple[int, int]]]:
    """Yield name, table and prepared size (height, width) of every data set that is asked for."""
    if "crop_cover" in options.only:
        folder = options.data / "crop_cover"
        yield (
            "crop_cover",
            limited(read_table(folder / "cover.csv", folder, TARGETS, group="group"), options),
            SIZE,
        )
    if "pasture" in options.only:
        table = Pasture(seed=0, size=PASTURE_SIZE).table(range(PASTURE_IMAGES))
        yield "pasture", limited(table, options), PASTURE_SIZE
    if "blood_cells" in options.only:
        yield "blood_cells", limited(cell_counts(options.data / "blood_cells"), options), SIZE


def limited(table: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """The table, or images spread evenly over it."""
    if options.limit is None:
        return table
    return table.take(np.linspace(0, len(table) - 1, options.limit).astype(int).tolist())


def cell_counts(folder: Path) -> pd.DataFrame:
    """Return the blood cell images of both parts with the number of boxes of each class."""
    ids: list[str] = []
    counts: list[dict[str, int]] = []
    for part in ("train.json", "val.json"):
        content = json.loads((folder / part).read_text())
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        own = {image["id"]: dict.fromkeys(names.values(), 0) for image in content["images"]}
        for box in content["annotations"]:
            own[box["image_id"]][names[box["category_id"]]] += 1
        ids += [image["file_name"] for image in content["images"]]
        counts += own.values()
    targets = {name: np.array([row[name] for row in counts], np.float64) for name in counts[0]}
    images = pd.Series([folder / "images" / name for name in ids], ids, dtype=object)
    return pd.DataFrame({"images": images, **targets}, ids)


def compared(backbone: Backbone, table: pd.DataFrame, size: tuple[int, int], config: TrainConfig) -> dict[str, Any]:
    """Cross-validate heads on one data set; the scores of all methods by target."""
    config = config.changed(data=DataConfig(minimum=0.0, size=size))
    with tempfile.TemporaryDirectory() as folder:
        report = train(config, Path(folder, "run"), table=table, backbone=backbone)
    return {name: report[name] for name in ("images", "groups", "scores")}


def below_zero(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return baseline and target wherever the whole interval lies below 0."""
    ends = ((method, name, own[method]["head_minus"]["r2"]) for name, own in row["scores"].items() for method in OTHERS)
    return [(method, name) for method, name, own in ends if own is not None and own[1] < 0]


def table_of(report: dict[str, Any]) -> str:
    """One row per target."""
    lines = [f"| data | target | {' | '.join((HEAD, *OTHERS))} | {' | '.join(f'head − {m}' for m in OTHERS)} |"]
    lines.append("|---" * (2 * len(OTHERS) + 3) + "|")
    for name, row in report["rows"].items():
        data = f"{name} ({row['images']} images, {row['groups']} groups)"
        for target, own in row["scores"].items():
            scores = [own[method]["r2"]["pooled"] for method in (HEAD, *OTHERS)]
            leads = [
                f"{scores[0] - score:+.3f} {_interval(own[method])}"
                for method, score in zip(OTHERS, scores[1:], strict=True)
            ]
            shown = " | ".join(f"{score:.3f}" for score in scores)
            lines.append(f"| {data} | {target} | {shown} | {' | '.join(leads)} |")
            data = ""
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The whole .md file."""
    lines = [
        "# Head and linear baselines",
        "",
        "Held-out R², and the head's minus a baseline's with its 95 % interval.",
        "",
        table_of(report),
    ]
    behind = report["head_below_another"]
    lines += ["", f"Intervals that lie below 0: {', '.join('/'.join(where) for where in behind) or 'none'}."]
    told, options = report["machine"], report["options"]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    lines += [
        f"{options['folds']} folds, {options['epochs']} epochs; {report['backbone']['name']}, seeded random weights.",
        f"{told['cpu']}, {told['cores']} threads, {told['system']}; {versions}; {report['cpu_seconds']} CPU seconds.",
    ]
    return "\n".join(lines) + "\n"


def _interval(score: dict[str, Any]) -> str:
    low, high = score["head_minus"]["r2"]
    return f"({low:+.3f} … {high:+.3f})"


if __name__ == "__main__":
    main()
