"""Which files are meant: the images below a folder, and the file that a name stands for.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from dinoneck.data.cells import PathLike, are_plain, cell_text, for_each, is_missing
from dinoneck.data.image_tree import image_folder, pictures_of, warn_of_masks
from dinoneck.data.names import (
    Reading,
    composed,
    core_of,
    find_among,
    find_below,
    is_absolute,
    part_words,
    parts_of,
)
from dinoneck.data.walk import SUFFIXES, walk, warn_of_left_out
from dinoneck.errors import DataError
from dinoneck.text import some_of

logger = logging.getLogger(__name__)
# files of a folder that are listed to find a name which is not there; a folder with more is no
# folder of images but a home directory or a whole disk, which takes minutes
MOST_FILES = 1_000_000
_REMEDY = "names are relative to it; pass their folder, or list only images that are there"
_LONGEST_NAME = 300  # characters of a name in a message; most systems allow 255 for a file
# where another file of a name is looked for: all names share the folders that are cut, so few of
# them tell, and parts of a data set lie one to three folders below what they share
_LOOKED_AT = 3  # names
_FOLDERS_ABOVE = 3


@dataclass(frozen=True)
class _File:
    """A file, and what the system says of it."""

    path: Path
    status: os.stat_result


def list_pictures(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return path -> images: those below a folder, sorted, or the file itself.

    Masks that lie beside images (``masks/`` next to ``images/``, ``0_mask.png`` next to ``0.png``)
    are no pictures, unless they are named themselves. A warning counts them, and files of formats
    that are not read.

    Raises:
        DataError: if a folder cannot be read.
    """
    pictures: dict[Path, list[Path]] = {}
    listings = []
    pictures_of_folders = []
    for path in paths:
        if not path.is_dir():
            pictures[path] = [path]
            continue
        listing = walk(path)
        listings.append(listing)
        in_folder = pictures_of(image_folder(listing))
        pictures_of_folders.append(in_folder)
        pictures[path] = in_folder.images
    warn_of_left_out(listings)
    warn_of_masks(pictures_of_folders)
    return pictures


def list_folder(folder: Path) -> list[Path]:
    """Return the images below a folder, as :func:`list_pictures` does.

    Raises:
        DataError: if there are none, or a folder cannot be read.
    """
    images = list_pictures([folder])[folder]
    check_any_pictures(folder, images)
    return images


def check_any_pictures(folder: Path, images: Sequence[Path]) -> None:
    """Reject a folder without images.

    Raises:
        DataError: naming it, and the suffixes of images.
    """
    if not images:
        raise DataError(f"the folder {folder} holds no images ({', '.join(SUFFIXES)})")


def find_files(
    names: Iterable[Any],
    folder: PathLike | None,
    what: str,
    *,
    outside: bool = False,
    of_labels: bool = False,
    part: str | None = None,
) -> list[Any]:
    r"""Return the files of names, below a folder.

    Names are taken as they are, in the forms NFC and NFD, which file systems exchange. If files of
    some are missing, all names are read in one other way, which a warning states. The ways are
    ``/`` for ``\``, ``%20`` decoded, another case, a suffix added, without the folders that all of
    them begin with, or below another folder. See :mod:`dinoneck.data.names`. Names of images that
    are read in such a way never become masks, see :func:`dinoneck.data.image_tree.pictures_of`.

    Args:
        names: one per row; a missing one has the file None.
        folder: that they are relative to; None = they are not looked for.
        what: what messages call the names, such as ``images named in t.csv``.
        outside: whether an absolute name, and one with ``..``, may name a file outside of the
            folder.
        of_labels: whether the names are of masks or other labels, not of images.
        part: of a data set, such as ``"val"``, that the file of the names is called after: of
            several files that a name fits, those in folders of other parts are not meant.

    Raises:
        DataError: if a file does not exist or is empty, two names are one file, a name fits
            several, or images are named that are masks.
    """
    found = _find_files(names, folder, what, outside=outside, of_labels=of_labels, part=part)
    if found.reading is not None and found.reading.is_changed:
        number = len(found.reading.files)
        _state(found.reading, number, number, what, str(folder))
    return found.files


def check_files(
    names: Iterable[Any],
    folder: PathLike,
    what: str,
    *,
    outside: bool = False,
    part: str | None = None,
) -> None:
    """Raise the error of :func:`find_files` for images; nothing is logged."""
    _find_files(names, folder, what, outside=outside, of_labels=False, part=part)


@dataclass(frozen=True)
class _FoundFiles:
    """The files of names.

    Attributes:
        files: one per name; a missing name has None.
        reading: how the names were taken; None = as they are written.
    """

    files: list[Any]
    reading: Reading | None = None


def _find_files(
    names: Iterable[Any],
    folder: PathLike | None,
    what: str,
    *,
    outside: bool,
    of_labels: bool,
    part: str | None,
) -> _FoundFiles:
    """The files of names, as :func:`find_files` looks for them."""
    texts = list(names)
    if not are_plain(texts):
        texts = for_each(_text, texts)
    if folder is None:
        return _FoundFiles([Path(text) if text else None for text in texts])
    distinct = [text for text in dict.fromkeys(texts) if text]
    files: dict[str, _File] = {}
    for text in distinct:
        exact = _exact_file(text, folder, outside)
        if exact is not None:
            files[text] = exact
    missing = [text for text in distinct if text not in files]
    reading = None
    if missing:
        wanted = _Wanted(distinct, missing, Path(folder), what)
        reading = _reading_with_files(wanted, of_labels=of_labels, part=part)
        files = {text: _File(path, path.stat()) for text, path in reading.files.items()}
    else:
        _check_distinct(files, what)
    empty = [_quoted(text) for text in distinct if files[text].status.st_size == 0]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(distinct)} {what} are empty files in {folder}: "
            f"{some_of(empty, 5)}; restore them, or remove their rows"
        )
    return _FoundFiles([files[text].path if text else None for text in texts], reading)


def _text(name: Any) -> str:
    """A name without blanks around it; a number as a CSV would hold it, empty where it is missing."""
    if isinstance(name, str):
        return "" if is_missing(name) else name.strip()
    if isinstance(name, Real):
        return cell_text(name)
    return "" if is_missing(name) else str(name).strip()


def _exact_file(name: str, folder: PathLike, outside: bool) -> _File | None:
    """The file that is called like this; None = there is none."""
    if not outside and (is_absolute(name) or ".." in re.split(r"[/\\]", name)):
        return None
    spellings = [name] if name.isascii() else [name, composed(name), _decomposed(name)]
    for spelling in spellings:
        file = os.path.join(folder, spelling)  # noqa: PTH118 - twice as fast as Path / name
        try:
            status = os.stat(file)  # noqa: PTH116
        except (OSError, ValueError):  # ValueError: a null byte
            continue
        if stat.S_ISREG(status.st_mode):
            return _File(Path(file), status)
    return None


def _check_distinct(files: Mapping[str, _File], what: str) -> None:
    """Refuse two names of one file; hard links count as two files.

    Args:
        files: name -> file.
        what: as of :func:`find_files`.
    """
    names_of: dict[tuple[int, int], list[str]] = {}  # a place on the disk -> names
    for name, file in files.items():
        place = (file.status.st_dev, file.status.st_ino)
        names_of.setdefault(place, []).append(name)
    for names in names_of.values():
        same = _names_of_one_file(names, files) if len(names) > 1 else None
        if same is not None:
            first, second = same
            raise DataError(
                f"of the {what}, '{first}' and '{second}' are the same file; keep one of them"
            )


def _names_of_one_file(names: Sequence[str], files: Mapping[str, _File]) -> tuple[str, str] | None:
    """Two of the names of one place on the disk that are no hard links of it; None = all are."""
    is_hard_linked = files[names[0]].status.st_nlink > 1
    if not is_hard_linked:  # a link leads there, or the disk ignores case
        return names[0], names[1]
    name_of: dict[str, str] = {}
    for name in names:
        path = os.path.realpath(files[name].path)
        if path in name_of:
            return name_of[path], name
        name_of[path] = name
    return None


@dataclass(frozen=True)
class _Wanted:
    """Names whose files are looked for.

    Attributes:
        names: all of them.
        missing: those that no file is called like.
        folder: that they are relative to.
        what: what messages call them.
    """

    names: Sequence[str]
    missing: Sequence[str]
    folder: Path
    what: str

    @property
    def counts(self) -> str:
        """How many are missing, as messages begin."""
        return f"{len(self.missing)} of {len(self.names)} {self.what} are not in {self.folder}: "

    @property
    def text(self) -> str:
        """How many are missing, and some of them."""
        return self.counts + some_of(map(_quoted, self.missing), 5)


def _reading_with_files(wanted: _Wanted, *, of_labels: bool, part: str | None) -> Reading:
    """The way to take names of which some are no files, with the files of all; of images no masks.

    Raises:
        DataError: if there is no way to take all names, with the nearest one.
    """
    folder = wanted.folder
    if not folder.exists():
        raise DataError(f"the folder {folder} of the {wanted.what} does not exist; check the path")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected the folder of the {wanted.what}")
    listing = walk(folder, most=MOST_FILES)
    if not listing.is_whole:
        raise DataError(
            f"{wanted.text}; {_REMEDY}. It holds too many files to look for other spellings"
        )
    depth = len(folder.parts)
    paths = {file: tuple(map(composed, file.parts[depth:])) for file in listing.files}
    # the folder as it is named, and without links
    given_folder = _parts_from_root(os.path.abspath(folder))  # noqa: PTH100
    real_folder = _parts_from_root(os.path.realpath(folder))
    folders = sorted({given_folder, real_folder})
    masks = set() if of_labels else set(pictures_of(image_folder(listing)).masks)
    picture_paths = {file: parts for file, parts in paths.items() if file not in masks}
    reading = find_below(wanted.names, picture_paths, folders)
    if reading.several and part is not None:
        # without the files in folders of other parts
        paths_of_part = {}
        for file, parts in picture_paths.items():
            if part_words(parts[:-1]) <= {part}:
                paths_of_part[file] = parts
        reading_of_part = find_below(wanted.names, paths_of_part, folders)
        if not reading_of_part.missing:
            reading = reading_of_part
    if reading.missing and masks:
        reading_with_masks = find_below(wanted.names, paths, folders)
        _check_no_masks(reading_with_masks, masks, wanted)
    if reading.missing:
        raise _not_found(reading, wanted, picture_paths)
    _check_pairs(reading, wanted)
    _check_folder(reading, wanted)
    return reading


def _check_no_masks(reading: Reading, masks: Collection[Path], wanted: _Wanted) -> None:
    """Raise a DataError if all names are found once masks are taken for images."""
    if reading.missing:
        return
    for file in reading.files.values():
        if file in masks:
            name = file.relative_to(wanted.folder).as_posix()
            raise DataError(
                f"{wanted.text}. Taken as {reading.text}, they are masks, such as {file}. For the "
                f"images, pass their folder; for the masks, write the names as they are below "
                f"{wanted.folder}, such as '{name}'"
            )


def _not_found(reading: Reading, wanted: _Wanted, files: Iterable[Path]) -> DataError:
    """The error for names without a file: with the reading that finds most, or a file called much alike."""
    if not (reading.files and reading.is_changed):
        return DataError(f"{wanted.text}{_nearest_note(wanted, files)}; {_REMEDY}")
    tried = len(reading.files) + len(reading.missing)  # the first names, see find_below
    not_found = some_of(map(_quoted, reading.missing), 3)
    return DataError(
        f"{wanted.text} ({reading.text}: {len(reading.files)} of {tried}, not {not_found}); {_REMEDY}"
    )


def _nearest_note(wanted: _Wanted, files: Iterable[Path]) -> str:
    """Of the first missing name that a file is almost called like: both, in words."""
    file_of: dict[str, Path] = {}
    for file in files:
        file_of.setdefault(core_of(file.name), file)
    for name in wanted.missing:
        nearest = file_of.get(core_of(name))
        if nearest is not None:
            shown = nearest.relative_to(wanted.folder).as_posix()
            return f" ({_quoted(name)} may be '{shown}': write names as the files are called)"
    return ""


def _check_pairs(reading: Reading, wanted: _Wanted) -> None:
    """Raise a DataError unless each name means one file, and each file has one name."""
    if reading.several:
        name, files = next(iter(reading.several.items()))
        shown = " and ".join(map(str, files[:2]))
        raise DataError(f"{wanted.text}. '{name}' may be {shown}; pass the folder of those meant")
    if reading.one_file is not None:
        first, second = reading.one_file
        raise DataError(
            f"{wanted.text}. As {reading.text} '{first}' and '{second}' are the same file; keep one "
            "of them"
        )


def _check_folder(reading: Reading, wanted: _Wanted) -> None:
    """Raise a DataError if the names say another folder than that of their files."""
    other = _other_file(reading, wanted.folder) if reading.prefix else None
    if reading.is_contradicted or other is not None:
        name, file = next(iter(reading.files.items()))
        example = f" ({other} exists)" if other is not None else ""
        raise DataError(
            f"{wanted.counts}'{name}' is in another folder than {file}{example}. If they are the same "
            f"images, write the names without '{reading.prefix}'; else pass the folder of those "
            "meant"
        )


def _other_file(reading: Reading, folder: Path) -> Path | None:
    """A file that a name means, next to or above the folder whose files a reading found; None = there is none.

    Of names ``train/0.png`` and the folder ``val`` this is ``val/../train/0.png``.
    """
    here = Path(os.path.abspath(folder))  # noqa: PTH100 - the path as it is given
    for name, file in list(reading.files.items())[:_LOOKED_AT]:
        cut = parts_of(reading.prefix.replace("\\", "/"))
        end = parts_of(name.replace("\\", "/"))[len(cut) :]
        for above in list(here.parents)[:_FOLDERS_ABOVE]:
            for first in range(len(cut)):
                other = above.joinpath(*cut[first:], *end)
                if other.is_file() and not other.samefile(file):
                    return other
    return None


def find_images(names: Sequence[str], images: Sequence[Path], what: str) -> Mapping[str, Path]:
    r"""Return the image of each name, of some images; names of other images are left out.

    A name means the image whose path ends like it: a name without a folder the image of that name,
    wherever it is; a name with a folder one that lies in that folder. Else all names are read in
    one other way, as by :func:`find_files`, which a warning states.

    Args:
        names: the names, as of the rows of a table; each once.
        images: the files.
        what: what messages call the names' owner, such as ``t.csv``.

    Raises:
        DataError: if no image has a name, a name fits several images, an image has several names,
            or the folders of names and images contradict each other.
    """
    if not names:
        raise DataError(f"{what} has no rows; expected one per image")
    paths: dict[Path, tuple[str, ...]] = {}
    for image in images:
        paths[image] = _parts_from_root(os.path.abspath(image))  # noqa: PTH100 - of the link
    reading = find_among(names, paths)
    if reading.several:
        name, files = next(iter(reading.several.items()))
        raise DataError(
            f"{what}: '{name}' is the name of several images, {files[0]} and {files[1]}; write "
            "names with their folders"
        )
    if reading.one_file is not None:
        first, second = reading.one_file
        raise DataError(
            f"{what}: '{first}' and '{second}' are both the name of one image; give each image one "
            "row"
        )
    if not reading.files:
        shown = some_of(map(str, images), 3)
        raise DataError(
            f"{what} has no row of the images {shown}; it names {some_of(names, 3)}. Names with a "
            "folder mean images in that folder"
        )
    name, file = next(iter(reading.files.items()))
    other = _other_file(reading, file.parent) if reading.prefix else None
    if reading.is_contradicted or other is not None:
        example = f" ({other} exists)" if other is not None else ""
        raise DataError(
            f"{what} names '{name}', which is in another folder than the image {file}{example}. If "
            f"they are the same images, write the names without '{reading.prefix}'"
        )
    if reading.is_changed:
        _state(reading, len(reading.files), len(images), what, "the images that are given")
    return reading.files


def refuse_own_labels(images: Iterable[Any], labels: Iterable[Any], what: str) -> None:
    """Refuse a label that is the file of its image, as of a mask named like its image.

    Args:
        images: a file or an image per row.
        labels: a file, an array or nothing per row.
        what: what messages call the table.

    Raises:
        DataError: naming the file.
    """
    for image, label in zip(images, labels, strict=True):
        if isinstance(image, Path) and isinstance(label, Path) and image == label:
            raise DataError(
                f"{what}: the label of {image} is the image itself; write the labels with their "
                "folder, such as ../masks/0001.png"
            )


def _state(reading: Reading, number: int, total: int, what: str, where: str) -> None:
    """Say how names were read, in one line."""
    logger.warning("%s: %s: %d of %d found in %s", what, reading.text, number, total, where)


def _parts_from_root(path: str) -> tuple[str, ...]:
    return tuple(map(composed, Path(path).parts[1:]))


def _quoted(name: str) -> str:
    """A name in quotes, cut if it is no path; repr() would double the backslashes of Windows."""
    if len(name) > _LONGEST_NAME:
        name = name[:_LONGEST_NAME] + "..."
    return f"'{name}'"


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)
