"""Single images of several threads, predicted together: the queue between a service and a predictor."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.errors import BusyError, ConfigError
from dinoneck.images.decoding import ImageInput
from dinoneck.inference.passes import PassImage, TiledImage
from dinoneck.inference.predictor import Predictor

Prediction = dict[str, Any]


class _Request(NamedTuple):
    """One prepared image and the promise of its prediction."""

    prepared: list[PassImage]
    with_maps: bool
    prediction: Future[Prediction]


class MicroBatcher(AbstractContextManager["MicroBatcher"]):
    """Collects images that threads predict one by one into batches.

    This pays where a forward pass has a large fixed cost: on a GPU, and for small models on small
    images. On a CPU a ViT-S at 224 px is not faster in batches; there several threads may call the
    predictor directly. An image is decoded and prepared in the thread of its caller; one thread of
    the batcher runs the forward passes. An image that cannot be read fails for its caller alone; if
    a pass fails, its images are predicted one by one. Images that a predictor cuts into tiles are
    batches already and run in the thread of their caller.

    Predictions are those of the predictor on the same batch. Compared with those of a single image
    they may differ in the last bits (matrix products of other sizes are summed in another order).

    Args:
        predictor: makes the predictions; may be called directly meanwhile.
        max_batch: images in a pass, at most.
        max_wait_s: how long the first image of a pass waits for others, in seconds; 0 = takes only
            what waits already.
        max_waiting: images that may wait for a pass; more are refused at once.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> import torch
        >>> from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"))
        >>> with MicroBatcher(predictor, max_batch=4) as batcher:
        ...     prediction = batcher.predict(torch.rand(3, 32, 48))
        >>> sorted(prediction)
        ['total']
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_batch: int = 8,
        max_wait_s: float = 0.005,
        max_waiting: int = 64,
    ) -> None:
        self.predictor = predictor
        self.max_batch = normal(int, max_batch, "max_batch")
        self.max_waiting = normal(int, max_waiting, "max_waiting")
        self.max_wait_s = normal(float, max_wait_s, "max_wait_s")
        check_minimum(1, max_batch=self.max_batch, max_waiting=self.max_waiting)
        check_minimum(0, max_wait_s=self.max_wait_s)
        self._waiting: queue.Queue[_Request] = queue.Queue(self.max_waiting)
        self._passes = ThreadPoolExecutor(1, "dinoneck-batches")
        self._process = os.getpid()

    def predict(
        self,
        image: ImageInput,
        maps: bool | Literal["patch"] | None = False,
        timeout: float | None = None,
    ) -> Prediction:
        """Return ``predictor([image], maps)[0]``; waits for a pass.

        Args:
            image: one image, see :class:`dinoneck.data.Preprocessing`.
            maps: True or ``"patch"``: with maps per patch, see :class:`dinoneck.Predictor`; False
                or None: without.
            timeout: seconds to wait for the prediction of the prepared image; None: as long as it
                takes.

        Raises:
            BackboneError: if the backbone's weights changed after the predictor was made.
            BusyError: if ``max_waiting`` images wait already, or the batcher is closed or of before
                a fork.
            ConfigError: for other ``maps``.
            DataError: if the image cannot be read, or its prediction is not finite.
            TimeoutError: if the prediction takes longer. An image that still waits is dropped; one
                that is in a pass is predicted for nobody.
        """
        prediction = self.submit(image, maps)
        try:
            return prediction.result(timeout)
        except TimeoutError:
            prediction.cancel()
            raise

    def submit(
        self, image: ImageInput, maps: bool | Literal["patch"] | None = False
    ) -> Future[Prediction]:
        """Prepare one image in this thread and return a future of its prediction; raise as :meth:`predict`.

        An image whose future is cancelled while it waits is not predicted.
        """
        with_maps = _asks_for_maps(maps)
        if self._waiting.full():
            raise self._full()
        prepared = self.predictor.prepare(image)
        prediction = Future[Prediction]()
        if any(isinstance(pass_image, TiledImage) for pass_image in prepared):
            [result] = self.predictor.predict_prepared([prepared], with_maps)
            prediction.set_result(result)
            return prediction
        # a fork has no copy of the thread: no call would ever return
        if os.getpid() != self._process:
            raise BusyError(
                "the batcher's thread is not in this process (a fork?); make another one here"
            )
        try:
            self._waiting.put_nowait(_Request(prepared, with_maps, prediction))
            self._passes.submit(self._run)
        except queue.Full:
            raise self._full() from None
        except RuntimeError:
            raise BusyError("the batcher is closed; make another one") from None
        return prediction

    def close(self) -> None:
        """Take no more images; returns when those that wait are predicted.

        Closing twice does nothing.
        """
        self._passes.shutdown()

    def __exit__(self, *error: object) -> None:
        """Predict what waits and close."""
        self.close()

    def _full(self) -> BusyError:
        return BusyError(
            f"{self.max_waiting} images wait, which is all that may (max_waiting="
            f"{self.max_waiting}); ask again later, or allow more"
        )

    def _run(self) -> None:
        """Predict a batch of what waits: nothing where an earlier pass has taken this call's image along."""
        requests: list[_Request] = []
        for request in self._next_batch():
            if request.prediction.set_running_or_notify_cancel():
                requests.append(request)
        for with_maps in (False, True):
            alike = [request for request in requests if request.with_maps == with_maps]
            if alike:
                self._predict(alike, with_maps)

    def _next_batch(self) -> list[_Request]:
        """Take what waits from the queue; after the first request wait a while for more."""
        batch: list[_Request] = []
        end = time.monotonic() + self.max_wait_s
        while len(batch) < self.max_batch:
            time_left = max(0.0, end - time.monotonic())
            try:
                batch.append(self._waiting.get(block=bool(batch), timeout=time_left))
            except queue.Empty:
                break
        return batch

    def _predict(self, requests: Sequence[_Request], with_maps: bool) -> None:
        """Predict images together; if that fails, each alone, so that one image fails for its caller alone."""
        images = [request.prepared for request in requests]
        try:
            predictions = self.predictor.predict_prepared(images, with_maps)
        except Exception as error:
            if len(requests) == 1:
                requests[0].prediction.set_exception(error)
            else:
                for request in requests:
                    self._predict([request], with_maps)
            return
        for request, prediction in zip(requests, predictions, strict=True):
            request.prediction.set_result(prediction)


def _asks_for_maps(maps: Any) -> bool:
    """Whether a call asks for maps per patch.

    Raises:
        ConfigError: for anything but True, ``"patch"``, False and None.
    """
    if isinstance(maps, bool) or maps is None:
        return bool(maps)
    if maps != "patch":
        raise ConfigError(
            f"maps is {maps!r}; expected True or 'patch', or False: a MicroBatcher gives maps per "
            "patch, for maps='image' call the predictor"
        )
    return True
