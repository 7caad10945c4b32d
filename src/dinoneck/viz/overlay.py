"""What a head predicts, drawn over the image in grey: classes by their share, amounts as heat, with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.data.decoding import ImageInput
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import printable
from dinoneck.inference.resolution import at_image_size
from dinoneck.tasks import Task
from dinoneck.viz import style
from dinoneck.viz.panels import as_image, caption
from dinoneck.viz.scales import Output, Scale, outputs, scales, shown_cells

_HATCH_PX = 12


def overlay_panel(
    image: ImageInput,
    result: Mapping[str, Any],
    tasks: Sequence[Task],
    preprocess: Preprocessing,
    *,
    known: Mapping[str, Any] | None = None,
    scale: Mapping[str, Scale] | None = None,
) -> Image.Image:
    """Draw the maps of one image over the image in grey, below each other where there are several.

    Classes and other shares have one colour each, the stronger the larger the share; a first class named background,
    ground, none or soil has none. Amounts are drawn as heat from 0. Pixels that the head did not see are hatched. The
    legend below a map has the predicted numbers, and the known ones next to them. An image without maps gets its
    predicted numbers.

    Args:
        image: the image itself.
        result: of a Predictor, made with ``maps="patch"``.
        tasks: what is predicted, as in ``Predictor.tasks``.
        preprocess: how the image was prepared, as in ``Predictor.preprocess``.
        known: column -> known value, such as ``{"crop": 0.3}``.
        scale: how maps are drawn, of :func:`dinoneck.viz.scales.scales` for several images; None = of this one.

    Returns:
        A picture whose longer side without the legend is 1200 px.

    Raises:
        DataError: if the image cannot be read, or predictions are not finite.
        ShapeError: if a map is not (outputs, rows, cols).
    """
    picture, listed = as_image(image), outputs(tasks)
    size, (width, height) = (picture.height, picture.width), _shown(picture)
    grey = picture.resize((width, height), Image.Resampling.LANCZOS).convert("L").convert("RGB")
    ground = np.asarray(grey, np.float64) * 0.8 + 40.0
    own_scales, maps, truth = scale or scales(listed, [result]), result.get("maps") or {}, known or {}
    parts: list[Image.Image] = []
    for task in {output.map.name: output.map for output in listed if output.map.name in maps}.values():
        own, drawn = [output for output in listed if output.map is task], own_scales[task.name]
        cells = shown_cells(own, np.asarray(maps[task.name], np.float64))
        per_patch = (
            replace(task, kind="dense", aggregate="sum") if task.kind == "density" else task
        )  # amounts of a patch, not of a pixel
        pixels = at_image_size(cells, per_patch, size, preprocess, probabilities=True, pixels=(height, width))
        if task.is_share:
            colours = style.class_colours(task.labels or [task.name] * task.dim)
            parts += [_shares_over(ground, pixels, colours), _legend(own, colours, result, truth, width)]
            continue
        for output in own:
            parts += [_heat_over(ground, pixels[output.channel], drawn), _bar(output, drawn, result, truth, width)]
    rest = [output for output in listed if output.map.name not in maps]
    if rest or not parts:
        parts += [*([] if parts else [grey]), _legend(rest, [], result, truth, width)]
    return _stacked(parts)


def _shown(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of the drawn image."""
    scale = style.OVERLAY_PX / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    sheet, top = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white"), 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _shares_over(ground: np.ndarray, shares: np.ndarray, colours: Sequence[style.RGB | None]) -> Image.Image:
    """Shares (classes, height, width) as colours over the ground (height, width, 3)."""
    painted = ground.copy()
    for share, colour in zip(shares, colours, strict=True):
        if colour is not None:
            opacity = style.SHARE_OPACITY * np.nan_to_num(share)[..., None] ** style.SHARE_POWER
            painted += opacity * (np.array(colour, np.float64) - ground)
    return _picture(painted, np.isnan(shares[0]))


def _heat_over(ground: np.ndarray, values: np.ndarray, scale: Scale) -> Image.Image:
    """Values (height, width) as heat over the ground."""
    heat = style.heat_colours(np.nan_to_num(values), scale.low, scale.high)
    return _picture(ground + style.OPACITY * (heat - ground), np.isnan(values))


def _picture(painted: np.ndarray, unseen: np.ndarray) -> Image.Image:
    """The picture; pixels without a prediction are hatched."""
    rows, cols = np.indices(unseen.shape)
    painted[unseen & ((rows + cols) % _HATCH_PX < _HATCH_PX // 2)] = style.NODATA
    return Image.fromarray(np.clip(np.rint(painted), 0, 255).astype(np.uint8))


def _legend(
    listed: Sequence[Output],
    colours: Sequence[style.RGB | None],
    result: Mapping[str, Any],
    known: Mapping[str, Any],
    width: int,
) -> Image.Image:
    """Predicted numbers with the colours of their classes, as many lines as they need."""
    shades = [colours[output.channel] if colours else None for output in listed]
    texts = [printable(caption(output, result, known)) for output in listed]
    font, height = style.font(style.CAPTION_PX), 2 * style.CAPTION_PX
    places, left, top = list[tuple[int, int]](), 0, 0
    widths = [round(font.getlength(text)) + 2 * style.CAPTION_PX for text in texts]
    for needed in widths:
        if left and left + needed > width:
            left, top = 0, top + height
        places.append((left, top))
        left += needed
    strip = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(strip)
    for (x, y), text, shade in zip(places, texts, shades, strict=True):
        side = style.CAPTION_PX * 3 // 4
        if shade is not None:
            draw.rectangle((x + 4, y + side, x + 4 + side, y + 2 * side), fill=shade)
        draw.text((x + style.CAPTION_PX + 4, y + side - 6), text.replace("\N{MINUS SIGN}", "-"), style.INK, font)
    return strip


def _bar(output: Output, scale: Scale, result: Mapping[str, Any], known: Mapping[str, Any], width: int) -> Image.Image:
    """The predicted number, and the colour bar with its ends."""
    strip = _legend([output], [], result, known, width)
    ramp = style.heat_colours(np.linspace(0.0, 1.0, width // 4)[None], 0.0, 1.0).repeat(style.CAPTION_PX, axis=0)
    top = style.CAPTION_PX // 2
    strip.paste(Image.fromarray(ramp.astype(np.uint8)), (width * 3 // 4 - 4, top))
    ends = f"{output.text(scale.low)} … {output.text(scale.high)}".replace("\N{MINUS SIGN}", "-")
    font = style.font(style.CAPTION_PX)
    ImageDraw.Draw(strip).text((width * 3 // 4 - 16 - font.getlength(ends), top), ends, style.INK, font)
    return strip
