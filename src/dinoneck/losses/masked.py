"""Losses that ignore masked values, NaN included.

A mask is bool, True where a value counts, and has the target's shape, or fewer axes (one value per
row), or size-1 axes. NaN in a mask of floats is refused; on a GPU and under ``torch.compile`` such
a value does not count. If everything is masked, the loss is 0 with zero gradient. Half-precision
inputs are compared in float32, since squared errors of physical units overflow float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.codec import normalize_fields
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.grid import as_mask
from dinoneck.grid import exact as exact
from dinoneck.tasks import has_direction, unit_vectors


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error over the values that count.

    Args:
        pred: any shape.
        target: the same shape.
        mask: True where a value counts; None = everywhere.

    Raises:
        ShapeError: if shapes differ (values are not broadcast).
    """
    difference, keep = _difference(pred, target, mask)
    return masked_mean(difference.square(), keep)


def masked_smooth_l1(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    """Return the Huber-like error over the values that count: x² / (2 beta) below ``beta``, linear above.

    Raises:
        ShapeError: if shapes differ.
        ConfigError: if ``beta`` is not positive.
    """
    difference, keep = _difference(pred, target, mask)
    return masked_mean(smooth_l1(difference, beta), keep)


def ratio_mse(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error between softmax(logits) and shares, both (B, K); mask (B,) or (B, K).

    Raises:
        ShapeError: if shapes differ.
    """
    return masked_mse(shares(logits, mask), target, mask)


def scale_invariant_log(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, lam: float = 0.5
) -> Tensor:
    """Return the scale-invariant error of depth maps: mean(d²) - lam · mean(d)² of each image, d = ln pred - ln target.

    It is averaged over the images in which a pixel counts. With ``lam=1`` a factor on a whole image
    has no effect.

    Args:
        pred: (B, ...), above 0 where it counts.
        target: the same shape; the mask must exclude missing depth, which sensors mark by 0 or NaN.
        mask: True where a value counts; None = everywhere.
        lam: weight of the squared mean, 0 ... 1; 0 is the plain squared error of the logarithms.

    Raises:
        ShapeError: if shapes differ or lack a batch axis.
        ConfigError: if ``lam`` is out of range.

    Examples:
        >>> depth = torch.tensor([[[2.0, 4.0], [1.0, 0.0]]])
        >>> scale_invariant_log(3 * depth, depth, depth > 0, lam=1.0)
        tensor(0.)

    Reference: Eigen, Puhrsch and Fergus, "Depth map prediction from a single image" (NIPS 2014),
    equation 4.
    """
    if pred.shape != target.shape or pred.ndim < 2:
        raise ShapeError(
            f"pred is {tuple(pred.shape)}, the target {tuple(target.shape)}; expected (B, ...) of "
            "both"
        )
    if not 0 <= lam <= 1:
        raise ConfigError(f"lam is {lam}; expected a number between 0 and 1")
    keep = full_mask(mask, target)
    # what is masked is read as depth 1, so that its logarithm and gradient are finite
    pred = torch.where(keep, exact(pred), 1.0)
    target = torch.where(keep, exact(target), 1.0)
    difference = (pred.log() - target.to(pred).log()).flatten(1)
    keep = keep.flatten(1)
    count = keep.sum(dim=1, keepdim=True).clamp_min(1)
    mean = difference.sum(dim=1, keepdim=True) / count
    variance = torch.where(keep, difference - mean, 0.0).square().sum(dim=1, keepdim=True) / count
    return masked_mean(variance + (1 - lam) * mean.square(), keep.any(dim=1, keepdim=True))


def shares(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the softmax over the last axis, in float32 or wider; rows that are masked are read as zeros."""
    if mask is not None and logits.ndim:
        counts = full_mask(mask, logits).any(dim=-1, keepdim=True)
        # a masked NaN would come back through the softmax's gradient
        logits = torch.where(counts, logits, 0.0)
    return exact(logits).softmax(dim=-1)


def masked_cross_entropy(
    logits: Tensor, target: Tensor, mask: Tensor | None = None, ignore_index: int | None = None
) -> Tensor:
    """Return the cross-entropy over the samples that count.

    Args:
        logits: (B, K).
        target: class indices (B,), or probabilities (B, K) such as mixed labels; a row with NaN is
            ignored.
        mask: (B,), True where a sample counts.
        ignore_index: a class index that is ignored; it may lie outside 0 ... K-1.

    Raises:
        ShapeError: if shapes do not fit or a class index that counts is out of range.
    """
    errors, keep = class_errors(logits, target, mask, ignore_index)
    return masked_mean(errors, keep)


def class_errors(
    logits: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (B,) of every sample, and whether it counts, bool (B,)."""
    logits = exact(logits)
    is_soft = target.ndim == 2  # probabilities, not class indices
    expected = logits.shape if is_soft else logits.shape[:1]
    if logits.ndim != 2 or target.shape != expected:
        raise ShapeError(
            f"logits are {tuple(logits.shape)} and the target {tuple(target.shape)}; expected (B, "
            "K) and class indices (B,) or probabilities (B, K)"
        )
    keep = counted_classes(target, mask, ignore_index)
    # a masked NaN would come back through the gradient
    logits = torch.where(keep[:, None], logits, 0.0)
    if is_soft:
        probabilities = torch.where(keep[:, None], target.to(logits), 0.0)
        return F.cross_entropy(logits, probabilities, reduction="none"), keep
    if target.is_floating_point():
        raise ShapeError(
            f"class indices are {target.dtype}; expected integers (probabilities are (B, K))"
        )
    labels = torch.where(keep, target, 0).long()
    # CUDA checks the range itself; a check here would be a device-to-host synchronisation
    checks_range = labels.device.type in ("cpu", "mps") and not torch.compiler.is_compiling()
    if checks_range and bool(((labels < 0) | (labels >= logits.shape[1])).any()):
        raise ShapeError(
            f"class indices reach {int(labels.max())} (lowest {int(labels.min())}); logits have "
            f"{logits.shape[1]} classes"
        )
    return F.cross_entropy(logits, labels, reduction="none"), keep


def counted_classes(target: Tensor, mask: Tensor | None, ignore_index: int | None = None) -> Tensor:
    """Return whether the class of every sample counts, bool (B,); arguments as :func:`masked_cross_entropy`."""
    if mask is None:
        keep = torch.ones(len(target), dtype=torch.bool, device=target.device)
    else:
        keep = as_mask(mask).reshape(-1)
    if keep.shape != target.shape[:1]:
        raise ShapeError(f"the mask has shape {tuple(keep.shape)} for {len(target)} samples")
    if target.ndim == 2:
        keep = keep & ~target.isnan().any(dim=-1)  # mixed with a missing label
    elif ignore_index is not None:
        keep = keep & (target != ignore_index)
    return keep


def _difference(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return pred - target where it counts, else 0, and the mask in full shape."""
    if pred.shape != target.shape:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} have different shapes"
        )
    pred = exact(pred)
    keep = full_mask(mask, target)
    return torch.where(keep, pred - target.to(pred), 0.0), keep


def full_mask(mask: Tensor | None, target: Tensor) -> Tensor:
    """Return a mask as bool in the target's shape; None = everything counts.

    Raises:
        ShapeError: if it does not fit.
        DataError: if it holds NaN.
    """
    if mask is None:
        return torch.ones_like(target, dtype=torch.bool)
    keep = as_mask(mask)
    while keep.ndim < target.ndim:
        keep = keep.unsqueeze(-1)
    fits = keep.ndim == target.ndim
    if fits:
        sizes = zip(keep.shape, target.shape, strict=True)
        fits = all(mask_size in (1, size) for mask_size, size in sizes)
    if not fits:
        raise ShapeError(
            f"the mask has shape {tuple(mask.shape)}, the target {tuple(target.shape)}"
        )
    return keep.expand_as(target)


def label_errors(logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return the binary cross-entropy of every label, 0 where it does not count.

    Args:
        logits: (B, K).
        target: (B, K), whether a sample has each label, 0 to 1; any value where it does not count.
        keep: bool (B, K), where it counts.
    """
    # a masked NaN would come back through the gradient
    logits = torch.where(keep, exact(logits), 0.0)
    is_present = torch.where(keep, target.to(logits), 0.0)
    errors = F.binary_cross_entropy_with_logits(logits, is_present, reduction="none")
    return torch.where(keep, errors, 0.0)


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Return the Huber-like error of differences: square below ``beta`` (halved, over beta), linear above.

    Raises:
        ConfigError: if ``beta`` is not positive.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}; expected a positive number")
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def masked_mean(values: Tensor, keep: Tensor, count: Tensor | None = None) -> Tensor:
    """Return the sum of the values that count over their number, or over another ``count``."""
    if count is None:
        count = keep.sum()
    return torch.where(keep, values, 0.0).sum() / count.clamp_min(1)


def dense_masked_mse(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the squared error per cell, averaged over outputs and, by weight, over cells.

    Args:
        pred: (B, K, rows, cols).
        target: the same shape; NaN and infinite values are allowed where the weight is 0.
        weight: (B, rows, cols), bool or numbers of 0 or more; None = every cell counts once.

    Raises:
        ShapeError: if shapes do not fit (labels are never resized here).
        DataError: if a weight is negative or not finite (on a GPU and under ``torch.compile`` the
            loss is NaN).

    Examples:
        >>> pred = torch.tensor([[[[1.0, 2.0, 5.0]]]])
        >>> target = torch.tensor([[[[0.0, 0.0, torch.nan]]]])
        >>> dense_masked_mse(pred, target, torch.tensor([[[3.0, 1.0, 0.0]]]))  # (3 * 1 + 1 * 4) / 4
        tensor(1.7500)
    """
    difference, weight = weighted_difference(pred, target, weight)
    errors = difference.square()
    total = weight.sum()
    return (errors * weight).sum() / (errors.shape[1] * torch.where(total > 0, total, 1.0))


def dense_masked_cosine(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return 1 - cosine of the angle between vectors, averaged, by weight, over the cells that are known.

    Args:
        pred: (B, 3, rows, cols), of any length.
        target: the same shape, of any length; a cell whose vector is zero or has NaN does not count.
        weight: (B, rows, cols), bool or numbers of 0 or more; None = every cell counts once.

    Raises:
        ShapeError: if shapes do not fit (labels are never resized here).
        DataError: if a weight is negative or not finite (on a GPU and under ``torch.compile`` the
            loss is NaN).

    Examples:
        >>> pred = torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
        >>> target = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).view(1, 3, 1, 2)
        >>> dense_masked_cosine(pred, target)  # the second cell is unknown
        tensor(1.)
    """
    errors, weight = vector_errors(pred, target, weight)
    total = weight.sum()
    return (errors * weight).sum() / torch.where(total > 0, total, 1.0)


def vector_errors(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return 1 - cosine of every cell that counts, else 0, and the weights, both (B, 1, rows, cols).

    The weight of a cell whose target is zero or has NaN is 0; for arguments and errors see
    :func:`dense_masked_cosine`.
    """
    pred, weight = _checked_cells(pred, target, weight)
    weight = torch.where(has_direction(target), weight, 0.0)
    counts = weight > 0
    # a masked NaN would come back through the gradient
    pred = unit_vectors(torch.where(counts, pred, 0.0))
    target = unit_vectors(torch.where(counts, target.to(pred), 0.0))
    cosine = (pred * target).sum(dim=1, keepdim=True)
    return torch.where(counts, 1.0 - cosine, 0.0), weight


def map_cross_entropy(
    logits: Tensor, target: Tensor, mask: Tensor | None = None, ignore_index: int | None = None
) -> Tensor:
    """Return the cross-entropy over the pixels of a map that count.

    Labels may be finer than the logits, which are then resized to the labels' size (bilinear,
    ``align_corners=False``); logits must be finite where they contribute to a pixel that counts.

    Args:
        logits: (B, K, rows, cols).
        target: class indices (B, H, W) or probabilities (B, K, H, W); H and W are whole multiples
            of rows and cols.
        mask: (B, H, W), True where a pixel counts; None = everywhere.
        ignore_index: a class index that is ignored; it may lie outside 0 ... K-1.

    Raises:
        ShapeError: if shapes do not fit or a class index that counts is out of range.

    Examples:
        >>> logits = torch.zeros(1, 4, 2, 3)
        >>> labels = torch.zeros(1, 32, 48, dtype=torch.long)  # one label per pixel
        >>> map_cross_entropy(logits, labels)
        tensor(1.3863)
    """
    logits, target, mask = by_pixel(logits, target, mask)
    return masked_cross_entropy(logits, target, mask, ignore_index)


def by_pixel(
    logits: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the logits (B * H * W, K), targets and mask of a map's pixels; see :func:`map_cross_entropy`."""
    logits = exact(logits)
    size = _label_size(logits, target)
    if mask is not None and mask.shape != (logits.shape[0], *size):
        raise ShapeError(
            f"the mask has shape {tuple(mask.shape)}; expected {(logits.shape[0], *size)} as the "
            "target"
        )
    if size != logits.shape[-2:]:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return _rows_of(logits), pixels_of(target), mask


def pixels_of(target: Tensor) -> Tensor:
    """Return class indices (B, H, W) as (B * H * W,), probabilities (B, K, H, W) as (B * H * W, K)."""
    if target.ndim == 4:
        return _rows_of(target)
    return target.reshape(-1)


def _rows_of(maps: Tensor) -> Tensor:
    """(B, K, H, W) -> (B * H * W, K)."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch in gradient accumulation: the losses of all parts add up to the losses of the batch.

    Attributes:
        counts: name of a task or composition -> how many values of the whole batch count, see
            :meth:`dinoneck.losses.TaskLoss.counts`.
        num_samples: of the micro-batch.
        num_in_batch: samples of the whole batch.
        sample_weights: by which the errors of every sample are multiplied, (num_samples,); None =
            by 1. They change no count.
    """

    counts: Mapping[str, Tensor]
    num_samples: int
    num_in_batch: int
    sample_weights: Tensor | None = None

    @property
    def share(self) -> float | Tensor:
        """The share of the whole batch that the samples have together, by their weights."""
        if self.sample_weights is None:
            return self.num_samples / self.num_in_batch
        return self.sample_weights.sum() / self.num_in_batch

    def weigh(self, errors: Tensor) -> Tensor:
        """Return errors times the weights of their samples.

        Args:
            errors: in the order of the samples, of each the same number.
        """
        if self.sample_weights is None:
            return errors
        weights = self.sample_weights.to(errors)[:, None]
        return (errors.reshape(self.num_samples, -1) * weights).reshape(errors.shape)


_PENALTIES = ("smoothness", "sparsity", "negativity")


@dataclass(frozen=True)
class DensityRegulariser:
    """The weights of the smoothness, sparsity and non-negativity penalties of a density map.

    A density map is trained on its sum alone, so that very uneven maps fit as well as plausible
    ones. The penalties are computed in normalised units; one of weight 0 is left out, and of a map
    without cells all are 0.

    Args:
        task: name of the density task; its map is read from ``outputs["<task>.map"]``.
        smoothness: weight of the mean squared difference of vertical and horizontal neighbours.
        sparsity: weight of the mean absolute value.
        negativity: weight of the mean of max(-x, 0).

    Raises:
        ConfigError: if a weight is negative or not finite.

    Examples:
        >>> penalty = DensityRegulariser("mass", smoothness=0.1)
        >>> parts = penalty.parts(torch.tensor([[[[1.0, 3.0]]]]))
        >>> {name: round(part.item(), 4) for name, part in parts.items()}
        {'mass.smoothness': 0.4}

    Reference: the published notebook "FPN spatial modelling" (smooth, sparse, non-negative).
    """

    task: str
    smoothness: float = 0.0
    sparsity: float = 0.0
    negativity: float = 0.0

    def __post_init__(self) -> None:
        normalize_fields(self)
        for name in _PENALTIES:
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"DensityRegulariser: {name} is {getattr(self, name)}; expected a weight of 0 "
                    "or more"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, ``<task>.<regulariser>``, of those with a weight."""
        return tuple(f"{self.task}.{name}" for name in _PENALTIES if getattr(self, name))

    def parts(self, maps: Tensor, micro_batch: MicroBatch | None = None) -> dict[str, Tensor]:
        """Return the weighted penalties, by name, of maps (B, K, rows, cols) in normalised units.

        Args:
            maps: of a batch.
            micro_batch: the micro-batch that the maps are; None = a whole batch.

        Raises:
            ShapeError: if the maps have another number of axes.
        """
        if maps.ndim != 4:
            raise ShapeError(
                f"the maps have shape {tuple(maps.shape)}; expected (batch, K, rows, cols)"
            )
        maps = exact(maps)
        parts = {}
        if self.smoothness:
            squares = [
                _weighed(maps.diff(dim=axis).square(), micro_batch).flatten() for axis in (2, 3)
            ]
            mean = _mean_of_all(torch.cat(squares), micro_batch)
            parts[f"{self.task}.smoothness"] = self.smoothness * mean
        if self.sparsity:
            mean = _mean_of_all(_weighed(maps.abs(), micro_batch), micro_batch)
            parts[f"{self.task}.sparsity"] = self.sparsity * mean
        if self.negativity:
            mean = _mean_of_all(_weighed(F.relu(-maps), micro_batch), micro_batch)
            parts[f"{self.task}.negativity"] = self.negativity * mean
        return parts


def _weighed(values: Tensor, micro_batch: MicroBatch | None) -> Tensor:
    return values if micro_batch is None else micro_batch.weigh(values)


def _mean_of_all(values: Tensor, micro_batch: MicroBatch | None) -> Tensor:
    """The mean, of a micro-batch times its share of the samples; 0 of no values."""
    mean = values.sum() / max(values.numel(), 1)
    if micro_batch is None:
        return mean
    return mean * (micro_batch.num_samples / micro_batch.num_in_batch)


def weighted_difference(
    pred: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return pred - target where a cell's weight is not 0, else 0, and the weight as (B, 1, rows, cols).

    Raises:
        ShapeError: if shapes do not fit.
        DataError: if a weight is negative or not finite (on a GPU and under ``torch.compile`` the
            loss is NaN).
    """
    pred, weight = _checked_cells(pred, target, weight)
    return torch.where(weight > 0, pred - target.to(pred), 0.0), weight


def _checked_cells(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the prediction in float32 or wider and the weights (B, 1, rows, cols), see :func:`weighted_difference`."""
    if pred.shape != target.shape or pred.ndim != 4:
        raise ShapeError(
            f"the prediction is {tuple(pred.shape)} and the target {tuple(target.shape)}; "
            "expected the same (batch, K, rows, cols) of both: average labels over the cells with "
            "TokenGrid.reduce_labels"
        )
    pred = exact(pred)
    cells = (pred.shape[0], *pred.shape[2:])
    if weight is None:
        weight = pred.new_ones(()).expand(cells)
    if weight.shape != cells:
        raise ShapeError(
            f"the weight has shape {tuple(weight.shape)} for maps of {tuple(pred.shape)}; "
            "expected (batch, rows, cols), as TokenGrid.reduce_labels returns it"
        )
    weight = weight.to(pred).unsqueeze(1)
    fits = (weight >= 0) & weight.isfinite()
    # without a device-to-host synchronisation: the loss becomes NaN
    if weight.device.type != "cpu" or torch.compiler.is_compiling():
        weight = torch.where(fits, weight, torch.nan)
    elif not bool(fits.all()):
        raise DataError(
            f"{int((~fits).sum())} of the cells' weights are negative or not finite, such as "
            f"{weight[~fits][0].item()}; expected 0 (the cell is ignored) or more"
        )
    return pred, weight


def _label_size(logits: Tensor, target: Tensor) -> torch.Size:
    """Return (H, W) of the labels, checked against the logits."""
    are_indices = target.ndim == 3 and not target.is_floating_point()
    are_probabilities = target.ndim == 4 and target.shape[1] == logits.shape[1]
    is_target = are_indices or are_probabilities
    if logits.ndim != 4 or not is_target or target.shape[0] != logits.shape[0]:
        raise ShapeError(
            f"logits are {tuple(logits.shape)} and the target {tuple(target.shape)} of "
            f"{target.dtype}; expected (B, K, rows, cols) and integer class indices (B, H, W) or "
            "probabilities (B, K, H, W)"
        )
    rows, cols = logits.shape[-2:]
    height, width = target.shape[-2:]
    if height < rows or width < cols or height % rows or width % cols:
        raise ShapeError(
            f"labels of {height} x {width} are not a multiple of the {rows} x {cols} cells of the "
            "logits; resize or crop the labels with the image, to rows x patch height and cols x "
            "patch width"
        )
    return target.shape[-2:]
