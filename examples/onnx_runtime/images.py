"""Images as dinoneck prepares them, with NumPy and Pillow alone: decode, turn upright, resize, pad.

Values stay RGB in 0 ... 1: models of ``dinoneck export --with-backbone`` normalise them. How images
are prepared is the entry ``preprocess`` of the model's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Array = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, Any]
Sides = tuple[int, int]  # height, width, or rows, cols
CUBIC_A = -0.5  # of the bicubic kernel, as in Pillow and torch with antialiasing


class ImageFileError(Exception):
    """An image cannot be read, or does not come to a size that the model takes."""


def read(path: Path, bits: int | None = None) -> Pixels:
    """Return an image (height, width, 3), upright: RGB uint8, or 16-bit values in 0 ... 1.

    Args:
        path: the file.
        bits: ``bits`` of the model's ``preprocess``: 2**bits - 1 becomes 1 in grey images of 16
            bits.

    Raises:
        ImageFileError: naming the file, if it cannot be read.
    """
    try:
        # an open file, not its name: Pillow 11 to 13 scrambles raw TIFFs that it maps and turns by
        # 90 degrees
        with path.open("rb") as file, Image.open(file) as image:
            if bits not in (None, 16) and _has_colours_of_16_bits(image):
                raise ImageFileError(
                    f"{path} holds colours of 16 bits; bits={bits} needs both bytes"
                )
            is_grey_of_16_bits = image.mode.startswith("I;16") or (
                image.mode == "I" and image.format == "PNG"
            )
            upright = ImageOps.exif_transpose(image)
            if is_grey_of_16_bits:
                return _from_16_bits(path, np.asarray(upright), bits or 16)
            if upright.mode in ("I", "F"):
                raise ImageFileError(f"{path} holds 32-bit values of unknown range")
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise ImageFileError(f"there is no image {path}") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{path} cannot be decoded as an image") from None
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"{path} cannot be read: {error}") from error


def _has_colours_of_16_bits(image: Image.Image) -> bool:
    """Return whether Pillow would drop the lower byte of every colour."""
    return image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", ()))


def _from_16_bits(path: Path, values: Pixels, bits: int) -> Array:
    """Return grey values (height, width) as an image (height, width, 3) in 0 ... 1."""
    largest = (1 << bits) - 1
    if values.max() > largest:
        raise ImageFileError(f"{path} holds {values.max()}; {bits} bits end at {largest}")
    grey = values.astype(np.float32) / np.float32(largest)
    return np.repeat(grey[..., None], 3, axis=2)


class Placement(NamedTuple):
    """Where an image lies on its canvas, all in pixels.

    Attributes:
        resized: the image's size after resizing, (height, width).
        canvas: the size that the model gets, (height, width).
        corner: top and left of the image on the canvas; negative if it is cropped.
    """

    resized: Sides
    canvas: Sides
    corner: Sides


def prepare(pixels: Pixels, recipe: Mapping[str, Any]) -> tuple[Array, Array]:
    """Prepare one image.

    Args:
        pixels: as :func:`read` returns them.
        recipe: the model's ``preprocess``.

    Returns:
        The image (3, H, W), and which of its patches (rows, cols) show the image and no padding.

    Raises:
        ImageFileError: if the image does not have a size that the model takes.
    """
    resize = recipe["resize"]
    patch = recipe["patch_size"]
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    placement = _place(pixels.shape[:2], recipe, (patch_height, patch_width))
    height, width = placement.canvas
    top, left = placement.corner

    image = _as_floats(_resize(pixels, placement.resized, recipe["interpolation"]))
    image = np.clip(image, 0, 1)
    if resize == "crop":
        image = image[-top : height - top, -left : width - left]
    if recipe["blur"] is not None:
        image = _blur(image, recipe["blur"])
    shows_image = np.ones((*image.shape[:2], 1), np.float32)
    if resize == "pad":
        image = _pad(image, placement, fill=np.float32(recipe["mean"]))
        shows_image = _pad(shows_image, placement, fill=0)

    rows = height // patch_height
    cols = width // patch_width
    of_patches = shows_image[..., 0].reshape(rows, patch_height, cols, patch_width)
    valid = of_patches.max(axis=(1, 3)) > 0
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32), valid


def _as_floats(pixels: Pixels) -> Array:
    """Return values in 0 ... 1."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels


def _place(image: Sides, recipe: Mapping[str, Any], patch: Sides) -> Placement:
    """Return the sizes and the place of an image of (height, width) px."""
    resize = recipe["resize"]
    size = recipe["size"]
    if resize == "keep" and size is not None:
        size = _scale(image, size, covers=False)
        resize = "stretch"
    target = image if size is None else tuple(size)
    if resize == "keep" and (target[0] % patch[0] or target[1] % patch[1]):
        raise ImageFileError(
            f"the image is {image[0]}x{image[1]} px; the sides must be multiples of {patch}"
        )
    height = _whole_patches(target[0], patch[0], resize)
    width = _whole_patches(target[1], patch[1], resize)
    if height == 0 or width == 0:
        raise ImageFileError(
            f"{target[0]}x{target[1]} px are smaller than a patch of {patch[0]}x{patch[1]}"
        )
    canvas = (height, width)
    if resize in ("stretch", "keep"):
        return Placement(resized=canvas, canvas=canvas, corner=(0, 0))

    resized = image
    if size is not None:
        resized = _scale(image, canvas, covers=resize == "crop")
    if resize == "crop":
        top = -((resized[0] - height) // 2)
        left = -((resized[1] - width) // 2)
    elif recipe["pad_to"] == "center":
        top = (height - resized[0]) // 2
        left = (width - resized[1]) // 2
    else:
        top = 0
        left = 0
    return Placement(resized, canvas, corner=(top, left))


def _whole_patches(side: int, patch: int, resize: str) -> int:
    """Return a side in pixels that is a multiple of the patch."""
    if resize == "crop":
        return side // patch * patch
    if resize == "pad":
        return math.ceil(side / patch) * patch
    nearest = max(1, (2 * side + patch) // (2 * patch))
    return nearest * patch


def _scale(image: Sides, size: Sides, covers: bool) -> Sides:
    """Return the sides of an image, scaled to fit inside a size, or to cover it."""
    ratios = (size[0] / image[0], size[1] / image[1])
    scale = max(ratios) if covers else min(ratios)
    height = size[0] if ratios[0] == scale else max(1, round(image[0] * scale))
    width = size[1] if ratios[1] == scale else max(1, round(image[1] * scale))
    return height, width


def _pad(image: Array, placement: Placement, fill: Any) -> Array:
    top, left = placement.corner
    height, width, channels = image.shape
    padded = np.empty((*placement.canvas, channels), np.float32)
    padded[:] = fill
    padded[top : top + height, left : left + width] = image
    return padded


def _resize(image: Pixels, size: Sides, interpolation: str) -> Pixels:
    """Resize an image.

    ``area`` is the mean of all pixels touched if both sides shrink; else it is bilinear. Bilinear
    and bicubic have antialiasing. On 8 bits, Pillow's bilinear form differs from torch's by one step
    of 255 in a few pixels of a thousand.
    """
    old_height, old_width = image.shape[:2]
    height, width = size
    if (old_height, old_width) == (height, width):
        return image
    if interpolation == "bilinear" and image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    image = _as_floats(image)
    if interpolation == "area" and (height > old_height or width > old_width):
        interpolation = "bilinear"
    # first the side that shrinks more, so that the image in between stays small
    if width * old_height < height * old_width:
        image = _resize_axis(image, 1, width, interpolation)
        return _resize_axis(image, 0, height, interpolation)
    image = _resize_axis(image, 0, height, interpolation)
    return _resize_axis(image, 1, width, interpolation)


def _resize_axis(image: Array, axis: int, count: int, interpolation: str) -> Array:
    """Resample along one axis; every new pixel is a weighted sum of a few neighbours."""
    old = np.moveaxis(image, axis, 0)
    new = np.empty((count, *old.shape[1:]), np.float32)
    for number, (start, weights) in enumerate(_spans(len(old), count, interpolation)):
        new[number] = np.tensordot(weights, old[start : start + len(weights)], axes=1)
    return np.moveaxis(new, 0, axis)


def _spans(old: int, new: int, interpolation: str) -> list[tuple[int, Array]]:
    """Return the first old pixel and the weights of every new pixel."""
    spans = []
    if old == new:
        for number in range(old):
            spans.append((number, np.ones(1, np.float32)))
        return spans
    if interpolation == "area":
        for number in range(new):
            start = number * old // new
            end = -(-(number + 1) * old // new)  # rounded up
            count = end - start
            spans.append((start, np.full(count, 1 / count, np.float32)))
        return spans
    kernel: Callable[[Array], Array] = _triangle
    reach = 1.0
    if interpolation == "bicubic":
        kernel = _cubic
        reach = 2.0
    scale = np.float32(old / new)  # torch computes positions in this precision
    stretch = max(scale, np.float32(1))  # antialiasing: the kernel grows with the step
    for number in range(new):
        centre = scale * np.float32(number + 0.5)
        start = max(int(centre - reach * stretch + 0.5), 0)
        end = min(int(centre + reach * stretch + 0.5), old)
        offsets = np.arange(start, end, dtype=np.float32) - centre + np.float32(0.5)
        weights = kernel(offsets / stretch)
        spans.append((start, (weights / weights.sum()).astype(np.float32)))
    return spans


def _triangle(x: Pixels) -> Pixels:
    return np.clip(1 - np.abs(x), 0, None)


def _cubic(x: Pixels) -> Pixels:
    a = CUBIC_A
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _blur(image: Array, kernel: int) -> Array:
    """Blur with a Gaussian of ``kernel`` pixels; borders are mirrored."""
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8  # as OpenCV and torchvision choose it
    half = kernel // 2
    height, width = image.shape[:2]
    if half >= min(height, width):
        raise ImageFileError(f"a blur of {kernel} px does not fit an image of {height}x{width} px")
    offsets = range(-half, half + 1)
    weights = np.array([math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets])
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        lines = np.moveaxis(image, axis, 0)
        padded = np.pad(lines, ((half, half), (0, 0), (0, 0)), mode="reflect")
        shifted = [padded[start : start + len(lines)] for start in range(kernel)]
        total = sum(weight * part for weight, part in zip(weights, shifted, strict=True))
        image = np.moveaxis(total, 0, axis)
    return image
