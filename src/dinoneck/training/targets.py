"""Targets in original units -> tensors in normalised units, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import DataError, counted, some_of
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task

ROUNDING, SHARES_TOLERANCE = 1e-6, 1e-2
_Array = np.ndarray[Any, Any]


def training_targets(
    loss: TaskLoss,
    targets: Mapping[str, Any],
    weights: Mapping[str, Any],
    ids: Sequence[str],
    trained: int,
    needs_validation: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the targets of a loss's tasks (and compositions, where given) in normalised units, and the cells' weights.

    Values where a cell's weight is 0 become NaN, whatever they were.

    Args:
        loss: its tasks and compositions are those of the targets.
        targets: name -> (n, ...) values in original units.
        weights: dense task -> (n, rows, cols).
        ids: of the n samples.
        trained: the first so many samples are trained on.
        needs_validation: some validation sample must have a value.

    Raises:
        DataError: if something is missing, has another shape or values that cannot be, is below the task's minimum, or
            is constant over the training samples.
    """
    dense = [task.name for task in loss.tasks if task.kind == "dense"]
    if unknown := set(weights) - set(dense):
        raise DataError(f"weights are given for {sorted(unknown)}; the dense tasks are {dense or 'none'}")
    values: dict[str, Tensor] = {}
    cells: dict[str, Tensor] = {}
    for task in loss.tasks:
        if task.name not in targets:
            raise DataError(f"there are no targets for task {task.name!r}; given: {', '.join(targets)}")
        original = as_array(targets[task.name])
        if task.is_categorical:
            values[task.name] = _classes(task, original, len(ids))
        else:
            original = _numbers(task, original, len(ids))
            if task.kind == "dense":
                weight = _cell_weights(task.name, original, weights.get(task.name))
                original = np.where(weight[:, None] > 0, original, np.nan)
                cells[task.name] = torch.as_tensor(weight).float()
            values[task.name] = _normalised(task, original, ids)
            check_minimum(task.name, original, task.minimum, ids)
        _check_learnable(task, original[:trained], values[task.name][:trained])
    if needs_validation and not any(len(_present(task, values[task.name][trained:])) for task in loss.tasks):
        raise DataError("patience is set, and no validation id has a target value to judge epochs by")
    for own in loss.compositions:
        if own.name in targets:
            total, _ = own.composition.tasks_of(loss.tasks)
            area = None if total.transform is None else total.transform.area
            task = Task(own.name, dim=len(own.composition.names))
            natural = _numbers(task, as_array(targets[own.name]), len(ids)) / (area or 1.0)
            values[own.name] = _normalised(task, natural, ids)
    return values, cells


def check_minimum(name: str, values: _Array, minimum: float | None, ids: Sequence[str]) -> None:
    """Refuse targets (n, ...) below the smallest value that a prediction may take.

    Raises:
        DataError: naming ids and values.
    """
    if minimum is None:
        return
    low = np.argwhere(values < minimum - ROUNDING * max(1.0, abs(minimum)))
    if len(low):
        shown = some_of([f"{ids[int(place[0])]!r} ({values[tuple(place)]:g})" for place in low], 3)
        raise DataError(
            f"{counted(len(set(low[:, 0])), 'image')} with targets of {name!r} below the minimum of {minimum:g}: "
            f"{shown}. Predictions never go below it: correct these values, or give another minimum (--minimum)"
        )


def check_varies(name: str, values: _Array, images: str) -> None:
    """Refuse targets (n,) or (n, outputs, ...) of which no output varies; NaN = missing.

    Args:
        name: of the targets.
        values: the targets.
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


def as_array(values: Any, name: str = "values") -> _Array:
    """Return values as a NumPy array; tensors of any dtype and device, with a gradient or without.

    Raises:
        DataError: for masked values (``numpy.ma``), and for lists that are no array; it gives them ``name``.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        wide: _Array = (values.double() if values.is_floating_point() else values).numpy()
        return wide
    if any(np.ma.is_masked(each) for each in (values if isinstance(values, list | tuple) else [values])):
        raise DataError(f"{name} is a masked array; fill it: values.filled(numpy.nan), of classes values.filled(-1)")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{name} are not numbers ({error}); missing ones are NaN") from error


def known(values: Tensor) -> Tensor:
    """Return a mask of the targets that are not missing; of maps (B, K, rows, cols) by cell."""
    present = values.isfinite() if values.is_floating_point() else values >= 0
    return present.all(dim=1) if values.ndim == 4 else present


def _present(task: Task, values: Tensor) -> Tensor:
    """The values that are not missing and not ignored."""
    present = (values.movedim(1, -1) if values.ndim == 4 else values)[known(values)]
    return present if task.ignore_index is None or values.is_floating_point() else present[present != task.ignore_index]


def _check_learnable(task: Task, original: _Array, values: Tensor) -> None:
    """Refuse training targets that are all missing or all equal, or that the task's activation cannot reach."""
    present = _present(task, values)
    if not present.numel():
        raise DataError(f"task {task.name!r} has no target value among the {len(values)} training ids")
    if task.is_categorical:
        return
    low, high = present.min().item(), present.max().item()
    if task.activation is not None and (low < 0 or (task.activation == "sigmoid" and high > 1)):
        raise DataError(
            f"task {task.name!r}: activation {task.activation!r} cannot reach targets of {low:.4g} ... {high:.4g} in "
            "normalised units; leave the activation out, or use a transform without mean"
        )
    check_varies(task.name, original, "training image")


def _cell_weights(name: str, values: _Array, weights: Any) -> _Array:
    """How much every cell of a dense task counts: (n, rows, cols); nothing where a value is missing."""
    present = ~np.isnan(values).any(axis=1)
    weight = np.ones(present.shape) if weights is None else as_array(weights).astype(np.float64)
    _check_shape(f"weights of {name!r}", weight, *present.shape)
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise DataError(f"weights of {name!r} are {weight.min():g} ... {weight.max():g}; expected 0 or more")
    return np.where(present, weight, 0.0)


def _numbers(task: Task, values: _Array, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A task's numbers in original units: (n, dim) or (n, dim, rows, cols) float64; NaN = missing."""
    what = f"targets of {task.name!r}"
    if values.dtype.kind in "mMc":
        raise DataError(f"{what} are {values.dtype}; expected numbers: of dates, days since one of them")
    try:
        found: np.ndarray[Any, np.dtype[np.float64]] = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not numbers ({error}); missing ones are NaN") from error
    found = found[:, None] if found.ndim == 1 and not task.is_map else found
    _check_shape(what, found, count, task.dim, *(("rows", "cols") if task.is_map else ()))
    return found


def _normalised(task: Task, original: _Array, ids: Sequence[str]) -> Tensor:
    """Targets in normalised units, float32; every value that is known must be finite there."""
    natural = torch.as_tensor(original)
    if task.kind == "ratio":
        _check_shares(task.name, natural)
    elif task.transform is not None:
        natural = task.transform.forward(natural.movedim(1, -1)).movedim(-1, 1)
    found = natural.float()
    wrong = np.argwhere(~np.isnan(original) & ~found.isfinite().numpy())
    if len(wrong):
        place = tuple(wrong[0])
        raise DataError(
            f"the target of {task.name!r} is {original[place]:g} for {ids[place[0]]!r}, and {found[place]:g} in "
            "normalised units; expected finite numbers within float32, NaN = missing"
        )
    return found


def _check_shape(what: str, values: _Array, *expected: int | str) -> None:
    """Refuse another shape; an axis of any length is given by its name."""
    fits = [isinstance(size, str) or size == own for size, own in zip(expected, values.shape, strict=False)]
    if values.ndim != len(expected) or not all(fits):
        raise DataError(f"{what} have shape {values.shape}; expected {expected}")


def _check_shares(name: str, shares: Tensor) -> None:
    """Refuse shares (n, K, ...) outside of 0 ... 1, and those that are all known and do not add up to 1."""
    outside = (shares < -1e-3) | (shares > 1 + 1e-3)
    wrong = ((shares.sum(dim=1) - 1).abs() > SHARES_TOLERANCE) | outside.any(dim=1)
    if bool(wrong.any()):
        first = [round(share, 4) for share in shares.movedim(1, -1)[wrong][0].tolist()]
        raise DataError(
            f"{int(wrong.sum())} targets of {name!r}, such as {first}, are not shares of 0 ... 1 that add up to 1; "
            "divide by their sum, unknown ones are NaN"
        )


def _classes(task: Task, targets: _Array, count: int) -> Tensor:
    """(n,) class indices, or (n, height, width) or shares (n, dim, rows, cols) for segmentation."""
    what = f"targets of {task.name!r}"
    if task.is_map and targets.dtype.kind == "f":
        _check_shape(what, targets, count, task.dim, "rows", "cols")
        shares = torch.as_tensor(targets).float()
        _check_shares(task.name, shares)
        return shares
    if targets.dtype.kind not in "iu":
        raise DataError(f"{what} are {targets.dtype}; expected integer class indices, -1 = missing")
    _check_shape(what, targets, count, *(("height", "width") if task.is_map else ()))
    classes = targets if task.ignore_index is None else targets[targets != task.ignore_index]
    if classes.size and (classes.min() < -1 or classes.max() >= task.dim):
        raise DataError(
            f"{what} reach from {classes.min()} to {classes.max()}; expected classes 0 ... {task.dim - 1}, -1 = missing"
        )
    return torch.as_tensor(targets).long()
