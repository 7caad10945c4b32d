"""TIFF files of three bands of 32-bit floats: maps of surface normals, which Pillow neither reads nor writes."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.images import tiff
from dinoneck.images.tiff import TiffLayout, number_of, numbers_of, tiff_pages

Array = np.ndarray[Any, Any]

_DEFLATE = 8
_OLD_DEFLATE = 32946
_HEADER_BYTES = 8
_ENTRY_BYTES = 12
_SHORT = 3  # types of TIFF entries
_LONG = 4
_PREDICTOR = 317  # how numbers were changed before they were compressed; 1 = not at all
_VALUES_OF_TYPE = {_SHORT: "H", _LONG: "I"}


def encode_vectors(vectors: Array) -> bytes:
    """Return the bytes of a TIFF of three bands of 32-bit floats, interleaved and compressed by Deflate.

    Args:
        vectors: (3, height, width); NaN stays NaN.
    """
    bands, height, width = vectors.shape
    interleaved = np.ascontiguousarray(vectors.transpose(1, 2, 0), "<f4")
    strip = zlib.compress(interleaved.tobytes())
    # (tag, type, values), in the order of the tags
    entries = [
        (Base.ImageWidth, _LONG, (width,)),
        (Base.ImageLength, _LONG, (height,)),
        (Base.BitsPerSample, _SHORT, (32,) * bands),
        (Base.Compression, _SHORT, (_DEFLATE,)),
        (Base.PhotometricInterpretation, _SHORT, (tiff.RGB,)),
        (Base.StripOffsets, _LONG, (_HEADER_BYTES,)),
        (Base.SamplesPerPixel, _SHORT, (bands,)),
        (Base.RowsPerStrip, _LONG, (height,)),
        (Base.StripByteCounts, _LONG, (len(strip),)),
        (Base.PlanarConfiguration, _SHORT, (1,)),
        (Base.SampleFormat, _SHORT, (tiff.FLOAT,) * bands),
    ]
    strip += b"\0" * (len(strip) % 2)  # the directory begins at an even byte
    directory_offset = _HEADER_BYTES + len(strip)
    end_of_directory = directory_offset + 2 + _ENTRY_BYTES * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    values_beyond = b""
    for tag, type_of_values, values in entries:
        packed = struct.pack(f"<{len(values)}{_VALUES_OF_TYPE[type_of_values]}", *values)
        directory += struct.pack("<HHI", tag, type_of_values, len(values))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", end_of_directory + len(values_beyond))
            values_beyond += packed
    directory += struct.pack("<I", 0)  # there is no further page
    header = b"II" + struct.pack("<HI", 42, directory_offset)
    return header + strip + directory + values_beyond


def is_vector_tiff(path: Path) -> bool:
    """Return whether a file is a TIFF of three bands of floats."""
    layout = tiff.layout_of_file(path)
    return layout is not None and layout.bands == 3 and layout.kind == tiff.FLOAT


def read_vectors(path: Path) -> tuple[Array, int]:
    """Return the numbers (3, height, width) of a TIFF of three bands of floats as they are stored, and its orientation.

    The orientation is that of EXIF. Strips without compression or compressed by Deflate are read
    here, other files by rasterio.

    Raises:
        DataError: if it cannot be read.
    """
    with open_regular(path) as file:
        tags = next(tiff_pages(file))
        orientation = number_of(tags, Base.Orientation, 1)
        layout = TiffLayout.of(tags)
        height = number_of(tags, Base.ImageLength, 0)
        width = number_of(tags, Base.ImageWidth, 0)
        _check_sides(height, width, path)
        is_plain = (
            layout.bits == (32,)
            and layout.compression in (tiff.UNCOMPRESSED, _DEFLATE, _OLD_DEFLATE)
            and not layout.is_band_after_band
            and not numbers_of(tags, Base.TileOffsets)
            and number_of(tags, _PREDICTOR, 1) == 1
        )
        if is_plain:
            contents = _read_strips(file, tags, layout, height * width, path)
            order = ">f4" if layout.is_big_endian else "<f4"
            values = np.frombuffer(contents, order).reshape(height, width, layout.bands)
            return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32), orientation
    return _read_with_rasterio(path, layout), orientation


def _check_sides(height: int, width: int, path: Path) -> None:
    """Raise a DataError for no size of an image, and for more pixels than Pillow opens."""
    if height < 1 or width < 1:
        raise DataError(
            f"{path} has by its header {height} x {width} px (height x width); expected 1 or more "
            "each: write it again"
        )
    if Image.MAX_IMAGE_PIXELS is None:
        return
    max_pixels = 2 * Image.MAX_IMAGE_PIXELS  # of which Pillow raises an error
    if height * width > max_pixels:
        raise DataError(
            f"{path} has by its header more than {max_pixels} px, which Pillow opens at most; cut it "
            "into tiles, or in Python raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )


def _read_strips(
    file: IO[bytes], tags: Any, layout: TiffLayout, num_pixels: int, path: Path
) -> bytes:
    """The numbers of all pixels as they are stored, decompressed.

    What is read and decompressed is bounded by the file and the picture: a small file cannot fill
    the memory.
    """
    offsets = numbers_of(tags, Base.StripOffsets)
    lengths = numbers_of(tags, Base.StripByteCounts)
    num_bytes = num_pixels * layout.bands * 4
    file_bytes = os.fstat(file.fileno()).st_size
    num_read = 0
    contents = bytearray()
    try:
        for offset, length in zip(offsets, lengths, strict=True):
            missing_bytes = num_bytes - len(contents)
            if missing_bytes == 0:  # as a limit zlib takes 0 for none
                break
            if not 0 <= offset <= file_bytes or length < 0:
                raise ValueError(f"a strip of {length} bytes begins at byte {offset}")
            file.seek(offset)
            strip = file.read(min(length, file_bytes))
            num_read += len(strip)
            if num_read > file_bytes:
                raise ValueError("its strips overlap")
            if layout.compression != tiff.UNCOMPRESSED:
                strip = zlib.decompressobj().decompress(strip, missing_bytes)
            contents += strip[:missing_bytes]
    except (ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; write it again") from None
    if len(contents) < num_bytes:
        raise DataError(
            f"{path} holds {len(contents)} bytes of {num_bytes}: it is cut off; write it again"
        )
    return bytes(contents)


def _read_with_rasterio(path: Path, layout: TiffLayout) -> Array:
    remedy = (
        "write it in strips of 32-bit floats, interleaved, with Deflate or without compression "
        "(gdal_translate -ot Float32 -co INTERLEAVE=PIXEL -co COMPRESS=DEFLATE), or pass an array "
        "(H, W, 3)"
    )
    try:
        import rasterio
        from rasterio.errors import RasterioError
    except ImportError:
        raise DataError(
            f"{path} holds {layout.words()} in a form that is not read without rasterio (pip install "
            f"dinoneck[geo]); {remedy}"
        ) from None
    try:
        with rasterio.open(path) as source:
            values: Array = source.read(out_dtype="float32")
    except RasterioError as error:
        raise DataError(f"{path} cannot be read: {error}; {remedy}") from None
    return values
