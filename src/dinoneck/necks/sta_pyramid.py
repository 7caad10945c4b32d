"""Three levels at half, one and two times the patch's stride from the last layer's map."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.grid import GridSize
from dinoneck.layers.blocks import TOKEN_NORM_EPS, MapLinear
from dinoneck.layers.inputs import Plain, TokensLike, as_tokens, check_tokens
from dinoneck.layers.resampling import Upsample, at_stride, halved
from dinoneck.necks.neck import Neck
from dinoneck.necks.strides import half_patch_strides, sta_pyramid_strides
from dinoneck.tokens import FeaturePyramid

Downsample = Literal["conv", "avgpool"]
PLACE_GRID = GridSize(16, 16)


class _LevelStrides(NamedTuple):
    """Pixels per cell of the two finer levels; the coarse one is made of p16."""

    p8: int
    p16: int


class STAPyramid(Neck):
    """Three levels for a detector (P8, P16, P32 at patch 16) from the last layer's map, without the image.

    P8 is the map projected and upsampled by 2, P16 the map projected, P32 a 3x3 convolution with
    stride 2, or a 2x2 mean and a projection. It is the cheapest neck for a D-FINE or RT-DETR
    encoder; P8 holds no finer detail than the tokens. For small objects use
    :class:`dinoneck.SpatialTuningAdapter`, which also reads the image; for more than three levels
    or 3x3 smoothing :class:`dinoneck.SimplePyramid`.

    **Strides follow the patch**: 14-pixel patches give levels of stride 7, 14 and 28. For a
    detector that needs 8, 16 and 32 pass ``strides=(8, 16, 32)``. The token map is then resampled
    so that every cell is read at its own centre, ``(j + 0.5) * stride`` pixels. Centres beyond the
    last token read that token. Levels have exactly ceil(image / 8), ceil(image / 16) and ceil(image
    / 32) cells, where the image is ``grid * patch_size`` pixels. Resizing by size alone would be
    off by up to half a cell.

    **The strided convolution is a quarter of a P32 cell off** towards the top left: its taps lie
    around token 2j, the cell's centre between tokens 2j and 2j + 1. Training can compensate;
    ``downsample="avgpool"`` has no offset and a ninth of that convolution's weights.

    Args:
        embed_dim: channels C of the tokens.
        out_channels: channels D of every level.
        pre_norm: LayerNorm on every token first, for backbones whose final norm is not applied.
        pos_embed: add a learned position to every token. The table has 16 x 16 positions over the
            image, which are zero at the start. It is resampled bilinearly to the grid, so one set
            of weights serves all resolutions.
        upsample: to P8: ``nearest`` or ``bilinear`` (smooth, cell centres exact).
        downsample: to P32: ``conv`` or ``avgpool``.
        strides: ``"native"`` = patch_size x (1/2, 1, 2), or three integers, each twice the one
            before.
        patch_size: pixels per patch.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of any number of layers, of which the last is read -> levels (B, D, 2 rows, 2 cols),
        (B, D, rows, cols), (B, D, ceil(rows / 2), ceil(cols / 2)), channels-last. Levels of other
        than native strides have ceil(image / stride) cells.

    Raises:
        ConfigError: if a number is not positive or the strides do not double.
        ShapeError: if the tokens have another width, patch size or dtype.

    Examples:
        >>> neck = STAPyramid(embed_dim=384)
        >>> neck(torch.randn(1, 30 * 41, 384), grid=(30, 41))
        FeaturePyramid((1, 256, 60, 82) stride 8, (1, 256, 30, 41) stride 16, (1, 256, 15, 21) stride 32)
        >>> neck = STAPyramid(embed_dim=384, strides=(8, 16, 32), patch_size=14)
        >>> neck(torch.randn(1, 46 * 46, 384), grid=(46, 46))
        FeaturePyramid((1, 256, 81, 81) stride 8, (1, 256, 41, 41) stride 16, (1, 256, 21, 21) stride 32)

    Reference: the simple variant of the spatial tuning adapter of Huang et al., Real-Time Object
    Detection Meets DINOv3 (DEIMv2), 2025. Deviations: no image branch; strides follow the patch;
    the projection precedes the upsampling and follows the averaging, which is exact.
    """

    num_layers = None

    def __init__(
        self,
        embed_dim: int,
        out_channels: int = 256,
        pre_norm: bool = False,
        pos_embed: bool = False,
        upsample: Upsample = "nearest",
        downsample: Downsample = "conv",
        strides: Literal["native"] | tuple[int, int, int] = "native",
        patch_size: int = 16,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, embed_dim=embed_dim, out_channels=out_channels, patch_size=patch_size)
        self.embed_dim = embed_dim
        self.out_channels = out_channels
        self.patch_size = patch_size
        self.upsample = upsample
        self.downsample = downsample
        self.strides = sta_pyramid_strides(strides, patch_size)
        if strides == "native" or strides == half_patch_strides(patch_size):
            self._other_strides: _LevelStrides | None = None  # half the patch, and the patch
        else:
            self._other_strides = _LevelStrides(p8=strides[0], p16=strides[1])
        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(embed_dim, eps=TOKEN_NORM_EPS, **factory) if pre_norm else None
        self.places = None
        if pos_embed:
            self.places = nn.Parameter(torch.zeros(embed_dim, *PLACE_GRID, **factory))
        self.p8 = nn.Linear(embed_dim, out_channels, **factory)
        self.p16 = nn.Linear(embed_dim, out_channels, **factory)
        self.p32: nn.Module
        if downsample == "conv":
            self.p32 = nn.Conv2d(embed_dim, out_channels, 3, stride=2, padding=1, **factory)
        else:
            self.p32 = MapLinear(embed_dim, out_channels, **factory)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        if self.places is not None:
            nn.init.zeros_(self.places)

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the three levels, see :meth:`Neck.forward`; ``images`` are not needed."""
        tokens = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self)
        check_tokens(
            tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size
        )
        sequence = tokens.sequence[-1]  # (B, P + N, C) of the last layer
        prefix = tokens.num_prefix_tokens
        rows, cols = tokens.grid
        if self.norm is not None:
            sequence = self.norm(sequence)
        # a learned position per patch, (C, 16, 16) resized to the grid: (1, N, C)
        if self.places is not None:
            places = F.interpolate(
                self.places[None], size=(rows, cols), mode="bilinear", align_corners=False
            )
            places = rearrange(places, "b d r c -> b (r c) d").to(sequence.dtype)
            sequence = sequence[:, prefix:] + places  # CLS and registers have no place
            prefix = 0
        # the raster-ordered map of the tokens, (B, C, rows, cols): a channels-last view
        maps = rearrange(sequence[:, prefix:], "b (r c) d -> b d r c", r=rows, c=cols)
        # whole sequences are projected and sliced afterwards: slicing first would copy them at full
        # width
        p8 = rearrange(self.p8(sequence)[:, prefix:], "b (r c) d -> b d r c", r=rows, c=cols)
        if self._other_strides is None:
            align = {"align_corners": False} if self.upsample == "bilinear" else {}
            p8 = F.interpolate(p8, size=(2 * rows, 2 * cols), mode=self.upsample, **align)
            p16 = rearrange(self.p16(sequence)[:, prefix:], "b (r c) d -> b d r c", r=rows, c=cols)
        else:  # other strides: read the maps where cells of that stride have their centres
            p8 = at_stride(p8, self.patch_size, self._other_strides.p8, self.upsample)
            maps = at_stride(maps, self.patch_size, self._other_strides.p16, "bilinear")
            p16 = self.p16(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # (B, D, ceil(rows / 2), ceil(cols / 2)): 3x3 convolution with stride 2, or 2x2 means and
        # 1x1
        p32 = self.p32(maps if self.downsample == "conv" else halved(maps))
        return FeaturePyramid((p8, p16, p32), self.strides)
