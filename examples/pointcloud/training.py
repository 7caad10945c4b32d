"""One run: a 3D U-Net on rooms or scans, from fresh weights or from those of another run, with images or without."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.atomic import write_text
from dinoneck.errors import DataError
from dinoneck.version import versions
from examples.pointcloud.instances import connected_masks, instance_precision, true_masks
from examples.pointcloud.room_batches import IGNORED, Scene, Voxels, batch_of
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import Segmenter, load_weights, save_weights
from examples.pointcloud.training_plan import Plan, Rooms, misled, model_of

WEIGHTS, RESULT = "weights.safetensors", "result.json"
WARMUP = 0.1  # of all steps
CLIP = 5.0
_logger = logging.getLogger("examples.pointcloud")


def train(
    plan: Plan, rooms: Rooms, out: Path, load_from: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Train a variant, test it on the held-out rooms and write all of it down.

    Args:
        plan: what is trained how.
        rooms: of the plan.
        out: folder that gets ``weights.safetensors`` and ``result.json``.
        load_from: weights to start from.
        device: of the network.

    Returns:
        What is in ``result.json``.

    Raises:
        DataError: if the loss is not finite.
    """
    torch.manual_seed(plan.seed)
    model, voxels = model_of(plan, rooms)
    rooms = misled(rooms) if plan.wrong_images else rooms
    fresh = (
        tuple(name for name, _ in model.named_children())
        if load_from is None
        else load_weights(model, load_from)
    )
    model.to(device)
    untrained = measure(model, voxels, rooms.test, plan.names)
    losses = learn(model, voxels, rooms.train, plan)
    found = measure(model, voxels, rooms.test, plan.names)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out / WEIGHTS)
    result = {
        "plan": plan.to_json(),
        "fresh": list(fresh),
        "parameters": {
            name: sum(map(Tensor.numel, part.parameters())) for name, part in model.named_children()
        },
        "untrained": untrained,
        "test": found,
        "loss": {"first": losses[0], "last": sum(losses[-10:]) / len(losses[-10:])},
        "versions": versions(),
    }
    write_text(out / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def learn(model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], plan: Plan) -> list[float]:
    """Fit the model; return the loss of every step.

    Raises:
        DataError: if the loss is not finite.
    """
    # of its own: the same rooms in the same order for all variants
    order = torch.Generator().manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.lr, total_steps=plan.steps + 1, pct_start=WARMUP
    )
    model.train()
    losses: list[float] = []
    waiting: list[int] = []
    for step in range(plan.steps):
        while len(waiting) < plan.batch:
            waiting += torch.randperm(len(scenes), generator=order).tolist()
        now, waiting = waiting[: plan.batch], waiting[plan.batch :]
        batch = batch_of([scenes[index] for index in now], voxels, order).to(
            model.classifier.weight.device
        )
        scores = model(batch.grid, batch.feats, batch.pyramid)
        loss = F.cross_entropy(scores[batch.grid.inverse], batch.labels, ignore_index=IGNORED)
        losses.append(float(loss.detach()))
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {losses[-1]} in step {step + 1} of {plan.steps}; try a smaller --lr "
                f"than {plan.lr}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    return losses


@torch.no_grad()
def measure(
    model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], names: Sequence[str] = CLASSES
) -> dict[str, Any]:
    """Return IoU per class over all labelled points, and what fusion and injection did.

    Classes of no labelled point have no IoU, whether they are predicted or not: all variants
    average the same ones. With instance masks also ``instances``, the AP of predicted instances.

    Raises:
        ImportError: with instance masks and without scipy.
    """
    model.eval()
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    stats, pairs = [], []
    for one in scenes:
        batch = batch_of([one], voxels).to(model.classifier.weight.device)
        scores = model(batch.grid, batch.feats, batch.pyramid)
        named = scores.argmax(1)[batch.grid.inverse]
        known = batch.labels != IGNORED
        cells = batch.labels[known] * len(names) + named[known]
        confusion += cells.bincount(minlength=confusion.numel()).view_as(confusion).cpu()
        stats.append(model.stats())
        if one.instances is not None:
            grid, probabilities = batch.grid.to("cpu"), scores.softmax(1).cpu()
            pairs.append(
                (connected_masks(grid, probabilities), true_masks(one.labels, one.instances))
            )
    each = iou(confusion)
    known = confusion.sum(1) > 0
    result = {
        "miou": float(each[known].mean()),
        "iou": {
            name: float(each[place]) if known[place] else None for place, name in enumerate(names)
        },
        **_mean(stats),
    }
    if pairs:
        result["instances"] = instance_precision(pairs, names)
    return result


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union (K,) of counts (K, K); NaN for a class that is neither there nor named."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - both)


def _mean(stats: list[Any]) -> Any:
    """Means of numbers in nested dictionaries alike."""
    if isinstance(stats[0], dict):
        return {key: _mean([one[key] for one in stats]) for key in stats[0]}
    return sum(stats) / len(stats)
