"""Verb ``picture``: a scene's cloud in its own colours, and in those of the features that its images bring to it."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.errors import ConfigError, DataError
from dinoneck.points import Cameras, PointProjector, lift
from examples import kinds
from examples.pointcloud.checking import add_depth_scale, add_features, source_of
from examples.pointcloud.features import device_of
from examples.pointcloud.frames import Frames, cloud_of, read_frames
from examples.pointcloud.rooms import room

HELP = "draw a scene's cloud in its colours and in the principal components of its images' features"
FORMATS = (".png", ".jpg", ".jpeg")
_FIT = 50_000  # points that the components are found on
_BACKGROUND = 255
_GREY = 160  # of points that no image's features reach
_GAP, _LINE, _FONT = 6, 20, 13


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a scene; without, a room from --seed")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .jpg")
    parser.add_argument("--frames", type=kinds.count, metavar="N", help="the first N; without, all")
    parser.add_argument("--every", type=kinds.count, default=1, metavar="K", help="frames whose number K divides")
    add_depth_scale(parser)
    parser.add_argument("--render", type=kinds.size, default="300x400", metavar="HxW", help="of one view, in pixels")
    parser.add_argument("--seed", type=kinds.whole, default=0, metavar="N", help="of the room and of drawn points")
    add_features(parser)


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Draw the picture."""
    if options.out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out is {options.out}; expected a name that ends in {', '.join(FORMATS)}")
    device = device_of(options.device)
    if options.data is None:
        frames = room(options.seed, options.frames or 5, (240, 320), points=1).frames
    else:
        frames = read_frames(options.data, options.frames, options.every, options.depth_scale)
    source = source_of(options, device)
    maps, cameras = source.maps(frames)
    points, colours = scene_cloud(frames)
    maps, cameras, depth = maps.float().to(device), cameras.to(device), frames.depth.to(device)
    if not bool(maps.isfinite().all()):
        raise DataError(
            f"{int((~maps.isfinite()).sum())} values of the maps are NaN or Inf; the verb check shows which"
        )
    drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(options.seed))[:_FIT]
    feats, valid = lift(maps, PointProjector()(points[drawn].to(device), cameras, depth))
    # the components are taken of the tokens, which are few: features of all points would take gigabytes
    shown, valid = lift(maps, PointProjector()(points.to(device), cameras, depth), project=components(feats[valid]))
    shown, valid = shown.cpu(), valid.cpu()
    painted = torch.full_like(colours, _GREY)
    painted[valid] = stretched(shown[valid])
    views = viewpoints(frames, points, options.render)
    rows = [[splat(points, shown, views[i]) for shown in (colours, painted)] for i in range(len(views))]
    captions = ("colour", f"PCA of features, {source.name}")
    save(page(rows, captions), options.out)
    print(f"{options.out}: {len(points):,} points, {float(valid.double().mean()):.3f} with features of {source.name}")
    return 0


def scene_cloud(frames: Frames) -> tuple[Tensor, Tensor]:
    """Return all frames' points float64 (N, 3) and colours float32 (N, 3), 0 ... 255.

    Raises:
        DataError: if no frame has depth.
    """
    parts = [cloud_of(frames, view)[:2] for view in range(len(frames))]
    points, colours = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(points):
        raise DataError(f"none of {len(frames)} frames has a pixel of known depth: there is nothing to draw")
    return points, colours


@torch.no_grad()
def components(feats: Tensor) -> nn.Linear:
    """Return the layer that gives the first three principal components of features (N, C), float32.

    Their signs are chosen so that the picture does not depend on the solver.
    """
    layer = nn.Linear(feats.shape[1], 3, device=feats.device)
    mean = feats.double().mean(0) if len(feats) else feats.new_zeros(feats.shape[1]).double()
    centred = feats.double() - mean
    vectors = F.pad(torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1), (0, 3))[:, :3]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    layer.weight.copy_(vectors.mT)
    layer.bias.copy_(-mean @ vectors)
    return layer


def stretched(values: Tensor) -> Tensor:
    """Return values (N, 3) as colours 0 ... 255, each column from its 1st to its 99th percentile."""
    if not len(values):
        return values
    some = values[:: max(1, len(values) // _FIT)]
    low, high = torch.quantile(some, some.new_tensor([0.01, 0.99]), dim=0)
    return ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255


def viewpoints(frames: Frames, points: Tensor, size: tuple[int, int]) -> Cameras:
    """Return two cameras: the middle frame's own place, a step back; and from there up and to the side.

    Both look at the middle of the cloud.
    """
    middle = points.median(0).values
    pose = frames.cameras.cam_to_world[len(frames) // 2]
    right, down, forward = pose[:3, :3].mT
    reach = float((middle - pose[:3, 3]).norm())
    back, aside = pose[:3, 3] - 0.35 * reach * forward, 0.6 * reach * (right - down) - 0.2 * reach * forward
    eyes = (back, back + aside)
    poses = torch.stack([_looking(eye, middle, down) for eye in eyes])
    height, width = size
    focal = 0.9 * width
    K = torch.tensor([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
    return Cameras(K.repeat(2, 1, 1), poses, size)


def _looking(eye: Tensor, target: Tensor, down: Tensor) -> Tensor:
    z = F.normalize(target - eye, dim=0)
    x = F.normalize(torch.linalg.cross(down, z), dim=0)
    pose = torch.eye(4, dtype=eye.dtype)
    pose[:3, :3], pose[:3, 3] = torch.stack([x, torch.linalg.cross(z, x), z], 1), eye
    return pose


def splat(points: Tensor, colours: Tensor, camera: Cameras, radius: int = 1) -> Tensor:
    """Draw points as squares of 2 radius + 1 pixels, the nearest on top: uint8 (3, height, width).

    Args:
        points: (N, 3) m.
        colours: (N, 3), 0 ... 255.
        camera: one.
        radius: of a point, in pixels.
    """
    height, width = camera.size
    links = PointProjector(near=0.05)(points, camera)
    col, row = links.uv.round().long().unbind(1)
    nearest = torch.full((height * width,), math.inf, dtype=torch.float64)
    shown = torch.full((height * width, 3), float(_BACKGROUND))
    steps = [(down, right) for down in range(-radius, radius + 1) for right in range(-radius, radius + 1)]
    pixels = []
    for down, right in steps:
        inside = (row + down >= 0) & (row + down < height) & (col + right >= 0) & (col + right < width)
        pixels.append(torch.where(inside, (row + down) * width + col + right, -1))
    for pixel in pixels:
        there = pixel >= 0
        nearest.scatter_reduce_(0, pixel[there], links.z[there].double(), "amin")
    for pixel in pixels:
        top = (pixel >= 0).nonzero()[:, 0]
        top = top[links.z[top].double() == nearest[pixel[top]]]
        shown[pixel[top]] = colours[links.point[top]].float()
    return shown.round().to(torch.uint8).mT.reshape(3, height, width)


def page(rows: Sequence[Sequence[Tensor]], captions: Sequence[str]) -> Image.Image:
    """Put pictures (3, height, width) in rows, with a caption over each column."""
    height, width = rows[0][0].shape[-2:]
    across, along = len(rows[0]) * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP + _LINE
    sheet = Image.new("RGB", (across, along), "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        length = ImageFont.load_default(_FONT).getlength(caption)
        font = ImageFont.load_default(max(1, min(_FONT, _FONT * (width - 4) / max(length, 1))))
        draw.text((column * (width + _GAP) + 2, 2), caption, fill="black", font=font)
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
            sheet.paste(image, (column * (width + _GAP), _LINE + line * (height + _GAP)))
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all; JPEG with quality 85."""
    written = io.BytesIO()
    if path.suffix.lower() == ".png":
        sheet.save(written, "PNG")
    else:
        sheet.save(written, "JPEG", quality=85)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written.getvalue())
