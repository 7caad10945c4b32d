"""Images -> normalised tensors: the only place that decodes, turns, resizes and normalises; and points on them.

:class:`Preprocessing` is a plain record of how; it is saved in head files, so that images are
prepared for prediction as they were for training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError, ShapeError
from dinoneck.grid import GridSize, PreparedImages, TokenGrid
from dinoneck.images.bands import RGB_CHANNELS, read_channels
from dinoneck.images.decoding import (
    ImageInput,
    as_list,
    read_image_size,
    to_unit_range,
)
from dinoneck.images.pixels import in_threads
from dinoneck.images.recipe import ImageRecipe, Interpolation, Placement, Size

_SHOWN = 5  # sizes in a message


def on_canvas(x: Tensor, placement: Placement) -> Tensor:
    """Cut the resampled (..., height, width) to the canvas, and fill up what it leaves free with zeros."""
    if placement.canvas == placement.resized:
        return x
    top, left = placement.corner
    bottom = placement.canvas[0] - placement.resized[0] - top
    right = placement.canvas[1] - placement.resized[1] - left
    return F.pad(x, (left, right, top, bottom))  # negative numbers cut


def resample(x: Tensor, size: Size, interpolation: Interpolation) -> Tensor:
    """Resample images (B, C, H, W) of floats or uint8; bilinear keeps uint8, other results are in 0 ... 1."""
    height, width = x.shape[-2:]
    new_height, new_width = size
    if (height, width) == size:
        return x
    if interpolation == "area" and new_height <= height and new_width <= width:
        return _area_means(x, size)
    if interpolation != "bilinear":
        x = to_unit_range(x)
    if interpolation == "bilinear_aliased":
        return F.interpolate(x, size=size, mode="bilinear")
    mode: Literal["bilinear", "bicubic"] = "bicubic" if interpolation == "bicubic" else "bilinear"
    if 1 in (height, width, new_height, new_width):
        return _resample_by_axis(x, size, mode)
    if width == new_width or (new_height < height and new_width > width):
        # torch widens first, so a thin image would get all its rows in full width: its rows are
        # resized as columns
        columns = F.interpolate(x.mT, size=(width, new_height), mode=mode, antialias=True)
        x = columns.mT
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, antialias=True)


def _resample_by_axis(x: Tensor, size: Size, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Resample images of which a side is 1 px, before or after: columns, then rows, as floats.

    As of 2.15 torch misplaces rows of floats where the width becomes or stays 1. Its kernel of uint8
    reads other memory where a side of 1 px has a stride of its own, and fails for 1 x 1 px.
    """
    batch, channels, height, _ = x.shape
    new_height, new_width = size
    rows = _resample_lines(x, new_width, mode).reshape(batch, channels, height, new_width)
    columns = _resample_lines(rows.mT, new_height, mode)
    resized = columns.reshape(batch, channels, new_width, new_height).mT
    if x.dtype == torch.uint8:
        return resized.round().clamp(0, 255).to(torch.uint8)
    return resized.to(x.dtype)


def _resample_lines(x: Tensor, length: int, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Resample the last axis of (..., L) to (lines, 1, 1, length), float32 or float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    lines = x.reshape(-1, 1, 1, x.shape[-1]).to(dtype)
    return F.interpolate(lines, size=(1, length), mode=mode, antialias=True)


def _area_means(x: Tensor, size: Size) -> Tensor:
    """Means over the pixels that each new pixel's area touches, as floats in 0 ... 1.

    Equal to ``F.interpolate(to_unit_range(x), size, mode="area")``, bit for bit where the result is
    wider than 1 px, without the whole image as floats.
    """
    height = x.shape[-2]
    new_height, new_width = size
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    # made before the loop: small results between the floats of two rows would keep the memory of the
    # first from the second
    means = torch.empty((*x.shape[:-2], new_height, new_width), dtype=dtype, device=x.device)
    for row in range(new_height):
        top = row * height // new_height
        bottom = math.ceil((row + 1) * height / new_height)
        window = x[..., top:bottom, :]
        # its floats have no name, which would keep them while those of the next one are made
        means[..., row, :] = F.adaptive_avg_pool2d(to_unit_range(window), (1, new_width))[..., 0, :]
    return means


@dataclass(frozen=True)
class Preprocessing(ImageRecipe):
    """How images are prepared for a backbone.

    Args:
        patch_size: pixels per patch of the backbone.
        mean: per-channel mean of the RGB values in 0 ... 1; of other channels than RGB one number
            each.
        std: per-channel standard deviation, as many numbers.
        size: (height, width) in pixels that images are brought to; None keeps each image's own.
            What the patch leaves as a remainder is decided by ``resize``.
        resize: how an image comes to ``size``, or without a size to its own size in whole patches:
            ``stretch`` (resampled to it, rounded to whole patches); ``crop`` (covers the whole
            patches in it, the middle is kept; without a size nothing is resampled); ``pad`` (fits
            inside, filled up with the mean colour to whole patches; without a size nothing is
            resampled); ``keep`` (fits inside with its proportions, up to the rounding of both sides
            to whole patches; without a size a remainder is refused). None: ``stretch`` with a
            size, ``keep`` without.
        pad_to: where ``pad`` puts the image: ``corner`` fills at the bottom and right, ``center``
            on all sides.
        interpolation: ``bilinear`` (antialiased; 8-bit images are resized as uint8, as
            transformers' DINOv3 processor does), ``bicubic`` (antialiased, float32), ``area``, or
            ``bilinear_aliased`` (float32, not antialiased, as RF-DETR was trained). ``area`` is
            torch's ``F.interpolate(mode="area")``: the mean of the pixels that a new pixel's area
            touches. It equals OpenCV's INTER_AREA for whole ratios and blurs a little more for
            others. Where a side grows it is bilinear.
        blur: odd kernel of a Gaussian blur after resizing, with the fixed sigma
            0.3 * ((kernel - 1) / 2 - 1) + 0.8; None: no blur.
        bits: how many bits images of 16 bits use, 8 ... 16: their values are divided by
            ``2**bits - 1``. 16 reads them as they are; None does too, but refuses images that use a
            part of the range, as those of 12-bit cameras do. Images of 8 bits and floats do not
            change.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __call__(
        self, images: Any, size: int | Sequence[int] | None = None, **changes: Any
    ) -> Tensor:
        """Return the images as one batch (B, 3, H, W) of normalised float32 values.

        Args:
            images: one image or several: paths, PIL images, arrays (H, W, 3) or (H, W), tensors
                (3, H, W), or a batch tensor (B, 3, H, W); uint8 spans 0 ... 255, uint16 0 ...
                65535 or what ``bits`` says, floats 0 ... 1. With a mean of another number of
                channels: arrays (H, W, channels), tensors (channels, H, W), and TIFF files of so
                many bands (extra ``geo``).
            size: (height, width) or one number for both, instead of the record's.
            **changes: other fields of this record to change for this call, such as ``resize``.

        Raises:
            DataError: if an image cannot be read, or the images come to different sizes.
            GridError: if the patch leaves a remainder that ``keep`` refuses.
        """
        return self.prepare(images, size, **changes).images

    def prepare(
        self, images: Any, size: int | Sequence[int] | None = None, **changes: Any
    ) -> PreparedImages:
        """Like calling, but with the grid, the cells that show images, and the way back to the resized images' pixels.

        The way back is NaN where images of one batch are padded differently; see
        :func:`to_image_pixels`.
        """
        recipe = self.changed(size=size, **changes)
        fitted = list(in_threads(recipe.fitted, as_list(images)))
        return recipe.finished(fitted)

    def grid(self) -> GridSize | None:
        """Return the patch grid of every prepared image; None where it depends on the image.

        Raises:
            GridError: if no whole patch is left of the size.
        """
        prepared_size = self.prepared_size()
        if prepared_size is None:
            return None
        return TokenGrid(self.patch_size).size(prepared_size)

    def fitted(self, image: ImageInput) -> Tensor:
        """Decode, resize and crop one image: (channels, h, w) in 0 ... 1, before normalising and padding.

        Raises:
            DataError: if the image cannot be read.
            GridError: as :meth:`placement`.
        """
        pixels = read_channels(image, self.channels, self.bits)[None]
        placement = self.placement((pixels.shape[-2], pixels.shape[-1]))
        x = resample(pixels, placement.resized, self.interpolation)
        if self.resize != "pad":  # padding follows the normalisation
            x = on_canvas(x, placement)
        return to_unit_range(x[0]).clamp(0.0, 1.0)  # bicubic overshoots

    def finished(self, images: Sequence[Tensor]) -> PreparedImages:
        """Normalise, blur and pad images that :meth:`fitted` gave; the two together are :meth:`prepare`.

        Raises:
            DataError: if there are none, or they come to different sizes.
        """
        if not images:
            raise DataError("there are no images")
        placements = [self._placement_of_fitted(image) for image in images]
        canvases = sorted({placement.canvas for placement in placements})
        if len(canvases) != 1:
            shown = ", ".join(f"{height}x{width}" for height, width in canvases[:_SHOWN])
            raise DataError(
                f"the images come to different sizes: {shown}; pass size=(height, width) (--size), "
                "or one image at a time"
            )

        # the images
        mean = images[0].new_tensor(self.mean).view(-1, 1, 1)
        std = images[0].new_tensor(self.std).view(-1, 1, 1)
        normalised = [(image - mean) / std for image in images]
        if self.blur is not None:
            normalised = _blurred(normalised, self.blur)
        canvas_images = []
        for placement, image in zip(placements, normalised, strict=True):
            canvas_images.append(on_canvas(image, placement))
        prepared = TokenGrid(self.patch_size).prepare(torch.stack(canvas_images))

        # the patches that show an image, of any of the batch
        valid = torch.zeros_like(prepared.valid)
        for placement in placements:
            valid[placement.shown_cells(prepared.grid)] = True

        # the way back to the pixels of the resized image
        corners = {placement.corner for placement in placements}
        offset = (math.nan, math.nan)
        if len(corners) == 1:
            top, left = corners.pop()
            offset = (float(left), float(top))
        return replace(prepared, valid=valid, offset=offset)

    def _placement_of_fitted(self, image: Tensor) -> Placement:
        """Where an image that :meth:`fitted` gave lies on its canvas."""
        size = (image.shape[-2], image.shape[-1])
        if self.resize == "pad":
            return self.placement(size)
        return Placement(resized=size, canvas=size, corner=(0, 0))  # whole patches already

    def picture(self, image: ImageInput) -> Tensor:
        """Return one image as the backbone sees it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded.

        Of other channels than RGB, the first three are shown as it; the first alone, as grey, where
        there are fewer.
        """
        prepared = self(image)[0]
        mean = prepared.new_tensor(self.mean).view(-1, 1, 1)
        std = prepared.new_tensor(self.std).view(-1, 1, 1)
        shown = (prepared * std + mean).clamp(0.0, 1.0)
        if self.channels < RGB_CHANNELS:
            return shown[:1].expand(RGB_CHANNELS, -1, -1)
        return shown[:RGB_CHANNELS]


def _blurred(images: Sequence[Tensor], kernel: int) -> list[Tensor]:
    """Images (C, H, W) after a Gaussian blur.

    Raises:
        DataError: if the kernel does not fit an image.
    """
    # it takes as long to import as torch
    from torchvision.transforms.v2.functional import gaussian_blur

    shortest = min(min(image.shape[-2:]) for image in images)
    if kernel // 2 >= shortest:
        raise DataError(
            f"a blur of {kernel} px does not fit images with a side of {shortest} px; choose a "
            "smaller one"
        )
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    return [gaussian_blur(x, [kernel, kernel], [sigma, sigma]) for x in images]


def to_image_pixels(
    xy: Tensor, preprocess: Preprocessing, image: ImageInput | Sequence[int]
) -> Tensor:
    """Map points of a prepared image to the pixels of the image itself.

    Args:
        xy: points (x, y) in pixels of the prepared image; (0, 0) is the outer corner of its first
            pixel.
        preprocess: how the image was prepared.
        image: the image, or its (height, width) in pixels when upright.

    Returns:
        The points in pixels of the upright image, as floats; those of padding lie outside of it.

    Shape:
        (..., 2) -> (..., 2).

    Raises:
        ShapeError: if the last axis has another length than 2.
        DataError: if it is not an image.
        GridError: if the patch leaves a remainder that ``keep`` refuses.

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), resize="crop")
        >>> to_image_pixels(torch.tensor([[0.0, 0.0], [64.0, 32.0]]), recipe, (120, 160)).tolist()
        [[0.0, 20.0], [160.0, 100.0]]
    """
    _check_points(xy)
    image_size, resized, corner = _frames_of(image, preprocess)
    xy = xy * 1.0  # integers become floats
    scale = xy.new_tensor((image_size.x / resized.x, image_size.y / resized.y))
    return (xy - xy.new_tensor(corner)) * scale


def to_prepared_pixels(
    xy: Tensor, preprocess: Preprocessing, image: ImageInput | Sequence[int]
) -> Tensor:
    """Map points of an image to the pixels of the prepared image: the inverse of :func:`to_image_pixels`.

    With :meth:`dinoneck.TokenGrid.sample` it reads maps at points that are known in the image.

    Args:
        xy: points (x, y) in pixels of the upright image; (0, 0) is the outer corner of its first
            pixel.
        preprocess: how the image is prepared.
        image: the image, or its (height, width) in pixels when upright.

    Returns:
        The points in pixels of the prepared image, as floats; those that ``crop`` cuts off lie
        outside of it.

    Shape:
        (..., 2) -> (..., 2).

    Raises:
        ShapeError: if the last axis has another length than 2.
        DataError: if it is not an image.
        GridError: if the patch leaves a remainder that ``keep`` refuses.

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), resize="crop")
        >>> to_prepared_pixels(torch.tensor([[0.0, 20.0], [160.0, 100.0]]), recipe, (120, 160)).tolist()
        [[0.0, 0.0], [64.0, 32.0]]
    """
    _check_points(xy)
    image_size, resized, corner = _frames_of(image, preprocess)
    xy = xy * 1.0  # integers become floats
    scale = xy.new_tensor((resized.x / image_size.x, resized.y / image_size.y))
    return xy * scale + xy.new_tensor(corner)


class _XY(NamedTuple):
    """Two lengths, or a place, in pixels."""

    x: int
    y: int


def _frames_of(
    image: ImageInput | Sequence[int], preprocess: Preprocessing
) -> tuple[_XY, _XY, _XY]:
    """The size of an image, its size when resized, and its upper left corner in the prepared image."""
    height, width = _size_of(image)
    placement = preprocess.placement((height, width))
    resized_height, resized_width = placement.resized
    top, left = placement.corner
    return _XY(width, height), _XY(resized_width, resized_height), _XY(left, top)


def _check_points(xy: Tensor) -> None:
    if xy.ndim == 0 or xy.shape[-1] != 2:
        raise ShapeError(f"points have shape {tuple(xy.shape)}; expected (..., 2): x, y")


def _size_of(image: ImageInput | Sequence[int]) -> Size:
    """The (height, width) of an upright image, given or read from it."""
    size = image if isinstance(image, tuple | list) else read_image_size(image)  # type: ignore[arg-type]
    if len(size) != 2 or min(size) < 1:
        raise DataError(
            f"the image's size is {size}; expected (height, width) in pixels, each positive"
        )
    height, width = size
    return height, width
