"""PointProjector against ray-traced truth, a plain loop, and images that hold their own place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import DataError, TokenGrid
from dinoneck.points import Cameras, Links, PointProjector

SMALL = (60, 80)


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Cameras, Tensor]:
    """3000 points, 6 views of 60 x 80 px, their depth."""
    cameras = rooms.ring(6, SMALL)
    return rooms.surface(3000), cameras, rooms.depth(cameras)


def same(one: Links, other: Links, atol: float = 1e-9) -> bool:
    pairs = torch.equal(one.view, other.view) and torch.equal(one.point, other.point)
    return pairs and torch.allclose(one.uv, other.uv, atol=atol) and torch.allclose(one.z, other.z, atol=atol)


def pairs(links: Links) -> set[tuple[int, int]]:
    return set(zip(links.point.tolist(), links.view.tolist(), strict=True))


def test_visibility_is_that_of_the_rays() -> None:
    """Among pairs in the image: 99.3 % right overall, 99.7 % away from depth edges, 1.2 % of the hidden accepted."""
    cameras, points = rooms.ring(8), rooms.surface(40_000)
    depth = rooms.depth(cameras)

    def found(**options: float) -> Tensor:
        links = PointProjector(**options)(points, cameras, depth)
        return torch.zeros(8, len(points), dtype=torch.bool).index_put((links.view, links.point), torch.tensor(True))

    uv, z = cameras.project(points)
    truth, got = rooms.seen(points, cameras), found()
    inside = (z > 0.05) & (uv >= -0.5).all(-1) & (uv[..., 0] < 639.5) & (uv[..., 1] < 479.5)
    assert not (got & ~inside).any()
    assert 0.3 < truth[inside].double().mean() < 0.7
    span = F.max_pool2d(depth[:, None], 7, 1, 3) + F.max_pool2d(-depth[:, None], 7, 1, 3)
    pixel = (uv[inside] + 0.5).floor().long()
    flat = span[inside.nonzero()[:, 0], 0, pixel[:, 1], pixel[:, 0]] < 0.10
    right = (got == truth)[inside]
    assert flat.double().mean() > 0.9
    assert right.double().mean() >= 0.993 and right[flat].double().mean() >= 0.997
    assert got[inside & ~truth].double().mean() <= 0.012
    assert found(depth_rel=0.25)[inside & ~truth].double().mean() > 0.05


OPTIONS: list[dict[str, Any]] = [
    {}, {"near": 2.0}, {"far": 2.0}, {"depth_abs": 0.0}, {"depth_rel": 0.2}, {"unknown_depth": "accept"}
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_links_are_those_of_a_plain_loop(options: dict[str, Any], scene: tuple[Tensor, Cameras, Tensor]) -> None:
    points, cameras, depth = scene[0][:400], scene[1], scene[2].clone()
    for row, unknown in enumerate((0.0, -1.0, torch.nan, torch.inf, -torch.inf)):
        depth[:, row::10] = unknown
    links = PointProjector(**options)(points, cameras, depth)
    rule = {"near": 0.05, "far": math.inf, "depth_abs": 0.05, "depth_rel": 0.02, "unknown_depth": "reject", **options}
    found = []
    uv, z = cameras.project(points)
    for n in range(400):
        for v in range(len(cameras)):
            u, w, far = *uv[v, n].tolist(), float(z[v, n])
            if rule["near"] < far <= rule["far"] and 0 <= round(u) < SMALL[1] and 0 <= round(w) < SMALL[0]:
                seen = float(depth[v, round(w), round(u)])
                known, bound = 0 < seen < math.inf, max(rule["depth_abs"], rule["depth_rel"] * far)
                if abs(seen - far) <= bound if known else rule["unknown_depth"] == "accept":
                    found.append((n, v, u, w, far))
    table = torch.cat([torch.stack([links.point, links.view], 1).double(), links.uv, links.z[:, None]], 1)
    assert torch.allclose(table, torch.tensor(found, dtype=torch.float64), rtol=0, atol=1e-9)
    assert torch.equal(links.n_views, torch.bincount(links.point, minlength=400))
    assert links.coverage == pytest.approx(len(set(links.point.tolist())) / 400)
    assert (links.num_points, links.num_views, links.image_size) == (400, 6, SMALL)


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


def test_without_views_or_points_or_in_front_of_nothing_there_are_no_links(
    scene: tuple[Tensor, Cameras, Tensor],
) -> None:
    points, cameras, depth = scene
    behind = points.new_tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -0.0], [1.0, 0.0, 0.0]])
    eye = Cameras(torch.diag(torch.tensor([50.0, 50.0, 1.0]))[None], torch.eye(4)[None], SMALL)
    for cloud, views, known in ((points, cameras[:0], depth[:0]), (points[:0], cameras, depth), (behind, eye, None)):
        links = PointProjector(unknown_depth="accept")(cloud, views, known)
        assert len(links) == links.coverage == 0
        assert links.n_views.tolist() == [0] * len(cloud) and links.uv.shape == links.xy.shape == (0, 2)
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


def test_what_fits_nothing_is_logged(scene: tuple[Tensor, Cameras, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    """Poses that fit no depth, points in no image, and no depth at all."""
    points, cameras, depth = scene
    PointProjector()(points, cameras, depth)
    assert not caplog.records
    PointProjector()(points, cameras, depth + 9.0)
    far = points + torch.tensor([0.0, 0.0, 80.0], dtype=points.dtype)
    assert not len(PointProjector()(far, cameras, depth)) and not len(PointProjector()(points, cameras, depth * 0))
    in_image = len(PointProjector()(points, cameras))
    shown = ("check_cameras", f"{6 * len(points)} projected points 0", f"{in_image} lie in an image, 0")
    assert all(part in text for part, text in zip(shown, caplog.messages, strict=True))
