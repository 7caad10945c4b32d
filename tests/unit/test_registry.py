"""Names and configurations in files mean classes in the table; modules are given as arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests import kit
from torch import Tensor, nn

import dinoneck
from dinoneck import (
    CheckpointError,
    ConfigError,
    FeaturePyramid,
    HeadCheckpoint,
    PatchMeanHead,
    RegistryError,
    SimplePyramid,
    TargetTransform,
    Task,
    Tokens,
    ViTFPN,
    load_head,
    registry,
)
from dinoneck.configured import Configured
from dinoneck.layers.inputs import as_tokens
from dinoneck.necks import Neck


class Mine(Configured, nn.Module):
    """A user's own module."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


def test_every_name_resolves_to_the_class_that_has_it() -> None:
    for name in registry.names():
        assert registry.name_of(registry.resolve(name)) == name
    assert registry.resolve("patch_mean") is PatchMeanHead


@pytest.mark.parametrize(
    "how", [lambda: dinoneck.register(Mine), lambda: registry.register(Mine, name="mine")]
)
def test_own_classes(how: Callable[[], type]) -> None:
    assert how() is Mine
    assert how() is Mine, "again is fine"
    assert registry.resolve("mine") is Mine
    assert registry.name_of(Mine) == "mine"
    assert "mine" in registry.names()


@pytest.mark.parametrize(
    ("written", "name"), [("MyHead", "my_head"), ("_MyFPNHead2", "my_fpn_head2")]
)
def test_the_default_name_is_the_class_in_snake_case(written: str, name: str) -> None:
    cls = dinoneck.register(type(written, (Mine,), {}))
    assert registry.name_of(cls) == name


def test_a_class_defined_again_replaces_the_earlier_one() -> None:
    def cell() -> type:
        @dinoneck.register
        class Cell(Mine):
            """As in a notebook."""

        return Cell

    cell()
    again = cell()
    assert registry.resolve("cell") is again


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
    "width": 4,
    "rate": 2,
    "name": "x",
    "mode": "b",
    "groups": [[0, 1], [2]],
    "sizes": [3],
    "levels": {8: "p3", 4: "p2"},
    "tasks": [Task("a", transform=TargetTransform(mean=(1.0, 2.0), std=0.5), dim=2)],
    "wide": True,
    "either": (1, 2),
    "anything": {"k": [1, (2, 3)], "n": None},
}


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
    module = Example(
        np.int64(4), np.float32(0.25), sizes=[np.int32(7)], levels={8: "x"}, groups=[[0], [1]]
    )
    assert module.got == (4, 0.25, (7,), {8: "x"}, (), 3, ((0,), (1,)))
    assert type(module.got[0]) is int
    assert type(module.got[1]) is float


class Child(Example):
    """A thin preset with its own signature."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(width=size)


def test_the_outermost_constructor_speaks() -> None:
    assert Child(3).config == {"size": 3}
    assert Child.from_config({"size": 5}).layer.in_features == 5


class Halved(Neck):
    """A neck of one's own."""

    def __init__(self, embed_dim: int, patch_size: int = 16) -> None:
        super().__init__()
        self.embed_dim, self.num_layers, self.patch_size = embed_dim, None, patch_size
        self.out_channels, self.strides = 4, (float(patch_size),)
        self.linear = nn.Linear(embed_dim, 4)

    def forward(self, tokens: Any, images: Tensor | None = None, **plain: Any) -> FeaturePyramid:
        (x,) = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self).last.maps()
        return FeaturePyramid((self.linear(x.movedim(1, -1)).movedim(-1, 1),), self.strides)


class Several(Configured, nn.Module):
    """Means of the finest levels of one neck, and of others."""

    def __init__(
        self, neck: Neck, more: Sequence[Neck] = (), layer: LayerLike | None = None
    ) -> None:
        super().__init__()
        self.neck, self.more, self.layer = neck, nn.ModuleList(more), layer

    def forward(self, tokens: Tokens) -> Tensor:
        means = [neck(tokens).maps[0].mean(dim=(2, 3)) for neck in (self.neck, *self.more)]
        return torch.cat(means, dim=1)


LayerLike = nn.Module


@pytest.fixture(autouse=True)
def registered() -> None:
    dinoneck.register(Halved)
    dinoneck.register(Several)


def a_module() -> Several:
    return Several(
        ViTFPN(8, 2, fpn_dim=4, num_levels=1), [Halved(8), SimplePyramid(8, 4, [1.0])]
    ).eval()


def test_modules_are_recorded_with_their_own_configuration(tmp_path: Path) -> None:
    module = a_module()
    assert module.config["neck"] == {"type": "vit_fpn", "config": module.neck.config}
    assert [part["type"] for part in module.config["more"]] == ["halved", "simple_pyramid"]
    HeadCheckpoint.from_module(module).save(tmp_path / "m.safetensors")
    x = kit.tokens(2, 2, 3, width=8, layers=2)
    assert torch.equal(load_head(tmp_path / "m.safetensors")(x), module(x))


def test_what_is_not_registered_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    HeadCheckpoint.from_module(a_module()).save(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="'patch_mean_mlp' .*expected a registered Neck"):
        Several({"type": "patch_mean_mlp", "config": {"embed_dim": 8}})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Linear"):
        Several(Halved(8), layer=nn.Linear(1, 1))
    monkeypatch.delitem(registry.REGISTERED, "halved")
    with pytest.raises(RegistryError, match=r"dinoneck\.register\(cls\)"):
        a_module()
    with pytest.raises(CheckpointError, match=r"halved.*dinoneck\.register"):
        HeadCheckpoint.load(tmp_path / "m.safetensors")
