"""Sums of a head's tasks, declared in the head: they never contradict the parts, wherever these are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import (
    Composition,
    DenseHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.heads import Head

PARTS = ("leaf", "stem", "dead wood")
SUMS = {"above": ("leaf", "stem"), "plant (g)": PARTS}
ADDED = Composition(PARTS, SUMS, "sums")


def head_of(kind: str, seed: int = 0) -> Head:
    """Parts of different scales, about half of which are below the minimum before it."""
    torch.manual_seed(seed)
    if kind == "dense":
        scale = TargetTransform(mean=0.0, std=1e5)
        tasks = [Task(name, kind="density", unit="g", minimum=0.0, transform=scale) for name in PARTS]
        return DenseHead(64, tasks, hidden_dim=8, depth=0, compositions=[ADDED]).eval()
    each = enumerate(PARTS)
    tasks = [Task(name, unit="g", minimum=0.0, transform=TargetTransform(mean=i, std=40.0 + i)) for i, name in each]
    return PatchMeanHead(64, tasks, hidden_dim=8, compositions=[ADDED]).eval()


def tokens(grid: tuple[int, int] = (3, 5), seed: int = 0) -> Tokens:
    x = torch.randn(3, 1 + grid[0] * grid[1], 64, generator=torch.Generator().manual_seed(seed))
    size = (16 * grid[0], 16 * grid[1])
    return Tokens.from_sequence(x, image_size=size, patch_size=16, num_prefix_tokens=1, layers=(0,), normed=True)


def check(values: Any) -> None:
    """Above and plant are the sums of the values of the parts."""
    leaf, stem, dead = (torch.as_tensor(values[name]).detach().double().numpy().reshape(-1) for name in PARTS)
    above, plant = torch.as_tensor(values["sums"]).detach().double().numpy().reshape(-1, 2).T
    assert above == pytest.approx(leaf + stem, rel=1e-5)
    assert plant == pytest.approx(leaf + stem + dead, rel=1e-5)
    assert min(leaf.min(), stem.min(), dead.min()) >= 0


@pytest.mark.parametrize("kind", ["dense", "patch_mean"])
def test_a_head_predicts_them_after_the_minimum_and_stores_them(kind: str, tmp_path: Path) -> None:
    head = head_of(kind)
    values = head.predict(tokens())
    assert list(values) == [*PARTS, "sums"] and list(head.predicted[-1].columns) == list(SUMS)
    assert any((values[name] == 0).any() for name in PARTS), "the test needs a clipped part"
    check(values)
    HeadCheckpoint.from_module(head).save(tmp_path / "h.safetensors")
    again: Any = HeadCheckpoint.load(tmp_path / "h.safetensors").build()
    assert again.compositions == (ADDED,) and torch.equal(again.predict(tokens())["sums"], values["sums"])


@pytest.mark.parametrize("reduce", ["mean", "median"])
def test_ensembles_add_the_averaged_parts(reduce: Any) -> None:
    heads = [head_of("patch_mean", seed) for seed in range(4)]
    bare = PatchMeanHead(64, heads[3].tasks, hidden_dim=8).eval()
    bare.load_state_dict(heads.pop().state_dict())
    check(HeadEnsemble([*heads, bare], reduce=reduce).predict(tokens()))
