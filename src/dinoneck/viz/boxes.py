"""Boxes over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dinoneck.data.decoding import ImageInput, decode
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.viz.arrays import Floats, numbers
from dinoneck.viz.drawing import PALETTE, describe, legend, new_figure, outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 7.0  # inches of the longer side
_LABELLED = 60  # boxes; with more, their labels would cover the image


def boxes_figure(
    image: ImageInput,
    boxes: Tensor | Floats | Mapping[str, Any],
    labels: Sequence[Any] | Tensor | Floats | None = None,
    scores: Sequence[float] | Tensor | Floats | None = None,
    *,
    truth: Tensor | Floats | Mapping[str, Any] | None = None,
    min_score: float = 0.0,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw boxes over an image, coloured by class, with label and score; known boxes are white and dashed.

    Edges are drawn at the coordinates: an image of width W spans x = 0 ... W, so (0, 0, W, H) is its frame and
    (0, 0, 1, 1) its first pixel.

    Args:
        image: the image that the boxes are pixels of.
        boxes: (n, 4) as x0, y0, x1, y1 in pixels; or, as torchvision's detectors give, a dict with ``boxes`` and,
            optionally, ``labels`` and ``scores``.
        labels: one per box: numbers or names.
        scores: one per box, 0 ... 1; drawn last where highest.
        truth: known boxes in the same form; a dict's labels and scores are not read.
        min_score: leave out boxes of a lower score. The title states how many there were.
        classes: name of each number in ``labels`` (``BoxImages.classes``).

    Returns:
        a ``matplotlib.figure.Figure`` of one plot; its patches are the known boxes, then those predicted.

    Raises:
        ShapeError: if boxes are not (n, 4), or labels or scores are more or fewer.
        DataError: if a coordinate or score is not finite, a box ends before it begins, or a label has no name.
        ConfigError: if ``min_score`` is out of range, or given without scores.
        ImportError: if matplotlib is missing.

    Examples:
        >>> boxes = np.array([[4.0, 2.0, 20.0, 14.0], [0.0, 0.0, 3.0, 3.0]])
        >>> figure = boxes_figure(np.zeros((16, 32, 3), np.uint8), boxes, [0, 0], [0.9, 0.2], min_score=0.5,
        ...                       classes=["cell"])
        >>> figure.axes[0].patches[0].get_bbox().get_points().tolist(), figure.axes[0].get_title()
        ([[4.0, 2.0], [20.0, 14.0]], '1 of 2 boxes, score 0.5 or more')
    """
    given = boxes if isinstance(boxes, Mapping) else {}
    corners, known = corners_of(boxes, "boxes"), corners_of([] if truth is None else truth, "true boxes")
    names = _names(given.get("labels") if labels is None else labels, len(corners), classes)
    rated = _scores(given.get("scores") if scores is None else scores, len(corners), min_score)
    axes = _image_axes(image)
    for box in known:
        outline(axes, box, "white", "--")
    every = dict.fromkeys([*(classes or ()), *names])
    shades = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(every)}
    order = [place for place in np.argsort(rated, kind="stable").tolist() if not rated[place] < min_score]
    marks = {names[place]: outline(axes, corners[place], shades[names[place]], "-") for place in order}
    for place in order if len(order) <= _LABELLED else ():
        score = "" if np.isnan(rated[place]) else f"{rated[place]:.2f}"
        _tag(axes, corners[place], f"{names[place]} {score}".strip(), shades[names[place]])
    if len(order) > _LABELLED and any(names):
        legend(axes, [*marks], [*marks.values()], "upper right")
    title = "1 box" if len(corners) == 1 else f"{len(corners)} boxes"
    title = f"{len(order)} of {title}, score {min_score:g} or more" if min_score else title
    describe(axes, f"{title}; {len(known)} known, dashed" if len(known) else title)
    return axes.figure  # type: ignore[return-value]


def _image_axes(image: ImageInput) -> Axes:
    """The axes of a new figure that show an image, in its pixels."""
    picture = decode(image).permute(1, 2, 0).numpy()
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    axes = new_figure(max(width * scale, 2.0), max(height * scale, 1.0) + 0.4).subplots()
    axes.imshow(picture, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[], autoscale_on=False)
    return axes


def _tag(axes: Axes, box: Floats, text: str, colour: str) -> None:
    """Write label and score at a box's upper left corner: above the box where there is room in the image."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    align = "bottom" if box[1] >= 0.035 * max(width, height) else "top"
    place = np.clip(box[0], 0.0, 0.9 * width), np.clip(box[1], 0.0, height)
    ground = {"facecolor": colour, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    if text:
        axes.text(*place, text, fontsize=7.0, color="white", va=align, parse_math=False, clip_on=True, bbox=ground)


def corners_of(boxes: Any, name: str) -> Floats:
    """Return checked boxes (n, 4), of an array or a dict with ``boxes``."""
    given = boxes.get("boxes") if isinstance(boxes, Mapping) else boxes
    if given is None:
        raise ShapeError(f"{name} hold no 'boxes'; expected (n, 4), or a dict with 'boxes'")
    if np.shape(given) in {(0,), (0, 4)}:
        return np.zeros((0, 4))
    corners = numbers(given, name, "n, 4")
    wrong = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{name}: {corners[wrong][0].tolist()} ends before it begins; expected x0, y0, x1, y1 in pixels, not "
            "x, y, width, height"
        )
    return corners


def _scores(scores: Any, count: int, min_score: float) -> Floats:
    """One score per box, NaN where there are none."""
    if isinstance(min_score, bool) or not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
        raise ConfigError(f"min_score is {min_score!r}; expected 0 ... 1")
    if scores is None and min_score > 0:
        raise ConfigError(f"min_score is {min_score:g}, but there are no scores")
    if scores is None or (count == 0 and np.shape(scores) == (0,)):
        return np.full(count, np.nan)
    return numbers(scores, "scores, one per box,", f"{count}")


def _names(labels: Any, count: int, classes: Sequence[str] | None) -> list[str]:
    if labels is None:
        return [""] * count
    rows: Any = labels.reshape(-1) if isinstance(labels, Tensor | np.ndarray) else labels
    listed: list[Any] = [label.item() if isinstance(label, Tensor | np.generic) else label for label in rows]
    if len(listed) != count:
        raise ShapeError(f"there are {count} boxes and {len(listed)} labels; expected one of each")
    if classes is None:
        return [str(label) for label in listed]
    for label in listed:
        if label not in classes and not (isinstance(label, int) and 0 <= label < len(classes)):
            raise DataError(f"a label is {label!r}; classes name {len(classes)}: {', '.join(classes[:5])}")
    return [classes[label] if isinstance(label, int) else label for label in listed]
