"""Values as NumPy arrays, and values that carry ids. Torch is not imported."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np

from dinoneck.data.cells import cell_text
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

Array = np.ndarray[Any, Any]
# pandas' Timestamp and Timedelta are kinds of these
_TIMES = (date, timedelta, np.datetime64, np.timedelta64)


def as_array(values: Any, what: str = "the values") -> Array:
    """Return values as a NumPy array; tensors of any dtype and device, with a gradient or without.

    Args:
        values: numbers, or whatever holds them.
        what: what messages call them.

    Raises:
        DataError: for masked values (``numpy.ma``), and for dates and times, of which NumPy makes
            numbers of nanoseconds.
    """
    if _is_tensor(values):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()
        from_tensor: Array = values.numpy()
        return from_tensor
    if np.ma.is_masked(values):
        raise DataError(
            f"{what} are masked in part; fill them: values.filled(numpy.nan), of classes "
            "values.filled(-1)"
        )
    array = np.asarray(values)
    if _holds_times(array):
        raise DataError(
            f"{what} are dates or times, such as {array.flat[0]}; expected numbers: convert them, "
            "such as to days since the first one"
        )
    return array


def _is_tensor(values: Any) -> bool:
    """Whether values are a tensor of torch, which is imported if they are."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def _holds_times(array: Array) -> bool:
    if array.dtype.kind in "mM":
        return array.size > 0
    return array.dtype.kind == "O" and any(isinstance(value, _TIMES) for value in array.flat)


def class_codes(values: Any, name: str, classes: Sequence[str]) -> Any:
    """Return the index of the class of each row, -1 = missing; what is no Series of classes as it is.

    Args:
        values: a categorical Series, or anything else.
        name: of the target, for messages.
        classes: those to number by; empty = the categories of the Series.

    Raises:
        DataError: for a class that is not one of them.
    """
    if not hasattr(values, "cat"):
        return values
    if not classes:
        return values.cat.codes
    codes = codes_among(
        list(values.cat.categories), values.cat.codes, values.index, name=name, classes=classes
    )
    return values.cat.codes.map(lambda code: codes[code] if code >= 0 else -1)


def codes_among(
    categories: Sequence[Any],
    codes: Iterable[int],
    ids: Iterable[Any],
    *,
    name: str,
    classes: Sequence[str],
) -> list[int]:
    """Return the index in ``classes`` of each category; -1 for one that is none of them and has no row.

    Args:
        categories: words, or numbers, which are called as a table writes them.
        codes: the category of each row, -1 = missing.
        ids: of the rows; the error names one.
        name: of the column.
        classes: those to number by.

    Raises:
        DataError: for a category with a row that is none of the classes.
    """
    words = [value if value in classes else cell_text(value) for value in categories]
    first_ids: dict[str, Any] = {}
    for value_id, code in zip(ids, codes, strict=True):
        if code >= 0:
            first_ids.setdefault(words[code], value_id)
    check_words(first_ids, name, classes)
    code_of = {word: code for code, word in enumerate(classes)}
    return [code_of.get(word, -1) for word in words]


def check_words(
    words: Iterable[str] | Mapping[str, Any], name: str, classes: Sequence[str]
) -> None:
    """Raise a DataError for words that are none of the classes.

    Args:
        words: with ids, word -> the id of a value that is it.
        name: of the target.
        classes: that are expected.
    """
    unknown = sorted({*words} - {*classes})
    if not unknown:
        return
    example = ""
    if isinstance(words, Mapping):
        example = f", such as that of {words[unknown[0]]!r}"
    raise DataError(
        f"{name} has the class {some_of(map(repr, unknown), 3)}{example}; expected one of "
        f"{', '.join(classes)}"
    )


def by_id(
    values: Any,
    name: str,
    ids: Sequence[Any] | None,
    spelling: Callable[[Any], Any] = lambda key: key,
) -> dict[Any, Any]:
    """Return id -> value of a mapping, a Series (as :func:`class_codes`), or values with such ids.

    The index of a Series holds its ids, unless it holds row numbers and ``ids`` are passed.

    Args:
        values: the values.
        name: of the target, for messages.
        ids: one per value; None = ``values`` holds them itself.
        spelling: makes one key of an id; ids with equal keys are one.

    Raises:
        DataError: for values without ids, ids without an order, another number of ids, ids of other
            rows, or an id with several values.
    """
    if not hasattr(values, "__len__"):
        raise DataError(
            f"{name} is {type(values).__name__}; expected {{id: value}}, a Series, or an array with "
            "target_ids="
        )
    values = class_codes(values, name, ())
    if ids is not None:
        _check_has_order(ids)
        values = _without_row_numbers(values, name, ids)
    if hasattr(values, "items"):
        pairs = list(values.items())
        ids = [image_id for image_id, _ in pairs]
        values = [value for _, value in pairs]
    if ids is None or len(ids) != len(values):
        num_ids = "no ids" if ids is None else f"{len(ids)} ids"
        raise DataError(
            f"{name} has {len(values)} values and {num_ids}; pass {{id: value}}, or target_ids="
        )
    keys = [spelling(image_id) for image_id in ids]
    repeated = [repr(key) for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise DataError(
            f"{counted(len(repeated), 'id')} with several rows in {name}: {some_of(repeated, 3)}; "
            "keep one row"
        )
    if _is_tensor(values):
        values = values.detach().cpu()
    return dict(zip(keys, values, strict=True))


def _without_row_numbers(values: Any, name: str, ids: Sequence[Any]) -> Any:
    """Return a Series whose index holds row numbers as an array; other values as they are.

    Raises:
        DataError: if ``ids`` is a Series of other rows.
    """
    if not hasattr(values, "to_numpy") or not hasattr(values, "keys"):
        return values
    rows = list(values.keys())
    if not all(isinstance(row, int | np.integer) for row in rows):
        return values
    rows_of_ids = list(ids.keys()) if hasattr(ids, "keys") else rows
    if rows_of_ids != rows:
        raise DataError(
            f"{name} has the rows {some_of(map(str, rows), 3)}, and target_ids "
            f"{some_of(map(str, rows_of_ids), 3)}; "
            "expected the same rows in the same order: take both from one table"
        )
    return values.to_numpy()


def _check_has_order(ids: Any) -> None:
    """Raise a DataError for a generator, which can be read once, and for a set, which has no order."""
    if isinstance(ids, set | frozenset) or not hasattr(ids, "__len__"):
        raise DataError(
            f"target_ids is a {type(ids).__name__}; expected a list, with one id for each row of "
            "the targets"
        )
