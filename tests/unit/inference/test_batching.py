"""Single images of several threads in one pass: each its own answer, neighbours' errors kept apart, an orderly end."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from torch import Tensor

from dinoneck import BackboneError, BusyError, DataError, Predictor
from dinoneck.inference import MicroBatcher


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(kit.head(), kit.backbone())


def images(count: int) -> list[Tensor]:
    return [kit.images(1, 32, 32 + 16 * (i % 2), seed=i)[0] for i in range(count)]


class Held:
    """Holds the passes of a predictor up until they are let go, and counts their images."""

    def __init__(self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.started, self.go = threading.Event(), threading.Event()
        own = predictor.predict_prepared

        def wait(prepared: Any, maps: bool) -> Any:
            self.sizes.append(len(prepared))
            self.started.set()
            assert self.go.wait(60)
            return own(prepared, maps)

        monkeypatch.setattr(predictor, "predict_prepared", wait)


@pytest.mark.slow
def test_every_thread_gets_its_own_answer(predictor: Predictor) -> None:
    given = images(32)
    alone = [predictor(image, maps="patch")[0] for image in given]
    with MicroBatcher(predictor, max_wait_s=0.05) as batcher, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda i: batcher.predict(given[i], maps=i % 3 == 0), range(len(given)))
        )
    for i, (answer, lone) in enumerate(zip(answers, alone, strict=True)):
        assert answer["mass"] == pytest.approx(lone["mass"], rel=1e-5)
        assert ("maps" in answer) == (i % 3 == 0)
        if i % 3 == 0:
            np.testing.assert_allclose(
                answer["maps"]["mass"], lone["maps"]["mass"], rtol=1e-4, atol=1e-6
            )


def test_what_waits_goes_together_and_no_more_than_fit(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    with MicroBatcher(predictor, max_batch=3, max_wait_s=0) as batcher:
        first = batcher.submit(images(1)[0])
        assert held.started.wait(60)
        others = [batcher.submit(image) for image in images(7)]
        held.go.set()
        assert all(0 < one.result(60)["mass"] < 10 for one in [first, *others])
    assert held.sizes == [1, 3, 3, 1]


def test_a_full_queue_refuses_and_a_cancelled_image_is_dropped(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    with MicroBatcher(predictor, max_batch=2, max_wait_s=0, max_waiting=2) as batcher:
        first = batcher.submit(images(1)[0])
        assert held.started.wait(60)
        assert batcher.submit(images(1)[0]).cancel()
        second = batcher.submit(images(1)[0])
        with pytest.raises(BusyError, match="2 images wait.*max_waiting=2"):
            batcher.submit(images(1)[0])
        held.go.set()
        assert first.result(60) == second.result(60)
    assert held.sizes == [1, 1]  # the dropped one never ran


def test_an_image_whose_caller_waits_no_longer_is_dropped(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    with MicroBatcher(predictor, max_batch=2, max_wait_s=0, max_waiting=2) as batcher:
        first = batcher.submit(images(1)[0])
        assert held.started.wait(60)
        with pytest.raises(TimeoutError):
            batcher.predict(images(1)[0], timeout=0.001)
        held.go.set()
        assert first.result(60)["mass"] > 0
    assert held.sizes == [1]  # the dropped one never ran


def test_a_prediction_that_takes_too_long_does_not_stop_the_batcher(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    with MicroBatcher(predictor, max_wait_s=0) as batcher:
        with pytest.raises(TimeoutError):
            batcher.predict(images(1)[0], timeout=0.2)
        held.go.set()
        assert batcher.predict(images(1)[0], timeout=60)["mass"] > 0


def test_the_end_predicts_all_that_wait(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    batcher = MicroBatcher(predictor, max_batch=2, max_wait_s=0)
    predictions = [batcher.submit(image) for image in images(6)]
    assert held.started.wait(60)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    held.go.set()
    closing.join(60)
    assert all(one.result(0)["mass"] > 0 for one in predictions)
    batcher.close()
    with pytest.raises(BusyError, match="closed"):
        batcher.predict(images(1)[0])


def test_one_image_that_cannot_be_predicted_costs_no_neighbour(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    [good] = images(1)
    [expected] = predictor([good])
    bad_size = (48, 48)
    bad = kit.images(1, *bad_size)[0]
    own = predictor.predict_prepared

    def predict_prepared(prepared: Any, maps: bool) -> Any:
        if any(image.size == bad_size for [image] in prepared):
            raise DataError("not finite")
        return own(prepared, maps)

    monkeypatch.setattr(predictor, "predict_prepared", predict_prepared)

    # the three fill one pass
    with MicroBatcher(predictor, max_batch=3, max_wait_s=30) as batcher:
        first, failed, last = [batcher.submit(image) for image in (good, bad, good)]

    assert first.result(0) == last.result(0) == expected
    with pytest.raises(DataError, match="not finite"):
        failed.result(0)


def test_images_that_come_within_max_wait_s_share_a_pass(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(predictor, monkeypatch)
    held.go.set()
    with MicroBatcher(predictor, max_batch=2, max_wait_s=30) as batcher:
        first = batcher.submit(images(1)[0])
        time.sleep(0.2)  # the pass of the first would have begun
        second = batcher.submit(images(1)[0])
        assert first.result(60) == second.result(60)

    assert held.sizes == [2]


def test_a_batcher_in_a_fork_raises_instead_of_waiting_for_ever(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork has no copy of the batcher's thread."""
    with MicroBatcher(predictor) as batcher, monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        with pytest.raises(BusyError, match="not in this process"):
            batcher.submit(images(1)[0])


@pytest.mark.parametrize(("maps", "has_maps"), [("patch", True), (True, True), (None, False)])
@pytest.mark.parametrize("tile", [None, 16])
def test_maps_are_asked_for_by_true_or_by_the_word_of_a_predictor(
    maps: Any, has_maps: bool, tile: int | None
) -> None:
    predictor = Predictor(kit.head(), kit.backbone(), tile=tile)
    [image] = images(1)

    with MicroBatcher(predictor) as batcher:
        prediction = batcher.predict(image, maps=maps, timeout=60)

    [expected] = predictor(image, maps="patch")
    assert prediction["mass"] == pytest.approx(expected["mass"], rel=1e-5)
    assert ("maps" in prediction) == has_maps


def test_weights_that_changed_after_construction_are_refused() -> None:
    predictor = Predictor(kit.head(), kit.backbone())
    [image] = images(1)
    with torch.no_grad():
        predictor.backbone.adapter.weight.add_(1.0)

    with MicroBatcher(predictor) as batcher, pytest.raises(BackboneError, match="changed"):
        batcher.predict(image, timeout=60)
