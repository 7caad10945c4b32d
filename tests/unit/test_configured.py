"""The codec and the recorded configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dinoneck import TargetTransform, Task
from dinoneck.configured import Configured


class Example(Configured, nn.Module):
    """A module with every kind of argument."""

    def __init__(
        self,
        width: int,
        rate: float = 0.5,
        name: str | None = None,
        mode: Literal["a", "b"] = "a",
        groups: tuple[tuple[int, ...], ...] | Literal["auto"] = "auto",
        sizes: Sequence[int] = (1, 2),
        levels: dict[int, str] | None = None,
        tasks: Sequence[Task] = (),
        wide: bool = False,
        either: int | tuple[int, int] = 3,
        anything: Any = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.got = (width, rate, sizes, levels, tasks, either, groups)
        self.layer = nn.Linear(width, 1, device=device, dtype=dtype)


FULL = {
    "width": 4, "rate": 2, "name": "x", "mode": "b", "groups": [[0, 1], [2]], "sizes": [3],
    "levels": {8: "p3", 4: "p2"}, "tasks": [Task("a", transform=TargetTransform(mean=(1.0, 2.0), std=0.5), dim=2)],
    "wide": True, "either": (1, 2), "anything": {"k": [1, (2, 3)], "n": None},
}  # fmt: skip


def test_config_is_json_and_rebuilds_the_same() -> None:
    module = Example(**FULL)
    config = module.config
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert Example.from_config(json.loads(json.dumps(config))).config == config
    assert config["rate"] == 2.0
    assert config["groups"] == [[0, 1], [2]]
    assert config["levels"] == {"8": "p3", "4": "p2"}
    assert config["tasks"][0]["$"] == "Task"
    assert config["anything"] == {"k": [1, [2, 3]], "n": None}
    assert "device" not in config


def test_the_body_sees_normal_forms() -> None:
    module = Example(np.int64(4), np.float32(0.25), sizes=[np.int32(7)], levels={8: "x"}, groups=[[0], [1]])
    assert module.got == (4, 0.25, (7,), {8: "x"}, (), 3, ((0,), (1,)))
    assert type(module.got[0]) is int
    assert type(module.got[1]) is float


def test_factory_arguments_travel_outside_the_config() -> None:
    module = Example.from_config({"width": 4}, device="meta", dtype=torch.float64)
    assert module.layer.weight.is_meta
    assert module.layer.weight.dtype == torch.float64
    assert module.config == Example(4).config


class Child(Example):
    """A thin preset with its own signature."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(width=size)


def test_the_outermost_constructor_speaks() -> None:
    assert Child(3).config == {"size": 3}
    assert Child.from_config({"size": 5}).layer.in_features == 5
