"""From a stranger's bytes to a picture: what it is and how large, before a pixel is decoded."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from dinoneck.data import Preprocessing
from dinoneck.data.photos import fitted_size
from dinoneck.grid import patch_pair
from examples.service.refusal import Refusal, shown
from examples.service.settings import Settings
from examples.service.uploads import Upload

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
Image.MAX_IMAGE_PIXELS = None  # the bound here is the settings' own, checked before anything is decoded


def opened(upload: Upload, recipe: Preprocessing, settings: Settings) -> Image.Image:
    """Return the picture, its header read and its size found bearable; its pixels are still compressed.

    Raises:
        Refusal: 422 if it is no picture, or one of several frames; 413 if it is too large.
    """
    name = shown(upload.name)
    if not upload.data:
        raise Refusal(422, "not_a_picture", f"{name} has 0 bytes; expected a picture. Send the file again")
    try:
        image = Image.open(io.BytesIO(upload.data), formats=FORMATS)
        frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except UnidentifiedImageError:
        raise Refusal(
            422,
            "not_a_picture",
            f"{name} ({len(upload.data)} bytes) is no picture of a known kind; expected {', '.join(FORMATS)}. "
            "Convert it",
        ) from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise broken(upload, error, "not_a_picture") from error
    width, height = image.size
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillow opens 16-bit PNGs as I
        raise Refusal(
            422,
            "unfit",
            f"{name} holds 32-bit values ({image.mode}) of unknown range; expected 8 or 16 bits per channel. "
            "Save it anew",
        )
    if frames:
        raise Refusal(
            422, "animated", f"{name} is an animation or has several pages; expected one picture. Send the one you mean"
        )
    if width * height > settings.max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name} is {width}x{height} px, {width * height} pixels; expected {settings.max_pixels} at most. "
            "Make it smaller",
        )
    for size in ((height, width), (width, height)):  # it may be turned: to know would mean to decode some kinds
        check_work(size, recipe, settings, name)
    return image


def check_work(size: tuple[int, int], recipe: Preprocessing, settings: Settings, name: str) -> None:
    """Refuse a photo of (height, width) px that few bytes would make much work.

    Raises:
        Refusal: 413, if it is resized to more than ``max_pixels``, or has more than ``max_patches`` where the head has
            no size of its own.
    """
    if recipe.size is not None:
        (height, width), _ = fitted_size(size, recipe.size, recipe.fit)
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


def broken(upload: Upload, error: Exception, code: str = "broken_picture") -> Refusal:
    """Return the refusal of a picture whose bytes are damaged."""
    said = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return Refusal(
        422,
        code,
        f"{shown(upload.name)} ({len(upload.data)} bytes) cannot be decoded: {said}; expected a whole picture. "
        "Send it again, or save it anew",
    )


class PixelBudget:
    """Lets photos be decoded together only while their pixels stay within a bound; others wait their turn.

    A pixel is 26 to 45 bytes between its file and its patches. The largest photo allowed fits the bound alone.
    """

    def __init__(self, pixels: int) -> None:
        self._left = self._all = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Hold so many pixels of the bound inside the block."""
        wanted = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()
