"""RGB-D frames with known cameras: what every verb of this example reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dinoneck.data.decoding import read_picture
from dinoneck.errors import ConfigError, DataError
from dinoneck.points import Cameras
from examples.pointcloud.frame_layouts import (
    JSON,
    Entry,
    intrinsics_of,
    matrix,
    of_folders,
    of_json,
)

DEPTH_INTRINSICS = "intrinsic/intrinsic_depth.txt"
DEPTH_SCALE = 1000.0  # units per metre
_NO_DEPTH = 65535.0  # what some cameras write where they have none; others write 0
_LARGEST_M = 100.0  # of a room's depth
_SAME_VIEW = 0.05  # of the image's width: ScanNet's own colour and depth cameras differ by 1 %
_OFF_CENTRE = 0.2  # of the sides: cameras' own are off by a few per cent
_TURNED = 274  # EXIF orientation
_logger = logging.getLogger("examples.pointcloud")


@dataclass(frozen=True)
class Frames:
    """V images of one scene with depth and cameras.

    Attributes:
        names: of the frames.
        images: uint8 (V, 3, height, width), RGB.
        depth: float32 (V, rows, cols), metres along z; 0 = unknown. May have another size than the images.
        cameras: V of them, of the images' size.
        skipped: frames that were left out because their pose is not finite.
    """

    names: tuple[str, ...]
    images: Tensor
    depth: Tensor
    cameras: Cameras
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)


def cloud_of(frames: Frames, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what one frame's own depth shows.

    Returns:
        Points float64 (N, 3) m in the world; their colours float32 (N, 3), 0 ... 255, the image's mean over a pixel of
        the depth where sizes differ; their normals float32 (N, 3), towards the camera, zeros next to unknown depth.

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
    image = frames.images[view : view + 1].float()
    if image.shape[-2:] != world.shape[:2]:
        image = F.interpolate(image, size=world.shape[:2], mode="area")
    right, down = torch.zeros_like(world), torch.zeros_like(world)
    right[:, :-1], down[:-1] = world[:, 1:] - world[:, :-1], world[1:] - world[:-1]
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1)  # x right, y down: towards the camera
    return world[known], image[0].permute(1, 2, 0)[known], normals[known].nan_to_num(0.0).float()


def read_frames(
    folder: str | Path, limit: int | None = None, every: int = 1, depth_scale: float | None = None
) -> Frames:
    """Read a scene.

    Two forms are known:

    * ``frames.json`` with ``intrinsics`` (fx, fy, cx, cy), ``image_size`` [height, width], ``depth_unit_m`` and
      ``frames``, each with ``color``, ``depth`` (files), ``translation_m`` and ``quaternion_xyzw`` (camera to world);
      a frame is named after its image;
    * ScanNet's folders: ``color/<n>.jpg``, ``depth/<n>.png`` (16 bit), ``pose/<n>.txt`` (camera to world); a frame is
      named ``<folder>/color/<n>``, as in a feature store.

    Folders need ``intrinsic/intrinsic_color.txt`` (or ``intrinsics.txt``, ``intrinsic.txt``) for the images.
    Frames whose pose is not finite are left out and counted.

    Args:
        folder: of the scene.
        limit: frames to read at most; None = all.
        every: take the frames whose number it divides (``frames.json`` has no numbers: each n-th in order).
        depth_scale: units of the depth files per metre; None = what ``frames.json`` records, else 1000.
            Units of 0 and 65535 are unknown depth.

    Raises:
        ConfigError: for a scale that is not positive.
        DataError: naming the file that is missing or wrong.
    """
    if depth_scale is not None and not 0 < depth_scale < math.inf:
        raise ConfigError(f"depth_scale is {depth_scale}; expected units per metre, above 0")
    root = Path(folder)
    if (root / JSON).is_file():
        listed = of_json(root / JSON)
        unit = 1 / depth_scale if depth_scale else listed.depth_unit_m
        return _frames(listed.entries(root)[::every][:limit], listed.K, listed.image_size, unit, root / JSON)
    if (root / "color").is_dir():
        return _of_files(root, of_folders(root, every), limit, 1 / (depth_scale or DEPTH_SCALE))
    raise DataError(f"{root} has neither {JSON} nor a folder color; expected one of the forms of read_frames")


def _of_files(root: Path, found: Iterator[Entry], limit: int | None, unit: float) -> Frames:
    """Read frames with finite poses, ``limit`` at most; others are counted."""
    entries: list[Entry] = []
    skipped = 0
    while limit is None or len(entries) < limit:
        entry = next(found, None)
        if entry is None:
            break
        if entry.pose.isfinite().all():
            entries.append(entry)
        else:
            skipped += 1
    if skipped:
        _logger.info("%s: %d frames left out, whose poses are not finite", root, skipped)
    where = root if not skipped else f"{root} ({skipped} frames, none with a finite pose)"
    K = intrinsics_of(root)
    frames = _frames(entries, K, None, unit, where, skipped)
    _check_depth_camera(root, K, frames)
    return frames


def _check_depth_camera(root: Path, K: Tensor, frames: Frames) -> None:
    """Refuse depth of another camera than the images'.

    Raises:
        DataError: naming both.
    """
    path = root / DEPTH_INTRINSICS
    if not path.is_file():
        return
    own = matrix(path, ((3, 3), (4, 4)))[:2, :3]
    size = (int(frames.depth.shape[1]), int(frames.depth.shape[2]))
    expected = frames.cameras[0].resize(size).K[0, :2]
    if float((own - expected).abs().max()) > _SAME_VIEW * size[1]:
        rounded = [[round(x, 1) for x in row] for row in expected.tolist()]
        raise DataError(
            f"{path} is {own.tolist()} for depth of {size[0]}x{size[1]} px; the images' intrinsics give {rounded}: "
            "depth and images must show the same field of view"
        )


def _frames(
    entries: list[Entry], K: Tensor, size: tuple[int, int] | None, unit: float, where: Any, skipped: int = 0
) -> Frames:
    """Read the pictures; ``size`` is what the images must have, None = that of the first."""
    if not entries:
        raise DataError(f"{where}: there are no frames")
    images: list[Tensor] = []
    depths: list[Tensor] = []
    for entry in entries:
        image, depth = read_picture(entry.colour, _colour), read_picture(entry.depth, _depth, "depth picture")
        size = size or (image.shape[1], image.shape[2])
        if tuple(image.shape[1:]) != size:
            raise DataError(
                f"{entry.colour} is {_px(image)}; the intrinsics belong to images of {size[0]}x{size[1]} px"
            )
        if depths and depth.shape != depths[0].shape:
            raise DataError(f"{entry.depth} is {_px(depth)}; {entries[0].depth} is {_px(depths[0])}: one size for all")
        images.append(image)
        depths.append(depth.where(depth != _NO_DEPTH, 0.0) * unit)
    size = size or (0, 0)
    rows, cols = depths[0].shape
    if abs(math.log(size[1] * rows / (size[0] * cols))) > _SAME_VIEW:
        raise DataError(
            f"{entries[0].depth} is {rows}x{cols} px, its image {size[0]}x{size[1]} px: sides of another "
            "ratio; they must show the same field of view"
        )
    cameras = Cameras(K.double().repeat(len(entries), 1, 1), torch.stack([entry.pose for entry in entries]), size)
    _check_centre(K, size, where)
    names = tuple(entry.name for entry in entries)
    return Frames(names, torch.stack(images), torch.stack(depths), cameras, skipped)


def _check_centre(K: Tensor, size: tuple[int, int], where: Any) -> None:
    """Refuse intrinsics of images of another size, whose principal point is far from these images' middle.

    Raises:
        DataError: naming both.
    """
    off = [(float(K[axis, 2]) + 0.5) / size[1 - axis] - 0.5 for axis in (0, 1)]
    if min(map(abs, off)) > _OFF_CENTRE and off[0] * off[1] > 0:
        raise DataError(
            f"{where}: cx, cy are {float(K[0, 2]):.1f}, {float(K[1, 2]):.1f} for images of {size[0]}x{size[1]} px, far "
            "from their middle; the intrinsics seem to belong to images of another size"
        )


def _colour(image: Image.Image, name: str) -> Tensor:
    if image.getexif().get(_TURNED, 1) != 1:
        raise DataError(f"{name} is turned by its EXIF tag; cameras belong to pixels as stored: remove the tag")
    if image.mode not in ("RGB", "RGBA", "L"):
        raise DataError(f"{name} is of PIL's mode {image.mode}; expected a colour image of 8 bit")
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
