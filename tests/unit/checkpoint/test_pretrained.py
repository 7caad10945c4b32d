"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, alone and next to huggingface_hub's mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import PyTorchModelHubMixin
from tests import kit
from tests.hub_server import Hub
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    CheckpointError,
    FPNHead,
    PatchMeanHead,
    PyramidHead,
    RegistryError,
    Task,
    Tokens,
    ViTFPN,
    load_head,
    registry,
)
from dinoneck.heads import Head

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TASKS = [
    Task("mass", unit="g", activation="softplus"),
    Task("state", dim=2, kind="classification", labels=("a", "b")),
]


def new_process() -> None:
    """Nothing of one's own is registered."""
    registry.REGISTERED.clear()


def test_a_file_of_another_class_is_refused(tmp_path: Path, tiny: Backbone) -> None:
    FPNHead(64, TASKS, num_layers=1, fpn_dim=4).save_pretrained(tmp_path, backbone=tiny)
    for cls in (FPNHead, PyramidHead, Head):
        assert type(cls.from_pretrained(tmp_path)) is FPNHead
    for other in (PatchMeanHead, ViTFPN):
        with pytest.raises(
            CheckpointError, match=rf"'fpn' \(FPNHead\); expected {other.__name__}\. .*load_head"
        ):
            other.from_pretrained(tmp_path)


class Mine(PatchMeanHead, PyTorchModelHubMixin):  # type: ignore[misc]
    """A head of one's own; the file is dinoneck's."""


class Wrapping(nn.Module, PyTorchModelHubMixin):
    """A model of one's own that holds modules of this library."""

    def __init__(self, embed_dim: int = 64, width: int = 8, target: str = "x") -> None:
        super().__init__()
        self.head = PyramidHead(neck=ViTFPN(embed_dim, 2, fpn_dim=width), tasks=[Task(target)])

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.head(tokens)
        return outputs


def a_model(cls: type[Any]) -> Any:
    return cls(width=4, target="mass") if cls is Wrapping else cls(64, TASKS, hidden_dim=4)


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "hub"])
@pytest.mark.parametrize("cls", [Mine, Wrapping])
def test_next_to_the_hubs_mixin(cls: type[Any], remote: bool, writer: Hub, tmp_path: Path) -> None:
    model = a_model(cls).eval()
    if remote:
        model.push_to_hub("me/model")
    else:
        model.save_pretrained(tmp_path / "model")
    new_process()
    again, tokens = (
        cls.from_pretrained("me/model" if remote else tmp_path / "model"),
        kit.tokens(width=64, layers=2),
    )
    assert type(again) is cls
    assert kit.same(again(tokens), model(tokens))
    if cls is not Wrapping:
        assert again.config == model.config


def test_a_class_of_ones_own_is_registered_on_the_way(tmp_path: Path) -> None:
    a_model(Mine).save_pretrained(tmp_path)
    new_process()
    with pytest.raises(CheckpointError, match=r"'mine' is not registered.*dinoneck\.register"):
        load_head(tmp_path / "head.safetensors")
    assert isinstance(Mine.from_pretrained(tmp_path), Mine)
    assert isinstance(load_head(tmp_path / "head.safetensors"), Mine)
    other = type("Mine", (PatchMeanHead,), {"__module__": "elsewhere"})
    with pytest.raises(RegistryError, match="'mine' is taken"):
        other(64, TASKS).save_pretrained(tmp_path)
