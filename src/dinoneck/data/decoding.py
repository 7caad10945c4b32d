"""Decoding of images: paths, PIL images, arrays and tensors -> RGB pixels, upright."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from dinoneck.errors import DataError, reason_of
from dinoneck.regular_files import open_regular

T = TypeVar("T")
ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor

_TURNS = {  # EXIF orientation -> whether rows and columns of (..., H, W) are swapped, and the axes flipped after that
    2: (False, (-1,)), 3: (False, (-1, -2)), 4: (False, (-2,)), 5: (True, ()),
    6: (True, (-1,)), 7: (True, (-1, -2)), 8: (True, (-2,)),
}  # fmt: skip


def as_list(images: ImageInput | Sequence[ImageInput], noun: str = "images") -> list[ImageInput]:
    """Return a list of single images (or what ``noun`` calls them), whatever form they came in."""
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, str | os.PathLike | Image.Image | Tensor | np.ndarray):
        return [images]
    if not isinstance(images, Sequence):
        raise DataError(f"{noun} are {type(images).__name__}; expected paths, PIL images, arrays or tensors")
    return list(images)


def decode(image: ImageInput) -> Tensor:
    """Decode one image to (3, H, W) float32 RGB in 0 ... 1; see :func:`read_pixels`."""
    return to_unit_range(read_pixels(image))


def read_pixels(image: ImageInput) -> Tensor:
    """Decode one image to (3, H, W) RGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and transparent images become RGB. 16-bit grey values are scaled by 65535; of 16-bit colours
    in a file Pillow keeps the high byte.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1.

    Raises:
        DataError: naming the file, if it cannot be read, values are out of range or 16-bit ones fill 14 bits at most.
    """
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image), _from_file)
    if isinstance(image, Image.Image):
        return _from_pil(image, "a PIL image")
    if isinstance(image, np.ndarray):
        array = image[..., None] if image.ndim == 2 else image
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise DataError(f"an array image has shape {image.shape}; expected (height, width, 3) or (height, width)")
        if array.dtype.kind not in "uif":
            raise DataError(f"an array image holds {array.dtype} values; expected uint8, uint16 or floats in 0 ... 1")
        array = np.ascontiguousarray(array[..., :3], array.dtype.newbyteorder("="))
        return _in_range(torch.tensor(array).permute(2, 0, 1))
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise DataError(f"a tensor image has shape {tuple(image.shape)}; expected (3, height, width)")
        return _in_range(image)
    raise DataError(f"an image is {type(image).__name__}; expected a path, a PIL image, an array or a tensor")


def read_image_size(image: ImageInput) -> tuple[int, int]:
    """Return (height, width) of an image turned upright.

    A file's header gives it; only a TIFF with an EXIF orientation is decoded.

    Raises:
        DataError: if it is not an image, naming the file.
    """
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image), lambda opened, _: _upright_size(opened))
    if isinstance(image, Image.Image):
        return _upright_size(image)
    height, width = decode(image).shape[-2:]
    return height, width


def read_picture(path: Path, read: Callable[[Image.Image, str], T], noun: str = "image") -> T:
    """Open a picture file and return what ``read(image, name)`` makes of it.

    Raises:
        DataError: if the file does not exist or cannot be decoded, naming it.
    """
    if path.is_dir():
        which = "empty or the current folder" if path == Path() else f"{path}, a folder"
        raise DataError(f"the path of the {noun} is {which}; expected an image file")
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return read(image, str(path))
    except FileNotFoundError:
        raise DataError(f"there is no {noun} {path}; check the folder and the file name") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise DataError(f"{path} ({size} bytes) cannot be decoded as an image; remove or replace it") from None
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:  # AVIF: the fourth
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {reason_of(error)}; remove or replace it") from error


def _from_file(image: Image.Image, name: str) -> Tensor:
    """Decode an opened file: a JPEG in grey or RGB by torchvision, others and damaged ones by Pillow.

    Both use libjpeg-turbo and give equal pixels; torchvision takes half the time.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        raw = torch.from_numpy(np.fromfile(name, np.uint8))
        if raw[-2:].tolist() == [0xFF, 0xD9]:  # else it is cut short or has an appendix: Pillow decides
            with contextlib.suppress(RuntimeError, AttributeError):  # damaged; an operator that torchvision lacks
                return _upright(_decode_jpeg(raw), read_orientation(image))
    return _from_pil(image, name)


def _decode_jpeg(raw: Tensor) -> Tensor:
    """Call the operator behind ``torchvision.io.decode_jpeg``; that function warns at every call as of 0.29."""
    from torchvision.io import ImageReadMode

    pixels: Tensor = torch.ops.image.decode_jpeg(raw, ImageReadMode.RGB.value, False)
    return pixels


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which the pixels of an image, as Pillow decodes them, are still to be turned.

    Pillow turns a TIFF itself while it decodes it, so a TIFF with a tag is decoded here and the result is 1. Its size
    is that of the upright image from then on.
    """
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    if image.format != "TIFF" or orientation == 1 or not isinstance(image, ImageFile.ImageFile):
        return orientation
    # Pillow 11 to 13 scrambles a raw TIFF that it maps from the file of this name and that is turned by 90 degrees
    name, image.filename = image.filename, ""
    image.load()
    image.filename = name
    return 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn pixels (..., H, W) as an EXIF orientation states."""
    is_turned, flips = _TURNS.get(orientation, (False, ()))
    pixels = pixels.mT if is_turned else pixels
    return pixels.flip(flips) if flips else pixels


def _from_pil(image: Image.Image, name: str) -> Tensor:
    has_16_bits = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    orientation = read_orientation(image)  # after the tiles, which decoding clears, and before the pixels
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # older Pillow: 16 bit as I
        grey = np.asarray(image)
        _check_depth(int(grey.max()), name)
        deep = torch.from_numpy(np.ascontiguousarray(grey.astype(np.float32) / 65535.0))
        return _upright(deep[None].expand(3, -1, -1), orientation)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} holds {image.mode!r} values (32 bit) of unknown range; scale it to 0 ... 1 and pass an array"
        )
    rgb = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    pixels = np.array(rgb if rgb.mode == "RGB" else rgb.convert("RGB"))
    _check_depth(int(pixels.max()) << 8 | 255 if has_16_bits else 0, name)  # the low bytes are lost
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), orientation)


def _check_depth(largest: int, name: str) -> None:
    """Refuse 16-bit values that fill 14 bits at most, naming the largest: such an image would be far too dark."""
    if 0 < largest < 1 << 14:
        bits = next(bits for bits in (8, 10, 12, 14) if largest < 1 << bits)
        raise DataError(
            f"{name} holds 16-bit values of at most {largest}: it seems to be a {bits}-bit image in 16-bit form, and "
            f"scaled by 65535 it would be far too dark. Divide it by {(1 << bits) - 1} (or by 65535, if it really is "
            "that dark) and pass the array of floats in 0 ... 1"
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned, _ = _TURNS.get(read_orientation(image), (False, ()))
    return image.size if is_turned else (image.height, image.width)


def _in_range(x: Tensor) -> Tensor:
    """Check the values of an array or tensor image; those of 16 bits become floats."""
    if not x.numel():
        raise DataError(f"an image has shape {tuple(x.shape)}: it is empty")
    if x.dtype == torch.uint16:
        _check_depth(int(x.int().max()), "an image")
        x = x.float() / 65535.0
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise DataError(f"an image holds {x.dtype} values; expected uint8, uint16 or floats in 0 ... 1")
        low, high = x.min().item(), x.max().item()
        if not (low >= 0.0 and high <= 1.0):  # also catches NaN
            raise DataError(
                f"a float image has values {low:g} ... {high:g}; expected RGB in 0 ... 1, not normalised "
                "(a normalised image goes to the backbone directly)"
            )
        x = x.float()
    return x.expand(3, -1, -1).cpu()


Fit = Literal["stretch", "keep", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area"]


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0 ... 1; others unchanged."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels in 0 ... 1 as uint8, rounded; uint8 ones unchanged."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255.0).round().to(torch.uint8)


def fit_to(x: Tensor, size: tuple[int, int], fit: Fit, interpolation: Interpolation) -> Tensor:
    """Resize and cut images (B, C, H, W) to ``size`` by a fit; the padding of ``pad`` is left to the caller."""
    target, (top, left) = fitted_size((x.shape[-2], x.shape[-1]), size, fit)
    x = _resize(x, target, interpolation)
    return x[..., top : top + size[0], left : left + size[1]]


def fitted_size(
    image_size: tuple[int, int], size: tuple[int, int], fit: Fit
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what an image of (height, width) px is resized to, and (top, left) of what ``size`` then keeps of it."""
    if fit == "stretch":
        return size, (0, 0)
    ratios = size[0] / image_size[0], size[1] / image_size[1]
    scale = max(ratios) if fit == "crop" else min(ratios)
    height, width = (
        limit if ratio == scale else max(1, round(side * scale))
        for side, limit, ratio in zip(image_size, size, ratios, strict=True)
    )
    corner = ((height - size[0]) // 2, (width - size[1]) // 2) if fit == "crop" else (0, 0)
    return (height, width), corner


def _resize(x: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if interpolation == "area" and size[0] <= height and size[1] <= width:
        return _area(x, size)
    if interpolation != "bilinear":
        x = to_unit_range(x)
    mode = "bicubic" if interpolation == "bicubic" else "bilinear"
    if width == size[1] or (size[0] < height and size[1] > width):
        # torch widens first, so a thin image would get all its rows in full width; and it misplaces rows (as of 2.15)
        # where the width stays 1: they are resized as columns
        x = F.interpolate(x.mT, size=(width, size[0]), mode=mode, align_corners=False, antialias=True).mT
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)


def _area(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Equal ``F.interpolate(to_unit_range(x), size, mode="area")`` bit for bit, without the whole image as floats."""
    height, rows = x.shape[-2], size[0]
    windows = (x[..., row * height // rows : -(-(row + 1) * height // rows), :] for row in range(rows))
    return torch.cat([F.adaptive_avg_pool2d(to_unit_range(window), (1, size[1])) for window in windows], dim=-2)
