"""Average precision of instances that connected voxels of one predicted class form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dinoneck.points import VoxelGrid
from examples.pointcloud.room_batches import IGNORED
from examples.pointcloud.sparse_conv import Level

THRESHOLDS = tuple(percent / 100 for percent in range(50, 95, 5))  # of AP, as for ScanNet
AP_OF = {"AP": THRESHOLDS, "AP50": (0.5,), "AP25": (0.25,)}
LEAST_POINTS = 20  # of an instance; ScanNet's 100 are of whole scans, some 150,000 points
_NONE = -1


class Masks(NamedTuple):
    """I instances in a scene of N points, none of which is in two of them.

    Attributes:
        place: int64 (N,), the instance of every point; -1 = none.
        classes: int64 (I,).
        scores: float (I,), how sure each is; 1 for true instances.
    """

    place: Tensor
    classes: Tensor
    scores: Tensor


def true_masks(labels: Tensor, instances: Tensor) -> Masks:
    """Return the labelled instances of a scene; each has the most frequent label of its points.

    Args:
        labels: int64 (N,), the class of every point; ``IGNORED`` = unknown.
        instances: int64 (N,), the object of every point; negative = none.
    """
    inside = (instances >= 0) & (labels != IGNORED)
    _, mask = instances[inside].unique(return_inverse=True)
    number = int(mask.max()) + 1 if len(mask) else 0
    votes = torch.zeros(number, int(labels.max()) + 1 if number else 1, dtype=torch.int64)
    votes.index_put_((mask, labels[inside]), torch.ones_like(mask), accumulate=True)
    place = torch.full_like(instances, _NONE)
    place[inside] = mask
    return Masks(place, votes.argmax(1), torch.ones(number))


def connected_masks(grid: VoxelGrid, probabilities: Tensor) -> Masks:
    """Return connected voxels of one predicted class as instances of the grid's points.

    Voxels are neighbours if they share a face, an edge or a corner. The score is the mean
    probability of the class.

    Args:
        grid: M voxels of N points.
        probabilities: (M, K), of every voxel.

    Raises:
        ImportError: without scipy.
    """
    from scipy.sparse import coo_array  # of the extra "train"
    from scipy.sparse.csgraph import connected_components

    best, predicted = probabilities.max(1)
    entries = Level(grid.keys).neighbours(3).entries
    rows, cols = torch.cat([torch.stack((a, b)) for _, a, b in entries], dim=1)
    alike = predicted[rows] == predicted[cols]
    edges = torch.stack((rows, cols))[:, alike].cpu().numpy()
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), (len(grid), len(grid)))
    count, part = connected_components(graph, directed=False)
    part = torch.from_numpy(part).long().to(best.device)
    sums = best.new_zeros(count).index_add_(0, part, best)
    classes = predicted.new_zeros(count).index_copy(0, part, predicted)
    return Masks(part[grid.inverse], classes, sums / part.bincount(minlength=count))


@dataclass(frozen=True)
class ClassMatches:
    """The predictions of one class in one scene at one threshold, the surest first.

    Attributes:
        scores: how sure each is.
        hits: which of them are right.
        positives: how many true instances could be found.
    """

    scores: list[float]
    hits: list[bool]
    positives: int


# class -> threshold -> matches
SceneMatches = dict[str, dict[str, ClassMatches]]


def instance_precision(
    scenes: Sequence[tuple[Masks, Masks]], names: Sequence[str]
) -> dict[str, Any]:
    """Return AP, AP50 and AP25 of predicted instances, over classes and of each, after ScanNet's benchmark.

    A prediction is right if its intersection over union (IoU) with a true instance of its class is
    above the threshold; of several for one instance, the surest counts. AP is the mean over the
    thresholds 0.50, 0.55 ... 0.90. Points of no instance, and of instances of fewer than
    ``LEAST_POINTS`` points, are ignored: a wrong prediction with a larger share of them than the
    threshold does not count. Predictions of fewer points are left out.

    Args:
        scenes: predicted and true instances of the same points.
        names: of the classes.

    Returns:
        ``AP``, ``AP50``, ``AP25`` (None without any true instance) and ``per_class`` with these of
        every class.
    """
    return precision_of([scene_matches(*pair, names) for pair in scenes], names)


def scene_matches(predicted: Masks, true: Masks, names: Sequence[str]) -> SceneMatches:
    """Match the predictions of a scene with its true instances, per class and threshold."""
    overlap = _overlap(predicted, true)
    found: SceneMatches = {}
    for label, name in enumerate(names):
        found[name] = {}
        for threshold in (*AP_OF["AP25"], *THRESHOLDS):
            found[name][_key(threshold)] = _class_matches(overlap, label, threshold)
    return found


def precision_of(scenes: Sequence[SceneMatches], names: Sequence[str]) -> dict[str, Any]:
    """Return AP, AP50 and AP25 of matched scenes, as :func:`instance_precision`."""
    once = np.ones((1, len(scenes)))
    per_class: dict[str, dict[str, float | None]] = {}
    for name in names:
        per_class[name] = {}
        for score, thresholds in AP_OF.items():
            value = _class_precision(scenes, name, thresholds, once)[0]
            per_class[name][score] = None if np.isnan(value) else float(value)
    found: dict[str, Any] = {}
    for score in AP_OF:
        values = [row[score] for row in per_class.values() if row[score] is not None]
        found[score] = sum(values) / len(values) if values else None  # type: ignore[arg-type]
    found["per_class"] = per_class
    return found


def resampled_precision(
    scenes: Sequence[SceneMatches], names: Sequence[str], score: str, counts: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the AP of many draws of scenes.

    Args:
        scenes: matched.
        names: of the classes; those without a true instance in a draw do not count in it.
        score: ``AP``, ``AP50`` or ``AP25``.
        counts: (draws, scenes), how often each scene was drawn.

    Returns:
        (draws,), NaN where no scene of a draw has a true instance.
    """
    each = np.stack([_class_precision(scenes, name, AP_OF[score], counts) for name in names])
    known = ~np.isnan(each)
    total = np.where(known, each, 0.0).sum(axis=0)
    number = known.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def matches_to_json(scenes: Sequence[SceneMatches]) -> list[Any]:
    """Return matches as plain values."""
    plain = []
    for scene in scenes:
        rows = {}
        for name, by_threshold in scene.items():
            rows[name] = {key: asdict(matches) for key, matches in by_threshold.items()}
        plain.append(rows)
    return plain


def matches_from_json(plain: Sequence[Any]) -> list[SceneMatches]:
    """Return matches that :func:`matches_to_json` made plain."""
    scenes = []
    for rows in plain:
        scene: SceneMatches = {}
        for name, by_threshold in rows.items():
            scene[name] = {key: ClassMatches(**fields) for key, fields in by_threshold.items()}
        scenes.append(scene)
    return scenes


class _Overlap(NamedTuple):
    """P predictions, the surest first, and G true instances that count: iou (P, G), share of ignored points (P,)."""

    iou: Tensor
    ignored: Tensor
    scores: Tensor
    predicted: Tensor
    true: Tensor


def _overlap(predicted: Masks, true: Masks) -> _Overlap:
    """Count the points that predictions and true instances share."""
    number, known = len(predicted.classes), len(true.classes)
    inside = predicted.place >= 0
    # a column for each true instance, and the first for points of none: (P, 1 + G)
    cell = predicted.place[inside] * (known + 1) + true.place[inside] + 1
    shared = cell.bincount(minlength=number * (known + 1)).view(number, known + 1).double()
    true_points = true.place[true.place >= 0].bincount(minlength=known)
    counted = true_points >= LEAST_POINTS
    points = shared.sum(1)
    rows = (points >= LEAST_POINTS).nonzero()[:, 0]
    rows = rows[predicted.scores[rows].argsort(descending=True, stable=True)]
    both = shared[rows, 1:][:, counted]
    union = points[rows, None] + true_points[counted] - both
    ignored = (points[rows] - both.sum(1)) / points[rows]
    return _Overlap(
        both / union,
        ignored,
        predicted.scores[rows],
        predicted.classes[rows],
        true.classes[counted],
    )


def _class_matches(overlap: _Overlap, label: int, threshold: float) -> ClassMatches:
    """Match the predictions of a class with its true instances, the surest first."""
    rows = overlap.predicted == label
    columns = overlap.true == label
    free = torch.ones(int(columns.sum()), dtype=torch.bool)
    scores = []
    hits = []
    for iou, ignored, score in zip(
        overlap.iou[rows][:, columns], overlap.ignored[rows], overlap.scores[rows], strict=True
    ):
        hit = False
        if len(free):
            best = (iou * free).argmax()
            hit = bool((iou * free)[best] > threshold)
            if hit:
                free[best] = False
        if hit or ignored <= threshold:
            scores.append(float(score))
            hits.append(hit)
    return ClassMatches(scores, hits, positives=len(free))


def _class_precision(
    scenes: Sequence[SceneMatches],
    name: str,
    thresholds: Sequence[float],
    counts: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return the AP (draws,) of a class, the mean over thresholds; NaN without a true instance."""
    total = np.zeros(len(counts))
    for threshold in thresholds:
        matches = [scene[name][_key(threshold)] for scene in scenes]
        total += average_precision(matches, counts)
    return total / len(thresholds)


def average_precision(
    matches: Sequence[ClassMatches], counts: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the area below precision over recall, precision as the best at this recall or a higher one.

    Args:
        matches: of every scene.
        counts: (draws, scenes), how often each scene counts.

    Returns:
        (draws,), NaN for a draw without any true instance.
    """
    positives = counts @ np.array([one.positives for one in matches], float)
    scores = np.concatenate([np.array(one.scores, float) for one in matches])
    hits = np.concatenate([np.array(one.hits, float) for one in matches])
    scene = np.repeat(np.arange(len(matches)), [len(one.scores) for one in matches])
    order = np.argsort(-scores, kind="stable")
    weights = counts[:, scene[order]]  # (draws, predictions)
    right = (weights * hits[order]).cumsum(axis=1)
    ranked = weights.cumsum(axis=1)
    precision = right / np.maximum(ranked, 1)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = (best_after * weights * hits[order]).sum(axis=1)
    return np.where(positives > 0, area / np.maximum(positives, 1), np.nan)


def _key(threshold: float) -> str:
    return f"{threshold:.2f}"
