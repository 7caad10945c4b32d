"""Furnished rooms with exact answers, drawn from a seed: points, labels, images, depth and cameras. Needs no data.

Images, depth and labels of pixels come from the same rays, so what an image shows at a point's
pixel is the point's own label wherever depth agrees. Posters, boards and rugs are flat in walls and
floors: points cannot tell them, images can. Colours are drawn for every room from wide ranges: a
class is known by pattern and colours, never by one colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.points import Cameras
from examples.pointcloud.frames import Frames
from examples.pointcloud.surfaces import Decal, Interior, Pattern, Solid

CLASSES = ("floor", "ceiling", "wall", "furniture", "poster", "board", "rug")
FLAT = ("poster", "board", "rug")
FLOOR, CEILING, WALL, FURNITURE, POSTER, BOARD, RUG = range(len(CLASSES))
RING_M = 0.8  # cameras stand on a ring around the middle and look across it
FOCAL = 0.65  # as a share of the images' width
_TRIES = 200
_Thing = TypeVar("_Thing", Solid, Decal)


@dataclass(frozen=True)
class Room:
    """A scanned room and images of it.

    Attributes:
        points: float64 (N, 3), metres, z up, evenly over all surfaces.
        normals: float32 (N, 3), into the room.
        colours: uint8 (N, 3), RGB as the images show them.
        labels: int64 (N,), index into ``CLASSES``.
        frames: images, exact depth, cameras.
        seen_labels: int64 (V, height, width), the label at the centre of every pixel.
        interior: what was rendered.
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    labels: Tensor
    frames: Frames
    seen_labels: Tensor
    interior: Interior


def room(
    seed: int, views: int = 6, size: tuple[int, int] = (120, 160), points: int = 60_000
) -> Room:
    """Draw a room.

    Args:
        seed: the same seed gives the same room.
        views: images, all around.
        size: (height, width) of the images in pixels.
        points: to draw; those under and behind furniture are left out.

    Raises:
        ConfigError: for a number below 1.
    """
    if min(views, *size, points) < 1:
        raise ConfigError(
            f"views is {views}, size {size}, points {points}; expected 1 or more of each"
        )
    generator = torch.Generator().manual_seed(seed)
    interior = _furnished(generator)
    scan = interior.scatter(points, generator)
    labels, colours = interior.paint(scan)
    cameras = _around(interior.size, views, size, generator)
    images, depth, seen = zip(
        *(_image(interior, cameras, view) for view in range(views)), strict=True
    )
    names = tuple(f"room{seed}-view{view}" for view in range(views))
    frames = Frames(names, torch.stack(images), torch.stack(depth), cameras)
    return Room(
        scan.xyz, scan.normals.float(), _bytes(colours), labels, frames, torch.stack(seen), interior
    )


def look_along(eye: Tensor, forward: Tensor) -> Tensor:
    """Return the pose (4, 4) of a camera at ``eye`` (3,) whose z axis is ``forward`` (3,), y down."""
    z = torch.nn.functional.normalize(forward, dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, z.new_tensor([0.0, 0.0, 1.0])), dim=0)
    pose = torch.eye(4, dtype=z.dtype)
    pose[:3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    pose[:3, 3] = eye
    return pose


def _around(
    extent: Tensor, views: int, size: tuple[int, int], generator: torch.Generator
) -> Cameras:
    """Cameras at eye height, every other one tilted towards the floor."""
    poses = []
    turn = _uniform(generator, 0, 2 * math.pi)
    for view in range(views):
        angle = turn + 2 * math.pi * view / views + _uniform(generator, -0.15, 0.15)
        across = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        eye = extent * 0.5 - RING_M * across
        eye[2] = _uniform(generator, 1.4, 1.7)
        fall = _uniform(generator, 0.0, 0.1) if view % 2 else _uniform(generator, 0.3, 0.45)
        poses.append(look_along(eye, across - fall * across.new_tensor([0.0, 0.0, 1.0])))
    height, width = size
    K = torch.tensor(
        [[FOCAL * width, 0, width / 2 - 0.5], [0, FOCAL * width, height / 2 - 0.5], [0, 0, 1]]
    )
    return Cameras(K.double().repeat(views, 1, 1), torch.stack(poses), size)


def _image(interior: Interior, cameras: Cameras, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trace a ray through the centre of every pixel: uint8 (3, H, W), float32 depth and int64 labels (H, W)."""
    height, width = cameras.size
    v, u = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    pixels = torch.stack(
        [u.flatten(), v.flatten(), torch.ones(height * width, dtype=torch.float64)], 1
    )
    pose = cameras.cam_to_world[view]
    # one metre along z each: t is depth
    rays = pixels @ torch.linalg.inv(cameras.K[view]).mT @ pose[:3, :3].mT
    t, places = interior.trace(pose[:3, 3], rays)
    labels, colours = interior.paint(places)
    image = _bytes(colours).mT.reshape(3, height, width)
    return image, t.float().reshape(height, width), labels.reshape(height, width)


def _furnished(generator: torch.Generator) -> Interior:
    ranges = ((4.2, 5.6), (3.8, 4.8), (2.5, 2.9))
    size = torch.tensor([_uniform(generator, *ends) for ends in ranges], dtype=torch.float64)
    wall = WALL, Pattern("plain", _palette(generator, 1, (0.0, 0.25), (0.6, 0.95)))
    wood = _palette(generator, 1, (0.2, 0.6), (0.4, 0.75), hue=(0.03, 0.13))
    floor = (
        FLOOR,
        Pattern("stripes", torch.cat([wood, 0.85 * wood]), _uniform(generator, 0.15, 0.25)),
    )
    ceiling = CEILING, Pattern("plain", _palette(generator, 1, (0.0, 0.1), (0.8, 1.0)))
    faces = {(axis, end): wall for axis in (0, 1) for end in (0, 1)} | {
        (2, 0): floor,
        (2, 1): ceiling,
    }
    return Interior(
        size, faces, _furniture(size, generator), (*_rugs(size, generator), *_hung(size, generator))
    )


def _furniture(size: Tensor, generator: torch.Generator) -> tuple[Solid, ...]:
    """Low boxes anywhere, and tall ones at the walls, apart from each other."""

    def drawn() -> tuple[Tensor, Tensor]:
        tall = _uniform(generator, 0, 1) < 0.3
        extent = [_uniform(generator, 0.6, 1.6), _uniform(generator, 0.35, 0.5 if tall else 0.9)]
        if _integer(generator, 2):
            extent.reverse()
        box = torch.tensor(
            [*extent, _uniform(generator, 1.6, 2.1) if tall else _uniform(generator, 0.35, 1.1)]
        )
        low = _anywhere(generator, size - box)
        if tall or _integer(generator, 2):  # at the wall along its longer side
            across = int(extent[0] > extent[1])
            low[across] = _integer(generator, 2) * (size - box)[across]
        low[2] = 0.0
        return low, low + box

    def made(low: Tensor, high: Tensor, _: int) -> Solid:
        return Solid(
            low, high, FURNITURE, Pattern("plain", _palette(generator, 1, (0.0, 0.6), (0.25, 0.8)))
        )

    return _placed(4 + _integer(generator, 4), 0.2, drawn, made)


def _hung(size: Tensor, generator: torch.Generator) -> tuple[Decal, ...]:
    """Posters and boards on the walls, in turn."""

    def drawn() -> tuple[Tensor, Tensor]:
        axis, end = _integer(generator, 2), _integer(generator, 2)
        extent = torch.tensor(
            [_uniform(generator, 0.7, 1.4)] * 2 + [_uniform(generator, 0.6, 1.0)]
        ).double()
        extent[axis] = 0.0
        low = _anywhere(generator, size - extent)
        low[axis] = end * size[axis]
        low[2] = _uniform(generator, 0.7, float(size[2] - extent[2]) - 0.2)
        return low, low + extent

    def made(low: Tensor, high: Tensor, number: int) -> Decal:
        axis = int(low[1] == high[1])
        label, pattern = (BOARD, _board(generator)) if number % 2 else (POSTER, _poster(generator))
        return Decal(axis, int(low[axis] > 0), low, high, label, pattern)

    return _placed(5 + _integer(generator, 4), 0.15, drawn, made)


def _rugs(size: Tensor, generator: torch.Generator) -> tuple[Decal, ...]:
    def drawn() -> tuple[Tensor, Tensor]:
        extent = torch.tensor(
            [_uniform(generator, 1.0, 2.0), _uniform(generator, 0.9, 1.6), 0.0], dtype=torch.float64
        )
        low = _anywhere(generator, size - extent)
        low[2] = 0.0
        return low, low + extent

    def made(low: Tensor, high: Tensor, _: int) -> Decal:
        dark = _palette(generator, 1, (0.4, 0.9), (0.15, 0.4), hue=(0.5, 1.1))
        light = _palette(generator, 1, (0.2, 0.7), (0.5, 1.0), hue=(0.5, 1.1))
        return Decal(
            2,
            0,
            low,
            high,
            RUG,
            Pattern("checks", torch.cat([dark, light]), _uniform(generator, 0.15, 0.25)),
        )

    return _placed(2 + _integer(generator, 2), 0.1, drawn, made)


def _placed(
    wanted: int,
    gap: float,
    drawn: Callable[[], tuple[Tensor, Tensor]],
    made: Callable[[Tensor, Tensor, int], _Thing],
) -> tuple[_Thing, ...]:
    """Draw corners until so many things stand ``gap`` metres apart, or no more find room."""
    placed: list[_Thing] = []
    for _ in range(_TRIES):
        if len(placed) == wanted:
            break
        low, high = drawn()
        if all(((low > other.high + gap) | (high < other.low - gap)).any() for other in placed):
            placed.append(made(low, high, len(placed)))
    return tuple(placed)


def _poster(generator: torch.Generator) -> Pattern:
    return Pattern("mosaic", _palette(generator, 5, (0.5, 1.0), (0.3, 1.0)), 0.1)


def _board(generator: torch.Generator) -> Pattern:
    """Light lines on a dark ground."""
    ground = _palette(generator, 1, (0.0, 0.7), (0.1, 0.35))
    return Pattern(
        "grid", torch.cat([ground, _palette(generator, 1, (0.0, 0.2), (0.7, 1.0))]), 0.12
    )


def _palette(
    generator: torch.Generator,
    count: int,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Colours (count, 3) within ranges of hue (1 = full turn, 0 = red), saturation and value."""
    hues, strength, bright = (
        ends[0]
        + (ends[1] - ends[0]) * torch.rand(count, 1, dtype=torch.float64, generator=generator)
        for ends in (hue, saturation, value)
    )
    offsets = torch.tensor([0.0, 2 / 3, 1 / 3], dtype=torch.float64)
    pure = ((hues + offsets).remainder(1) * 6 - 3).abs().sub(1).clamp(0, 1)
    return bright * (1 - strength * (1 - pure))


def _bytes(colours: Tensor) -> Tensor:
    return (colours * 255).round().clamp(0, 255).to(torch.uint8)


def _anywhere(generator: torch.Generator, most: Tensor) -> Tensor:
    return torch.rand(3, dtype=torch.float64, generator=generator) * most


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, dtype=torch.float64, generator=generator))


def _integer(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (1,), generator=generator))
