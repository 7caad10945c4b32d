"""Which point is seen in which view, and where: the links between a cloud and its images."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.cameras import LARGEST_DEPTH_M, Cameras, are_moved, some_depths
from dinoneck.points.checks import (
    all_outside,
    check_depth,
    check_finite,
    check_index,
    check_tensor,
)

logger = logging.getLogger(__name__)

UnknownDepth = Literal["reject", "accept"]
_SUSPICIOUS_PAIRS = 1000  # fewer pairs may miss the images, or disagree with depth, by chance
_SUSPICIOUS_SHARE = 0.01  # a lower share that agrees with depth is a mistake
_THOUSAND = (300.0, 3000.0)  # metres read as millimetres, or the other way round
_SOME_POINTS = 4096  # whose distances are compared with depth
# few points that any view sees: K of images of twice the size leaves 2 % of a frame's own points
_FEW_SEEN = 0.05

# columns of Links.counts; the last two exist with depth only
_OFFERED = 0
_IN_FRONT = 1
_IN_IMAGE = 2
KNOWN = 3
AGREEING = 4
_COLUMNS_WITHOUT_DEPTH = 3
_COLUMNS_WITH_DEPTH = 5


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs of a point and a view that sees it, sorted by point, then view.

    Attributes:
        view: int64 (L,), row in the cameras.
        point: int64 (L,), row in the cloud.
        uv: (L, 2), pixel (x, y) of the camera image by OpenCV's convention: an integer is a pixel's
            centre.
        z: (L,), metres along the view's axis.
        num_points: points of the cloud, seen or not.
        num_views: views, used or not.
        image_size: (height, width) of the images that ``uv`` counts in.
        counts: int64 (V, 5) per view: points offered, in front, in the image, there with known
            depth, agreeing with it; (V, 3) without depth; None for links that were made by hand.
    """

    view: Tensor
    point: Tensor
    uv: Tensor
    z: Tensor
    num_points: int
    num_views: int
    image_size: tuple[int, int]
    counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.view)

    def __repr__(self) -> str:
        return (
            f"Links({len(self)} of {self.num_points} points in {self.num_views} views, "
            f"coverage {self.coverage:.3f})"
        )

    @property
    def xy(self) -> Tensor:
        """(L, 2), pixels with centres at half-integers, as ``TokenGrid`` and the rest of the library take them."""
        return self.uv + 0.5

    @cached_property
    def n_views(self) -> Tensor:
        """int64 (N,), views that see each point."""
        return torch.bincount(self.point, minlength=self.num_points)

    @cached_property
    def coverage(self) -> float:
        """Share of the points that any view sees: it bounds what image features can bring; 0.0 without points."""
        return float((self.n_views > 0).double().mean()) if self.num_points else 0.0

    def stats(self) -> dict[str, Tensor]:
        """Return what became of the pairs, per view (V,), to find a view that fits ill.

        ``links``: how many. Of the points offered: ``front``, ``in_bounds`` (shares). Of those in
        bounds: ``known``, the share with known depth. Of these: ``agree``, the share at the depth
        measured, low where the pose, the units or K are wrong. A share of nothing is 0; links made
        by hand have ``links`` alone, those without depth no ``known`` and ``agree``.
        """
        stats = {"links": torch.bincount(self.view, minlength=self.num_views)}
        if self.counts is None:
            return stats
        points, front, in_bounds, *measured = self.counts.double().unbind(1)
        stats |= {
            "front": front / points.clamp_min(1),
            "in_bounds": in_bounds / points.clamp_min(1),
        }
        if measured:
            known, agree = measured
            stats |= {"known": known / in_bounds.clamp_min(1), "agree": agree / known.clamp_min(1)}
        return stats

    def to(self, device: torch.device | str) -> Links:
        """Return the links on a device."""
        return replace(
            self,
            view=self.view.to(device),
            point=self.point.to(device),
            uv=self.uv.to(device),
            z=self.z.to(device),
            counts=None if self.counts is None else self.counts.to(device),
        )


def check_links(links: Links) -> None:
    """Check links that were made by hand.

    Raises:
        ShapeError: if the columns have other shapes or dtypes.
        DataError: if a row names a point or view that does not exist, or a place or depth that is not finite.
    """
    count = len(links)
    check_index("links.view", links.view, count)
    check_index("links.point", links.point, count)
    for name, column, shape in (("uv", links.uv, (count, 2)), ("z", links.z, (count,))):
        check_tensor(f"links.{name}", column)
        if tuple(column.shape) != shape:
            raise ShapeError(
                f"links.{name} has shape {tuple(column.shape)}; expected {shape}, as links.view"
            )
    if min(links.image_size) < 1:
        raise DataError(
            f"links.image_size is {tuple(links.image_size)}; expected (height, width) in pixels, "
            "each positive"
        )
    numbers = (
        ("view", links.view, links.num_views),
        ("point", links.point, links.num_points),
    )
    for name, column, length in numbers:
        wrong = (column < 0) | (column >= length)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"link {row} names {name} {int(column[row])}; expected 0 ... {length - 1}"
            )
    not_finite = ~links.uv.isfinite().all(dim=1)
    if not_finite.any():
        row = int(not_finite.nonzero()[0])
        raise DataError(
            f"link {row} has uv = {links.uv[row].tolist()}; expected pixels, leave out links "
            "without a place"
        )
    no_depth = ~links.z.isfinite()
    if no_depth.any():
        row = int(no_depth.nonzero()[0])
        raise DataError(
            f"link {row} has z = {links.z[row].item()}; expected the distance along the camera's "
            "axis, leave out links without a depth"
        )


@dataclass(frozen=True)
class PointProjector:
    """Finds the views that see each point of a cloud: in front, in the image, and not behind another surface.

    A point is hidden where the depth measured at its pixel differs from its own by more than
    ``max(depth_abs, depth_rel * z)``. Keep that tight. 2 % and 5 cm accept 0.9 % of the hidden
    points of a room with a box in it, and 3.9 % if much furniture is at the walls; 25 % accept 8.6
    %. The features of such points come from the object in front. Without depth every point in the
    image counts as seen, through walls too.

    Project undeformed points: where training deforms coordinates (elastic, flips, scale), the
    cameras belong to the points as they were measured, and the voxels may be made of the deformed
    ones.

    Memory is bounded by ``chunk`` pairs at a time, in addition to the links. No gradient passes.

    Args:
        near: least z in metres.
        far: largest z in metres; None = any.
        depth_abs: agreement with depth, in metres.
        depth_rel: agreement with depth, as a share of z.
        unknown_depth: what becomes of points at pixels without depth (0, negative, NaN, infinite):
            ``"reject"`` or ``"accept"``.
        chunk: pairs of a point and a view in memory at once.

    Raises:
        ConfigError: for an option out of range.

    Examples:
        >>> K = torch.tensor([[[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]])
        >>> cameras = Cameras(K, torch.eye(4)[None], size=(480, 640))
        >>> points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, -2.0]])
        >>> wall = torch.full((1, 480, 640), 2.01)
        >>> links = PointProjector()(points, cameras, wall)
        >>> links.point.tolist(), links.uv.tolist(), round(links.coverage, 2)
        ([0], [[319.5, 239.5]], 0.33)
        >>> PointProjector()(points, cameras).point.tolist()
        [0, 1]

    Reference: the occlusion test by depth of OpenScene (Peng et al., CVPR 2023) and DITR (Zeid et
    al., 2025). Deviations: an absolute and a relative tolerance, unknown depth is distinguished,
    depth of any size, half pixels.
    """

    near: float = 0.05
    far: float | None = None
    depth_abs: float = 0.05
    depth_rel: float = 0.02
    unknown_depth: UnknownDepth = "reject"
    chunk: int = 500_000

    def __post_init__(self) -> None:
        if not 0 < self.near < math.inf:
            raise ConfigError(f"near is {self.near}; expected metres above 0")
        if self.far is not None and not self.far > self.near:
            raise ConfigError(f"far is {self.far}; expected more than near, {self.near} m, or None")
        for name in ("depth_abs", "depth_rel"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        normal(UnknownDepth, self.unknown_depth, "unknown_depth")
        check_minimum(1, chunk=self.chunk)

    @torch.no_grad()
    def __call__(
        self,
        points: Tensor,
        cameras: Cameras,
        depth: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Links:
        """Link points (N, 3) m with views.

        Args:
            points: float32 or float64 (N, 3), in metres, in the cameras' world; float64 where that
                is georeferenced.
            cameras: V views, with ``sample`` if the cloud is a batch.
            depth: floating (V, rows, cols) in metres along z, of any size that shows the images'
                field of view.
            batch: int64 (N,), the sample of every point; a point meets the views of its own sample.

        Raises:
            ShapeError: if shapes or dtypes do not fit.
            DataError: if points are not finite, or depth or points are in millimetres.

        Warns:
            UserWarning: if all principal points lie outside the images (unless ``Cameras.crop`` or
                ``pad`` put them there), or fewer than 5 % of 1000 points or more are seen: K may
                belong to images of another size.
        """
        check_cloud(points, cameras, depth, batch)
        links = self.link(points, cameras, depth, batch)
        if links.counts is not None and len(points) and len(cameras):
            counts = links.counts.sum(0).tolist()
            mistake = _likely_mistake(counts, points, cameras, depth, batch)
            if mistake is not None:
                logger.warning(mistake)
            warning = _warning_of_size(links, cameras, is_logged=mistake is not None)
            if warning is not None:
                # of the caller, behind the decorator
                warnings.warn(warning, stacklevel=3)
        return links

    def link(
        self, points: Tensor, cameras: Cameras, depth: Tensor | None, batch: Tensor | None
    ) -> Links:
        """Link as the call does, without checks of the arguments."""
        num_columns = _COLUMNS_WITHOUT_DEPTH if depth is None else _COLUMNS_WITH_DEPTH
        counts = torch.zeros(len(cameras), num_columns, dtype=torch.int64, device=points.device)
        # empty columns, for clouds without links
        no_rows = points.new_zeros(0, dtype=torch.int64)
        parts = [(no_rows, no_rows, points.new_zeros(0, 2), points.new_zeros(0))]
        for rows, views in _samples(points, cameras, batch):
            parts += self._parts(points, cameras, depth, rows, views, counts)
        columns = [list(column) for column in zip(*parts, strict=True)]
        # one column after the other: the peak is about 4/3 of the memory of the links, not twice
        del parts
        view, point, uv, z = (torch.cat(columns.pop(0)) for _ in range(4))
        if batch is not None and (point[1:] < point[:-1]).any():
            order = point.argsort(stable=True)
            view, point, uv, z = view[order], point[order], uv[order], z[order]
        return Links(view, point, uv, z, len(points), len(cameras), cameras.size, counts)

    def _parts(
        self,
        points: Tensor,
        cameras: Cameras,
        depth: Tensor | None,
        rows: Tensor | None,
        views: Tensor,
        counts: Tensor,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield the links of one sample's points and views, block by block of points, sorted by point and view."""
        if not len(views):
            return
        height, width = cameras.size
        matrices = cameras.projections()[views]
        # pixels counted from the corner of the image: half a pixel more than by OpenCV's convention
        matrices[:, :2] += 0.5 * matrices[:, 2:]
        num_views = len(views)
        matrix = matrices.permute(2, 1, 0).flatten(
            1
        )  # (4, 3 * num_views): x z, y z, z of each view
        num_points = len(points) if rows is None else len(rows)
        block = max(1, self.chunk // num_views)
        for start in range(0, num_points, block):
            at = slice(start, start + block) if rows is None else rows[start : start + block]
            seen = torch.addmm(matrix[3], points[at].double(), matrix[:3])  # (block, 3 * num_views)
            # x times z, y times z, and z, (block, num_views) each: no division by a z of 0
            xz, yz, z = seen.reshape(len(seen), 3, num_views).unbind(1)
            in_front = z > self.near
            if self.far is not None:
                in_front &= z < self.far
            inside = in_front & (xz >= 0) & (xz < width * z) & (yz >= 0) & (yz < height * z)
            counts[views, _OFFERED] += len(seen)
            counts[views, _IN_FRONT] += in_front.sum(0)
            counts[views, _IN_IMAGE] += inside.sum(0)
            # the L links of the block: x times z, y times z, and z, (L,) each, out of the flat product
            point, column = inside.nonzero().unbind(1)
            index = point * seen.shape[1] + column
            xz, yz, z = (seen.flatten()[index + k * num_views] for k in range(3))
            uv = torch.stack([xz, yz], 1) / z[:, None] - 0.5
            view = views[column]
            point = point + start if rows is None else rows[point + start]
            if depth is not None:
                keep = self._visible(view, uv, z, depth, cameras.size, counts)
                view, point, uv, z = view[keep], point[keep], uv[keep], z[keep]
            yield view, point, uv.to(points.dtype), z.to(points.dtype)

    def _visible(
        self,
        view: Tensor,
        uv: Tensor,
        z: Tensor,
        depth: Tensor,
        size: tuple[int, int],
        counts: Tensor,
    ) -> Tensor:
        """Return a mask of what lies at the depth measured at its pixel, and count it."""
        rows, cols = depth.shape[1:]
        scale = uv.new_tensor([cols / size[1], rows / size[0]])
        # a pixel spans +-0.5 around its integer, so its place in depth of another size is the floor
        # of (uv + 0.5) s
        cell = ((uv + 0.5) * scale).floor().long()
        col = cell[:, 0].clamp(0, cols - 1)
        row = cell[:, 1].clamp(0, rows - 1)
        measured = depth[view, row, col].double()
        known = measured.isfinite() & (measured > 0)
        agree = known & ((measured - z).abs() <= (self.depth_rel * z).clamp_min(self.depth_abs))
        counts[:, KNOWN] += torch.bincount(view[known], minlength=len(counts))
        counts[:, AGREEING] += torch.bincount(view[agree], minlength=len(counts))
        if self.unknown_depth == "accept":
            return agree | ~known
        return agree


def check_cloud(
    points: Tensor, cameras: Cameras, depth: Tensor | None, batch: Tensor | None
) -> None:
    """Reject a cloud, depth and batch index that do not fit each other or the cameras.

    Raises:
        ShapeError: for shapes and dtypes.
        DataError: for points that are not finite.
    """
    if not isinstance(cameras, Cameras):
        raise ShapeError(f"cameras is a {type(cameras).__name__}; expected dinoneck.points.Cameras")
    check_tensor("points", points)
    if (
        points.ndim != 2
        or points.shape[1] != 3
        or points.dtype not in (torch.float32, torch.float64)
    ):
        raise ShapeError(
            f"points are {points.dtype} {tuple(points.shape)}; expected float32 or float64 "
            "(points, 3) in metres (half precision is off by 4 mm at 10 m)"
        )
    if (batch is None) != (cameras.sample is None):
        if batch is None:
            present = "cameras.sample"
            missing = "batch"
        else:
            present = "batch"
            missing = "Cameras(sample=...)"
        raise ShapeError(
            f"{present} is given and {missing} is not; a batch of clouds needs both, one cloud "
            "neither"
        )
    if batch is not None:
        check_index("batch", batch, len(points))
    if depth is not None:
        check_depth(depth, len(cameras), cameras.size)
    check_finite(points)


def _likely_mistake(
    counts: list[int], points: Tensor, cameras: Cameras, depth: Tensor | None, batch: Tensor | None
) -> str | None:
    """Return a warning about a likely mistake, or None.

    Raises:
        DataError: if points or depth are in other units than metres.
    """
    offered = counts[_OFFERED]
    in_bounds = counts[_IN_IMAGE]
    known = 0
    agree = 0
    if len(counts) == _COLUMNS_WITH_DEPTH:
        known = counts[KNOWN]
        agree = counts[AGREEING]
    if depth is not None and (agree < _SUSPICIOUS_SHARE * known or not in_bounds):
        check_units(points, cameras, depth, batch)
    if not in_bounds and offered >= _SUSPICIOUS_PAIRS:
        return (
            f"none of the {offered} projected points lies in an image: look at units (metres), "
            "poses and K"
        )
    if depth is None or in_bounds < _SUSPICIOUS_PAIRS:
        return None
    if not known:
        return (
            f"depth is unknown at all of the {in_bounds} projected points in an image: look at the "
            "depth maps, in which 0 and NaN mean unknown"
        )
    if agree <= _SUSPICIOUS_SHARE * known:
        return (
            f"{agree} of the {known} projected points with known depth agree with it: "
            "dinoneck.points.check_cameras tells whether poses and K are read the right way"
        )
    return None


def _warning_of_size(links: Links, cameras: Cameras, is_logged: bool) -> str | None:
    """Return a warning if K seems to belong to images of another size, else None."""
    height, width = cameras.size
    if all_outside(cameras.K, cameras.size) and not are_moved(cameras):
        x, y = (round(place, 1) for place in cameras.K[0, :2, 2].tolist())
        return (
            f"all principal points lie outside the images of {height}x{width} px, the first at (x, "
            f"y) = ({x}, {y}): K seems to belong to images of another size; make the cameras with "
            "the size that K was calibrated at, then Cameras.resize((height, width))"
        )
    if is_logged or links.num_points < _SUSPICIOUS_PAIRS or links.coverage >= _FEW_SEEN:
        return None
    return (
        f"{100 * links.coverage:.1f} % of the {links.num_points} points are seen in any view: K may "
        f"belong to images of another size than {height}x{width} px, or poses are read the wrong "
        "way (dinoneck.points.check_cameras tells); it is right if the views show a small part of "
        "the cloud"
    )


def check_units(
    points: Tensor, cameras: Cameras, depth: Tensor, batch: Tensor | None = None
) -> None:
    """Reject depth that is a thousand times the points' distance, or a thousandth of it.

    Raises:
        DataError: naming which of the two looks in millimetres.
    """
    measured = some_depths(depth)
    step = max(1, len(points) // _SOME_POINTS)
    z_rows = cameras.projections()[:, 2]  # (V, 4)
    z = points[::step].double() @ z_rows[:, :3].mT + z_rows[:, 3]  # (points, V)
    if batch is not None and cameras.sample is not None:
        z = z[batch[::step, None] == cameras.sample]
    z = z[z > 0]
    if not len(measured) or not len(z):
        return
    depth_m = float(measured.median())
    z_m = float(z.median())
    least, most = _THOUSAND
    if depth_m > LARGEST_DEPTH_M and least < depth_m / z_m < most:
        raise DataError(
            f"depth has the median {depth_m:.4g} where points lie at {z_m:.4g} m; it looks in "
            "millimetres: depth / 1000"
        )
    if z_m > LARGEST_DEPTH_M and least < z_m / depth_m < most:
        raise DataError(
            f"points lie at the median {z_m:.4g} before the cameras where depth is {depth_m:.4g} "
            "m; the points' or the poses' positions look in millimetres: divide them by 1000"
        )


def _samples(
    points: Tensor, cameras: Cameras, batch: Tensor | None
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Yield rows of points (None = all) and views that belong together."""
    if batch is None or cameras.sample is None:
        yield None, torch.arange(len(cameras), device=points.device)
        return
    for sample in sorted(set(cameras.sample.tolist())):
        rows = (batch == sample).nonzero()[:, 0]
        views = (cameras.sample == sample).nonzero()[:, 0]
        yield rows, views
