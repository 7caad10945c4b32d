"""Images of where a prediction comes from, drawn with Pillow alone (no plotting library needed)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from dinoneck.data.decoding import ImageInput, decode
from dinoneck.errors import DataError
from dinoneck.tasks import Task
from dinoneck.viz.drawing import Floats, Output, numbers, outputs_of, outputs_with_maps, scales

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
_SCALE = np.array(((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64)
_GAP, _CAPTION, _BAR = 6, 20, 10
_FONT_PX, _LETTER = 13, 7  # height of a line's letters, and the width of one


def heat(values: Floats, low: float, high: float) -> Image.Image:
    """Colour a map (rows, cols): ``low`` dark violet, ``high`` yellow, one pixel per cell.

    Raises:
        ShapeError: if the map is not two-dimensional.
        DataError: if it is not finite.
    """
    grid = numbers(values, "a heat map", "rows, cols")
    place = np.clip((grid - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(_SCALE) - 1)
    colours = np.stack([np.interp(place, np.arange(len(_SCALE)), _SCALE[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def prediction_panels(
    images: Sequence[ImageInput],
    results: Sequence[dict[str, Any]],
    *,
    units: dict[str, str] | None = None,
    truths: Sequence[dict[str, Any]] | None = None,
    names: Sequence[str] | None = None,
    width: int = 280,
    tasks: Sequence[Task] = (),
) -> Image.Image:
    """Draw one row per image: the image, then the heat map of every output, captioned with its value.

    All rows have one colour scale per task; a bar at the bottom shows it. Shares span 0 to 100 %: their cells are
    clipped to it and divided by the sum of a patch's shares. Amounts start at 0. The bar states what was changed for
    the picture; captions show what the head predicts. Numbers without a map stand below their row.

    Args:
        images: the images as the backbone saw them (``Preprocessing.picture``), so that cropping and
            padding do not shift the maps.
        results: the Predictor's output for them, made with ``maps=True``.
        units: task name -> unit for the captions.
        truths: column -> known value, per image, shown next to the prediction.
        names: one per image, shown above it.
        width: of one picture, in pixels.
        tasks: the predictor's, which know what is a share, units, labels and the ``minimum``: cells below it are drawn
            at it.

    Raises:
        DataError: if there are no images, or results lack maps.
    """
    if len(images) != len(results):
        raise DataError(f"{len(images)} images with {len(results)} results; expected one of each (maps=True)")
    columns, known = outputs_with_maps(results, tasks, units), truths or [{}] * len(results)
    scaled, top = scales(columns, results), _GAP
    pictures = [as_image(image) for image in images]
    heights = [max(1, round(width * picture.height / picture.width)) for picture in pictures]
    across = _GAP + (width + _GAP) * (1 + len(columns))
    below = [_below(*pair, tasks, units or {}, across) for pair in zip(results, known, strict=True)]
    rows = [height + _CAPTION * (1 + len(lines)) for height, lines in zip(heights, below, strict=True)]
    sheet = Image.new("RGB", (across, _GAP + sum(row + _GAP for row in [*rows, _BAR + _CAPTION])), "white")
    draw = ImageDraw.Draw(sheet)

    def put(place: int, picture: Image.Image, height: int, caption: str, smooth: bool = False) -> None:
        how, left = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST, _GAP + place * (width + _GAP)
        sheet.paste(picture.resize((width, height), how), (left, top + _CAPTION))
        _write(draw, caption, left, top)

    for i, (picture, height) in enumerate(zip(pictures, heights, strict=True)):
        put(0, picture, height, names[i] if names else "image", smooth=True)
        for place, (output, scale) in enumerate(zip(columns, scaled, strict=True), start=1):
            cells = scale.maps[i]
            if cells is not None:
                put(place, heat(cells, scale.low, scale.high), height, _caption(output, results[i], known[i]))
        for line, text in enumerate(below[i], start=1):
            _write(draw, text, _GAP, top + height + _CAPTION * line)
        top += rows[i] + _GAP
    ramp = heat(np.linspace(0.0, 1.0, width)[None], 0.0, 1.0)
    for place, (output, scale) in enumerate(zip(columns, scaled, strict=True), start=1):
        put(place, ramp, _BAR, f"one patch: {output.text(scale.low)} … {output.text(scale.high)}{scale.note}")
    return sheet


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int) -> None:
    text = text.replace("\N{MINUS SIGN}", "-")  # Pillow's font has no other
    draw.text((left + 1, top + 2), text, fill=(30, 30, 30), font=ImageFont.load_default(_FONT_PX))


def _caption(output: Output, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A number with its name, its unit and, where it is known, the true one."""
    truth = known.get(output.key)
    true = "" if truth is None else f" (true {output.text(truth)})"
    return f"{output.key} {output.text(output.value(result))}{true}"


def _below(
    result: Mapping[str, Any], known: Mapping[str, Any], tasks: Sequence[Task], units: Mapping[str, str], width: int
) -> list[str]:
    """Lines with the numbers that have no map; of a classification, with its most probable class."""
    texts = []
    for task in tasks:
        own = [output for output in outputs_of(task, tasks) if output.map not in result["maps"]]
        if task.kind == "classification" and own:
            likely = max(own, key=lambda output: output.value(result))
            own = [likely._replace(key=f"{task.name}: {(task.labels or range(task.dim))[likely.place]}")]
        texts += [_caption(output._replace(unit=units.get(task.name, output.unit)), result, known) for output in own]
    return textwrap.wrap("   ".join(texts), max(20, width // _LETTER))


def as_image(image: ImageInput) -> Image.Image:
    """Return an image in 8 bits.

    Raises:
        DataError: if it cannot be read.
    """
    decoded: Image.Image = to_pil_image(decode(image))
    return decoded
