"""Pinhole cameras of a scene: intrinsics, poses and image size in one object that is checked when it is made."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import GridError, ShapeError
from dinoneck.points.checks import (
    check_depth,
    check_index,
    check_intrinsics,
    check_poses,
    checked,
    looks_swapped,
)
from dinoneck.text import counted

logger = logging.getLogger(__name__)

_OPENGL_AXES = [1.0, -1.0, -1.0, 1.0]  # y and z of OpenGL's cameras point the other way
_SOME_PX = 64  # pixels per side of which the depths are looked at
LARGEST_DEPTH_M = 100.0  # what depth cameras see at most; beyond it, numbers are likely millimetres


@dataclass(frozen=True, eq=False)
class Cameras:
    """V pinhole cameras that share an image size: where a point of the world lands in which image.

    OpenCV's conventions: camera axes x right, y down, z forward; metres; an **integer coordinate is
    a pixel's centre**, as K of every calibration has it (the rest of the library puts it at
    half-integers; ``Links.xy`` is that form). Poses lead from the camera to the world. Use
    :meth:`from_world_to_cam` for extrinsics, which lead the other way, and :meth:`from_opengl` for
    renderers and NeRF data; :func:`dinoneck.points.check_cameras` finds from points and depth which
    of them a data set needs.

    K belongs to the image of ``size``: follow every resize, crop and pad of the images with the
    method of that name, or features come from the wrong place. Lenses are taken as straight:
    undistort images before. All is kept in float64: a world may lie 500 km from its origin.

    Args:
        K: (V, 3, 3) intrinsics in pixels, [[fx, s, cx], [0, fy, cy], [0, 0, 1]].
        cam_to_world: (V, 4, 4) rigid poses in metres.
        size: (height, width) of the images in pixels.
        sample: int64 (V,) index of the sample of a batch that a view belongs to; None = one scene.

    Raises:
        ShapeError: for another shape or dtype.
        DataError: for a matrix that is not finite, no pinhole or not rigid; the message states its
            likely form.
        GridError: for an impossible size.

    Warns:
        UserWarning: if all principal points lie at half of the other side, as with
            ``size=(width, height)``. This is no error: the images of a crop away from the centre
            can have such a K.

    Examples:
        >>> K = torch.tensor([[[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]])
        >>> cameras = Cameras(K, torch.eye(4)[None], size=(480, 640))
        >>> uv, z = cameras.project(torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.0, 2.0]]))
        >>> uv.tolist(), z.tolist()
        ([[[319.5, 239.5], [444.5, 239.5]]], [[2.0, 2.0]])
        >>> cameras.resize((240, 320)).K[0, :, 2].tolist()
        [159.5, 119.5, 1.0]
    """

    K: Tensor
    cam_to_world: Tensor
    size: tuple[int, int]
    sample: Tensor | None = None
    # whether crop or pad moved the principal points, which may lie outside of the images then
    _is_moved: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        size = _pair("size", self.size)
        intrinsics = checked("K", self.K, 3)
        poses = checked("cam_to_world", self.cam_to_world, 4)
        views = len(intrinsics)
        if len(poses) != views:
            raise ShapeError(
                f"K has {counted(views, 'view')} and cam_to_world {len(poses)}; expected one pose per camera"
            )
        check_intrinsics(intrinsics, size)
        check_poses("cam_to_world", poses)
        if self.sample is not None:
            check_index("sample", self.sample, views)
        for name, value in {"size": size, "K": intrinsics, "cam_to_world": poses}.items():
            object.__setattr__(self, name, value)
        if looks_swapped(intrinsics, size):
            height, width = size
            warnings.warn(
                f"size is {size}, read as (height, width), but K has its principal point at (x, "
                f"y) = {tuple(round(x, 1) for x in intrinsics[0, :2, 2].tolist())}, half of "
                f"({height}, {width}): pass size={(width, height)} unless the images are crops "
                "away from the centre",
                stacklevel=3,
            )

    @classmethod
    def from_world_to_cam(
        cls, K: Tensor, world_to_cam: Tensor, size: Sequence[int], sample: Tensor | None = None
    ) -> Cameras:
        """Make cameras of extrinsics (V, 4, 4) that lead from the world to the camera (OpenCV, COLMAP, nuScenes)."""
        poses = checked("world_to_cam", world_to_cam, 4)
        check_poses("world_to_cam", poses)
        return cls(K, _inverse(poses), _pair("size", size), sample)

    @classmethod
    def from_opengl(
        cls, K: Tensor, cam_to_world: Tensor, size: Sequence[int], sample: Tensor | None = None
    ) -> Cameras:
        """Make cameras of poses (V, 4, 4) whose camera axes are x right, y up, z backward (OpenGL, Blender, NeRF)."""
        poses = checked("cam_to_world", cam_to_world, 4)
        return cls(K, poses * poses.new_tensor(_OPENGL_AXES), _pair("size", size), sample)

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Cameras:
        """Return the cameras at an integer, a slice, a list or a mask of views; the axis of views stays."""
        views = torch.arange(len(self), device=self.K.device)[index]
        if views.ndim == 0:
            views = views[None]
        sample = None if self.sample is None else self.sample[views]
        return self._with(K=self.K[views], cam_to_world=self.cam_to_world[views], sample=sample)

    def __repr__(self) -> str:
        samples = "" if self.sample is None else f", {len(set(self.sample.tolist()))} samples"
        return (
            f"Cameras({len(self)} views of {self.size[0]}x{self.size[1]} px{samples}, "
            f"{self.K.device})"
        )

    @property
    def world_to_cam(self) -> Tensor:
        """(V, 4, 4), the inverse of ``cam_to_world``."""
        return _inverse(self.cam_to_world)

    @property
    def positions(self) -> Tensor:
        """(V, 3), where the cameras stand, in metres."""
        return self.cam_to_world[:, :3, 3]

    def to(self, device: torch.device | str) -> Cameras:
        """Return the cameras on a device."""
        sample = None if self.sample is None else self.sample.to(device)
        return self._with(
            K=self.K.to(device), cam_to_world=self.cam_to_world.to(device), sample=sample
        )

    def resize(self, size: Sequence[int]) -> Cameras:
        """Follow images that were resized to ``size``: fx' = fx s and cx' = (cx + 0.5) s - 0.5, s of each axis its own.

        Every common resize (``align_corners=False``) keeps the image's outer edges, hence the half
        pixels.
        """
        height, width = _pair("size", size)
        scale = self.K.new_tensor([width / self.size[1], height / self.size[0], 1.0])
        half = self.K.new_tensor([0.5, 0.5, 0.0])
        intrinsics = self.K * scale[:, None]
        intrinsics[:, :, 2] = (self.K[:, :, 2] + half) * scale - half
        return self._with(K=intrinsics, size=(height, width))

    def crop(self, top: int, left: int, height: int, width: int) -> Cameras:
        """Follow images that were cropped to ``image[top : top + height, left : left + width]``.

        Raises:
            GridError: if the crop reaches beyond the image.
        """
        fits_down = top >= 0 and top + height <= self.size[0]
        fits_across = left >= 0 and left + width <= self.size[1]
        if not (fits_down and fits_across):
            raise GridError(
                f"a crop of {height}x{width} px from row {top}, column {left} reaches beyond the "
                f"image of {self.size[0]}x{self.size[1]} px; pad first"
            )
        return self._shift(-left, -top, (height, width))

    def pad(self, left: int, top: int, right: int, bottom: int) -> Cameras:
        """Follow images that were padded by so many pixels (the order of torchvision's ``pad``).

        Points that land in the padding count as in the image. Give depth, padded alike with 0, to
        keep them out.
        """
        height, width = self.size
        return self._shift(left, top, (height + top + bottom, width + left + right))

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project points (N, 3) m into every view: uv (V, N, 2) in pixels, z (V, N) in metres, float64.

        For a handful of points: nothing is tested, and uv means nothing where z <= 0 (it may be
        infinite). Clouds go through :class:`dinoneck.points.PointProjector`.
        """
        matrices = self.projections()
        seen = points.double() @ matrices[:, :, :3].mT + matrices[:, None, :, 3]
        return seen[..., :2] / seen[..., 2:], seen[..., 2]

    def projections(self) -> Tensor:
        """Return K [R | t], (V, 3, 4): the third row gives z in metres."""
        return self.K @ self.world_to_cam[:, :3]

    def unproject(self, depth: Tensor) -> Tensor:
        """Return where pixels of depth (V, h, w) m lie in the world, (V, h, w, 3); NaN where depth is unknown.

        Depth is along z (not along the ray), of any size that shows the same field of view; unknown
        is what is not finite or not above 0. ``world[world.isfinite().all(-1)]`` is the cloud.
        Depth beyond 100 m is logged: a cloud made of millimetres agrees with its own depth, and
        nothing later can tell.
        """
        check_depth(depth, len(self), self.size)
        median = looks_like_millimetres(depth)
        if median is not None:
            logger.warning(
                "depth has the median %.4g m; if these are millimetres, unproject(depth / 1000)",
                median,
            )
        rows, cols = depth.shape[1:]
        intrinsics = self.resize((rows, cols)).K
        v, u = torch.meshgrid(
            torch.arange(rows, dtype=torch.float64, device=depth.device),
            torch.arange(cols, dtype=torch.float64, device=depth.device),
            indexing="ij",
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3)
        rays = pixels @ torch.linalg.inv(intrinsics).mT
        z = depth.double().reshape(len(self), -1, 1)
        z = z.where(z.isfinite() & (z > 0), torch.nan)
        world: Tensor = (rays * z) @ self.cam_to_world[:, :3, :3].mT + self.positions[:, None]
        return world.reshape(len(self), rows, cols, 3)

    def _shift(self, right: int, down: int, size: tuple[int, int]) -> Cameras:
        intrinsics = self.K.clone()
        intrinsics[:, 0, 2] += right
        intrinsics[:, 1, 2] += down
        return self._with(K=intrinsics, size=_pair("size", size), _is_moved=True)

    def _with(self, **parts: Any) -> Cameras:
        """Return these cameras with other parts, which are right if these are: nothing is checked again."""
        cameras = copy.copy(self)
        vars(cameras).update(parts)
        return cameras


def some_depths(depth: Tensor) -> Tensor:
    """Return known values, float64 (L,), of depth (V, rows, cols) at some 64 by 64 pixels of each view."""
    row_step = max(1, depth.shape[1] // _SOME_PX)
    col_step = max(1, depth.shape[2] // _SOME_PX)
    sparse = depth[:, ::row_step, ::col_step]
    return sparse[sparse.isfinite() & (sparse > 0)].double()


def looks_like_millimetres(depth: Tensor) -> float | None:
    """Return the median of depth (V, rows, cols) if it is beyond what depth cameras see, from some of the pixels."""
    measured = some_depths(depth)
    median = float(measured.median()) if len(measured) else 0.0
    return median if median > LARGEST_DEPTH_M else None


def are_moved(cameras: Cameras) -> bool:
    """Whether ``crop`` or ``pad`` moved the principal points, which may lie outside of the images then."""
    return cameras._is_moved


def _inverse(poses: Tensor) -> Tensor:
    """Invert rigid poses, as they are: rounded ones are not made orthonormal."""
    inverse: Tensor = torch.linalg.inv(poses)
    inverse[:, 3] = inverse.new_tensor([0.0, 0.0, 0.0, 1.0])
    return inverse


def _pair(name: str, size: Any) -> tuple[int, int]:
    """A checked (height, width)."""
    sides: tuple[Any, ...] = ()
    if isinstance(size, Sequence) and not isinstance(size, str):
        sides = tuple(size)
    if len(sides) != 2 or not all(_is_pixels(side) for side in sides):
        raise GridError(f"{name} is {size!r}; expected (height, width) in whole pixels, at least 1")
    return int(sides[0]), int(sides[1])


def _is_pixels(side: Any) -> bool:
    if isinstance(side, bool) or not isinstance(side, Integral):
        return False
    return int(side) >= 1
