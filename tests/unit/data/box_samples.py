"""A folder of small images with boxes in COCO JSON, to be spoilt by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 40


def content() -> dict[str, Any]:
    """Three images, two classes with ids that are neither 0-based nor in order, four boxes; the last image has none."""
    images = [
        {"id": 10 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(3)
    ]
    boxes = [
        (10, 5, [2, 3, 10, 8]),
        (10, 2, [20, 10, 12, 12.5]),
        (11, 5, [0, 0, 40, 30]),
        (11, 2, [5.25, 6, 7, 8]),
    ]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        for number, (image, category, box) in enumerate(boxes)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "red"}, {"id": 2, "name": "blue"}],
    }


def write(folder: Path, made: Any, images: Path | None = None) -> Path:
    """Write the images, below ``images`` or ``folder``, and the JSON; return its path."""
    place = images or folder
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(
            place / f"{i}.png"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "boxes.json"
    file.write_text(made if isinstance(made, str) else json.dumps(made))
    return file
