"""Writers of small files, for the data sets of the net. Pictures differ from each other in content."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
TURN = 0x0112
"""The EXIF tag of an image's orientation; 6 = its top is at the right, so viewers turn it clockwise."""


def noise(name: str, size: tuple[int, int] = (16, 16), channels: int = 3) -> Array:
    """Return a picture (H, W, channels) of its name's own, uint8."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.integers(0, 256, (*size, channels), dtype=np.uint8)


def write_image(
    path: Path, size: tuple[int, int] = (16, 16), *, mode: str = "RGB", turn: int = 1
) -> Path:
    """Write a picture of noise; ``size`` is (height, width) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(noise(path.as_posix()[-60:], size)).convert(mode)
    options: dict[str, Any] = {}
    if turn != 1:
        exif = Image.Exif()
        exif[TURN] = turn
        options["exif"] = exif
    picture.save(path, **options)
    return path


def write_images(
    folder: Path, names: Iterable[str], size: tuple[int, int] = (16, 16)
) -> list[Path]:
    """Write a picture for each name below a folder."""
    return [write_image(folder / name, size) for name in names]


def write_mask(
    path: Path, values: Any, *, palette: Sequence[int] | None = None, dtype: Any = np.uint8
) -> Path:
    """Write numbers (H, W) or colours (H, W, 3); with a palette (flat RGB) in the mode P."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values, dtype))
    if palette is not None:
        picture = picture.convert("L")
        picture.putpalette(list(palette))
    picture.save(path)
    return path


def write_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def write_rows(
    path: Path,
    rows: Sequence[Sequence[Any]],
    separator: str = ",",
    encoding: str = "utf-8",
    *,
    images: bool = True,
) -> Path:
    """Write a table, its header first, and the images that its first column names, beside it."""
    lines = [separator.join(map(str, row)) for row in rows]
    write_text(path, "\n".join(lines) + "\n", encoding)
    if images:
        write_images(path.parent, [str(row[0]) for row in rows[1:]])
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file."""
    return write_text(path, json.dumps(value))


def bands(*values: float, rows: int = 16, width: int = 8) -> Array:
    """Return a mask of vertical bands of these values, each ``width`` pixels wide (rows, W)."""
    return np.repeat(np.array(values), width)[None].repeat(rows, axis=0)


def coco(
    images: Mapping[Any, str],
    boxes: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    size: tuple[int, int] = (32, 32),
) -> dict[str, Any]:
    """Return a COCO JSON; ``images`` and ``names`` map ids to file names and names of categories."""
    return {
        "images": [
            {"id": key, "file_name": name, "height": size[0], "width": size[1]}
            for key, name in images.items()
        ],
        "annotations": [
            {"id": number, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3], **box}
            for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }


def rectangle(left: float, top: float, width: float, height: float) -> list[float]:
    """Return the polygon of a box."""
    right = left + width
    bottom = top + height
    return [left, top, right, top, right, bottom, left, bottom]
