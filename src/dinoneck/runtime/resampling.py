"""Images resized as :mod:`dinoneck.images.preprocessing` resizes them with torch, in NumPy alone.

8-bit images that are resized bilinearly get the same integers. Other results are floats, which
differ in the order of their sums, by 1e-6 of the range at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dinoneck.errors import DataError
from dinoneck.images.recipe import Interpolation, Size

Array = np.ndarray[Any, Any]
_CUBIC = -0.5  # the parameter of the bicubic kernel with antialiasing, of torch and Pillow
_WEIGHT_BITS = 15  # torch keeps the weights of 8-bit images as integers of 16 bits with a sign
_MOST_WEIGHT_BITS = 22


class _Span(NamedTuple):
    """The old pixels that one new pixel is made of.

    Attributes:
        start: index of the first.
        weights: of those from ``start`` on; they add up to one.
    """

    start: int
    weights: Array


def resample(image: Array, size: Size, interpolation: Interpolation) -> Array:
    """Resample an image (C, H, W) of floats or uint8; bilinear keeps uint8, other results are float32.

    Args:
        image: uint8, or float32 in 0 ... 1.
        size: (height, width) of the result.
        interpolation: of :class:`dinoneck.data.Preprocessing`.
    """
    height, width = image.shape[-2:]
    new_height, new_width = size
    if (height, width) == size:
        return image
    if interpolation == "area" and new_height <= height and new_width <= width:
        return _by_axes(to_unit_range(image), size, _area_spans, rows_first=height > new_height)
    if interpolation == "bilinear_aliased":
        return _by_axes(to_unit_range(image), size, _aliased_spans, rows_first=True)
    if interpolation == "bicubic":
        return _by_axes(to_unit_range(image), size, _cubic_spans, rows_first=_is_tall(image, size))
    if interpolation == "bilinear" and image.dtype == np.uint8:
        return _bilinear_of_bytes(image, size)
    image = to_unit_range(image)
    return _by_axes(image, size, _linear_spans, rows_first=_is_tall(image, size))


def blur(image: Array, kernel: int) -> Array:
    """Blur an image (C, H, W) with a Gaussian of ``kernel`` pixels; borders are mirrored.

    Raises:
        DataError: if the kernel does not fit the image.
    """
    shortest = min(image.shape[-2:])
    if kernel // 2 >= shortest:
        raise DataError(
            f"a blur of {kernel} px does not fit images with a side of {shortest} px; choose a "
            "smaller one"
        )
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    half = kernel // 2
    offsets = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[axis] = (half, half)
        padded = np.pad(image, margins, mode="reflect")
        length = image.shape[axis]
        blurred = np.zeros_like(image)
        for shift, weight in enumerate(weights):
            blurred += weight * padded.take(range(shift, shift + length), axis=axis)
        image = blurred
    return image


def to_unit_range(image: Array) -> Array:
    """Return uint8 pixels as float32 in 0 ... 1; others unchanged."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    return image


def _is_tall(image: Array, size: Size) -> bool:
    """Whether rows are resized first: of images that get lower and wider, or keep their width."""
    height: int
    width: int
    height, width = image.shape[-2:]
    return width == size[1] or (size[0] < height and size[1] > width)


def _by_axes(
    image: Array, size: Size, spans: Callable[[int, int], Iterator[_Span]], *, rows_first: bool
) -> Array:
    """Resample one axis after the other, in float32."""
    axes = (1, 2) if rows_first else (2, 1)
    for axis in axes:
        length = image.shape[axis]
        new_length = size[axis - 1]
        if new_length == length:
            continue
        lines = np.moveaxis(image, axis, 0)
        resampled = np.empty((new_length, *lines.shape[1:]), np.float32)
        for i, span in enumerate(spans(length, new_length)):
            neighbours = lines[span.start : span.start + len(span.weights)]
            resampled[i] = np.tensordot(span.weights, neighbours, axes=1)
        image = np.moveaxis(resampled, 0, axis)
    return image


def _bilinear_of_bytes(image: Array, size: Size) -> Array:
    """Resample uint8 as torch does: with integer weights, and rounded after each axis."""
    if 1 in (*image.shape[-2:], *size):
        lines = image.astype(np.float32)
        resampled = _by_axes(lines, size, _linear_spans, rows_first=False)
        return np.clip(np.rint(resampled), 0, 255).astype(np.uint8)
    axes = (1, 2) if _is_tall(image, size) else (2, 1)
    for axis in axes:
        if size[axis - 1] != image.shape[axis]:
            image = np.moveaxis(
                _bytes_of_lines(np.moveaxis(image, axis, 0), size[axis - 1]), 0, axis
            )
    return image


def _bytes_of_lines(lines: Array, new_length: int) -> Array:
    """Resample uint8 (length, ...) along its first axis by integer weights."""
    length = len(lines)
    spans = list(_linear_spans(length, new_length, np.float64))
    largest = max(float(span.weights.max()) for span in spans)
    bits = 0
    while bits < _MOST_WEIGHT_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << _WEIGHT_BITS:
        bits += 1
    half = 1 << (bits - 1)
    flat = np.ascontiguousarray(lines).reshape(length, -1)  # one line per old pixel
    resampled = np.empty((new_length, flat.shape[1]), np.uint8)
    for i, span in enumerate(spans):
        weights = np.floor(span.weights * (1 << bits) + 0.5)  # integers
        neighbours = flat[span.start : span.start + len(weights)]
        # exact: below 2 ** 31, and float64 holds integers up to 2 ** 53
        total = (weights @ neighbours.astype(np.float64)).astype(np.int64)
        resampled[i] = np.clip((total + half) >> bits, 0, 255)
    return resampled.reshape(new_length, *lines.shape[1:])


def _linear_spans(old: int, new: int, dtype: type[np.floating] = np.float32) -> Iterator[_Span]:
    return _kernel_spans(old, new, _triangle, reach=1.0, dtype=dtype)


def _cubic_spans(old: int, new: int) -> Iterator[_Span]:
    return _kernel_spans(old, new, _cubic, reach=2.0, dtype=np.float32)


def _kernel_spans(
    old: int,
    new: int,
    kernel: Callable[[Array], Array],
    *,
    reach: float,
    dtype: type[np.floating],
) -> Iterator[_Span]:
    """The spans of a kernel that grows with the step where the image shrinks (antialiasing)."""
    scale = dtype(old) / dtype(new)
    step = max(scale, dtype(1))
    support = dtype(reach) * step
    for i in range(new):
        centre = scale * dtype(i + 0.5)
        start = max(int(centre - support + dtype(0.5)), 0)
        end = min(int(centre + support + dtype(0.5)), old)
        offsets = np.arange(start, end).astype(dtype) - centre + dtype(0.5)
        weights = kernel(offsets / step)
        yield _Span(start, (weights / weights.sum()).astype(dtype))


def _area_spans(old: int, new: int) -> Iterator[_Span]:
    """The means over the pixels that each new pixel's area touches."""
    for i in range(new):
        start = i * old // new
        end = math.ceil((i + 1) * old / new)
        count = end - start
        yield _Span(start, np.full(count, 1 / count, np.float32))


def _aliased_spans(old: int, new: int) -> Iterator[_Span]:
    """The two nearest pixels of each new one, whatever the step."""
    scale = np.float32(old / new)
    for i in range(new):
        position = max(scale * np.float32(i + 0.5) - np.float32(0.5), np.float32(0))
        start = min(int(position), old - 1)
        share = np.float32(position - start)
        if start + 1 == old:
            yield _Span(start, np.ones(1, np.float32))
        else:
            yield _Span(start, np.array([1 - share, share], np.float32))


def _triangle(x: Array) -> Array:
    weights: Array = np.maximum(1 - np.abs(x), 0)
    return weights


def _cubic(x: Array) -> Array:
    a = _CUBIC
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
