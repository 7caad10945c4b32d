"""Whether poses are read the right way, told from points and measured depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.cameras import Cameras, looks_like_millimetres
from dinoneck.points.projection import Links, PointProjector, check_cloud, check_units
from dinoneck.points.tensors import check_tensor

Reading = Literal["camera_to_world", "inverse", "opengl", "transposed"]
READINGS: tuple[Reading, ...] = get_args(Reading)

_REMEDIES: dict[Reading, str] = {
    "camera_to_world": "the poses are read the right way",
    "inverse": "the poses lead from the world to the camera: Cameras.from_world_to_cam",
    "opengl": "the camera axes are x right, y up, z backward: Cameras.from_opengl",
    "transposed": "the rotations are transposed: pose[:, :3, :3].mT, with the positions as they are",
}
_NOTHING = (
    "no reading fits: look at the units (metres), at K and the image size it belongs to, and at the world's frame"
)
_APART = (
    "nothing can be told: under no reading does a point lie in any image. Without points, give views of one sample "
    "that overlap; with them, look at the units (metres), at K and at the world's frame"
)
_LEAST_SHARE = 0.1  # of the most pairs any reading finds: a few lucky pixels do not make a reading right
FITS = 0.1  # neighbouring views of real scans agree by 0.4 or more, wrong readings by 0.1 or less
CLEAR = 1.6
_THOUSANDFOLD = 300.0  # depth over the way of the camera: of a scan at most some tens


@dataclass(frozen=True)
class CameraCheck:
    """How well each reading of the poses fits the depth; ``str`` says which one does and what to do.

    Attributes:
        scores: reading -> share of projected pixels, of known depth, where depth agrees with the point; 0 to 1.
        in_bounds: reading -> share of pairs that land in an image, for comparison: it misleads, a wrong reading often
            has the higher one.
    """

    scores: Mapping[Reading, float]
    in_bounds: Mapping[Reading, float]

    @property
    def best(self) -> Reading:
        """The reading of the highest score; ``camera_to_world`` is how the cameras given are read."""
        return max(READINGS, key=lambda reading: self.scores[reading])

    @property
    def clear(self) -> bool:
        """True if the best reading fits at all and no other comes near it."""
        rest = max(self.scores[reading] for reading in READINGS if reading != self.best)
        return self.scores[self.best] >= FITS and self.scores[self.best] >= CLEAR * rest

    def __str__(self) -> str:
        told = _REMEDIES[self.best] if self.scores[self.best] >= FITS else _NOTHING
        if not any(self.in_bounds.values()):
            told = _APART
        told = told if self.clear or told in (_NOTHING, _APART) else f"not clear, best: {told}"
        scores = ", ".join(f"{reading} {self.scores[reading]:.2f}" for reading in READINGS)
        return f"{told} (depth agrees: {scores})"


@torch.no_grad()
def check_cameras(
    points: Tensor | None,
    cameras: Cameras,
    depth: Tensor,
    batch: Tensor | None = None,
    *,
    max_points: int = 20_000,
    depth_abs: float = 0.05,
    depth_rel: float = 0.02,
    seed: int = 0,
) -> CameraCheck:
    """Try four readings of the poses on the data itself: as given, inverted, with OpenGL's axes, transposed.

    A pose that is read the wrong way is the commonest mistake of such pipelines and raises nothing: features come from
    arbitrary pixels, and a model trains on. Run this once per data set.

    Points must not come from the depth and poses under test: they agree with their own view under any reading, and
    lie in a wrong place where their own pose is read wrong. Take a scan, a mesh or a LiDAR sweep. Without one, None
    takes each view's depth to the other views, under each reading of both poses; it needs views that overlap.

    Args:
        points: float (N, 3) m, as for :class:`dinoneck.points.PointProjector`; None = each view's own depth.
        cameras: V views.
        depth: (V, rows, cols) m along z.
        batch: int64 (N,) where ``cameras.sample`` is set and points are given.
        max_points: points to try, of all views together, drawn with ``seed`` if there are more.
        depth_abs: agreement with depth, in metres.
        depth_rel: agreement with depth, as a share of z.
        seed: of the draw.

    Raises:
        ShapeError: if shapes, dtypes or devices do not fit.
        DataError: if points are not finite, or nothing fits and depth or points look in millimetres.
        ConfigError: for an option out of range.

    Examples:
        >>> K = torch.tensor([[[40.0, 0, 31.5], [0, 40, 23.5], [0, 0, 1]]])
        >>> pose = torch.eye(4).repeat(2, 1, 1)
        >>> pose[1, 0, 3] = 0.5
        >>> cameras = Cameras(K.repeat(2, 1, 1), pose, size=(48, 64))
        >>> slope = torch.linspace(1, 3, 64).repeat(1, 48, 1)
        >>> cloud = cameras[0].unproject(slope).reshape(-1, 3)
        >>> flipped = Cameras.from_opengl(cameras.K, pose, size=(48, 64))
        >>> check_cameras(cloud, flipped[0], slope).best
        'opengl'
        >>> wall = torch.full((2, 48, 64), 2.0)
        >>> check_cameras(None, cameras, wall).scores["camera_to_world"]
        1.0
    """
    if isinstance(max_points, bool) or not isinstance(max_points, Integral) or max_points < 1:
        raise ConfigError(f"max_points is {max_points!r}; expected a whole number, 1 or more")
    return _judged(
        points, cameras, depth, batch, max_points, PointProjector(depth_abs=depth_abs, depth_rel=depth_rel), seed
    )


def _judged(
    points: Tensor | None,
    cameras: Cameras,
    depth: Tensor,
    batch: Tensor | None,
    most: int,
    projector: PointProjector,
    seed: int,
) -> CameraCheck:
    """Do what :func:`check_cameras` says, with ``most`` points."""
    draw = torch.Generator().manual_seed(seed)
    if points is None:
        if batch is not None:
            raise ShapeError("batch is given without points; it says which sample each point is of")
        check_tensor("depth", depth)
        alone = replace(cameras, sample=None) if isinstance(cameras, Cameras) else cameras
        check_cloud(depth.new_zeros(0, 3, dtype=torch.float64), alone, depth, None)
        _check_own_units(cameras, depth)
        own = _own_points(cameras, depth, most, draw)
        return _verdict({name: _between(own, read_as(cameras, name), depth, projector) for name in READINGS})
    check_cloud(points, cameras, depth, batch)
    _check_own_units(cameras, depth)
    if len(points) > most:
        rows = torch.randperm(len(points), generator=draw)[:most].to(points.device)
        points, batch = points[rows], None if batch is None else batch[rows]
    check = _verdict({name: _total(projector.link(points, read_as(cameras, name), depth, batch)) for name in READINGS})
    if check.scores[check.best] < FITS:
        check_units(points, cameras, depth, batch)
    return check


def _check_own_units(cameras: Cameras, depth: Tensor) -> None:
    """Refuse depth in millimetres beside poses in metres: turned only, hardly moved, its views fit by half.

    Raises:
        DataError: naming both.
    """
    median, apart = looks_like_millimetres(depth), cameras.positions
    if median is None or len(cameras) < 2:
        return
    furthest = float((apart - apart[:1]).norm(dim=1).max())
    if median > _THOUSANDFOLD * furthest:
        raise DataError(
            f"depth has the median {median:.4g} where the cameras are at most {furthest:.4g} m apart; it looks in "
            "millimetres: depth / 1000"
        )


def _verdict(counts: Mapping[Reading, Tensor]) -> CameraCheck:
    """Return shares of counts (5,), see ``Links.counts``."""
    told = {reading: found.tolist() for reading, found in counts.items()}
    most = max(known for _, _, _, known, _ in told.values())
    return CameraCheck(
        scores={name: agree / max(known, _LEAST_SHARE * most, 1) for name, (_, _, _, known, agree) in told.items()},
        in_bounds={name: inside / max(offered, 1) for name, (offered, _, inside, _, _) in told.items()},
    )


def _total(links: Links) -> Tensor:
    return torch.zeros(5, dtype=torch.int64) if links.counts is None else links.counts.sum(0).cpu()


def _own_points(cameras: Cameras, depth: Tensor, most: int, draw: torch.Generator) -> list[Tensor]:
    """Return, per view, some points of its depth (N, 3) m on its own axes."""
    axes = torch.eye(4, dtype=torch.float64, device=cameras.K.device)
    found = []
    for view in range(len(cameras)):
        seen = replace(cameras[view], cam_to_world=axes[None]).unproject(depth[view : view + 1]).reshape(-1, 3)
        seen = seen[seen.isfinite().all(1)]
        rows = torch.randperm(len(seen), generator=draw)[: max(1, most // len(cameras))]
        found.append(seen[rows.to(seen.device)])
    return found


def _between(own: list[Tensor], cameras: Cameras, depth: Tensor, projector: PointProjector) -> Tensor:
    """Count what becomes of each view's points in the others of its sample."""
    counts, views = torch.zeros(5, dtype=torch.int64), torch.arange(len(cameras), device=cameras.K.device)
    alone = replace(cameras, sample=None)
    for view, seen in enumerate(own):
        others = views != view
        if cameras.sample is not None:
            others &= cameras.sample == cameras.sample[view]
        rows, pose = others.nonzero()[:, 0], cameras.cam_to_world[view]
        cloud = seen @ pose[:3, :3].mT + pose[:3, 3]
        counts += _total(projector.link(cloud, alone[rows], depth[rows], None))
    return counts


def read_as(cameras: Cameras, reading: Reading) -> Cameras:
    """Return the cameras with poses read another way; each reading undoes itself.

    Raises:
        ConfigError: for an unknown reading.
    """
    poses = cameras.cam_to_world
    if reading == "inverse":
        poses = cameras.world_to_cam
    elif reading == "opengl":
        poses = poses * poses.new_tensor([1.0, -1.0, -1.0, 1.0])
    elif reading == "transposed":
        poses = poses.clone()
        poses[:, :3, :3] = cameras.cam_to_world[:, :3, :3].mT
    elif reading != "camera_to_world":
        raise ConfigError(f"reading is {reading!r}; expected one of {', '.join(READINGS)}")
    return replace(cameras, cam_to_world=poses)
