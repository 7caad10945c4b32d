"""The maps of a head: drawn over the image in grey with a legend, and as files in the pixels of the image."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, TiffImagePlugin

from dinoneck.atomic import write_whole
from dinoneck.data.orientation import turn_back, turn_vectors_back
from dinoneck.data.recipe import ImageRecipe
from dinoneck.data.vector_tiffs import encode_vectors
from dinoneck.errors import ConfigError
from dinoneck.runtime.maps import UNSEEN, at_image_size
from dinoneck.task_facts import GATE, GATE_WEIGHTS, TaskFacts, TaskRecord, as_tasks
from dinoneck.text import printable
from dinoneck.viz import style
from dinoneck.viz.geo_reference import GeoReference, read_geo_reference
from dinoneck.viz.pictures import as_image, caption, known_labels, predicted_labels, set_caption
from dinoneck.viz.scales import Output, Scale, outputs, scales, shown_cells

Array = np.ndarray[Any, Any]
AGGREGATE_TAG = "NUMBER_OF_IMAGE"
"""The entry of GDAL's metadata in a TIFF of values: whether the image's number is their sum or their mean."""
_GDAL_METADATA = 42112  # tag of TIFF

# where a surface faces -> its normal, into the surface: x right, y down, z forward
_FACING = {
    "the camera": (0.0, 0.0, 1.0),
    "up": (0.0, 1.0, 0.0),
    "down": (0.0, -1.0, 0.0),
    "left": (1.0, 0.0, 0.0),
    "right": (-1.0, 0.0, 0.0),
}
_HATCH_PX = 12
_MOST_CLASSES = 12  # in a legend
# grey = luminance * contrast + offset: paler than the image, so that colours stand out
_GREY_CONTRAST = 0.8
_GREY_OFFSET = 40.0
_COLOURS = 256  # entries of a palette; the last one marks pixels without a prediction
_UNSEEN_8_BIT = _COLOURS - 1
_UNSEEN_16_BIT = 65535
_CLASSES = "most probable class"  # the folder of the classes of a map of shares


def overlay_panel(
    image: Any,
    result: Mapping[str, Any],
    tasks: TaskFacts | Sequence[TaskFacts],
    preprocess: ImageRecipe,
    *,
    known: Mapping[str, Any] | None = None,
    scale: Mapping[str, Scale] | None = None,
) -> Image.Image:
    """Draw the maps of one image over the image in grey, below each other where there are several.

    Classes and other shares have one colour each, the stronger the larger the share; a first class
    named background, ground, none or soil has none. Amounts are drawn as heat from 0. Surface
    normals are drawn as the colours (x, y, z) / 2 + 1/2 of red, green and blue: blue faces the
    camera, green up, red to the left, and what faces away from these is dark in it. Pixels that
    the head did not see are hatched. The legend below a map has the predicted numbers, and the
    known ones next to them. An image without maps gets its predicted numbers. Of several labels an
    image has the list of those that reach their thresholds. A result with intervals gives the
    bounds of its numbers and the sets of its classes too.

    Args:
        image: the image itself.
        result: of a Predictor, made with ``maps="patch"``.
        tasks: what is predicted, as in ``Predictor.tasks``.
        preprocess: how the image was prepared, as in ``Predictor.preprocess``.
        known: column -> known value, such as ``{"crop": 0.3}``.
        scale: how maps are drawn, of :func:`dinoneck.viz.scales.scales` for several images; None =
            of this one.

    Returns:
        A picture whose longer side without the legend is 1200 px.

    Raises:
        DataError: if the image cannot be read, or predictions are not finite.
        ShapeError: if a map is not (outputs, rows, cols).
    """
    picture = as_image(image, preprocess.bits)
    listed = outputs(as_tasks(tasks))
    maps = result.get("maps") or {}
    scale = scale or scales(listed, [result])
    known = known or {}

    # the image, in pale grey
    size = (picture.height, picture.width)
    grey = _grey(picture)
    width, height = grey.size
    background = _background(grey)

    # the maps, each with its legend
    strips: list[Image.Image] = []
    for task in as_tasks(tasks):
        if task.is_unit and task.name in maps:
            vectors = np.asarray(maps[task.name], np.float32)
            pixels = at_image_size(vectors, task, size, preprocess, pixels=(height, width))
            strips.append(_normals_over(background, pixels))
            strips.append(_normals_legend(task, width))
    drawn = {output.map.name: output.map for output in listed if output.map.name in maps}
    for task in drawn.values():
        members = [output for output in listed if output.map is task]
        cells = shown_cells(members, np.asarray(maps[task.name], np.float64))
        resized_task = task
        if task.kind == "density":  # amounts of a patch, not of a pixel
            resized_task = TaskRecord(name=task.name, dim=task.dim, kind="dense")
        pixels = at_image_size(
            cells, resized_task, size, preprocess, probabilities=True, pixels=(height, width)
        )
        if task.is_share:
            colours = style.class_colours(task.labels or [task.name] * task.dim)
            strips.append(_shares_over(background, pixels, colours))
            listed_members = _legend_outputs(members, result)
            strips.append(_legend(listed_members, colours, result, known, width))
        else:
            for output in members:
                values = pixels[output.channel]
                strips.append(_heat_over(background, values, scale[task.name]))
                strips.append(_bar(output, scale[task.name], result, known, width))

    # numbers without a map
    without_map = [output for output in listed if output.map.name not in maps]
    has_maps = bool(strips)
    if not has_maps:
        strips.append(grey)
    lists = _lists(listed, result, known)
    numbers_without_map = [output for output in without_map if not output.task.is_multilabel]
    texts = _captions(_legend_outputs(numbers_without_map, result), result, known) + lists
    if texts or not has_maps:
        strips.append(_texts_with_colours(texts, [None] * len(texts), width))
    return Image.fromarray(np.concatenate([np.asarray(strip) for strip in strips]))


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
    grey = _grey(as_image(image))
    background = _background(grey)
    strips = []
    for task in as_tasks(tasks):
        if task.name not in classes:
            continue
        pixels = _nearest(classes[task.name], height=grey.height, width=grey.width)
        shares = np.stack([pixels == label for label in range(task.dim)]).astype(np.float64)
        colours = style.class_colours(task.labels or [task.name] * task.dim)
        strips.append(_shares_over(background, shares, colours))
    return Image.fromarray(np.concatenate([np.asarray(strip) for strip in strips]))


def _grey(picture: Image.Image) -> Image.Image:
    """The image in grey, in the size of pictures."""
    ratio = style.OVERLAY_PX / max(picture.size)
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS).convert("L").convert("RGB")


def _background(grey: Image.Image) -> Array:
    """The image in pale grey (height, width, 3), to draw maps over."""
    background: Array = np.asarray(grey, np.float64) * _GREY_CONTRAST + _GREY_OFFSET
    return background


def _nearest(pixels: Array, *, height: int, width: int) -> Array:
    """Pixels (rows, cols) in another size (height, width): each is that at its centre."""
    rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
    cols = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
    resized: Array = pixels[rows[:, None], cols]
    return resized


def _legend_outputs(listed: Sequence[Output], result: Mapping[str, Any]) -> list[Output]:
    """The outputs that a legend lists: of a task with many classes, the largest ones."""
    largest: list[Output] = []
    for _, group in groupby(listed, key=lambda output: output.task.name):
        outputs_of_task = list(group)
        if len(outputs_of_task) > _MOST_CLASSES:
            outputs_of_task.sort(key=lambda output: -output.value(result))
        largest += outputs_of_task[:_MOST_CLASSES]
    return largest


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


def _heat_over(background: np.ndarray, values: np.ndarray, scale: Scale) -> Image.Image:
    """Values (height, width) as heat over the background (height, width, 3)."""
    heat = style.heat_colours(np.nan_to_num(values), scale.low, scale.high)
    return _picture(background + style.OPACITY * (heat - background), np.isnan(values))


def _normals_over(background: np.ndarray, normals: np.ndarray) -> Image.Image:
    """Surface normals (3, height, width) as colours; where there is none, the background (height, width, 3)."""
    has_normal = np.square(np.nan_to_num(normals)).sum(axis=0) > 0
    colours = style.normal_colours(np.nan_to_num(normals))
    painted = np.where(has_normal[..., None], colours, background)
    return _picture(painted, np.isnan(normals[0]))


def _normals_legend(task: TaskFacts, width: int) -> Image.Image:
    """The name of the task, and the colours of surfaces that face in five directions."""
    texts = [printable(task.name)]
    colours: list[style.RGB | None] = [None]
    for direction, normal in _FACING.items():
        [[colour]] = style.normal_colours(np.array(normal)[:, None, None])
        red, green, blue = (int(value) for value in colour)
        texts.append(f"facing {direction}")
        colours.append((red, green, blue))
    return _texts_with_colours(texts, colours, width)


def _picture(painted: np.ndarray, unseen: np.ndarray) -> Image.Image:
    """The picture; pixels without a prediction are hatched."""
    rows, cols = np.indices(unseen.shape)
    painted[unseen & ((rows + cols) % _HATCH_PX < _HATCH_PX // 2)] = style.NODATA
    return Image.fromarray(np.clip(np.rint(painted), 0, 255).astype(np.uint8))


def _captions(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """The predicted numbers, one text each."""
    return [printable(caption(output, result, known)) for output in listed]


def _lists(
    listed: Sequence[Output], result: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """The labels of an image, one text each, and those that its class is among."""
    texts = []
    for _, group in groupby(listed, key=lambda output: output.task.name):
        outputs_of_task = list(group)
        task = outputs_of_task[0].task
        if task.is_multilabel:
            labels = predicted_labels(outputs_of_task, result)
            labels[0] = f"{task.name}: {labels[0]}"
            labels[-1] += known_labels(outputs_of_task, known)
            texts += labels
        elif task.is_image_class and set_caption(task, result):
            texts.append(f"{task.name}{set_caption(task, result)}")
    return [printable(text) for text in texts]


def _legend(
    listed: Sequence[Output],
    colours: Sequence[style.RGB | None],
    result: Mapping[str, Any],
    known: Mapping[str, Any],
    width: int,
) -> Image.Image:
    """Predicted numbers with the colours of their classes, as many lines as they need."""
    texts = _captions(listed, result, known)
    colours_of_texts = [colours[output.channel] if colours else None for output in listed]
    return _texts_with_colours(texts, colours_of_texts, width)


def _texts_with_colours(
    texts: Sequence[str], colours: Sequence[style.RGB | None], width: int
) -> Image.Image:
    """Texts, each with a square of its colour if it has one, as many lines as they need."""
    font = style.font(style.CAPTION_PX)
    line_height = 2 * style.CAPTION_PX

    # the position of each text
    positions = []
    left = 0
    top = 0
    for text in texts:
        text_width = round(font.getlength(text)) + 2 * style.CAPTION_PX
        if left and left + text_width > width:
            left = 0
            top += line_height
        positions.append((left, top))
        left += text_width

    strip = Image.new("RGB", (width, top + line_height), "white")
    draw = ImageDraw.Draw(strip)
    side = style.CAPTION_PX * 3 // 4
    for colour, text, (x, y) in zip(colours, texts, positions, strict=True):
        if colour is not None:
            draw.rectangle((x + 4, y + side, x + 4 + side, y + 2 * side), fill=colour)
        corner = (x + style.CAPTION_PX + 4, y + side - 6)
        draw.text(corner, _with_hyphens(text), style.INK, font)
    return strip


def _bar(
    output: Output, scale: Scale, result: Mapping[str, Any], known: Mapping[str, Any], width: int
) -> Image.Image:
    """The predicted number, and the colour bar with its ends, on a line of its own below a long text."""
    font = style.font(style.CAPTION_PX)
    ends = _with_hyphens(f"{output.text(scale.low)} … {output.text(scale.high)}{scale.note}")
    left = width * 3 // 4 - 16 - font.getlength(ends)
    [text] = _captions([output], result, known)
    strip = _texts_with_colours([text], [None], width)
    top = style.CAPTION_PX // 2
    if font.getlength(text) + 2 * style.CAPTION_PX > left:
        text_alone = strip
        strip = Image.new("RGB", (width, 2 * text_alone.height), "white")
        strip.paste(text_alone)
        top += text_alone.height
    ramp = style.heat_colours(np.linspace(0.0, 1.0, width // 4)[None], 0.0, 1.0)
    bar = ramp.repeat(style.CAPTION_PX, axis=0).astype(np.uint8)
    strip.paste(Image.fromarray(bar), (width * 3 // 4 - 4, top))
    ImageDraw.Draw(strip).text((left, top), ends, style.INK, font)
    return strip


def _with_hyphens(text: str) -> str:
    """The text with hyphens for minus signs, which Pillow's font does not have."""
    return text.replace("\N{MINUS SIGN}", "-")


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
        planes[(GATE,)] = (GATE_WEIGHTS, gate)
    folders = _folders(planes)
    reference = None if image is None else read_geo_reference(image)
    files: list[Path] = []
    for plane_name, (task, upright) in planes.items():
        inside = folder / folders[plane_name] if len(planes) > 1 else folder
        if reference is None:
            plane = upright
        else:
            plane = _turned_back(upright, reference.orientation)
        stored, palette = _stored(plane, task)
        as_png = _has_classes(plane) and reference is None
        suffix = ".png" if as_png else ".tif"
        file = inside / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if reference is None:
            contents = _encoded(stored, palette, as_png, _aggregate(plane, task))
        else:
            contents = _geotiff(stored, reference, _aggregate(plane, task))
        write_whole(file, contents)
        files.append(file)
    return files


_PlaneName = tuple[str, ...]  # the task, and the label of one of several outputs


def _planes(
    maps: Mapping[str, Array], tasks: Sequence[TaskFacts]
) -> dict[_PlaneName, tuple[TaskFacts, Array]]:
    """Name -> task and plane (height, width), of surface normals (3, height, width), for every file to write."""
    planes: dict[_PlaneName, tuple[TaskFacts, Array]] = {}
    for task in tasks:
        if task.name not in maps:
            continue
        outputs_of_map = maps[task.name]
        labels = task.labels or [str(i) for i in range(task.dim)]
        if task.is_unit:
            planes[(task.name,)] = (task, outputs_of_map)
        elif outputs_of_map.ndim == 2:
            plane_name: _PlaneName = (task.name,)
            planes[plane_name] = (task, outputs_of_map)
        elif outputs_of_map.ndim == 3:
            for label, plane in zip(labels, outputs_of_map, strict=True):
                plane_name = (task.name, label) if task.dim > 1 else (task.name,)
                planes[plane_name] = (task, plane)
            if task.shares and task.dim > 1:
                planes[(task.name, _CLASSES)] = (task, _most_probable(outputs_of_map))
    return planes


def _most_probable(shares: Array) -> Array:
    """The class of the largest share (height, width) of shares (classes, height, width), -1 where they are NaN."""
    is_unseen = np.isnan(shares).any(axis=0)
    classes: Array = np.where(is_unseen, UNSEEN, np.nan_to_num(shares).argmax(axis=0))
    return classes


def _folders(names: Iterable[_PlaneName]) -> dict[_PlaneName, Path]:
    """Name of a plane -> its folder; no two planes have the same."""
    folders: dict[_PlaneName, Path] = {}
    first_in: dict[Path, _PlaneName] = {}
    for plane_name in names:
        # characters that a file system may not take, and names such as ".."
        folder = Path(*(re.sub(r"[^\w.\- ]|^\.*$", "_", part) for part in plane_name))
        first = first_in.setdefault(folder, plane_name)
        if first != plane_name:
            raise ConfigError(
                f"the maps {'/'.join(first)!r} and {'/'.join(plane_name)!r} have one file name, "
                f"{folder.as_posix()!r}; rename a task or a label"
            )
        folders[plane_name] = folder
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
    """The bytes of a PNG, or of a TIFF with the tag of GDAL that states the aggregate."""
    if stored.ndim == 3:
        return encode_vectors(stored)
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


def _geotiff(stored: Array, reference: GeoReference, aggregate: str | None) -> bytes:
    """The bytes of a GeoTIFF of a map, with the tag of GDAL that states the aggregate."""
    import rasterio

    bands = stored if stored.ndim == 3 else stored[None]
    options: dict[str, Any] = {
        "height": bands.shape[1],
        "width": bands.shape[2],
        "count": len(bands),
        "dtype": stored.dtype.name,
        "nodata": np.nan if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max,
        "compress": "deflate",
        "crs": reference.crs,
    }
    if reference.control_points:
        options["gcps"] = reference.control_points
    elif reference.transform is not None:
        options["transform"] = reference.transform
    with rasterio.MemoryFile() as memory, warnings.catch_warnings():
        # a new file has no RPCs yet
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with memory.open(driver="GTiff", **options) as file:
            if reference.rpcs is not None:
                file.rpcs = reference.rpcs
            file.write(bands)
            if aggregate is not None:
                file.update_tags(1, **{AGGREGATE_TAG: aggregate})
        return bytes(memory.read())
