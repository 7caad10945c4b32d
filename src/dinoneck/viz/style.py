"""Colours, sizes and resolutions that pictures share, and the colours of classes, boxes and values."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import cycle
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
BAR: RGB = (236, 239, 242)  # behind the bar of a probability
AXIS: RGB = (213, 219, 225)  # of intervals
RIGHT: RGB = (0, 158, 115)  # of a tick, and of an interval that holds the true number
WRONG: RGB = (213, 94, 0)  # of a cross, and of an interval that does not
UNKNOWN: RGB = (89, 99, 111)  # of an interval whose true number is not known
MIDDLE_GREY = 140.0  # of a photo behind a map, in a colour bar

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
SCALE = np.array(
    ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64
)

# the sizes of letters: at least 11 px where a picture is shown 390 px wide, as on a phone
WIDTH_PX = 320  # of a picture in a sheet
GAP_PX = 6  # between the pictures of a sheet
LINE_PX = 27  # height of a line of text in a sheet
FONT_PX = 19  # of the letters in a sheet
SIDE_PX = 900  # longer side of an image with boxes
LABEL_PX = 26  # of the letters of box labels
OUTLINE_PX = 3  # width of the outline of an object's mask
MASK_OPACITY = 0.3  # of the colour inside of it
DASH_PX = 16  # a dash of the frame of a missed box, and the gap after it
OVERLAY_PX = 1200  # longer side of an overlay
CAPTION_PX = 34  # of the letters of an overlay
PANEL_CAPTION_PX = 30  # of the letters below maps that are next to each other
PAINTING_PX = 960  # width of a photo in the painting page
DPI = 120
OPACITY = 0.65  # of values
FULL_FROM = 0.5  # an amount from this share of its scale has the full opacity; 0 is transparent
TINT = 0.45  # of a class's colour, behind letters
SHARE_OPACITY = 0.85  # a share has the opacity SHARE_OPACITY * share ** SHARE_POWER
SHARE_POWER = 0.8
GOLDEN_ANGLE = 137.508  # degrees: hues in steps of it stay far apart, however many there are


def font(height: int) -> Any:
    """Return Pillow's font with letters of this height in pixels."""
    return ImageFont.load_default(height)


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


def number_colours(names: Sequence[str]) -> list[RGB | None]:
    """Return a colour per number; None for one that is named as the ground, wherever it is listed."""
    coloured = [name for name in names if name.lower() not in GROUND]
    colours = dict(zip(coloured, class_colours(coloured), strict=True))
    return [colours.get(name) for name in names]


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


def hex_colour(colour: RGB) -> str:
    """Return a colour as pages write it, such as ``#009e73``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def heat_opacity(shares: Floats) -> Floats:
    """Return the opacity of amounts, which are shares 0 ... 1 of their scale: 0 shows the grey image alone."""
    opacity: Floats = SHARE_OPACITY * np.clip(shares / FULL_FROM, 0.0, 1.0) ** SHARE_POWER
    return opacity


def tint(colour: RGB) -> RGB:
    """Return a colour so pale that dark letters on it can be read."""
    red, green, blue = (round(255 + TINT * (value - 255)) for value in colour)
    return red, green, blue
