"""Colours, sizes and resolutions that pictures share, and the colours of classes, boxes and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ImageFont

from dinoneck.images import colours

# the colours of all pictures; those below are of pictures of predictions alone
RGB = colours.RGB
Floats = colours.Floats
PALETTE = colours.PALETTE
CLASSES = colours.CLASSES
GROUND = colours.GROUND
NODATA = colours.NODATA
SCALE = colours.SCALE
class_colours = colours.class_colours
box_colours = colours.box_colours
normal_colours = colours.normal_colours
heat_colours = colours.heat_colours
INK: RGB = (30, 30, 30)
BAR: RGB = (236, 239, 242)  # behind the bar of a probability
AXIS: RGB = (213, 219, 225)  # of intervals
RIGHT: RGB = (0, 158, 115)  # of a tick, and of an interval that holds the true number
WRONG: RGB = (213, 94, 0)  # of a cross, and of an interval that does not
UNKNOWN: RGB = (89, 99, 111)  # of an interval whose true number is not known
MIDDLE_GREY = 140.0  # of a photo behind a map, in a colour bar

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


def font(height: int) -> Any:
    """Return Pillow's font with letters of this height in pixels."""
    return ImageFont.load_default(height)


def number_colours(names: Sequence[str]) -> list[RGB | None]:
    """Return a colour per number; None for one that is named as the ground, wherever it is listed."""
    coloured = [name for name in names if name.lower() not in GROUND]
    colour_of = dict(zip(coloured, class_colours(coloured), strict=True))
    return [colour_of.get(name) for name in names]


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
