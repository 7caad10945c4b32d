"""Maps at the resolution of the image: from the cells of the prepared image to the pixels of the image itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.preprocessing import Preprocessing, Size
from dinoneck.grid import patch_pair
from dinoneck.heads.head import Resample
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens

UNSEEN = -1
"""The class of pixels that the prepared image does not show; their values are NaN."""
_AT_ONCE, _MANY = 1 << 24, 256  # numbers of a strip, and its channels where they are not known


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


def at_image_size(
    cells: np.ndarray[Any, Any],
    task: Task,
    size: Size,
    preprocess: Preprocessing,
    probabilities: bool = False,
    pixels: Size | None = None,
    at_size: Callable[[Resample], Mapping[str, Tensor]] | None = None,
) -> np.ndarray[Any, Any]:
    """Resample a map from the cells of the prepared image to the pixels of the image, bilinearly.

    Cells that show padding alone are left out. Classes are resampled as logarithms of their
    probabilities, which for one head and one view are its logits, before the most probable one is
    taken. The pixels of a ``density`` map that adds up have the sum of its cells.

    Args:
        cells: (dim, rows, cols) in original units, as ``Predictor`` gives them per patch.
        task: whose map it is.
        size: (height, width) of the upright image.
        preprocess: how the image was prepared.
        probabilities: return those of the classes of a segmentation, not the most probable class.
        pixels: (height, width) of the result; None = the image's.
        at_size: for heads that replace :meth:`dinoneck.heads.Head.at_size`,
            :meth:`dinoneck.HeadEnsemble.maps_at_size` of their outputs, whose batch is the views;
            None = the cells are resampled.

    Returns:
        (dim, height, width) float32; for a segmentation (height, width) int64, class indices.
        Pixels that the prepared image does not show are NaN, or :data:`UNSEEN`.
    """
    grid = torch.from_numpy(np.ascontiguousarray(cells, np.float32))
    placement, patch = preprocess.placement(size), patch_pair(preprocess.patch_size)
    sides = zip(
        pixels or size,
        grid.shape[1:],
        placement.resized,
        placement.canvas,
        placement.corner,
        patch,
        strict=True,
    )
    rows, cols = (_axis(*side) for side in sides)
    is_classes = task.kind == "segmentation"
    whole = float(grid.double().sum())
    is_index = is_classes and not probabilities
    if is_classes:
        grid = grid.clamp_min(torch.finfo(torch.float32).tiny).log()
    strips, step = (
        [],
        max(1, _AT_ONCE // ((len(grid) if at_size is None else _MANY) * len(cols.share))),
    )
    for begin in range(0, len(rows.share), step):
        lines = _Axis(*(own[begin : begin + step] for own in rows))
        resample = partial(_strip, rows=lines, cols=cols)
        strip = resample(grid) if at_size is None else at_size(resample)[task.name].mean(dim=0)
        strip = strip.softmax(dim=0) if at_size is None and is_classes and probabilities else strip
        strips.append(strip.argmax(dim=0) if is_index else strip)
    found = torch.cat(strips, dim=-2)
    unseen = ~(rows.seen[:, None] & cols.seen)
    if task.kind == "density" and task.aggregate == "sum":
        total = float(found.masked_fill(unseen, 0.0).double().sum())
        found *= whole / total if total else 0.0
    found.masked_fill_(unseen, UNSEEN if is_index else float("nan"))
    return found.numpy()


def _axis(pixels: int, cells: int, resized: int, canvas: int, corner: int, patch: int) -> _Axis:
    """One side: ``pixels`` of the image become ``resized`` ones from ``corner`` on a canvas that ``cells`` divide."""
    place = (torch.arange(pixels, dtype=torch.float64) + 0.5) * resized / pixels + corner
    seen = (place > -patch) & (place < canvas + patch)
    first = int(max(corner, 0) * cells / canvas)
    last = -int(-min(corner + resized, canvas) * cells // canvas) - 1
    between = (place * cells / canvas - 0.5).clamp(first, last)
    below = between.floor().long()
    return _Axis(below, (below + 1).clamp_max(last), (between - below).float(), seen)


def _strip(maps: Tensor, _: Any = None, *, rows: _Axis, cols: _Axis) -> Tensor:
    """Maps (..., rows, cols) at some lines of the image, so that those of many channels need little memory."""
    lines = maps[..., rows.below, :].lerp(maps[..., rows.above, :], rows.share[:, None])
    return lines[..., cols.below].lerp(lines[..., cols.above], cols.share)


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
    placement = preprocess.placement(size)
    scales = [side / resized for side, resized in zip(size, placement.resized, strict=True)]
    height, width = (
        round(side * scale) for side, scale in zip(placement.canvas, scales, strict=True)
    )
    top, left = (round(side * scale) for side, scale in zip(placement.corner, scales, strict=True))
    # from the canvas to the image
    window = (-left, left + size[1] - width, -top, top + size[0] - height)
    if task.kind == "panoptic":
        [(segments, listed)] = head.predict_panoptic(tokens, (height, width), min_score)
        segments = F.pad(segments, window).cpu()
        for segment in listed:
            segment["area"] = int((segments == segment["id"]).sum())
        return segments.numpy(), [segment for segment in listed if segment["area"]]
    from torchvision.ops import masks_to_boxes  # loaded with the head already

    [found] = head.predict_instances(tokens, (height, width), min_score)
    masks = F.pad(found["masks"], window)
    kept = masks.flatten(1).any(dim=1)
    boxes = masks_to_boxes(masks[kept]) + masks.new_tensor(
        [0.0, 0.0, 1.0, 1.0], dtype=torch.float32
    )
    found = {
        "boxes": boxes,
        **{name: found[name][kept] for name in ("labels", "scores")},
        "masks": masks[kept],
    }
    return {name: value.cpu().numpy() for name, value in found.items()}
