"""One frame through the whole chain, image to 3D U-Net, with the numbers that show an error."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.points import Cameras, Links, PointProjector, SparseFeatures, SparsePyramid, VoxelGrid, lift
from examples.pointcloud.frames import Frames, cloud_of
from examples.pointcloud.network_check import STRIDES, BlockReport, Network, bad, share
from examples.pointcloud.reprojection import grey_levels

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ViewReport:
    """The frame's points in one image; shares of the points offered, ``agree`` of those with known depth there."""

    name: str
    projected: float
    front: float
    in_bounds: float
    known: float
    agree: float
    grey_levels: float | None


@dataclass
class FrameReport:
    """All numbers of one frame; ``problems`` is empty if nothing is wrong."""

    scene: str
    name: str
    depth_points: int
    points: int = 0
    voxels: int = 0
    views: list[ViewReport] = field(default_factory=list)
    features_from: list[str] = field(default_factory=list)
    coverage: float = 0.0
    seen_voxels: dict[int, float] = field(default_factory=dict)
    fusion_2d: float | None = None
    fusion_3d: float | None = None
    blocks: list[BlockReport] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """What is checked."""

    network: Network
    voxel: float
    device: torch.device
    pyramid: SparsePyramid = field(default_factory=lambda: SparsePyramid(STRIDES))


def check_frame(
    chain: Chain, scene: str, frames: Frames, maps: Tensor, cameras: Cameras, view: int, near: list[int],
    own: list[int], points: int, seed: int = 0,
) -> FrameReport:  # fmt: skip
    """Send one frame through the chain: the online setting, where the cloud is what this frame's depth shows.

    Args:
        chain: what is checked.
        scene: its name.
        frames: of the scene.
        maps: (V, C, rows, cols) of all its images.
        cameras: of what the backbone saw, V of them.
        view: index of the frame.
        near: frames that its points are compared with.
        own: frames whose features it gets.
        points: drawn from its depth at most; 0 = all.
        seed: of the draw.
    """
    cloud, colours, normals = cloud_of(frames, view)
    report = FrameReport(scene, frames.names[view], len(cloud), features_from=[frames.names[i] for i in own])
    if not len(cloud):
        return report
    if points and len(cloud) > points:
        drawn = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(seed))[:points]
        cloud, colours, normals = cloud[drawn], colours[drawn], normals[drawn]
    report.points = len(cloud)
    with _measured(report, chain.device), torch.no_grad():
        report.views = _views(frames, cloud, colours, [view, *near])
        grid, links, lifted = _lifted(chain, report, frames, cloud, maps, cameras, own)
        pyramid = _timed(report, "pyramid", chain.device, lambda: chain.pyramid(lifted))
        _note(report, "pyramid", *(level.feats for level in pyramid.values()))
        report.seen_voxels = {stride: share(level.valid) for stride, level in pyramid.items()}
        report.voxels, report.coverage = len(grid), links.coverage
        inputs = _voxel_means(grid, network_inputs(chain.network.net.in_channels, normals, colours).to(chain.device))
        done = _timed(report, "network", chain.device, lambda: chain.network.run(grid, inputs, pyramid))
        report.blocks, report.bad["blocks"] = done.blocks, sum(block.bad for block in done.blocks)
        report.problems += done.problems
        _fused(chain, report, done.out, lifted)
    report.problems += [f"NaN or Inf: {count} values in {stage}" for stage, count in report.bad.items() if count]
    return report


def _views(frames: Frames, cloud: Tensor, colours: Tensor, views: list[int]) -> list[ViewReport]:
    """Compare the points with the images they are in, at the images' own size."""
    links = PointProjector()(cloud, frames.cameras[views], frames.depth[views])
    stats, reports = links.stats(), []
    for place, view in enumerate(views):
        mine = links.view == place
        here = Links(
            links.view[mine] * 0, links.point[mine], links.uv[mine], links.z[mine], len(cloud), 1, links.image_size
        )
        shares = {name: float(stats[name][place]) for name in ("front", "in_bounds", "known", "agree")}
        difference = grey_levels(here, colours, frames.images[view : view + 1])
        reports.append(ViewReport(frames.names[view], len(here) / len(cloud), **shares, grey_levels=difference))
    return reports


def _lifted(
    chain: Chain, report: FrameReport, frames: Frames, cloud: Tensor, maps: Tensor, cameras: Cameras, own: list[int]
) -> tuple[VoxelGrid, Links, SparseFeatures]:
    """Make voxels and bring the images' features there."""
    device = chain.device
    cloud, maps = cloud.to(device), maps[own].to(device)
    _note(report, "maps", maps)

    def work() -> tuple[VoxelGrid, Links, SparseFeatures]:
        cell = max(STRIDES) * chain.voxel
        corner = (cloud.amin(0) / cell).floor() * cell  # no negative coordinates: some engines take none
        grid = VoxelGrid.from_points(cloud, chain.voxel, origin=corner.tolist())
        links = PointProjector()(cloud, cameras[own].to(device), frames.depth[own].to(device))
        return grid, links, lift(maps, links, grid)

    grid, links, lifted = _timed(report, "lift", device, work)
    _note(report, "lifted", lifted.feats)
    return grid, links, lifted


def network_inputs(channels: int, normals: Tensor, colours: Tensor) -> Tensor:
    """Return what a network of so many channels takes of every point: colours (3), 1 and normals (4), or all (7)."""
    ones, scaled = torch.ones(len(normals), 1), colours / 127.5 - 1
    known = {3: (scaled,), 4: (ones, normals), 7: (ones, normals, scaled)}
    if channels not in known:
        raise ConfigError(f"the network takes {channels} channels per voxel; expected {', '.join(map(str, known))}")
    return torch.cat(known[channels], 1)


def _voxel_means(grid: VoxelGrid, values: Tensor) -> Tensor:
    sums = values.new_zeros(len(grid), values.shape[1]).index_add_(0, grid.inverse, values)
    return sums / torch.bincount(grid.inverse, minlength=len(grid))[:, None]


def _fused(chain: Chain, report: FrameReport, out: Tensor | None, lifted: SparseFeatures) -> None:
    """Mix the network's features with the images' once, at stride 1: the single-scale way."""
    if out is None:
        return
    _note(report, "output", out)
    if out.shape[1] != chain.network.fusion.c3d:
        report.problems.append(f"channels: the network gives {out.shape[1]}, planned {chain.network.fusion.c3d}")
        return
    mixed = _timed(report, "fusion", chain.device, lambda: chain.network.fusion(out, lifted.feats, lifted.valid))
    _note(report, "fused", mixed)
    ratio = chain.network.fusion.stats["fusion_2d_ratio"]
    if math.isfinite(ratio):
        report.fusion_2d, report.fusion_3d = ratio, 1 - ratio


def _note(report: FrameReport, stage: str, *values: Tensor) -> None:
    report.bad[stage] = sum(map(bad, values))


def _timed(report: FrameReport, stage: str, device: torch.device, work: Any) -> Any:
    start = now(device)
    done = work()
    report.seconds[stage] = now(device) - start
    return done


def now(device: torch.device) -> float:
    """Return seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _measured(report: FrameReport, device: torch.device) -> Iterator[None]:
    """Note memory: the peak of torch's allocations on a GPU, else how far the process rose above its start."""
    start, before = now(device), peak_mb(device, begin=True)
    try:
        yield
    finally:
        report.seconds["all"] = now(device) - start
        report.memory_mb = peak_mb(device) - before


def peak_mb(device: torch.device, begin: bool = False) -> float:
    """Return the peak in MB, restarted if ``begin``: of torch's allocations on a GPU, else of the process.

    Without Linux's ``/proc`` a process's peak cannot be restarted: it is that since its start.
    """
    if device.type == "cuda":
        if begin:
            torch.cuda.reset_peak_memory_stats(device)
            return 0.0
        return torch.cuda.max_memory_allocated(device) / 1e6
    if _STATUS.exists():
        if begin:
            _STATUS.with_name("clear_refs").write_text("5")
        [size] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return float(size.split()[1]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
