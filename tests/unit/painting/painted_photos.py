"""Photos of two halves, and strokes on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.painting import PaintedImage, Stroke, Strokes

HEIGHT = 96
WIDTH = 128
SIZE = "96x128"
CLASSES = ("left", "right")
LEFT = (40, 140, 50)
RIGHT = (190, 150, 110)


def write_photos(folder: Path, names: Sequence[str] = ("a/0.png", "a/1.png", "b/2.png")) -> None:
    """Write photos whose left part is green and whose right part is brown, with noise; the edge moves."""
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        pixels = np.empty((HEIGHT, WIDTH, 3))
        pixels[:, : 48 + 8 * number] = LEFT
        pixels[:, 48 + 8 * number :] = RIGHT
        pixels += random.integers(-20, 20, pixels.shape)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def painted(file: Path, name: str) -> PaintedImage:
    """A stroke downwards in both parts."""
    left = Stroke("left", 5.0, ((20.0, 20.0), (24.0, 70.0)))
    right = Stroke("right", 5.0, ((110.0, 20.0), (100.0, 80.0)))
    return PaintedImage(name, sha256_of(file), height=HEIGHT, width=WIDTH, strokes=(left, right))


def strokes_on(folder: Path, names: Sequence[str]) -> Strokes:
    return Strokes(CLASSES, tuple(painted(folder / name, name) for name in names))


def write_strokes(file: Path, strokes: Strokes | Any) -> Path:
    document = strokes.to_document() if isinstance(strokes, Strokes) else strokes
    file.write_text(json.dumps(document))
    return file
