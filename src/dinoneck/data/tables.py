"""Tables of images as pandas DataFrames: from CSV files, DataFrames, class folders, or folders of images and masks.

The index of a table holds the images' ids: file names as text, stripped and composed (NFC). Its columns are

* ``images``: the file of each image, or an image in memory;
* the targets and auxiliary values by their names: numbers are float64, NaN = missing; classes are categorical;
* ``group`` and ``fold``: text; rows of one group stay in one fold;
* ``labels``: the file of each dense label, or an array; NaN = unknown.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.cells import (
    FOLD,
    GROUP,
    IMAGES,
    LABELS,
    LARGEST,
    OWN_COLUMNS,
    as_decimal,
    cell_text,
    is_missing,
    is_number,
    label_of,
    same_labels,
)
from dinoneck.data.loading import images_below
from dinoneck.errors import DataError, counted, did_you_mean, missing_extra, reason_of, some_of
from dinoneck.regular_files import read_regular

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

logger = logging.getLogger(__name__)

Names = Sequence[str] | str
PathLike = str | os.PathLike[str]
_SHOWN = 5


def read_table(
    source: Any,
    images: PathLike | None = None,
    targets: Names = (),
    *,
    auxiliary: Names = (),
    group: Names = (),
    fold_column: str | None = None,
    image_column: str = "image",
    labels: str | None = None,
    classes: Mapping[str, Sequence[str]] = {},
) -> pd.DataFrame:
    """Read a table with one row per image.

    A column with numbers gives numbers, one with words gives classes. An empty cell and ``nan`` are missing values; of
    a DataFrame also None, NaN, NaT and NA. Groups, folds and classes are compared as numbers where all cells are
    numbers, else as text. The result can be read again, also in the place of a file.

    Args:
        source: the path of a CSV file (UTF-8, with a header row, separated by ``,``, ``;`` or tabs; with the last two
            numbers may have decimal commas), or a pandas DataFrame.
        images: the folder that file names are relative to; None = files are not looked for.
        targets: columns with the values to predict.
        auxiliary: columns that only help training.
        group: columns whose equal values belong in one fold.
        fold_column: the column with the name of each image's fold.
        image_column: the column with the file names; a DataFrame without it has them in its index.
        labels: the column with the file names of dense labels; an image whose cell is empty has none.
        classes: column -> class names in their order, which admits no others; empty = those that occur, also numbers.

    Returns:
        The table; its columns are listed above.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, an image is named twice, or a cell does not fit.
    """
    wanted, helping = _listed(targets), _listed(auxiliary)
    if not wanted and labels is None:
        raise DataError("no target columns are named; name them with targets= (--targets)")
    _check_roles((*wanted, *helping), classes)
    grouped, folded = _listed(group), _listed(fold_column)
    columns = (*wanted, *helping, *grouped, *folded, *_listed(labels))
    name = "the DataFrame" if isinstance(source, pd.DataFrame) else str(source)
    rows = _rows(source, image_column, columns, name)
    table = pd.DataFrame(index=pd.Index(_ids(rows[image_column], f"{name}: the {image_column}"), dtype=object))
    rows.index = table.index
    has_images = images is None and IMAGES in rows
    files = rows[IMAGES] if has_images else existing_files(rows[image_column], images, f"images named in {name}")
    table[IMAGES] = pd.Series(list(files), table.index, dtype=object)
    for column in (*wanted, *helping):
        values = _values(rows[column], f"{name}: {column}", classes.get(column))
        if column in wanted or values.notna().any():
            table[column] = values
    for role, named in ((GROUP, grouped), (FOLD, folded)):
        if named:
            table[role] = _joined(rows, named, role)
    if labels is not None:
        table[LABELS] = _label_files(rows[labels], images, f"labels named in column {labels!r} of {name}")
    return table


def read_cells(path: PathLike, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read the cells of a CSV file as text, stripped and composed (NFC).

    Args:
        path: the file: UTF-8, with a header row, separated by ``,``, ``;`` or tabs.
        columns: which it must have.

    Raises:
        DataError: if it cannot be read, a column is missing or occurs twice, there are no rows, or a row has another
            number of cells.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        options: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False}
        rows = pd.read_csv(io.StringIO(text), sep=separator, **options) if text.strip() else pd.DataFrame([[]])
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a table in UTF-8: {reason_of(error)}") from error
    header = [cell_text(cell) for cell in rows.iloc[0]]
    _check_header(str(path), header, columns)
    if len(rows) < 2:
        raise DataError(f"{path} has a header and no rows")
    if (short := rows.isna().any(axis=1)).any():
        raise DataError(
            f"{path} row {int(short.argmax()) + 1} has fewer cells than the header, which has {len(header)}"
        )
    found = rows.iloc[1:].map(cell_text).set_axis(header, axis=1)
    found.attrs["decimal"] = "." if separator == "," else ","
    return found


def _rows(source: Any, image_column: str, columns: Sequence[str], name: str) -> pd.DataFrame:
    """The cells of a CSV file, or the values of a DataFrame, whose index may stand for the column of images."""
    if not isinstance(source, pd.DataFrame):
        return read_cells(source, (image_column, *columns))
    frame = source.rename(columns=str)
    if image_column not in frame and all(isinstance(own, str | os.PathLike) for own in frame.index):
        frame[image_column] = [str(own) for own in frame.index]
    _check_header(name, list(frame.columns), (*columns, image_column))
    if frame.empty:
        raise DataError("the DataFrame has no rows")
    return frame


def _ids(names: pd.Series, what: str) -> list[str]:
    ids = [cell_text(value) for value in names]
    if "" in ids:
        raise DataError(f"{what} of row {ids.index('') + 2} is empty; name the image, or remove the row")
    return _once(ids, what, "keep one row for each image")


def _once(names: Sequence[str], what: str, remedy: str) -> list[str]:
    """The names, each of which may stand there once."""
    repeated = pd.Index(names, dtype=object).duplicated()
    if repeated.any():
        raise DataError(f"{what} {names[int(repeated.argmax())]!r} stands more than once; {remedy}")
    return list(names)


def _check_header(name: str, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            hint = did_you_mean(column, header) or " image_column= (--image-column) names that of file names."
            raise DataError(f"{name} has no column {column!r}; it has: {', '.join(header) or 'no header'}.{hint}")
        if header.count(column) > 1:
            raise DataError(f"{name} has {header.count(column)} columns named {column!r}; give each its own name")


def _check_roles(columns: Sequence[str], classes: Mapping[str, Sequence[str]]) -> None:
    _once(columns, "the target or auxiliary column", "name it once, in one of the two roles")
    for column in set(columns).intersection(OWN_COLUMNS):
        raise DataError(f"a target or auxiliary column is named {column!r}, as a column of the result; rename it")
    for column in classes.keys() - set(columns):
        raise DataError(f"classes= lists those of {column!r}, which is neither a target nor auxiliary")


def _values(column: pd.Series, what: str, listed: Sequence[str] | None) -> pd.Series:
    """Float64 numbers, or classes; what most cells are decides where no classes are listed."""
    if column.dtype.kind in "mM":
        raise DataError(
            f"{what} is {column.dtype}; expected numbers or class names: count days since a date of your own"
        )
    if listed is None and isinstance(column.dtype, pd.CategoricalDtype):
        listed = [str(name) for name in column.dtype.categories]
    texts = column.astype(object).map(cell_text)
    filled = texts[texts != ""]
    words = filled[[_is_word(text) for text in filled]]
    one_word = words.nunique() == 1 and len(words) < len(filled)  # such as NA among numbers
    if listed is None and (one_word or len(words) * 2 <= len(filled)):
        values = _numbers(filled, what, column.attrs.get("decimal", "."))
    else:
        values = _classes(filled, filled if listed is not None else words, what, listed)
    if len(filled) < len(texts):
        logger.info("%s is missing for %d of %d images", what, len(texts) - len(filled), len(texts))
    return values.reindex(texts.index)


def _numbers(texts: pd.Series, what: str, decimal: str) -> pd.Series:
    if decimal == "," and not texts.str.contains(".", regex=False).any():
        texts = texts.str.replace(",", ".", regex=False)
    for name, text in texts.items():
        if not is_number(text) or abs(float(text)) > LARGEST:
            hint = ": class names hold no numbers, unless classes= lists them" if _is_word(text) else ""
            hint += ": decimal commas need ; or tabs between cells, and no points" if "," in text else ""
            raise _misfit(what, name, text, f"a finite number within +-3.4e38{hint}")
        if text.lstrip("+-").isdigit() and int(float(text)) != int(text):
            raise _misfit(what, name, text, "a number that float64 holds exactly: subtract an offset")
    return texts.astype(np.float64)


def _classes(texts: pd.Series, named: pd.Series, what: str, listed: Sequence[str] | None) -> pd.Series:
    are_numbers = all(map(is_number, texts))
    labels = texts.map(lambda text: label_of(text, are_numbers))
    names = list(map(str, listed or ())) or sorted(labels[named.index].unique(), key=_in_order)
    name_of = {label_of(cell_text(name), are_numbers): name for name in names}
    if len(name_of) < len(names) or "" in name_of:
        raise DataError(f"{what}: classes= lists {names}; expected names that differ, none empty or nan")
    for row, label in labels.items():
        if label not in name_of:
            expected = f"one of {', '.join(names)}.{did_you_mean(label, names)}" if listed else "a class name"
            raise _misfit(what, row, label, f"{expected}: list it with classes= if it is one")
    if len(names) == 1:
        raise DataError(f"{what} holds the class {names[0]!r} alone; expected two classes or more")
    return labels.map(name_of).astype(pd.CategoricalDtype(names))


def _misfit(what: str, row: Any, text: str, expected: str) -> DataError:
    return DataError(f"{what} of {row!r} is {text!r}; expected an empty cell where it is unknown, or {expected}")


def _is_word(text: str) -> bool:
    return as_decimal(text) is None and any(sign.isalpha() for sign in text)


def _in_order(text: str) -> tuple[bool, float, str]:
    """A key that sorts numbers by their size, before words."""
    return (False, float(text), text) if is_number(text) else (True, 0.0, text)


def _joined(rows: pd.DataFrame, columns: Sequence[str], role: str) -> list[str]:
    """The label of each row; of several columns the joined ones."""
    each = [same_labels(rows[column], rows.index, f"{role} in column {column!r}") for column in columns]
    if len(columns) == 1:
        return [str(label) for label in each[0]]
    return [" | ".join(str(label).replace("|", "||") for label in row) for row in zip(*each, strict=True)]


def existing_files(names: Iterable[Any], folder: PathLike | None, what: str) -> list[Path]:
    """Return the files of these names, below a folder if one is given; ``what`` calls them in messages.

    A name is looked for as it is written, then in the forms NFC and NFD, which file systems exchange.

    Raises:
        DataError: if the folder or a file does not exist, or two names are one file.
    """
    texts = [str(name).strip() for name in names]
    if folder is None:
        return [Path(text) for text in texts]
    root = _folder(folder)
    forms = ([root / text, *(root / unicodedata.normalize(form, text) for form in ("NFC", "NFD"))] for text in texts)
    files = [next((file for file in each if file.is_file()), each[0]) for each in forms]
    if missing := [repr(text) for text, file in zip(texts, files, strict=True) if not file.is_file()]:
        shown = some_of(missing, _SHOWN)
        raise DataError(f"{len(missing)} of {len(files)} {what} are not in {folder}: {shown}; names are relative to it")
    first: dict[Path, str] = {}
    for text, file in zip(texts, files, strict=True):
        if (other := first.setdefault(file.resolve(), text)) != text:
            raise DataError(f"of the {what}, {other!r} and {text!r} are the same file; keep one row for each")
    return files


def _label_files(column: pd.Series, folder: PathLike | None, what: str) -> pd.Series:
    """The label of each row: the file of a name, an array as it is, and NaN where the cell is empty."""
    known = column.astype(object)[[not is_missing(value) for value in column]]
    if known.empty:
        raise DataError(f"there are no {what}; leave the column out, or fill in some")
    if len(known) < len(column):
        logger.info("there are %d %s for %d images", len(known), what, len(column))
    named = known[[isinstance(value, str) for value in known]]
    files = pd.Series(existing_files(named, folder, what), named.index, dtype=object)
    return known.where(~known.index.isin(files.index), files).reindex(column.index)


def _listed(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def read_folders(images: PathLike) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Returns:
        A table with the target ``class``; its class names are those of the folders, stripped, composed (NFC) and
        sorted. The ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, or one holds no images.
    """
    root = _folder(images)
    names = {cell_text(path.name) for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    table = _of_files(root, lambda path: path.relative_to(root).as_posix())
    table["class"] = table.index.str.partition("/").get_level_values(0)
    if loose := [name for name in table.index if "/" not in name]:
        raise DataError(f"{root} holds images next to the class folders: {some_of(loose, _SHOWN)}; move each into one")
    if len(names) < 2 or _PARTS.issuperset(name.lower() for name in names):
        found = ", ".join(sorted(names)) or "none"
        raise DataError(f"the folders of {root} are {found}; expected two or more, one per class, and no parts")
    table = table[table["class"].isin(names)]
    if empty := names.difference(table["class"]):
        raise DataError(f"{root}: no images of the class {some_of(empty, _SHOWN)}; add some or remove the folder")
    return table.assign(**{"class": pd.Categorical(table["class"], sorted(names))})


def read_masks(images: PathLike, labels: PathLike) -> pd.DataFrame:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to ``images``.

    Raises:
        DataError: if an image has no mask, a mask has no image, or two files differ in their suffix alone.
    """
    roots = _folder(images), _folder(labels)
    if roots[0] == roots[1]:
        raise DataError(f"images and masks are both in {roots[0]}; put the masks into a folder of their own")
    image_of, mask_of = (
        _of_files(root, lambda path, root=root: path.relative_to(root).with_suffix("").as_posix(), other)
        for root, other in (roots, roots[::-1])
    )
    for (folder, found), (_, other) in itertools.permutations(zip(roots, (image_of, mask_of), strict=True)):
        if len(missing := other.index.difference(found.index)):
            count = counted(len(missing), "file")
            raise DataError(
                f"{folder} lacks {count} that the other folder has: {some_of(missing, _SHOWN)}. An image and its mask "
                "have the same relative path, without the suffix"
            )
    table = image_of.assign(**{LABELS: mask_of[IMAGES]})
    return table.set_axis([cell_text(path.relative_to(roots[0]).as_posix()) for path in table[IMAGES]], axis=0)


def _of_files(root: Path, name_of: Callable[[Path], str], without: Path | None = None) -> pd.DataFrame:
    """The images of a folder by their names; those below the folder ``without`` are left out."""
    files = [file for file in images_below(root) if without not in file.parents or without in root.parents]
    if not files:
        raise DataError(f"the folder {root} holds no images")
    names = _once([cell_text(name_of(file)) for file in files], f"{root}: the name", "keep one of the files")
    return pd.DataFrame({IMAGES: pd.Series(files, pd.Index(names, dtype=object), dtype=object)})


def _folder(path: PathLike) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"there is no folder {path}")
    return Path(path)
