"""Targets as people give them -> tensors in normalised units, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import DataError, counted
from dinoneck.losses.composition import CompositionLoss
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task

_SHOWN = 3
ROUNDING, SHARES_TOLERANCE = 1e-6, 1e-2
_Array = np.ndarray[Any, Any]


def training_targets(
    loss: TaskLoss, targets: Mapping[str, Any], weights: Mapping[str, Any], ids: Sequence[str], trained: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the targets of a loss's tasks (and compositions, where given) in model space, and the cells' weights.

    Values where a cell's weight is 0 become NaN, whatever they were.

    Args:
        loss: its tasks and compositions are those of the targets.
        targets: name -> (n, ...) values in original units.
        weights: dense task -> (n, rows, cols).
        ids: of the n samples.
        trained: the first so many samples are trained on.

    Raises:
        DataError: if something is missing, has another shape or values that cannot be, is below the task's minimum, or
            is constant over the training samples.
    """
    count = len(ids)
    cells = _cell_weights(loss.tasks, targets, weights)
    values: dict[str, Tensor] = {}
    for task in loss.tasks:
        given = dict(targets)
        if task.name in cells:
            given[task.name] = without_unweighted(as_array(targets[task.name]), cells[task.name])
        values[task.name] = model_targets(task, given, count)
        if not task.is_categorical:
            numbers = as_array(given[task.name]).astype(np.float64)
            check_minimum(task.name, numbers, task.minimum, ids)
            check_varies(task.name, numbers[:trained], "training image")
    for composition in loss.compositions:
        if composition.name in targets:
            total, _ = composition.composition.tasks_of(loss.tasks)
            values[composition.name] = _composed(composition, as_array(targets[composition.name]), count, total)
    return values, {name: torch.as_tensor(weight).float() for name, weight in cells.items()}


def without_unweighted(values: _Array, weight: _Array) -> _Array:
    """Return maps (n, K, rows, cols) with NaN in the cells whose weight (n, rows, cols) is 0."""
    return np.where(weight[:, None] > 0, values, np.nan)


def check_minimum(name: str, values: _Array, minimum: float | None, ids: Sequence[str]) -> None:
    """Refuse targets (n, ...) below the smallest value that a prediction may take.

    Raises:
        DataError: naming ids and values.
    """
    if minimum is None or not values.size:
        return
    lowest = np.where(np.isnan(values), np.inf, values).reshape(len(values), -1).min(axis=1)
    low = np.flatnonzero(lowest < minimum - ROUNDING * max(1.0, abs(minimum)))
    if len(low):
        shown = ", ".join(f"{ids[row]!r} ({lowest[row]:g})" for row in low[:3])
        raise DataError(
            f"{counted(len(low), 'image')} with targets of {name!r} below the minimum of {minimum:g}: {shown}. "
            "Predictions never go below it: correct these values, or give another minimum (--minimum)"
        )


def check_varies(name: str, values: _Array, images: str) -> None:
    """Refuse targets (n,) or (n, outputs, ...) of which no output varies; NaN = missing.

    Args:
        name: of the targets.
        values: all that are looked at.
        images: which images they belong to, for the message, such as ``"training image"``.

    Raises:
        DataError: naming the column.
    """
    columns = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).T if values.ndim > 1 else values[None]
    known = [column[np.isfinite(column)] for column in columns]
    if all(len(column) and not np.ptp(column) for column in known):
        raise DataError(
            f"the targets of {name!r} are {', '.join(f'{column[0]:g}' for column in known[:3])} for every {images}; "
            f"there is nothing to learn: leave {name!r} out, or train on images in which it varies"
        )


def as_array(values: Any) -> _Array:
    """Return values as a NumPy array; tensors of any dtype and device, with a gradient or without.

    Masked values (``numpy.ma``) become NaN.

    Raises:
        DataError: for masked values that are not floats: classes and numbers are filled differently.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        wide: _Array = (values.double() if values.is_floating_point() else values).numpy()
        return wide
    if isinstance(values, list | tuple) and any(np.ma.isMaskedArray(each) for each in values):
        values = np.ma.stack(values)
    if np.ma.is_masked(values):
        if values.dtype.kind != "f":
            raise DataError(
                f"a masked array of {values.dtype} has {int(values.mask.sum())} masked values; fill them: classes "
                "by values.astype(int).filled(-1), numbers by values.astype(float).filled(numpy.nan)"
            )
        values = values.filled(np.nan)
    return np.asarray(values)


def known(values: Tensor) -> Tensor:
    """Where targets are not missing; of maps (B, K, rows, cols) by cell."""
    known = values.isfinite() if values.is_floating_point() else values >= 0
    return known.all(dim=1) if values.ndim == 4 else known


def _cell_weights(tasks: Sequence[Task], targets: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, _Array]:
    """How much every cell of the dense tasks counts: (n, rows, cols); nothing where a value is missing."""
    dense = {task.name for task in tasks if task.kind == "dense"}
    if unknown := set(weights) - dense:
        raise DataError(f"weights are given for {sorted(unknown)}; the dense tasks are {sorted(dense) or 'none'}")
    found = {}
    for name in dense & set(targets):
        values = as_array(targets[name])
        if values.ndim != 4:
            continue  # refused with its own message where targets are read
        present = ~np.isnan(values.astype(np.float64)).any(axis=1)
        given = as_array(weights[name]) if name in weights else np.ones(present.shape)
        if given.shape != present.shape:
            raise DataError(f"weights of {name!r} have shape {given.shape}; expected {present.shape}")
        if not (np.isfinite(given).all() and (given >= 0).all()):
            raise DataError(f"weights of {name!r} hold negative or infinite numbers or NaN; expected 0 or more")
        found[name] = np.where(present, given.astype(np.float64), 0.0)
    return found


def _composed(composition: CompositionLoss, values: _Array, count: int, total: Task) -> Tensor:
    """The targets (n, outputs) of a composed term in the units of its loss, per area; NaN = missing."""
    wanted = (count, len(composition.composition.names))
    if values.shape != wanted:
        raise DataError(f"targets of {composition.name!r} have shape {values.shape}; expected {wanted}")
    if np.isinf(values.astype(np.float64)).any():
        raise DataError(f"targets of {composition.name!r} hold infinite values; missing ones are NaN")
    area = 1.0 if total.transform is None else total.transform.area or 1.0
    return torch.as_tensor(values.astype(np.float64) / area).float()


def model_targets(task: Task, targets: Mapping[str, Any], count: int) -> Tensor:
    """Return a task's targets in model space: (n, dim) float32, or (n,) class indices.

    Raises:
        DataError: if they are missing or of another shape.
    """
    if task.name not in targets:
        raise DataError(f"there are no targets for task {task.name!r}; given: {', '.join(targets)}")
    if task.is_categorical:
        return _class_targets(task, as_array(targets[task.name]), count)
    values = torch.as_tensor(_numbers(task, targets[task.name]))
    if task.kind == "dense":
        if values.ndim != 4 or values.shape[:2] != (count, task.dim):
            raise DataError(
                f"targets of {task.name!r} have shape {tuple(values.shape)}; expected ({count}, {task.dim}, rows, cols)"
            )
    else:
        values = values.reshape(-1, 1) if values.ndim == 1 else values
        if tuple(values.shape) != (count, task.dim):
            raise DataError(f"targets of {task.name!r} have shape {tuple(values.shape)}; expected {(count, task.dim)}")
    if values.isinf().any():
        raise DataError(f"targets of {task.name!r} hold infinite values; missing ones are NaN")
    if task.kind == "ratio":
        _check_shares(f"targets of the ratio {task.name!r}", values)
    if task.transform is not None and task.kind != "ratio":
        values = task.transform.forward(values.movedim(1, -1)).movedim(-1, 1)
    if values.float().isinf().any():
        raise DataError(
            f"targets of {task.name!r} reach {values.nan_to_num().abs().max().item():.3g} in model space, "
            "beyond float32; give the task a transform, or another unit"
        )
    return values.float()


def _check_shares(what: str, shares: Tensor) -> None:
    """Refuse shares (n, K, ...) outside of 0 ... 1, and those that are all known and do not add up to 1."""
    if bool(((shares < -1e-3) | (shares > 1 + 1e-3)).any()):
        low, high = shares[~shares.isnan()].min().item(), shares[~shares.isnan()].max().item()
        raise DataError(
            f"{what} reach from {low:.4g} to {high:.4g}; expected shares of 0 ... 1, which add up to 1: divide by "
            "their sum, unknown ones are NaN"
        )
    sums = shares.sum(dim=1)
    wrong = ((sums - 1).abs() > SHARES_TOLERANCE).reshape(len(shares), -1)
    if bool(wrong.any()):
        raise DataError(
            f"{what} add up to {sums.reshape(len(shares), -1)[wrong][0].item():.4g} in some places, in "
            f"{counted(int(wrong.any(dim=1).sum()), 'sample')}; expected 1: divide by their sum, unknown ones are NaN"
        )


def _numbers(task: Task, given: Any) -> _Array:
    """Targets as float64."""
    try:
        values = as_array(given)
        if values.dtype.kind == "c":
            raise ValueError(f"dtype {values.dtype}")
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"targets of {task.name!r} are not numbers ({error}); missing ones are NaN") from error


def _class_targets(task: Task, given: np.ndarray[Any, Any], count: int) -> Tensor:
    """(n,) class indices, or (n, height, width) or shares (n, dim, rows, cols) for segmentation."""
    if task.kind == "segmentation" and given.dtype.kind == "f":
        if given.ndim != 4 or given.shape[:2] != (count, task.dim):
            raise DataError(
                f"class shares of {task.name!r} have shape {given.shape}; expected ({count}, {task.dim}, rows, cols)"
            )
        shares = torch.as_tensor(given).float()
        _check_shares(f"class shares of {task.name!r}", shares)
        return shares
    if given.dtype.kind not in "iu":
        raise DataError(f"targets of {task.name!r} are {given.dtype}; expected integer class indices, -1 = missing")
    axes = 3 if task.kind == "segmentation" else 1
    if given.ndim != axes or len(given) != count:
        form = f"({count}, height, width)" if axes == 3 else f"({count},)"
        raise DataError(f"targets of {task.name!r} have shape {given.shape}; expected {form}")
    classes = given if task.ignore_index is None else given[given != task.ignore_index]
    if classes.size and (classes.min() < -1 or classes.max() >= task.dim):
        raise DataError(
            f"targets of {task.name!r} reach from {classes.min()} to {classes.max()}; expected classes 0 ... "
            f"{task.dim - 1}, -1 = missing"
        )
    return torch.as_tensor(given).long()
