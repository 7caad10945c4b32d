"""Losses of object masks: of queries that predict classes and masks, and of maps of object centres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError, ShapeError
from dinoneck.extras import missing_extra
from dinoneck.losses.masked import exact

# weights of the three parts, as in Mask2Former
CLASS_WEIGHT = 2.0
MASK_WEIGHT = 5.0
DICE_WEIGHT = 5.0
# weight of queries without an object in the class loss, as in Mask2Former
NO_OBJECT_WEIGHT = 0.1
# weights of the squared error of centres and of the error of offsets, next to the class loss
CENTRE_WEIGHT = 20.0
OFFSET_WEIGHT = 0.2
_SMALLEST_AREA = 1e-6  # cells; a denominator below it is raised to it
# added to the overlap and to the sum of the areas, as in Mask2Former
_DICE_SMOOTHING = 1.0


@dataclass(frozen=True)
class MicroBatchOfObjects:
    """A micro-batch of images with objects, see :class:`dinoneck.losses.masked.MicroBatch`.

    Attributes:
        num_objects: of the whole batch, a scalar tensor of floating point.
        num_images: of the whole batch.
        image_weights: by which the errors of every image of it are multiplied, (B,); None =
            by 1.
    """

    num_objects: Tensor
    num_images: int
    image_weights: Tensor | None = None


def _image_weights(
    micro_batch: MicroBatchOfObjects | None, num_images: int
) -> Sequence[Tensor | float]:
    if micro_batch is None or micro_batch.image_weights is None:
        return [1.0] * num_images
    return micro_batch.image_weights.unbind()


def mask_loss(
    classes: Tensor,
    masks: Tensor,
    known: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor | None = None,
    micro_batch: MicroBatchOfObjects | None = None,
) -> Tensor:
    """Return the class, mask and dice loss, after each known mask is matched with the query that fits it best.

    Predictions in cells of weight 0 are ignored. The result is deterministic; without images it
    is 0.

    Args:
        classes: (B, Q, K + 1) logits; the last one is that of no object.
        masks: (B, Q, h, w) logits.
        known: per image classes (n,), int64, and masks (n, h, w), shares of the cells in 0 ... 1;
            each mask has a share in a cell that counts.
        weight: (B, h, w) of the cells; None = all count alike.
        micro_batch: the micro-batch that the images are; None = a whole batch.

    Raises:
        DataError: if logits are not finite, or an image has more masks than there are queries.
        ImportError: if scipy is not installed.
        ShapeError: if a mask has another size than the logits, or an image has another number of
            classes than of masks.

    Reference: Mask2Former (arXiv 2112.01527), with weights 2, 5, 5 and 0.1. Deviation: all cells,
    not random points.
    """
    for name, logits in (("class", classes), ("mask", masks)):
        if not logits.isfinite().all():
            raise DataError(
                f"{name} logits are not finite; lower the learning rate, or check the tokens"
            )
    if weight is None:
        weight = torch.ones_like(masks[:, 0])
    # times 0: both keep the graph where there is no image, the second one also without objects
    class_loss = exact(classes).sum() * 0.0
    shape_loss = exact(masks).sum() * 0.0
    class_norm = classes.new_zeros(())
    num_objects = classes.new_zeros(())
    no_object = classes.shape[-1] - 1
    image_weights = _image_weights(micro_batch, len(classes))
    images = zip(exact(classes), exact(masks), known, weight, image_weights, strict=True)
    for class_logits, mask_logits, (labels, truth), cell_weight, image_weight in images:
        _check_objects(labels, truth, mask_logits)
        cross_entropy, dice = _pair_losses(
            mask_logits.flatten(1),
            truth.flatten(1).to(mask_logits),
            cell_weight.flatten().to(mask_logits),
        )  # (Q, n) each

        pair_loss = MASK_WEIGHT * cross_entropy + DICE_WEIGHT * dice

        # match each known object with one query
        probabilities = class_logits.softmax(-1)[:, labels]
        queries, objects = _best_pairs(pair_loss - CLASS_WEIGHT * probabilities)
        shape_loss = shape_loss + image_weight * pair_loss[queries, objects].sum()
        num_objects = num_objects + len(labels)

        # the queries that are left learn the class "no object"
        target = torch.full((len(mask_logits),), no_object, device=labels.device)
        target[queries] = labels[objects]
        query_weight = torch.where(target == no_object, NO_OBJECT_WEIGHT, 1.0)
        query_loss = F.cross_entropy(class_logits, target, reduction="none")
        class_loss = class_loss + image_weight * (query_weight * query_loss).sum()
        class_norm = class_norm + query_weight.sum()
    if micro_batch is not None:
        num_objects = micro_batch.num_objects
        num_queries = micro_batch.num_images * classes.shape[1]
        class_norm = num_objects + NO_OBJECT_WEIGHT * (num_queries - num_objects)
    class_norm = class_norm.clamp_min(torch.finfo(class_norm.dtype).tiny)  # 0 without images
    loss: Tensor = CLASS_WEIGHT * class_loss / class_norm + shape_loss / num_objects.clamp_min(1.0)
    return loss


def _check_objects(labels: Tensor, truth: Tensor, mask_logits: Tensor) -> None:
    """Check the known classes (n,) and masks (n, h, w) of an image against its logits (Q, h, w)."""
    if truth.shape[1:] != mask_logits.shape[1:]:
        raise ShapeError(
            f"the known masks of an image have shape {tuple(truth.shape)}; expected "
            f"(masks, {', '.join(map(str, mask_logits.shape[1:]))}) as the logits"
        )
    if len(truth) != len(labels):
        raise ShapeError(
            f"an image has {len(labels)} known classes and {len(truth)} known masks; expected "
            "one class per mask"
        )
    if len(labels) > len(mask_logits):
        raise DataError(
            f"an image has {len(labels)} masks for {len(mask_logits)} queries; raise num_queries"
        )


def _pair_losses(logits: Tensor, truth: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and dice loss (Q, n) of every query (Q, N) and known mask (n, N).

    ``weight`` (N,) is that of the cells.
    """
    # cross-entropy of a logit x and a share t: softplus(x) - t * x
    cross_entropy = (F.softplus(logits) @ weight)[:, None] - (logits * weight) @ truth.T
    total_weight = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    shares = logits.sigmoid() * weight
    overlap = 2.0 * shares @ truth.T + _DICE_SMOOTHING
    areas = shares.sum(1)[:, None] + truth @ weight + _DICE_SMOOTHING
    return cross_entropy / total_weight, 1.0 - overlap / areas


def _best_pairs(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of queries and known masks whose costs (Q, n) have the smallest sum."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise missing_extra("scipy", "masks") from error
    pairs = linear_sum_assignment(costs.detach().cpu().numpy())
    queries, objects = (torch.as_tensor(indices, device=costs.device) for indices in pairs)
    return queries, objects


def centre_loss(
    maps: Tensor,
    known: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor,
    micro_batch: MicroBatchOfObjects | None = None,
) -> Tensor:
    """Return the loss of a class, a centre and the offset to it per cell.

    The centre is compared by squared differences with a Gaussian bell over every object, as wide as
    a sixth of the object. The offset to the object's centre of gravity counts inside objects only,
    by smooth L1. The class has a cross-entropy over all cells and, because few cells have an
    object, a second one over the cells of objects. The result is the mean over the images, and 0
    without any.

    Args:
        maps: (B, K + 4, rows, cols), see :func:`dinoneck.heads.instances.decode_centres`.
        known: per image classes (n,) and masks (n, rows, cols), shares of the cells; none is empty.
        weight: (B, rows, cols) of the cells.
        micro_batch: the micro-batch that the images are; None = a whole batch.

    Reference: Panoptic-DeepLab (arXiv 1911.10194). Deviations: the bell follows the size of the
    object; offsets are in cells.
    """
    rows, cols = maps.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    cell_positions = torch.stack([y, x]).to(maps.device, torch.float32)  # (2, rows, cols)
    total = exact(maps).sum() * 0.0  # keeps the graph where there is no image
    image_weights = _image_weights(micro_batch, len(maps))
    images = zip(exact(maps), known, weight, image_weights, strict=True)
    for predicted, (labels, masks), cell_weight, image_weight in images:
        class_logits = predicted[:-3]  # (K + 1, rows, cols)
        centre = predicted[-3]
        offset = predicted[-2:]  # down and right
        target = _centre_targets(labels, masks, cell_positions)
        inside = (target.owner > 0) * cell_weight
        cell_count = cell_weight.sum().clamp_min(_SMALLEST_AREA)
        inside_count = inside.sum().clamp_min(1.0)

        class_errors = F.cross_entropy(
            class_logits[None], target.classes[None], reduction="none"
        ).squeeze(0)  # (rows, cols)
        class_loss = (class_errors * cell_weight).sum() / cell_count
        object_class_loss = (class_errors * inside).sum() / inside_count
        total = total + image_weight * class_loss + image_weight * object_class_loss

        centre_errors = (centre - target.centre).square()
        cell_centre_loss = CENTRE_WEIGHT * (centre_errors * cell_weight).sum() / cell_count
        total = total + image_weight * cell_centre_loss

        # (rows, cols, 2) -> (2, rows, cols): the offset to the object that owns the cell
        owner_offset = target.offsets[target.owner, :, y, x].movedim(-1, 0)
        offset_errors = F.smooth_l1_loss(offset, owner_offset, reduction="none").sum(dim=0)
        offset_loss = OFFSET_WEIGHT * (offset_errors * inside).sum() / inside_count
        total = total + image_weight * offset_loss
    num_images = len(maps) if micro_batch is None else micro_batch.num_images
    return total / max(num_images, 1)


class _CentreTargets(NamedTuple):
    """What the maps of an image are compared with; object 0 is none.

    Attributes:
        owner: (rows, cols), the object with the largest share of each cell.
        classes: (rows, cols), 0 = no object.
        centre: (rows, cols), the highest bell of an object in 0 ... 1.
        offsets: (1 + n, 2, rows, cols), down and right to the centre of each object, in cells.
    """

    owner: Tensor
    classes: Tensor
    centre: Tensor
    offsets: Tensor


def _centre_targets(labels: Tensor, masks: Tensor, cell_positions: Tensor) -> _CentreTargets:
    """The targets of an image with classes (n,) and masks (n, rows, cols)."""
    rows, cols = masks.shape[1:]
    area = masks.sum(dim=(1, 2)).clamp_min(_SMALLEST_AREA)
    middle = (masks[:, None] * cell_positions).sum(dim=(2, 3)) / area[:, None]  # (n, 2)
    offsets = middle[:, :, None, None] - cell_positions
    # a third of the radius of a disc of this area, and half a cell
    width = (area / math.pi).sqrt() / 3 + 0.5
    bells = torch.exp(-offsets.square().sum(dim=1) / (2 * width.square())[:, None, None])

    # "no object" owns the cells that objects fill to less than a half
    shares = torch.cat([masks.new_full((1, rows, cols), 0.5), masks])
    owner = shares.argmax(dim=0)
    object_classes = torch.cat([labels.new_zeros(1), labels + 1])
    return _CentreTargets(
        owner=owner,
        classes=object_classes[owner],
        centre=torch.cat([bells, bells.new_zeros(1, rows, cols)]).amax(dim=0),
        offsets=torch.cat([offsets.new_zeros(1, 2, rows, cols), offsets]),
    )
