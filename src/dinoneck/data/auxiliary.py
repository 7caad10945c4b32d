"""Columns that only help training: the state a photo was taken in, the height of the sward, other numbers."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.tables import csv_header, csv_rows
from dinoneck.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

STATES = ("Tas", "NSW", "WA", "Vic")
"""The states of the CSIRO layout, in the order of their class indices."""
MISSING_CLASS = -1


def read_classes(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    column: str,
    classes: Sequence[str] = STATES,
    image_column: str = "image",
) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Read a column of class names, one per photo, as class indices; -1 where a cell is empty.

    Args:
        path: the CSV; several rows of one photo must agree.
        ids: the photos, in the order of the result.
        column: with the class names.
        classes: their order.
        image_column: with the photos' names.

    Returns:
        (n,) indices; None where the table has no such column or every cell is empty (which is logged).

    Raises:
        DataError: if a name is none of the classes, or rows of one photo differ.
    """
    cells = _cells(path, ids, column, image_column)
    if cells is None:
        return None
    place = {name: index for index, name in enumerate(classes)}
    for image, text in zip(ids, cells, strict=True):
        if text and text not in place:
            raise DataError(
                f"{path}: {column} of {image} is {text!r}; expected one of {', '.join(classes)}, or nothing."
                f"{did_you_mean(text, classes)}"
            )
    return np.array([place.get(text, MISSING_CLASS) for text in cells], dtype=np.int64)


def read_numbers(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    column: str,
    image_column: str = "image",
    *,
    required: bool = False,
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Read a column of numbers, one per photo; NaN where a cell is empty or says nan.

    Args:
        path: the CSV; several rows of one photo must agree.
        ids: the photos, in the order of the result.
        column: with the numbers.
        image_column: with the photos' names.
        required: the column must be there.

    Returns:
        (n,) values; None where the table has no such column or every cell is empty (which is logged).

    Raises:
        DataError: if a cell holds something else, rows of one photo differ, or a required column is absent.
    """
    if required:
        csv_rows(Path(path), (image_column, column))
    cells = _cells(path, ids, column, image_column)
    if cells is None:
        return None
    values = []
    for image, text in zip(ids, cells, strict=True):
        try:
            value = float(text) if text else math.nan
        except ValueError:
            value = math.inf
        if math.isinf(value):
            raise DataError(f"{path}: {column} of {image} is {text!r}; expected a finite number, or nothing")
        values.append(value)
    return np.array(values, dtype=np.float64)


def _cells(path: str | os.PathLike[str], ids: Sequence[str], column: str, image_column: str) -> list[str] | None:
    """The column's text for each photo; None, with a note, where there is none."""
    if column not in csv_header(Path(path)):
        logger.warning("%s has no column %r; training goes without it", path, column)
        return None
    found: dict[str, str] = {}
    for row in csv_rows(Path(path), (image_column, column)):
        image, text = row[image_column], row[column].strip()
        if found.setdefault(image, text) != text:
            raise DataError(f"{path}: {column} of {image} is {found[image]!r} in one row and {text!r} in another")
    cells = [found[image] for image in ids]
    empty = sum(not text or text.lower() == "nan" for text in cells)
    if empty == len(cells):
        logger.warning("%s: column %r is empty; training goes without it", path, column)
        return None
    if empty:
        logger.info(
            "%s: %s is missing for %d of %d photos; they count for nothing there", path, column, empty, len(cells)
        )
    return ["" if text.lower() == "nan" else text for text in cells]
