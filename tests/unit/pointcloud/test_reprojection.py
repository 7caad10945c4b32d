"""The colour of points in other images: nothing in an exact room, the published numbers in the real one."""

from __future__ import annotations

import pytest
import torch
from examples.pointcloud.frames import Frames, cloud_of, read_frames
from examples.pointcloud.reprojection import grey_levels, pair_error
from tests.conftest import DATA
from tests.unit.pointcloud.analytic_scene import bare_room

from dinoneck.points import Links, PointProjector
from dinoneck.points.camera_check import Reading


@pytest.fixture(scope="module")
def room() -> Frames:
    return bare_room()


@pytest.fixture(scope="module")
def real() -> Frames:
    folder = DATA / "rgbd_room"
    if not folder.is_dir():
        pytest.skip(f"the RGB-D frames are not in {folder}; set DINONECK_DATA to the folder that holds rgbd_room")
    return read_frames(folder)


def test_walls_of_one_colour_match_away_from_edges(room: Frames) -> None:
    points, colours, _ = cloud_of(room, 0)
    links = PointProjector()(points, room.cameras[2], room.depth[2:3])
    assert len(links) > 2000
    edge = torch.nn.functional.max_pool2d(torch.stack([room.images[2].float(), -room.images[2].float()]), 3, 1, 1)
    flat = (edge[0] == -edge[1]).all(0)  # all pixels around have one colour
    col, row = links.uv.round().long().unbind(1)
    inner = flat[row.clamp(0, 59), col.clamp(0, 79)]
    assert 0.6 < float(inner.double().mean()) < 1
    kept = Links(links.view[inner], links.point[inner], links.uv[inner], links.z[inner], len(points), 1, (60, 80))
    for link in range(0, len(kept), 50):
        one = Links(
            *(part[link : link + 1] for part in (kept.view, kept.point, kept.uv, kept.z)), len(points), 1, (60, 80)
        )
        assert grey_levels(one, colours, room.images[2:3]) == pytest.approx(0, abs=1e-3)
    assert pair_error(room, 0, 2).grey_levels == pytest.approx(0, abs=1e-3)


def test_colours_are_read_between_pixel_centres() -> None:
    ramp = torch.arange(8, dtype=torch.uint8) * 10
    images = torch.stack(
        [ramp.expand(6, 8), torch.arange(6, dtype=torch.uint8)[:, None].expand(6, 8) * 30, ramp.expand(6, 8)]
    )
    uv = torch.tensor([[2.25, 3.5], [0.0, 0.0], [7.0, 5.0]])
    colours = torch.tensor([[22.5, 105.0, 22.5], [0, 0, 0], [70, 150, 70]])
    for link in range(3):
        row = torch.zeros(1, dtype=torch.int64)
        one = Links(row, row + link, uv[link : link + 1], torch.ones(1), 3, 1, (6, 8))
        assert grey_levels(one, colours, images[None]) == pytest.approx(0, abs=1e-4)


READINGS: tuple[Reading, ...] = ("camera_to_world", "inverse", "opengl", "transposed")
# (agree, grey levels) with the right reading, the same with inverted poses, measured once by other code
KNOWN = {(3, 4): (0.82, 5.4, 0.03, 24.5), (0, 1): (0.40, 9.7, 0.02, None), (1, 2): (0.65, 7.9, 0.02, None)}


@pytest.mark.parametrize("pair", KNOWN)
def test_the_real_room_gives_the_known_numbers(real: Frames, pair: tuple[int, int]) -> None:
    right, inverse, opengl, transposed = (pair_error(real, *pair, reading) for reading in READINGS)
    agree, levels, wrong, wrong_levels = KNOWN[pair]
    assert right.agree == pytest.approx(agree, abs=0.01)
    assert right.grey_levels == pytest.approx(levels, abs=0.1)
    assert inverse.agree == pytest.approx(wrong, abs=0.01)
    if wrong_levels is not None:
        assert inverse.grey_levels == pytest.approx(wrong_levels, abs=0.1)
    for error in (inverse, opengl, transposed):
        assert right.agree > 3 * error.agree
        assert error.grey_levels is not None
        assert right.grey_levels is not None
        assert error.grey_levels > 1.9 * right.grey_levels
    assert inverse.in_bounds > right.in_bounds  # which is why landing in the image tells nothing
