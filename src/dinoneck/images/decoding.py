"""Images as tensors: decoded to upright RGB pixels, a JPEG by the fastest operator installed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.images import bit_depth, jpeg
from dinoneck.images.orientation import UPRIGHT, read_orientation, turn
from dinoneck.images.pixels import (
    Array,
    Picture,
    check_planes,
    check_unit_range,
    read_by_rasterio,
    read_header,
    read_picture,
    read_planes,
    read_size,
    unfit_dtype,
)
from dinoneck.images.pixels import decode as decode_by_pillow

_RGB = 3  # torchvision.io.ImageReadMode.RGB
_EXPECTED = "a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"
ImageInput = Picture | Tensor


def is_one_image(images: Any) -> bool:
    """Whether this is one image, or the path of one, and not several; arrays of four dimensions are a batch."""
    if isinstance(images, Tensor | np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | os.PathLike | Image.Image)


def as_list(images: Any, noun: str = "images") -> list[Any]:
    """Return a list of single images (or what ``noun`` calls them), whatever form they came in."""
    if is_one_image(images):
        return [images]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise DataError(
            f"{noun} are {type(images).__name__}; expected paths, PIL images, arrays or tensors"
        )
    return list(images)


def read_pixels(
    image: ImageInput, bits: int | None = None, bands: Sequence[int] | None = None
) -> Tensor:
    """Decode one image to (3, H, W) RGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and transparent images become RGB. Alpha is left out: the colours below
    transparent pixels are those of the file. Of an array (H, W, 4) the fourth channel is alpha.

    16-bit values are divided by 65535, with ``bits`` by ``2**bits - 1``; nothing is told from the
    values. Images of 8 bits and floats do not change with ``bits``. A TIFF that states 9 to 15 bits is
    divided by their range, unless ``bits`` is less. Floats are in 0 ... 1.

    Pillow opens the files. TIFF and PNG files of which it would change numbers, such as 16-bit
    colours, are read by rasterio (the extra ``geo``).

    Args:
        image: a path, a PIL image, an array (H, W, 3), (H, W, 4) or (H, W), or a tensor (3, H, W)
            or (1, H, W).
        bits: how many bits 16-bit images use, 8 ... 16; None is 16.
        bands: one or three bands to use of a TIFF file, a PNG file or an array (H, W, K), counted
            from 1, such as (4, 3, 2); None takes grey or RGB, without alpha.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1.

    Raises:
        DataError: naming the file, if it cannot be read, has other bands than grey or RGB with or
            without alpha, or values are out of range.
        ConfigError: if ``bits`` or ``bands`` is out of range.
        ImportError: naming the extra, if a file that rasterio reads is read without it.
    """
    bit_depth.check_bits(bits)
    if bands is None and isinstance(image, str | os.PathLike):
        path = Path(image)
        planes = read_by_rasterio(path, bits)
        if planes is not None:
            return _rgb_tensor(planes)
        return read_picture(path, functools.partial(_from_file, bits=bits))
    if isinstance(image, Tensor):
        if bands is not None:
            raise DataError("an image is a tensor, of which bands are taken by indexing")
        return _from_tensor(image, bits)
    return _rgb_tensor(read_planes(image, bits, _EXPECTED, bands))


def read_image_size(image: ImageInput) -> tuple[int, int]:
    """Return (height, width) of an image turned upright.

    A file's header gives it; only a PNG with EXIF behind the pixels is decoded. An array or a tensor of
    grey or colours is checked as an image: its dtype, and that floats are in 0 ... 1.

    Raises:
        DataError: if it is not an image, naming the file.
    """
    if not isinstance(image, Tensor):
        return read_size(image)
    if image.ndim != 3 or image.shape[0] in (1, 3):
        # rejects what is no image; other bands than grey or colours are read by read_channels alone
        _from_tensor(image, bit_depth.FILE_BITS)
    return image.shape[-2], image.shape[-1]


def read_stated_orientation(picture: Any) -> int:
    """Return the orientation that the header of a file states.

    It is 1 for images in memory, and for files that cannot be read.
    """
    if not isinstance(picture, str | os.PathLike):
        return UPRIGHT
    try:
        return read_header(picture).orientation
    except DataError:
        return UPRIGHT  # the error is raised where the pixels are read


def _from_file(image: Image.Image, name: str, bits: int | None) -> Tensor:
    """Decode an opened file: a JPEG by the fastest operator installed, others and damaged ones by Pillow.

    All give equal pixels. The operators are not faster for a PNG, where decompression takes most of
    the time.
    """
    pixels = _fast_pixels(image)
    return _rgb_tensor(decode_by_pillow(image, name, bits)) if pixels is None else pixels


def _fast_pixels(image: Image.Image) -> Tensor | None:
    """The pixels of an opened JPEG file by the fastest operator; None for those that Pillow decodes."""
    operator = fast_decoder()
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    if operator is None or not is_jpeg:
        return None
    image.fp.seek(0)  # type: ignore[attr-defined]
    raw = np.fromfile(image.fp, np.uint8)  # type: ignore[attr-defined]
    if raw[-len(jpeg.END_OF_IMAGE) :].tobytes() != jpeg.END_OF_IMAGE:
        return None  # cut short, or with an appendix
    # the operators do not read XMP, and read damaged EXIF in other ways than Pillow
    if not jpeg.hide_exif(raw):
        return None
    try:
        pixels = operator(torch.from_numpy(raw))
    except RuntimeError:  # damaged
        return None
    orientation = read_orientation(image)
    if orientation == UPRIGHT:
        return pixels
    turned = turn(pixels.numpy(), orientation)
    return torch.from_numpy(np.ascontiguousarray(turned))  # torch takes no negative strides


@functools.cache
def fast_decoder() -> Callable[[Tensor], Tensor] | None:
    """Return torchcodec's operator from the bytes of a JPEG file to (3, H, W) RGB, else torchvision's.

    Both turn the pixels upright by the EXIF tag, and use the library that Pillow uses. None =
    neither is installed. ``torchvision.io`` warns at every call.
    """
    with contextlib.suppress(ImportError, AttributeError, OSError, RuntimeError):
        from torchcodec.decoders import decode_jpeg

        return decode_jpeg  # type: ignore[no-any-return]
    with contextlib.suppress(ImportError, AttributeError):
        import torchvision.io  # noqa: F401 - registers the operators

        operator = torch.ops.image.decode_jpeg
        return lambda raw: operator(raw, _RGB, True)  # turned upright
    return None


def _rgb_tensor(planes: Array) -> Tensor:
    """Planes (1 or 3, H, W) as a tensor (3, H, W)."""
    return torch.from_numpy(planes).expand(3, -1, -1)


def _from_tensor(x: Tensor, bits: int | None) -> Tensor:
    """Check an image (1 or 3, H, W); values of 16 bits become floats."""
    check_planes(tuple(x.shape), "an image")
    return to_unit_values(x, "an image", bits).expand(3, -1, -1).cpu()


def to_unit_values(x: Tensor, name: str, bits: int | None) -> Tensor:
    """Check the values of an image (channels, H, W): uint8 are kept, others become float32 in 0 ... 1.

    Raises:
        DataError: if values are out of range, or the dtype is another.
    """
    if x.dtype == torch.uint16:
        return torch.from_numpy(bit_depth.scale(x.cpu().numpy(), bits, name))
    if x.is_floating_point():
        check_unit_range(x.min().item(), x.max().item(), name)
        return x.float()
    if x.dtype != torch.uint8:
        raise DataError(unfit_dtype(str(x.dtype), name))
    return x


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0 ... 1; others unchanged."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels in 0 ... 1 as uint8, rounded; uint8 ones unchanged."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255.0).round().to(torch.uint8)
