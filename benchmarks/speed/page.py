"""Writes docs/explanation/speed.md: the words of page.txt, with the tables that the stored results give."""

from __future__ import annotations

from pathlib import Path
from string import Template

from benchmarks.speed import rows_tokens
from benchmarks.speed.results import RESULTS, Report, stored
from benchmarks.speed.summary import short
from benchmarks.speed.table import header, repeated

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "speed.md"
TEMPLATE = Path(__file__).with_name("page.txt")
PARTS = {row.name for row in rows_tokens.ROWS}
NOT_MEASURED = (
    "Not measured: no GPU was available. `make bench-gpu` writes `benchmarks/results/speed_cuda.md`; "
    "`python -m benchmarks.speed --page` then shows it here."
)


def text(folder: Path = RESULTS) -> str:
    """Return the page for the results in a folder."""
    one, gpu = stored(folder, "speed"), stored(folder, "speed_cuda")
    return Template(TEMPLATE.read_text()).substitute(
        one_thread=pending("benchmarks.speed") if one is None else f"{section(one)} {repeated(one)}",
        gpu=NOT_MEASURED if gpu is None else section(gpu),
        waits=waits(folder),
    )


def waits(folder: Path) -> str:
    """Return the tables of what users wait for: images, extraction, an epoch of training."""
    reports = {stem: stored(folder, stem) for stem in ("images", "extraction", "training_loop")}
    if (loop := reports["training_loop"]) is None or None in reports.values():
        return pending("benchmarks.images, benchmarks.extraction and benchmarks.training_loop")
    titles = {"images": "ViT-S at 224 × 224 px:", "extraction": "Extraction of images at 224 × 224 px:"}
    tables = [f"{title}\n\n{(folder / f'{stem}.md').read_text().rstrip()}" for stem, title in titles.items()]
    ratio, step = loop["epoch"]["fit"]["ratio"], loop["per_step"]
    about, versions = loop["machine"], ", ".join(" ".join(pair) for pair in loop["machine"]["versions"].items())
    epoch = (
        f"An epoch of `fit` on stored tokens is {ratio:.2f} times as fast as a plain loop over the same tokens. "
        f"Copies to the device per step, counted on a simulated device: {step['float32']['to device']:g}, with mixup "
        f"{step['mixup']['to device']:g}. The host waits once per epoch (of {1 / step['float32']['wait']:g} steps), to "
        "read the losses."
    )
    source = "`python -m benchmarks.images`, `benchmarks.extraction` and `benchmarks.training_loop`"
    where = (
        f"{about['cpu']}, {about['system']}, {reports['images']['threads']} threads for images and one for the others"
    )
    return "\n\n".join([*tables, epoch, f"Measured with {source} on {where}; {versions}."])


def section(report: Report) -> str:
    """Return the table of ratios without the parts of necks, and what it was measured on."""
    rows = {name: found for name, found in report["rows"].items() if name not in PARTS}
    return f"{short({**report, 'rows': rows})}\n{header(report)}"


def pending(command: str) -> str:
    """What stands in the place of results that are not stored."""
    return f"Not measured yet: `python -m {command}`."


def write() -> None:
    """Write the page."""
    PAGE.write_text(text())
