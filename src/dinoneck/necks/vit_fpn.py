"""A feature pyramid network (FPN) on the layers of a plain ViT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.layers.blocks import TOKEN_NORM_EPS, ActivationName, ConvBlock, MapLinear, NormName
from dinoneck.layers.inputs import Plain, TokensLike, as_tokens, check_tokens
from dinoneck.layers.resampling import halved
from dinoneck.necks.layer_grouper import Fusion, LayerGrouper
from dinoneck.necks.neck import Neck
from dinoneck.necks.strides import DEFAULT_FPN_LEVELS, fpn_strides
from dinoneck.tokens import FeaturePyramid, Tokens

Downsample = Literal["conv", "pool", "interpolate"]


class ViTFPN(Neck):
    """P2 (the token grid), P3 (/2), P4 (/4) ... from groups of layers: each level from its own group.

    A group's tokens are normalised and projected, downsampled to their level, and merged top-down
    with nearest upsampling to the finer level's size, 3x3 smoothing, norm and activation. Any grid
    of at least 1x1 works; level i has ceil(rows / 2^i) x ceil(cols / 2^i) cells. With one layer,
    one projection gives all levels; with fewer layers than levels, neighbouring levels share one.

    **Without a non-linearity it models little that is spatial**: with
    ``norm=None, activation=None`` no step after the fusion of layers is non-linear. The
    average-pooled result is then a linear probe of sums of tokens: of all tokens with
    ``downsample="pool"`` and ``"interpolate"``, of those of equal row and column modulo 2^i with
    ``"conv"`` (borders aside). The default norm and GELU after the smoothing let it model
    arrangement.

    Args:
        embed_dim: channels C of the tokens.
        num_layers: layers L that the tokens hold.
        fpn_dim: channels D of every level.
        num_levels: levels, P2 first.
        layer_groups: ``"auto"`` or one tuple of positions per level, see
            :class:`dinoneck.LayerGrouper`.
        use_separate_bottlenecks: one norm and projection per layer, or one for all.
        fusion: of the layers of a group: ``mean``, ``softmax`` or ``pixel``.
        downsample: to level i: ``conv`` (i times 3x3 with stride 2), ``pool`` (i times 2x2 means)
            or ``interpolate`` (i times bilinear halving, then 3x3).
        norm: ``layer`` (per cell) or ``group`` (8 or more channels per group) after every 3x3, and
            LayerNorm on the tokens at the entrance; None leaves out all of them.
        activation: ``gelu``, ``relu`` or ``silu`` after every norm; None = none.
        residual_init: ``"zero"``: a level is its group's tokens averaged to its size, plus the
            pyramid times a gain per channel that starts at 0, so that the neck starts as mean
            pooling of the tokens: for few training images. None: the pyramid alone.
        use_coords: give the laterals the x and y of every cell (-1 ... 1) as two more channels
            (CoordConv).
        use_cls_context: multiply every group's channels by a gate 0 ... 2 computed from the last
            layer's CLS token.
        patch_size: pixels per patch; strides follow it.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of L layers -> levels (B, D, ceil(rows / 2^i), ceil(cols / 2^i)), channels-last.

    Raises:
        ConfigError: if a number is not positive or groups do not fit.
        ShapeError: if the tokens have another width, patch size or number of layers, or lack a
            needed CLS token.

    Examples:
        >>> neck = ViTFPN(embed_dim=384, num_layers=4, fpn_dim=64)
        >>> layers = [torch.randn(1, 5 + 30 * 60, 384) for _ in range(4)]
        >>> tokens = Tokens.from_sequence(layers, image_size=(480, 960), patch_size=16, num_prefix_tokens=5)
        >>> neck(tokens)
        FeaturePyramid((1, 64, 30, 60) stride 16, (1, 64, 15, 30) stride 32, (1, 64, 8, 15) stride 64)

    Reference: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017 (top-down); Liu
    et al., An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution,
    NeurIPS 2018. Deviations: groups of ViT layers take the place of the stages of a convolutional
    backbone; norm and activation after the smoothing; LayerNorm before the projection.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        fpn_dim: int = 256,
        num_levels: int = DEFAULT_FPN_LEVELS,
        layer_groups: Literal["auto"] | Sequence[Sequence[int]] = "auto",
        use_separate_bottlenecks: bool = True,
        fusion: Fusion = "mean",
        downsample: Downsample = "conv",
        norm: NormName | None = "layer",
        activation: ActivationName | None = "gelu",
        residual_init: Literal["zero"] | None = None,
        use_coords: bool = False,
        use_cls_context: bool = False,
        patch_size: int = 16,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, num_levels=num_levels, patch_size=patch_size)
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.patch_size = patch_size
        self.out_channels = fpn_dim
        self.strides = fpn_strides(num_levels, patch_size)
        self.downsample = downsample
        token_norm: Literal["layer"] | None = None if norm is None else "layer"
        self.grouper = LayerGrouper(
            embed_dim,
            num_layers,
            fpn_dim=fpn_dim,
            num_groups=num_levels,
            layer_groups=layer_groups,
            use_separate_bottlenecks=use_separate_bottlenecks,
            norm=token_norm,
            fusion=fusion,
            **factory,
        )
        after_conv = {"norm": norm, "activation": activation, **factory}
        self.down = nn.ModuleList(
            _down(downsample, level, fpn_dim, after_conv) for level in range(num_levels)
        )
        self.top_down = TopDown([fpn_dim] * num_levels, fpn_dim, **after_conv)
        self.coords = nn.ModuleList()
        if use_coords:
            for _ in range(num_levels):
                self.coords.append(MapLinear(2, fpn_dim, bias=False, **factory))
        self.cls_context = None
        if use_cls_context:
            self.cls_context = _ClsContext(embed_dim, fpn_dim, num_levels, **factory)
        self.gains = nn.ParameterList()
        if residual_init == "zero":
            for _ in range(num_levels):
                self.gains.append(nn.Parameter(torch.zeros(fpn_dim, **factory)))

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        for gain in self.gains:
            nn.init.zeros_(gain)

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the pyramid, see :meth:`Neck.forward`; ``images`` are not needed."""
        # plain tensors become Tokens. L layers, P prefix tokens (CLS, registers), N = rows * cols
        # patches: tokens.sequence is L x (B, P + N, C), tokens.grid is (rows, cols)
        tokens = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self)
        check_tokens(
            tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size
        )
        # norm and linear layer C -> D per layer, fused to one group of layers per level, as maps:
        # num_levels x (B, D, rows, cols)
        group_maps = self._group_maps(tokens)
        # each group at its own stride, P2 (patch), P3 (2 x patch), ...: (B, D, ceil(rows / 2^i),
        # ceil(cols / 2^i))
        maps = self._downsampled(group_maps)
        # coarse to fine: lateral 1x1 plus the coarser level, upsampled; then 3x3 smoothing, norm,
        # activation
        levels = self.top_down(maps, self._coordinates(maps) if self.coords else None)
        # residual_init="zero": the group's averaged tokens plus a gain, 0 at the start, times the
        # level
        if self.gains:
            # (B, D, rows_i, cols_i)
            shortcuts = [_average_pooled(x, index) for index, x in enumerate(group_maps)]
            # (D, 1, 1)
            gains = [
                gain.to(y.dtype)[:, None, None] for gain, y in zip(self.gains, levels, strict=True)
            ]
            levels = [x + gain * y for x, gain, y in zip(shortcuts, gains, levels, strict=True)]
        return FeaturePyramid(tuple(levels), self.strides)

    def calibrate(self, batches: Iterable[Tokens]) -> bool:
        """Set untouched entrance norms to the tokens, see :meth:`dinoneck.LayerGrouper.calibrate`."""
        return self.grouper.calibrate(tokens.patches for tokens in batches)

    def _group_maps(self, tokens: Tokens) -> list[Tensor]:
        """One map (B, D, rows, cols) per group of layers, channels-last."""
        # norm, C -> D and fusion of whole sequences (slicing CLS and registers off first would
        # copy): G x (B, P + N, D)
        groups = self.grouper(tokens.sequence)
        # patch tokens are a raster-ordered map: (B, N, D) -> (B, D, rows, cols), a channels-last
        # view
        rows, cols = tokens.grid
        prefix = tokens.num_prefix_tokens
        maps = [rearrange(x[:, prefix:], "b (r c) d -> b d r c", r=rows, c=cols) for x in groups]
        # one factor per channel from the last layer's CLS token (B, C): G x (B, D)
        if self.cls_context is not None:
            gates = self.cls_context(tokens.cls_token[-1])
            maps = [x * gate[:, :, None, None] for x, gate in zip(maps, gates, strict=True)]
        return maps

    def _downsampled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Level i: (B, D, rows, cols) -> (B, D, ceil(rows / 2^i), ceil(cols / 2^i))."""
        if self.downsample == "pool":
            maps = [_average_pooled(x, level) for level, x in enumerate(maps)]
        elif self.downsample == "interpolate":
            maps = [_interpolated(x, level) for level, x in enumerate(maps)]
        return [down(x) for down, x in zip(self.down, maps, strict=True)]

    def _coordinates(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The CoordConv term of every lateral, (1, D, rows_i, cols_i)."""
        return [
            layer(_cell_coordinates(level)) for layer, level in zip(self.coords, maps, strict=True)
        ]


class TopDown(nn.Module):
    """Lateral 1x1, nearest upsampling to the finer map's size, addition, 3x3 smoothing, norm, activation.

    With ``norm=None, activation=None`` and the same weights it equals torchvision's
    ``FeaturePyramidNetwork``.

    Args:
        in_channels: of every map, fine to coarse.
        out_channels: D of every level.
        norm: after the smoothing: ``layer``, ``group`` or None.
        activation: after the norm.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        maps (B, in_channels[i], rows_i, cols_i) -> levels (B, D, rows_i, cols_i).

    Reference: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017. Deviation: the
    norm and the activation after the smoothing.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        norm: NormName | None = None,
        activation: ActivationName | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.laterals = nn.ModuleList(
            MapLinear(channels, out_channels, **factory) for channels in in_channels
        )
        self.smooth = nn.ModuleList(
            ConvBlock(
                out_channels, out_channels, stride=1, norm=norm, activation=activation, **factory
            )
            for _ in in_channels
        )

    def forward(
        self, maps: Sequence[Tensor], extra: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Return the levels (B, D, rows_i, cols_i); ``extra`` maps (B, D, rows_i, cols_i) are added to the laterals."""
        return [
            smooth(level)
            for smooth, level in zip(self.smooth, self.merged(maps, extra), strict=True)
        ]

    def merged(self, maps: Sequence[Tensor], extra: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the levels before the smoothing."""
        levels: list[Tensor] = []
        for index in reversed(range(len(maps))):  # coarse to fine
            level: Tensor = self.laterals[index](maps[index])  # (B, D, rows_i, cols_i)
            if extra is not None:
                level = level + extra[index]
            if levels:  # the coarser level, upsampled to this level's size
                level = level + F.interpolate(levels[-1], size=level.shape[-2:], mode="nearest")
            levels.append(level)
        return levels[::-1]


class _ClsContext(nn.Module):
    """A gate per level and channel from the CLS token: 2 sigmoid(linear(norm(cls)))."""

    def __init__(self, embed_dim: int, channels: int, num_levels: int, **factory: Any) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.norm = nn.LayerNorm(embed_dim, eps=TOKEN_NORM_EPS, **factory)
        self.linear = nn.Linear(embed_dim, channels * num_levels, **factory)

    def forward(self, cls_token: Tensor) -> tuple[Tensor, ...]:
        """(B, C) -> one (B, D) gate per level."""
        gates: Tensor = 2.0 * torch.sigmoid(self.linear(self.norm(cls_token)))
        return gates.chunk(self.num_levels, dim=1)


def _down(
    downsample: Downsample, level: int, channels: int, after_conv: dict[str, Any]
) -> nn.Module:
    """The convolutions that bring a group's map to its level; none for level 0 and for ``pool``."""
    if level == 0 or downsample == "pool":
        return nn.Identity()
    if downsample == "interpolate":
        return ConvBlock(channels, channels, stride=1, **after_conv)
    blocks = [ConvBlock(channels, channels, stride=2, **after_conv) for _ in range(level)]
    return nn.Sequential(*blocks)


def _average_pooled(maps: Tensor, times: int) -> Tensor:
    """Means of 2x2 cells, ``times`` times: ceil(n / 2) cells remain; the last of an odd number is a mean of fewer."""
    for _ in range(times):
        maps = halved(maps)
    return maps


def _interpolated(maps: Tensor, times: int) -> Tensor:
    """Bilinear halving to ceil(n / 2) cells, ``times`` times."""
    for _ in range(times):
        size = ((maps.shape[-2] + 1) // 2, (maps.shape[-1] + 1) // 2)
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps


def _cell_coordinates(maps: Tensor) -> Tensor:
    """(1, 2, rows, cols): x and y of the cells' centres, -1 at the left and top edge, 1 at the right and bottom."""
    rows, cols = maps.shape[-2:]
    y = (torch.arange(rows, device=maps.device, dtype=torch.float32) * 2 + 1) / rows - 1
    x = (torch.arange(cols, device=maps.device, dtype=torch.float32) * 2 + 1) / cols - 1
    grid = torch.stack((x[None, :].expand(rows, cols), y[:, None].expand(rows, cols)))
    return grid[None].to(maps.dtype)
