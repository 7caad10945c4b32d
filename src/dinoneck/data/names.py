"""Which files are meant: the images below a folder, and the file that a name stands for.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dinoneck.data.cells import PathLike, cell_text, composed, is_missing
from dinoneck.data.run_names import REPORT
from dinoneck.errors import DataError
from dinoneck.text import some_of

logger = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
_RUN_FILES = (REPORT, "store.json")  # a folder with one of them was written by dinoneck
_REMEDY = "names are relative to it; pass their folder, or list only images that are there"


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted, without hidden folders and those of runs.

    Files of other formats are counted in one line, as they may be images that were to be read.

    Raises:
        DataError: if the folder does not exist.
    """
    check_folder(folder)
    images = []
    others = defaultdict[str, int](int)
    for path, folders, names in os.walk(folder, followlinks=True):
        here = Path(path)
        folders[:] = sorted(name for name in folders if not _is_left_out(here / name))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and not name.startswith("."):
                images.append(here / name)
            elif not name.startswith("."):
                others[suffix or name] += 1
    if others:
        shown = [f"{count} x {suffix}" for suffix, count in sorted(others.items())]
        logger.info("%s: files that are no images: %s", folder, some_of(shown, 8))
    return images


def _is_left_out(folder: Path) -> bool:
    if folder.name.startswith((".", "__")):
        return True
    return any((folder / name).is_file() for name in _RUN_FILES)


def check_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: naming it.
    """
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder")


def list_pictures(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return path -> images: those below a folder, sorted, or the file itself."""
    return {path: image_files(path) if path.is_dir() else [path] for path in paths}


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


def is_absolute(name: str) -> bool:
    """Whether a name is an absolute path, of this system or another."""
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()


def is_json_file(path: PathLike) -> bool:
    """Whether a path is called as a JSON file."""
    return Path(path).suffix.lower() == ".json"


def check_encodable(text: Any, name: Any) -> None:
    """Refuse a file name that is no text, which could not be written to a table."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {name!r} is no UTF-8; rename it") from None


def find_files(names: Sequence[Any], folder: PathLike | None, what: str) -> list[Any]:
    r"""Return the file of each name; images in memory, and all without a folder, as they are.

    A name is a path relative to the folder (``\`` as ``/``), or else the end of one path below it.

    Args:
        names: one per row.
        folder: that names are relative to; None = files are not looked for.
        what: what messages call the names.

    Raises:
        DataError: if a name is missing, means no file or several, or two names mean one file.
    """
    rows = [row for row, name in enumerate(names) if is_missing(name)]
    if rows:
        raise DataError(
            f"{what}: row {rows[0] + 1} has no file name; fill it in, or remove the row"
        )
    if folder is None:
        return list(names)
    root = Path(folder)
    check_folder(root)
    files = [_direct(name, root) for name in names]
    if None in files:
        files = _by_ends(names, files, root, what)
    _check_once(names, files, what)
    return files


def check_files(names: Sequence[Any], folder: PathLike, what: str) -> None:
    """Raise the errors of :func:`find_files`."""
    find_files(names, folder, what)


def _direct(name: Any, root: Path) -> Any:
    """The file that a name is the path of; None = there is none. Images in memory are kept."""
    if not isinstance(name, str | os.PathLike):
        return name
    path = root / cell_text(os.fspath(name)).replace("\\", "/")
    return path if path.is_file() else None


def _by_ends(names: Sequence[Any], files: Sequence[Any], root: Path, what: str) -> list[Any]:
    """The files whose paths end like the names, or like their last parts."""
    by_name = defaultdict[str, list[Path]](list)
    for path in image_files(root):
        by_name[composed(path.name)].append(path)
    found = []
    missing = []
    for name, file in zip(names, files, strict=True):
        if file is not None:
            found.append(file)
            continue
        parts = tuple(cell_text(name).replace("\\", "/").split("/"))
        candidates = by_name[parts[-1]]
        if len(candidates) > 1 and len(parts) > 1:
            candidates = [path for path in candidates if path.parts[-len(parts) :] == parts]
        if len(candidates) > 1:
            raise DataError(
                f"{what}: '{name}' may be {candidates[0]} or {candidates[1]}; write names with their "
                "folders"
            )
        found += candidates
        if not candidates:
            missing.append(f"'{name}'")
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} {what} are not in {root}: {some_of(missing, 5)}; {_REMEDY}"
        )
    return found


def _check_once(names: Sequence[Any], files: Sequence[Any], what: str) -> None:
    name_of: dict[Path, Any] = {}
    for name, file in zip(names, files, strict=True):
        if isinstance(file, Path) and name_of.setdefault(file, name) is not name:
            raise DataError(
                f"of the {what}, '{name_of[file]}' and '{name}' are the same file; keep one of them"
            )


def find_images(names: Sequence[str], images: Sequence[Path], what: str) -> Mapping[str, Path]:
    """Return the image of each name, whose path ends like it; names of other images are left out.

    Raises:
        DataError: if a name fits several images, or none fits any.
    """
    by_name = defaultdict[str, list[Path]](list)
    for image in images:
        by_name[composed(image.name)].append(image)
    found = {}
    for name in names:
        parts = tuple(composed(name).replace("\\", "/").split("/"))
        fitting = [path for path in by_name[parts[-1]] if path.parts[-len(parts) :] == parts]
        if len(fitting) > 1:
            raise DataError(
                f"{what}: '{name}' is the name of several images, {fitting[0]} and {fitting[1]}; write "
                "names with their folders"
            )
        if fitting:
            found[name] = fitting[0]
    if not found:
        raise DataError(
            f"{what} has no row of the images {some_of(map(str, images), 3)}; it names "
            f"{some_of(names, 3)}"
        )
    return found
