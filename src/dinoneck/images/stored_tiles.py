"""How the pixels of a file are stored, which Pillow forgets as it decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dinoneck.atomic import open_regular

_STORED_AS = "dinoneck: arguments of the decoder"  # an entry of Image.info


class Tile(NamedTuple):
    """A part of a file's pixels, in the order in which Pillow lists what it hands to a decoder.

    Attributes:
        decoder: its name.
        extents: left, top, right and bottom in the image.
        offset: where it begins in the file.
        args: arguments of the decoder.
    """

    decoder: str
    extents: tuple[int, int, int, int] | None
    offset: int = 0
    args: Any = None


def tiles_of(image: Image.Image) -> list[Tile]:
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


def _tiles(image: Image.Image) -> list[Tile]:
    return [Tile(*tile) for tile in getattr(image, "tile", ())]


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
