"""Label files: the numbers that a raster stores, and the pixels that it marks as unlabelled.

Pillow decodes PNG and TIFF. Some kinds of numbers it scales, inverts, cuts, byte-swaps or drops
without an error. The tags of a file tell which; such a file is refused here, one message per cause.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinoneck.atomic import open_regular
from dinoneck.data.decoding import as_list, read_picture, upright
from dinoneck.errors import DataError, counted

Raw = np.ndarray[Any, Any]
Colour = tuple[int, ...]

AS_ARRAY = "read it with a raster library and pass an array (H, W) or (H, W, K)"

# GDAL's private TIFF tags, https://gdal.org/en/stable/drivers/raster/gtiff.html
_GDAL_METADATA = 42112
_GDAL_NODATA = 42113

# values of the TIFF tags, TIFF 6.0
_MIN_IS_WHITE = 0
_MIN_IS_BLACK = 1
_PALETTE = 3
_STORED_AS_THEY_ARE = (_MIN_IS_BLACK, 2, _PALETTE, 5)  # grey, RGB, palette, CMYK
_UNSIGNED = 1
_SIGNED = 2
_FLOAT = 3
_PREMULTIPLIED_ALPHA = 1
_ALPHA = 2
_BAND_AFTER_BAND = 2
_REDUCED_PAGE = 1
_MASK_PAGE = 4
_KIND_WORDS = {_UNSIGNED: "unsigned integers", _SIGNED: "signed integers", _FLOAT: "floats"}
# none, CCITT (3), LZW, Adobe and old Deflate, PackBits, LZMA, Zstandard
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 50000)
_UNCOMPRESSED = 1
_LOSSY_NAMES = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP"}
# (kind, bits) of one band that Pillow reads without a change
_READABLE = (
    (_UNSIGNED, 1),
    (_UNSIGNED, 8),
    (_UNSIGNED, 12),
    (_UNSIGNED, 16),
    (_UNSIGNED, 32),
    (_SIGNED, 8),
    (_SIGNED, 16),
    (_SIGNED, 32),
    (_FLOAT, 32),
)
_READABLE_INDICES = ((_UNSIGNED, 1), (_UNSIGNED, 2), (_UNSIGNED, 4), (_UNSIGNED, 8))
_MOST_PAGES = 1000  # a file of more is no label with overviews, and a loop of pages ends

_LARGEST_SIDECAR = 1 << 20  # bytes of an .aux.xml file; GDAL's are a few kilobytes
_NOT_A_NUMBER = re.compile(r"^[+-]?(nan|1\.#q?nan|1\.#ind)", re.IGNORECASE)
# float32's lowest value in any number of digits; GDAL and ArcGIS write 6 to 20 of them
_NEAR_LOWEST = 3.4028e38
# an array (K, H, W) of a raster library has at most so many bands and at least such sides
_FEW_BANDS = 4
_SHORT_SIDE = 16


@dataclass(frozen=True)
class FileNodata:
    """What a file says of pixels without a label.

    Attributes:
        values: one for all bands, or one per band; NaN = none.
        source: what messages call the place, such as ``the tag GDAL_NODATA``.
        removal: how to remove it.
    """

    values: tuple[float, ...]
    source: str
    removal: str

    def pixels(self, values: Raw) -> Raw:
        """Return where any band of ``values`` (H, W, K) is marked, (H, W) bool."""
        marked = np.zeros(values.shape[:2], bool)
        for band in range(values.shape[2]):
            number = self.values[band] if len(self.values) > 1 else self.values[0]
            marked |= equals(values[..., band], number)
        return marked

    def words(self) -> str:
        """Return the values as text, such as ``-9999``."""
        distinct = dict.fromkeys(f"{value:.12g}" for value in self.values)
        return ", ".join(distinct)

    def contradiction(self, nodata: Sequence[float]) -> str:
        """Return that ``nodata`` names other values, and what to do."""
        passed = ", ".join(f"{value:.12g}" for value in nodata)
        return (
            f"{self.source} marks {self.words()} as unlabelled, and nodata is {passed}; name all "
            f"of them (nodata=({passed}, {self.words()})), or {self.removal} if {self.words()} is "
            "a label"
        )


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
        palette: index -> colour; None = the values are no indices of a palette.
        bits: per value, as stored.
        scaling: the file's rule from stored numbers to quantities, in words; "" = none.
    """

    name: str
    values: Raw
    alpha: Raw | None = None
    is_hidden: Raw | None = None
    nodata: FileNodata | None = None
    palette: Mapping[int, Colour] | None = None
    bits: int = 0
    scaling: str = ""

    def bands(self) -> Raw:
        """Return the values (H, W, K) with the alpha band, if there is one, as the last."""
        if self.alpha is None:
            return self.values
        return np.concatenate([self.values, self.alpha[..., None]], axis=2)

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


def equals(values: Raw, number: float) -> Raw:
    """Return where ``values`` have the number, as far as their dtype can hold it.

    A number beyond float32, GDAL's habit for float64 data, is any of float32's lowest values.
    """
    if values.dtype.kind != "f":
        # such as -9999 for unsigned bytes: no pixel has it
        if not np.isfinite(number) or number != np.floor(number):
            return np.zeros(values.shape, bool)
        return np.asarray(values == int(number))
    if abs(number) >= _NEAR_LOWEST and values.dtype != np.float64:
        if number < 0:
            return np.asarray(values <= -_NEAR_LOWEST)
        return np.asarray(values >= _NEAR_LOWEST)
    return np.asarray(values == values.dtype.type(number))


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
        raster = _from_array(label, f"label {number} (an array)")
    else:
        raise DataError(
            f"label {number} is {type(label).__name__}; expected a path, a PIL image or an array "
            "(H, W) or (H, W, K)"
        )
    height, width = raster.values.shape[:2]
    if size is not None and (height, width) != tuple(size):
        hint = "a label has the size of its upright image"
        if raster.values.shape[1:] == tuple(size):
            hint = "its axes seem to be bands, rows, columns: move the first to the end"
        raise DataError(
            f"{raster.name} is {height}x{width} px (height x width), its image is "
            f"{size[0]}x{size[1]} px; {hint}"
        )
    return raster


def _read_file(path: Path) -> LabelRaster:
    mask_file = path.with_name(f"{path.name}.msk")
    if mask_file.exists():
        raise DataError(
            f"{path} has a mask of its valid pixels in {mask_file.name}, which is not read; write "
            f"them as a nodata value (gdal_translate -a_nodata), or {AS_ARRAY}"
        )
    try:
        raster = read_picture(path, _from_pil, "label")
    except DataError:
        reason = _unreadable_tiff(path)
        if reason:
            raise DataError(f"{path} {reason}") from None
        raise
    return _with_sidecar(raster, path)


def _from_array(array: Raw, name: str) -> LabelRaster:
    is_real = array.dtype.kind in "buif"
    if not is_real or array.ndim not in (2, 3) or not array.size:
        raise DataError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; expected real numbers "
            "(H, W) or (H, W, K)"
        )
    if array.ndim == 3:
        first, second, third = array.shape
        if first <= _FEW_BANDS and min(second, third) >= _SHORT_SIDE:
            raise DataError(
                f"{name} has shape {array.shape}, which seems to be (bands, height, width); expected "
                "(H, W) or (H, W, K): move the first axis to the end (np.moveaxis(label, 0, -1))"
            )
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
        bits=1 if array.dtype.kind == "b" else 8 * array.dtype.itemsize,
    )


def _from_pil(image: Image.Image, name: str) -> LabelRaster:
    """The numbers (H, W, K) as they are stored in the file, turned upright."""
    if image.format not in (None, "PNG", "TIFF"):
        raise DataError(
            f"{name} is a {image.format} picture; labels are PNG or TIFF, which keep every number"
        )
    layout = None
    has_alpha = image.mode in ("LA", "PA", "RGBA")
    nodata = None
    scaling = ""
    if image.format == "TIFF":
        tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
        layout = TiffLayout.of(tags)
        problem = layout.problem()
        if problem:
            raise DataError(f"{name} {problem}")
        _check_pages(image, name)
        has_alpha = layout.has_alpha
        nodata = _tag_nodata(tags, name)
        scaling = _scaling(tags)
    else:
        _check_png(image, name)
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    palette = _palette_of(image)
    bits = 1 if image.mode == "1" else 0
    values = np.asarray(upright(image))
    values = values.reshape(*values.shape[:2], -1)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if layout is not None:
        if values.shape[2] != layout.bands:
            raise DataError(
                f"{name} has {layout.bands} bands, of which Pillow reads {values.shape[2]}; "
                f"{AS_ARRAY}"
            )
        values = layout.restore(values)
    alpha = None
    if has_alpha:
        alpha = values[..., -1]
        values = values[..., :-1]
    is_hidden = None
    if transparent is not None and palette is None:
        is_hidden = _has_colour(values, transparent)
    if nodata is not None and len(nodata.values) not in (1, values.shape[2]):
        raise DataError(
            f"{name}: {nodata.source} lists {len(nodata.values)} values for "
            f"{counted(values.shape[2], 'band')}; {nodata.removal}, or name one value"
        )
    return LabelRaster(
        name,
        values,
        alpha=alpha,
        is_hidden=is_hidden,
        nodata=nodata,
        palette=palette,
        bits=bits or 8 * values.dtype.itemsize,
        scaling=scaling,
    )


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


# PNG
# ----------------------------------------------------------------------------------------------------


def _check_png(image: Image.Image, name: str) -> None:
    """Refuse a PNG, or a PIL image without a file, of which Pillow changes the numbers."""
    stored = ""
    # the tile is gone once the image is decoded
    for tile in getattr(image, "tile", ()):
        stored = str(tile[3])
    if "L;2" in stored or "L;4" in stored:
        bits = 2 if "L;2" in stored else 4
        raise DataError(
            f"{name} stores {bits}-bit grey, which Pillow scales to 8 bits; save it as 8-bit grey "
            f"or a palette, or {AS_ARRAY}"
        )
    if ";16" in stored and not image.mode.startswith("I"):
        raise DataError(f"{name} has several bands of 16 bits, which Pillow cuts to 8; {AS_ARRAY}")
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(
            f"{name} has {image.n_frames} frames; expected one: "  # type: ignore[attr-defined]
            f"{AS_ARRAY}"
        )


def _has_colour(values: Raw, colour: Any) -> Raw:
    """Where the pixels have the transparent colour of a PNG, (H, W) bool."""
    if values.dtype.kind == "b":
        return np.asarray(values[..., 0] == bool(colour))
    return np.all(values == np.asarray(colour), axis=2)  # type: ignore[no-any-return]


def _palette_of(image: Image.Image) -> dict[int, Colour] | None:
    if image.mode not in ("P", "PA"):
        return None
    numbers = image.getpalette("RGB") or []
    colours = {}
    for index in range(len(numbers) // 3):
        colours[index] = tuple(numbers[3 * index : 3 * index + 3])
    return colours


# TIFF
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TiffLayout:
    """How the first page of a TIFF stores its numbers.

    Attributes:
        bands: per pixel, alpha included.
        bits: per number, the distinct ones.
        kind: 1 = unsigned integers, 2 = signed integers, 3 = floats.
        photometric: what the numbers mean; None = the tag is missing.
        extra: what the bands beyond grey or RGB mean.
        compression: 1 = none.
        is_band_after_band: the bands are not interleaved.
        is_big_endian: the byte order.
        is_sparse: some strips or tiles are not stored.
    """

    bands: int
    bits: tuple[int, ...]
    kind: int
    photometric: int | None
    extra: tuple[int, ...]
    compression: int
    is_band_after_band: bool
    is_big_endian: bool
    is_sparse: bool

    @classmethod
    def of(cls, tags: Any) -> TiffLayout:
        """Return the layout that the tags of a page describe."""
        bits = _numbers(tags, Base.BitsPerSample) or (1,)
        kinds = _numbers(tags, Base.SampleFormat) or (_UNSIGNED,)
        offsets = _numbers(tags, Base.StripOffsets) + _numbers(tags, Base.TileOffsets)
        return cls(
            bands=_number(tags, Base.SamplesPerPixel, 1),
            bits=tuple(sorted({*bits})),
            kind=kinds[0] if len({*kinds}) == 1 else 0,
            photometric=_number(tags, Base.PhotometricInterpretation, None),
            extra=_numbers(tags, Base.ExtraSamples),
            compression=_number(tags, Base.Compression, _UNCOMPRESSED),
            is_band_after_band=_number(tags, Base.PlanarConfiguration, 1) == _BAND_AFTER_BAND,
            is_big_endian=tags.prefix == b"MM",
            is_sparse=0 in offsets,
        )

    @property
    def has_alpha(self) -> bool:
        """Whether the last band is an alpha band."""
        return self.extra == (_ALPHA,)

    def words(self) -> str:
        """Return the kind of numbers, such as ``3 bands of 32-bit floats``."""
        bits = "/".join(map(str, self.bits))
        kind = _KIND_WORDS.get(self.kind, f"numbers (SampleFormat {self.kind})")
        return f"{counted(self.bands, 'band')} of {bits}-bit {kind}"

    def problem(self) -> str:
        """Return why Pillow would not give the numbers as they are stored; "" = it does."""
        if self.compression not in _LOSSLESS:
            codec = _LOSSY_NAMES.get(self.compression, f"method {self.compression}")
            return (
                f"is compressed by {codec}, which may change numbers; expected LZW, Deflate or "
                f"none: {AS_ARRAY} if they are exact"
            )
        if self.is_sparse:
            return (
                "is sparse: some of its strips or tiles are not stored; write it in full "
                f"(gdal_translate -co SPARSE_OK=FALSE), or {AS_ARRAY}"
            )
        is_palette = self.photometric == _PALETTE
        is_scaled = self.kind == _UNSIGNED and self.bits in ((2,), (4,))
        if self.bands == 1 and is_scaled and not is_palette:
            return (
                f"stores {self.bits[0]}-bit grey, which Pillow scales to 8 bits; save it with 8 "
                f"bits, or {AS_ARRAY}"
            )
        readable = _READABLE_INDICES if is_palette else _READABLE
        if self.bands == 1 and (len(self.bits) > 1 or (self.kind, self.bits[0]) not in readable):
            return f"holds {self.words()}, which Pillow does not read; {self._other_kind()}"
        if self.bands > 1 and (self.kind, self.bits) != (_UNSIGNED, (8,)):
            return (
                f"holds {self.words()}; Pillow reads several bands of 8-bit unsigned integers "
                f"alone: {AS_ARRAY}"
            )
        if self.photometric == _MIN_IS_WHITE and self.kind != _FLOAT:
            return (
                "says that 0 is white (PhotometricInterpretation 0), and programs disagree "
                "whether its numbers are inverted; write it with 0 as black, or "
                f"{AS_ARRAY}"
            )
        if self.photometric is None and self.bits[0] < 16:
            return (
                "lacks the tag PhotometricInterpretation, and Pillow would invert its numbers; "
                f"write it with 0 as black, or {AS_ARRAY}"
            )
        if self.photometric not in (None, _MIN_IS_WHITE, *_STORED_AS_THEY_ARE):
            return (
                "stores colours that are converted on reading (PhotometricInterpretation "
                f"{self.photometric}); {AS_ARRAY}"
            )
        if _PREMULTIPLIED_ALPHA in self.extra:
            return f"has numbers that are multiplied by an alpha band; {AS_ARRAY}"
        is_compressed = self.compression != _UNCOMPRESSED
        if self.is_big_endian and is_compressed and self._is_swapped:
            return (
                f"holds compressed big-endian numbers ({self.words()}), whose bytes Pillow swaps; "
                f"write it without compression or as little-endian, or {AS_ARRAY}"
            )
        if self.is_band_after_band and self.bands == 1 and self._is_misread_as_bands:
            return (
                f"stores its one band as one of several (PlanarConfiguration 2), and Pillow "
                f"misreads {self.words()} of this form; write it interleaved (gdal_translate -co "
                f"INTERLEAVE=PIXEL), or {AS_ARRAY}"
            )
        if self.is_band_after_band and self.bands > 1 and not self._is_colour:
            return (
                f"stores {self.bands} bands one after another (PlanarConfiguration 2), which "
                f"Pillow mixes up; write them interleaved, or {AS_ARRAY}"
            )
        return ""

    @property
    def _is_swapped(self) -> bool:
        """Whether Pillow reads the wrong byte order of compressed big-endian numbers."""
        return self.bits[0] > 16 or (self.bits[0] == 16 and self.kind == _SIGNED)

    @property
    def _is_misread_as_bands(self) -> bool:
        """Whether Pillow misreads one uncompressed band whose file calls it one of several.

        It decodes such a band by the first letter of the form, which is right for whole bytes, and
        for 32 bits in the byte order of the machine.
        """
        is_native = self.bits == (32,) and not self.is_big_endian
        is_whole = self.bits in ((1,), (8,)) and self.photometric != _PALETTE
        is_index = self.bits == (8,)
        return self.compression == _UNCOMPRESSED and not (is_native or is_whole or is_index)

    @property
    def _is_colour(self) -> bool:
        """Whether the bands are RGB, RGB with alpha, or CMYK, which Pillow reads in any order."""
        is_rgb = self.photometric == 2 and (self.bands, self.extra) in ((3, ()), (4, (_ALPHA,)))
        return is_rgb or (self.photometric == 5 and self.bands == 4)

    def _other_kind(self) -> str:
        kind = "Float32" if self.kind == _FLOAT else "Int32"
        return f"save it as {kind} (gdal_translate -ot {kind}), or {AS_ARRAY}"

    def restore(self, values: Raw) -> Raw:
        """Return the numbers with the sign that the file gives them, which Pillow does not know."""
        if self.kind == _UNSIGNED and values.dtype == np.int32 and self.bits == (32,):
            return np.ascontiguousarray(values).view(np.uint32)
        if self.kind == _SIGNED and values.dtype == np.uint8:
            return np.ascontiguousarray(values).view(np.int8)
        return values


def _numbers(tags: Any, tag: int) -> tuple[int, ...]:
    value = tags.get(tag)
    if value is None:
        return ()
    numbers = value if isinstance(value, tuple) else (value,)
    return tuple(int(number) for number in numbers)


def _number(tags: Any, tag: int, default: Any) -> Any:
    numbers = _numbers(tags, tag)
    return numbers[0] if numbers else default


def _unreadable_tiff(path: Path) -> str:
    """Why Pillow cannot read a TIFF, by its tags; "" = it is none, or they do not tell."""
    try:
        with open_regular(path) as file:
            first = next(_tiff_pages(file), None)
            if first is None:
                return ""
            layout = TiffLayout.of(first)
    except Exception:  # tags of a damaged file raise many kinds of errors
        return ""
    return layout.problem() or _unknown_form(path, layout)


def _unknown_form(path: Path, layout: TiffLayout) -> str:
    try:
        with open_regular(path) as file, Image.open(file):
            return ""
    except UnidentifiedImageError:
        order = "big-endian" if layout.is_big_endian else "little-endian"
        return f"holds {layout.words()}, {order}, which Pillow does not read; {AS_ARRAY}"
    except Exception:  # damaged, or too large to be opened
        return ""


def _tiff_pages(file: IO[bytes]) -> Iterator[ImageFileDirectory_v2]:
    """Yield the tags of each page."""
    file.seek(0)
    header = file.read(8)
    if not header.startswith((b"II", b"MM")) or len(header) < 8:
        return
    if header[2] == 43:  # BigTIFF
        header += file.read(8)
    tags = ImageFileDirectory_v2(header)
    offset = tags.next
    visited = {0}
    while offset not in visited and len(visited) <= _MOST_PAGES:
        visited.add(offset)
        file.seek(offset)
        tags = ImageFileDirectory_v2(header)
        tags.load(file)
        yield tags
        offset = tags.next


def _check_pages(image: Image.Image, name: str) -> None:
    """Refuse further pages of a TIFF that are no overviews."""
    file = getattr(image, "fp", None)
    if file is None or file.closed:
        return
    position = file.tell()
    first_size = None
    for tags in _tiff_pages(file):
        size = _page_size(tags)
        kind = _number(tags, Base.NewSubfileType, 0)
        if first_size is None:
            first_size = size
        elif kind & _MASK_PAGE:
            raise DataError(
                f"{name} has a page that masks its valid pixels, which is not read; write them as "
                f"a nodata value (gdal_translate -a_nodata), or {AS_ARRAY}"
            )
        elif not kind & _REDUCED_PAGE and not _is_smaller(size, first_size):
            raise DataError(f"{name} has several pages; expected one: {AS_ARRAY}")
    file.seek(position)


def _is_smaller(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether a page is smaller than the first, as overviews are."""
    return size != whole and size[0] <= whole[0] and size[1] <= whole[1]


def _page_size(tags: Any) -> tuple[int, int]:
    return _number(tags, Base.ImageLength, 0), _number(tags, Base.ImageWidth, 0)


# What a file says of its numbers
# ----------------------------------------------------------------------------------------------------


def _tag_nodata(tags: Mapping[int, Any], name: str) -> FileNodata | None:
    stored = tags.get(_GDAL_NODATA)
    if stored is None:
        return None
    if isinstance(stored, tuple):
        text = " ".join(map(str, stored))
    elif isinstance(stored, bytes):
        text = stored.decode("ascii", errors="replace")
    else:
        text = str(stored)
    words = text.replace("\0", " ").split()
    if not words:
        return None
    return _nodata(
        words,
        name,
        source="the tag GDAL_NODATA",
        removal="remove the tag (gdal_edit.py -unsetnodata)",
    )


def _nodata(words: Sequence[str], name: str, *, source: str, removal: str) -> FileNodata:
    numbers = []
    for word in words:
        try:
            numbers.append(float("nan") if _NOT_A_NUMBER.match(word) else float(word))
        except ValueError:
            raise DataError(
                f"{name}: {source} holds {word[:40]!r}, which is no number; write one, or {removal}"
            ) from None
    return FileNodata(tuple(numbers), source, removal)


def _with_sidecar(raster: LabelRaster, path: Path) -> LabelRaster:
    """The raster with the nodata values that GDAL noted next to the file, in its .aux.xml."""
    sidecar = path.with_name(f"{path.name}.aux.xml")
    if not sidecar.exists():
        return raster
    try:
        with open_regular(sidecar) as file:
            text = file.read(_LARGEST_SIDECAR).decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"{sidecar} cannot be read: {error}; remove it or make it readable"
        ) from error
    words = ["nan"] * raster.values.shape[2]
    for number, content in re.findall(
        r'<PAMRasterBand band="(\d+)"[^>]*>(.*?)</PAMRasterBand>', text, re.DOTALL
    ):
        value = re.search(r"<NoDataValue[^>]*>([^<]*)</NoDataValue>", content)
        if value and 1 <= int(number) <= len(words):
            words[int(number) - 1] = value[1].strip()
    noted = _nodata(
        words,
        raster.name,
        source=f"its file {sidecar.name}",
        removal=f"remove NoDataValue from {sidecar.name}",
    )
    if all(np.isnan(noted.values)):
        return raster
    if raster.nodata is not None and {*raster.nodata.values} != {*noted.values}:
        raise DataError(
            f"{raster.name}: {raster.nodata.source} says {raster.nodata.words()}, {noted.source} "
            f"says {noted.words()}; {noted.removal}"
        )
    return replace(raster, nodata=raster.nodata or noted)


def _scaling(tags: Mapping[int, Any]) -> str:
    """The rule from stored numbers to quantities that GDAL or ImageJ noted, in words; "" = none."""
    factor = 1.0
    offset = 0.0
    gdal = tags.get(_GDAL_METADATA)
    if isinstance(gdal, str):
        factor = _found(r'role="scale"[^>]*>([^<]*)<', gdal, factor)
        offset = _found(r'role="offset"[^>]*>([^<]*)<', gdal, offset)
    description = tags.get(Base.ImageDescription)
    if isinstance(description, str) and description.startswith("ImageJ="):
        is_linear = re.search(r"^cf=0\s*$", description, re.MULTILINE)
        if is_linear:
            factor = _found(r"^c1=(\S+)", description, factor)
            offset = _found(r"^c0=(\S+)", description, offset)
    if (factor, offset) == (1.0, 0.0):
        return ""
    return f"stored * {factor:.9g} + {offset:.9g}"


def _found(pattern: str, text: str, default: float) -> float:
    found = re.search(pattern, text, re.MULTILINE)
    try:
        return float(found[1]) if found else default
    except ValueError:
        return default
