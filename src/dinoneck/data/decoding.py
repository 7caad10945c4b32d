"""Images: their decoding to upright RGB pixels, and threads that decode them ahead."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError, reason_of

T = TypeVar("T")
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_JPEG_END = b"\xff\xd9"  # the marker "end of image"
ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor


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
    workers = workers or max(
        1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    )
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


def as_list(images: Any, noun: str = "images") -> list[Any]:
    """Return a list of single images (or what ``noun`` calls them), whatever form they came in."""
    if (
        isinstance(images, str | os.PathLike | Image.Image | Tensor | np.ndarray)
        and getattr(images, "ndim", 3) != 4
    ):
        return [images]
    if not isinstance(images, Iterable):
        raise DataError(
            f"{noun} are {type(images).__name__}; expected paths, PIL images, arrays or tensors"
        )
    return list(images)


def read_pixels(image: ImageInput) -> Tensor:
    """Decode one image to (3, H, W) RGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and transparent images become RGB. 16-bit grey values are scaled by 65535;
    of 16-bit colours in a file Pillow keeps the high byte.

    Returns:
        uint8 where the image has 8 bits, else float32 in 0 ... 1.

    Raises:
        DataError: naming the file, if it cannot be read, values are out of range or 16-bit ones
            fill 14 bits at most.
    """
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image), _from_file)
    if isinstance(image, Image.Image):
        return _from_pil(image, "a PIL image")
    if isinstance(image, np.ndarray) and image.dtype.kind in "uif":
        array = np.atleast_3d(image).astype(image.dtype.newbyteorder("="))  # (H, W, C), a copy
        image = torch.from_numpy(array[..., :3] if array.shape[-1] == 4 else array).moveaxis(-1, 0)
    if isinstance(image, Tensor):
        return _from_tensor(image, "an image")
    held = f"{type(image).__name__} {getattr(image, 'shape', '')} {getattr(image, 'dtype', '')}"
    raise DataError(
        f"an image is {held}; expected a path, a PIL image, an array (H, W, 3) or a tensor (3, H, "
        "W)"
    )


def read_image_size(image: ImageInput) -> tuple[int, int]:
    """Return (height, width) of an image turned upright.

    A file's header gives it; only a TIFF with an EXIF orientation, and a PNG without one, are
    decoded.

    Raises:
        DataError: if it is not an image, naming the file.
    """
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image), lambda opened, _: read_image_size(opened))
    if isinstance(image, Image.Image):
        is_turned = 5 <= read_orientation(image) <= 8
        return image.size if is_turned else (image.height, image.width)
    return read_pixels(image).shape[-2:]  # type: ignore[return-value]


def read_picture(path: Path, read: Callable[[Image.Image, str], T], noun: str = "image") -> T:
    """Open a picture file and return what ``read(image, name)`` makes of it.

    Raises:
        DataError: if the file does not exist or cannot be decoded, naming it.
    """
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return read(image, str(path))
    except DataError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        Image.DecompressionBombError,
    ) as error:  # AVIF: the fourth
        raise DataError(
            f"{noun} {path} cannot be decoded: {reason_of(error)}; check its name or replace it"
        ) from error


def _from_file(image: Image.Image, name: str) -> Tensor:
    """Decode an opened file: a JPEG by the fastest operator installed, others and damaged ones by Pillow.

    All give equal pixels. A PNG is not faster by the operators: unpacking takes its time.
    """
    operator = fast_decoder()
    if operator is not None and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        image.fp.seek(0)  # type: ignore[attr-defined]
        raw = np.fromfile(image.fp, np.uint8)  # type: ignore[attr-defined]
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        # the operators do not read XMP
        is_known = exif.get(ExifTags.Base.Orientation, 1) == read_orientation(image)
        with contextlib.suppress(RuntimeError):  # damaged
            # else it is cut short or has an appendix
            if is_known and raw[-2:].tobytes() == _JPEG_END:
                return operator(torch.from_numpy(raw))
    return _from_pil(image, name)


@functools.cache
def fast_decoder() -> Callable[[Tensor], Tensor] | None:
    """Return torchcodec's operator from the bytes of a JPEG file to (3, H, W) RGB, else torchvision's.

    Both turn the pixels upright by the EXIF tag, and use the library that Pillow uses. None =
    neither is installed. ``torchvision.io`` warns at every call.
    """
    with contextlib.suppress(ImportError, AttributeError, OSError, RuntimeError):
        from torchcodec.decoders import decode_jpeg

        return decode_jpeg  # type: ignore[no-any-return]
    with contextlib.suppress(ImportError, AttributeError):
        import torchvision.io  # noqa: F401 - registers the operators

        operator = torch.ops.image.decode_jpeg
        return lambda raw: operator(raw, _RGB, True)  # turned upright
    return None


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which the pixels of an image, as Pillow decodes them, are still to be turned.

    Pillow turns a TIFF itself while it decodes it, so a TIFF with a tag is decoded here and the
    result is 1. Its size is that of the upright image from then on.
    """
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    if image.format != "TIFF" or orientation == 1:
        return orientation if isinstance(orientation, int) else 1  # damaged
    image.filename = ""  # type: ignore[attr-defined]  # Pillow 11 to 13 scrambles a raw TIFF that it maps by its name
    image.load()
    return 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its EXIF orientation."""
    return image if read_orientation(image) == 1 else ImageOps.exif_transpose(image)


def _from_pil(image: Image.Image, name: str) -> Tensor:
    # not known once it is decoded
    is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image = upright(image)
    if image.mode.startswith("I;16"):
        return _from_tensor(torch.from_numpy(np.array(image, np.uint16))[None], name)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} holds 32-bit {image.mode!r} values; expected 8 or 16 bits, or an array in 0 "
            "... 1"
        )
    rgb = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    pixels = torch.from_numpy(np.array(rgb if rgb.mode == "RGB" else rgb.convert("RGB")))
    if is_deep:  # the low bytes are lost
        _check_depth(int(pixels.max()) << 8 | 255, name)
    return pixels.permute(2, 0, 1)


def _check_depth(largest: int, name: str) -> None:
    """Refuse 16-bit values that fill 14 bits at most, naming the largest: such an image would be far too dark."""
    if 0 < largest < 1 << 14:
        remedy = "divide it by the camera's largest value, such as 4095, and pass floats in 0 ... 1"
        raise DataError(
            f"{name} holds 16-bit values of at most {largest}, too dark when scaled by 65535; "
            f"{remedy}"
        )


def _from_tensor(x: Tensor, name: str) -> Tensor:
    """Check an image (1 or 3, H, W); values of 16 bits become floats."""
    if x.ndim != 3 or x.shape[0] not in (1, 3) or not x.numel():
        raise DataError(
            f"{name} has shape {tuple(x.shape)}; expected 1 or 3 channels, height and width"
        )
    if x.dtype == torch.uint16:
        _check_depth(int(x.int().max()), name)
        x = x.float() / 65535.0
    if x.dtype != torch.uint8:
        low, high = x.min().item(), x.max().item()
        if not (x.is_floating_point() and low >= 0.0 and high <= 1.0):  # also catches NaN
            expected = "expected uint8, uint16 or floats in 0 ... 1, not normalised"
            raise DataError(f"{name} holds {x.dtype} values {low:g} ... {high:g}; {expected}")
        x = x.float()
    return x.expand(3, -1, -1).cpu()


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0 ... 1; others unchanged."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels in 0 ... 1 as uint8, rounded; uint8 ones unchanged."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255.0).round().to(torch.uint8)
