"""Images as NumPy arrays: files, pictures of Pillow and arrays, decoded to upright RGB pixels; no torch is imported."""

from __future__ import annotations

import functools
import io
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.images import bit_depth, deep_colours, image_tiffs, jpeg, jpeg_2000, png, pnm, tiff
from dinoneck.images.orientation import (
    SWAPS_SIDES,
    UPRIGHT,
    read_orientation,
    tiff_orientation,
    upright,
    warn_once,
)
from dinoneck.text import reason_of

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Picture = str | os.PathLike[str] | Image.Image | Array
"""An image that is read without torch: a path, a PIL image or an array."""

SHOWN_BYTES = 12  # of the start of a file that is not a picture, in the message about it
_MOST_THREADS = 8  # by default
BYTE_TO_16_BITS = 257  # 255 becomes 65535
_ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
# what Pillow's readers raise on damaged files; AVIF's raises RuntimeError
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    EOFError,
    AssertionError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
)


def in_threads(
    function: Callable[[Any], T], items: Sequence[Any], workers: int | None = None, ahead: int = 1
) -> Generator[T, None, None]:
    """Yield ``function(item)`` for all items in order, computed by threads a few items ahead of the one in use.

    Decoding and resizing release Python's lock, so they run while the model computes.

    Args:
        function: called in a thread; what it raises is raised when its item's turn comes.
        items: its arguments; a single one is computed without a thread.
        workers: threads; None = one per core, at most 8; ``torchrun``'s processes share the cores
            of a machine.
        ahead: how many results may wait; at least one per thread.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    if not workers:
        num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun
        cores = (os.cpu_count() or 1) // num_processes
        workers = max(1, min(_MOST_THREADS, cores))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dinoneck-images")
    rest = iter(items)
    try:
        waiting = deque(
            pool.submit(function, item) for item in itertools.islice(rest, max(workers, ahead))
        )
        while waiting:
            waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_planes(
    image: Picture,
    bits: int | None = None,
    expected: str = "a path, a PIL image or an array (H, W, 3)",
) -> Array:
    """Decode one image to (3, H, W) RGB, or (1, H, W) of a grey one, turned upright by its EXIF tag.

    It is decoded as :func:`dinoneck.images.decoding.read_pixels` describes.

    Args:
        image: a path, a PIL image, or an array (H, W, 3), (H, W, 4) or (H, W).
        bits: how many bits 16-bit images use, 8 ... 16; 16 reads them as they are. None refuses
            those that use a part of the range.
        expected: what the caller takes for an image, for messages.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1. Grey files of 8 bits have three
        planes.

    Raises:
        DataError: naming the file, if it cannot be read, has other bands than grey or RGB with or
            without alpha, values are out of range, or 16-bit ones do not use the range.
        ConfigError: if ``bits`` is out of range.
    """
    bit_depth.check_bits(bits)
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image), functools.partial(_from_file, bits=bits))
    if isinstance(image, Image.Image):
        return from_pil(image, "a PIL image", bits)
    if isinstance(image, np.ndarray) and image.dtype.kind in "uif":
        return _from_array(image, bits)
    received = f"{type(image).__name__} {getattr(image, 'shape', '')} {getattr(image, 'dtype', '')}"
    raise DataError(f"an image is {received}; expected {expected}")


def read_size_and_orientation(image: Picture) -> tuple[tuple[int, int], int]:
    """Return (height, width) of an image turned upright, and the EXIF orientation of what is stored.

    Raises:
        DataError: as :func:`dinoneck.data.read_image_size`.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return read_picture(path, lambda opened, _: read_size_and_orientation(opened))
        except DataError:
            size = tiff.size_of_bands(path)  # of a TIFF that Pillow does not read
            if size is None:
                raise
            return size, UPRIGHT
    if isinstance(image, Image.Image):
        stored = tiff_orientation(image)
        orientation = read_orientation(image)
        size = (image.height, image.width)
        if orientation in SWAPS_SIDES:
            size = (image.width, image.height)
        return size, stored or orientation
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] not in (1, 3, 4):
        # of other bands than grey or colours, which read_planes rejects
        return (image.shape[0], image.shape[1]), UPRIGHT
    height, width = read_planes(image, bits=bit_depth.FILE_BITS).shape[-2:]
    return (height, width), UPRIGHT


def read_picture(
    path: Path,
    read: Callable[[Image.Image, str], T],
    noun: str = "image",
    formats: str = "PNG, JPEG or TIFF",
) -> T:
    """Open a picture file and return what ``read(image, name)`` makes of it.

    Args:
        path: the file.
        read: takes the opened image and the name of the file.
        noun: what messages call it.
        formats: that messages advise to save it as.

    Raises:
        DataError: if the file does not exist or cannot be decoded, naming it.
    """
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return read(image, str(path))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no {noun} {path}; check the folder and the file name") from None
    except UnidentifiedImageError:
        raise DataError(_not_a_picture(path, noun, formats)) from None
    except Image.DecompressionBombError as error:
        # Pillow warns of more pixels than its limit, and raises an error for twice as many
        max_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{noun} {path} has by its header more than {max_pixels} px, which Pillow opens at most; cut it "
            "into tiles, or in Python raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except DAMAGED as error:
        # KeyError of a compression, ValueError of a raw mode that Pillow does not know
        is_unknown = isinstance(error, LookupError) or "raw mode" in str(error)
        contents = image_tiffs.describe(path) if is_unknown else None
        if contents is not None:
            raise DataError(_unread_tiff(path, noun, contents)) from error
        raise DataError(
            f"{noun} {path} cannot be decoded: {reason_of(error)}; check its name or replace it"
        ) from error


def _not_a_picture(path: Path, noun: str, formats: str) -> str:
    """Why Pillow finds no picture in a file that exists."""
    contents = image_tiffs.describe(path)
    if contents is not None:
        return _unread_tiff(path, noun, contents)
    size = path.stat().st_size
    if not size:
        return f"{noun} {path} is an empty file; restore or remove it"
    with open_regular(path) as file:
        start = file.read(SHOWN_BYTES)
    return (
        f"{noun} {path} ({size} bytes) is not a picture that Pillow decodes: it begins with "
        f"{start!r}; check its name, save it as {formats}, or replace it"
    )


def _unread_tiff(path: Path, noun: str, contents: str) -> str:
    return (
        f"{noun} {path} is a TIFF of {contents}, which Pillow does not read; read it with a raster "
        "library and pass an array"
    )


def _from_file(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an opened file by Pillow."""
    check_file(image, name)
    return from_pil(image, name, bits)


def check_file(image: Image.Image, name: str) -> None:
    """Reject the pages of a TIFF that are no image, and warn of an animation.

    Raises:
        DataError: naming the file.
    """
    image_tiffs.check_pages(image, name)
    _warn_of_frames(image, name)


def _warn_of_frames(image: Image.Image, name: str) -> None:
    """Say that an animation has more pictures than the one that is read."""
    # the others of MPO are views and previews; the pages of TIFF are checked
    if image.format in _ANIMATIONS and getattr(image, "is_animated", False):
        num_frames = image.n_frames  # type: ignore[attr-defined]
        warn_once(
            f"{name} is an animation of {num_frames} frames, of which the first is read; save the "
            "frames to use as files"
        )


def from_pil(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an image of Pillow to (3, H, W), or (1, H, W) of 16-bit grey; see :func:`read_planes`."""
    image_tiffs.check_numbers(image, name)
    jpeg_2000.check_numbers(image, name)
    png.check_end(image)
    image = _with_end_marker(image, name)
    white_is_zero = image_tiffs.is_white_zero(image)
    # what follows is not known once it is decoded
    stated_bits = _stated_bits(image)
    pnm_range = pnm.range_of(image)
    if pnm.is_deep_grey(image):
        return _from_deep_pgm(image, name, bits, pnm_range.largest)
    is_deep = deep_colours.is_deep(image)
    if is_deep and not image.mode.startswith("I"):
        return _from_deep_colours(image, name, bits)
    image_format = image.format  # not known once it is turned
    image = upright(image)
    if image.mode.startswith("I;16"):
        values = np.array(image, np.uint16)[None]
        if image_format == "JPEG2000":
            values >>= bit_depth.FILE_BITS - stated_bits  # which Pillow shifted to the left
        used_bits = _bits_to_use(values, name, bits, stated_bits)
        return bit_depth.scale(values, used_bits, name, white_is_zero=white_is_zero)
    if image.mode in ("I", "F"):
        raise DataError(_why_32_bits_are_rejected(image, name))
    image_tiffs.check_alpha(image, name)
    return _rgb(image)


def _bits_to_use(values: Array, name: str, bits: int | None, stated_bits: int) -> int | None:
    """The bits by which 16-bit grey is scaled: those of the file, unless the caller names fewer.

    None = all 16, if the values use their range.

    Raises:
        DataError: if the file states 15 bits, and its values use a part of the range.
    """
    if stated_bits == bit_depth.FILE_BITS:
        return bits
    if bits is not None:
        return min(stated_bits, bits)
    if bit_depth.may_hold_less(stated_bits):
        bit_depth.check_range(values, name)
    return stated_bits


def _from_deep_pgm(image: Image.Image, name: str, bits: int | None, largest: int | None) -> Array:
    """Decode a PGM of more than 8 bits: to shares of the range that it states, or of fewer ``bits``."""
    if largest is None:
        raise DataError(
            f"{name} is a PGM of more than 8 bits that was decoded before, and its range is not known "
            "any more; pass its path"
        )
    values = pnm.StoredRange(largest, bit_depth.FULL).restore(np.asarray(image)).astype(np.uint16)
    stated_bits = largest.bit_length()
    if bits is None and bit_depth.may_hold_less(stated_bits):
        bit_depth.check_range(values, name)
    if bits is not None and bits < stated_bits:
        return bit_depth.scale(values[None], bits, name)
    scaled: Array = values[None].astype(np.float32) / np.float32(largest)
    return scaled


def _stated_bits(image: Image.Image) -> int:
    """How many bits of 16 an opened file says that its numbers have; 16 where it does not say."""
    numbers = jpeg_2000.numbers_of(image)
    if numbers is not None:
        return numbers.bits
    layout = tiff.layout_of(image)
    if layout is not None and layout.bits == (12,):
        return 12
    return bit_depth.FILE_BITS


def _with_end_marker(image: Image.Image, name: str) -> Image.Image:
    """Open a JPEG that lacks nothing but its end marker as if it were there, with a warning.

    Images of other formats are returned as they are. Zeros fill up files that were not written
    whole, and Pillow takes them for coded pixels.

    Raises:
        OSError: if a JPEG is cut.
    """
    source = getattr(image, "fp", None)
    if source is None or source.closed or image.format != "JPEG":
        return image
    source.seek(-len(jpeg.END_OF_IMAGE), os.SEEK_END)
    if source.read() == jpeg.END_OF_IMAGE:
        return image
    content = deep_colours.file_of(image)
    if jpeg.has_end(content):
        return image  # with an appendix
    whole = jpeg.with_end(content)
    if whole is None:
        raise OSError(png.CUT)
    warn_once(f"{name}: the JPEG has no end marker, but its picture is whole; save it again")
    return Image.open(io.BytesIO(whole))


def _rgb(image: Image.Image) -> Array:
    """The pixels of an image of 8 bits without its alpha."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "La":  # premultiplied; there is no direct way to RGB
        image = image.convert("LA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.moveaxis(np.array(image), -1, 0)


def _from_deep_colours(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode colours of 16 bits: to their high bytes, or with ``bits`` below 16 to floats."""
    file = deep_colours.file_of(image)  # it is closed once the image is decoded
    image = upright(image)
    image_tiffs.check_alpha(image, name)
    high = _rgb(image)
    if bits is not None and bits < bit_depth.FILE_BITS:
        values = _with_low_bytes(high, file)
        if values is None:
            raise DataError(
                f"{name} holds 16-bit {image.mode} values, of which Pillow gives the high byte, so "
                f"bits={bits} (--bits {bits}) cannot be used; save it as interleaved RGB, "
                "or pass an array"
            )
        return bit_depth.scale(values, bits, name)
    if bits is None:
        problem = _problem_of_colours(high, file)
        if problem is not None:
            raise DataError(f"{name} {problem}")
    return high


def _problem_of_colours(high: Array, file: bytes) -> str | None:
    """Why 16-bit colours do not seem to use their range; None if they do."""
    estimate = high.astype(np.uint16) * BYTE_TO_16_BITS
    if bit_depth.reaches_both_ends(estimate):
        return None
    # a high byte of 0 may be black, or any value of 8 bits
    values = _with_low_bytes(high, file)
    if values is not None:
        return bit_depth.range_problem(values)
    if not ((high > 0) & (high < 255)).any():
        return "holds 16-bit values whose high bytes are 0 or 255; pass them as an array"
    if bit_depth.range_problem(estimate) is None:
        return None
    return (
        f"holds 16-bit values of about {estimate.min()} ... {estimate.max()}, a part of the range, "
        "and Pillow gives their high bytes alone; pass them as an array with the bits of the "
        f"camera, or read the file as it is with bits={bit_depth.FILE_BITS} (--bits "
        f"{bit_depth.FILE_BITS})"
    )


def _with_low_bytes(high: Array, file: bytes) -> Array | None:
    """The 16-bit values (3, H, W) of a file whose high bytes are given; None if Pillow cannot give the others."""
    image = deep_colours.low_bytes(file) if file else None
    if image is None:
        return None
    low = _rgb(upright(image))
    values: Array = (high.astype(np.uint16) << 8) | low
    return values


def _why_32_bits_are_rejected(image: Image.Image, name: str) -> str:
    """Why an image of 32 bits per value is not read."""
    layout = tiff.layout_of(image)
    if image.mode == "F":
        kind = "32-bit floats"
    elif layout is not None and layout.kind == tiff.SIGNED:
        kind = f"signed {max(layout.bits)}-bit integers"
    else:
        kind = "32-bit integers"
    values = np.asarray(image)
    return (
        f"{name} holds {kind} of {values.min():g} ... {values.max():g} (mode {image.mode!r}); "
        "expected unsigned integers of 8 or 16 bits: bring them to 0 ... 1 and pass an array of floats"
    )


def _from_array(array: Array, bits: int | None) -> Array:
    """Check an array (H, W) or (H, W, channels) and decode it."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"an array image has shape {array.shape}; expected (height, width, 3) or (height, "
            "width)"
        )
    channels = np.atleast_3d(native_array(array, "an array image"))
    if channels.shape[-1] == 4:
        channels = channels[..., :3]  # without alpha
    planes = np.moveaxis(channels, -1, 0)
    check_planes(planes.shape, "an image")
    return to_unit_array(planes, "an image", bits)


def native_array(array: Array, name: str) -> Array:
    """Return a copy of an array that torch takes: in the byte order of the machine, no long doubles.

    Raises:
        DataError: if values are masked.
    """
    if np.ma.is_masked(array):
        raise DataError(
            f"{name} has {int(np.ma.getmaskarray(array).sum())} masked values; fill them, such as "
            "with array.filled(0)"
        )
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > np.float64().itemsize:
        dtype = np.dtype(np.float64)  # torch has no longer floats
    return np.asarray(array).astype(dtype)


def to_unit_array(values: Array, name: str, bits: int | None) -> Array:
    """Check the values of an image (channels, H, W): uint8 are kept, others become float32 in 0 ... 1.

    Raises:
        DataError: if floats are out of range, 16-bit values do not use it, or the dtype is another.
    """
    if values.dtype == np.uint16:
        return bit_depth.scale(values, bits, name)
    if values.dtype.kind == "f":
        check_unit_range(float(values.min()), float(values.max()), name)
        return values.astype(np.float32, copy=False)
    if values.dtype != np.uint8:
        raise DataError(unfit_dtype(str(values.dtype), name))
    return values


def check_planes(shape: tuple[int, ...], name: str) -> None:
    """Raise a DataError for the shape of what is not an image (1 or 3, height, width)."""
    if len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape:
        raise DataError(f"{name} has shape {shape}; expected 1 or 3 channels, height and width")


def check_unit_range(low: float, high: float, name: str) -> None:
    """Raise a DataError for floats of an image that leave 0 ... 1, or are NaN."""
    if not (low >= 0.0 and high <= 1.0):  # also catches NaN
        raise DataError(
            f"{name} has values {low:g} ... {high:g}; expected floats in 0 ... 1 (a normalised "
            "image goes to the backbone directly)"
        )


def unfit_dtype(dtype: str, name: str) -> str:
    """Return the message for an image of another dtype than those that are read."""
    return f"{name} holds {dtype} values; expected uint8, uint16 or floats in 0 ... 1"
