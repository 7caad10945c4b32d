"""Which files of a folder are images."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd")


def images_below(top: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted, without hidden files; for a file, the file."""
    return _below(top, SUFFIXES) if top.is_dir() else [top]


def other_images_below(top: Path) -> list[Path]:
    """Return the images of a folder that :func:`images_below` leaves out, since their formats are not read."""
    return _below(top, OTHER_SUFFIXES)


def _below(top: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = (path for path in top.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in files if not path.is_dir())
