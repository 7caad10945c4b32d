"""YOLO: a ``data.yaml`` of Ultralytics, its images and their label files, as the entries of COCO JSON.

A label file has the name of its image and a line per object: ``class cx cy width height``, or
``class x y x y x y ...`` for a polygon, in shares of the sides of the upright image. A line of nine
numbers is a polygon of four points, also where it was written for an oriented box. Where masks are
asked for, a box among polygons is a rectangle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from dinoneck.atomic import read_regular
from dinoneck.data.cells import PathLike, check_unique, composed, number_of
from dinoneck.data.coco import Listed
from dinoneck.data.coco_entries import ClassName, Coco, CocoBox, CocoCategory, CocoImage
from dinoneck.data.listing import images_below
from dinoneck.data.names import find_files, is_absolute
from dinoneck.data.segmentations import polygon_extent
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.pixels import in_threads, read_header
from dinoneck.text import reason_of, some_of
from dinoneck.yaml_file import read_yaml

PARTS = ("train", "val", "test")
CLASS_LIST = "classes.txt"
_BOX_NUMBERS = 5  # of a line: the class, the centre, width and height
_FEWEST_POLYGON_NUMBERS = 7  # the class and three points
_ROUNDING = 1e-3  # of a side, by which shares may leave 0 ... 1


def parts_of(file: Path) -> tuple[str, ...]:
    """Return the parts that a ``data.yaml`` names.

    Raises:
        DataError: if it cannot be read, or names none.
    """
    values = _read_values(file)
    parts = tuple(part for part in PARTS if values.get(part))
    if not parts:
        raise DataError(f"{file} names no images; expected train: and val: with their folders")
    return parts


def read_yolo(file: Path, images: PathLike | None, part: str) -> Listed[CocoBox]:
    """Read the images of a part with their boxes and polygons.

    Folders of images are relative to ``images``, to the file's ``path``, or to the file; one that is
    not there, as of another machine, is found by its last two names or more below these. Labels are
    in the folder that has ``labels`` in the place of the last ``images`` of the path, else beside
    the image. An image without a label file has no objects.

    Args:
        file: the ``data.yaml``.
        images: a folder that is tried before ``path``; None = none.
        part: ``train``, ``val`` or ``test``.

    Raises:
        DataError: if the file, a folder, an image or a line cannot be used, no image has a label
            file, or a label file has no image; it names the line.
    """
    values = _read_values(file)
    if "kpt_shape" in values:
        raise DataError(f"{file} is of keypoints (kpt_shape), which are not read; expected boxes")
    roots = [file.parent]
    if isinstance(values.get("path"), str):
        roots.insert(0, file.parent / values["path"])
    if images is not None:
        roots.insert(0, Path(images))
    paths: list[Path] = []
    folders: list[Path] = []
    for name in _names_of_part(values[part], file, part):
        place = _find_place(name, roots, file)
        if place.is_dir():
            folders.append(place)
            paths += images_below(place)
        else:
            paths += _read_list(place, file.parent)
    label_files = [_label_file_of(path) for path in paths]
    _check_label_files(file, folders, label_files)
    names = _read_class_names(values, file, label_files)
    sizes = [header.size for header in in_threads(read_header, paths)]

    listed_images = []
    boxes: list[CocoBox] = []
    places: list[str] = []
    for path, label_file, size in zip(paths, label_files, sizes, strict=True):
        name = Path(os.path.relpath(path, file.parent)).as_posix()
        listed_images.append(CocoImage(name, name, height=size[0], width=size[1]))
        for number, line in enumerate(_lines_of(label_file), start=1):
            if line:
                where = f"{label_file}, line {number}"
                boxes.append(_read_line(line, name, size, len(names), where))
                places.append(where)
    categories = [CocoCategory(label, ClassName(name)) for label, name in enumerate(names)]
    return Listed(file, Coco(listed_images, boxes, categories), paths, places, part=part)


# The YAML file
# ----------------------------------------------------------------------------------------------------


def _read_values(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _names_of_part(value: Any, file: Path, part: str) -> list[str]:
    """The folders and lists of a part."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{file}: {part} is {value!r}; expected a folder, or a list of folders")
    return names


def _find_place(name: str, roots: Sequence[Path], file: Path) -> Path:
    """The folder or list of a name: relative to the first root that has it, else by its last names."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    endings = ["/".join(parts[start:]) for start in range(max(1, len(parts) - 1))]
    if is_absolute(name) and Path(name).exists():
        return Path(name)
    candidates = [] if is_absolute(name) else [root / name for root in roots]
    candidates += [root / ending for ending in endings for root in roots if ending]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise DataError(
        f"{file} names {name}, which is not there; paths are relative to path: or to {file.parent}"
    )


def _read_list(file: Path, root: Path) -> list[Path]:
    """The images of a text file, one per line, relative to it or to the data set."""
    names = [line for line in _lines_of(file) if line]
    if not names:
        raise DataError(f"{file} lists no images; expected a path per line")
    is_beside = (file.parent / names[0]).is_file()
    return find_files(names, file.parent if is_beside else root, f"images of {file}")


def _read_class_names(values: dict[str, Any], file: Path, label_files: Sequence[Path]) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    stated = values.get("names")
    if stated is None:
        stated = _read_class_list(file, label_files)
    if isinstance(stated, dict):
        numbers = {str(number): name for number, name in stated.items()}
        stated = [numbers.get(str(number)) for number in range(len(numbers))]
    if not isinstance(stated, list) or not stated:
        raise DataError(f"{file}: names is {stated!r}; expected a list, or 0: name, 1: name, ...")
    for number, name in enumerate(stated):
        if isinstance(name, bool) or not isinstance(name, str | int) or not composed(str(name)):
            raise DataError(
                f"{file}: the name of class {number} is {name!r}; expected a text, in quotes if it is "
                "a word of YAML such as no"
            )
    names = [composed(str(name)) for name in stated]
    check_unique(names, f"{file}: names: the class", "name each once")
    if values.get("nc", len(names)) != len(names):
        raise DataError(f"{file}: nc is {values['nc']}, and names has {len(names)}; correct one")
    return names


def _read_class_list(file: Path, label_files: Sequence[Path]) -> list[str]:
    """The lines of ``classes.txt`` beside the labels, or beside the YAML file."""
    for folder in (*dict.fromkeys(label.parent for label in label_files), file.parent):
        if (folder / CLASS_LIST).is_file():
            return [line for line in _lines_of(folder / CLASS_LIST) if line]
    raise DataError(
        f"{file} has no names, and there is no {CLASS_LIST} beside the labels; add names:"
    )


# Label files
# ----------------------------------------------------------------------------------------------------


def _label_file_of(image: Path) -> Path:
    """Where the label file of an image is, whether it exists or not."""
    return _label_folder_of(image.parent) / f"{image.stem}.txt"


def _label_folder_of(folder: Path) -> Path:
    """The folder with ``labels`` in the place of the last ``images``, where there is one; else the folder."""
    parts = folder.absolute().parts
    if "images" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("images")
    labels = Path(*parts[:last], "labels")
    return labels.joinpath(*parts[last + 1 :]) if labels.is_dir() else folder


def _check_label_files(file: Path, folders: Sequence[Path], label_files: Sequence[Path]) -> None:
    """Refuse two images with one label file, no label file at all, and those without an image."""
    check_unique(map(str, label_files), f"{file}: the label file", "it belongs to two images")
    if not any(label.is_file() for label in label_files):
        raise DataError(
            f"{file}: none of {len(label_files)} images has a label file, such as {label_files[0]}; "
            "labels lie in labels/ in the place of images/, or beside the images"
        )
    known = set(label_files)
    for folder in folders:
        labels = _label_folder_of(folder)
        if labels == folder:
            continue  # beside the images, where other texts lie too
        others = [path for path in sorted(labels.rglob("*.txt")) if path.name != CLASS_LIST]
        unknown = [str(path) for path in others if path not in known]
        if unknown:
            raise DataError(
                f"{len(unknown)} label files have no image in {folder}: {some_of(unknown, 3)}; add the "
                "images, or remove the label files"
            )


def _lines_of(file: Path) -> list[str]:
    """The lines of a text file; none of one that does not exist."""
    if not file.exists():
        return []
    try:
        text = read_regular(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}; expected UTF-8") from error
    return [line.strip() for line in text.splitlines()]


def _read_line(
    line: str, image_id: str, size: tuple[int, int], num_classes: int, where: str
) -> CocoBox:
    """The object of a line, in pixels."""
    height, width = size
    label, *shares = _numbers_of(line, where)
    if not label.is_integer() or not 0 <= label < num_classes:
        raise DataError(f"{where} has the class {label:g}; expected 0 ... {num_classes - 1}")
    outside = [share for share in shares if not -_ROUNDING <= share <= 1 + _ROUNDING]
    if outside:
        raise DataError(
            f"{where} has the value {outside[0]:g}; expected shares of the image's sides, 0 ... 1: "
            "divide pixels by its width and height"
        )
    if len(shares) + 1 == _BOX_NUMBERS:
        x, y, w, h = shares
        bbox = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return CocoBox(image_id, int(label), bbox, segmentation=Raw(b"[]"))
    polygon = []
    for x, y in zip(shares[0::2], shares[1::2], strict=True):
        polygon += [x * width, y * height]
    left, top, right, bottom = polygon_extent([polygon])
    bbox = [left, top, right - left, bottom - top]
    return CocoBox(image_id, int(label), bbox, segmentation=Raw(msgspec.json.encode([polygon])))


def _numbers_of(line: str, where: str) -> list[float]:
    """The numbers of a line: five of a box, or an odd number from seven on of a polygon."""
    numbers = [number for number in map(number_of, line.split()) if number is not None]
    if len(numbers) < len(line.split()):
        raise DataError(f"{where} is {line!r}; expected finite numbers: class cx cy width height")
    count = len(numbers)
    if count == _BOX_NUMBERS or (count >= _FEWEST_POLYGON_NUMBERS and count % 2):
        return numbers
    kind = "a score, as predictions have" if count == _BOX_NUMBERS + 1 else "no box and no polygon"
    raise DataError(
        f"{where} has {count} numbers, {kind}; expected class cx cy width height, or class x y x y x "
        "y ... (keypoints are not read)"
    )
