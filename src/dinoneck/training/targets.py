"""Targets in original units -> tensors in normalised units, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.cells import LARGEST
from dinoneck.errors import DataError, counted
from dinoneck.losses.composition import CompositionLoss
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task

ROUNDING, SHARES_TOLERANCE = 1e-6, 1e-2
EXACT = 2**53  # above it float64 leaves out integers
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
    cells = _cell_weights(loss.tasks, targets, weights)
    values: dict[str, Tensor] = {}
    for task in loss.tasks:
        if task.name not in targets:
            raise DataError(f"there are no targets for task {task.name!r}; given: {', '.join(targets) or 'none'}")
        original = as_array(targets[task.name])
        if task.name in cells:
            original = np.where(cells[task.name][:, None] > 0, original, np.nan)
        values[task.name] = _model_targets(task, original, ids)
        _check_reachable(task, values[task.name][:trained])
        if not task.is_categorical:
            original = original.astype(np.float64)
            check_minimum(task.name, original, task.minimum, ids)
            check_varies(task.name, original[:trained], "training image")
    if needs_validation and not any(len(_known_values(task, values[task.name][trained:])) for task in loss.tasks):
        raise DataError("patience is set, and no validation id has a target value to judge epochs by")
    for own in loss.compositions:
        if own.name in targets:
            total, _ = own.composition.tasks_of(loss.tasks)
            values[own.name] = _composed(own, targets[own.name], ids, total)
    return values, {name: torch.as_tensor(weight).float() for name, weight in cells.items()}


def as_numbers(what: str, values: Any, ids: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return an array of numbers (n, ...) as float64; NaN = missing.

    Args:
        what: begins the message, such as ``"targets of 'mass'"``.
        values: the array.
        ids: what messages call the n rows.

    Raises:
        DataError: for dates, durations and other things that are not numbers, for values beyond float32, and for
            integers that float64 cannot hold, naming the first row.
    """
    array = np.asarray(values)
    if array.dtype.kind in "mM":
        raise DataError(f"{what} are {array.dtype}; expected numbers: count days or seconds since a date of your own")
    try:
        if array.dtype.kind == "c":
            raise ValueError(f"dtype {array.dtype}")
        found: np.ndarray[Any, np.dtype[np.float64]] = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not numbers ({error}); missing ones are NaN") from error
    far = np.abs(found) > LARGEST
    if array.dtype.kind in "iu" and (np.abs(found) >= EXACT).any():
        far |= np.vectorize(lambda number: int(number) != int(float(number)), otypes=[bool])(array)
    if far.any():
        place = tuple(np.argwhere(far)[0])
        row = f" of {ids[place[0]]!r}" if place else ""
        raise DataError(
            f"{what}: the value{row} is {array[place]}; expected finite numbers within +-3.4e38, and integers that "
            "float64 holds exactly. Missing values are NaN"
        )
    return found


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
    """Return a mask of the targets that are not missing; of maps (B, K, rows, cols) by cell."""
    present = values.isfinite() if values.is_floating_point() else values >= 0
    return present.all(dim=1) if values.ndim == 4 else present


def _known_values(task: Task, values: Tensor) -> Tensor:
    """The values that are not missing and not ignored."""
    present = (values.movedim(1, -1) if values.ndim == 4 else values)[known(values)]
    return present if task.ignore_index is None or values.is_floating_point() else present[present != task.ignore_index]


def _check_reachable(task: Task, values: Tensor) -> None:
    """Refuse training targets that are all missing, or that the task's activation cannot reach."""
    present = _known_values(task, values)
    if not present.numel():
        raise DataError(f"task {task.name!r} has no target value among the {len(values)} training ids")
    if task.is_categorical or task.activation is None:
        return
    low, high = present.min().item(), present.max().item()
    if low < 0 or (task.activation == "sigmoid" and high > 1):
        raise DataError(
            f"task {task.name!r}: activation {task.activation!r} cannot reach targets of {low:.4g} ... {high:.4g} in "
            "normalised units; leave the activation out (minimum= keeps predictions from falling below a bound), or "
            "use a transform without mean"
        )


def _cell_weights(tasks: Sequence[Task], targets: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, _Array]:
    """How much every cell of the dense tasks counts: (n, rows, cols); nothing where a value is missing."""
    dense = {task.name for task in tasks if task.kind == "dense"}
    if unknown := set(weights) - dense:
        raise DataError(f"weights are given for {sorted(unknown)}; the dense tasks are {sorted(dense) or 'none'}")
    cells = {}
    for name in dense & set(targets):
        values = as_array(targets[name])
        if values.ndim != 4:
            continue  # refused with its own message where targets are read
        present = ~np.isnan(values.astype(np.float64)).any(axis=1)
        weight = as_array(weights[name]) if name in weights else np.ones(present.shape)
        _check_shape(f"weights of {name!r}", weight, *present.shape)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise DataError(f"weights of {name!r} hold negative or infinite numbers or NaN; expected 0 or more")
        cells[name] = np.where(present, weight.astype(np.float64), 0.0)
    return cells


def _composed(composition: CompositionLoss, targets: Any, ids: Sequence[str], total: Task) -> Tensor:
    """The targets (n, outputs) of a composed term in the units of its loss, per area; NaN = missing."""
    what = f"targets of {composition.name!r}"
    values = as_numbers(what, as_array(targets), ids)
    _check_shape(what, values, len(ids), len(composition.composition.names))
    area = 1.0 if total.transform is None else total.transform.area or 1.0
    return torch.as_tensor(values / area).float()


def _model_targets(task: Task, targets: _Array, ids: Sequence[str]) -> Tensor:
    """A task's targets in normalised units: (n, dim) or (n, dim, rows, cols) float32, or class indices."""
    what = f"targets of {task.name!r}"
    if task.is_categorical:
        return _class_targets(task, targets, len(ids))
    values = as_numbers(what, targets, ids)
    values = values[:, None] if values.ndim == 1 and not task.is_map else values
    _check_shape(what, values, len(ids), task.dim, *(("rows", "cols") if task.is_map else ()))
    natural = torch.as_tensor(values)
    if task.kind == "ratio":
        _check_shares(f"targets of the ratio {task.name!r}", natural)
    elif task.transform is not None:
        natural = task.transform.forward(natural.movedim(1, -1)).movedim(-1, 1)
    if natural.float().isinf().any():
        raise DataError(
            f"{what} reach {natural.nan_to_num().abs().max().item():.3g} in normalised units, beyond float32; give "
            "the task a transform, or another unit"
        )
    return natural.float()


def _check_shape(what: str, values: _Array, *expected: int | str) -> None:
    """Refuse another shape; an axis of any length is given by its name."""
    fits = [isinstance(size, str) or size == own for size, own in zip(expected, values.shape, strict=False)]
    if values.ndim != len(expected) or not all(fits):
        form = f"({', '.join(map(str, expected))}{',' if len(expected) == 1 else ''})"
        raise DataError(f"{what} have shape {values.shape}; expected {form}")


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


def _class_targets(task: Task, targets: _Array, count: int) -> Tensor:
    """(n,) class indices, or (n, height, width) or shares (n, dim, rows, cols) for segmentation."""
    what = f"targets of {task.name!r}"
    if task.is_map and targets.dtype.kind == "f":
        _check_shape(f"class shares of {task.name!r}", targets, count, task.dim, "rows", "cols")
        shares = torch.as_tensor(targets).float()
        _check_shares(f"class shares of {task.name!r}", shares)
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
