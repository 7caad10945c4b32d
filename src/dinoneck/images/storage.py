"""How TIFF and PNG files store their numbers: which of them Pillow gives unchanged, and rasterio for the others.

The header alone decides, so a file gives the same numbers with every set of installed packages: what
needs rasterio is refused without it. No torch is imported.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.images.orientation import TRANSPOSES, UPRIGHT, turn
from dinoneck.text import counted, reason_of

Array = np.ndarray[Any, Any]

# SampleFormat of TIFF 6.0
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
# PhotometricInterpretation
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_UNKNOWN = -1
_UNCOMPRESSED = 1
_LOSSY_CODECS = (6, 7, 33003, 33005, 34712, 34887, 50001, 50002)  # JPEG, JPEG 2000, LERC, WebP, XL
_INTERLEAVED = 1  # PlanarConfiguration
_REDUCED = 1  # NewSubfileType
_GDAL_NODATA = 42113
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory (OGC GeoTIFF 1.1) and
# RPCCoefficient (of NITF and GDAL)
_POSITION_TAGS = (33550, 33922, 34264, 34735, 50844)
_IMAGE_DEPTH = 32997
_MOST_PAGES = 1000
_PREMULTIPLIED, _ALPHA = 1, 2  # ExtraSamples
_BYTE = 8
_NUMBERS = (_UNKNOWN, _MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE)

# one band: (PhotometricInterpretation, SampleFormat, bits) of which Pillow gives the numbers as stored
_EXACT_BANDS = (
    (_MIN_IS_BLACK, _UNSIGNED, 1),
    (_MIN_IS_BLACK, _UNSIGNED, 8),
    (_MIN_IS_BLACK, _UNSIGNED, 16),
    (_MIN_IS_BLACK, _SIGNED, 16),
    (_MIN_IS_BLACK, _SIGNED, 32),
    (_MIN_IS_BLACK, _FLOAT, 32),
    (_PALETTE, _UNSIGNED, 1),
    (_PALETTE, _UNSIGNED, 2),
    (_PALETTE, _UNSIGNED, 4),
    (_PALETTE, _UNSIGNED, 8),
)
# several bands of 8 bits: (PhotometricInterpretation, bands, ExtraSamples), likewise
_EXACT_COLOURS = (
    (_MIN_IS_BLACK, 2, (_ALPHA,)),
    (_RGB, 3, ()),
    (_RGB, 4, (_ALPHA,)),
)
# pictures of at most 8 bits that Pillow shows as they are meant
_PICTURES = (
    *_EXACT_COLOURS,
    (_MIN_IS_WHITE, 1, ()),
    (_MIN_IS_BLACK, 1, ()),
    (_PALETTE, 1, ()),
    (_CMYK, 4, ()),
    (_YCBCR, 3, ()),
    (_CIELAB, 3, ()),
    (_MIN_IS_BLACK, 2, (_PREMULTIPLIED,)),
    (_RGB, 4, (_PREMULTIPLIED,)),
)

_OPENING = threading.Lock()
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8s8x2I2B")  # signature; width, height, bits, colour type
_PNG_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_GREY, _PNG_GREY_ALPHA, _PNG_RGBA = 0, 4, 6


@dataclass(frozen=True)
class Storage:
    """How a TIFF or PNG file stores its pixels.

    Attributes:
        driver: of rasterio, ``GTiff`` or ``PNG``.
        size: (height, width) of the stored pixels.
        bands: with alpha.
        bits: of each number.
        has_alpha: the file says that the last band is alpha.
        is_white_zero: 0 is white.
        is_lossy: compressed by a method that may change numbers.
        is_converted: stored in other colours than those that are read, such as CMYK.
        orientation: by the EXIF tag of a TIFF; 1 of a PNG, whose tag Pillow reads.
        nodata: text of the tag GDAL_NODATA; None = there is none.
        has_position: tags of a GeoTIFF place the pixels on the ground.
        has_exact_numbers: Pillow gives the numbers as they are stored.
        is_shown_right: Pillow gives the colours that are meant.
    """

    driver: str
    size: tuple[int, int]
    bands: int
    bits: int
    has_alpha: bool
    is_white_zero: bool = False
    is_lossy: bool = False
    is_converted: bool = False
    orientation: int = UPRIGHT
    nodata: str | None = None
    has_position: bool = False
    has_exact_numbers: bool = True
    is_shown_right: bool = True


def read_storage(path: Path) -> Storage | None:
    """Return how a TIFF or PNG file stores its pixels; None of files of other formats.

    Raises:
        OSError: if the file cannot be opened.
        DataError: if a TIFF has several pages that are no overviews.
    """
    with open_regular(path) as file:
        return storage_of(file, str(path))


def storage_of(file: IO[bytes], name: str) -> Storage | None:
    """Return how an open TIFF or PNG file stores its pixels; see :func:`read_storage`."""
    file.seek(0)
    start = file.read(_PNG_HEADER.size)
    if start.startswith(_PNG_START) and len(start) == _PNG_HEADER.size:
        return _of_png(start)
    if start[:4] not in _TIFF_STARTS:
        return None
    try:
        return _of_tiff(file, name)
    except (ValueError, SyntaxError, LookupError, TypeError, struct.error) as error:
        raise DataError(
            f"{name} has a damaged TIFF header: {reason_of(error)}; replace it"
        ) from error


def _of_png(start: bytes) -> Storage:
    _, width, height, bits, colour_type = _PNG_HEADER.unpack(start)
    bands = _PNG_BANDS.get(colour_type, 1)
    is_deep = bands > 1 and bits > _BYTE  # Pillow drops the low bytes
    is_scaled = colour_type == _PNG_GREY and bits in (2, 4)  # by Pillow to 0 ... 255
    return Storage(
        driver="PNG",
        size=(height, width),
        bands=bands,
        bits=bits,
        has_alpha=colour_type in (_PNG_GREY_ALPHA, _PNG_RGBA),
        has_exact_numbers=not is_deep and not is_scaled,
        is_shown_right=not is_deep,
    )


def _of_tiff(file: IO[bytes], name: str) -> Storage:
    pages = [*_pages(file)]
    if not pages:
        raise ValueError("it has no page")
    num_pages = sum(not _number(tags, Base.NewSubfileType, 0) & _REDUCED for tags in pages)
    num_pages = max(num_pages, _number(pages[0], _IMAGE_DEPTH, 1))
    if num_pages > 1:
        raise DataError(f"{name} has {num_pages} pages; expected one: save each as a file")
    return _tiff_storage(pages[0])


def _pages(file: IO[bytes]) -> Iterator[ImageFileDirectory_v2]:
    """Yield the tags of each page."""
    file.seek(0)
    header = file.read(8)
    if b"+" in header[2:4]:  # BigTIFF
        header += file.read(8)
    offset = ImageFileDirectory_v2(header).next
    visited = {0}
    while offset not in visited and len(visited) <= _MOST_PAGES:
        visited.add(offset)
        file.seek(offset)
        tags = ImageFileDirectory_v2(header)
        tags.load(file)
        yield tags
        offset = tags.next


@dataclass(frozen=True)
class _TiffPage:
    """The tags of a page that tell how its numbers are stored; 0 where its bands differ."""

    bands: int
    bits: int
    sample_format: int
    photometric: int
    extra: tuple[int, ...]
    compression: int
    is_interleaved: bool
    is_big_endian: bool
    is_sparse: bool

    @classmethod
    def of(cls, tags: ImageFileDirectory_v2) -> _TiffPage:
        offsets = _numbers(tags, Base.StripOffsets, ()) + _numbers(tags, Base.TileOffsets, ())
        planar = _number(tags, Base.PlanarConfiguration, _INTERLEAVED)
        return cls(
            bands=_number(tags, Base.SamplesPerPixel, 1),
            bits=_common(_numbers(tags, Base.BitsPerSample, (1,))),
            sample_format=_common(_numbers(tags, Base.SampleFormat, (_UNSIGNED,))),
            photometric=_number(tags, Base.PhotometricInterpretation, _UNKNOWN),
            extra=_numbers(tags, Base.ExtraSamples, ()),
            compression=_number(tags, Base.Compression, _UNCOMPRESSED),
            is_interleaved=planar == _INTERLEAVED,
            is_big_endian=tags.prefix == b"MM",
            is_sparse=0 in offsets,
        )

    def has_exact_numbers(self) -> bool:
        """Whether Pillow gives the numbers as they are stored."""
        if not self._is_read_in_order():
            return False
        if self.bands == 1:
            return (self.photometric, self.sample_format, self.bits) in _EXACT_BANDS
        is_byte = self.sample_format == _UNSIGNED and self.bits == _BYTE
        return is_byte and (self.photometric, self.bands, self.extra) in _EXACT_COLOURS

    def is_shown_right(self) -> bool:
        """Whether Pillow gives the colours that are meant, or exact numbers."""
        if not self._is_read_in_order():
            return False
        if self.has_exact_numbers() or self._is_deep_negative():
            return True
        is_byte = self.sample_format == _UNSIGNED and 0 < self.bits <= _BYTE
        return is_byte and (self.photometric, self.bands, self.extra) in _PICTURES

    def _is_deep_negative(self) -> bool:
        """Grey of 16 bits in which 0 is white: Pillow gives the numbers, and they are inverted here."""
        kind = (self.photometric, self.sample_format, self.bits, self.bands)
        return kind == (_MIN_IS_WHITE, _UNSIGNED, 16, 1)

    def _is_read_in_order(self) -> bool:
        """Whether Pillow finds all bytes and bands where they are stored."""
        is_compressed = self.compression != _UNCOMPRESSED
        if self.is_sparse or (self.is_big_endian and is_compressed and self.bits > _BYTE):
            return False
        if self.is_interleaved:
            return True
        if self.bands == 1:
            is_read_raw = self.bits == _BYTE and self.photometric != _MIN_IS_WHITE
            return is_compressed or is_read_raw
        is_rgb = (self.photometric, self.bands, self.extra) in _EXACT_COLOURS[1:]
        return is_rgb and self.bits == _BYTE


def _tiff_storage(tags: ImageFileDirectory_v2) -> Storage:
    page = _TiffPage.of(tags)
    orientation = _number(tags, Base.Orientation, UPRIGHT)
    nodata = tags.get(_GDAL_NODATA)
    return Storage(
        driver="GTiff",
        size=(_number(tags, Base.ImageLength, 0), _number(tags, Base.ImageWidth, 0)),
        bands=page.bands,
        bits=page.bits,
        has_alpha=page.extra[-1:] in ((_PREMULTIPLIED,), (_ALPHA,)),
        is_white_zero=page.photometric == _MIN_IS_WHITE and page.sample_format == _UNSIGNED,
        is_lossy=page.compression in _LOSSY_CODECS,
        is_converted=page.photometric not in _NUMBERS,
        orientation=orientation if orientation in TRANSPOSES else UPRIGHT,
        nodata=None if nodata is None else str(nodata).strip(" \0"),
        has_position=any(tag in tags for tag in _POSITION_TAGS),
        has_exact_numbers=page.has_exact_numbers(),
        is_shown_right=page.is_shown_right(),
    )


def _common(numbers: tuple[int, ...]) -> int:
    """The number that all bands have; 0 if they differ."""
    return numbers[0] if len({*numbers}) == 1 else 0


def _numbers(tags: ImageFileDirectory_v2, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    values = tags.get(tag, default)
    values = values if isinstance(values, tuple) else (values,)
    return tuple(int(value) for value in values)


def _number(tags: ImageFileDirectory_v2, tag: int, default: int) -> int:
    values = _numbers(tags, tag, (default,))
    return values[0] if values else default


def read_bands(path: Path, storage: Storage, noun: str, orientation: int | None = None) -> Array:
    """Return all bands (K, H, W) as they are stored, upright, by rasterio.

    Args:
        path: a TIFF or PNG file.
        storage: of the file.
        noun: what messages call it.
        orientation: EXIF orientation of the stored pixels; None = that of ``storage``.

    Raises:
        ImportError: naming the extra, if rasterio is not installed.
        DataError: if the file cannot be read, or has more pixels than Pillow opens.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise _missing_rasterio(path, storage, noun) from error
    max_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if max_pixels and storage.size[0] * storage.size[1] > max_pixels:
        raise DataError(
            f"{noun} {path} has by its header more than {max_pixels} px, which Pillow opens at most; "
            "cut it into tiles, or in Python raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )
    try:
        # the filters are those of all threads
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path, driver=storage.driver)
        with file:
            bands: Array = file.read()
    except (RasterioError, OSError, ValueError) as error:
        raise DataError(
            f"{noun} {path} cannot be decoded: {reason_of(error)}; check its name or replace it"
        ) from error
    return turn(bands, storage.orientation if orientation is None else orientation)


def _missing_rasterio(path: Path, storage: Storage, noun: str) -> ImportError:
    missing = missing_extra("rasterio", "geo")
    return ImportError(
        f"{noun} {path} has {counted(storage.bands, 'band')} of {storage.bits} bits in a form that "
        f"Pillow does not give unchanged, and {missing}"
    )
