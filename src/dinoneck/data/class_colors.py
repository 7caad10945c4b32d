"""The colours of classes in masks of colours: words ``R,G,B``, or a table ``name,r,g,b``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from dinoneck.data.cells import cell_text
from dinoneck.data.csv_files import read_csv_file
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import some_of

Rgb = tuple[int, int, int]
"""A colour, 0 to 255 each."""

_COLUMNS = ("name", "r", "g", "b")
_MOST_NAMES = 8  # in a message


def parse_colors(words: Sequence[str | Sequence[int]]) -> tuple[Rgb, ...]:
    """Return the colours of words such as ``0,128,0``, or of triples of numbers.

    Raises:
        ConfigError: if one is no colour, or is there twice.
    """
    colours: list[Rgb] = []
    for word in words:
        parts = word.split(",") if isinstance(word, str) else [*word]
        colour = _colour_of(parts)
        if colour is None:
            raise ConfigError(
                f"class_colors has {word!r}; expected R,G,B of three whole numbers from 0 to 255, "
                "such as 0,128,0"
            )
        if colour in colours:
            raise ConfigError(
                f"class_colors has {color_text(colour)} twice; expected a colour of its own for "
                "each class"
            )
        colours.append(colour)
    return tuple(colours)


def color_text(colour: Sequence[int]) -> str:
    """Return a colour as ``R,G,B``."""
    return ",".join(map(str, colour))


def is_color_table(classes: Sequence[str]) -> bool:
    """Return whether what is named as classes is one CSV file."""
    return len(classes) == 1 and classes[0].lower().endswith(".csv")


def read_color_table(path: str | os.PathLike[str]) -> Mapping[str, Rgb]:
    """Read a CSV file of classes and their colours.

    Args:
        path: a file with the columns ``name``, ``r``, ``g`` and ``b``, upper or lower case, in any
            order; further columns are ignored.

    Returns:
        Class -> its colour, in the order of the rows.

    Raises:
        DataError: if the file cannot be read, lacks a column, or has a class or colour twice, or a
            cell that is no number from 0 to 255.
    """
    table = read_csv_file(path)
    column_of = {name.strip().lower(): name for name in table.header}
    for name in _COLUMNS:
        if name not in column_of:
            raise DataError(
                f"{path} has the columns {some_of(table.header, _MOST_NAMES)}, and no {name!r}; "
                "expected name, r, g and b"
            )
    columns = [table.column(column_of[name]) for name in _COLUMNS]
    colours: dict[str, Rgb] = {}
    for cells in zip(*columns, strict=True):
        name, *parts = [cell_text(cell) for cell in cells]
        colour = _colour_of(parts)
        if colour is None:
            raise DataError(
                f"{path}: the colour of {name!r} is {', '.join(parts)}; expected r, g and b as whole "
                "numbers from 0 to 255"
            )
        if name in colours:
            raise DataError(f"{path} names the class {name!r} twice; give it one row")
        if colour in colours.values():
            raise DataError(
                f"{path} gives the colour {color_text(colour)} to two classes, one of them {name!r}; "
                "expected a colour of its own for each class"
            )
        colours[name] = colour
    if not colours:
        raise DataError(f"{path} has no rows; expected one per class")
    return colours


def _colour_of(parts: Sequence[str | int]) -> Rgb | None:
    """Three numbers from 0 to 255; None for anything else."""
    numbers = []
    for part in parts:
        text = str(part).strip()
        if not (text.isascii() and text.isdecimal()) or int(text) > 255:
            return None
        numbers.append(int(text))
    if len(numbers) != 3:
        return None
    return numbers[0], numbers[1], numbers[2]
