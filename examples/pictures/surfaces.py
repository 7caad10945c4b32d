"""A computed scene, and the depth, surface normals and classes that one head predicts for it in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dinoneck import DPTHead, Predictor, Task, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.training import MemoryTokens, fit
from dinoneck.viz import overlay_panel
from dinoneck.viz.scales import outputs, scales

Floats = NDArray[np.float64]

SIZE = (192, 256)  # height and width of a scene in pixels
PATCH = 16
FOCAL_PX = 230.0
FLOOR_M = 1.2  # below the camera
NUM_SCENES = 48
LIGHT = np.array([0.5, 0.7, 0.5]) / np.linalg.norm([0.5, 0.7, 0.5])  # to the right, down, away
AMBIENT = 0.35
CLASSES = ("floor", "wall", "ball")
BALL_COLOURS = ((214, 69, 65), (68, 108, 179), (244, 208, 63), (155, 89, 182))
TASKS = (
    Task("depth", kind="dense", activation="relu", unit="m", minimum=0),
    Task("normals", kind="dense", dim=3, activation="unit"),
    Task("surface", kind="segmentation", dim=len(CLASSES), labels=CLASSES),
)
PANEL_WIDTH = 420
GAP = 8  # pixels between panels
FONT_PX = 20
TEXT = "#1e1e1e"


class Scene(NamedTuple):
    """An image and what is true of each of its pixels.

    Attributes:
        image: RGB.
        depth: metres along the viewing axis (height, width).
        normals: into the surface, in camera axes x right, y down, z forward (3, height, width).
        classes: indices of ``CLASSES`` (height, width).
    """

    image: Image.Image
    depth: Floats
    normals: Floats
    classes: NDArray[np.int64]


def surfaces() -> Image.Image:
    """Train one head on computed scenes, and draw its depth, normals and classes of another scene.

    The backbone is small, and frozen with random weights.
    """
    scenes = [computed_scene(seed) for seed in range(NUM_SCENES + 1)]
    shown = scenes.pop()
    predictor = trained(scenes)
    return true_and_predicted(shown, predictor)


def computed_scene(seed: int) -> Scene:
    """Look at balls on a floor in front of a wall, through the pinhole of a camera."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(x - width / 2) / FOCAL_PX, (y - height / 2) / FOCAL_PX, np.ones(SIZE)])

    # the wall, turned about the vertical axis, and the floor
    angle = rng.uniform(-0.5, 0.5)
    wall_normal = np.array([np.sin(angle), 0.0, np.cos(angle)])
    wall_depth = rng.uniform(4.5, 6.5) * wall_normal[2] / along(wall_normal, rays)
    floor_depth = np.where(rays[1] > 1e-6, FLOOR_M / np.maximum(rays[1], 1e-6), np.inf)
    is_floor = floor_depth < wall_depth
    depth = np.where(is_floor, floor_depth, wall_depth)
    normals = np.where(
        is_floor, np.array([0.0, 1.0, 0.0])[:, None, None], wall_normal[:, None, None]
    )
    classes = np.where(is_floor, CLASSES.index("floor"), CLASSES.index("wall"))
    points = depth * rays
    colours = np.where(is_floor, tiles(points), stripes(points))

    # balls that lie on the floor
    for ball_colour in rng.permutation(BALL_COLOURS)[: rng.integers(2, 5)]:
        radius = rng.uniform(0.25, 0.7)
        centre = np.array([rng.uniform(-1.2, 1.2), FLOOR_M - radius, rng.uniform(2.2, 4.0)])
        ball_depth = depth_of_ball(centre, radius, rays)
        is_nearer = ball_depth < depth
        depth = np.where(is_nearer, ball_depth, depth)
        outward = depth * rays - centre[:, None, None]
        normals = np.where(is_nearer, -outward / radius, normals)
        classes = np.where(is_nearer, CLASSES.index("ball"), classes)
        colours = np.where(is_nearer, ball_colour[:, None, None], colours)

    brightness = AMBIENT + (1 - AMBIENT) * np.maximum(along(LIGHT, normals), 0)
    shaded = colours * brightness + rng.normal(0, 3, colours.shape)
    pixels = shaded.clip(0, 255).astype(np.uint8)
    return Scene(Image.fromarray(np.moveaxis(pixels, 0, -1)), depth, normals, classes)


def along(direction: Floats, vectors: Floats) -> Floats:
    """The products of vectors (3, height, width) with one direction (3,)."""
    return np.einsum("c,chw->hw", direction, vectors)


def depth_of_ball(centre: Floats, radius: float, rays: Floats) -> Floats:
    """The depth at which rays of z = 1 enter a ball; infinite where they miss it."""
    length_2 = along(np.ones(3), rays**2)
    middle = along(centre, rays) / length_2
    to_surface_2 = middle**2 - (centre @ centre - radius**2) / length_2
    entry = middle - np.sqrt(np.maximum(to_surface_2, 0))
    return np.where(to_surface_2 > 0, entry, np.inf)


def tiles(points: Floats) -> Floats:
    """The colours of a floor of square tiles of half a metre (3, height, width)."""
    is_dark = (np.floor(points[0] * 2) + np.floor(points[2] * 2)) % 2
    return np.array([176.0, 160.0, 140.0])[:, None, None] - 34 * is_dark


def stripes(points: Floats) -> Floats:
    """The colours of a wall with stripes of 40 cm (3, height, width)."""
    is_dark = np.floor(points[0] * 2.5) % 2
    return np.array([150.0, 176.0, 170.0])[:, None, None] - 22 * is_dark


def trained(scenes: list[Scene]) -> Predictor:
    """Train a DPT head on the frozen tokens of scenes; five CPU minutes."""
    torch.manual_seed(0)
    preprocess = Preprocessing(patch_size=PATCH, size=SIZE)
    backbone = load_backbone("dinoneck_tiny", layers=[1, 2, 3, 5])
    neck = {"type": "dpt_neck", "out_channels": 32, "hidden_sizes": [24, 32, 48, 48]}
    head = DPTHead(backbone.embed_dim, TASKS, neck)
    ids = [str(index) for index in range(len(scenes))]
    images = [scene.image for scene in scenes]
    source = MemoryTokens.extract(backbone, images, ids, preprocess=preprocess)
    fit(
        head,
        source,
        {
            "depth": np.stack([scene.depth[None] for scene in scenes]),
            "normals": np.stack([scene.normals for scene in scenes]),
            "surface": np.stack([scene.classes for scene in scenes]),
        },
        target_ids=ids,
        epochs=60,
        lr=1e-3,
    )
    return Predictor(head, backbone, preprocess=preprocess)


def true_and_predicted(scene: Scene, predictor: Predictor) -> Image.Image:
    """Draw a scene, and its depth, normals and classes: what is true above what is predicted."""
    [predicted] = predictor([scene.image], maps="patch")
    is_class = np.stack([scene.classes == index for index in range(len(CLASSES))])
    true = {
        "depth": scene.depth.mean(),
        "surface": is_class.mean(axis=(1, 2)),
        "maps": {
            "depth": scene.depth[None],
            "normals": scene.normals,
            "surface": is_class.astype(np.float64),
        },
    }
    listed = outputs(predictor.tasks)
    scale = scales(listed, [true, predicted])

    columns = []
    for task in predictor.tasks:
        column = []
        for result in (true, predicted):
            alone = {**result, "maps": {task.name: result["maps"][task.name]}}
            panel = overlay_panel(scene.image, alone, task, predictor.preprocess, scale=scale)
            column.append(resized(panel))
        columns.append(column)
    photo = resized(scene.image)

    row_height = max(panel.height for column in columns for panel in column)
    width = (1 + len(columns)) * (PANEL_WIDTH + GAP) - GAP
    picture = Image.new("RGB", (width, 2 * row_height + GAP), "white")
    picture.paste(photo, (0, 0))
    font = ImageFont.load_default(FONT_PX)
    draw = ImageDraw.Draw(picture)
    draw.text((PANEL_WIDTH, photo.height + GAP), "true", TEXT, font, anchor="ra")
    middle = row_height + GAP + photo.height // 2
    draw.text((PANEL_WIDTH - GAP, middle), "predicted", TEXT, font, anchor="rm")
    for number, column in enumerate(columns, start=1):
        left = number * (PANEL_WIDTH + GAP)
        picture.paste(column[0], (left, 0))
        picture.paste(column[1], (left, row_height + GAP))
    return picture


def resized(picture: Image.Image) -> Image.Image:
    """The picture in the width of panels."""
    height = round(picture.height * PANEL_WIDTH / picture.width)
    return picture.resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS)
