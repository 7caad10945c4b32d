"""A class of version 2 reads files of version 1, also where it stands inside another: as a neck, a member, both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.ensembles import write_ensemble
from torch import Tensor

from dinoneck import Backbone, HeadCheckpoint, HeadEnsemble, Predictor, PyramidHead, SimplePyramid, Task, Tokens
from dinoneck.checkpoint import read_header


def heads(count: int = 2) -> list[PyramidHead]:
    neck = {"type": "simple_pyramid", "out_channels": 8, "scales": [1, 0.5]}
    return [PyramidHead(64, [Task("a", unit="g")], neck, hidden_dim=4).eval() for _ in range(count)]


def an_image() -> Tokens:
    return Tokens.from_patches(torch.randn(1, 6, 64), grid=(2, 3), patch_size=16)


def turned(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first tensor of the neck was stored with the other sign."""
    first = sorted(tensors)[0]
    return config, {key: value.neg() if key == first else value for key, value in tensors.items()}


def negated(head: PyramidHead) -> str:
    """The name of the neck's first tensor, whose sign is turned."""
    first = sorted(name for name in head.state_dict() if name.startswith("neck."))[0]
    with torch.no_grad():
        head.state_dict()[first].neg_()
    return first


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Files of version 1, and what they must answer once their necks are carried over."""
    own, image = heads(), an_image()
    HeadCheckpoint.from_module(own[0]).save(tmp_path / "head")
    HeadCheckpoint.from_module(HeadEnsemble.from_heads(own)).save(tmp_path / "ensemble")
    write_ensemble(tmp_path / "folder", [HeadCheckpoint.from_module(head) for head in own], "a")
    before = own[0].natural(image)["a"]
    names = [negated(head) for head in own]
    record: dict[str, Any] = {"image": image, "first": names[0], "head": own[0].natural(image)["a"]}
    record["both"] = torch.stack([head.natural(image)["a"] for head in own]).mean(0)
    assert not torch.allclose(before, record["head"])
    return record


@pytest.fixture
def version_2(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the files were written."""
    monkeypatch.setattr(SimplePyramid, "checkpoint_version", 2, raising=False)
    monkeypatch.setattr(SimplePyramid, "checkpoint_migrations", {1: turned}, raising=False)


def answer(module: Any, image: Tokens) -> Tensor:
    found: Tensor = module.natural(image)["a"]
    return found


@pytest.mark.usefixtures("version_2")
def test_a_neck_inside_a_head(files: dict[str, Any], tmp_path: Path) -> None:
    assert read_header(tmp_path / "head").meta["versions"] == {"pyramid": 1, "simple_pyramid": 1}
    found = HeadCheckpoint.load(tmp_path / "head")
    assert found.meta["versions"] == {"pyramid": 1, "simple_pyramid": 2}
    assert torch.equal(answer(found.build(), files["image"]), files["head"])
    found.save(tmp_path / "new")
    again = HeadCheckpoint.load(tmp_path / "new")
    assert again.meta == found.meta
    assert again.file_digest != found.file_digest
    assert torch.equal(answer(again.build(), files["image"]), files["head"]), "carried over once, not twice"


@pytest.mark.usefixtures("version_2")
def test_a_neck_inside_a_member_of_an_ensemble(files: dict[str, Any], tmp_path: Path) -> None:
    found = HeadCheckpoint.load(tmp_path / "ensemble")
    assert found.meta["versions"] == {"ensemble": 1, "pyramid": 1, "simple_pyramid": 2}
    torch.testing.assert_close(answer(found.build(), files["image"]), files["both"])


def test_an_argument_of_a_neck_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Backbone) -> None:
    """The migration sees the neck's own configuration; what it gives stands in the head's."""
    made = HeadCheckpoint.from_module(heads(1)[0], backbone=tiny, preprocess=tiny.preprocess)
    made.save(tmp_path / "old")
    expected = Predictor(tmp_path / "old", tiny)(torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)))
    seen: list[dict[str, Any]] = []

    def wider(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        seen.append(config)
        return {**config, "scales": [float(scale) for scale in config["scales"]]}, tensors

    monkeypatch.setattr(SimplePyramid, "checkpoint_version", 2, raising=False)
    monkeypatch.setattr(SimplePyramid, "checkpoint_migrations", {1: wider}, raising=False)
    found = Predictor(tmp_path / "old", tiny)(torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)))
    assert found == expected
    assert seen[0]["embed_dim"] == 64
    assert "type" not in seen[0]
