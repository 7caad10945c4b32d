"""Facts that hold for whatever hypothesis thinks of."""

from __future__ import annotations

import json
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dinoneck import HeadCheckpoint, HeadEnsemble, PatchMeanHead, PatchMeanMLP, TargetTransform, Task, TokenGrid
from dinoneck.checkpoint import format as files
from dinoneck.codec import encode, normal

settings.register_profile("house", deadline=None, max_examples=100, derandomize=True, database=None)
settings.load_profile("house")

sizes = st.integers(1, 200)
patches = st.sampled_from([14, 16, (8, 16), 1])


@given(sizes, sizes, patches, st.sampled_from(["crop", "pad", "resize"]))
def test_prepared_points_come_back(height: int, width: int, patch: object, policy: str) -> None:
    grid = TokenGrid(patch, policy)  # type: ignore[arg-type]
    if policy == "crop":
        assume(height >= grid.patch_height and width >= grid.patch_width)
    prepared = grid.prepare(torch.zeros(1, 1, height, width))
    assert prepared.grid == grid.size((height, width))
    assert tuple(prepared.images.shape[-2:]) == (
        prepared.grid.rows * grid.patch_height,
        prepared.grid.cols * grid.patch_width,
    )
    points = torch.tensor([[0.0, 0.0], [width, height], [width / 3, height / 7]], dtype=torch.float64)
    assert torch.allclose(prepared.to_original(prepared.to_prepared(points)), points, atol=1e-9)
    if policy == "resize":
        corner = torch.tensor([prepared.images.shape[-1], prepared.images.shape[-2]], dtype=torch.float64)
        assert torch.allclose(prepared.to_prepared(points[1]), corner)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_sampling_an_affine_map_returns_the_point(rows: int, cols: int, seed: int) -> None:
    """A map that is affine in the cell centres is affine everywhere between them."""
    torch.manual_seed(seed)
    grid, (a, b, c) = TokenGrid(16), torch.randn(3, dtype=torch.float64)
    size = (rows * 16, cols * 16)
    centres = grid.cell_centers(size).double()
    maps = (a * centres[:, 0] + b * centres[:, 1] + c).reshape(1, 1, rows, cols)
    points = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([cols - 1, rows - 1]) * 16 + 8
    read = grid.sample(maps, points, size)[0, :, 0]
    assert torch.allclose(read, a * points[:, 0] + b * points[:, 1] + c, atol=1e-8)


numbers = st.floats(-1e3, 1e3, allow_nan=False)
positive = st.floats(1e-3, 1e3)
transforms = st.builds(
    TargetTransform, area=st.none() | positive, log1p=st.booleans(), mean=st.none() | numbers, std=st.none() | positive
)
shared = {
    "name": st.from_regex(r"[A-Za-z_][A-Za-z0-9_\-]{0,20}", fullmatch=True),
    "dim": st.integers(1, 4),
    "weight": st.floats(0, 10),
    "beta": positive,
    "unit": st.text(max_size=5).filter(str.isprintable),
}
tasks = st.builds(
    Task,
    activation=st.sampled_from([None, "relu", "softplus", "sigmoid"]),
    transform=st.none() | transforms,
    minimum=st.none() | numbers,
    **shared,
) | st.builds(Task, kind=st.sampled_from(["ratio", "classification"]), **shared)
task_lists = st.lists(tasks, min_size=1, max_size=3, unique_by=lambda task: task.name)


@given(task_lists, st.integers(1, 64), st.integers(1, 32))
def test_configs_survive_json(some: list[Task], width: int, hidden: int) -> None:
    head = PatchMeanHead(width, some, hidden_dim=hidden, device="meta")
    text = json.dumps(head.config, allow_nan=False)
    assert PatchMeanHead.from_config(json.loads(text), device="meta").config == head.config
    for task in some:
        assert normal(Task, json.loads(json.dumps(encode(task))), "value") == task
    ensemble = HeadEnsemble.from_heads([head, head])
    assert HeadEnsemble.from_config(json.loads(json.dumps(ensemble.config)), device="meta").config == ensemble.config


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), plain, max_size=3))
def test_extra_facts_survive_a_file(extra: dict) -> None:
    torch.manual_seed(0)
    checkpoint = HeadCheckpoint.from_module(PatchMeanMLP(2, 1), extra=extra)
    assert normal(Any, checkpoint.meta["extra"], "x") == extra
    assert files.strict_json(files.canonical(checkpoint.meta), "x", "x")[0] == checkpoint.meta
