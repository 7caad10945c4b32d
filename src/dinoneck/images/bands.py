"""Images of any number of channels, for backbones that take other ones than red, green and blue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.images.decoding import ImageInput, read_pixels, to_unit_values
from dinoneck.images.pixels import native_array, read_all_bands
from dinoneck.images.storage import read_storage
from dinoneck.text import counted

RGB_CHANNELS = 3
Array = np.ndarray[Any, Any]


def read_channels(image: ImageInput, channels: int, bits: int | None = None) -> Tensor:
    """Decode one image to (channels, H, W).

    Three channels are RGB, and one is grey: see :func:`dinoneck.images.decoding.read_pixels`. Other
    numbers come from arrays (H, W, channels), tensors (channels, H, W) and TIFF files of so many
    bands, in their order; rasterio (the extra ``geo``) reads the files.

    Args:
        image: the image.
        channels: those that the backbone takes.
        bits: how many bits 16-bit values use, as for ``read_pixels``.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1.

    Raises:
        DataError: naming the file, if it has another number of channels, cannot be read, or values
            are out of range.
        ImportError: naming the extra, if a TIFF file is read without rasterio.
    """
    if channels == RGB_CHANNELS:
        return read_pixels(image, bits)
    if channels == 1:
        return _grey(image, bits)
    if isinstance(image, Tensor):
        return _from_tensor(image, channels, bits, "an image")
    if isinstance(image, np.ndarray):
        return _from_array(image, channels, bits, "an image")
    if isinstance(image, str | os.PathLike):
        return _from_file(Path(image), channels, bits)
    raise DataError(
        f"an image is a {type(image).__name__}, and the backbone takes {channels} channels; expected "
        f"an array (H, W, {channels}), a tensor ({channels}, H, W) or a TIFF file"
    )


def _grey(image: ImageInput, bits: int | None) -> Tensor:
    """The one channel of a grey image."""
    pixels = read_pixels(image, bits)
    grey = pixels[:1]
    if not torch.equal(grey.expand_as(pixels), pixels):
        name = str(image) if isinstance(image, str | os.PathLike) else "an image"
        raise DataError(
            f"{name} has colours, and the backbone takes 1 channel; convert it to grey first"
        )
    return grey


def _from_file(path: Path, channels: int, bits: int | None) -> Tensor:
    """The bands of a TIFF file."""
    try:
        storage = read_storage(path)
    except FileNotFoundError:
        raise DataError(f"there is no image {path}; check the folder and the file name") from None
    if storage is None or storage.driver != "GTiff":
        raise DataError(
            f"{path} is no TIFF file, and the backbone takes {channels} channels; pass an array (H, "
            f"W, {channels}), or save the bands as a GeoTIFF"
        )
    if storage.bands != channels:
        raise DataError(
            f"{path} has {counted(storage.bands, 'band')}; expected {channels}, one for each channel "
            "that the backbone takes: write a file of the bands to use"
        )
    return _from_bands(read_all_bands(path, storage), bits, str(path))


def _from_array(array: Array, channels: int, bits: int | None, name: str) -> Tensor:
    if array.ndim != 3 or array.shape[-1] != channels or not array.size:
        raise DataError(
            f"{name} has shape {array.shape}; expected (height, width, {channels}), for the "
            f"{counted(channels, 'channel')} that the backbone takes"
        )
    return _from_bands(np.moveaxis(array, -1, 0), bits, name)


def _from_bands(bands: Array, bits: int | None, name: str) -> Tensor:
    """Decode an array (channels, H, W)."""
    values = np.ascontiguousarray(native_array(bands, name))
    return to_unit_values(torch.from_numpy(values), name, bits).cpu()


def _from_tensor(x: Tensor, channels: int, bits: int | None, name: str) -> Tensor:
    if x.ndim != 3 or x.shape[0] != channels or not x.numel():
        raise DataError(
            f"{name} has shape {tuple(x.shape)}; expected ({channels}, height, width), for the "
            f"{counted(channels, 'channel')} that the backbone takes"
        )
    return to_unit_values(x, name, bits).cpu()
