"""Time and memory of whole scenes of usual sizes: projected, and lifted in float16."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Row, resident
from benchmarks.speed.rows_points import IMAGE, VOXEL_M, on_walls
from dinoneck.points import Cameras, PointProjector, VoxelGrid, lift

GRID = (30, 40)
SCENES = {"0.2 M points, 50 views": (200_000, 50), "1 M points, 300 views": (1_000_000, 300)}


def room(points: int, views: int) -> tuple[Tensor, Cameras, Tensor]:
    """Points on the walls of a box of 5 x 4 x 3 m, cameras inside it, and the exact depth of every pixel."""
    draw = torch.Generator().manual_seed(0)
    half = torch.tensor([2.5, 2.0, 1.5])
    cloud = on_walls(points, draw)
    pose = torch.eye(4).repeat(views, 1, 1)
    pose[:, :3, :3] = torch.linalg.qr(torch.randn(views, 3, 3, generator=draw))[0]
    pose[:, :3, 2] *= torch.linalg.det(pose[:, :3, :3])[:, None]
    pose[:, :3, 3] = (torch.rand(views, 3, generator=draw) - 0.5) * half
    k = torch.tensor([[577.0, 0.0, 319.5], [0.0, 577.0, 239.5], [0.0, 0.0, 1.0]])
    y, x = torch.meshgrid(torch.arange(IMAGE[0]), torch.arange(IMAGE[1]), indexing="ij")
    rays = torch.stack([(x - 319.5) / 577.0, (y - 239.5) / 577.0, torch.ones(IMAGE)], -1)
    depth = torch.empty(views, *IMAGE)
    for i, to_world in enumerate(pose):
        along = rays @ to_world[:3, :3].T
        depth[i] = ((half * along.sign() - to_world[:3, 3]) / along).amin(-1)
    return cloud, Cameras(k.repeat(views, 1, 1), pose, IMAGE), depth


@torch.no_grad()
def per_scene(points: int, views: int, channels: int = 384) -> Row:
    """CPU seconds of projection, voxels and one lift in float16; peak memory above the process with its inputs."""
    cloud, cameras, depth = room(points, views)
    maps = torch.randn(views, channels, *GRID).half().contiguous(memory_format=torch.channels_last)
    ctypes.CDLL(None).malloc_trim(0)  # memory that the scene left free is not reused unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, begin = resident("VmRSS"), time.process_time()
    links = PointProjector()(cloud, cameras, depth)
    projected = time.process_time()
    features = lift(maps, links, VoxelGrid.from_points(cloud, VOXEL_M))
    return {
        "projection, s": projected - begin,
        "voxels and lift, s": time.process_time() - projected,
        "inputs, MiB": sum(x.nbytes for x in (maps, cloud, depth)) / 2**20,
        "peak above inputs, MiB": resident("VmHWM") - before,
        "links": len(links),
        "voxels": len(features.coords),
    }
