"""ViT tokens and image detail at strides 8, 16 and 32: the neck for real-time detectors on a plain ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.grid import GridSize
from dinoneck.layers.blocks import BatchNormName, map_norm
from dinoneck.layers.inputs import Plain, TokensLike, as_tokens, check_tokens
from dinoneck.layers.resampling import halved, resample_at_stride
from dinoneck.necks.image_detail import WIDENING, AlignedDetail
from dinoneck.necks.neck import Neck
from dinoneck.necks.strides import STRIDES, adapter_strides
from dinoneck.tokens import FeaturePyramid, Tokens

Detail = Literal["aligned"]
GridFrom = Literal["features", "image"]
ImageResize = Literal["to_grid", "error"]
PIXELS_PER_CELL = 16
# levels after the finest
TOKEN_GRID = 1
COARSE = 2
MIX_FALL = 3.0  # initial difference of a mix's logits per layer of distance


class SpatialTuningAdapter(Neck):
    """Three levels around the token grid, (2r, 2c), (r, c) and (r/2, c/2), with detail from convolutions on the image.

    The convolutions restore what a patch of 16 pixels blurs, small objects and sharp borders, for a
    fraction of the backbone's cost. Per level: [tokens at the level's size | image detail] -> 1x1
    projection without bias -> norm. Without images, such as on stored tokens, prefer
    :class:`dinoneck.ViTFPN` or :class:`dinoneck.SimplePyramid`; ``detail=None`` builds this neck
    without images.

    The tokens are projected before they are enlarged and pooled before they are projected, which is
    exact and takes fewer operations; the weights are one matrix per level for [tokens | detail].

    Args:
        embed_dim: channels C of the tokens.
        out_channels: channels D of every level.
        num_layers: layers of the tokens. 1: all levels read it; 3: one each, the shallowest for the
            finest level; else every level reads a learned softmax mix, initialised to the layer
            nearest in depth.
        detail: ``aligned``: from the image, in cells centred on the ViT's. None: no detail, no
            images.
        detail_dim: channels of the detail at stride 4; the levels have 2, 4 and 4 times as many.
        norm: ``batch`` (for batches that are large or synchronised), ``group`` or ``layer`` (per
            cell).
        grid_from: ``features``: levels follow the token grid, as above. ``image``: they follow the
            image (its sides / 8, / 16 and / 32, rounded up), and tokens are resampled to them. A
            ViT at 320 px with an image of 640 px then gives levels of 80, 40 and 20 cells at a
            fifth of the cost.
        image_resize: with ``grid_from="features"`` the detail needs an image of 16 r x 16 c pixels.
            ``to_grid``: an image of another size (patch 14, another resolution) is resized;
            ``error``: refused.
        patch_size: pixels per patch; strides are patch / 2, patch and 2 patch, or 8, 16 and 32 by
            the image.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of ``num_layers`` layers and normalised images (B, 3, H, W) -> levels (B, D, 2r, 2c),
        (B, D, r, c), (B, D, ceil(r / 2), ceil(c / 2)), channels-last.

    Raises:
        ConfigError: if a number is not positive, or ``grid_from="image"`` without detail.
        ShapeError: if tokens and neck, or tokens and images, do not fit, or images are missing.
        DataError: if images are integers.

    Examples:
        >>> neck = SpatialTuningAdapter(384, out_channels=128)
        >>> layers = [torch.randn(1, 5 + 21 * 29, 384) for _ in range(3)]
        >>> tokens = Tokens.from_sequence(layers, image_size=(336, 464), patch_size=16, num_prefix_tokens=5)
        >>> neck(tokens, torch.randn(1, 3, 336, 464))
        FeaturePyramid((1, 128, 42, 58) stride 8, (1, 128, 21, 29) stride 16, (1, 128, 11, 15) stride 32)

    Reference: Huang et al., Real-Time Object Detection Meets DINOv3 (DEIMv2), 2025. Deviations: the
    ``aligned`` branch; odd grids (the coarsest level averages 2x2 tokens, which is bilinear halving
    where that is exact), any patch size and any number of layers; norms by choice.
    """

    num_layers: int

    def __init__(
        self,
        embed_dim: int,
        out_channels: int = 256,
        num_layers: int = 3,
        detail: Detail | None = "aligned",
        detail_dim: int = 16,
        norm: BatchNormName = "batch",
        grid_from: GridFrom = "features",
        image_resize: ImageResize = "to_grid",
        patch_size: int = 16,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(
            1,
            embed_dim=embed_dim,
            out_channels=out_channels,
            num_layers=num_layers,
            detail_dim=detail_dim,
            patch_size=patch_size,
        )
        if grid_from == "image" and detail is None:
            raise ConfigError(
                "grid_from='image' takes the levels' sizes from the image, which detail=None does "
                "not use"
            )
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.grid_from = grid_from
        self.image_resize = image_resize
        self.needs_images = detail is not None
        self.strides = adapter_strides(patch_size, follows_image=grid_from == "image")
        self.detail = None if detail is None else AlignedDetail(detail_dim, norm, **factory)
        detail_widths = [0] * len(WIDENING)
        if detail is not None:
            detail_widths = [detail_dim * times for times in WIDENING]
        self.project = nn.ModuleList(
            nn.Linear(embed_dim + width, out_channels, bias=False, **factory)
            for width in detail_widths
        )
        num_levels = len(detail_widths)
        self.norms = nn.ModuleList(
            map_norm(norm, out_channels, **factory) for _ in range(num_levels)
        )
        self.mix = None
        if num_layers not in (1, num_levels):
            self.mix = nn.Parameter(torch.empty(num_levels, num_layers, **factory))
        self._init_mix()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        self._init_mix()

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the pyramid, see :meth:`Neck.forward`; ``images`` may have another size than the backbone's."""
        # plain tensors become Tokens: tokens.sequence is L x (B, P + N, C), tokens.grid is
        # (rows, cols)
        tokens = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self)
        check_tokens(
            tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size
        )
        rows, cols = tokens.grid
        prefix = tokens.num_prefix_tokens
        # the tokens that each level reads: 3 x (B, P + N, C)
        level_tokens = self._level_tokens(tokens.sequence)
        details: Sequence[Tensor | None] = [None] * len(level_tokens)
        image_size: Sequence[int] = ()
        if self.detail is not None:
            # strided convolutions on the image at strides 8, 16 and 32; with d = detail_dim: (B,
            # 2d, 2 rows, 2 cols), (B, 4d, rows, cols), (B, 4d, ceil(rows / 2), ceil(cols / 2))
            images = self._resize_images(self._check_images(images, tokens), tokens.grid)
            details = self.detail(images)
            image_size = images.shape[-2:]
        levels = []
        for index, (sequence, detail) in enumerate(zip(level_tokens, details, strict=True)):
            # level = norm(1x1([resized tokens | detail])). The projection is the sum of one of the
            # tokens and one of the detail, and commutes with resizing: project first, except for
            # the halved level of fewer cells
            weight = cast("Tensor", self.project[index].weight)  # (D, C + d_i)
            of_tokens = weight[:, : self.embed_dim]
            of_detail = weight[:, self.embed_dim :]
            if index == COARSE and self.grid_from == "features":
                # (B, C, rows, cols)
                maps = rearrange(sequence[:, prefix:], "b (r c) d -> b d r c", r=rows, c=cols)
                level = _project(halved(maps), of_tokens)  # (B, D, ceil(rows / 2), ceil(cols / 2))
            else:  # whole sequences: slicing CLS and registers off first would copy the tokens
                projected = F.linear(sequence, of_tokens)[:, prefix:]  # (B, N, D)
                # (B, D, rows, cols)
                maps = rearrange(projected, "b (r c) d -> b d r c", r=rows, c=cols)
                # (B, D, rows_i, cols_i)
                level = self._resize_tokens(maps, index, detail, image_size)
            if detail is not None:
                level = level + _project(detail, of_detail)
            levels.append(self.norms[index](level))
        return FeaturePyramid(tuple(levels), self.strides)

    def _level_tokens(self, layers: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tokens (B, P + N, C) that every level reads: the one layer, its own layer, or a learned mix of all."""
        if self.mix is None:
            num_levels = len(self.project)
            return layers if len(layers) == num_levels else [layers[0]] * num_levels
        shares = self.mix.softmax(dim=1).to(layers[0].dtype)  # (levels, L)
        return torch.einsum("kl,lbnc->kbnc", shares, torch.stack(list(layers))).unbind()

    def _resize_tokens(
        self, maps: Tensor, index: int, detail: Tensor | None, image_size: Sequence[int]
    ) -> Tensor:
        """(B, D, rows, cols) -> the size of level ``index``, bilinearly, with cell centres aligned."""
        if self.grid_from == "image" and detail is not None:
            return resample_at_stride(
                maps, size=detail.shape[-2:], image_size=image_size, stride=STRIDES[index]
            )
        if index == TOKEN_GRID:
            return maps
        # where there is detail, its size, so that torch.export need not prove that both are equal
        size = (2 * maps.shape[-2], 2 * maps.shape[-1]) if detail is None else detail.shape[-2:]
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def _check_images(self, images: Tensor | None, tokens: Tokens) -> Tensor:
        """The images, checked against the tokens and this neck."""
        owner = type(self).__name__
        weight_dtype = self.project[0].weight.dtype
        if images is None:
            raise ShapeError(
                f"{owner} needs the images as well as the tokens: neck(tokens, images); "
                "detail=None builds one without"
            )
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError(f"images are {got}; expected a tensor (batch, 3, height, width)")
        if not images.is_floating_point():
            raise DataError(
                f"images are {images.dtype}; {owner} takes normalised floats, as the backbone "
                "does: use backbone.preprocess(images)"
            )
        if images.dtype != weight_dtype and not torch.is_autocast_enabled(images.device.type):
            raise ShapeError(
                f"images are {images.dtype}, this {owner} is {weight_dtype}: convert one of them, "
                "or run under torch.autocast"
            )
        if images.shape[0] != tokens.sequence[0].shape[0]:
            raise ShapeError(
                f"there are {images.shape[0]} images and tokens of {tokens.sequence[0].shape[0]}; "
                "expected one batch"
            )
        if torch.compiler.is_compiling():
            return images
        height, width = images.shape[-2:]
        grid = tokens.grid
        if min(height, width) < self.patch_size:
            raise ShapeError(
                f"the images are {height}x{width} px, smaller than a patch of {self.patch_size} px"
            )
        # the sides of the grid that the images' aspect ratio gives with the other side
        rows = height * grid.cols / width
        cols = width * grid.rows / height
        if min(abs(rows - grid.rows), abs(cols - grid.cols)) >= 1:
            raise ShapeError(
                f"the images are {height}x{width} px and the tokens' grid is "
                f"{grid.rows}x{grid.cols}: their aspect ratios differ; pass the images that the "
                "backbone got (TokenGrid.prepare().images), or a resized copy"
            )
        return images

    def _resize_images(self, images: Tensor, grid: GridSize) -> Tensor:
        """The images, channels-last, at the size that the levels need."""
        target = (PIXELS_PER_CELL * grid.rows, PIXELS_PER_CELL * grid.cols)
        size = (images.shape[-2], images.shape[-1])
        if self.grid_from == "features" and size != target:
            if self.image_resize == "error":
                raise ShapeError(
                    f"the images are {size[0]}x{size[1]} px, a grid of {grid.rows}x{grid.cols} "
                    f"needs {target[0]}x{target[1]} px; pass them at this size, or build the neck "
                    "with image_resize='to_grid'"
                )
            wide = images.to(torch.promote_types(images.dtype, torch.float32))
            resized = F.interpolate(
                wide, size=target, mode="bilinear", align_corners=False, antialias=True
            )
            images = resized.to(images.dtype)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _init_mix(self) -> None:
        """Initialise every level to the layer nearest to its own depth: first, middle, last."""
        if self.mix is None:
            return
        levels, layers = self.mix.shape
        depth = torch.linspace(0, layers - 1, levels).to(self.mix)
        layer = torch.arange(layers).to(self.mix)
        self.mix.copy_(-MIX_FALL * (layer - depth[:, None]).abs())


def _project(maps: Tensor, weight: Tensor) -> Tensor:
    """(B, C, rows, cols) -> (B, D, rows, cols), a 1x1 convolution."""
    return F.linear(maps.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
