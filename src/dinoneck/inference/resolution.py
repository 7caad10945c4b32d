"""Maps and objects at the resolution of the image: from cells of the prepared image to its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.recipe import Size
from dinoneck.data.views import Views
from dinoneck.grid import patch_pair
from dinoneck.heads.head import Head
from dinoneck.inference.views import MembersOfView
from dinoneck.runtime.maps import UNSEEN
from dinoneck.task_facts import TaskFacts
from dinoneck.tasks import Task, unit_vectors
from dinoneck.tokens import Tokens

if TYPE_CHECKING:
    from dinoneck.heads.ensemble import HeadEnsemble

Array = np.ndarray[Any, Any]

_NUMBERS_PER_STRIP = 1 << 24  # 64 MiB of float32
# assumed channels of the raw outputs that a head resamples: only a head knows which of its outputs
# are maps, and mask heads have 100 to 200 queries. More channels only take more memory for a strip.
_ASSUMED_CHANNELS = 256


class _Axis(NamedTuple):
    """Where the pixels of one side of an image lie between the cells of a map.

    Attributes:
        below: index of the cell whose centre lies before the pixel's.
        above: that of the next one; at the border the same.
        share: weight of the cell above, 0 ... 1.
        seen: whether the prepared image shows the pixel, up to the remainder of a patch.
    """

    below: Tensor
    above: Tensor
    share: Tensor
    seen: Tensor

    @classmethod
    def of(
        cls,
        *,
        pixels: int,
        cells: int,
        shown_cells: slice,
        resized: int,
        canvas: int,
        corner: int,
        patch: int,
    ) -> _Axis:
        """Place the pixels of one side.

        Args:
            pixels: of the result.
            cells: of the map, which divide the canvas.
            shown_cells: those that show any pixel of the image.
            resized: pixels of the image on the canvas.
            canvas: pixels of the prepared image.
            corner: where the image begins on the canvas; below 0 if it is cropped.
            patch: pixels of a patch.
        """
        centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * resized / pixels + corner
        seen = (centres > -patch) & (centres < canvas + patch)
        last_cell = shown_cells.stop - 1
        position = (centres * cells / canvas - 0.5).clamp(shown_cells.start, last_cell)
        below = position.floor().long()
        return cls(
            below=below,
            above=(below + 1).clamp_max(last_cell),
            share=(position - below).float(),
            seen=seen,
        )

    def part(self, begin: int, end: int) -> _Axis:
        """Return some of the pixels."""
        return _Axis(
            below=self.below[begin:end],
            above=self.above[begin:end],
            share=self.share[begin:end],
            seen=self.seen[begin:end],
        )


class PixelGrid(NamedTuple):
    """The pixels of an image, or of a strip of it, between the cells of a map."""

    rows: _Axis
    cols: _Axis

    @classmethod
    def of(
        cls, *, pixels: Size, cells: Sequence[int], size: Size, preprocess: Preprocessing
    ) -> PixelGrid:
        """Place the pixels of an image on a map.

        Args:
            pixels: (height, width) of the result.
            cells: (rows, cols) of the map.
            size: (height, width) of the upright image.
            preprocess: how the image was prepared.
        """
        placement = preprocess.placement(size)
        shown_cells = placement.shown_cells(cells)
        patch = patch_pair(preprocess.patch_size)
        axes = []
        for side in range(2):
            axis = _Axis.of(
                pixels=pixels[side],
                cells=cells[side],
                shown_cells=shown_cells[side],
                resized=placement.resized[side],
                canvas=placement.canvas[side],
                corner=placement.corner[side],
                patch=patch[side],
            )
            axes.append(axis)
        rows, cols = axes
        return cls(rows=rows, cols=cols)

    @property
    def unseen(self) -> Tensor:
        """Which pixels (height, width) lie a patch or more beyond what the prepared image shows."""
        return ~(self.rows.seen[:, None] & self.cols.seen)

    def strips(self, channels: int) -> Iterator[PixelGrid]:
        """Yield the image in strips of rows, so that maps of many channels need little memory."""
        height = len(self.rows.share)
        width = len(self.cols.share)
        rows_per_strip = max(1, _NUMBERS_PER_STRIP // (channels * width))
        for begin in range(0, height, rows_per_strip):
            yield PixelGrid(rows=self.rows.part(begin, begin + rows_per_strip), cols=self.cols)

    def sample(self, maps: Tensor) -> Tensor:
        """Return maps (..., rows, cols) at the pixels, (..., height, width), bilinearly."""
        upper = maps[..., self.rows.below, :]
        lower = maps[..., self.rows.above, :]
        lines = upper.lerp(lower, self.rows.share[:, None])
        left = lines[..., self.cols.below]
        right = lines[..., self.cols.above]
        return left.lerp(right, self.cols.share)


def at_image_size(
    cells: Array,
    task: TaskFacts,
    size: Size,
    preprocess: Preprocessing,
    probabilities: bool = False,
    pixels: Size | None = None,
) -> Array:
    """Resample a map from the cells of the prepared image to the pixels of the image, bilinearly.

    Cells that show padding alone are left out. Classes are resampled as logarithms of their
    probabilities, which for one head and one view are its logits, before the most probable one is
    taken. The pixels of a ``density`` map that adds up have the sum of its cells.
    Surface normals have the length 1 in every pixel.

    Args:
        cells: (dim, rows, cols) in original units, as ``Predictor`` gives them per patch.
        task: whose map it is.
        size: (height, width) of the upright image.
        preprocess: how the image was prepared.
        probabilities: return those of the classes of a segmentation, not the most probable class.
        pixels: (height, width) of the result; None = the image's.

    Returns:
        (dim, height, width) float32; for a segmentation (height, width) int64, class indices.
        Pixels that the prepared image does not show are NaN, or :data:`UNSEEN`; those up to one
        patch beyond what it shows have the value of the nearest cell.
    """
    values = torch.from_numpy(np.ascontiguousarray(cells, np.float32))
    is_classes = task.kind == "segmentation"
    grid = PixelGrid.of(
        pixels=pixels or size, cells=values.shape[1:], size=size, preprocess=preprocess
    )
    logits = values.clamp_min(torch.finfo(torch.float32).tiny).log() if is_classes else values

    def sample(strip: PixelGrid) -> Tensor:
        sampled = strip.sample(logits)
        if is_classes and probabilities:
            return sampled.softmax(dim=0)
        return sampled

    takes_classes = is_classes and not probabilities
    sampled = _sample_in_strips(grid, sample, channels=len(values), takes_classes=takes_classes)
    if task.kind == "density" and task.aggregate == "sum":
        sampled_total = float(sampled.masked_fill(grid.unseen, 0.0).double().sum())
        total = float(values.double().sum())
        sampled *= total / sampled_total if sampled_total else 0.0
    if task.is_unit:
        sampled = unit_vectors(sampled)
    return _without_unseen(sampled, grid)


def members_at_image_size(
    head: Head,
    members: Sequence[MembersOfView],
    views: Views,
    *,
    cells: Sequence[int],
    task: Task,
    size: Size,
    preprocess: Preprocessing,
    probabilities: bool = False,
) -> Array:
    """Make the map of an image of outputs that are resampled before they are a map, such as masks.

    Args:
        head: an ensemble whose members replace :meth:`dinoneck.heads.Head.at_size`.
        members: their outputs for the image under every view.
        views: the views.
        cells: (rows, cols) of the upright outputs.
        task: whose map it is.
        size: (height, width) of the upright image.
        preprocess: how the image was prepared.
        probabilities: return those of the classes of a segmentation, not the most probable class.

    Returns:
        As :func:`at_image_size`.
    """
    ensemble = cast("HeadEnsemble", head)
    grid = PixelGrid.of(pixels=size, cells=cells, size=size, preprocess=preprocess)
    upright = _upright_members(ensemble, members, views, size)

    def sample(strip: PixelGrid) -> Tensor:
        maps = ensemble.maps_at_size(
            upright, size, resample=lambda maps_of_views, _: strip.sample(maps_of_views)
        )
        return maps[task.name].mean(dim=0)  # over the views

    sampled = _sample_in_strips(
        grid,
        sample,
        channels=_ASSUMED_CHANNELS,
        takes_classes=task.kind == "segmentation" and not probabilities,
    )
    return _without_unseen(sampled, grid)


def _upright_members(
    ensemble: HeadEnsemble, members: Sequence[MembersOfView], views: Views, size: Size
) -> list[dict[str, Tensor]]:
    """The outputs of every member, a batch of all views whose maps are upright.

    Only a head knows which of its outputs are maps: those that its ``at_size`` resamples.
    """
    by_view = []
    for of_view in members:
        undo = _Undo(views, of_view.view)
        by_view.append(ensemble.members_at_size(of_view.outputs, size, undo))
    upright = []
    for outputs_by_view in zip(*by_view, strict=True):  # of one member
        batch = {}
        for name in outputs_by_view[0]:
            batch[name] = torch.cat([outputs[name] for outputs in outputs_by_view])
        upright.append(batch)
    return upright


@dataclass(frozen=True)
class _Undo:
    """Turns maps that lie as a view does upright, in the place of a change of size."""

    views: Views
    view: int

    def __call__(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return the maps (..., rows, cols) upright; the size is ignored."""
        return self.views.undo(maps, self.view)


def _sample_in_strips(
    grid: PixelGrid,
    sample: Callable[[PixelGrid], Tensor],
    *,
    channels: int,
    takes_classes: bool,
) -> Tensor:
    """The values (dim, height, width) of all pixels, or their largest channels (height, width).

    Args:
        grid: the pixels.
        sample: gives the values (dim, rows of the strip, width) of a strip.
        channels: of the maps that are sampled, which limit the rows of a strip.
        takes_classes: whether the largest channels are returned.
    """
    strips = []
    for strip in grid.strips(channels):
        values = sample(strip)
        if takes_classes:
            values = values.argmax(dim=0)
        strips.append(values)
    return torch.cat(strips, dim=-2)


def _without_unseen(sampled: Tensor, grid: PixelGrid) -> Array:
    """The values as an array, NaN or :data:`UNSEEN` where the prepared image shows nothing."""
    nothing = float("nan") if sampled.is_floating_point() else UNSEEN
    return sampled.masked_fill_(grid.unseen, nothing).numpy()


class _Canvas(NamedTuple):
    """The prepared image, scaled to the pixels of the image.

    Attributes:
        size: (height, width).
        padding: what the canvas lacks of the image on the left, right, top and bottom, as ``F.pad``
            takes it; below 0 where the canvas reaches beyond the image.
    """

    size: Size
    padding: tuple[int, int, int, int]

    @classmethod
    def of(cls, size: Size, preprocess: Preprocessing) -> _Canvas:
        """Place an image of (height, width) pixels on its canvas."""
        placement = preprocess.placement(size)
        row_scale = size[0] / placement.resized[0]
        col_scale = size[1] / placement.resized[1]
        height = round(placement.canvas[0] * row_scale)
        width = round(placement.canvas[1] * col_scale)
        top = round(placement.corner[0] * row_scale)
        left = round(placement.corner[1] * col_scale)
        padding = (-left, left + size[1] - width, -top, top + size[0] - height)
        return cls(size=(height, width), padding=padding)


def objects_at_image_size(
    head: Any,
    tokens: Tokens,
    task: Task,
    size: Size,
    preprocess: Preprocessing,
    min_score: float | None = None,
) -> Any:
    """Return the objects of an image in its own pixels.

    Args:
        head: with ``predict_instances`` or ``predict_panoptic``.
        tokens: of the prepared image.
        task: instances or panoptic.
        size: (height, width) of the upright image.
        preprocess: how the image was prepared.
        min_score: leave out objects of a lower score; None = as recorded in the head.

    Returns:
        What these methods return, as arrays; objects that lie in padding alone are left out.
    """
    canvas = _Canvas.of(size, preprocess)
    if task.kind == "panoptic":
        [(segments, segment_infos)] = head.predict_panoptic(tokens, canvas.size, min_score)
        return _panoptic_on_image(segments, segment_infos, canvas)
    [instances] = head.predict_instances(tokens, canvas.size, min_score)
    return _instances_on_image(instances, canvas)


def _panoptic_on_image(
    segments: Tensor, segment_infos: Sequence[dict[str, Any]], canvas: _Canvas
) -> tuple[Array, list[dict[str, Any]]]:
    """The segments that the image shows, with their areas in it."""
    segments = F.pad(segments, canvas.padding).cpu()
    visible = []
    for info in segment_infos:
        info["area"] = int((segments == info["id"]).sum())
        if info["area"]:
            visible.append(info)
    return segments.numpy(), visible


def _instances_on_image(instances: Mapping[str, Tensor], canvas: _Canvas) -> dict[str, Array]:
    """The instances that the image shows, with boxes around what it shows of them."""
    from torchvision.ops import masks_to_boxes  # loaded with the head already

    masks = F.pad(instances["masks"], canvas.padding)
    is_visible = masks.flatten(1).any(dim=1)
    masks = masks[is_visible]
    to_outer_edges = masks.new_tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32)
    visible = {
        "boxes": masks_to_boxes(masks) + to_outer_edges,
        "labels": instances["labels"][is_visible],
        "scores": instances["scores"][is_visible],
        "masks": masks,
    }
    return {name: values.cpu().numpy() for name, values in visible.items()}
