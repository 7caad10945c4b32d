"""The sizes of images that a detector takes: whole patches and whole cells. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from dinoneck.errors import ConfigError

DEFAULT_SIZE = (640, 640)  # (height, width), as in the recipes of D-FINE and RT-DETR
_LARGEST_DENOMINATOR = 64  # of strides and ratios that are written as decimals


def check_size(
    size: Sequence[int], patch: Sequence[int], *, features_at: float, strides: Sequence[float]
) -> None:
    """Reject a size at which a patch or a level has a fraction of a cell.

    Args:
        size: (height, width) in pixels.
        patch: (height, width) of a patch of the backbone, in pixels of what it is given.
        features_at: what the backbone is given, as a share of the image's sides.
        strides: pixels of the image per cell of each level.

    Raises:
        ConfigError: naming the next size that fits.
    """
    height, width = size
    unit_height = _unit(patch[0], features_at, strides)
    unit_width = _unit(patch[1], features_at, strides)
    if height % unit_height or width % unit_width:
        next_height = math.ceil(height / unit_height) * unit_height
        next_width = math.ceil(width / unit_width) * unit_width
        raise ConfigError(
            f"size is {height}x{width} (height x width); this detector needs multiples of "
            f"{unit_height}x{unit_width}, such as {next_height}x{next_width}"
        )


def as_fraction(value: float) -> Fraction:
    """Return a stride or a ratio as the fraction that its decimals stand for."""
    return Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)


def _unit(patch_side: int, features_at: float, strides: Sequence[float]) -> int:
    """The pixels of which a side of the image is a multiple, so that patches and cells are whole."""
    patch_px = patch_side / as_fraction(features_at)
    return math.lcm(patch_px.numerator, *(as_fraction(stride).numerator for stride in strides))
