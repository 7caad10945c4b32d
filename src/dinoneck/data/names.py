"""Which files are meant: the images below a folder, and the file that a name stands for.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dinoneck.data.cells import PathLike, is_missing
from dinoneck.data.run_names import DETECTOR, HEADS, PREDICTIONS, REPORT, UNFINISHED
from dinoneck.errors import DataError
from dinoneck.text import shorten, some_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
"""Of the files that are images, in any case."""
MASK_SUFFIXES = (*SUFFIXES, ".gif", ".pgm", ".npy")
"""Of the files that are masks, in any case."""

# each set of files tells a folder that dinoneck wrote: of trainings, and of a feature store
_FILES_OF_RUNS = ({REPORT, HEADS}, {REPORT, PREDICTIONS}, {REPORT, DETECTOR})
_FILES_OF_STORES = ({"store.json", "index.sqlite"},)
# the sheet of a run is no image of its data; it is beside the text and one of the other files
_SHEET = "data.jpg"
_SHEET_TEXT = "data.txt"
_BESIDE_SHEET = frozenset({REPORT, UNFINISHED, "data.json"})

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")  # two letters or more: C:// is a drive
_NUM_SHOWN = 5  # names in a message


# What lies below a folder
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        files: those of the suffixes that were asked for, sorted by the parts of their paths.
        left_out: what else lies there, in words -> how many.
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def list_files(
    folder: Path, suffixes: Collection[str] = SUFFIXES, *, without: Path | None = None
) -> Listing:
    """List the files below a folder; links are followed.

    Folders that begin with ``.`` or ``_``, files that begin with ``.``, and what dinoneck wrote are
    left out. A link into a folder that it lies in is not followed again.

    Args:
        folder: the folder.
        suffixes: of the files, in lower case; other files are counted.
        without: a folder below it that is not listed.

    Raises:
        DataError: if the folder does not exist or cannot be listed, or a link leads nowhere.
    """
    check_folder(folder)
    listing = Listing()
    passed_over = frozenset() if without is None else frozenset([_identity(without)])
    _list_folder(folder, suffixes, passed_over, listing, is_top=True)
    return listing


def _list_folder(
    folder: Path,
    suffixes: Collection[str],
    passed_over: frozenset[Hashable],
    listing: Listing,
    *,
    is_top: bool = False,
) -> None:
    """Add the files below a folder to a listing; the folders that it lies in are passed over."""
    identity = _identity(folder)
    if identity in passed_over:
        return
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}") from None
    names = {entry.name for entry in entries}
    if not is_top and any(files <= names for files in (*_FILES_OF_RUNS, *_FILES_OF_STORES)):
        listing.left_out["folders of runs and stores"] += 1
        return
    has_sheet = _SHEET_TEXT in names and not _BESIDE_SHEET.isdisjoint(names)
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if entry.name.startswith("."):
            continue
        is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
        if is_folder:
            if entry.name.startswith("_"):
                listing.left_out["folders that begin with _"] += 1
            else:
                _list_folder(path, suffixes, passed_over | {identity}, listing)
        elif entry.is_symlink() and not path.exists():
            raise DataError(
                f"the link {path} leads nowhere; restore its target, or remove the link"
            )
        elif has_sheet and entry.name == _SHEET:
            continue
        elif suffix in suffixes:
            listing.files.append(path)
        else:
            listing.left_out[f"files of other formats ({suffix or 'no suffix'})"] += 1


def _identity(path: Path) -> Hashable:
    status = path.stat()
    return status.st_dev, status.st_ino


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, see :func:`list_files`."""
    return list_files(folder).files


def check_folder(folder: Path) -> None:
    """Reject what is no folder.

    Raises:
        DataError: naming it.
    """
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder")


def list_folder(folder: Path) -> list[Path]:
    """Return the images below a folder.

    Raises:
        DataError: if there are none.
    """
    images = image_files(folder)
    check_any_pictures(folder, images)
    return images


def check_any_pictures(folder: Path, images: Sequence[Path]) -> None:
    """Reject a folder without images."""
    if not images:
        raise DataError(f"the folder {folder} holds no images ({', '.join(SUFFIXES)})")


# What a name is
# ----------------------------------------------------------------------------------------------------


def is_absolute(name: str) -> bool:
    """Return whether a name is an absolute path, of this system or another."""
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()


def is_json_file(path: PathLike) -> bool:
    """Return whether a path is called as a JSON file."""
    return Path(path).suffix.lower() == ".json"


def check_encodable(text: Any, name: Any) -> None:
    """Reject a file name that is no text, which could not be written to a table."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {name!r} is no UTF-8; rename it") from None


def _text_of(name: Any) -> str:
    r"""The text of a name: 7 of the number 7.0, and without blanks at its ends."""
    if isinstance(name, Real) and float(name).is_integer():
        return f"{float(name):.0f}"
    return str(name).strip()


def _comparable(path: str) -> str:
    r"""A path as names are compared: composed, ``\`` as ``/``, ``%20`` as a blank, a suffix in small letters."""
    path = unicodedata.normalize("NFC", path).replace("\\", "/").replace("%20", " ")
    stem, suffix = posixpath.splitext(path)
    return stem + suffix.lower()


# The file of a name
# ----------------------------------------------------------------------------------------------------


def find_files(names: Sequence[Any], folder: PathLike | None, what: str) -> list[Any]:
    r"""Return the file of each name.

    A name is a path relative to the folder; as it is written, or else composed (NFC), with ``\`` as
    ``/``, ``%20`` as a blank and the suffix in any case. Else it is such a path without its suffix.
    Else it is the file that ends with its last parts, if there is exactly one.

    Args:
        names: one for each row; images in memory are returned as they are.
        folder: that names are relative to; None = files are not looked for.
        what: what messages call the names.

    Raises:
        DataError: if a name is missing or a URL, means no file or several, or two names mean one
            file.
    """
    for row, name in enumerate(names, start=1):
        if is_missing(name):
            raise DataError(f"{what}: row {row} has no file name; fill it in, or remove the row")
    if folder is None:
        return list(names)
    root = Path(folder)
    check_folder(root)
    found: list[Any] = []
    for name in names:
        is_name = isinstance(name, str | os.PathLike | Real)
        found.append(_as_written(name, root, what) if is_name else name)
    if any(file is None for file in found):
        found = _find_others(names, found, root, what)
    _check_each_its_own(names, found, what)
    return found


def _as_written(name: Any, root: Path, what: str) -> Path | None:
    """The file whose path a name is; None = there is none."""
    text = _text_of(name)
    if _URL.match(text):
        raise DataError(
            f"{what}: {shorten(text)} is a URL; download the files, and write names relative to {root}"
        )
    try:
        path = root / text
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _find_others(names: Sequence[Any], found: Sequence[Any], root: Path, what: str) -> list[Any]:
    """Find the files of the names that have none yet."""
    ends = _Ends(list_files(root, MASK_SUFFIXES).files, root)
    complete: list[Any] = []
    missing = []
    for name, file in zip(names, found, strict=True):
        text = _text_of(name) if file is None else ""
        files = [file] if file is not None else ends.files_of(text)
        if len(files) > 1:
            raise DataError(
                f"{what}: {shorten(text)} may be {files[0]} or {files[1]}; write its path relative to "
                f"{root}"
            )
        if not files:
            missing.append(shorten(text))
        complete += files
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} {what} are not in {root}: "
            f"{some_of(missing, _NUM_SHOWN)}. It holds {some_of(ends.paths, 3) or 'no images'}; names "
            "are relative to it: pass their folder, or list only what is there"
        )
    return complete


class _Ends:
    """Files by their paths, and by the last parts of these.

    Args:
        files: the files.
        root: that names are relative to, whose own name may be one of the last parts; None = there
            is no such folder.
    """

    def __init__(self, files: Sequence[Path], root: Path | None = None) -> None:
        self.paths: list[str] = []
        self.by_path = defaultdict[str, list[Path]](list)
        self.by_end = defaultdict[str, list[Path]](list)
        root_name = "" if root is None else os.path.abspath(root).rpartition(os.sep)[2]  # noqa: PTH100
        for file in files:
            path = file.as_posix() if root is None else file.relative_to(root).as_posix()
            self.paths.append(path)
            end = _comparable(path)
            self._add(self.by_path, end, file)
            if root_name:
                end = f"{root_name}/{end}"
            self._add(self.by_end, end, file)
            while "/" in end:
                end = end.partition("/")[2]
                self._add(self.by_end, end, file)

    @staticmethod
    def _add(files_by_name: dict[str, list[Path]], path: str, file: Path) -> None:
        files_by_name[path].append(file)
        stem, suffix = posixpath.splitext(path)
        if suffix:
            files_by_name[stem].append(file)

    def files_of(self, name: str) -> list[Path]:
        """Return the files that a name may mean; several = the name does not tell them apart."""
        path = _comparable(posixpath.normpath(name.replace("\\", "/")))
        if path in self.by_path:
            return self._best(self.by_path[path], path)
        files, _ = self.by_last_parts(name)
        return files

    def by_last_parts(self, name: str) -> tuple[list[Path], int]:
        """Return the files that end with most of the last parts of a name, and how many parts these are."""
        parts = _comparable(posixpath.normpath(name.replace("\\", "/"))).split("/")
        for first in range(len(parts)):
            end = "/".join(parts[first:])
            if end in self.by_end:
                return self._best(self.by_end[end], end), len(parts) - first
        return [], 0

    @staticmethod
    def _best(files: list[Path], path: str) -> list[Path]:
        """Those of the files whose suffix is named too, if there are any."""
        last = path.rpartition("/")[2]
        with_suffix = [file for file in files if _comparable(file.name) == last]
        return with_suffix or files


def _check_each_its_own(names: Sequence[Any], files: Sequence[Any], what: str) -> None:
    """Reject two names of one file."""
    name_of: dict[Hashable, str] = {}
    for name, file in zip(names, files, strict=True):
        if not isinstance(file, Path):
            continue
        text = _text_of(name)
        other = name_of.setdefault(identity_of(file), text)
        if other != text:
            raise DataError(
                f"of the {what}, {shorten(other)} and {shorten(text)} are the same file; keep one of them"
            )


def identity_of(file: Path) -> Hashable:
    """Return what two paths of one file share, also links; a hard link is a file of its own."""
    status = file.stat()
    if status.st_nlink > 1:
        return file.resolve()
    return status.st_dev, status.st_ino


def find_images(names: Sequence[str], images: Sequence[Path], what: str) -> Mapping[str, Path]:
    """Return name -> image, by the last parts of both; names of other images are left out.

    Args:
        names: of the rows of a truth.
        images: the images that are given.
        what: what messages call the truth.

    Raises:
        DataError: if a name fits several images, two names fit one equally, or none fits any.
    """
    if not names:
        raise DataError(f"{what} has no rows")
    ends = _Ends(images)
    name_of: dict[Path, tuple[int, str]] = {}
    for name in names:
        fitting, num_parts = ends.by_last_parts(_text_of(name))
        if len(fitting) > 1:
            raise DataError(
                f"{what}: {shorten(name)} is the name of several images, {fitting[0]} and "
                f"{fitting[1]}; write names with their folders"
            )
        for image in fitting:
            other_num_parts, other = name_of.get(image, (0, ""))
            if num_parts == other_num_parts:
                raise DataError(
                    f"{what}: {shorten(other)} and {shorten(name)} are both the name of {image}; write "
                    "names with their folders"
                )
            if num_parts > other_num_parts:
                name_of[image] = num_parts, name
    if not name_of:
        raise DataError(
            f"{what} has no row of the images {some_of(map(str, images), 3)}; it names "
            f"{some_of(map(str, names), 3)}"
        )
    return {name: image for image, (_, name) in name_of.items()}
