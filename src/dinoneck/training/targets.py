"""Targets matched with images by id, in normalised units, and which of them count."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.tables import PhotoTable
from dinoneck.errors import ConfigError, DataError, counted
from dinoneck.losses.composition import CompositionLoss
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.store.photo_ids import SUFFIXES
from dinoneck.tasks import Task

_SHOWN = 3
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Column:
    """One column of targets: a value (a number, an array) per id."""

    name: str
    ids: Sequence[Any]
    values: Any


def match_samples(
    source_ids: Sequence[str],
    targets: Any,
    weights: Any,
    names: Sequence[str],
    ids: Sequence[str] | None = None,
    val_ids: Sequence[str] = (),
    target_ids: Sequence[Any] | None = None,
) -> tuple[list[str], list[str], dict[str, Any], dict[str, Any]]:
    """Return training ids and validation ids as the source spells them, and targets and weights of both in this order.

    Args:
        source_ids: all ids of the token source.
        targets: a table, a DataFrame, or column -> values, see :func:`columns_of`.
        weights: as ``targets``.
        names: the columns that are used, where they exist.
        ids: training ids; None = all ids of the columns in ascending order, without ``val_ids``.
        val_ids: validation ids.
        target_ids: the ids of values that carry none.

    Raises:
        DataError: for ids without a row or without tokens, for several rows of one id, and for values without ids.
    """
    target_ids = None if target_ids is None else list(target_ids)
    columns = columns_of(targets, target_ids, names)
    if not columns:
        given = targets.targets if isinstance(targets, PhotoTable) else getattr(targets, "columns", targets)
        raise DataError(f"there are no targets for task {names[0]!r}; given: {', '.join(map(str, given)) or 'none'}")
    weight_columns = columns_of(weights, target_ids, None, "weights")
    _refuse_unused(target_ids, [*columns.values(), *weight_columns.values()])
    spelling = SourceIds(source_ids)
    valid = spelling.all_of(val_ids, "validation ids")
    if ids is None:
        every = dict.fromkeys(each for column in columns.values() for each in column.ids)
        train = sorted(set(spelling.all_of(every, "ids of the targets")) - set(valid), key=str)
    else:
        train = spelling.all_of(ids, "training ids")
    used, rows = [*train, *valid], _RowsById(spelling)
    values, cells = (
        {name: rows.values(column, used) for name, column in table.items()} for table in (columns, weight_columns)
    )
    return train, valid, values, cells


def match_matrix(
    source_ids: Sequence[str], targets: Any, target_ids: Sequence[Any] | None
) -> tuple[tuple[str, ...], _Array]:
    """Return the ids of the rows of targets, as the source spells them, and their values as (n, t).

    Args:
        source_ids: all ids of the token source.
        targets: as :func:`columns_of` takes them (of a table its targets), or an array (n, t).
        target_ids: the ids of values that carry none.

    Raises:
        DataError: as :func:`match_samples` does, and for columns whose ids differ.
    """
    target_ids = None if target_ids is None else list(target_ids)
    names = list(targets.targets) if isinstance(targets, PhotoTable) else None
    has_columns = isinstance(targets, PhotoTable | Mapping) or _is_frame(targets)
    columns = columns_of(targets if has_columns else {"values": targets}, target_ids, names)
    if not columns:
        raise DataError("the targets have no columns; there is nothing to predict")
    _refuse_unused(target_ids, columns.values())
    spelling, (first, *others) = SourceIds(source_ids), columns.values()
    ids, rows = spelling.all_of(first.ids, "ids of the targets"), _RowsById(spelling)
    for column in others:
        if extra := sorted(set(spelling.all_of(column.ids, "ids of the targets")) - set(ids)):
            raise DataError(
                f"{_count(extra, 'id has', 'ids have')} a row in {column.name} and none in {first.name}: "
                f"{_named(extra)}; give all columns the same ids"
            )
    values = [rows.values(column, ids) for column in columns.values()]
    return tuple(ids), np.column_stack(values) if has_columns else values[0]


def match_rows(source_ids: Sequence[str], row_ids: Sequence[Any], ids: Sequence[str], name: str) -> list[int]:
    """Return the row of each of ``ids`` among ``row_ids``; all are matched as the source spells them.

    Raises:
        DataError: for ids without a row, or with several; it names them and ``name``, what the rows hold.
    """
    return _RowsById(SourceIds(source_ids)).rows(Column(name, row_ids, None), ids)


def match_groups(
    source_ids: Sequence[str], groups: Mapping[Any, Hashable] | None, ids: Sequence[str]
) -> list[Hashable] | None:
    """Return the group of each of ``ids`` of a mapping id -> group.

    Raises:
        DataError: as :func:`match_rows` does, for groups without ids, and for NaN or labels that cannot be hashed.
    """
    if groups is None:
        return None
    if not hasattr(groups, "items"):
        raise DataError(f"groups is {type(groups).__name__}; expected {{id: group}}, dict(zip(ids, groups))")
    every = [label for _, label in groups.items()]
    labels = [every[row] for row in match_rows(source_ids, list(groups.keys()), ids, "groups")]
    for image_id, label in zip(ids, labels, strict=True):
        if not _is_label(label):
            raise DataError(f"the group of {image_id!r} is {label!r}; expected a text or a number, and not NaN")
    return labels


def _is_label(value: Any) -> bool:
    """Whether a group can be found again by its label."""
    try:
        return bool(value == value) and isinstance(hash(value), int)
    except (TypeError, ValueError):
        return False


def columns_of(
    table: Any, target_ids: Sequence[Any] | None = None, names: Sequence[str] | None = None, what: str = "targets"
) -> dict[str, Column]:
    """Return the columns of a table, each with the ids of its rows.

    Args:
        table: a :class:`dinoneck.data.Table`, a pandas DataFrame whose index holds the ids, or a mapping column ->
            ``{id: value}``, a Series, or values that ``target_ids`` gives the ids of.
        target_ids: one id per row of the values that carry none.
        names: only these columns are used; None = all.
        what: what the table holds, for messages.

    Raises:
        DataError: for values without ids, or with another number of them.
    """
    if isinstance(table, PhotoTable):
        every: dict[str, tuple[Any, Any]] = {
            name: (table.ids, values) for name, values in {**table.targets, **table.auxiliary}.items()
        }
    elif _is_frame(table):
        every = {name: (table.index, table[name]) for name in table.columns}
    elif isinstance(table, Mapping):
        every = {name: _ids_and_values(values) for name, values in table.items()}
    else:
        raise DataError(
            f"{what} is {type(table).__name__}; expected a table, a DataFrame whose index holds the ids, or a dict, "
            "column -> {id: value}"
        )
    found = {name: column for name, column in every.items() if names is None or name in names}
    return {name: _column(name, ids, values, target_ids, what) for name, (ids, values) in found.items()}


class SourceIds:
    """The ids of a source. An id with the suffix of an image (``a.jpg``) and the same without (``a``) are one id.

    The exact spelling goes first; where it is missing, the other one must be unambiguous.

    Args:
        ids: all ids of the source.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self._known = set(ids)
        self._with_suffix: dict[Any, list[str]] = {}
        for image_id in ids:
            if (short := _without_suffix(image_id)) != image_id:
                self._with_suffix.setdefault(short, []).append(image_id)

    def find(self, image_id: Any) -> str | None:
        """Return the source's spelling of an id; None if it is not there.

        Raises:
            DataError: if several ids of the source fit.
        """
        if image_id in self._known:
            known: str = image_id
            return known
        if (short := _without_suffix(image_id)) in self._known:
            return str(short)
        fitting = self._with_suffix.get(image_id, [])
        if len(fitting) > 1:
            raise DataError(f"id {image_id!r} may be {_named(fitting)} of the source; write it with its suffix")
        return fitting[0] if fitting else None

    def all_of(self, ids: Iterable[Any], what: str) -> list[str]:
        """Return the source's spelling of ids.

        Raises:
            DataError: naming those that have no tokens.
        """
        pairs = [(image_id, self.find(image_id)) for image_id in ids]
        if missing := [image_id for image_id, found in pairs if found is None]:
            raise DataError(
                f"{len(missing)} {what} have no tokens in the source: {_named(missing)}. The ids of the source are "
                f"such as {_named(self.ids) or 'none'}"
            )
        return [found for _, found in pairs if found is not None]


class _RowsById:
    """Looks values up by the source's ids; columns that share their ids share the work."""

    def __init__(self, spelling: SourceIds) -> None:
        self._spelling = spelling
        self._rows: dict[int, dict[str, list[int]]] = {}

    def rows(self, column: Column, ids: Sequence[str]) -> list[int]:
        """Return the rows of these ids in a column.

        Raises:
            DataError: if an id has no row or several.
        """
        if id(column.ids) not in self._rows:
            self._rows[id(column.ids)] = self._by_id(column.ids)
        rows = self._rows[id(column.ids)]
        if missing := [image_id for image_id in dict.fromkeys(ids) if image_id not in rows]:
            hint = "" if column.values is None else "; missing values are NaN (classes: -1)"
            raise DataError(
                f"{_count(missing, 'id has', 'ids have')} no row in {column.name}: {_named(missing)}. The ids there "
                f"are such as {_named(column.ids) or 'none'}{hint}"
            )
        if repeated := [image_id for image_id in dict.fromkeys(ids) if len(rows[image_id]) > 1]:
            spelt = [column.ids[row] for row in rows[repeated[0]]]
            raise DataError(
                f"{_count(repeated, 'id has', 'ids have')} several rows in {column.name}: {_named(repeated)} (the "
                f"first by {_named(spelt)}); keep one row for each id"
            )
        return [rows[image_id][0] for image_id in ids]

    def values(self, column: Column, ids: Sequence[str]) -> _Array:
        """Return the values of these ids, (n, ...).

        Raises:
            DataError: as :meth:`rows`, and if the values differ in shape.
        """
        chosen = self.rows(column, ids)
        if not isinstance(column.values, list):
            values: _Array = column.values[np.array(chosen, dtype=np.int64)]
            return values
        try:
            return np.stack([as_array(column.values[row]) for row in chosen]) if chosen else np.empty(0)
        except ValueError as error:
            raise DataError(f"the values of {column.name} differ in shape ({error}); expected one shape") from error

    def _by_id(self, ids: Sequence[Any]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, image_id in enumerate(ids):
            if (found := self._spelling.find(image_id)) is not None:
                rows.setdefault(found, []).append(row)
        return rows


def _refuse_unused(target_ids: Sequence[Any] | None, columns: Iterable[Column]) -> None:
    """Refuse ``target_ids`` where all values carry their own ids."""
    if target_ids is not None and not any(column.ids is target_ids for column in columns):
        raise ConfigError("target_ids was given, but all values carry their own ids; leave target_ids out")


def _is_frame(table: Any) -> bool:
    return hasattr(table, "columns") and hasattr(table, "index")


def _ids_and_values(values: Any) -> tuple[Sequence[Any] | None, Any]:
    """A column's ids, None if it carries none, and its values; a list of values may hold arrays."""
    if isinstance(values, Mapping):
        return list(values), list(values.values())
    if hasattr(values, "to_numpy") and hasattr(values, "index"):
        return values.index, values
    return None, values


def _column(name: str, ids: Sequence[Any] | None, values: Any, target_ids: Sequence[Any] | None, what: str) -> Column:
    """A column whose ids are known: its own, or those that were given."""
    label = f"{what} {name!r}"
    if ids is None and target_ids is None:
        raise DataError(
            f"{label} has values without ids, which cannot be matched with images. Pass a table whose rows have ids, "
            f"{what}={{{name!r}: {{id: value, ...}}}}, or the ids of the rows: target_ids=IDS"
        )
    if ids is not None and isinstance(values, list):
        return Column(label, ids, values)
    rows = list(target_ids if ids is None else ids)  # type: ignore[arg-type]
    try:
        array = as_array(values)
    except ValueError as error:
        raise DataError(f"{label} are not numbers ({error}); missing ones are NaN") from error
    if array.ndim < 1 or len(array) != len(rows):
        raise DataError(f"{label} has shape {array.shape} for {len(rows)} ids; expected one row per id")
    return Column(label, ids if ids is not None else target_ids, array)  # type: ignore[arg-type]


def _without_suffix(image_id: Any) -> Any:
    """``train/a`` of ``train/a.JPG``; other ids as they are."""
    if not isinstance(image_id, str):
        return image_id
    suffix = PurePosixPath(image_id).suffix
    return image_id[: -len(suffix)] if suffix.lower() in SUFFIXES else image_id


def _count(ids: Sequence[Any], one: str, many: str) -> str:
    return f"{len(ids)} {one if len(ids) == 1 else many}"


def _named(ids: Iterable[Any]) -> str:
    return ", ".join(repr(image_id) for image_id, _ in zip(ids, range(_SHOWN), strict=False))


ROUNDING, SHARES_TOLERANCE = 1e-6, 1e-2


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
