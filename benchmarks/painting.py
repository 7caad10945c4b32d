"""How long the painting page takes from the end of a stroke to the maps of all photos.

    python -m benchmarks painting [--only page]

Seeded tokens of 50 photos with three classes, ``--short`` 10 photos, in the chromium on PATH.
``page`` paints strokes on one photo and then times the last one again: until the head is trained,
until the maps are drawn, and until the browser has shown them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.measure import Row
from dinoneck.painting import Photo, painting_page

ROUNDS = 9
PARTS = ("page",)
CLASSES = ("crop", "weed", "soil")
PHOTOS = 50
SHORT_PHOTOS = 10
GRID = (30, 40)
PATCH_PX = 16
CHANNELS = 384
NOISE = 2.0  # of tokens, next to distances of about 1 between classes per channel
STROKES = (3, 12, 48)
BROWSER_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

# paints the last stroke again, and waits for the frame after the one that is drawn then
STROKE_AGAIN = """async () => {
    const stroke = photos[0].strokes.at(-1);
    undo();
    state.stroke = stroke;
    const started = performance.now();
    endStroke();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return {...timing, shown: performance.now() - started, steps: state.head.steps};
}"""


def photos(count: int) -> list[Photo]:
    """Return photos of smooth areas of three classes, with noisy tokens."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(len(CLASSES), CHANNELS))
    made = []
    for number in range(count):
        coarse = torch.from_numpy(generator.normal(size=(1, len(CLASSES), 4, 5)))
        fine = torch.nn.functional.interpolate(coarse, GRID, mode="bicubic")[0]
        classes = fine.argmax(dim=0).numpy()
        tokens = centres[classes] + NOISE * generator.normal(size=(*GRID, CHANNELS))
        pixels = generator.integers(0, 255, (GRID[0] * 2, GRID[1] * 2, 3), np.uint8)
        size = (GRID[1] * PATCH_PX, GRID[0] * PATCH_PX)
        made.append(
            Photo(
                name=f"{number:03}.jpg",
                sha256=hashlib.sha256(str(number).encode()).hexdigest(),
                height=size[1],
                width=size[0],
                picture=Image.fromarray(pixels).resize(size),
                patches=torch.from_numpy(tokens).float(),
            )
        )
    return made


def strokes(photo: Photo, count: int) -> dict[str, Any]:
    """Return strokes of all classes in turn, each across a quarter of a photo, as ``strokes.json`` has them."""
    generator = np.random.default_rng(1)
    drawn = []
    for number in range(count):
        start = generator.uniform(0, (photo.width, photo.height))
        angle = generator.uniform(0, 2 * np.pi)
        end = start + photo.width / 4 * np.array((np.cos(angle), np.sin(angle)))
        points = np.clip(np.linspace(start, end, 20), 0, (photo.width, photo.height))
        drawn.append(
            {
                "class": CLASSES[number % len(CLASSES)],
                "radius": 8.0,
                "points": points.round(2).tolist(),
            }
        )
    image = {
        "name": photo.name,
        "sha256": photo.sha256,
        "width": photo.width,
        "height": photo.height,
        "strokes": drawn,
    }
    return {"format": "dinoneck strokes", "version": 1, "classes": CLASSES, "images": [image]}


def page_rows(count: int, rounds: int) -> Iterator[tuple[str, Row]]:
    """Yield a row for each number of strokes on a page of so many photos."""
    pictures = photos(count)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=BROWSER_ARGUMENTS
        )
        for num_strokes in STROKES:
            html = painting_page(pictures, CLASSES, strokes=strokes(pictures[0], num_strokes))
            file = Path(folder, "page.html")
            file.write_text(html, "utf-8")
            page = browser.new_page()
            begin = time.perf_counter()
            page.goto(file.as_uri())
            opened = time.perf_counter() - begin
            times = [page.evaluate(STROKE_AGAIN) for _ in range(rounds)]
            row: Row = {
                "painted patches": len(page.evaluate("photos[0].painted.examples()")),
                "steps": times[0]["steps"],
            }
            for name in ("trained", "drawn", "shown"):
                row[f"{name} s"] = statistics.median(one[name] for one in times) / 1000
            row["slowest s"] = max(one["shown"] for one in times) / 1000
            row["page opens s"] = opened
            row["page MB"] = len(html) / 1e6
            page.close()
            yield f"{count} photos of {GRID[0]} x {GRID[1]} patches, {num_strokes} strokes", row
        browser.close()


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the tables of the parts."""
    parts = options.only or PARTS
    if "page" in parts:
        count = SHORT_PHOTOS if options.short else PHOTOS
        yield "from a stroke to the maps", dict(page_rows(count, options.rounds))
