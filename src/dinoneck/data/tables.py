"""Images with target values: :class:`Table`, read from a CSV file, a DataFrame, class folders or a folder of masks.

A table has one row per image, or the CSIRO Image2Biomass layout, one row per image and target. Generated images with
known masses come from :class:`dinoneck.data.pasture.Pasture`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.cells import as_numbers, label_of, same_labels
from dinoneck.data.decoding import ImageInput
from dinoneck.data.loading import images_below
from dinoneck.data.sheets import (
    CSIRO_COLUMNS,
    MISSING_CLASS,
    Sheet,
    Values,
    column_values,
    existing_files,
    header_of,
    mask_files,
    numbers,
    read_sheet,
    refuse_repeats,
    refuse_times,
    row_labels,
)
from dinoneck.errors import DataError, counted, did_you_mean, some_of

logger = logging.getLogger(__name__)

CSIRO_WEIGHTS = {"Dry_Clover_g": 0.1, "Dry_Dead_g": 0.1, "Dry_Green_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5}
CSIRO_SUMS = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g")}
CSIRO_GROUP = ("State", "Sampling_Date")
_SHOWN = 5
Names = Sequence[str] | str


@dataclass(frozen=True)
class Table:
    """Images, their target values and the groups that stay in one fold.

    Attributes:
        ids: one name per image, used once.
        images: one image per id: a path or an image in memory.
        targets: target name -> n values: float64 numbers in original units, NaN = missing; or int64 class indices, -1 =
            missing.
        groups: one group label per image; None = every image is its own group. Where all are numbers, they are compared
            as numbers.
        weights: target name -> its weight in the weighted R²; equal when empty.
        units: target name -> unit, for people.
        minimum: the smallest value a prediction may take; None = any.
        labels: one dense label per image, a path or an array, see :class:`dinoneck.data.DenseLabels`, or None where it
            is unknown; None = none.
        auxiliary: task name -> n values that only help training and are not scored, given as ``targets`` are.
        classes: target or auxiliary name -> its class names; a name that is missing here has numbers.
        folds: the name of each image's fold, compared as groups are; None = folds are drawn.
        sums: target name -> the targets that it is the sum of.
    """

    ids: tuple[str, ...]
    images: tuple[ImageInput, ...]
    targets: Mapping[str, Values]
    groups: tuple[str, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    minimum: float | None = None
    labels: tuple[ImageInput | None, ...] | None = None
    auxiliary: Mapping[str, Values] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: tuple[str, ...] | None = None
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_name in ("targets", "auxiliary"):
            columns = {name: self._checked(name, values) for name, values in getattr(self, field_name).items()}
            object.__setattr__(self, field_name, columns)
        for field_name in ("images", "groups", "labels", "folds"):
            if (column := getattr(self, field_name)) and len(column) != len(self.ids):
                raise DataError(
                    f"Table({field_name}=) has {len(column)} entries for {len(self.ids)} ids; expected one each"
                )
        for field_name in ("groups", "folds"):
            if column := getattr(self, field_name):
                object.__setattr__(self, field_name, tuple(same_labels(column, self.ids, field_name[:-1])))

    def __len__(self) -> int:
        return len(self.ids)

    def _checked(self, name: str, values: Any) -> Values:
        """A column as float64, or int64 where it has class names."""
        names = self.classes.get(name)
        found: Values = (
            as_numbers(f"Table: {name!r}", values, self.ids) if names is None else np.asarray(values, np.int64)
        )
        if found.shape != (len(self.ids),):
            raise DataError(f"Table: {name!r} has the shape {found.shape}; expected ({len(self.ids)},), one per id")
        if names is not None and len(found) and not MISSING_CLASS <= found.min() <= found.max() < len(names):
            raise DataError(
                f"Table: {name!r} holds the classes {found.min()} ... {found.max()}; expected indices of its "
                f"{len(names)} names, or {MISSING_CLASS} where missing"
            )
        return found

    def take(self, rows: Iterable[int]) -> Table:
        """Return the table of these rows."""
        places = list(rows)
        per_image = {name: getattr(self, name) for name in ("ids", "images", "groups", "labels", "folds")}
        chosen: dict[str, Any] = {name: every and tuple(every[i] for i in places) for name, every in per_image.items()}
        return replace(
            self,
            **chosen,
            targets={name: values[places] for name, values in self.targets.items()},
            auxiliary={name: values[places] for name, values in self.auxiliary.items()},
        )


def read_table(
    source: Any,
    images: str | os.PathLike[str] | None = None,
    targets: Names = (),
    *,
    auxiliary: Names = (),
    group: Names | None = (),
    fold_column: str | None = None,
    image_column: str = "image",
    labels: str | None = None,
    minimum: float | None = None,
    unit: str = "",
    classes: Mapping[str, Sequence[str]] = {},
) -> Table:
    """Read a table with one row per image, or in the CSIRO layout, which its columns identify.

    A column with numbers gives numbers, one with words gives classes. In the CSIRO layout (one row per image and
    target) the targets are the five masses unless some are named, the smallest value is 0, and any column that is the
    same in all rows of an image can be named as well. Spaces around a cell do not count. An empty cell and ``nan`` are
    missing values; of a DataFrame also None, NaN, NaT and NA. Groups, folds and classes are compared as numbers where
    all cells are numbers, else as text (NFC).

    Args:
        source: the path of a CSV file (UTF-8, with a header row), or a pandas DataFrame.
        images: the folder that file names are relative to; None = files are not looked for.
        targets: columns with the values to predict.
        auxiliary: columns that only help training.
        group: columns whose equal values belong in one fold; empty in the CSIRO layout = State and Sampling_Date.
        fold_column: the column with the name of each image's fold.
        image_column: the column with the file names; a DataFrame without it has them in its index.
        labels: the column with the file names of dense labels; an image whose cell is empty has none.
        minimum: the smallest value a prediction may take (0 for masses and fractions).
        unit: the unit of the numbers, for people.
        classes: column -> class names in their order, which admits no others; empty = those that occur, also numbers.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, an image is named twice, or a cell does not fit.
    """
    is_long = set(CSIRO_COLUMNS) <= set(header := header_of(source))
    names = _columns(targets) or (tuple(CSIRO_WEIGHTS) if is_long else ())
    if not names and labels is None:
        raise DataError(f"no target columns were named; the table has {', '.join(header)}")
    by_layout = tuple(column for column in CSIRO_GROUP if is_long and column in header)
    in_group = _columns(group) if group is None or group else by_layout
    columns = (image_column, *names, *_columns(auxiliary), *in_group, *_columns(fold_column), *_columns(labels))
    sheet = (_read_long if is_long else read_sheet)(source, columns, image_column)
    refuse_times(source, (*names, *_columns(auxiliary)))
    ids = tuple(sheet.cells(image_column))
    refuse_repeats(ids, f"{sheet.name}: the image", "keep one row for each image")
    table = Table(
        ids,
        existing_files(ids, images, f"images named in {sheet.name}"),
        {},
        row_labels(sheet, in_group, "group"),
        minimum=minimum,
        labels=None if labels is None else mask_files(sheet, labels, images),
        folds=row_labels(sheet, _columns(fold_column), "fold"),
    )
    table = _with_values(table, sheet, names, _columns(auxiliary), classes, unit)
    return _with_layout(table) if is_long else table


def _columns(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _read_long(source: Any, columns: Sequence[str], image_column: str) -> Sheet:
    """Read the CSIRO layout as a sheet with one row per image."""
    others = [column for column in columns if column not in (*CSIRO_WEIGHTS, image_column)]
    header = header_of(source)
    for column in others:
        if column not in header:
            raise DataError(
                f"the CSIRO layout has no column or target {column!r}.{did_you_mean(column, [*CSIRO_WEIGHTS, *header])}"
                f" It has the columns {', '.join(header)} and the targets {', '.join(CSIRO_WEIGHTS)}. "
                f"{' + '.join(CSIRO_GROUP)} identify the images that belong together"
            )
    long = read_sheet(source, (*CSIRO_COLUMNS, "target", *others), "image_path")
    numbers(long, "target")  # before rows are joined: a wrong cell is named by its own row
    wide: dict[str, dict[str, str]] = {}
    places: dict[str, str] = {}
    for row, place in zip(long.rows, long.places, strict=True):
        image, name, where = row["image_path"], row["target_name"], f"{long.name} {place}"
        places.setdefault(image, place)
        first = wide.setdefault(image, {image_column: image, **{column: row[column] for column in others}})
        if name not in CSIRO_WEIGHTS:
            raise DataError(f"{where}: target_name {name!r} is none of {', '.join(CSIRO_WEIGHTS)}")
        if name in first:
            raise DataError(f"{where}: {image} has {name} twice")
        for column in others:
            if row[column] != first[column]:
                raise DataError(f"{where}: {column} of {image} is {row[column]!r}, and {first[column]!r} before")
        first[name] = row["target"]
    for image, first in wide.items():
        if missing := CSIRO_WEIGHTS.keys() - first:
            raise DataError(f"{long.name}: {image} lacks {', '.join(sorted(missing))}; every image needs five rows")
    return Sheet(long.name, list(wide.values()), list(places.values()))


def _with_values(
    table: Table,
    sheet: Sheet,
    targets: Sequence[str],
    auxiliary: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    unit: str,
) -> Table:
    """Fill in the targets and the auxiliary columns."""
    columns = (*targets, *auxiliary)
    refuse_repeats(columns, "the target or auxiliary column", "name it once, in one of the two roles")
    for column, listed in classes.items():
        if column not in columns:
            raise DataError(f"classes= lists those of {column!r}, which is neither a target nor auxiliary")
        if isinstance(listed, str) or len(set(listed)) < len(listed):
            raise DataError(f"classes= gives {listed!r} for {column!r}; expected a list of names that differ")
    values: dict[str, Values] = {}
    names: dict[str, tuple[str, ...]] = {}
    for column in columns:
        values[column], own = column_values(sheet, column, classes.get(column))
        names |= {column: own} if own else {}
        missing = int((values[column] == MISSING_CLASS if own else np.isnan(values[column])).sum())
        if missing == len(table) and column in targets:
            raise DataError(f"{sheet.name}: the column {column!r} is empty; leave it out of the targets, or fill it in")
        if missing == len(table):
            logger.warning("%s: column %r is empty; training goes without it", sheet.name, column)
            del values[column]
        elif missing:
            logger.info("%s: %s is missing for %d of %d images", sheet.name, column, missing, len(table))
    return replace(
        table,
        targets={name: values[name] for name in targets},
        auxiliary={name: values[name] for name in auxiliary if name in values},
        units={name: unit for name in values if unit and name not in names},
        classes={name: own for name, own in names.items() if name in values},
    )


def _with_layout(table: Table) -> Table:
    """Add what the CSIRO layout defines: weights, sums, grams, and no mass below 0."""
    names = set(table.targets)
    return replace(
        table,
        weights={name: CSIRO_WEIGHTS[name] for name in table.targets} if names <= CSIRO_WEIGHTS.keys() else {},
        units={**{name: "g" for name in {**table.targets, **table.auxiliary} if name in CSIRO_WEIGHTS}, **table.units},
        minimum=0.0 if table.minimum is None else table.minimum,
        sums={name: parts for name, parts in CSIRO_SUMS.items() if names >= {name, *parts}},
    )


_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def read_folders(images: str | os.PathLike[str]) -> Table:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Returns:
        A table with the target ``class``; its class names are those of the folders, stripped, composed (NFC) and
        sorted. The ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, or one holds no images.
    """
    root = _folder(images)
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    names = sorted({label_of(name, False) for name in folders})
    ids = [path.relative_to(root).as_posix() for path in images_below(root)]
    if loose := [name for name in ids if "/" not in name]:
        raise DataError(
            f"{root} holds {counted(len(loose), 'image')} next to the class folders: {some_of(loose, _SHOWN)}. Move "
            "each into the folder of its class"
        )
    if len(names) < 2:
        raise DataError(f"{root} has {counted(len(folders), 'folder')}; expected one per class, two or more")
    if _PARTS.issuperset(name.lower() for name in names):
        raise DataError(f"the folders of {root}, {', '.join(names)}, are parts, not classes; give the path of one")
    class_of = {name: names.index(label_of(name, False)) for name in folders}
    ids = [name for name in ids if name.split("/")[0] in class_of]
    indices = [class_of[name.split("/")[0]] for name in ids]
    used = set(indices)
    if empty := [names[i] for i in sorted({*class_of.values()} - used)]:
        raise DataError(f"{root}: no images of the class {some_of(empty, _SHOWN)}; add some or remove the folder")
    values = {"class": np.array(indices, dtype=np.int64)}
    return Table(tuple(ids), tuple(root / name for name in ids), values, classes={"class": tuple(names)})


def read_masks(images: str | os.PathLike[str], labels: str | os.PathLike[str]) -> Table:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to ``images``.

    Raises:
        DataError: if an image has no mask, a mask has no image, or two files differ in their suffix alone.
    """
    image_root, label_root = _folder(images), _folder(labels)
    if image_root == label_root:
        raise DataError(f"images and masks are both in {image_root}; put the masks into a folder of their own")
    image_of, mask_of = _by_stem(image_root, label_root), _by_stem(label_root, image_root)
    for folder, has, lacks, missing in (
        (label_root, "mask", "image", image_of.keys() - mask_of.keys()),
        (image_root, "image", "mask", mask_of.keys() - image_of.keys()),
    ):
        if missing:
            raise DataError(
                f"{folder} has no {has} for {counted(len(missing), lacks)}: {some_of(missing, _SHOWN)}. An image and "
                "its mask have the same relative path, without the suffix"
            )
    ids = tuple(path.relative_to(image_root).as_posix() for path in image_of.values())
    return Table(ids, tuple(image_of.values()), {}, labels=tuple(mask_of[stem] for stem in image_of))


def _folder(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"there is no folder {path}")
    return Path(path)


def _by_stem(root: Path, other: Path) -> dict[str, Path]:
    """The images of a folder by their relative path without suffix; those below the other folder are not counted."""
    found: dict[str, Path] = {}
    for path in [path for path in images_below(root) if other not in path.parents or other in root.parents]:
        if found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path) != path:
            raise DataError(f"{path} and another file differ in their suffix alone; keep one of them")
    if not found:
        raise DataError(f"the folder {root} holds no images")
    return found
