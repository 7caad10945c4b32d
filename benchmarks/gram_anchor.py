"""What Gram anchoring prevents and what it costs: the same fine-tuning with and without it, on generated photos.

    python -m benchmarks.gram_anchor [--steps 60] [--seeds 0 1 2] [--backbone dinoneck_tiny]

A backbone with seeded random weights learns the total mass of pasture photos from its mean patch token, with a strong
learning rate. Everything is measured on held-out photos, against the backbone before training. Every seed is another
pasture, other photos and other first weights. Writes benchmarks/results/gram_anchor.json and prints the table of
docs/explanation/gram-anchoring.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources import store
from benchmarks.timing import machine
from dinoneck import Backbone, Tokens, load_backbone
from dinoneck.data import Pasture
from dinoneck.losses import GramAnchor

RESULTS = Path(__file__).with_name("results")
SIZE_PX = (80, 160)
TRAIN, HELD_OUT, BATCH = 96, 64, 16
VARIANTS = {  # what learns, learning rate, weight of the anchor
    "linear head alone": ("head", 0.01, 0.0),
    "3 blocks, lr 0.003": ("blocks", 0.003, 0.0),
    "3 blocks, lr 0.003, anchor × 20": ("blocks", 0.003, 20.0),
    "3 blocks, lr 0.01": ("blocks", 0.01, 0.0),
    "3 blocks, lr 0.01, anchor × 2": ("blocks", 0.01, 2.0),
    "3 blocks, lr 0.01, anchor × 20": ("blocks", 0.01, 20.0),
    "3 blocks, lr 0.01, anchor × 200": ("blocks", 0.01, 200.0),
    "LoRA rank 8, lr 0.01": ("lora", 0.01, 0.0),
    "LoRA rank 8, lr 0.01, anchor × 20": ("lora", 0.01, 20.0),
}
COLUMNS = {
    "rms_drift": "Gram drift (RMS)",
    "row_correlation": "row correlation",
    "train_loss": "task loss, training",
    "held_out_loss": "task loss, held out",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="dinoneck_tiny")
    parser.add_argument("--out", type=Path, default=RESULTS / "gram_anchor.json")
    options = parser.parse_args()
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for seed in options.seeds:
        photos = draw(options.backbone, seed)
        runs[str(seed)] = {
            name: run(options.backbone, *variant, photos, options.steps, seed) for name, variant in VARIANTS.items()
        }
    report = {
        "runs": runs,
        "setting": {"backbone": options.backbone, "steps": options.steps, "size_px": SIZE_PX, "train": TRAIN}
        | {"held_out": HELD_OUT, "batch": BATCH, "variants": VARIANTS},
        "machine": machine(),
    }
    options.out.parent.mkdir(exist_ok=True)
    store(options.out, report)
    print(markdown(report))


def draw(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return prepared photos and their total mass, standardised by the training photos'."""
    table = Pasture(seed, SIZE_PX).table(range(TRAIN + HELD_OUT))
    images = load_backbone(name, pretrained=False).preprocess(table["images"])
    grams = torch.from_numpy(table["Dry_Total_g"].to_numpy()).float()
    known = grams[:TRAIN]
    return images, (grams - known.mean()) / known.std()


def run(
    name: str, learns: str, lr: float, weight: float, photos: tuple[Tensor, Tensor], steps: int, seed: int
) -> dict[str, float]:
    """Train one variant and measure it."""
    torch.manual_seed(seed)
    images, mass = photos
    backbone = load_backbone(name, pretrained=False, seed=seed)
    with torch.no_grad():
        references = backbone(images)
    if learns == "blocks":
        backbone.unfreeze_last(3)
    if learns == "lora":
        backbone.add_lora(8, targets="all", seed=seed)
    head = nn.Linear(backbone.embed_dim, 1)
    anchor = GramAnchor()
    optimizer = torch.optim.AdamW([p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad], lr=lr)
    backbone.train()
    for _ in range(steps):
        rows = torch.randperm(TRAIN)[:BATCH]
        tokens = backbone(images[rows])
        loss = task_loss(head, tokens, mass[rows])
        if weight:
            loss = loss + weight * anchor(tokens, references[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return measure(backbone.eval(), head, images, mass, references)


@torch.no_grad()
def measure(backbone: Backbone, head: nn.Linear, images: Tensor, mass: Tensor, references: Tokens) -> dict[str, float]:
    """Drift and spread on held-out photos; task losses as shares of what the training photos' mean mass costs."""
    tokens = backbone(images)
    held = slice(TRAIN, None)
    own, wanted = (gram(x[held]) for x in (tokens, references))
    return {
        "rms_drift": float((own - wanted).square().mean().sqrt()),
        "row_cosine": float(F.cosine_similarity(own, wanted, dim=-1).mean()),
        "row_correlation": float(F.cosine_similarity(centred(own), centred(wanted), dim=-1).mean()),
        "spread": float(own.flatten(1).std(dim=1).mean()),
        "train_loss": float(task_loss(head, tokens[:TRAIN], mass[:TRAIN]) / mass[:TRAIN].square().mean()),
        "held_out_loss": float(task_loss(head, tokens[held], mass[held]) / mass[held].square().mean()),
    }


def task_loss(head: nn.Linear, tokens: Tokens, mass: Tensor) -> Tensor:
    return F.mse_loss(head(tokens.patches[-1].mean(dim=1)).squeeze(-1), mass)


def gram(tokens: Tokens) -> Tensor:
    unit = F.normalize(tokens.patches[-1], dim=-1)
    return unit @ unit.mT


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def markdown(report: dict[str, Any]) -> str:
    """Mean and range over seeds, one row per variant."""
    runs = list(report["runs"].values())
    lines = ["| trained | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for variant in runs[0]:
        cells = []
        for column in COLUMNS:
            values = [run[variant][column] for run in runs]
            mean, low, high = (f"{x:.2f}" for x in (np.mean(values), min(values), max(values)))
            cells.append(f"{mean} ({low} … {high})")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
