"""From the tokens of images to features of voxels or points, as one sparse linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.checks import check_dtype, check_tensor
from dinoneck.points.projection import Links, check_links
from dinoneck.points.pyramid import Reduce
from dinoneck.points.reductions import cell_max, weighted_bags
from dinoneck.points.voxels import SparseFeatures, VoxelGrid

Sampling = Literal["bilinear", "nearest"]
Views = Literal["mean", "random", "closest"]

# tokens of one bag; the weights of more leave the range in which float16 is precise
_LONGEST_HALF_BAG = 1 << 14


class _Order(NamedTuple):
    """Points (N,) in the order of the rows they belong to, that row, and which links of which point are used."""

    point: Tensor
    row: Tensor
    n_views: Tensor
    first: Tensor
    chosen: Tensor | None

    def links(self, part: slice) -> Tensor:
        """Return the links of some of the points, in their order."""
        points = self.point[part]
        counts = self.n_views[points]
        # link i of a point is its first link + i
        indices = torch.repeat_interleave(self.first[points] - (counts.cumsum(0) - counts), counts)
        indices += torch.arange(len(indices), device=indices.device)
        return indices if self.chosen is None else self.chosen[indices]


class _Options(TypedDict, total=False):
    sampling: Sampling
    views: Views
    project: nn.Linear | None
    generator: torch.Generator | None
    reduce: Reduce
    chunk: int


@overload
def lift(
    maps: Tensor, links: Links, grid: VoxelGrid, **options: Unpack[_Options]
) -> SparseFeatures: ...


@overload
def lift(
    maps: Tensor, links: Links, grid: None = None, **options: Unpack[_Options]
) -> tuple[Tensor, Tensor]: ...


def lift(
    maps: Tensor,
    links: Links,
    grid: VoxelGrid | None = None,
    sampling: Sampling = "bilinear",
    views: Views = "mean",
    project: nn.Linear | None = None,
    generator: torch.Generator | None = None,
    reduce: Reduce = "mean",
    chunk: int = 2_000_000,
) -> SparseFeatures | tuple[Tensor, Tensor]:
    """Carry feature maps of images to the voxels, or the points, that they show.

    Each voxel is the views' mean per point, then the mean over those of its points that any view
    sees, computed as one weighted sum of tokens. For single maps and pixels use
    :meth:`dinoneck.TokenGrid.sample`.

    Args:
        maps: (V, C, rows, cols), one map per view that covers the camera's image; channels-last
            views, as ``Tokens.maps()`` and the feature store give them, are read in place.
        links: which view sees which point where, see :class:`dinoneck.points.PointProjector`.
        grid: voxels of the same points; None = features of the points.
        sampling: ``"bilinear"`` between the centres of cells, clamped at the border, or the
            ``"nearest"`` cell.
        views: of a point in several views: the ``"mean"``, one at ``"random"``, or the
            ``"closest"`` (smallest depth).
        project: a linear layer for the tokens, applied before they are lifted; its bias reaches
            only what was seen.
        generator: draws the views of ``"random"``.
        reduce: of the points of a voxel: ``"mean"``, or ``"max"`` per channel, whose gradient goes
            to the points that hold it. Points that no view sees take no part.
        chunk: links (views of a point) processed at once, about 100 bytes each; it changes no
            result but the last bits of float16 sums. A voxel of more links is one chunk; ``"max"``
            adds a feature per point of the chunk.

    Shape:
        With ``grid``: SparseFeatures of its M voxels, stride 1, ``valid`` where any view sees any
        point. Without: feats (N, C) and valid, bool (N,). Zeros where nothing was seen; the dtype
        of ``maps`` (of ``project``'s output). Sums are taken in at least float32. Gradients reach
        maps and ``project``, not the links.

    Raises:
        ShapeError: if maps, links, grid and ``project`` do not fit each other.
        ConfigError: for an unknown option.
        DataError: if the links are not sorted by point, or were made by hand and name a point or
            view that does not exist, or a place that is not finite.

    Examples:
        >>> from dinoneck.points import Cameras, PointProjector, VoxelGrid
        >>> K = torch.tensor([[[8.0, 0.0, 15.5], [0.0, 8.0, 15.5], [0.0, 0.0, 1.0]]])
        >>> cameras = Cameras(K, torch.eye(4).expand(1, 4, 4), size=(32, 32))
        >>> links = PointProjector()(torch.tensor([[0, 0, 2.0], [0, 0, -2.0]]), cameras)  # one is behind
        >>> feats, seen = lift(torch.ones(1, 3, 2, 2), links)
        >>> feats.tolist(), seen.tolist()
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [True, False])

    Reference: DITR (Zeid et al., arXiv 2503.18944) takes one view at random per point; ``"random"``
    does. Deviations: several views are averaged by default, and what was not seen is marked.
    """
    _check(maps, links, grid, sampling, views, reduce, chunk)
    table, per_view = _token_table(maps, project)
    order = _ordered(links, grid, _chosen(links, views, generator))
    num_rows = links.num_points if grid is None else len(grid)
    views_of_row = torch.zeros(num_rows, dtype=torch.int64, device=maps.device)
    views_of_row.index_add_(0, order.row, order.n_views[order.point])
    lifting = _Lifting(
        table=table,
        per_view=per_view,
        maps=maps,
        links=links,
        order=order,
        sampling=sampling,
        reduce=None if grid is None else reduce,
    )
    feats = _in_chunks(lifting, views_of_row, chunk)
    seen = views_of_row > 0
    if grid is None:
        return feats, seen
    return SparseFeatures(grid.coords, grid.batch, feats, seen)


def _in_chunks(lifting: _Lifting, views_of_row: Tensor, chunk: int) -> Tensor:
    """Return all rows of the result, computed in stretches of about ``chunk`` links each."""
    table = lifting.table
    chunk_of_row = (views_of_row.cumsum(0) - views_of_row) // chunk
    _, counts = torch.unique_consecutive(chunk_of_row, return_counts=True)
    stretches = list(pairwise(accumulate(counts.tolist(), initial=0)))
    if table.requires_grad and torch.is_grad_enabled():
        blocks = [table.new_zeros(0, table.shape[1])]
        for begin, end in stretches:
            blocks.append(lifting.rows(begin, end))
        return torch.cat(blocks)
    feats = table.new_zeros(len(views_of_row), table.shape[1])
    for begin, end in stretches:
        feats[begin:end] = lifting.rows(begin, end)
    return feats


def _token_table(maps: Tensor, project: nn.Linear | None) -> tuple[Tensor, int]:
    """All tokens below each other (T, C), projected, and how many rows lie between two views' first tokens."""
    if project is not None and not isinstance(project, nn.Linear):
        raise ConfigError(
            f"project is a {type(project).__name__}; expected torch.nn.Linear: only that may run "
            "first"
        )
    if project is not None and project.in_features != maps.shape[1]:
        raise ShapeError(
            f"project takes {project.in_features} channels, and the maps have {maps.shape[1]}; "
            f"build it as nn.Linear({maps.shape[1]}, ...)"
        )
    if project is not None:
        check_dtype("maps", maps, "project", project.weight)
    count, channels, rows, cols = maps.shape
    per_view = rows * cols
    learns = maps.requires_grad
    if project is not None:
        learns = learns or any(parameter.requires_grad for parameter in project.parameters())
    step = maps.stride(0)
    # channels-last views, each in one piece, with room between them for CLS and registers
    is_table = (
        count > 0
        and maps.stride()[1:] == (1, cols * channels, channels)
        and step % channels == 0
        and step >= per_view * channels
    )
    if is_table and not (learns and torch.is_grad_enabled()):
        # read in place, with the tokens between the views, which no bag names
        per_view = step // channels
        table = maps.as_strided(((count - 1) * per_view + rows * cols, channels), (channels, 1))
    else:
        table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    if project is not None:
        table = project(table)
    return table, per_view


def _ordered(links: Links, grid: VoxelGrid | None, chosen: Tensor | None) -> _Order:
    """Sort points by voxel: links are sorted by point, so each point's links are a stretch of them."""
    used = links.point if chosen is None else links.point[chosen]
    n_views = torch.bincount(used, minlength=links.num_points)
    if grid is None:
        point = torch.arange(links.num_points, device=n_views.device)
        row = point
    else:
        point = torch.argsort(grid.inverse, stable=True)
        row = grid.inverse[point]
    first = n_views.cumsum(0) - n_views
    return _Order(point, row, n_views, first, chosen)


@dataclass(frozen=True)
class _Lifting:
    """What the rows of the result are computed from.

    Attributes:
        table: the tokens (T, C).
        per_view: rows of the table between two views' first tokens.
        maps: (V, C, rows, cols), of which dtype and shape are read.
        links: which view sees which point where.
        order: of the points.
        sampling: see :func:`lift`.
        reduce: of the points of a voxel; None: rows are points.
    """

    table: Tensor
    per_view: int
    maps: Tensor
    links: Links
    order: _Order
    sampling: Sampling
    reduce: Reduce | None

    def rows(self, first_row: int, end_row: int) -> Tensor:
        """Return rows of the result: sums of weight * table[token] over each one's stretch of entries."""
        order = self.order
        num_rows = end_row - first_row
        limits = order.row.new_tensor((first_row, end_row))
        begin, end = torch.searchsorted(order.row, limits).tolist()
        link = order.links(slice(begin, end))
        row = order.row[begin:end] - first_row
        n_views = order.n_views[order.point[begin:end]]

        # the share of a view, and the links of each bag: those of a point, or of a voxel
        dtype = torch.promote_types(self.maps.dtype, torch.float32)
        share = n_views.to(dtype).reciprocal()
        bags = n_views
        if self.reduce == "mean":  # of the points of a voxel that any view sees
            seen_points = torch.bincount(row[n_views > 0], minlength=num_rows)
            share = share / seen_points[row]
            bags = n_views.new_zeros(num_rows).index_add_(0, row, n_views)

        # the tokens around each link
        links = self.links
        size = (self.maps.shape[2], self.maps.shape[3])
        uv = links.uv[link].detach()
        token, weight = _corners(uv, links.image_size, size, self.sampling, dtype)
        num_tokens = self.maps.shape[0] * self.per_view
        narrow = torch.int32 if max(num_tokens, token.numel()) < 1 << 31 else torch.int64
        first_token = (links.view[link] * self.per_view).to(narrow)
        weight *= torch.repeat_interleave(share, n_views)[:, None]
        tokens = (first_token[:, None] + token).flatten()
        sums = _summed(self.table, tokens, weight.flatten(), bags * token.shape[1])
        if self.reduce != "max":
            return sums
        return cell_max(sums[n_views > 0], row[n_views > 0], num_rows)


def _chosen(links: Links, views: Views, generator: torch.Generator | None) -> Tensor | None:
    """Return the one link per point to keep; None = all."""
    if views == "mean":
        return None
    point = links.point
    counts = torch.bincount(point, minlength=links.num_points)
    counts = counts[counts > 0]
    first = counts.cumsum(0) - counts
    if views == "random":
        device = point.device if generator is None else generator.device
        draw = torch.rand(len(counts), generator=generator, device=device, dtype=torch.float64)
        return first + (draw.to(point.device) * counts).long().clamp_(max=counts - 1)
    infinity = links.z.new_full((links.num_points,), torch.inf)
    nearest = infinity.scatter_reduce(0, point, links.z, "amin")
    candidates = (links.z == nearest[point]).nonzero().squeeze(1)
    candidate_point = point[candidates]
    is_first = torch.ones_like(candidate_point, dtype=torch.bool)
    is_first[1:] = candidate_point[1:] != candidate_point[:-1]  # of equally close views
    return candidates[is_first]


def _corners(
    uv: Tensor,
    image_size: tuple[int, int],
    size: tuple[int, int],
    sampling: Sampling,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cells (L, 4 or 1) that image places read, counted in raster order, and their weights."""
    rows, cols = size
    height, width = image_size
    uv = uv.to(torch.promote_types(uv.dtype, dtype))
    limit = uv.new_tensor((cols - 1, rows - 1))
    # integers of uv are pixels' centres
    cell = (uv + 0.5) * uv.new_tensor((cols / width, rows / height))
    if sampling == "nearest":
        x, y = torch.minimum(cell.floor_().clamp_(min=0), limit).int().unbind(1)
        return (y * cols + x).unsqueeze(1), uv.new_ones(len(uv), 1, dtype=dtype)
    place = torch.minimum(cell.sub_(0.5).clamp_(min=0), limit)
    low = place.floor()
    right, down = (place - low).to(dtype).unbind(1)
    x, y = low.int().unbind(1)
    next_x = (x + 1).clamp_(max=cols - 1)
    top = y * cols
    bottom = (y + 1).clamp_(max=rows - 1).mul_(cols)
    token = torch.stack((top + x, top + next_x, bottom + x, bottom + next_x), dim=1)
    left = 1 - right
    up = 1 - down
    weight = torch.stack((left * up, right * up, left * down, right * down), dim=1)
    return token, weight


def _summed(table: Tensor, token: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The weighted sums of bags of so many tokens each; of long bags in float32."""
    if table.dtype == torch.float16 and len(counts) and int(counts.max()) > _LONGEST_HALF_BAG:
        return _summed(table.float(), token, weight, counts).half()
    starts = counts.cumsum(0) - counts
    return weighted_bags(table, token, weight.to(table.dtype), starts.to(token.dtype))


def _check(
    maps: Tensor,
    links: Links,
    grid: VoxelGrid | None,
    sampling: str,
    views: str,
    reduce: str,
    chunk: int,
) -> None:
    """Reject what does not fit together.

    Raises:
        ShapeError, ConfigError, DataError: see :func:`lift`.
    """
    check_tensor("maps", maps)
    if maps.ndim != 4 or not maps.is_floating_point() or 0 in maps.shape[1:]:
        raise ShapeError(
            f"maps are {maps.dtype} of shape {tuple(maps.shape)}; expected floats (views, C, "
            "rows, cols)"
        )
    if not isinstance(links, Links):
        raise ShapeError(
            f"links is a {type(links).__name__}; expected dinoneck.points.Links, as PointProjector "
            "gives them"
        )
    if grid is not None and not isinstance(grid, VoxelGrid):
        raise ShapeError(
            f"grid is a {type(grid).__name__}; expected a dinoneck.points.VoxelGrid, or None"
        )
    if links.counts is None:
        check_links(links)
    if maps.shape[0] != links.num_views:
        raise ShapeError(
            f"{maps.shape[0]} maps for links of {links.num_views} views; expected one map per "
            "camera"
        )
    if grid is not None and grid.inverse.shape[0] != links.num_points:
        raise ShapeError(
            f"the grid has {grid.inverse.shape[0]} points, the links {links.num_points}; make "
            "both of the same points"
        )
    normal(Sampling, sampling, "sampling")
    normal(Views, views, "views")
    normal(Reduce, reduce, "reduce")
    check_minimum(1, chunk=chunk)
    if bool((links.point[1:] < links.point[:-1]).any()):
        raise DataError("links are not sorted by point; take them as PointProjector gives them")
