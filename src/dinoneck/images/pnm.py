"""PGM, PPM and PFM files: the range that they state, to which Pillow scales their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.images.bit_depth import FULL
from dinoneck.images.stored_tiles import tile_arguments

Values = np.ndarray[Any, Any]

_BYTE = 255
_LARGEST_OF_PILLOW = {"L": _BYTE, "RGB": _BYTE, "I": FULL}  # by mode
_WHOLE_RANGE = "I;16B"  # as Pillow reads a PGM that states all 16 bits


@dataclass(frozen=True)
class StoredRange:
    """The range that a PGM, PPM or PFM states.

    Attributes:
        largest: number that a PGM or PPM states; None = the numbers are not scaled.
        full: number that it becomes.
        factor: of a PFM, from its numbers to quantities.
    """

    largest: int | None = None
    full: int = _BYTE
    factor: float = 1.0

    def restore(self, values: Values) -> Values:
        """Return the numbers that the file stores: scaling up and rounding lost nothing."""
        if self.largest in (None, self.full):
            return values
        return np.rint(values.astype(np.float64) * self.largest / self.full).astype(values.dtype)


def range_of(image: Image.Image) -> StoredRange:
    """Return the range of an opened PGM, PPM or PFM; that of others scales nothing."""
    if image.format != "PPM":
        return StoredRange()
    factor = float(image.info.get("scale", 1.0))
    arguments = tile_arguments(image)
    full = _LARGEST_OF_PILLOW.get(image.mode)
    if is_deep_grey(image) and arguments and arguments[0] == _WHOLE_RANGE:
        return StoredRange(FULL, FULL, factor)
    if full is None or len(arguments) < 2 or not isinstance(arguments[1], int):
        return StoredRange(factor=factor)
    # Pillow writes the decoder's bands and the largest number
    return StoredRange(arguments[1], full, factor)


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an image is a PGM of more than 8 bits."""
    return image.format == "PPM" and image.mode == "I"
