"""The folders of a newcomer: small images with masks and a table, class folders, and cells with boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 64, 96  # of the images, in pixels
COLOURS = ((120, 90, 60), (40, 150, 50), (220, 160, 40))  # of soil, crop and weed
CLASSES = ("soil", "crop", "weed")
NUM_IMAGES, NUM_GROUPS = 48, 8
NUM_NEW = 12
OWN_HEAD = """from collections.abc import Sequence

from torch import nn

from dinoneck import Task, register
from dinoneck.heads import Head
from dinoneck.layers.inputs import as_tokens, check_tokens


@register
class MaxHead(Head):
    def __init__(self, embed_dim: int, tasks: Sequence[Task]):
        super().__init__()
        self.embed_dim = embed_dim
        self.tasks = tuple(tasks)
        self.layers = nn.ModuleList(nn.Linear(embed_dim, task.dim) for task in self.tasks)

    def forward(self, tokens, **plain):
        tokens = check_tokens(as_tokens(tokens, **plain, owner=self), self, self.embed_dim)
        pooled = tokens.patches[-1].amax(dim=1)
        return {task.name: layer(pooled) for task, layer in zip(self.tasks, self.layers)}
"""
Row = dict[str, Any]


def write_material(folder: Path) -> None:
    """Write everything that the commands of :mod:`tests.first_use.cases` read."""
    random = np.random.default_rng(0)
    rows = write_fields(folder / "ds", random, NUM_IMAGES)
    new_rows = write_fields(folder / "new", random, NUM_NEW)
    some_groups = [row for row in rows if row["group"] in (0, 1)]
    write_table(folder / "ds" / "cover2.csv", some_groups)
    two_groups = []
    renamed = []
    for number, row in enumerate(rows):
        two_groups.append(row | {"image": f"ds/{row['image']}", "group": number % 2})
        renamed.append(row | {"image": row["image"].replace("00.png", "99.png")})
    write_table(folder / "two_groups.csv", two_groups)
    write_table(folder / "missing.csv", renamed)
    copy_to_classes(folder / "ds", rows[:6] + rows[-6:], folder / "cls")
    copy_to_classes(folder / "new", new_rows, folder / "clsnew")
    copy_to_classes(folder / "ds", rows[:6] + rows[-6:], folder / "split" / "train")
    copy_to_classes(folder / "new", new_rows, folder / "split" / "val")
    write_cells(folder / "cells", random)
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("a")
    (folder / "own.py").write_text(OWN_HEAD)
    write_stopped_run(folder / "stopped")


def write_stopped_run(folder: Path) -> None:
    """Write what a training leaves that ended before its first epoch, of another config than the commands'."""
    unfinished = folder / "unfinished"
    unfinished.mkdir(parents=True)
    config = {"backbone": {"name": "dinoneck_tiny", "layers": [2, 4, 5]}}
    (unfinished / "run.json").write_text(json.dumps({"run": config}))
    (unfinished / "log.jsonl").touch()


def write_fields(folder: Path, random: np.random.Generator, count: int) -> list[Row]:
    """Write images, masks and ``cover.csv`` with the share of every class; return the rows of the table."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for number in range(count):
        classes = np.zeros((HEIGHT, WIDTH), np.uint8)
        for class_index in (1, 2):
            for _ in range(random.integers(1, 4)):
                top = random.integers(0, HEIGHT - 16)
                left = random.integers(0, WIDTH - 16)
                rows_of_plant = slice(top, top + random.integers(8, 32))
                cols_of_plant = slice(left, left + random.integers(8, 32))
                classes[rows_of_plant, cols_of_plant] = class_index
        noise = random.integers(-20, 21, (HEIGHT, WIDTH, 3))
        pixels = np.array(COLOURS)[classes] + noise
        name = f"{number:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
        Image.fromarray(classes).save(folder / "masks" / name)
        row: Row = {"image": f"images/{name}", "mask": f"masks/{name}"}
        for class_index, class_name in enumerate(CLASSES):
            row[class_name] = round(float((classes == class_index).mean()), 4)
        row["domain"] = "early" if number < count // 2 else "late"
        row["group"] = number * NUM_GROUPS // count
        rows.append(row)
    write_table(folder / "cover.csv", rows)
    return rows


def write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def copy_to_classes(source: Path, rows: Iterable[Row], folder: Path) -> None:
    """Write the images of rows into a folder for each domain."""
    for row in rows:
        class_folder = folder / row["domain"]
        class_folder.mkdir(parents=True, exist_ok=True)
        content = (source / row["image"]).read_bytes()
        (class_folder / Path(row["image"]).name).write_bytes(content)


def write_cells(folder: Path, random: np.random.Generator) -> None:
    """Write 18 images of discs of two colours, and COCO files of their boxes: 12 to train on, 6 held out."""
    (folder / "images").mkdir(parents=True)
    names = ("RBC", "WBC")
    for part, numbers in {"train": range(12), "val": range(12, 18)}.items():
        content: dict[str, list[Row]] = {"images": [], "annotations": [], "categories": []}
        for index, name in enumerate(names):
            content["categories"].append({"id": index + 1, "name": name})
        for number in numbers:
            name = f"cell-{number:02}.png"
            image = Image.new("RGB", (128, 96), (230, 220, 220))
            drawing = ImageDraw.Draw(image)
            for label in (0, 0, 1):
                side = int(random.integers(16, 32))
                left = int(random.integers(0, 128 - side))
                top = int(random.integers(0, 96 - side))
                box = [left, top, side, side]
                fill = ((190, 60, 70), (80, 70, 160))[label]
                drawing.ellipse([left, top, left + side, top + side], fill=fill)
                annotation_id = len(content["annotations"]) + 1
                content["annotations"].append(
                    {
                        "id": annotation_id,
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            image.save(folder / "images" / name)
            content["images"].append({"id": number, "file_name": name, "width": 128, "height": 96})
        (folder / f"{part}.json").write_text(json.dumps(content))
