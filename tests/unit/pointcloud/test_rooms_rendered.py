"""Analytic rooms: images, depth, points and labels tell one truth, and some classes have no shape."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from examples.pointcloud.rooms import CLASSES, WALL, Room, room
from torch import Tensor

from dinoneck.points import PointProjector

SEEDS = (0, 3)


@cache
def drawn(seed: int) -> Room:
    return room(seed, points=12_000)


def pixels_of(made: Room) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Visible points, the pixels they fall on, and which of these have no other label next to them."""
    frames = made.frames
    links = PointProjector()(made.points, frames.cameras, frames.depth)
    column, row = (links.uv + 0.5).floor().long().unbind(1)
    seen = made.seen_labels[:, None].float()
    calm = F.max_pool2d(seen, 3, 1, 1) == -F.max_pool2d(-seen, 3, 1, 1)
    height, width = frames.cameras.size
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    return links.point, links.view, row, column, calm[links.view, 0, row, column]


def unprojected(made: Room, view: int) -> Tensor:
    frames = made.frames
    height, width = frames.cameras.size
    v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1) @ torch.linalg.inv(frames.cameras.K[view]).mT
    pose = frames.cameras.cam_to_world[view]
    return rays * frames.depth[view].double().flatten()[:, None] @ pose[:3, :3].mT + pose[:3, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pixels_label_and_colour_are_those_of_the_point_seen_there(seed: int) -> None:
    made = drawn(seed)
    point, view, row, column, calm = pixels_of(made)
    same = made.seen_labels[view, row, column] == made.labels[point]
    assert calm.sum() > 5000 and same[calm].all()
    assert same.double().mean() > 0.98  # at edges a pixel's centre may lie on the other side
    assert set(made.labels[point[calm]].tolist()) == set(range(len(CLASSES)))
    off = (made.frames.images[view, :, row, column].int() - made.colours[point].int()).abs()
    walls = calm & (made.labels[point] == WALL)
    assert (off[walls].amax(1) <= 2).double().mean() > 0.98  # two walls that meet are lit differently
    assert off[calm].median() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_ends_on_a_surface_with_nothing_before_it(seed: int) -> None:
    made = drawn(seed)
    size, solids = made.interior.size, made.interior.solids
    for view in range(2):
        ends = unprojected(made, view)
        shell = torch.minimum(ends.abs(), (ends - size).abs()).amin(1)
        on = [shell, *(_distance_to_box(ends, box.low, box.high) for box in solids)]
        assert torch.stack(on).amin(0).max() < 1e-5
        eye = made.frames.cameras.positions[view]
        for share in torch.linspace(0.01, 0.999, 60).double():
            way = eye + share * (ends - eye)
            assert ((way > 0) & (way < size)).all()
            for box in solids:
                assert not ((way > box.low + 1e-3) & (way < box.high - 1e-3)).all(1).any()


def _distance_to_box(places: Tensor, low: Tensor, high: Tensor) -> Tensor:
    outside = torch.maximum(low - places, places - high).clamp_min(0).norm(dim=1)
    inside = torch.minimum(places - low, high - places).amin(1).clamp_min(0)
    return outside + inside
