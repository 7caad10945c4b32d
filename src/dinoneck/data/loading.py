"""Images are decoded in threads ahead of the model that takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
