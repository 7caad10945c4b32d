"""``frames.json``: the images, depth pictures and cameras of one scene, as a list in one file."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.text import reason_of, some_of

JSON = "frames.json"
_SHOWN = 5  # names in a message
# how files state poses and axes that are not read here
_WORLD_TO_CAMERA = re.compile(r"\b(world|w)\s*(to|2)\s*(cam|camera|c)\b")
_OPENGL = re.compile(r"\b(y up|z back(wards?)?|opengl|blender)\b")
_OPENCV = re.compile(r"\b(y down|opencv)\b")  # next to it, "y up" is of the world


@dataclass(frozen=True)
class FrameList:
    """What a ``frames.json`` lists of V frames.

    Attributes:
        images: V files below the scene's folder.
        depths: V files.
        K: float64 (3, 3), of all images.
        poses: float64 (V, 4, 4), camera to world, metres.
        size: (height, width) of the images, as stated.
        unit: metres per step of the depth pictures.
    """

    images: list[Path]
    depths: list[Path]
    K: Tensor
    poses: Tensor
    size: tuple[float, ...]
    unit: float


def read_frame_list(scene: Path, every: int = 1) -> FrameList:
    """Read the list of a scene.

    Args:
        scene: folder that holds ``frames.json``.
        every: take each n-th frame, in the file's order.

    Raises:
        DataError: naming the file, the entry and what was expected there.
    """
    path = scene / JSON
    table = _read_table(path)
    _check_conventions(table, path)
    frames = _entry(table, "frames", str(path))
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{path}: frames is {reprlib.repr(frames)}; expected a list of frames")
    images = []
    depths = []
    poses = []
    for number, frame in enumerate(frames):
        where = f"{path}, frame {number}"
        if not isinstance(frame, dict):
            raise DataError(f"{where} is {reprlib.repr(frame)}; expected an object")
        images.append(_image_file(scene, frame, where))
        depths.append(scene / _file_name(frame, "depth", where))
        poses.append(_pose(frame, where))
    _check_names(images, path)
    return FrameList(
        images=images[::every],
        depths=depths[::every],
        K=_intrinsics(table, path),
        poses=torch.stack(poses[::every]),
        size=tuple(_numbers(table, "image_size", 2, str(path))),
        unit=_unit(table, path),
    )


def rigid(translation: Sequence[float], quaternion: Sequence[float]) -> Tensor:
    """Return the pose (4, 4) of a position and a quaternion (x, y, z, w); Cameras checks that it is a rotation."""
    x, y, z, w = quaternion
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] += 2 * w * cross + 2 * cross @ cross
    pose[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return pose


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {reason_of(error)}") from error
    if not isinstance(table, dict):
        raise DataError(
            f"{path} holds {reprlib.repr(table)}; expected an object with intrinsics, image_size, "
            "depth_unit_m and frames"
        )
    return table


def _check_conventions(table: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that states other conventions than the ones it is read with.

    Raises:
        DataError: naming the statement and what to change.
    """
    pose = _words(table.get("pose"))
    if _WORLD_TO_CAMERA.search(pose):
        raise DataError(
            f"{path} states pose {table['pose']!r}; poses are read as camera to world: write the "
            "inverse of each"
        )
    axes = _words(table.get("axes"))
    if _OPENGL.search(axes) and not _OPENCV.search(axes):
        raise DataError(
            f"{path} states axes {table['axes']!r}; cameras are read with x right, y down, z "
            "forward: turn each pose by 180 degrees about its x axis"
        )


def _words(text: Any) -> str:
    """Return a statement in lower case with one space between its words; nothing for what is no text."""
    if not isinstance(text, str):
        return ""
    return " ".join(re.split(r"[\s_,;:-]+", text.lower()))


def _entry(table: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise DataError(f"{where} has no '{key}'; it has {some_of(table, _SHOWN) or 'nothing'}")
    return table[key]


def _number(value: Any, what: str) -> float:
    """Return a number; NaN and infinity are numbers here."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{what} is {reprlib.repr(value)}; expected a number")
    return float(value)


def _numbers(table: Mapping[str, Any], key: str, count: int, where: str) -> list[float]:
    values = _entry(table, key, where)
    if not isinstance(values, list) or len(values) != count:
        raise DataError(f"{where}: {key} is {reprlib.repr(values)}; expected {count} numbers")
    return [_number(value, f"{where}: a value of {key}") for value in values]


def _file_name(frame: Mapping[str, Any], key: str, where: str) -> str:
    name = _entry(frame, key, where)
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: {key} is {reprlib.repr(name)}; expected the name of a file")
    return name


def _image_file(scene: Path, frame: Mapping[str, Any], where: str) -> Path:
    """Return the image's file: features are stored under its path below the scene's folder.

    Raises:
        DataError: for a path that leads out of it.
    """
    name = _file_name(frame, "color", where)
    below = Path(os.path.normpath(name))
    if below.is_absolute() or below.parts[:1] == ("..",):
        raise DataError(
            f"{where}: the image {name} lies outside of {scene}; move or link it into that folder"
        )
    return scene / below


def _check_names(images: Sequence[Path], path: Path) -> None:
    """Refuse images of one name: features are stored under the name without its ending.

    Raises:
        DataError: naming both.
    """
    frame_of: dict[Path, int] = {}
    for number, image in enumerate(images):
        name = image.with_suffix("")
        if name in frame_of:
            first = frame_of[name]
            raise DataError(
                f"{path}: frames {first} and {number} have the images {images[first].name} and "
                f"{image.name}, which are the same frame; keep one"
            )
        frame_of[name] = number


def _pose(frame: Mapping[str, Any], where: str) -> Tensor:
    translation = _numbers(frame, "translation_m", 3, where)
    quaternion = _numbers(frame, "quaternion_xyzw", 4, where)
    return rigid(translation, quaternion)


def _intrinsics(table: Mapping[str, Any], path: Path) -> Tensor:
    stated = _entry(table, "intrinsics", str(path))
    if not isinstance(stated, dict):
        raise DataError(
            f"{path}: intrinsics is {reprlib.repr(stated)}; expected an object with fx, fy, cx, cy"
        )
    values = {}
    for name in ("fx", "fy", "cx", "cy"):
        value = _entry(stated, name, f"{path}: intrinsics")
        values[name] = _number(value, f"{path}: {name} of intrinsics")
    return torch.tensor(
        [[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1]],
        dtype=torch.float64,
    )


def _unit(table: Mapping[str, Any], path: Path) -> float:
    """Return the metres per step of depth; a number written as text is read too."""
    stated = _entry(table, "depth_unit_m", str(path))
    try:
        unit = float(stated)
    except (TypeError, ValueError, OverflowError):
        unit = math.nan
    if not 0 < unit < math.inf:
        raise DataError(
            f"{path}: depth_unit_m is {reprlib.repr(stated)}; expected the metres of one step of "
            "depth, such as 0.001"
        )
    return unit
