"""Images -> normalised tensors: the only place that decodes, turns, resizes and normalises.

:class:`Preprocessing` is a plain record of how; it is saved in head files, so that images are prepared for prediction
as they were for training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from dinoneck.data.resizing import Fit, Interpolation, fit_to, to_unit_range
from dinoneck.errors import ConfigError, DataError, did_you_mean
from dinoneck.grid import PatchSize, PreparedImages, Remainder, TokenGrid, patch_pair

T = TypeVar("T")
Photo = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor

LARGEST_SIDE_PX = 1 << 16
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# records of version 0.1 name its float32 form "bilinear"
_RECORDED = {"bilinear": "bilinear_uint8", "bilinear_float32": "bilinear"}
_READ = {recorded: name for name, recorded in _RECORDED.items()}
_TURNS = {  # EXIF orientation -> whether rows and columns of (..., H, W) are swapped, and the axes flipped after that
    2: (False, (-1,)), 3: (False, (-1, -2)), 4: (False, (-2,)), 5: (True, ()),
    6: (True, (-1,)), 7: (True, (-1, -2)), 8: (True, (-2,)),
}  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """How photos become the images a backbone takes.

    Args:
        patch_size: pixels per patch of the backbone.
        mean: per-channel mean of the RGB values in 0 ... 1.
        std: per-channel standard deviation likewise.
        size: (height, width) in pixels that photos are brought to; None keeps each photo's own.
        fit: how a photo of another aspect comes to ``size``: ``stretch``; ``keep`` (fits inside, aspect
            kept, the other side is shorter); ``crop`` (covers, the middle is kept); ``pad`` (fits inside, the
            rest is filled at the bottom and right with the mean colour).
        policy: what happens where the patch does not divide the result, see
            :class:`dinoneck.grid.TokenGrid`: ``error``, ``crop``, ``pad`` or ``resize``.
        interpolation: ``bilinear`` (antialiased; 8-bit images are resized as uint8, as transformers' DINOv3 processor
            does), ``bicubic`` (antialiased, float32), ``area`` (torch's ``F.interpolate(mode="area")``: the mean of
            the pixels that a new pixel's area touches, which equals OpenCV's INTER_AREA for whole ratios and blurs a
            little more for others; bilinear where a side grows), or ``bilinear_float32``, which files of version 0.1
            name ``bilinear``.
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
        photos: Photo | Sequence[Photo],
        size: int | Sequence[int] | None = None,
        policy: Remainder | None = None,
        **changes: Any,
    ) -> Tensor:
        """Return the photos as one batch (B, 3, H, W) of normalised float32 values.

        Args:
            photos: one photo or several: paths, PIL images, arrays (H, W, 3) or (H, W), tensors (3, H, W),
                or a batch tensor (B, 3, H, W); uint8 spans 0 ... 255, uint16 0 ... 65535, floats 0 ... 1.
            size: (height, width) or one number for both, instead of the record's.
            policy: instead of the record's.
            **changes: other fields of this record to change for this call.

        Raises:
            DataError: if a photo cannot be read, or the photos come to different sizes.
            GridError: if the patch does not divide the size and the policy is ``error``.
        """
        return self.prepare(photos, size, policy, **changes).images

    def prepare(
        self,
        photos: Photo | Sequence[Photo],
        size: int | Sequence[int] | None = None,
        policy: Remainder | None = None,
        **changes: Any,
    ) -> PreparedImages:
        """Like calling, but with the grid and the way back to the resized photo's pixels."""
        recipe = self.changed(size=size, policy=policy, **changes)
        return recipe.finished([recipe.fitted(photo) for photo in as_list(photos)])

    def fitted(self, photo: Photo) -> Tensor:
        """Decode, resize and crop one photo: (3, h, w) RGB in 0 ... 1, before normalising and padding.

        Raises:
            DataError: if the photo cannot be read.
        """
        x = read_pixels(photo)[None]
        if self.size is not None:
            x = fit_to(x, self.size, self.fit, self.interpolation)
        return to_unit_range(x[0]).clamp(0.0, 1.0)  # bicubic overshoots

    def finished(self, photos: Sequence[Tensor]) -> PreparedImages:
        """Normalise, blur and pad photos that :meth:`fitted` gave; the two together are :meth:`prepare`.

        Raises:
            DataError: if there are none, or they come to different sizes.
            GridError: if the patch does not divide the size and the policy is ``error``.
        """
        fitted = [self._normalised(photo) for photo in photos]
        if not fitted:
            raise DataError("there are no photos")
        sizes = sorted({tuple(x.shape[-2:]) for x, _ in fitted})
        if len(sizes) > 1:
            raise DataError(
                f"the photos come to different sizes (height x width): {', '.join(f'{h}x{w}' for h, w in sizes[:5])}; "
                "pass size=(height, width) (--size on the command line), or one photo at a time"
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

    def picture(self, photo: Photo) -> Tensor:
        """Return one photo as the backbone sees it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded."""
        image = self(photo)[0]
        mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (image * std + mean).clamp(0.0, 1.0)

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
        plain["interpolation"] = _RECORDED.get(self.interpolation, self.interpolation)
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
        plain["interpolation"] = _READ.get(plain["interpolation"], plain["interpolation"])
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

    def _normalised(self, photo: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalise, blur and pad one fitted (3, h, w) photo; and its size before padding."""
        x = photo[None]
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        x = (x - mean) / std
        if self.blur is not None:
            if self.blur // 2 >= min(x.shape[-2:]):
                raise DataError(f"a blur of {self.blur} px does not fit a photo of {x.shape[-2]}x{x.shape[-1]} px")
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


def as_list(photos: Photo | Sequence[Photo], noun: str = "photos") -> list[Photo]:
    """Return a list of single photos (or what ``noun`` calls them), whatever form they came in."""
    if isinstance(photos, Tensor | np.ndarray) and photos.ndim == 4:
        return list(photos)
    if isinstance(photos, str | os.PathLike | Image.Image | Tensor | np.ndarray):
        return [photos]
    if not isinstance(photos, Sequence):
        raise DataError(f"{noun} are {type(photos).__name__}; expected paths, PIL images, arrays or tensors")
    return list(photos)


def decode(photo: Photo) -> Tensor:
    """Decode one image to (3, H, W) float32 RGB in 0 ... 1; see :func:`read_pixels`."""
    return to_unit_range(read_pixels(photo))


def read_pixels(photo: Photo) -> Tensor:
    """Decode one image to (3, H, W) RGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and transparent images become RGB. 16-bit grey values are scaled by 65535; of 16-bit colours
    in a file Pillow keeps the high byte.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1.

    Raises:
        DataError: naming the file, if it cannot be read, values are out of range or 16-bit ones fill 14 bits at most.
    """
    if isinstance(photo, str | os.PathLike):
        return read_picture(Path(photo), _from_file)
    if isinstance(photo, Image.Image):
        return _from_pil(photo, "a PIL image")
    if isinstance(photo, np.ndarray):
        array = photo[..., None] if photo.ndim == 2 else photo
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise DataError(f"an array image has shape {photo.shape}; expected (height, width, 3) or (height, width)")
        if array.dtype.kind not in "uif":
            raise DataError(f"an array image holds {array.dtype} values; expected uint8, uint16 or floats in 0 ... 1")
        array = np.ascontiguousarray(array[..., :3], array.dtype.newbyteorder("="))
        return _in_range(torch.tensor(array).permute(2, 0, 1))
    if isinstance(photo, Tensor):
        if photo.ndim != 3 or photo.shape[0] not in (1, 3):
            raise DataError(f"a tensor image has shape {tuple(photo.shape)}; expected (3, height, width)")
        return _in_range(photo)
    raise DataError(f"an image is {type(photo).__name__}; expected a path, a PIL image, an array or a tensor")


def photo_size(photo: Photo) -> tuple[int, int]:
    """Return (height, width) of a photo turned upright; a file's header says it, its pixels are not decoded.

    Raises:
        DataError: if it is no photo, naming the file.
    """
    if isinstance(photo, str | os.PathLike):
        return read_picture(Path(photo), lambda image, _: _upright_size(image))
    if isinstance(photo, Image.Image):
        return _upright_size(photo)
    height, width = decode(photo).shape[-2:]
    return height, width


def read_picture(path: Path, read: Callable[[Image.Image, str], T], noun: str = "photo") -> T:
    """Open a picture file and return what ``read(image, name)`` makes of it.

    Raises:
        DataError: if there is no such file or it cannot be decoded, naming it.
    """
    if path.is_dir():
        which = "empty or the current folder" if path == Path() else f"{path}, a folder"
        raise DataError(f"the path of a {noun} is {which}; expected an image file")
    try:
        with Image.open(path) as image:
            return read(image, str(path))
    except FileNotFoundError:
        raise DataError(f"there is no {noun} {path}; check the folder and the file name") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise DataError(f"{path} ({size} bytes) is no picture that can be decoded; remove or replace it") from None
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:  # AVIF: the fourth
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}; remove or replace it") from error


def _from_file(image: Image.Image, name: str) -> Tensor:
    """Decode an opened file: a JPEG in grey or RGB by torchvision, others and damaged ones by Pillow.

    Both use libjpeg-turbo and give equal pixels; torchvision takes half the time.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        raw = torch.from_numpy(np.fromfile(name, np.uint8))
        if raw[-2:].tolist() == [0xFF, 0xD9]:  # else it is cut short or has an appendix: Pillow decides
            with contextlib.suppress(RuntimeError, AttributeError):  # damaged; an operator that torchvision lacks
                return _upright(_decode_jpeg(raw), image)
    return _from_pil(image, name)


def _decode_jpeg(raw: Tensor) -> Tensor:
    """Call the operator behind ``torchvision.io.decode_jpeg``; that function warns at every call as of 0.29."""
    from torchvision.io import ImageReadMode

    pixels: Tensor = torch.ops.image.decode_jpeg(raw, ImageReadMode.RGB.value, False)
    return pixels


def _upright(pixels: Tensor, image: Image.Image) -> Tensor:
    """Turn pixels (..., H, W) as the image's EXIF tag states."""
    is_turned, flips = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), (False, ()))
    pixels = pixels.mT if is_turned else pixels
    return pixels.flip(flips) if flips else pixels


def _from_pil(image: Image.Image, name: str) -> Tensor:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # older Pillow: 16 bit as I
        grey = np.asarray(image)
        _check_depth(int(grey.max()), name)
        deep = torch.from_numpy(np.ascontiguousarray(grey.astype(np.float32) / 65535.0))
        return _upright(deep[None].expand(3, -1, -1), image)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} holds {image.mode!r} values (32 bit) of unknown range; scale it to 0 ... 1 and pass an array"
        )
    has_16_bits = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    rgb = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    pixels = np.array(rgb if rgb.mode == "RGB" else rgb.convert("RGB"))
    _check_depth(int(pixels.max()) << 8 | 255 if has_16_bits else 0, name)  # the low bytes are lost
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), image)


def _check_depth(largest: int, name: str) -> None:
    """Refuse 16-bit values that fill 14 bits at most, naming the largest: such an image would be far too dark."""
    if 0 < largest < 1 << 14:
        bits = next(bits for bits in (8, 10, 12, 14) if largest < 1 << bits)
        raise DataError(
            f"{name} holds 16-bit values of at most {largest}: it seems to be a {bits}-bit image in 16-bit form, and "
            f"scaled by 65535 it would be far too dark. Divide it by {(1 << bits) - 1} (or by 65535, if it really is "
            "that dark) and pass the array of floats in 0 ... 1"
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return image.size if lies else (image.height, image.width)


def _in_range(x: Tensor) -> Tensor:
    """Check the values of an array or tensor image; those of 16 bits become floats."""
    if not x.numel():
        raise DataError(f"an image has shape {tuple(x.shape)}: it is empty")
    if x.dtype == torch.uint16:
        _check_depth(int(x.int().max()), "an image")
        x = x.float() / 65535.0
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise DataError(f"an image holds {x.dtype} values; expected uint8, uint16 or floats in 0 ... 1")
        low, high = x.min().item(), x.max().item()
        if not (low >= 0.0 and high <= 1.0):  # also catches NaN
            raise DataError(
                f"a float image has values {low:g} ... {high:g}; expected RGB in 0 ... 1, not normalised "
                "(a normalised image goes to the backbone directly)"
            )
        x = x.float()
    return x.expand(3, -1, -1).cpu()


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(pair) != 2 or any(
        isinstance(side, bool) or not isinstance(side, Integral) or not 1 <= side <= LARGEST_SIDE_PX for side in pair
    ):
        raise ConfigError(f"size is {size!r}; expected (height, width) in pixels, each 1 ... {LARGEST_SIDE_PX}")
    return int(pair[0]), int(pair[1])
