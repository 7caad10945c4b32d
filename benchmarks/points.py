"""From tokens to voxels: dinoneck.points and common formulations, on a cloud with links as a room has them.

    OMP_NUM_THREADS=1 python -m benchmarks.points [--points 100000] [--rounds 11] [--device cpu]
    OMP_NUM_THREADS=1 python -m benchmarks.points --scenes

Points lie on walls of a box; every view sees a patch of them. What is compared is first checked to give the same.
Lift, tokens to the mean of each voxel: grid_sample of all points in every view, as it is mostly written; grid_sample of
those that a view sees; both then summed per voxel with index_add. Keys: torch.unique(dim=0) of voxel coordinates with
their batch index. Pyramid, maxima and means: unique(dim=0) of halved coordinates and scatter_reduce, level by level.
Look-up: a dictionary. Milliseconds are CPU time of the process (wall time on CUDA), ratios medians over interleaved
rounds. With --scenes two scenes of usual sizes are projected and lifted in float16: CPU seconds and peak memory.
Writes benchmarks/results/points.json and .md (points_cuda on CUDA, points_scenes.json with --scenes).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import devices
from benchmarks.sources import store
from benchmarks.timing import machine, markdown, ratios, turns
from dinoneck.points import Cameras, Links, PointProjector, SparsePyramid, VoxelGrid, lift
from dinoneck.points.keys import distinct

RESULTS = Path(__file__).with_name("results")
IMAGE, GRID, VOXEL_M, PROJECTED = (480, 640), (30, 40), 0.02, 96
STRIDES = (2, 4, 8, 16)
GOALS = {"lift": 10.0, "keys": 20.0}
SCENES = ((200_000, 50), (1_000_000, 300))  # points, views


def scene(options: argparse.Namespace) -> tuple[Tensor, Links]:
    """Points on the walls of a box of 5 x 4 x 3 m, and for each view those around one of them."""
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(options.points, 3, generator=draw)
    wall = torch.randint(6, (options.points,), generator=draw)
    points[torch.arange(options.points), wall // 2] = (wall % 2).float()
    points = (points - 0.5) * torch.tensor([5.0, 4.0, 3.0])
    view, point = [], []
    for at in torch.randint(options.points, (options.views,), generator=draw).tolist():
        reach = (points - points[at]).norm(dim=1)
        near = reach.topk(round(options.share * options.points), largest=False).indices
        view.append(torch.full_like(near, len(view)))
        point.append(near)
    views, seen = torch.cat(view), torch.cat(point)
    order = torch.argsort(seen * options.views + views)
    uv = torch.rand(len(order), 2, generator=draw) * torch.tensor([IMAGE[1] - 1.0, IMAGE[0] - 1.0])
    z = torch.rand(len(order), generator=draw) + 1.0
    device = options.device
    links = Links(views[order].to(device), seen[order].to(device), uv.to(device), z.to(device),
                  options.points, options.views, IMAGE)  # fmt: skip
    return points.to(device), links


def sampled(maps: Tensor, uv: Tensor) -> Tensor:
    """(1, C, rows, cols) at (L, 2) -> (L, C)."""
    place = (uv + 0.5) / uv.new_tensor((IMAGE[1], IMAGE[0])) * 2 - 1
    read = F.grid_sample(maps, place[None, None], mode="bilinear", padding_mode="border", align_corners=False)
    return read[0, :, 0].T


def everywhere(maps: Tensor, links: Links) -> Tensor:
    """Features of points (N, C): every view is read at all points, then masked."""
    shape = (links.num_views, links.num_points)
    uv = links.uv.new_zeros(*shape, 2).index_put_((links.view, links.point), links.uv)
    mask = torch.zeros(shape, dtype=torch.bool, device=maps.device).index_put_(
        (links.view, links.point), links.view >= 0
    )
    total = maps.new_zeros(links.num_points, maps.shape[1])
    for view in range(links.num_views):
        total += sampled(maps[view : view + 1], uv[view]) * mask[view][:, None]
    return total / mask.sum(0).clamp(min=1)[:, None]


def where_seen(maps: Tensor, links: Links) -> Tensor:
    """Features of points (N, C): every view is read at the points that it sees."""
    total = maps.new_zeros(links.num_points, maps.shape[1])
    for view in range(links.num_views):
        own = links.view == view
        total.index_add_(0, links.point[own], sampled(maps[view : view + 1], links.uv[own]))
    return total / links.n_views.clamp(min=1)[:, None]


def onto_voxels(feats: Tensor, links: Links, grid: VoxelGrid) -> Tensor:
    """Mean over the seen points of a voxel."""
    seen = links.n_views > 0
    rows = grid.inverse[seen]
    total = feats.new_zeros(len(grid), feats.shape[1]).index_add_(0, rows, feats[seen])
    return total / torch.bincount(rows, minlength=len(grid)).clamp(min=1)[:, None]


def scattered(coords: Tensor, feats: Tensor, valid: Tensor, reduce: str) -> list[tuple[Tensor, Tensor]]:
    """Levels by unique(dim=0) and scatter_reduce: (batch and coords, feats) of all cells, zeros where unseen."""
    lowest = -torch.inf if reduce == "max" else 0.0
    level = feats.masked_fill(~valid[:, None], lowest)
    count = valid.to(feats.dtype)
    levels = []
    for stride in STRIDES:
        cell = torch.div(coords, stride, rounding_mode="floor") * stride
        cell[:, 0] = coords[:, 0]
        coords, inverse = torch.unique(cell, dim=0, return_inverse=True)
        index = inverse[:, None].expand_as(level)
        how = "amax" if reduce == "max" else "sum"
        level = level.new_zeros(len(coords), level.shape[1]).scatter_reduce(0, index, level, how, include_self=False)
        count = count.new_zeros(len(coords)).scatter_add(0, inverse, count)
        if reduce == "max":
            levels.append((coords, level.masked_fill(count[:, None] == 0, 0.0)))
        else:
            levels.append((coords, level / count.clamp(min=1)[:, None]))
    return levels


def same(name: str, a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    """Raise unless two results are the same."""
    error = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    if not error <= tolerance:
        raise SystemExit(f"{name}: results differ by {error:.2e}")


def lifting(maps: Tensor, links: Links, grid: VoxelGrid) -> dict[str, Callable[[], Any]]:
    """Tokens to the mean of every voxel."""
    project = nn.Linear(maps.shape[1], PROJECTED).to(maps.device)
    nchw, half = maps.contiguous(), maps.half().contiguous(memory_format=torch.channels_last)
    ours = lift(maps, links, grid).feats
    same("grid_sample everywhere", onto_voxels(everywhere(nchw, links), links, grid), ours)
    same("grid_sample where seen", onto_voxels(where_seen(nchw, links), links, grid), ours)
    same("float16", lift(half, links, grid).feats.float(), ours, 1e-2)
    same("nothing but the seen", lift(maps, links, grid, project=project).feats,
         project(ours) * lift(maps, links, grid).valid[:, None])  # fmt: skip
    return {
        "grid_sample of all points in every view, index_add": lambda: onto_voxels(everywhere(nchw, links), links, grid),
        "grid_sample of the points seen, index_add": lambda: onto_voxels(where_seen(nchw, links), links, grid),
        "lift": lambda: lift(maps, links, grid),
        "lift, float16": lambda: lift(half, links, grid),
        f"lift, projected to {PROJECTED} channels": lambda: lift(maps, links, grid, project=project),
        "lift to points": lambda: lift(maps, links),
    }


def families(options: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """Name -> variants; the first of each is the peer."""
    points, links = scene(options)
    batch = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    grid = VoxelGrid.from_points(points, VOXEL_M, 0.0, batch)
    maps = torch.randn(options.views, options.channels, *GRID, device=points.device)
    maps = maps.contiguous(memory_format=torch.channels_last)
    coords = torch.cat((batch[:, None], grid.coords[grid.inverse]), dim=1)
    same("unique", torch.unique(coords, dim=0)[:, 1:].double().mean(0), grid.coords.double().mean(0), 1e-9)
    voxels = lift(maps, links, grid)
    rows = torch.cat((voxels.batch[:, None], voxels.coords), dim=1)
    pooled: dict[str, dict[str, Callable[[], Any]]] = {}
    for reduce in ("max", "mean"):
        pyramid = SparsePyramid(STRIDES, reduce)
        for (cells, feats), level in zip(
            scattered(rows, voxels.feats, voxels.valid, reduce), pyramid(voxels).values(), strict=True
        ):
            found, hit = level.at(cells[:, 1:], cells[:, 0])
            same(f"pyramid {reduce}", found, feats)
            if len(hit) != len(level) or int(hit.sum()) != int(level.valid.sum()):
                raise SystemExit(f"pyramid {reduce}: other cells")
        pooled[f"pyramid, {reduce}"] = {
            "unique(dim=0), scatter_reduce": lambda r=reduce: scattered(rows, voxels.feats, voxels.valid, r),
            "SparsePyramid": lambda p=pyramid: p(voxels),
        }
    places = voxels.coords[torch.randperm(len(voxels), device=points.device)]
    return {
        "lift": lifting(maps, links, grid),
        "keys": {
            "unique(dim=0) of batch and coordinates": lambda: torch.unique(coords, dim=0, return_inverse=True),
            "distinct keys": lambda: distinct(coords[:, 1:], batch),
            "VoxelGrid.from_coords, everything": lambda: VoxelGrid.from_coords(coords[:, 1:], batch),
            "VoxelGrid.from_points, everything": lambda: VoxelGrid.from_points(points, VOXEL_M, 0.0, batch),
        },
        **pooled,
        "look-up": {
            "a dictionary of tuples, rows only": lambda: dictionary(voxels.coords, places),
            "SparseFeatures.at, with features": lambda: voxels.at(places),
        },
    }


def dictionary(coords: Tensor, places: Tensor) -> list[int | None]:
    """Rows of places, by a dictionary made for them."""
    rows = {tuple(place): row for row, place in enumerate(coords.tolist())}
    return [rows.get(tuple(place)) for place in places.tolist()]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Family -> variant -> numbers."""
    clock, wait = devices.clock(options.device), devices.waiting(options.device)

    def run(call: Callable[[], Any]) -> None:
        with torch.no_grad():
            call()
        wait()

    report = {}
    with torch.no_grad():
        found = families(options)
    for title, runs in found.items():
        timed = {name: (lambda c=call: run(c)) for name, call in runs.items()}
        report[title] = ratios(turns(timed, rounds=options.rounds, warmup=1, clock=clock), next(iter(runs)))
    return report


def room(points: int, views: int) -> tuple[Tensor, Cameras, Tensor]:
    """Points on the walls of a box of 5 x 4 x 3 m, cameras inside it, and the exact depth of every pixel."""
    draw = torch.Generator().manual_seed(0)
    half = torch.tensor([2.5, 2.0, 1.5])
    cloud = torch.rand(points, 3, generator=draw) * 2 - 1
    wall = torch.randint(6, (points,), generator=draw)
    cloud[torch.arange(points), wall // 2] = (wall % 2) * 2.0 - 1
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
    return cloud * half, Cameras(k.repeat(views, 1, 1), pose, IMAGE), depth


@torch.no_grad()
def per_scene(points: int, views: int, channels: int) -> dict[str, float]:
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
        "points": points,
        "views": views,
        "channels": channels,
        "links": len(links),
        "seen": links.coverage,
        "voxels": len(features.coords),
        "project_s": projected - begin,
        "lift_s": time.process_time() - projected,
        "inputs_mib": sum(x.nbytes for x in (maps, cloud, depth)) / 2**20,
        "peak_above_inputs_mib": resident("VmHWM") - before,
    }


def resident(which: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 2**10


def page(report: dict[str, Any]) -> str:
    """Return the .md file."""
    setting, shown = report["setting"], report["machine"]
    lines = [
        f"{setting['points']} points, {setting['views']} views of {IMAGE[1]}×{IMAGE[0]} px with "
        f"{GRID[0]}×{GRID[1]} tokens of {setting['channels']} channels, float32 unless stated, voxels of "
        f"{VOXEL_M * 100:g} cm; {shown['cores']} thread(s), {setting['rounds']} rounds. Measured on "
        f"{shown.get('gpu', shown['cpu'])}, {shown['versions']}; `python -m benchmarks.points`.",
    ]
    for title, rows in report["points"].items():
        goal = f", goal ≥ {GOALS[title]:g}" if title in GOALS else ""
        lines += ["", markdown(title + goal, rows)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--share", type=float, default=0.05, help="of the points that one view sees")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    devices.no_tf32()
    report: dict[str, Any] = {"machine": machine("cpu" if options.scenes else options.device)}
    report["setting"] = {name: getattr(options, name) for name in vars(options) if name not in ("out", "scenes")}
    options.out.mkdir(exist_ok=True)
    if options.scenes:
        found = {"machine": report["machine"], "scenes": [per_scene(*size, options.channels) for size in SCENES]}
        store(options.out / "points_scenes.json", found)
        print(json.dumps(found["scenes"], indent=2))
        return
    report["points"] = measure(options)
    name = devices.stem("points", options.device)
    store(options.out / f"{name}.json", report)
    (options.out / f"{name}.md").write_text(page(report))
    print(page(report))


if __name__ == "__main__":
    main()
