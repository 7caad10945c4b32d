"""Label files: the numbers that a raster stores, and the pixels that it marks as unlabelled.

PNG, TIFF, BMP and GIF files are read by Pillow where it gives the numbers as they are stored
(:mod:`dinoneck.images.storage`), other PNG and TIFF files by rasterio, ``.npy`` files by NumPy.
Unlabelled are NaN, GDAL's nodata tag, alpha 0 and masked values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list
from dinoneck.images.orientation import stated_orientation, upright
from dinoneck.images.pixels import read_picture
from dinoneck.images.storage import Storage, read_bands, read_storage, storage_of
from dinoneck.text import reason_of

Raw = np.ndarray[Any, Any]
Colour = tuple[int, ...]
_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "I", "F")
_WITH_ALPHA = ("LA", "PA", "RGBA")
_WITH_PALETTE = ("P", "PA")


@dataclass(frozen=True, eq=False)
class LabelRaster:
    """One label as it is stored, turned upright.

    Attributes:
        name: what messages call it.
        values: (H, W, K), numbers of any real dtype.
        is_hidden: (H, W) bool, transparent or masked pixels; None = there are none.
        nodata: the value that the file marks as unlabelled; None = it marks none.
        palette: index -> colour; None = there is none.
    """

    name: str
    values: Raw
    is_hidden: Raw | None = None
    nodata: float | None = None
    palette: Mapping[int, Colour] | None = None

    def unlabelled(self, nodata: Sequence[float]) -> Raw:
        """Return which pixels have no label, (H, W) bool.

        Raises:
            DataError: if the file marks a value that ``nodata``, which is not empty, does not have.
        """
        numbers = [*nodata]
        if self.nodata is not None and self.nodata not in numbers:
            if numbers and (self.values == self.nodata).any():
                raise DataError(
                    f"{self.name}: the tag GDAL_NODATA marks {self.nodata:g}, and nodata is {numbers}; "
                    "name it too (--nodata), or remove the tag"
                )
            numbers.append(self.nodata)
        marked = np.zeros(self.values.shape[:2], bool)
        with np.errstate(over="ignore"):  # the lowest float64 is -inf in float32, as GDAL writes it
            for number in numbers:
                marked |= (self.values == float(number)).any(axis=2)
        if self.values.dtype.kind == "f":
            marked |= np.isnan(self.values).any(axis=2)
        if self.is_hidden is not None:
            marked |= self.is_hidden
        return marked


def read_labels(
    labels: Any, image_sizes: Sequence[Sequence[int]] | None = None
) -> Iterator[LabelRaster]:
    """Read label after label and compare each with its image's size.

    Args:
        labels: one label or several: paths, PIL images or arrays.
        image_sizes: (height, width) in pixels of each upright image; None compares nothing.

    Raises:
        DataError: if a label cannot be read, or has another size than its image.
    """
    singles = as_list(labels, "labels")
    if not singles:
        raise DataError("there are no labels; expected one or more")
    sizes: Sequence[Any] = [None] * len(singles) if image_sizes is None else image_sizes
    if len(sizes) != len(singles):
        raise DataError(f"there are {len(singles)} labels and {len(sizes)} image sizes")
    for number, (label, size) in enumerate(zip(singles, sizes, strict=True)):
        yield read_label(label, size, number)


def read_label(label: Any, size: Sequence[int] | None = None, number: int = 0) -> LabelRaster:
    """Read one label.

    Args:
        label: a path, a PIL image, or numbers (H, W) or (H, W, K).
        size: (height, width) in pixels of the upright image; None compares nothing.
        number: of the label among others, for messages.

    Raises:
        DataError: as :func:`read_labels`.
        ImportError: naming the extra, if a file that rasterio reads is read without it.
    """
    if isinstance(label, str | os.PathLike):
        raster = _read_file(Path(label))
    elif isinstance(label, Image.Image):
        raster = _from_pil(label, f"label {number} (a PIL image)")
    elif isinstance(label, np.ndarray | Tensor):
        raster = _from_array(label, f"label {number} (an array)")
    else:
        raise DataError(
            f"label {number} is {type(label).__name__}; expected a path, a PIL image or an array "
            "(H, W) or (H, W, K)"
        )
    height, width = raster.values.shape[:2]
    if size is not None and (height, width) != tuple(size):
        turned = ": turn it as EXIF turns the image" if (width, height) == (*size,) else ""
        raise DataError(
            f"{raster.name} is {height}x{width} px (height x width), its image is "
            f"{size[0]}x{size[1]} px; a label has the size of its upright image{turned}"
        )
    return raster


def _read_file(path: Path) -> LabelRaster:
    if path.suffix.lower() == ".npy":
        return _from_npy(path)
    try:
        storage = read_storage(path)
    except FileNotFoundError:
        raise DataError(f"there is no label {path}; check the folder and the file name") from None
    except OSError as error:
        raise DataError(f"label {path} cannot be read: {reason_of(error)}") from error
    if storage is None:
        return read_picture(path, _from_pil, "label", formats="PNG or TIFF")
    _check_keeps_numbers(storage, str(path))
    if storage.has_exact_numbers:
        raster = read_picture(path, _numbers_of, "label")
    else:
        raster = _from_rasterio(path, storage)
    return replace(raster, nodata=_nodata_of(storage, str(path)))


def _from_npy(path: Path) -> LabelRaster:
    try:
        with open_regular(path) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"there is no label {path}; check the folder and the file name") from None
    except (OSError, ValueError, EOFError, TokenError) as error:  # the last one of a damaged header
        raise DataError(
            f"label {path} cannot be read: {reason_of(error)}; expected one array of numbers, as "
            "np.save writes it"
        ) from error
    return _from_array(array, str(path))


def _from_array(label: Any, name: str) -> LabelRaster:
    array = _array_of(label) if isinstance(label, Tensor) else label
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise DataError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers (H, W) or "
            "(H, W, K)"
        )
    is_hidden: Raw | None = None
    if np.ma.is_masked(array):
        masks = np.ma.getmaskarray(array).reshape(*array.shape[:2], -1)
        is_hidden = np.asarray(masks.any(axis=2))
    return LabelRaster(name, _native(np.asarray(array)), is_hidden)


def _array_of(tensor: Tensor) -> Raw:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such floats
        tensor = tensor.float()
    return tensor.numpy()


def _native(values: Raw) -> Raw:
    """Numbers (H, W, K) in the byte order of the machine."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.reshape(*values.shape[:2], -1)


# Pictures
# ----------------------------------------------------------------------------------------------------


def _from_pil(image: Image.Image, name: str) -> LabelRaster:
    """The numbers of a picture of Pillow; those of an opened file are to be as they are stored."""
    file = getattr(image, "fp", None)
    storage = None
    if file is not None and not file.closed and image.format in ("PNG", "TIFF"):
        position = file.tell()
        storage = storage_of(file, name)
        file.seek(position)
    if storage is None:
        return _numbers_of(image, name)
    _check_keeps_numbers(storage, name)
    if not storage.has_exact_numbers:
        raise DataError(
            f"{name} is stored in a form of which Pillow would change the numbers; pass its path, or "
            "an array (H, W) or (H, W, K)"
        )
    return replace(_numbers_of(image, name), nodata=_nodata_of(storage, name))


def _numbers_of(image: Image.Image, name: str) -> LabelRaster:
    """The numbers that Pillow decodes."""
    if image.format not in (None, *_FORMATS):
        raise DataError(
            f"{name} is a {image.format} picture; labels are PNG, TIFF, BMP, GIF or .npy files, which "
            "keep every number: write them again where they were made, a converted file keeps the damage"
        )
    if image.mode not in _MODES:
        raise DataError(
            f"{name} is of the mode {image.mode!r}; expected one of {', '.join(_MODES)}: its bands "
            "are no numbers of a label"
        )
    num_frames = 1 if image.format == "TIFF" else getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise DataError(f"{name} has {num_frames} frames; expected one: save it as a file")
    palette = _palette_of(image)
    transparent = image.info.get("transparency")
    values = _native(np.asarray(upright(image)))
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    is_hidden = None
    if image.mode in _WITH_ALPHA:
        is_hidden = _hidden_by(values[..., -1], name)
        values = values[..., :-1]
    elif transparent is not None and palette is None:
        colour = np.asarray(transparent)  # of a PNG: one number, or red, green and blue
        is_hidden = (values == colour).all(axis=2)
    return LabelRaster(name, values, is_hidden, palette=palette)


def _palette_of(image: Image.Image) -> dict[int, Colour] | None:
    if image.mode not in _WITH_PALETTE:
        return None
    numbers = image.getpalette("RGB") or []
    return {i: tuple(numbers[3 * i : 3 * i + 3]) for i in range(len(numbers) // 3)}


# Files that rasterio reads, and what their headers state
# ----------------------------------------------------------------------------------------------------


def _from_rasterio(path: Path, storage: Storage) -> LabelRaster:
    orientation = None
    if storage.driver == "PNG":
        orientation = read_picture(path, lambda opened, _: stated_orientation(opened), "label")
    bands = read_bands(path, storage, "label", orientation)
    values = np.ascontiguousarray(bands.transpose(1, 2, 0))
    if not storage.has_alpha:
        return LabelRaster(str(path), values)
    return LabelRaster(str(path), values[..., :-1], _hidden_by(values[..., -1], str(path)))


def _check_keeps_numbers(storage: Storage, name: str) -> None:
    if storage.is_lossy:
        raise DataError(
            f"{name} is a TIFF compressed as a photo, which changes numbers; expected LZW, Deflate or "
            "none"
        )
    if storage.is_converted:
        raise DataError(
            f"{name} is a TIFF of converted colours, such as CMYK; expected numbers, a palette or RGB"
        )


def _nodata_of(storage: Storage, name: str) -> float | None:
    """The number of the tag GDAL_NODATA; None = there is none, or it is NaN."""
    if not storage.nodata:
        return None
    try:
        number = float(storage.nodata)
    except ValueError:
        raise DataError(
            f"{name}: the tag GDAL_NODATA is {storage.nodata!r}; expected one number"
        ) from None
    return None if np.isnan(number) else number


def _hidden_by(alpha: Raw, name: str) -> Raw | None:
    """The transparent pixels; None if there are none."""
    opaque = np.iinfo(alpha.dtype).max
    between = alpha[(alpha != 0) & (alpha != opaque)]
    if between.size:
        raise DataError(
            f"{name} has {between.size} half transparent pixels (alpha {between.min()}); expected 0 "
            f"(no label) or {opaque}: save it without alpha"
        )
    return alpha == 0 if (alpha == 0).any() else None
