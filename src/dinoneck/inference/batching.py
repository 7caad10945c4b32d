"""Single images of several threads, answered together: the queue between a service's asked and a predictor."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from dinoneck.codec import at_least, normal
from dinoneck.data.decoding import ImageInput
from dinoneck.errors import BusyError
from dinoneck.inference.predictor import Predictor

Prediction = dict[str, Any]


class _Request(NamedTuple):
    """One prepared image and the promise of its prediction."""

    prepared: list[Any]
    maps: bool
    prediction: Future[Prediction]


class MicroBatcher(AbstractContextManager["MicroBatcher"]):
    """Collects images that threads predict one by one into batches.

    This pays where a forward pass has a large fixed cost: on a GPU, and for small models on small images. On a CPU a
    ViT-S at 224 px is not faster in batches; there several threads may call the predictor directly. An image is decoded
    and prepared in the thread of its caller; one thread of the batcher runs the forward passes. An image that cannot be
    read fails for its caller alone; if a pass fails, its images are predicted one by one. Images that a predictor cuts
    into tiles are batches already and run in the thread of their caller.

    Predictions are those of the predictor on the same batch. Compared with those of a single image they may differ in
    the last bits (matrix products of other sizes are summed in another order).

    Args:
        predictor: makes the predictions; may be called directly meanwhile.
        max_batch: images in a pass, at most.
        max_wait_s: how long the first image of a pass waits for others, in seconds; 0 = takes only what waits already.
        max_waiting: images that may wait for a pass; more are refused at once.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
        >>> predictor = Predictor(PatchMeanHead(64, [Task("total", unit="g")]), load_backbone("dinoneck_tiny"))
        >>> with MicroBatcher(predictor, max_batch=4) as batcher:
        ...     prediction = batcher.predict(torch.rand(3, 32, 48))
        >>> sorted(prediction)
        ['total']
    """

    def __init__(
        self, predictor: Predictor, *, max_batch: int = 8, max_wait_s: float = 0.005, max_waiting: int = 64
    ) -> None:
        self.predictor = predictor
        self.max_batch, self.max_waiting = normal(int, max_batch, "max_batch"), normal(int, max_waiting, "max_waiting")
        self.max_wait_s = normal(float, max_wait_s, "max_wait_s")
        at_least(1, max_batch=self.max_batch, max_waiting=self.max_waiting)
        at_least(0, max_wait_s=self.max_wait_s)
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()  # None ends the thread
        self._entrance = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dinoneck-batches", daemon=True)
        self._thread.start()

    def predict(self, image: ImageInput, maps: bool = False) -> Prediction:
        """Return ``predictor([image], maps)[0]``; waits for a pass.

        Args:
            image: one image, see :class:`dinoneck.data.Preprocessing`.
            maps: with maps, see :class:`dinoneck.Predictor`.

        Raises:
            BusyError: if ``max_waiting`` images wait already, or the batcher is closed or of before a fork.
            DataError: if the image cannot be read, or its prediction is not finite.
        """
        return self.submit(image, maps).result()

    def submit(self, image: ImageInput, maps: bool = False) -> Future[Prediction]:
        """Prepare one image in this thread and return a future of its prediction; raises as :meth:`predict` does.

        An image whose future is cancelled while it waits is not predicted.
        """
        self._refuse_if_full()
        ready, prediction = self.predictor.ready(image), Future[Prediction]()
        if any(isinstance(one, torch.Tensor) for one in ready):
            prediction.set_result(self.predictor.predicted([ready], maps)[0])
            return prediction
        with self._entrance:
            self._refuse_if_full()
            self._waiting.put(_Request(ready, maps, prediction))
        return prediction

    def close(self) -> None:
        """Take no more images; returns when those that wait are predicted. Closing twice does nothing."""
        with self._entrance:
            self._closed = True
            self._waiting.put(None)
        self._thread.join()

    def __exit__(self, *error: object) -> None:
        """Predict what waits and close."""
        self.close()

    def _refuse_if_full(self) -> None:
        if self._closed:
            raise BusyError("the batcher is closed; make another one")
        if not self._thread.is_alive():  # a fork has no copy of the thread: no call would ever return
            raise BusyError("the batcher's thread is not in this process (a fork?); make another one here")
        if (count := self._waiting.qsize()) >= self.max_waiting:
            raise BusyError(
                f"{count} images wait, which is all that may (max_waiting={self.max_waiting}); ask again later, or "
                "allow more"
            )

    def _run(self) -> None:
        """Predict batch by batch until the end is in the queue; a thread that waits holds no images."""
        while (first := self._waiting.get()) is not None:
            running = [one for one in self._batch(first) if one.prediction.set_running_or_notify_cancel()]
            for maps in (False, True):
                self._predict([one for one in running if one.maps == maps], maps)
            del first, running

    def _batch(self, first: _Request) -> list[_Request]:
        """The images of the next pass."""
        batch, until = [first], time.monotonic() + self.max_wait_s
        while len(batch) < self.max_batch:
            try:
                request = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                self._waiting.put(None)
                break
            batch.append(request)
        return batch

    def _predict(self, asked: Sequence[_Request], maps: bool) -> None:
        if not asked:
            return
        try:
            predictions = self.predictor.predicted([one.prepared for one in asked], maps)
        except BaseException as error:  # whatever ends the thread would leave everybody waiting
            if len(asked) == 1:
                asked[0].prediction.set_exception(error)
                return
            for one in asked:
                self._predict([one], maps)
            return
        for one, prediction in zip(asked, predictions, strict=True):
            one.prediction.set_result(prediction)
