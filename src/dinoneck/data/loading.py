"""Images of a folder, and threads that decode them ahead of the model that takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    function: Callable[[T], R], items: Sequence[T], workers: int | None = None, ahead: int = 1
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for all items in order, computed by threads a few items ahead of the one in use.

    Decoding and resizing release Python's lock, so they run while the model computes.

    Args:
        function: called in a thread; what it raises is raised when its item's turn comes.
        items: its arguments; a single one is computed without a thread.
        workers: threads; None = one per core, at most 8; ``torchrun``'s processes share the cores of a machine.
        ahead: how many results may wait; at least one per thread.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = workers or max(1, min(8, (os.cpu_count() or 1) // processes))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dinoneck-images")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > max(workers, ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
