"""Pictures of images with maps, colours or boxes, drawn without a plotting library."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image

from dinoneck.data.decoding import ImageInput, as_list, read_pixels, to_unit_range
from dinoneck.errors import DataError, ShapeError
from dinoneck.text import printable
from dinoneck.tokens import Tokens
from dinoneck.viz import style
from dinoneck.viz.drawing import Floats, numbers
from dinoneck.viz.pca import PCABasis, pca_rgb
from dinoneck.viz.scales import Output

_MOST_LABELLED = 60  # boxes; the labels of more would cover the image
_SAME_OBJECT = 0.5  # IoU from which a predicted and a known box are one object, as of AP50
_JPEG_QUALITY = 82

Images = ImageInput | Sequence[ImageInput]


def heat(values: Floats, low: float, high: float) -> Image.Image:
    """Colour a map (rows, cols): ``low`` dark violet, ``high`` yellow, one pixel per cell.

    Raises:
        ShapeError: if the map is not two-dimensional.
        DataError: if it is not finite.
    """
    grid = numbers(values, "a heat map", "rows, cols")
    return coloured(style.heat_colours(grid, low, high) / 255.0)


def pca_panels(
    images: Images,
    tokens: Tokens,
    *,
    basis: PCABasis | None = None,
    foreground: float | None = None,
    names: Sequence[str] | None = None,
    note: str = "",
) -> Image.Image:
    """Draw every image next to its patches as colours, which :func:`pca_rgb` chooses for all of them together.

    Args:
        images: the images that the tokens are of, as the backbone saw them
            (``Preprocessing.picture``), so that cropping and padding do not shift the patches.
        tokens: of these images, as one batch; of several layers the last is drawn.
        basis: directions and range to use; None = fitted on these tokens.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.
        names: one per image, shown above it.
        note: shown next to the block of the tokens, such as "(random weights)".

    Raises:
        DataError: if there are more or fewer images than samples, or values are not finite.
        ShapeError: if the tokens do not fit the basis.

    Examples:
        >>> from dinoneck import load_backbone
        >>> image, backbone = torch.rand(3, 32, 48), load_backbone("dinoneck_tiny")
        >>> pca_panels(image, backbone(backbone.preprocess(image))).size
        (658, 252)
    """
    colours = pca_rgb(tokens, basis=basis, foreground=foreground)
    named_images = _named(images, names, len(colours))
    caption_of_tokens = f"tokens {note}"
    if tokens.layers is not None:
        caption_of_tokens = f"tokens of block {tokens.layers[-1]} {note}"
    rows = []
    for named_image, patches in zip(named_images, colours, strict=True):
        rows.append([named_image, (coloured(patches), caption_of_tokens)])
        caption_of_tokens = ""  # in the first row only
    return _sheet(rows)


def boxes_panel(
    image: ImageInput, boxes: Any, truth: Any = None, *, classes: Sequence[str] = ()
) -> Image.Image:
    """Draw boxes over an image, coloured by class, with label and score.

    With known boxes, those that find one are thick and false ones thin; known boxes that are missed
    are dashed in black and white, see :func:`partners`. The picture is scaled to 900 pixels on its
    longer side. Beyond 60 boxes the classes are listed instead of labels.

    Args:
        image: the image that the boxes are pixels of.
        boxes: (n, 4) as x0, y0, x1, y1 in pixels; or a dict with ``boxes`` and, optionally,
            ``scores`` and ``names`` or ``labels``, as :meth:`dinoneck.detection.Detector.predict`,
            :class:`dinoneck.data.BoxImages` and torchvision's detectors give.
        truth: known boxes in the same form; without names or labels their classes do not count.
        classes: name of each number in ``labels`` (``BoxImages.classes``).

    Raises:
        ShapeError: if boxes are not (n, 4), or labels or scores are more or fewer.
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
    draw = ImageDraw.Draw(sheet)
    class_names = dict.fromkeys([*classes, *predicted.names])
    shades = dict(zip(class_names, cycle(style.PALETTE), strict=False))
    colours = [shades[name] for name in predicted.names]

    # known boxes that are missed, dashed
    found = _found(predicted, known)
    missed = []
    for j, box in enumerate((known.corners * scale).tolist()):
        if j not in found.values():
            missed.append(box)
    _draw_dashed(sheet, missed)

    # predicted boxes, each over a wider white line, so that it shows on any ground
    for i, box in enumerate((predicted.corners * scale).tolist()):
        width = 3 if i in found or truth is None else 1
        draw.rectangle(box, outline="white", width=width + 1)
        draw.rectangle(box, outline=colours[i], width=width)

    # labels at the boxes, or the classes below each other
    if len(predicted.corners) > _MOST_LABELLED:
        labels = [name for name in shades if name in predicted.names]
        colours = [shades[name] for name in labels]
        positions = [(0, (style.LABEL_PX + 8) * i) for i in range(len(labels))]
    else:
        labels = [name + score for name, score in zip(predicted.names, scores, strict=True)]
        positions = (predicted.corners[:, :2] * scale).tolist()
    font = style.font(style.LABEL_PX)
    for (left, top), label, colour in zip(positions, labels, colours, strict=True):
        draw.text(
            (left + 7, top + 4),
            printable(label),
            colour,
            font,
            stroke_width=3,
            stroke_fill="white",
        )
    return sheet


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
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(known)).numpy()
    candidates = []
    for i, j in np.argwhere(overlap >= _SAME_OBJECT).tolist():
        is_same_class = names[i] == known_names[j]
        candidates.append((is_same_class, overlap[i, j], i, j))
    partner: dict[int, int] = {}
    for _, _, i, j in sorted(candidates, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return partner


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


def captions(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """Return each number with its name, its unit and, where it is known, the true one; the most probable class."""
    texts = []
    for task in {output.task.name: output.task for output in listed}.values():
        outputs_of_task = [output for output in listed if output.task is task]
        if task.is_image_class:
            likely = max(outputs_of_task, key=lambda output: output.value(result))
            name = likely.key.replace(":", ": ", 1)
            probability = likely.text(likely.value(result))
            true = f" (true {known[task.name]})" if task.name in known else ""
            texts.append(f"{name} {probability}{true}")
        else:
            texts += [caption(output, result, known) for output in outputs_of_task]
    return texts


def as_image(image: ImageInput, bits: int | None = None) -> Image.Image:
    """Return an image in 8 bits; ``bits`` are those of 16-bit images.

    Raises:
        DataError: if it cannot be read.
    """
    decoded: Image.Image = to_pil_image(to_unit_range(read_pixels(image, bits)))
    return decoded


def data_uri(image: Image.Image, side: int, kind: str = "JPEG") -> str:
    """Return an image, ``side`` pixels wide at most, as a data URI: JPEG for images, PNG where every pixel counts."""
    shown = image.copy()
    shown.thumbnail((side, 4 * side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, kind, quality=_JPEG_QUALITY, optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{content}"


def coloured(colours: Floats) -> Image.Image:
    """Return colours (rows, cols, 3) in 0 ... 1 as a picture, one pixel per cell."""
    checked = np.clip(numbers(colours, "colours", "rows, cols, 3"), 0.0, 1.0)
    return Image.fromarray(np.rint(checked * 255.0).astype(np.uint8))


def caption(output: Output, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return a predicted number with its name, its unit and the known one."""
    truth = known.get(output.key)
    true = "" if truth is None else f" (true {output.text(truth)})"
    return f"{output.key} {output.text(output.value(result))}{true}"


def _named(
    images: Images, names: Sequence[str] | None, count: int
) -> list[tuple[Image.Image, str]]:
    """The images with their names; "" without names."""
    listed = as_list(images)
    texts = [""] * count if names is None else names
    if not count or not len(listed) == len(texts) == count:
        raise DataError(
            f"{len(listed)} images and {len(texts)} names for {count} to draw; expected one of each"
        )
    return [(as_image(image), name) for image, name in zip(listed, texts, strict=True)]


def _sheet(rows: Sequence[Sequence[tuple[Image.Image, str]]]) -> Image.Image:
    """Rows of pictures with captions, each as high as its first one."""
    gap = style.GAP_PX
    heights = []
    for row in rows:
        first, _ = row[0]
        heights.append(max(1, round(style.WIDTH_PX * first.height / first.width)))
    sheet_width = len(rows[0]) * (style.WIDTH_PX + gap) + gap
    sheet_height = sum(heights) + len(rows) * (style.LINE_PX + 2 * gap)
    sheet = Image.new("RGB", (sheet_width, sheet_height), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for picture, text in row:
            sheet.paste(_tile(picture, text, height), (left, top))
            left += style.WIDTH_PX + gap
        top += style.LINE_PX + height + 2 * gap
    return sheet


def _tile(picture: Image.Image, text: str, height: int) -> Image.Image:
    """A picture, resized to this height, below its caption."""
    tile = Image.new("RGB", (style.WIDTH_PX, style.LINE_PX + height), "white")
    ImageDraw.Draw(tile).text((1, 2), printable(text), style.INK, style.font(style.FONT_PX))
    if picture.width > style.WIDTH_PX:
        resampling = Image.Resampling.BICUBIC
    else:
        resampling = Image.Resampling.NEAREST  # a patch stays a rectangle of one colour
    resized = picture.resize((style.WIDTH_PX, height), resampling)
    tile.paste(resized, (0, style.LINE_PX))
    return tile
