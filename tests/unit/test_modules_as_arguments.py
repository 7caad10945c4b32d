"""A class of one's own that takes registered modules: its configuration and its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    RegistryError,
    SimplePyramid,
    Tokens,
    ViTFPN,
    load_head,
    registry,
)
from dinoneck.configured import Configured
from dinoneck.layers.inputs import as_tokens
from dinoneck.necks import Neck


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

    def __init__(self, neck: Neck, more: Sequence[Neck] = (), layer: LayerLike | None = None) -> None:
        super().__init__()
        self.neck, self.more, self.layer = neck, nn.ModuleList(more), layer

    def forward(self, tokens: Tokens) -> Tensor:
        means = [neck(tokens).maps[0].mean(dim=(2, 3)) for neck in (self.neck, *self.more)]
        return torch.cat(means, dim=1)


LayerLike = nn.Module


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    dinoneck.register(Halved)
    dinoneck.register(Several)


def a_module() -> Several:
    return Several(ViTFPN(8, 2, fpn_dim=4, num_levels=1), [Halved(8), SimplePyramid(8, 4, [1.0])]).eval()


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
    monkeypatch.delitem(registry._OWN, "halved")
    with pytest.raises(RegistryError, match=r"dinoneck\.register\(cls\)"):
        a_module()
    with pytest.raises(CheckpointError, match=r"halved.*dinoneck\.register"):
        HeadCheckpoint.load(tmp_path / "m.safetensors")
