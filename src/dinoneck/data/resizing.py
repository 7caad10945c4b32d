"""Sizes of images: where an image lies on its canvas of whole patches, and the resampling that brings it there."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.grid import PadTo, PatchSize, Remainder, TokenGrid, patch_pair

Resize = Literal["stretch", "keep", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area"]
Size = tuple[int, int]  # (height, width) in pixels

_REMAINDER: dict[Resize, Remainder] = {"stretch": "resize", "keep": "error", "crop": "crop", "pad": "pad"}


class Placement(NamedTuple):
    """Where an image lies on its canvas.

    Attributes:
        resized: (height, width) that the image is resampled to.
        canvas: (height, width) of the prepared image, whole patches.
        corner: (top, left) of the resampled image on the canvas; negative where it is cut.
    """

    resized: Size
    canvas: Size
    corner: tuple[int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that show the image and no padding."""
        rows, cols = (
            slice(max(corner, 0), min(corner + side, limit))
            for corner, side, limit in zip(self.corner, self.resized, self.canvas, strict=True)
        )
        return rows, cols

    def on_canvas(self, x: Tensor) -> Tensor:
        """Cut the resampled (..., height, width) to the canvas, and fill up what it leaves free with zeros."""
        (top, left), (rows, cols) = self.corner, self.window
        x = x[..., max(-top, 0) :, max(-left, 0) :][..., : rows.stop - rows.start, : cols.stop - cols.start]
        free = (cols.start, self.canvas[1] - cols.stop, rows.start, self.canvas[0] - rows.stop)
        return F.pad(x, free) if any(free) else x


def place(image: Size, patch: PatchSize, size: Size | None, resize: Resize, pad_to: PadTo) -> Placement:
    """Return where an image lies on a canvas of whole patches.

    Args:
        image: (height, width) of the image.
        patch: pixels per patch.
        size: (height, width) that images are brought to; None = the image's own.
        resize: ``stretch`` resamples to ``size``, rounded to whole patches; ``keep`` resamples so that the image fits
            inside, with both sides rounded to whole patches, and without a size refuses a remainder; ``crop`` covers
            the whole patches in ``size`` and cuts the middle out; ``pad`` fits inside and fills up to whole patches.
        pad_to: where ``pad`` puts the image: in the upper left ``corner``, or in the ``center``.

    Raises:
        GridError: if a side has a remainder that ``keep`` refuses, or no whole patch is left of it.
    """
    down, across = patch_pair(patch)
    if resize == "keep" and size is not None:
        size, resize = _scaled(image, size, inside=True), "stretch"
    rows, cols = TokenGrid(patch, _REMAINDER[resize]).size(size or image)
    canvas = (rows * down, cols * across)
    if resize in ("stretch", "keep"):
        return Placement(canvas, canvas, (0, 0))
    resized = image if size is None else _scaled(image, canvas, inside=resize == "pad")
    free = (canvas[0] - resized[0], canvas[1] - resized[1])
    if resize == "crop":
        return Placement(resized, canvas, (-(-free[0] // 2), -(-free[1] // 2)))
    return Placement(resized, canvas, (free[0] // 2, free[1] // 2) if pad_to == "center" else (0, 0))


def _scaled(image: Size, size: Size, inside: bool) -> Size:
    """The image's sides times the factor by which it fits inside ``size``, or covers it."""
    ratios = size[0] / image[0], size[1] / image[1]
    scale = min(ratios) if inside else max(ratios)
    height, width = (
        limit if ratio == scale else max(1, round(side * scale))
        for side, limit, ratio in zip(image, size, ratios, strict=True)
    )
    return height, width


def resample(x: Tensor, size: Size, interpolation: Interpolation) -> Tensor:
    """Resample images (B, C, H, W) of floats or uint8; bilinear keeps uint8, other results are in 0 ... 1."""
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if interpolation == "area" and size[0] <= height and size[1] <= width:
        return _area(x, size)
    if interpolation != "bilinear":
        x = to_unit_range(x)
    options: dict[str, Any] = {"mode": "bicubic" if interpolation == "bicubic" else "bilinear", "antialias": True}
    if width == size[1] or (size[0] < height and size[1] > width):
        # torch widens first, so a thin image would get all its rows in full width; and it misplaces rows (as of 2.15)
        # where the width stays 1: they are resized as columns
        x = F.interpolate(x.mT, size=(width, size[0]), **options).mT
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, **options)


def _area(x: Tensor, size: Size) -> Tensor:
    """Equal ``F.interpolate(to_unit_range(x), size, mode="area")`` bit for bit, without the whole image as floats."""
    height, rows = x.shape[-2], size[0]
    windows = (x[..., row * height // rows : -(-(row + 1) * height // rows), :] for row in range(rows))
    return torch.cat([F.adaptive_avg_pool2d(to_unit_range(window), (1, size[1])) for window in windows], dim=-2)


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0 ... 1; others unchanged."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels in 0 ... 1 as uint8, rounded; uint8 ones unchanged."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255.0).round().to(torch.uint8)
