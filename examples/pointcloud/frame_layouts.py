"""Where the frames of a scene are: ScanNet's folders or a frames.json."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from dinoneck.errors import DataError

JSON = "frames.json"
INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics.txt", "intrinsic.txt")
SUFFIXES = (".jpg", ".jpeg", ".png")
_UNIT = 1e-3  # a quaternion written with four digits passes


@dataclass(frozen=True)
class Entry:
    """One frame before its pictures are read; a pose that is not finite marks a lost frame."""

    name: str
    colour: Path
    depth: Path
    pose: Tensor


class _Intrinsics(msgspec.Struct):
    fx: float
    fy: float
    cx: float
    cy: float


class _Frame(msgspec.Struct):
    color: str
    depth: str
    translation_m: tuple[float, float, float]
    quaternion_xyzw: tuple[float, float, float, float]


class Listed(msgspec.Struct):
    """A ``frames.json``: its frames, intrinsics, the images' (height, width) and metres per unit of depth."""

    intrinsics: _Intrinsics
    image_size: tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]]
    depth_unit_m: Annotated[float, msgspec.Meta(gt=0)]
    frames: list[_Frame]
    pose: Literal["camera to world"] = "camera to world"
    axes: Literal["x right, y down, z forward"] = "x right, y down, z forward"

    @property
    def K(self) -> Tensor:
        """The intrinsics (3, 3)."""
        own = self.intrinsics
        return torch.tensor([[own.fx, 0, own.cx], [0, own.fy, own.cy], [0, 0, 1]], dtype=torch.float64)

    def entries(self, root: Path) -> list[Entry]:
        """Return the frames with their files in ``root`` and their poses.

        Raises:
            DataError: if two frames have one image, or a quaternion is not a rotation.
        """
        poses = [rigid(frame.translation_m, frame.quaternion_xyzw, frame.color) for frame in self.frames]
        entries = [
            Entry(Path(frame.color).stem, root / frame.color, root / frame.depth, pose)
            for frame, pose in zip(self.frames, poses, strict=True)
        ]
        if len({entry.name for entry in entries}) < len(entries):
            raise DataError(f"{root / JSON} names an image more than once; frames are known by that name")
        return entries


def of_json(path: Path) -> Listed:
    """Read a ``frames.json``.

    Raises:
        DataError: naming what is missing or wrong.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Listed)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def of_folders(root: Path, every: int) -> Iterator[Entry]:
    """Yield the frames of ScanNet's ``color/<n>.jpg``, ``depth/<n>.png``, ``pose/<n>.txt``, by number."""
    for path in _every(numbered((root / "color").iterdir()), every):
        pose = matrix(root / "pose" / f"{path.stem}.txt", ((4, 4),))
        name = f"{_name(root)}/color/{path.stem}"
        yield Entry(name, path, root / "depth" / f"{path.stem}.png", pose)


def intrinsics_of(root: Path) -> Tensor:
    """Return the images' intrinsics (3, 3) of a folder.

    Raises:
        DataError: if there are none.
    """
    for name in INTRINSICS:
        if (root / name).is_file():
            return matrix(root / name, ((3, 3), (4, 4)))[:3, :3]
    raise DataError(f"{root} has none of {', '.join(INTRINSICS)}, the intrinsics of the images: 3 rows of 3 numbers")


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


def rigid(translation: Sequence[float], quaternion: Sequence[float], name: str) -> Tensor:
    """Return the pose (4, 4) of a position and a quaternion (x, y, z, w).

    Raises:
        DataError: if the quaternion does not have the norm 1.
    """
    norm = math.hypot(*quaternion)
    if not abs(norm - 1) <= _UNIT:
        raise DataError(f"{name}: quaternion_xyzw has the norm {norm:.4g}; expected 1 (a rotation)")
    x, y, z, w = (value / norm for value in quaternion)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), translation[0]],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), translation[1]],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), translation[2]],
        [0, 0, 0, 1],
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
