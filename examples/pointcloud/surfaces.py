"""Painted boxes inside a box: the first surface along rays, and labels, colours and normals there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

SHELL = -1
_PLANE_AXES = torch.tensor([[1, 2], [0, 2], [0, 1]])  # axis of a face's normal -> axes in the face
_AMBIENT = 0.7  # light that reaches every surface; the rest comes from a lamp below the ceiling
_ROUNDING_M = 1e-9


@dataclass(frozen=True)
class Pattern:
    """How a surface is painted.

    Attributes:
        kind: ``plain`` (first colour), ``stripes`` and ``checks`` (of all colours in turn),
            ``grid`` (lines of the second colour on the first) or ``mosaic`` (squares of all
            colours, mixed).
        palette: float64 (K, 3), RGB in 0 ... 1.
        period: metres from one stripe, line or square to the next.
    """

    kind: Literal["plain", "stripes", "checks", "grid", "mosaic"]
    palette: Tensor
    period: float = 0.2

    def colours(self, plane: Tensor) -> Tensor:
        """Return (N, 3) at places (N, 2) of a face, in metres."""
        cell = (plane / self.period).floor().long()
        if self.kind == "plain":
            index = torch.zeros_like(cell[:, 0])
        elif self.kind == "stripes":
            index = cell[:, 0]
        elif self.kind == "checks":
            index = cell.sum(1)
        elif self.kind == "grid":
            index = ((plane / self.period - cell) < 0.25).any(1).long()
        else:
            # a hash of the square
            mixed = (cell[:, 0] * 73_856_093).bitwise_xor(cell[:, 1] * 19_349_663)
            index = mixed.bitwise_xor(mixed >> 13).mul(1_274_126_177) >> 16
        return self.palette[index % len(self.palette)]


@dataclass(frozen=True)
class Solid:
    """A box between two corners (3,) float64 m."""

    low: Tensor
    high: Tensor
    label: int
    pattern: Pattern

    def contains(self, points: Tensor) -> Tensor:
        """Return whether points (N, 3) lie in the box or on its faces; bool (N,)."""
        above_low = points >= self.low - _ROUNDING_M
        below_high = points <= self.high + _ROUNDING_M
        return (above_low & below_high).all(1)


@dataclass(frozen=True)
class Decal:
    """A rectangle painted on a face of the shell, without any height."""

    axis: int
    end: int
    low: Tensor
    high: Tensor
    label: int
    pattern: Pattern


@dataclass(frozen=True)
class SurfacePoints:
    """N points on surfaces.

    Attributes:
        xyz: float64 (N, 3), metres.
        axis: int64 (N,), of the face's normal.
        end: int64 (N,), 0: the face at the box's lower end of that axis, 1: at its upper end.
        solid: int64 (N,), index of the box, or ``SHELL``.
    """

    xyz: Tensor
    axis: Tensor
    end: Tensor
    solid: Tensor

    def __getitem__(self, index: Tensor) -> SurfacePoints:
        return SurfacePoints(self.xyz[index], self.axis[index], self.end[index], self.solid[index])

    def on_face(self, axis: int, end: int) -> Tensor:
        """Return which points are on a face of the shell; bool (N,)."""
        return (self.solid == SHELL) & (self.axis == axis) & (self.end == end)

    @property
    def normals(self) -> Tensor:
        """Float64 (N, 3), into the room."""
        # out of boxes, but into the shell: from its lower faces upwards
        sign = torch.where(self.solid == SHELL, 1.0, -1.0).double() * (1 - 2 * self.end)
        return torch.zeros_like(self.xyz).scatter_(1, self.axis[:, None], sign[:, None])


@dataclass(frozen=True)
class Interior:
    """A box seen from inside, painted face by face, with smaller boxes in it.

    Attributes:
        size: float64 (3,), metres; the lower corner is the origin.
        faces: (axis, end) -> label and pattern, all six.
        solids: boxes.
        decals: rectangles on the faces; a later one covers earlier ones.
    """

    size: Tensor
    faces: dict[tuple[int, int], tuple[int, Pattern]]
    solids: tuple[Solid, ...] = ()
    decals: tuple[Decal, ...] = ()

    @cached_property
    def lamp(self) -> Tensor:
        """The position of the light, (3,)."""
        return self.size * self.size.new_tensor([0.5, 0.5, 0.9])

    def trace(self, origin: Tensor, directions: Tensor) -> tuple[Tensor, SurfacePoints]:
        """Find the first surface along rays.

        Args:
            origin: (3,) inside the shell and outside of all boxes.
            directions: (N, 3) of any length, no component exactly 0.

        Returns:
            t (N,), and the points ``origin + t * direction``.
        """
        inverse = directions.reciprocal()
        # the shell is left through the face that lies ahead on its axis and comes first
        t_of_faces = torch.where(inverse > 0, (self.size - origin) * inverse, -origin * inverse)
        t, axis = t_of_faces.min(1)
        solid = torch.full_like(axis, SHELL)
        for index, box in enumerate(self.solids):
            # a box is entered when the ray is between its faces on all axes
            t_low = (box.low - origin) * inverse
            t_high = (box.high - origin) * inverse
            entry, entry_axis = torch.minimum(t_low, t_high).max(1)
            leave = torch.maximum(t_low, t_high).amin(1)
            hit = (entry <= leave) & (entry > 0) & (entry < t)
            t = torch.where(hit, entry, t)
            axis = torch.where(hit, entry_axis, axis)
            solid = torch.where(hit, index, solid)
        forward = directions.gather(1, axis[:, None]).squeeze(1) > 0
        end = (forward == (solid == SHELL)).long()  # rays leave the shell and enter boxes
        return t, SurfacePoints(origin + t[:, None] * directions, axis, end, solid)

    def paint(self, points: SurfacePoints) -> tuple[Tensor, Tensor]:
        """Return labels int64 (N,) and lit colours float64 (N, 3) in 0 ... 1."""
        plane = points.xyz.gather(1, _PLANE_AXES[points.axis])
        labels = torch.zeros_like(points.axis)
        colours = torch.zeros_like(points.xyz)

        def cover(covered: Tensor, label: int, pattern: Pattern) -> None:
            labels[covered] = label
            colours[covered] = pattern.colours(plane[covered])

        for (axis, end), (label, pattern) in self.faces.items():
            cover(points.on_face(axis, end), label, pattern)
        for index, box in enumerate(self.solids):
            cover(points.solid == index, box.label, box.pattern)
        for decal in self.decals:
            plane_axes = _PLANE_AXES[decal.axis]
            above_low = plane > decal.low[plane_axes]
            below_high = plane < decal.high[plane_axes]
            inside = (above_low & below_high).all(1)
            cover(points.on_face(decal.axis, decal.end) & inside, decal.label, decal.pattern)
        to_lamp = torch.nn.functional.normalize(self.lamp - points.xyz, dim=1)
        cosine = (to_lamp * points.normals).sum(1).clamp_min(0)
        light = _AMBIENT + (1 - _AMBIENT) * cosine
        return labels, colours * light[:, None]

    def scatter(self, number: int, generator: torch.Generator) -> SurfacePoints:
        """Draw points evenly over all surfaces, a few fewer than ``number``.

        Those that no camera could see are left out.
        """
        boxes = [torch.stack([torch.zeros_like(self.size), self.size])]
        boxes += [torch.stack([box.low, box.high]) for box in self.solids]
        # lower and upper corner of the faces x-, x+, y-, y+, z-, z+ of every box
        corners = torch.stack(boxes).repeat_interleave(6, 0)
        face = torch.arange(len(corners))
        axis = face % 6 // 2
        end = face % 2
        corners[face, 1 - end, axis] = corners[face, end, axis]
        low = corners[:, 0]
        extent = corners[:, 1] - low
        areas = extent.sort(1).values[:, 1:].prod(1)  # the smallest extent is 0

        drawn = torch.multinomial(areas, number, replacement=True, generator=generator)
        share = torch.rand(number, 3, dtype=torch.float64, generator=generator)
        solid = face.div(6, rounding_mode="floor") + SHELL
        xyz = low[drawn] + share * extent[drawn]
        points = SurfacePoints(xyz, axis[drawn], end[drawn], solid[drawn])
        return points[~self._is_covered(points)]

    def _is_covered(self, points: SurfacePoints) -> Tensor:
        """Return whether another box touches a point, or the point's own box the shell; bool (N,)."""
        on_shell = (points.xyz <= _ROUNDING_M) | (points.xyz >= self.size - _ROUNDING_M)
        covered = (points.solid != SHELL) & on_shell.any(1)
        for index, box in enumerate(self.solids):
            covered |= (points.solid != index) & box.contains(points.xyz)
        return covered
