"""RGB-D frames with known cameras, of one scene or of a tree of scenes.

A tree is what ScanNet's exports are: ``2D/<scene>/color/<number>.jpg``. Frames are chosen by
**number**, not by place: ``every=200`` takes those whose number 200 divides, as ESAM
(github.com/xuxw98/ESAM, 188fc6d) does. Places would mean other frames as soon as one is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.images.pixels import read_picture
from dinoneck.points import Cameras
from examples.pointcloud.frame_list import JSON, read_frame_list

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
    return read_frame_list(folder, every).images


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
    poses = torch.stack([matrix(root / "pose" / f"{path.stem}.txt")[:4] for path in images])
    known = _finite(root, poses)
    names = []
    files = []
    for row in known:
        number = images[row].stem
        names.append(f"{name}/color/{number}")
        files.append((images[row], root / "depth" / f"{number}.png"))
    return _frames(names, files, _intrinsics(root), poses[known], _MILLIMETRE)


def _intrinsics(root: Path) -> Tensor:
    """Read K (3, 3) of a scene's images.

    Raises:
        DataError: if no file holds it.
    """
    for name in INTRINSICS:
        if (root / name).is_file():
            return matrix(root / name)[:3, :3]
    raise DataError(f"{root} has no intrinsics; expected {INTRINSICS[0]}")


def _of_json(root: Path, every: int) -> Frames:
    listed = read_frame_list(root, every)
    scene = Path(os.path.normpath(root.absolute())).name
    known = _finite(root, listed.poses)
    names = []
    files = []
    for row in known:
        image = listed.images[row]
        names.append(f"{scene}/{image.relative_to(root).with_suffix('').as_posix()}")
        files.append((image, listed.depths[row]))
    found = _frames(names, files, listed.K, listed.poses[known], listed.unit)
    if found.cameras.size != listed.size:
        height, width = listed.size
        raise DataError(
            f"{files[0][0]} is {pixels(found.cameras.size)} px, height x width; {JSON} states "
            f"image_size {height:g}x{width:g}"
        )
    return found


def _finite(root: Path, poses: Tensor) -> list[int]:
    """Return the rows of finite poses; trackers write others where they lost the camera.

    Raises:
        DataError: if none is finite.
    """
    rows = [row for row, pose in enumerate(poses) if pose.isfinite().all()]
    if not rows:
        raise DataError(
            f"{root}: none of {len(poses)} frames has a finite pose; take other frames, or track "
            "the scene anew"
        )
    if len(rows) < len(poses):
        _logger.info(
            "%s: %d frames left out, whose poses are not finite", root, len(poses) - len(rows)
        )
    return rows


def _frames(
    names: list[str], files: list[tuple[Path, Path]], K: Tensor, poses: Tensor, unit: float
) -> Frames:
    """Read the pictures, which have one size each."""
    colour_files = [colour for colour, _ in files]
    depth_files = [depth for _, depth in files]
    images = [read_picture(path, _colour) for path in colour_files]
    depths = [read_picture(path, _depth, "depth picture") for path in depth_files]
    _check_one_size(colour_files, images)
    _check_one_size(depth_files, depths)
    cameras = Cameras(K.double().repeat(len(files), 1, 1), poses, tuple(images[0].shape[1:]))
    depth = torch.stack(depths)
    metres = depth.where(depth != _NO_DEPTH, 0.0) * unit
    return Frames(tuple(names), torch.stack(images), metres, cameras)


def _check_one_size(files: Sequence[Path], pictures: Sequence[Tensor]) -> None:
    """Refuse pictures of another size than the first.

    Raises:
        DataError: naming both.
    """
    first = tuple(pictures[0].shape[-2:])
    for path, picture in zip(files, pictures, strict=True):
        size = tuple(picture.shape[-2:])
        if size != first:
            raise DataError(
                f"{path} is {pixels(size)} px and {files[0]} is {pixels(first)} px, height x "
                "width; a scene has pictures of one size"
            )


def pixels(size: tuple[int, ...]) -> str:
    """Return a size as text, ``480x640``."""
    return "x".join(map(str, size))


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


def matrix(path: Path) -> Tensor:
    """Read a matrix of 3 or 4 rows of numbers; inf and nan are numbers here."""
    try:
        found = torch.from_numpy(np.loadtxt(path, ndmin=2))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no matrix ({error})") from error
    if found.shape not in ((3, 3), (4, 4)):
        raise DataError(f"{path} is {tuple(found.shape)}; expected 3x3 or 4x4")
    return found
