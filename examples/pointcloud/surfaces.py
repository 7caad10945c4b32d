"""Painted boxes inside a box: the first surface along a ray, and label, colour and normal of any place on one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

SHELL = -1
_OTHERS = torch.tensor([[1, 2], [0, 2], [0, 1]])  # the two axes of a face, by its normal's
_AMBIENT = 0.7  # light that reaches every surface; the rest comes from a lamp below the ceiling


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
            turn = torch.zeros_like(cell[:, 0])
        elif self.kind == "stripes":
            turn = cell[:, 0]
        elif self.kind == "checks":
            turn = cell.sum(1)
        elif self.kind == "grid":
            turn = ((plane / self.period - cell) < 0.25).any(1).long()
        else:
            # a hash: no two squares alike
            mixed = (cell[:, 0] * 73_856_093).bitwise_xor(cell[:, 1] * 19_349_663)
            turn = mixed.bitwise_xor(mixed >> 13).mul(1_274_126_177) >> 16
        return self.palette[turn % len(self.palette)]


@dataclass(frozen=True)
class Solid:
    """A box between two corners (3,) float64 m."""

    low: Tensor
    high: Tensor
    label: int
    pattern: Pattern

    def holds(self, places: Tensor) -> Tensor:
        """Whether places (N, 3) lie in the box or on its faces; bool (N,)."""
        return ((places >= self.low - 1e-9) & (places <= self.high + 1e-9)).all(1)


@dataclass(frozen=True)
class Decal:
    """A rectangle painted on a face of the shell: nothing of it sticks out."""

    axis: int
    end: int
    low: Tensor
    high: Tensor
    label: int
    pattern: Pattern


@dataclass(frozen=True)
class Places:
    """N places on surfaces.

    Attributes:
        xyz: float64 (N, 3), metres.
        axis: int64 (N,), of the face's normal.
        end: int64 (N,), 0 = the face at the box's lower end of that axis, 1 = at its upper end.
        solid: int64 (N,), index of the box, or ``SHELL``.
    """

    xyz: Tensor
    axis: Tensor
    end: Tensor
    solid: Tensor

    def __getitem__(self, which: Tensor) -> Places:
        return Places(self.xyz[which], self.axis[which], self.end[which], self.solid[which])

    @property
    def normals(self) -> Tensor:
        """Float64 (N, 3), into the room."""
        outward = torch.where(self.solid == SHELL, 1.0, -1.0).double() * (1 - 2 * self.end)
        return torch.zeros_like(self.xyz).scatter_(1, self.axis[:, None], outward[:, None])


@dataclass(frozen=True)
class Interior:
    """A box seen from inside, painted face by face, with boxes standing in it.

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
        """Where the light comes from."""
        return self.size * self.size.new_tensor([0.5, 0.5, 0.9])

    def trace(self, origin: Tensor, directions: Tensor) -> tuple[Tensor, Places]:
        """Find the first surface along rays.

        Args:
            origin: (3,) inside the shell and outside of all boxes.
            directions: (N, 3) of any length, no component exactly 0.

        Returns:
            t (N,), where it is at ``origin + t * direction``, and these places.
        """
        inverse = directions.reciprocal()
        t, axis = torch.where(inverse > 0, (self.size - origin) * inverse, -origin * inverse).min(1)
        solid = torch.full_like(axis, SHELL)
        for index, box in enumerate(self.solids):
            first, second = (box.low - origin) * inverse, (box.high - origin) * inverse
            near, own = torch.minimum(first, second).max(1)
            hit = (near <= torch.maximum(first, second).amin(1)) & (near > 0) & (near < t)
            t, axis = torch.where(hit, near, t), torch.where(hit, own, axis)
            solid = torch.where(hit, index, solid)
        forward = directions.gather(1, axis[:, None]).squeeze(1) > 0
        end = (forward == (solid == SHELL)).long()  # rays leave the shell and enter boxes
        return t, Places(origin + t[:, None] * directions, axis, end, solid)

    def paint(self, places: Places) -> tuple[Tensor, Tensor]:
        """Return labels int64 (N,) and lit colours float64 (N, 3) in 0 ... 1."""
        plane = places.xyz.gather(1, _OTHERS[places.axis])
        labels, colours = torch.zeros_like(places.axis), torch.zeros_like(places.xyz)

        def cover(where: Tensor, label: int, pattern: Pattern) -> None:
            labels[where], colours[where] = label, pattern.colours(plane[where])

        for (axis, end), (label, pattern) in self.faces.items():
            cover(
                (places.solid == SHELL) & (places.axis == axis) & (places.end == end),
                label,
                pattern,
            )
        for index, box in enumerate(self.solids):
            cover(places.solid == index, box.label, box.pattern)
        for decal in self.decals:
            on = (places.solid == SHELL) & (places.axis == decal.axis) & (places.end == decal.end)
            a, b = _OTHERS[decal.axis].tolist()
            inside = (plane > decal.low[[a, b]]) & (plane < decal.high[[a, b]])
            cover(on & inside.all(1), decal.label, decal.pattern)
        towards = torch.nn.functional.normalize(self.lamp - places.xyz, dim=1)
        lit = _AMBIENT + (1 - _AMBIENT) * (towards * places.normals).sum(1).clamp_min(0)
        return labels, colours * lit[:, None]

    def scatter(self, number: int, generator: torch.Generator) -> Places:
        """Draw places evenly over all surfaces that can be seen from somewhere: a few fewer than ``number``."""
        shell = torch.stack([torch.zeros_like(self.size), self.size])
        boxes = torch.stack([shell, *(torch.stack([box.low, box.high]) for box in self.solids)])
        corners = boxes.repeat_interleave(6, 0)  # per box the faces x-, x+, y-, y+, z-, z+
        face = torch.arange(len(corners))
        axis, end = face % 6 // 2, face % 2
        corners[face, 1 - end, axis] = corners[face, end, axis]
        low, extent = corners[:, 0], corners[:, 1] - corners[:, 0]
        areas = extent.sort(1).values[:, 1:].prod(1)
        drawn = torch.multinomial(areas, number, replacement=True, generator=generator)
        share = torch.rand(number, 3, dtype=torch.float64, generator=generator)
        solid = face.div(6, rounding_mode="floor") + SHELL
        places = Places(low[drawn] + share * extent[drawn], axis[drawn], end[drawn], solid[drawn])
        return places[~self._covered(places)]

    def _covered(self, places: Places) -> Tensor:
        """Whether a box stands on the place, or the place is a box's own against the shell; bool (N,)."""
        own = places.solid != SHELL
        covered = own & ((places.xyz <= 1e-9) | (places.xyz >= self.size - 1e-9)).any(1)
        for index, box in enumerate(self.solids):
            covered |= (places.solid != index) & box.holds(places.xyz)
        return covered
