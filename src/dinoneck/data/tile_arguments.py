"""How the pixels of a file are stored, which Pillow forgets as it decodes them."""

from __future__ import annotations

from typing import Any

from PIL import Image

_STORED_AS = "dinoneck: arguments of the decoder"  # an entry of Image.info


def tile_arguments(image: Image.Image) -> tuple[Any, ...]:
    """Return the arguments of the decoder; none for an image that was decoded elsewhere.

    They are noted in ``Image.info``, for images that are decoded here.
    """
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        image.info[_STORED_AS] = arguments
        return arguments
    noted: tuple[Any, ...] = image.info.get(_STORED_AS, ())
    return noted
