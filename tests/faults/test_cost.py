"""What the checks cost: the published goals, and that what is timed is equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.reliability import cost
from tests.reliability_result import stored
from torch import nn


def test_the_published_goals() -> None:
    result = stored("cost")
    assert set(result["load"]) == {*cost.heads(1.0), "25 heads of 0.8 MB, folder", "25 heads of 0.8 MB, one file"}
    assert len(result["goals"]) == len(cost.GOALS) + 1
    assert all(row["met"] for row in result["goals"])
    for name, limit in cost.GOALS.items():
        assert result["load"][name]["ratio, hash aside"][cost.PLAIN][1] <= limit
    assert result["inspect"]["least s"]["dinoneck inspect"] < cost.INSPECT_SECONDS
    assert not result["inspect"]["imports torch"]


def test_heads_are_as_large_as_their_names_say(tmp_path: Path) -> None:
    for name, make in cost.heads(1.0).items():
        number, unit = name.split()[1:]
        with torch.device("meta"):
            size = sum(value.nbytes for value in make().state_dict().values())
        assert size / (int(number) * {"KB": 1e3, "MB": 1e6}[unit]) == pytest.approx(1, abs=0.1), name


def test_ways_that_load_other_bits_are_not_timed() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    cost.check_equal({cost.PLAIN: lambda: one, cost.OWN: lambda: one})
    with pytest.raises(RuntimeError, match="dinoneck loads other tensors"):
        cost.check_equal({cost.PLAIN: lambda: one, cost.OWN: lambda: other})


def test_goals_are_judged_without_the_digest() -> None:
    load = {"ratio": {cost.PLAIN: [2.4, 2.5, 2.6]}, "ratio, hash aside": {cost.PLAIN: [1.8, 1.9, 2.0]}}
    assert cost.goal_row("x", 2.0, load)["met"]
    row = cost.goal_row("x", 1.3, load)
    assert not row["met"]
    assert (row["goal"], row["measured"]) == ("<= 1.3 x safetensors", "1.90 x (with the hash 2.50 x)")


@pytest.mark.slow
def test_a_short_measurement(tmp_path: Path) -> None:
    """Numbers of a busy machine are not judged here, only that they are there."""
    result = cost.measure(tmp_path, 0.01)
    assert set(result["load"]) > set(cost.heads(0.01))
    assert not result["inspect"]["imports torch"]
    text = cost.page(result)
    for name in result["load"]:
        assert f"| {name} |" in text
    assert all(value > 0 for row in result["load"].values() for value in row["ms"].values())
