"""Maps at image resolution as files: class masks as PNG with a palette, values as TIFF of 32 bits."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.atomic import write_whole
from dinoneck.data.decoding import read_picture
from dinoneck.inference.resolution import UNSEEN
from dinoneck.tasks import Task
from dinoneck.viz import style

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

_COLOURS = 256  # entries of a palette; the last one marks pixels without a prediction
_DEEPEST = 65535
_GEO_KEYS = 34735  # the tag GeoKeyDirectory


def write_maps(
    folder: Path, name: str, maps: Mapping[str, Array], tasks: Sequence[Task], image: Path | None = None
) -> list[Path]:
    """Write the maps of one image, one file each: ``folder/name.png`` or ``.tif``.

    Where there are several maps, each has a folder of its own: ``folder/task/name.png``; the outputs of a map of
    values are files of their own too, ``folder/task/label/name.tif``.

    Args:
        folder: made if missing.
        name: of the image: its path without suffix.
        maps: task name -> (height, width) class indices, or (dim, height, width) values, as ``Predictor`` gives them
            with ``maps="image"``. Class indices become a palette PNG of 8 bits, above 255 classes a grey PNG of 16
            bits; pixels without a prediction are 255, or 65535. Values become a TIFF of 32-bit floats, NaN without a
            prediction.
        tasks: whose maps they are.
        image: the file of the image. The maps of a GeoTIFF are GeoTIFFs with its position, if rasterio (the extra
            ``geo``) is installed.

    Returns:
        The files.

    Raises:
        OSError: if a file cannot be written.
    """
    planes: dict[tuple[str, ...], tuple[Task, Array]] = {}
    for task in (task for task in tasks if task.name in maps):
        found = maps[task.name]
        labels = task.labels or [*map(str, range(task.dim))]
        if found.ndim == 2:
            planes[task.name,] = task, found
        for label, plane in zip(labels, found, strict=True) if found.ndim == 3 else ():
            planes[(task.name, label) if task.dim > 1 else (task.name,)] = task, plane
    position, files = None if image is None else _position(image), list[Path]()
    for parts, (task, plane) in planes.items():
        inside = folder.joinpath(*(re.sub(r"[^\w.\- ]", "_", part) for part in parts)) if len(planes) > 1 else folder
        stored, palette = _stored(plane, task)
        as_png = plane.dtype.kind == "i" and position is None
        file = inside / f"{name}{'.png' if as_png else '.tif'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _picture(stored, palette, as_png) if position is None else _geotiff(stored, position))
        files.append(file)
    return files


def _stored(plane: Array, task: Task) -> tuple[Array, bytes | None]:
    """The numbers of the file, and the colours of classes: black for the ground, grey for what is not predicted."""
    if plane.dtype.kind != "i":
        return plane, None
    if task.dim >= _COLOURS:
        return np.where(plane == UNSEEN, _DEEPEST, plane).astype(np.uint16), None
    colours = [colour or (0, 0, 0) for colour in style.class_colours(task.labels or [""] * task.dim)]
    palette = [*colours, *[(0, 0, 0)] * (_COLOURS - 1 - task.dim), style.NODATA]
    return np.where(plane == UNSEEN, _COLOURS - 1, plane).astype(np.uint8), np.array(palette, np.uint8).tobytes()


def _picture(stored: Array, palette: bytes | None, as_png: bool) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(stored)
    if palette is not None:
        picture.putpalette(palette)
    picture.save(buffer, "PNG" if as_png else "TIFF", **({} if as_png else {"compression": "tiff_adobe_deflate"}))
    return buffer.getvalue()


def _position(image: Path) -> dict[str, Any] | None:
    """The coordinate system and the transform of a GeoTIFF; None for other images."""
    if image.suffix.lower() not in (".tif", ".tiff") or not read_picture(image, _is_geotiff):
        return None
    try:
        import rasterio
    except ImportError:
        logger.warning("%s is a GeoTIFF; its maps have no position without rasterio: pip install dinoneck[geo]", image)
        return None
    with rasterio.open(image) as file:
        return {"crs": file.crs, "transform": file.transform}


def _is_geotiff(image: Image.Image, _: str) -> bool:
    return _GEO_KEYS in getattr(image, "tag_v2", ())


def _geotiff(stored: Array, position: dict[str, Any]) -> bytes:
    import rasterio

    nodata = {"f": float("nan"), "u": np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 0}[stored.dtype.kind]
    shape = {"height": stored.shape[0], "width": stored.shape[1], "count": 1, "dtype": stored.dtype.name}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", compress="deflate", nodata=nodata, **shape, **position) as file:
            file.write(stored, 1)
        return bytes(memory.read())
