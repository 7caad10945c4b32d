"""The targets of a run: checked, and brought into the normalised units that the loss compares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.arrays import as_array, check_words
from dinoneck.errors import DataError
from dinoneck.kinds import OBJECTS
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task, has_direction
from dinoneck.text import counted, some_of
from dinoneck.training.samples import MatchedSamples, Samples, Targets, Tensors, is_none

# of a minimum or maximum: float32 holds 7 digits, and values may have passed through it
ROUNDING = 1e-6
# of a sum of shares: three of them, rounded to two digits each, may add up to 0.99
SHARES_TOLERANCE = 1e-2
# of one share: what a resampled mask or a division in float16 may be off by
SHARE_ROUNDING = 1e-3
_Array = np.ndarray[Any, Any]


def normalise_samples(
    loss: TaskLoss, matched: MatchedSamples, *, needs_validation: bool
) -> Samples:
    """Return samples with targets in normalised units, see :func:`training_targets`."""
    train_count = len(matched.train_ids)
    targets = training_targets(
        loss,
        matched.values,
        matched.cell_weights,
        matched.ids,
        train_count,
        needs_validation=needs_validation,
    )
    return Samples(matched.ids, train_count, targets)


def training_targets(
    loss: TaskLoss,
    targets: Mapping[str, Any],
    weights: Mapping[str, Any],
    ids: Sequence[str],
    train_count: int,
    needs_validation: bool = False,
) -> Targets:
    """Return the targets of a loss's tasks in normalised units, in float32 or int64.

    Values where a cell's weight is 0 become NaN, whatever they were.

    Args:
        loss: its tasks are those of the targets.
        targets: name -> (n, ...) values in original units.
        weights: dense task -> (n, rows, cols).
        ids: of the n samples.
        train_count: the first so many samples are trained on.
        needs_validation: some validation sample must have a value.

    Raises:
        DataError: if something is missing, has another shape or values that cannot be, is below the
            task's minimum or above its maximum, or is constant over the training samples.
    """
    dense = [task.name for task in loss.tasks if task.kind == "dense"]
    for name in weights:
        if name not in dense:
            raise DataError(
                f"weights are given for {name!r}, which is no dense task; there are "
                f"{', '.join(dense) or 'none'}"
            )
    values: Tensors = {}
    cell_weights: Tensors = {}
    for task in loss.tasks:
        original = read_values(task, targets[task.name])
        _check_shape(task, original)
        if task.name in weights:
            weight = _read_cell_weights(task.name, original, weights[task.name])
            original = original.where(weight[:, None] > 0, torch.nan)
            cell_weights[task.name] = weight
        normalised = _normalise(task, original, ids)
        _check_learnable(task, original[:train_count], normalised[:train_count])
        values[task.name] = normalised
    if needs_validation:
        _check_validation(loss, values, train_count)
    return Targets(values, cell_weights)


def _check_validation(loss: TaskLoss, values: Tensors, train_count: int) -> None:
    """Check that validation samples have values, as a run that waits for a better loss needs them."""
    held_out = {task.name: values[task.name][train_count:] for task in loss.tasks}
    if not any(len(x) for x in held_out.values()):
        raise DataError(
            "patience is set, and there are no validation ids whose loss it could wait for; name "
            "some (val_ids=, several folds), or leave patience out"
        )
    if not any(known_mask(task, held_out[task.name]).any() for task in loss.tasks):
        raise DataError(
            "patience is set, and no validation id has a target value to judge epochs by; fill in "
            "some, or leave patience out"
        )


def known_mask(task: Task, values: Tensor) -> Tensor:
    """Return where targets are neither missing nor ignored: as ``values``; of maps (B, K, rows, cols) by cell."""
    if values.is_floating_point():
        is_known = values.isfinite()
    else:
        is_known = (values >= 0) & (values != task.ignore_index)
    if values.ndim == 4:
        is_known = is_known.all(dim=1)
    if task.is_unit:
        is_known &= has_direction(values)[:, 0]
    return is_known


def read_values(task: Task, values: Any) -> Tensor:
    """Return a task's values: indices and ids of objects in int64; numbers and shares in float64, NaN = missing."""
    array = as_array(values, f"the values of {task.name!r}")
    is_share = task.is_map and array.dtype.kind == "f"
    if task.is_categorical and not is_share:
        return torch.from_numpy(_read_class_indices(task, array))
    if array.dtype.kind in "biuf":
        numbers = array.astype(np.float64)
    else:
        numbers = _read_numbers(task, array)
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    return torch.from_numpy(numbers)


def _read_class_indices(task: Task, array: _Array) -> _Array:
    """Return class indices in int64; words are those of the task's labels, and cells that hold nothing -1."""
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    indices: _Array = np.full(array.shape, -1, dtype=np.int64)
    for index in np.ndindex(array.shape):
        value = array[index]
        if not _is_missing(value):
            indices[index] = _class_index(task, value)
    return indices


def _class_index(task: Task, value: Any) -> int:
    """Return the index of a class that is given as a word, or as its index."""
    if isinstance(value, bool | np.bool_) and task.labels and not task.is_map:
        return _label_of_bool(task, value)
    if isinstance(value, str) and task.labels:
        check_words([value], task.name, task.labels)
        return task.labels.index(value)
    if not isinstance(value, int | np.integer | np.bool_):
        expected = "class indices or its labels" if task.labels else "class indices"
        raise DataError(
            f"the targets of {task.name!r} hold {_describe(value)}; expected {expected}, -1 = missing"
        )
    return int(value)


def _label_of_bool(task: Task, value: bool | np.bool_) -> int:
    """Return the index of the label that says true or false; the order of other labels says nothing of their sense."""
    words = [label.lower() for label in task.labels]
    if {*words} != {"true", "false"}:
        raise DataError(
            f"the targets of {task.name!r} hold {value}, and its labels are "
            f"{', '.join(task.labels)}; expected one of these words, or its index: which of them "
            "True is, is not stated"
        )
    return words.index(str(value).lower())


def _read_numbers(task: Task, array: _Array) -> _Array:
    """Return the numbers of an array of objects in float64; cells that hold nothing are NaN."""
    numbers: _Array = np.full(array.shape, np.nan)
    for index in np.ndindex(array.shape):
        value = array[index]
        if _is_missing(value):
            continue
        try:
            if isinstance(value, np.complexfloating):
                raise TypeError("NumPy would drop the imaginary part")
            numbers[index] = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"the targets of {task.name!r} hold {_describe(value)}; expected numbers, NaN = missing"
            ) from None
    return numbers


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, pandas.NA or NaN."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return is_nan or is_none(value)


def _describe(value: Any) -> str:
    """Return a value and its type as text, for messages."""
    return f"{value!r:.60} ({type(value).__name__})"


def _check_shape(task: Task, values: Tensor) -> None:
    """Check the shape of a task's values, (n, ...), by its kind."""
    shape = tuple(values.shape[1:])
    if task.is_masks or (task.is_map and not values.is_floating_point()):
        fits = len(shape) == 2
        expected = "(height, width)"
    elif task.is_map:
        fits = len(shape) == 3 and shape[0] == task.dim
        expected = f"({task.dim}, rows, cols)"
    elif task.is_categorical:
        fits = shape == ()
        expected = "(), one class index"
    else:
        fits = shape == (task.dim,)
        expected = "() or (1,)" if task.dim == 1 else f"({task.dim},)"
    if not fits:
        raise DataError(
            f"the targets of {task.name!r} have the shape {shape} per image; expected {expected}"
        )


def _read_cell_weights(name: str, values: Tensor, weights: Any) -> Tensor:
    """Return how much every cell of a dense task counts: (n, rows, cols) in float32."""
    weight = torch.from_numpy(as_array(weights).astype(np.float32))
    if weight.shape[1:] != values.shape[2:]:
        raise DataError(
            f"the weights of {name!r} have the shape {tuple(weight.shape[1:])} per image; expected "
            f"{tuple(values.shape[2:])}, one for each cell of the targets"
        )
    is_wrong = ~weight.isfinite() | (weight < 0)
    if bool(is_wrong.any()):
        raise DataError(
            f"the weights of {name!r} hold {weight[is_wrong][0]:g}; expected finite numbers of 0 "
            "or more"
        )
    return weight


def _normalise(task: Task, x: Tensor, ids: Sequence[str]) -> Tensor:
    """Return targets as the loss compares them: int64, or float32 in normalised units."""
    if task.is_masks:
        _check_objects(task, x, ids)
        return x
    if not x.is_floating_point():
        _check_classes(task, x, ids)
        return x
    if task.kind in ("ratio", "segmentation"):
        _check_shares(task, x, ids)
        return x.float()
    if task.is_multilabel:
        _check_labels(task, x, ids)
        return x.float()
    _check_numbers(task, x, ids)
    normalised = x.float()
    if task.transform is not None:
        try:
            normalised = task.transform.forward(x.movedim(1, -1)).movedim(-1, 1).float()
        except DataError as error:
            raise DataError(f"task {task.name!r}: {error}") from None
    is_too_large = x.isfinite() & ~normalised.isfinite()
    if bool(is_too_large.any()):
        row, value = _first_wrong(is_too_large, x)
        raise DataError(
            f"the targets of {task.name!r} reach {value:g} for {ids[row]!r}, beyond float32 in "
            "normalised units; give the task a transform that is fitted on them, or another unit"
        )
    return normalised


def _first_wrong(is_wrong: Tensor, values: Tensor) -> tuple[int, float]:
    """Return the row of the first value that is wrong, and this value."""
    index = tuple(is_wrong.nonzero()[0].tolist())
    return index[0], values[index].item()


def _rows_where(is_wrong: Tensor) -> list[int]:
    """Return the rows in which a value is wrong."""
    rows: list[int] = is_wrong.reshape(len(is_wrong), -1).any(dim=1).nonzero().flatten().tolist()
    return rows


def _check_objects(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check the ids of objects."""
    fits = (x == 0) | (x == -1) | ((x >= OBJECTS) & (x < OBJECTS * (task.dim + 1)))
    if not bool(fits.all()):
        row, value = _first_wrong(~fits, x)
        raise DataError(
            f"{task.name!r} is {value} for {ids[row]!r}; expected {OBJECTS} * (class + 1) + number "
            f"for the pixels of an object, with a class of 0 ... {task.dim - 1}, 0 for none, -1 for "
            "unknown"
        )


def _check_classes(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check class indices."""
    ignored = -1 if task.ignore_index is None else task.ignore_index
    fits = ((x >= -1) & (x < task.dim)) | (x == ignored)
    if not bool(fits.all()):
        row, value = _first_wrong(~fits, x)
        raise DataError(
            f"{task.name!r} is {value} for {ids[row]!r}; expected a class of 0 ... {task.dim - 1}, "
            "-1 = missing"
        )


def _check_shares(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check shares of one whole, which are the second axis."""
    is_outside = (x < -SHARE_ROUNDING) | (x > 1 + SHARE_ROUNDING)
    rows = _rows_where(is_outside)
    if rows:
        row, value = _first_wrong(is_outside, x)
        raise DataError(
            f"{counted(len(rows), 'image')} with targets of {task.name!r} outside 0 ... 1, the first "
            f"is {ids[row]!r} with {value:g}; expected shares: divide per cent by 100, unknown ones "
            "are NaN"
        )
    sums = x.sum(dim=1)
    is_other_sum = (sums - 1).abs() > SHARES_TOLERANCE
    rows = _rows_where(is_other_sum)
    if rows:
        row, value = _first_wrong(is_other_sum, sums)
        raise DataError(
            f"{counted(len(rows), 'image')} with targets of {task.name!r} that do not add up to 1, "
            f"the first is {ids[row]!r} with {value:.4g}; divide them by their sum, unknown ones "
            "are NaN"
        )


def _check_labels(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check that labels are 0, 1 or missing."""
    is_wrong = ~(x.isnan() | (x == 0) | (x == 1))
    if bool(is_wrong.any()):
        row, column = is_wrong.nonzero()[0].tolist()
        raise DataError(
            f"{task.name!r} is {x[row, column]:g} for {ids[row]!r} and the label "
            f"{task.labels[column]!r}; expected 1 where an image has the label, 0 where it has not, "
            "NaN where that is unknown"
        )


def _check_numbers(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check that numbers are finite or missing, and within the task's minimum and maximum."""
    rows = _rows_where(x.isinf())
    if rows:
        raise DataError(
            f"{counted(len(rows), 'image')} with infinite targets of {task.name!r}: "
            f"{some_of([repr(ids[row]) for row in rows], 3)}; missing ones are NaN"
        )
    if task.minimum is not None:
        _check_minimum(task.name, task.minimum, x, ids)
    if task.maximum is not None:
        _check_maximum(task.name, task.maximum, x, ids)


def _check_minimum(name: str, minimum: float, x: Tensor, ids: Sequence[str]) -> None:
    """Check that no number of a task is below its minimum."""
    is_below = x < minimum - _rounding_at(minimum)
    rows = _rows_where(is_below)
    if not rows:
        return
    shown = [f"{ids[row]!r} with {x[row][is_below[row]].min():g}" for row in rows]
    raise DataError(
        f"{counted(len(rows), 'image')} with targets of {name!r} below the minimum "
        f"{minimum:g}: {some_of(shown, 3)}. Predictions never go below it: correct these "
        "values, or give another minimum (--minimum)"
    )


def _check_maximum(name: str, maximum: float, x: Tensor, ids: Sequence[str]) -> None:
    """Check that no number of a task is above its maximum."""
    is_above = x > maximum + _rounding_at(maximum)
    rows = _rows_where(is_above)
    if not rows:
        return
    shown = [f"{ids[row]!r} with {x[row][is_above[row]].max():g}" for row in rows]
    raise DataError(
        f"{counted(len(rows), 'image')} with targets of {name!r} above the maximum "
        f"{maximum:g}: {some_of(shown, 3)}. Predictions never go above it: correct these "
        "values, or give another maximum (--maximum)"
    )


def _rounding_at(bound: float) -> float:
    """How far a number may be beyond a minimum or maximum by rounding."""
    return ROUNDING * max(1.0, abs(bound))


def _check_learnable(task: Task, original: Tensor, normalised: Tensor) -> None:
    """Check training targets: some are known, they differ, and the task's activation can reach them."""
    if not bool(known_mask(task, normalised).any()):
        raise DataError(
            f"task {task.name!r} has no target value among the {len(normalised)} training ids"
        )
    if task.is_categorical:
        return
    _check_differ(task.name, original, normalised)
    if task.activation is not None and not task.is_unit:
        _check_reachable(task, normalised)


def _check_differ(name: str, original: Tensor, normalised: Tensor) -> None:
    """Check that the targets of some output of a task differ."""
    low, high = _ranges(normalised)
    if not bool((low == high).all()):
        return
    lowest, _ = _ranges(original)
    values = ", ".join(f"{value:g}" for value in lowest[:3].tolist())
    raise DataError(
        f"the targets of {name!r} are {values} for every training image; there is nothing "
        f"to learn: leave {name!r} out, or train on images in which it varies"
    )


def _check_reachable(task: Task, normalised: Tensor) -> None:
    """Check that the task's activation can give the targets."""
    low, high = _ranges(normalised)
    beginning = (
        f"task {task.name!r}: activation {task.activation!r} cannot reach targets of "
        f"{low.min():.4g} ... {high.max():.4g} in normalised units"
    )
    if low.min() < 0:
        raise DataError(
            f"{beginning}, as it gives none below 0; leave the activation out (minimum= keeps "
            "predictions from falling below a bound), or use a transform without mean"
        )
    if task.activation == "sigmoid" and high.max() > 1:
        raise DataError(
            f"{beginning}, as it gives none above 1; leave the activation out, or use a transform "
            "whose std is the largest target"
        )


def _ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest known value of each output, (dim,) each."""
    columns = values.movedim(1, -1).flatten(0, -2)  # (m, dim)
    low = columns.nan_to_num(torch.inf).amin(dim=0)
    high = columns.nan_to_num(-torch.inf).amax(dim=0)
    return low, high
