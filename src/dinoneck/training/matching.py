"""Match targets with the images of a token source by id, never by position."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.data.loading import SUFFIXES
from dinoneck.errors import DataError, counted
from dinoneck.training.targets import as_array

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
    valid = source.all_of(_in_order(val_ids), "validation ids")
    if ids is None:
        every = dict.fromkeys(image_id for column in columns.values() for image_id in column)
        train = sorted(set(source.all_of(every, "ids of the targets")) - set(valid))
    else:
        train = source.all_of(_in_order(ids), "training ids")
    used = [*train, *valid]
    values = {name: _rows(f"targets {name!r}", x, used) for name, x in columns.items()}
    return train, valid, values, {name: _rows(f"weights {name!r}", x, used) for name, x in cells.items()}


def match_matrix(
    source_ids: Sequence[str], targets: Any, target_ids: Sequence[Any] | None
) -> tuple[tuple[str, ...], _Array]:
    """Return the ids of the rows of targets, as the source spells them, and their values as (n, t).

    Args:
        source_ids: all ids of the token source.
        targets: as :func:`match_samples` takes them, or an array (n, t).
        target_ids: the ids of values that carry none.

    Raises:
        DataError: as :func:`match_samples` does, and for columns whose ids differ.
    """
    source, is_table = SourceIds(source_ids), isinstance(targets, Mapping) or hasattr(targets, "columns")
    columns = _columns(source, targets if is_table else {"values": targets}, target_ids, "targets")
    ids = source.all_of(dict.fromkeys(image_id for x in columns.values() for image_id in x), "ids of the targets")
    if not ids:
        raise DataError("the targets have no columns or no rows; there is nothing to predict")
    values = [_rows(f"targets {name!r}", x, ids) for name, x in columns.items()]
    return tuple(ids), np.column_stack(values) if is_table else values[0]


def match_groups(source_ids: Sequence[str], groups: Mapping[Any, Any], ids: Sequence[str]) -> list[Any] | None:
    """Return the group of each of ``ids`` of a mapping id -> group.

    Raises:
        DataError: as :func:`match_samples` does.
    """
    return _found("groups", _column(SourceIds(source_ids), "groups", groups, None), ids)


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


def _in_order(ids: Iterable[Any] | None) -> Iterable[Any]:
    """The ids; of a set, whose order differs between processes, in ascending order."""
    return () if ids is None else sorted(ids) if isinstance(ids, set | frozenset) else ids


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
            raise DataError(
                f"{name} has values without ids, which cannot be matched with images; pass {{name: {{id: value}}}}, a "
                "DataFrame whose index holds the ids, or the ids of the rows: target_ids=IDS"
            )
        rows = as_array(values, name)
        if not rows.shape or len(rows) != len(ids):
            raise DataError(f"{name} has shape {rows.shape} for {len(ids)} ids; expected one row per id")
    spelt = [image_id if (own := source.find(image_id)) is None else own for image_id in ids]
    if repeated := [image_id for image_id, count in Counter(spelt).items() if count > 1]:
        raise DataError(f"{counted(len(repeated), 'id')} with several rows in {name}: {_named(repeated)}; keep one row")
    return dict(zip(spelt, rows, strict=True))


def _found(name: str, column: _Column, ids: Sequence[str]) -> list[Any]:
    """The values of these ids."""
    if missing := [image_id for image_id in ids if image_id not in column]:
        raise DataError(
            f"{counted(len(missing), 'id')} without a row in {name}: {_named(missing)}. The ids there are such as "
            f"{_named(column) or 'none'}; missing values are NaN (classes: -1)"
        )
    return [column[image_id] for image_id in ids]


def _rows(name: str, column: _Column, ids: Sequence[str]) -> _Array:
    """The values of these ids, (n, ...)."""
    rows = [as_array(value, name) for value in _found(name, column, ids)]
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
