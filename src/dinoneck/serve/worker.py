"""The part that predicts: the model, a limited number of threads, and a limited number of waiting requests."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dinoneck.data.decoding import read_pixels
from dinoneck.errors import BusyError, DataError, DinoneckError, GridError, Refusal, first_line
from dinoneck.serve.images import PixelBudget, broken, open_image, without_patches
from dinoneck.serve.models import Model, open_model
from dinoneck.serve.responses import Maps
from dinoneck.serve.settings import Settings
from dinoneck.serve.uploads import Upload, quoted

logger = logging.getLogger("dinoneck.serve")
RETRY_AFTER_S = 1


class Slot:
    """One of the ``concurrency + queue`` slots; free again when its request and its work have both ended."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._holders, self._lock = worker, 1, threading.Lock()

    def hold(self) -> None:
        """Keep the slot until one more :meth:`release`."""
        with self._lock:
            self._holders += 1

    def release(self, _done: object = None) -> None:
        """Release the slot."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._worker.leave()


class Worker:
    """Loads the model, checks it, and predicts in threads of its own.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        settings: limits and device.
    """

    def __init__(self, head: str | os.PathLike[str], settings: Settings) -> None:
        self.head, self.settings = head, settings
        self.model: Model | None = None
        self.failure: str | None = None
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="predict")
        self._pixels = PixelBudget(settings.max_pixels)
        self._lock = threading.Lock()
        self._taken = self._running = 0

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests with a slot that are not computed yet: their body arrives, or they wait for a thread."""
        return max(0, self._taken - self._running)

    def load(self) -> None:
        """Load the model and check it; an error is recorded in ``failure``."""
        threads = self.settings.threads or max(1, torch.get_num_threads() // self.settings.concurrency)
        torch.set_num_threads(threads)
        try:
            self.model = open_model(self.head, self.settings)
            logger.info("ready: %s", self.model.ready)
        except (DinoneckError, ImportError, OSError, RuntimeError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {first_line(error)}"
            logger.error("the head cannot be served: %s", self.failure)

    def loaded(self) -> Model:
        """Return the model.

        Raises:
            Refusal: 503 if it is not ready.
        """
        if self.model is None:
            raise Refusal(503, "not_ready", f"the head is not ready: {self.failure or 'it is being loaded'}", 5)
        return self.model

    def enter(self) -> Slot:
        """Take a slot, before the body is read.

        Raises:
            Refusal: 503 if the model is not ready, or no slot is free.
        """
        self.loaded()
        slots = self.settings.concurrency + self.settings.queue
        with self._lock:
            if self._taken >= slots:
                message = f"{self._taken} requests are in progress, of {slots} at most; retry in {RETRY_AFTER_S} s"
                raise Refusal(503, "busy", message, RETRY_AFTER_S)
            self._taken += 1
        return Slot(self)

    def leave(self) -> None:
        """Give a slot back."""
        with self._lock:
            self._taken -= 1

    async def predict(self, uploads: list[Upload], maps: Maps, slot: Slot) -> list[dict[str, Any]]:
        """Predict a request's images one after the other in one thread.

        Raises:
            Refusal: 4xx, naming the image; 503 if it takes longer than ``timeout``.
        """
        slot.hold()
        try:
            work: Future[list[dict[str, Any]]] = self._pool.submit(self._work, uploads, maps)
        except RuntimeError:  # the pool is shut down
            slot.release()
            raise Refusal(503, "busy", "the service is shutting down; ask another instance", RETRY_AFTER_S) from None
        work.add_done_callback(slot.release)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self.settings.timeout)
        except TimeoutError:
            message = f"no prediction within {self.settings.timeout:g} s; retry later, or with fewer images at once"
            raise Refusal(503, "too_long", message, RETRY_AFTER_S) from None

    def close(self) -> None:
        """Complete what runs; accept nothing new."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.model is not None:
            self.model.close()

    def _work(self, uploads: list[Upload], maps: Maps) -> list[dict[str, Any]]:
        with self._lock:
            self._running += 1
        try:
            return [self._one(upload, maps) for upload in uploads]
        finally:
            with self._lock:
                self._running -= 1

    def _one(self, upload: Upload, maps: Maps) -> dict[str, Any]:
        model = self.loaded()
        image = open_image(upload, model.preprocess, self.settings)
        with image, self._pixels.taken(image.width * image.height):
            try:
                pixels = read_pixels(image)
            except DataError as error:
                raise Refusal(422, "unfit", str(error)) from None
            except Exception as error:  # decoders raise many types of errors on damaged bytes
                raise broken(upload, error) from error
            try:
                return model.predict(pixels, upload.name, maps)
            except GridError:
                height, width = pixels.shape[-2:]
                raise without_patches(upload, (height, width), model.preprocess) from None
            except DataError as error:
                raise Refusal(422, "unfit", f"{quoted(upload.name)}: {error}") from None
            except BusyError as error:
                raise Refusal(503, "busy", str(error), RETRY_AFTER_S) from None
