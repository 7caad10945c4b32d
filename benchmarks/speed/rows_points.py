"""Rows of points: from tokens to voxels by dinoneck.points and by the usual formulations.

Points lie on the walls of a room; every view (the batch) sees a patch of them. The peers are:

* lift, tokens to the mean of each voxel: grid_sample of all points in every view, as it is usually
  written, or of those that a view sees; both then summed per voxel with index_add;
* keys: torch.unique(dim=0) of voxel coordinates with their batch index;
* pyramid, maxima and means: unique(dim=0) of coarser coordinates and scatter_reduce per level;
* look-up: a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import Form, Row, Setting, Variant
from dinoneck.points import Links, SparseFeatures, SparsePyramid, VoxelGrid, lift
from dinoneck.points.keys import distinct

IMAGE = (480, 640)  # height, width
ROOM_M = (5.0, 4.0, 3.0)
VOXEL_M = 0.02
SEEN_SHARE = 0.05  # of the points, by each view
PROJECTED_CHANNELS = 96
STRIDES = (2, 4, 8, 16)
NO_MODULE = nn.Module()


def on_walls(count: int, generator: torch.Generator) -> Tensor:
    """Draw points on the walls of a room around the origin, (count, 3), in metres."""
    points = torch.rand(count, 3, generator=generator)
    wall = torch.randint(6, (count,), generator=generator)
    axis = wall // 2
    side = (wall % 2).float()
    points[torch.arange(count), axis] = side
    return (points - 0.5) * torch.tensor(ROOM_M)


def scene(setting: Setting) -> tuple[Tensor, Links]:
    """Draw points on the walls of a room; every view sees those around one of them."""
    generator = torch.Generator().manual_seed(0)
    num_points = setting.points
    num_views = setting.batch
    num_seen = round(SEEN_SHARE * num_points)
    points = on_walls(num_points, generator)
    views = []
    seen_points = []
    centers = torch.randint(num_points, (num_views,), generator=generator)
    for view, center in enumerate(centers.tolist()):
        distance = (points - points[center]).norm(dim=1)
        nearest = distance.topk(num_seen, largest=False).indices
        views.append(torch.full_like(nearest, view))
        seen_points.append(nearest)

    # links are sorted by point, then by view
    view = torch.cat(views)
    point = torch.cat(seen_points)
    order = torch.argsort(point * num_views + view)
    height, width = IMAGE
    largest_uv = torch.tensor([width - 1.0, height - 1.0])
    uv = torch.rand(len(order), 2, generator=generator) * largest_uv
    z = torch.rand(len(order), generator=generator) + 1.0
    device = setting.device
    links = Links(
        view[order].to(device),
        point[order].to(device),
        uv.to(device),
        z.to(device),
        num_points,
        num_views,
        IMAGE,
    )
    return points.to(device), links


def sample(maps: Tensor, uv: Tensor) -> Tensor:
    """Read a map (1, C, rows, cols) at pixels (L, 2) -> (L, C)."""
    height, width = IMAGE
    position = (uv.to(maps) + 0.5) / maps.new_tensor((width, height)) * 2 - 1
    features = F.grid_sample(
        maps, position[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return features[0, :, 0].T


def read_at_all_points(maps: Tensor, links: Links) -> Tensor:
    """Return features of points (N, C): every view is read at all points, then masked."""
    shape = (links.num_views, links.num_points)
    linked = (links.view, links.point)
    uv = links.uv.new_zeros(*shape, 2).index_put_(linked, links.uv)
    mask = torch.zeros(shape, dtype=torch.bool, device=maps.device)
    mask.index_put_(linked, links.view >= 0)
    total = maps.new_zeros(links.num_points, maps.shape[1])
    for view in range(links.num_views):
        total += sample(maps[view : view + 1], uv[view]) * mask[view][:, None]
    return total / mask.sum(0).clamp(min=1)[:, None]


def read_at_seen_points(maps: Tensor, links: Links) -> Tensor:
    """Return features of points (N, C): every view is read at the points that it sees."""
    total = maps.new_zeros(links.num_points, maps.shape[1])
    for view in range(links.num_views):
        in_view = links.view == view
        features = sample(maps[view : view + 1], links.uv[in_view])
        total.index_add_(0, links.point[in_view], features)
    return total / links.n_views.clamp(min=1)[:, None]


def mean_of_voxels(feats: Tensor, links: Links, grid: VoxelGrid) -> Tensor:
    """Return the mean over the seen points of every voxel."""
    seen = links.n_views > 0
    voxels = grid.inverse[seen]
    total = feats.new_zeros(len(grid), feats.shape[1]).index_add_(0, voxels, feats[seen])
    count = torch.bincount(voxels, minlength=len(grid))
    return total / count.clamp(min=1)[:, None]


def scatter_levels(
    coords: Tensor, feats: Tensor, valid: Tensor, reduce: str
) -> list[tuple[Tensor, Tensor]]:
    """Compute levels by unique(dim=0) and scatter_reduce.

    Each is (batch and coords, feats) of all cells; feats are zero where nothing is valid.
    """
    is_max = reduce == "max"
    level = feats.masked_fill(~valid[:, None], -torch.inf if is_max else 0.0)
    count = valid.to(feats.dtype)
    levels = []
    for stride in STRIDES:
        cells = torch.div(coords, stride, rounding_mode="floor") * stride
        cells[:, 0] = coords[:, 0]  # the batch index
        coords, inverse = torch.unique(cells, dim=0, return_inverse=True)
        level = level.new_zeros(len(coords), level.shape[1]).scatter_reduce(
            0,
            inverse[:, None].expand_as(level),
            level,
            "amax" if is_max else "sum",
            include_self=False,
        )
        count = count.new_zeros(len(coords)).scatter_add(0, inverse, count)
        if is_max:
            reduced = level.masked_fill(count[:, None] == 0, 0.0)
        else:
            reduced = level / count.clamp(min=1)[:, None]
        levels.append((coords, reduced))
    return levels


def voxels_of(setting: Setting) -> tuple[VoxelGrid, SparseFeatures, Tensor, Links]:
    """Return the voxels of the scene, their lifted features, the maps and the links."""
    points, links = scene(setting)
    grid = VoxelGrid.from_points(points, VOXEL_M, 0.0, one_batch(points))
    maps = setting.tokens(prefix=0).maps()[0].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = lift(maps, links, grid)
    return grid, features, maps, links


def one_batch(points: Tensor) -> Tensor:
    """Return the batch index of every point, which is 0."""
    return torch.zeros(len(points), dtype=torch.int64, device=points.device)


def variant(form: Form, call: Callable[[], Any], *inputs: Tensor, same: bool = True) -> Variant:
    """Return a variant without weights; its kernels read values, so that no graph captures it."""
    return Variant(form, call, NO_MODULE, inputs, same=same, capturable=False)


def lifting(setting: Setting) -> dict[str, Variant]:
    """Tokens to the mean of every voxel."""
    grid, _, maps, links = voxels_of(setting)
    project = nn.Linear(maps.shape[1], PROJECTED_CHANNELS, **setting.factory_kwargs)
    project.requires_grad_(False)
    nchw = maps.contiguous()
    half = maps.half().contiguous(memory_format=torch.channels_last)
    return {
        "grid_sample of all points in every view, index_add": variant(
            "published", lambda: mean_of_voxels(read_at_all_points(nchw, links), links, grid), nchw
        ),
        "grid_sample of the points seen, index_add": variant(
            "fixed", lambda: mean_of_voxels(read_at_seen_points(nchw, links), links, grid), nchw
        ),
        "lift": variant("ours", lambda: lift(maps, links, grid).feats, maps),
        "lift, float16": variant("option", lambda: lift(half, links, grid).feats, half, same=False),
        f"lift, projected to {PROJECTED_CHANNELS} channels": variant(
            "option", lambda: lift(maps, links, grid, project=project).feats, maps, same=False
        ),
        "lift to points": variant("option", lambda: lift(maps, links), maps, same=False),
    }


def keys(setting: Setting) -> dict[str, Variant]:
    """Find the points that share a voxel.

    The voxels may come in any order, so that the sums of their coordinates are compared.
    """
    points, _ = scene(setting)
    grid, *_ = voxels_of(setting)
    batch = one_batch(points)
    coords = torch.cat((batch[:, None], grid.coords[grid.inverse]), dim=1)

    def unique() -> Tensor:
        voxels, _ = torch.unique(coords, dim=0, return_inverse=True)
        return voxels.sum(0)

    def from_coords() -> Tensor:
        voxels = VoxelGrid.from_coords(coords[:, 1:], batch)
        batch_sum = (1, 0)  # zero in front: there is one batch
        return F.pad(voxels.coords.sum(0), batch_sum)

    return {
        "unique(dim=0) of batch and coordinates": variant("published", unique, coords),
        "distinct keys": variant(
            "option", lambda: distinct(coords[:, 1:], batch)[0], coords, same=False
        ),
        "VoxelGrid.from_coords": variant("ours", from_coords, coords),
        "VoxelGrid.from_points": variant(
            "option",
            lambda: VoxelGrid.from_points(points, VOXEL_M, 0.0, batch).coords,
            points,
            same=False,
        ),
    }


def pyramid(setting: Setting, reduce: str) -> dict[str, Variant]:
    """Levels of coarser voxels, whose features are compared here at the cells of the peer.

    Raises:
        SystemExit: if cells or features differ.
    """
    _, voxels, _, _ = voxels_of(setting)
    coords = torch.cat((voxels.batch[:, None], voxels.coords), dim=1)
    sparse_pyramid = SparsePyramid(STRIDES, reduce)

    def peer() -> list[tuple[Tensor, Tensor]]:
        return scatter_levels(coords, voxels.feats, voxels.valid, reduce)

    for level, (cells, feats) in zip(sparse_pyramid(voxels).values(), peer(), strict=True):
        ours_at_cells, hit = level.at(cells[:, 1:], cells[:, 0])
        same_cells = len(level) == len(cells) and int(hit.sum()) == int(level.valid.sum())
        if not same_cells or not torch.allclose(ours_at_cells, feats, atol=1e-4):
            raise SystemExit(f"pyramid, {reduce}: other cells or features")
    return {
        "unique(dim=0), scatter_reduce": variant(
            "published", lambda: [feats for _, feats in peer()], voxels.feats
        ),
        "SparsePyramid": variant(
            "ours",
            lambda: [level.feats for level in sparse_pyramid(voxels).values()],
            voxels.feats,
            same=False,
        ),
    }


def look_up(setting: Setting) -> dict[str, Variant]:
    """Features at coordinates."""
    _, voxels, _, _ = voxels_of(setting)
    order = torch.randperm(len(voxels), device=voxels.coords.device)
    queries = voxels.coords[order]

    def dictionary() -> Tensor:
        rows = {tuple(coords): row for row, coords in enumerate(voxels.coords.tolist())}
        return voxels.feats[[rows[tuple(coords)] for coords in queries.tolist()]]

    return {
        "a dictionary of tuples": variant("published", dictionary, voxels.feats),
        "SparseFeatures.at": variant("ours", lambda: voxels.at(queries)[0], voxels.feats),
    }


def row(name: str, build: Callable[[Setting], Mapping[str, Variant]]) -> Row:
    """Return a row of points."""
    return Row(
        f"points: {name}",
        build,
        settings=[Setting(8, (30, 40), 384, points=100_000)],
        group="points",
        steps=("forward",),
        gpu_batch=None,
        only_float32=True,
    )


ROWS = [
    row("lift", lifting),
    row("keys", keys),
    row("pyramid, max", partial(pyramid, reduce="max")),
    row("pyramid, mean", partial(pyramid, reduce="mean")),
    row("look-up", look_up),
]
