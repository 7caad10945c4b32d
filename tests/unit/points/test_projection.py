"""PointProjector and lift against ray-traced truth, plain loops, and images that hold their own place."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.points import rooms
from torch import Tensor, nn

from dinoneck import DataError, TokenGrid
from dinoneck.points import Cameras, Links, PointProjector, SparseFeatures, VoxelGrid, lift

SMALL = (60, 80)


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Cameras, Tensor]:
    """3000 points, 6 views of 60 x 80 px, their depth."""
    cameras = rooms.ring(6, SMALL)
    return rooms.surface(3000), cameras, rooms.depth(cameras)


def same(one: Links, other: Links, atol: float = 1e-9) -> bool:
    pairs = torch.equal(one.view, other.view) and torch.equal(one.point, other.point)
    return (
        pairs
        and torch.allclose(one.uv, other.uv, atol=atol)
        and torch.allclose(one.z, other.z, atol=atol)
    )


def pairs(links: Links) -> set[tuple[int, int]]:
    return set(zip(links.point.tolist(), links.view.tolist(), strict=True))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"near": 2.0},
    {"far": 2.0},
    {"depth_abs": 0.0},
    {"depth_rel": 0.2},
    {"unknown_depth": "accept"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_links_are_those_of_a_plain_loop(
    options: dict[str, Any], scene: tuple[Tensor, Cameras, Tensor]
) -> None:
    points, cameras, depth = scene[0][:400], scene[1], scene[2].clone()
    for row, unknown in enumerate((0.0, -1.0, torch.nan, torch.inf, -torch.inf)):
        depth[:, row::10] = unknown
    links = PointProjector(**options)(points, cameras, depth)
    rule = {
        "near": 0.05,
        "far": math.inf,
        "depth_abs": 0.05,
        "depth_rel": 0.02,
        "unknown_depth": "reject",
        **options,
    }
    found = []
    uv, z = cameras.project(points)
    for n in range(400):
        for v in range(len(cameras)):
            u, w, far = *uv[v, n].tolist(), float(z[v, n])
            if (
                rule["near"] < far <= rule["far"]
                and 0 <= round(u) < SMALL[1]
                and 0 <= round(w) < SMALL[0]
            ):
                seen = float(depth[v, round(w), round(u)])
                known, bound = 0 < seen < math.inf, max(rule["depth_abs"], rule["depth_rel"] * far)
                if abs(seen - far) <= bound if known else rule["unknown_depth"] == "accept":
                    found.append((n, v, u, w, far))
    table = torch.cat(
        [torch.stack([links.point, links.view], 1).double(), links.uv, links.z[:, None]], 1
    )
    assert torch.allclose(table, torch.tensor(found, dtype=torch.float64), rtol=0, atol=1e-9)
    assert torch.equal(links.n_views, torch.bincount(links.point, minlength=400))
    assert links.coverage == pytest.approx(len(set(links.point.tolist())) / 400)


@pytest.mark.parametrize("patch", [14, 16])
def test_a_ramp_read_at_the_links_gives_back_the_pixel(patch: int) -> None:
    """Tokens that hold the place of their centre, sampled at xy: the image's place, so no half pixel is lost."""
    cameras, grid = rooms.ring(4, (15 * patch, 20 * patch)), TokenGrid(patch)
    links = PointProjector()(rooms.surface(4000).float(), cameras, rooms.depth(cameras))
    maps, xy = grid.cell_centers(cameras.size).double().T.reshape(1, 2, 15, 20), links.xy.double()
    low, high = torch.full((2,), patch / 2), torch.tensor([19.5, 14.5]) * patch
    inner = ((xy > low) & (xy < high)).all(1)
    assert inner.sum() > 1000
    assert (grid.sample(maps, xy[inner], cameras.size)[0] - xy[inner]).abs().max() < 1e-3


def test_depth_of_another_size_is_read_half_pixels_considered(
    scene: tuple[Tensor, Cameras, Tensor],
) -> None:
    points, cameras, depth = scene
    whole = PointProjector()(points, cameras, depth)
    double = depth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert same(PointProjector()(points, cameras, double), whole)
    fine = cameras.resize((240, 320))
    half = PointProjector()(points, fine, rooms.depth(fine, (120, 160)))
    assert len(pairs(half) ^ pairs(PointProjector()(points, fine, rooms.depth(fine)))) < 0.02 * len(
        half
    )
    # one camera, depth known in one quarter only: the border lies at the edge between two pixels
    K = torch.tensor([[[8.0, 0, 3.5], [0, 8.0, 3.5], [0, 0, 1]]])
    camera = Cameras(K, torch.eye(4)[None], (8, 8))
    uv = torch.cartesian_prod(torch.arange(-0.5, 7.5, 0.25), torch.arange(-0.5, 7.5, 0.25)) + 0.01
    cloud = torch.cat([(uv - 3.5) / 8, torch.ones(len(uv), 1)], 1)
    quarter = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    got = PointProjector()(cloud, camera, quarter).point
    assert got.tolist() == ((uv[:, 0] >= 3.5) & (uv[:, 1] < 3.5)).nonzero()[:, 0].tolist()


def test_a_batch_is_its_samples_side_by_side(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    batch = torch.randint(0, 3, (len(points),))
    sample = torch.tensor([1, 0, 1, 0, 0, 7])
    cameras = replace(cameras, sample=sample)
    links = PointProjector()(points, cameras, depth, batch)
    expected = set()
    for s in range(3):
        rows, views = (batch == s).nonzero()[:, 0], (sample == s).nonzero()[:, 0]
        alone = PointProjector()(points[rows], replace(cameras[views], sample=None), depth[views])
        expected |= {(int(rows[n]), int(views[k])) for n, k in pairs(alone)}
    assert pairs(links) == expected
    key = links.point * 10 + links.view
    assert (key[1:] > key[:-1]).all()
    assert links.counts is not None
    assert links.counts[:, 0].tolist() == [int((batch == s).sum()) for s in sample]
    assert same(PointProjector(chunk=50)(points, cameras, depth, batch), links)


def test_without_views_or_points_or_in_front_of_nothing_there_are_no_links(
    scene: tuple[Tensor, Cameras, Tensor],
) -> None:
    points, cameras, depth = scene
    behind = points.new_tensor(
        [[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -0.0], [1.0, 0.0, 0.0]]
    )
    eye = Cameras(torch.diag(torch.tensor([50.0, 50.0, 1.0]))[None], torch.eye(4)[None], SMALL)
    for cloud, views, known in (
        (points, cameras[:0], depth[:0]),
        (points[:0], cameras, depth),
        (behind, eye, None),
    ):
        links = PointProjector(unknown_depth="accept")(cloud, views, known)
        assert len(links) == links.coverage == 0
        assert links.n_views.tolist() == [0] * len(cloud)
        assert all(share.isfinite().all() for share in links.stats().values())


def test_a_world_far_from_its_origin_gives_the_same_links(
    scene: tuple[Tensor, Cameras, Tensor],
) -> None:
    points, cameras, depth = scene
    shift = torch.tensor([412_345.0, 5_651_234.0, 87.0]).double()
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] += shift
    far = PointProjector()(points + shift, replace(cameras, cam_to_world=poses), depth)
    assert same(far, PointProjector()(points, cameras, depth), atol=1e-5)


def test_stats_say_what_became_of_the_pairs(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    links = PointProjector()(points, cameras, depth)
    stats = links.stats()
    uv, z = cameras.project(points)
    inside = (z > 0.05) & (uv >= -0.5).all(-1) & (uv[..., 0] < 79.5) & (uv[..., 1] < 59.5)
    assert torch.allclose(stats["front"], (z > 0.05).double().mean(1))
    assert torch.allclose(stats["in_bounds"], inside.double().mean(1))
    assert torch.allclose(stats["agree"], stats["links"] / inside.double().sum(1))
    assert stats["known"].tolist() == [1.0] * 6
    assert set(PointProjector()(points, cameras).stats()) == {"links", "front", "in_bounds"}


def test_millimetres_are_named_with_the_remedy(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    samples = replace(cameras, sample=torch.tensor([0, 1] * 3))
    for views, batch in ((cameras, None), (samples, torch.arange(len(points)) % 2)):
        with pytest.raises(DataError, match="depth / 1000"):
            PointProjector()(points, views, depth * 1000, batch)
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000
    with pytest.raises(DataError, match="millimetres"):
        PointProjector()(points * 1000, replace(cameras, cam_to_world=poses), depth)


def calibrated_at(size: tuple[int, int], *, stated: tuple[int, int]) -> Cameras:
    """Two cameras whose K is that of images of ``size``, made with another size."""
    height, width = size
    intrinsics = torch.tensor(
        [[0.9 * width, 0.0, width / 2 - 0.5], [0.0, 0.9 * width, height / 2 - 0.5], [0.0, 0.0, 1.0]]
    )
    return Cameras(intrinsics.repeat(2, 1, 1), torch.eye(4).repeat(2, 1, 1), size=stated)


def seen_by(cameras: Cameras, *, size: tuple[int, int]) -> Tensor:
    """Points at 2 m that fill images of ``size`` when K belongs to them."""
    true = Cameras(cameras.K, cameras.cam_to_world, size=size)
    rows, cols = size[0] // 8, size[1] // 8
    return true.unproject(torch.full((2, rows, cols), 2.0)).reshape(-1, 3).float()


@pytest.mark.parametrize(
    ("size", "stated"),
    [((968, 1296), (480, 640)), ((720, 1280), (256, 456)), ((600, 600), (224, 224))],
)
def test_principal_points_outside_the_images_warn(
    size: tuple[int, int], stated: tuple[int, int]
) -> None:
    cameras = calibrated_at(size, stated=stated)
    points = seen_by(cameras, size=size)
    with pytest.warns(UserWarning, match="Cameras.resize") as caught:
        PointProjector()(points, cameras)
    assert len(caught) == 1
    assert f"{stated[0]}x{stated[1]} px" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_one_principal_point_inside_the_images_is_enough() -> None:
    cameras = calibrated_at((400, 400), stated=(200, 200))
    intrinsics = cameras.K.clone()
    intrinsics[1, :2, 2] = 99.5
    points = seen_by(cameras, size=(400, 400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links = PointProjector()(points, Cameras(intrinsics, cameras.cam_to_world, size=(200, 200)))
    assert links.n_views.shape == (len(points),)


def test_a_crop_away_from_the_centre_does_not_warn() -> None:
    cameras = calibrated_at((480, 640), stated=(480, 640))
    points = seen_by(cameras, size=(480, 640))
    crop = cameras.crop(top=0, left=0, height=200, width=220).resize((100, 110))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links = PointProjector()(points, crop[[0, 1]])
    assert links.coverage > 0.05


def test_few_points_seen_warn_with_their_share() -> None:
    cameras = calibrated_at((480, 640), stated=(480, 640))
    seen = seen_by(cameras, size=(480, 640))[:80]
    elsewhere = torch.tensor([[0.0, 50.0, 2.0]]).repeat(1920, 1)
    with pytest.warns(UserWarning, match="4.0 % of the 2000 points") as caught:
        PointProjector()(torch.cat((seen, elsewhere)), cameras)
    assert len(caught) == 1


def test_enough_points_seen_do_not_warn() -> None:
    cameras = calibrated_at((480, 640), stated=(480, 640))
    seen = seen_by(cameras, size=(480, 640))[:120]
    elsewhere = torch.tensor([[0.0, 50.0, 2.0]]).repeat(1880, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links = PointProjector()(torch.cat((seen, elsewhere)), cameras)
    assert links.coverage == 0.06


def test_what_fits_nothing_is_logged(
    scene: tuple[Tensor, Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """Poses that fit no depth, points in no image, and no depth at all."""
    points, cameras, depth = scene
    PointProjector()(points, cameras, depth)
    assert not caplog.records
    PointProjector()(points, cameras, depth + 9.0)
    far = points + torch.tensor([0.0, 0.0, 80.0], dtype=points.dtype)
    assert not len(PointProjector()(far, cameras, depth)) and not len(
        PointProjector()(points, cameras, depth * 0)
    )
    in_image = len(PointProjector()(points, cameras))
    shown = (
        f"0 of the {in_image} projected points with known depth",
        f"none of the {6 * len(points)} projected points",
        f"depth is unknown at all of the {in_image} projected points",
    )
    assert all(part in text for part, text in zip(shown, caplog.messages, strict=True))


HEIGHT, WIDTH, ROWS, COLS, CHANNELS, VIEWS, POINTS = 48, 70, 3, 5, 4, 3, 40


TARGETS = [("points", "mean"), ("voxels", "mean"), ("voxels", "max")]
LIFT_OPTIONS = list(itertools.product(("bilinear", "nearest"), ("mean", "random", "closest")))


def drawn(
    views: int = VIEWS, points: int = POINTS, share: float = 0.4, margin: float = 0.5
) -> Links:
    """Links at random places, ``margin`` pixels beyond the outermost centres too."""
    point, view = (torch.rand(points, views) < share).nonzero().unbind(1)
    extent = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    uv = torch.rand(len(view), 2, dtype=torch.float64) * (extent - 1 + 2 * margin) - margin
    return Links(
        view,
        point,
        uv,
        torch.rand(len(view), dtype=torch.float64) + 1,
        points,
        views,
        (HEIGHT, WIDTH),
    )


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
            total = total + one[:, row, col] * max(0.0, 1 - abs(x - col)) * max(
                0.0, 1 - abs(y - row)
            )
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
    zero, reduced = (
        maps.new_zeros(width),
        (lambda x: x.mean(0)) if reduce == "mean" else (lambda x: x.amax(0)),
    )
    return torch.stack([reduced(torch.stack(x)) if x else zero for x in rows]), torch.tensor(
        [bool(x) for x in rows]
    )


def lifted(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    found = lift(*arguments, **options)
    return (found.feats, found.valid) if isinstance(found, SparseFeatures) else found


@pytest.mark.parametrize(("sampling", "views"), LIFT_OPTIONS)
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


@pytest.mark.parametrize(("sampling", "views"), LIFT_OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_gradients_reach_maps_and_projection(
    sampling: str, views: str, onto: str, reduce: str
) -> None:
    links, grid = drawn(points=8), voxels(8) if onto == "voxels" else None
    maps, project = maps_of().requires_grad_(), nn.Linear(CHANNELS, 2, dtype=torch.float64)

    def run(own: Tensor, *_: Tensor, layer: nn.Linear | None = project) -> Tensor:
        return lifted(
            own, links, grid, sampling, views, layer, torch.Generator().manual_seed(3), reduce
        )[0]

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
    links = Links(
        each * 0, each, torch.full((count, 2), 7.0), torch.ones(count), count, 1, (16, 16)
    )
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
    assert lift(
        maps_of(views=0), nothing, VoxelGrid.from_points(torch.zeros(0, 3), 1.0)
    ).feats.shape == (0, CHANNELS)


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_the_chunk_changes_neither_result_nor_gradient(onto: str, reduce: str, views: str) -> None:
    links, grid, maps = drawn(), voxels() if onto == "voxels" else None, maps_of().requires_grad_()
    results = []
    for chunk in (1, 7, 10**6):
        options = {"views": views, "reduce": reduce, "chunk": chunk}
        feats, valid = lifted(
            maps, links, grid, **options, generator=torch.Generator().manual_seed(0)
        )
        results.append((feats, valid.double(), *torch.autograd.grad(feats.square().sum(), maps)))
        with torch.no_grad():
            again, _ = lifted(
                maps, links, grid, **options, generator=torch.Generator().manual_seed(0)
            )
        assert torch.equal(again, feats)
    assert all(kit.same(result, results[-1], 1e-12) for result in results)
