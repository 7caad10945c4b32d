"""Images as NumPy arrays: files, pictures of Pillow and arrays, decoded to upright RGB pixels; no torch is imported."""

from __future__ import annotations

import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from dinoneck.atomic import open_regular
from dinoneck.errors import ConfigError, DataError
from dinoneck.images import bit_depth
from dinoneck.images.orientation import (
    SWAPS_SIDES,
    UPRIGHT,
    read_orientation,
    stated_orientation,
    upright,
)
from dinoneck.images.storage import Storage, read_bands, read_storage, storage_of
from dinoneck.text import counted, reason_of

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Picture = str | os.PathLike[str] | Image.Image | Array
"""An image that is read without torch: a path, a PIL image or an array."""

SHOWN_BYTES = 12  # of the start of a file that is not a picture, in the message about it
_MOST_THREADS = 8  # by default
_PHOTOMETRIC = 262  # tag of TIFF
_BITS_OF_MODE = {"1": 1, "I": 32, "F": 32}  # other modes have 8, or 16 in their name
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
    bands: Sequence[int] | None = None,
) -> Array:
    """Decode one image to (3, H, W) RGB, or (1, H, W) of a grey one, turned upright by its EXIF tag.

    It is decoded as :func:`dinoneck.images.decoding.read_pixels` describes.

    Args:
        image: a path, a PIL image, or an array (H, W, 3), (H, W, 4) or (H, W).
        bits: how many bits 16-bit images use, 8 ... 16; None is 16.
        expected: what the caller takes for an image, for messages.
        bands: as of ``read_pixels``.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1. Grey files of 8 bits have three
        planes.

    Raises:
        DataError: naming the file, if it cannot be read, has other bands than grey or RGB with or
            without alpha, or values are out of range.
        ConfigError: if ``bits`` or ``bands`` is out of range.
        ImportError: naming the extra, if a file that rasterio reads is read without it.
    """
    bit_depth.check_bits(bits)
    if bands is not None:
        return _chosen_planes(image, bits, check_bands(bands))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        planes = read_by_rasterio(path, bits)
        if planes is not None:
            return planes
        return read_picture(path, lambda opened, name: decode(opened, name, bits))
    if isinstance(image, Image.Image):
        return from_pil(image, "a PIL image", bits)
    if isinstance(image, np.ndarray) and image.dtype.kind in "uif":
        return _from_array(image, bits)
    received = f"{type(image).__name__} {getattr(image, 'shape', '')} {getattr(image, 'dtype', '')}"
    raise DataError(f"an image is {received}; expected {expected}")


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file states.

    Attributes:
        size: (height, width) of the upright image.
        format: Pillow's name, such as ``JPEG``.
        mode: Pillow's, such as ``RGB`` or ``I;16``; of a file that rasterio reads, the number of
            bands, such as ``5 bands``.
        bits: of each number as it is stored.
        orientation: EXIF orientation of the stored pixels, 1 ... 8.
    """

    size: tuple[int, int]
    format: str
    mode: str
    bits: int
    orientation: int

    @property
    def is_turned(self) -> bool:
        """Whether EXIF turns the stored pixels."""
        return self.orientation != UPRIGHT


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Return what the header of an image file states; of a PNG with EXIF behind the pixels, these are decoded.

    Raises:
        DataError: if it is not an image, naming the file.
    """
    path = Path(path)
    storage = _storage(path)
    if storage is None or storage.is_shown_right:
        return read_picture(path, lambda opened, _: _header_of(opened, storage))
    orientation = storage.orientation
    image_format = "TIFF"
    if storage.driver == "PNG":
        orientation = read_picture(path, lambda opened, _: stated_orientation(opened))
        image_format = "PNG"
    return ImageHeader(
        size=_upright_size(storage.size, orientation),
        format=image_format,
        mode=counted(storage.bands, "band"),
        bits=storage.bits,
        orientation=orientation,
    )


def _header_of(image: Image.Image, storage: Storage | None) -> ImageHeader:
    """The header of an opened image."""
    # of a TIFF Pillow may state the turned size before it turns the pixels
    stored_size = (image.height, image.width) if storage is None else storage.size
    orientation = stated_orientation(image)
    bits = 16 if "16" in image.mode else _BITS_OF_MODE.get(image.mode, 8)
    return ImageHeader(
        size=_upright_size(stored_size, orientation),
        format=image.format or "",
        mode=image.mode,
        bits=bits if storage is None else storage.bits,
        orientation=orientation,
    )


def _upright_size(stored_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    height, width = stored_size
    return (width, height) if orientation in SWAPS_SIDES else (height, width)


def read_size(image: Picture) -> tuple[int, int]:
    """Return (height, width) of an image turned upright.

    Raises:
        DataError: as :func:`dinoneck.data.read_image_size`.
    """
    if isinstance(image, str | os.PathLike):
        return read_header(image).size
    if isinstance(image, Image.Image):
        orientation = read_orientation(image)
        return _upright_size((image.height, image.width), orientation)
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] not in (1, 3, 4):
        # of other bands than grey or colours, which read_planes rejects
        return image.shape[0], image.shape[1]
    height, width = read_planes(image).shape[-2:]
    return height, width


# Files that rasterio reads, and bands that are chosen
# ----------------------------------------------------------------------------------------------------


def _storage(path: Path, noun: str = "image") -> Storage | None:
    """How a file stores its pixels; None of other formats than TIFF and PNG."""
    try:
        return read_storage(path)
    except FileNotFoundError:
        raise DataError(f"there is no {noun} {path}; check the folder and the file name") from None
    except OSError as error:
        raise DataError(f"{noun} {path} cannot be read: {reason_of(error)}") from error


def read_by_rasterio(path: Path, bits: int | None) -> Array | None:
    """Decode a TIFF or PNG file of which Pillow would change numbers; None for other files.

    Raises:
        DataError: if it has other bands than grey or RGB, with alpha or without.
        ImportError: naming the extra, without rasterio.
    """
    storage = _storage(path)
    if storage is None or storage.is_shown_right:
        return None
    if storage.is_converted:
        raise DataError(
            f"{path} stores other colours than grey or RGB in a form that Pillow does not read; save it "
            "as RGB"
        )
    colours = storage.bands - storage.has_alpha
    if colours not in (1, 3):
        raise DataError(
            f"{path} has {counted(storage.bands, 'band')}, and does not say that the last is alpha; "
            "expected grey or RGB: state the bands to use, such as bands=(1, 2, 3), or write a file of them"
        )
    values = read_all_bands(path, storage)[:colours]
    if storage.is_white_zero:
        values = values.dtype.type((1 << storage.bits) - 1) - values
    return _unit_bands(values, storage, str(path), bits)


def read_all_bands(path: Path, storage: Storage) -> Array:
    """Return all bands (K, H, W) of a TIFF or PNG file as they are stored, upright, by rasterio."""
    orientation = None
    if storage.driver == "PNG":
        orientation = read_picture(path, lambda opened, _: stated_orientation(opened))
    return read_bands(path, storage, "image", orientation)


def _unit_bands(values: Array, storage: Storage, name: str, bits: int | None) -> Array:
    """The numbers of a file as pixels; a file of 9 to 15 bits states its range."""
    if values.dtype == np.uint16 and storage.bits < bit_depth.FILE_BITS:
        bits = min(bits or bit_depth.FILE_BITS, storage.bits)
    return to_unit_array(np.ascontiguousarray(values), name, bits)


def check_bands(bands: Sequence[int]) -> tuple[int, ...]:
    """Check the bands that are chosen of an image, counted from 1.

    Raises:
        ConfigError: if they are not whole numbers above 0, or other than one or three.
    """
    chosen = tuple(bands)
    are_whole = all(isinstance(band, int) and band > 0 for band in chosen)
    if not are_whole or len(chosen) not in (1, 3):
        raise ConfigError(
            f"bands is {bands!r}; expected one number or three, counted from 1, such as (4, 3, 2)"
        )
    return chosen


def _chosen_planes(image: Picture, bits: int | None, bands: tuple[int, ...]) -> Array:
    """The chosen bands of a TIFF or PNG file, or of an array (H, W, K)."""
    if isinstance(image, np.ndarray) and image.ndim == 3:
        values = np.moveaxis(native_array(image, "an image"), -1, 0)
        chosen = _choose(values, bands, "an image")
        return to_unit_array(np.ascontiguousarray(chosen), "an image", bits)
    storage = _storage(Path(image)) if isinstance(image, str | os.PathLike) else None
    if storage is None:
        name = str(image) if isinstance(image, str | os.PathLike) else "an image"
        raise DataError(
            f"{name} is no TIFF or PNG file and no array (H, W, K), of which bands={bands} can be taken"
        )
    path = Path(image)  # type: ignore[arg-type] # a path, see above
    chosen = _choose(read_all_bands(path, storage), bands, str(path))
    return _unit_bands(chosen, storage, str(path), bits)


def _choose(values: Array, bands: tuple[int, ...], name: str) -> Array:
    if max(bands) > len(values):
        raise DataError(f"{name} has {counted(len(values), 'band')}, and bands is {bands}")
    return values[[band - 1 for band in bands]]


# Pictures that Pillow reads
# ----------------------------------------------------------------------------------------------------


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


def from_pil(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an image of Pillow to (3, H, W), or (1, H, W) of 16-bit grey; see :func:`read_planes`.

    Raises:
        DataError: if it is an opened file of which Pillow would change numbers.
    """
    storage = _storage_of_opened(image, name)
    if storage is not None and not storage.is_shown_right:
        raise DataError(
            f"{name} has {counted(storage.bands, 'band')} of {storage.bits} bits in a form that "
            "Pillow does not give unchanged; pass its path, or an array"
        )
    return decode(image, name, bits)


def _storage_of_opened(image: Image.Image, name: str) -> Storage | None:
    """How the file of an opened picture stores its pixels; None once it is decoded."""
    file = getattr(image, "fp", None)
    if file is None or file.closed or image.format not in ("TIFF", "PNG"):
        return None
    position = file.tell()
    storage = storage_of(file, name)
    file.seek(position)
    return storage


def decode(image: Image.Image, name: str, bits: int | None) -> Array:
    """Decode an image of Pillow whose file :class:`Storage` allows it; see :func:`from_pil`."""
    is_negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    image = upright(image)
    if image.mode.startswith("I;16"):
        values = np.array(image, np.uint16)[None]
        return bit_depth.scale(values, bits, name, white_is_zero=is_negative)
    if image.mode == "F":
        return to_unit_array(np.array(image)[None], name, bits)
    if image.mode == "I":
        raise DataError(unfit_dtype("int32", name))
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
        DataError: if values are out of range, or the dtype is another.
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
