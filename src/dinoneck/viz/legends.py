"""What pictures say below their maps: names, numbers and colours, as strips of the picture's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.task_facts import TaskFacts
from dinoneck.text import printable
from dinoneck.viz import style
from dinoneck.viz.pictures import (
    caption,
    known_labels,
    likely_class,
    predicted_labels,
    set_caption,
)
from dinoneck.viz.scales import Output, Scale

# where a surface faces -> its normal, into the surface: x right, y down, z forward
_FACING = {
    "the camera": (0.0, 0.0, 1.0),
    "up": (0.0, 1.0, 0.0),
    "down": (0.0, -1.0, 0.0),
    "left": (1.0, 0.0, 0.0),
    "right": (-1.0, 0.0, 0.0),
}
_MOST_CLASSES = 12  # of shares in a legend; numbers that are no shares are all listed
_LINE_PX = 2 * style.CAPTION_PX
_SQUARE_PX = style.CAPTION_PX * 3 // 4


def legend_outputs(listed: Sequence[Output], result: Mapping[str, Any]) -> list[Output]:
    """Return the outputs that a legend lists: of shares of many classes the largest ones, else all."""
    largest: list[Output] = []
    for _, group in groupby(listed, key=lambda output: output.task.name):
        outputs_of_task = list(group)
        if _num_left_out(outputs_of_task):
            outputs_of_task.sort(key=lambda output: -output.value(result))
            outputs_of_task = outputs_of_task[:_MOST_CLASSES]
        largest += outputs_of_task
    return largest


def rest_of_legend(listed: Sequence[Output]) -> str:
    """Return how many outputs :func:`legend_outputs` leaves out, as ``and 5 more``; empty if it lists all."""
    rest = 0
    for _, group in groupby(listed, key=lambda output: output.task.name):
        rest += _num_left_out(list(group))
    return f"and {rest} more" if rest else ""


def _num_left_out(outputs_of_task: Sequence[Output]) -> int:
    """How many outputs of a task a legend does not list."""
    if not outputs_of_task[0].task.is_share:
        return 0
    return max(0, len(outputs_of_task) - _MOST_CLASSES)


def normals_legend(task: TaskFacts, width: int) -> Image.Image:
    """Return the name of the task, and the colours of surfaces that face in five directions."""
    texts = [printable(task.name)]
    colours: list[style.RGB | None] = [None]
    for direction, normal in _FACING.items():
        [[colour]] = style.normal_colours(np.array(normal)[:, None, None])
        red, green, blue = (int(value) for value in colour)
        texts.append(f"facing {direction}")
        colours.append((red, green, blue))
    return texts_with_colours(texts, colours, width)


def number_texts(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """Return the predicted numbers, one text each."""
    return [printable(caption(output, result, known)) for output in listed]


def label_texts(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """Return the labels of an image that reach their thresholds, one text each."""
    texts = []
    for _, group in groupby(listed, key=lambda output: output.task.name):
        outputs_of_task = list(group)
        task = outputs_of_task[0].task
        if task.is_multilabel:
            labels = predicted_labels(outputs_of_task, result)
            labels[0] = f"{task.name}: {labels[0]}"
            labels[-1] += known_labels(outputs_of_task, known)
            texts += labels
    return [printable(text) for text in texts]


def class_bar(
    outputs_of_task: Sequence[Output],
    result: Mapping[str, Any],
    known: Mapping[str, Any],
    width: int,
) -> Image.Image:
    """Return the most probable class in a bar of its colour, as long as it is probable, and the true class.

    A tick follows a true class that is predicted, a cross one that is not.
    """
    task = outputs_of_task[0].task
    likely = likely_class(outputs_of_task, result)
    probability = likely.value(result)
    colour = style.class_colours(task.labels or [""] * task.dim)[likely.place] or style.NODATA
    font = style.font(style.CAPTION_PX)
    padding = style.CAPTION_PX // 2
    label = task.labels[likely.place] if task.labels else str(likely.place)
    predicted = f"{task.name}: {label} {likely.text(probability)}{set_caption(task, result)}"
    predicted = printable(predicted)
    predicted_lines = _wrapped(predicted, font, width - 3 * padding)

    # the true class on the right, or below
    mark_left = width - padding - style.CAPTION_PX
    true_lines: list[str] = []
    true_top = 0
    if task.name in known:
        true = printable(f"true {known[task.name]}")
        true_lines = _wrapped(true, font, mark_left - 2 * padding)
        both = font.getlength(predicted) + font.getlength(true)
        if both + 4 * padding + 2 * style.CAPTION_PX > width:
            true_top = len(predicted_lines) * _LINE_PX

    bar_height = len(predicted_lines) * _LINE_PX
    height = max(bar_height, true_top + len(true_lines) * _LINE_PX)
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    draw.rectangle((0, 0, width, bar_height - 1), fill=style.BAR)
    end = round(width * min(max(probability, 0.0), 1.0))
    if end:
        draw.rectangle((0, 0, end - 1, bar_height - 1), fill=style.tint(colour))
    draw.rectangle((0, 0, padding // 2 - 1, bar_height - 1), fill=colour)
    text_top = padding - 4
    for row, line in enumerate(predicted_lines):
        draw.text((2 * padding, text_top + row * _LINE_PX), line, style.INK, font)
    for row, line in enumerate(true_lines):
        top = true_top + text_top + row * _LINE_PX
        draw.text((mark_left - padding - font.getlength(line), top), line, style.INK, font)
    if true_lines:
        mark_top = true_top + padding
        _draw_mark(draw, mark_left, mark_top, is_right=str(known[task.name]) == label)
    return strip


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    """The lines of a text in this width; a word that is longer than a line ends in an ellipsis."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: Any, width: float) -> str:
    """A line as it is, or as much of it as the width has space for, with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    beginning = line
    while len(beginning) > 1 and font.getlength(f"{beginning}…") > width:
        beginning = beginning[:-1]
    return f"{beginning}…"


def _draw_mark(draw: ImageDraw.ImageDraw, left: float, top: float, *, is_right: bool) -> None:
    """Draw a tick or a cross, as high as letters; Pillow's font has none."""
    side = style.CAPTION_PX
    width = side // 6
    if is_right:
        points = [(0.05, 0.55), (0.38, 0.88), (0.95, 0.12)]
        line = [(left + x * side, top + y * side) for x, y in points]
        draw.line(line, fill=style.RIGHT, width=width, joint="curve")
        return
    near = 0.14 * side
    far = 0.86 * side
    draw.line((left + near, top + near, left + far, top + far), fill=style.WRONG, width=width)
    draw.line((left + near, top + far, left + far, top + near), fill=style.WRONG, width=width)


def shares_legend(
    listed: Sequence[Output],
    colours: Sequence[style.RGB | None],
    result: Mapping[str, Any],
    known: Mapping[str, Any],
    width: int,
) -> Image.Image:
    """Return predicted numbers with the colours of their classes, as many lines as they need.

    Args:
        listed: the numbers of a map; the largest ones are written, see :func:`legend_outputs`.
        colours: of each number.
        result: of a Predictor for the image.
        known: column -> known value.
        width: of the picture.
    """
    colour_by_key = {output.key: colour for output, colour in zip(listed, colours, strict=True)}
    largest = legend_outputs(listed, result)
    texts = number_texts(largest, result, known)
    colours_of_texts = [colour_by_key[output.key] for output in largest]
    rest = rest_of_legend(listed)
    if rest:
        texts.append(rest)
        colours_of_texts.append(None)
    return texts_with_colours(texts, colours_of_texts, width)


def texts_with_colours(
    texts: Sequence[str], colours: Sequence[style.RGB | None], width: int
) -> Image.Image:
    """Return texts, each with a square of its colour if it has one, as many lines as they need."""
    font = style.font(style.CAPTION_PX)

    # the position and the lines of each text
    positions = []
    lines_of_texts = []
    left = 0
    top = 0
    for text, colour in zip(texts, colours, strict=True):
        text_width = round(font.getlength(text)) + 2 * style.CAPTION_PX
        if left and left + text_width > width:
            left = 0
            top += _LINE_PX
        indent = 4 if colour is None else style.CAPTION_PX + 4
        lines = _wrapped(_with_hyphens(text), font, width - indent)
        positions.append((left, top))
        lines_of_texts.append(lines)
        left += text_width
        top += (len(lines) - 1) * _LINE_PX

    strip = Image.new("RGB", (width, top + _LINE_PX), "white")
    draw = ImageDraw.Draw(strip)
    for colour, lines, (x, y) in zip(colours, lines_of_texts, positions, strict=True):
        text_left = x + 4
        if colour is not None:
            square = (x + 4, y + _SQUARE_PX, x + 4 + _SQUARE_PX, y + 2 * _SQUARE_PX)
            draw.rectangle(square, fill=colour)
            text_left = x + style.CAPTION_PX + 4
        for row, line in enumerate(lines):
            line_top = y + row * _LINE_PX + _SQUARE_PX - 6
            draw.text((text_left, line_top), line, style.INK, font)
    return strip


def text_and_bar(
    text: str, output: Output, scale: Scale, width: int, *, fades: bool
) -> Image.Image:
    """Return a text and the colour bar of a map, below each other where the text is long; see :func:`colour_bar`."""
    bar = colour_bar(output, scale, width, fades=fades)
    text_alone = texts_with_colours([text], [None], width)
    bar_width = _bar_width(output, scale, width)
    text_width = style.font(style.CAPTION_PX).getlength(text)
    if text_width + 2 * style.CAPTION_PX + bar_width <= width:
        left = width - bar_width
        text_alone.paste(bar.crop((left, 0, width, bar.height)), (left, 0))
        return text_alone
    strip = Image.new("RGB", (width, text_alone.height + bar.height), "white")
    strip.paste(text_alone)
    strip.paste(bar, (0, text_alone.height))
    return strip


def colour_bar(output: Output, scale: Scale, width: int, *, fades: bool) -> Image.Image:
    """Return the colours of a scale with its ends, on the right of a line.

    Where the line is too short for both, the ends are above the colours.

    Args:
        output: one of those with this scale, which has their unit.
        scale: of a map.
        width: of the line.
        fades: whether small values are transparent, see :func:`dinoneck.viz.style.heat_opacity`.
    """
    font = style.font(style.CAPTION_PX)
    ends = _ends(output, scale)
    left = width - _bar_width(output, scale, width)
    lines = [ends]
    bar_top = 0
    if left < 0:
        left = 4
        lines = _wrapped(ends, font, width - 8)
        bar_top = len(lines) * _LINE_PX
    strip = Image.new("RGB", (width, bar_top + _LINE_PX), "white")
    shares = np.linspace(0.0, 1.0, width // 4)
    ramp = style.heat_colours(shares[None], 0.0, 1.0)
    if fades:
        opacity = style.heat_opacity(shares)[None, :, None]
        ramp = style.MIDDLE_GREY + opacity * (ramp - style.MIDDLE_GREY)
    bar = ramp.repeat(style.CAPTION_PX, axis=0).astype(np.uint8)
    top = style.CAPTION_PX // 2
    strip.paste(Image.fromarray(bar), (width * 3 // 4 - 4, bar_top + top))
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        draw.text((left, row * _LINE_PX + top), line, style.INK, font)
    return strip


def _bar_width(output: Output, scale: Scale, width: int) -> int:
    """The pixels that a colour bar takes with its ends."""
    ends = _ends(output, scale)
    text_width: float = style.font(style.CAPTION_PX).getlength(ends)
    return width // 4 + 20 + round(text_width)


def _ends(output: Output, scale: Scale) -> str:
    return _with_hyphens(f"{output.text(scale.low)} … {output.text(scale.high)}{scale.note}")


def panel_captions(texts: Sequence[str], width: int, panel_width: int) -> Image.Image:
    """Return the texts below maps that are next to each other, each on as many lines as it needs.

    Args:
        texts: one per map, from left to right.
        width: of the picture.
        panel_width: of a map.
    """
    font = style.font(style.PANEL_CAPTION_PX)
    lines_of_texts = []
    for text in texts:
        lines_of_texts.append(_wrapped(_with_hyphens(text), font, panel_width - 8))

    line_height = style.PANEL_CAPTION_PX * 4 // 3
    num_lines = max(len(lines) for lines in lines_of_texts)
    strip = Image.new("RGB", (width, num_lines * line_height + style.GAP_PX * 2), "white")
    draw = ImageDraw.Draw(strip)
    for column, lines in enumerate(lines_of_texts):
        left = column * (panel_width + style.GAP_PX) + 4
        for row, line in enumerate(lines):
            draw.text((left, style.GAP_PX + row * line_height), line, style.INK, font)
    return strip


def _with_hyphens(text: str) -> str:
    """The text with hyphens for minus signs, which Pillow's font does not have."""
    return text.replace("\N{MINUS SIGN}", "-")
