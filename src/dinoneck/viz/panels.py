"""Pictures of images with maps, colours or boxes, drawn without a plotting library."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_pil_image

from dinoneck.data.decoding import ImageInput, as_list, read_pixels, to_unit_range
from dinoneck.errors import DataError, ShapeError, printable
from dinoneck.tokens import Tokens
from dinoneck.viz import style
from dinoneck.viz.drawing import Floats, numbers
from dinoneck.viz.pca import PCABasis, pca_rgb
from dinoneck.viz.scales import Output

_LABELLED = 60  # boxes; with more, their labels would cover the image

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
    title = (
        f"tokens {note}" if tokens.layers is None else f"tokens of block {tokens.layers[-1]} {note}"
    )
    pairs = zip(_named(images, names, len(colours)), colours, strict=True)
    return _sheet(
        [
            [first, (coloured(patches), "" if row else title)]
            for row, (first, patches) in enumerate(pairs)
        ]
    )


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
    given = boxes if isinstance(boxes, Mapping) else {}
    corners, known = (
        corners_of(boxes, "boxes"),
        corners_of([] if truth is None else truth, "known boxes"),
    )
    names = _names(given, len(corners), classes)
    known_names = _names(truth if isinstance(truth, Mapping) else {}, len(known), classes)
    scores = [f" {score:.2f}" for score in np.asarray(given.get("scores", ())).tolist()] or [
        ""
    ] * len(names)
    listed = (
        ("labels", len(names), "boxes", len(corners)),
        ("scores", len(scores), "boxes", len(corners)),
        ("labels", len(known_names), "known boxes", len(known)),
    )
    for what, number, of_what, count in listed:
        if number != count:
            raise ShapeError(
                f"there are {count} {of_what} and {number} {what} for them; expected one for each"
            )
    picture = as_image(image)
    scale = style.SIDE_PX / max(picture.size)
    sheet = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    shades = dict(zip(dict.fromkeys([*classes, *names]), cycle(style.PALETTE), strict=False))
    colours = [shades[name] for name in names]
    close = partners(corners, names if any(known_names) else [""] * len(names), known, known_names)
    found = {i: j for i, j in close.items() if known_names[j] in ("", names[i])}
    draw, missed = ImageDraw.Draw(sheet), Image.new("1", sheet.size)
    for j, box in enumerate((known * scale).tolist()):
        if j not in found.values():
            ImageDraw.Draw(missed).rectangle(box, outline=1, width=3)
    stripes = (
        np.add.outer(np.arange(sheet.height), np.arange(sheet.width)) % style.DASH_PX
        < style.DASH_PX // 2
    )
    sheet.paste(Image.fromarray(stripes).convert("RGB"), mask=missed)
    for i, (box, colour) in enumerate(zip((corners * scale).tolist(), colours, strict=True)):
        width = 3 if i in found or truth is None else 1
        # a wider line, so that it shows on any ground
        draw.rectangle(box, outline="white", width=width + 1)
        draw.rectangle(box, outline=colour, width=width)
    places = (corners[:, :2] * scale).tolist()
    labels = [name + score for name, score in zip(names, scores, strict=True)]
    if len(corners) > _LABELLED:
        labels = [name for name in shades if name in names]
        colours = [shades[name] for name in labels]
        places = [(0, (style.LABEL_PX + 8) * i) for i in range(len(labels))]
    font = style.font(style.LABEL_PX)
    for (left, top), label, colour in zip(places, labels, colours, strict=True):
        draw.text(
            (left + 7, top + 4), printable(label), colour, font, stroke_width=3, stroke_fill="white"
        )
    return sheet


def partners(
    boxes: Floats, names: Sequence[str], known: Floats, known_names: Sequence[str]
) -> dict[int, int]:
    """Return the place of a predicted box -> that of its known box, for those with an IoU of 0.5 or more.

    Boxes of one class are paired first, then those that overlap most.
    """
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(known)).numpy()
    close = [
        (names[i] == known_names[j], overlap[i, j], i, j)
        for i, j in np.argwhere(overlap >= 0.5).tolist()
    ]
    partner: dict[int, int] = {}
    for *_, i, j in sorted(close, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return partner


def corners_of(boxes: Any, name: str) -> Floats:
    """Return checked boxes (n, 4), of an array or a dict with ``boxes``."""
    given: Any = boxes.get("boxes") if isinstance(boxes, Mapping) else boxes
    if np.shape(given) in {(0,), (0, 4)}:
        return np.zeros((0, 4))
    corners = numbers(given, name, "n, 4")
    wrong = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{name}: {corners[wrong][0].tolist()} ends before it begins; expected x0, y0, x1, y1 "
            "in pixels, not x, y, width, height"
        )
    return corners


def _names(given: Mapping[str, Any], count: int, classes: Sequence[str]) -> list[str]:
    """The name of each box: as given, of its number, or none."""
    listed = np.asarray(given.get("names", given.get("labels", [""] * count))).tolist()
    for label in listed:
        if classes and isinstance(label, int) and not 0 <= label < len(classes):
            raise DataError(
                f"a label is {label}; classes name {len(classes)}: {', '.join(classes[:5])}"
            )
    return [
        classes[label] if classes and isinstance(label, int) else str(label) for label in listed
    ]


def captions(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """Return each number with its name, its unit and, where it is known, the true one; the most probable class."""
    texts = []
    for task in {output.task.name: output.task for output in listed}.values():
        own = [output for output in listed if output.task is task]
        if task.kind == "classification":
            likely = max(own, key=lambda output: output.value(result))
            true = f" (true {known[task.name]})" if task.name in known else ""
            texts.append(
                f"{likely.key.replace(':', ': ', 1)} {likely.text(likely.value(result))}{true}"
            )
        else:
            texts += [caption(output, result, known) for output in own]
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
    buffer, shown = io.BytesIO(), image.copy()
    shown.thumbnail((side, 4 * side), Image.Resampling.LANCZOS)
    shown.save(buffer, kind, quality=82, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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
    """Each image with its name, if one is given."""
    listed = as_list(images)
    texts = [""] * count if names is None else names
    if not count or not len(listed) == len(texts) == count:
        raise DataError(
            f"{len(listed)} images and {len(texts)} names for {count} to draw; expected one of each"
        )
    return [(as_image(image), name) for image, name in zip(listed, texts, strict=True)]


def _sheet(rows: Sequence[Any]) -> Image.Image:
    """Rows of pictures with captions, each as high as its first one."""
    gap, across = style.GAP_PX, style.WIDTH_PX + style.GAP_PX
    heights = [max(1, round(style.WIDTH_PX * row[0][0].height / row[0][0].width)) for row in rows]
    high = sum(heights) + len(rows) * (style.LINE_PX + 2 * gap)
    sheet, top = Image.new("RGB", (len(rows[0]) * across + gap, high), "white"), gap
    for row, height in zip(rows, heights, strict=True):
        for place, (picture, text) in enumerate(row):
            tile = Image.new("RGB", (style.WIDTH_PX, style.LINE_PX + height), "white")
            ImageDraw.Draw(tile).text((1, 2), printable(text), style.INK, style.font(style.FONT_PX))
            # cells stay cells
            how = Image.Resampling["BICUBIC" if picture.width > style.WIDTH_PX else "NEAREST"]
            tile.paste(picture.resize((style.WIDTH_PX, height), how), (0, style.LINE_PX))
            sheet.paste(tile, (gap + place * across, top))
        top += style.LINE_PX + height + 2 * gap
    return sheet
