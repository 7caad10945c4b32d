"""Images as dinoneck prepares them, with NumPy and Pillow alone: decode, turn upright, resize, pad.

Values stay RGB in 0 ... 1: models of ``dinoneck export --with-backbone`` normalise them. How images
are prepared is the entry ``preprocess`` of the model's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Array = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, Any]
Sides = tuple[int, int]


class ImageFileError(Exception):
    """An image cannot be read, or does not come to a size that the model takes."""


def read(path: Path, bits: int | None = None) -> Pixels:
    """Return an image (height, width, 3), RGB uint8 or 16-bit values in 0 ... 1, turned upright by its EXIF tag.

    Args:
        path: the file.
        bits: of the model's ``preprocess``: 2**bits - 1 becomes 1 in grey images of 16 bits.
    """
    try:
        # an open file, not its name: Pillow 11 to 13 scrambles raw TIFFs that it maps and turns by
        # 90 degrees
        with path.open("rb") as file, Image.open(file) as image:
            if bits not in (None, 16) and image.mode in ("RGB", "RGBA", "LA"):
                if ";16" in str(getattr(image, "tile", ())):
                    raise ImageFileError(
                        f"{path} holds colours of 16 bits; bits={bits} needs both bytes"
                    )
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            upright = ImageOps.exif_transpose(image)
            if deep:
                largest = (1 << (bits or 16)) - 1
                values = np.asarray(upright)
                if values.max() > largest:
                    raise ImageFileError(
                        f"{path} holds {values.max()}; {bits} bits end at {largest}"
                    )
                grey = values.astype(np.float32) / np.float32(largest)
                return np.repeat(grey[..., None], 3, axis=2)
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


def prepare(pixels: Pixels, recipe: Mapping[str, Any]) -> tuple[Array, Array]:
    """Prepare one image.

    Args:
        pixels: as :func:`read` gives them.
        recipe: the model's ``preprocess``.

    Returns:
        The image (3, H, W), and which of its cells (rows, cols) show the image and no padding.
    """
    patch, mean = recipe["patch_size"], np.float32(recipe["mean"])
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    resized, canvas, (top, left) = _placement(pixels.shape[:2], recipe, patch)
    image = np.clip(_floats(_resized(pixels, *resized, recipe["interpolation"])), 0, 1)
    if recipe["resize"] == "crop":
        image = image[-top : canvas[0] - top, -left : canvas[1] - left]
    if (kernel := recipe["blur"]) is not None:
        image = _blurred(image, kernel, 0.3 * ((kernel - 1) / 2 - 1) + 0.8)
    shown = np.ones((*image.shape[:2], 1), np.float32)
    if recipe["resize"] == "pad":
        image, shown = (
            _padded(x, canvas, (top, left), fill) for x, fill in ((image, mean), (shown, 0))
        )
    rows, cols = canvas[0] // patch[0], canvas[1] // patch[1]
    cells = shown[..., 0].reshape(rows, patch[0], cols, patch[1]).max(axis=(1, 3)) > 0
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32), cells


def _floats(pixels: Pixels) -> Array:
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels


def _placement(image: Sides, recipe: Mapping[str, Any], patch: Sides) -> tuple[Sides, Sides, Sides]:
    """What an image of (height, width) px is resized to, its canvas in px, and its (top, left) on that canvas."""
    resize, size = recipe["resize"], recipe["size"]
    if resize == "keep" and size is not None:
        size, resize = _scaled(image, size, min), "stretch"
    target = tuple(size or image)
    if resize == "keep" and any(side % cell for side, cell in zip(target, patch, strict=True)):
        raise ImageFileError(
            f"the image is {image[0]}x{image[1]} px; the sides must be multiples of {patch}"
        )
    whole = {
        "stretch": _nearest,
        "keep": _nearest,
        "crop": int.__floordiv__,
        "pad": lambda a, b: -(-a // b),
    }[resize]
    height, width = (whole(side, cell) * cell for side, cell in zip(target, patch, strict=True))
    if not height or not width:
        raise ImageFileError(
            f"{target[0]}x{target[1]} px are smaller than a patch of {patch[0]}x{patch[1]}"
        )
    if resize in ("stretch", "keep"):
        return (height, width), (height, width), (0, 0)
    chosen = max if resize == "crop" else min
    resized = image if size is None else _scaled(image, (height, width), chosen)
    if resize == "crop":
        return (
            resized,
            (height, width),
            (-((resized[0] - height) // 2), -((resized[1] - width) // 2)),
        )
    centred = ((height - resized[0]) // 2, (width - resized[1]) // 2)
    return resized, (height, width), centred if recipe["pad_to"] == "center" else (0, 0)


def _nearest(side: int, cell: int) -> int:
    return max(1, (2 * side + cell) // (2 * cell))


def _scaled(image: Sides, size: Sides, chosen: Callable[..., float]) -> Sides:
    """The sides times the smaller ratio to ``size`` (the image fits inside), or the larger one (it covers it)."""
    ratios = size[0] / image[0], size[1] / image[1]
    scale = chosen(ratios)
    height, width = (
        limit if ratio == scale else max(1, round(side * scale))
        for side, limit, ratio in zip(image, size, ratios, strict=True)
    )
    return height, width


def _padded(image: Array, canvas: Sides, corner: Sides, fill: Any) -> Array:
    out = np.empty((*canvas, image.shape[2]), np.float32)
    out[:] = fill
    out[corner[0] : corner[0] + image.shape[0], corner[1] : corner[1] + image.shape[1]] = image
    return out


def _resized(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """``area`` is the plain mean of all pixels touched where both sides shrink, else bilinear with antialiasing.

    Of ``bilinear`` on 8 bits, Pillow's form differs from torch's by one step of 255 in a few pixels
    of a thousand.
    """
    old = image.shape[:2]
    if old == (height, width):
        return image
    if interpolation == "bilinear" and image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    image = _floats(image)
    if interpolation == "area":
        interpolation = "area" if height <= old[0] and width <= old[1] else "bilinear"
    # first the side that shrinks more: what lies between stays small
    if width * old[0] < height * old[1]:
        return _along(_along(image, 1, width, interpolation), 0, height, interpolation)
    return _along(_along(image, 0, height, interpolation), 1, width, interpolation)


def _along(x: Array, axis: int, count: int, interpolation: str) -> Array:
    """Resample along one axis; every new pixel is a weighted sum of a few neighbours."""
    x = np.moveaxis(x, axis, 0)
    out = np.empty((count, *x.shape[1:]), np.float32)
    for place, (start, weights) in enumerate(_spans(len(x), count, interpolation)):
        out[place] = np.tensordot(weights, x[start : start + len(weights)], axes=1)
    return np.moveaxis(out, 0, axis)


def _spans(old: int, new: int, interpolation: str) -> list[tuple[int, Array]]:
    """(first old pixel, weights) of every new pixel."""
    if old == new:
        return [(i, np.ones(1, np.float32)) for i in range(old)]
    if interpolation == "area":
        ends = [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
        return [(start, np.full(end - start, 1 / (end - start), np.float32)) for start, end in ends]
    kernel, reach = (_cubic, 2.0) if interpolation == "bicubic" else (_triangle, 1.0)
    scale = np.float32(old / new)  # torch computes places in this precision
    wider = max(scale, np.float32(1))  # antialiasing: the kernel grows with the step
    spans = []
    for i in range(new):
        centre = scale * np.float32(i + 0.5)
        start = max(int(centre - reach * wider + 0.5), 0)
        end = min(int(centre + reach * wider + 0.5), old)
        weights = kernel(
            (np.arange(start, end, dtype=np.float32) - centre + np.float32(0.5)) / wider
        )
        spans.append((start, (weights / weights.sum()).astype(np.float32)))
    return spans


def _triangle(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.clip(1 - np.abs(x), 0, None)


def _cubic(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _blurred(image: Array, kernel: int, sigma: float) -> Array:
    """A Gaussian blur with mirrored borders."""
    half = kernel // 2
    if half >= min(image.shape[:2]):
        raise ImageFileError(
            f"a blur of {kernel} px does not fit an image of {image.shape[0]}x{image.shape[1]} px"
        )
    weights = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)])
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        x = np.moveaxis(image, axis, 0)
        wide = np.pad(x, ((half, half), (0, 0), (0, 0)), mode="reflect")
        image = np.moveaxis(sum(w * wide[i : i + len(x)] for i, w in enumerate(weights)), 0, axis)
    return image
