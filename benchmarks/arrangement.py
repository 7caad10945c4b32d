"""Does the answer depend on how plants are arranged? FPN, PatchMean and a linear probe on scenes of equal cover.

    python -m benchmarks.arrangement [--scenes 700] [--epochs 30]

Every scene is 12x12 plots of 16 px, exactly 36 of them plants: what a patch shows by itself says nothing about the
two targets, the number of separate stands and the length of their edges. Tokens come from a seeded random DINOv3-S,
so part of the arrangement has been mixed into the tokens by attention. All trained methods get the same scenes,
epochs and batches; each learning rate is the best of the same list on scenes used for nothing else. Three seeds of
weights and order. Writes benchmarks/results/arrangement.json and the table of docs/explanation/linear-collapse.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.predictions import predicted
from benchmarks.sources import store
from benchmarks.timing import machine
from dinoneck import FPNHead, PatchMeanHead, TargetTransform, Task, load_backbone
from dinoneck.heads import Head
from dinoneck.training import MemoryTokens, Recipe, fit, r2
from dinoneck.training.baselines import knn_probe, ridge_probe

RESULTS = Path(__file__).with_name("results")
SIDE, PLOT_PX, PLANTS = 12, 16, 36
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TARGETS = ("stands", "edge length")
LAYERS = (2, 5, 8, 11)
Maker = Callable[[list[Task]], Head]
METHODS: dict[str, Maker] = {
    "PatchMean": lambda tasks: PatchMeanHead(384, tasks),
    "FPN without non-linearity": lambda tasks: FPNHead(384, tasks, 4, fpn_dim=64, norm=None, activation=None),
    "FPN, last layer alone": lambda tasks: FPNHead(384, tasks, 1, LAYERS[-1:], fpn_dim=64),
    "FPN, four layers": lambda tasks: FPNHead(384, tasks, 4, fpn_dim=64),
}

Probe = Callable[..., np.ndarray]
PROBES: dict[str, Probe] = {"linear probe (ridge)": ridge_probe, "nearest neighbours (knn)": knn_probe}


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: its RGB picture (192, 192, 3) in 0 ... 1, and which plots are plants (12, 12)."""
    rng = np.random.default_rng(seed)
    plots = np.zeros((SIDE, SIDE), bool)
    grown = [tuple(place) for place in rng.integers(0, SIDE, (int(rng.integers(1, 13)), 2))]
    for place in grown:
        plots[place] = True
    while plots.sum() < PLANTS:  # a random plant gets a random neighbour
        row, col = grown[rng.integers(len(grown))]
        step = ((0, 1), (1, 0), (0, -1), (-1, 0))[rng.integers(4)]
        place = (row + step[0], col + step[1])
        if min(place) >= 0 and max(place) < SIDE and not plots[place]:
            plots[place] = True
            grown.append(place)
    colours = np.where(plots[..., None], (0.25, 0.5, 0.15), (0.45, 0.35, 0.25)) * rng.uniform(0.8, 1.2)
    picture = colours.repeat(PLOT_PX, 0).repeat(PLOT_PX, 1)
    return (picture + rng.normal(0, 0.05, picture.shape)).clip(0, 1), plots


def stands(plots: np.ndarray) -> int:
    """Connected groups of plants (four neighbours)."""
    left, count = {tuple(place) for place in np.argwhere(plots)}, 0
    while left:
        count += 1
        front = [left.pop()]
        while front:
            row, col = front.pop()
            near = {(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)} & left
            left -= near
            front += near
    return count


def edge_length(plots: np.ndarray) -> int:
    """Sides at which a plant meets bare soil."""
    return int((plots[1:] != plots[:-1]).sum() + (plots[:, 1:] != plots[:, :-1]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=700)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "arrangement.json")
    options = parser.parse_args()
    made = [scene(seed) for seed in range(options.scenes)]
    if any(plots.sum() != PLANTS for _, plots in made):
        raise SystemExit("the scenes differ in cover")
    targets = {
        "stands": np.array([stands(plots) for _, plots in made], float),
        "edge length": np.array([edge_length(plots) for _, plots in made], float),
    }
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, layers=LAYERS)
    ids = [str(i) for i in range(options.scenes)]
    source = MemoryTokens.extract(backbone, [picture for picture, _ in made], ids, batch_size=16)
    parts = np.split(np.arange(options.scenes), [options.scenes * 4 // 7, options.scenes * 5 // 7])
    rows: dict[str, dict[str, list[float]]] = {
        name: {target: [_probe(probe, source, targets[target], parts)] for target in TARGETS}
        for name, probe in PROBES.items()
    }
    chosen: dict[str, float] = {}
    for name, make in METHODS.items():
        tried = {rate: _scores(make, source, targets, parts[0], parts[1], rate, 0, options.epochs) for rate in RATES}
        chosen[name] = max(tried, key=lambda rate: sum(tried[rate].values()))
        runs = [
            _scores(make, source, targets, parts[0], parts[2], chosen[name], seed, options.epochs) for seed in (0, 1, 2)
        ]
        rows[name] = {target: [run[target] for run in runs] for target in TARGETS}
        print(name, chosen[name], rows[name], flush=True)
    report = {"rows": rows, "lr": chosen, "scenes": options.scenes, "epochs": options.epochs, "machine": machine()}
    options.out.parent.mkdir(exist_ok=True)
    store(options.out, report)
    print(markdown(rows))


def _scores(
    make: Maker,
    source: MemoryTokens,
    targets: dict[str, np.ndarray],
    train: np.ndarray,
    held_out: np.ndarray,
    lr: float,
    seed: int,
    epochs: int,
) -> dict[str, float]:
    """Train one head on both targets; R² of each on the scenes held out."""
    names = {target: target.replace(" ", "_") for target in TARGETS}
    tasks = [Task(names[t], transform=TargetTransform().fit(targets[t][train])) for t in TARGETS]
    torch.manual_seed(seed)
    head = make(tasks)
    values = {names[target]: targets[target] for target in TARGETS}
    fit(
        head,
        source,
        targets=values,
        target_ids=source.ids,
        ids=[source.ids[i] for i in train],
        epochs=epochs,
        batch_size=16,
        lr=lr,
        seed=seed,
        recipe=Recipe(),
    )
    ids = [source.ids[i] for i in held_out]
    predictions = {target: predicted(head, source, ids, names[target])[:, 0].double().numpy() for target in TARGETS}
    return {target: r2(targets[target][held_out], predictions[target]) for target in TARGETS}


def _probe(probe: Probe, source: MemoryTokens, values: np.ndarray, parts: list[np.ndarray]) -> float:
    """A probe on the last layer's pooled tokens, its strength chosen inside the training scenes."""
    predictions = probe(source, values[:, None], [(np.concatenate(parts[:2]), parts[2])], target_ids=source.ids)
    return r2(values[parts[2]], predictions[parts[2], 0])


def markdown(rows: dict[str, dict[str, list[float]]]) -> str:
    """One row per method: mean and range over seeds."""
    lines = ["| R² on held-out scenes | " + " | ".join(TARGETS) + " |", "|---|---|---|"]
    for name, row in rows.items():
        cells = [
            f"{np.mean(row[t]):z.2f}" + (f" ({min(row[t]):z.2f} … {max(row[t]):z.2f})" if len(row[t]) > 1 else "")
            for t in TARGETS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
