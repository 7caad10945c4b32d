"""Maps and objects at the resolution of the image: from cells of the prepared image to its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.heads.head import Head
from dinoneck.heads.instances import boxes_of, decode_centres, decode_instances, decode_panoptic
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import ImageRecipe, Size
from dinoneck.images.views import Views
from dinoneck.inference.views import MembersOfView
from dinoneck.runtime.description import Content
from dinoneck.runtime.maps import UNSEEN
from dinoneck.runtime.pixel_grid import PixelGrid
from dinoneck.task_facts import TaskFacts, TaskRecord
from dinoneck.tasks import Task, unit_vectors
from dinoneck.tokens import Tokens

if TYPE_CHECKING:
    from dinoneck.heads.ensemble import HeadEnsemble

Array = np.ndarray[Any, Any]

# assumed channels of the raw outputs that a head resamples: only a head knows which of its outputs
# are maps, and mask heads have 100 to 200 queries. More channels only take more memory for a strip.
_ASSUMED_CHANNELS = 256


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
    grid = PixelGrid.of(pixels=pixels or size, cells=values.shape[1:], size=size, recipe=preprocess)
    logits = values.clamp_min(torch.finfo(torch.float32).tiny).log() if is_classes else values

    def sample(strip: PixelGrid) -> Tensor:
        sampled = _sample(logits, strip)
        if is_classes and probabilities:
            return sampled.softmax(dim=0)
        return sampled

    takes_classes = is_classes and not probabilities
    sampled = _sample_in_strips(grid, sample, channels=len(values), takes_classes=takes_classes)
    if task.kind == "density" and task.aggregate == "sum":
        sampled_total = float(
            sampled.masked_fill(torch.from_numpy(grid.unseen), 0.0).double().sum()
        )
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
    grid = PixelGrid.of(pixels=size, cells=cells, size=size, recipe=preprocess)
    upright = _upright_members(ensemble, members, views, size)

    def sample(strip: PixelGrid) -> Tensor:
        maps = ensemble.maps_at_size(
            upright, size, resample=lambda maps_of_views, _: _sample(maps_of_views, strip)
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


def _sample(maps: Tensor, grid: PixelGrid) -> Tensor:
    """Maps (..., rows, cols) at the pixels, (..., height, width), bilinearly."""
    row_share = torch.from_numpy(grid.rows.share)[:, None]
    upper = maps[..., torch.from_numpy(grid.rows.below), :]
    lower = maps[..., torch.from_numpy(grid.rows.above), :]
    lines = upper.lerp(lower, row_share)
    left = lines[..., torch.from_numpy(grid.cols.below)]
    right = lines[..., torch.from_numpy(grid.cols.above)]
    return left.lerp(right, torch.from_numpy(grid.cols.share))


def _without_unseen(sampled: Tensor, grid: PixelGrid) -> Array:
    """The values as an array, NaN or :data:`UNSEEN` where the prepared image shows nothing."""
    nothing = float("nan") if sampled.is_floating_point() else UNSEEN
    return sampled.masked_fill_(torch.from_numpy(grid.unseen), nothing).numpy()


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
    def of(cls, size: Size, recipe: ImageRecipe) -> _Canvas:
        """Place an image of (height, width) pixels on its canvas."""
        placement = recipe.placement(size)
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


def objects_from_outputs(
    outputs: Mapping[Content, Array],
    task: TaskRecord,
    *,
    size: Size,
    recipe: ImageRecipe,
    min_score: float | None,
) -> Any:
    """Return the objects of an image in its own pixels, from what an exported head gives for it.

    Args:
        outputs: ``classes`` (Q, K + 1) and ``masks`` (Q, h, w), logits; or ``map`` (K + 4, rows,
            cols) of a head that finds centres.
        task: instances or panoptic.
        size: (height, width) of the upright image.
        recipe: how the image was prepared.
        min_score: leave out objects of a lower score; None = as recorded in the file.

    Returns:
        As :func:`objects_at_image_size`.
    """
    canvas = _Canvas.of(size, recipe)
    batches = {content: torch.from_numpy(array)[None] for content, array in outputs.items()}
    if task.kind == "panoptic":
        [(segments, segment_infos)] = decode_panoptic(
            batches["classes"],
            batches["masks"],
            size=canvas.size,
            things=[task.labels.index(label) for label in task.things],
            min_score=task.minimum if min_score is None else min_score,
        )
        return _panoptic_on_image(segments, segment_infos, canvas)
    least_score = task.least_score if min_score is None else min_score
    if "map" in batches:
        [instances] = decode_centres(batches["map"], canvas.size, least_score)
    else:
        [instances] = decode_instances(
            batches["classes"], batches["masks"], size=canvas.size, min_score=least_score
        )
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
    masks = F.pad(instances["masks"], canvas.padding)
    is_visible = masks.flatten(1).any(dim=1)
    masks = masks[is_visible]
    visible = {
        "boxes": boxes_of(masks),
        "labels": instances["labels"][is_visible],
        "scores": instances["scores"][is_visible],
        "masks": masks,
    }
    return {name: values.cpu().numpy() for name, values in visible.items()}
