"""Colours, sizes and resolutions of pictures; no other file of this package names one."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ImageColor, ImageFont

RGB = tuple[int, int, int]
Floats = np.ndarray[Any, Any]

# Okabe and Ito, for colour-blind readers
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6bb1")
CLASSES = ("#009e73", "#d55e00", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
GROUND = {"background", "ground", "none", "soil"}
"""Names of a first class that has no colour: the grey image shows through."""
NODATA: RGB = (154, 163, 171)
INK: RGB = (30, 30, 30)

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
SCALE = np.array(
    ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64
)

# letters of 11 px at least where a picture is shown 390 px wide, as on a phone
WIDTH_PX, GAP_PX = 320, 6  # of a picture in a sheet, and between pictures
DASH_PX = 16  # of the frame of a box that is missed, and the gap after it
LINE_PX, FONT_PX = 27, 19  # line of text, its letters
SIDE_PX, LABEL_PX = 900, 26  # longer side of an image with boxes, the letters of their labels
OVERLAY_PX, CAPTION_PX = 1200, 34  # longer side of an overlay, its letters
SIMILARITY_PX = 960  # longer side of an image of the similarity page
DPI = 120
# of amounts, and of shares: 0.85 * share ** 0.8
OPACITY, SHARE_OPACITY, SHARE_POWER = 0.65, 0.85, 0.8


def font(height: int) -> Any:
    """Return Pillow's font with letters of this height in pixels."""
    return ImageFont.load_default(height)


def class_colours(labels: Sequence[str]) -> list[RGB | None]:
    """Return a colour per class; None for a first class that is the ground."""
    is_ground = bool(labels) and labels[0].lower() in GROUND
    count = len(labels) - is_ground
    if count <= len(CLASSES):
        colours = [ImageColor.getrgb(colour)[:3] for colour in CLASSES[:count]]
    else:  # steps of the golden angle
        hues = (colorsys.hls_to_rgb(i * 137.508 % 360 / 360, 0.5, 0.7) for i in range(count))
        colours = [tuple(round(255 * value) for value in hue) for hue in hues]  # type: ignore[misc]
    return [*[None] * is_ground, *colours]


def heat_colours(values: Floats, low: float, high: float) -> Floats:
    """Return values as colours (..., 3) in 0 ... 255: ``low`` dark violet, ``high`` yellow."""
    place = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(SCALE) - 1)
    return np.stack([np.interp(place, range(len(SCALE)), channel) for channel in SCALE.T], axis=-1)
