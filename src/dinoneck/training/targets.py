"""The targets of a run: matched with the images of a token source by id, and brought into normalised units."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.data.decoding import SUFFIXES
from dinoneck.errors import DataError, counted, some_of
from dinoneck.losses.task_loss import OBJECTS, TaskLoss
from dinoneck.tasks import Task

ROUNDING, SHARES_TOLERANCE = 1e-6, 1e-2
_Array = np.ndarray[Any, Any]
_Column = dict[Any, Any]  # a value per id, as the source spells it


def match_samples(
    source_ids: Sequence[str],
    targets: Any,
    weights: Any,
    names: Sequence[str],
    ids: Iterable[str] | None = None,
    val_ids: Iterable[str] | None = None,
    target_ids: Sequence[Any] | None = None,
) -> tuple[list[str], list[str], dict[str, _Array], dict[str, _Array]]:
    """Return training ids and validation ids as the source spells them, and targets and weights of both in this order.

    Args:
        source_ids: all ids of the token source.
        targets: a DataFrame whose index holds the ids, or a mapping column -> ``{id: value}``, a Series, or values that
            ``target_ids`` gives the ids of.
        weights: as ``targets``; None = none.
        names: the columns that are used, where they exist; the first must.
        ids: training ids; None = all ids of the columns in ascending order, without ``val_ids``.
        val_ids: validation ids; None = none.
        target_ids: the ids of values that carry none.

    Raises:
        DataError: for ids without a row or without tokens, for several rows of one id, and for values without ids.
    """
    source = SourceIds(source_ids)
    columns = _columns(source, targets, target_ids, "targets", names)
    if names[0] not in columns:
        raise DataError(f"there are no targets for {names[0]!r}; given: {', '.join(columns) or 'others'}")
    cells = {} if weights is None else _columns(source, weights, target_ids, "weights")
    # the order of a set differs between processes
    chosen, valid = (sorted(own) if isinstance(own, set | frozenset) else own for own in (ids, val_ids))
    valid = source.all_of(() if valid is None else valid, "validation ids")
    if chosen is None:
        every = dict.fromkeys(image_id for column in columns.values() for image_id in column)
        train = sorted(set(source.all_of(every, "ids of the targets")) - set(valid))
    else:
        train = source.all_of(chosen, "training ids")
    used = [*train, *valid]
    values = {name: _rows(f"targets {name!r}", x, used) for name, x in columns.items()}
    return train, valid, values, {name: _rows(f"weights {name!r}", x, used) for name, x in cells.items()}


class SourceIds:
    """The ids of a source. An id with the suffix of an image (``a.jpg``) and the same without (``a``) are one id.

    The exact spelling goes first; where it is missing, the other one must be unambiguous. The Unicode forms NFC and NFD
    of a name, which file systems exchange, are one id.

    Args:
        ids: all ids of the source.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._known, self._by_stem = set(ids), defaultdict[Any, list[tuple[str, str]]](list)
        for image_id in ids:
            stem, suffix = _stem_and_suffix(image_id)
            self._by_stem[stem].append((suffix, image_id))

    def find(self, image_id: Any) -> str | None:
        """Return the source's spelling of an id; None if it is not there.

        Raises:
            DataError: if several ids of the source fit.
        """
        if image_id in self._known:
            return str(image_id)
        stem, suffix = _stem_and_suffix(image_id)
        fitting = [own for end, own in self._by_stem.get(stem, ()) if end == suffix or "" in (end, suffix)]
        if len(fitting) > 1:
            raise DataError(f"id {image_id!r} may be {_named(fitting)} of the source; write it with its suffix")
        return fitting[0] if fitting else None

    def all_of(self, ids: Iterable[Any], what: str) -> list[str]:
        """Return the source's spelling of ids.

        Raises:
            DataError: naming those that have no tokens.
        """
        found = [(image_id, self.find(image_id)) for image_id in ids]
        if missing := [image_id for image_id, own in found if own is None]:
            raise DataError(
                f"{len(missing)} {what} have no tokens in the source: {_named(missing)}. The ids of the source are "
                f"such as {_named(sorted(self._known)) or 'none'}"
            )
        return [own for _, own in found if own is not None]


def _columns(
    source: SourceIds, table: Any, target_ids: Sequence[Any] | None, what: str, names: Sequence[str] | None = None
) -> dict[str, _Column]:
    """The columns of a table, or those of some names; of classes their indices, -1 = missing."""
    if hasattr(table, "columns") and hasattr(table, "index"):
        own = {name: table[name] for name in table.columns if name not in OWN_COLUMNS}
        table = {name: x.cat.codes if hasattr(x, "cat") else x for name, x in own.items()}
    if not isinstance(table, Mapping):
        raise DataError(f"{what} is {type(table).__name__}; expected a DataFrame, or a dict name -> {{id: value}}")
    used = [name for name in table if names is None or name in names]
    return {name: _column(source, f"{what} {name!r}", table[name], target_ids) for name in used}


def _column(source: SourceIds, name: str, values: Any, target_ids: Sequence[Any] | None) -> _Column:
    """The value of each id; ids that the source does not know stay as they are."""
    ids: Any
    rows: Any
    if isinstance(values, Mapping):
        ids, rows = list(values), list(values.values())
    else:
        ids = values.index if hasattr(values, "to_numpy") else target_ids
        if ids is None:
            raise DataError(f"{name} has values without ids; pass {{name: {{id: value}}}}, or target_ids=IDS")
        rows = as_array(values, name)
        if not rows.shape or len(rows) != len(ids):
            raise DataError(f"{name} has shape {rows.shape} for {len(ids)} ids; expected one row per id")
    spelt = [image_id if (own := source.find(image_id)) is None else own for image_id in ids]
    if repeated := [image_id for image_id, count in Counter(spelt).items() if count > 1]:
        raise DataError(f"{counted(len(repeated), 'id')} with several rows in {name}: {_named(repeated)}; keep one row")
    return dict(zip(spelt, rows, strict=True))


def _rows(name: str, column: _Column, ids: Sequence[str]) -> _Array:
    """The values of these ids, (n, ...)."""
    if missing := [image_id for image_id in ids if image_id not in column]:
        raise DataError(
            f"{counted(len(missing), 'id')} without a row in {name}: {_named(missing)}; it has {_named(column)}"
        )
    rows = [as_array(column[image_id], name) for image_id in ids]
    if len({row.shape for row in rows}) > 1:
        raise DataError(f"the values of {name} have shapes {sorted({row.shape for row in rows})}; expected one shape")
    return np.stack(rows) if rows else np.empty(0)


def _stem_and_suffix(image_id: Any) -> tuple[Any, str]:
    """``train/a`` (NFC) and ``.JPG`` of ``train/a.JPG``; other ids as they are."""
    if not isinstance(image_id, str):
        return image_id, ""
    name = unicodedata.normalize("NFC", image_id)
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if suffix.lower() in SUFFIXES else (name, "")


def _named(ids: Iterable[Any]) -> str:
    """Three of the ids."""
    return ", ".join(repr(image_id) for image_id in [*ids][:3])


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
            _check_minimum(task, original, ids)
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


def _check_minimum(task: Task, values: _Array, ids: Sequence[str]) -> None:
    """Refuse targets (n, ...) below the smallest value that a prediction may take."""
    least = -np.inf if task.minimum is None else task.minimum
    low = np.argwhere(values < least - ROUNDING * max(1.0, abs(least)))
    if len(low):
        shown = some_of([f"{ids[int(place[0])]!r} ({values[tuple(place)]:g})" for place in low], 3)
        raise DataError(f"targets of {task.name!r} are below the minimum of {least:g}: {shown}; correct them")


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
            f"task {task.name!r}: activation {task.activation!r} cannot reach targets of {low:.4g} ... {high:.4g}"
        )
    columns = np.moveaxis(original, 1, -1).reshape(-1, original.shape[1]).T if original.ndim > 1 else original[None]
    each = [column[np.isfinite(column)] for column in columns]
    if all(len(column) and not np.ptp(column) for column in each):
        raise DataError(
            f"the targets of {task.name!r} are {', '.join(f'{column[0]:g}' for column in each[:3])} for all images"
        )


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
            f"the target of {task.name!r} is {original[place]:g} for {ids[place[0]]!r}, and {found[place]:g} normalised"
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
        raise DataError(f"targets of {name!r}, such as {first}, are not shares of 0 ... 1 that add up to 1")


def _classes(task: Task, targets: _Array, count: int) -> Tensor:
    """(n,) class indices; (n, height, width) or shares (n, dim, rows, cols) for segmentation; ids of objects."""
    what = f"targets of {task.name!r}"
    if task.is_map and targets.dtype.kind == "f":
        _check_shape(what, targets, count, task.dim, "rows", "cols")
        shares = torch.as_tensor(targets).float()
        _check_shares(task.name, shares)
        return shares
    if targets.dtype.kind not in "iu":
        raise DataError(f"{what} are {targets.dtype}; expected integer class indices, -1 = missing")
    _check_shape(what, targets, count, *(("height", "width") if task.is_map or task.is_masks else ()))
    if task.is_masks:
        is_object = (targets >= OBJECTS) & (targets < OBJECTS * (task.dim + 1))
        if (wrong := targets[~is_object & (targets != 0) & (targets != -1)]).size:
            raise DataError(
                f"{what} hold {wrong[0]}; expected {OBJECTS} * (class + 1) + number for the pixels of an object, 0 for "
                "none, -1 for unknown"
            )
        return torch.as_tensor(targets).long()
    classes = targets if task.ignore_index is None else targets[targets != task.ignore_index]
    if classes.size and (classes.min() < -1 or classes.max() >= task.dim):
        raise DataError(
            f"{what} reach from {classes.min()} to {classes.max()}; expected classes 0 ... {task.dim - 1}, -1 = missing"
        )
    return torch.as_tensor(targets).long()
