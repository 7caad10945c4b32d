"""Images -> normalised tensors: the only place that decodes, turns, resizes and normalises; and points on them.

:class:`Preprocessing` is a plain record of how; it is saved in head files, so that images are prepared for prediction
as they were for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.decoding import (
    Fit,
    ImageInput,
    Interpolation,
    as_list,
    fit_to,
    fitted_size,
    read_image_size,
    read_pixels,
    to_unit_range,
)
from dinoneck.data.loading import in_threads
from dinoneck.errors import ConfigError, DataError, ShapeError, did_you_mean
from dinoneck.grid import PatchSize, PreparedImages, Remainder, TokenGrid, patch_pair

LARGEST_SIDE_PX = 1 << 16
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a backbone.

    Args:
        patch_size: pixels per patch of the backbone.
        mean: per-channel mean of the RGB values in 0 ... 1.
        std: per-channel standard deviation.
        size: (height, width) in pixels that images are brought to; None keeps each image's own.
        fit: how an image of another aspect comes to ``size``: ``stretch``; ``keep`` (fits inside, aspect
            kept, the other side is shorter); ``crop`` (covers, the middle is kept); ``pad`` (fits inside, the
            rest is filled at the bottom and right with the mean colour).
        policy: what happens where the patch does not divide the result, see
            :class:`dinoneck.grid.TokenGrid`: ``error``, ``crop``, ``pad`` or ``resize``.
        interpolation: ``bilinear`` (antialiased; 8-bit images are resized as uint8, as transformers' DINOv3 processor
            does), ``bicubic`` (antialiased, float32) or ``area`` (torch's ``F.interpolate(mode="area")``: the mean of
            the pixels that a new pixel's area touches, which equals OpenCV's INTER_AREA for whole ratios and blurs a
            little more for others; bilinear where a side grows).
        blur: odd kernel of a Gaussian blur after resizing, with the fixed sigma
            0.3 * ((kernel - 1) / 2 - 1) + 0.8; None = no blur.

    Raises:
        ConfigError: if a value is out of range.
    """

    patch_size: PatchSize = 16
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] | None = None
    fit: Fit = "stretch"
    policy: Remainder = "error"
    interpolation: Interpolation = "bilinear"
    blur: int | None = None

    def __post_init__(self) -> None:
        pair = patch_pair(self.patch_size)
        object.__setattr__(self, "patch_size", pair[0] if pair[0] == pair[1] else pair)
        for name, allowed in (("fit", Fit), ("policy", Remainder), ("interpolation", Interpolation)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ConfigError(
                    f"{name} is {value!r}; expected one of {', '.join(get_args(allowed))}."
                    + did_you_mean(value, get_args(allowed))
                )
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = () if given is None else tuple(float(value) for value in given)
            if len(values) != 3 or not all(np.isfinite(values)) or (name == "std" and min(values) <= 0):
                raise ConfigError(f"{name} is {given}; expected three finite numbers (std: positive), for R, G, B")
            object.__setattr__(self, name, values)
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        odd = isinstance(self.blur, int) and not isinstance(self.blur, bool) and self.blur > 0 and self.blur % 2 == 1
        if self.blur is not None and not odd:
            raise ConfigError(f"blur is {self.blur!r}; expected an odd kernel size such as 5, or None")

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | Sequence[int] | None = None,
        policy: Remainder | None = None,
        **changes: Any,
    ) -> Tensor:
        """Return the images as one batch (B, 3, H, W) of normalised float32 values.

        Args:
            images: one image or several: paths, PIL images, arrays (H, W, 3) or (H, W), tensors (3, H, W),
                or a batch tensor (B, 3, H, W); uint8 spans 0 ... 255, uint16 0 ... 65535, floats 0 ... 1.
            size: (height, width) or one number for both, instead of the record's.
            policy: instead of the record's.
            **changes: other fields of this record to change for this call.

        Raises:
            DataError: if an image cannot be read, or the images come to different sizes.
            GridError: if the patch does not divide the size and the policy is ``error``.
        """
        return self.prepare(images, size, policy, **changes).images

    def prepare(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | Sequence[int] | None = None,
        policy: Remainder | None = None,
        **changes: Any,
    ) -> PreparedImages:
        """Like calling, but with the grid and the way back to the resized image's pixels."""
        recipe = self.changed(size=size, policy=policy, **changes)
        return recipe.finished([*in_threads(recipe.fitted, as_list(images))])

    def fitted(self, image: ImageInput) -> Tensor:
        """Decode, resize and crop one image: (3, h, w) RGB in 0 ... 1, before normalising and padding.

        Raises:
            DataError: if the image cannot be read.
        """
        x = read_pixels(image)[None]
        if self.size is not None:
            x = fit_to(x, self.size, self.fit, self.interpolation)
        return to_unit_range(x[0]).clamp(0.0, 1.0)  # bicubic overshoots

    def finished(self, images: Sequence[Tensor]) -> PreparedImages:
        """Normalise, blur and pad images that :meth:`fitted` gave; the two together are :meth:`prepare`.

        Raises:
            DataError: if there are none, or they come to different sizes.
            GridError: if the patch does not divide the size and the policy is ``error``.
        """
        fitted = [self._normalised(image) for image in images]
        if not fitted:
            raise DataError("there are no images")
        sizes = sorted({tuple(x.shape[-2:]) for x, _ in fitted})
        if len(sizes) > 1:
            raise DataError(
                f"the images come to different sizes (height x width): {', '.join(f'{h}x{w}' for h, w in sizes[:5])}; "
                "pass size=(height, width) (--size on the command line), or one image at a time"
            )
        grid = TokenGrid(self.patch_size, self.policy)
        prepared = grid.prepare(torch.stack([x for x, _ in fitted]))
        if len({real for _, real in fitted} | set(sizes)) == 1:
            return prepared
        filled = torch.zeros(len(fitted), 1, *sizes[0])
        for i, (_, (height, width)) in enumerate(fitted):
            filled[i, :, :height, :width] = 1.0
        cells = F.max_pool2d(grid.prepare(filled).images, patch_pair(self.patch_size))
        return replace(prepared, valid=(cells > 0).any(dim=0)[0])

    def picture(self, image: ImageInput) -> Tensor:
        """Return one image as the backbone sees it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded."""
        prepared = self(image)[0]
        mean, std = (prepared.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (prepared * std + mean).clamp(0.0, 1.0)

    def changed(self, **changes: Any) -> Preprocessing:
        """Return a copy with these fields changed; None leaves a field as it is."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"preprocessing has no field {name!r}.{did_you_mean(name, known)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def record(self) -> dict[str, Any]:
        """Return the JSON-able record that checkpoints carry."""
        plain = asdict(self)
        plain["blur"] = None if self.blur is None else {"kernel": self.blur, "sigma": blur_sigma(self.blur)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Rebuild from :meth:`record`.

        Raises:
            ConfigError: if a field is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != known:
            raise ConfigError(f"a preprocessing record holds {sorted(known)}; this one is {record!r}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        blur = plain["blur"]
        if blur is not None:
            kernel = blur.get("kernel") if isinstance(blur, Mapping) else None
            if not isinstance(kernel, int) or blur != {"kernel": kernel, "sigma": blur_sigma(kernel)}:
                raise ConfigError(
                    f"the blur of this record is {blur!r}; expected an odd kernel with sigma "
                    "0.3 * ((kernel - 1) / 2 - 1) + 0.8"
                )
            plain["blur"] = kernel
        return cls(**plain)

    def _normalised(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalise, blur and pad one fitted (3, h, w) image; and its size before padding."""
        x = image[None]
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        x = (x - mean) / std
        if self.blur is not None:
            if self.blur // 2 >= min(x.shape[-2:]):
                raise DataError(f"a blur of {self.blur} px does not fit an image of {x.shape[-2]}x{x.shape[-1]} px")
            x = transforms().gaussian_blur(x, [self.blur] * 2, [blur_sigma(self.blur)] * 2)
        height, width = x.shape[-2:]
        if self.size is not None and self.fit == "pad":
            x = F.pad(x, (0, self.size[1] - width, 0, self.size[0] - height))
        return x[0], (height, width)


def transforms() -> Any:
    """Return torchvision's functional transforms; importing torchvision takes almost as long as importing torch."""
    from torchvision.transforms.v2 import functional

    return functional


def blur_sigma(kernel: int) -> float:
    """Return the sigma in pixels that belongs to a kernel: 0.3 * ((kernel - 1) / 2 - 1) + 0.8."""
    return 0.3 * ((kernel - 1) / 2 - 1) + 0.8


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(pair) != 2 or any(
        isinstance(side, bool) or not isinstance(side, Integral) or not 1 <= side <= LARGEST_SIDE_PX for side in pair
    ):
        raise ConfigError(f"size is {size!r}; expected (height, width) in pixels, each 1 ... {LARGEST_SIDE_PX}")
    return int(pair[0]), int(pair[1])


def to_image_pixels(xy: Tensor, preprocess: Preprocessing, image: ImageInput | Sequence[int]) -> Tensor:
    """Map points of a prepared image to the pixels of the image itself.

    Args:
        xy: points (x, y) in pixels of the prepared image; (0, 0) is the outer corner of its first pixel.
        preprocess: how the image was prepared.
        image: the image, or its (height, width) in pixels when upright.

    Returns:
        The points in pixels of the upright image, of xy's dtype; those of padding lie outside of it.

    Shape:
        (..., 2) -> (..., 2).

    Raises:
        ShapeError: if the last axis has another length than 2.
        DataError: if points are integers, or it is not an image.
        GridError: if the patch does not divide the size and the policy is ``error``.

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), fit="crop")
        >>> to_image_pixels(torch.tensor([[0.0, 0.0], [64.0, 32.0]]), recipe, (120, 160)).tolist()
        [[0.0, 20.0], [160.0, 100.0]]
    """
    scale, offset = _scale_and_offset(_checked_points(xy), preprocess, image)
    return (xy - offset) / scale


def to_prepared_pixels(xy: Tensor, preprocess: Preprocessing, image: ImageInput | Sequence[int]) -> Tensor:
    """Bring points of an image to the prepared image; the inverse of :func:`to_image_pixels`, with its errors.

    Args:
        xy: points (x, y) in pixels of the upright image.
        preprocess: how the image is prepared.
        image: the image, or its (height, width) in pixels when upright.

    Shape:
        (..., 2) -> (..., 2).

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), fit="pad")
        >>> to_prepared_pixels(torch.tensor([160.0, 120.0]), recipe, (120, 160)).round(decimals=3).tolist()
        [43.0, 32.0]
    """
    scale, offset = _scale_and_offset(_checked_points(xy), preprocess, image)
    return xy * scale + offset


def _checked_points(xy: Tensor) -> Tensor:
    if not xy.ndim or xy.shape[-1] != 2:
        raise ShapeError(f"points have shape {tuple(xy.shape)}; expected (..., 2): x, y")
    if not xy.is_floating_point():
        raise DataError(f"points are {xy.dtype}; expected floating-point pixels, which scaling does not round")
    return xy


def _scale_and_offset(xy: Tensor, recipe: Preprocessing, image: ImageInput | Sequence[int]) -> tuple[Tensor, Tensor]:
    """(x, y) scale and offset: prepared = image * scale + offset."""
    height, width = _size_of(image)
    resized, (top, left), seen = (height, width), (0, 0), (height, width)
    if recipe.size is not None:
        resized, (top, left) = fitted_size((height, width), recipe.size, recipe.fit)
        seen = resized if recipe.fit == "keep" else recipe.size
    blank = torch.empty(1, 1, *seen, device="meta")  # the grid's share, without pixels
    grid = TokenGrid(recipe.patch_size, recipe.policy).prepare(blank)
    scale = (grid.scale[0] * resized[1] / width, grid.scale[1] * resized[0] / height)
    offset = (grid.offset[0] - grid.scale[0] * left, grid.offset[1] - grid.scale[1] * top)
    return xy.new_tensor(scale), xy.new_tensor(offset)


def _size_of(image: ImageInput | Sequence[int]) -> tuple[int, int]:
    if not isinstance(image, Sequence) or isinstance(image, str):
        return read_image_size(image)
    if len(image) != 2 or not all(isinstance(side, int) and side > 0 for side in image):
        raise DataError(f"the image's size is {tuple(image)}; expected (height, width) in pixels, each positive")
    return image[0], image[1]
