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
def points() -> Tensor:
    return rooms.surface(3000)


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    return rooms.ring(6, SMALL)


@pytest.fixture(scope="module")
def depth(cameras: Cameras) -> Tensor:
    return rooms.depth(cameras)


def are_same(some: Links, other: Links, atol: float = 1e-9) -> bool:
    if not torch.equal(some.view, other.view):
        return False
    if not torch.equal(some.point, other.point):
        return False
    return torch.allclose(some.uv, other.uv, atol=atol) and torch.allclose(
        some.z, other.z, atol=atol
    )


def pairs(links: Links) -> set[tuple[int, int]]:
    """Which point is linked to which view."""
    return set(zip(links.point.tolist(), links.view.tolist(), strict=True))


DEFAULTS: dict[str, Any] = {
    "near": 0.05,
    "far": math.inf,
    "depth_abs": 0.05,
    "depth_rel": 0.02,
    "unknown_depth": "reject",
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"near": 2.0},
    {"far": 2.0},
    {"depth_abs": 0.0},
    {"depth_rel": 0.2},
    {"unknown_depth": "accept"},
]


@pytest.fixture
def few_points(points: Tensor) -> Tensor:
    return points[:400]


@pytest.fixture
def depth_with_gaps(depth: Tensor) -> Tensor:
    """Half of the rows hold what cameras write where they measure nothing."""
    with_gaps = depth.clone()
    for row, unknown in enumerate((0.0, -1.0, torch.nan, torch.inf, -torch.inf)):
        with_gaps[:, row::10] = unknown
    return with_gaps


def is_accepted(z: float, measured: float, rule: dict[str, Any]) -> bool:
    """Whether a point at a depth is linked to a pixel with a measured depth."""
    is_known = 0 < measured < math.inf
    if not is_known:
        return bool(rule["unknown_depth"] == "accept")
    return bool(abs(measured - z) <= max(rule["depth_abs"], rule["depth_rel"] * z))


def link_by_hand(
    points: Tensor, cameras: Cameras, depth: Tensor, rule: dict[str, Any]
) -> list[tuple[int, int, float, float, float]]:
    """Rows of (point, view, u, v, z)."""
    height, width = SMALL
    rows = []
    all_uv, all_z = cameras.project(points)
    for point in range(len(points)):
        for view in range(len(cameras)):
            u, v = all_uv[view, point].tolist()
            z = float(all_z[view, point])
            is_in_image = 0 <= round(u) < width and 0 <= round(v) < height
            if not is_in_image or not rule["near"] < z <= rule["far"]:
                continue
            measured = float(depth[view, round(v), round(u)])
            if is_accepted(z, measured, rule):
                rows.append((point, view, u, v, z))
    return rows


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_links_are_those_of_a_plain_loop(
    options: dict[str, Any], few_points: Tensor, cameras: Cameras, depth_with_gaps: Tensor
) -> None:
    links = PointProjector(**options)(few_points, cameras, depth_with_gaps)

    expected = link_by_hand(few_points, cameras, depth_with_gaps, {**DEFAULTS, **options})
    indices = torch.stack([links.point, links.view], dim=1).double()
    rows = torch.cat([indices, links.uv, links.z[:, None]], dim=1)
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_links_count_the_views_of_every_point(
    options: dict[str, Any], few_points: Tensor, cameras: Cameras, depth_with_gaps: Tensor
) -> None:
    links = PointProjector(**options)(few_points, cameras, depth_with_gaps)

    linked_points = set(links.point.tolist())
    assert torch.equal(links.n_views, torch.bincount(links.point, minlength=400))
    assert links.coverage == pytest.approx(len(linked_points) / 400)


@pytest.mark.parametrize("patch", [14, 16])
def test_a_ramp_read_at_the_links_gives_back_the_pixel(patch: int) -> None:
    """Tokens that hold the place of their centre, sampled at xy: no half pixel is lost."""
    cameras = rooms.ring(4, (15 * patch, 20 * patch))
    grid = TokenGrid(patch)
    links = PointProjector()(rooms.surface(4000).float(), cameras, rooms.depth(cameras))
    xy = links.xy.double()
    first_centre = torch.full((2,), patch / 2)
    last_centre = torch.tensor([19.5, 14.5]) * patch
    inner_xy = xy[((xy > first_centre) & (xy < last_centre)).all(dim=1)]
    centres = grid.cell_centers(cameras.size).double().T.reshape(1, 2, 15, 20)

    read = grid.sample(centres, inner_xy, cameras.size)[0]

    assert len(inner_xy) > 1000
    assert (read - inner_xy).abs().max() < 1e-3


def test_depth_of_twice_the_size_gives_the_same_links(
    points: Tensor, cameras: Cameras, depth: Tensor
) -> None:
    doubled = depth.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)

    links = PointProjector()(points, cameras, doubled)

    assert are_same(links, PointProjector()(points, cameras, depth))


def test_depth_of_half_the_size_gives_nearly_the_same_links(
    points: Tensor, cameras: Cameras
) -> None:
    large = cameras.resize((240, 320))
    half_depth = rooms.depth(large, (120, 160))

    links = PointProjector()(points, large, half_depth)

    links_of_whole_depth = PointProjector()(points, large, rooms.depth(large))
    other_pairs = pairs(links) ^ pairs(links_of_whole_depth)
    assert len(other_pairs) < 0.02 * len(links)


def test_depth_of_another_size_is_read_half_pixels_considered() -> None:
    """Depth is known in one quarter: its border lies at the edge between two pixels."""
    K = torch.tensor([[[8.0, 0, 3.5], [0, 8.0, 3.5], [0, 0, 1]]])
    camera = Cameras(K, torch.eye(4)[None], (8, 8))
    # four places a pixel along each axis, none of them on a border
    steps = torch.arange(-0.5, 7.5, 0.25)
    uv = torch.cartesian_prod(steps, steps) + 0.01
    points_at_1_m = torch.cat([(uv - 3.5) / 8, torch.ones(len(uv), 1)], dim=1)
    known_at_the_upper_right = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])

    links = PointProjector()(points_at_1_m, camera, known_at_the_upper_right)

    is_upper_right = (uv[:, 0] >= 3.5) & (uv[:, 1] < 3.5)
    assert links.point.tolist() == is_upper_right.nonzero()[:, 0].tolist()


@pytest.fixture
def sample_of_point(points: Tensor) -> Tensor:
    """Points of three samples in any order."""
    return torch.randint(0, 3, (len(points),))


@pytest.fixture
def batched_cameras(cameras: Cameras) -> Cameras:
    """Sample 2 has no camera, and sample 7 no points."""
    return replace(cameras, sample=torch.tensor([1, 0, 1, 0, 0, 7]))


def test_a_batch_is_its_samples_side_by_side(
    points: Tensor, batched_cameras: Cameras, depth: Tensor, sample_of_point: Tensor
) -> None:
    links = PointProjector()(points, batched_cameras, depth, sample_of_point)

    expected = set()
    for sample in range(3):
        rows = (sample_of_point == sample).nonzero()[:, 0]
        views = (batched_cameras.sample == sample).nonzero()[:, 0]
        cameras_of_sample = replace(batched_cameras[views], sample=None)
        of_sample = PointProjector()(points[rows], cameras_of_sample, depth[views])
        for row, view in pairs(of_sample):
            expected.add((int(rows[row]), int(views[view])))
    assert pairs(links) == expected


def test_links_of_a_batch_are_sorted_by_point_and_view(
    points: Tensor, batched_cameras: Cameras, depth: Tensor, sample_of_point: Tensor
) -> None:
    links = PointProjector()(points, batched_cameras, depth, sample_of_point)

    key = links.point * 10 + links.view
    assert (key[1:] > key[:-1]).all()


def test_views_of_a_batch_count_the_points_of_their_sample(
    points: Tensor, batched_cameras: Cameras, depth: Tensor, sample_of_point: Tensor
) -> None:
    links = PointProjector()(points, batched_cameras, depth, sample_of_point)

    assert links.counts is not None
    assert batched_cameras.sample is not None
    points_of_sample = [int((sample_of_point == s).sum()) for s in batched_cameras.sample]
    assert links.counts[:, 0].tolist() == points_of_sample


def test_the_chunk_of_a_projector_changes_no_link(
    points: Tensor, batched_cameras: Cameras, depth: Tensor, sample_of_point: Tensor
) -> None:
    in_chunks = PointProjector(chunk=50)(points, batched_cameras, depth, sample_of_point)

    at_once = PointProjector()(points, batched_cameras, depth, sample_of_point)
    assert are_same(in_chunks, at_once)


def assert_no_links(links: Links, num_points: int) -> None:
    assert len(links) == 0
    assert links.coverage == 0
    assert links.n_views.tolist() == [0] * num_points
    for share in links.stats().values():
        assert share.isfinite().all()


def test_without_views_there_are_no_links(points: Tensor, cameras: Cameras, depth: Tensor) -> None:
    links = PointProjector(unknown_depth="accept")(points, cameras[:0], depth[:0])

    assert_no_links(links, num_points=3000)


def test_without_points_there_are_no_links(points: Tensor, cameras: Cameras, depth: Tensor) -> None:
    links = PointProjector(unknown_depth="accept")(points[:0], cameras, depth)

    assert_no_links(links, num_points=0)


def test_points_that_are_not_in_front_of_a_camera_have_no_links() -> None:
    K = torch.diag(torch.tensor([50.0, 50.0, 1.0]))
    camera = Cameras(K[None], torch.eye(4)[None], SMALL)
    behind = [0.0, 0.0, -1.0]
    in_the_camera = [0.0, 0.0, 0.0]
    in_the_camera_with_negative_zero = [0.0, 0.0, -0.0]
    beside = [1.0, 0.0, 0.0]
    points = torch.tensor(
        [behind, in_the_camera, in_the_camera_with_negative_zero, beside], dtype=torch.float64
    )

    links = PointProjector(unknown_depth="accept")(points, camera, None)

    assert_no_links(links, num_points=4)


def test_a_world_far_from_its_origin_gives_the_same_links(
    points: Tensor, cameras: Cameras, depth: Tensor
) -> None:
    shift = torch.tensor([412_345.0, 5_651_234.0, 87.0]).double()
    shifted_poses = cameras.cam_to_world.clone()
    shifted_poses[:, :3, 3] += shift
    shifted_cameras = replace(cameras, cam_to_world=shifted_poses)

    links = PointProjector()(points + shift, shifted_cameras, depth)

    assert are_same(links, PointProjector()(points, cameras, depth), atol=1e-5)


def test_stats_say_what_became_of_the_pairs(
    points: Tensor, cameras: Cameras, depth: Tensor
) -> None:
    stats = PointProjector()(points, cameras, depth).stats()

    uv, z = cameras.project(points)
    u, v = uv.unbind(dim=-1)
    is_in_front = z > 0.05
    is_inside = is_in_front & (u >= -0.5) & (v >= -0.5) & (u < 79.5) & (v < 59.5)
    assert torch.allclose(stats["front"], is_in_front.double().mean(dim=1))
    assert torch.allclose(stats["in_bounds"], is_inside.double().mean(dim=1))
    assert torch.allclose(stats["agree"], stats["links"] / is_inside.double().sum(dim=1))
    assert stats["known"].tolist() == [1.0] * 6


def test_stats_without_depth_say_nothing_of_depth(points: Tensor, cameras: Cameras) -> None:
    stats = PointProjector()(points, cameras).stats()

    assert set(stats) == {"links", "front", "in_bounds"}


def test_stats_of_links_made_by_hand_count_the_links_alone() -> None:
    view = torch.tensor([0, 2, 2])
    by_hand = Links(view, torch.arange(3), torch.zeros(3, 2), torch.ones(3), 5, 3, SMALL)

    stats = by_hand.stats()

    assert {name: count.tolist() for name, count in stats.items()} == {"links": [1, 0, 2]}


def test_depth_in_millimetres_is_named_with_the_remedy(
    points: Tensor, cameras: Cameras, depth: Tensor
) -> None:
    with pytest.raises(DataError, match="depth / 1000"):
        PointProjector()(points, cameras, depth * 1000)


def test_depth_in_millimetres_of_a_batch_is_named_with_the_remedy(
    points: Tensor, cameras: Cameras, depth: Tensor
) -> None:
    batched = replace(cameras, sample=torch.tensor([0, 1] * 3))
    sample_of_point = torch.arange(len(points)) % 2

    with pytest.raises(DataError, match="depth / 1000"):
        PointProjector()(points, batched, depth * 1000, sample_of_point)


def test_a_world_in_millimetres_is_named(points: Tensor, cameras: Cameras, depth: Tensor) -> None:
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000
    cameras_in_mm = replace(cameras, cam_to_world=poses)

    with pytest.raises(DataError, match="millimetres"):
        PointProjector()(points * 1000, cameras_in_mm, depth)


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


def test_depth_that_fits_is_not_logged(
    points: Tensor, cameras: Cameras, depth: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    PointProjector()(points, cameras, depth)

    assert caplog.messages == []


@pytest.fixture
def number_in_images(points: Tensor, cameras: Cameras) -> int:
    """How many projected points lie in an image."""
    return len(PointProjector()(points, cameras))


def test_poses_that_fit_no_depth_are_logged(
    points: Tensor,
    cameras: Cameras,
    depth: Tensor,
    number_in_images: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    PointProjector()(points, cameras, depth + 9.0)

    [message] = caplog.messages
    assert f"0 of the {number_in_images} projected points with known depth" in message


def test_points_in_no_image_are_logged(
    points: Tensor, cameras: Cameras, depth: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    above_the_room = points + torch.tensor([0.0, 0.0, 80.0], dtype=points.dtype)

    links = PointProjector()(above_the_room, cameras, depth)

    assert len(links) == 0
    [message] = caplog.messages
    assert f"none of the {6 * len(points)} projected points" in message


def test_depth_that_is_unknown_everywhere_is_logged(
    points: Tensor,
    cameras: Cameras,
    depth: Tensor,
    number_in_images: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    links = PointProjector()(points, cameras, depth * 0)

    assert len(links) == 0
    [message] = caplog.messages
    assert f"depth is unknown at all of the {number_in_images} projected points" in message


HEIGHT = 48  # of images in pixels
WIDTH = 70
ROWS = 3  # of maps in cells
COLS = 5
CHANNELS = 4
VIEWS = 3
POINTS = 40
TARGETS = [
    pytest.param("points", "mean", id="points"),
    pytest.param("voxels", "mean", id="mean of voxels"),
    pytest.param("voxels", "max", id="maximum of voxels"),
]
LIFT_OPTIONS = list(itertools.product(("bilinear", "nearest"), ("mean", "random", "closest")))


def random_links(points: int = POINTS, share: float = 0.4, margin: float = 0.5) -> Links:
    """Links at random places, ``margin`` pixels beyond the outermost centres too."""
    point, view = (torch.rand(points, VIEWS) < share).nonzero().unbind(dim=1)
    extent = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    uv = torch.rand(len(view), 2, dtype=torch.float64) * (extent - 1 + 2 * margin) - margin
    return Links(
        view=view,
        point=point,
        uv=uv,
        z=torch.rand(len(view), dtype=torch.float64) + 1,
        num_points=points,
        num_views=VIEWS,
        image_size=(HEIGHT, WIDTH),
    )


def grid_of(onto: str, points: int = POINTS) -> VoxelGrid | None:
    return random_voxels(points) if onto == "voxels" else None


def random_voxels(points: int = POINTS) -> VoxelGrid:
    coords = torch.randint(-2, 1, (points, 3))
    batch = torch.randint(0, 2, (points,))
    return VoxelGrid.from_coords(coords, batch)


def maps_of(dtype: torch.dtype = torch.float64, views: int = VIEWS) -> Tensor:
    return torch.randn(views, CHANNELS, ROWS, COLS, dtype=torch.float64).to(dtype)


def clamp(value: float, highest: float) -> float:
    return min(max(value, 0.0), highest)


def sample_by_hand(features: Tensor, u: float, v: float, sampling: str) -> Tensor:
    """The value of one map (C, rows, cols) at a pixel, (C,)."""
    rows, cols = features.shape[1:]
    x = (u + 0.5) * cols / WIDTH
    y = (v + 0.5) * rows / HEIGHT
    if sampling == "nearest":
        row = int(clamp(y // 1, rows - 1))
        col = int(clamp(x // 1, cols - 1))
        return features[:, row, col]
    x = clamp(x - 0.5, cols - 1)
    y = clamp(y - 0.5, rows - 1)
    total = torch.zeros_like(features[:, 0, 0])
    for row in range(rows):
        for col in range(cols):
            weight = max(0.0, 1 - abs(x - col)) * max(0.0, 1 - abs(y - row))
            total = total + features[:, row, col] * weight
    return total


def values_of_points(
    maps: Tensor, links: Links, sampling: str, views: str, generator: torch.Generator
) -> dict[int, Tensor]:
    """The value of every point that a view shows, by its number."""
    samples: dict[int, list[Tensor]] = {}
    distances: dict[int, list[float]] = {}
    for i in range(len(links)):
        u, v = links.uv[i].tolist()
        point = int(links.point[i])
        sample = sample_by_hand(maps[links.view[i]], u, v, sampling)
        samples.setdefault(point, []).append(sample)
        distances.setdefault(point, []).append(float(links.z[i]))
    draws = torch.rand(len(samples), generator=generator, dtype=torch.float64).tolist()
    values = {}
    for draw, (point, of_views) in zip(draws, samples.items(), strict=True):
        if views == "mean":
            values[point] = torch.stack(of_views).mean(dim=0)
        elif views == "closest":
            nearest = min(distances[point])
            values[point] = of_views[distances[point].index(nearest)]
        else:
            values[point] = of_views[int(draw * len(of_views))]
    return values


def lift_by_hand(
    maps: Tensor,
    links: Links,
    grid: VoxelGrid | None,
    sampling: str,
    views: str,
    project: nn.Linear | None,
    generator: torch.Generator,
    reduce: str,
) -> tuple[Tensor, Tensor]:
    values = values_of_points(maps, links, sampling, views, generator)
    if project is not None:
        values = {point: project(value) for point, value in values.items()}
    if grid is None:
        points_of_row = [[point] for point in range(links.num_points)]
    else:
        points_of_row = [(grid.inverse == i).nonzero()[:, 0].tolist() for i in range(len(grid))]
    width = maps.shape[1] if project is None else project.out_features
    feats = maps.new_zeros(len(points_of_row), width)
    valid = torch.zeros(len(points_of_row), dtype=torch.bool)
    for row, points in enumerate(points_of_row):
        seen = [values[point] for point in points if point in values]
        if not seen:
            continue
        valid[row] = True
        if reduce == "mean":
            feats[row] = torch.stack(seen).mean(dim=0)
        else:
            feats[row] = torch.stack(seen).amax(dim=0)
    return feats, valid


def lift_features(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Features and validity of points or voxels."""
    lifted = lift(*arguments, **options)
    if isinstance(lifted, SparseFeatures):
        return lifted.feats, lifted.valid
    return lifted


@pytest.mark.parametrize("is_projected", [False, True], ids=["as they are", "projected"])
@pytest.mark.parametrize(("sampling", "views"), LIFT_OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_lifted_features_are_those_of_a_plain_loop(
    sampling: str, views: str, onto: str, reduce: str, is_projected: bool
) -> None:
    maps = maps_of() - 5  # an unseen 0 would be the maximum
    links = random_links(margin=3.0, share=0.2)
    grid = grid_of(onto)
    project = nn.Linear(CHANNELS, 6, dtype=torch.float64) if is_projected else None
    options: dict[str, Any] = {"sampling": sampling, "views": views, "reduce": reduce}
    generator = torch.Generator().manual_seed(7)

    with torch.no_grad():
        feats, valid = lift_features(
            maps, links, grid, project=project, generator=generator, **options
        )

    same_draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        expected, expected_valid = lift_by_hand(
            maps, links, grid, project=project, generator=same_draws, **options
        )
    assert torch.allclose(feats, expected, rtol=0, atol=1e-10)
    assert torch.equal(valid, expected_valid)
    assert not feats[~valid].any()  # a projection's bias stays with what was seen
    assert 0 < int(valid.sum()) < len(valid)


@pytest.mark.parametrize(("sampling", "views"), LIFT_OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_gradients_reach_the_maps(sampling: Any, views: Any, onto: str, reduce: Any) -> None:
    links = random_links(points=8)
    grid = grid_of(onto, points=8)
    maps = maps_of().requires_grad_()

    def lift_maps(maps: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        feats, _ = lift_features(
            maps, links, grid, sampling=sampling, views=views, generator=generator, reduce=reduce
        )
        return feats

    assert torch.autograd.gradcheck(lift_maps, (maps,), fast_mode=True)


@pytest.mark.parametrize(("sampling", "views"), LIFT_OPTIONS)
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_gradients_reach_maps_and_projection(
    sampling: Any, views: Any, onto: str, reduce: Any
) -> None:
    links = random_links(points=8)
    grid = grid_of(onto, points=8)
    maps = maps_of().requires_grad_()
    project = nn.Linear(CHANNELS, 2, dtype=torch.float64)

    def lift_projected(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gradcheck changes the weight and the bias in their place."""
        generator = torch.Generator().manual_seed(3)
        feats, _ = lift_features(
            maps,
            links,
            grid,
            sampling=sampling,
            views=views,
            project=project,
            generator=generator,
            reduce=reduce,
        )
        return feats

    leaves = (maps, project.weight, project.bias)
    assert torch.autograd.gradcheck(lift_projected, leaves, fast_mode=True)


LAYOUTS = ["channels first", "channels last", "leaf"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("onto", ["points", "voxels"])
def test_every_dtype_stays_and_is_right_to_its_rounding(
    dtype: torch.dtype, onto: str, layout: str
) -> None:
    maps = maps_of(dtype)
    links = random_links()
    grid = grid_of(onto)
    if layout == "channels last":
        maps = maps.to(memory_format=torch.channels_last)
    elif layout == "leaf":
        maps.requires_grad_()

    feats, _ = lift_features(maps, links, grid)

    exact, _ = lift_features(maps.double(), links, grid)
    rounding = 4 * torch.finfo(dtype).eps * maps.double().abs().max()
    assert feats.dtype == dtype
    assert (feats.double() - exact).abs().max() < rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("onto", ["points", "voxels"])
def test_gradients_of_every_dtype_are_right_to_its_rounding(dtype: torch.dtype, onto: str) -> None:
    maps = maps_of(dtype).requires_grad_()
    maps_in_double = maps.detach().double().requires_grad_()
    links = random_links()
    grid = grid_of(onto)
    exact_feats, _ = lift_features(maps_in_double, links, grid)
    grad_of_feats = torch.randn_like(exact_feats).to(dtype)

    feats, _ = lift_features(maps, links, grid)
    (grad,) = torch.autograd.grad(feats, maps, grad_of_feats)

    (exact,) = torch.autograd.grad(exact_feats, maps_in_double, grad_of_feats.double())
    rounding = 4 * torch.finfo(dtype).eps * exact.abs().max()
    assert grad.dtype == dtype
    assert (grad.double() - exact).abs().max() < rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_points_in_a_voxel_still_give_their_mean(dtype: torch.dtype) -> None:
    count = 100_000
    links = Links(
        view=torch.zeros(count, dtype=torch.int64),
        point=torch.arange(count),
        uv=torch.full((count, 2), 7.0),
        z=torch.ones(count),
        num_points=count,
        num_views=1,
        image_size=(16, 16),
    )
    one_voxel = VoxelGrid.from_coords(torch.zeros(count, 3, dtype=torch.int64))
    maps = torch.full((1, 2, 1, 1), 3.0, dtype=dtype)

    feats = lift(maps, links, one_voxel, "nearest").feats

    three = torch.tensor(3.0, dtype=torch.float64)
    assert torch.allclose(feats.double(), three, rtol=torch.finfo(dtype).eps)


WIDTHS = [
    pytest.param(None, id="as they are"),
    pytest.param(6, id="projected"),
]


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize("onto", ["points", "voxels"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_views", [VIEWS, 0], ids=["no links", "no views"])
def test_without_links_nothing_is_lifted(
    num_views: int, width: int | None, onto: str, views: str
) -> None:
    links = replace(random_links(share=0.0), num_views=num_views)
    grid = grid_of(onto)
    project = nn.Linear(CHANNELS, width, dtype=torch.float64) if width else None

    feats, valid = lift_features(
        maps_of(views=num_views), links, grid, views=views, project=project
    )

    num_rows = POINTS if grid is None else len(grid)
    assert feats.shape == (num_rows, width or CHANNELS)
    assert not feats.any()
    assert not valid.any()


@pytest.mark.parametrize("views", ["mean", "random", "closest"])
def test_without_links_gradients_are_zero(views: str) -> None:
    maps = maps_of().requires_grad_()
    project = nn.Linear(CHANNELS, 6, dtype=torch.float64)
    feats, _ = lift_features(
        maps, random_links(share=0.0), random_voxels(), views=views, project=project
    )

    feats.sum().backward()

    assert maps.grad is not None
    assert not maps.grad.any()


def test_without_points_features_keep_their_channels() -> None:
    links = replace(random_links(share=0.0), num_views=0, num_points=0)
    no_voxels = VoxelGrid.from_points(torch.zeros(0, 3), 1.0)

    lifted = lift(maps_of(views=0), links, no_voxels)

    assert lifted.feats.shape == (0, CHANNELS)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_the_chunk_changes_neither_result_nor_gradient(
    onto: str, reduce: Any, views: Any, chunk: int
) -> None:
    maps = maps_of().requires_grad_()
    links = random_links()
    grid = grid_of(onto)

    def lift_with_gradient(chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        feats, valid = lift_features(
            maps, links, grid, views=views, reduce=reduce, chunk=chunk, generator=generator
        )
        (grad,) = torch.autograd.grad(feats.square().sum(), maps)
        return feats, valid.double(), grad

    in_chunks = lift_with_gradient(chunk)

    at_once = lift_with_gradient(10**6)
    assert kit.same(in_chunks, at_once, 1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
@pytest.mark.parametrize("views", ["mean", "random", "closest"])
@pytest.mark.parametrize(("onto", "reduce"), TARGETS)
def test_features_are_the_same_with_and_without_gradients(
    onto: str, reduce: Any, views: Any, chunk: int
) -> None:
    maps = maps_of().requires_grad_()
    links = random_links()
    grid = grid_of(onto)
    options: dict[str, Any] = {"views": views, "reduce": reduce, "chunk": chunk}
    feats, _ = lift_features(
        maps, links, grid, generator=torch.Generator().manual_seed(0), **options
    )

    with torch.no_grad():
        without_gradients, _ = lift_features(
            maps, links, grid, generator=torch.Generator().manual_seed(0), **options
        )

    assert torch.equal(without_gradients, feats)
