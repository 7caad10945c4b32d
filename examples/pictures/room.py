"""The points of RGB-D frames, seen from two places: in their colours, and in colours of their image features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dinoneck import load_backbone
from dinoneck.points import Cameras, PointProjector, lift
from dinoneck.viz import pca_rgb
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import read_frames

SIZE = (290, 400)  # height and width of a view in pixels
DOT = 3  # pixels of a point
# metres to the right and up from the first camera, and radians downwards
PLACES = ((0.0, 0.0, 0.0), (0.3, 1.4, 0.35))


def room(folder: Path) -> Image.Image:
    """Return the points of all frames from two places, in colour and in the first components of lifted features."""
    frames = read_frames(folder)
    known = frames.depth > 0
    points = frames.cameras.unproject(frames.depth)[known]
    colours = frames.images.movedim(1, -1)[known].numpy()
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
    maps, cameras = frame_maps(backbone, frames)
    lifted, valid = lift(maps, PointProjector()(points, cameras, frames.depth))
    features = np.zeros((len(points), 3))
    features[valid.numpy()] = pca_rgb(lifted[valid])
    titles = ("colour", "PCA of features, random weights")
    picture = Image.new("RGB", (2 * SIZE[1] + 6, 2 * SIZE[0] + 46), "white")
    draw = ImageDraw.Draw(picture)
    for column, (title, rgb) in enumerate(
        zip(titles, (colours, (255 * features).astype(np.uint8)), strict=True)
    ):
        left = column * (SIZE[1] + 6)
        draw.text((left + 4, 8), title, "#1e1e1e", ImageFont.load_default(20))
        for row, place in enumerate(PLACES):
            view = seen(points, rgb, moved(frames.cameras, *place))
            picture.paste(Image.fromarray(view), (left, 40 + row * (SIZE[0] + 6)))
    return picture


def moved(cameras: Cameras, right: float, up: float, down: float) -> Cameras:
    """Return a camera next to the first one, of the size of a view."""
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:3, 1:3] = torch.tensor([[np.cos(down), np.sin(down)], [-np.sin(down), np.cos(down)]])
    turn[0, 3], turn[1, 3] = right, -up
    own = Cameras(cameras.K[:1], cameras.cam_to_world[:1] @ turn, cameras.size)
    return own.resize(SIZE)


def seen(points: Tensor, colours: np.ndarray, camera: Cameras) -> np.ndarray:
    """Return a view (height, width, 3) of points, the nearest in front; white where there is none."""
    uv, z = camera.project(points)
    cols, rows = uv[0].round().long().unbind(-1)
    view = np.full((*SIZE, 3), 255, np.uint8)
    inside = (
        (z[0] > 0.1) & (rows >= 0) & (rows < SIZE[0] - DOT) & (cols >= 0) & (cols < SIZE[1] - DOT)
    )
    order = torch.nonzero(inside).flatten()[z[0][inside].argsort(descending=True)]
    for down in range(DOT):
        for across in range(DOT):
            view[rows[order] + down, cols[order] + across] = colours[order]
    return view
