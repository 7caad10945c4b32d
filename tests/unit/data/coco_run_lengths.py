"""Masks as the run lengths of COCO, computed without pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np


def run_lengths_of(mask: np.ndarray[Any, Any]) -> list[int]:
    """Return the lengths of the runs down the columns of a mask (height, width) of 0 and 1.

    The first run is of the background; its length is 0 if the first pixel is of the object.
    """
    pixels = mask.T.ravel()
    previous_pixels = np.concatenate([[0], pixels[:-1]])
    starts = np.flatnonzero(pixels != previous_pixels)
    borders = np.concatenate([[0], starts, [mask.size]])
    lengths: list[int] = np.diff(borders).tolist()
    return lengths
