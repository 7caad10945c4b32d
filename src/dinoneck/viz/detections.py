"""Boxes in a report: which of the known ones were found, and how the detector was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from dinoneck.data.decoding import ImageInput, decode
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.viz.drawing import PALETTE, Chart, Floats, chart, describe, legend, new_figure, numbers, outline
from dinoneck.viz.entries import ReportEntry
from dinoneck.viz.score_tables import MOST_COLUMNS, ScoreTable, all_tables, matrix_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IOU = 0.5
_SCORES = 10
Pair = tuple[str | None, str | None]


def pairs(entry: ReportEntry) -> list[Pair]:
    """Return (known class, predicted class) of every object, None for the side that is missing.

    A known and a predicted box are one object if their IoU is 0.5 or more; boxes of one class are paired first, then
    those that overlap most. Without known boxes there are no pairs.
    """
    if "boxes" not in entry.known:
        return []
    predicted, known = list(entry.result["names"]), list(entry.known["names"])
    found, there = (torch.from_numpy(corners_of(side["boxes"], "boxes")) for side in (entry.result, entry.known))
    overlap = box_iou(found, there).numpy()
    close = [(predicted[i] == known[j], overlap[i, j], i, j) for i, j in np.argwhere(overlap >= _IOU).tolist()]
    partner: dict[int, int] = {}
    for _, _, i, j in sorted(close, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    objects = [(known[partner[i]] if i in partner else None, name) for i, name in enumerate(predicted)]
    return objects + [(name, None) for j, name in enumerate(known) if j not in partner.values()]


def box_errors(entry: ReportEntry) -> float:
    """Return how many objects of an image are missed, invented or of another class; -1 where none are known."""
    return float(sum(known != predicted for known, predicted in pairs(entry))) if "boxes" in entry.known else -1.0


def agreement_of_boxes(entries: Sequence[ReportEntry]) -> dict[str, dict[str, int]]:
    """Return class -> how many of its boxes are known, predicted, and found, in images with known boxes."""
    objects = [pair for entry in entries for pair in pairs(entry)]
    return {
        name: {
            "known": sum(known == name for known, _ in objects),
            "predicted": sum(predicted == name for _, predicted in objects),
            "found": objects.count((name, name)),
        }
        for name in (_classes(entries) if objects else ())
    }


def box_sections(
    entries: Sequence[ReportEntry], training: Mapping[str, Any]
) -> list[tuple[str, list[str], list[ScoreTable], list[Chart]]]:
    """Return heading, notes, tables and charts of the sections of a detector's report."""
    by_class = ScoreTable(["class", "known", "predicted", "found", "recall", "precision"], [])
    for name, count in agreement_of_boxes(entries).items():
        shares = [f"{count['found'] / count[of]:.2f}" if count[of] else "–" for of in ("known", "predicted")]
        by_class.rows.append([name, *map(str, count.values()), *shares])
    tables, labels = [by_class], [*_classes(entries), None]  # None: the box is missing on that side
    if len(labels) <= MOST_COLUMNS and by_class.rows:
        objects = [pair for entry in entries for pair in pairs(entry)]
        matrix = [[objects.count((row, column)) for column in labels] for row in labels]
        tables.append(matrix_table("known (rows) and predicted", [name or "none" for name in labels], matrix))
    by_image = ScoreTable(["image", "predicted", "known", "found", "wrong class", "missed", "false"], [])
    for entry in entries:
        counts = map(str, _counts(entry)) if "boxes" in entry.known else "–––––"
        by_image.rows.append([entry.name, str(len(entry.result["names"])), *counts])
    return [
        (
            "Held-out scores",
            ["Of images that were not trained on. The epoch with the best AP of them was kept."],
            all_tables(training),
            _curves(training["log"]) if training.get("log") else [],
        ),
        (
            "Against known boxes",
            [
                "A known box is found by a predicted one of its class with an IoU of 0.5 or more.",
                "Too good where the detector was trained on these images.",
            ],
            tables,
            [_by_score(entries)] if by_class.rows else [],
        ),
        ("Predictions", ["Boxes of each image."], [by_image], []),
    ]


def drawn_boxes(entry: ReportEntry, entries: Sequence[ReportEntry]) -> dict[str, Any]:
    """Return what the page shows of an image: rectangles, a line of counts and the colours of the classes."""
    shades = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(_classes(entries))}
    names, line = list(entry.result["names"]), f"{len(entry.result['names'])} predicted"
    if "boxes" in entry.known:
        total, found, wrong, missed, false = _counts(entry)
        line += f", {total} known: {found} found, {wrong} of a wrong class, {missed} missed, {false} false"
    scores = np.asarray(entry.result["scores"], np.float64).tolist()
    boxes = corners_of(entry.result["boxes"], "boxes").tolist()
    return {
        "values": [line],
        "boxes": [(*box, shades[name], f"{score:.2f}") for box, name, score in zip(boxes, names, scores, strict=True)],
        "known": corners_of(entry.known.get("boxes", []), "known boxes").tolist(),
        "classes": [(shade, f"{name}: {names.count(name)}") for name, shade in shades.items()],
    }


def _classes(entries: Sequence[ReportEntry]) -> list[str]:
    return sorted({str(n) for entry in entries for n in (*entry.result["names"], *entry.known.get("names", ()))})


def _counts(entry: ReportEntry) -> tuple[int, int, int, int, int]:
    """How many boxes of an image are known, found, of a wrong class, missed and false."""
    objects = pairs(entry)
    found, missed = sum(a == b for a, b in objects), sum(b is None for _, b in objects)
    false = sum(a is None for a, _ in objects)
    return len(entry.known["names"]), found, len(objects) - found - missed - false, missed, false


def _by_score(entries: Sequence[ReportEntry]) -> Chart:
    """Recall and precision of all classes together, if boxes of lower scores are left out."""
    scores = np.concatenate([np.asarray(entry.result["scores"], np.float64) for entry in entries])
    limits = np.linspace(scores.min(), scores.max(), _SCORES) if len(scores) else np.zeros(0)
    shares = []
    for limit in limits:
        objects = [pair for entry in entries for pair in pairs(_above(entry, limit))]
        found = sum(known == predicted for known, predicted in objects)
        shares.append([found / max(1, sum(pair[side] is not None for pair in objects)) for side in (0, 1)])
    figure = new_figure(3.2, 2.4)
    axes = figure.subplots()
    for place, name in enumerate(("recall", "precision")):
        axes.plot(limits, [pair[place] for pair in shares], color=PALETTE[place], marker=".", label=name)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8.0, framealpha=0.0)
    describe(axes, x="lowest score", y="share of boxes")
    return chart(figure, "recall and precision", "with boxes of a score of this or more")


def _above(entry: ReportEntry, limit: float) -> ReportEntry:
    kept = np.asarray(entry.result["scores"], np.float64) >= limit
    names = [name for name, keep in zip(entry.result["names"], kept, strict=True) if keep]
    return replace(entry, result={"boxes": corners_of(entry.result["boxes"], "boxes")[kept], "names": names})


def _curves(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The training loss and the held-out AP of every epoch."""
    charts: list[Chart] = []
    for name, keys in (("training loss", ["loss"]), ("held-out AP", ["AP", "AP50", "AP75"])):
        figure = new_figure(3.2, 2.4)
        axes = figure.subplots()
        for place, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None]
            axes.plot(*zip(*points, strict=True), color=PALETTE[place], marker=".", label=key) if points else None
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        describe(axes, x="epoch", y=name)
        if len(keys) > 1:
            axes.legend(fontsize=8.0, framealpha=0.0)
        charts.append(chart(figure, name, "by epoch"))
    return charts


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
    shades = dict(zip(dict.fromkeys([*(classes or ()), *names]), cycle(PALETTE)))
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
