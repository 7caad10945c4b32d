"""Photos whose right maps are known: every patch has the token of its class, and a little noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dinoneck.painting import Photo

CLASSES = ("crop", "weed", "soil")
ROWS = 6
COLS = 8
PATCH_PX = 40
CHANNELS = 24
_SHADES = np.array([(70, 150, 60), (150, 190, 40), (120, 90, 70)], np.uint8)


def class_map(seed: int) -> np.ndarray:
    """(ROWS, COLS) classes in blocks: the two upper thirds in an order of their own, soil below."""
    crop_first = seed % 2 == 0
    classes = np.full((ROWS, COLS), 2)
    classes[: ROWS - 2, : COLS // 2] = 0 if crop_first else 1
    classes[: ROWS - 2, COLS // 2 :] = 1 if crop_first else 0
    return classes


def field(number: int, classes: np.ndarray, *, noise: float = 0.3) -> Photo:
    """A photo of patches of these classes."""
    generator = np.random.default_rng(number)
    centres = np.random.default_rng(100).normal(size=(len(CLASSES), CHANNELS))
    tokens = centres[classes] + noise * generator.normal(size=(*classes.shape, CHANNELS))
    rows, cols = classes.shape
    pixels = _SHADES[classes].repeat(PATCH_PX, axis=0).repeat(PATCH_PX, axis=1)
    name = f"field/{number}.jpg"
    return Photo(
        name=name,
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        height=rows * PATCH_PX,
        width=cols * PATCH_PX,
        picture=Image.fromarray(pixels),
        patches=torch.from_numpy(tokens).float(),
    )


def fields(count: int) -> list[Photo]:
    """Photos 0 ... count - 1, each with the map :func:`class_map`."""
    return [field(number, class_map(number)) for number in range(count)]


def stroke(label: str | None, radius: float, *points: tuple[float, float]) -> dict[str, object]:
    return {"class": label, "radius": radius, "points": [list(point) for point in points]}


def document(photo: Photo, strokes: Sequence[dict[str, object]]) -> dict[str, object]:
    """The content of strokes.json with strokes on one photo."""
    image = {
        "name": photo.name,
        "sha256": photo.sha256,
        "width": photo.width,
        "height": photo.height,
        "strokes": list(strokes),
    }
    return {
        "format": "dinoneck strokes",
        "version": 1,
        "classes": list(CLASSES),
        "images": [image],
    }
