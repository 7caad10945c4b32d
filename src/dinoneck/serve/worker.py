"""The part that predicts: a limited number of threads, and a limited number of waiting requests."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from dinoneck.errors import DataError, GridError
from dinoneck.grid import patch_pair
from dinoneck.serve.models import Model
from dinoneck.serve.refusal import Refusal
from dinoneck.serve.settings import Settings
from dinoneck.serve.uploads import (
    MAX_PATCHES,
    MAX_PIXELS,
    decode,
    open_image,
    prepared_pixels,
    quoted,
    received_files,
)

RETRY_AFTER_S = 1
# memory is given out in units of so many pixels; a pixel takes 26 to 45 bytes between its file and
# the patches
_UNIT = 250_000


@dataclass(eq=False)
class _Body:
    """A body that is arriving.

    Attributes:
        deadline: ends its request.
        since: when its request began, in the event loop's seconds.
        has_slot: whether its slot was not given to another request.
    """

    deadline: asyncio.Timeout
    since: float
    has_slot: bool = True


class Worker:
    """Predicts in threads of its own.

    Args:
        model: the loaded model.
        settings: the limits.

    Attributes:
        max_pixels: of an image.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        recipe = model.preprocess
        most_pixels = MAX_PIXELS
        # attention costs the square of the pixels that are not resized, nor cut into tiles
        if recipe.size is None and model.tile is None:
            most_pixels = MAX_PATCHES * math.prod(patch_pair(recipe.patch_size))
        self.max_pixels = settings.max_pixels or most_pixels
        self._model = model
        self._settings = settings
        # a batch is gathered from threads that wait with one image each
        self._count = max(settings.concurrency, settings.batch)
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="predict")
        self._slots = threading.BoundedSemaphore(self._count + settings.queue)
        self._arriving: list[_Body] = []  # the oldest first
        self._units = threading.BoundedSemaphore(MAX_PIXELS // _UNIT)
        self._turn = threading.Lock()

    async def predict(self, request: Request, maps: str) -> bytes:
        """Return the predictions for a request's images, in their order, as JSON.

        The request has a slot before its body is read; a body that takes longer than the limit for
        bodies loses it to the next request without one. A thread cannot be stopped: after a timeout
        it keeps the slot until its image is finished.

        Raises:
            Refusal: 4xx for the request or an image of it; 408 if the body is late; 503 if no slot
                is free, or the prediction is late.
        """
        self._take_slot()
        deadline = asyncio.timeout(self._settings.timeout)
        body = _Body(deadline, since=asyncio.get_running_loop().time())
        self._arriving.append(body)
        work: Future[bytes] | None = None
        try:
            async with deadline, received_files(request, self._settings) as files:
                if not body.has_slot:  # it was complete just when its slot was given away
                    raise TimeoutError
                self._arriving.remove(body)
                work = self._threads.submit(self._predict, files, maps)
                return await asyncio.wrap_future(work)
        except TimeoutError:
            limit = f"within {self._settings.timeout:g} s"
            if not body.has_slot:
                limit = f"within {self._settings.body_timeout:g} s, and other requests wait"
            if work is None:
                raise Refusal(
                    408, "too_slow", f"the body did not arrive {limit}; send smaller images"
                ) from None
            problem = f"no prediction {limit}; retry later, or with fewer images at once"
            raise Refusal(503, "too_long", problem, RETRY_AFTER_S) from None
        finally:
            if body in self._arriving:
                self._arriving.remove(body)
            if work is not None:
                work.add_done_callback(lambda _: self._slots.release())
            elif body.has_slot:
                self._slots.release()

    def _take_slot(self) -> None:
        """Take a free slot, or that of the body that has been arriving for longest.

        Raises:
            Refusal: 503 if no slot is free, and no body takes longer than the limit.
        """
        if self._slots.acquire(blocking=False):
            return
        now = asyncio.get_running_loop().time()
        if self._arriving and now - self._arriving[0].since >= self._settings.body_timeout:
            slowest = self._arriving.pop(0)
            slowest.has_slot = False
            slowest.deadline.reschedule(now)
            return
        most = self._count + self._settings.queue
        problem = f"{most} requests are in progress, which is the limit; retry in {RETRY_AFTER_S} s"
        raise Refusal(503, "busy", problem, RETRY_AFTER_S)

    def _predict(self, files: list[UploadFile], maps: str) -> bytes:
        rows = [{"name": upload.filename, **self._row(upload, maps)} for upload in files]
        return json.dumps({"images": rows}, separators=(",", ":")).encode()

    def _row(self, upload: UploadFile, maps: str) -> dict[str, Any]:
        recipe = self._model.preprocess
        image = open_image(upload, self._model.recipe, self.max_pixels)
        num_pixels = max(image.width * image.height, prepared_pixels(image, self._model.recipe))
        units = math.ceil(min(MAX_PIXELS, num_pixels) / _UNIT)
        with self._turn:  # one thread at a time collects, so that two never wait for each other
            for _ in range(units):
                self._units.acquire()
        try:
            pixels = decode(image, upload, recipe.bits)
            return self._model.predict(pixels, maps)
        except GridError:
            height, width = pixels.shape[-2:]
            down, across = patch_pair(recipe.patch_size)
            size = f"{quoted(upload.filename)} is {height}x{width} px (height x width)"
            expected = (
                f"expected multiples of {down}x{across} px, a patch. Send a larger image, or cut it"
            )
            raise Refusal(422, "unfit", f"{size}; {expected}") from None
        except DataError as error:
            raise Refusal(422, "unfit", f"{quoted(upload.filename)}: {error}") from None
        finally:
            self._units.release(units)
