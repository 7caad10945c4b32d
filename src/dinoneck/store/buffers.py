"""Memory for batches that is used again once nobody holds a tensor on it.

The system hands out fresh memory page by page, and for batches of hundreds of megabytes that costs more than reading
them. A training loop holds one or two batches at a time; from the third on, each lies where an earlier one was.
At most three buffers that nobody uses are kept.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST = 1 << 20  # bytes; the allocator keeps smaller pieces anyway
LARGEST = 1 << 30  # bytes; what is larger goes back to the system
_ALIGNMENT = 64  # bytes, as torch aligns
_free: deque[NDArray[np.uint8]] = deque(maxlen=3)  # the one freed longest ago makes room


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor on the CPU, like ``torch.empty``; its memory is used again when it is let go."""
    nbytes = math.prod(shape) * dtype.itemsize
    if not SMALLEST <= nbytes <= LARGEST:
        return torch.empty(shape, dtype=dtype)
    memory = _taken(nbytes)
    lent = memory.view()  # the tensor keeps this view alive, and nothing else does
    weakref.finalize(lent, _free.append, memory).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in another dtype, on its device; on the CPU in memory that is used again."""
    return empty(x.shape, dtype).copy_(x) if x.device.type == "cpu" else x.to(dtype)


def _taken(nbytes: int) -> NDArray[np.uint8]:
    """Return free memory of exactly this size, or new one."""
    for _ in range(len(_free)):
        try:
            memory = _free.popleft()
        except IndexError:  # another thread was faster
            break
        if memory.nbytes == nbytes:
            return memory
        _free.append(memory)
    whole = np.empty(nbytes + _ALIGNMENT, np.uint8)
    return whole[-whole.ctypes.data % _ALIGNMENT :][:nbytes]
