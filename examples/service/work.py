"""The part that predicts: a model, its self-check, a bounded number of threads and of requests that wait."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from dinoneck import HeadCheckpoint, Predictor
from dinoneck.data.photos import Photo, decode
from dinoneck.errors import BusyError, DataError, DinoneckError, GridError, first_line
from dinoneck.grid import patch_pair
from dinoneck.inference import MicroBatcher
from dinoneck.inference.sources import listed
from dinoneck.inference.sources import opened as read
from examples.service.answers import Maps, as_json
from examples.service.pictures import PixelBudget, broken, opened
from examples.service.refusal import Refusal, shown
from examples.service.settings import Settings
from examples.service.uploads import Upload

logger = logging.getLogger("dinoneck.service")
RETRY_AFTER_S = 1


class Slot:
    """One of the ``concurrency + queue`` places; free again when its request and its work have both ended."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._holders, self._lock = worker, 1, threading.Lock()

    def hold(self) -> None:
        """Keep the place until one more :meth:`release`."""
        with self._lock:
            self._holders += 1

    def release(self, _done: object = None) -> None:
        """Let go of the place."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._worker.leave()


class Worker:
    """Loads the head, checks itself, and answers requests in threads of its own.

    Args:
        settings: bounds, head and device.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.predictor: Predictor | None = None
        self.failure: str | None = None
        self.digests: list[str] = []
        self._batcher: MicroBatcher | None = None
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="predict")
        self._pixels = PixelBudget(settings.max_pixels)
        self._lock = threading.Lock()
        self._taken = self._running = 0

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that were let in and are not worked on: their body arrives, or they wait for a thread."""
        return max(0, self._taken - self._running)

    def load(self) -> None:
        """Load the head and its backbone and predict a made-up photo twice; what goes wrong is in ``failure``."""
        try:
            self._load()
        except (DinoneckError, ImportError, OSError, RuntimeError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {first_line(error)}"
            logger.error("the head cannot be served: %s", self.failure)

    def enter(self) -> Slot:
        """Take a place, before a byte of the body is read.

        Raises:
            Refusal: 503 if the model is not ready, or no place is left.
        """
        if self.predictor is None:
            raise Refusal(503, "not_ready", f"the head is not ready: {self.failure or 'it is being loaded'}", 5)
        places = self.settings.concurrency + self.settings.queue
        with self._lock:
            if self._taken >= places:
                raise Refusal(
                    503,
                    "busy",
                    f"{self._taken} requests are here, of {places} at most; ask again in {RETRY_AFTER_S} s",
                    RETRY_AFTER_S,
                )
            self._taken += 1
        return Slot(self)

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= 1

    async def answer(self, uploads: list[Upload], maps: Maps, slot: Slot) -> list[dict[str, Any]]:
        """Answer a request's photos in one of the threads, one after the other.

        Raises:
            Refusal: 4xx, naming the photo; 503 if it takes longer than ``timeout``.
        """
        slot.hold()
        try:
            work: Future[list[dict[str, Any]]] = self._pool.submit(self._work, uploads, maps)
        except RuntimeError:  # the pool is shut down
            slot.release()
            raise Refusal(503, "busy", "the service is shutting down; ask another one", RETRY_AFTER_S) from None
        work.add_done_callback(slot.release)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self.settings.timeout)
        except TimeoutError:
            raise Refusal(
                503,
                "too_long",
                f"there was no answer within {self.settings.timeout:g} s; ask again later, or for fewer photos at once",
                RETRY_AFTER_S,
            ) from None

    def close(self) -> None:
        """Finish what runs and take nothing new."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._batcher is not None:
            self._batcher.close()

    def _work(self, uploads: list[Upload], maps: Maps) -> list[dict[str, Any]]:
        with self._lock:
            self._running += 1
        try:
            return [self._one(upload, maps) for upload in uploads]
        finally:
            with self._lock:
                self._running -= 1

    def _one(self, upload: Upload, maps: Maps) -> dict[str, Any]:
        predictor = self._ready()
        image = opened(upload, predictor.preprocess, self.settings)
        with image, self._pixels.taken(image.width * image.height):
            try:
                photo = decode(image)
            except DataError as error:
                raise Refusal(422, "unfit", str(error)) from None
            except Exception as error:  # decoders raise whatever damaged bytes lead them to
                raise broken(upload, error) from error
            try:
                answer = self._predicted(photo, maps != "none")
            except (DataError, GridError) as error:
                raise Refusal(422, "unfit", f"{shown(upload.name)}: {error}") from None
            except BusyError as error:
                raise Refusal(503, "busy", str(error), RETRY_AFTER_S) from None
        return as_json(upload.name, answer, maps)

    def _predicted(self, photo: Photo, maps: bool) -> dict[str, Any]:
        if self._batcher is not None:
            return self._batcher.predict(photo, maps)
        return self._ready()(photo, maps)[0]

    def _ready(self) -> Predictor:
        if self.predictor is None:
            raise Refusal(503, "not_ready", "the head is not ready; ask again", 5)
        return self.predictor

    def _load(self) -> None:
        settings = self.settings
        torch.set_num_threads(settings.threads or max(1, torch.get_num_threads() // settings.concurrency))
        sources = read(listed(settings.head))
        self.digests += [source.meta["digest"] for source in sources if isinstance(source, HeadCheckpoint)]
        predictor = Predictor(sources, tta=settings.tta, device=settings.device)  # type: ignore[arg-type]
        patch = patch_pair(predictor.preprocess.patch_size)
        size = predictor.preprocess.size or (4 * patch[0], 4 * patch[1])
        photo = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        first, second = predictor(photo)[0], predictor(photo)[0]  # not finite is a DataError
        for task in predictor.tasks:
            if not math.isclose(float(torch.as_tensor(first[task.name] - second[task.name]).abs().max()), 0.0):
                raise RuntimeError(f"the self-check gave {task.name!r} twice and differently; the model is unfit")
        if settings.batch > 1:
            self._batcher = MicroBatcher(
                predictor, max_batch=settings.batch, max_waiting=settings.concurrency * settings.max_photos
            )
        self.predictor = predictor
        logger.info("ready: %s", ", ".join(task.name for task in predictor.tasks))
