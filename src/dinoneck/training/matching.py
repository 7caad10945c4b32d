"""Match targets with the images of a token source by id, never by position."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dinoneck.data.cells import OWN_COLUMNS, is_missing
from dinoneck.data.loading import SUFFIXES
from dinoneck.errors import ConfigError, DataError
from dinoneck.training.targets import as_array

_SHOWN = 3
_Array = np.ndarray[Any, Any]


class Column(NamedTuple):
    """One column of targets: a value (a number, an array) per id."""

    name: str
    ids: Sequence[Any]
    values: Any


def match_samples(
    source_ids: Sequence[str],
    targets: Any,
    weights: Any,
    names: Sequence[str],
    ids: Iterable[str] | None = None,
    val_ids: Iterable[str] | None = None,
    target_ids: Sequence[Any] | None = None,
) -> tuple[list[str], list[str], dict[str, Any], dict[str, Any]]:
    """Return training ids and validation ids as the source spells them, and targets and weights of both in this order.

    Args:
        source_ids: all ids of the token source.
        targets: a DataFrame, or column -> values, see :func:`columns_of`.
        weights: as ``targets``; None = none.
        names: the columns that are used, where they exist.
        ids: training ids; None = all ids of the columns in ascending order, without ``val_ids``.
        val_ids: validation ids; None = none.
        target_ids: the ids of values that carry none.

    Raises:
        DataError: for ids without a row or without tokens, for several rows of one id, and for values without ids.
        ConfigError: for ``target_ids`` that no value needs.
    """
    columns = columns_of(targets, target_ids, names)
    if not columns:
        given = ", ".join(map(str, getattr(targets, "columns", targets)))
        raise DataError(f"there are no targets for task {names[0]!r}; given: {given or 'none'}")
    weight_columns = columns_of({} if weights is None else weights, target_ids, None, "weights")
    if target_ids is not None and not any(c.ids is target_ids for c in (*columns.values(), *weight_columns.values())):
        raise ConfigError("target_ids was given, but all values carry their own ids; leave target_ids out")
    spelling = SourceIds(source_ids)
    valid = spelling.all_of(_in_order(val_ids), "validation ids")
    if ids is None:
        every = dict.fromkeys(each for column in columns.values() for each in column.ids)
        train = sorted(set(spelling.all_of(every, "ids of the targets")) - set(valid), key=str)
    else:
        train = spelling.all_of(_in_order(ids), "training ids")
    tables = (columns, weight_columns)
    values, cells = ({n: _values(spelling, c, [*train, *valid]) for n, c in table.items()} for table in tables)
    return train, valid, values, cells


def match_matrix(
    source_ids: Sequence[str], targets: Any, target_ids: Sequence[Any] | None
) -> tuple[tuple[str, ...], _Array]:
    """Return the ids of the rows of targets, as the source spells them, and their values as (n, t).

    Args:
        source_ids: all ids of the token source.
        targets: as :func:`columns_of` takes them, or an array (n, t).
        target_ids: the ids of values that carry none.

    Raises:
        DataError: as :func:`match_samples` does, and for columns whose ids differ.
    """
    has_columns = isinstance(targets, Mapping) or _is_frame(targets)
    columns = columns_of(targets if has_columns else {"values": targets}, target_ids)
    if not columns:
        raise DataError("the targets have no columns; there is nothing to predict")
    spelling, (first, *others) = SourceIds(source_ids), columns.values()
    ids = spelling.all_of(first.ids, "ids of the targets")
    for column in others:
        if extra := sorted(set(spelling.all_of(column.ids, "ids of the targets")) - set(ids)):
            raise DataError(
                f"{_count(extra, 'id has', 'ids have')} a row in {column.name} and none in {first.name}: "
                f"{_named(extra)}; give all columns the same ids"
            )
    values = [_values(spelling, column, ids) for column in columns.values()]
    return tuple(ids), np.column_stack(values) if has_columns else values[0]


def match_rows(source_ids: Sequence[str], row_ids: Sequence[Any], ids: Sequence[str], name: str) -> list[int]:
    """Return the row of each of ``ids`` among ``row_ids``; all are matched as the source spells them.

    Raises:
        DataError: for ids without a row, or with several; it names them and ``name``, what the rows hold.
    """
    return _rows(SourceIds(source_ids), Column(name, row_ids, None), ids)


def match_groups(
    source_ids: Sequence[str], groups: Mapping[Any, Hashable] | None, ids: Sequence[str]
) -> list[Hashable] | None:
    """Return the group of each of ``ids`` of a mapping id -> group.

    Raises:
        DataError: as :func:`match_rows` does, for groups without ids, and for labels that are missing or cannot be
            hashed.
    """
    if groups is None:
        return None
    if not hasattr(groups, "items"):
        raise DataError(f"groups is {type(groups).__name__}; expected {{id: group}}, dict(zip(ids, groups))")
    names, every = zip(*groups.items(), strict=True) if len(groups) else ((), ())
    labels = [every[row] for row in match_rows(source_ids, names, ids, "groups")]
    for image_id, label in zip(ids, labels, strict=True):
        if not isinstance(label, Hashable) or is_missing(label):
            raise DataError(f"the group of {image_id!r} is {label!r}; expected a text or a number, not empty or NaN")
    return labels


def columns_of(
    table: Any, target_ids: Sequence[Any] | None = None, names: Sequence[str] | None = None, what: str = "targets"
) -> dict[str, Column]:
    """Return the columns of a table, each with the ids of its rows.

    Args:
        table: a pandas DataFrame whose index holds the ids, or a mapping column ->
            ``{id: value}``, a Series, or values that ``target_ids`` gives the ids of.
        target_ids: one id per row of the values that carry none.
        names: only these columns are used; None = all.
        what: what the table holds, for messages.

    Raises:
        DataError: for values without ids, or with another number of them, and for ids that have no length.
    """
    if target_ids is not None and not hasattr(target_ids, "__len__"):
        raise DataError(f"target_ids is {type(target_ids).__name__}; expected a list of ids: list(...) makes one")
    if _is_frame(table):
        own = [name for name in table.columns if name not in OWN_COLUMNS]
        every: dict[str, Any] = {name: _codes(table[name]) for name in own}
    elif isinstance(table, Mapping):
        every = dict(table)
    else:
        raise DataError(
            f"{what} is {type(table).__name__}; expected a table, a DataFrame whose index holds the ids, or a dict, "
            "column -> {id: value}"
        )
    return {
        name: _column(f"{what} {name!r}", values, target_ids)
        for name, values in every.items()
        if names is None or name in names
    }


class SourceIds:
    """The ids of a source. An id with the suffix of an image (``a.jpg``) and the same without (``a``) are one id.

    The exact spelling goes first; where it is missing, the other one must be unambiguous. The Unicode forms NFC and NFD
    of a name, which file systems exchange, are one id.

    Args:
        ids: all ids of the source.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self._known = set(ids)
        self._with_suffix: dict[Any, list[str]] = {}
        names = (own for own in ids if isinstance(own, str) and not own.isascii())
        self._composed = {unicodedata.normalize("NFC", _without_suffix(own)): own for own in names}
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
        if not fitting and isinstance(image_id, str):
            return self._composed.get(unicodedata.normalize("NFC", short))
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


def _in_order(ids: Iterable[Any] | None) -> Iterable[Any]:
    """The ids; of a set, whose order differs between processes, in ascending order."""
    return () if ids is None else sorted(ids) if isinstance(ids, set | frozenset) else ids


def _rows(spelling: SourceIds, column: Column, ids: Sequence[str]) -> list[int]:
    """The rows of these ids in a column."""
    rows: dict[str, list[int]] = {}
    for row, image_id in enumerate(column.ids):
        if (found := spelling.find(image_id)) is not None:
            rows.setdefault(found, []).append(row)
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


def _values(spelling: SourceIds, column: Column, ids: Sequence[str]) -> _Array:
    """The values of these ids, (n, ...)."""
    rows = _rows(spelling, column, ids)
    try:
        return np.stack([as_array(column.values[row]) for row in rows]) if rows else np.empty(0)
    except ValueError as error:
        raise DataError(f"the values of {column.name} differ in shape ({error}); expected one shape") from error


def _is_frame(table: Any) -> bool:
    return hasattr(table, "columns") and hasattr(table, "index")


def _codes(column: Any) -> Any:
    """A column of a DataFrame; of classes their indices, -1 = missing."""
    return column.cat.codes if hasattr(column, "cat") else column


def _column(name: str, values: Any, target_ids: Sequence[Any] | None) -> Column:
    """A column with its own ids, or else ``target_ids``; a mapping's values may be arrays."""
    if isinstance(values, Mapping):
        return Column(name, list(values), list(values.values()))
    ids = values.index if hasattr(values, "to_numpy") and hasattr(values, "index") else target_ids
    if ids is None:
        raise DataError(
            f"{name} has values without ids, which cannot be matched with images. Pass a table whose rows have ids, "
            f"{{{name.partition(' ')[2]}: {{id: value, ...}}}}, or the ids of the rows: target_ids=IDS"
        )
    try:
        array = as_array(values)
    except ValueError as error:
        raise DataError(f"{name} are not numbers ({error}); missing ones are NaN") from error
    if array.ndim < 1 or len(array) != len(ids):
        raise DataError(f"{name} has shape {array.shape} for {len(ids)} ids; expected one row per id")
    return Column(name, ids, array)


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
