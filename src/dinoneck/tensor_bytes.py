"""The bytes of a tensor as they lie in files and go into digests."""

from __future__ import annotations

import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's values in row-major order; on the CPU they are not copied if they lie so already."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)  # type: ignore[arg-type]
