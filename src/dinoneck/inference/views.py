"""Views of an image (test-time augmentation), and the mean over them of what a head gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.heads.outputs import HeadOutputs
from dinoneck.images.recipe import Placement
from dinoneck.images.views import Views
from dinoneck.tasks import Task, unit_vectors
from dinoneck.tokens import Tokens

VIEWS = {"none": Views.named("none"), "flip4": Views.named("flips4"), "d6": Views.named("d6")}
"""The views behind each value of ``tta``: none, the four flips, and those with both quarter turns."""


class ViewBatch(NamedTuple):
    """A batch of images under some views, as the backbone gives it: all images under one view, then the next.

    Attributes:
        views: indices of the views, which have one size.
        tokens: (views * B, P + N, C) per layer.
        placements: where each of the B upright images lies on its canvas, which may be padded;
            None: no image is padded.
    """

    views: list[int]
    tokens: Tokens
    placements: Sequence[Placement] | None


class MembersOfView(NamedTuple):
    """The raw outputs of the members of an ensemble for images under one view; maps lie as the view does.

    Attributes:
        view: index of the view.
        outputs: of every member, in normalised units, see :meth:`dinoneck.HeadEnsemble.member_outputs`.
    """

    view: int
    outputs: list[dict[str, Tensor]]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> MembersOfView:
        """Return the outputs with a function applied to every tensor, always in the same order."""
        mapped = []
        for member in self.outputs:
            mapped.append({name: function(tensor) for name, tensor in member.items()})
        return MembersOfView(view=self.view, outputs=mapped)

    def of_image(self, i: int) -> MembersOfView:
        """Return the outputs for one image, as a batch of one."""
        return self.map_tensors(lambda tensor: tensor[i : i + 1])


@dataclass(frozen=True)
class AveragedOutputs:
    """What a head gives for a batch of images, averaged over views.

    Attributes:
        mean: values, upright maps and the gate; maps have values too, the means over the cells that
            show the image, but for those of surface normals.
        raw_outputs: those of every view, which have no mean, for heads that resample them to the
            pixels of the image before they are maps; empty for others.
    """

    mean: HeadOutputs
    raw_outputs: list[MembersOfView] = field(default_factory=list)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> AveragedOutputs:
        """Return the outputs with a function applied to every tensor, always in the same order."""
        mean = self.mean.map_tensors(function)
        raw_outputs = [of_view.map_tensors(function) for of_view in self.raw_outputs]
        return AveragedOutputs(mean=mean, raw_outputs=raw_outputs)


class ViewAverage:
    """The mean over the views of a batch of images of what a head gives for each view.

    Args:
        tasks: what the head predicts.
        views: all views.
        with_maps: whether maps, the gate and the raw outputs are kept; without them, maps are
            dropped as soon as their means are taken.
    """

    def __init__(self, *, tasks: Sequence[Task], views: Views, with_maps: bool) -> None:
        self._tasks = tasks
        self._vector_names = {task.name for task in tasks if task.is_unit}
        self._views = views
        self._with_maps = with_maps
        self._values: dict[str, list[Tensor]] = defaultdict(list)  # one (B, dim) per view
        self._maps: dict[str, list[Tensor]] = defaultdict(list)  # one (B, dim, rows, cols) per view
        self._shown_maps: dict[str, list[Tensor]] | None = (
            None  # as maps, of HeadOutputs.shown_maps
        )
        self._gates: list[Tensor] = []  # one (B, rows, cols) per view
        self._raw_outputs: list[MembersOfView] = []

    def add(self, outputs: HeadOutputs, batch: ViewBatch) -> None:
        """Take the outputs for a batch of views."""
        num_views = len(batch.views)
        for task in self._tasks:
            if task.is_unit:
                continue
            if task.is_map:
                # padding lies as the view does, so the mean is taken before the map is upright
                maps = outputs.maps[task.name]
                value = _mean_of_cells(maps, self._shown_cells(maps, batch))
                self._values[task.name] += value.chunk(num_views)
            elif task.name in outputs.values:
                self._values[task.name] += outputs.values[task.name].chunk(num_views)
        if not self._with_maps:
            return
        for name, cells in outputs.maps.items():
            self._maps[name] += self._upright_maps(name, cells, batch.views)
        if outputs.shown_maps is not None:
            if self._shown_maps is None:
                self._shown_maps = defaultdict(list)
            for name, cells in outputs.shown_maps.items():
                self._shown_maps[name] += self._upright_maps(name, cells, batch.views)
        if outputs.gate is not None:
            self._gates += self._upright(outputs.gate, batch.views)
        if outputs.raw_outputs:
            self._raw_outputs += _split_by_view(outputs.raw_outputs, batch.views)

    def mean(self) -> AveragedOutputs:
        """Return the means over the views."""
        shown_maps = None
        if self._shown_maps is not None:
            shown_maps = self._mean_maps(self._shown_maps)
        mean = HeadOutputs(
            values={name: _mean_of_views(values) for name, values in self._values.items()},
            maps=self._mean_maps(self._maps),
            shown_maps=shown_maps,
            gate=_mean_of_views(self._gates) if self._gates else None,
        )
        return AveragedOutputs(mean=mean, raw_outputs=self._raw_outputs)

    def _shown_cells(self, maps: Tensor, batch: ViewBatch) -> Tensor:
        """(views * B, 1, rows, cols), 1 where a cell of maps shows any pixel of its image, 0 in padding."""
        rows, cols = maps.shape[-2:]
        if batch.placements is None:
            return maps.new_ones(len(maps), 1, rows, cols)
        if swaps_sides(self._views, batch.views[0]):
            rows, cols = cols, rows
        upright = maps.new_zeros(len(batch.placements), 1, rows, cols)
        for cells, placement in zip(upright, batch.placements, strict=True):
            shown_rows, shown_cols = placement.shown_cells((rows, cols))
            cells[:, shown_rows, shown_cols] = 1.0
        return torch.cat([self._views.place(upright, view) for view in batch.views])

    def _mean_maps(self, maps_of_views: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The means over the views; those of surface normals have the length 1."""
        means = {}
        for name, maps in maps_of_views.items():
            mean = _mean_of_views(maps)
            means[name] = unit_vectors(mean) if name in self._vector_names else mean
        return means

    def _upright_maps(self, name: str, cells: Tensor, views: Sequence[int]) -> list[Tensor]:
        """The maps (views * B, dim, rows, cols) of a task as one upright batch per view."""
        if name not in self._vector_names:
            return self._upright(cells, views)
        parts = cells.chunk(len(views))
        return [
            self._views.undo_vectors(part, view) for part, view in zip(parts, views, strict=True)
        ]

    def _upright(self, cells: Tensor, views: Sequence[int]) -> list[Tensor]:
        """Maps (views * B, ..., rows, cols) as one upright batch per view."""
        parts = cells.chunk(len(views))
        return [self._views.undo(part, view) for part, view in zip(parts, views, strict=True)]


def swaps_sides(views: Views, view: int) -> bool:
    """Return whether a view is the image turned by a quarter."""
    return views.views[view].turns % 2 == 1


def views_that_swap_alike(views: Views) -> Iterator[list[int]]:
    """Yield neighbouring views that are one batch: all keep the sides of an image, or all swap them.

    Views of square images are apart too, although they have one size.
    """
    for _, group in groupby(range(len(views)), key=lambda view: swaps_sides(views, view)):
        yield list(group)


def _split_by_view(
    raw_outputs: Sequence[dict[str, Tensor]], views: Sequence[int]
) -> list[MembersOfView]:
    """The raw outputs of members, (views * B, ...), apart by views."""
    by_view = [MembersOfView(view=view, outputs=[]) for view in views]
    for outputs in raw_outputs:
        parts = {name: tensor.chunk(len(views)) for name, tensor in outputs.items()}
        for i, of_view in enumerate(by_view):
            of_view.outputs.append({name: chunks[i] for name, chunks in parts.items()})
    return by_view


def _mean_of_views(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(dim=0)


def _mean_of_cells(maps: Tensor, shown: Tensor) -> Tensor:
    """(B, dim): means of maps (B, dim, rows, cols) over the cells where shown (B, 1, rows, cols) is 1."""
    return (maps * shown).sum(dim=(2, 3)) / shown.sum(dim=(2, 3))
