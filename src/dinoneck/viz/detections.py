"""Boxes over a photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dinoneck.data.photos import Photo
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.viz.arrays import numbers
from dinoneck.viz.residuals import PALETTE
from dinoneck.viz.sheet import TICK_PT, Sheet, legend, pictures_of, rectangle, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]

_SIDE = 7.0  # inches of the longer side
_LABELLED = 60  # boxes; with more, their labels would cover the photo


def boxes_figure(
    photo: Photo,
    boxes: Tensor | _Floats | Mapping[str, Any],
    labels: Sequence[Any] | Tensor | _Floats | None = None,
    scores: Sequence[float] | Tensor | _Floats | None = None,
    *,
    truth: Tensor | _Floats | Mapping[str, Any] | None = None,
    min_score: float = 0.0,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw boxes over a photo, coloured by class, with label and score; known boxes are white and dashed.

    Edges are drawn where the numbers say: a photo of width W spans x = 0 ... W, so (0, 0, W, H) is its frame and
    (0, 0, 1, 1) its first pixel.

    Args:
        photo: what the boxes are pixels of.
        boxes: (n, 4) as x0, y0, x1, y1 in pixels; or, as torchvision's detectors give, a dict with ``boxes`` and, where
            there are, ``labels`` and ``scores``.
        labels: one per box: numbers or names.
        scores: one per box, 0 ... 1; drawn last where highest.
        truth: known boxes in the same form; a dict's labels and scores are not read.
        min_score: leave out boxes of a lower score. The title tells how many there were.
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
        >>> figure.axes[0].patches[0].get_bbox().get_points().tolist(), figure.axes[0].texts[0].get_text()
        ([[4.0, 2.0], [20.0, 14.0]], '1 of 2 boxes, score 0.5 or more')
    """
    given = boxes if isinstance(boxes, Mapping) else {}
    corners, known = _corners(boxes, "boxes"), _corners([] if truth is None else truth, "true boxes")
    named = _names(given.get("labels") if labels is None else labels, len(corners), classes)
    rated = _scores(given.get("scores") if scores is None else scores, len(corners))
    kept = _kept(rated, len(corners), min_score)
    [picture] = pictures_of([photo])
    sheet = Sheet([picture.shape[:2]], [[_title(len(kept), len(corners), min_score, len(known))]], longest=_SIDE)
    axes = show(sheet.picture(0, 0), picture).axes
    for box in known:
        rectangle(axes, box, "white", "--")
    shades = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(dict.fromkeys(classes or named))}
    drawn = {named[place]: rectangle(axes, corners[place], shades[named[place]], "-") for place in kept}
    if len(kept) > _LABELLED:
        legend(axes, [*filter(None, drawn)], [drawn[name] for name in drawn if name], "upper right")
        return sheet.figure
    for place in kept:
        score = "" if rated is None else f" {rated[place]:.2f}"
        _tag(axes, corners[place], (named[place] + score).strip(), shades[named[place]], picture.shape)
    return sheet.figure


def _kept(rated: _Floats | None, count: int, min_score: float) -> _Floats:
    """Which boxes are drawn, in the order that they are."""
    if isinstance(min_score, bool) or not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
        raise ConfigError(f"min_score is {min_score!r}; expected 0 ... 1")
    if rated is not None:
        order = np.argsort(rated, kind="stable")
        return order[rated[order] >= min_score]
    if min_score > 0:
        raise ConfigError(f"min_score is {min_score:g}, but there are no scores")
    return np.arange(count)


def _title(kept: int, count: int, min_score: float, known: int) -> str:
    told = f"{count} box" if count == 1 else f"{count} boxes"
    if min_score:
        told = f"{kept} of {told}, score {min_score:g} or more"
    return f"{told}; {known} known, dashed" if known else told


def _tag(axes: Axes, box: _Floats, text: str, colour: str, size: tuple[int, ...]) -> None:
    """Label and score at a box's upper left corner, inside the photo: above the box where there is room."""
    if not text:
        return
    room = 0.035 * max(size)
    above = box[1] >= room
    axes.text(
        float(np.clip(box[0], 0.0, 0.9 * size[1])),
        float(np.clip(box[1], 0.0, size[0])),
        text,
        fontsize=TICK_PT - 1.0,
        color="white",
        va="bottom" if above else "top",
        ha="left",
        parse_math=False,
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )


def _corners(boxes: Any, name: str) -> _Floats:
    given = boxes.get("boxes") if isinstance(boxes, Mapping) else boxes
    if given is None:
        told = f"a dict of {', '.join(map(str, boxes)) or 'nothing'}" if isinstance(boxes, Mapping) else "None"
        raise ShapeError(f"{name} are {told}; expected (n, 4), or a dict with 'boxes'")
    if _shape(given) in {(0,), (0, 4)}:
        return np.zeros((0, 4))
    corners = numbers(given, name, "n, 4")
    wrong = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{name}: {corners[wrong][0].tolist()} ends before it begins; expected x0, y0, x1, y1 in pixels, not "
            "x, y, width, height"
        )
    return corners


def _shape(values: Any) -> tuple[int, ...]:
    return tuple(values.shape) if hasattr(values, "shape") else (len(values),) if hasattr(values, "__len__") else ()


def _scores(scores: Any, count: int) -> _Floats | None:
    if scores is None:
        return None
    rated = np.zeros(0) if _shape(scores) == (0,) else numbers(scores, "scores", "n")
    if len(rated) != count:
        raise ShapeError(f"there are {count} boxes and {len(rated)} scores; expected one of each")
    return rated


def _names(labels: Any, count: int, classes: Sequence[str] | None) -> list[str]:
    if labels is None:
        return [""] * count
    listed = labels.reshape(-1).tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(listed) != count:
        raise ShapeError(f"there are {count} boxes and {len(listed)} labels; expected one of each")
    listed = [label.item() if isinstance(label, Tensor | np.generic) else label for label in listed]
    return [str(label) if classes is None else _class(label, classes) for label in listed]


def _class(label: Any, classes: Sequence[str]) -> str:
    """The name of a label that is a number of ``classes``, or one of them."""
    if isinstance(label, str) and label in classes:
        return label
    if not isinstance(label, int) or not 0 <= label < len(classes):
        raise DataError(f"a label is {label!r}; classes name {len(classes)}: {', '.join(classes[:5])}")
    return classes[label]
