"""Timing: every part is run, rounds go in turn, and medians are over those that count."""

from __future__ import annotations

import pytest

from dinoneck import Backbone
from dinoneck.inference import timing
from dinoneck.inference.timing import Pipeline, time_in_turn


class Scripted(Pipeline):
    """A pipeline whose times are known; records when it was run."""

    def run(self) -> dict[timing.Part, float]:
        order, times = self.images[0], self.images[1]
        order.append(self)  # type: ignore[union-attr]
        whole = times.pop(0)  # type: ignore[union-attr]
        return {"prepare": whole / 4, "backbone": whole / 2, "whole": whole}


def test_medians_leave_the_first_round_out(tiny: Backbone) -> None:
    order: list[Pipeline] = []
    plans = {"a": [99.0, 0.002, 0.008, 0.004, 0.006, 9.0], "b": [99.0, 0.1, 0.1, 0.1, 0.3, 0.1]}
    pipelines = {name: Scripted([order, plan], tiny.preprocess, tiny) for name, plan in plans.items()}  # type: ignore[list-item]
    counts: list[int] = []
    found = time_in_turn(pipelines, rounds=5, told=counts.append)
    assert found["a"].ms == pytest.approx({"prepare": 0.75, "backbone": 1.5, "whole": 3.0})  # of two images
    assert found["a"].quartiles == pytest.approx((2.0, 4.0))
    assert found["a"].images_per_s == pytest.approx(1000 / 3)
    assert found["b"].ms["whole"] == pytest.approx(50.0)
    assert counts == [0, 1, 2, 3, 4, 5]
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert all({id(one), id(two)} == {id(p) for p in pipelines.values()} for one, two in pairs), "each once a round"
    assert len({id(pair[0]) for pair in pairs}) == 2, "in an order that changes"
