"""PointProjector against ray-traced truth, a plain loop, and images that hold their own place."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import ConfigError, DataError, GridSize, ShapeError, TokenGrid
from dinoneck.points import Cameras, Links, PointProjector

SMALL = (60, 80)


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Cameras, Tensor]:
    """3000 points, 6 views of 60 x 80 px, their depth."""
    cameras = rooms.ring(6, SMALL)
    return rooms.surface(3000).points, cameras, rooms.depth(cameras)


def same(one: Links, other: Links, atol: float = 1e-9) -> bool:
    pairs = torch.equal(one.view, other.view) and torch.equal(one.point, other.point)
    return pairs and torch.allclose(one.uv, other.uv, atol=atol) and torch.allclose(one.z, other.z, atol=atol)


def pairs(links: Links) -> set[tuple[int, int]]:
    return set(zip(links.point.tolist(), links.view.tolist(), strict=True))


def test_visibility_is_that_of_the_rays() -> None:
    """Among pairs in the image: 99.3 % right overall, 99.7 % away from depth edges, 1.2 % of the hidden accepted."""
    cameras, points = rooms.ring(8), rooms.surface(40_000).points
    depth = rooms.depth(cameras)
    links = PointProjector()(points, cameras, depth)
    uv, z = cameras.project(points)
    truth, got = rooms.seen(points, cameras), torch.zeros(8, len(points), dtype=torch.bool)
    got[links.view, links.point] = True
    inside = (z > 0.05) & (uv >= -0.5).all(-1) & (uv[..., 0] < 639.5) & (uv[..., 1] < 479.5)
    assert not (got & ~inside).any()
    assert 0.3 < truth[inside].double().mean() < 0.7
    right = got == truth
    span = F.max_pool2d(depth[:, None], 7, 1, 3) + F.max_pool2d(-depth[:, None], 7, 1, 3)
    pixel = (uv[inside] + 0.5).floor().long()
    flat = span[inside.nonzero()[:, 0], 0, pixel[:, 1], pixel[:, 0]] < 0.10
    assert flat.double().mean() > 0.9
    assert right[inside].double().mean() >= 0.993
    assert right[inside][flat].double().mean() >= 0.997
    assert got[inside & ~truth].double().mean() <= 0.012
    loose = PointProjector(depth_rel=0.25)(points, cameras, depth)
    got[loose.view, loose.point] = True
    assert got[inside & ~truth].double().mean() > 0.05


def test_links_are_those_of_a_plain_loop(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    links = PointProjector()(points, cameras, depth)
    found = []
    world_to_cam = torch.linalg.inv(cameras.cam_to_world)
    for n, point in enumerate(points[:400]):
        for v in range(len(cameras)):
            x, y, z = (world_to_cam[v] @ torch.cat([point, point.new_ones(1)]))[:3].tolist()
            u = float(cameras.K[v, 0, 0]) * x / z + float(cameras.K[v, 0, 2])
            w = float(cameras.K[v, 1, 1]) * y / z + float(cameras.K[v, 1, 2])
            inside = z > 0.05 and 0 <= round(u) < SMALL[1] and 0 <= round(w) < SMALL[0]
            if inside and abs(float(depth[v, round(w), round(u)]) - z) <= max(0.05, 0.02 * z):
                found.append((n, v, u, w, z))
    first = links.point < 400
    assert list(zip(links.point[first].tolist(), links.view[first].tolist(), strict=True)) == [f[:2] for f in found]
    assert torch.allclose(links.uv[first], torch.tensor([f[2:4] for f in found]).double(), atol=1e-9)
    assert torch.allclose(links.z[first], torch.tensor([f[4] for f in found]).double(), atol=1e-12)
    assert torch.equal(links.n_views, torch.bincount(links.point, minlength=3000))
    assert links.coverage == pytest.approx(len(set(links.point.tolist())) / 3000)
    assert (links.num_points, links.num_views, links.image_size) == (3000, 6, SMALL)


@pytest.mark.parametrize("patch", [14, 16])
def test_a_ramp_read_at_the_links_gives_back_the_pixel(patch: int) -> None:
    """Tokens that hold the place of their centre, sampled at xy: the image's place, so no half pixel is lost."""
    cameras = rooms.ring(4, (15 * patch, 20 * patch))
    links = PointProjector()(rooms.surface(4000).points.float(), cameras, rooms.depth(cameras))
    grid = TokenGrid(patch)
    ramp = grid.cell_centers(cameras.size).double()
    maps = ramp.T.reshape(1, 2, 15, 20)
    xy = links.xy.double()
    low, high = torch.full((2,), patch / 2), torch.tensor([19.5, 14.5]) * patch
    inner = ((xy > low) & (xy < high)).all(1)
    read = grid.sample(maps, xy[inner], cameras.size)[0]
    assert grid.size(cameras.size) == GridSize(15, 20)
    assert inner.sum() > 1000
    assert (read - xy[inner]).abs().max() < 1e-3
    assert torch.equal(links.xy, links.uv + 0.5)


def test_depth_of_another_size_is_read_half_pixels_considered(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    whole = PointProjector()(points, cameras, depth)
    double = depth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert same(PointProjector()(points, cameras, double), whole)
    fine = cameras.resize((240, 320))
    half = PointProjector()(points, fine, rooms.depth(fine, (120, 160)))
    assert len(pairs(half) ^ pairs(PointProjector()(points, fine, rooms.depth(fine)))) < 0.02 * len(half)
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


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_bound_memory_and_change_nothing(
    chunk: int, scene: tuple[Tensor, Cameras, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    points, cameras, depth = scene
    points = points[:300]
    whole = PointProjector()(points, cameras, depth)
    blocks, addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *given: blocks.append(addmm(*given)) or blocks[-1])
    links = PointProjector(chunk=chunk)(points, cameras, depth)
    assert same(links, whole)
    assert torch.equal(links.counts, whole.counts)
    assert max(block.numel() for block in blocks) <= 3 * max(chunk, len(cameras))
    assert sum(len(block) for block in blocks) == len(points)


@pytest.mark.parametrize(
    "option",
    [{"near": 2.0}, {"far": 2.0}, {"depth_abs": 0.0}, {"depth_rel": 0.2}, {"unknown_depth": "accept"}],
)
def test_every_option_changes_the_links(option: dict[str, object], scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    depth = depth.clone()
    depth[:, ::2] = torch.nan
    default, other = PointProjector()(points, cameras, depth), PointProjector(**option)(points, cameras, depth)
    assert pairs(default) != pairs(other)
    if "near" in option:
        assert pairs(other) == {pair for pair, z in zip(sorted_pairs(default), default.z, strict=True) if z > 2.0}
    if "far" in option:
        assert pairs(other) == {pair for pair, z in zip(sorted_pairs(default), default.z, strict=True) if z < 2.0}


def sorted_pairs(links: Links) -> list[tuple[int, int]]:
    return list(zip(links.point.tolist(), links.view.tolist(), strict=True))


@pytest.mark.parametrize("unknown", [0.0, -1.0, torch.nan, torch.inf, -torch.inf])
def test_unknown_depth_is_rejected_or_accepted_as_asked(unknown: float, scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    nothing = torch.full_like(depth, unknown)
    rejected = PointProjector()(points, cameras, nothing)
    assert len(rejected) == 0
    assert rejected.coverage == 0.0
    assert rejected.stats()["known"].tolist() == rejected.stats()["agree"].tolist() == [0.0] * 6
    assert same(PointProjector(unknown_depth="accept")(points, cameras, nothing), PointProjector()(points, cameras))


def test_without_views_or_points_or_in_front_of_nothing_there_are_no_links(
    scene: tuple[Tensor, Cameras, Tensor],
) -> None:
    points, cameras, depth = scene
    eye = Cameras(torch.eye(3)[None] * torch.tensor([50.0, 50.0, 1.0])[:, None], torch.eye(4)[None], SMALL)
    behind = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -0.0], [1.0, 0.0, 0.0]])
    for links, number in [
        (PointProjector()(points, cameras[:0], depth[:0]), 3000),
        (PointProjector()(points, cameras[:0]), 3000),
        (PointProjector()(points[:0], cameras, depth), 0),
        (PointProjector()(behind, eye), 4),
        (PointProjector(unknown_depth="accept")(behind, eye, torch.full((1, 6, 8), torch.nan)), 4),
    ]:
        assert len(links) == 0
        assert links.coverage == 0.0
        assert links.n_views.tolist() == [0] * number
        assert (tuple(links.uv.shape), tuple(links.xy.shape), tuple(links.z.shape)) == ((0, 2), (0, 2), (0,))
        assert all(share.isfinite().all() for share in links.stats().values())


def test_a_world_far_from_its_origin_gives_the_same_links(scene: tuple[Tensor, Cameras, Tensor]) -> None:
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
    assert set(stats) == {"links", "front", "in_bounds", "known", "agree"}
    uv, z = cameras.project(points)
    inside = (z > 0.05) & (uv >= -0.5).all(-1) & (uv[..., 0] < 79.5) & (uv[..., 1] < 59.5)
    assert torch.allclose(stats["front"], (z > 0.05).double().mean(1))
    assert torch.allclose(stats["in_bounds"], inside.double().mean(1))
    assert torch.allclose(stats["agree"], stats["links"] / inside.double().sum(1))
    assert stats["known"].tolist() == [1.0] * 6
    assert set(PointProjector()(points, cameras).stats()) == {"links", "front", "in_bounds"}
    by_hand = Links(links.view, links.point, links.uv, links.z, 3000, 6, SMALL)
    assert set(by_hand.stats()) == {"links"}
    assert same(by_hand.to("cpu"), links)
    assert repr(links) == f"Links({len(links)} of 3000 points in 6 views, coverage {links.coverage:.3f})"


def test_millimetres_are_named_with_the_remedy(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene
    with pytest.raises(DataError, match=r"depth has the median \d{4} where points lie at \d\.\d+ m.*depth / 1000"):
        PointProjector()(points, cameras, depth * 1000)
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000
    with pytest.raises(DataError, match=r"points lie at the median \d{4} .*look in millimetres: divide them by 1000"):
        PointProjector()(points * 1000, replace(cameras, cam_to_world=poses), depth)
    batch = torch.arange(len(points)) % 2
    two = replace(cameras, sample=torch.tensor([0, 1] * 3))
    with pytest.raises(DataError, match="depth / 1000"):
        PointProjector()(points, two, depth * 1000, batch)


def test_poses_that_fit_no_depth_are_logged(
    scene: tuple[Tensor, Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    points, cameras, depth = scene
    with caplog.at_level(logging.WARNING):
        PointProjector()(points, cameras, depth)
        assert not caplog.records
        PointProjector()(points, cameras, depth + 9.0)
    assert "check_cameras" in caplog.text


def test_nothing_in_any_image_and_no_depth_at_all_are_logged(
    scene: tuple[Tensor, Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    points, cameras, depth = scene
    far = points + torch.tensor([0.0, 0.0, 80.0], dtype=points.dtype)
    assert not len(PointProjector()(far, cameras, depth)) and not len(PointProjector()(points, cameras, depth * 0))
    in_image = len(PointProjector()(points, cameras))
    shown = [f"{6 * len(points)} projected points 0 lie in an image", f"{in_image} lie in an image, 0 of them at known"]
    assert all(part in text for part, text in zip(shown, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": torch.zeros(4, 2)}, ShapeError, r"points are torch\.float32 \(4, 2\); expected .* \(points, 3\)"),
        ({"points": torch.zeros(4, 3).half()}, ShapeError, r"torch\.float16 .*half precision is off by 4 mm"),
        ({"points": torch.zeros(4, 3).long()}, ShapeError, r"torch\.int64"),
        ({"points": torch.tensor([[0.0, torch.nan, 1.0]])}, DataError, r"1 of 1 points are not finite, the first is"),
        ({"depth": torch.ones(5, 6, 8)}, ShapeError, r"depth has shape \(5, 6, 8\); expected \(6 views, rows, cols\)"),
        ({"depth": torch.ones(6, 1, 6, 8)}, ShapeError, r"\(6, 1, 6, 8\)"),
        ({"depth": torch.ones(6, 0, 8)}, ShapeError, r"\(6, 0, 8\)"),
        ({"depth": torch.ones(6, 6, 8).int()}, ShapeError, r"torch\.int32; expected floating metres .*depth / 1000"),
        ({"batch": torch.zeros(4).long()}, ShapeError, r"batch is given and Cameras\(sample=\.\.\.\) is not"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor], error: type[Exception], message: str, scene: tuple[Tensor, Cameras, Tensor]
) -> None:
    given = {"points": torch.zeros(4, 3), "cameras": scene[1], **changes}
    with pytest.raises(error, match=message):
        PointProjector()(**given)


def test_a_batch_that_does_not_fit_is_named(scene: tuple[Tensor, Cameras, Tensor]) -> None:
    cameras = replace(scene[1], sample=torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"cameras\.sample is given and batch is not"):
        PointProjector()(torch.zeros(4, 3), cameras)
    with pytest.raises(ShapeError, match=r"batch is torch\.int64 \(3,\); expected torch\.int64 \(4,\)"):
        PointProjector()(torch.zeros(4, 3), cameras, batch=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"near": 0.0}, r"near is 0\.0; expected metres above 0"),
        ({"far": 0.01}, r"far is 0\.01; expected more than near"),
        ({"depth_abs": -1.0}, r"depth_abs is -1\.0"),
        ({"depth_rel": float("nan")}, r"depth_rel is nan"),
        ({"unknown_depth": "keep"}, r"'keep'; expected one of reject, accept"),
        ({"chunk": 0}, r"chunk is 0"),
    ],
)
def test_options_out_of_range_are_named(option: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointProjector(**option)
