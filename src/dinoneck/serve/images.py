"""From uploaded bytes to an image: its format and size are checked before a pixel is decoded."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from dinoneck.data import Preprocessing
from dinoneck.errors import Refusal
from dinoneck.grid import patch_pair
from dinoneck.serve.settings import Settings
from dinoneck.serve.uploads import Upload, quoted

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
Image.MAX_IMAGE_PIXELS = None  # settings.max_pixels is checked before anything is decoded


def open_image(upload: Upload, recipe: Preprocessing, settings: Settings) -> Image.Image:
    """Return the image with its header read and checked; its pixels are still compressed.

    Raises:
        Refusal: 422 if it is not an image, or has several frames; 413 if it is too large.
    """
    name = quoted(upload.name)
    if not upload.data:
        raise Refusal(422, "not_an_image", f"{name} has 0 bytes; expected an image. Send the file again")
    try:
        image = Image.open(io.BytesIO(upload.data), formats=FORMATS)
        frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except UnidentifiedImageError:
        raise Refusal(
            422,
            "not_an_image",
            f"{name} ({len(upload.data)} bytes) is not an image of a known format; expected {', '.join(FORMATS)}. "
            "Convert it",
        ) from None
    except Exception as error:  # decoders raise many types of errors on damaged bytes
        raise broken(upload, error, "not_an_image") from error
    width, height = image.size
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillow opens 16-bit PNGs as I
        raise Refusal(
            422,
            "unfit",
            f"{name} holds 32-bit values ({image.mode}) of unknown range; expected 8 or 16 bits per channel. "
            "Save it with 8 bits",
        )
    if frames:
        raise Refusal(
            422, "animated", f"{name} is an animation or has several pages; expected one image. Send a single frame"
        )
    if width * height > settings.max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name} is {width}x{height} px, {width * height} pixels; expected {settings.max_pixels} at most. "
            "Make it smaller",
        )
    for size in ((height, width), (width, height)):  # EXIF may rotate it
        check_work(size, recipe, settings, name)
    return image


def check_work(size: tuple[int, int], recipe: Preprocessing, settings: Settings, name: str) -> None:
    """Refuse an image of (height, width) px that is small as a file and large for the model.

    Raises:
        Refusal: 413, if it is resized to more than ``max_pixels``, or has more than ``max_patches`` where the head has
            no size of its own.
    """
    if recipe.size is not None:
        height, width = recipe.placement(size).resized
        if height * width > settings.max_pixels:
            raise Refusal(
                413,
                "too_many_pixels",
                f"{name} is {size[0]}x{size[1]} px (height x width) and would be resized to {height}x{width}; "
                f"expected {settings.max_pixels} pixels at most. Crop it to a less extreme shape",
            )
        return
    down, across = patch_pair(recipe.patch_size)
    patches = -(-size[0] // down) * -(-size[1] // across)
    if patches > settings.max_patches:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name} is {size[0]}x{size[1]} px (height x width), {patches} patches of {down}x{across} px; expected "
            f"{settings.max_patches} patches at most. Make it smaller",
        )


def broken(upload: Upload, error: Exception, code: str = "broken_image") -> Refusal:
    """Return the refusal of an image with damaged bytes."""
    reason = quoted(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return Refusal(
        422,
        code,
        f"{quoted(upload.name)} ({len(upload.data)} bytes) cannot be decoded: {reason}; expected a complete image. "
        "Send it again, or save it again",
    )


def without_patches(upload: Upload, size: tuple[int, int], recipe: Preprocessing) -> Refusal:
    """Return the refusal of an image of (height, width) px that does not come to whole patches."""
    down, across = patch_pair(recipe.patch_size)
    return Refusal(
        422,
        "unfit",
        f"{quoted(upload.name)} is {size[0]}x{size[1]} px (height x width), which does not come to whole patches of "
        f"{down}x{across} px. Send a larger image, or one whose sides are multiples of the patch",
    )


class PixelBudget:
    """Limits the pixels of images that are decoded at the same time; further images wait.

    A pixel is 26 to 45 bytes between its file and its patches. The largest image allowed fits the limit alone.
    """

    def __init__(self, pixels: int) -> None:
        self._left = self._all = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Reserve so many pixels inside the block."""
        count = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()
