"""Furnished rooms drawn from a seed, with exact points, labels, images, depth and cameras.

No data is needed. Images, depth and labels of pixels come from the same rays: at a point's pixel an
image shows the point's own label wherever depth agrees. Posters, boards and rugs are flat in walls
and floors: images can distinguish them, points cannot. Colours are drawn for every room from wide
ranges: a class is recognised by pattern and colours, never by one colour.
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
RING_M = 0.8  # radius: cameras stand on a ring around the middle and look across it
FOCAL = 0.65  # as a share of the images' width
_TRIES = 200
_Object = TypeVar("_Object", Solid, Decal)
_Box = tuple[Tensor, Tensor]  # low and high corner, (3,) each


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
        interior: the boxes and their patterns.
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
        views: number of images, all around.
        size: (height, width) of the images in pixels.
        points: number to draw; those under and behind furniture are left out.

    Raises:
        ConfigError: for a number below 1.
    """
    if min(views, *size, points) < 1:
        raise ConfigError(
            f"views is {views}, size {size}, points {points}; expected 1 or more of each"
        )
    generator = torch.Generator().manual_seed(seed)
    interior = _furnished_room(generator)
    scan = interior.scatter(points, generator)
    labels, colours = interior.paint(scan)
    cameras = _cameras_around(interior.size, views, size, generator)
    images = []
    depth = []
    seen_labels = []
    for view in range(views):
        image, image_depth, image_labels = _render(interior, cameras, view)
        images.append(image)
        depth.append(image_depth)
        seen_labels.append(image_labels)
    names = tuple(f"room{seed}-view{view}" for view in range(views))
    return Room(
        points=scan.xyz,
        normals=scan.normals.float(),
        colours=_to_bytes(colours),
        labels=labels,
        frames=Frames(names, torch.stack(images), torch.stack(depth), cameras),
        seen_labels=torch.stack(seen_labels),
        interior=interior,
    )


def look_along(eye: Tensor, forward: Tensor) -> Tensor:
    """Return the pose (4, 4) of a camera at ``eye`` (3,) with z axis ``forward`` (3,), y down."""
    up = forward.new_tensor([0.0, 0.0, 1.0])
    z = torch.nn.functional.normalize(forward, dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, up), dim=0)
    y = torch.linalg.cross(z, x)
    pose = torch.eye(4, dtype=z.dtype)
    pose[:3, :3] = torch.stack([x, y, z], 1)
    pose[:3, 3] = eye
    return pose


def _cameras_around(
    extent: Tensor, views: int, size: tuple[int, int], generator: torch.Generator
) -> Cameras:
    """Return cameras at eye height, every other one tilted towards the floor."""
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    poses = []
    first_angle = _uniform(generator, 0, 2 * math.pi)
    for view in range(views):
        angle = first_angle + 2 * math.pi * view / views + _uniform(generator, -0.15, 0.15)
        across = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        eye = extent * 0.5 - RING_M * across
        eye[2] = _uniform(generator, 1.4, 1.7)
        if view % 2 == 0:
            tilt = _uniform(generator, 0.3, 0.45)
        else:
            tilt = _uniform(generator, 0.0, 0.1)
        poses.append(look_along(eye, across - tilt * up))
    height, width = size
    focal_length = FOCAL * width
    K = torch.tensor(
        [
            [focal_length, 0, width / 2 - 0.5],
            [0, focal_length, height / 2 - 0.5],
            [0, 0, 1],
        ]
    )
    return Cameras(K.double().repeat(views, 1, 1), torch.stack(poses), size)


def _render(interior: Interior, cameras: Cameras, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trace a ray through the centre of every pixel.

    Returns:
        The image uint8 (3, H, W), float32 depth (H, W) and int64 labels (H, W).
    """
    height, width = cameras.size
    rows = torch.arange(height).double()
    cols = torch.arange(width).double()
    v, u = torch.meshgrid(rows, cols, indexing="ij")
    pixels = torch.stack([u.flatten(), v.flatten(), torch.ones_like(u).flatten()], 1)
    pose = cameras.cam_to_world[view]
    # their z component is one metre in the camera, so that t is depth
    rays = pixels @ torch.linalg.inv(cameras.K[view]).mT @ pose[:3, :3].mT
    t, points = interior.trace(pose[:3, 3], rays)
    labels, colours = interior.paint(points)
    image = _to_bytes(colours).mT.reshape(3, height, width)
    return image, t.float().reshape(height, width), labels.reshape(height, width)


def _furnished_room(generator: torch.Generator) -> Interior:
    length = _uniform(generator, 4.2, 5.6)
    width = _uniform(generator, 3.8, 4.8)
    height = _uniform(generator, 2.5, 2.9)
    size = torch.tensor([length, width, height], dtype=torch.float64)

    wall = (WALL, Pattern("plain", _palette(generator, 1, (0.0, 0.25), (0.6, 0.95))))
    wood = _palette(generator, 1, (0.2, 0.6), (0.4, 0.75), hue=(0.03, 0.13))
    board_width = _uniform(generator, 0.15, 0.25)
    floor = (FLOOR, Pattern("stripes", torch.cat([wood, 0.85 * wood]), board_width))
    ceiling = (CEILING, Pattern("plain", _palette(generator, 1, (0.0, 0.1), (0.8, 1.0))))
    faces = {
        (0, 0): wall,
        (0, 1): wall,
        (1, 0): wall,
        (1, 1): wall,
        (2, 0): floor,
        (2, 1): ceiling,
    }
    furniture = _furniture(size, generator)
    rugs = _rugs(size, generator)
    hangings = _hangings(size, generator)
    return Interior(size, faces, furniture, (*rugs, *hangings))


def _furniture(size: Tensor, generator: torch.Generator) -> tuple[Solid, ...]:
    """Draw low boxes anywhere, and tall ones at the walls, apart from each other."""

    def draw_box() -> _Box:
        is_tall = _uniform(generator, 0, 1) < 0.3
        sides = [_uniform(generator, 0.6, 1.6), _uniform(generator, 0.35, 0.5 if is_tall else 0.9)]
        if _integer(generator, 2) == 1:
            sides.reverse()
        height = _uniform(generator, 1.6, 2.1) if is_tall else _uniform(generator, 0.35, 1.1)
        extent = torch.tensor([*sides, height])
        space = size - extent
        low = _anywhere(generator, space)
        if is_tall or _integer(generator, 2) == 1:
            # the longer side stands at a wall
            axis = 1 if sides[0] > sides[1] else 0
            low[axis] = _integer(generator, 2) * space[axis]
        low[2] = 0.0
        return low, low + extent

    def build(low: Tensor, high: Tensor, number: int) -> Solid:
        pattern = Pattern("plain", _palette(generator, 1, (0.0, 0.6), (0.25, 0.8)))
        return Solid(low, high, FURNITURE, pattern)

    return _place(4 + _integer(generator, 4), 0.2, draw_box, build)


def _hangings(size: Tensor, generator: torch.Generator) -> tuple[Decal, ...]:
    """Draw posters and boards on the walls, in turn."""

    def draw_box() -> _Box:
        axis = _integer(generator, 2)
        end = _integer(generator, 2)
        width = _uniform(generator, 0.7, 1.4)
        height = _uniform(generator, 0.6, 1.0)
        extent = torch.tensor([width, width, height]).double()
        extent[axis] = 0.0
        low = _anywhere(generator, size - extent)
        low[axis] = end * size[axis]
        low[2] = _uniform(generator, 0.7, float(size[2] - extent[2]) - 0.2)
        return low, low + extent

    def build(low: Tensor, high: Tensor, number: int) -> Decal:
        axis = 1 if low[1] == high[1] else 0
        end = 1 if low[axis] > 0 else 0
        if number % 2 == 0:
            return Decal(axis, end, low, high, POSTER, _poster(generator))
        return Decal(axis, end, low, high, BOARD, _board(generator))

    return _place(5 + _integer(generator, 4), 0.15, draw_box, build)


def _rugs(size: Tensor, generator: torch.Generator) -> tuple[Decal, ...]:
    """Draw rugs on the floor."""

    def draw_box() -> _Box:
        length = _uniform(generator, 1.0, 2.0)
        width = _uniform(generator, 0.9, 1.6)
        extent = torch.tensor([length, width, 0.0], dtype=torch.float64)
        low = _anywhere(generator, size - extent)
        low[2] = 0.0
        return low, low + extent

    def build(low: Tensor, high: Tensor, number: int) -> Decal:
        dark = _palette(generator, 1, (0.4, 0.9), (0.15, 0.4), hue=(0.5, 1.1))
        light = _palette(generator, 1, (0.2, 0.7), (0.5, 1.0), hue=(0.5, 1.1))
        period = _uniform(generator, 0.15, 0.25)
        pattern = Pattern("checks", torch.cat([dark, light]), period)
        return Decal(axis=2, end=0, low=low, high=high, label=RUG, pattern=pattern)

    return _place(2 + _integer(generator, 2), 0.1, draw_box, build)


def _place(
    count: int,
    gap: float,
    draw_box: Callable[[], _Box],
    build: Callable[[Tensor, Tensor, int], _Object],
) -> tuple[_Object, ...]:
    """Draw boxes until ``count`` objects are ``gap`` metres apart, or the tries are used up.

    Args:
        count: of the objects.
        gap: between them, in metres.
        draw_box: returns a random box.
        build: box and number of the object -> the object.
    """
    placed: list[_Object] = []
    for _ in range(_TRIES):
        if len(placed) == count:
            break
        low, high = draw_box()
        if all(_are_apart(low, high, other, gap) for other in placed):
            placed.append(build(low, high, len(placed)))
    return tuple(placed)


def _are_apart(low: Tensor, high: Tensor, other: Solid | Decal, gap: float) -> bool:
    """Return whether a box is at least so far from another along any axis."""
    is_above = low > other.high + gap
    is_below = high < other.low - gap
    return bool((is_above | is_below).any())


def _poster(generator: torch.Generator) -> Pattern:
    return Pattern("mosaic", _palette(generator, 5, (0.5, 1.0), (0.3, 1.0)), period=0.1)


def _board(generator: torch.Generator) -> Pattern:
    """Return light lines on a dark ground."""
    ground = _palette(generator, 1, (0.0, 0.7), (0.1, 0.35))
    lines = _palette(generator, 1, (0.0, 0.2), (0.7, 1.0))
    return Pattern("grid", torch.cat([ground, lines]), period=0.12)


def _palette(
    generator: torch.Generator,
    count: int,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Draw colours (count, 3) within ranges of hue (1: full turn, 0: red), saturation and value."""

    def draw(ends: tuple[float, float]) -> Tensor:
        low, high = ends
        return low + (high - low) * torch.rand(count, 1, dtype=torch.float64, generator=generator)

    hues = draw(hue)
    saturations = draw(saturation)
    values = draw(value)
    offsets = torch.tensor([0.0, 2 / 3, 1 / 3], dtype=torch.float64)  # of red, green and blue
    pure = ((hues + offsets).remainder(1) * 6 - 3).abs().sub(1).clamp(0, 1)
    return values * (1 - saturations * (1 - pure))


def _to_bytes(colours: Tensor) -> Tensor:
    return (colours * 255).round().clamp(0, 255).to(torch.uint8)


def _anywhere(generator: torch.Generator, largest: Tensor) -> Tensor:
    """Draw a position (3,) between 0 and the largest."""
    return torch.rand(3, dtype=torch.float64, generator=generator) * largest


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, dtype=torch.float64, generator=generator))


def _integer(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (1,), generator=generator))
