"""Images, tables and heads that the cases share.

They are written here once more, although other tests have similar ones: this file runs with 0.3.0
as well, so it may use only what is public in every version (and no other file of the tests).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from dinoneck import Backbone, load_backbone

WIDTH = 64  # channels of the built-in backbone
SOIL, CROP, WEED = (120, 80, 40), (20, 220, 30), (240, 240, 20)
KINDS = ("bare", "crop", "weedy")
MEADOW_IMAGES = 12

IMAGES = ((80, 128), (64, 96), (80, 128), (48, 80))
"""Sizes in whole patches of 16 pixels, of which two are equal and share a batch."""
ODD_IMAGES = ((83, 130), (64, 96), (83, 130), (40, 76))
"""Sizes that leave a remainder."""


def tiny(layers: int | None = None) -> Backbone:
    """Return the built-in backbone, with its last layer or several."""
    return load_backbone("dinoneck_tiny", layers=layers)


def seeded(head_class: type, *arguments: Any, seed: int = 0, **options: Any) -> Any:
    """Build a head in evaluation mode whose weights are those of a seed."""
    torch.manual_seed(seed)
    return head_class(*arguments, **options).eval()


def random_images(sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray[Any, Any]]:
    random = np.random.RandomState(0)
    return [random.randint(0, 256, (*size, 3), np.uint8) for size in sizes]


def write_meadow(folder: Path) -> Path:
    """Write 12 images of soil, crop and weed in vertical bands, their masks, and a table of them.

    Columns of the table: ``image``, ``mask``, the grams of each class, ``kind`` (the widest band)
    and ``place``, which three images share.
    """
    folder.mkdir()
    random = np.random.RandomState(0)
    rows = []
    for i in range(MEADOW_IMAGES):
        widths = [16, 16, 16]
        widths[i % 3] = 32
        order = random.permutation(3)
        columns = np.repeat(order, [widths[band] for band in order])
        classes = np.tile(columns, (32, 1))  # (height, width)
        colours = np.array((SOIL, CROP, WEED))[classes]
        pixels = np.clip(colours + random.randint(-8, 9, colours.shape), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
        Image.fromarray(classes.astype(np.uint8)).save(folder / f"{i:02}-mask.png")
        grams = [float(random.randint(20, 60)) * width / 16 for width in widths]
        row = {
            "image": f"{i:02}.png",
            "mask": f"{i:02}-mask.png",
            "soil": grams[0],
            "crop": grams[1],
            "weed": grams[2],
            "kind": KINDS[i % 3],
            "place": f"place {i // 3}",
        }
        rows.append(row)
    table = folder / "meadow.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_shapes(folder: Path, count: int) -> Path:
    """Write images of one to three red discs and blue squares, and a COCO file with their masks."""
    folder.mkdir()
    random = np.random.RandomState(0)
    images = []
    objects: list[dict[str, Any]] = []
    for i in range(count):
        noise = random.randint(90, 130, (96, 128, 3)).astype(np.uint8)
        image = Image.fromarray(noise)
        for place in range(1 + i % 3):
            category = int(random.randint(2))
            x = 22 + 40 * place
            y = int(random.randint(24, 72))
            radius = int(random.randint(10, 16))
            outline = draw_shape(image, category, x, y, radius)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": i + 1,
                    "category_id": category + 1,
                    "iscrowd": 0,
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                    "area": 4 * radius * radius,
                    "segmentation": [outline],
                }
            )
        image.save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 128, "height": 96})
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    file = folder / "objects.json"
    document = {"images": images, "annotations": objects, "categories": categories}
    file.write_text(json.dumps(document))
    return file


def draw_shape(image: Image.Image, category: int, x: int, y: int, radius: int) -> list[float]:
    """Draw a disc (category 0) or a square; return its outline, x and y in turn."""
    if category == 0:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        corners = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
        colour = (220, 40, 40)
    else:
        left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        colour = (40, 60, 220)
    ImageDraw.Draw(image).polygon(corners, fill=colour)
    return [float(number) for corner in corners for number in corner]
