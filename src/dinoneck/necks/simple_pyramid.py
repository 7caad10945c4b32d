"""The simple feature pyramid of ViTDet: every level on its own, from one map."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Unpack

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.layers.blocks import TOKEN_NORM_EPS, ChannelNorm, MapLinear
from dinoneck.layers.inputs import Plain, TokensLike, as_tokens, check_tokens
from dinoneck.necks.neck import Neck
from dinoneck.necks.strides import DEFAULT_PYRAMID_SCALES, pyramid_strides
from dinoneck.tokens import FeaturePyramid


class SimplePyramid(Neck):
    """Levels finer and coarser than the token grid, all from the last layer: transposed convolutions and max pooling.

    The neck of ViTDet, for detectors with strides 4 to 32 on the last layer alone; most of its cost
    is the 3x3 convolution on the finest level. To use several layers, or to exchange information
    between levels, take :class:`dinoneck.ViTFPN` or :class:`dinoneck.DPTNeck`.

    Per scale: 4 = two transposed 2x2 convolutions (to C / 2, LayerNorm, GELU, to C / 4); 2 = one
    (to C / 2); 1 = nothing; 0.5 and 0.25 = 2x2 max pooling once and twice. Then 1x1 convolution,
    LayerNorm, 3x3 convolution, LayerNorm, both convolutions without bias.

    Args:
        embed_dim: channels C of the tokens; at least the finest scale.
        out_channels: channels D of every level.
        scales: cells per token along each axis, strictly falling, out of 4, 2, 1, 0.5 and 0.25.
        patch_size: pixels per patch; a level's stride is ``patch_size / scale``.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of any number of layers, of which the last is read -> levels
        (B, D, rows * scale, cols * scale), channels-last; ceil(rows / 2) x ceil(cols / 2) and
        ceil(rows / 4) x ceil(cols / 4) for 0.5 and 0.25.

    Raises:
        ConfigError: if a number is too small, a scale is not one of the five, or the scales do not
            fall.
        ShapeError: if the tokens have another width, patch size or dtype.

    Examples:
        >>> import torch
        >>> neck = SimplePyramid(embed_dim=64, out_channels=32)
        >>> [tuple(level.shape) for level in neck(torch.randn(2, 9 * 16, 64), grid=(9, 16))], neck.strides
        ([(2, 32, 36, 64), (2, 32, 18, 32), (2, 32, 9, 16), (2, 32, 5, 8)], (4.0, 8.0, 16.0, 32.0))

    Reference: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV
    2022; detectron2's ``SimpleFeaturePyramid``, whose weights fit level by level in the order of
    its modules (``ups``, with ``up_norm`` between them, ``project``, ``project_norm``, ``smooth``,
    ``smooth_norm``; ``project`` without the two axes of size 1). Deviations: pooling keeps an odd
    last row and column; the scale 0.25; no further pooled level on top.
    """

    num_layers = None

    def __init__(
        self,
        embed_dim: int,
        out_channels: int = 256,
        scales: tuple[float, ...] = DEFAULT_PYRAMID_SCALES,
        patch_size: int = 16,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, out_channels=out_channels, patch_size=patch_size)
        strides = pyramid_strides(scales, patch_size)
        check_minimum(max(1, int(scales[0])), embed_dim=embed_dim)
        self.embed_dim = embed_dim
        self.out_channels = out_channels
        self.patch_size = patch_size
        self.scales = scales
        self.strides = strides
        self.levels = nn.ModuleList(
            _Level(embed_dim, out_channels, scale, device=device, dtype=dtype) for scale in scales
        )

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the pyramid, see :meth:`Neck.forward`; ``images`` are not needed."""
        # plain tensors are converted and checked; of several layers the last is read: (B, N, C)
        tokens = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self)
        check_tokens(
            tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size
        )
        patches = tokens.patches[-1]
        # patch tokens are a raster-ordered map, (B, N, C) -> (B, C, rows, cols): a channels-last
        # view
        rows, cols = tokens.grid
        maps = rearrange(patches, "b (r c) d -> b d r c", r=rows, c=cols)
        # every level on its own from this map: (B, D, rows * scale, cols * scale)
        return FeaturePyramid(tuple(level(maps) for level in self.levels), self.strides)


class _Level(nn.Module):
    """One scale: transposed convolutions or max pooling, 1x1, norm, 3x3, norm."""

    def __init__(self, embed_dim: int, out_channels: int, scale: float, **factory: Any) -> None:
        super().__init__()
        octave = round(math.log2(scale))  # 2 for scale 4, -1 for scale 0.5
        doublings = max(octave, 0)
        self.halvings = max(-octave, 0)
        widths = [embed_dim // 2**step for step in range(doublings + 1)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, kernel_size=2, stride=2, **factory)
            for wide, narrow in pairwise(widths)
        )
        self.up_norm = None
        if doublings == 2:  # a norm between the two
            self.up_norm = ChannelNorm(widths[1], eps=TOKEN_NORM_EPS, **factory)
        self.project = MapLinear(widths[-1], out_channels, bias=False, **factory)
        self.project_norm = ChannelNorm(out_channels, eps=TOKEN_NORM_EPS, **factory)
        self.smooth = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **factory)
        self.smooth_norm = ChannelNorm(out_channels, eps=TOKEN_NORM_EPS, **factory)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, rows, cols) -> (B, D, rows * scale, cols * scale)."""
        for step, up in enumerate(self.ups):
            if step == 1 and self.up_norm is not None:  # between the two of scale 4
                maps = F.gelu(self.up_norm(maps))
            maps = up(maps)  # (B, C / 2, 2 rows, 2 cols), then (B, C / 4, 4 rows, 4 cols)
        for _ in range(self.halvings):
            maps = F.max_pool2d(maps, 2, ceil_mode=True)  # (B, C, ceil(rows / 2), ceil(cols / 2))
        maps = self.project_norm(self.project(maps))  # (B, D, rows * scale, cols * scale)
        level: Tensor = self.smooth_norm(self.smooth(maps))
        return level
