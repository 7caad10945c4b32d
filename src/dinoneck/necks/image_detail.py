"""Convolutions on the image that compute detail at strides 8, 16 and 32, finer than the patches of a ViT."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.layers.blocks import BatchNormName, map_norm, reset
from dinoneck.layers.resampling import widened

WIDENING = (2, 4, 4)  # channels of the levels, in widths of the stem
SHARE_AROUND = 1 / 9  # bound of the initial weights of a 3x3 convolution with 9 taps


class _CellStep(nn.Module):
    """A 2x2 convolution with stride 2, plus a depthwise 3x3 on its result, then a norm."""

    def __init__(self, narrow: int, wide: int, norm: BatchNormName, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, 2, 2, bias=False, **factory)
        self.around = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False, **factory)
        self.norm = map_norm(norm, wide, **factory)
        self._start_around()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        self.conv.reset_parameters()
        reset(self.norm)
        self._start_around()

    def _start_around(self) -> None:
        """Small initial weights: a cell starts as mostly its own pixels, also at the borders."""
        nn.init.uniform_(self.around.weight, -SHARE_AROUND, SHARE_AROUND)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, narrow, 2 rows, 2 cols) -> (B, wide, rows, cols)."""
        cells = self.conv(maps)  # (B, wide, rows, cols)
        normed: Tensor = self.norm(cells + self.around(cells))
        return normed


class AlignedDetail(nn.Module):
    """Image detail whose cells are aligned with the ViT's: every step reads the pixels of its own cell.

    A 4x4 convolution with stride 4, norm and GELU; then per level a 2x2 convolution with stride 2,
    plus a depthwise 3x3 on its result, and a norm. GELU precedes the next step; the levels are
    returned before it. Sides that a step does not divide are padded with zeros at the bottom and
    right.

    Args:
        width: channels at stride 4; the levels have 2, 4 and 4 times as many.
        norm: ``batch``, ``group`` or ``layer``.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        (B, 3, H, W) -> (B, 2 width, ceil(H / 8), ceil(W / 8)), (B, 4 width, ... / 16), (B, 4 width,
        ... / 32).
    """

    def __init__(
        self,
        width: int,
        norm: BatchNormName = "batch",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = nn.Conv2d(3, width, 4, 4, bias=False, **factory)
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=map_norm(norm, width, **factory)))
        widths = (width, *(width * times for times in WIDENING))
        self.steps = nn.ModuleList(
            _CellStep(narrow, wide, norm, **factory) for narrow, wide in pairwise(widths)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of strides 8, 16 and 32, before any activation."""
        maps = self.stem(widened(images, 4))  # (B, width, ceil(H / 4), ceil(W / 4))
        levels = []
        for step in self.steps:  # each halves the sides
            maps = step(widened(F.gelu(maps), 2))
            levels.append(maps)
        return tuple(levels)
