"""What pictures say below their maps: names, numbers and colours, as strips of the picture's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.task_facts import NO_LABELS, TaskFacts, output_name
from dinoneck.text import printable
from dinoneck.viz import style
from dinoneck.viz.pictures import (
    LabelChip,
    caption,
    class_colours,
    is_known_without_labels,
    known_class,
    label_chips,
    likely_class,
    set_caption,
)
from dinoneck.viz.scales import Output, PlacedInterval, Scale, outputs_by_task

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
_PADDING_PX = style.CAPTION_PX // 2  # beside the text of a bar or a chip
_TEXT_TOP_PX = _PADDING_PX - 4  # from the top of a line to that of its letters
_TEXT_LEFT_PX = 4
_CHIP_GAP_PX = style.CAPTION_PX // 3
_CHIP_MARGIN_PX = 4  # between a chip and the chips of the next line
_CHIP_OUTLINE_PX = 3
# of an axis with an interval; heights are measured from the middle of the line, up and down
_AXIS_HEIGHT_PX = 2
_RANGE_HEIGHT_PX = 8
_END_HEIGHT_PX = 14  # of the lines at the bounds
_END_WIDTH_PX = 4
_POINT_RADIUS_PX = 11  # of the predicted number
_TRUTH_HEIGHT_PX = 24  # of the line at the true number
_TRUTH_WIDTH_PX = 6
_COLOUR_BAR_PARTS = 4  # a colour bar is a fourth of its line
_COLOUR_BAR_GAP_PX = 20  # beside the ends of a scale


def legend_outputs(listed: Sequence[Output], result: Mapping[str, Any]) -> list[Output]:
    """Return the outputs that a legend lists: of shares of many classes the largest ones, else all."""
    largest: list[Output] = []
    for outputs_of_task in outputs_by_task(listed):
        if _num_left_out(outputs_of_task):
            outputs_of_task.sort(key=lambda output: -output.value(result))
            outputs_of_task = outputs_of_task[:_MOST_CLASSES]
        largest += outputs_of_task
    return largest


def rest_of_legend(listed: Sequence[Output]) -> str:
    """Return how many outputs :func:`legend_outputs` leaves out, as ``and 5 more``; empty if it lists all."""
    rest = 0
    for outputs_of_task in outputs_by_task(listed):
        rest += _num_left_out(outputs_of_task)
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


class _PlacedChip(NamedTuple):
    """Where a label of an image is written.

    Attributes:
        chip: the label.
        text: its name, as far as there is space for it, and its probability.
        left: of the chip, in pixels.
        top: of its line.
        width: of the chip.
    """

    chip: LabelChip
    text: str
    left: int
    top: int
    width: int


def labels_bar(
    outputs_of_task: Sequence[Output],
    result: Mapping[str, Any],
    known: Mapping[str, Any],
    width: int,
) -> Image.Image:
    """Return the labels of an image that reach their thresholds as chips in their colours.

    A tick follows a label that the image has, a cross one that it does not have. Labels that are
    missed have an outline alone. Without a label that reaches its threshold, ``none`` is written,
    with a tick if the image is known to have none.
    """
    task = outputs_of_task[0].task
    font = style.font(style.CAPTION_PX)
    chips = label_chips(outputs_of_task, result, known)
    title = f"{task.name}:"
    has_tick = False
    if not any(chip.is_predicted for chip in chips):
        title = f"{title} {NO_LABELS}"
        has_tick = is_known_without_labels(outputs_of_task, known)
    longest_title = width - _TEXT_LEFT_PX - _PADDING_PX - style.CAPTION_PX
    title = _shortened(_with_hyphens(printable(title)), font, longest_title)
    title_end = _TEXT_LEFT_PX + round(font.getlength(title)) + _PADDING_PX
    placed_chips = _place_chips(chips, title_end, width)

    last_top = placed_chips[-1].top if placed_chips else 0
    strip = Image.new("RGB", (width, last_top + _LINE_PX), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((_TEXT_LEFT_PX, _TEXT_TOP_PX), title, style.INK, font)
    if has_tick:
        _draw_mark(draw, title_end, _PADDING_PX, is_right=True)
    for placed in placed_chips:
        _draw_chip(draw, placed)
    return strip


def _place_chips(chips: Sequence[LabelChip], left: int, width: int) -> list[_PlacedChip]:
    """Place chips beside each other from ``left`` on, each in the next line where it does not fit."""
    font = style.font(style.CAPTION_PX)
    top = 0
    placed_chips = []
    for chip in chips:
        ending = f" {chip.probability}"
        if not chip.is_predicted:
            ending += ", missed"
        mark_width = 0
        if chip.has_mark:
            mark_width = style.CAPTION_PX + _PADDING_PX
        beside_text = 2 * _PADDING_PX + mark_width
        longest_label = width - 2 * _TEXT_LEFT_PX - beside_text - font.getlength(ending)
        label = _shortened(_with_hyphens(printable(chip.label)), font, longest_label)
        text = label + ending
        chip_width = round(font.getlength(text)) + beside_text
        if left + chip_width + _TEXT_LEFT_PX > width:
            left = _TEXT_LEFT_PX
            top += _LINE_PX
        placed_chips.append(_PlacedChip(chip, text, left=left, top=top, width=chip_width))
        left += chip_width + _CHIP_GAP_PX
    return placed_chips


def _draw_chip(draw: ImageDraw.ImageDraw, placed: _PlacedChip) -> None:
    """Draw a label: filled if it is predicted, as an outline if it is missed."""
    colour = placed.chip.colour
    fill = style.tint(colour) if placed.chip.is_predicted else None
    right = placed.left + placed.width
    upper = placed.top + _CHIP_MARGIN_PX
    lower = placed.top + _LINE_PX - 1 - _CHIP_MARGIN_PX
    draw.rounded_rectangle(
        (placed.left, upper, right, lower),
        radius=_PADDING_PX,
        fill=fill,
        outline=colour,
        width=_CHIP_OUTLINE_PX,
    )
    text_corner = (placed.left + _PADDING_PX, placed.top + _TEXT_TOP_PX)
    draw.text(text_corner, placed.text, style.INK, style.font(style.CAPTION_PX))
    if placed.chip.has_mark:
        mark_left = right - _PADDING_PX - style.CAPTION_PX
        is_right = bool(placed.chip.is_right)
        _draw_mark(draw, mark_left, placed.top + _PADDING_PX, is_right=is_right)


def texts_and_intervals(
    texts: Sequence[str], intervals: Sequence[PlacedInterval], width: int
) -> Image.Image:
    """Return the texts of numbers, each with its interval as a bar beside it.

    Where a text takes more than half of the width, all bars are below their texts, so that the axes
    of a picture begin and end below each other. A dot marks the predicted number, a line the true
    one. The bar is green with the true number inside, orange with it outside, and grey where it is
    not known.

    Args:
        texts: of numbers, at least one.
        intervals: of the same numbers, each on its axis, which the bar spans.
        width: of the picture.
    """
    font = style.font(style.CAPTION_PX)
    longest = max(font.getlength(_with_hyphens(text)) for text in texts)
    is_beside = longest + style.CAPTION_PX <= width // 2
    strips = []
    for text, interval in zip(texts, intervals, strict=True):
        strip = texts_with_colours([text], [None], width)
        if is_beside:
            bar = _interval_bar(interval, width - width // 2)
            strip.paste(bar, (width // 2, 0))
            strips.append(strip)
        else:
            strips += [strip, _interval_bar(interval, width)]
    return stacked(strips)


def _interval_bar(interval: PlacedInterval, width: int) -> Image.Image:
    """An axis with an interval, its number and the true one; as high as a line."""
    colour = style.UNKNOWN
    if interval.is_inside is not None:
        colour = style.RIGHT if interval.is_inside else style.WRONG
    axis_left = style.CAPTION_PX // 2
    axis_width = max(1, width - 2 * axis_left)  # images may be narrower than the margins
    middle = _LINE_PX // 2
    low = axis_left + round(axis_width * interval.low)
    high = axis_left + round(axis_width * interval.high)
    point = axis_left + round(axis_width * interval.point)

    bar = Image.new("RGB", (width, _LINE_PX), "white")
    draw = ImageDraw.Draw(bar)
    axis = (axis_left, middle - _AXIS_HEIGHT_PX, axis_left + axis_width, middle + _AXIS_HEIGHT_PX)
    draw.rectangle(axis, fill=style.AXIS)
    between = (low, middle - _RANGE_HEIGHT_PX, high, middle + _RANGE_HEIGHT_PX)
    draw.rectangle(between, fill=style.tint(colour))
    for end in (low, high):
        end_line = (end, middle - _END_HEIGHT_PX, end, middle + _END_HEIGHT_PX)
        draw.line(end_line, fill=colour, width=_END_WIDTH_PX)
    draw.circle((point, middle), _POINT_RADIUS_PX, fill=colour)
    if interval.truth is not None:
        truth = axis_left + round(axis_width * interval.truth)
        truth_line = (truth, middle - _TRUTH_HEIGHT_PX, truth, middle + _TRUTH_HEIGHT_PX)
        draw.line(truth_line, fill=style.INK, width=_TRUTH_WIDTH_PX)
    return bar


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Return strips of one width as one picture, each below the one before."""
    height = sum(strip.height for strip in strips)
    joined = Image.new("RGB", (strips[0].width, height), "white")
    top = 0
    for strip in strips:
        joined.paste(strip, (0, top))
        top += strip.height
    return joined


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
    colour = class_colours(task)[likely.place]
    font = style.font(style.CAPTION_PX)
    label = output_name(task, likely.place)
    predicted = f"{task.name}: {label} {likely.text(probability)}{set_caption(task, result)}"
    predicted = printable(predicted)
    predicted_lines = _wrapped(predicted, font, width - 3 * _PADDING_PX)

    # the true class on the right, or below
    mark_left = width - _PADDING_PX - style.CAPTION_PX
    true_lines: list[str] = []
    true_top = 0
    true_class = known_class(task, known)
    if true_class is not None:
        true = printable(f"true {true_class}")
        true_lines = _wrapped(true, font, mark_left - 2 * _PADDING_PX)
        both = font.getlength(predicted) + font.getlength(true)
        if both + 4 * _PADDING_PX + 2 * style.CAPTION_PX > width:
            true_top = len(predicted_lines) * _LINE_PX

    bar_height = len(predicted_lines) * _LINE_PX
    height = max(bar_height, true_top + len(true_lines) * _LINE_PX)
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    draw.rectangle((0, 0, width, bar_height - 1), fill=style.BAR)
    end = round(width * min(max(probability, 0.0), 1.0))
    if end:
        draw.rectangle((0, 0, end - 1, bar_height - 1), fill=style.tint(colour))
    draw.rectangle((0, 0, _PADDING_PX // 2 - 1, bar_height - 1), fill=colour)
    for row, line in enumerate(predicted_lines):
        draw.text((2 * _PADDING_PX, _TEXT_TOP_PX + row * _LINE_PX), line, style.INK, font)
    for row, line in enumerate(true_lines):
        top = true_top + _TEXT_TOP_PX + row * _LINE_PX
        draw.text((mark_left - _PADDING_PX - font.getlength(line), top), line, style.INK, font)
    if true_lines:
        mark_top = true_top + _PADDING_PX
        _draw_mark(draw, mark_left, mark_top, is_right=true_class == label)
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
        indent = _TEXT_LEFT_PX if colour is None else style.CAPTION_PX + _TEXT_LEFT_PX
        lines = _wrapped(_with_hyphens(text), font, width - indent)
        positions.append((left, top))
        lines_of_texts.append(lines)
        left += text_width
        top += (len(lines) - 1) * _LINE_PX

    strip = Image.new("RGB", (width, top + _LINE_PX), "white")
    draw = ImageDraw.Draw(strip)
    for colour, lines, (x, y) in zip(colours, lines_of_texts, positions, strict=True):
        text_left = x + _TEXT_LEFT_PX
        if colour is not None:
            square = (
                x + _TEXT_LEFT_PX,
                y + _SQUARE_PX,
                x + _TEXT_LEFT_PX + _SQUARE_PX,
                y + 2 * _SQUARE_PX,
            )
            draw.rectangle(square, fill=colour)
            text_left = x + style.CAPTION_PX + _TEXT_LEFT_PX
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
    return stacked([text_alone, bar])


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
        left = _TEXT_LEFT_PX
        lines = _wrapped(ends, font, width - 2 * _TEXT_LEFT_PX)
        bar_top = len(lines) * _LINE_PX
    strip = Image.new("RGB", (width, bar_top + _LINE_PX), "white")
    shares = np.linspace(0.0, 1.0, width // _COLOUR_BAR_PARTS)
    ramp = style.heat_colours(shares[None], 0.0, 1.0)
    if fades:
        opacity = style.heat_opacity(shares)[None, :, None]
        ramp = style.MIDDLE_GREY + opacity * (ramp - style.MIDDLE_GREY)
    bar = ramp.repeat(style.CAPTION_PX, axis=0).astype(np.uint8)
    top = style.CAPTION_PX // 2
    colours_left = width * (_COLOUR_BAR_PARTS - 1) // _COLOUR_BAR_PARTS - _TEXT_LEFT_PX
    strip.paste(Image.fromarray(bar), (colours_left, bar_top + top))
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        draw.text((left, row * _LINE_PX + top), line, style.INK, font)
    return strip


def _bar_width(output: Output, scale: Scale, width: int) -> int:
    """The pixels that a colour bar takes with its ends."""
    ends = _ends(output, scale)
    text_width: float = style.font(style.CAPTION_PX).getlength(ends)
    return width // _COLOUR_BAR_PARTS + _COLOUR_BAR_GAP_PX + round(text_width)


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
        lines_of_texts.append(_wrapped(_with_hyphens(text), font, panel_width - 2 * _TEXT_LEFT_PX))

    line_height = style.PANEL_CAPTION_PX * 4 // 3
    num_lines = max(len(lines) for lines in lines_of_texts)
    strip = Image.new("RGB", (width, num_lines * line_height + style.GAP_PX * 2), "white")
    draw = ImageDraw.Draw(strip)
    for column, lines in enumerate(lines_of_texts):
        left = column * (panel_width + style.GAP_PX) + _TEXT_LEFT_PX
        for row, line in enumerate(lines):
            draw.text((left, style.GAP_PX + row * line_height), line, style.INK, font)
    return strip


def _with_hyphens(text: str) -> str:
    """The text with hyphens for minus signs, which Pillow's font does not have."""
    return text.replace("\N{MINUS SIGN}", "-")
