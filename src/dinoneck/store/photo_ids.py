"""Which photos to extract, and the ids they get."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dinoneck.data.image_files import images_below
from dinoneck.errors import DataError

PathLike = str | os.PathLike[str]


def image_ids(paths: PathLike | Sequence[PathLike], root: PathLike | None = None) -> dict[str, Path]:
    """Return image id -> file, ids sorted.

    An id is the file's path relative to ``root`` with ``/`` between the parts and without its suffix.

    Args:
        paths: photos and folders, which are searched to the bottom for names that end in a picture's suffix. A file
            that is listed several times counts once.
        root: what ids are relative to; None = the one folder given, else the nearest folder that holds all photos.

    Raises:
        DataError: if there are no photos, one lies outside ``root``, or two have the same id.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    tops = [_absolute(path) for path in given]
    files = list(dict.fromkeys(file for top in tops for file in images_below(top)))
    if not files:
        raise DataError("there are no photos to extract tokens from")
    if root is not None:
        base = _absolute(root)
    elif len(tops) == 1 and tops[0].is_dir():
        base = tops[0]
    else:
        base = Path(os.path.commonpath([file.parent for file in files]))
    found: dict[str, Path] = {}
    for file in files:
        image_id = _id(file, base)
        if image_id in found:
            raise DataError(
                f"{found[image_id]} and {file} would both get the id {image_id!r}; an id is the path without suffix: "
                "rename or leave out one of them"
            )
        found[image_id] = file
    return dict(sorted(found.items()))


def _absolute(path: PathLike) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _id(file: Path, base: Path) -> str:
    try:
        image_id = file.relative_to(base).with_suffix("").as_posix()
    except ValueError:
        raise DataError(f"{file} does not lie in the root {base}; ids are paths relative to the root") from None
    try:
        image_id.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {image_id!r} is no Unicode text; rename the photo") from None
    return image_id
