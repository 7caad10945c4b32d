"""Average precision of instances that connected voxels of one predicted class form."""

from __future__ import annotations

from collections.abc import Sequence
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
    overlaps = [_overlap(predicted, true) for predicted, true in scenes]
    each = {
        name: {
            score: _mean([_class_precision(overlaps, k, threshold) for threshold in thresholds])
            for score, thresholds in AP_OF.items()
        }
        for k, name in enumerate(names)
    }
    return {
        **{score: _mean(row[score] for row in each.values()) for score in AP_OF},
        "per_class": each,
    }


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


def _class_precision(overlaps: Sequence[_Overlap], label: int, threshold: float) -> float | None:
    """Match the predictions of a class, the surest first; return the AP."""
    scores, hits, positives = [], [], 0
    for one in overlaps:
        rows, columns = one.predicted == label, one.true == label
        free = torch.ones(int(columns.sum()), dtype=torch.bool)
        positives += len(free)
        for iou, ignored, score in zip(
            one.iou[rows][:, columns], one.ignored[rows], one.scores[rows], strict=True
        ):
            match = (iou * free).argmax() if len(free) else None
            hit = match is not None and bool((iou * free)[match] > threshold)
            if hit:
                free[match] = False
            elif ignored > threshold:
                continue
            scores.append(float(score))
            hits.append(hit)
    return average_precision(torch.tensor(scores), torch.tensor(hits, dtype=torch.bool), positives)


def average_precision(scores: Tensor, hits: Tensor, positives: int) -> float | None:
    """Return the area below precision over recall of a ranking, precision as the best at this recall or a higher one.

    Args:
        scores: (P,), of the predictions.
        hits: bool (P,), which of them are right.
        positives: how many could be; None is returned for 0.
    """
    if not positives:
        return None
    ranked = hits[scores.argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    best_after = precision.flip(0).cummax(0).values.flip(0)
    return float((best_after * ranked).sum() / positives)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
