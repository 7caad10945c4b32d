"""Pictures of images with maps, colours or boxes, drawn without a plotting library."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

from dinoneck.data.decoding import ImageInput, as_list, decode
from dinoneck.errors import DataError, ShapeError, printable
from dinoneck.tasks import Task
from dinoneck.tokens import FeaturePyramid, Tokens
from dinoneck.viz import style
from dinoneck.viz.drawing import Floats, numbers
from dinoneck.viz.pca import PCABasis, pca_rgb
from dinoneck.viz.scales import Output, outputs, scales

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


def prediction_panels(
    images: Images,
    results: Sequence[Mapping[str, Any]],
    tasks: Sequence[Task],
    *,
    truths: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Draw one row per image: the image, then the heat map of every output, captioned with its value.

    All rows have one colour scale per task; a bar at the bottom shows it. Shares span 0 to 100 %: their cells are
    clipped to it and divided by the sum of a patch's shares. Amounts start at 0, and cells below the ``minimum`` of a
    task are drawn at it. The bar states what was changed for the picture; captions show what the head predicts.
    Numbers without a map stand below their row.

    Args:
        images: the images as the backbone saw them (``Preprocessing.picture``), so that cropping and
            padding do not shift the maps.
        results: the Predictor's output for them, made with ``maps="patch"``.
        tasks: what is predicted, as in ``Predictor.tasks``: names, units and labels.
        truths: column -> known value, per image, shown next to the prediction.
        names: one per image, shown above it.

    Raises:
        DataError: if images, results and names differ in number, or results lack maps.
    """
    listed = outputs(tasks)
    mapped = [output for output in listed if all(output.map.name in (each.get("maps") or {}) for each in results)]
    if not mapped:
        raise DataError(f"the {len(results)} results share no maps of these tasks; predict with maps='patch'")
    drawn, rows = scales(mapped, results), list[Any]()
    for i, (first, result) in enumerate(zip(_named(images, names, len(results)), results, strict=True)):
        known, row = truths[i] if truths else {}, [first]
        for output in mapped:
            scale = drawn[output.map.name]
            cells = heat(scale.maps[i][output.channel], scale.low, scale.high)
            row.append((cells, caption(output, result, known)))
        others = [output for output in listed if output not in mapped]
        rows += [row, "   ".join(captions(others, result, known))]
    scaled = [(output, drawn[output.map.name]) for output in mapped]
    ends = [f"{output.text(scale.low)} … {output.text(scale.high)}{scale.note}" for output, scale in scaled]
    return _sheet([*rows, _bars([f"one patch: {text}" for text in ends])])


def gate_panels(
    images: Images, gates: Tensor | Floats | Sequence[Any], *, names: Sequence[str] | None = None
) -> Image.Image:
    """Draw every image next to its gate: how much each patch counts in what the head pools.

    The colours of all gates span 0 to the largest weight relative to a plain mean, so rows compare. The caption states
    how many times more than in a plain mean the heaviest patch counts.

    Args:
        images: the images that the gates are of, as the backbone saw them (``Preprocessing.picture``).
        gates: (B, rows, cols), or one (rows, cols) per image: ``CLSGatingHead.gate(tokens)``, or ``"gate"`` of the
            Predictor's results.
        names: one per image, shown above it.

    Raises:
        DataError: if there are more or fewer images than gates, or a weight is not finite.
        ShapeError: if a gate is not a map.

    Examples:
        >>> gate = np.array([[0.1, 0.2], [0.3, 0.4]])
        >>> gate_panels(np.zeros((32, 32, 3), np.uint8), gate[None]).width  # two pictures of 320 px, and gaps
        658
    """
    maps = [numbers(gate, f"the weights of gate {place}", "rows, cols") for place, gate in enumerate(gates)]
    relative = [gate / gate.mean() for gate in maps]
    top = max(float(gate.max()) for gate in relative)
    rows: list[Any] = []
    for (image, name), gate in zip(_named(images, names, len(maps)), relative, strict=True):
        cells = heat(gate, 0.0, top).resize(image.size, Image.Resampling.NEAREST)
        over = Image.blend(image.convert("L").convert("RGB"), cells, style.OPACITY)
        rows.append([(image, name), (over, f"gate, at most {gate.max():.3g} x the mean")])
    return _sheet([*rows, _bars([f"weight of one patch: 0 … {top:.3g} x the mean"])])


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
        images: the images that the tokens are of, as the backbone saw them (``Preprocessing.picture``), so that
            cropping and padding do not shift the patches.
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
        (658, 246)
    """
    colours = pca_rgb(tokens, basis=basis, foreground=foreground)
    title = f"tokens {note}" if tokens.layers is None else f"tokens of block {tokens.layers[-1]} {note}"
    pairs = zip(_named(images, names, len(colours)), colours, strict=True)
    return _sheet([[first, (coloured(patches), "" if row else title)] for row, (first, patches) in enumerate(pairs)])


def pyramid_panels(pyramid: FeaturePyramid, image: ImageInput) -> Image.Image:
    """Draw every level of one image's pyramid, fine to coarse, as colours in the image's pixels.

    A cell covers the pixels of its stride; where a level's last cell reaches over the image's edge, it is cut there.
    Levels have channels of their own: the colours of two levels do not compare, patterns do.

    Args:
        pyramid: the output of a neck for one image; its three principal components become colours, see :func:`pca_rgb`.
        image: the image that went in, as the backbone saw it.

    Raises:
        ShapeError: if a level is not a map, is of several images, or does not fit the image's size.
        DataError: if values are not finite.

    Examples:
        >>> levels = FeaturePyramid((torch.rand(1, 8, 5, 6), torch.rand(1, 8, 3, 3)), (16.0, 32.0))
        >>> pyramid_panels(levels, torch.rand(3, 80, 96)).width  # three pictures of 320 px, and gaps
        984
    """
    [first] = _named(image, None, 1)
    width, height = first[0].size
    row = [first]
    for i, (level, stride) in enumerate(zip(pyramid.maps, pyramid.strides, strict=True)):
        cells = numbers(level, f"the values of level {i}", "1, channels, rows, cols")
        rows, cols = cells.shape[2:]
        area = round(cols * stride), round(rows * stride)
        if not (0 <= area[0] - width < stride and 0 <= area[1] - height < stride):
            raise ShapeError(
                f"a level of {rows} x {cols} cells of {stride:g} px does not fit an image of {height}x{width} px; "
                "give the image as the backbone saw it (Preprocessing.picture)"
            )
        over = coloured(pca_rgb(cells)[0]).resize(area, Image.Resampling.NEAREST).crop((0, 0, width, height))
        row.append((over, f"level {i}: stride {stride:g} px, {rows} x {cols} cells"))
    return _sheet([row])


def boxes_panel(image: ImageInput, boxes: Any, truth: Any = None, *, classes: Sequence[str] = ()) -> Image.Image:
    """Draw boxes over an image, coloured by class, with label and score; known boxes are black and white.

    The picture is scaled to 900 pixels on its longer side. Beyond 60 boxes the classes are listed instead of labels.

    Args:
        image: the image that the boxes are pixels of.
        boxes: (n, 4) as x0, y0, x1, y1 in pixels; or a dict with ``boxes`` and, optionally, ``scores`` and ``names`` or
            ``labels``, as :meth:`dinoneck.detection.Detector.predict`, :class:`dinoneck.data.BoxImages` and
            torchvision's detectors give.
        truth: known boxes in the same form; names, labels and scores are not read.
        classes: name of each number in ``labels`` (``BoxImages.classes``).

    Raises:
        ShapeError: if boxes are not (n, 4), or labels or scores are more or fewer.
        DataError: if a coordinate is not finite, a box ends before it begins, or a label has no name.

    Examples:
        >>> boxes = {"boxes": np.array([[4.0, 2.0, 20.0, 14.0]]), "labels": [0], "scores": [0.9]}
        >>> boxes_panel(np.zeros((16, 32, 3), np.uint8), boxes, classes=["cell"]).size
        (900, 450)
    """
    given = boxes if isinstance(boxes, Mapping) else {}
    corners, known = corners_of(boxes, "boxes"), corners_of([] if truth is None else truth, "known boxes")
    names = _names(given, len(corners), classes)
    scores = [f" {score:.2f}" for score in np.asarray(given.get("scores", ())).tolist()] or [""] * len(names)
    if not len(names) == len(scores) == len(corners):
        raise ShapeError(
            f"there are {len(corners)} boxes, {len(names)} labels, {len(scores)} scores; expected one each"
        )
    picture = as_image(image)
    scale = style.SIDE_PX / max(picture.size)
    drawn = pil_to_tensor(picture.resize((round(picture.width * scale), round(picture.height * scale))))
    shades = dict(zip(dict.fromkeys([*classes, *names]), cycle(style.PALETTE), strict=False))
    colours = [shades[name] for name in names]
    # each on a wider line, so that it shows on any ground
    for table, colour, width in (
        (known, "white", 5),
        (known, "black", 2),
        (corners, "white", 4),
        (corners, colours, 3),
    ):
        if len(table):
            drawn = draw_bounding_boxes(drawn, torch.from_numpy(table * scale), colors=colour, width=width)
    places, labels = (
        (corners[:, :2] * scale).tolist(),
        [name + score for name, score in zip(names, scores, strict=True)],
    )
    if len(corners) > _LABELLED:
        places, labels, colours = [(0, 24 * i) for i in range(len(shades))], [*shades], [*shades.values()]
    sheet: Image.Image = to_pil_image(drawn)
    font = style.font(18)
    for (x, y), label, colour in zip(places, labels, colours, strict=True):
        text = printable(label)
        ImageDraw.Draw(sheet).text((x + 7, y + 4), text, colour, font, stroke_width=3, stroke_fill="white")
    return sheet


def corners_of(boxes: Any, name: str) -> Floats:
    """Return checked boxes (n, 4), of an array or a dict with ``boxes``."""
    given: Any = boxes.get("boxes") if isinstance(boxes, Mapping) else boxes
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


def _names(given: Mapping[str, Any], count: int, classes: Sequence[str]) -> list[str]:
    """The name of each box: as given, of its number, or none."""
    listed = np.asarray(given.get("names", given.get("labels", [""] * count))).tolist()
    for label in listed:
        if classes and isinstance(label, int) and not 0 <= label < len(classes):
            raise DataError(f"a label is {label}; classes name {len(classes)}: {', '.join(classes[:5])}")
    return [classes[label] if classes and isinstance(label, int) else str(label) for label in listed]


def captions(listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return each number with its name, its unit and, where it is known, the true one; the most probable class."""
    texts = []
    for task in {output.task.name: output.task for output in listed}.values():
        own = [output for output in listed if output.task is task]
        if task.kind == "classification":
            likely = max(own, key=lambda output: output.value(result))
            true = f" (true {known[task.name]})" if task.name in known else ""
            texts.append(f"{likely.key.replace(':', ': ', 1)} {likely.text(likely.value(result))}{true}")
        else:
            texts += [caption(output, result, known) for output in own]
    return texts


def as_image(image: ImageInput) -> Image.Image:
    """Return an image in 8 bits.

    Raises:
        DataError: if it cannot be read.
    """
    decoded: Image.Image = to_pil_image(decode(image))
    return decoded


def coloured(colours: Floats) -> Image.Image:
    """Return colours (rows, cols, 3) in 0 ... 1 as a picture, one pixel per cell."""
    checked = np.clip(numbers(colours, "colours", "rows, cols, 3"), 0.0, 1.0)
    return Image.fromarray(np.rint(checked * 255.0).astype(np.uint8))


def caption(output: Output, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return a predicted number with its name, its unit and the known one."""
    truth = known.get(output.key)
    true = "" if truth is None else f" (true {output.text(truth)})"
    return f"{output.key} {output.text(output.value(result))}{true}"


def _named(images: Images, names: Sequence[str] | None, count: int) -> list[tuple[Image.Image, str]]:
    """Each image with its name: the one given, else a number where there are several."""
    listed = as_list(images)
    texts = [f"image {i + 1}" if count > 1 else "image" for i in range(count)] if names is None else names
    if not count or not len(listed) == len(texts) == count:
        raise DataError(f"{len(listed)} images and {len(texts)} names for {count} to draw; expected one of each")
    return [(as_image(image), name) for image, name in zip(listed, texts, strict=True)]


def _bars(texts: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """A row of colour bars below the maps, with the text of their ends."""
    ramp = heat(np.linspace(0.0, 1.0, style.WIDTH_PX)[None], 0.0, 1.0).resize((style.WIDTH_PX, style.BAR_PX))
    return [(Image.new("RGB", ramp.size, "white"), ""), *((ramp, text) for text in texts)]


def _sheet(rows: Sequence[Any]) -> Image.Image:
    """Rows of pictures with captions, each as high as its first one, and rows of text."""
    across, strips = style.GAP_PX + (style.WIDTH_PX + style.GAP_PX) * len(rows[0]), list[Tensor]()
    for row in rows:
        if isinstance(row, str):
            lines = textwrap.wrap(row, across // style.LETTER_PX, initial_indent="  ", subsequent_indent="  ")
            strips.append(_text(lines, across))
            continue
        height = max(1, round(style.WIDTH_PX * row[0][0].height / row[0][0].width))
        tiles = []
        for picture, caption in row:
            how = Image.Resampling["BICUBIC" if picture.width > style.WIDTH_PX else "NEAREST"]  # cells stay cells
            shown = pil_to_tensor(picture.resize((style.WIDTH_PX, height), how))
            tiles.append(torch.cat([_text([caption], style.WIDTH_PX), shown], dim=1))
        strips.append(make_grid(torch.stack(tiles), nrow=len(tiles), padding=style.GAP_PX, pad_value=255))
    sheet: Image.Image = to_pil_image(torch.cat(strips, dim=1))
    return sheet


def _text(lines: Sequence[str], width: int) -> Tensor:
    """(3, height, width) bytes of lines of text."""
    strip = Image.new("RGB", (width, style.LINE_PX * len(lines) + 1), "white")
    for place, line in enumerate(lines):
        text = printable(line.replace("\N{MINUS SIGN}", "-"))  # Pillow's font has no other
        font = style.font(style.FONT_PX)
        ImageDraw.Draw(strip).text((1, style.LINE_PX * place + 2), text, style.INK, font)
    pixels: Tensor = pil_to_tensor(strip)
    return pixels
