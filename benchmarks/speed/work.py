"""FLOPs and least bytes of a row's forward, by formula: every input read once, every result written once.

A multiplication and an addition are two FLOPs. Norms, activations, resizing and sums are not counted as FLOPs: their
cost is bytes, and the least bytes assume that they happen while the data pass by.
"""

from __future__ import annotations

from math import ceil

import torch

from benchmarks.speed.rows import PATCH, Setting

DETAIL = 16
Work = tuple[float, float]


def size_of(setting: Setting) -> int:
    """Bytes of one number."""
    return torch.finfo(setting.dtype).bits // 8


def product(cells: float, inner: int, outer: int, taps: int = 1) -> float:
    """FLOPs of a linear layer or convolution with so many taps, per cell of its result."""
    return 2.0 * cells * inner * outer * taps


def cells_at(setting: Setting, scale: float) -> int:
    """Cells of a level of so many cells per token along each axis, over the batch."""
    rows, cols = setting.grid
    return setting.batch * ceil(rows * scale) * ceil(cols * scale)


def total(setting: Setting, flops: float, numbers: float) -> Work:
    """FLOPs, and the bytes of so many numbers."""
    return flops, size_of(setting) * numbers


def projections(setting: Setting) -> Work:
    """L projections C -> D and their weighted sum."""
    cells, weights = setting.patches, setting.layers * setting.channels * setting.out
    return total(setting, product(cells, setting.layers * setting.channels, setting.out),
                 cells * (setting.layers * setting.channels + setting.out) + weights)  # fmt: skip


def norm(setting: Setting) -> Work:
    """A norm: read, written."""
    return total(setting, 8.0 * setting.patches * setting.channels, 2 * setting.patches * setting.channels)


def vit_fpn(setting: Setting, smooth: bool = True) -> Work:
    """Projections; one and two strided 3x3; three laterals; three smoothing 3x3."""
    fine, middle, coarse = (cells_at(setting, 0.5**level) for level in range(3))
    flops = product(fine, setting.layers * setting.channels, setting.out)
    flops += product(middle + middle + coarse, setting.out, setting.out, 9)
    flops += product(fine + middle + coarse, setting.out, setting.out)
    flops += product(fine + middle + coarse, setting.out, setting.out, 9) if smooth else 0.0
    weights = setting.layers * setting.channels * setting.out + setting.out * setting.out * (3 * 9 + 3 + 3 * 9)
    result = setting.out * (fine + middle + coarse) if smooth else 3 * setting.out * setting.batch
    return total(setting, flops, setting.patches * setting.layers * setting.channels + result + weights)


def pooled_fpn(setting: Setting) -> Work:
    """The same without the smoothing, whose mean needs nine sums only."""
    return vit_fpn(setting, smooth=False)


def pool_fpn(setting: Setting) -> Work:
    """Layers averaged and pooled before they are projected: laterals and smoothing only."""
    levels = [cells_at(setting, 0.5**level) for level in range(3)]
    flops = product(levels[0], setting.channels, setting.out) + product(sum(levels[1:]), setting.channels, setting.out)
    flops += product(sum(levels), setting.out, setting.out, 9)
    numbers = setting.patches * setting.layers * setting.channels + setting.out * sum(levels)
    return total(setting, flops, numbers + 3 * (setting.channels * setting.out + 9 * setting.out * setting.out))


def sta_simple(setting: Setting) -> Work:
    """Two projections at the token grid, one strided 3x3; levels at 2, 1 and 1/2."""
    fine, cells, coarse = (cells_at(setting, scale) for scale in (2, 1, 0.5))
    flops = product(cells, setting.channels, 2 * setting.out) + product(coarse, setting.channels, setting.out, 9)
    weights = 11 * setting.channels * setting.out
    return total(setting, flops, setting.patches * setting.channels + setting.out * (fine + cells + coarse) + weights)


def aligned(setting: Setting) -> Work:
    """Convolutions on the image: 4x4 with stride 4, then 2x2 with stride 2 and a depthwise 3x3; projections."""
    fine, cells, coarse = (cells_at(setting, scale) for scale in (2, 1, 0.5))
    pixels = cells * PATCH * PATCH
    widths = (DETAIL, 2 * DETAIL, 4 * DETAIL, 4 * DETAIL)
    flops = product(pixels / 16, 3, DETAIL, 16)
    for narrow, wide, level in zip(widths[:-1], widths[1:], (fine, cells, coarse), strict=True):
        flops += product(level, narrow, wide, 4) + product(level, wide, setting.out) + product(level, 1, wide, 9)
    # tokens are projected at their own grid, the detail at the levels' sizes
    flops += product(cells, setting.channels, setting.out) * 2 + product(coarse, setting.channels, setting.out)
    numbers = 3 * pixels + setting.layers * setting.patches * setting.channels + setting.out * (fine + cells + coarse)
    return total(setting, flops, numbers + 3 * setting.channels * setting.out)


def simple_pyramid(setting: Setting) -> Work:
    """Scales 2, 1 and 1/2: transposed 2x2 to C / 2 and its projection in one, projections, three 3x3."""
    channels = setting.channels
    fine, cells, coarse = (cells_at(setting, scale) for scale in (2, 1, 0.5))
    flops = product(fine, channels, setting.out) + product(cells + coarse, channels, setting.out)
    flops += product(fine + cells + coarse, setting.out, setting.out, 9)
    numbers = setting.patches * channels + setting.out * (fine + cells + coarse)
    return total(setting, flops, numbers + 6 * channels * setting.out + 27 * setting.out * setting.out)


def dpt(setting: Setting, widths: tuple[int, ...]) -> Work:
    """Readout, projection, resizing, 3x3 to the common width, residual units, projections; the finest level doubled."""
    channels, levels = setting.channels, [cells_at(setting, scale) for scale in (4, 2, 1, 0.5)]
    flops = setting.layers * product(setting.patches, channels, channels)
    for place, (width, level) in enumerate(zip(widths, levels, strict=True)):
        flops += product(setting.patches, channels, width)
        flops += product(level, width, width, (1, 1, 0, 9)[place]) + product(level, width, setting.out, 9)
        flops += product(level, setting.out, setting.out, 18 * (1 if place == len(levels) - 1 else 2) + 1)
    return total(setting, flops, setting.layers * setting.patches * channels + 4 * setting.out * levels[0])


def gate_pool(setting: Setting) -> Work:
    """The gate, then one weighted sum over all tokens."""
    cells, channels = setting.patches, setting.channels
    places = cells // setting.batch
    width = channels // 4
    flops = (
        product(setting.batch, channels, width) + product(setting.batch, width, places) + product(cells, channels, 1)
    )
    return total(setting, flops, cells * channels + width * (channels + places))


def ensemble(setting: Setting) -> Work:
    """25 first layers of 128 units and their answers, tokens read once."""
    cells, units = setting.patches, 25 * 128
    flops = product(cells, setting.channels, units) + product(cells, units, 1)
    return total(setting, flops, cells * setting.channels + units * setting.channels)


def vit(setting: Setting, blocks: int, prefix: int) -> Work:
    """Blocks of a ViT: 12 C² per token, and attention over all tokens."""
    tokens = setting.patches // setting.batch + prefix
    channels = setting.channels
    per_block = product(setting.batch * tokens, channels, 12 * channels) + 4.0 * setting.batch * tokens**2 * channels
    flops = blocks * per_block + product(setting.patches, 3 * PATCH * PATCH, channels)
    return total(setting, flops, 3 * setting.patches * PATCH * PATCH + blocks * 12 * channels**2)
