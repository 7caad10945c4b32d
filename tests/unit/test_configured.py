"""The codec and the recorded configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from dinoneck import ConfigError, TargetTransform, Task
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
    assert config["levels"] == [[8, "p3"], [4, "p2"]]
    assert config["tasks"][0]["$"] == "Task"
    assert config["anything"] == {"k": [1, [2, 3]], "n": None}
    assert "device" not in config


def test_the_body_sees_normal_forms() -> None:
    module = Example(np.int64(4), np.float32(0.25), sizes=[np.int32(7)], levels={8: "x"}, groups=[[0], [1]])
    assert module.got == (4, 0.25, (7,), {8: "x"}, (), 3, ((0,), (1,)))
    assert type(module.got[0]) is int
    assert type(module.got[1]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "4"}, r"Example\(width=\) is '4' \(str\); expected int"),
        ({"width": 4.0}, "expected int"),
        ({"rate": float("nan")}, "finite"),
        ({"mode": "c"}, "mode"),
        ({"wide": 1}, "expected bool"),
        ({"sizes": [1, "2"]}, r"sizes=\)\[1\]"),
        ({"levels": [[8, "a"], [8, "b"]]}, "twice"),
        ({"either": (1, 2, 3)}, "either"),
        ({"tasks": [{"name": "a"}]}, "Task"),
        ({"tasks": [{"$": "Task", "name": "a", "colour": 1}]}, "no field 'colour'"),
        ({"anything": object()}, "plain value"),
        ({"anything": [float("inf")]}, "finite"),
    ],
)
def test_mistyped_values_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Example.from_config({"width": 4} | change)
    with pytest.raises(ConfigError, match=message):
        Example(**({"width": 4} | change))


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(ConfigError, match=r"no argument 'widht'. Did you mean 'width'\?"):
        Example.from_config({"widht": 4})
    with pytest.raises(ConfigError, match="lacks width"):
        Example.from_config({"rate": 1.0})
    with pytest.raises(ConfigError, match="expected a dict"):
        Example.from_config([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Example"):
        Example(4, colour=1)  # type: ignore[call-arg]


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
