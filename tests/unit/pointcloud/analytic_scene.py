"""A bare room, each wall of one colour, rendered from inside: what a frame's point looks like is known."""

from __future__ import annotations

import torch
from examples.pointcloud.frames import Frames
from tests.unit.points.rooms import look_at
from torch import Tensor

from dinoneck.points import Cameras

LOW = torch.tensor([-2.0, -1.5, 0.0], dtype=torch.float64)
HIGH = torch.tensor([2.0, 1.5, 2.5], dtype=torch.float64)
PAINT = torch.tensor([[250, 20, 20], [20, 240, 30], [40, 60, 230], [230, 220, 10], [120, 110, 100], [15, 200, 210]])
EYES = ([-1.0, -0.8, 1.2], [-0.8, -0.7, 1.3], [-0.6, -0.8, 1.1], [-0.4, -0.5, 1.2])


def bare_room(size: tuple[int, int] = (60, 80), views: int = 4) -> Frames:
    """Images that overlap, with exact depth."""
    target = torch.tensor([1.5, 1.0, 0.9], dtype=torch.float64)
    poses = torch.stack([look_at(torch.tensor(eye, dtype=torch.float64), target) for eye in EYES[:views]])
    height, width = size
    K = torch.tensor([[0.8 * width, 0, width / 2 - 1.5], [0, 0.8 * width, height / 2 + 0.7], [0, 0, 1]]).double()
    cameras = Cameras(K.repeat(views, 1, 1), poses, size)
    v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3) @ torch.linalg.inv(K).mT
    depth, images = zip(*(_seen(pose, rays) for pose in poses), strict=True)
    return Frames(
        tuple(f"view{view}" for view in range(views)),
        torch.stack(images).reshape(views, height, width, 3).permute(0, 3, 1, 2).to(torch.uint8),
        torch.stack(depth).reshape(views, height, width).float(),
        cameras,
    )


def _seen(pose: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1 / (rays @ pose[:3, :3].mT)
    ends = torch.maximum((LOW - pose[:3, 3]) * inverse, (HIGH - pose[:3, 3]) * inverse)
    depth, axis = ends.min(1)
    upper = inverse.gather(1, axis[:, None])[:, 0] > 0
    return depth, PAINT[2 * axis + upper]
