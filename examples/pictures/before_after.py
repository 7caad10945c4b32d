"""Pictures of computed scenes, drawn by the code of 0.3.0 and by that of today, for docs/project/pictures.md.

Run as a file, ``python examples/pictures/before_after.py FOLDER NAME ...``, it draws with the
dinoneck on the path. So it uses only what both versions have.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinoneck import Task
from dinoneck.data import Pasture, Preprocessing
from dinoneck.viz import ReportEntry, boxes_panel, html_report, overlay_panel

SEED = 5
MEADOWS = (7, 6)  # with all plants; the first one is in all pictures
SIZE = (240, 368)  # height and width of a pasture in pixels
PATCH = 16
PLANTS = ("clover", "dead", "green")
RECIPE = Preprocessing(PATCH)
NUM_BALLS = 18
BALLS_SIZE = (640, 400)
NOISE = 0.15  # standard deviation of the relative error of a cell
HALF_WIDTH_G = 16.0  # of intervals
PAGE_WIDTH_PX = 560  # of a picture on the page
REPORT_SIZE = (900, 980)  # of the window that shows a report
MISSING_BEFORE = ("intervals", "labels")  # 0.3.0 has neither

Floats = NDArray[np.float64]


class Meadow(NamedTuple):
    """A drawn pasture, and what a head might predict for it.

    Attributes:
        image: (height, width, 3).
        classes: of its pixels (height, width): 0 soil, then the plants.
        cells: predicted shares of the classes (4, rows, cols).
        true: share of each plant.
        grams: of each plant.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.int64]
    cells: Floats
    true: dict[str, float]
    grams: dict[str, float]

    @property
    def values(self) -> Floats:
        """The predicted shares of the image."""
        shares: Floats = self.cells.mean(axis=(1, 2))
        return shares


def meadow(index: int = MEADOWS[0]) -> Meadow:
    """Draw a pasture; its prediction is the truth, blurred and with noise."""
    sample = Pasture(seed=SEED, size=SIZE).sample(index)
    classes = sample.classes.astype(np.int64)
    rows = SIZE[0] // PATCH
    cols = SIZE[1] // PATCH
    is_class = np.stack([classes == number for number in range(1 + len(PLANTS))])
    true_cells = is_class.reshape(-1, rows, PATCH, cols, PATCH).mean(axis=(2, 4))
    padded = np.pad(true_cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]) / 4
    neighbours += (padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]) / 4
    noise = np.random.default_rng(index).normal(0.0, NOISE, true_cells.shape)
    cells = (true_cells + neighbours) / 2 * np.exp(noise)
    cells /= cells.sum(axis=0)
    true_shares = is_class.mean(axis=(1, 2))[1:]
    return Meadow(
        image=sample.image,
        classes=classes,
        cells=cells,
        true=dict(zip(PLANTS, true_shares.tolist(), strict=True)),
        grams={name: sample.grams[f"Dry_{name.title()}_g"] for name in PLANTS},
    )


COVER = Task("cover", kind="segmentation", dim=4, labels=("soil", *PLANTS))
SHARES = [Task(name, kind="density", aggregate="mean", minimum=0.0, maximum=1.0) for name in PLANTS]
STAND = Task("stand", kind="classification", dim=len(PLANTS), labels=PLANTS)


def shares() -> Image.Image:
    """Draw the shares of classes."""
    scene = meadow()
    result = {"cover": scene.values, "maps": {"cover": scene.cells}}
    return overlay_panel(scene.image, result, [COVER], RECIPE, known=known_shares(scene))


def known_shares(scene: Meadow) -> dict[str, float]:
    """Return column -> true share, in the columns of both versions."""
    return scene.true | {f"cover:{name}": share for name, share in scene.true.items()}


def numbers() -> Image.Image:
    """Draw three numbers from 0 to 1, each with a map."""
    scene = meadow()
    cells = dict(zip(PLANTS, scene.cells[1:, None], strict=True))
    result: dict[str, Any] = {name: float(cells[name].mean()) for name in PLANTS}
    result["maps"] = cells
    return overlay_panel(scene.image, result, SHARES, RECIPE, known=scene.true)


def image_class() -> Image.Image:
    """Draw the class of an image."""
    scene = meadow()
    plants = scene.cells[1:] + 0.01
    probabilities = plants / plants.sum(axis=0)
    result = {"stand": probabilities.mean(axis=(1, 2)), "maps": {"stand": probabilities}}
    true = max(scene.true, key=scene.true.__getitem__)
    return overlay_panel(scene.image, result, [STAND], RECIPE, known={"stand": true})


def boxes() -> Image.Image:
    """Draw the boxes of balls: most are found, one is missed, and one is false."""
    width, height = BALLS_SIZE
    random = np.random.default_rng(SEED)
    picture = Image.new("RGB", BALLS_SIZE, "#cdbfa7")
    draw = ImageDraw.Draw(picture)
    corners = []
    names = []
    for _ in range(NUM_BALLS):
        radius = float(random.uniform(18, 34))
        x = float(random.uniform(radius, width - radius))
        y = float(random.uniform(radius, height - radius))
        name = "ripe" if random.random() < 0.6 else "unripe"
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill="#c0392b" if name == "ripe" else "#7d9b3c", outline="#5b4636")
        corners.append(box)
        names.append(name)
    true = {"boxes": np.array(corners), "names": names}
    found = np.array(corners[1:]) + random.normal(0.0, 2.0, (NUM_BALLS - 1, 4))
    false = np.array([[10.0, 10.0, 70.0, 66.0]])
    predicted = {
        "boxes": np.concatenate([found, false]),
        "names": [*names[1:], "unripe"],
        "scores": random.uniform(0.5, 1.0, NUM_BALLS),
    }
    return boxes_panel(picture, predicted, true, classes=("ripe", "unripe"))


def labels() -> Image.Image:
    """Draw several labels of an image: right, wrong and missed ones."""
    names = ("bare soil", "clover", "dead grass", "mown", "thistles", "wet")
    task = Task("seen", kind="multilabel", labels=names)
    probabilities = np.array([0.31, 0.96, 0.82, 0.07, 0.58, 0.12])
    is_present = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    known = {f"seen:{name}": value for name, value in zip(names, is_present, strict=True)}
    return overlay_panel(meadow().image, {"seen": probabilities}, [task], RECIPE, known=known)


def intervals() -> Image.Image:
    """Draw the intervals of three masses; one does not hold the true mass."""
    scene = meadow()
    tasks = [Task(name, unit="g", minimum=0.0) for name in PLANTS]
    errors = dict(zip(PLANTS, (7.0, 21.0, -6.0), strict=True))
    result: dict[str, Any] = {"interval": {}}
    for name, grams in scene.grams.items():
        mass = max(0.0, grams + errors[name])
        result[name] = mass
        result["interval"][name] = (max(0.0, mass - HALF_WIDTH_G), mass + HALF_WIDTH_G)
    return overlay_panel(scene.image, result, tasks, RECIPE, known=scene.grams)


def report() -> str:
    """Return the page of a report of images whose masks are known."""
    entries = []
    for index in MEADOWS:
        scene = meadow(index)
        result = {"cover": scene.values, "maps": {"cover": scene.cells}}
        options: dict[str, Any] = {"known": known_shares(scene)}
        if "classes" in inspect.signature(ReportEntry).parameters:  # not in 0.3.0
            options["classes"] = classes_of(scene)
        entries.append(ReportEntry(f"meadow {index}", result, scene.image, **options))
    return html_report(entries, [COVER], title="Cover of meadows")


def classes_of(scene: Meadow) -> Callable[[], dict[str, NDArray[np.int64]]]:
    """Return a function that returns the known classes of a meadow."""
    return lambda: {"cover": scene.classes}


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "boxes": boxes,
    "class": image_class,
    "intervals": intervals,
    "labels": labels,
    "numbers": numbers,
    "shares": shares,
}
"""Name -> what draws it."""


def draw_before_and_after(folder: Path, checkout: Path) -> None:
    """Write ``before_NAME.jpg`` and ``after_NAME.jpg`` of every picture, and of a report.

    Args:
        folder: for the pictures.
        checkout: the files of 0.3.0.

    Raises:
        SystemExit: without Chromium, which draws the report.
    """
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not installed; it draws the report: install it, and draw again")
    names_before = [name for name in PICTURES if name not in MISSING_BEFORE]
    _draw_with(checkout, names_before, browser, folder, prefix="before")
    _draw_with(Path(__file__).resolve().parents[2], [*PICTURES], browser, folder, prefix="after")


def _draw_with(
    source: Path, names: Sequence[str], browser: str, folder: Path, *, prefix: str
) -> None:
    """Draw pictures and the report with the code in a checkout, and write them smaller."""
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        environment = {**os.environ, "PYTHONPATH": str(source / "src")}
        command = [sys.executable, __file__, str(drawn), *names]
        subprocess.run(command, check=True, env=environment)  # noqa: S603
        _photograph(browser, drawn / "report.html", drawn / "report.png")
        for name in (*names, "report"):
            picture = Image.open(drawn / f"{name}.png").convert("RGB")
            height = round(picture.height * PAGE_WIDTH_PX / picture.width)
            small = picture.resize((PAGE_WIDTH_PX, height), Image.Resampling.LANCZOS)
            small.save(folder / f"{prefix}_{name}.jpg", quality=80, optimize=True)


def _photograph(browser: str, page: Path, picture: Path) -> None:
    """Write what Chromium shows of a page."""
    width, height = REPORT_SIZE
    options = ["--headless", "--no-sandbox", "--hide-scrollbars"]
    options += [f"--window-size={width},{height}", f"--screenshot={picture}"]
    command = [browser, *options, page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603


def main() -> None:
    """Draw pictures, and write the page of a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=[*PICTURES], metavar="NAME")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        PICTURES[name]().save(options.folder / f"{name}.png")
    (options.folder / "report.html").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()
