"""Images are decoded in threads ahead of the model that takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import default_collate

from dinoneck.errors import ShapeError
from dinoneck.tokens import Tokens

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


def collate(batch: Sequence[Any]) -> Any:
    """Collate samples that hold :class:`Tokens`; everything else goes to torch's ``default_collate``.

    Args:
        batch: Tokens, or tuples, lists or dicts that hold them, one per sample.

    Raises:
        ShapeError: if there are none, or Tokens differ in form or source, see :meth:`dinoneck.Tokens.cat`.

    Examples:
        >>> import torch
        >>> one = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16)
        >>> tokens, target = collate([(one, 1.0), (one, 2.0)])
        >>> len(tokens), target.tolist()
        (2, [1.0, 2.0])
    """
    if not batch:
        raise ShapeError("there are no samples to collate")
    first = batch[0]
    if isinstance(first, Tokens):
        return Tokens.cat(batch)
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple | list):
        columns = [collate(column) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return default_collate(list(batch))
