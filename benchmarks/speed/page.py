"""Writes docs/explanation/speed.md: the words of page.txt, with the tables that the stored results give."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

from benchmarks.speed import elsewhere
from benchmarks.speed.results import RESULTS, Report, stored
from benchmarks.speed.summary import missed, summary
from benchmarks.speed.table import header, repeated

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "speed.md"
PICTURE = PAGE.parents[1] / "images" / "speed.png"
TEMPLATE = Path(__file__).with_name("page.txt")
NOT_MEASURED = "Not measured: no GPU was at hand. `make bench-gpu` measures it and writes `speed_cuda.md`."


def text(folder: Path = RESULTS) -> str:
    """Return the page for the results in a folder.

    Raises:
        SystemExit: if nothing was measured with one thread.
    """
    one, two, gpu = (stored(folder, stem) for stem in ("speed", "speed_2_threads", "speed_cuda"))
    if one is None:
        raise SystemExit(f"no speed.json in {folder}: run `python -m benchmarks.speed` first")
    return Template(TEMPLATE.read_text()).substitute(
        header=header(one),
        summary=summary(one),
        repeated=repeated(one),
        reasons=reasons(one),
        two_threads="Not measured.\n" if two is None else f"{header(two)}\n\n{summary(two)}",
        gpu=NOT_MEASURED if gpu is None else f"{header(gpu)}\n\n{summary(gpu)}",
        elsewhere=elsewhere.markdown(folder),
    )


def reasons(report: Report) -> str:
    """Return one line per row that misses something: what, and why."""
    lines = []
    for name, found in report["rows"].items():
        lacks = missed(found)
        if lacks:
            lines.append(f"* **{name}**: {'; '.join(lacks)}. {found['why']}")
    return "\n".join(lines) or "None."


def write(folder: Path = RESULTS) -> None:
    """Write the page, and draw its picture anew."""
    from benchmarks.speed.picture import draw

    PAGE.write_text(text(folder))
    draw(stored(folder, "speed") or {}, folder / "speed.png")
    shutil.copy(folder / "speed.png", PICTURE)
    print(PAGE)
