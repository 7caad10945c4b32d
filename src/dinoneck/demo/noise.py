"""Smooth noise, of which the generated images are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_Size = tuple[int, int]


def smooth_noise(
    random: np.random.RandomState, shape: _Size, passes: int, size: _Size | None = None
) -> np.ndarray[Any, Any]:
    """Return blurred unit-variance noise on a coarse grid, enlarged to ``size`` if given.

    Args:
        random: what draws; its state moves on by one number per cell of the grid.
        shape: (rows, cols) of the grid.
        passes: how often the grid is blurred.
        size: (height, width) of the result in pixels; None: the grid itself.
    """
    field: np.ndarray[Any, Any] = random.normal(size=shape)
    for _ in range(passes):
        padded = np.pad(field, 1, mode="edge")
        above = padded[:-2, 1:-1]
        below = padded[2:, 1:-1]
        left = padded[1:-1, :-2]
        right = padded[1:-1, 2:]
        field = (above + below + left + right + 2 * field) / 6
    field = (field - field.mean()) / (field.std() + 1e-9)
    if size is None:
        return field
    height, width = size
    coarse = Image.fromarray(field.astype(np.float32))
    enlarged = coarse.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float64)
