"""Time and memory of whole scenes of usual sizes: projected, and lifted in float16."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Row, resident
from benchmarks.speed.rows_points import IMAGE, ROOM_M, VOXEL_M, on_walls
from dinoneck.points import Cameras, PointProjector, VoxelGrid, lift

GRID = (30, 40)
FOCAL_PX = 577.0  # of the cameras of ScanNet at 640 x 480 px
MIB = 2**20
# title -> points, views
SCENES = {
    "0.2 M points, 50 views": (200_000, 50),
    "1 M points, 300 views": (1_000_000, 300),
}


def room(points: int, views: int) -> tuple[Tensor, Cameras, Tensor]:
    """Draw points on the walls of a room, cameras inside it, and the exact depth of every pixel."""
    generator = torch.Generator().manual_seed(0)
    half_size = torch.tensor(ROOM_M) / 2
    cloud = on_walls(points, generator)
    pose = _random_poses(views, half_size, generator)

    center_x = (IMAGE[1] - 1) / 2
    center_y = (IMAGE[0] - 1) / 2
    intrinsics = torch.tensor(
        [[FOCAL_PX, 0.0, center_x], [0.0, FOCAL_PX, center_y], [0.0, 0.0, 1.0]]
    )
    y, x = torch.meshgrid(torch.arange(IMAGE[0]), torch.arange(IMAGE[1]), indexing="ij")
    rays = torch.stack(
        [(x - center_x) / FOCAL_PX, (y - center_y) / FOCAL_PX, torch.ones(IMAGE)], dim=-1
    )

    depth = torch.empty(views, *IMAGE)
    for view, camera_to_world in enumerate(pose):
        rotation = camera_to_world[:3, :3]
        position = camera_to_world[:3, 3]
        direction = rays @ rotation.T
        # of the three walls ahead the nearest one is seen
        distances = (half_size * direction.sign() - position) / direction
        depth[view] = distances.amin(-1)
    return cloud, Cameras(intrinsics.repeat(views, 1, 1), pose, IMAGE), depth


def _random_poses(views: int, half_size: Tensor, generator: torch.Generator) -> Tensor:
    """Camera-to-world matrices (views, 4, 4) with random rotations, near the centre of a room."""
    pose = torch.eye(4).repeat(views, 1, 1)
    orthogonal, _ = torch.linalg.qr(torch.randn(views, 3, 3, generator=generator))
    pose[:, :3, :3] = orthogonal
    # a reflection becomes a rotation
    pose[:, :3, 2] *= torch.linalg.det(pose[:, :3, :3])[:, None]
    pose[:, :3, 3] = (torch.rand(views, 3, generator=generator) - 0.5) * half_size
    return pose


@torch.no_grad()
def per_scene(points: int, views: int, channels: int = 384) -> Row:
    """Measure the CPU seconds of projection, voxels and one lift in float16, and the peak memory.

    The peak is above the memory of the process with its inputs.
    """
    cloud, cameras, depth = room(points, views)
    maps = torch.randn(views, channels, *GRID).half()
    maps = maps.contiguous(memory_format=torch.channels_last)
    input_bytes = maps.nbytes + cloud.nbytes + depth.nbytes

    ctypes.CDLL(None).malloc_trim(0)  # else the memory that the scene freed is reused unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    memory_before = resident("VmRSS")

    begin = time.process_time()
    links = PointProjector()(cloud, cameras, depth)
    projected = time.process_time()
    features = lift(maps, links, VoxelGrid.from_points(cloud, VOXEL_M))
    lifted = time.process_time()

    return {
        "projection, s": projected - begin,
        "voxels and lift, s": lifted - projected,
        "inputs, MiB": input_bytes / MIB,
        "peak above inputs, MiB": resident("VmHWM") - memory_before,
        "links": len(links),
        "voxels": len(features.coords),
    }
