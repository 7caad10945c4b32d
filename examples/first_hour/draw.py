"""Draw what a newcomer has: photos of a field with masks and a table, and cells with boxes in YOLO's form.

``python draw.py FOLDER`` needs NumPy and Pillow alone.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 64, 96  # of a photo, in pixels
CLASSES = ("soil", "crop", "weed")
COLOURS = ((120, 90, 60), (40, 150, 50), (220, 160, 40))
CELLS = ("red", "white")
COLOURS_OF_CELLS = ((190, 60, 70), (80, 70, 160))


def draw_field(folder: Path, count: int, seed: int) -> None:
    """Write ``images/``, ``masks/`` and ``cover.csv``, the share of each class; four photos are of one plot."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for number in range(count):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for _ in range(random.integers(2, 7)):
            top, left = random.integers(0, HEIGHT - 8), random.integers(0, WIDTH - 8)
            height, width = random.integers(8, 32, 2)
            mask[top : top + height, left : left + width] = random.integers(1, len(CLASSES))
        photo = np.array(COLOURS)[mask] + random.integers(-20, 21, (HEIGHT, WIDTH, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(
            folder / f"images/{number:02}.png"
        )
        Image.fromarray(mask).save(folder / f"masks/{number:02}.png")
        shares = [round(float((mask == index).mean()), 4) for index in range(len(CLASSES))]
        rows.append([f"images/{number:02}.png", *shares, f"plot {seed}-{number // 4}"])
    with (folder / "cover.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", *CLASSES, "plot"], *rows])


def draw_cells(folder: Path, count: int) -> None:
    """Write ``images/``, ``labels/`` and ``data.yaml``: a line ``class x y width height`` for each cell, as shares."""
    random = np.random.default_rng(2)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        image = Image.new("RGB", (128, 96), (230, 220, 220))
        drawing = ImageDraw.Draw(image)
        lines = []
        for kind in (0, 0, 1):
            side = int(random.integers(16, 32))
            left, top = int(random.integers(0, 128 - side)), int(random.integers(0, 96 - side))
            drawing.ellipse([left, top, left + side, top + side], fill=COLOURS_OF_CELLS[kind])
            centre = ((left + side / 2) / 128, (top + side / 2) / 96)
            lines.append(f"{kind} {centre[0]:.6f} {centre[1]:.6f} {side / 128:.6f} {side / 96:.6f}")
        image.save(folder / f"images/{number:02}.png")
        (folder / f"labels/{number:02}.txt").write_text("\n".join(lines))
    names = ", ".join(CELLS)
    (folder / "data.yaml").write_text(f"train: images\nnames: [{names}]\n")


def main() -> None:
    """Draw everything into the folder of the command line."""
    folder = Path(sys.argv[1])
    draw_field(folder / "field", count=48, seed=0)
    draw_field(folder / "new", count=12, seed=1)
    draw_cells(folder / "cells", count=24)


if __name__ == "__main__":
    main()
