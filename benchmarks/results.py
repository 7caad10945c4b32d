"""The stored results: one JSON per benchmark, its tables, and whether the code that it measured has changed since.

    python -m benchmarks.results

lists every stored CPU result whose sources differ from those that it measured; the exit status is
then 1. A result holds ``benchmark``, its name, and ``tables``: title -> ``command``, ``date``,
``commit``, ``machine``, ``sources`` (the hash of the measured modules) and ``rows``: row -> column
-> number, text, or [low, high]. The tables of the documentation are made of it.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
HEADS = ("heads", "necks", "layers", "losses", "training")
SOURCES = {  # benchmark -> folders and files of src/dinoneck
    "images": ("backbones", "data", "inference"),
    "reading": ("data",),
    "extraction": ("backbones", "data", "store"),
    "training_loop": ("heads", "layers", "losses", "training"),
    "store": ("store",),
    "speed": ("backbones", "heads", "interop", "layers", "necks", "points", "tokens.py"),
    "service": ("serve", "inference"),
    "parity": ("backbones", "export", "heads", "necks", "published"),
    "matrix": (".",),
    "evidence": ("backbones", "data", "detection", "interop", "points", *HEADS),
}
MARK = re.compile(r"<!-- table: (\w+)(?:, (.+?))? -->")
CHART = re.compile(r"<!-- chart: (\w+); (.+?); (.+?) -->")
BAR, LABEL, PIXELS = 26, 330, 90  # height of a bar, width of its name, and pixels per 1
Table = Mapping[str, Mapping[str, Any]]  # rows


def source_hash(name: str) -> str:
    """Return the SHA-256 of the files, with their paths, that the benchmark of this name measures."""
    total = hashlib.sha256()
    for part in sorted(SOURCES[name]):
        place = ROOT / "src" / "dinoneck" / part
        if not place.exists():
            raise FileNotFoundError(
                f"benchmarks/results.py names {part} for {name}, which is not in src/dinoneck"
            )
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(
                file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0"
            )
    return total.hexdigest()


def commit() -> str | None:
    """Return the commit that is checked out, with a plus if files differ from it; None outside of a clone."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def write(
    path: Path, name: str, command: str, machine: Mapping[str, Any], tables: Mapping[str, Table]
) -> None:
    """Write tables, in place of those of the same title that are stored."""
    about = {
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": dict(machine),
    }
    about["sources"] = source_hash(name)
    stored = read(path) if path.exists() else {}
    new = {title: {**about, "rows": rows} for title, rows in tables.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"benchmark": name, "tables": {**stored, **new}}
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a stored result, each with the name of its benchmark."""
    found = json.loads(path.read_text())
    tables: dict[str, Any] = found.get("tables", {})
    return {title: {**table, "benchmark": found["benchmark"]} for title, table in tables.items()}


def is_stale(table: Mapping[str, Any]) -> bool:
    """Whether the measured code has changed since."""
    return bool(table["sources"] != source_hash(table["benchmark"]))


def stale(folder: Path = RESULTS) -> list[str]:
    """Return the stored CPU tables without the hash of the present sources."""
    return [
        f"{path.stem}, {title}"
        for path in sorted(folder.glob("*.json"))
        for title, table in read(path).items()
        if "gpu" not in table["machine"] and is_stale(table)
    ]


def markdown(table: Table) -> str:
    """Return one table."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(shown(row.get(column)) for column in columns)} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a cell: numbers to three digits, a pair as its ends."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " … ".join(dict.fromkeys(map(shown, value)))
    if isinstance(value, str | int):
        return f"{value:,}" if isinstance(value, int) else value
    if value and abs(value) < 0.005:
        return f"{value:.1e}"
    size = abs(value)
    return (
        f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not size else 3}f}"
    )


def caption(table: Mapping[str, Any]) -> str:
    """Return the machine, threads, cores, versions and date of a table, and that it is old where it is."""
    machine = table["machine"]
    place = f"{machine['gpu']}, commit {table['commit']}" if "gpu" in machine else machine["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"`{table['command']}`, {table['date']}: {place}, cores: {machine['cores']}, threads: "
        f"{machine['threads']}; {machine['system']}, {versions}."
    )
    if is_stale(table):
        text += (
            " **The code has changed since: these are numbers of dinoneck "
            f"{machine['versions']['dinoneck']}.**"
        )
    return f"*{text}*"


def section(stem: str, titles: str | None = None, folder: Path = RESULTS) -> str:
    """Return stored tables, all or those of these titles, with captions; else the command that measures them."""
    path = folder / f"{stem}.json"
    if not path.exists():
        name = stem.split("_cuda")[0]
        return (
            "*Not measured yet: "
            f"`{'make bench-gpu' if name != stem else f'python -m benchmarks {name}'}`.*"
        )
    tables, blocks = read(path), []
    chosen = titles.split("; ") if titles else list(tables)
    for title, after in zip(chosen, [*chosen[1:], None], strict=True):
        table, text = tables[title], markdown(tables[title]["rows"])
        blocks.append(f"**{title[0].upper()}{title[1:]}**\n\n{text}" if len(chosen) > 1 else text)
        # once below several of one run
        if after is None or caption(tables[after]) != caption(table):
            blocks.append(caption(table))
    return "\n\n".join(blocks)


def chart(stem: str, title: str, column: str, folder: Path = RESULTS) -> str:
    """Return a column of a stored table as bars, with a line at 1; the table itself has the caption."""
    table = read(folder / f"{stem}.json")[title]
    rows = {name: row[column] for name, row in table["rows"].items() if row.get(column) is not None}
    bars = [
        f'<text x="{LABEL - 10}" y="{BAR * i + 17}" text-anchor="end">{html.escape(name)}</text>'
        f'<rect x="{LABEL}" y="{BAR * i + 4}" width="{PIXELS * value:.0f}" height="{BAR - 8}"/>'
        f'<text x="{LABEL + PIXELS * value + 8:.0f}" y="{BAR * i + 17}">{shown(value)}</text>'
        for i, (name, value) in enumerate(rows.items())
    ]
    width, height = LABEL + PIXELS * max(rows.values()) + 60, BAR * len(rows) + 4
    line = f'<path d="M{LABEL + PIXELS} 0V{height}"/>'
    size = (
        f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{html.escape(title)}: '
        f'{html.escape(column)}"'
    )
    return f'<div class="chart"><svg {size}>{"".join(bars)}{line}</svg></div>'


def filled(page: str, folder: Path = RESULTS) -> str:
    """Return a page of the documentation with stored tables and charts in the place of its marks."""
    page = CHART.sub(lambda mark: chart(mark[1], mark[2], mark[3], folder), page)
    return MARK.sub(lambda mark: section(mark[1], mark[2], folder), page)


if __name__ == "__main__":
    old = stale()
    print("\n".join(f"{name}: the code has changed since it was measured" for name in old))
    raise SystemExit(int(bool(old)))
