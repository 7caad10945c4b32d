"""Lifting against a plain loop, and what it must give where the answer is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoneck import Tokens
from dinoneck.errors import ConfigError, DataError, DinoneckError, ShapeError
from dinoneck.points import Links, SparseFeatures, VoxelGrid, lift

HEIGHT, WIDTH, ROWS, COLS, CHANNELS, VIEWS, POINTS = 48, 70, 3, 5, 4, 3, 40
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
    zero = maps.new_zeros(width)
    return torch.stack([torch.stack(x).mean(0) if x else zero for x in rows]), torch.tensor([bool(x) for x in rows])


def lifted(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    found = lift(*arguments, **options)
    return (found.feats, found.valid) if isinstance(found, SparseFeatures) else found


@pytest.mark.parametrize(("sampling", "views"), OPTIONS)
@pytest.mark.parametrize("onto", ["points", "voxels"])
@pytest.mark.parametrize("projected", [False, True])
def test_it_is_the_plain_loop(sampling: str, views: str, onto: str, projected: bool) -> None:
    maps, links = maps_of(), drawn(margin=3.0)
    grid = voxels() if onto == "voxels" else None
    project = nn.Linear(CHANNELS, 6, dtype=torch.float64) if projected else None
    draw = [torch.Generator().manual_seed(7) for _ in range(2)]
    with torch.no_grad():
        feats, valid = lifted(maps, links, grid, sampling, views, project, draw[0])
        expected, seen = by_hand(maps, links, grid, sampling, views, project, draw[1])
    assert torch.allclose(feats, expected, rtol=0, atol=1e-10)
    assert torch.equal(valid, seen)
    assert not feats[~valid].any()
    assert int(valid.sum()) > 0
    assert onto == "voxels" or int(valid.sum()) < POINTS


@pytest.mark.parametrize(("rows", "cols"), [(30, 40), (34, 45), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ramp_gives_the_pixel_back(rows: int, cols: int, dtype: torch.dtype) -> None:
    """Half pixels, scale, and sizes that are no multiple: the mean of a linear function is its value at the centre."""
    height, width = 480, 640
    x = (torch.arange(cols, dtype=torch.float64) + 0.5) * width / cols - 0.5  # the pixel at a cell's centre
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows - 0.5
    ramp = torch.stack((x.expand(rows, cols), y[:, None].expand(rows, cols)))[None].to(dtype)
    low, high = torch.stack((x[0], y[0])), torch.stack((x[-1], y[-1]))
    uv = low + torch.rand(500, 2, dtype=torch.float64) * (high - low)
    each = torch.arange(500)
    links = Links(torch.zeros_like(each), each, uv.to(dtype), torch.ones(500), 500, 1, (height, width))
    feats, valid = lift(ramp, links)
    assert bool(valid.all())
    assert float((feats.double() - uv).abs().max()) < 1e-3
    outside = replace(links, uv=uv.to(dtype) * 3 - 640)
    assert torch.allclose(lift(ramp, outside)[0].amax(0), ramp.amax((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(lift(ramp, outside)[0].amin(0), ramp.amin((0, 2, 3)), rtol=1e-6)


def test_samples_of_a_batch_do_not_mix() -> None:
    """The same voxels in two samples, each lifted from its own views, are the two lifted alone."""
    coords, maps = torch.randint(-2, 2, (POINTS, 3)), maps_of(views=2 * VIEWS)
    parts = [drawn(), drawn()]
    both = Links(
        torch.cat((parts[0].view, parts[1].view + VIEWS)),
        torch.cat((parts[0].point, parts[1].point + POINTS)),
        torch.cat([x.uv for x in parts]),
        torch.cat([x.z for x in parts]),
        2 * POINTS,
        2 * VIEWS,
        (HEIGHT, WIDTH),
    )
    grid = VoxelGrid.from_coords(coords.repeat(2, 1), torch.arange(2).repeat_interleave(POINTS))
    found = lift(maps, both, grid)
    for sample, (part, own) in enumerate(zip(parts, maps.chunk(2), strict=True)):
        alone = lift(own, part, VoxelGrid.from_coords(coords))
        rows = found.batch == sample
        assert torch.equal(found.coords[rows], alone.coords)
        assert torch.equal(found.valid[rows], alone.valid)
        assert torch.allclose(found.feats[rows], alone.feats, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampling", "views"), OPTIONS)
@pytest.mark.parametrize("onto", ["points", "voxels"])
def test_gradients_reach_maps_and_projection(sampling: str, views: str, onto: str) -> None:
    links, grid = drawn(points=8), voxels(8) if onto == "voxels" else None
    maps = maps_of().requires_grad_()
    weight = torch.randn(2, CHANNELS, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def run(*leaves: Tensor) -> Tensor:
        project = nn.Linear(CHANNELS, 2, dtype=torch.float64)
        del project.weight, project.bias
        project.weight, project.bias = leaves[1], leaves[2]  # type: ignore[assignment]
        return lifted(leaves[0], links, grid, sampling, views, project, torch.Generator().manual_seed(3))[0]

    assert torch.autograd.gradcheck(run, (maps, weight, bias), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x: lifted(x, links, grid, sampling, views, None, torch.Generator())[0], maps, fast_mode=True
    )


def test_projecting_first_is_projecting_last_and_the_bias_stays_with_what_was_seen() -> None:
    maps, links, grid = maps_of(), drawn(share=0.1), voxels()
    project = nn.Linear(CHANNELS, 6, dtype=torch.float64)
    plain, ours = lift(maps, links, grid), lift(maps, links, grid, project=project)
    assert torch.allclose(ours.feats, project(plain.feats) * plain.valid[:, None], rtol=0, atol=1e-12)
    assert bool((~ours.valid).any())
    assert not ours.feats[~ours.valid].any()
    assert bool(project.bias.abs().min() > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("onto", ["points", "voxels"])
def test_every_dtype_stays_and_is_right_to_its_rounding(dtype: torch.dtype, onto: str) -> None:
    maps, links, grid = maps_of(dtype), drawn(), voxels() if onto == "voxels" else None
    exact, _ = lifted(maps.double(), links, grid)
    leaf = maps.clone().requires_grad_()
    bound = torch.finfo(dtype).eps * 4 * float(maps.double().abs().max())
    for own in (maps, leaf, maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        feats, _ = lifted(own, links, grid)
        assert feats.dtype == dtype
        assert float((feats.detach().double() - exact).abs().max()) < bound
    feats, _ = lifted(leaf, links, grid)
    seed = torch.randn_like(feats)
    (grad,) = torch.autograd.grad(feats, leaf, seed)
    wide = maps.double().requires_grad_()
    (right,) = torch.autograd.grad(lifted(wide, links, grid)[0], wide, seed.double())
    assert grad.dtype == dtype
    assert float((grad.double() - right).abs().max()) < torch.finfo(dtype).eps * 4 * float(right.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_points_in_a_voxel_still_give_their_mean(dtype: torch.dtype) -> None:
    count = 100_000
    each = torch.arange(count)
    links = Links(each * 0, each, torch.full((count, 2), 7.0), torch.ones(count), count, 1, (16, 16))
    grid = VoxelGrid.from_coords(torch.zeros(count, 3).long())
    found = lift(torch.full((1, 2, 1, 1), 3.0, dtype=dtype), links, grid, "nearest").feats
    assert torch.allclose(found.double(), torch.tensor(3.0).double(), rtol=torch.finfo(dtype).eps)


def test_maps_of_tokens_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views whose tokens lie behind CLS and registers: the table is the sequence itself."""
    sequence = torch.randn(VIEWS, 3 + ROWS * COLS, CHANNELS)
    sequence[:, :3] = torch.nan
    tokens = Tokens.from_sequence(sequence, image_size=(ROWS * 16, COLS * 16), patch_size=16, num_prefix_tokens=3)
    (maps,) = tokens.maps()
    links, grid, seen = drawn(), voxels(), []
    project = nn.Linear(CHANNELS, 2)
    bag = torch.nn.functional.embedding_bag

    def spying(token: Tensor, table: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append(table.data_ptr())
        return bag(token, table, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "embedding_bag", spying)
    for own in (maps, maps[1:2], maps[:, :, :1], maps.contiguous()):
        subset = replace(drawn(views=len(own)), num_views=len(own)) if len(own) < VIEWS else links
        found, expected = lift(own, subset, grid), lift(own.clone(memory_format=torch.contiguous_format), subset, grid)
        assert torch.allclose(found.feats, expected.feats, rtol=0, atol=1e-6)
        with torch.no_grad():
            ours = lift(own, subset, grid, project=project).feats
        learning = lift(own, subset, grid, project=project).feats
        assert torch.allclose(ours, learning, rtol=0, atol=1e-6)
        learning.sum().backward()
        assert project.weight.grad is not None
        assert bool(project.weight.grad.isfinite().all())
    assert seen[0] == maps.data_ptr()


def test_nothing_to_lift() -> None:
    project = nn.Linear(CHANNELS, 6, dtype=torch.float64)
    no_links = drawn(share=0.0)
    no_views = Links(*(x[:0] for x in (no_links.view, no_links.point, no_links.uv, no_links.z)), POINTS, 0, (8, 8))
    for maps, links in ((maps_of(), no_links), (maps_of(views=0), no_views)):
        for views in ("mean", "random", "closest"):
            for grid in (None, voxels()):
                for layer, width in ((None, CHANNELS), (project, 6)):
                    feats, valid = lifted(maps, links, grid, views=views, project=layer)
                    assert torch.equal(feats, maps.new_zeros(POINTS if grid is None else len(grid), width))
                    assert not valid.any()
    nothing = replace(no_views, num_points=0)
    assert lift(maps_of(views=0), nothing)[0].shape == (0, CHANNELS)
    assert lift(maps_of(views=0), nothing, VoxelGrid.from_points(torch.zeros(0, 3), 1.0)).feats.shape == (0, CHANNELS)
    leaf = maps_of().requires_grad_()
    lift(leaf, no_links)[0].sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": torch.zeros(2, 4, 3, 5)}, ShapeError, "2 maps for links of 3 views"),
        ({"maps": torch.zeros(3, 4, 3)}, ShapeError, r"\(3, 4, 3\); expected floats \(views"),
        ({"maps": torch.zeros(3, 4, 3, 5).long()}, ShapeError, "torch.int64"),
        ({"maps": torch.zeros(3, 4, 0, 5)}, ShapeError, "expected floats"),
        ({"grid": VoxelGrid.from_coords(torch.zeros(5, 3).long())}, ShapeError, "the grid has 5 points, the links 40"),
        ({"sampling": "cubic"}, ConfigError, "sampling is 'cubic'; expected one of bilinear, nearest"),
        ({"reduce": "sum"}, ConfigError, "reduce is 'sum'; expected one of max, mean"),
        ({"chunk": 0}, ConfigError, "chunk is 0"),
        ({"views": "first"}, ConfigError, "views is 'first'; expected one of mean, random, closest"),
        ({"project": nn.Sequential(nn.Linear(4, 2), nn.ReLU())}, ConfigError, "Sequential; expected torch.nn.Linear"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[DinoneckError], message: str) -> None:
    with pytest.raises(error, match=message):
        lift(**{"maps": torch.zeros(3, 4, 3, 5), "links": drawn(), **change})


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize(("onto", "reduce"), [("points", "mean"), ("voxels", "mean"), ("voxels", "max")])
def test_the_chunk_changes_neither_result_nor_gradient(onto: str, reduce: str, views: str) -> None:
    links, grid, weights = drawn(), voxels() if onto == "voxels" else None, torch.randn(CHANNELS, dtype=torch.float64)
    results = []
    for chunk in (1, 7, 10**6):
        maps = maps_of().zero_().add_(torch.arange(VIEWS * CHANNELS * ROWS * COLS).reshape(VIEWS, CHANNELS, ROWS, COLS))
        found = lift(maps.sin_().requires_grad_(), links, grid, views=views, reduce=reduce, chunk=chunk,
                     generator=torch.Generator().manual_seed(0))  # fmt: skip
        feats, valid = found if isinstance(found, tuple) else (found.feats, found.valid)
        (feats.square() @ weights).sum().backward()
        with torch.no_grad():
            again = lift(maps, links, grid, views=views, reduce=reduce, chunk=chunk,
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
        assert torch.equal(again[0] if isinstance(again, tuple) else again.feats, feats)
        results.append((feats.detach(), valid, maps.grad))
    for feats, valid, grad in results[:-1]:
        assert torch.equal(valid, results[-1][1])
        assert torch.allclose(feats, results[-1][0], rtol=0, atol=1e-12)
        assert torch.allclose(grad, results[-1][2], rtol=0, atol=1e-12)


def test_the_maximum_is_over_the_seen_points_and_its_gradient_goes_to_them() -> None:
    links, grid, maps = drawn(share=0.2), voxels(), (maps_of() - 5).requires_grad_()  # an unseen 0 would be the maximum
    points, seen = lift(maps, links)
    voxel = lift(maps, links, grid, reduce="max")
    assert not seen.all() and seen.any()
    expected = []
    for row in range(len(grid)):
        own = (grid.inverse == row) & seen
        assert bool(voxel.valid[row]) == bool(own.any())
        expected.append(points[own].amax(0) if own.any() else torch.zeros(CHANNELS, dtype=maps.dtype))
    assert torch.allclose(voxel.feats, torch.stack(expected), rtol=0, atol=1e-12)
    weights = torch.randn_like(voxel.feats)
    grad, by_points = (torch.autograd.grad((x * weights).sum(), maps)[0] for x in (voxel.feats, torch.stack(expected)))
    assert torch.allclose(grad, by_points, rtol=0, atol=1e-12)
    assert not torch.allclose(voxel.feats, lift(maps, links, grid).feats)


def test_unsorted_links_are_refused() -> None:
    links = drawn()
    with pytest.raises(DataError, match="not sorted by point"):
        lift(maps_of(), replace(links, point=links.point.flip(0)))
