"""Sizes of images in patches, without torch: what :mod:`dinoneck.grid` and the recipes of images share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple

from dinoneck.errors import ConfigError, GridError

Remainder = Literal["error", "crop", "pad", "resize"]
PadTo = Literal["corner", "center"]
PatchSize = int | tuple[int, int]


def patch_pair(patch_size: PatchSize) -> tuple[int, int]:
    """Return ``(height, width)`` of a patch in pixels; refuse anything but positive integers."""
    pair = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size, patch_size)
    if len(pair) != 2 or any(
        isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair
    ):
        raise ConfigError(
            f"patch_size is {patch_size!r}; expected a positive integer or (height, width) of two"
        )
    return pair


class Axis(NamedTuple):
    """How one axis of an image becomes cells: prepared = original * scale + offset."""

    cells: int
    scale: float
    offset: float


def grid_of(
    image_size: Sequence[int], patch_size: PatchSize, on_remainder: Remainder
) -> tuple[int, int]:
    """Return (rows, cols) of the patch grid of an image of ``(height, width)`` pixels.

    Raises:
        GridError: if it is no size, a remainder is refused and a side is not a multiple of the
            patch, or no whole patch is left.
    """
    if len(image_size) != 2 or not all(isinstance(side, Integral) for side in image_size):
        raise no_image_size(image_size)
    height, width = image_size
    if min(height, width) < 1:
        raise no_image_size(image_size)
    rows, cols = axes_of(
        (height, width), patch_pair(patch_size), on_remainder=on_remainder, pad_to="corner"
    )
    return rows.cells, cols.cells


def no_image_size(image_size: Any) -> GridError:
    """Return the error for what is not the size of an image."""
    return GridError(
        f"image_size is {image_size!r}; expected (height, width) in whole pixels, both at least 1"
    )


def axes_of(
    image_size: tuple[int, int],
    patch: tuple[int, int],
    *,
    on_remainder: Remainder,
    pad_to: PadTo,
) -> tuple[Axis, Axis]:
    """Return how the rows and columns of an image become cells.

    Args:
        image_size: (height, width) in pixels.
        patch: (height, width) of a patch in pixels.
        on_remainder: what happens where the patch does not divide the image.
        pad_to: where ``"pad"`` puts the image.

    Raises:
        GridError: if a remainder is refused and a side is not a multiple of the patch, or if no
            whole patch is left.
    """
    height, width = image_size
    down, across = patch
    if on_remainder == "error" and (height % down or width % across):
        padded = f"'pad' ({-(-height // down) * down}x{-(-width // across) * across})"
        cropped = ""
        if height >= down and width >= across:
            cropped = f"'crop' ({height // down * down}x{width // across * across}), "
        raise GridError(
            f"the image is {height}x{width} px (height x width) and the patch {down}x{across} "
            f"px: {height} % {down} = {height % down}, {width} % {across} = {width % across}. "
            f"Pass an image whose sides are multiples of the patch, or choose {cropped}{padded}, "
            "or 'resize', which Preprocessing calls resize='stretch'"
        )
    rows = _axis(height, down, on_remainder, pad_to)
    cols = _axis(width, across, on_remainder, pad_to)
    return rows, cols


def _axis(length: int, patch: int, on_remainder: Remainder, pad_to: PadTo) -> Axis:
    if on_remainder == "pad":
        cells = (length + patch - 1) // patch
        before = 0
        if pad_to == "center":
            before = (cells * patch - length) // 2
        return Axis(cells, 1.0, float(before))
    if on_remainder == "resize":
        cells = max(1, (2 * length + patch) // (2 * patch))
        return Axis(cells, cells * patch / length, 0.0)
    cells = length // patch
    if on_remainder == "error":
        return Axis(cells, 1.0, 0.0)
    if cells < 1:
        raise GridError(
            f"'crop' leaves nothing of a side of {length} px with patches of {patch} px; use 'pad'"
        )
    return Axis(cells, 1.0, -float((length - cells * patch) // 2))
