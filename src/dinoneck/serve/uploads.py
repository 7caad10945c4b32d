"""The files of a multipart request, and from a file to pixels: everything is checked before it costs memory.

Bytes are counted before Starlette's parser stores them; format and size are checked before a pixel
is decoded.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Request
from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.grid import patch_pair
from dinoneck.images.decoding import read_pixels
from dinoneck.images.recipe import ImageRecipe, Size
from dinoneck.serve.refusal import Refusal
from dinoneck.serve.settings import Settings
from dinoneck.text import first_line

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 50_000_000  # of an image, and of all images in memory
MAX_PATCHES = 4096  # of an image that is not resized
_LONGEST_SHOWN = 80  # characters of a client's text in a message; of a longer one its start and end
_SHOWN_START = 60
_SHOWN_END = 15
_SHOWN_DIGITS = 20  # of the length that a client states
_COUNTED_IMAGES = 1000  # beyond the limit, so that the message can state how many there are
Image.init()  # loads the formats now, and not within the first request
EXPECTED = (
    "expected multipart/form-data with one file per image, as curl -F image=@field.jpg sends it"
)


def quoted(text: str | None) -> str:
    """Return a client's text for a message: short, with control characters spelled out."""
    text = text or ""
    if len(text) > _LONGEST_SHOWN:
        text = f"{text[:_SHOWN_START]}...{text[-_SHOWN_END:]}"
    return repr(text)


@asynccontextmanager
async def received_files(request: Request, settings: Settings) -> AsyncIterator[list[UploadFile]]:
    """Yield the files of a multipart request; they are closed at the end.

    Raises:
        Refusal: 400 if the body is malformed or ends early, 413 if it is too large or has too many
            files. 415 if it is encoded or not multipart, 422 if it holds no file, or a text field.
    """
    max_bytes = settings.max_upload_bytes
    length = request.headers.get("content-length", "")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(
            415, "not_multipart", f"the body is {quoted(kind.decode('latin-1'))}; {EXPECTED}"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refusal(
            415, "not_multipart", f"the body is encoded as {quoted(encoding)}; send it plain"
        )
    last_line = b"--%b--" % options.get(b"boundary", b"")
    tail_length = len(last_line) + len(b"\r\n")  # a line break may follow
    num_bytes = 0
    tail = b""

    async def receive() -> Message:
        """Receive the next part of the body, and count its bytes."""
        nonlocal num_bytes, tail
        message = await request.receive()
        content = message.get("body", b"")
        num_bytes += len(content)
        tail = (tail + content)[-tail_length:]
        if num_bytes > max_bytes:
            raise _too_large(f"more than {max_bytes}", max_bytes)
        return message

    # float() takes any number of digits, and int() not more than 4300
    if length.isdecimal() and float(length) > max_bytes:
        raise _too_large(length[:_SHOWN_DIGITS], max_bytes)
    max_files = settings.max_images + _COUNTED_IMAGES
    try:
        form = await Request(request.scope, receive).form(max_files=max_files)
    except ClientDisconnect:
        raise Refusal(
            400, "malformed_upload", "the connection ended before the body did; send it again"
        ) from None
    except (HTTPException, FormParserError) as error:
        reason = getattr(error, "detail", type(error).__name__)
        raise Refusal(
            400, "malformed_upload", f"the body is malformed: {reason}; {EXPECTED}"
        ) from None
    try:
        if last_line not in tail:  # the parser leaves out an unfinished part without an error
            raise Refusal(
                400, "malformed_upload", f"the body ends before its last boundary; {EXPECTED}"
            )
        files = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Refusal(
                    422, "no_image", f"the field {quoted(name)} is not a file; {EXPECTED}"
                )
            files.append(value)
        if not files:
            raise Refusal(422, "no_image", f"the body holds no file; {EXPECTED}")
        if len(files) > settings.max_images:
            problem = f"the body holds {len(files)} files; expected {settings.max_images} at most"
            raise Refusal(413, "too_many_images", f"{problem}. Send them in several requests")
        yield files
    finally:
        await form.close()


def _too_large(length: str, max_bytes: int) -> Refusal:
    problem = f"the body has {length} bytes; expected {max_bytes} at most"
    return Refusal(413, "too_large", f"{problem}. Send fewer images at once, or smaller ones")


def open_image(
    upload: UploadFile, recipe: Callable[[Size], ImageRecipe], max_pixels: int
) -> Image.Image:
    """Return the image with its header read and checked; its pixels are still compressed.

    Args:
        upload: the file.
        recipe: (height, width) of an image -> how it is prepared.
        max_pixels: of the image, and of what it is resized to.

    Raises:
        Refusal: 422 if it is not an image, or has several frames; 413 if it, or what it is resized
            to, is too large.
    """
    name = f"{quoted(upload.filename)} ({upload.size} bytes)"
    if not upload.size:
        raise Refusal(422, "not_an_image", f"{name} is empty; expected an image. Send it again")
    try:
        image = Image.open(upload.file, formats=FORMATS)
        # the further frames of an MPO are views and previews
        is_animated = getattr(image, "is_animated", False) and image.format != "MPO"
    except Image.DecompressionBombError:  # Pillow's text calls it an attack
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name} has far more pixels than its bytes explain; expected {max_pixels} at most. "
            "Shrink it",
        ) from None
    except UnidentifiedImageError:
        raise Refusal(
            422,
            "not_an_image",
            f"{name} is not an image of a known format; expected {', '.join(FORMATS)}. Convert it",
        ) from None
    except Exception as error:  # decoders raise many types of errors on damaged bytes
        reason = quoted(first_line(error))
        raise Refusal(
            422,
            "not_an_image",
            f"{name} is damaged: {reason}; expected a complete image. Send it again",
        ) from None
    if is_animated:
        raise Refusal(
            422,
            "animated",
            f"{name} has several frames or pages; expected one image. Send a single frame",
        )
    width, height = image.size
    pixels = width * height
    prepared = prepared_pixels(image, recipe)
    size = f"{name} is {width}x{height} px (width x height)"
    if pixels > max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{size}, {pixels} pixels; expected {max_pixels} at most. Shrink it",
        )
    if prepared > max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{size} and would be resized to {prepared} pixels; expected {max_pixels} at most. "
            "Crop it to a less extreme shape",
        )
    return image


def prepared_pixels(image: Image.Image, recipe: Callable[[Size], ImageRecipe]) -> int:
    """Return the most pixels of an image that is prepared, see :func:`open_image`; EXIF may turn it."""
    width, height = image.size
    upright = _prepared_pixels(height, width, recipe((height, width)))
    turned = _prepared_pixels(width, height, recipe((width, height)))
    return max(upright, turned)


def _prepared_pixels(height: int, width: int, recipe: ImageRecipe) -> int:
    """The most pixels of an image that is resized to cover a size, or filled up to whole patches."""
    if recipe.size is not None:
        target_height, target_width = recipe.size
        scale = max(target_height / height, target_width / width)
        return math.ceil(height * width * scale**2)
    patch_height, patch_width = patch_pair(recipe.patch_size)
    rows = math.ceil(height / patch_height)
    cols = math.ceil(width / patch_width)
    return rows * patch_height * cols * patch_width


def decode(image: Image.Image, upload: UploadFile, bits: int | None) -> Tensor:
    """Return the pixels (3, H, W) of an opened image, upright; ``bits`` are those of 16-bit images.

    Raises:
        DataError: if the values cannot be used, or a TIFF holds a preview or several images.
        Refusal: 422 if the bytes are damaged.
    """
    name = f"{quoted(upload.filename)} ({upload.size} bytes)"
    try:
        return read_pixels(image, bits)
    except DataError:  # the worker names the image
        raise
    except Exception as error:  # decoders raise many types of errors on damaged bytes
        reason = quoted(first_line(error))
        problem = f"{name} cannot be decoded: {reason}; expected a complete image"
        raise Refusal(422, "broken_image", f"{problem}. Send it again, or save it again") from None
