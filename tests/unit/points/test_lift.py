"""Lifting against a plain loop, and what it must give where the answer is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kit import same
from torch import Tensor, nn

from dinoneck.points import Links, SparseFeatures, VoxelGrid, lift

HEIGHT, WIDTH, ROWS, COLS, CHANNELS, VIEWS, POINTS = 48, 70, 3, 5, 4, 3, 40
TARGETS = [("points", "mean"), ("voxels", "mean"), ("voxels", "max")]
OPTIONS = list(itertools.product(("bilinear", "nearest"), ("mean", "random", "closest")))


def drawn(views: int = VIEWS, points: int = POINTS, share: float = 0.4, margin: float = 0.5) -> Links:
    """Links at random places, ``margin`` pixels beyond the outermost centres too."""
    point, view = (torch.rand(points, views) < share).nonzero().unbind(1)
    extent = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    uv = torch.rand(len(view), 2, dtype=torch.float64) * (extent - 1 + 2 * margin) - margin
    return Links(view, point, uv, torch.rand(len(view), dtype=torch.float64) + 1, points, views, (HEIGHT, WIDTH))


def voxels(points: int = POINTS) -> VoxelGrid:
    return VoxelGrid.from_coords(torch.randint(-2, 1, (points, 3)), torch.randint(0, 2, (points,)))


def maps_of(dtype: torch.dtype = torch.float64, views: int = VIEWS) -> Tensor:
    return torch.randn(views, CHANNELS, ROWS, COLS, dtype=torch.float64).to(dtype)


def cell_value(one: Tensor, u: float, v: float, sampling: str) -> Tensor:
    """(C, rows, cols) -> (C,): one place of one map, by hand."""
    rows, cols = one.shape[1:]
    x, y = (u + 0.5) * cols / WIDTH, (v + 0.5) * rows / HEIGHT
    if sampling == "nearest":
        return one[:, min(max(int(y // 1), 0), rows - 1), min(max(int(x // 1), 0), cols - 1)]
    x, y = min(max(x - 0.5, 0.0), cols - 1.0), min(max(y - 0.5, 0.0), rows - 1.0)
    total = torch.zeros_like(one[:, 0, 0])
    for row in range(rows):
        for col in range(cols):
            total = total + one[:, row, col] * max(0.0, 1 - abs(x - col)) * max(0.0, 1 - abs(y - row))
    return total


def by_hand(
    maps: Tensor,
    links: Links,
    grid: VoxelGrid | None,
    sampling: str,
    views: str,
    project: nn.Linear | None,
    generator: torch.Generator,
    reduce: str,
) -> tuple[Tensor, Tensor]:
    of_point: dict[int, list[tuple[float, Tensor]]] = {}
    for view, point, (u, v), z in zip(
        links.view.tolist(), links.point.tolist(), links.uv.tolist(), links.z.tolist(), strict=True
    ):
        of_point.setdefault(point, []).append((z, cell_value(maps[view], u, v, sampling)))
    width = maps.shape[1] if project is None else project.out_features
    draws = iter(torch.rand(len(of_point), generator=generator, dtype=torch.float64).tolist())
    values: dict[int, Tensor] = {}
    for point, found in of_point.items():
        if views == "mean":
            value = torch.stack([x for _, x in found]).mean(0)
        elif views == "closest":
            value = min(found, key=lambda pair: pair[0])[1]
        else:
            value = found[int(next(draws) * len(found))][1]
        values[point] = value if project is None else project(value)
    if grid is None:
        rows = [[values[p]] if p in values else [] for p in range(links.num_points)]
    else:
        rows = [
            [values[p] for p in (grid.inverse == m).nonzero().flatten().tolist() if p in values]
            for m in range(len(grid))
        ]
    zero, reduced = maps.new_zeros(width), (lambda x: x.mean(0)) if reduce == "mean" else (lambda x: x.amax(0))
    return torch.stack([reduced(torch.stack(x)) if x else zero for x in rows]), torch.tensor([bool(x) for x in rows])


def lifted(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    found = lift(*arguments, **options)
    return (found.feats, found.valid) if isinstance(found, SparseFeatures) else found


@pytest.mark.parametrize(("sampling", "views"), OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_it_is_the_plain_loop(sampling: str, views: str, onto: str, reduce: str) -> None:
    maps = maps_of() - 5  # an unseen 0 would be the maximum
    links, grid = drawn(margin=3.0, share=0.2), voxels() if onto == "voxels" else None
    for project in (None, nn.Linear(CHANNELS, 6, dtype=torch.float64)):
        draw = [torch.Generator().manual_seed(7) for _ in range(2)]
        with torch.no_grad():
            feats, valid = lifted(maps, links, grid, sampling, views, project, draw[0], reduce)
            expected, seen = by_hand(maps, links, grid, sampling, views, project, draw[1], reduce)
        assert torch.allclose(feats, expected, rtol=0, atol=1e-10)
        assert torch.equal(valid, seen)
        assert not feats[~valid].any()  # a projection's bias stays with what was seen
        assert 0 < int(valid.sum()) < len(valid)


@pytest.mark.parametrize(("sampling", "views"), OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_gradients_reach_maps_and_projection(sampling: str, views: str, onto: str, reduce: str) -> None:
    links, grid = drawn(points=8), voxels(8) if onto == "voxels" else None
    maps, project = maps_of().requires_grad_(), nn.Linear(CHANNELS, 2, dtype=torch.float64)

    def run(own: Tensor, *_: Tensor, layer: nn.Linear | None = project) -> Tensor:
        return lifted(own, links, grid, sampling, views, layer, torch.Generator().manual_seed(3), reduce)[0]

    assert torch.autograd.gradcheck(run, (maps, project.weight, project.bias), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: run(x, layer=None), maps, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("onto", ["points", "voxels"])
def test_every_dtype_stays_and_is_right_to_its_rounding(dtype: torch.dtype, onto: str) -> None:
    maps, links, grid = maps_of(dtype), drawn(), voxels() if onto == "voxels" else None
    leaf, wide = maps.clone().requires_grad_(), maps.double().requires_grad_()
    exact, _ = lifted(wide, links, grid)
    rounding = torch.finfo(dtype).eps * 4
    for own in (maps, leaf, maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        feats, _ = lifted(own, links, grid)
        assert feats.dtype == dtype
        assert (feats.double() - exact).abs().max() < rounding * wide.abs().max()
    seed = torch.randn_like(exact).to(dtype)
    (grad,) = torch.autograd.grad(lifted(leaf, links, grid)[0], leaf, seed)
    (right,) = torch.autograd.grad(exact, wide, seed.double())
    assert grad.dtype == dtype
    assert (grad.double() - right).abs().max() < rounding * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_points_in_a_voxel_still_give_their_mean(dtype: torch.dtype) -> None:
    count = 100_000
    each = torch.arange(count)
    links = Links(each * 0, each, torch.full((count, 2), 7.0), torch.ones(count), count, 1, (16, 16))
    grid = VoxelGrid.from_coords(torch.zeros(count, 3).long())
    found = lift(torch.full((1, 2, 1, 1), 3.0, dtype=dtype), links, grid, "nearest").feats
    assert torch.allclose(found.double(), torch.tensor(3.0).double(), rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
def test_nothing_to_lift(views: str) -> None:
    no_links, project = drawn(share=0.0), nn.Linear(CHANNELS, 6, dtype=torch.float64)
    no_views = replace(no_links, num_views=0)
    for maps, links in ((maps_of().requires_grad_(), no_links), (maps_of(views=0), no_views)):
        for grid, layer in itertools.product((None, voxels()), (None, project)):
            feats, valid = lifted(maps, links, grid, views=views, project=layer)
            assert feats.shape == (POINTS if grid is None else len(grid), 6 if layer else CHANNELS)
            assert not feats.any() and not valid.any()
        if maps.requires_grad:
            feats.sum().backward()
            assert not maps.grad.any()
    nothing = replace(no_views, num_points=0)
    assert lift(maps_of(views=0), nothing, VoxelGrid.from_points(torch.zeros(0, 3), 1.0)).feats.shape == (0, CHANNELS)


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_the_chunk_changes_neither_result_nor_gradient(onto: str, reduce: str, views: str) -> None:
    links, grid, maps = drawn(), voxels() if onto == "voxels" else None, maps_of().requires_grad_()
    results = []
    for chunk in (1, 7, 10**6):
        options = {"views": views, "reduce": reduce, "chunk": chunk}
        feats, valid = lifted(maps, links, grid, **options, generator=torch.Generator().manual_seed(0))
        results.append((feats, valid.double(), *torch.autograd.grad(feats.square().sum(), maps)))
        with torch.no_grad():
            again, _ = lifted(maps, links, grid, **options, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again, feats)
    assert all(same(result, results[-1], 1e-12) for result in results)
