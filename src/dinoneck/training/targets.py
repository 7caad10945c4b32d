"""The targets of a run: matched with the images of a token source by id, and brought into normalised units."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.arrays import as_array, check_words
from dinoneck.errors import DataError
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import OBJECTS, Task
from dinoneck.text import counted, some_of
from dinoneck.training.ids import IdMatcher

# of a minimum: float32 holds 7 digits, and values may have passed through it
ROUNDING = 1e-6
# of a sum of shares: three of them, rounded to two digits each, may add up to 0.99
SHARES_TOLERANCE = 1e-2
# of one share: what a resampled mask or a division in float16 may be off by
SHARE_ROUNDING = 1e-3
WEIGHT = ".weight"  # follows a task's name in the name of what its cells count
_Array = np.ndarray[Any, Any]
Tensors = dict[str, Tensor]


def match_samples(
    source_ids: Sequence[str],
    targets: Any,
    weights: Any,
    names: Collection[str],
    ids: Iterable[str] | None = None,
    val_ids: Iterable[str] | None = None,
    target_ids: Sequence[Any] | None = None,
) -> tuple[list[str], list[str], dict[str, _Array], dict[str, _Array]]:
    """Return training ids and validation ids as the source spells them, and targets and weights of both in this order.

    Args:
        source_ids: all ids of the token source.
        targets: a DataFrame whose index holds the ids, or a mapping column -> ``{id: value}``, a
            Series, or values that ``target_ids`` gives the ids of.
        weights: as ``targets``; None = none.
        names: the columns that are used; of a mapping the values are their classes in order.
        ids: training ids; None = all ids of the columns in ascending order, without ``val_ids``.
        val_ids: validation ids; None = none.
        target_ids: the ids of values that carry none.

    Raises:
        DataError: for ids without a row or without tokens, for several rows of one id, and for
            values without ids.
    """
    source = IdMatcher(source_ids)
    columns = source.columns(targets, target_ids, names)
    cells = {} if weights is None else source.columns(weights, target_ids, weights)
    # the order of a set differs between processes
    if isinstance(ids, set | frozenset):
        ids = sorted(ids)
    if isinstance(val_ids, set | frozenset):
        val_ids = sorted(val_ids)
    valid = [] if val_ids is None else source.all_of(val_ids)
    if ids is None:
        ids_with_values = {image_id for column in columns.values() for image_id in column}
        train = sorted({*source.all_of(ids_with_values)} - {*valid})
    else:
        train = source.all_of(ids)
    both = {*train} & {*valid}
    if both:
        raise DataError(
            f"{counted(len(both), 'id')} for training and for validation: "
            f"{some_of(map(repr, both), 3)}"
        )
    if not train and ids is not None:
        raise DataError("there are no training ids: ids= is empty; name some, or leave it out")
    if not train and valid:
        raise DataError(
            "there are no training ids: all ids of the targets are validation ids; leave some out "
            "of val_ids="
        )
    if not train:
        raise DataError("there are no training ids: the targets have no values; pass some")
    used = [*train, *valid]
    values = {name: _rows(name, column, used) for name, column in columns.items()}
    cell_weights = {name: _rows(name, column, used) for name, column in cells.items()}
    return train, valid, values, cell_weights


def _rows(name: str, column: Mapping[Any, Any], ids: Sequence[str]) -> _Array:
    """The values of these ids, (n, ...)."""
    if missing := [repr(image_id) for image_id in ids if image_id not in column]:
        raise DataError(
            f"{counted(len(missing), 'id')} without a row in {name!r}: {some_of(missing, 3)}. The "
            f"ids there are such as {some_of(map(repr, column), 3) or 'none'}; missing values are "
            "NaN, of classes -1"
        )
    what = f"the values of {name!r}"
    if any(isinstance(column[image_id], str) or _is_none(column[image_id]) for image_id in ids):
        cells: _Array = np.empty(len(ids), dtype=object)  # NumPy would make text of all of them
        for row, image_id in enumerate(ids):
            cells[row] = column[image_id]
        return cells
    try:
        return np.array([as_array(column[image_id], what) for image_id in ids])
    except ValueError as error:
        raise DataError(f"the values of {name!r} are no array: {error}") from error


def training_targets(
    loss: TaskLoss,
    targets: Mapping[str, Any],
    weights: Mapping[str, Any],
    ids: Sequence[str],
    train_count: int,
    needs_validation: bool = False,
) -> Tensors:
    """Return the targets of a loss's tasks in normalised units.

    Values where a cell's weight is 0 become NaN, whatever they were.

    Args:
        loss: its tasks are those of the targets.
        targets: name -> (n, ...) values in original units.
        weights: dense task -> (n, rows, cols).
        ids: of the n samples.
        train_count: the first so many samples are trained on.
        needs_validation: some validation sample must have a value.

    Returns:
        Targets in float32 or int64, and the weights of cells as ``NAME.weight``.

    Raises:
        DataError: if something is missing, has another shape or values that cannot be, is below the
            task's minimum, or is constant over the training samples.
    """
    dense = [task.name for task in loss.tasks if task.kind == "dense"]
    for name in weights:
        if name not in dense:
            raise DataError(
                f"weights are given for {name!r}, which is no dense task; there are "
                f"{', '.join(dense) or 'none'}"
            )
    values = Tensors()
    for task in loss.tasks:
        x = _original(task, targets[task.name])
        _check_shape(task, x)
        if task.name in weights:
            values[task.name + WEIGHT] = weight = _cell_weights(task.name, x, weights[task.name])
            x = x.where(weight[:, None] > 0, torch.nan)
        values[task.name] = _normalised(task, x, ids)
        _check_learnable(task, x[:train_count], values[task.name][:train_count])
    if needs_validation:
        _check_validation(loss, values, train_count)
    return values


def _check_validation(loss: TaskLoss, values: Tensors, train_count: int) -> None:
    """Check that validation samples have values, as a run that waits for a better loss needs them."""
    held_out = {task.name: values[task.name][train_count:] for task in loss.tasks}
    if not any(len(x) for x in held_out.values()):
        raise DataError(
            "patience is set, and there are no validation ids whose loss it could wait for; name "
            "some (val_ids=, several folds), or leave patience out"
        )
    if not any(known(task, held_out[task.name]).any() for task in loss.tasks):
        raise DataError(
            "patience is set, and no validation id has a target value to judge epochs by; fill in "
            "some, or leave patience out"
        )


def known(task: Task, values: Tensor) -> Tensor:
    """Return a mask of the targets that are neither missing nor ignored; of maps (B, K, rows, cols) by cell."""
    present = (
        values.isfinite()
        if values.is_floating_point()
        else (values >= 0) & (values != task.ignore_index)
    )
    return present.all(dim=1) if values.ndim == 4 else present


def _original(task: Task, values: Any) -> Tensor:
    """A task's values: class indices and ids of objects in int64; numbers and shares in float64, NaN = missing."""
    array = as_array(values, f"the values of {task.name!r}")
    is_share = task.is_map and array.dtype.kind == "f"
    if task.is_categorical and not is_share:
        return torch.from_numpy(_class_indices(task, array))
    numbers = array.astype(np.float64) if array.dtype.kind in "biuf" else _numbers(task, array)
    return torch.from_numpy(numbers[:, None] if numbers.ndim == 1 else numbers)


def _class_indices(task: Task, array: _Array) -> _Array:
    """Class indices in int64; words are those of the task's labels, and cells that hold nothing -1."""
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    indices: _Array = np.full(array.shape, -1, dtype=np.int64)
    for place in np.ndindex(array.shape):
        value = array[place]
        if not _is_missing(value):
            indices[place] = _class_index(task, value)
    return indices


def _class_index(task: Task, value: Any) -> int:
    """The index of a class that is given as a word, or as its index."""
    if isinstance(value, bool | np.bool_) and task.labels and not task.is_map:
        return _label_of_bool(task, value)
    if isinstance(value, str) and task.labels:
        check_words([value], task.name, task.labels)
        return task.labels.index(value)
    if not isinstance(value, int | np.integer | np.bool_):
        expected = "class indices or its labels" if task.labels else "class indices"
        raise DataError(
            f"the targets of {task.name!r} hold {_shown(value)}; expected {expected}, -1 = missing"
        )
    return int(value)


def _label_of_bool(task: Task, value: bool | np.bool_) -> int:
    """The index of the label that says true or false; of other labels the order says nothing of their sense."""
    words = [label.lower() for label in task.labels]
    if {*words} != {"true", "false"}:
        raise DataError(
            f"the targets of {task.name!r} hold {value}, and its labels are "
            f"{', '.join(task.labels)}; expected one of these words, or its index: which of them "
            "True is, is not stated"
        )
    return words.index(str(value).lower())


def _numbers(task: Task, array: _Array) -> _Array:
    """The numbers of an array of objects in float64; cells that hold nothing are NaN."""
    numbers: _Array = np.full(array.shape, np.nan)
    for place in np.ndindex(array.shape):
        value = array[place]
        if _is_missing(value):
            continue
        try:
            if isinstance(value, np.complexfloating):
                raise TypeError("NumPy would drop the imaginary part")
            numbers[place] = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"the targets of {task.name!r} hold {_shown(value)}; expected numbers, NaN = missing"
            ) from None
    return numbers


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, pandas.NA or NaN."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return is_nan or _is_none(value)


def _is_none(value: Any) -> bool:
    """Whether this is None or pandas.NA, which NumPy has no number for."""
    return value is None or type(value).__name__ == "NAType"


def _shown(value: Any) -> str:
    """A value and its type, for messages."""
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


def _cell_weights(name: str, values: Tensor, weights: Any) -> Tensor:
    """How much every cell of a dense task counts: (n, rows, cols)."""
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


def _normalised(task: Task, x: Tensor, ids: Sequence[str]) -> Tensor:
    """Targets as the loss compares them: int64, or float32 in normalised units."""
    if task.is_masks:
        _check_objects(task, x, ids)
        return x
    if not x.is_floating_point():
        _check_classes(task, x, ids)
        return x
    if task.kind in ("ratio", "segmentation"):
        _check_shares(task, x, ids)
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
        row, value = _first_place(is_too_large, x)
        raise DataError(
            f"the targets of {task.name!r} reach {value:g} for {ids[row]!r}, beyond float32 in "
            "normalised units; give the task a transform that is fitted on them, or another unit"
        )
    return normalised


def _first_place(is_wrong: Tensor, values: Tensor) -> tuple[int, float]:
    """The row of the first value that is wrong, and this value."""
    index = tuple(is_wrong.nonzero()[0].tolist())
    return index[0], values[index].item()


def _rows_where(is_wrong: Tensor) -> list[int]:
    """The rows in which a value is wrong."""
    rows: list[int] = is_wrong.reshape(len(is_wrong), -1).any(dim=1).nonzero().flatten().tolist()
    return rows


def _check_objects(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check the ids of objects."""
    fits = (x == 0) | (x == -1) | ((x >= OBJECTS) & (x < OBJECTS * (task.dim + 1)))
    if not bool(fits.all()):
        row, value = _first_place(~fits, x)
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
        row, value = _first_place(~fits, x)
        raise DataError(
            f"{task.name!r} is {value} for {ids[row]!r}; expected a class of 0 ... {task.dim - 1}, "
            "-1 = missing"
        )


def _check_shares(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check shares of one whole, which are the second axis."""
    is_outside = (x < -SHARE_ROUNDING) | (x > 1 + SHARE_ROUNDING)
    if rows := _rows_where(is_outside):
        row, value = _first_place(is_outside, x)
        raise DataError(
            f"{counted(len(rows), 'image')} with targets of {task.name!r} outside 0 ... 1, the first "
            f"is {ids[row]!r} with {value:g}; expected shares: divide per cent by 100, unknown ones "
            "are NaN"
        )
    sums = x.sum(dim=1)
    is_other_sum = (sums - 1).abs() > SHARES_TOLERANCE
    if rows := _rows_where(is_other_sum):
        row, value = _first_place(is_other_sum, sums)
        raise DataError(
            f"{counted(len(rows), 'image')} with targets of {task.name!r} that do not add up to 1, "
            f"the first is {ids[row]!r} with {value:.4g}; divide them by their sum, unknown ones "
            "are NaN"
        )


def _check_numbers(task: Task, x: Tensor, ids: Sequence[str]) -> None:
    """Check that numbers are finite or missing, and not below the task's minimum."""
    if rows := _rows_where(x.isinf()):
        raise DataError(
            f"{counted(len(rows), 'image')} with infinite targets of {task.name!r}: "
            f"{some_of([repr(ids[row]) for row in rows], 3)}; missing ones are NaN"
        )
    if task.minimum is None:
        return
    is_below = x < task.minimum - ROUNDING * max(1.0, abs(task.minimum))
    if rows := _rows_where(is_below):
        shown = [f"{ids[row]!r} with {x[row][is_below[row]].min():g}" for row in rows]
        raise DataError(
            f"{counted(len(rows), 'image')} with targets of {task.name!r} below the minimum "
            f"{task.minimum:g}: {some_of(shown, 3)}. Predictions never go below it: correct these "
            "values, or give another minimum (--minimum)"
        )


def _check_learnable(task: Task, original: Tensor, normalised: Tensor) -> None:
    """Check training targets: some are known, they differ, and the task's activation can reach them."""
    if not bool(known(task, normalised).any()):
        raise DataError(
            f"task {task.name!r} has no target value among the {len(normalised)} training ids"
        )
    if task.is_categorical:
        return
    low, high = _ranges(normalised)
    if bool((low == high).all()):
        values = ", ".join(f"{value:g}" for value in _ranges(original)[0][:3].tolist())
        raise DataError(
            f"the targets of {task.name!r} are {values} for every training image; there is nothing "
            f"to learn: leave {task.name!r} out, or train on images in which it varies"
        )
    reached = (
        f"task {task.name!r}: activation {task.activation!r} cannot reach targets of "
        f"{low.min():.4g} ... {high.max():.4g} in normalised units"
    )
    if task.activation is not None and low.min() < 0:
        raise DataError(
            f"{reached}, as it gives none below 0; leave the activation out (minimum= keeps "
            "predictions from falling below a bound), or use a transform without mean"
        )
    if task.activation == "sigmoid" and high.max() > 1:
        raise DataError(
            f"{reached}, as it gives none above 1; leave the activation out, or use a transform "
            "whose std is the largest target"
        )


def _ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest known value of each output, (dim,) each."""
    columns = values.movedim(1, -1).flatten(0, -2)  # (m, dim)
    low = columns.nan_to_num(torch.inf).amin(dim=0)
    high = columns.nan_to_num(-torch.inf).amax(dim=0)
    return low, high
