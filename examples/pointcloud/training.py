"""The verb ``train``: a 3D U-Net on analytic rooms, from scratch or from a file, with images or without."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck import save_head
from dinoneck.atomic import write_text
from dinoneck.errors import ConfigError, DataError
from dinoneck.version import versions
from examples import kinds
from examples.pointcloud.instances import (
    AP_OF,
    connected_masks,
    given_precision,
    instance_precision,
    true_masks,
)
from examples.pointcloud.room_batches import IGNORED, Scene, Voxels, batch_of
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import VARIANTS, Segmenter, count, load_weights, save_weights
from examples.pointcloud.training_plan import Plan, Rooms, add_plan, misled, model_of, plan_of, rooms_of

HELP = "train a 3D U-Net on labelled scans (--data), or on drawn rooms with posters that only images show"
WEIGHTS, RESULT = "weights.safetensors", "result.json"
WARMUP = 0.1  # of all steps
CLIP = 5.0
_EVERY = 20  # steps between two lines of the log
_logger = logging.getLogger("examples.pointcloud")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--variant", choices=VARIANTS, default="3d", help="which of the images' features are used how")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of weights and result.json")
    parser.add_argument(
        "--load-from", type=Path, metavar="FILE", help="weights to start from, of MinkowskiEngine too; others are new"
    )
    parser.add_argument("--seed", type=kinds.whole, default=0, metavar="N", help="of rooms, weights and order")
    parser.add_argument("--point-colours", action="store_true", help="the 3D network is given the points' colours too")
    parser.add_argument("--wrong-images", action="store_true", help="features of another room's images: a control")
    add_plan(parser)


def run(options: argparse.Namespace) -> int:
    """Train and test one variant."""
    plan = plan_of(options)
    if (options.out / RESULT).exists():
        raise ConfigError(f"{options.out} holds a run, which others may have been started from; take another --out")
    check_paths(options.out, options.load_from)
    rooms = rooms_of(plan, options.cache, images=plan.variant != "3d", device=options.device)
    result = train(plan, rooms, options.out, options.load_from, options.device)
    found = result["test"]
    print(f"mIoU {found['miou']:.3f} on {len(rooms.test)} held-out scenes; {options.out / RESULT}")
    if "instances" in found:
        scores = ", ".join(f"{name} {_short(found['instances'][name])}" for name in AP_OF)
        print(f"predicted instances: {scores}; AP of given masks {_short(found['given_masks']['AP'])}")
    return 0


def train(plan: Plan, rooms: Rooms, out: Path, load_from: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train a variant, test it on the held-out rooms and write all of it down.

    Args:
        plan: what is trained how.
        rooms: of the plan.
        out: folder that gets ``weights.safetensors``, ``result.json`` and a head file for each new part.
        load_from: weights to start from.
        device: of the network.

    Returns:
        What is in ``result.json``.

    Raises:
        CheckpointError: if the weights do not fit.
        DataError: if the loss is not finite.
    """
    began = time.perf_counter()
    torch.manual_seed(plan.seed)
    model, voxels = model_of(plan, rooms)
    rooms = misled(rooms) if plan.wrong_images else rooms
    fresh = tuple(model.parts()) if load_from is None else load_weights(model, load_from, plan.names)
    if plan.new_only and (not fresh or load_from is None):
        raise ConfigError("--new-only trains what --load-from does not hold; give such a file and another --variant")
    if plan.new_only and len(fresh) == len(model.parts()):
        raise ConfigError(
            f"--new-only has no effect: {load_from} lacks layers of all parts ({', '.join(fresh)}), and a part is "
            "frozen as a whole; train once without it and start from that file"
        )
    model.to(device)
    _log_absent(rooms, plan.names)
    untrained = measure(model, voxels, rooms.test, plan.names)
    losses = learn(model, voxels, rooms.train, plan, fresh)
    found = measure(model, voxels, rooms.test, plan.names)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out / WEIGHTS, plan.names)
    _save_heads(model, plan, rooms, out)
    result = {
        "plan": plan.to_json(),
        "load_from": None if load_from is None else digest(load_from),
        "fresh": list(fresh),
        "parameters": {name: count(part) for name, part in model.parts().items()},
        "untrained": untrained,
        "test": found,
        "loss": {"first": losses[0], "last": sum(losses[-10:]) / len(losses[-10:])},
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "versions": versions(),
    }
    write_text(out / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def learn(
    model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], plan: Plan, fresh: tuple[str, ...] = ()
) -> list[float]:
    """Fit the model, with ``plan.new_only`` its fresh parts alone; return the loss of every step.

    Raises:
        DataError: if the loss is not finite.
    """
    order = torch.Generator().manual_seed(plan.seed)  # of its own: the same rooms in the same order for all variants
    frozen = [part for name, part in model.parts().items() if plan.new_only and name not in fresh]
    for part in frozen:
        part.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=plan.steps + 1, pct_start=WARMUP)
    model.train()
    for part in frozen:
        part.eval()  # batch statistics stay those of the file
    losses: list[float] = []
    waiting: list[int] = []
    for step in range(plan.steps):
        while len(waiting) < plan.batch:
            waiting += torch.randperm(len(scenes), generator=order).tolist()
        now, waiting = waiting[: plan.batch], waiting[plan.batch :]
        batch = batch_of([scenes[index] for index in now], voxels, order).to(model.classifier.weight.device)
        scores = model(batch.grid, batch.feats, batch.pyramid)
        loss = F.cross_entropy(scores[batch.grid.inverse], batch.labels, ignore_index=IGNORED)
        losses.append(float(loss.detach()))
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {losses[-1]} in step {step + 1} of {plan.steps}; try a smaller --lr than {plan.lr}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if (step + 1) % _EVERY == 0:
            _logger.info("%s step %d of %d: loss %.3f", plan.variant, step + 1, plan.steps, losses[-1])
    return losses


@torch.no_grad()
def measure(
    model: Segmenter, voxels: Voxels, scenes: tuple[Scene, ...], names: Sequence[str] = CLASSES
) -> dict[str, Any]:
    """Return IoU per class over all labelled points, and what fusion and injection did.

    Classes of no labelled point have no IoU, whether they are predicted or not: all variants average the same ones.
    With instance masks also ``instances``, the AP of predicted instances, and ``given_masks``, the AP of classifying
    the true ones.

    Raises:
        ImportError: with instance masks and without scipy.
    """
    model.eval()
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    stats, shares, pairs = [], [], []
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
            shares.append(probabilities[grid.inverse])
            pairs.append((connected_masks(grid, probabilities), true_masks(one.labels, one.instances)))
    each = iou(confusion)
    known = confusion.sum(1) > 0
    result = {
        "miou": float(each[known].mean()),
        "iou": {name: float(each[place]) if known[place] else None for place, name in enumerate(names)},
        **_mean(stats),
    }
    if pairs:
        result["instances"] = instance_precision(pairs, names)
        result["given_masks"] = given_precision(shares, [true for _, true in pairs], names)
    return result


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union (K,) of counts (K, K); NaN for a class that is neither there nor named."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - both)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_paths(out: Path, load_from: Path | None) -> None:
    """Refuse, before hours of work, a file in the place of the folder, or weights that are not there.

    Raises:
        ConfigError: naming them.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out is {out}, which is a file; expected a folder")
    if load_from is not None and not load_from.is_file():
        raise ConfigError(f"--load-from is {load_from}; there is no such file")


def _log_absent(rooms: Rooms, names: Sequence[str]) -> None:
    """Log classes that are in one of the two sets only: they cannot be learned, or are not measured."""
    there = [{int(label) for one in scenes for label in one.labels.unique()} for scenes in (rooms.train, rooms.test)]
    for has, lacks, what in ((1, 0, "learn from: IoU will be 0"), (0, 1, "test on: IoU is not measured")):
        if absent := [names[label] for label in sorted(there[has] - there[lacks] - {IGNORED})]:
            _logger.warning("%s: no labelled point to %s", ", ".join(absent), what)


def _save_heads(model: Segmenter, plan: Plan, rooms: Rooms, out: Path) -> None:
    """What images brought, each as a head file that knows its backbone."""
    for name in ("fusion", "injection"):
        part = model.parts().get(name)
        if part is not None:
            save_head(out / f"{name}.safetensors", part, backbone=rooms.backbone, plan=plan.to_json())


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(stats: list[Any]) -> Any:
    """Means of numbers in nested dictionaries alike."""
    if isinstance(stats[0], dict):
        return {key: _mean([one[key] for one in stats]) for key in stats[0]}
    return sum(stats) / len(stats)


def check_same(plan: Plan, load_from: Path | None, out: Path) -> dict[str, Any] | None:
    """Return the result in a folder if it is that of the plan and file; None if there is none.

    Raises:
        ConfigError: if the folder holds another run.
    """
    path = out / RESULT
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    wanted = plan.to_json() | {"load_from": None if load_from is None else digest(load_from)}
    had = found["plan"] | {"load_from": found["load_from"]}
    other = [key for key in wanted if wanted[key] != had.get(key)]
    if other:
        differences = ", ".join(f"{key} {had.get(key)!r} instead of {wanted[key]!r}" for key in other)
        raise ConfigError(f"{out} holds a run with {differences}; take another --out or remove it")
    return found
