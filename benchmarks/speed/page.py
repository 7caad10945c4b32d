"""Writes docs/explanation/speed.md: the words of page.txt, with the tables that the stored results give; others too."""

from __future__ import annotations

from pathlib import Path
from string import Template

from benchmarks.speed import elsewhere, pipelines
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
        waits=waits(folder),
    )


def waits(folder: Path) -> str:
    """Return the tables of what users wait for: images, extraction, an epoch of training."""
    reports = {stem: stored(folder, stem) for stem in ("images", "extraction", "training_loop")}
    if (loop := reports["training_loop"]) is None or None in reports.values():
        return pending("benchmarks.images, benchmarks.extraction and benchmarks.training_loop")
    tables = [(folder / f"{stem}.md").read_text().rstrip() for stem in ("images", "extraction")]
    ratio, step = loop["epoch"]["fit"]["ratio"], loop["per_step"]
    about, versions = loop["machine"], ", ".join(" ".join(pair) for pair in loop["machine"]["versions"].items())
    epoch = (
        f"An epoch of `fit` on stored tokens is {ratio:.2f} times as fast as a plain loop over the same tokens. On a "
        f"device that logs its traffic, a step copies {step['float32']['to device']:g} time to the device "
        f"({step['mixup']['to device']:g} with mixup), and the host waits once per epoch of these "
        f"{1 / step['float32']['wait']:g} steps, to read the losses."
    )
    source = "`python -m benchmarks.images`, `benchmarks.extraction` and `benchmarks.training_loop`"
    where = (
        f"{about['cpu']}, {about['system']}, {reports['images']['threads']} threads for images and one for the others"
    )
    return "\n\n".join([*tables, epoch, f"Measured with {source} on {where}; {versions}."])


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
    pipelines.write()
