"""Pictures of boxes, and the captions that pictures share; torch is not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.data.cells import is_missing
from dinoneck.errors import DataError, ShapeError
from dinoneck.images.pixels import read_planes
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.runtime.intervals import PREDICTION_SETS
from dinoneck.runtime.resampling import to_unit_range
from dinoneck.task_facts import TaskFacts, output_name
from dinoneck.text import printable
from dinoneck.viz import style
from dinoneck.viz.checked import Floats, from_tensor, numbers
from dinoneck.viz.objects import cropped, draw_masks
from dinoneck.viz.scales import Output, entry_of

_MOST_LABELLED = 60  # boxes; the labels of more would cover the image
_SAME_OBJECT = 0.5  # IoU from which a predicted and a known box are one object, as of AP50


def boxes_panel(
    image: Any, boxes: Any, truth: Any = None, *, classes: Sequence[str] = ()
) -> Image.Image:
    """Draw boxes over an image, coloured by class, with label and score.

    With known boxes, those that find one are thick and false ones thin; known boxes that are missed
    are dashed in black and white, see :func:`partners`. The picture is scaled to 900 pixels on its
    longer side. Objects with masks have an outline and a light fill instead of a frame, unless known
    boxes are given. Beyond 60 boxes the classes are listed instead of labels, as many as
    the picture has space for.

    Args:
        image: the image that the boxes are pixels of.
        boxes: (n, 4) as x0, y0, x1, y1 in pixels; or a dict with ``boxes`` and, optionally,
            ``scores``, ``names`` or ``labels`` and ``masks`` (n, height, width), as
            :meth:`dinoneck.detection.Detector.predict`, :class:`dinoneck.data.BoxImages` and
            torchvision's detectors give.
        truth: known boxes in the same form; without names or labels their classes do not count.
            ``classes`` are the names whose boxes are known, where those of others are not: boxes
            of others are thick too.
        classes: name of each number in ``labels`` (``BoxImages.classes``).

    Raises:
        ShapeError: if boxes are not (n, 4), masks not (n, height, width), or labels, scores or masks
            are more or fewer.
        DataError: if a coordinate is not finite, a box ends before it begins, or a label has no
            name.

    Examples:
        >>> boxes = {"boxes": np.array([[4.0, 2.0, 20.0, 14.0]]), "labels": [0], "scores": [0.9]}
        >>> boxes_panel(np.zeros((16, 32, 3), np.uint8), boxes, classes=["cell"]).size
        (900, 450)
    """
    predicted = _named_boxes(boxes, "boxes", classes)
    known = _named_boxes([] if truth is None else truth, "known boxes", classes)
    scores = _score_texts(boxes, len(predicted.names))
    _check_count(predicted.names, "labels", predicted.corners, "boxes")
    _check_count(scores, "scores", predicted.corners, "boxes")
    _check_count(known.names, "labels", known.corners, "known boxes")

    picture = as_image(image)
    scale = style.SIDE_PX / max(picture.size)
    sheet = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    shades = style.box_colours([*classes, *predicted.names])
    colours = [shades[name] for name in predicted.names]
    masks = _masks_of(boxes, len(predicted.names))
    if masks is not None:
        sheet = draw_masks(sheet, masks, colours)
    draw = ImageDraw.Draw(sheet)

    # known boxes that are missed, dashed
    found = _found(predicted, known)
    compared_names = _compared_names(predicted, truth)
    missed = []
    for j, box in enumerate((known.corners * scale).tolist()):
        if j not in found.values():
            missed.append(box)
    _draw_dashed(sheet, missed)

    # predicted boxes, each over a wider white line, so that it shows on any ground
    has_frames = masks is None or truth is not None
    framed = (predicted.corners * scale).tolist() if has_frames else []
    for i, box in enumerate(framed):
        is_compared = predicted.names[i] in compared_names
        width = 3 if i in found or not is_compared else 1
        draw.rectangle(box, outline="white", width=width + 1)
        draw.rectangle(box, outline=colours[i], width=width)

    # labels at the boxes, or the classes below each other
    if len(predicted.corners) > _MOST_LABELLED:
        _draw_class_list(sheet, {name: shades[name] for name in shades if name in predicted.names})
        return sheet
    font = style.font(style.LABEL_PX)
    labels = [name + score for name, score in zip(predicted.names, scores, strict=True)]
    labels = [printable(label) for label in labels]
    sizes = [(font.getlength(label), float(style.LABEL_PX)) for label in labels]
    corners = label_corners(predicted.corners * scale, sizes, sheet.size)
    for corner, label, colour in zip(corners, labels, colours, strict=True):
        if corner is not None:
            draw.text(corner, label, colour, font, stroke_width=3, stroke_fill="white")
    return sheet


def _draw_class_list(sheet: Image.Image, shades: Mapping[str, str]) -> None:
    """Write the names of classes (name -> colour) in columns; the last line counts those without space."""
    font = style.font(style.LABEL_PX)
    texts = [(printable(name), shade) for name, shade in shades.items()]
    line_px = style.LABEL_PX + 8
    column_px = 2 * 7 + max(font.getlength(text) for text, _ in texts)
    num_lines = max(1, (sheet.height - 4) // line_px)
    num_columns = max(1, int(sheet.width // column_px))
    num_places = num_lines * num_columns
    if len(texts) > num_places:
        num_shown = num_places - 1
        rest = f"and {len(texts) - num_shown} more"
        texts = [*texts[:num_shown], (rest, style.hex_colour(style.INK))]
    draw = ImageDraw.Draw(sheet)
    for number, (text, shade) in enumerate(texts):
        column, line = divmod(number, num_lines)
        corner = (7 + column * column_px, 4 + line * line_px)
        draw.text(corner, text, shade, font, stroke_width=3, stroke_fill="white")


def label_corners(
    boxes: Floats, sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Return where the label of each box begins (left, top), so that no label lies on another.

    A label is inside the upper left corner of its box, else above it, inside the lower left one,
    below it, or inside the upper right one. Boxes that come first choose first.

    Args:
        boxes: (n, 4) in pixels of the picture.
        sizes: (width, height) of each label.
        picture: (width, height).

    Returns:
        None for a label that has no free place.
    """
    placed: list[tuple[float, float, float, float]] = []
    corners: list[tuple[float, float] | None] = []
    for (x0, y0, x1, y1), (width, height) in zip(boxes.tolist(), sizes, strict=True):
        inside = y0 + 4
        above = y0 - height - 6
        lower = y1 - height - 8
        below = y1 + 2
        candidates = [(x0 + 7, inside), (x0 + 7, above), (x0 + 7, lower), (x0 + 7, below)]
        candidates.append((x1 - width - 7, inside))
        free = None
        for left, top in candidates:
            # labels at the right and the lower edge are moved into the picture
            left = max(3.0, min(left, picture[0] - width - 4))
            top = max(0.0, min(top, picture[1] - height - 6))
            area = (left - 3, top, left + width + 3, top + height + 6)
            if not any(_overlap(area, other) for other in placed):
                placed.append(area)
                free = (left, top)
                break
        corners.append(free)
    return corners


def _overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> bool:
    """Whether two rectangles have an area in common."""
    is_beside = first[2] <= second[0] or second[2] <= first[0]
    is_above = first[3] <= second[1] or second[3] <= first[1]
    return not (is_beside or is_above)


class _NamedBoxes(NamedTuple):
    """Boxes (n, 4), and the name of each; "" has no name."""

    corners: Floats
    names: list[str]


def _named_boxes(boxes: Any, what: str, classes: Sequence[str]) -> _NamedBoxes:
    """Checked boxes with their names: as given, by their number, or none."""
    corners = corners_of(boxes, what)
    labels: Any = [""] * len(corners)
    if isinstance(boxes, Mapping):
        labels = boxes.get("names", boxes.get("labels", labels))
    names = []
    for label in np.asarray(labels).tolist():
        if not classes or not isinstance(label, int):
            names.append(str(label))
        elif 0 <= label < len(classes):
            names.append(classes[label])
        else:
            raise DataError(
                f"a label is {label}; classes name {len(classes)}: {', '.join(classes[:5])}"
            )
    return _NamedBoxes(corners, names)


def _score_texts(boxes: Any, count: int) -> list[str]:
    """The scores of boxes as labels show them; without scores ``count`` empty texts."""
    scores: list[float] = []
    if isinstance(boxes, Mapping):
        scores = np.asarray(boxes.get("scores", ())).tolist()
    if not scores:
        return [""] * count
    return [f" {score:.2f}" for score in scores]


def _masks_of(boxes: Any, count: int) -> CroppedMasks | None:
    """The masks of objects; None where there are boxes alone.

    Raises:
        ShapeError: if there are more or fewer masks than boxes.
    """
    if not isinstance(boxes, Mapping) or boxes.get("masks") is None:
        return None
    masks = cropped(boxes["masks"])
    if len(masks) != count:
        raise ShapeError(
            f"there are {count} boxes and {len(masks)} masks for them; expected one for each"
        )
    return masks


def _check_count(items: Sequence[str], what: str, boxes: Floats, of_what: str) -> None:
    if len(items) != len(boxes):
        raise ShapeError(
            f"there are {len(boxes)} {of_what} and {len(items)} {what} for them; expected one for "
            "each"
        )


def _found(predicted: _NamedBoxes, known: _NamedBoxes) -> dict[int, int]:
    """The index of a predicted box -> that of the known box that it finds: its partner, of its class or of none."""
    predicted_names = predicted.names
    if not any(known.names):
        predicted_names = [""] * len(predicted.names)
    pairs = partners(predicted.corners, predicted_names, known.corners, known.names)
    found = {}
    for i, j in pairs.items():
        if known.names[j] in ("", predicted.names[i]):
            found[i] = j
    return found


def _compared_names(predicted: _NamedBoxes, truth: Any) -> set[str]:
    """The names of predicted boxes that are false if they find no known box; none without known boxes."""
    if truth is None:
        return set()
    if isinstance(truth, Mapping) and "classes" in truth:
        return set(truth["classes"])
    return set(predicted.names)


def _draw_dashed(sheet: Image.Image, boxes: Sequence[Sequence[float]]) -> None:
    """Draw the frames of boxes in black and white dashes."""
    frames = Image.new("1", sheet.size)
    for box in boxes:
        ImageDraw.Draw(frames).rectangle(box, outline=1, width=3)
    diagonals = np.add.outer(np.arange(sheet.height), np.arange(sheet.width))
    is_white = diagonals % style.DASH_PX < style.DASH_PX // 2
    sheet.paste(Image.fromarray(is_white).convert("RGB"), mask=frames)


def partners(
    boxes: Floats, names: Sequence[str], known: Floats, known_names: Sequence[str]
) -> dict[int, int]:
    """Return the index of a predicted box -> that of its known box, for those with an IoU of 0.5 or more.

    Boxes of one class are paired first, then those that overlap most.
    """
    overlap = _overlaps(boxes, known)
    candidates = []
    for i, j in np.argwhere(overlap >= _SAME_OBJECT).tolist():
        is_same_class = names[i] == known_names[j]
        candidates.append((is_same_class, overlap[i, j], i, j))
    partner: dict[int, int] = {}
    for _, _, i, j in sorted(candidates, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return partner


def _overlaps(boxes: Floats, known: Floats) -> Floats:
    """The IoU (n, m) of boxes (n, 4) with known ones (m, 4)."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    known_areas = (known[:, 2] - known[:, 0]) * (known[:, 3] - known[:, 1])
    begin = np.maximum(boxes[:, None, :2], known[:, :2])
    end = np.minimum(boxes[:, None, 2:], known[:, 2:])
    sides = np.maximum(end - begin, 0.0)
    shared = sides[..., 0] * sides[..., 1]
    with np.errstate(invalid="ignore"):  # of two boxes without an area it is NaN
        overlaps: Floats = shared / (areas[:, None] + known_areas - shared)
    return overlaps


def corners_of(boxes: Any, name: str) -> Floats:
    """Return checked boxes (n, 4), of an array or a dict with ``boxes``."""
    rows: Any = boxes.get("boxes") if isinstance(boxes, Mapping) else boxes
    if np.shape(rows) in {(0,), (0, 4)}:
        return np.zeros((0, 4))
    corners = numbers(rows, name, "n, 4")
    is_reversed = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if is_reversed.any():
        raise DataError(
            f"{name}: {corners[is_reversed][0].tolist()} ends before it begins; expected x0, y0, "
            "x1, y1 in pixels, not x, y, width, height"
        )
    return corners


def class_caption(
    outputs_of_task: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> str:
    """Return the most probable class of an image with its probability, its prediction set and the known class."""
    task = outputs_of_task[0].task
    likely = likely_class(outputs_of_task, result)
    name = f"{task.name}: {output_name(task, likely.place)}"
    probability = likely.text(likely.value(result))
    true_class = known_class(task, known)
    true = "" if true_class is None else f" (true {true_class})"
    return f"{name} {probability}{set_caption(task, result)}{true}"


def likely_class(outputs_of_task: Sequence[Output], result: Mapping[str, Any]) -> Output:
    """Return the output of the most probable class of an image."""
    return max(outputs_of_task, key=lambda output: output.value(result))


def class_colours(task: TaskFacts) -> list[style.RGB]:
    """Return the colours of the classes or labels of an image; grey for a first one that is the ground."""
    colours = style.class_colours(task.labels or [""] * task.dim)
    return [colour or style.NODATA for colour in colours]


def known_class(task: TaskFacts, known: Mapping[str, Any]) -> str | None:
    """Return the known class of an image; None where it is missing or NaN."""
    value = known.get(task.name)
    return None if is_unknown(value) else as_label(value, task.labels)


def is_unknown(value: Any) -> bool:
    """Return whether a known value is None, NaN, NaT or pandas.NA. Text is always a value."""
    return not isinstance(value, str) and is_missing(value)


def as_label(value: Any, labels: Sequence[str]) -> str:
    """Return the text of a known class.

    The class 1 is the label ``"1"``; so is 1.0, as which pandas reads it where a class is missing.
    """
    if isinstance(value, Real) and str(value) not in labels and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


def set_caption(task: TaskFacts, result: Mapping[str, Any]) -> str:
    """Return the labels that a class is among, as `` (among bare, crop)``; empty where no set is known."""
    labels = entry_of(result, PREDICTION_SETS).get(task.name)
    return "" if labels is None else f" (among {', '.join(labels)})"


class LabelChip(NamedTuple):
    """A label of an image that is predicted, or that is known and missed.

    Attributes:
        label: its name.
        probability: as ``90 %``.
        colour: of the label.
        is_predicted: whether it reaches its threshold.
        is_right: whether the prediction is right; None where that is not known.
    """

    label: str
    probability: str
    colour: style.RGB
    is_predicted: bool
    is_right: bool | None

    @property
    def has_mark(self) -> bool:
        """Whether a tick or a cross follows the text; the text of a missed label says so itself."""
        return self.is_predicted and self.is_right is not None


def label_chips(
    outputs_of_task: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[LabelChip]:
    """Return the labels of a multilabel task that reach their thresholds, then those that are missed."""
    task = outputs_of_task[0].task
    colours = class_colours(task)
    predicted = []
    missed = []
    for output, threshold in zip(outputs_of_task, task.label_thresholds, strict=True):
        value = output.value(result)
        truth = output.truth(known)
        is_predicted = value >= threshold
        chip = LabelChip(
            label=output_name(task, output.place),
            probability=output.text(value),
            colour=colours[output.place],
            is_predicted=is_predicted,
            is_right=None if truth is None else is_predicted == (truth == 1),
        )
        if is_predicted:
            predicted.append(chip)
        elif chip.is_right is False:
            missed.append(chip)
    return [*predicted, *missed]


def is_known_without_labels(outputs_of_task: Sequence[Output], known: Mapping[str, Any]) -> bool:
    """Return whether an image is known to have none of the labels of a multilabel task."""
    return all(output.truth(known) == 0 for output in outputs_of_task)


def as_image(image: Any, bits: int | None = None) -> Image.Image:
    """Return an image in 8 bits; ``bits`` are those of 16-bit images.

    Args:
        image: a path, a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W).
        bits: of 16-bit images.

    Raises:
        DataError: if it cannot be read.
    """
    array = image
    if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
        array = from_tensor(image)
        if isinstance(array, np.ndarray) and array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
    planes = to_unit_range(read_planes(array, bits))
    pixels = (planes * np.float32(255)).astype(np.uint8)
    return Image.fromarray(np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1))


def caption(output: Output, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return a predicted number with its name, its unit, its bounds and the known one.

    Of a label it also states whether the image has it.
    """
    truth = output.truth(known)
    if output.task.is_multilabel:
        value = output.value(result)
        threshold = output.task.label_thresholds[output.place]
        true = "" if truth is None else f" (true {_presence(truth == 1)})"
        return f"{output.key} {output.text(value)}, {_presence(value >= threshold)}{true}"
    as_percent = output.is_drawn_as_share(result)
    true = "" if truth is None else f" (true {output.text(truth, as_percent=as_percent)})"
    value = output.value(result)
    number = output.text(value, output.bounds(result), as_percent=as_percent)
    return f"{output.key} {number}{true}"


def _presence(is_present: bool) -> str:
    return "present" if is_present else "absent"
