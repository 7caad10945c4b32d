"""Which file a name means. Neither pandas nor torch is imported."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from numbers import Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dinoneck.data.cells import PathLike, is_missing, stripped
from dinoneck.data.listing import MASK_SUFFIXES, SUFFIXES, check_folder, identity_of, list_files
from dinoneck.errors import DataError
from dinoneck.text import shorten, some_of

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")  # two letters or more: C:// is a drive
_NUM_SHOWN = 5  # names in a message

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
    return stripped(str(name))


def _comparable(path: str) -> str:
    r"""A path as names are compared: composed, ``\`` as ``/``, ``%20`` as a blank, ``.JPG`` as ``.jpg``."""
    path = unicodedata.normalize("NFC", path).replace("\\", "/").replace("%20", " ")
    stem, suffix = posixpath.splitext(path)
    is_of_a_format = suffix.lower() in MASK_SUFFIXES  # B04 of S2A.B04 is none
    return stem + suffix.lower() if is_of_a_format else path


# The file of a name
# ----------------------------------------------------------------------------------------------------


def find_files(
    names: Sequence[Any],
    folder: PathLike,
    what: str,
    suffixes: Collection[str] = SUFFIXES,
    *,
    beside: Path | None = None,
) -> list[Any]:
    r"""Return the file of each name, the first of these that there is.

    1. The file at this path, relative to the folder, or else to ``beside``.
    2. The file at this path when letters are composed (NFC), ``\`` is ``/``, ``%20`` a blank, and
       capitals of the suffix do not count.
    3. The file at this path whose suffix the name leaves out: ``a/1`` is ``a/1.jpg``; ``1.jpg`` is
       never ``1.png``.
    4. The one file whose path ends with most of the name's last parts: ``/data/x/1.jpg`` is
       ``a/1.jpg`` if no other file ends with ``1.jpg``.

    Args:
        names: one for each row; images in memory are returned as they are.
        folder: that names are relative to.
        what: what messages call the names.
        suffixes: of the files that 2 to 4 choose from.
        beside: another folder that names may be relative to; None = none.

    Raises:
        DataError: if a name is missing or a URL, means no file or several, or two names mean one
            file; if 2 to 4 are needed and a link in the folder leads nowhere.
    """
    for row, name in enumerate(names, start=1):
        if is_missing(name):
            raise DataError(f"{what}: row {row} has no file name; fill it in, or remove the row")
    root = Path(folder)
    check_folder(root)
    found: list[Any] = []
    for name in names:
        if not isinstance(name, str | os.PathLike | Real):
            found.append(name)
            continue
        file = _as_written(name, root, what)
        if file is None and beside is not None:
            file = _as_written(name, beside, what)
        found.append(file)
    if any(file is None for file in found):
        found = _find_others(names, found, root, what, suffixes)
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


def _find_others(
    names: Sequence[Any],
    found: Sequence[Any],
    root: Path,
    what: str,
    suffixes: Collection[str],
) -> list[Any]:
    """Find the files of the names that have none yet."""
    listed = _ListedFiles(
        list_files(root, suffixes, without_masks=suffixes == SUFFIXES).files, root
    )
    complete: list[Any] = []
    missing = []
    for name, file in zip(names, found, strict=True):
        text = _text_of(name) if file is None else ""
        files = [file] if file is not None else listed.files_of(text)
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
            f"{some_of(missing, _NUM_SHOWN)}. It holds {some_of(listed.paths, 3) or 'no images'}; names "
            "are relative to it: pass their folder, or list only what is there"
        )
    return complete


class _ListedFiles:
    """Files by the names that may mean them.

    The file ``a/1.jpg`` of the root ``photos`` has the path ``a/1.jpg`` and the ends
    ``photos/a/1.jpg``, ``a/1.jpg`` and ``1.jpg``, each also without its suffix.

    Args:
        files: the files.
        root: that names are relative to; None = there is no such folder.
    """

    def __init__(self, files: Sequence[Path], root: Path | None = None) -> None:
        self.paths: list[str] = []
        self._of_path = defaultdict[str, list[Path]](list)
        self._of_path_without_suffix = defaultdict[str, list[Path]](list)
        self._of_end = defaultdict[str, list[Path]](list)
        self._of_end_without_suffix = defaultdict[str, list[Path]](list)
        # the name of a link, not of its target
        root_name = "" if root is None else os.path.abspath(root).rpartition(os.sep)[2]  # noqa: PTH100
        for file in files:
            path = file.as_posix() if root is None else file.relative_to(root).as_posix()
            self.paths.append(path)
            path = _comparable(path)
            self._of_path[path].append(file)
            self._of_path_without_suffix[posixpath.splitext(path)[0]].append(file)
            for end in _ends_of(f"{root_name}/{path}" if root_name else path):
                self._of_end[end].append(file)
                self._of_end_without_suffix[posixpath.splitext(end)[0]].append(file)

    def files_of(self, name: str) -> list[Path]:
        """Return the files that a name may mean; several = the name does not tell them apart."""
        path = _comparable(posixpath.normpath(name.replace("\\", "/")))
        at_path = self._of_path.get(path) or self._of_path_without_suffix.get(path)
        return at_path or self.by_last_parts(name)[0]

    def by_last_parts(self, name: str) -> tuple[list[Path], int]:
        """Return the files that end with most of the last parts of a name, and how many parts these are."""
        path = _comparable(posixpath.normpath(name.replace("\\", "/")))
        num_parts = path.count("/") + 1
        for end in _ends_of(path):
            files = self._of_end.get(end) or self._of_end_without_suffix.get(end)
            if files:
                return files, num_parts
            num_parts -= 1
        return [], 0


def _ends_of(path: str) -> list[str]:
    """The last parts of a path, the most first: ``a/b/c``, ``b/c``, ``c``."""
    parts = path.split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _check_each_its_own(names: Sequence[Any], files: Sequence[Any], what: str) -> None:
    """Reject one file under two spellings; equal names are compared where they may not repeat."""
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
    listed = _ListedFiles(images)
    name_of: dict[Path, tuple[int, str]] = {}
    for name in names:
        fitting, num_parts = listed.by_last_parts(_text_of(name))
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
