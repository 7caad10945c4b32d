"""Photos with target values, from the three places they come from, behind one small type.

* :func:`read_csv`: any CSV of ``image, target, ...``, one row per photo;
* :func:`read_csiro`: the CSIRO Image2Biomass layout, one row per photo and target;
* :class:`dinoneck.data.pasture.Pasture`: generated photos with known masses.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.photos import Photo
from dinoneck.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

CSIRO_WEIGHTS = {"Dry_Clover_g": 0.1, "Dry_Dead_g": 0.1, "Dry_Green_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5}
CSIRO_TOLERANCE_G = 0.5
CSIRO_GROUP = ("State", "Sampling_Date")
_CSIRO_COLUMNS = ("sample_id", "image_path", "target_name")
_SHOWN = 5
_SURPLUS = "\0 fields beyond the header"


@dataclass(frozen=True)
class PhotoTable:
    """Photos, their target values and the groups that must not be torn apart.

    Attributes:
        ids: one name per photo, used once.
        photos: one photo per id: a path or a picture in memory.
        targets: target name -> n values in natural units.
        groups: one group label per photo; None = every photo is its own group.
        weights: target name -> its weight in the weighted R²; equal when empty.
        units: target name -> unit, for people.
        minimum: the smallest value a prediction may take; None = any.
        labels: one dense label per photo, a path or an array, see :class:`dinoneck.data.DenseLabels`; None = none.
        auxiliary: task name -> n values that only help training and are no part of the scores: numbers (NaN =
            missing) or class indices (-1 = missing).
    """

    ids: tuple[str, ...]
    photos: tuple[Photo, ...]
    targets: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    groups: tuple[str, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    minimum: float | None = None
    labels: tuple[Photo, ...] | None = None
    auxiliary: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Iterable[int]) -> PhotoTable:
        """Return the table of these rows."""
        places = list(rows)
        return PhotoTable(
            tuple(self.ids[i] for i in places),
            tuple(self.photos[i] for i in places),
            {name: values[places] for name, values in self.targets.items()},
            None if self.groups is None else tuple(self.groups[i] for i in places),
            self.weights,
            self.units,
            self.minimum,
            None if self.labels is None else tuple(self.labels[i] for i in places),
            {name: values[places] for name, values in self.auxiliary.items()},
        )


Table = PhotoTable


@dataclass(frozen=True)
class Wanted:
    """The rows of a CSIRO ``test.csv``, in its order: what a submission must answer.

    Attributes:
        sample_ids: one per row.
        images: the ``image_path`` of each row.
        targets: the ``target_name`` of each row.
    """

    sample_ids: tuple[str, ...]
    images: tuple[str, ...]
    targets: tuple[str, ...]


def read_csv(
    path: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None,
    targets: Sequence[str],
    group: Sequence[str] | str | None = None,
    image_column: str = "image",
    minimum: float | None = None,
    label_column: str | None = None,
) -> PhotoTable:
    """Read a CSV with one row per photo.

    Args:
        path: the CSV, UTF-8, with a header row.
        photos: the folder that ``image_column`` is relative to; None = the photos are not looked for.
        targets: columns with the values to predict.
        group: a column, or several, whose equal values belong together in one fold.
        image_column: the column with the photo's file name.
        minimum: the smallest value a prediction may take (0 for masses and fractions).
        label_column: the column with the file name of the photo's dense label, relative to ``photos``.

    Raises:
        DataError: if a column or a photo is missing, a photo is named twice, or a target is not a number.
    """
    rows = csv_rows(Path(path), (image_column, *targets, *_columns(group), *_columns(label_column)))
    if not targets:
        raise DataError(f"{path}: no target columns were named; it has {', '.join(rows[0])}")
    names = [row[image_column] for row in rows]
    _refuse_repeats(names, f"{path}: the photo", "keep one row for each photo")
    files = _existing(names, photos, Path(path))
    values = {t: np.array([_number(row[t], path, i, t) for i, row in enumerate(rows)]) for t in targets}
    labels = label_column and _existing([row[label_column] for row in rows], photos, Path(path))
    return PhotoTable(tuple(names), files, values, _groups(rows, group), minimum=minimum, labels=labels or None)


def read_csiro(
    path: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None,
    group: Sequence[str] | str | None = CSIRO_GROUP,
) -> PhotoTable:
    """Read a CSIRO Image2Biomass ``train.csv`` (one row per photo and target) into one row per photo.

    The identities GDM = green + clover and total = GDM + dead are checked with a tolerance of 0.5 g; rows
    that break them are named in a warning and kept.

    Args:
        path: ``train.csv`` with sample_id, image_path, target_name, target and the group columns.
        photos: the folder that ``image_path`` is relative to; None = the photos are not looked for.
        group: columns whose equal values belong together in one fold; State + Sampling_Date by default.

    Raises:
        DataError: if a column, a photo or a target of a photo is missing, or a target is not a number.
    """
    _check_csiro_group(Path(path), _columns(group))
    rows = csv_rows(Path(path), (*_CSIRO_COLUMNS, "target", *_columns(group)))
    table: dict[str, dict[str, float]] = {}
    first: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows):
        name, image = row["target_name"], row["image_path"]
        if name not in CSIRO_WEIGHTS:
            raise DataError(f"{path} row {line + 2}: target_name {name!r} is none of {', '.join(CSIRO_WEIGHTS)}")
        if name in table.setdefault(image, {}):
            raise DataError(f"{path} row {line + 2}: {image} has {name} twice")
        table[image][name] = _number(row["target"], path, line, "target")
        first.setdefault(image, row)
    for image, found in table.items():
        if missing := CSIRO_WEIGHTS.keys() - found:
            raise DataError(f"{path}: {image} lacks {', '.join(sorted(missing))}; every photo needs five rows")
    images = list(table)
    targets = {name: np.array([table[image][name] for image in images]) for name in CSIRO_WEIGHTS}
    _warn_identities(images, targets)
    return PhotoTable(
        tuple(images),
        _existing(images, photos, Path(path)),
        targets,
        _groups([first[image] for image in images], group),
        CSIRO_WEIGHTS,
        dict.fromkeys(CSIRO_WEIGHTS, "g"),
        0.0,
    )


def read_csiro_test(path: str | os.PathLike[str]) -> Wanted:
    """Read a CSIRO ``test.csv``: sample_id, image_path, target_name, in its order.

    Raises:
        DataError: if a column is missing or a sample_id stands twice.
    """
    rows = csv_rows(Path(path), _CSIRO_COLUMNS)
    _refuse_repeats([row["sample_id"] for row in rows], f"{path}: sample_id", "keep one row for each sample_id")
    return Wanted(*(tuple(row[column] for row in rows) for column in _CSIRO_COLUMNS))


def read_column(path: str | os.PathLike[str], column: str) -> tuple[str, ...]:
    """Read one column of a CSV as text.

    Raises:
        DataError: if it is missing or the file is empty.
    """
    return tuple(row[column] for row in csv_rows(Path(path), (column,)))


def is_csiro(path: str | os.PathLike[str]) -> bool:
    """Whether a CSV has the columns of the CSIRO layout."""
    return set(_CSIRO_COLUMNS) <= set(csv_header(Path(path)))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV text with a header row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def csv_header(path: Path) -> list[str]:
    """Return the columns of a CSV; none where it is empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}; save it as UTF-8") from error


def csv_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV that has these columns, once each, and no row of another length."""
    header = csv_header(path)
    for column in columns:
        if column not in header:
            held = f"It has: {', '.join(header)}" if any(header) else "It has no header"
            remedy = " Another column of photos is named by image_column= (--image-column)" if column == "image" else ""
            raise DataError(
                f"{path} has no column {column!r}.{did_you_mean(column, header)} {held}."
                f"{_separator_hint(header) or remedy}"
            )
        if header.count(column) > 1:
            raise DataError(f"{path} has {header.count(column)} columns named {column!r}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file, restkey=_SURPLUS, restval=None))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}; save it as UTF-8") from error
    if not rows:
        raise DataError(f"{path} has a header and no rows")
    for line, row in enumerate(rows):
        if None in row.values() or _SURPLUS in row:
            raise DataError(f"{path} row {line + 2} has another number of fields than the header ({len(header)})")
    return rows


def _columns(group: Sequence[str] | str | None) -> tuple[str, ...]:
    return () if group is None else (group,) if isinstance(group, str) else tuple(group)


def _groups(rows: list[dict[str, str]], group: Sequence[str] | str | None) -> tuple[str, ...] | None:
    columns = _columns(group)
    for line, row in enumerate(rows):
        for column in columns:
            if not row[column].strip():
                raise DataError(f"row {line + 2}: the group column {column!r} is empty; fill it in or remove the row")
    if len(columns) < 2:
        return tuple(row[column] for row in rows for column in columns) or None
    return tuple(" | ".join(row[column].replace("|", "||") for column in columns) for row in rows)


def _separator_hint(header: Sequence[str]) -> str:
    marks = [mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]]
    return f" Columns seem to be separated by {marks[0]!r}: save the table with commas" if marks else ""


def _number(text: str, path: str | os.PathLike[str], line: int, column: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text):
            remedy = "Write it with a decimal point"
        elif not text.strip() or text.strip().lower() in ("nan", "na", "none", "null", "-"):
            remedy = "Fill it in or remove the row"
        else:
            remedy = "Correct it or remove the row; classes are trained from Python, with a Task(kind='classification')"
        raise DataError(f"{path} row {line + 2}: {column} is {text!r}; expected a finite number. {remedy}")
    return value


def _refuse_repeats(names: Sequence[str], what: str, remedy: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what} {name!r} stands more than once; {remedy}")
        seen.add(name)


def _existing(names: Sequence[str], photos: str | os.PathLike[str] | None, table: Path) -> tuple[Path, ...]:
    if photos is None:
        return tuple(Path(name) for name in names)
    folder = Path(photos)
    if not folder.is_dir():
        raise DataError(f"the photo folder {folder} does not exist")
    files = tuple(folder / name for name in names)
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise DataError(
            f"{len(missing)} of {len(files)} photos named in {table} are not in {folder}: {shown}. Check the photo "
            "folder (names are relative to it) or remove the rows"
        )
    first: dict[Path, str] = {}
    for name, file in zip(names, files, strict=True):
        other = first.setdefault(file.resolve(), name)
        if other != name:
            raise DataError(f"{table}: {other!r} and {name!r} are the same photo; keep one row for each photo")
    return files


def _check_csiro_group(path: Path, columns: Sequence[str]) -> None:
    """The layout has no column of sites; who asks for one is told what stands in for it."""
    header = csv_header(path)
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r} to group by.{did_you_mean(column, header)} It has: "
                f"{', '.join(header)}. In the CSIRO layout {' + '.join(CSIRO_GROUP)} say which photos belong together: "
                "name them, or leave the group out"
            )


def _warn_identities(images: list[str], targets: Mapping[str, np.ndarray[Any, Any]]) -> None:
    sums = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("GDM_g", "Dry_Dead_g")}
    for name, parts in sums.items():
        gap = np.abs(targets[name] - sum(targets[part] for part in parts))
        for i in np.flatnonzero(gap > CSIRO_TOLERANCE_G)[:_SHOWN]:
            logger.warning("%s: %s differs from %s by %.3g g", images[i], name, " + ".join(parts), gap[i])
