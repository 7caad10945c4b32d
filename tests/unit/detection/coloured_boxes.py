"""Images of coloured rectangles with their boxes, for detectors to learn in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 96, 128
COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 230)}
BOXES = {
    0: [("red", (8, 10, 40, 30)), ("blue", (70, 12, 44, 50)), ("red", (20, 56, 30, 32))],
    1: [("blue", (6, 30, 50, 40)), ("red", (84, 40, 30, 44))],
    2: [],
}


def write(folder: Path) -> Path:
    """Write three images, the last without a box, and the JSON; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names, annotations = list(COLOURS), []
    for number, boxes in BOXES.items():
        pixels = (128 + 8 * rng.standard_normal((HEIGHT, WIDTH, 3))).clip(0, 255)
        for name, (left, top, width, height) in boxes:
            pixels[top : top + height, left : left + width] = COLOURS[name]
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": names.index(name) + 1,
            }
            annotations.append({**entry, "bbox": [left, top, width, height], "iscrowd": 0})
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in BOXES
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file
