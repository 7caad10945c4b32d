"""How the pixels of a file are stored, which Pillow forgets as it decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from dinoneck.atomic import open_regular

_STORED_AS = "dinoneck: arguments of the decoder"  # an entry of Image.info


def tiles_of(image: Image.Image) -> list[ImageFile._Tile]:
    """Return the decoder's tiles of an image; of one that is decoded those of its file.

    None are returned if the file is not known, or is another one now.
    """
    tiles = _tiles(image)
    filename = getattr(image, "filename", "")
    if tiles or image.format is None or not filename:
        return tiles
    try:
        with open_regular(Path(filename)) as file, Image.open(file) as header:
            is_same = header.format == image.format and header.size == image.size
            return _tiles(header) if is_same else []
    except Exception:  # it is gone or damaged, which raises many kinds of errors
        return []


def _tiles(image: Image.Image) -> list[ImageFile._Tile]:
    # plug-ins of others write plain tuples
    return [ImageFile._Tile(*tile) for tile in getattr(image, "tile", ())]


def tile_arguments(image: Image.Image) -> tuple[Any, ...]:
    """Return the arguments of the decoder; none for an image of which they are not known.

    They are noted in ``Image.info``, for images that are decoded here.
    """
    noted: tuple[Any, ...] = image.info.get(_STORED_AS, ())
    if noted:
        return noted
    for tile in tiles_of(image):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        image.info[_STORED_AS] = arguments
        return arguments
    return ()
