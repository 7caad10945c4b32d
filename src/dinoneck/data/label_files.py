"""Label files: the numbers that a raster stores, and the pixels that it marks as unlabelled.

Pillow decodes them. A file of which it would change the numbers is refused, one message per cause:
:mod:`dinoneck.data.label_tiffs` knows those of TIFF files, :mod:`dinoneck.data.label_formats` the others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from dinoneck.data import label_formats, label_tiffs
from dinoneck.data.label_notes import (
    FileNodata,
    FileScale,
    equals,
    read_sidecar,
    tag_nodata,
    tag_scale,
)
from dinoneck.data.label_tiffs import AS_ARRAY, Raw, unreadable_tiff
from dinoneck.errors import DataError
from dinoneck.images import image_tiffs
from dinoneck.images.decoding import as_list
from dinoneck.images.orientation import upright
from dinoneck.images.pixels import read_picture
from dinoneck.images.pnm import range_of
from dinoneck.images.tiff import MASK_PAGE, TiffLayout, is_alpha_open, number_of, problem_of_pages
from dinoneck.text import counted

Colour = tuple[int, ...]

# an array (K, H, W) of a raster library has at most so many bands and at least such sides
_FEW_BANDS = 4
_SHORT_SIDE = 16
_FLOATS_OF_NUMPY = (torch.float16, torch.float32, torch.float64)
_FORMATS = "PNG, TIFF, BMP, GIF or PGM"


@dataclass(frozen=True, eq=False)
class LabelRaster:
    """One label as it is stored, turned upright.

    Attributes:
        name: what messages call it.
        values: (H, W, K), numbers of any real dtype.
        alpha: (H, W), as it is stored, 0 = transparent; None = there is no alpha band.
        is_hidden: (H, W) bool, pixels of which the file or the array says that they are none;
            None = it says nothing.
        nodata: values that the file marks as unlabelled.
        palette: index -> colour; of a file of 1 bit black and white, whose values are numbers all
            the same. None = there is none.
        is_bool: the values are stored as one bit each.
        is_colour: the bands are red, green and blue of a picture.
        scale: what the file says of the quantities that its numbers stand for; None = nothing.
    """

    name: str
    values: Raw
    alpha: Raw | None = None
    is_hidden: Raw | None = None
    nodata: FileNodata | None = None
    palette: Mapping[int, Colour] | None = None
    is_bool: bool = False
    is_colour: bool = False
    scale: FileScale | None = None

    @functools.cached_property
    def is_grey_picture(self) -> bool:
        """Whether a picture of three bands has equal ones, as a grey one that was saved in colours."""
        return self.is_colour and bool((self.values == self.values[..., :1]).all())

    def unlabelled(self, nodata: Sequence[float]) -> Raw:
        """Return which pixels have no label, (H, W) bool.

        These are NaN, transparent or masked pixels, those of which a band has one of the values
        ``nodata``, and those that the file marks.

        Raises:
            DataError: if the file marks pixels that ``nodata``, which is not empty, does not.
        """
        marked = np.zeros(self.values.shape[:2], bool)
        for number in nodata:
            marked |= equals(self.values, number).any(axis=2)
        if self.nodata is not None:
            marked_by_file = self.nodata.pixels(self.values)
            if nodata and (marked_by_file & ~marked).any():
                raise DataError(f"{self.name}: {self.nodata.contradiction(nodata)}")
            marked |= marked_by_file
        if self.values.dtype.kind == "f":
            marked |= np.isnan(self.values).any(axis=2)
        if self.is_hidden is not None:
            marked |= self.is_hidden
        return marked


# Reading
# ----------------------------------------------------------------------------------------------------


def read_labels(
    labels: Any, image_sizes: Sequence[Sequence[int]] | None = None
) -> Iterator[LabelRaster]:
    """Read label after label and compare each with its image's size.

    Args:
        labels: one label or several: paths, PIL images or arrays.
        image_sizes: (height, width) in pixels of each upright image; None compares nothing.

    Raises:
        DataError: if a label cannot be read without a change of its numbers, naming it, or has
            another size than its image.
    """
    singles = as_list(labels, "labels")
    sizes = sizes_of(singles, image_sizes)
    for number, (label, size) in enumerate(zip(singles, sizes, strict=True)):
        yield read_label(label, size, number)


def sizes_of(
    labels: Sequence[Any], image_sizes: Sequence[Sequence[int]] | None
) -> Sequence[Sequence[int] | None]:
    """Return the size of each label's image; None = it is not compared.

    Raises:
        DataError: if there are no labels, or another number of sizes.
    """
    if not labels:
        raise DataError("there are no labels; expected one or more")
    if image_sizes is None:
        return [None] * len(labels)
    if len(image_sizes) != len(labels):
        raise DataError(
            f"there are {len(labels)} labels and {len(image_sizes)} image sizes; expected one for "
            "each"
        )
    return image_sizes


def read_label(label: Any, size: Sequence[int] | None = None, number: int = 0) -> LabelRaster:
    """Read one label; ``number`` is its place among others, for messages.

    Raises:
        DataError: as :func:`read_labels`.
    """
    if isinstance(label, str | os.PathLike):
        raster = _read_file(Path(label))
    elif isinstance(label, Image.Image):
        raster = _from_pil(label, f"label {number} (a PIL image)")
    elif isinstance(label, np.ndarray):
        raster = _from_array(label, f"label {number} (an array)", size)
    elif isinstance(label, Tensor):
        raster = _from_array(_array_of(label), f"label {number} (a tensor)", size)
    else:
        raise DataError(
            f"label {number} is {type(label).__name__}; expected a path, a PIL image or an array "
            "(H, W) or (H, W, K)"
        )
    if size is not None:
        _check_size(raster, size)
    return raster


def _check_size(raster: LabelRaster, size: Sequence[int]) -> None:
    """Raise a DataError if a label has another size than its image, (height, width) in pixels."""
    height, width = raster.values.shape[:2]
    if (height, width) == tuple(size):
        return
    hint = "a label has the size of its upright image"
    if raster.values.shape[1:] == tuple(size):
        hint = "its axes seem to be bands, rows, columns: move the first to the end"
    elif (width, height) == tuple(size):
        hint += ": was it drawn on the stored pixels of an image that EXIF turns? Turn it too"
    raise DataError(
        f"{raster.name} is {height}x{width} px (height x width), its image is "
        f"{size[0]}x{size[1]} px; {hint}"
    )


def _read_file(path: Path) -> LabelRaster:
    label_formats.check_path(path)
    mask_file = Path(f"{path}.msk")
    if mask_file.exists():
        raise DataError(
            f"{path} has a mask of its valid pixels in {mask_file.name}, which is not read; write "
            f"them as a nodata value (gdal_translate -a_nodata), or {AS_ARRAY}"
        )
    try:
        raster = read_picture(path, _from_pil, noun="label", formats=_FORMATS)
    except DataError:
        reason = unreadable_tiff(path)
        if reason:
            raise DataError(f"{path} {reason}") from None
        raise
    sidecar = read_sidecar(path, raster.values.shape[2])
    _check_bands_of_nodata(sidecar.nodata, raster)
    if raster.nodata is not None and sidecar.nodata is not None:
        if not raster.nodata.agrees(sidecar.nodata):
            raise DataError(f"{path}: {_contradiction(raster.nodata, sidecar.nodata)}")
    if raster.scale is not None and sidecar.scale is not None:
        if not raster.scale.agrees(sidecar.scale):
            raise DataError(f"{path}: {_contradiction(raster.scale, sidecar.scale)}")
    return replace(
        raster,
        nodata=raster.nodata or sidecar.nodata,
        scale=raster.scale or sidecar.scale,
    )


def _contradiction(tag: FileNodata | FileScale, sidecar: FileNodata | FileScale) -> str:
    return (
        f"{tag.source} says {tag.words()}, {sidecar.source} says {sidecar.words()}; "
        f"{sidecar.removal}, or {tag.removal}"
    )


def _check_bands_of_nodata(nodata: FileNodata | None, raster: LabelRaster) -> None:
    """Raise a DataError if a file lists nodata values for another number of bands."""
    bands = raster.values.shape[2]
    if nodata is not None and len(nodata.values) not in (1, bands):
        raise DataError(
            f"{raster.name}: {nodata.source} lists {len(nodata.values)} values for "
            f"{counted(bands, 'band')}; {nodata.removal}, or name one value"
        )


def _array_of(tensor: Tensor) -> Raw:
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS_OF_NUMPY:
        tensor = tensor.float()
    return tensor.numpy()


def _from_array(array: Raw, name: str, size: Sequence[int] | None) -> LabelRaster:
    is_real = array.dtype.kind in "buif"
    if not is_real or array.ndim not in (2, 3) or not array.size:
        raise DataError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected real numbers "
            "(H, W) or (H, W, K)"
        )
    if array.ndim == 3 and (size is None or array.shape[:2] != tuple(size)):
        _check_axes(array.shape, name, is_size_known=size is not None)
    is_hidden: Raw | None = None
    if isinstance(array, np.ma.MaskedArray):
        mask: Raw = np.ma.getmaskarray(array)
        is_hidden = np.any(mask.reshape(*mask.shape[:2], -1), axis=2)
        array = np.ma.getdata(array)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return LabelRaster(
        name,
        native.reshape(*native.shape[:2], -1),
        is_hidden=is_hidden,
        is_bool=array.dtype.kind == "b",
    )


def _check_axes(shape: tuple[int, ...], name: str, *, is_size_known: bool) -> None:
    """Raise a DataError for an array of three axes whose first one seems to be that of bands or labels."""
    first, second, third = shape
    if min(second, third) < _SHORT_SIDE:
        return
    way_out = ""
    if not is_size_known:
        way_out = f", or pass image_sizes=[({first}, {second})] if that is its size"
    if first <= _FEW_BANDS:
        raise DataError(
            f"{name} has shape {shape}, which seems to be (bands, height, width); expected "
            f"(H, W) or (H, W, K): move the first axis to the end (np.moveaxis(label, 0, -1)){way_out}"
        )
    if first < third:
        raise DataError(
            f"{name} has shape {shape}, which seems to be {first} labels or bands of "
            f"{second}x{third} px; expected (H, W) or (H, W, K): pass a list of labels, or move "
            f"the first axis to the end{way_out}"
        )


def _from_pil(image: Image.Image, name: str) -> LabelRaster:
    """The numbers (H, W, K) as they are stored in the file, turned upright."""
    label_formats.check_file(image, name)
    if image.format == "TIFF":
        return _from_tiff(image, name)
    stored_range = range_of(image)
    scale = label_formats.scale_of(image)
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    palette = _palette_of(image)
    values = stored_range.restore(_values_of(image))
    alpha = None
    if image.mode in ("LA", "PA", "RGBA"):
        alpha = values[..., -1]
        values = values[..., :-1]
    is_hidden = None
    if transparent is not None and image.mode not in ("P", "PA"):
        is_hidden = _has_colour(values, transparent)
    return LabelRaster(
        name,
        values,
        alpha=alpha,
        is_hidden=is_hidden,
        palette=palette,
        is_bool=image.mode == "1",
        is_colour=image.mode in ("RGB", "RGBA"),
        scale=scale,
    )


def _from_tiff(image: Image.Image, name: str) -> LabelRaster:
    tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
    layout = TiffLayout.of(tags)
    problem = label_tiffs.problem_of(layout)
    if problem:
        raise DataError(f"{name} {problem}")
    _check_pages(image, name)
    nodata = tag_nodata(tags, name)
    palette = _palette_of(image)
    values = _values_of(image)
    if values.shape[2] != layout.bands:
        raise DataError(
            f"{name} has {layout.bands} bands, of which Pillow reads {values.shape[2]}; {AS_ARRAY}"
        )
    values = label_tiffs.restore(layout, values)
    has_alpha = label_tiffs.has_alpha(layout)
    if is_alpha_open(layout):
        has_alpha = bool((values[..., -1] == 255).all())
        if not has_alpha:
            raise DataError(
                f"{name} has a fourth band beside red, green and blue, and does not say whether it "
                f"is alpha (ExtraSamples); write the tag, or {AS_ARRAY}"
            )
    alpha = None
    if has_alpha:
        alpha = values[..., -1]
        values = values[..., :-1]
    raster = LabelRaster(
        name,
        values,
        alpha=alpha,
        nodata=nodata,
        palette=palette,
        is_bool=image.mode == "1",
        is_colour=image.mode in ("RGB", "RGBA"),
        scale=tag_scale(tags, values.shape[2], name),
    )
    _check_bands_of_nodata(nodata, raster)
    return raster


def _values_of(image: Image.Image) -> Raw:
    """The numbers (H, W, K), upright, in the byte order of the machine."""
    values = np.asarray(upright(image))
    values = values.reshape(*values.shape[:2], -1)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def without_alpha(raster: LabelRaster) -> LabelRaster:
    """Return the raster with transparent pixels unlabelled, and no alpha band.

    Raises:
        DataError: if a pixel is half transparent.
    """
    if raster.alpha is None:
        return raster
    opaque = 1 if raster.alpha.dtype.kind == "b" else np.iinfo(raster.alpha.dtype).max
    is_transparent = raster.alpha == 0
    is_between = ~is_transparent & (raster.alpha != opaque)
    if is_between.any():
        raise DataError(
            f"{raster.name} has {counted(int(is_between.sum()), 'half transparent pixel')} (alpha "
            f"{raster.alpha[is_between].min()}); expected 0 (no label) or {opaque}: save it "
            "without alpha"
        )
    hidden = is_transparent
    if raster.is_hidden is not None:
        hidden = is_transparent | raster.is_hidden
    return replace(raster, alpha=None, is_hidden=hidden if hidden.any() else None)


def _has_colour(values: Raw, colour: Any) -> Raw:
    """Where the pixels have the transparent colour of a PNG, (H, W) bool."""
    if values.dtype.kind == "b":
        return np.asarray(values[..., 0] == bool(colour))
    return np.all(values == np.asarray(colour), axis=2)  # type: ignore[no-any-return]


def _palette_of(image: Image.Image) -> dict[int, Colour] | None:
    if image.mode == "1":
        return dict(label_formats.BLACK_AND_WHITE)
    if image.mode not in ("P", "PA"):
        return None
    numbers = image.getpalette("RGB") or []
    colours = {}
    for index in range(len(numbers) // 3):
        colours[index] = tuple(numbers[3 * index : 3 * index + 3])
    return colours


# Pages of TIFF files
# ----------------------------------------------------------------------------------------------------


def _check_pages(image: Image.Image, name: str) -> None:
    """Refuse further pages of a TIFF that are no overviews."""
    file = getattr(image, "fp", None)
    if file is None or file.closed:
        return
    pages = image_tiffs.pages_of(image)
    for number, tags in enumerate(pages):
        if number > 0 and number_of(tags, Base.NewSubfileType, 0) & MASK_PAGE:
            raise DataError(
                f"{name} has a page that masks its valid pixels, which is not read; write them as "
                f"a nodata value (gdal_translate -a_nodata), or {AS_ARRAY}"
            )
    problem = problem_of_pages(pages)
    if problem:
        raise DataError(f"{name} {problem}; expected one page: {AS_ARRAY}")
