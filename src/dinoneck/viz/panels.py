"""Pictures of where a prediction comes from, drawn with Pillow alone (no plotting library needed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoneck.data.photos import Photo, decode
from dinoneck.errors import DataError
from dinoneck.tasks import Task
from dinoneck.viz.arrays import clip_note, clipped

_Floats = np.ndarray[Any, Any]

# five anchors of a perceptually uniform scale, dark violet (low) to yellow (high)
_SCALE = np.array(((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)), dtype=np.float64)
_GAP, _CAPTION, _BAR = 6, 20, 10
_FONT_PX = 13
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def heat(values: _Floats, low: float, high: float) -> Image.Image:
    """Colour a map (rows, cols): ``low`` dark violet, ``high`` yellow, one pixel per cell.

    Raises:
        DataError: if the map is not two-dimensional or not finite.
    """
    grid = np.asarray(values, np.float64)
    if grid.ndim != 2 or not np.isfinite(grid).all():
        raise DataError(f"a heat map needs finite values (rows, cols); this one has shape {grid.shape}")
    place = np.clip((grid - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(_SCALE) - 1)
    colours = np.stack([np.interp(place, np.arange(len(_SCALE)), _SCALE[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def prediction_panels(
    photos: Sequence[Photo],
    results: Sequence[dict[str, Any]],
    *,
    units: dict[str, str] | None = None,
    truths: Sequence[dict[str, float]] | None = None,
    names: Sequence[str] | None = None,
    width: int = 280,
    tasks: Sequence[Task] = (),
    span: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw one row per photo: the photo, then the heat map of every task, captioned with its value.

    Colours span each task's values over all photos, so rows compare; a bar at the bottom shows the span.

    Args:
        photos: what was predicted from, as the backbone saw it (``Preprocessing.picture``), so that cropping and
            padding do not shift the maps.
        results: the Predictor's output for them, made with ``maps=True``.
        units: task name -> unit for the captions.
        truths: task name -> known value, per photo, shown beside the prediction.
        names: one per photo, shown above it.
        width: of one picture, in pixels.
        tasks: the predictor's, for units, and for the ``minimum``: cells below it are drawn at it, and the bar states
            it.
        span: the lowest and the highest value of the colours of all maps, such as (0, 1) for shares; None = each task's
            own.

    Raises:
        DataError: if there are no photos, or results lack maps.
    """
    if not photos or any("maps" not in result for result in results) or len(photos) != len(results):
        raise DataError(f"{len(photos)} photos with {len(results)} results; each result needs maps (maps=True)")
    minimums, units = {t.name: t.minimum for t in tasks}, {t.name: t.unit for t in tasks} | (units or {})
    whole = {name: [result["maps"][name][0] for result in results] for name in results[0]["maps"]}
    maps = {name: [clipped(cells, minimums.get(name)) for cells in found] for name, found in whole.items()}
    own = {name: (min(x.min() for x in found), max(x.max() for x in found)) for name, found in maps.items()}
    spans: dict[str, tuple[float, float]] = own if span is None else dict.fromkeys(maps, span)
    notes = {name: units.get(name, "") + clip_note(found, minimums.get(name)) for name, found in whole.items()}
    rows = []
    for i, (photo, result) in enumerate(zip(photos, results, strict=True)):
        picture = as_image(photo)
        height = max(1, round(width * picture.height / picture.width))
        cells = [_captioned(picture.resize((width, height)), names[i] if names else "photo")]
        for name in maps:
            shown = heat(maps[name][i], *spans[name]).resize((width, height), Image.Resampling.NEAREST)
            known = truths[i].get(name) if truths else None
            cells.append(_captioned(shown, _caption(name, result[name], units.get(name, ""), known)))
        rows.append(_beside(cells))
    rows.append(_beside([_blank(width), *(_bar(*spans[name], notes[name], width) for name in maps)]))
    return _stacked(rows)


def _bar(low: float, high: float, unit: str, width: int) -> Image.Image:
    """The colours from the lowest to the highest value, with both told."""
    colours = heat(np.linspace(0.0, 1.0, width)[None], 0.0, 1.0).resize((width, _BAR), Image.Resampling.NEAREST)
    return _captioned(colours, f"one patch: {low:.3g} ... {high:.3g} {unit}".rstrip())


def _blank(width: int) -> Image.Image:
    return Image.new("RGB", (width, _CAPTION + _BAR), _PAPER)


def _caption(name: str, value: Any, unit: str, known: float | None) -> str:
    number = float(np.asarray(value).reshape(-1)[0])
    truth = "" if known is None else f" (true {known:.3g})"
    return f"{name} {number:.3g}{truth} {unit}".rstrip()


def as_image(photo: Photo) -> Image.Image:
    """Return a photo in 8 bits.

    Raises:
        DataError: if it cannot be read.
    """
    return Image.fromarray(decode(photo).mul(255.0).round_().byte().permute(1, 2, 0).numpy())


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + _CAPTION), _PAPER)
    sheet.paste(picture, (0, _CAPTION))
    ImageDraw.Draw(sheet).text((1, 2), text, fill=_INK, font=ImageFont.load_default(_FONT_PX))
    return sheet


def _beside(cells: Sequence[Image.Image]) -> Image.Image:
    width = sum(cell.width for cell in cells) + _GAP * (len(cells) - 1)
    sheet = Image.new("RGB", (width, max(cell.height for cell in cells)), _PAPER)
    left = 0
    for cell in cells:
        sheet.paste(cell, (left, 0))
        left += cell.width + _GAP
    return sheet


def _stacked(rows: Sequence[Image.Image]) -> Image.Image:
    height = sum(row.height for row in rows) + _GAP * (len(rows) + 1)
    sheet = Image.new("RGB", (max(row.width for row in rows) + 2 * _GAP, height), _PAPER)
    top = _GAP
    for row in rows:
        sheet.paste(row, (_GAP, top))
        top += row.height + _GAP
    return sheet
