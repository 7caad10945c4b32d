"""Colours of 16 bits, of which Pillow keeps one byte: how to find such files, and to get the other byte."""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import Image

from dinoneck.images.bit_depth import FULL
from dinoneck.images.image_tiffs import has_planes
from dinoneck.images.stored_tiles import Tile, tiles_of

# raw modes: kinds of colours, and the order of their two bytes
_KINDS = ("RGB", "RGBA", "RGBX")
_HIGH_FIRST = ";16B"
_LOW_FIRST = ";16L"
_NATIVE = ";16N"  # the order of the machine
# Pillow's decoders whose raw mode does not tell the bits
_PNM_DECODERS = ("ppm", "ppm_plain")
_SGI_DECODER = "SGI16"


def is_deep(image: Image.Image) -> bool:
    """Return whether a file has 16 bits per value; False once it is decoded and its file is not known."""
    return any(_is_deep_tile(tile) for tile in tiles_of(image))


def _is_deep_tile(tile: Tile) -> bool:
    if tile.decoder in _PNM_DECODERS and isinstance(tile.args, tuple):
        # others state a smaller range, to which Pillow scales
        return bool(tile.args[-1] == FULL)
    return tile.decoder == _SGI_DECODER or ";16" in _raw_mode(tile.args)


def file_of(image: Image.Image) -> bytes:
    """Return the file of an opened image; nothing once it is decoded."""
    source = getattr(image, "fp", None)
    if source is None:
        return b""
    position = source.tell()
    source.seek(0)
    content: bytes = source.read()
    source.seek(position)
    return content


def low_bytes(file: bytes) -> Image.Image | None:
    """Return the low bytes of 16-bit colours as an image of 8 bits; None for others than interleaved RGB.

    Pillow keeps the byte that the raw mode says is the high one, so it gives the low one where the
    raw mode has the other order of bytes.
    """
    image = Image.open(io.BytesIO(file))
    if has_planes(image):
        return None  # their order of bytes cannot be chosen
    tiles = []
    for tile in getattr(image, "tile", ()):
        mode = _other_order(_raw_mode(tile.args))
        if mode is None:
            return None
        if isinstance(tile.args, str):
            tiles.append(tile._replace(args=mode))
        else:
            tiles.append(tile._replace(args=(mode, *tile.args[1:])))
    image.tile = tiles
    return image


def _raw_mode(arguments: Any) -> str:
    """The raw mode among the arguments of a decoder; "" if there is none."""
    if isinstance(arguments, str):
        return arguments
    return str(arguments[0]) if arguments else ""


def _other_order(mode: str) -> str | None:
    """The raw mode with the bytes of a value exchanged; None if it is not one of 16-bit RGB."""
    kind = mode[: -len(_NATIVE)]
    order = mode[-len(_NATIVE) :]
    if kind not in _KINDS:
        return None
    if order == _NATIVE:
        order = _LOW_FIRST if sys.byteorder == "little" else _HIGH_FIRST
    if order == _LOW_FIRST:
        return kind + _HIGH_FIRST
    if order == _HIGH_FIRST:
        return kind + _LOW_FIRST
    return None
