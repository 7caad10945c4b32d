"""Curves of a run and pictures of what a detector finds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoneck.data import BoxPhotos

COLOURS = ((230, 60, 60), (40, 110, 220), (30, 160, 80), (240, 160, 20), (150, 70, 200), (20, 170, 180))
TRUTH, PAPER = (255, 255, 255), (255, 255, 255)
LEAST_SCORE = 0.4
GAP = 6


def draw_curves(log: Path, path: Path) -> None:
    """Draw every loss component and the average precisions over the epochs of ``log.jsonl``, with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    losses, precisions = figure.subplots(1, 2)
    left_out = {"epoch", "stage", "lr", "per_class", "AP", "AP50", "AP75", "AR100", "loss"}
    for name in [key for key in rows[0] if key not in left_out]:
        losses.plot([row["epoch"] for row in rows], [row[name] for row in rows], ".-", label=name)
    losses.set(xlabel="epoch", ylabel="loss component", yscale="log")
    tested = [row for row in rows if "AP" in row]
    for name in ("AP", "AP50", "AP75"):
        precisions.plot([row["epoch"] for row in tested], [row[name] for row in tested], ".-", label=name)
    precisions.set(xlabel="epoch", ylabel="on held-out photos", ylim=(-0.02, 1.02))
    for axes in (losses, precisions):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_detections(
    photos: BoxPhotos,
    found: Mapping[int, Mapping[str, Any]],
    path: Path,
    *,
    width: int = 420,
    score: float = LEAST_SCORE,
) -> None:
    """Draw photos with the boxes found at or above ``score`` (coloured by class) over the known ones (thin, white)."""
    cells, font = [], ImageFont.load_default(11)
    for number, image_id in enumerate(photos.ids):
        pixels, boxes = photos.original(number)
        picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        scale = width / picture.width
        picture = picture.resize((width, max(1, round(picture.height * scale))))
        pen = ImageDraw.Draw(picture)
        for box in boxes.tolist():
            pen.rectangle([side * scale for side in box], outline=TRUTH, width=1)
        own = found[image_id]
        rows = zip(own["boxes"].tolist(), own["scores"].tolist(), own["labels"].tolist(), strict=True)
        for box, value, label in sorted(rows, key=lambda row: row[1]):  # the best on top
            if value >= score:
                colour = COLOURS[label % len(COLOURS)]
                pen.rectangle([side * scale for side in box], outline=colour, width=2)
                place, text = (box[0] * scale + 3, box[1] * scale + 1), f"{photos.classes[label]} {value:.2f}"
                pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
                pen.text(place, text, fill=PAPER, font=font)
        cells.append(picture)
    height = max(picture.height for picture in cells)
    sheet = Image.new("RGB", ((width + GAP) * min(2, len(cells)), (height + GAP) * -(-len(cells) // 2)), PAPER)
    for place, picture in enumerate(cells):
        sheet.paste(picture, (place % 2 * (width + GAP), place // 2 * (height + GAP)))
    sheet.save(path)
