"""Whether poses, depth and intrinsics fit each other, measured with points and depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dinoneck.checks import check_minimum
from dinoneck.errors import DataError, ShapeError
from dinoneck.points.cameras import Cameras, looks_like_millimetres
from dinoneck.points.checks import check_tensor
from dinoneck.points.projection import (
    AGREEING,
    KNOWN,
    Links,
    PointProjector,
    check_cloud,
    check_units,
)

Reading = Literal["camera_to_world", "inverse", "opengl", "transposed"]
READINGS: tuple[Reading, ...] = get_args(Reading)

_REMEDIES: dict[Reading, str] = {
    "camera_to_world": "the poses are read the right way",
    "inverse": "the poses lead from the world to the camera: Cameras.from_world_to_cam",
    "opengl": "the camera axes are x right, y up, z backward: Cameras.from_opengl",
    "transposed": "the rotations are transposed: pose[:, :3, :3].mT, with the positions as they are",
}
_NOTHING = (
    "no reading fits: look at the units (metres), at K and the image size it belongs to, at the "
    "world's frame, and whether the views overlap"
)
# of the most pairs any reading finds: a few lucky pixels do not make a reading right
_LEAST_SHARE = 0.1
FITS = 0.1  # neighbouring views of real scans agree by 0.4 or more, wrong readings by 0.1 or less
CLEAR = 1.6
# of the share that another scale reaches: real frames have it, f off by a tenth does not
_ENOUGH = 0.93
# factors nearer to 1 are calibration: some pairs of real frames gain a tenth by f x 0.98
_SAME = 0.05
# least share that a named factor reaches: of any data, the best of many factors agrees by some per
# cent
_NAMED = 0.2
# largest factor, steps up to it and down
_SCALES = {"depth": (5.0, 9), "focal length": (2.0, 4), "K": (2.0, 4)}
# of a search
_PAIRS = 20_000  # pairs of a point and a view that are tried
_SOURCES = 32  # views whose own depth is tried
_LEAST_PAIRS = 100  # fewer of known depth judge nothing
_MILLI_KILO = (0.001, 1000.0)  # factors between metres and millimetres
_THOUSANDFOLD = 300.0  # depth over the way of the camera: of a scan at most some tens


@dataclass(frozen=True)
class CameraCheck:
    """Which reading of the poses fits the depth best, and whether it fits; ``str`` names what to change.

    Attributes:
        scores: reading -> share of projected pixels, of known depth, where depth agrees with the
            point; 0 to 1.
        best: the reading that fits best, at the scale that fits best; ``camera_to_world`` is how
            the cameras given are read.
        factor: what to multiply, ``"depth"``, ``"focal length"`` or ``"K"`` (all of it: it belongs
            to images of another size), and by how much, where that reaches a clearly higher share;
            None where nothing does.
        reached: the share with the best factor.
    """

    scores: Mapping[Reading, float]
    best: Reading
    factor: tuple[str, float] | None = None
    reached: float = 0.0

    @property
    def share(self) -> float:
        """The share of the best reading, with depth and K as they are."""
        return self.scores[self.best]

    @property
    def fits(self) -> bool:
        """True if depth agrees under the best reading, and no other scale of depth or K reaches clearly more."""
        return self.share >= FITS and self.factor is None

    @property
    def clear(self) -> bool:
        """True if the best reading fits at all and no other comes near it."""
        rest = max(self.scores[reading] for reading in READINGS if reading != self.best)
        return self.scores[self.best] >= FITS and self.scores[self.best] >= CLEAR * rest

    def __str__(self) -> str:
        verdict = _REMEDIES[self.best] if self.factor or self.share >= FITS else _NOTHING
        if self.factor:
            name, value = self.factor
            verdict += (
                f", but depth or K does not fit: {self.share:.2f} of the pixels agree, {name} x "
                f"{value:.3g} gives {self.reached:.2f}"
            )
        elif not self.clear and verdict != _NOTHING:
            verdict = f"not clear, best: {verdict}"
        scores = ", ".join(f"{reading} {self.scores[reading]:.2f}" for reading in READINGS)
        return f"{verdict} (depth agrees: {scores})"


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
    """Try four readings of the poses on the data itself, and whether another scale of depth or K fits better.

    The readings: as given, inverted, with OpenGL's axes, transposed. The scales: depth x 0.2 to 5
    (and x 0.001, 1000), the focal length and K x 0.5 to 2. Cameras that hardly move leave the scale
    of depth open without a scan.

    A pose that is read the wrong way is the commonest mistake of such pipelines and raises nothing:
    features come from arbitrary pixels, and a model trains on. Run this once per data set.

    Points must not come from the depth and poses under test: they agree with their own view under
    any reading, and lie in a wrong place where their own pose is read wrong. Take a scan, a mesh or
    a LiDAR sweep. Without one, None takes each view's depth to the other views, under each reading
    of both poses; it needs views that overlap.

    Args:
        points: float (N, 3) m, as for :class:`dinoneck.points.PointProjector`; None = each view's
            own depth.
        cameras: V views.
        depth: (V, rows, cols) m along z.
        batch: int64 (N,) where ``cameras.sample`` is set and points are given.
        max_points: points to try, of all views together, drawn with ``seed`` if there are more.
        depth_abs: a point agrees with depth within ``max(depth_abs, depth_rel * z)``; metres. Raise
            both for a noisy sensor, as for :class:`dinoneck.points.PointProjector`.
        depth_rel: see there, a share of z.
        seed: of the draw.

    Raises:
        ShapeError: if shapes or dtypes do not fit.
        DataError: if points are not finite, or nothing fits and depth or points look in
            millimetres.
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
    check_minimum(1, max_points=max_points)
    projector = PointProjector(depth_abs=depth_abs, depth_rel=depth_rel)
    sample = _Sample(cameras, depth, projector)
    return _judged(sample, points, batch, max_points, torch.Generator().manual_seed(seed))


class _Agreement(NamedTuple):
    """How many projected points lie at pixels of known depth, and how many of these agree with it."""

    known: int
    agreeing: int


def _agreement(counts: Tensor) -> _Agreement:
    """The last two of the counts (5,) of ``Links.counts``."""
    return _Agreement(known=int(counts[KNOWN]), agreeing=int(counts[AGREEING]))


@dataclass(frozen=True)
class _Sample:
    """Points to try: a cloud (N, 3) m in the world, or ``own``, some of each view's depth on the view's axes."""

    cameras: Cameras
    depth: Tensor
    projector: PointProjector
    cloud: Tensor | None = None
    batch: Tensor | None = None
    own: tuple[Tensor, ...] = ()

    def thinned(self) -> _Sample:
        """Return as many of the points as a search takes."""
        views = max(1, len(self.cameras))
        if self.cloud is not None:
            rows = slice(max(_LEAST_PAIRS, _PAIRS // views))
            batch = None if self.batch is None else self.batch[rows]
            return replace(self, cloud=self.cloud[rows], batch=batch)
        step = math.ceil(views / _SOURCES)  # between the views whose points are taken
        count = max(1, _PAIRS * step // views**2)
        thinned = []
        for i, points in enumerate(self.own):
            thinned.append(points[:count] if i % step == 0 else points[:0])
        return replace(self, own=tuple(thinned))

    def counts(
        self, reading: Reading, scaled: str = "depth", factor: float = 1.0, rel: float = 0.0
    ) -> _Agreement:
        """Count the points that agree with depth, with something scaled, within at least ``rel``."""
        intrinsics = self.cameras.K.clone()
        poses = self.cameras.cam_to_world.clone()
        projector = replace(self.projector, depth_rel=max(self.projector.depth_rel, rel))
        if scaled == "depth":
            poses[:, :3, 3] /= factor  # instead of depth, the same up to the unit
        elif scaled == "focal length":
            intrinsics[:, :2, :2] *= factor
        else:
            intrinsics[:, :2] *= factor
            intrinsics[:, :2, 2] += (factor - 1) / 2
        scaled_cameras = replace(self.cameras, K=intrinsics, cam_to_world=poses)
        cameras = read_as(scaled_cameras, reading)
        if self.cloud is None:
            # to the points of the same pixels, at the same depth
            rays = torch.linalg.solve(intrinsics, self.cameras.K).mT
            view_points = [points @ ray for points, ray in zip(self.own, rays, strict=True)]
            return _agreement(_between(view_points, cameras, self.depth, projector))
        unit = factor if scaled == "depth" else 1.0
        projector = replace(
            projector, depth_abs=projector.depth_abs / unit, near=projector.near / unit
        )
        links = projector.link(self.cloud / unit, cameras, self.depth, self.batch)
        return _agreement(_total(links))


def _judged(
    sample: _Sample, points: Tensor | None, batch: Tensor | None, most: int, draw: torch.Generator
) -> CameraCheck:
    """Judge ``most`` of the points, or of the views' own depth."""
    cameras = sample.cameras
    depth = sample.depth
    if points is None:
        if batch is not None:
            raise ShapeError("batch is given without points; it is the sample of each point")
        check_tensor("depth", depth)
        alone = replace(cameras, sample=None) if isinstance(cameras, Cameras) else cameras
        check_cloud(depth.new_zeros(0, 3, dtype=torch.float64), alone, depth, None)
        _check_own_units(cameras, depth)
        return _verdict(replace(sample, own=_own_points(cameras, depth, most, draw)))
    check_cloud(points, cameras, depth, batch)
    _check_own_units(cameras, depth)
    rows = torch.randperm(len(points), generator=draw)[:most].to(points.device)
    points = points[rows]
    if batch is not None:
        batch = batch[rows]
    check = _verdict(replace(sample, cloud=points, batch=batch))
    if check.share < FITS:
        check_units(points, cameras, depth, batch)
    return check


def _check_own_units(cameras: Cameras, depth: Tensor) -> None:
    """Reject depth in millimetres with poses in metres: cameras that only turn would fit in half of the pixels.

    Raises:
        DataError: naming both.
    """
    median = looks_like_millimetres(depth)
    if median is None or len(cameras) < 2:
        return
    positions = cameras.positions
    furthest = float((positions - positions[:1]).norm(dim=1).max())
    if median > _THOUSANDFOLD * furthest:
        raise DataError(
            f"depth has the median {median:.4g} where the cameras are at most {furthest:.4g} m "
            "apart; it looks in millimetres: depth / 1000"
        )


def _verdict(sample: _Sample) -> CameraCheck:
    """Compare the readings, then scales under the best of them, or under all where none is clearly best."""
    counts = {reading: sample.counts(reading) for reading in READINGS}
    most = max(of_reading.known for of_reading in counts.values())
    scores: dict[Reading, float] = {}
    for reading, of_reading in counts.items():
        scores[reading] = of_reading.agreeing / max(of_reading.known, _LEAST_SHARE * most, 1)
    check = CameraCheck(scores, best=max(READINGS, key=lambda reading: scores[reading]))
    if most < _LEAST_PAIRS:
        return check
    thinned = sample.thinned()

    def share(reading: Reading, scaled: str, factor: float, rel: float) -> float:
        of_reading = thinned.counts(reading, scaled, factor, rel)
        return float(of_reading.agreeing / max(of_reading.known, _LEAST_PAIRS))

    peaks = []
    for reading in (check.best,) if check.clear else READINGS:
        for scaled, (largest, steps) in _SCALES.items():
            reached, factor = _peak(partial(share, reading, scaled), largest, steps)
            peaks.append((reached, factor, reading, scaled))
    reached, factor, best, scaled = max(peaks)
    is_calibration = abs(math.log(factor)) < _SAME
    if is_calibration or reached < _NAMED or share(best, scaled, 1.0, 0.0) >= _ENOUGH * reached:
        return replace(check, reached=reached)
    return replace(check, best=best, factor=(scaled, factor), reached=reached)


def _peak(
    share: Callable[[float, float], float], largest: float, steps: int
) -> tuple[float, float]:
    """Return the highest share and its factor: from wide steps and a wide tolerance to narrow ones."""
    step = math.log(largest) / steps
    factors = [math.exp(step * k) for k in range(-steps, steps + 1)]
    if largest > 2:
        factors += _MILLI_KILO
    for _ in range(3):
        best = max(factors, key=lambda factor: share(factor, step / 2))
        step /= 2
        factors = [best * math.exp(step * k) for k in (-1, 0, 1)]
    return max((share(factor, 0.0), factor) for factor in factors)


def _total(links: Links, views: Tensor | slice = slice(None)) -> Tensor:
    """The counts of the links (5,) over some of the views."""
    if links.counts is None:
        return torch.zeros(5, dtype=torch.int64)
    return links.counts[views].sum(0).cpu()


def _own_points(
    cameras: Cameras, depth: Tensor, most: int, draw: torch.Generator
) -> tuple[Tensor, ...]:
    """Return, per view, some points of its depth (N, 3) m on its own axes."""
    axes = torch.eye(4, dtype=torch.float64, device=cameras.K.device)
    view_points = []
    for view in range(len(cameras)):
        camera = replace(cameras[view], cam_to_world=axes[None])
        points = camera.unproject(depth[view : view + 1]).reshape(-1, 3)
        points = points[points.isfinite().all(1)]
        rows = torch.randperm(len(points), generator=draw)[: max(1, most // len(cameras))]
        view_points.append(points[rows.to(points.device)])
    return tuple(view_points)


def _between(
    view_points: list[Tensor], cameras: Cameras, depth: Tensor, projector: PointProjector
) -> Tensor:
    """Count what becomes of each view's points in the others of its sample."""
    counts = torch.zeros(5, dtype=torch.int64)
    one_scene = replace(cameras, sample=None)
    views = torch.arange(len(cameras), device=cameras.K.device)
    for view, points in enumerate(view_points):
        if not len(points):
            continue
        is_other = views != view
        if cameras.sample is not None:
            is_other &= cameras.sample == cameras.sample[view]
        pose = cameras.cam_to_world[view]
        world_points = points @ pose[:3, :3].mT + pose[:3, 3]
        links = projector.link(world_points, one_scene, depth, None)
        counts += _total(links, is_other)
    return counts


def read_as(cameras: Cameras, reading: Reading) -> Cameras:
    """Return the cameras with poses read another way; each reading undoes itself."""
    poses = cameras.cam_to_world
    if reading == "inverse":
        return replace(cameras, cam_to_world=cameras.world_to_cam)
    if reading == "opengl":
        return replace(cameras, cam_to_world=poses * poses.new_tensor([1.0, -1.0, -1.0, 1.0]))
    if reading == "transposed":
        rotated = torch.cat((poses[:, :3, :3].mT, poses[:, :3, 3:]), dim=2)
        return replace(cameras, cam_to_world=torch.cat((rotated, poses[:, 3:]), dim=1))
    return cameras
