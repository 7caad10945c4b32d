"""A feature pyramid from the layers of a plain ViT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import at_least
from dinoneck.grid import as_maps
from dinoneck.layers.conv_block import ActivationName, ConvBlock, MapLinear, reset
from dinoneck.layers.eager import plainly, untouched
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.layers.mixture import Mixture
from dinoneck.layers.norms import NormName
from dinoneck.layers.resampling import halved
from dinoneck.layers.token_products import Reading
from dinoneck.necks.layer_grouper import Fusion, LayerGrouper
from dinoneck.necks.neck import Neck
from dinoneck.necks.top_down import TopDown, sums_tell
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
    The default norm and GELU after the smoothing are what makes it see arrangement. Who wants the classical form
    still, gets its pooled vector at a fraction of the cost from :meth:`pooled`.

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
        self.is_normless = norm is None
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
        """Draw the weights anew."""
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
        return self._pyramid(self._tokens(tokens, grid, num_prefix_tokens, cls_token))

    def mixed(self, tokens: Tokens, mixture: Mixture, images: Tensor | None = None) -> FeaturePyramid:
        """Return the pyramid of mixed samples: mixed after the first linear layer, where no norm stands before it."""
        return self._pyramid(self._tokens(tokens), mixture)

    def _pyramid(self, tokens: Tokens, mixture: Mixture | None = None) -> FeaturePyramid:
        groups, lateral = self._groups(tokens, mixture)
        maps = self._downsampled(groups)
        levels = self.top_down(maps, self._coordinates(maps), lateral)
        for place, gain in enumerate(self.gains):
            levels[place] = self._to_level(groups[place], place) + gain[:, None, None] * levels[place]
        return FeaturePyramid(tuple(levels), self.strides)

    def pooled(self, tokens: TokensLike, mixture: Mixture | None = None, **plain: Unpack[Plain]) -> Tensor:
        """Return the means over cells of all levels, concatenated: (B, num_levels * D); of mixed samples if asked.

        With ``norm=None, activation=None`` the smoothing convolutions are replaced by sums, exactly, unless somebody
        hooked, wrapped, replaced or parametrized them.
        """
        tokens = self._tokens(tokens, **plain)
        if not (self.is_linear and sums_tell(self.top_down)):
            return torch.cat([level.mean(dim=(2, 3)) for level in self._pyramid(tokens, mixture).maps], dim=1)
        groups, lateral = self._groups(tokens, mixture)
        maps = self._downsampled(groups)
        merged = self.top_down.merged(maps, self._coordinates(maps), lateral)
        means = [self.top_down.pooled(place, level) for place, level in enumerate(merged)]
        for place, gain in enumerate(self.gains):
            means[place] = self._to_level(groups[place], place).mean(dim=(2, 3)) + gain * means[place]
        return torch.cat(means, dim=1).to(merged[0].dtype)

    def calibrate(self, batches: Iterable[Tokens]) -> bool:
        """Set untouched entrance norms to the tokens, see :meth:`dinoneck.LayerGrouper.calibrate`."""
        return self.grouper.calibrate(tokens.patches for tokens in batches)

    def _groups(self, tokens: Tokens, mixture: Mixture | None = None) -> tuple[list[Tensor], set[int]]:
        """Fused maps (B, D, rows, cols) of every group, gated where asked, and which have had their lateral layer.

        Groups that are averaged to their level are averaged before they are projected. Samples are mixed before
        the norms, or, where there are none, after the projection.
        """
        if mixture is not None and not self.mixes_late:
            tokens, mixture = mixture.of(tokens), None
        sequences = tokens.sequence
        fused: dict[tuple[int, ...], Tensor] = {}
        maps, lateral = [], set()
        called = None if untouched(self.grouper, LayerGrouper) else self.grouper(sequences)
        for place, group in enumerate(self.grouper.groups):
            if called is not None:
                maps.append(as_maps(called[place][:, tokens.num_prefix_tokens :], tokens.grid))
                continue
            then = self._lateral_to_fold(place, tokens)
            halvings = place if self._pools_first(place) else 0
            how = Reading(halvings=halvings, prefix=tokens.num_prefix_tokens, grid=tokens.grid)
            key = (halvings, *group)  # groups that share a layer share its result
            if key not in fused:
                fused[key] = as_maps(self.grouper.fuse(place, sequences, how, then), how.size)
            maps.append(fused[key])
            lateral |= {place} if then is not None else set()
        if mixture is not None:
            maps = [mixture.linear(x) for x in maps]
        if self.cls_context is None:
            return maps, lateral
        cls_token = tokens.cls_token[-1]
        gates = self.cls_context(cls_token if mixture is None else mixture.linear(cls_token))
        return [x * gate[:, :, None, None] for x, gate in zip(maps, gates, strict=True)], lateral

    @property
    def mixes_late(self) -> bool:
        """Whether mixed tokens and mixed projections are the same to it."""
        return self.is_normless and all(self._is_linear(place) for place in range(len(self.strides)))

    def _is_linear(self, place: int) -> bool:
        """Whether a group may be taken apart: the weights of the grouper tell what a call of it does."""
        return untouched(self.grouper, LayerGrouper) and self.grouper.is_linear(place)

    def _pools_first(self, place: int) -> bool:
        return self.downsample == "pool" and place > 0 and self._is_linear(place)

    def _lateral_to_fold(self, place: int, tokens: Tokens) -> nn.Linear | None:
        """The level's lateral layer, where it follows the projections at once and folding it in takes less."""
        group = self.grouper.groups[place]
        alone = place == 0 and self.grouper.groups.count(group) == 1 and self._is_linear(place)
        between = len(self.gains) or self.cls_context is not None
        if plainly() or between or not (alone or self._pools_first(place)) or not self._is_called_next(place):
            return None
        cells = len(tokens) * Reading(halvings=place, grid=tokens.grid).size.count
        products = len({self.grouper.bottleneck(layer) for layer in group})
        lateral = cast("MapLinear", self.top_down.laterals[place])
        return lateral if cells > products * self.embed_dim else None

    def _is_called_next(self, place: int) -> bool:
        """Whether the level's lateral layer is what its maps go through next, and nothing else."""
        if not untouched(self.top_down, TopDown) or not untouched(self.down[place], nn.Identity):
            return False
        return untouched(self.top_down.laterals[place], MapLinear)

    def _downsampled(self, groups: Sequence[Tensor]) -> list[Tensor]:
        return [
            down(group if self.downsample == "conv" else self._to_level(group, place, self.downsample))
            for place, (down, group) in enumerate(zip(self.down, groups, strict=True))
        ]

    def _to_level(self, group: Tensor, place: int, how: Downsample = "pool") -> Tensor:
        """A group's map at its level's size, by means unless told otherwise."""
        if self._pools_first(place):
            return group
        return _interpolated(group, place) if how == "interpolate" else _halved(group, place)

    def _coordinates(self, maps: Sequence[Tensor]) -> list[Tensor | None]:
        """What two more channels with the cells' x and y add to the laterals."""
        if not len(self.coords):
            return [None] * len(maps)
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


def _halved(maps: Tensor, times: int) -> Tensor:
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
