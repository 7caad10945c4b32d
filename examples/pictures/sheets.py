"""Sheets of data as they were read: the code of a page makes them, and its command draws them."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from dinoneck.cli.main import main as dinoneck

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WIDTH = 800  # of a picture in pixels
# the picture -> the page whose first block makes the data, and the command below the picture
SHEETS = {
    "data-sheet-table.jpg": (
        "tables",
        "train --csv meadow/table.csv --targets cover GDM_g --group sampling",
    ),
    "data-sheet-classes.jpg": ("image-folders", "train --images states"),
    "data-sheet-labels.jpg": (
        "labels",
        "train --csv walls/damage.csv --multilabel crack moss rust --group wall",
    ),
    "data-sheet-masks.jpg": (
        "dense-labels",
        "train --images field/images --labels field/masks --classes soil crop",
    ),
    "data-sheet-boxes.jpg": (
        "boxes",
        "train --boxes leaves/leaves.json --images leaves/images",
    ),
}


def draw_sheet(name: str, folder: Path) -> None:
    """Write one of the pictures into a folder."""
    page, command = SHEETS[name]
    target = folder.resolve() / name
    block = BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))[0]
    variables: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        exec(compile(block, f"{page}.md", "exec"), variables)  # noqa: S102 - a page of ours
        status = dinoneck([*shlex.split(command), "--out", "sheet", "--dry-run"])
        if status != 0:
            raise SystemExit(f"{name} was not drawn; the message is above")
        with Image.open("sheet/data.jpg") as picture:
            picture.thumbnail((WIDTH, picture.height))
            picture.save(target, quality=80)
