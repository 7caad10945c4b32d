"""Label files: the numbers that a raster stores, and the pixels that it marks as unlabelled.

TIFF files are read by tifffile, which gives the numbers of all bands as they are stored; others by
Pillow. Unlabelled are NaN, GDAL's nodata tag, alpha 0 and masked values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list
from dinoneck.images.orientation import turn, upright
from dinoneck.images.pixels import read_picture
from dinoneck.text import reason_of

Raw = np.ndarray[Any, Any]
Colour = tuple[int, ...]
TIFF = (".tif", ".tiff")
_WITH_ALPHA = ("LA", "PA", "RGBA")


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
        for number in numbers:
            marked |= (self.values == self.values.dtype.type(number)).any(axis=2)
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
    """Read one label; ``number`` is its place among others, for messages."""
    if isinstance(label, str | os.PathLike):
        path = Path(label)
        is_tiff = path.suffix.lower() in TIFF
        raster = _from_tiff(path) if is_tiff else read_picture(path, _from_pil, "label")
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
        turned = (
            ": was it drawn before EXIF turned the image?" if (width, height) == (*size,) else ""
        )
        raise DataError(
            f"{raster.name} is {height}x{width} px (height x width), its image is "
            f"{size[0]}x{size[1]} px; a label has the size of its upright image{turned}"
        )
    return raster


def _from_array(label: Any, name: str) -> LabelRaster:
    array = label.detach().cpu().numpy() if isinstance(label, Tensor) else label
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise DataError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers (H, W) or "
            "(H, W, K)"
        )
    is_hidden = None
    if np.ma.is_masked(array):
        is_hidden = np.ma.getmaskarray(array).reshape(*array.shape[:2], -1).any(axis=2)
    return LabelRaster(name, np.asarray(array).reshape(*array.shape[:2], -1), is_hidden)


def _from_pil(image: Image.Image, name: str) -> LabelRaster:
    palette = _palette_of(image)
    has_alpha = image.mode in _WITH_ALPHA
    values = np.asarray(upright(image))
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    is_hidden = None
    if has_alpha:
        is_hidden = _hidden_by(values[..., -1], name)
        values = values[..., :-1]
    return LabelRaster(name, values, is_hidden, palette=palette)


def _from_tiff(path: Path) -> LabelRaster:
    import tifffile

    if not path.is_file():
        raise DataError(f"there is no label {path}; check the folder and the file name")
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page in file.pages if not page.is_reduced]
            page = pages[0]
            values = page.asarray()
            axes = page.axes
            extras = page.extrasamples
            nodata = page.nodata if "GDAL_NODATA" in page.tags else None
            colours = page.colormap
            orientation = int(page.tags.valueof("Orientation") or 1)
            is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(
            f"label {path} cannot be decoded: {reason_of(error)}; replace it"
        ) from error
    if len(pages) > 1:
        raise DataError(f"{path} has {len(pages)} pages; expected one: pass an array")
    if is_inverted and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if axes.startswith("S"):  # band after band
        values = np.moveaxis(values, 0, -1)
    values = turn(values.reshape(*values.shape[:2], -1).transpose(2, 0, 1), orientation)
    values = np.ascontiguousarray(values.transpose(1, 2, 0))
    is_hidden = None
    if extras and int(extras[-1]) in (1, 2):  # alpha, premultiplied or not
        is_hidden = _hidden_by(values[..., -1], str(path))
        values = values[..., :-1]
    palette = None
    if colours is not None:
        palette = {index: (*map(int, colour),) for index, colour in enumerate(colours.T >> 8)}
    return LabelRaster(str(path), values, is_hidden, nodata, palette)


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


def _palette_of(image: Image.Image) -> dict[int, Colour] | None:
    if image.mode not in ("P", "PA"):
        return None
    numbers = image.getpalette("RGB") or []
    return {i: tuple(numbers[3 * i : 3 * i + 3]) for i in range(len(numbers) // 3)}
