"""The points of RGB-D frames, seen from two places: in colour, and in colours of image features."""

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
HEIGHT, WIDTH = SIZE
GAP = 6  # pixels between views
TITLE_HEIGHT = 40
DOT = 3  # pixels of a point
NEAREST_M = 0.1
# metres to the right and up from the first camera, and radians downwards
CAMERA_MOVES = ((0.0, 0.0, 0.0), (0.3, 1.4, 0.35))


def room(folder: Path) -> Image.Image:
    """Draw the points of all frames from two places.

    On the left in colour, on the right in the first principal components of lifted features.
    """
    frames = read_frames(folder)
    has_depth = frames.depth > 0
    points = frames.cameras.unproject(frames.depth)[has_depth]
    colours = frames.images.movedim(1, -1)[has_depth].numpy()

    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
    maps, cameras = frame_maps(backbone, frames)
    links = PointProjector()(points, cameras, frames.depth)
    lifted, valid = lift(maps, links)
    components = np.zeros((len(points), 3))
    components[valid.numpy()] = pca_rgb(lifted[valid])
    columns = {
        "colour": colours,
        "PCA of features, random weights": (255 * components).astype(np.uint8),
    }

    picture = Image.new("RGB", (2 * WIDTH + GAP, TITLE_HEIGHT + 2 * HEIGHT + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for column, (title, rgb) in enumerate(columns.items()):
        left = column * (WIDTH + GAP)
        draw.text((left + 4, 8), title, "#1e1e1e", ImageFont.load_default(20))
        for row, (right, up, down) in enumerate(CAMERA_MOVES):
            camera = move_camera(frames.cameras, right=right, up=up, down=down)
            view = Image.fromarray(render(points, rgb, camera))
            picture.paste(view, (left, TITLE_HEIGHT + row * (HEIGHT + GAP)))
    return picture


def move_camera(cameras: Cameras, right: float, up: float, down: float) -> Cameras:
    """Return a camera next to the first one, with the size of a view.

    Args:
        cameras: of the frames.
        right: metres.
        up: metres.
        down: radians by which it is tilted downwards.
    """
    move = torch.eye(4, dtype=torch.float64)
    move[1:3, 1:3] = torch.tensor([[np.cos(down), np.sin(down)], [-np.sin(down), np.cos(down)]])
    move[0, 3] = right
    move[1, 3] = -up
    camera = Cameras(cameras.K[:1], cameras.cam_to_world[:1] @ move, cameras.size)
    return camera.resize(SIZE)


def render(points: Tensor, colours: np.ndarray, camera: Cameras) -> np.ndarray:
    """Return a view (height, width, 3) of points, white where there is none."""
    uv, z = camera.project(points)
    depth = z[0]
    cols, rows = uv[0].round().long().unbind(-1)
    in_rows = (rows >= 0) & (rows < HEIGHT - DOT)
    in_cols = (cols >= 0) & (cols < WIDTH - DOT)
    inside = (depth > NEAREST_M) & in_rows & in_cols
    # the nearest last, so that they cover the others
    order = torch.nonzero(inside).flatten()[depth[inside].argsort(descending=True)]
    view = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for down in range(DOT):
        for across in range(DOT):
            view[rows[order] + down, cols[order] + across] = colours[order]
    return view
