"""Which files are meant: the images below a folder, and the file that a name stands for.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.cells import PathLike, is_missing
from dinoneck.errors import DataError, some_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
# pictures that are counted and named, since people expect them to be read
OTHER_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".jxl",
    ".jp2",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".psd",
)


def images_below(top: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted, without hidden files; for a file, the file."""
    if not top.is_dir():
        return [top]
    files = (
        path
        for path in top.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    return sorted(path for path in files if not path.is_dir())


def find_files(names: Iterable[Any], folder: PathLike | None, what: str) -> list[Any]:
    """Return the files of these names, below a folder if one is given; ``what`` calls them in messages.

    A name is looked for as it is written, then in the forms NFC and NFD, which file systems
    exchange. A missing name has the file None.

    Raises:
        DataError: if a file does not exist or is empty, or two names are one file.
    """
    texts = ["" if is_missing(name) else str(name).strip() for name in names]
    if folder is None:
        return [Path(text) if text else None for text in texts]
    files, first = dict[str, Path](), dict[Path, str]()
    for text in filter(None, texts):
        spellings = (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))
        places = (Path(folder, name) for name in spellings)
        if file := next((file for file in places if file.is_file() and file.stat().st_size), None):
            files[text] = file
            if (other := first.setdefault(file.resolve(), text)) != text:
                raise DataError(
                    f"of the {what}, {other!r} and {text!r} are the same file; keep one of them"
                )
    if missing := [repr(text) for text in texts if text and text not in files]:
        counts = f"{len(missing)} of {len(texts)} {what} are missing or empty in {folder}"
        raise DataError(
            f"{counts}: {some_of(missing, 5)}; names are relative to it, or pass their folder"
        )
    return [files.get(text) for text in texts]
