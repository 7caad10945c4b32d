"""How a TIFF file stores its numbers, and which kinds of it Pillow reads as they are.

Some kinds of numbers Pillow scales, inverts, cuts, byte-swaps or drops without an error. The tags
of a page tell which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinoneck.atomic import open_regular
from dinoneck.errors import counted

Raw = np.ndarray[Any, Any]

AS_ARRAY = "read it with a raster library and pass an array (H, W) or (H, W, K)"

# values of the TIFF tags, TIFF 6.0
_MIN_IS_WHITE = 0
_MIN_IS_BLACK = 1
_RGB = 2
_PALETTE = 3
_CMYK = 5
_STORED_AS_THEY_ARE = (_MIN_IS_BLACK, _RGB, _PALETTE, _CMYK)
_UNSIGNED = 1
_SIGNED = 2
_FLOAT = 3
_PREMULTIPLIED_ALPHA = 1
_ALPHA = 2
_ALPHA_OF_COREL_DRAW = 999
_BAND_AFTER_BAND = 2
REDUCED_PAGE = 1
MASK_PAGE = 4
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
            bands=number_of(tags, Base.SamplesPerPixel, 1),
            bits=tuple(sorted({*bits})),
            kind=kinds[0] if len({*kinds}) == 1 else 0,
            photometric=number_of(tags, Base.PhotometricInterpretation, None),
            extra=_numbers(tags, Base.ExtraSamples),
            compression=number_of(tags, Base.Compression, _UNCOMPRESSED),
            is_band_after_band=number_of(tags, Base.PlanarConfiguration, 1) == _BAND_AFTER_BAND,
            is_big_endian=tags.prefix == b"MM",
            is_sparse=0 in offsets,
        )

    @property
    def has_alpha(self) -> bool:
        """Whether the last band is an alpha band."""
        return self.extra in ((_ALPHA,), (_ALPHA_OF_COREL_DRAW,))

    @property
    def is_alpha_open(self) -> bool:
        """Whether a fourth band may be alpha, since the file does not say what it is."""
        return self.photometric == _RGB and self.bands == 4 and not self.extra

    def words(self) -> str:
        """Return the kind of numbers, such as ``3 bands of 32-bit floats``."""
        bits = "/".join(map(str, self.bits))
        kind = _KIND_WORDS.get(self.kind, f"numbers (SampleFormat {self.kind})")
        return f"{counted(self.bands, 'band')} of {bits}-bit {kind}"

    def problem(self) -> str:
        """Return why Pillow would not give the numbers as they are stored; "" = it does."""
        return (
            self._storage_problem()
            or self._kind_problem()
            or self._meaning_problem()
            or self._order_problem()
        )

    def _storage_problem(self) -> str:
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
        return ""

    def _kind_problem(self) -> str:
        if self.bands > 1:
            if (self.kind, self.bits) == (_UNSIGNED, (8,)):
                return ""
            return (
                f"holds {self.words()}; Pillow reads several bands of 8-bit unsigned integers "
                f"alone: {AS_ARRAY}"
            )
        is_palette = self.photometric == _PALETTE
        if self.kind == _UNSIGNED and self.bits in ((2,), (4,)) and not is_palette:
            return (
                f"stores {self.bits[0]}-bit grey, which Pillow scales to 8 bits; save it with 8 "
                f"bits, or {AS_ARRAY}"
            )
        readable = _READABLE_INDICES if is_palette else _READABLE
        if len(self.bits) > 1 or (self.kind, self.bits[0]) not in readable:
            kind = "Float32" if self.kind == _FLOAT else "Int32"
            return (
                f"holds {self.words()}, which Pillow does not read; save it as {kind} "
                f"(gdal_translate -ot {kind}), or {AS_ARRAY}"
            )
        return ""

    def _meaning_problem(self) -> str:
        # no program inverts floats
        if self.photometric == _MIN_IS_WHITE and self.kind != _FLOAT:
            return (
                "says that 0 is white (PhotometricInterpretation 0), and programs disagree "
                f"whether its numbers are inverted; write it with 0 as black, or {AS_ARRAY}"
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
        return ""

    def _order_problem(self) -> str:
        is_compressed = self.compression != _UNCOMPRESSED
        if self.is_big_endian and is_compressed and self._is_swapped:
            return (
                f"holds compressed big-endian numbers ({self.words()}), whose bytes Pillow swaps; "
                f"write it without compression or as little-endian, or {AS_ARRAY}"
            )
        if not self.is_band_after_band:
            return ""
        if self.bands == 1 and self._is_misread_as_bands:
            return (
                "stores its one band as one of several (PlanarConfiguration 2), and Pillow "
                f"misreads {self.words()} of this form; write it interleaved (gdal_translate -co "
                f"INTERLEAVE=PIXEL), or {AS_ARRAY}"
            )
        if self.bands > 1 and not self._is_colour:
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
        is_rgb = self.photometric == _RGB and (self.bands, self.extra) in ((3, ()), (4, (_ALPHA,)))
        return is_rgb or (self.photometric == _CMYK and self.bands == 4)

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


def number_of(tags: Any, tag: int, default: Any) -> Any:
    """Return the first number of a tag; the default where the tag is missing."""
    numbers = _numbers(tags, tag)
    return numbers[0] if numbers else default


def unreadable_tiff(path: Path) -> str:
    """Return why Pillow cannot read a file, by its tags; "" = it is no TIFF, or they do not tell."""
    try:
        with open_regular(path) as file:
            first = next(tiff_pages(file), None)
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


def tiff_pages(file: IO[bytes]) -> Iterator[ImageFileDirectory_v2]:
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
