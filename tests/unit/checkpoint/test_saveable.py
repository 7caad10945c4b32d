"""Checkpoints are copied and sent like other objects; what a file would lose, or cannot store, is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, HeadEnsemble, PatchMeanHead, Task, Tokens, load_head
from dinoneck.checkpoint.schema import VIEWS
from dinoneck.inference import tiles


def a_head() -> PatchMeanHead:
    return PatchMeanHead(4, [Task("a")], hidden_dim=4)


def an_ensemble(**options: Any) -> HeadEnsemble:
    return HeadEnsemble.from_heads([a_head(), a_head()], **options)


def tokens() -> Tokens:
    return Tokens.from_patches(torch.randn(2, 6, 4), grid=(2, 3), patch_size=16)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_saves_and_builds(copied: Callable[[HeadCheckpoint], HeadCheckpoint], tmp_path: Path) -> None:
    one = HeadCheckpoint.from_module(a_head())
    other = copied(one)
    other.save(tmp_path / "h")
    for module in (other.build(), other.build(), load_head(tmp_path / "h")):
        assert all(torch.equal(value, one.state_dict[key]) for key, value in module.state_dict().items())


def test_what_is_read_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    with torch.inference_mode():
        path = tmp_path / "h"
        HeadCheckpoint.from_module(a_head()).save(path)
        found = HeadCheckpoint.load(path)
        modules = [load_head(path), found.build(), found.build(dtype=torch.float64), found.build()]
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    for module in (*modules, found.build()):
        module(tokens().to(next(module.parameters()).dtype))["a"].sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("name", "value"), [("reduce", "median"), ("weights", (1.0, 3.0))])
def test_an_ensemble_cannot_differ_from_its_configuration(name: str, value: object) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(an_ensemble(), name, value)


def test_views_are_those_that_predict_knows() -> None:
    assert set(VIEWS) == set(tiles.VIEWS)
    with pytest.raises(CheckpointError, match="'nope'.*none, flip4, d6"):
        HeadCheckpoint.from_module(a_head(), tta="nope")
