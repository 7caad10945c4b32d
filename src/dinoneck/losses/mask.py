"""The loss of queries that predict classes and masks: each known mask is compared with the query that fits it best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError, ShapeError, missing_extra
from dinoneck.losses.masked import exact

CLASS, MASK, DICE = 2.0, 5.0, 5.0  # weights of the parts
CENTRE, OFFSET = 20.0, 0.2  # weights of the parts of centres
NO_OBJECT = 0.1  # weight of queries without a mask in the class loss


def mask_loss(
    classes: Tensor,
    masks: Tensor,
    known: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor | None = None,
) -> Tensor:
    """Return the loss of classes, masks and dice, of each image's known masks and the queries that fit them best.

    Cells of weight 0 count for nothing, whatever is predicted there. The result does not depend on
    chance.

    Args:
        classes: (B, Q, K + 1) logits; the last one is that of no object.
        masks: (B, Q, h, w) logits.
        known: per image classes (n,), int64, and masks (n, h, w), shares of the cells in 0 ... 1;
            each mask has a share in a cell that counts.
        weight: (B, h, w) of the cells; None = all count alike.

    Raises:
        DataError: if logits are not finite, or an image has more masks than there are queries.
        ImportError: if scipy is not installed.
        ShapeError: if a mask has another size than the logits.

    Reference: Mask2Former (arXiv 2112.01527), with weights 2, 5, 5 and 0.1. Deviation: all cells,
    not random points.
    """
    for what, queried in (("class", classes), ("mask", masks)):
        if not queried.isfinite().all():
            raise DataError(
                f"{what} logits are not finite; lower the learning rate, or check the tokens"
            )
    every = torch.ones_like(masks[:, 0]) if weight is None else weight
    total, norm, count, shapes = *classes.new_zeros(3), exact(masks).sum() * 0.0
    for scores, logits, own, (labels, truth) in zip(
        exact(classes), exact(masks), every, known, strict=True
    ):
        if truth.shape[1:] != logits.shape[1:]:
            raise ShapeError(
                f"the known masks of an image have shape {tuple(truth.shape)}; expected "
                f"(masks, {', '.join(map(str, logits.shape[1:]))}) as the logits"
            )
        if len(truth) != len(labels):
            raise ShapeError(
                f"an image has {len(labels)} known classes and {len(truth)} known masks; expected "
                "one class per mask"
            )
        if len(labels) > len(logits):
            raise DataError(
                f"an image has {len(labels)} masks for {len(logits)} queries; raise num_queries"
            )
        flat, true, counts = (
            logits.flatten(1),
            truth.flatten(1).to(logits),
            own.flatten().to(logits),
        )
        cross, dice = _pairs(flat, true, counts)  # (Q, n) each
        queries, order = _best(-CLASS * scores.softmax(-1)[:, labels] + MASK * cross + DICE * dice)
        wanted = torch.full((len(logits),), scores.shape[-1] - 1, device=labels.device)
        wanted[queries] = labels[order]
        importance = torch.where(wanted == scores.shape[-1] - 1, NO_OBJECT, 1.0)
        total = total + (importance * F.cross_entropy(scores, wanted, reduction="none")).sum()
        norm, count = norm + importance.sum(), count + len(labels)
        shapes = shapes + (MASK * cross + DICE * dice)[queries, order].sum()
    loss: Tensor = CLASS * total / norm + shapes / count.clamp_min(1.0)
    return loss


def _pairs(logits: Tensor, truth: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of every query (Q, N) and known mask (n, N), over cells of a weight (N,)."""
    # cross-entropy of a logit x and a share t: softplus(x) - t * x
    cross = (F.softplus(logits) @ weight)[:, None] - (logits * weight) @ truth.T
    shares = logits.sigmoid() * weight
    dice = 1.0 - (2.0 * shares @ truth.T + 1.0) / (shares.sum(1)[:, None] + truth @ weight + 1.0)
    return cross / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny), dice


def _best(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (query, known mask) of the smallest sum of costs (Q, n)."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise missing_extra("scipy", "masks") from error
    found = linear_sum_assignment(costs.detach().cpu().numpy())
    queries, order = (torch.as_tensor(own, device=costs.device) for own in found)
    return queries, order


def centre_loss(maps: Tensor, known: Sequence[tuple[Tensor, Tensor]], weight: Tensor) -> Tensor:
    """Return the loss of a class, a centre and the offset to it per cell.

    The centre is compared with a bell over every object, as wide as a sixth of it, by squared
    differences. The offset to the centre of gravity counts inside objects only, by smooth L1. The
    class has a cross-entropy over all cells and, since few cells have an object, one over those
    with an object.

    Args:
        maps: (B, K + 4, rows, cols), see :func:`dinoneck.heads.instances.decode_centres`.
        known: per image classes (n,) and masks (n, rows, cols), shares of the cells; none is empty.
        weight: (B, rows, cols) of the cells.

    Reference: Panoptic-DeepLab (arXiv 1911.10194). Deviations: the bell follows the size of the
    object; offsets are in cells.
    """
    total, rows, cols = exact(maps).sum() * 0.0, *maps.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    grid = torch.stack([y, x]).to(maps.device, torch.float32)
    for own, (labels, masks), cells in zip(exact(maps), known, weight, strict=True):
        area = masks.sum(dim=(1, 2)).clamp_min(1e-6)
        middle = (masks[:, None] * grid).sum(dim=(2, 3)) / area[:, None]  # (n, 2)
        offsets = middle[:, :, None, None] - grid
        width = (area / 3.14159).sqrt() / 3 + 0.5
        bells = torch.exp(-offsets.square().sum(dim=1) / (2 * width.square())[:, None, None])
        heights = torch.cat([masks.new_full((1, rows, cols), 0.5), masks])
        owner = heights.argmax(dim=0)  # 0 = no object
        classes = torch.cat([labels.new_zeros(1), labels + 1])[owner]
        count = cells.sum().clamp_min(1e-6)
        inside = (owner > 0) * cells
        objects = inside.sum().clamp_min(1.0)
        cross = F.cross_entropy(own[None, :-3], classes[None], reduction="none")[0]
        total = total + (cross * cells).sum() / count + (cross * inside).sum() / objects
        centre = torch.cat([bells, bells.new_zeros(1, rows, cols)]).amax(dim=0)
        total = total + CENTRE * ((own[-3] - centre).square() * cells).sum() / count
        aim = torch.cat([offsets.new_zeros(1, 2, rows, cols), offsets])[owner, :, y, x].movedim(
            -1, 0
        )
        errors = F.smooth_l1_loss(own[-2:], aim, reduction="none").sum(dim=0)
        total = total + OFFSET * (errors * inside).sum() / objects
    return total / len(maps)
