"""Known values from a CSV, for photos that are named by files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePath

from dinoneck.errors import DataError, some_of

_UNKNOWN = frozenset({"", "nan", "na", "n/a", "null", "none"})
_CSIRO_NAME, _CSIRO_TARGET, _CSIRO_VALUE = "image_path", "target_name", "target"


def known_values(
    table: Path, image_column: str, photos: Sequence[Path], columns: Sequence[str]
) -> list[dict[str, float]]:
    """Return column -> known value for every photo; an empty dict where the table has no row for it.

    A row belongs to the photo whose path ends with its name, so ``images/7.jpg`` and ``7.jpg`` both mean
    ``field/images/7.jpg``. Empty cells and NaN are unknown.

    Args:
        table: a CSV with one row per photo and columns named like the predictions; or a CSIRO table of one row per
            photo and target.
        image_column: its column of file names.
        photos: the files.
        columns: what is predicted.

    Raises:
        DataError: if the table has none of the columns or none of the photos, a cell is no number, or a name fits
            several rows or photos.
    """
    rows = _csiro(table, columns) if _is_csiro(table) else _plain(table, image_column, columns)
    places: dict[str, int] = {}
    found: list[dict[str, float]] = []
    for place, photo in enumerate(photos):
        name = next((ending for ending in _endings(photo) if ending in rows), None)
        if name is not None and places.setdefault(name, place) != place:
            raise DataError(
                f"{table}: {name!r} stands for {photos[places[name]]} and for {photo}; name photos with their folders"
            )
        found.append({} if name is None else rows[name])
    if not any(found):
        raise DataError(
            f"{table} has known values for none of the {len(photos)} photos; it names {some_of(rows, 3)}, the photos "
            f"are {some_of(map(str, photos), 3)}. Names are compared from their ends"
        )
    return found


def _is_csiro(table: Path) -> bool:
    from dinoneck.data.tables import csv_header

    return {_CSIRO_NAME, _CSIRO_TARGET, _CSIRO_VALUE} <= set(csv_header(table))


def _csiro(table: Path, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    from dinoneck.data.tables import csv_rows

    found: dict[str, dict[str, float]] = {}
    for line, row in enumerate(csv_rows(table, (_CSIRO_NAME, _CSIRO_TARGET, _CSIRO_VALUE))):
        values = found.setdefault(_ending(row[_CSIRO_NAME]), {})
        target = row[_CSIRO_TARGET]
        if target in values:
            raise DataError(f"{table} row {line + 2}: {row[_CSIRO_NAME]!r} has {target!r} a second time; keep one row")
        if target in columns:
            values |= _number(row[_CSIRO_VALUE], table, line, target)
    if not any(found.values()):
        raise DataError(f"{table} has known values of none of {', '.join(columns)}")
    return found


def _plain(table: Path, image_column: str, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    from dinoneck.data.tables import csv_header, csv_rows

    header = csv_header(table)
    shared = [column for column in columns if column in header and column != image_column]
    rows = csv_rows(table, (image_column, *shared))
    if not shared:
        raise DataError(
            f"{table} has a column for none of {', '.join(columns)}; it has: {', '.join(header)}. Name its columns "
            "like the predictions"
        )
    found: dict[str, dict[str, float]] = {}
    for line, row in enumerate(rows):
        name = _ending(row[image_column])
        if name in found:
            raise DataError(f"{table} row {line + 2}: the photo {row[image_column]!r} stands more than once; keep one")
        found[name] = {}
        for column in shared:
            found[name] |= _number(row[column], table, line, column)
    return found


def _number(text: str, table: Path, line: int, column: str) -> dict[str, float]:
    """The value as an entry; none where it is unknown."""
    if text.strip().lower() in _UNKNOWN:
        return {}
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{table} row {line + 2}: {column} is {text!r}; expected a number, or nothing where unknown")
    return {column: value}


def _ending(name: str) -> str:
    return PurePath(name).as_posix()


def _endings(photo: Path) -> list[str]:
    """The path, then without its first folder, and so on down to the file's name."""
    parts = photo.parts
    return [_ending(str(photo)), *("/".join(parts[i:]) for i in range(1, len(parts)))]
