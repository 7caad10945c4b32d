"""Whether poses are read the right way, told from points and measured depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.points.cameras import Cameras
from dinoneck.points.projection import PointProjector, check_cloud, check_units

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
_LEAST_SHARE = 0.1  # of the most pairs any reading finds: a few lucky pixels do not make a reading right
FITS = 0.1  # neighbouring views of real scans agree by 0.4 or more, wrong readings by 0.1 or less
CLEAR = 1.6


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
        told = told if self.clear or told is _NOTHING else f"not clear, best: {told}"
        scores = ", ".join(f"{reading} {self.scores[reading]:.2f}" for reading in READINGS)
        return f"{told} (depth agrees: {scores})"


@torch.no_grad()
def check_cameras(
    points: Tensor,
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

    The points must not come from the very depth and poses under test (they would agree under any reading): take a
    scan, a mesh or a LiDAR sweep, or unproject one view and check the others.

    Args:
        points: float (N, 3) m, as for :class:`dinoneck.points.PointProjector`.
        cameras: V views.
        depth: (V, rows, cols) m along z.
        batch: int64 (N,) where ``cameras.sample`` is set.
        max_points: points to try, drawn with ``seed`` if there are more.
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
    """
    if isinstance(max_points, bool) or max_points < 1:
        raise ConfigError(f"max_points is {max_points!r}; expected 1 or more")
    check_cloud(points, cameras, depth, batch)
    if len(points) > max_points:
        draw = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:max_points].to(points.device)
        points, batch = points[draw], None if batch is None else batch[draw]
    check = _score(points, cameras, depth, batch, PointProjector(depth_abs=depth_abs, depth_rel=depth_rel))
    if check.scores[check.best] < FITS:
        check_units(points, cameras, depth, batch)
    return check


def _score(
    points: Tensor, cameras: Cameras, depth: Tensor, batch: Tensor | None, projector: PointProjector
) -> CameraCheck:
    """Project under every reading and compare what agrees."""
    counts = {}
    for reading, poses in _readings(cameras).items():
        links = projector.link(points, replace(cameras, cam_to_world=poses), depth, batch)
        counts[reading] = (torch.zeros(5) if links.counts is None else links.counts).sum(0).tolist()
    most = max(known for _, _, _, known, _ in counts.values())
    return CameraCheck(
        scores={name: agree / max(known, _LEAST_SHARE * most, 1) for name, (_, _, _, known, agree) in counts.items()},
        in_bounds={name: inside / max(offered, 1) for name, (offered, _, inside, _, _) in counts.items()},
    )


def _readings(cameras: Cameras) -> dict[Reading, Tensor]:
    """Return the poses (V, 4, 4) that each reading gives."""
    poses = cameras.cam_to_world
    transposed = poses.clone()
    transposed[:, :3, :3] = poses[:, :3, :3].mT
    return {
        "camera_to_world": poses,
        "inverse": cameras.world_to_cam,
        "opengl": poses * poses.new_tensor([1.0, -1.0, -1.0, 1.0]),
        "transposed": transposed,
    }
