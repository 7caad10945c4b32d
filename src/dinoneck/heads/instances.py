"""From queries or centres to instances and panoptic segments, as torchvision and COCO describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.losses.masked import exact
from dinoneck.tasks import Task

MOST_INSTANCES = 100  # of an image, as COCO scores them
LEAST_SCORE = 0.3  # of an instance, where neither the call nor the task states one
_LEAST_CENTRE = 0.1  # value of a cell that may be a centre, as in Panoptic-DeepLab
_DUPLICATE_IOU = 0.5  # two masks of a class above it are one object
LeastScore = float | Sequence[float]
"""The smallest score of objects: one for all classes, or one for each."""
_LEAST_QUERY_SCORE = 0.8  # probability of a query's class, for a panoptic segment
_LEAST_KEPT_AREA = 0.8  # share of its mask that a panoptic segment keeps, as in MaskFormer


def task_of(tasks: Sequence[Task], kind: str) -> Task:
    """Return the one task of a kind.

    Raises:
        ConfigError: if there is none, or several.
    """
    matching = [task for task in tasks if task.kind == kind]
    if len(matching) != 1:
        raise ConfigError(f"the head has {len(matching)} tasks of kind {kind!r}; expected one")
    return matching[0]


def reach_score(scores: Tensor, labels: Tensor, least_score: LeastScore) -> Tensor:
    """Return which objects have the smallest score, or that of their class, bool (n,).

    Args:
        scores: (n,).
        labels: (n,), int64.
        least_score: of all classes, or of each.
    """
    if isinstance(least_score, Sequence):
        # float32 would round the thresholds, and not every device has float64
        thresholds = torch.tensor(least_score, dtype=torch.float64)
        is_sure = scores.cpu() >= thresholds[labels.cpu()]
        return is_sure.to(scores.device)
    return scores >= least_score


def decode_instances(
    classes: Tensor, masks: Tensor, size: Sequence[int], min_score: LeastScore | None = None
) -> list[dict[str, Tensor]]:
    """Return the instances of every image, the highest score first, at most 100.

    A score is the probability of the class times the mean probability inside the mask.

    Args:
        classes: (B, Q, K + 1) logits, the last one of no object.
        masks: (B, Q, h, w) logits, which are resampled to ``size`` before they are cut at 0.
        size: (height, width) of the masks that are returned.
        min_score: leave out instances of a lower score, or of a lower one than that of their class;
            None = 0.3.

    Returns:
        Per image ``boxes`` (n, 4) float32 XYXY around the masks, ``labels`` (n,) int64, ``scores``
        (n,) and ``masks`` (n, height, width) bool; no two masks of a label have an IoU above 0.5.
    """
    least_score = LEAST_SCORE if min_score is None else min_score
    instances = []
    probabilities = exact(classes).softmax(-1)[..., :-1]  # (B, Q, K), without "no object"
    for query_scores, mask_logits in zip(probabilities, exact(masks), strict=True):
        num_classes = query_scores.shape[1]
        scores, best = query_scores.flatten().topk(min(MOST_INSTANCES, query_scores.numel()))
        # the mask can only lower a score
        is_candidate = reach_score(scores, best % num_classes, least_score)
        scores = scores[is_candidate]
        queries = best[is_candidate] // num_classes
        labels = best[is_candidate] % num_classes

        # (n, height, width)
        pixels = F.interpolate(mask_logits[queries, None], tuple(size), mode="bilinear")[:, 0]
        inside = pixels > 0
        areas = inside.sum(dim=(1, 2))
        scores = scores * (pixels.sigmoid() * inside).sum(dim=(1, 2)) / areas.clamp_min(1)

        order = scores.argsort(descending=True)
        is_sure = reach_score(scores, labels, least_score)
        order = order[(areas[order] > 0) & is_sure[order]]
        kept = order[_first_of_duplicates(inside[order], labels[order])]
        instances.append(_instances(inside[kept], labels[kept], scores[kept]))
    return instances


def _instances(masks: Tensor, labels: Tensor, scores: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes_of(masks), "labels": labels, "scores": scores, "masks": masks}


def _first_of_duplicates(masks: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of the masks (n, H, W) that do not repeat an earlier one of their label."""
    flat = masks.flatten(1).float()
    shared = flat @ flat.T  # pixels that two masks have in common
    areas = flat.sum(dim=1)
    overlaps = shared > _DUPLICATE_IOU * (areas[:, None] + areas - shared)
    is_duplicate = overlaps & (labels[:, None] == labels)
    kept: list[int] = []
    for i in range(len(masks)):
        if not is_duplicate[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)


def decode_centres(
    maps: Tensor, size: Sequence[int], min_score: LeastScore | None = None
) -> list[dict[str, Tensor]]:
    """Return the instances of every image from centres and the offsets to them.

    A centre is a cell with the largest value among it and its eight neighbours, the first of equal
    ones. Every cell with an object belongs to the centre that is nearest to where its offset leads.
    The class is the one with the highest mean probability over the object's cells. The score is the
    centre's value times that mean.

    Args:
        maps: (B, K + 4, rows, cols): logits of no object and K classes, the centre, and the offset
            (down, right), in cells.
        size: (height, width) of the masks that are returned.
        min_score: as of :func:`decode_instances`.

    Returns:
        As :func:`decode_instances`.
    """
    least_score = LEAST_SCORE if min_score is None else min_score
    instances = []
    for image_maps in exact(maps):
        probabilities = image_maps[:-3].softmax(dim=0)  # (K + 1, rows, cols), "no object" first
        centre = image_maps[-3]
        offset = image_maps[-2:]
        rows, cols = centre.shape

        is_peak = _is_peak(centre)
        peaks = is_peak.nonzero().float()  # (n, 2), rows and columns
        owner = _nearest_peak(offset, peaks)  # (cells,)
        peak_numbers = 1 + torch.arange(len(peaks), device=owner.device)
        is_object = (probabilities[0] < 0.5).flatten()
        objects = (owner == peak_numbers[:, None]) & is_object  # (n, cells)

        sizes = objects.sum(dim=1)  # cells of each object
        class_sums = objects.float() @ probabilities[1:].flatten(1).T
        class_scores, labels = (class_sums / sizes[:, None].clamp_min(1)).max(dim=1)
        scores = centre[is_peak].clamp(0, 1) * class_scores
        order = scores.argsort(descending=True)
        is_sure = reach_score(scores, labels, least_score)
        order = order[(sizes[order] > 0) & is_sure[order]]

        masks = objects[order].reshape(-1, 1, rows, cols).float()
        pixels = F.interpolate(masks, tuple(size), mode="bilinear")[:, 0] > 0.5
        instances.append(_instances(pixels, labels[order], scores[order]))
    return instances


def _is_peak(centre: Tensor) -> Tensor:
    """Which cells (rows, cols) have the largest value of their 3 x 3 neighbourhood, the first of equal ones."""
    rows, cols = centre.shape
    _, highest = F.max_pool2d(centre[None], 3, 1, padding=1, return_indices=True)
    cell_numbers = torch.arange(rows * cols, device=centre.device).reshape(rows, cols)
    return (highest[0] == cell_numbers) & (centre > _LEAST_CENTRE)


def _nearest_peak(offset: Tensor, peaks: Tensor) -> Tensor:
    """Return per cell 1 + the index of the peak (n, 2) that is nearest to where its offset leads.

    Without peaks it is 0.
    """
    rows, cols = offset.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    targets = (torch.stack([y, x]).to(offset) + offset).flatten(1).T  # (cells, 2)
    distances = torch.cdist(targets, peaks)
    return F.pad(distances, (1, 0), value=torch.inf).argmin(dim=1)


def boxes_of(masks: Tensor) -> Tensor:
    """Return the boxes (n, 4) float32 around masks (n, H, W), XYXY at the outer edges of pixels; 0 around none."""
    left, right = _ends(masks.any(dim=1))
    top, bottom = _ends(masks.any(dim=2))
    return torch.stack([left, top, right, bottom], dim=1).float()


def _ends(is_filled: Tensor) -> tuple[Tensor, Tensor]:
    """The places (n,) before the first and after the last of those that are filled (n, L); 0 without one."""
    numbers = is_filled.long()
    first = numbers.argmax(dim=1)
    last = numbers.shape[1] - numbers.flip(1).argmax(dim=1)
    return first, last * numbers.any(dim=1)


def decode_panoptic(
    classes: Tensor,
    masks: Tensor,
    size: Sequence[int],
    things: Sequence[int],
    min_score: float | None = None,
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """Return the panoptic segments of every image.

    A query counts where the probability of its class is ``min_score`` or more. Every pixel goes to
    the query with the largest product of class and mask probability; a segment that keeps less than
    0.8 of its mask is left out. Queries of a stuff class are joined to one segment.

    Args:
        classes: (B, Q, K + 1) logits, the last one of no object.
        masks: (B, Q, h, w) logits.
        size: (height, width) of the result.
        things: classes whose objects are counted; the others are stuff.
        min_score: None = 0.8, as published.

    Returns:
        Per image the segments (height, width) int64, 0 = none, and per segment ``id``,
        ``category_id`` (a class), ``isthing``, ``area`` in pixels and ``score``, as in COCO's
        panoptic format.
    """
    least_score = _LEAST_QUERY_SCORE if min_score is None else min_score
    panoptic = []
    probabilities = exact(classes).softmax(-1)
    for query_scores, mask_logits in zip(probabilities, exact(masks), strict=True):
        scores, labels = query_scores.max(dim=-1)
        no_object = query_scores.shape[1] - 1
        is_sure = (labels < no_object) & (scores >= least_score)
        queries = is_sure.nonzero().flatten()
        # (n, H, W)
        pixels = F.interpolate(mask_logits[queries][:, None], tuple(size), mode="bilinear")[:, 0]
        panoptic.append(
            _segments(pixels.sigmoid(), labels[queries].tolist(), scores[queries], things)
        )
    return panoptic


def _segments(
    shares: Tensor, labels: list[int], scores: Tensor, things: Sequence[int]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The segments of an image, from the mask probabilities (n, H, W), classes and scores of n queries."""
    segments = torch.zeros(shares.shape[1:], dtype=torch.int64, device=shares.device)
    if not labels:
        return segments, []
    winner = (shares * scores[:, None, None]).argmax(dim=0)  # the query of every pixel
    entries: list[dict[str, Any]] = []
    ids: dict[int, int] = {}  # class -> id of its last segment
    for i, label in enumerate(labels):
        inside = shares[i] >= 0.5
        mask = (winner == i) & inside
        area = int(mask.sum())
        if area == 0 or area < _LEAST_KEPT_AREA * int(inside.sum()):
            continue
        if label in things or label not in ids:
            ids[label] = len(entries) + 1
            entries.append(
                {
                    "id": ids[label],
                    "category_id": label,
                    "isthing": label in things,
                    "score": float(scores[i]),
                }
            )
        segments[mask] = ids[label]
    for entry in entries:
        entry["area"] = int((segments == entry["id"]).sum())
    return segments, entries
