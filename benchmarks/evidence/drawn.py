"""Generated images whose truth is known: Gram anchoring, arrangement of plants, rooms of points."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence

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
TRAIN = 96
HELD_OUT = 64
BATCH = 16
GRAM_STEPS = 60
GRAM_STEPS_IN_SHORT = 2
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
# of a scene: plots along each side, their pixels, and plots with a plant
SIDE = 12
PLOT_PX = 16
PLANTS = 36
PLANT_COLOUR = (0.25, 0.5, 0.15)
SOIL_COLOUR = (0.45, 0.35, 0.25)
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # row, col
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LAYERS = (2, 5, 8, 11)
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
SHORT_ROOMS = "--rooms 2 --test-rooms 1 --steps 2 --pretrain-steps 2 --blocks geometry"


def gram(options: Namespace) -> dict[str, Row]:
    """Return the drift and the losses of fine-tuning with and without the anchor.

    A backbone with seeded random weights learns the total mass of pasture images from its mean
    patch token, with a strong learning rate. Everything is measured on held-out images, against the
    backbone before training. Every seed is another pasture and other first weights.
    """
    names = list(VARIANTS)[:3] if options.short else list(VARIANTS)
    steps = GRAM_STEPS_IN_SHORT if options.short else GRAM_STEPS
    runs: dict[str, list[Row]] = {name: [] for name in names}
    for seed in range(options.rounds):
        pixels, mass = pasture("dinoneck_tiny", seed)
        for name in names:
            learns, lr, anchor_weight = VARIANTS[name]
            run = fine_tune(
                "dinoneck_tiny",
                pixels,
                mass,
                learns=learns,
                lr=lr,
                anchor_weight=anchor_weight,
                steps=steps,
                seed=seed,
            )
            runs[name].append(run)
    return {name: spread_of_rows(rows) for name, rows in runs.items()}


def spread_of_rows(rows: Sequence[Mapping[str, float]]) -> Row:
    """Return the spread of every column."""
    return {column: spread([row[column] for row in rows]) for column in rows[0]}


def pasture(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return prepared images and their total mass, standardised by that of the training images."""
    table = Pasture(seed, SIZE_PX).table(range(TRAIN + HELD_OUT))
    pixels = load_backbone(name, pretrained=False).preprocess(table["images"])
    mass = torch.from_numpy(table["Dry_Total_g"].to_numpy()).float()
    of_training = mass[:TRAIN]
    return pixels, (mass - of_training.mean()) / of_training.std()


def fine_tune(
    name: str,
    pixels: Tensor,
    mass: Tensor,
    *,
    learns: str,
    lr: float,
    anchor_weight: float,
    steps: int,
    seed: int,
) -> Row:
    """Train one variant and measure it.

    Args:
        name: of the backbone.
        pixels: prepared images.
        mass: standardised, of every image.
        learns: ``head`` alone, or also the last three ``blocks`` or ``lora``.
        lr: learning rate.
        anchor_weight: of the Gram anchor in the loss; 0: none.
        steps: of the optimizer.
        seed: of the first weights and the batches.
    """
    torch.manual_seed(seed)
    backbone = load_backbone(name, pretrained=False, seed=seed)
    with torch.no_grad():
        references = backbone(pixels)
    if learns == "blocks":
        backbone.unfreeze_last(3)
    if learns == "lora":
        backbone.add_lora(8, targets="all", seed=seed)
    head = nn.Linear(backbone.embed_dim, 1)
    anchor = GramAnchor()
    parameters = [*backbone.parameters(), *head.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    backbone.train()
    for _ in range(steps):
        rows = torch.randperm(TRAIN)[:BATCH]
        tokens = backbone(pixels[rows])
        loss = task_loss(head, tokens, mass[rows])
        if anchor_weight != 0:
            loss = loss + anchor_weight * anchor(tokens, references[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drift(backbone.eval(), head, pixels, mass, references)


@torch.no_grad()
def drift(
    backbone: Backbone, head: nn.Linear, pixels: Tensor, mass: Tensor, references: Tokens
) -> Row:
    """Return the drift on held-out images, and the losses of the task.

    A loss is a share of that of predicting the mean mass of the training images.
    """
    tokens = backbone(pixels)
    training = slice(None, TRAIN)
    held_out = slice(TRAIN, None)
    after = gram_of(tokens[held_out])
    before = gram_of(references[held_out])
    correlation = F.cosine_similarity(centred(after), centred(before), dim=-1)

    def share_of_mean(rows: slice) -> float:
        loss = task_loss(head, tokens[rows], mass[rows])
        return float(loss / mass[rows].square().mean())

    return {
        "Gram drift (RMS)": float((after - before).square().mean().sqrt()),
        "row correlation": float(correlation.mean()),
        "task loss, training": share_of_mean(training),
        "task loss, held out": share_of_mean(held_out),
    }


def task_loss(head: nn.Linear, tokens: Tokens, mass: Tensor) -> Tensor:
    """Return the squared error of the mass predicted from the mean patch."""
    predicted = head(tokens.patches[-1].mean(dim=1)).squeeze(-1)
    return F.mse_loss(predicted, mass)


def gram_of(tokens: Tokens) -> Tensor:
    """Return the cosine similarities of all patches, (B, N, N)."""
    unit = F.normalize(tokens.patches[-1], dim=-1)
    return unit @ unit.mT


def centred(rows: Tensor) -> Tensor:
    """Subtract the mean of every row."""
    return rows - rows.mean(dim=-1, keepdim=True)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: its RGB picture (192, 192, 3) in 0 ... 1, and which plots are plants (12, 12)."""
    generator = np.random.default_rng(seed)
    num_first = int(generator.integers(1, 13))
    plants = [(row, col) for row, col in generator.integers(0, SIDE, (num_first, 2))]
    is_plant = np.zeros((SIDE, SIDE), bool)
    for row, col in plants:
        is_plant[row, col] = True
    while is_plant.sum() < PLANTS:
        # a random plant gets a random neighbour
        row, col = plants[generator.integers(len(plants))]
        down, right = NEIGHBOURS[generator.integers(len(NEIGHBOURS))]
        row += down
        col += right
        if 0 <= row < SIDE and 0 <= col < SIDE and not is_plant[row, col]:
            is_plant[row, col] = True
            plants.append((row, col))
    brightness = generator.uniform(0.8, 1.2)
    colours = np.where(is_plant[..., None], PLANT_COLOUR, SOIL_COLOUR) * brightness
    picture = colours.repeat(PLOT_PX, 0).repeat(PLOT_PX, 1)
    noise = generator.normal(0, 0.05, picture.shape)
    return (picture + noise).clip(0, 1), is_plant


def stands(is_plant: np.ndarray) -> int:
    """Count the connected groups of plants (four neighbours)."""
    _, count = ndimage.label(is_plant)
    return int(count)


def edge_length(is_plant: np.ndarray) -> int:
    """Count the sides at which a plant meets bare soil."""
    between_rows = (is_plant[1:] != is_plant[:-1]).sum()
    between_cols = (is_plant[:, 1:] != is_plant[:, :-1]).sum()
    return int(between_rows + between_cols)


def arrangement(options: Namespace) -> dict[str, Row]:
    """Return R² of heads and probes for the arrangement of plants in scenes of equal cover.

    Every scene is 12 x 12 plots of 16 px, exactly 36 of them plants. All trained heads get the same
    scenes, epochs and batches; each learning rate is the best of the same list on scenes that are
    used for nothing else.
    """
    count = 42 if options.short else 700
    epochs = 1 if options.short else 30
    rates = RATES[:1] if options.short else RATES
    scenes = [scene(seed) for seed in range(count)]
    targets = {
        "stands": np.array([stands(is_plant) for _, is_plant in scenes], float),
        "edge_length": np.array([edge_length(is_plant) for _, is_plant in scenes], float),
    }
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, layers=LAYERS)
    ids = [str(number) for number in range(count)]
    pictures = [picture for picture, _ in scenes]
    source = MemoryTokens.extract(backbone, pictures, ids, batch_size=16)
    train, choose, test = np.split(np.arange(count), [count * 4 // 7, count * 5 // 7])
    train_ids = [ids[row] for row in train]

    def train_and_score(
        build: Callable[[list[Task]], Head], rows: np.ndarray, lr: float, seed: int
    ) -> dict[str, float]:
        tasks = []
        for name, values in targets.items():
            tasks.append(Task(name, transform=TargetTransform().fit(values[train])))
        torch.manual_seed(seed)
        head = build(tasks)
        recipe = Recipe(epochs=epochs, batch_size=16, lr=lr, seed=seed)
        fit(head, source, targets, target_ids=ids, ids=train_ids, recipe=recipe)
        head.eval()
        predictions = [head.predict(source.batch([ids[row]])) for row in rows]
        scores = {}
        for name in TARGETS:
            predicted = np.array([float(prediction[name]) for prediction in predictions])
            scores[name] = r2(targets[name][rows], predicted)
        return scores

    table: dict[str, Row] = {}
    fold = [(np.concatenate((train, choose)), test)]
    of_ridge: Row = {}
    for name, values in targets.items():
        predictions = ridge_probe(source, values[:, None], fold, target_ids=ids)[test, 0]
        of_ridge[name] = spread([r2(values[test], predictions)])
    table["linear probe (ridge)"] = of_ridge
    for method, build in METHODS.items():
        sum_of_scores = {}
        for rate in rates:
            sum_of_scores[rate] = sum(train_and_score(build, choose, rate, seed=0).values())
        best_rate = max(sum_of_scores, key=sum_of_scores.__getitem__)
        runs = []
        for seed in range(options.rounds):
            runs.append(train_and_score(build, test, best_rate, seed))
        table[method] = spread_of_rows(runs)
    return table


def rooms(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of a 3D network in drawn rooms.

    Alone, with fused and with injected image features.
    """
    out = options.runs / "rooms"
    seeds = [str(seed) for seed in range(max(2, options.rounds))]
    words = [*ROOMS.split(), "--out", str(out), "--seeds", *seeds]
    if options.short:
        words += SHORT_ROOMS.split()
    subprocess.run([sys.executable, "-m", "examples.pointcloud", *words], cwd=ROOT, check=True)
    blocks = json.loads((out / "point_segmentation.json").read_text())["blocks"]
    table: dict[str, Row] = {}
    for block, results in blocks.items():
        summary = results["summary"]
        for name, row in summary["rows"].items():
            miou = row["miou"]
            cell = f"{miou['mean']:.3f} ± {miou['deviation']:.3f}"
            table.setdefault(name, {})[block] = cell
        for name, difference in summary["differences"].items():
            mean = difference["mean"]
            low = mean - difference["half_width"]
            high = mean + difference["half_width"]
            table.setdefault(name, {})[block] = f"{mean:+.3f} ({low:+.3f} … {high:+.3f})"
    return table
