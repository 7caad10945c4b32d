"""RGB-D frames with known cameras: what every verb of this example reads."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dinoneck.data.decoding import read_picture
from dinoneck.errors import ConfigError, DataError, some_of
from dinoneck.points import Cameras

JSON = "frames.json"
POSE, AXES = "camera to world", "x right, y down, z forward"
INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics.txt", "intrinsic.txt")
DEPTH_INTRINSICS = "intrinsic/intrinsic_depth.txt"
MILLIMETRE = 0.001
DEPTH_SCALE = 1000.0  # units per metre
_NO_DEPTH = 65535.0  # what 7-Scenes writes where it has none; others write 0
_LARGEST_M = 100.0  # of a room's depth
_UNIT = 1e-3  # a quaternion written with four digits passes
_SAME_VIEW = 0.05  # of the image's width: ScanNet's own colour and depth cameras differ by 1 %
_OFF_CENTRE = 0.2  # of the sides: cameras' own are off by a few per cent
_SHOWN = 5
_LARGEST = sys.float_info.max
_TURNED = 274  # EXIF orientation
_logger = logging.getLogger("examples.pointcloud")


@dataclass(frozen=True)
class Frames:
    """V photos of one scene with depth and cameras.

    Attributes:
        names: of the frames.
        photos: uint8 (V, 3, height, width), RGB.
        depth: float32 (V, rows, cols), metres along z; 0 = unknown. May have another size than the photos.
        cameras: V of them, of the photos' size.
        skipped: frames that were left out because their pose is not finite.
    """

    names: tuple[str, ...]
    photos: Tensor
    depth: Tensor
    cameras: Cameras
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)


def cloud_of(frames: Frames, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what one frame's own depth shows.

    Returns:
        Points float64 (N, 3) m in the world; their colours float32 (N, 3), 0 ... 255, the photo's mean over a pixel of
        the depth where sizes differ; their normals float32 (N, 3), towards the camera, zeros beside unknown depth.

    Raises:
        DataError: if depth looks in millimetres.
    """
    measured = frames.depth[view][frames.depth[view].isfinite() & (frames.depth[view] > 0)]
    if len(measured) and float(measured.median()) > _LARGEST_M:
        raise DataError(
            f"{frames.names[view]}: depth has the median {float(measured.median()):.4g} m; it looks in millimetres: "
            "depth / 1000"
        )
    world = frames.cameras[view].unproject(frames.depth[view : view + 1])[0]
    known = world.isfinite().all(-1)
    photo = frames.photos[view : view + 1].float()
    if photo.shape[-2:] != world.shape[:2]:
        photo = F.interpolate(photo, size=world.shape[:2], mode="area")
    right, down = torch.zeros_like(world), torch.zeros_like(world)
    right[:, :-1], down[:-1] = world[:, 1:] - world[:, :-1], world[1:] - world[:-1]
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1)  # x right, y down: towards the camera
    return world[known], photo[0].permute(1, 2, 0)[known], normals[known].nan_to_num(0.0).float()


@dataclass(frozen=True)
class _Entry:
    """One frame before its pictures are read."""

    name: str
    colour: Path
    depth: Path
    pose: Tensor


def read_frames(
    folder: str | Path, limit: int | None = None, every: int = 1, depth_scale: float | None = None
) -> Frames:
    """Read a scene.

    Two forms are known:

    * ``frames.json`` with ``intrinsics`` (fx, fy, cx, cy), ``image_size`` [height, width], ``depth_unit_m`` and
      ``frames``, each with ``color``, ``depth`` (files), ``translation_m`` and ``quaternion_xyzw`` (camera to world);
      a frame is named after its photo;
    * a folder as ScanNet's: ``color/<n>.jpg``, ``depth/<n>.png`` (16 bit), ``pose/<n>.txt`` (camera to world) and
      ``intrinsic/intrinsic_color.txt`` (or ``intrinsics.txt``, ``intrinsic.txt``), which belongs to the photos' size; a
      frame is named ``<folder>/color/<n>``, as in a feature store. Poses that are not finite mark lost frames: they are
      left out and counted.

    Args:
        folder: of the scene.
        limit: frames to read at most; None = all.
        every: take the frames whose number it divides (``frames.json`` has no numbers: each n-th in its order).
        depth_scale: units of the depth files per metre, 5000 in TUM's; None = 1000, or what ``frames.json`` records.
            Units of 0 and 65535 are unknown depth.

    Raises:
        ConfigError: for a limit or a step below 1, or a scale that is not positive.
        DataError: naming the file that is missing or wrong.
    """
    for name, number in (("limit", limit), ("every", every)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; expected 1 or more")
    if depth_scale is not None and not 0 < depth_scale < math.inf:
        raise ConfigError(f"depth_scale is {depth_scale}; expected units per metre, above 0")
    root = Path(folder)
    if (root / JSON).is_file():
        return _of_json(root, limit, every, depth_scale)
    if (root / "color").is_dir():
        return _of_folders(root, limit, every, 1 / (depth_scale or DEPTH_SCALE))
    raise DataError(f"{root} has neither {JSON} nor a folder color; expected one of the two forms of read_frames")


def _of_json(root: Path, limit: int | None, every: int, depth_scale: float | None) -> Frames:
    path = root / JSON
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from error
    listed = _value(told, "frames", path, list)
    for key, expected in (("pose", POSE), ("axes", AXES)):
        if told.get(key, expected) != expected:
            raise DataError(f"{path}: {key} is {told[key]!r}; this reader takes {expected!r} only")
    intrinsics = _value(told, "intrinsics", path, dict)
    fx, fy, cx, cy = (_number(intrinsics, key, path) for key in ("fx", "fy", "cx", "cy"))
    size = _value(told, "image_size", path, list)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{path}: image_size is {size}; expected [height, width] in pixels")
    unit = _number(told, "depth_unit_m", path)
    if unit <= 0:
        raise DataError(f"{path}: depth_unit_m is {unit}; expected metres per step, such as {MILLIMETRE}")
    entries = [_entry(root, frame, f"{path}: frame {place}") for place, frame in enumerate(listed)]
    names = [entry.name for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} names photos {some_of(twice, _SHOWN)} more than once; frames are known by that name")
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return _frames(entries[::every][:limit], K, (size[0], size[1]), 1 / depth_scale if depth_scale else unit, path)


def _entry(root: Path, frame: Any, where: str) -> _Entry:
    colour, depth = _value(frame, "color", where, str), _value(frame, "depth", where, str)
    translation = _vector(frame, "translation_m", 3, where)
    quaternion = _vector(frame, "quaternion_xyzw", 4, where)
    norm = float(quaternion.norm())
    if not abs(norm - 1) <= _UNIT:
        raise DataError(f"{where}: quaternion_xyzw has the norm {norm:.4g}; expected 1 (a rotation)")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = _rotation(quaternion / norm), translation
    return _Entry(Path(colour).stem, root / colour, root / depth, pose)


def _rotation(quaternion: Tensor) -> Tensor:
    """Return the matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion.tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _of_folders(root: Path, limit: int | None, every: int, unit: float) -> Frames:
    photos: dict[int, Path] = {}
    for path in sorted((root / "color").iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png") or path.name.startswith("."):
            continue
        if not (path.stem.isascii() and path.stem.isdigit()):
            raise DataError(f"{path}: photos are named after their frame's number, such as 000020.jpg")
        if int(path.stem) in photos:
            raise DataError(f"{path} and {photos[int(path.stem)]} are the same frame; keep one")
        photos[int(path.stem)] = path
    scene = root.resolve().name
    entries: list[_Entry] = []
    skipped = 0
    for number in sorted(number for number in photos if number % every == 0):
        if limit is not None and len(entries) == limit:
            break
        stem = photos[number].stem
        pose = _matrix(root / "pose" / f"{stem}.txt", ((4, 4),))
        if pose.isfinite().all():
            entries.append(_Entry(f"{scene}/color/{stem}", photos[number], root / "depth" / f"{stem}.png", pose))
        else:
            skipped += 1
    if skipped:
        _logger.info("%s: %d frames left out, whose poses are not finite", root, skipped)
    where = root / "color" if not skipped else f"{root} ({skipped} frames, none with a finite pose)"
    K = _intrinsics(root)
    frames = _frames(entries, K, None, unit, where, skipped)
    _check_depth_camera(root, K, frames)
    return frames


def _intrinsics(root: Path) -> Tensor:
    for name in INTRINSICS:
        if (root / name).is_file():
            return _matrix(root / name, ((3, 3), (4, 4)))[:3, :3]
    raise DataError(f"{root} has none of {', '.join(INTRINSICS)}, the intrinsics of the photos")


def _check_depth_camera(root: Path, K: Tensor, frames: Frames) -> None:
    """Refuse depth of another camera than the photos'.

    Raises:
        DataError: naming both.
    """
    path = root / DEPTH_INTRINSICS
    if not path.is_file():
        return
    own = _matrix(path, ((3, 3), (4, 4)))[:2, :3]
    size = (int(frames.depth.shape[1]), int(frames.depth.shape[2]))
    expected = frames.cameras[0].resize(size).K[0, :2]
    if float((own - expected).abs().max()) > _SAME_VIEW * size[1]:
        rounded = [[round(x, 1) for x in row] for row in expected.tolist()]
        raise DataError(
            f"{path} is {own.tolist()} for depth of {size[0]}x{size[1]} px; the photos' intrinsics give {rounded}: "
            "depth and photos must show the same field of view"
        )


def _frames(
    entries: list[_Entry], K: Tensor, size: tuple[int, int] | None, unit: float, where: Any, skipped: int = 0
) -> Frames:
    """Read the pictures; ``size`` is what the photos must have, None = that of the first."""
    if not entries:
        raise DataError(f"{where}: there are no frames")
    photos: list[Tensor] = []
    depths: list[Tensor] = []
    for entry in entries:
        photo, depth = read_picture(entry.colour, _colour), read_picture(entry.depth, _depth, "depth picture")
        size = size or (photo.shape[1], photo.shape[2])
        if tuple(photo.shape[1:]) != size:
            raise DataError(
                f"{entry.colour} is {_px(photo)}; the intrinsics belong to photos of {size[0]}x{size[1]} px"
            )
        if depths and depth.shape != depths[0].shape:
            raise DataError(f"{entry.depth} is {_px(depth)}; {entries[0].depth} is {_px(depths[0])}: one size for all")
        photos.append(photo)
        depths.append(depth.where(depth != _NO_DEPTH, 0.0) * unit)
    size = size or (0, 0)
    rows, cols = depths[0].shape
    if abs(math.log(size[1] * rows / (size[0] * cols))) > _SAME_VIEW:
        raise DataError(
            f"{entries[0].depth} is {rows}x{cols} px, its photo {size[0]}x{size[1]} px: sides of another "
            "ratio; they must show the same field of view"
        )
    cameras = Cameras(K.double().repeat(len(entries), 1, 1), torch.stack([entry.pose for entry in entries]), size)
    _check_centre(K, size, where)
    names = tuple(entry.name for entry in entries)
    return Frames(names, torch.stack(photos), torch.stack(depths), cameras, skipped)


def _check_centre(K: Tensor, size: tuple[int, int], where: Any) -> None:
    """Refuse intrinsics of photos of another size, whose principal point is far from these photos' middle.

    Raises:
        DataError: naming both.
    """
    off = [(float(K[axis, 2]) + 0.5) / size[1 - axis] - 0.5 for axis in (0, 1)]
    if min(map(abs, off)) > _OFF_CENTRE and off[0] * off[1] > 0:
        raise DataError(
            f"{where}: cx, cy are {float(K[0, 2]):.1f}, {float(K[1, 2]):.1f} for photos of {size[0]}x{size[1]} px, far "
            "from their middle; the intrinsics seem to belong to photos of another size"
        )


def _colour(image: Image.Image, name: str) -> Tensor:
    if image.getexif().get(_TURNED, 1) != 1:
        raise DataError(f"{name} is turned by its EXIF tag; cameras belong to pixels as stored: remove the tag")
    if image.mode not in ("RGB", "RGBA", "L"):
        raise DataError(f"{name} is of PIL's mode {image.mode}; expected a colour photo of 8 bit")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _depth(image: Image.Image, name: str) -> Tensor:
    if not (image.mode.startswith("I;16") or image.mode == "I"):
        raise DataError(
            f"{name} is of PIL's mode {image.mode}; expected grey of 16 bit: what was saved with 8 bit or as JPEG has "
            "lost its depth"
        )
    return torch.from_numpy(np.array(image).astype(np.float32))


def _px(picture: Tensor) -> str:
    return f"{picture.shape[-2]}x{picture.shape[-1]} px"


def _matrix(path: Path, shapes: tuple[tuple[int, int], ...]) -> Tensor:
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
