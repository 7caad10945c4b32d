"""Sizes and places: image pixels <-> patch grid, computed from the image size, never from a token count.

Conventions of the whole library: ``(rows, cols)`` for grids, ``(height, width)`` for pixels,
``(x, y)`` for points; a pixel's centre lies at half-integers, so an image of width W spans x = 0
... W (``align_corners=False``). Patch tokens are in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import ConfigError, DataError, GridError, ShapeError
from dinoneck.patches import Axis, Remainder, axes_of, no_image_size
from dinoneck.patches import PadTo as PadTo  # these are also imported from here
from dinoneck.patches import PatchSize as PatchSize
from dinoneck.patches import patch_pair as patch_pair


class GridSize(NamedTuple):
    """Rows and columns of a patch grid.

    Examples:
        >>> GridSize(rows=30, cols=60).count
        1800
    """

    rows: int
    cols: int

    @property
    def count(self) -> int:  # type: ignore[override]
        """Number of patches, rows x cols."""
        return self.rows * self.cols


def checked_grid(grid: Sequence[int]) -> GridSize:
    """Return (rows, cols), or raise GridError."""
    if (
        not isinstance(grid, Sequence)
        or len(grid) != 2
        or any(isinstance(x, bool | float | str | bytes | None) or x < 1 for x in grid)
    ):
        raise GridError(f"grid is {grid!r}; expected (rows, cols), both at least 1")
    return GridSize(grid[0], grid[1])


@dataclass(frozen=True)
class PreparedImages:
    """Images whose size the patch divides, and the way back to the pixels they came from.

    Attributes:
        images: (B, C, H, W), H = grid.rows * patch height, W = grid.cols * patch width.
        grid: the patch grid of ``images``.
        valid: bool (rows, cols); True where a cell holds any real (not padded) pixel.
        scale: prepared pixels per original pixel, (x, y).
        offset: where the original corner (0, 0) lies in prepared pixels, (x, y).
    """

    images: Tensor
    grid: GridSize
    valid: Tensor
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def to_prepared(self, xy: Tensor) -> Tensor:
        """Map points (..., 2) from original pixels (x, y) to prepared pixels."""
        return xy * xy.new_tensor(self.scale) + xy.new_tensor(self.offset)

    def to_original(self, xy: Tensor) -> Tensor:
        """Map points (..., 2) from prepared pixels (x, y) to original pixels."""
        return (xy - xy.new_tensor(self.offset)) / xy.new_tensor(self.scale)


class TokenGrid(nn.Module):
    """The exact relation between an image and its patch grid. It has no parameters.

    Every size is given; nothing is inferred from a number of tokens (a 16:9 image has as many
    patches as a square one, and guessing scrambles it silently). Where the patch does not divide an
    image, ``on_remainder`` decides: ``"error"`` refuses, ``"crop"`` keeps the centre (the odd pixel
    is lost at the bottom or right), ``"pad"`` adds zeros, ``"resize"`` resamples to the nearest
    multiple.

    Args:
        patch_size: pixels per patch, an integer or (height, width).
        on_remainder: ``"error"``, ``"crop"``, ``"pad"`` or ``"resize"``.
        pad_to: where ``"pad"`` puts the image: ``"corner"`` adds zeros at the bottom and right,
            ``"center"`` around it (the odd pixel at the bottom or right).

    Shape:
        patches (B, N, C) with N = rows * cols -> maps (B, C, rows, cols), a zero-copy channels-last
        view.

    Raises:
        ConfigError: for an impossible patch size or an unknown word.
        GridError: when an image and a number of tokens do not fit together.

    Examples:
        >>> grid = TokenGrid(patch_size=16)
        >>> grid.size((480, 960))
        GridSize(rows=30, cols=60)
        >>> grid(torch.zeros(2, 1800, 384), (480, 960)).shape
        torch.Size([2, 384, 30, 60])
    """

    def __init__(
        self,
        patch_size: PatchSize = 16,
        on_remainder: Remainder = "error",
        pad_to: PadTo = "corner",
    ) -> None:
        super().__init__()
        _check_word("on_remainder", on_remainder, get_args(Remainder))
        _check_word("pad_to", pad_to, get_args(PadTo))
        self.patch_height, self.patch_width = patch_pair(patch_size)
        self.on_remainder: Remainder = on_remainder
        self.pad_to: PadTo = pad_to

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"patch_size=({self.patch_height}, {self.patch_width}), "
            f"on_remainder={self.on_remainder!r}, pad_to={self.pad_to!r}"
        )

    def size(self, image_size: Sequence[int]) -> GridSize:
        """Return the patch grid of an image of ``(height, width)`` pixels.

        Raises:
            GridError: if a remainder is refused and a side is not a multiple of the patch, or if no
                whole patch is left.
        """
        rows, cols = self._axes(image_size)
        return GridSize(rows.cells, cols.cells)

    def forward(self, patches: Tensor, image_size: Sequence[int]) -> Tensor:
        """View patch tokens (B, N, C) as maps (B, C, rows, cols) without a copy.

        Raises:
            ShapeError: if ``patches`` is not three-dimensional.
            GridError: if N is not rows * cols.
        """
        return as_maps(patches, self.size(image_size))

    def flatten(self, maps: Tensor) -> Tensor:
        """Turn maps (B, C, rows, cols) back into patch tokens (B, N, C): the exact inverse."""
        if maps.ndim != 4:
            raise ShapeError(
                f"maps have shape {tuple(maps.shape)}; expected (batch, channels, rows, cols)"
            )
        return maps.permute(0, 2, 3, 1).flatten(1, 2)

    def prepare(self, images: Tensor) -> PreparedImages:
        """Bring images (B, C, H, W) to a size that the patch divides, as ``on_remainder`` states.

        ``"resize"`` is bilinear with antialiasing and needs floating-point images; the other words
        keep every dtype and every pixel value.
        """
        if images.ndim != 4:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; expected (batch, channels, height, "
                "width)"
            )
        height, width = images.shape[-2:]
        y, x = self._axes((height, width))
        grid = GridSize(y.cells, x.cells)
        valid = torch.ones(grid, dtype=torch.bool, device=images.device)
        target = (grid.rows * self.patch_height, grid.cols * self.patch_width)
        if self.on_remainder == "crop":
            top = -int(y.offset)
            left = -int(x.offset)
            images = images[..., top : top + target[0], left : left + target[1]]
        elif self.on_remainder == "pad":
            top = int(y.offset)
            left = int(x.offset)
            images = F.pad(images, (left, target[1] - width - left, top, target[0] - height - top))
        elif self.on_remainder == "resize" and target != (height, width):
            if not images.is_floating_point():
                raise DataError(
                    f"images are {images.dtype}; resizing needs floating point: convert them first"
                )
            resized = F.interpolate(
                exact(images), size=target, mode="bilinear", align_corners=False, antialias=True
            )
            images = resized.to(images.dtype)
        return PreparedImages(images, grid, valid, (x.scale, y.scale), (x.offset, y.offset))

    def cell_centers(
        self, image_size: Sequence[int], device: torch.device | str | None = None
    ) -> Tensor:
        """Return the centres (N, 2) of all cells, (x, y) in pixels of the image given, in raster order."""
        y, x = self._axes(image_size)
        ys = ((torch.arange(y.cells, device=device) + 0.5) * self.patch_height - y.offset) / y.scale
        xs = ((torch.arange(x.cells, device=device) + 0.5) * self.patch_width - x.offset) / x.scale
        return torch.stack((xs.repeat(y.cells), ys.repeat_interleave(x.cells)), dim=-1)

    def sample(self, maps: Tensor, xy: Tensor, image_size: Sequence[int]) -> Tensor:
        """Read maps at image points, bilinearly; points outside read the nearest border.

        Args:
            maps: (B, C, rows, cols).
            xy: (M, 2) for the whole batch or (B, M, 2); (x, y) pixels of the image given.
            image_size: (height, width) of that image.

        Returns:
            (B, M, C) in the dtype of ``maps`` (weights are computed in at least float32); NaN where
            a coordinate is NaN.
        """
        y, x = self._axes(image_size)
        if maps.ndim != 4 or tuple(maps.shape[-2:]) != (y.cells, x.cells):
            raise GridError(
                f"maps have shape {tuple(maps.shape)}; an image of {tuple(image_size)} px has "
                f"{y.cells}x{x.cells} cells, so (batch, channels, {y.cells}, {x.cells}) was "
                "expected"
            )
        if (
            xy.ndim not in (2, 3)
            or xy.shape[-1] != 2
            or (xy.ndim == 3 and xy.shape[0] != maps.shape[0])
        ):
            raise ShapeError(
                f"xy has shape {tuple(xy.shape)}; expected (M, 2) or ({maps.shape[0]}, M, 2)"
            )
        wide = exact(maps)
        spans = wide.new_tensor((x.cells * self.patch_width, y.cells * self.patch_height))
        scale = wide.new_tensor((x.scale, y.scale))
        offset = wide.new_tensor((x.offset, y.offset))
        prepared = xy.to(wide) * scale + offset
        points = (prepared / spans * 2 - 1).expand(maps.shape[0], -1, -1)
        read = F.grid_sample(
            wide, points.unsqueeze(1), mode="bilinear", padding_mode="border", align_corners=False
        )
        # a point that is nowhere reads NaN
        nowhere = xy.isnan().any(dim=-1).expand(maps.shape[0], -1)[..., None]
        return torch.where(nowhere, torch.nan, read.squeeze(2).transpose(1, 2)).to(maps.dtype)

    def reduce_labels(self, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Average dense labels over the cells of the patch grid.

        Args:
            labels: (B, K, H, W) of any dtype, at the size of the image as it is given.
            mask: bool (B, H, W), True where a pixel counts; None = all. Values where it is False,
                NaN included, are ignored.

        Returns:
            values (B, K, rows, cols) and weight (B, rows, cols), in at least float32. A value is
            the mean over the valid pixels of a cell, 0 where there is none. The weight is how many
            pixels these were, a fraction where ``"resize"`` cuts pixels.

        Raises:
            ShapeError: if shapes do not fit.
            DataError: if a label that counts is not finite, or the mask holds NaN.
        """
        if labels.ndim != 4:
            raise ShapeError(
                f"labels have shape {tuple(labels.shape)}; expected (batch, K, height, width)"
            )
        batch, _, height, width = labels.shape
        if mask is not None and tuple(mask.shape) != (batch, height, width):
            raise ShapeError(
                f"mask has shape {tuple(mask.shape)}; expected {(batch, height, width)}"
            )
        if mask is None:
            keep = labels.new_ones((batch, 1, height, width), dtype=torch.bool)
        else:
            keep = as_mask(mask)[:, None]
        y, x = self._axes((height, width))
        down = _overlaps(height, y, self.patch_height, labels.device)
        across = _overlaps(width, x, self.patch_width, labels.device).T
        # what is cropped off does not count
        keep = keep & (down.sum(dim=0) > 0)[:, None] & (across.sum(dim=1) > 0)
        counted = torch.where(keep, labels.double(), 0.0)
        num_infinite = int((~counted.isfinite()).sum())
        if num_infinite:
            raise DataError(
                f"{num_infinite} label values that count are not finite; mask them "
                "(mask=labels.isfinite())"
            )
        weight = down @ keep.double() @ across
        values = torch.where(weight > 0, down @ counted @ across / weight.clamp_min(1e-12), 0.0)
        like = labels if labels.is_floating_point() else labels.new_empty(0, dtype=torch.float32)
        # half precision cannot count to 2049
        return values.to(like), weight[:, 0].to(exact(like[:0]))

    def _axes(self, image_size: Sequence[int]) -> tuple[Axis, Axis]:
        whole = isinstance(image_size, Sequence) and all(_is_whole(side) for side in image_size)
        if not whole or len(image_size) != 2 or min(image_size) < 1:
            raise no_image_size(image_size)
        height, width = image_size
        return axes_of(
            (height, width),
            (self.patch_height, self.patch_width),
            on_remainder=self.on_remainder,
            pad_to=self.pad_to,
        )


def _check_word(name: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ConfigError(f"{name} is {word!r}; expected one of {', '.join(words)}")


def as_maps(patches: Tensor, grid: GridSize) -> Tensor:
    """View patch tokens (B, N, C) as channels-last maps (B, C, rows, cols) without a copy.

    Raises:
        ShapeError: if ``patches`` is not three-dimensional.
        GridError: if N is not rows * cols.
    """
    if patches.ndim != 3:
        raise ShapeError(
            f"patches have shape {tuple(patches.shape)}; expected (batch, N, channels)"
        )
    rows, cols = grid
    if patches.shape[1] != rows * cols:
        raise GridError(
            f"{patches.shape[1]} patch tokens do not fill a grid of {rows} rows x {cols} cols = "
            f"{rows * cols}; check the image size, the patch size and that CLS and register "
            "tokens are split off"
        )
    spread: Tensor = patches.unflatten(1, (rows, cols))  # type: ignore[no-untyped-call]
    return spread.permute(0, 3, 1, 2)


def exact(x: Tensor) -> Tensor:
    """Return x in float32 or wider."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def as_mask(mask: Tensor) -> Tensor:
    """Return a mask of any dtype as bool, True where a place counts.

    Raises:
        DataError: for NaN. A GPU's mask is not read, since the host would wait: there NaN does not
            count.
    """
    if not mask.is_floating_point():
        return mask != 0
    unknown = mask.isnan()
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(unknown.any()):
        raise DataError(
            f"the mask holds {int(unknown.sum())} NaN among {mask.numel()} values; expected True "
            "or 1 where a value counts, and False or 0 elsewhere"
        )
    return (mask != 0) & ~unknown


def _overlaps(length: int, axis: Axis, patch: int, device: torch.device) -> Tensor:
    """Matrix (cells, length): how much of each pixel lies in each cell, in pixels, float64."""
    corners = torch.arange(axis.cells + 1, dtype=torch.float64, device=device)
    edges = (corners * patch - axis.offset) / axis.scale
    pixels = torch.arange(length, dtype=torch.float64, device=device)
    ends = torch.minimum(edges[1:, None], pixels + 1)
    return (ends - torch.maximum(edges[:-1, None], pixels)).clamp_min(0.0)


def _is_whole(side: object) -> bool:
    """An integer of Python, NumPy or torch's tracing; no bool, no float."""
    whole = (int, torch.SymInt) if torch.compiler.is_compiling() else (Integral, torch.SymInt)
    return isinstance(side, whole) and not isinstance(side, bool)
