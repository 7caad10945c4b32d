"""Many threads, one predictor or several over shared modules: the answers of a lone call, and every mode restored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests import kit

from dinoneck import CLSGatingHead, DenseHead, FPNHead, HeadEnsemble, Predictor, TargetTransform, Task
from dinoneck.heads import Head

THREADS = 8


def at_once(call: Callable[[int], Any], rounds: int = 3) -> list[list[Any]]:
    """What each of the threads gets, all of them set off together, round after round."""
    gate = threading.Barrier(THREADS, timeout=60)

    def work(number: int) -> list[Any]:
        answers = []
        for _ in range(rounds):
            gate.wait()
            answers.append(call(number))
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def heads() -> list[Head]:
    mass = Task("mass", unit="g", transform=TargetTransform(mean=(3.0,), std=(2.0,)))
    return [
        kit.head(mass),
        kit.head(mass, seed=1),
        CLSGatingHead(64, [Task("height")], mode="query", hidden_dim=16, dropout=0.5),
        DenseHead(64, [Task("cover", kind="dense")], hidden_dim=16),
        FPNHead(64, [Task("count", kind="density")], num_layers=1, fpn_dim=16, layer_indices=(5,)),
    ]


@pytest.mark.parametrize("tiled", [False, True])
def test_threads_get_what_a_lone_call_gets(tiled: bool) -> None:
    modules, backbone = heads(), kit.backbone()
    options: dict[str, Any] = {"tile": 32, "overlap": 16} if tiled else {"tta": "flip4"}
    predictor = Predictor(HeadEnsemble(modules), backbone, **options)
    given = [kit.images(1, 32 + 16 * (i % 3), seed=i)[0] for i in range(THREADS)]
    alone = [predictor(image, maps="patch")[0] for image in given]
    for module in modules:
        module.train()
    for number, answers in enumerate(at_once(lambda i: predictor(given[i], maps="patch")[0])):
        assert all(kit.same(answer, alone[number]) for answer in answers)
    assert all(part.training for module in modules for part in module.modules())
    assert not backbone.training
