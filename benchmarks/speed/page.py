"""Writes docs/explanation/speed.md: the words of page.txt, with the tables that the stored results give; others too."""

from __future__ import annotations

from pathlib import Path
from string import Template

from benchmarks.speed import cost, elsewhere, pipelines
from benchmarks.speed.marked import pending
from benchmarks.speed.results import RESULTS, Report, stored
from benchmarks.speed.summary import ceiling_words, missed, summary
from benchmarks.speed.table import header, repeated

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "speed.md"
PICTURE = PAGE.parents[1] / "images" / "speed.png"
SHOWN = "![Bars: ours and the layout-fixed peer beside the peer as published](../images/speed.png)"
TEMPLATE = Path(__file__).with_name("page.txt")
NOT_MEASURED = (
    "Not measured: no GPU was at hand. `make bench-gpu` measures it and writes `benchmarks/results/speed_cuda.md`; "
    "`python -m benchmarks.speed --page` then puts it here."
)


def text(folder: Path = RESULTS) -> str:
    """Return the page for the results in a folder."""
    one, two, gpu = (stored(folder, stem) for stem in ("speed", "speed_2_threads", "speed_cuda"))
    return Template(TEMPLATE.read_text()).substitute(
        one_thread=pending("benchmarks.speed") if one is None else f"{section(one)}\n\n{repeated(one)}\n\n{SHOWN}",
        reasons=pending("benchmarks.speed") if one is None else reasons(one),
        two_threads=pending("benchmarks.speed --threads 2") if two is None else section(two),
        gpu=NOT_MEASURED if gpu is None else section(gpu),
        elsewhere=elsewhere.markdown(folder),
    )


def section(report: Report) -> str:
    """Return the table of goals, and what it was measured on."""
    return f"{summary(report)}\n{header(report)}"


def reasons(report: Report) -> str:
    """Return one line per row that misses something: what, and why."""
    lines = []
    for name, found in report["rows"].items():
        lacks = missed(found)
        if lacks:
            told = f"{found['why']} {ceiling_words(found)}".strip()
            lines.append(f"* **{name}**: {'; '.join(lacks)}. {told}")
    return "\n".join(lines) or "None."


def write() -> None:
    """Write all pages of what is measured here, and draw the picture of this one."""
    from benchmarks.speed.picture import draw

    one = stored(RESULTS, "speed")
    if one is not None:
        draw(one, PICTURE)
    PAGE.write_text(text())
    for other in (pipelines, cost):
        other.write()
