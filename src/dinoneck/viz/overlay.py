"""The maps of a head: drawn over the image in grey with a legend, and as files in the pixels of the image."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from dinoneck.atomic import write_whole
from dinoneck.errors import ConfigError
from dinoneck.extras import missing_extra
from dinoneck.images.orientation import turn_back, turn_vectors_back
from dinoneck.images.recipe import ImageRecipe
from dinoneck.runtime.maps import UNSEEN, at_image_size
from dinoneck.task_facts import (
    GATE,
    GATE_WEIGHTS,
    TaskFacts,
    TaskRecord,
    as_tasks,
    output_names,
)
from dinoneck.text import printable
from dinoneck.viz import style
from dinoneck.viz.geo_reference import GeoReference, read_geo_reference
from dinoneck.viz.legends import (
    class_bar,
    colour_bar,
    labels_bar,
    legend_outputs,
    normals_legend,
    number_texts,
    panel_captions,
    rest_of_legend,
    shares_legend,
    stacked,
    text_and_bar,
    texts_and_intervals,
    texts_with_colours,
)
from dinoneck.viz.pictures import as_image
from dinoneck.viz.scales import (
    Output,
    Scale,
    interval_axes,
    map_colours,
    outputs,
    outputs_by_map,
    outputs_by_task,
    place_interval,
    scales,
    shown_cells,
)

Array = np.ndarray[Any, Any]
AGGREGATE_TAG = "NUMBER_OF_IMAGE"
"""The entry of GDAL's metadata in a TIFF of values: whether the image's number is their sum or their mean."""
_GDAL_METADATA = 42112  # tag of TIFF

_HATCH_PX = 12
# grey = luminance * contrast + offset: paler than the image, so that colours stand out
_GREY_CONTRAST = 0.8
_GREY_OFFSET = 40.0
_COLOURS = 256  # entries of a palette; the last one marks pixels without a prediction
_UNSEEN_8_BIT = _COLOURS - 1
_UNSEEN_16_BIT = 65535
# numbers from 0 to 1 that add up to this in a cell, a little above 1 by their errors, share a picture
_MOST_IN_A_CELL = 1.05
_CLASSES = "most probable class"  # the folder of the classes of a map of shares


def overlay_panel(
    image: Any,
    result: Mapping[str, Any],
    tasks: TaskFacts | Sequence[TaskFacts],
    preprocess: ImageRecipe,
    *,
    known: Mapping[str, Any] | None = None,
    scale: Mapping[str, Scale] | None = None,
    legend: bool = True,
) -> Image.Image:
    """Draw the maps of one image over the image in grey, with a legend below each.

    Classes and other shares have one colour each, the stronger the larger the share; a first class
    named background, ground, none or soil has none. Numbers from 0 to 1 without a unit (``minimum=0,
    maximum=1``) are drawn as shares too, next to each other where they add up to more than 1. Other
    numbers are drawn as heat, amounts from 0, where the grey image shows; those of one scale are
    next to each other. Surface normals are drawn as the colours (x, y, z) / 2 + 1/2 of red, green
    and blue: blue faces the camera, green up, red to the left, and what faces away from these is
    dark in it. Pixels that the head did not see are hatched. The legend below a map has the
    predicted numbers, and the known ones next to them.

    An image without maps is shown in its colours, with its numbers. The class of an image is a bar
    below it, as long as the class is probable, with the true class; it has no map. Of several
    labels an image has a chip for each that reaches its threshold, with a tick or a cross where it
    is known whether the image has the label, and an outline for each that is missed. A result with
    intervals gives the prediction sets of its classes too, and a bar for each number that spans its
    interval, with a dot at the number and a line at the true one; bars of one unit have one axis.

    Args:
        image: the image itself.
        result: of a Predictor, made with ``maps="patch"``.
        tasks: what is predicted, as in ``Predictor.tasks``.
        preprocess: how the image was prepared, as in ``Predictor.preprocess``.
        known: column -> known value, such as ``{"crop": 0.3}``; of a class the task's name -> its
            label.
        scale: how maps are drawn, of :func:`dinoneck.viz.scales.scales` for several images; None =
            of this one.
        legend: whether numbers, labels and classes are below; without it a map of values still has
            its name and its colour bar.

    Returns:
        A picture whose longer side without the legend is 1200 px.

    Raises:
        DataError: if the image cannot be read, or predictions are not finite.
        ShapeError: if a map is not (outputs, rows, cols).
    """
    picture = as_image(image, preprocess.bits)
    tasks = as_tasks(tasks)
    listed = outputs(tasks)
    known = known or {}
    canvas = _Canvas.of(picture, preprocess)
    width = canvas.width

    # the maps, each with its legend
    drawing = _MapDrawing(
        canvas, result, known, scale or scales(listed, [result]), legend=legend, in_rows=True
    )
    strips: list[Image.Image] = []
    for drawn in _drawn_maps(drawing, tasks):
        strips += drawn.strips

    # what has no map: the class of an image, numbers and labels
    if not strips:
        strips.append(canvas.image)
    if not legend:
        return stacked(strips)
    for members in outputs_by_task(listed):
        if members[0].task.is_image_class:
            strips.append(class_bar(members, result, known, width))
        if members[0].task.is_multilabel:
            strips.append(labels_bar(members, result, known, width))
    strips += _NumberLegend(listed, result, known, width).strips()
    return stacked(strips)


class _NumberLegend:
    """The numbers of an image below its maps: those with an interval as bars, the others as text.

    Args:
        listed: the numbers, those with a map among them.
        result: of a Predictor for the image.
        known: column -> known value.
        width: of the picture.
    """

    def __init__(
        self,
        listed: Sequence[Output],
        result: Mapping[str, Any],
        known: Mapping[str, Any],
        width: int,
    ) -> None:
        self.listed = listed
        self.result = result
        self.known = known
        self.width = width
        self.axes = interval_axes(listed, [result], [known])
        maps = result.get("maps") or {}
        self.without_map = []
        for output in listed:
            has_strip = output.task.is_multilabel or output.task.is_image_class
            if output.map.name not in maps and not has_strip:
                self.without_map.append(output)

    def strips(self) -> list[Image.Image]:
        """The bars, then the texts."""
        strips = []
        in_legend = legend_outputs(self.listed, self.result)
        with_interval = [output for output in in_legend if output.key in self.axes]
        if with_interval:
            strips.append(self._bars(with_interval))
        texts = self._texts_without_interval()
        if texts:
            strips.append(texts_with_colours(texts, [None] * len(texts), self.width))
        return strips

    def _bars(self, with_interval: Sequence[Output]) -> Image.Image:
        """The bars of numbers with an interval; a number with a map is read from the legend of its map."""
        texts = []
        intervals = []
        for output in with_interval:
            interval = place_interval(output, self.result, self.known, self.axes[output.key])
            if interval is None:
                continue
            text = printable(output.key)
            if output in self.without_map:
                [text] = number_texts([output], self.result, self.known)
            texts.append(text)
            intervals.append(interval)
        return texts_and_intervals(texts, intervals, self.width)

    def _texts_without_interval(self) -> list[str]:
        """The numbers that neither a map nor a bar shows, and how many more there are."""
        in_legend = legend_outputs(self.without_map, self.result)
        without_interval = [output for output in in_legend if output.key not in self.axes]
        texts = number_texts(without_interval, self.result, self.known)
        rest = rest_of_legend(self.without_map)
        if rest:
            texts.append(rest)
        return texts


class MapPicture(NamedTuple):
    """The picture of a map.

    Attributes:
        name: what it shows.
        picture: the map over the image.
    """

    name: str
    picture: Image.Image


def map_pictures(
    image: Any,
    result: Mapping[str, Any],
    tasks: TaskFacts | Sequence[TaskFacts],
    preprocess: ImageRecipe,
    *,
    scale: Mapping[str, Scale],
) -> list[MapPicture]:
    """Draw the maps of one image as :func:`overlay_panel` does without a legend, each as a picture of its own.

    Args:
        image: the image itself.
        result: of a Predictor, made with ``maps="patch"``.
        tasks: what is predicted, as in ``Predictor.tasks``.
        preprocess: how the image was prepared, as in ``Predictor.preprocess``.
        scale: how maps are drawn, of :func:`dinoneck.viz.scales.scales`.

    Returns:
        Pictures whose longer side is 1200 px; none for an image without maps.

    Raises:
        DataError: if the image cannot be read, or predictions are not finite.
        ShapeError: if a map is not (outputs, rows, cols).
    """
    canvas = _Canvas.of(as_image(image, preprocess.bits), preprocess)
    drawing = _MapDrawing(canvas, result, {}, scale, legend=False, in_rows=False)
    pictures = []
    for drawn in _drawn_maps(drawing, as_tasks(tasks)):
        pictures.append(MapPicture(drawn.name, stacked(drawn.strips)))
    return pictures


@dataclass(frozen=True, eq=False)
class _Canvas:
    """An image in the size of pictures, and where the cells of maps lie on it.

    Attributes:
        image: in its colours.
        background: (height, width, 3) in pale grey, to draw maps over.
        size: (height, width) of the image itself.
        recipe: how the image was prepared.
    """

    image: Image.Image
    background: Array
    size: tuple[int, int]
    recipe: ImageRecipe

    @classmethod
    def of(cls, picture: Image.Image, recipe: ImageRecipe) -> _Canvas:
        """The canvas of an image."""
        shown = _to_picture_size(picture)
        return cls(shown, _background(shown), (picture.height, picture.width), recipe)

    @property
    def width(self) -> int:
        return self.image.width

    def narrowed(self, width: int) -> _Canvas:
        """The same of another width."""
        height = max(1, round(self.image.height * width / self.image.width))
        shown = self.image.resize((width, height), Image.Resampling.LANCZOS)
        return _Canvas(shown, _background(shown), self.size, self.recipe)

    def resample(self, cells: Array, task: TaskFacts) -> Array:
        """The cells of a map (outputs, rows, cols) in the pixels of the canvas; NaN where nothing was seen."""
        resized_task = task
        if task.kind == "density":  # amounts of a patch, not of a pixel
            resized_task = TaskRecord(name=task.name, dim=task.dim, kind="dense")
        pixels = (self.image.height, self.image.width)
        return at_image_size(
            cells, resized_task, self.size, self.recipe, probabilities=True, pixels=pixels
        )


@dataclass(frozen=True, eq=False)
class _MapDrawing:
    """What the maps of an image are drawn from.

    Attributes:
        canvas: the image.
        result: of a Predictor.
        known: column -> known value.
        scale: name of a map -> how it is drawn.
        legend: whether numbers are below the maps.
        in_rows: whether maps of one scale are next to each other.
    """

    canvas: _Canvas
    result: Mapping[str, Any]
    known: Mapping[str, Any]
    scale: Mapping[str, Scale]
    legend: bool
    in_rows: bool

    @property
    def maps(self) -> Mapping[str, Any]:
        """Name -> cells (outputs, rows, cols)."""
        return self.result.get("maps") or {}


class _DrawnMap(NamedTuple):
    """A map, or a row of maps.

    Attributes:
        name: what it shows.
        strips: of the picture's width, with what is below.
    """

    name: str
    strips: list[Image.Image]


def _drawn_maps(drawing: _MapDrawing, tasks: Sequence[TaskFacts]) -> Iterator[_DrawnMap]:
    """The maps of an image: normals, shares of one whole, numbers from 0 to 1, and amounts."""
    for task in tasks:
        if task.is_unit and task.name in drawing.maps:
            yield _drawn_normals(drawing, task)
    mapped = [output for output in outputs(tasks) if output.map.name in drawing.maps]
    mapped = [output for output in mapped if not output.map.is_image_class]
    shares = []
    numbers_from_0_to_1 = []
    amounts = []
    for output in mapped:
        if output.map.is_share:
            shares.append(output)
        elif output.is_number_from_0_to_1:
            numbers_from_0_to_1.append(output)
        else:
            amounts.append(output)
    for members in outputs_by_map(shares):
        yield _drawn_shares(drawing, members)
    if numbers_from_0_to_1:
        yield from _drawn_numbers(drawing, numbers_from_0_to_1)
    for panels in _panels_by_scale(amounts, drawing.scale):
        if drawing.in_rows:
            yield _DrawnMap(panels[0].key, _heat_strips(drawing, panels))
            continue
        for panel in panels:
            yield _DrawnMap(panel.key, _heat_strips(drawing, [panel]))


def _drawn_normals(drawing: _MapDrawing, task: TaskFacts) -> _DrawnMap:
    """The surface normals of an image, and what their colours mean."""
    canvas = drawing.canvas
    vectors = np.asarray(drawing.maps[task.name], np.float32)
    picture = _normals_over(canvas.background, canvas.resample(vectors, task))
    return _DrawnMap(task.name, [picture, normals_legend(task, canvas.width)])


def _drawn_shares(drawing: _MapDrawing, members: Sequence[Output]) -> _DrawnMap:
    """The shares of a map, a colour each."""
    canvas = drawing.canvas
    task = members[0].map
    cells = shown_cells(members, np.asarray(drawing.maps[task.name], np.float64))
    colours = map_colours(task)
    strips = [_shares_over(canvas.background, canvas.resample(cells, task), colours)]
    if drawing.legend:
        member_colours = [colours[output.channel] for output in members]
        legend = shares_legend(members, member_colours, drawing.result, drawing.known, canvas.width)
        strips.append(legend)
    return _DrawnMap("shares", strips)


def _drawn_numbers(drawing: _MapDrawing, shares: Sequence[Output]) -> Iterator[_DrawnMap]:
    """The maps of numbers from 0 to 1, a colour each."""
    colours = style.number_colours([output.key for output in shares])
    name = "shares" if len(shares) > 1 else shares[0].key
    strips = _numbers_as_shares(drawing, shares, colours)
    if drawing.in_rows or len(strips) == 1:
        if drawing.legend:
            legend = shares_legend(
                shares, colours, drawing.result, drawing.known, drawing.canvas.width
            )
            strips.append(legend)
        yield _DrawnMap(name, strips)
        return
    coloured = [
        output for output, colour in zip(shares, colours, strict=True) if colour is not None
    ]
    for output, strip in zip(coloured, strips, strict=True):
        yield _DrawnMap(output.key, [strip])


def _numbers_as_shares(
    drawing: _MapDrawing, listed: Sequence[Output], colours: Sequence[style.RGB | None]
) -> list[Image.Image]:
    """The maps of numbers from 0 to 1, each in its colour.

    They are drawn over one image, or each over its own where they overlap: they are no parts of one
    whole.
    """
    canvas = drawing.canvas
    planes = []
    for output in listed:
        cells = np.asarray(drawing.maps[output.map.name], np.float64)[output.channel]
        planes.append(np.clip(cells, 0.0, 1.0))
    shares = np.stack(planes)
    task = TaskRecord(name="shares", dim=len(shares), kind="dense")
    is_coloured = [colour is not None for colour in colours]
    if shares[is_coloured].sum(axis=0).max() <= _MOST_IN_A_CELL:
        return [_shares_over(canvas.background, canvas.resample(shares, task), colours)]
    num_columns = 1
    panel_canvas = canvas
    if drawing.in_rows:
        num_columns, panel_width = _panel_columns(canvas, sum(is_coloured))
        panel_canvas = canvas.narrowed(panel_width)
    pixels = panel_canvas.resample(shares, task)
    panels = []
    for plane, colour in zip(pixels, colours, strict=True):
        if colour is not None:
            panels.append(_shares_over(panel_canvas.background, plane[None], [colour]))
    return _rows_of_panels(panels, num_columns, canvas.width)


def _panel_columns(canvas: _Canvas, num_panels: int) -> tuple[int, int]:
    """How many of several maps are next to each other, and the width of each."""
    num_columns = 2 if num_panels in (2, 4) else 3
    panel_width = (canvas.width - (num_columns - 1) * style.GAP_PX) // num_columns
    return num_columns, panel_width


def _rows_of_panels(
    panels: Sequence[Image.Image], num_columns: int, width: int
) -> list[Image.Image]:
    """Strips of this width with panels of one size next to each other."""
    strips = []
    for start in range(0, len(panels), num_columns):
        strip = Image.new("RGB", (width, panels[0].height), "white")
        for column, panel in enumerate(panels[start : start + num_columns]):
            strip.paste(panel, (column * (panel.width + style.GAP_PX), 0))
        strips.append(strip)
    return strips


class _PanelGroup(NamedTuple):
    """What maps have in common that are drawn next to each other."""

    unit: str
    scale: Scale
    are_probabilities: bool


def _panels_by_scale(listed: Sequence[Output], scale: Mapping[str, Scale]) -> list[list[Output]]:
    """The outputs of maps that have one unit and one scale, to be drawn next to each other."""
    panels: dict[_PanelGroup, list[Output]] = {}
    for output in listed:
        group = _PanelGroup(
            unit=output.task.unit,
            scale=scale[output.map.name],
            are_probabilities=output.map.is_multilabel,
        )
        panels.setdefault(group, []).append(output)
    return list(panels.values())


def _heat_strips(drawing: _MapDrawing, panels: Sequence[Output]) -> list[Image.Image]:
    """Maps of one scale as heat, next to each other, each with its text; and their colour bar."""
    canvas = drawing.canvas
    result = drawing.result
    first = panels[0]
    scale = drawing.scale[first.map.name]
    texts = [printable(output.key) for output in panels]
    if drawing.legend:
        texts = number_texts(panels, result, drawing.known)
    fades = first.fades and scale.low == 0.0
    if len(panels) == 1:
        [drawn] = _heat_panels(canvas, panels, scale, result=result, fades=fades)
        [text] = texts
        return [drawn, text_and_bar(text, first, scale, canvas.width, fades=fades)]
    num_columns, panel_width = _panel_columns(canvas, len(panels))
    narrow = canvas.narrowed(panel_width)
    drawn_panels = _heat_panels(narrow, panels, scale, result=result, fades=fades)
    strips = []
    for row, strip in enumerate(_rows_of_panels(drawn_panels, num_columns, canvas.width)):
        texts_of_row = texts[row * num_columns : (row + 1) * num_columns]
        strips += [strip, panel_captions(texts_of_row, canvas.width, panel_width)]
    strips.append(colour_bar(first, scale, canvas.width, fades=fades))
    return strips


def _heat_panels(
    canvas: _Canvas,
    panels: Sequence[Output],
    scale: Scale,
    *,
    result: Mapping[str, Any],
    fades: bool,
) -> list[Image.Image]:
    """The map of each output as heat over the canvas."""
    pixels_by_map = {}
    for members in outputs_by_map(panels):
        task = members[0].map
        cells = shown_cells(members, np.asarray(result["maps"][task.name], np.float64))
        pixels_by_map[task.name] = canvas.resample(cells, task)
    drawn = []
    for output in panels:
        values = pixels_by_map[output.map.name][output.channel]
        drawn.append(_heat_over(canvas.background, values, scale, fades=fades))
    return drawn


def classes_panel(
    image: Any, classes: Mapping[str, Array], tasks: TaskFacts | Sequence[TaskFacts]
) -> Image.Image:
    """Draw known classes of pixels over the image in grey, in the colours of :func:`overlay_panel`, without a legend.

    Args:
        image: the image itself.
        classes: task -> (height, width) classes in any number of pixels; -1 = unlabelled, which has
            no colour.
        tasks: what is predicted; those with ``classes`` are drawn below each other.

    Returns:
        A picture whose longer side is 1200 px for one task.

    Raises:
        DataError: if the image cannot be read.
    """
    background = _background(_to_picture_size(as_image(image)))
    height, width = background.shape[:2]
    strips = []
    for task in as_tasks(tasks):
        if task.name not in classes:
            continue
        pixels = _nearest(classes[task.name], height=height, width=width)
        shares = np.stack([pixels == label for label in range(task.dim)]).astype(np.float64)
        strips.append(_shares_over(background, shares, map_colours(task)))
    return stacked(strips)


def _to_picture_size(picture: Image.Image) -> Image.Image:
    """An image whose longer side is that of pictures."""
    ratio = style.OVERLAY_PX / max(picture.size)
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _background(shown: Image.Image) -> Array:
    """An image in pale grey (height, width, 3), to draw maps over."""
    grey = np.asarray(shown.convert("L").convert("RGB"), np.float64)
    background: Array = grey * _GREY_CONTRAST + _GREY_OFFSET
    return background


def _nearest(pixels: Array, *, height: int, width: int) -> Array:
    """Pixels (rows, cols) in another size (height, width): each is that at its centre."""
    rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
    cols = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
    resized: Array = pixels[rows[:, None], cols]
    return resized


def _shares_over(
    background: np.ndarray, shares: np.ndarray, colours: Sequence[style.RGB | None]
) -> Image.Image:
    """Shares (classes, height, width) as colours over the background (height, width, 3)."""
    painted = background.copy()
    for share, colour in zip(shares, colours, strict=True):
        if colour is not None:
            opacity = style.SHARE_OPACITY * np.nan_to_num(share)[..., None] ** style.SHARE_POWER
            painted += opacity * (np.array(colour, np.float64) - background)
    return _picture(painted, np.isnan(shares[0]))


def _heat_over(
    background: np.ndarray, values: np.ndarray, scale: Scale, *, fades: bool
) -> Image.Image:
    """Values (height, width) as heat over the background (height, width, 3); on request small ones are transparent."""
    seen = np.nan_to_num(values)
    heat = style.heat_colours(seen, scale.low, scale.high)
    opacity: Any = style.OPACITY
    if fades:
        opacity = style.heat_opacity(seen / scale.high)[..., None]
    return _picture(background + opacity * (heat - background), np.isnan(values))


def _normals_over(background: np.ndarray, normals: np.ndarray) -> Image.Image:
    """Surface normals (3, height, width) as colours; where there is none, the background (height, width, 3)."""
    has_normal = np.square(np.nan_to_num(normals)).sum(axis=0) > 0
    colours = style.normal_colours(np.nan_to_num(normals))
    painted = np.where(has_normal[..., None], colours, background)
    return _picture(painted, np.isnan(normals[0]))


def _picture(painted: np.ndarray, unseen: np.ndarray) -> Image.Image:
    """The picture; pixels without a prediction are hatched."""
    rows, cols = np.indices(unseen.shape)
    painted[unseen & ((rows + cols) % _HATCH_PX < _HATCH_PX // 2)] = style.NODATA
    return Image.fromarray(np.clip(np.rint(painted), 0, 255).astype(np.uint8))


def write_maps(
    folder: Path,
    name: str,
    maps: Mapping[str, Array],
    tasks: TaskFacts | Sequence[TaskFacts],
    image: Path | None = None,
    gate: Array | None = None,
) -> list[Path]:
    """Write the maps of one image, one file each: ``folder/name.png`` or ``.tif``.

    Where there are several maps, each has a folder of its own: ``folder/task/name.png``; the
    outputs of a map of values are files of their own too, ``folder/task/label/name.tif``. A map of
    shares has the classes of the largest shares next to them, as a segmentation:
    ``folder/task/most probable class/name.png``. Surface normals are one file of three bands.

    Args:
        folder: made if missing.
        name: of the image: its path without suffix.
        maps: task name -> (height, width) class indices, or (dim, height, width) values, as
            ``Predictor`` gives them with ``maps="image"``. Class indices become a palette PNG of 8
            bits, above 255 classes a grey PNG of 16 bits; pixels without a prediction are 255, or
            65535. Values become a TIFF of 32-bit floats, NaN without a prediction, and surface
            normals one of three bands, x, y and z; the entry
            ``NUMBER_OF_IMAGE`` of its tag ``GDAL_METADATA`` (42112) states whether the number of
            the image is their ``sum`` or their ``mean``.
        tasks: whose maps they are.
        image: the file of the image. The maps of a GeoTIFF are GeoTIFFs with its position
            (transform, control points, RPCs), if rasterio (the extra ``geo``) is installed. A
            position holds for the stored pixels: of a GeoTIFF with an orientation tag, the maps are
            turned back to them and have no such tag.
        gate: (height, width) weights of what a head looked at, one map more, called ``gate``.

    Returns:
        The files.

    Raises:
        ConfigError: if two maps have one file name.
        OSError: if a file cannot be written.
    """
    planes = _planes(maps, as_tasks(tasks))
    if gate is not None:
        planes.append(_Plane(GATE_WEIGHTS, name_parts=(GATE,), upright=gate))
    folders = _folders(planes)
    reference = None if image is None else read_geo_reference(image)
    files: list[Path] = []
    for plane in planes:
        inside = folder / folders[plane.name_parts] if len(planes) > 1 else folder
        values = plane.upright
        if reference is not None:
            values = _turned_back(values, reference.orientation)
        stored, palette = _stored(values, plane.task)
        aggregate = _aggregate(values, plane.task)
        as_png = _has_classes(values) and reference is None
        suffix = ".png" if as_png else ".tif"
        file = inside / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if reference is None:
            contents = _encoded(stored, palette, as_png, aggregate)
        else:
            contents = _geotiff(stored, reference, aggregate)
        write_whole(file, contents)
        files.append(file)
    return files


class _Plane(NamedTuple):
    """What one file of maps holds.

    Attributes:
        task: whose map it is of.
        name_parts: the task's name, and what tells the plane from others of the task.
        upright: (height, width), of surface normals (3, height, width), in the upright image.
    """

    task: TaskFacts
    name_parts: tuple[str, ...]
    upright: Array


def _planes(maps: Mapping[str, Array], tasks: Sequence[TaskFacts]) -> list[_Plane]:
    """What is written of maps, a file each."""
    planes = []
    for task in tasks:
        if task.name not in maps:
            continue
        outputs_of_map = maps[task.name]
        is_one_plane = task.is_unit or outputs_of_map.ndim == 2  # (3, height, width), or classes
        if is_one_plane:
            planes.append(_Plane(task, (task.name,), outputs_of_map))
        elif task.dim == 1:
            planes.append(_Plane(task, (task.name,), outputs_of_map[0]))
        else:
            for label, output in zip(output_names(task), outputs_of_map, strict=True):
                planes.append(_Plane(task, (task.name, label), output))
            if task.shares:
                planes.append(_Plane(task, (task.name, _CLASSES), _most_probable(outputs_of_map)))
    return planes


def _most_probable(shares: Array) -> Array:
    """The class of the largest share (height, width) of shares (classes, height, width), -1 where they are NaN."""
    is_unseen = np.isnan(shares).any(axis=0)
    classes: Array = np.where(is_unseen, UNSEEN, np.nan_to_num(shares).argmax(axis=0))
    return classes


def _folders(planes: Iterable[_Plane]) -> dict[tuple[str, ...], Path]:
    """The parts of the name of a plane -> its folder; no two planes have the same."""
    folders: dict[tuple[str, ...], Path] = {}
    first_in: dict[Path, tuple[str, ...]] = {}
    for plane in planes:
        parts = plane.name_parts
        # characters that a file system may not take, and names such as ".."
        folder = Path(*(re.sub(r"[^\w.\- ]|^\.*$", "_", part) for part in parts))
        first = first_in.setdefault(folder, parts)
        if first != parts:
            raise ConfigError(
                f"the maps {'/'.join(first)!r} and {'/'.join(parts)!r} have one file name, "
                f"{folder.as_posix()!r}; rename a task or a label"
            )
        folders[parts] = folder
    return folders


def _stored(plane: Array, task: TaskFacts) -> tuple[Array, bytes | None]:
    """The numbers of the file, and the colours of classes: black for the ground, grey for what is not predicted."""
    if not _has_classes(plane):
        return plane, None
    if task.dim >= _COLOURS:
        indices_16_bit = np.where(plane == UNSEEN, _UNSEEN_16_BIT, plane).astype(np.uint16)
        return indices_16_bit, None
    black = (0, 0, 0)
    palette = np.full((_COLOURS, 3), black, np.uint8)
    for i, colour in enumerate(style.class_colours(task.labels or [""] * task.dim)):
        palette[i] = colour or black
    palette[_UNSEEN_8_BIT] = style.NODATA
    indices = np.where(plane == UNSEEN, _UNSEEN_8_BIT, plane).astype(np.uint8)
    return indices, palette.tobytes()


def _has_classes(plane: Array) -> bool:
    """Whether a plane holds class indices, which are integers; values are floats."""
    return bool(plane.dtype.kind == "i")


def _aggregate(plane: Array, task: TaskFacts) -> str | None:
    """What makes the number of an image of its pixels, ``sum`` or ``mean``.

    None of class indices, of surface normals, and of the weights of a gate, which are no number of
    the image.
    """
    if _has_classes(plane) or task.is_unit or task is GATE_WEIGHTS:
        return None
    is_sum = task.kind == "density" and task.aggregate == "sum"
    return "sum" if is_sum else "mean"


def _encoded(stored: Array, palette: bytes | None, as_png: bool, aggregate: str | None) -> bytes:
    """The bytes of a PNG, or of a TIFF with the tag of GDAL that states the aggregate; vectors are a GeoTIFF."""
    if stored.ndim == 3:
        return _geotiff(stored, None, aggregate)
    picture = Image.fromarray(stored)
    if palette is not None:
        picture.putpalette(palette)
    buffer = io.BytesIO()
    if as_png:
        picture.save(buffer, "PNG")
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        if aggregate is not None:
            item = f'<Item name="{AGGREGATE_TAG}" sample="0">{aggregate}</Item>'
            tags[_GDAL_METADATA] = f"<GDALMetadata>{item}</GDALMetadata>"
        picture.save(buffer, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)
    return buffer.getvalue()


def _turned_back(upright: Array, orientation: int) -> Array:
    """A map (height, width), or one of surface normals (3, height, width), in the stored pixels of its image."""
    if upright.ndim == 3:  # surface normals
        return turn_vectors_back(upright, orientation)
    plane: Array = turn_back(upright[None], orientation)[0]
    return plane


def _geotiff(stored: Array, reference: GeoReference | None, aggregate: str | None) -> bytes:
    """The bytes of a GeoTIFF of a map, with the tag of GDAL that states the aggregate.

    Raises:
        ImportError: naming the extra, without rasterio.
    """
    try:
        import rasterio
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error

    bands = stored if stored.ndim == 3 else stored[None]
    options: dict[str, Any] = {
        "height": bands.shape[1],
        "width": bands.shape[2],
        "count": len(bands),
        "dtype": stored.dtype.name,
        "nodata": np.nan if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max,
        "compress": "deflate",
    }
    if reference is not None:
        options["crs"] = reference.crs
        if reference.control_points:
            options["gcps"] = reference.control_points
        elif reference.transform is not None:
            options["transform"] = reference.transform
    with rasterio.MemoryFile() as memory, warnings.catch_warnings():
        # a new file has no RPCs yet
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with memory.open(driver="GTiff", **options) as file:
            if reference is not None and reference.rpcs is not None:
                file.rpcs = reference.rpcs
            file.write(bands)
            if aggregate is not None:
                file.update_tags(1, **{AGGREGATE_TAG: aggregate})
        return bytes(memory.read())
