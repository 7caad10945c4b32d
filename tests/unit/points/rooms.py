"""A furnished room with exact answers: depth by ray tracing, and points on its surfaces.

The room is 5 x 4 x 3 m, z up, with a box on the floor; cameras stand on a ring and look inwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dinoneck.points import Cameras

ROOM = (
    torch.tensor([-2.5, -2.0, 0.0], dtype=torch.float64),
    torch.tensor([2.5, 2.0, 3.0], dtype=torch.float64),
)
BOX = (
    torch.tensor([-0.7, -0.4, 0.0], dtype=torch.float64),
    torch.tensor([0.5, 0.6, 0.9], dtype=torch.float64),
)


def surface(number: int, seed: int = 0) -> Tensor:
    """Points (N, 3) drawn evenly over all surfaces; the floor under the box is one of them, and never seen."""
    generator = torch.Generator().manual_seed(seed)
    faces = [*faces_of(ROOM), *faces_of(BOX, underside=False)]
    areas = torch.tensor([area for _, _, area in faces])
    face_of_point = torch.multinomial(areas, number, replacement=True, generator=generator)
    low = torch.stack([low for low, _, _ in faces])[face_of_point]
    high = torch.stack([high for _, high, _ in faces])[face_of_point]
    shares = torch.rand(number, 3, dtype=torch.float64, generator=generator)
    return low + shares * (high - low)


def faces_of(
    cuboid: tuple[Tensor, Tensor], underside: bool = True
) -> list[tuple[Tensor, Tensor, float]]:
    """Return the lowest and the highest corner of every face, and its area in m²."""
    lowest, highest = cuboid
    faces = []
    for axis in range(3):
        sides = [other for other in range(3) if other != axis]
        area = float((highest - lowest)[sides].prod())
        for end in (lowest, highest):
            if axis == 2 and end is lowest and not underside:
                continue
            low = lowest.clone()
            high = highest.clone()
            low[axis] = end[axis]
            high[axis] = end[axis]
            faces.append((low, high, area))
    return faces


def first_hit(origins: Tensor, directions: Tensor) -> Tensor:
    """Return t of the first surface at origin + t * direction, by the slab method.

    The rays (..., 3) start inside the room and outside the box.
    """
    inverse = 1.0 / directions
    # t at both planes of every axis
    room_low, room_high = [(corner - origins) * inverse for corner in ROOM]
    box_low, box_high = [(corner - origins) * inverse for corner in BOX]
    walls = torch.maximum(room_low, room_high).amin(-1)
    near = torch.minimum(box_low, box_high).amax(-1)
    far = torch.maximum(box_low, box_high).amin(-1)
    is_box = (near <= far) & (near > 0)
    return torch.where(is_box, torch.minimum(near, walls), walls)


def ring(
    views: int = 8, size: tuple[int, int] = (480, 640), focal: float = 0.9, radius: float = 1.6
) -> Cameras:
    """Return cameras on a circle, 1.5 to 1.7 m high, that look at points near the centre.

    Args:
        views: how many.
        size: (height, width) in pixels.
        focal: length, as a share of the width.
        radius: of the circle, in metres.
    """
    poses = []
    for i in range(views):
        angle = 2 * math.pi * i / views + 0.1
        eye = torch.tensor(
            [radius * math.cos(angle), radius * math.sin(angle), 1.5 + 0.1 * (i % 3)]
        ).double()
        target = torch.tensor(
            [0.3 * math.sin(3 * i), 0.3 * math.cos(5 * i), 0.6 + 0.2 * (i % 2)]
        ).double()
        poses.append(look_at(eye, target))
    height, width = size
    # off-centre, and with two focal lengths: an exchange of the axes is seen
    K = torch.tensor(
        [
            [focal * width, 0, width / 2 - 3.2],
            [0, focal * width * 1.01, height / 2 + 1.7],
            [0, 0, 1],
        ]
    )
    return Cameras(K.double().repeat(views, 1, 1), torch.stack(poses), size)


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """Return the pose (4, 4) of a camera at ``eye`` whose z axis points to ``target``, y down."""
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(forward, torch.tensor([0.0, 0, 1]).double()), dim=0
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def depth(cameras: Cameras, size: tuple[int, int] | None = None) -> Tensor:
    """Trace depth along z (V, rows, cols) through the centre of every pixel."""
    rows, cols = size or cameras.size
    v, u = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing="ij")
    u = (u + 0.5) * cameras.size[1] / cols - 0.5
    v = (v + 0.5) * cameras.size[0] / rows - 0.5
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    found = []
    for K, pose in zip(cameras.K, cameras.cam_to_world, strict=True):
        # one metre along z each, so that t is z
        rays = pixels @ torch.linalg.inv(K).T @ pose[:3, :3].T
        found.append(first_hit(pose[:3, 3], rays))
    return torch.stack(found)
