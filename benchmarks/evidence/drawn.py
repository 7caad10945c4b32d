"""Generated images whose truth is known: what Gram anchoring prevents, where arrangement matters, rooms of points."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.evidence.real import spread
from benchmarks.measure import Row
from benchmarks.results import ROOT
from dinoneck import Backbone, FPNHead, PatchMeanHead, TargetTransform, Task, Tokens, load_backbone
from dinoneck.data import Pasture
from dinoneck.heads import Head
from dinoneck.losses import GramAnchor
from dinoneck.training import MemoryTokens, Recipe, fit, r2, ridge_probe

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
SIDE, PLOT_PX, PLANTS = 12, 16, 36
RATES, LAYERS = (3e-4, 1e-3, 3e-3, 1e-2), (2, 5, 8, 11)
TARGETS = ("stands", "edge_length")
METHODS: dict[str, Callable[[list[Task]], Head]] = {
    "PatchMean": lambda tasks: PatchMeanHead(384, tasks),
    "FPN without non-linearity": lambda tasks: FPNHead(
        384, tasks, 4, fpn_dim=64, norm=None, activation=None
    ),
    "FPN, last layer alone": lambda tasks: FPNHead(384, tasks, 1, LAYERS[-1:], fpn_dim=64),
    "FPN, four layers": lambda tasks: FPNHead(384, tasks, 4, fpn_dim=64),
}
ROOMS = (
    "compare --network small --random-backbone --rooms 24 --test-rooms 8 --steps 120 "
    "--pretrain-steps 160 --blocks geometry stand-in colours"
)


def gram(options: Namespace) -> dict[str, Row]:
    """Return the drift and the losses of fine-tuning with and without the anchor.

    A backbone with seeded random weights learns the total mass of pasture images from its mean
    patch token, with a strong learning rate. Everything is measured on held-out images, against the
    backbone before training. Every seed is another pasture and other first weights.
    """
    runs: dict[str, list[Row]] = {
        name: [] for name in list(VARIANTS)[: 3 if options.short else None]
    }
    for seed in range(options.rounds):
        images = pasture("dinoneck_tiny", seed)
        for name, found in runs.items():
            found.append(
                fine_tuned(
                    "dinoneck_tiny", *VARIANTS[name], images, 2 if options.short else 60, seed
                )
            )
    return {
        name: {column: spread([one[column] for one in found]) for column in found[0]}
        for name, found in runs.items()
    }


def pasture(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return prepared images and their total mass, standardised by the training images'."""
    table = Pasture(seed, SIZE_PX).table(range(TRAIN + HELD_OUT))
    images = load_backbone(name, pretrained=False).preprocess(table["images"])
    grams = torch.from_numpy(table["Dry_Total_g"].to_numpy()).float()
    known = grams[:TRAIN]
    return images, (grams - known.mean()) / known.std()


def fine_tuned(
    name: str,
    learns: str,
    lr: float,
    weight: float,
    images: tuple[Tensor, Tensor],
    steps: int,
    seed: int,
) -> Row:
    """Train one variant and measure it."""
    torch.manual_seed(seed)
    pixels, mass = images
    backbone = load_backbone(name, pretrained=False, seed=seed)
    with torch.no_grad():
        references = backbone(pixels)
    if learns == "blocks":
        backbone.unfreeze_last(3)
    if learns == "lora":
        backbone.add_lora(8, targets="all", seed=seed)
    head = nn.Linear(backbone.embed_dim, 1)
    anchor = GramAnchor()
    optimizer = torch.optim.AdamW(
        [p for p in [*backbone.parameters(), *head.parameters()] if p.requires_grad], lr=lr
    )
    backbone.train()
    for _ in range(steps):
        rows = torch.randperm(TRAIN)[:BATCH]
        tokens = backbone(pixels[rows])
        loss = task_loss(head, tokens, mass[rows])
        if weight:
            loss = loss + weight * anchor(tokens, references[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drift(backbone.eval(), head, pixels, mass, references)


@torch.no_grad()
def drift(
    backbone: Backbone, head: nn.Linear, pixels: Tensor, mass: Tensor, references: Tokens
) -> Row:
    """Drift and spread on held-out images; task losses as shares of what the training images' mean mass costs."""
    tokens = backbone(pixels)
    held = slice(TRAIN, None)
    own, wanted = (gram_of(x[held]) for x in (tokens, references))
    return {
        "Gram drift (RMS)": float((own - wanted).square().mean().sqrt()),
        "row correlation": float(F.cosine_similarity(centred(own), centred(wanted), dim=-1).mean()),
        "task loss, training": float(
            task_loss(head, tokens[:TRAIN], mass[:TRAIN]) / mass[:TRAIN].square().mean()
        ),
        "task loss, held out": float(
            task_loss(head, tokens[held], mass[held]) / mass[held].square().mean()
        ),
    }


def task_loss(head: nn.Linear, tokens: Tokens, mass: Tensor) -> Tensor:
    return F.mse_loss(head(tokens.patches[-1].mean(dim=1)).squeeze(-1), mass)


def gram_of(tokens: Tokens) -> Tensor:
    unit = F.normalize(tokens.patches[-1], dim=-1)
    return unit @ unit.mT


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


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
    colours = np.where(plots[..., None], (0.25, 0.5, 0.15), (0.45, 0.35, 0.25)) * rng.uniform(
        0.8, 1.2
    )
    picture = colours.repeat(PLOT_PX, 0).repeat(PLOT_PX, 1)
    return (picture + rng.normal(0, 0.05, picture.shape)).clip(0, 1), plots


def stands(plots: np.ndarray) -> int:
    """Connected groups of plants (four neighbours)."""
    return int(ndimage.label(plots)[1])


def edge_length(plots: np.ndarray) -> int:
    """Sides at which a plant meets bare soil."""
    return int((plots[1:] != plots[:-1]).sum() + (plots[:, 1:] != plots[:, :-1]).sum())


def arrangement(options: Namespace) -> dict[str, Row]:
    """Return R² of heads and probes on scenes of equal cover, whose targets are how plants are arranged.

    Every scene is 12 x 12 plots of 16 px, exactly 36 of them plants. All trained heads get the same
    scenes, epochs and batches; each learning rate is the best of the same list on scenes used for
    nothing else.
    """
    count, epochs, rates = (42, 1, RATES[:1]) if options.short else (700, 30, RATES)
    made = [scene(seed) for seed in range(count)]
    targets = {
        "stands": [stands(plots) for _, plots in made],
        "edge_length": [edge_length(plots) for _, plots in made],
    }
    values = {name: np.array(own, float) for name, own in targets.items()}
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, layers=LAYERS)
    ids = [str(i) for i in range(count)]
    source = MemoryTokens.extract(backbone, [picture for picture, _ in made], ids, batch_size=16)
    train, choose, test = np.split(np.arange(count), [count * 4 // 7, count * 5 // 7])
    table: dict[str, Row] = {}
    fold = [(np.concatenate((train, choose)), test)]
    ridge: Row = {}
    for name, target in values.items():
        predictions = ridge_probe(source, target[:, None], fold, target_ids=ids)[test, 0]
        ridge[name] = spread([r2(target[test], predictions)])
    table["linear probe (ridge)"] = ridge

    def scored(
        make: Callable[[list[Task]], Head], rows: Any, lr: float, seed: int
    ) -> dict[str, float]:
        tasks = [Task(t, transform=TargetTransform().fit(own[train])) for t, own in values.items()]
        torch.manual_seed(seed)
        head = make(tasks)
        recipe = Recipe(epochs=epochs, batch_size=16, lr=lr, seed=seed)
        fit(head, source, values, target_ids=ids, ids=[ids[i] for i in train], recipe=recipe)
        predictions = [head.eval().predict(source.batch([ids[i]])) for i in rows]
        return {
            t: r2(values[t][rows], np.array([float(one[t]) for one in predictions]))
            for t in TARGETS
        }

    for name, make in METHODS.items():
        tried = {rate: sum(scored(make, choose, rate, 0).values()) for rate in rates}
        runs = [
            scored(make, test, max(tried, key=lambda rate: tried[rate]), seed)
            for seed in range(options.rounds)
        ]
        table[name] = {t: spread([run[t] for run in runs]) for t in TARGETS}
    return table


def rooms(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of a 3D network alone, with fused and with injected image features, in drawn rooms."""
    out = options.runs / "rooms"
    words = [*ROOMS.split(), "--out", str(out), "--seeds", *map(str, range(max(2, options.rounds)))]
    if options.short:
        words += [
            "--rooms",
            "2",
            "--test-rooms",
            "1",
            "--steps",
            "2",
            "--pretrain-steps",
            "2",
            "--blocks",
            "geometry",
        ]
    subprocess.run([sys.executable, "-m", "examples.pointcloud", *words], cwd=ROOT, check=True)
    blocks = json.loads((out / "point_segmentation.json").read_text())["blocks"]
    table: dict[str, Row] = {}
    for block, found in blocks.items():
        rows: Mapping[str, Any] = found["summary"]["rows"]
        for name, row in rows.items():
            table.setdefault(name, {})[block] = (
                f"{row['miou']['mean']:.3f} ± {row['miou']['deviation']:.3f}"
            )
        for name, one in found["summary"]["differences"].items():
            ends = [one["mean"] - one["half_width"], one["mean"] + one["half_width"]]
            table.setdefault(name, {})[block] = (
                f"{one['mean']:+.3f} ({ends[0]:+.3f} … {ends[1]:+.3f})"
            )
    return table
