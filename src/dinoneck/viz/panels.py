"""Images of where a prediction comes from, drawn with Pillow alone (no plotting library needed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from dinoneck.data.decoding import ImageInput, decode
from dinoneck.errors import DataError
from dinoneck.tasks import Task
from dinoneck.viz.drawing import Floats, numbers, outputs_with_maps

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
_SCALE = np.array(((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64)
_GAP, _CAPTION, _BAR = 6, 20, 10
_FONT_PX = 13


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
    truths: Sequence[dict[str, float]] | None = None,
    names: Sequence[str] | None = None,
    width: int = 280,
    tasks: Sequence[Task] = (),
    span: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw one row per image: the image, then the heat map of every output, captioned with its value.

    Colours span each output's values over all images, so rows compare; a bar at the bottom shows the span.

    Args:
        images: the images as the backbone saw them (``Preprocessing.picture``), so that cropping and
            padding do not shift the maps.
        results: the Predictor's output for them, made with ``maps=True``.
        units: task name -> unit for the captions.
        truths: task name -> known value, per image, shown next to the prediction.
        names: one per image, shown above it.
        width: of one picture, in pixels.
        tasks: the predictor's, which know units, labels and the ``minimum``: cells below it are drawn at it, and the
            bar states it.
        span: the lowest and the highest value of the colours of all maps, such as (0, 1) for shares; None = each task's
            own.

    Raises:
        DataError: if there are no images, or results lack maps.
    """
    if len(images) != len(results):
        raise DataError(f"{len(images)} images with {len(results)} results; expected one of each (maps=True)")
    columns = outputs_with_maps(results, tasks, units)
    scaled = [output.scaled(results) for output in columns]
    scales = [ends if span is None else span for _, ends, _ in scaled]
    pictures = [as_image(image) for image in images]
    heights = [max(1, round(width * picture.height / picture.width)) for picture in pictures]
    size = (_GAP + (width + _GAP) * (1 + len(columns)), _GAP + sum(h + _CAPTION + _GAP for h in [*heights, _BAR]))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(_FONT_PX)
    draw, top = ImageDraw.Draw(sheet), _GAP

    def put(place: int, picture: Image.Image, height: int, caption: str, smooth: bool = False) -> None:
        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        sheet.paste(picture.resize((width, height), how), (_GAP + place * (width + _GAP), top + _CAPTION))
        draw.text((_GAP + place * (width + _GAP) + 1, top + 2), caption, fill=(30, 30, 30), font=font)

    for i, (picture, height) in enumerate(zip(pictures, heights, strict=True)):
        put(0, picture, height, names[i] if names else "image", smooth=True)
        known = truths[i] if truths else {}
        for place, (output, (maps, _, _), ends) in enumerate(zip(columns, scaled, scales, strict=True), start=1):
            true = f" (true {known[output.task]:.3g})" if known.get(output.task) is not None else ""
            cells, value = maps[i], f"{output.key} {output.value(results[i]):.3g}{true} {output.unit}"
            if cells is not None:
                put(place, heat(cells, *ends), height, value.rstrip())
        top += height + _CAPTION + _GAP
    ramp = heat(np.linspace(0.0, 1.0, width)[None], 0.0, 1.0)
    for place, (output, (_, _, note), (low, high)) in enumerate(zip(columns, scaled, scales, strict=True), start=1):
        put(place, ramp, _BAR, f"one patch: {low:.3g} ... {high:.3g} {output.unit}{note}".rstrip())
    return sheet


def as_image(image: ImageInput) -> Image.Image:
    """Return an image in 8 bits.

    Raises:
        DataError: if it cannot be read.
    """
    decoded: Image.Image = to_pil_image(decode(image))
    return decoded
