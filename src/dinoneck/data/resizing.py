"""Resizing of images, and where it brings their pixels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fit = Literal["stretch", "keep", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area", "bilinear_float32"]


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
