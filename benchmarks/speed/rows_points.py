"""Rows of points: from tokens to voxels by dinoneck.points and by common formulations, on a cloud as a room has it.

Points lie on walls of a box; every view (the batch) sees a patch of them. Lift, tokens to the mean
of each voxel: grid_sample of all points in every view, as it is mostly written; grid_sample of
those that a view sees; both then summed per voxel with index_add. Keys: torch.unique(dim=0) of
voxel coordinates with their batch index. Pyramid, maxima and means: unique(dim=0) of halved
coordinates and scatter_reduce, level by level. Look-up: a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import Form, Row, Setting, Variant
from dinoneck.points import Links, SparseFeatures, SparsePyramid, VoxelGrid, lift
from dinoneck.points.keys import distinct

IMAGE, VOXEL_M, PROJECTED, SHARE = (480, 640), 0.02, 96, 0.05
STRIDES = (2, 4, 8, 16)
NOTHING = nn.Module()


def on_walls(count: int, draw: torch.Generator) -> Tensor:
    """Points on the walls of a box of 5 x 4 x 3 m around the origin."""
    points = torch.rand(count, 3, generator=draw)
    wall = torch.randint(6, (count,), generator=draw)
    points[torch.arange(count), wall // 2] = (wall % 2).float()
    return (points - 0.5) * torch.tensor([5.0, 4.0, 3.0])


def scene(setting: Setting) -> tuple[Tensor, Links]:
    """Points on the walls of a box of 5 x 4 x 3 m, and for each view those around one of them."""
    draw, count, views = torch.Generator().manual_seed(0), setting.points, setting.batch
    points = on_walls(count, draw)
    view, point = [], []
    for at in torch.randint(count, (views,), generator=draw).tolist():
        near = (points - points[at]).norm(dim=1).topk(round(SHARE * count), largest=False).indices
        view.append(torch.full_like(near, len(view)))
        point.append(near)
    order = torch.argsort(torch.cat(point) * views + torch.cat(view))
    uv = torch.rand(len(order), 2, generator=draw) * torch.tensor([IMAGE[1] - 1.0, IMAGE[0] - 1.0])
    z = torch.rand(len(order), generator=draw) + 1.0
    parts = [x.to(setting.device) for x in (torch.cat(view)[order], torch.cat(point)[order], uv, z)]
    return points.to(setting.device), Links(*parts, count, views, IMAGE)


def sampled(maps: Tensor, uv: Tensor) -> Tensor:
    """(1, C, rows, cols) at (L, 2) -> (L, C)."""
    place = (uv.to(maps) + 0.5) / maps.new_tensor((IMAGE[1], IMAGE[0])) * 2 - 1
    read = F.grid_sample(
        maps, place[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
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


def scattered(
    coords: Tensor, feats: Tensor, valid: Tensor, reduce: str
) -> list[tuple[Tensor, Tensor]]:
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
        level = level.new_zeros(len(coords), level.shape[1]).scatter_reduce(
            0, index, level, how, include_self=False
        )
        count = count.new_zeros(len(coords)).scatter_add(0, inverse, count)
        if reduce == "max":
            levels.append((coords, level.masked_fill(count[:, None] == 0, 0.0)))
        else:
            levels.append((coords, level / count.clamp(min=1)[:, None]))
    return levels


def voxels_of(setting: Setting) -> tuple[VoxelGrid, SparseFeatures, Tensor, Links]:
    """Return the voxels of the scene, their lifted features, the maps and the links."""
    points, links = scene(setting)
    grid = VoxelGrid.from_points(
        points, VOXEL_M, 0.0, torch.zeros(len(points), dtype=torch.int64, device=points.device)
    )
    maps = setting.tokens(prefix=0).maps()[0].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return grid, lift(maps, links, grid), maps, links


def variant(form: Form, call: Callable[[], Any], *inputs: Tensor, same: bool = True) -> Variant:
    """Return a formulation without weights; its kernels read values, so that no graph captures them."""
    return Variant(form, call, NOTHING, inputs, same=same, capturable=False)


def lifting(setting: Setting) -> dict[str, Variant]:
    """Tokens to the mean of every voxel."""
    grid, _, maps, links = voxels_of(setting)
    project = nn.Linear(maps.shape[1], PROJECTED, **setting.like).requires_grad_(False)
    nchw, half = maps.contiguous(), maps.half().contiguous(memory_format=torch.channels_last)
    return {
        "grid_sample of all points in every view, index_add": variant(
            "published", lambda: onto_voxels(everywhere(nchw, links), links, grid), nchw
        ),
        "grid_sample of the points seen, index_add": variant(
            "fixed", lambda: onto_voxels(where_seen(nchw, links), links, grid), nchw
        ),
        "lift": variant("ours", lambda: lift(maps, links, grid).feats, maps),
        "lift, float16": variant("option", lambda: lift(half, links, grid).feats, half, same=False),
        f"lift, projected to {PROJECTED} channels": variant(
            "option", lambda: lift(maps, links, grid, project=project).feats, maps, same=False
        ),
        "lift to points": variant("option", lambda: lift(maps, links), maps, same=False),
    }


def keys(setting: Setting) -> dict[str, Variant]:
    """Which points share a voxel; rows of the same voxels, in whatever order."""
    grid = voxels_of(setting)[0]
    points = scene(setting)[0]
    batch = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    coords = torch.cat((batch[:, None], grid.coords[grid.inverse]), dim=1)

    return {
        "unique(dim=0) of batch and coordinates": variant(
            "published", lambda: torch.unique(coords, dim=0, return_inverse=True)[0].sum(0), coords
        ),
        "distinct keys": variant(
            "option", lambda: distinct(coords[:, 1:], batch)[0], coords, same=False
        ),
        "VoxelGrid.from_coords": variant(
            "ours",
            lambda: F.pad(VoxelGrid.from_coords(coords[:, 1:], batch).coords.sum(0), (1, 0)),
            coords,
        ),
        "VoxelGrid.from_points": variant(
            "option",
            lambda: VoxelGrid.from_points(points, VOXEL_M, 0.0, batch).coords,
            points,
            same=False,
        ),
    }


def pyramid(setting: Setting, reduce: str) -> dict[str, Variant]:
    """Levels of coarser voxels; compared are their features at the cells of the peer."""
    _, voxels, _, _ = voxels_of(setting)
    rows = torch.cat((voxels.batch[:, None], voxels.coords), dim=1)
    make = SparsePyramid(STRIDES, reduce)
    peer = scattered(rows, voxels.feats, voxels.valid, reduce)
    for level, (cells, feats) in zip(make(voxels).values(), peer, strict=True):
        at, hit = level.at(cells[:, 1:], cells[:, 0])
        same = len(level) == len(cells) and int(hit.sum()) == int(level.valid.sum())
        if not same or not torch.allclose(at, feats, atol=1e-4):
            raise SystemExit(f"pyramid, {reduce}: other cells or features")
    return {
        "unique(dim=0), scatter_reduce": variant(
            "published",
            lambda: [x for _, x in scattered(rows, voxels.feats, voxels.valid, reduce)],
            voxels.feats,
        ),
        "SparsePyramid": variant(
            "ours",
            lambda: [level.feats for level in make(voxels).values()],
            voxels.feats,
            same=False,
        ),
    }


def look_up(setting: Setting) -> dict[str, Variant]:
    """Features at places."""
    _, voxels, _, _ = voxels_of(setting)
    places = voxels.coords[torch.randperm(len(voxels), device=voxels.coords.device)]

    def dictionary() -> Tensor:
        rows = {tuple(place): row for row, place in enumerate(voxels.coords.tolist())}
        return voxels.feats[[rows[tuple(place)] for place in places.tolist()]]

    return {
        "a dictionary of tuples": variant("published", dictionary, voxels.feats),
        "SparseFeatures.at": variant("ours", lambda: voxels.at(places)[0], voxels.feats),
    }


SETTINGS = [Setting(8, (30, 40), 384, points=100_000)]
ROWS = [
    Row(
        f"points: {name}",
        build,
        SETTINGS,
        "points",
        steps=("forward",),
        gpu_batch=None,
        only_float32=True,
    )
    for name, build in {
        "lift": lifting,
        "keys": keys,
        "pyramid, max": partial(pyramid, reduce="max"),
        "pyramid, mean": partial(pyramid, reduce="mean"),
        "look-up": look_up,
    }.items()
]
