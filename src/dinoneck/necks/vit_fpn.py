"""A feature pyramid from the layers of a plain ViT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import at_least
from dinoneck.grid import as_maps
from dinoneck.layers.conv_block import ActivationName, ConvBlock, MapLinear, reset
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.layers.norms import NormName
from dinoneck.layers.resampling import halved
from dinoneck.necks.layer_grouper import Fusion, LayerGrouper
from dinoneck.necks.neck import Neck
from dinoneck.necks.top_down import TopDown
from dinoneck.tokens import FeaturePyramid, Tokens

Downsample = Literal["conv", "pool", "interpolate"]


class ViTFPN(Neck):
    """P2 (the token grid), P3 (/2), P4 (/4) ... from groups of layers: each level from its own group.

    A group's tokens are normalised and projected, downsampled to their level, and merged top-down with nearest
    upsampling to the finer level's size, 3x3 smoothing, norm and activation. Any grid of at least 1x1 works; level i
    has ceil(rows / 2^i) x ceil(cols / 2^i) cells. With one layer, one projection gives all levels; with fewer layers
    than levels, neighbouring levels share one.

    **Without a non-linearity it models nothing spatial**: with ``norm=None, activation=None`` every step is linear,
    and the average-pooled result is a linear probe of sums of tokens, whatever their arrangement (borders aside).
    The default norm and GELU after the smoothing let it model arrangement. For the linear form, :meth:`pooled` computes
    the same average-pooled vector without the smoothing convolutions.

    Args:
        embed_dim: channels C of the tokens.
        num_layers: layers L that the tokens hold.
        fpn_dim: channels D of every level.
        num_levels: levels, P2 first.
        layer_groups: ``"auto"`` or one tuple of positions per level, see :class:`dinoneck.LayerGrouper`.
        use_separate_bottlenecks: one norm and projection per layer, or one for all.
        fusion: of the layers of a group: ``mean``, ``softmax`` or ``pixel``.
        downsample: to level i: ``conv`` (i times 3x3 with stride 2), ``pool`` (i times 2x2 means) or ``interpolate``
            (i times bilinear halving, then 3x3).
        norm: ``layer`` (per cell) or ``group`` after every 3x3, and LayerNorm on the tokens at the entrance; None
            leaves out all of them.
        activation: ``gelu``, ``relu`` or ``silu`` after every norm; None = none.
        residual_init: ``"zero"``: a level is its group's tokens averaged to its size, plus the pyramid times a gain
            per channel that starts at 0: the neck starts as the pooled-token head, which is hard to break with few
            photos. None: the pyramid alone.
        use_coords: give the laterals the x and y of every cell (-1 ... 1) as two more channels (CoordConv).
        use_cls_context: multiply every group's channels by a gate 0 ... 2 computed from the last layer's CLS token.
        patch_size: pixels per patch; strides follow it.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of L layers -> levels (B, D, ceil(rows / 2^i), ceil(cols / 2^i)), channels-last.

    Raises:
        ConfigError: if a number is not positive or groups do not fit.
        ShapeError: if the tokens have another width, patch size or number of layers, or lack a needed CLS token.

    Examples:
        >>> neck = ViTFPN(embed_dim=384, num_layers=4, fpn_dim=64)
        >>> layers = [torch.randn(1, 5 + 30 * 60, 384) for _ in range(4)]
        >>> tokens = Tokens.from_sequence(layers, image_size=(480, 960), patch_size=16, num_prefix_tokens=5)
        >>> neck(tokens)
        FeaturePyramid((1, 64, 30, 60) stride 16, (1, 64, 15, 30) stride 32, (1, 64, 8, 15) stride 64)

    Reference: design source "FPN spatial modelling"; Lin et al., CVPR 2017 (top-down); Liu et al., NeurIPS 2018
    (CoordConv). Deviations: norm and activation after the smoothing (see above), LayerNorm at the entrance.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        fpn_dim: int = 256,
        num_levels: int = 3,
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
        at_least(1, num_levels=num_levels, patch_size=patch_size)
        factory = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_layers, self.patch_size = embed_dim, num_layers, patch_size
        self.out_channels = fpn_dim
        self.strides = tuple(float(patch_size * 2**level) for level in range(num_levels))
        self.downsample, self.is_linear = downsample, norm is None and activation is None
        entrance: Literal["layer"] | None = None if norm is None else "layer"
        self.grouper = LayerGrouper(
            embed_dim, num_layers, fpn_dim, num_levels, layer_groups, use_separate_bottlenecks, entrance, fusion,
            **factory,
        )  # fmt: skip
        self.down = nn.ModuleList(
            _down(downsample, level, fpn_dim, norm, activation, factory) for level in range(num_levels)
        )
        self.top_down = TopDown([fpn_dim] * num_levels, fpn_dim, norm, activation, **factory)
        self.coords = nn.ModuleList(
            MapLinear(2, fpn_dim, bias=False, **factory) for _ in range(num_levels * use_coords)
        )
        self.cls_context = _ClsContext(embed_dim, fpn_dim, num_levels, **factory) if use_cls_context else None
        gains = num_levels if residual_init == "zero" else 0
        self.gains = nn.ParameterList(nn.Parameter(torch.zeros(fpn_dim, **factory)) for _ in range(gains))

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for module in (self.grouper, self.down, self.top_down, self.coords):
            reset(module)
        if self.cls_context is not None:
            reset(self.cls_context)
        for gain in self.gains:
            nn.init.zeros_(gain)

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
        # plain tensors are converted and checked: tokens.sequence is L x (B, P + N, C), tokens.grid (rows, cols)
        tokens = self._tokens(tokens, grid, num_prefix_tokens, cls_token)
        # one map per group of layers, G x (B, D, rows, cols): norm and linear layer C -> D per layer, layers fused
        group_maps = self._group_maps(tokens)
        # each group at its own stride: P2 (patch), P3 (2 x patch), P4 (4 x patch) ...
        # conv: i times 3x3 with stride 2; pool: i times 2x2 means; interpolate: i times bilinear halving, then 3x3
        maps = self._downsampled(group_maps)
        # top-down: lateral 1x1 (plus coordinates) plus the coarser level, upsampled; then 3x3, norm, activation
        levels = self.top_down(maps, self._coordinates(maps))
        if self.gains:  # residual_init="zero": pooled tokens plus a learned gain, 0 at the start, times the level
            shortcuts = [_average_pooled(x, level) for level, x in enumerate(group_maps)]
            gains = [gain.to(y.dtype)[:, None, None] for gain, y in zip(self.gains, levels, strict=True)]
            levels = [x + gain * y for x, gain, y in zip(shortcuts, gains, levels, strict=True)]
        return FeaturePyramid(tuple(levels), self.strides)

    def pooled(self, tokens: TokensLike, **plain: Unpack[Plain]) -> Tensor:
        """Return the means over cells of all levels, concatenated: (B, num_levels * D).

        With ``norm=None, activation=None`` the smoothing convolutions are replaced by sums, which is exact.
        """
        if not self.is_linear:
            return torch.cat([level.mean(dim=(2, 3)) for level in self(tokens, **plain)], dim=1)
        group_maps = self._group_maps(self._tokens(tokens, **plain))
        maps = self._downsampled(group_maps)
        merged = self.top_down.merged(maps, self._coordinates(maps))
        means = [self.top_down.pooled(level, x) for level, x in enumerate(merged)]
        if self.gains:
            shortcuts = [_average_pooled(x, level).mean(dim=(2, 3)) for level, x in enumerate(group_maps)]
            means = [x + gain * y for x, gain, y in zip(shortcuts, self.gains, means, strict=True)]
        return torch.cat(means, dim=1).to(merged[0].dtype)

    def calibrate(self, batches: Iterable[Tokens]) -> bool:
        """Set untouched entrance norms to the tokens, see :meth:`dinoneck.LayerGrouper.calibrate`."""
        return self.grouper.calibrate(tokens.patches for tokens in batches)

    def _group_maps(self, tokens: Tokens) -> list[Tensor]:
        """One map (B, D, rows, cols) per group of layers, channels-last."""
        # fuse the layers of each group, on whole sequences (slicing CLS and registers off first would copy them)
        groups = self.grouper(tokens.sequence)  # G x (B, P + N, D)
        # patch tokens are a raster-ordered map: (B, N, D) -> (B, D, rows, cols), a view
        maps = [as_maps(x[:, tokens.num_prefix_tokens :], tokens.grid) for x in groups]
        if self.cls_context is None:
            return maps
        gates = self.cls_context(tokens.cls_token[-1])  # G x (B, D)
        return [x * gate[:, :, None, None] for x, gate in zip(maps, gates, strict=True)]

    def _downsampled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Level i: (B, D, rows, cols) -> (B, D, ceil(rows / 2^i), ceil(cols / 2^i))."""
        if self.downsample == "pool":
            maps = [_average_pooled(x, level) for level, x in enumerate(maps)]
        elif self.downsample == "interpolate":
            maps = [_interpolated(x, level) for level, x in enumerate(maps)]
        return [down(x) for down, x in zip(self.down, maps, strict=True)]

    def _coordinates(self, maps: Sequence[Tensor]) -> list[Tensor] | None:
        """What two more channels with the cells' x and y add to the laterals; None without ``use_coords``."""
        if not self.coords:
            return None
        return [layer(_cell_coordinates(level)) for layer, level in zip(self.coords, maps, strict=True)]


class _ClsContext(nn.Module):
    """A gate per level and channel from the CLS token: 2 sigmoid(linear(norm(cls)))."""

    def __init__(self, embed_dim: int, channels: int, num_levels: int, **factory: Any) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **factory)
        self.linear = nn.Linear(embed_dim, channels * num_levels, **factory)

    def forward(self, cls_token: Tensor) -> tuple[Tensor, ...]:
        """(B, C) -> one (B, D) gate per level."""
        gates: tuple[Tensor, ...] = (2.0 * torch.sigmoid(self.linear(self.norm(cls_token)))).chunk(self.num_levels, 1)
        return gates


def _down(
    how: Downsample,
    level: int,
    channels: int,
    norm: NormName | None,
    activation: ActivationName | None,
    factory: dict[str, Any],
) -> nn.Module:
    """What brings a group's map to its level, apart from means and interpolation."""
    if level == 0 or how == "pool":
        return nn.Identity()
    if how == "interpolate":
        return ConvBlock(channels, channels, 1, norm, activation, **factory)
    blocks = (ConvBlock(channels, channels, 2, norm, activation, **factory) for _ in range(level))
    return nn.Sequential(*blocks)


def _average_pooled(maps: Tensor, times: int) -> Tensor:
    """Means of 2x2 cells, ``times`` times: ceil(n / 2) cells remain; the last of an odd number averages what it has."""
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
