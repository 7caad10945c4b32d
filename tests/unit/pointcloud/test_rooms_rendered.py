"""Analytic rooms: images, depth, points and labels tell one truth, and some classes have no shape."""

from __future__ import annotations

from functools import cache

import pytest
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
