"""The stored results: one JSON per benchmark, its tables, and whether the code has changed since.

    python -m benchmarks.results

lists every stored result whose sources differ from those that it measured; the exit status is then
1. Results of a GPU or of a CPU with AMX, which are of other machines, are not listed.

A result has ``benchmark``, its name, and ``tables``: title -> ``command``, ``date``, ``commit``,
``machine``, ``sources`` (the hash of the code of the measured modules, without its words) and
``rows``: row -> column -> number, text, or [low, high]. The documentation shows these tables.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import html
import io
import json
import platform
import re
import subprocess
import tokenize
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
AMX = "_amx"  # how the names of results of a CPU with AMX end
TRAINED = ("heads", "necks", "layers", "losses", "training")
SOURCES = {  # benchmark -> folders and files of src/dinoneck
    "images": ("backbones", "data", "inference"),
    "reading": ("checkpoint", "data"),
    "extraction": ("backbones", "data", "store"),
    "training_loop": ("heads", "layers", "losses", "training"),
    "store": ("store",),
    "speed": ("backbones", "heads", "interop", "layers", "necks", "points", "tokens.py"),
    "service": ("serve", "inference"),
    "tiles": (
        "detection/detector.py",
        "inference/cropped_masks.py",
        "inference/passes.py",
        "inference/tile_merging.py",
        "inference/tiled_objects.py",
    ),
    "parity": ("backbones", "export", "heads", "necks", "published"),
    "runtimes": ("backbones",),
    "operators": ("detection/onnx.py", "detection/plain_operators.py", "export"),
    "runtime_scores": ("backbones",),
    "painting": ("painting/head.js", "painting/painting.js", "painting/strokes.js"),
    "painted_scores": (
        "painting/head.py",
        "painting/photos.py",
        "painting/strokes.py",
        "training/baselines.py",
    ),
    "demo": ("backbones", "cli/demo.py", "data", *TRAINED),
    "matrix": (".",),
    "first_prediction": ("backbones", "cli", "data", "inference", "runtime", *TRAINED),
    "evidence": (
        "backbones",
        "data",
        "detection",
        "interop",
        "intervals.py",
        "points",
        *TRAINED,
    ),
}
MARK = re.compile(r"<!-- table: (\w+)(?:, (.+?))? -->")
CHART = re.compile(r"<!-- chart: (\w+); (.+?); (.+?) -->")
# sizes of a chart, in pixels
BAR_HEIGHT = 26
LABEL_WIDTH = 330
PIXELS_PER_1 = 90
Table = Mapping[str, Mapping[str, Any]]  # rows


def source_hash(name: str) -> str:
    """Return the SHA-256 of the paths and the code of the files that a benchmark measures.

    Comments and docstrings are left out, see :func:`without_words`.

    Raises:
        FileNotFoundError: if ``SOURCES`` names a file or folder that does not exist.
    """
    digest = hashlib.sha256()
    for source in sorted(SOURCES[name]):
        path = ROOT / "src" / "dinoneck" / source
        if not path.exists():
            raise FileNotFoundError(
                f"benchmarks/results.py names {source} for {name}, which is not in src/dinoneck"
            )
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            file_name = file.relative_to(ROOT).as_posix()
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".py":
                text = without_words(text)
            digest.update(f"{file_name}\0{text}\0".encode())
    return digest.hexdigest()


@functools.cache  # most modules belong to several benchmarks, and a benchmark has several tables
def without_words(source: str) -> str:
    """Return the source of a module without comments, docstrings and empty lines.

    These change no result. What is left is the text as it was written: a syntax tree would differ
    between versions of Python.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            first_line = lines[node.lineno - 1].encode()
            lines[node.lineno - 1] = first_line[: node.col_offset].decode()  # counted in bytes
            for row in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def commit() -> str | None:
    """Return the commit that is checked out, or None outside of a clone.

    A plus means that other files than the stored results differ from it.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    changed_files = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    if changed_files is None:
        return head
    return f"{head}+"


def _git(*arguments: str) -> str | None:
    """Return what a command of git prints in this clone, or None if that is nothing or it fails."""
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def processor() -> str:
    """Return the name of the CPU, or of its architecture."""
    path = Path("/proc/cpuinfo")  # of Linux
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                _, name = line.split(":", 1)
                return name.strip()
    return platform.processor() or platform.machine()


def write(
    path: Path, name: str, command: str, machine: Mapping[str, Any], tables: Mapping[str, Table]
) -> None:
    """Write tables; they replace stored ones of the same title."""
    about = {
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": dict(machine),
        "sources": source_hash(name),
    }
    all_tables = {}
    if path.exists():
        all_tables = json.loads(path.read_text())["tables"]
    for title, rows in tables.items():
        all_tables[title] = {**about, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"benchmark": name, "tables": all_tables}
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a stored result.

    Each has the name of its ``benchmark``, and in ``other_machine`` whether a GPU or a CPU with AMX
    was measured.
    """
    report = json.loads(path.read_text())
    tables = {}
    for title, table in report.get("tables", {}).items():
        tables[title] = {
            **table,
            "benchmark": report["benchmark"],
            "other_machine": "gpu" in table["machine"] or path.stem.endswith(AMX),
        }
    return tables


def is_stale(table: Mapping[str, Any]) -> bool:
    """Whether the measured code has changed since."""
    return bool(table["sources"] != source_hash(table["benchmark"]))


def stale(folder: Path = RESULTS) -> list[str]:
    """Return the titles of stored tables without the hash of the present sources.

    Those of other machines are left out.
    """
    titles = []
    for path in sorted(folder.glob("*.json")):
        for title, table in read(path).items():
            if not table["other_machine"] and is_stale(table):
                titles.append(f"{path.stem}, {title}")
    return titles


def markdown(table: Table) -> str:
    """Return one table; its columns are those that have a value in any row."""
    columns: list[str] = []
    for row in table.values():
        columns += [column for column in row if column not in columns]
    columns = [
        column for column in columns if any(row.get(column) is not None for row in table.values())
    ]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        cells = [shown(row.get(column)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a cell: numbers to three digits, a pair as its ends."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        ends = [shown(end) for end in value]
        if len(set(ends)) == 1:
            return ends[0]
        return " … ".join(ends)
    size = abs(value)
    if 0 < size < 0.005:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:,.1f}"
    if size >= 1 or size == 0:
        return f"{value:,.2f}"
    return f"{value:,.3f}"


def caption(table: Mapping[str, Any]) -> str:
    """Return the command, date, machine and versions of a table, and whether it is stale."""
    machine = table["machine"]
    processor = machine.get("gpu", machine["cpu"])
    if table["other_machine"]:
        processor = f"{processor}, commit {table['commit']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"`{table['command']}`, {table['date']}: {processor}, cores: {machine['cores']}, threads: "
        f"{machine['threads']}; {machine['system']}, {versions}."
    )
    if is_stale(table):
        text += (
            " **The code has changed since: these are numbers of dinoneck "
            f"{machine['versions']['dinoneck']}.**"
        )
    return f"*{text}*"


def section(stem: str, titles: str | None = None, folder: Path = RESULTS) -> str:
    """Return stored tables with captions, all or those of these titles.

    Without a stored result, return the command that measures it.
    """
    path = folder / f"{stem}.json"
    if not path.exists():
        command = "make bench-gpu" if "_cuda" in stem else f"python -m benchmarks {stem}"
        return f"*Not measured yet: `{command}`.*"
    tables = read(path)
    chosen = titles.split("; ") if titles else list(tables)
    blocks: list[str] = []
    previous_caption = ""
    for title in chosen:
        table = tables[title]
        table_caption = caption(table)
        # tables of one run share a caption, below the last of them
        if previous_caption not in ("", table_caption):
            blocks.append(previous_caption)
        previous_caption = table_caption
        text = markdown(table["rows"])
        if len(chosen) > 1:
            text = f"**{title[0].upper()}{title[1:]}**\n\n{text}"
        blocks.append(text)
    blocks.append(previous_caption)
    return "\n\n".join(blocks)


def chart(stem: str, title: str, column: str, folder: Path = RESULTS) -> str:
    """Return a column of a stored table as bars, with a line at 1; the table has the caption."""
    table = read(folder / f"{stem}.json")[title]
    values = {}
    for name, row in table["rows"].items():
        if row.get(column) is not None:
            values[name] = row[column]
    bars = [_bar(number, name, value) for number, (name, value) in enumerate(values.items())]
    width = LABEL_WIDTH + PIXELS_PER_1 * max(values.values()) + 60
    height = BAR_HEIGHT * len(values) + 4
    line_at_1 = f'<path d="M{LABEL_WIDTH + PIXELS_PER_1} 0V{height}"/>'
    label = f"{html.escape(title)}: {html.escape(column)}"
    attributes = f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{label}"'
    return f'<div class="chart"><svg {attributes}>{"".join(bars)}{line_at_1}</svg></div>'


def _bar(number: int, name: str, value: float) -> str:
    """Return a name, a bar and its value."""
    top = BAR_HEIGHT * number
    baseline = top + 17
    length = PIXELS_PER_1 * value
    text = (
        f'<text x="{LABEL_WIDTH - 10}" y="{baseline}" text-anchor="end">{html.escape(name)}</text>'
    )
    rectangle = (
        f'<rect x="{LABEL_WIDTH}" y="{top + 4}" width="{length:.0f}" height="{BAR_HEIGHT - 8}"/>'
    )
    number_text = f'<text x="{LABEL_WIDTH + length + 8:.0f}" y="{baseline}">{shown(value)}</text>'
    return text + rectangle + number_text


def filled(page: str, folder: Path = RESULTS) -> str:
    """Return a page of the documentation with stored tables and charts instead of its marks."""
    page = CHART.sub(lambda mark: chart(mark[1], mark[2], mark[3], folder), page)
    return MARK.sub(lambda mark: section(mark[1], mark[2], folder), page)


if __name__ == "__main__":
    stale_titles = stale()
    print(
        "\n".join(f"{title}: the code has changed since it was measured" for title in stale_titles)
    )
    raise SystemExit(1 if stale_titles else 0)
