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
AP_OF = {"AP": THRESHOLDS, "AP50": (0.5,), "AP25": (0.25,)}  # score -> thresholds of its mean
LEAST_POINTS = 20  # of an instance; ScanNet's 100 are of whole scans, some 150,000 points
_NONE = -1


class Masks(NamedTuple):
    """I instances in a scene of N points; a point is in at most one of them.

    Attributes:
        instance: int64 (N,), the instance of every point; -1: none.
        classes: int64 (I,).
        scores: float (I,), how sure each is; 1 for true instances.
    """

    instance: Tensor
    classes: Tensor
    scores: Tensor


def true_masks(labels: Tensor, instances: Tensor) -> Masks:
    """Return the labelled instances of a scene; each has the most frequent label of its points.

    Args:
        labels: int64 (N,), the class of every point; ``IGNORED``: unknown.
        instances: int64 (N,), the object of every point; negative: none.
    """
    is_labelled = (instances >= 0) & (labels != IGNORED)
    instance = torch.full_like(instances, _NONE)
    if not bool(is_labelled.any()):
        return Masks(instance, torch.zeros(0, dtype=torch.int64), torch.ones(0))
    objects, number = instances[is_labelled].unique(return_inverse=True)
    instance[is_labelled] = number
    votes = torch.zeros(len(objects), int(labels.max()) + 1, dtype=torch.int64)
    one_vote = torch.ones_like(number)
    votes.index_put_((number, labels[is_labelled]), one_vote, accumulate=True)
    return Masks(instance, votes.argmax(1), torch.ones(len(objects)))


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

    confidence, predicted = probabilities.max(1)

    # voxels of one class that are neighbours are connected
    neighbours = Level(grid.keys).neighbours(3).entries
    voxels = torch.cat([source for _, source, _ in neighbours])
    others = torch.cat([target for _, _, target in neighbours])
    same_class = predicted[voxels] == predicted[others]
    rows = voxels[same_class].cpu().numpy()
    cols = others[same_class].cpu().numpy()
    graph = coo_array((np.ones(len(rows), bool), (rows, cols)), (len(grid), len(grid)))
    count, labels = connected_components(graph, directed=False)

    component = torch.from_numpy(labels).long().to(confidence.device)
    total = confidence.new_zeros(count).index_add_(0, component, confidence)
    scores = total / component.bincount(minlength=count)
    classes = predicted.new_zeros(count).index_copy(0, component, predicted)
    return Masks(component[grid.inverse], classes, scores)


@dataclass(frozen=True)
class ClassMatches:
    """The predictions of one class in one scene at one threshold, the surest first.

    Attributes:
        scores: how sure each is.
        hits: whether each is right.
        positives: number of true instances.
    """

    scores: list[float]
    hits: list[bool]
    positives: int


# class -> threshold -> matches
SceneMatches = dict[str, dict[str, ClassMatches]]


def instance_precision(
    scenes: Sequence[tuple[Masks, Masks]], names: Sequence[str]
) -> dict[str, Any]:
    """Compute AP, AP50 and AP25 of predicted instances as ScanNet's benchmark does.

    A prediction is right if its intersection over union (IoU) with a true instance of its class is
    above the threshold; of several for one instance, the surest counts. AP is the mean over the
    thresholds 0.50, 0.55 ... 0.90. Points without an instance, and of instances of fewer than
    ``LEAST_POINTS`` points, are ignored: a wrong prediction with a larger share of them than the
    threshold does not count. Predictions of fewer points are left out.

    Args:
        scenes: predicted and true instances of the same points.
        names: of the classes.

    Returns:
        ``AP``, ``AP50``, ``AP25`` (None without any true instance) and ``per_class`` with these of
        every class.
    """
    matches = [scene_matches(predicted, true, names) for predicted, true in scenes]
    return precision_of(matches, names)


def scene_matches(predicted: Masks, true: Masks, names: Sequence[str]) -> SceneMatches:
    """Match the predictions of a scene with its true instances, per class and threshold."""
    overlap = _overlap(predicted, true)
    matches: SceneMatches = {}
    for label, name in enumerate(names):
        matches[name] = {}
        for threshold in (*AP_OF["AP25"], *THRESHOLDS):
            matches[name][_key(threshold)] = _class_matches(overlap, label, threshold)
    return matches


def precision_of(scenes: Sequence[SceneMatches], names: Sequence[str]) -> dict[str, Any]:
    """Return AP, AP50 and AP25 of matched scenes, as :func:`instance_precision`."""
    once = np.ones((1, len(scenes)))
    per_class: dict[str, dict[str, float | None]] = {}
    for name in names:
        per_class[name] = {}
        for score, thresholds in AP_OF.items():
            value = _class_precision(scenes, name, thresholds, once)[0]
            per_class[name][score] = None if np.isnan(value) else float(value)
    scores: dict[str, Any] = {}
    for score in AP_OF:
        values = []
        for of_class in per_class.values():
            value = of_class[score]
            if value is not None:
                values.append(value)
        scores[score] = sum(values) / len(values) if values else None
    scores["per_class"] = per_class
    return scores


def resampled_precision(
    scenes: Sequence[SceneMatches], names: Sequence[str], score: str, counts: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the mean AP over classes in many draws of scenes.

    Args:
        scenes: matched.
        names: of the classes; those without a true instance in a draw do not count in it.
        score: ``AP``, ``AP50`` or ``AP25``.
        counts: (draws, scenes), how often each scene was drawn.

    Returns:
        (draws,), NaN where no scene of a draw has a true instance.
    """
    of_classes = [_class_precision(scenes, name, AP_OF[score], counts) for name in names]
    by_class = np.stack(of_classes)  # (classes, draws)
    has_instance = ~np.isnan(by_class)
    total = np.where(has_instance, by_class, 0.0).sum(axis=0)
    number = has_instance.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def matches_to_json(scenes: Sequence[SceneMatches]) -> list[Any]:
    """Return matches as values of JSON."""
    document = []
    for scene in scenes:
        classes = {}
        for name, by_threshold in scene.items():
            classes[name] = {key: asdict(matches) for key, matches in by_threshold.items()}
        document.append(classes)
    return document


def matches_from_json(document: Sequence[Any]) -> list[SceneMatches]:
    """Return the matches that :func:`matches_to_json` converted."""
    scenes = []
    for classes in document:
        scene: SceneMatches = {}
        for name, by_threshold in classes.items():
            scene[name] = {key: ClassMatches(**fields) for key, fields in by_threshold.items()}
        scenes.append(scene)
    return scenes


class _Overlap(NamedTuple):
    """P predictions, the surest first, and G true instances, all with enough points.

    Attributes:
        iou: (P, G).
        ignored: (P,), the share of points in none of the true instances.
        scores: (P,).
        predicted: (P,), classes.
        true: (G,), classes.
    """

    iou: Tensor
    ignored: Tensor
    scores: Tensor
    predicted: Tensor
    true: Tensor


def _overlap(predicted: Masks, true: Masks) -> _Overlap:
    """Count the points that predictions and true instances share."""
    num_predicted = len(predicted.classes)
    num_true = len(true.classes)
    # a row for each prediction; a column for each true instance, the first for points of none
    columns = num_true + 1
    inside = predicted.instance >= 0
    cell = predicted.instance[inside] * columns + true.instance[inside] + 1
    shared = cell.bincount(minlength=num_predicted * columns).view(num_predicted, columns).double()

    points = shared.sum(1)
    rows = (points >= LEAST_POINTS).nonzero()[:, 0]
    rows = rows[predicted.scores[rows].argsort(descending=True, stable=True)]
    true_points = true.instance[true.instance >= 0].bincount(minlength=num_true)
    is_counted = true_points >= LEAST_POINTS

    intersection = shared[rows, 1:][:, is_counted]
    union = points[rows, None] + true_points[is_counted] - intersection
    return _Overlap(
        iou=intersection / union,
        ignored=(points[rows] - intersection.sum(1)) / points[rows],
        scores=predicted.scores[rows],
        predicted=predicted.classes[rows],
        true=true.classes[is_counted],
    )


def _class_matches(overlap: _Overlap, label: int, threshold: float) -> ClassMatches:
    """Match the predictions of a class with its true instances, the surest first."""
    rows = overlap.predicted == label
    columns = overlap.true == label
    iou = overlap.iou[rows][:, columns]
    num_true = int(columns.sum())
    is_free = torch.ones(num_true, dtype=torch.bool)
    scores = []
    hits = []
    for prediction_iou, ignored, score in zip(
        iou, overlap.ignored[rows], overlap.scores[rows], strict=True
    ):
        hit = False
        if num_true > 0:
            iou_of_free = prediction_iou * is_free
            best = iou_of_free.argmax()
            hit = bool(iou_of_free[best] > threshold)
            if hit:
                is_free[best] = False
        if hit or ignored <= threshold:
            scores.append(float(score))
            hits.append(hit)
    return ClassMatches(scores, hits, positives=num_true)


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
    """Return the area under the curve of precision over recall.

    The precision is the best one at this recall or a higher one.

    Args:
        matches: of every scene.
        counts: (draws, scenes), how often each scene counts.

    Returns:
        (draws,), NaN for a draw without any true instance.
    """
    positives = counts @ np.array([scene.positives for scene in matches], float)
    scores = np.concatenate([np.array(scene.scores, float) for scene in matches])
    hits = np.concatenate([np.array(scene.hits, float) for scene in matches])
    scene_of = np.repeat(np.arange(len(matches)), [len(scene.scores) for scene in matches])

    # (draws, predictions), the surest first
    order = np.argsort(-scores, kind="stable")
    hits = hits[order]
    weights = counts[:, scene_of[order]]
    right = (weights * hits).cumsum(axis=1)
    ranked = weights.cumsum(axis=1)
    precision = right / np.maximum(ranked, 1)
    best_precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = (best_precision * weights * hits).sum(axis=1)
    return np.where(positives > 0, area / np.maximum(positives, 1), np.nan)


def _key(threshold: float) -> str:
    return f"{threshold:.2f}"
