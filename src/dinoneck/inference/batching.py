"""Single images of several threads, answered together: the queue between a service's requests and a predictor."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from numbers import Integral, Real
from types import TracebackType
from typing import Any

import torch

from dinoneck.data.decoding import ImageInput
from dinoneck.errors import BusyError, ConfigError
from dinoneck.inference.predictor import Predictor

Answer = dict[str, Any]


class _Asked:
    """One prepared image and the promise of its answer."""

    __slots__ = ("answer", "maps", "prepared")

    def __init__(self, prepared: list[Any], maps: bool) -> None:
        self.prepared, self.maps = prepared, maps
        self.answer: Future[Answer] = Future()


class MicroBatcher:
    """Collects images that threads predict one by one into batches.

    This pays where a forward pass has a large fixed cost: on a GPU, and for small models on small images. On a CPU a
    ViT-S at 224 px is not faster in batches; there several threads may call the predictor directly. An image is decoded
    and prepared in the thread of its caller; one thread of the batcher runs the forward passes. An image that cannot be
    read fails for its caller alone; if a pass fails, its images are predicted one by one. Images that a predictor cuts
    into tiles are batches already and run in the thread of their caller.

    Predictions are those of the predictor on the same batch. Compared with those of a single image they may differ in
    the last bits (matrix products of other sizes are summed in another order).

    Args:
        predictor: answers; may be called directly meanwhile.
        max_batch: images in a pass, at most.
        max_wait_s: how long the first image of a pass waits for others, in seconds; 0 = takes only what waits already.
        max_waiting: images that may wait for a pass; more are refused at once.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
        >>> predictor = Predictor(PatchMeanHead(64, [Task("total", unit="g")]), load_backbone("dinoneck_tiny"))
        >>> with MicroBatcher(predictor, max_batch=4) as batcher:
        ...     answer = batcher.predict(torch.rand(3, 32, 48))
        >>> sorted(answer)
        ['total']
    """

    def __init__(
        self, predictor: Predictor, *, max_batch: int = 8, max_wait_s: float = 0.005, max_waiting: int = 64
    ) -> None:
        counts: dict[str, Any] = {"max_batch": max_batch, "max_waiting": max_waiting}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of 1 or more")
        wait: Any = max_wait_s
        if isinstance(wait, bool) or not isinstance(wait, Real) or not 0 <= float(wait) < math.inf:
            raise ConfigError(f"max_wait_s is {wait!r}; expected seconds, 0 or more")
        self.predictor = predictor
        self.max_batch, self.max_wait_s, self.max_waiting = int(max_batch), float(max_wait_s), int(max_waiting)
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dinoneck-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many images wait for a pass at the moment."""
        return len(self._waiting)

    def predict(self, image: ImageInput, maps: bool = False, timeout: float | None = None) -> Answer:
        """Answer for one image, as ``predictor([image], maps)[0]``; waits for a pass.

        Args:
            image: one image, see :class:`dinoneck.data.Preprocessing`.
            maps: with maps, see :class:`dinoneck.Predictor`.
            timeout: seconds to wait for the answer; None = as long as it takes.

        Raises:
            BusyError: if ``max_waiting`` images wait already, or the batcher is closed or of before a fork.
            DataError: if the image cannot be read, or its answer is not finite.
            TimeoutError: if the answer took longer; an image that still waits is dropped.
        """
        asked = self.submit(image, maps)
        try:
            return asked.result(timeout)
        except TimeoutError:
            asked.cancel()
            raise

    def submit(self, image: ImageInput, maps: bool = False) -> Future[Answer]:
        """Prepare one image in this thread and return a future of its answer; raises as :meth:`predict` does."""
        self._refuse_if_full()
        ready = self.predictor.ready(image)
        if any(isinstance(one, torch.Tensor) for one in ready):
            done: Future[Answer] = Future()
            done.set_result(self.predictor.predicted([ready], maps)[0])
            return done
        asked = _Asked(ready, maps)
        with self._changed:
            self._refuse_if_full()
            self._waiting.append(asked)
            self._changed.notify()
        return asked.answer

    def close(self, *, answer: bool = True) -> None:
        """Take no more images; returns when the last pass has ended. Closing twice does nothing.

        Args:
            answer: answer the images that wait; else they are refused with a BusyError.
        """
        with self._changed:
            self._closed = True
            refused = [] if answer else list(self._waiting)
            if refused:
                self._waiting.clear()
            self._changed.notify()
        for asked in refused:
            if asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(
                    BusyError("the batcher was closed before this image's turn; ask another one")
                )
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> MicroBatcher:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer what waits and close."""
        self.close()

    def _refuse_if_full(self) -> None:
        if self._closed:
            raise BusyError("the batcher is closed; make another one")
        if not self._thread.is_alive():  # a fork has no copy of the thread: no call would ever return
            raise BusyError("the batcher's thread is not in this process (a fork?); make another one here")
        if len(self._waiting) >= self.max_waiting:
            raise BusyError(
                f"{len(self._waiting)} images wait, which is all that may (max_waiting={self.max_waiting}); "
                "ask again later, or allow more"
            )

    def _run(self) -> None:
        while batch := self._next():
            for maps in (False, True):
                asked = [one for one in batch if one.maps == maps]
                if asked:
                    self._answer(asked, maps)
            batch = asked = []  # a waiting thread holds no images

    def _next(self) -> list[_Asked]:
        """The images of the next pass, none of them cancelled; empty when closed and nothing is left."""
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                until = time.monotonic() + self.max_wait_s
                while len(self._waiting) < self.max_batch and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                taken = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
                ended = self._closed and not taken
            batch = [one for one in taken if one.answer.set_running_or_notify_cancel()]
            if batch or ended:
                return batch

    def _answer(self, asked: Sequence[_Asked], maps: bool) -> None:
        try:
            answers = self.predictor.predicted([one.prepared for one in asked], maps)
        except BaseException as error:  # whatever ends the thread would leave everybody waiting
            if len(asked) > 1:
                for one in asked:
                    self._answer([one], maps)
                return
            asked[0].answer.set_exception(error)
            return
        for one, answer in zip(asked, answers, strict=True):
            one.answer.set_result(answer)
