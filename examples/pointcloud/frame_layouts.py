"""Where the frames of a scene are: ScanNet's folders, 7-Scenes' and TUM's files, or a frames.json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import DataError, some_of

JSON = "frames.json"
POSE, AXES = "camera to world", "x right, y down, z forward"
INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics.txt", "intrinsic.txt")
SUFFIXES = (".jpg", ".jpeg", ".png")
MILLIMETRE = 0.001
_APART_S = 0.02  # between an image of TUM's and its depth or pose, as in their own tools
_UNIT = 1e-3  # a quaternion written with four digits passes
_LARGEST = sys.float_info.max
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One frame before its pictures are read; a pose that is not finite marks a lost frame."""

    name: str
    colour: Path
    depth: Path
    pose: Tensor


@dataclass(frozen=True)
class Listed:
    """A ``frames.json``: its frames, intrinsics (3, 3), the images' (height, width) and metres per unit of depth."""

    entries: list[Entry]
    K: Tensor
    size: tuple[int, int]
    unit: float


def of_json(path: Path) -> Listed:
    """Read a ``frames.json``.

    Raises:
        DataError: naming what is missing or wrong.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from error
    listed = _value(table, "frames", path, list)
    for key, expected in (("pose", POSE), ("axes", AXES)):
        if table.get(key, expected) != expected:
            raise DataError(f"{path}: {key} is {table[key]!r}; this reader takes {expected!r} only")
    intrinsics = _value(table, "intrinsics", path, dict)
    fx, fy, cx, cy = (_number(intrinsics, key, path) for key in ("fx", "fy", "cx", "cy"))
    size = _value(table, "image_size", path, list)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{path}: image_size is {size}; expected [height, width] in pixels")
    unit = _number(table, "depth_unit_m", path)
    if unit <= 0:
        raise DataError(f"{path}: depth_unit_m is {unit}; expected metres per step, such as {MILLIMETRE}")
    entries = [_entry(path.parent, frame, f"{path}: frame {place}") for place, frame in enumerate(listed)]
    names = [entry.name for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} names images {some_of(twice, _SHOWN)} more than once; frames are known by that name")
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return Listed(entries, K, (size[0], size[1]), unit)


def of_folders(root: Path, every: int) -> Iterator[Entry]:
    """Yield the frames of ScanNet's ``color/<n>.jpg``, ``depth/<n>.png``, ``pose/<n>.txt``, by number."""
    for path in _every(numbered((root / "color").iterdir()), every):
        pose = matrix(root / "pose" / f"{path.stem}.txt", ((4, 4),))
        name = f"{_name(root)}/color/{path.stem}"
        yield Entry(name, path, root / "depth" / f"{path.stem}.png", pose)


def of_seven_scenes(root: Path, every: int) -> Iterator[Entry]:
    """Yield the frames of 7-Scenes' ``frame-<n>.color.png``, ``.depth.png`` and ``.pose.txt``, by number."""
    for path in _every(numbered(root.glob("frame-*.color.*"), "frame-"), every):
        stem = path.name.partition(".")[0]
        pose = matrix(root / f"{stem}.pose.txt", ((4, 4),))
        yield Entry(f"{_name(root)}/{stem}", path, root / f"{stem}.depth.png", pose)


def of_tum(root: Path, every: int) -> Iterator[Entry]:
    """Yield the frames of TUM's ``rgb.txt``, ``depth.txt`` and ``groundtruth.txt``, each with the nearest in time.

    A frame without depth or pose within 0.02 s has a pose that is not finite.
    """
    depths, poses = _stamped(root / "depth.txt", 1), _stamped(root / "groundtruth.txt", 7)
    for stamp, (name,) in list(_stamped(root / "rgb.txt", 1).items())[::every]:
        pose = torch.full((4, 4), torch.nan, dtype=torch.float64)
        at, depth = (min(table, key=lambda other: abs(other - stamp)) for table in (poses, depths))
        if max(abs(at - stamp), abs(depth - stamp)) <= _APART_S:
            where = f"{root / 'groundtruth.txt'}, {at}"
            numbers = torch.tensor([_float(word, where) for word in poses[at]], dtype=torch.float64)
            pose = rigid(numbers[:3], numbers[3:], where)
        yield Entry(f"{_name(root)}/{Path(name).with_suffix('')}", root / name, root / depths[depth][0], pose)


def intrinsics_of(root: Path) -> Tensor:
    """Return the images' intrinsics (3, 3) of a folder.

    Raises:
        DataError: if there are none.
    """
    for name in INTRINSICS:
        if (root / name).is_file():
            return matrix(root / name, ((3, 3), (4, 4)))[:3, :3]
    raise DataError(
        f"{root} has none of {', '.join(INTRINSICS)}, the intrinsics of the images: 3 rows of 3 numbers. 7-Scenes and "
        "TUM come without such a file; write the numbers of their pages there"
    )


def _name(root: Path) -> str:
    """Return a scene's name: that of a link, not of the folder behind it, as a store's ids have it."""
    return Path(os.path.normpath(root.absolute())).name


def numbered(paths: Iterable[Path], prefix: str = "") -> dict[int, Path]:
    """Return the images among the paths by their frame's number, rising.

    Raises:
        DataError: for a name without a number, or two images of one frame.
    """
    images: dict[int, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        digits = path.name.partition(".")[0].removeprefix(prefix) if prefix else path.stem
        if not (digits.isascii() and digits.isdigit()):
            raise DataError(f"{path}: images are named after their frame's number, such as {prefix}000020.jpg")
        if int(digits) in images:
            raise DataError(f"{path} and {images[int(digits)]} are the same frame; keep one")
        images[int(digits)] = path
    return dict(sorted(images.items()))


def _every(images: dict[int, Path], every: int) -> list[Path]:
    return [path for number, path in images.items() if number % every == 0]


def _stamped(path: Path, columns: int) -> dict[float, list[str]]:
    """Read lines ``time word ...`` of TUM's lists, comments left out.

    Raises:
        DataError: for a file that is missing, empty or has lines of another length.
    """
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    lines = [words for words in lines if words and not words[0].startswith("#")]
    if wrong := [words for words in lines if len(words) != columns + 1]:
        raise DataError(f"{path} has a line {' '.join(wrong[0])!r}; expected a time and {columns} more")
    if not lines:
        raise DataError(f"{path} lists nothing")
    return {_float(words[0], path): words[1:] for words in lines}


def _float(word: str, where: Any) -> float:
    try:
        return float(word)
    except ValueError:
        raise DataError(f"{where} holds {word!r}; expected a number") from None


def _entry(root: Path, frame: Any, where: str) -> Entry:
    colour, depth = _value(frame, "color", where, str), _value(frame, "depth", where, str)
    translation = _vector(frame, "translation_m", 3, where)
    quaternion = _vector(frame, "quaternion_xyzw", 4, where)
    pose = rigid(translation, quaternion, where)
    return Entry(Path(colour).stem, root / colour, root / depth, pose)


def rigid(translation: Tensor, quaternion: Tensor, where: str) -> Tensor:
    """Return the pose (4, 4) of a position (3,) and a quaternion (x, y, z, w).

    Raises:
        DataError: if the quaternion does not have the norm 1.
    """
    norm = float(quaternion.norm())
    if not abs(norm - 1) <= _UNIT:
        raise DataError(f"{where}: quaternion_xyzw has the norm {norm:.4g}; expected 1 (a rotation)")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = _rotation(quaternion / norm), translation
    return pose


def _rotation(quaternion: Tensor) -> Tensor:
    """Return the matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion.tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def matrix(path: Path, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Read a matrix of numbers; inf and nan are numbers here."""
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no matrix ({error})") from error
    if not any(len(rows) == height and all(len(row) == width for row in rows) for height, width in shapes):
        expected = " or ".join(f"{height}x{width}" for height, width in shapes)
        raise DataError(
            f"{path} has {len(rows)} rows of {sorted({len(row) for row in rows})} numbers; expected {expected}"
        )
    return torch.tensor(rows, dtype=torch.float64)


def _value(table: Any, key: str, where: Any, kind: Callable[[Any], Any]) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        raise DataError(f"{where} has no {key!r}")
    if not isinstance(table[key], kind):  # type: ignore[arg-type]
        raise DataError(f"{where}: {key} is {table[key]!r}; expected a {kind.__name__}")
    return table[key]


def _number(table: Any, key: str, where: Any) -> float:
    if not isinstance(table, Mapping) or key not in table:
        raise DataError(f"{where} has no {key!r}")
    if isinstance(table[key], bool) or not isinstance(table[key], int | float) or not abs(table[key]) <= _LARGEST:
        raise DataError(f"{where}: {key} is {table[key]!r}; expected a finite number")
    return float(table[key])


def _vector(table: Any, key: str, length: int, where: Any) -> Tensor:
    values = _value(table, key, where, list)
    if len(values) != length:
        raise DataError(f"{where}: {key} has {len(values)} numbers; expected {length}")
    named = {str(place): value for place, value in enumerate(values)}
    return torch.tensor([_number(named, place, f"{where}: {key}") for place in named], dtype=torch.float64)
