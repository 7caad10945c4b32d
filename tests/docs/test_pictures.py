"""Pictures of the pages: each is drawn by a command of the examples, and is on a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples.pictures.before_after import MISSING_BEFORE, PICTURES
from examples.pictures.tutorials import TUTORIALS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
BY_HAND = {"logo.svg", "data_flow.svg", "roads.svg"}
PICTURE_NAME = re.compile(r'"([\w-]+\.(?:jpg|png|svg|webp))"')


def drawn_by_commands() -> set[str]:
    """The names of the pictures that the commands write."""
    names = set()
    for source in (ROOT / "examples").rglob("*.py"):
        names.update(PICTURE_NAME.findall(source.read_text(encoding="utf-8")))
    names.add("field_ndvi.png")  # the picture of python -m examples.dense_ndvi
    names.update(f"tutorial_{name}.jpg" for name in TUTORIALS)
    for name in [*PICTURES, "report"]:
        names.add(f"after_{name}.jpg")
        if name not in MISSING_BEFORE:
            names.add(f"before_{name}.jpg")
    return names


def test_every_picture_is_drawn_by_a_command_or_by_hand() -> None:
    names = {file.name for file in IMAGES.iterdir()}
    assert names - drawn_by_commands() == BY_HAND


def test_every_picture_is_on_a_page() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    pages.append(ROOT / "mkdocs.yml")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)

    unused = [file.name for file in IMAGES.iterdir() if f"images/{file.name}" not in text]

    assert unused == []


def test_the_pictures_before_and_after_take_600_kb_at_most() -> None:
    files = [*IMAGES.glob("before_*.jpg"), *IMAGES.glob("after_*.jpg")]
    assert sum(file.stat().st_size for file in files) < 600_000


def read(path: Path) -> Image.Image:
    """The picture of a file."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def check_shows_something(picture: Image.Image) -> None:
    """Its pixels have many colours."""
    colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert len(colours) > 1000


@pytest.mark.slow
def test_the_command_draws_the_picture_of_a_tutorial(tmp_path: Path) -> None:
    """The cheapest of them, to its end."""
    command = [sys.executable, "-m", "examples.pictures", str(tmp_path), "--tutorials", "detect"]

    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)

    picture = read(tmp_path / "tutorial_detect.jpg")
    committed = read(IMAGES / "tutorial_detect.jpg")
    assert picture.size == committed.size
    check_shows_something(picture)


@pytest.mark.slow
def test_the_command_draws_the_pictures_of_today(tmp_path: Path) -> None:
    script = ROOT / "examples" / "pictures" / "before_after.py"

    subprocess.run([sys.executable, str(script), str(tmp_path), *PICTURES], check=True, cwd=ROOT)

    for name in PICTURES:
        picture = read(tmp_path / f"{name}.png")
        committed = read(IMAGES / f"after_{name}.jpg")
        height = round(picture.height * committed.width / picture.width)
        assert committed.height == height, name
        difference = np.asarray(picture.resize(committed.size), float)
        difference -= np.asarray(committed, float)
        assert np.abs(difference).mean() < 6, name
        check_shows_something(picture)
    assert "<h1>Cover of meadows</h1>" in (tmp_path / "report.html").read_text("utf-8")
