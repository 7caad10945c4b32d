"""The simple feature pyramid of ViTDet: every level on its own, from one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import at_least
from dinoneck.errors import ConfigError
from dinoneck.grid import GridSize, as_maps
from dinoneck.layers.conv_block import reset
from dinoneck.layers.inputs import TokensLike
from dinoneck.layers.norms import ChannelNorm
from dinoneck.layers.resampling import largest_of_four
from dinoneck.necks.neck import Neck
from dinoneck.tokens import FeaturePyramid

SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)
NORM_EPS = 1e-6


class SimplePyramid(Neck):
    """Levels finer and coarser than the token grid, all from the last layer: transposed convolutions and max pooling.

    The neck of ViTDet. Prefer it where a detector wants strides 4 to 32 and one layer of the backbone is known to
    carry enough; most of its cost is the 3x3 convolution on the finest level. Where several layers are to take part,
    or levels are to see each other, take :class:`dinoneck.ViTFPN` or :class:`dinoneck.DPTNeck`.

    Per scale: 4 = two transposed 2x2 convolutions (to C / 2, LayerNorm, GELU, to C / 4); 2 = one (to C / 2); 1 =
    nothing; 0.5 and 0.25 = 2x2 max pooling once and twice. Then 1x1 convolution, LayerNorm, 3x3 convolution,
    LayerNorm, both convolutions without bias.

    Args:
        embed_dim: channels C of the tokens; at least the finest scale.
        out_channels: channels D of every level.
        scales: cells per token along each axis, strictly falling, out of 4, 2, 1, 0.5 and 0.25.
        patch_size: pixels per patch; a level's stride is ``patch_size / scale``.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of any number of layers, of which the last is read -> levels (B, D, rows * scale, cols * scale),
        channels-last; ceil(rows / 2) x ceil(cols / 2) and ceil(rows / 4) x ceil(cols / 4) for 0.5 and 0.25.

    Raises:
        ConfigError: if a number is too small, or the scales are of another kind or order.
        ShapeError: if the tokens have another width, patch size or dtype.

    Examples:
        >>> neck = SimplePyramid(embed_dim=64, out_channels=32)
        >>> [tuple(level.shape) for level in neck(torch.randn(2, 9 * 16, 64), grid=(9, 16))], neck.strides
        ([(2, 32, 36, 64), (2, 32, 18, 32), (2, 32, 9, 16), (2, 32, 5, 8)], (4.0, 8.0, 16.0, 32.0))

    Reference: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022; detectron2's
    ``SimpleFeaturePyramid``, whose weights fit level by level in the order of its modules (``ups``, with
    ``up_norm`` between them, ``project``, ``project_norm``, ``smooth``, ``smooth_norm``; ``project`` without the two
    axes of size 1). Deviations: pooling keeps an odd last row and column; the scale 0.25; no further pooled level on
    top.
    """

    num_layers = None

    def __init__(
        self,
        embed_dim: int,
        out_channels: int = 256,
        scales: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5),
        patch_size: int = 16,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_scales(scales)
        at_least(1, out_channels=out_channels, patch_size=patch_size)
        at_least(max(1, int(scales[0])), embed_dim=embed_dim)
        self.embed_dim, self.out_channels, self.patch_size = embed_dim, out_channels, patch_size
        self.scales = scales
        self.strides = tuple(patch_size / scale for scale in scales)
        self.levels = nn.ModuleList(
            _Level(embed_dim, out_channels, scale, device=device, dtype=dtype) for scale in scales
        )

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        reset(self.levels)

    def forward(
        self,
        tokens: TokensLike,
        images: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
        num_prefix_tokens: int = 0,
        cls_token: Tensor | Sequence[Tensor] | None = None,
    ) -> FeaturePyramid:
        """Return the pyramid, see :meth:`Neck.forward`; ``images`` are not needed."""
        tokens = self._tokens(tokens, grid, num_prefix_tokens, cls_token)
        (sequence,) = tokens.sequence
        maps = tuple(level(sequence, tokens.num_prefix_tokens, tokens.grid) for level in self.levels)
        return FeaturePyramid(maps, self.strides)


class _Level(nn.Module):
    """One scale: resize, 1x1, norm, 3x3, norm."""

    def __init__(self, embed_dim: int, out_channels: int, scale: float, **factory: Any) -> None:
        super().__init__()
        octave = round(math.log2(scale))
        self.doublings, self.halvings = max(octave, 0), max(-octave, 0)
        widths = [embed_dim // 2**step for step in range(self.doublings + 1)]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2, **factory) for wide, narrow in pairwise(widths))
        self.up_norm = nn.LayerNorm(widths[1], eps=NORM_EPS, **factory) if self.doublings == 2 else None
        self.project = nn.Linear(widths[-1], out_channels, bias=False, **factory)
        self.project_norm = nn.LayerNorm(out_channels, eps=NORM_EPS, **factory)
        self.smooth = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **factory)
        self.smooth_norm = ChannelNorm(out_channels, eps=NORM_EPS, **factory)

    def forward(self, sequence: Tensor, num_prefix: int, grid: GridSize) -> Tensor:
        """(B, P + N, C) -> (B, D, rows * scale, cols * scale)."""
        if self.halvings:
            maps = as_maps(sequence[:, num_prefix:], grid)
            for _ in range(self.halvings):
                maps = largest_of_four(maps)
            maps = self.project_norm(self.project(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        else:
            subcells = self.project_norm(self._subcells(sequence))
            maps = spread(subcells[:, num_prefix:], grid)
        level: Tensor = self.smooth_norm(self.smooth(maps))
        return level

    def _subcells(self, sequence: Tensor) -> Tensor:
        """(B, P + N, C) -> (B, P + N, 2, 2, ..., D), two axes per doubling: all but the 3x3, token by token."""
        if self.doublings == 0:
            projected: Tensor = self.project(sequence)
            return projected
        *first, last = self.ups
        subcells = sequence
        for up in first:
            subcells = F.gelu(self.up_norm(upscaled(subcells, up)))  # type: ignore[misc,arg-type]
        return upscaled(subcells, last, self.project)  # type: ignore[arg-type]


def upscaled(cells: Tensor, up: nn.ConvTranspose2d, project: nn.Linear | None = None) -> Tensor:
    """Apply a transposed convolution whose kernel is its stride as the linear layer it is: subcells do not overlap.

    The two linear maps are folded into one where that takes fewer multiplications. The fold is made on every call,
    so it cannot be stale; under ``torch.compile`` and export the plain formulation runs.

    Args:
        cells: (..., C).
        up: C -> D channels, kernel k x k, stride k.
        project: D -> E, bias-free, applied to every subcell; None = none.

    Returns:
        (..., k, k, D), or (..., k, k, E): row and column of a subcell within its cell, then channels.
    """
    weight, bias = up.weight.permute(2, 3, 1, 0), up.bias
    if project is not None and _fold_pays(cells, up, project):
        weight, bias = project.weight @ weight, None if bias is None else project.weight @ bias
        project = None
    side, _, width, channels = weight.shape
    stacked = None if bias is None else bias.repeat(side * side)
    found = F.linear(cells, weight.reshape(-1, channels), stacked)
    subcells: Tensor = found.unflatten(-1, (side, side, width))  # type: ignore[no-untyped-call]
    return subcells if project is None else project(subcells)


def spread(subcells: Tensor, grid: GridSize) -> Tensor:
    """Lay the subcells of every patch out as a map.

    Args:
        subcells: (B, N, k, k, D), or with further pairs of axes for subcells of subcells, coarse to fine.
        grid: of the N patches.

    Returns:
        (B, D, rows * k * ..., cols * k * ...), channels-last.
    """
    cells = as_maps(subcells.flatten(2), grid).permute(0, 2, 3, 1)
    nested: Tensor = cells.unflatten(-1, subcells.shape[2:])  # type: ignore[no-untyped-call]
    down, across = range(1, nested.ndim - 1, 2), range(2, nested.ndim - 1, 2)
    depth = len(down)
    ordered = nested.permute(0, *down, *across, nested.ndim - 1)
    return ordered.flatten(depth + 1, 2 * depth).flatten(1, depth).permute(0, 3, 1, 2)


def _fold_pays(cells: Tensor, up: nn.ConvTranspose2d, project: nn.Linear) -> bool:
    """Whether folding ``project`` into ``up`` takes fewer multiplications, the making of the fold included."""
    if torch.compiler.is_compiling():
        return False
    inner, middle, outer = up.in_channels, up.out_channels, project.out_features
    count = cells.numel() // inner
    return count * (inner * middle + middle * outer - inner * outer) > inner * middle * outer


def _check_scales(scales: tuple[float, ...]) -> None:
    allowed = ", ".join(f"{scale:g}" for scale in SCALES)
    if not scales or any(scale not in SCALES for scale in scales):
        raise ConfigError(f"scales is {scales}; expected one or more of {allowed}")
    if any(coarse >= fine for fine, coarse in pairwise(scales)):
        raise ConfigError(
            f"scales is {scales}; expected them strictly falling (levels go from fine to coarse): "
            f"{tuple(sorted(set(scales), reverse=True))}"
        )
