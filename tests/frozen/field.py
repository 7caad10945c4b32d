"""Six small images of plants, with everything that a training can be given about them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNT = 6
HEIGHT, WIDTH = 32, 64
CLASSES = ("soil", "plant", "herb")  # of the masks; a plant is crop
COLOURS = {"plant": (30, 200, 40), "herb": (230, 220, 30)}
OBJECTS = {"plant": 1, "herb": 2}  # COCO's categories
Box = tuple[str, int, int, int, int]  # class, left, top, width, height


def boxes_of(image: int) -> list[Box]:
    """Return the objects of an image: one to three plants, and a herb in every second image."""
    plants = 1 + image % 3
    boxes: list[Box] = []
    for plant in range(plants):
        side = 12 + 2 * image
        boxes.append(("plant", 2 + 20 * plant, 4 + image, side - 4 * plant, side))
    if image % 2:
        boxes.append(("herb", 50, 18 - image, 10, 8 + image))
    return boxes


def write_field(folder: Path) -> None:
    """Write the images, ``masks``, ``table.csv`` and ``objects.json``."""
    (folder / "masks").mkdir(parents=True)
    rows = []
    images = []
    objects: list[dict[str, Any]] = []
    for image in range(COUNT):
        file_name = f"{image}.png"
        picture, classes = draw(image)
        Image.fromarray(picture).save(folder / file_name)
        Image.fromarray(classes).save(folder / "masks" / file_name)
        rows.append(row_of(image, classes))
        images.append({"id": image, "file_name": file_name, "height": HEIGHT, "width": WIDTH})
        for name, left, top, width, height in boxes_of(image):
            right, bottom = left + width, top + height
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": OBJECTS[name],
                    "bbox": [left, top, width, height],
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "iscrowd": 0,
                }
            )
    write_table(folder / "table.csv", rows)
    categories = [{"id": number, "name": name} for name, number in OBJECTS.items()]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content) + "\n")


def draw(image: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the picture (height, width, 3) and the class of every pixel."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    # soil is lighter to the right and darker from image to image
    picture[:] = (90 + np.arange(WIDTH) - 8 * image)[None, :, None]
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, left, top, width, height in boxes_of(image):
        pixels = (slice(top, top + height), slice(left, left + width))
        picture[pixels] = COLOURS[name]
        classes[pixels] = CLASSES.index(name)
    return picture, classes


def row_of(image: int, classes: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what the table says of an image: grams, a share, heights with a gap, words, its group and its mask."""
    crop = 0.1 * float((classes == 1).sum())
    weed = 0.1 * float((classes == 2).sum())
    return {
        "image": f"{image}.png",
        "crop": round(crop, 1),
        "weed": round(weed, 1),
        "green": round(crop + weed, 1),
        "plant": round(float((classes == 1).mean()), 4),
        "height": "" if image == 4 else 5 + 3 * image,
        "kind": "weedy" if image % 2 else "clean",
        "place": f"place {image // 2}",
        "mask": f"masks/{image}.png",
    }


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
