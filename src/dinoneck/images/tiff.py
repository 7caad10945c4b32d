"""How TIFF files store their numbers: the tags of a page as fields, for images and labels alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinoneck.atomic import open_regular
from dinoneck.text import counted

# values of the TIFF tags, TIFF 6.0 and its supplements
MIN_IS_WHITE = 0
MIN_IS_BLACK = 1
RGB = 2
PALETTE = 3
CMYK = 5
YCBCR = 6
CIELAB = 8
ICCLAB = 9
ITULAB = 10
UNSIGNED = 1
SIGNED = 2
FLOAT = 3
PREMULTIPLIED_ALPHA = 1
ALPHA = 2
ALPHA_OF_COREL_DRAW = 999
UNCOMPRESSED = 1
REDUCED_PAGE = 1
MASK_PAGE = 4
IMAGE_DEPTH = 32997  # of SGI: the images of a volume
_BAND_AFTER_BAND = 2
_KIND_WORDS = {
    UNSIGNED: "unsigned integers",
    SIGNED: "signed integers",
    FLOAT: "floats",
    5: "complex integers",
    6: "complex numbers",
}
_MOST_PAGES = 1000  # a file of more is no picture with overviews, and a loop of pages ends


@dataclass(frozen=True)
class TiffLayout:
    """How a page of a TIFF stores its numbers.

    Attributes:
        bands: per pixel, alpha included.
        bits: per number, the distinct ones.
        kind: 1 = unsigned integers, 2 = signed integers, 3 = floats; 0 = bands of several kinds.
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
        bits = numbers_of(tags, Base.BitsPerSample) or (1,)
        kinds = numbers_of(tags, Base.SampleFormat) or (UNSIGNED,)
        offsets = numbers_of(tags, Base.StripOffsets) + numbers_of(tags, Base.TileOffsets)
        return cls(
            bands=number_of(tags, Base.SamplesPerPixel, 1),
            bits=tuple(sorted({*bits})),
            kind=kinds[0] if len({*kinds}) == 1 else 0,
            photometric=number_of(tags, Base.PhotometricInterpretation, None),
            extra=numbers_of(tags, Base.ExtraSamples),
            compression=number_of(tags, Base.Compression, UNCOMPRESSED),
            is_band_after_band=number_of(tags, Base.PlanarConfiguration, 1) == _BAND_AFTER_BAND,
            is_big_endian=tags.prefix == b"MM",
            is_sparse=0 in offsets,
        )

    def words(self) -> str:
        """Return the kind of numbers, such as ``3 bands of 32-bit floats``."""
        bits = "/".join(map(str, self.bits))
        kind = _KIND_WORDS.get(self.kind, f"numbers (SampleFormat {self.kind})")
        return f"{counted(self.bands, 'band')} of {bits}-bit {kind}"


def is_alpha_open(layout: TiffLayout) -> bool:
    """Whether a fourth band may be alpha, since the file does not say what it is."""
    return layout.photometric == RGB and layout.bands == 4 and not layout.extra


def numbers_of(tags: Any, tag: int) -> tuple[int, ...]:
    """Return the numbers of a tag; none where the tag is missing."""
    value = tags.get(tag)
    if value is None:
        return ()
    numbers = value if isinstance(value, tuple) else (value,)
    return tuple(int(number) for number in numbers)


def number_of(tags: Any, tag: int, default: Any) -> Any:
    """Return the first number of a tag; the default where the tag is missing."""
    numbers = numbers_of(tags, tag)
    return numbers[0] if numbers else default


def layout_of(image: Image.Image) -> TiffLayout | None:
    """Return the layout of the current page of an opened TIFF file; None for other images."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return None
    return TiffLayout.of(tags)


def layout_of_file(path: Path) -> TiffLayout | None:
    """Return the layout of the first page of a file; None if it is no TIFF, or its tags cannot be read."""
    try:
        with open_regular(path) as file:
            tags = next(tiff_pages(file), None)
            if tags is None or Base.ImageWidth not in tags:
                return None
            return TiffLayout.of(tags)
    except Exception:  # tags of a damaged file raise many kinds of errors
        return None


def size_of_bands(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of a TIFF file of other bands than grey or RGB; None for other files."""
    layout = layout_of_file(path)
    if layout is None or layout.bands in (1, 3):
        return None
    with open_regular(path) as file:
        return _size_of(next(tiff_pages(file)))


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


def problem_of_pages(pages: Sequence[Any]) -> str:
    """Return why a file is not one picture with its overviews and masks; "" = it is.

    Args:
        pages: the tags of each page.
    """
    first = pages[0]
    first_size = _size_of(first)
    words = "x".join(map(str, first_size))
    if number_of(first, Base.NewSubfileType, 0) & REDUCED_PAGE:
        return (
            f"begins with a reduced picture of {words} px (height x width), as raw files of "
            "cameras do"
        )
    num_images = number_of(first, IMAGE_DEPTH, 1)
    if len(pages) == 1:
        num_images = max(num_images, _images_of_imagej(first))
    if num_images > 1:
        return f"holds {num_images} images of {words} px (height x width) in one page"
    for number, page in enumerate(pages[1:], start=2):
        size = _size_of(page)
        kind = number_of(page, Base.NewSubfileType, 0)
        is_smaller = size != first_size and size[0] <= first_size[0] and size[1] <= first_size[1]
        if kind & MASK_PAGE or is_smaller:
            continue
        if size == first_size and kind & REDUCED_PAGE:
            continue
        return (
            f"holds several pages, such as the first of {words} px (height x width) and number "
            f"{number} of {'x'.join(map(str, size))} px"
        )
    return ""


def _size_of(tags: Any) -> tuple[int, int]:
    return number_of(tags, Base.ImageLength, 0), number_of(tags, Base.ImageWidth, 0)


def _images_of_imagej(tags: Any) -> int:
    """How many images follow one another in a page: ImageJ writes no more pages beyond 4 GB."""
    description = tags.get(Base.ImageDescription)
    if not isinstance(description, str) or not description.startswith("ImageJ="):
        return 1
    stated = re.search(r"^images=(\d+)", description, re.MULTILINE)
    return int(stated[1]) if stated else 1
