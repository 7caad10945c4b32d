"""RGB-D frames with known cameras, of one scene or of a tree of scenes.

A tree is what ScanNet's exports are: ``2D/<scene>/color/<number>.jpg``. Frames are chosen by
**number**, not by place: ``every=200`` takes those whose number 200 divides, as ESAM
(github.com/xuxw98/ESAM, 188fc6d) does. Places would mean other frames as soon as one is missing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.data.decoding import read_picture
from dinoneck.errors import DataError
from dinoneck.points import Cameras

JSON = "frames.json"
INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics.txt", "intrinsic.txt")
SUFFIXES = (".jpg", ".jpeg", ".png")
_MILLIMETRE = 1e-3
_NO_DEPTH = 65535.0  # what some cameras write where they have none; others write 0
_TURNED = 274  # EXIF orientation
_logger = logging.getLogger("examples.pointcloud")


@dataclass(frozen=True)
class Frames:
    """V images of one scene with depth and cameras.

    Attributes:
        names: of the frames.
        images: uint8 (V, 3, height, width), RGB.
        depth: float32 (V, rows, cols), metres along z; 0 = unknown. May have another size than the
            images.
        cameras: V of them, of the images' size.
    """

    names: tuple[str, ...]
    images: Tensor
    depth: Tensor
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.names)

    def of(self, views: Sequence[int]) -> Frames:
        """Return some of the frames, in this order."""
        rows = list(views)
        names = tuple(self.names[view] for view in rows)
        return Frames(names, self.images[rows], self.depth[rows], self.cameras[rows])


def scene_folders(root: Path) -> list[Path]:
    """Return the folders of a tree's scenes, sorted by name; they have one parent.

    A scene holds ``color`` or ``frames.json``. The scenes are in ``ROOT/2D``, or in ``ROOT`` where
    there is none; ``ROOT`` may also be a scene itself.

    Raises:
        DataError: if there are none.
    """
    top = Path(os.path.normpath(root.absolute()))  # of a link, not of the folder behind it
    if _is_scene(top):
        return [top]
    folder = top / "2D" if (top / "2D").is_dir() else top
    if not folder.is_dir():
        raise DataError(f"there is no folder {root}; expected ROOT/2D/<scene>/color/<number>.jpg")
    scenes = [path for path in sorted(folder.iterdir()) if _is_scene(path)]
    if not scenes:
        raise DataError(
            f"{root} holds no scenes; expected ROOT/2D/<scene>/color/<number>.jpg, or a {JSON} in "
            "the folder of each scene"
        )
    return scenes


def _is_scene(folder: Path) -> bool:
    return (folder / "color").is_dir() or (folder / JSON).is_file()


def image_files(folder: Path, every: int = 1) -> list[Path]:
    """Return the images of a scene: those whose number ``every`` divides, or each n-th of ``frames.json``.

    Raises:
        DataError: if there are none, or ``frames.json`` cannot be read.
    """
    if not (folder / JSON).is_file():
        return chosen((folder / "color").iterdir(), every)
    return [colour for colour, _ in _listed(folder, every).files]


def chosen(paths: Iterable[Path], every: int) -> list[Path]:
    """Return the images whose number ``every`` divides, by number.

    Raises:
        DataError: for a name that is not a number, two images of one frame, or no such image.
    """
    images: dict[int, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if not (path.stem.isascii() and path.stem.isdigit()):
                raise DataError(
                    f"{path}: images are named after their frame's number, such as 000020.jpg"
                )
            if int(path.stem) in images:
                raise DataError(f"{path} and {images[int(path.stem)]} are the same frame; keep one")
            images[int(path.stem)] = path
    found = [path for number, path in sorted(images.items()) if number % every == 0]
    if not found:
        raise DataError(
            f"no frame has a number that {every} divides; there are {list(images.values())[:5]} ..."
        )
    return found


def read_frames(folder: str | Path, every: int = 1) -> Frames:
    """Read a scene.

    Two forms are known:

    * ``frames.json`` with ``intrinsics`` (fx, fy, cx, cy), ``image_size`` [height, width],
      ``depth_unit_m`` and ``frames``, each with ``color``, ``depth`` (files), ``translation_m`` and
      ``quaternion_xyzw`` (camera to world); a frame is named ``<folder>/<image>``, without the
      ending, as in a feature store;
    * ScanNet's folders: ``color/<n>.jpg``, ``depth/<n>.png`` (16 bit, millimetres),
      ``pose/<n>.txt`` (camera to world) and ``intrinsic/intrinsic_color.txt`` (or
      ``intrinsics.txt``, ``intrinsic.txt``) of the images; a frame is named ``<folder>/color/<n>``,
      as in a feature store.

    Depth of 0 and 65535 is unknown. Frames whose pose is not finite are left out.

    Args:
        folder: of the scene.
        every: take the frames whose number it divides (``frames.json`` has no numbers: each n-th in
            order).

    Raises:
        DataError: naming the file that is missing or wrong.
    """
    root = Path(folder)
    if (root / JSON).is_file():
        return _of_json(root, every)
    name = Path(os.path.normpath(root.absolute())).name  # of a link, not of the folder behind it
    images = chosen((root / "color").iterdir(), every)
    poses = {path: matrix(root / "pose" / f"{path.stem}.txt")[:4] for path in images}
    known = [path for path in images if poses[path].isfinite().all()]
    if len(known) < len(images):
        _logger.info(
            "%s: %d frames left out, whose poses are not finite", root, len(images) - len(known)
        )
    K = next((matrix(root / own) for own in INTRINSICS if (root / own).is_file()), None)
    if K is None or not known:
        raise DataError(
            f"{root} has {len(known)} frames with a finite pose; expected some, and {INTRINSICS[0]}"
        )
    files = [(path, root / "depth" / f"{path.stem}.png") for path in known]
    names = [f"{name}/color/{path.stem}" for path in known]
    return _frames(
        names, files, K[:3, :3], torch.stack([poses[path] for path in known]), _MILLIMETRE
    )


@dataclass(frozen=True)
class _Listed:
    """What a ``frames.json`` says: (image, depth) files, K (3, 3), poses (V, 4, 4), size, metres per unit."""

    files: list[tuple[Path, Path]]
    K: Tensor
    poses: Tensor
    size: tuple[int, ...]
    unit: float


def _listed(root: Path, every: int) -> _Listed:
    """Read a ``frames.json``."""
    try:
        table = json.loads((root / JSON).read_text(encoding="utf-8"))
        frames = table["frames"][::every]
        own = table["intrinsics"]
        K = torch.tensor(
            [[own["fx"], 0, own["cx"]], [0, own["fy"], own["cy"]], [0, 0, 1]], dtype=torch.float64
        )
        poses = [rigid(frame["translation_m"], frame["quaternion_xyzw"]) for frame in frames]
        return _Listed(
            files=[(root / frame["color"], root / frame["depth"]) for frame in frames],
            K=K,
            poses=torch.stack(poses),
            size=tuple(table["image_size"]),
            unit=float(table["depth_unit_m"]),
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{root / JSON} cannot be read ({error!r})") from error


def _of_json(root: Path, every: int) -> Frames:
    listed = _listed(root, every)
    scene = Path(os.path.normpath(root.absolute())).name
    names = []
    for colour, _ in listed.files:
        names.append(f"{scene}/{colour.relative_to(root).with_suffix('').as_posix()}")
    found = _frames(names, listed.files, listed.K, listed.poses, listed.unit)
    if found.cameras.size != listed.size:
        raise DataError(
            f"{listed.files[0][0]} is {found.cameras.size}; {JSON} states image_size {listed.size}"
        )
    return found


def _frames(
    names: list[str], files: list[tuple[Path, Path]], K: Tensor, poses: Tensor, unit: float
) -> Frames:
    """Read the pictures, which have one size each."""
    images = [read_picture(colour, _colour) for colour, _ in files]
    depths = [read_picture(depth, _depth, "depth picture") for _, depth in files]
    for pictures in (images, depths):
        other = next(
            (place for place, picture in enumerate(pictures) if picture.shape != pictures[0].shape),
            0,
        )
        if other:
            shapes = tuple(pictures[other].shape), tuple(pictures[0].shape)
            raise DataError(
                f"{files[other]}: {shapes[0]}; those of {files[0]} have {shapes[1]}: one size for "
                "all"
            )
    cameras = Cameras(K.double().repeat(len(files), 1, 1), poses, tuple(images[0].shape[1:]))
    depth = torch.stack(depths)
    return Frames(
        tuple(names), torch.stack(images), depth.where(depth != _NO_DEPTH, 0.0) * unit, cameras
    )


def _colour(image: Image.Image, name: str) -> Tensor:
    if image.getexif().get(_TURNED, 1) != 1:
        raise DataError(
            f"{name} is turned by its EXIF tag; cameras belong to pixels as stored: remove the tag"
        )
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _depth(image: Image.Image, name: str) -> Tensor:
    if not image.mode.startswith("I"):
        raise DataError(
            f"{name} is of PIL's mode {image.mode}; expected grey of 16 bit: 8 bit or JPEG lose "
            "the depth"
        )
    return torch.from_numpy(np.array(image).astype(np.float32))


def rigid(translation: list[float], quaternion: list[float]) -> Tensor:
    """Return the pose (4, 4) of a position and a quaternion (x, y, z, w); Cameras checks that it is a rotation."""
    x, y, z, w = quaternion
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] += 2 * w * cross + 2 * cross @ cross
    pose[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return pose


def matrix(path: Path) -> Tensor:
    """Read a matrix of 3 or 4 rows of numbers; inf and nan are numbers here."""
    try:
        found = torch.from_numpy(np.loadtxt(path, ndmin=2))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no matrix ({error})") from error
    if found.shape not in ((3, 3), (4, 4)):
        raise DataError(f"{path} is {tuple(found.shape)}; expected 3x3 or 4x4")
    return found
