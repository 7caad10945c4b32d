"""What of the FPN helps: layers, bottlenecks, fusion, residual start, dense supervision; beside the simple heads.

    python -m benchmarks.fpn_ablation [--data DATA] [--photos 120] [--epochs 20]

Without --data on the embedded pasture (weighted R² of five masses, folds by state and date), with it on the folder
``crop_cover`` (soil, crop and weed cover of a photo, folds by group). All heads see the same tokens, folds, epochs,
batches and learning rate; the scores are those of one number per photo, dense labels only help to learn. Writes
benchmarks/results/fpn_ablation_*.json and prints a table of docs/explanation/fpn-ablation.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from dinoneck import Backbone, FPNHead, PatchMeanHead, load_backbone
from dinoneck.data import DenseLabels, Pasture, PhotoTable, read_csv
from dinoneck.training import CellTargets, MemoryTokens, Plan, cross_validate
from dinoneck.training.crossval import HEAD, KNN, TOKENS

RESULTS = Path(__file__).with_name("results")
LAYERS = (2, 5, 8, 11)
FOUR: dict[str, Any] = {"num_layers": 4, "layer_indices": LAYERS}
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "FPN, 1 layer": ({"num_layers": 1, "layer_indices": LAYERS[-1:]}, False),
    "FPN, 4 layers (separate, mean)": (FOUR, False),
    "… shared bottleneck": (FOUR | {"use_separate_bottlenecks": False}, False),
    "… softmax fusion": (FOUR | {"fusion": "softmax"}, False),
    "… pixel fusion": (FOUR | {"fusion": "pixel"}, False),
    "… residual_init zero": (FOUR | {"residual_init": "zero"}, False),
    "… dense supervision": (FOUR, True),
    "… dense supervision, residual_init zero": (FOUR | {"residual_init": "zero"}, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder crop_cover; default: the embedded pasture")
    parser.add_argument("--photos", type=int, default=120, help="of the pasture")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pretrained", action="store_true")
    options = parser.parse_args()
    table, classes = data(options)
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=options.pretrained, layers=LAYERS)
    prepare = backbone.preprocess.changed(policy="crop")
    source = MemoryTokens.extract(backbone, table.photos, table.ids, preprocess=prepare)
    cells = CellTargets.read(table, DenseLabels(classes=len(classes)), prepare, classes)
    plan = Plan(epochs=options.epochs, seed=options.seed)
    rows: dict[str, dict[str, float | None]] = {}
    plain = cross_validate(lambda tasks: PatchMeanHead(backbone.embed_dim, tasks), source, table, plan).scores()
    rows |= {"mean-token ridge": plain[TOKENS], "mean-token knn": plain[KNN], "PatchMean": plain[HEAD]}
    for name, (arguments, dense) in VARIANTS.items():
        rows[name] = variant(backbone, source, table, plan, arguments, cells if dense else None)
        print(name, rows[name], flush=True)
    name = "crop_cover" if options.data else "pasture"
    report = {"rows": rows, "epochs": options.epochs, "seed": options.seed, "photos": len(table), "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"fpn_ablation_{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(rows))


def data(options: argparse.Namespace) -> tuple[PhotoTable, tuple[str, ...]]:
    """The photos, and the classes of their masks."""
    if options.data is None:
        return Pasture(seed=0).table(range(options.photos)), ("soil", "clover", "dead", "green")
    folder, classes = options.data, ("soil", "crop", "weed")
    return read_csv(folder / "cover.csv", folder, classes, "group", minimum=0.0, label_column="mask"), classes


def variant(
    backbone: Backbone,
    source: MemoryTokens,
    table: PhotoTable,
    plan: Plan,
    arguments: dict[str, Any],
    cells: CellTargets | None,
) -> dict[str, float | None]:
    """Scores of one variant's out-of-fold predictions."""
    result = cross_validate(
        lambda tasks: FPNHead(backbone.embed_dim, tasks, fpn_dim=64, tower_depth=1, **arguments),
        source,
        table,
        plan,
        cells=cells,
    )
    return result.scores()[HEAD]


def markdown(rows: dict[str, dict[str, float | None]]) -> str:
    """One row per method, one column per target."""
    columns = list(next(iter(rows.values())))
    lines = ["| held-out R² | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        texts = ["–" if row[column] is None else f"{row[column]:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
