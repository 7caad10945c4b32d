"""How the pixels of a file are stored, which Pillow forgets as it decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from dinoneck.atomic import open_regular

_STORED_AS = "dinoneck: arguments of the decoder"  # an entry of Image.info


def tiles_of(image: Image.Image) -> tuple[Any, ...]:
    """Return the decoder's tiles of an image; of one that is decoded those of its file.

    None are returned if the file is not known, or is another one now.
    """
    tiles = tuple(getattr(image, "tile", ()))
    filename = getattr(image, "filename", "")
    if tiles or image.format is None or not filename:
        return tiles
    try:
        with open_regular(Path(filename)) as file, Image.open(file) as header:
            is_same = header.format == image.format and header.size == image.size
            return tuple(getattr(header, "tile", ())) if is_same else ()
    except Exception:  # it is gone or damaged, which raises many kinds of errors
        return ()


def tile_arguments(image: Image.Image) -> tuple[Any, ...]:
    """Return the arguments of the decoder; none for an image of which they are not known.

    They are noted in ``Image.info``, for images that are decoded here.
    """
    noted: tuple[Any, ...] = image.info.get(_STORED_AS, ())
    if noted:
        return noted
    for tile in tiles_of(image):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        image.info[_STORED_AS] = arguments
        return arguments
    return ()
