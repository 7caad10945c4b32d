"""The colours of classes, boxes and values, in every picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from PIL import ImageColor

RGB = tuple[int, int, int]
Floats = np.ndarray[Any, Any]

# Okabe and Ito, for colour-blind readers
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6bb1")
CLASSES = ("#009e73", "#d55e00", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
GROUND = {"background", "ground", "none", "soil"}
"""Names of a first class that has no colour: the grey image shows through."""
NODATA: RGB = (154, 163, 171)
GOLDEN_ANGLE = 137.508  # degrees: hues in steps of it stay far apart, however many there are

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
SCALE = np.array(
    ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64
)


def class_colours(labels: Sequence[str]) -> list[RGB | None]:
    """Return a colour per class; None for a first class that is the ground."""
    is_ground = bool(labels) and labels[0].lower() in GROUND
    count = len(labels) - is_ground
    colours: list[RGB | None] = []
    if is_ground:
        colours.append(None)
    for i in range(count):
        if count <= len(CLASSES):
            colours.append(ImageColor.getrgb(CLASSES[i])[:3])
        else:
            colours.append(_hue(i * GOLDEN_ANGLE % 360 / 360))
    return colours


def box_colours(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each class of boxes, in the order of the model's classes."""
    return dict(zip(dict.fromkeys(names), cycle(PALETTE), strict=False))


def _hue(turn: float) -> RGB:
    """The colour at a share 0 ... 1 of the colour wheel."""
    red, green, blue = colorsys.hls_to_rgb(turn, 0.5, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def normal_colours(normals: Floats) -> Floats:
    """Return the colours (height, width, 3), 0 ... 255, of surface normals (3, height, width)."""
    colours: Floats = (normals.transpose(1, 2, 0) + 1.0) * (255 / 2)
    return colours


def heat_colours(values: Floats, low: float, high: float) -> Floats:
    """Return values as colours (..., 3) in 0 ... 255: ``low`` dark violet, ``high`` yellow."""
    shares = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    positions = shares * (len(SCALE) - 1)
    anchors = range(len(SCALE))
    channels = [np.interp(positions, anchors, channel) for channel in SCALE.T]
    return np.stack(channels, axis=-1)
