"""One run: a 3D U-Net on rooms or scans, from fresh weights or from those of another run, with images or without."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.atomic import write_text
from dinoneck.errors import DataError
from dinoneck.version import versions
from examples.pointcloud.cost import measured
from examples.pointcloud.instances import (
    SceneMatches,
    connected_masks,
    matches_to_json,
    precision_of,
    scene_matches,
    true_masks,
)
from examples.pointcloud.room_batches import IGNORED, Scene, Voxels, batch_of
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import Segmenter, load_unet, load_weights, save_weights
from examples.pointcloud.training_plan import Plan, Rooms, misled, model_of

WEIGHTS, RESULT, INSTANCES = "weights.safetensors", "result.json", "instances.json"
WARMUP = 0.1  # of all steps
CLIP = 5.0
_logger = logging.getLogger("examples.pointcloud")


def train(
    plan: Plan,
    rooms: Rooms,
    out: Path,
    load_from: Path | None = None,
    device: str = "cpu",
    *,
    only_unet: bool = False,
) -> dict[str, Any]:
    """Train a variant, test it on the held-out rooms and write all of it down.

    Args:
        plan: what is trained how.
        rooms: of the plan.
        out: folder that gets ``weights.safetensors``, ``result.json`` and, with instance masks,
            ``instances.json``.
        load_from: weights to start from.
        device: of the network.
        only_unet: read the U-Net alone of ``load_from``; the rest starts anew.

    Returns:
        What is in ``result.json``.

    Raises:
        DataError: if the loss is not finite.
    """
    torch.manual_seed(plan.seed)
    model, voxels = model_of(plan, rooms)
    rooms = misled(rooms) if plan.wrong_images else rooms
    if load_from is None:
        fresh = tuple(name for name, _ in model.named_children())
    elif only_unet:
        fresh = load_unet(model, load_from)
    else:
        fresh = load_weights(model, load_from)
    model.to(device)
    untrained = measure(model, voxels, rooms.test, plan.names)
    with measured(device) as training_cost:
        losses = learn(model, voxels, rooms.train, plan)
    with measured(device) as test_cost:
        tested = measure(model, voxels, rooms.test, plan.names)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out / WEIGHTS)
    if tested.matches:
        scenes = {"scenes": list(plan.held_out), "matches": matches_to_json(tested.matches)}
        write_text(out / INSTANCES, json.dumps(scenes) + "\n")
    parameters = {}
    for name, part in model.named_children():
        parameters[name] = sum(weight.numel() for weight in part.parameters())
    result = {
        "plan": plan.to_json(),
        "fresh": list(fresh),
        "parameters": parameters,
        "untrained": untrained.scores,
        "test": tested.scores,
        "loss": _ends(losses),
        "cost": {"training": training_cost.to_json(), "test": test_cost.to_json()},
        "versions": versions(),
    }
    write_text(out / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _ends(losses: Sequence[float]) -> dict[str, float] | None:
    """The first loss, and the mean of the last ten; None without a step."""
    if not losses:
        return None
    last = losses[-10:]
    return {"first": losses[0], "last": sum(last) / len(last)}


def learn(model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], plan: Plan) -> list[float]:
    """Fit the model; return the loss of every step.

    Raises:
        DataError: if the loss is not finite.
    """
    if not plan.steps:
        return []
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


@dataclass(frozen=True)
class Measurement:
    """What a model scored.

    Attributes:
        scores: ``miou``, ``iou`` per class, what fusion and injection did, and with instance masks
            ``instances``, their AP.
        matches: of the predicted and true instances of every scene; empty without instance masks.
    """

    scores: dict[str, Any]
    matches: list[SceneMatches]


@torch.no_grad()
def measure(
    model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], names: Sequence[str] = CLASSES
) -> Measurement:
    """Return IoU per class over all labelled points, AP of instances, and what fusion and injection did.

    Classes of no labelled point have no IoU, whether they are predicted or not: all variants
    average the same ones.

    Raises:
        DataError: if scores are not finite.
        ImportError: with instance masks and without scipy.
    """
    model.eval()
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    stats = []
    matches = []
    for one in scenes:
        batch = batch_of([one], voxels).to(model.classifier.weight.device)
        scores = model(batch.grid, batch.feats, batch.pyramid)
        if not scores.isfinite().all():
            raise DataError(
                "the network gives scores that are NaN or infinite for a held-out scene; 'python -m "
                "examples.pointcloud check' shows where they begin"
            )
        named = scores.argmax(1)[batch.grid.inverse]
        known = batch.labels != IGNORED
        cells = batch.labels[known] * len(names) + named[known]
        confusion += cells.bincount(minlength=confusion.numel()).view_as(confusion).cpu()
        stats.append(model.stats())
        if one.instances is not None:
            predicted = connected_masks(batch.grid.to("cpu"), scores.softmax(1).cpu())
            true = true_masks(one.labels, one.instances)
            matches.append(scene_matches(predicted, true, names))
    each = iou(confusion)
    known = confusion.sum(1) > 0
    iou_of_class = {}
    for place, name in enumerate(names):
        iou_of_class[name] = float(each[place]) if known[place] else None
    result = {"miou": float(each[known].mean()), "iou": iou_of_class, **_mean(stats)}
    if matches:
        result["instances"] = precision_of(matches, names)
    return Measurement(result, matches)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union (K,) of counts (K, K); NaN for a class that is neither there nor named."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - both)


def _mean(stats: list[Any]) -> Any:
    """Means of numbers in nested dictionaries alike."""
    if isinstance(stats[0], dict):
        return {key: _mean([one[key] for one in stats]) for key in stats[0]}
    return sum(stats) / len(stats)
