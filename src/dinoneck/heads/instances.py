"""From queries or centres to instances and panoptic segments, as torchvision and COCO describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from dinoneck.errors import ConfigError
from dinoneck.losses.masked import exact
from dinoneck.tasks import Task

MOST_INSTANCES = 100
LEAST_SCORE = 0.3  # of an instance, where neither the call nor the task states one
_FAINT = 0.1  # value of a cell that may be a centre
_SAME = 0.5  # IoU of two masks of a class above which the one with the lower score is a duplicate
# of panoptic segments: probability of a query's class, and the share of its mask it keeps
_SURE, _INSIDE = 0.8, 0.8


def task_of(tasks: Sequence[Task], kind: str) -> Task:
    """Return the one task of a kind.

    Raises:
        ConfigError: if there is none, or several.
    """
    own = [task for task in tasks if task.kind == kind]
    if len(own) != 1:
        raise ConfigError(f"the head has {len(own)} tasks of kind {kind!r}; expected one")
    return own[0]


def decode_instances(
    classes: Tensor, masks: Tensor, size: Sequence[int], min_score: float | None = None
) -> list[dict[str, Tensor]]:
    """Return the instances of every image, the highest score first, at most 100.

    A score is the probability of the class times the mean probability inside the mask.

    Args:
        classes: (B, Q, K + 1) logits, the last one of no object.
        masks: (B, Q, h, w) logits, which are resampled to ``size`` before they are cut at 0.
        size: (height, width) of the masks that are returned.
        min_score: leave out instances of a lower score; None = 0.3.

    Returns:
        Per image ``boxes`` (n, 4) float32 XYXY around the masks, ``labels`` (n,) int64, ``scores``
        (n,) and ``masks`` (n, height, width) bool; no two masks of a label have an IoU above 0.5.
    """
    found, least = [], LEAST_SCORE if min_score is None else min_score
    for own, logits in zip(exact(classes).softmax(-1)[..., :-1], exact(masks), strict=True):
        scores, best = own.flatten().topk(min(MOST_INSTANCES, own.numel()))
        # the mask can only lower them
        best, scores = best[scores >= least], scores[scores >= least]
        queries, labels = best // own.shape[1], best % own.shape[1]
        # (n, height, width)
        pixels = F.interpolate(logits[queries, None], tuple(size), mode="bilinear")[:, 0]
        inside = pixels > 0
        areas = inside.sum(dim=(1, 2))
        scores = scores * (pixels.sigmoid() * inside).sum(dim=(1, 2)) / areas.clamp_min(1)
        order = scores.argsort(descending=True)
        order = order[(areas[order] > 0) & (scores[order] >= least)]
        kept = order[_first_of_duplicates(inside[order], labels[order])]
        own_masks = inside[kept]
        found.append(
            {
                "boxes": _boxes_of(own_masks),
                "labels": labels[kept],
                "scores": scores[kept],
                "masks": own_masks,
            }
        )
    return found


def _first_of_duplicates(masks: Tensor, labels: Tensor) -> Tensor:
    """Which of these masks (n, H, W), in falling order, repeat none before them of their label."""
    flat = masks.flatten(1).float()
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    same = (shared > _SAME * (areas[:, None] + areas - shared)) & (labels[:, None] == labels)
    kept: list[int] = []
    for i in range(len(masks)):
        if not same[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)


def decode_centres(
    maps: Tensor, size: Sequence[int], min_score: float | None = None
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
        min_score: leave out instances of a lower score; None = 0.3.

    Returns:
        As :func:`decode_instances`.
    """
    found, least = [], LEAST_SCORE if min_score is None else min_score
    for own in exact(maps):
        shares, centre, offset = own[:-3].softmax(dim=0), own[-3], own[-2:]
        rows, cols = centre.shape
        _, highest = F.max_pool2d(centre[None], 3, 1, padding=1, return_indices=True)
        numbers = torch.arange(rows * cols, device=centre.device).reshape(rows, cols)
        peaks = (highest[0] == numbers) & (centre > _FAINT)
        places = peaks.nonzero().float()  # (n, 2) rows and columns
        grid = torch.stack(
            torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        ).to(offset)
        aims = (grid + offset).flatten(1).T  # (cells, 2)
        # 0 = no centre
        owner = F.pad(torch.cdist(aims, places), (1, 0), value=torch.inf).argmin(dim=1)
        objects = (owner == 1 + torch.arange(len(places), device=owner.device)[:, None]) & (
            shares[0] < 0.5
        ).flatten()
        sizes = objects.sum(dim=1)  # cells of the n centres
        share, labels = (
            objects.float() @ shares[1:].flatten(1).T / sizes[:, None].clamp_min(1)
        ).max(dim=1)
        scores = centre[peaks].clamp(0, 1) * share
        order = scores.argsort(descending=True)
        order = order[(sizes[order] > 0) & (scores[order] >= least)]
        masks = objects[order].reshape(-1, 1, rows, cols).float()
        pixels = F.interpolate(masks, tuple(size), mode="bilinear")[:, 0] > 0.5
        found.append(
            {
                "boxes": _boxes_of(pixels),
                "labels": labels[order],
                "scores": scores[order],
                "masks": pixels,
            }
        )
    return found


def _boxes_of(masks: Tensor) -> Tensor:
    """(n, 4) XYXY around masks (n, H, W); an empty mask has an empty box."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    filled = masks.flatten(1).any(dim=1)
    # the pixel's outer edge
    boxes[filled] = masks_to_boxes(masks[filled]) + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return boxes


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
    0.8 of its mask is left out. Queries of one stuff class are one.

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
    found, least = [], _SURE if min_score is None else min_score
    for own, logits in zip(exact(classes).softmax(-1), exact(masks), strict=True):
        scores, labels = own.max(dim=-1)
        sure = ((labels < own.shape[1] - 1) & (scores >= least)).nonzero().flatten()
        segments = torch.zeros(tuple(size), dtype=torch.int64, device=logits.device)
        listed: list[dict[str, Any]] = []
        # (n, H, W)
        shares = F.interpolate(logits[sure][:, None], tuple(size), mode="bilinear")[:, 0].sigmoid()
        weighed = shares * scores[sure, None, None]
        winner = weighed.argmax(dim=0) if len(sure) else segments
        ids = dict[int, int]()  # class -> segment
        for place, label in enumerate(labels[sure].tolist()):
            inside = shares[place] >= 0.5
            mask = (winner == place) & inside
            area = int(mask.sum())
            if area > 0 and area >= _INSIDE * int(inside.sum()):
                if label in things or label not in ids:
                    ids[label], score = len(listed) + 1, float(scores[sure[place]])
                    listed.append(
                        {
                            "id": ids[label],
                            "category_id": label,
                            "isthing": label in things,
                            "score": score,
                        }
                    )
                segments[mask] = ids[label]
        for segment in listed:
            segment["area"] = int((segments == segment["id"]).sum())
        found.append((segments, listed))
    return found
