"""Images as NumPy arrays: files, pictures of Pillow and arrays, decoded to upright RGB pixels; no torch is imported."""

from __future__ import annotations

import functools
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
from dinoneck.images import bit_depth
from dinoneck.images.orientation import (
    SWAPS_SIDES,
    UPRIGHT,
    read_orientation,
    upright,
)
from dinoneck.text import reason_of

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Picture = str | os.PathLike[str] | Image.Image | Array
"""An image that is read without torch: a path, a PIL image or an array."""

SHOWN_BYTES = 12  # of the start of a file that is not a picture, in the message about it
_MOST_THREADS = 8  # by default
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC = 254, 258, 262  # tags of TIFF
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
        return read_picture(Path(image), lambda opened, _: read_size_and_orientation(opened))
    if isinstance(image, Image.Image):
        orientation = read_orientation(image)
        size = (image.height, image.width)
        if orientation in SWAPS_SIDES:
            size = (image.width, image.height)
        return size, orientation
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
        raise DataError(
            f"{noun} {path} cannot be decoded: {reason_of(error)}; check its name or replace it"
        ) from error


def _not_a_picture(path: Path, noun: str, formats: str) -> str:
    """Why Pillow finds no picture in a file that exists."""
    with open_regular(path) as file:
        start = file.read(SHOWN_BYTES)
    return (
        f"{noun} {path} ({path.stat().st_size} bytes) is not a picture that Pillow decodes: it begins "
        f"with {start!r}; check its name, save it as {formats}, or replace it"
    )


def _from_file(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an opened file by Pillow."""
    check_file(image, name)
    return from_pil(image, name, bits)


def check_file(image: Image.Image, name: str) -> None:
    """Reject the pages of a TIFF, of which Pillow reads the first.

    Raises:
        DataError: naming the file.
    """
    num_pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and num_pages > 1 and not _are_overviews(image):
        raise DataError(f"{name} has {num_pages} pages; expected one: save each as a file")


def _are_overviews(image: Any) -> bool:
    """Whether all further pages of a TIFF are smaller copies of the first one."""
    kinds = []
    for page in range(1, image.n_frames):
        image.seek(page)
        kinds.append(image.tag_v2.get(_SUBFILE_TYPE, 0) & 1)
    image.seek(0)
    return all(kinds)


def from_pil(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an image of Pillow to (3, H, W), or (1, H, W) of 16-bit grey; see :func:`read_planes`."""
    is_inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    if image.format == "TIFF" and len(image.tag_v2.get(_BITS, (8,))) > 4:  # type: ignore[attr-defined]
        raise DataError(f"{name} has more than four bands; expected grey or RGB (see channels)")
    image = upright(image)
    if image.mode.startswith("I;16"):
        values = np.array(image, np.uint16)[None]
        return bit_depth.scale(values, bits, name, white_is_zero=is_inverted)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} holds 32-bit numbers (mode {image.mode!r}); expected unsigned integers of 8 or 16 "
            "bits: bring them to 0 ... 1 and pass an array of floats"
        )
    return _rgb(image)


def _rgb(image: Image.Image) -> Array:
    """The pixels of an image of 8 bits without its alpha."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "La":  # premultiplied; there is no direct way to RGB
        image = image.convert("LA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.moveaxis(np.array(image), -1, 0)


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
