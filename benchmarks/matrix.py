"""``python -m benchmarks.matrix``: put what ``make matrix`` found into ``results/matrix.json`` and the page.

Cells in ``matrix-results/`` replace stored ones of the same Python and dependencies; the others stay.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "matrix-results"
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
PAGE = ROOT / "docs" / "reference" / "compatibility.md"
PYTHONS, ENDS = ("3.11", "3.12", "3.13"), ("oldest", "newest")
SHOWN = ("torch", "torchvision", "timm", "transformers", "numpy", "huggingface_hub", "onnxruntime")
_TABLE = re.compile(r"(?:^\|.*\n)+\n\*[^*]+\*\n", re.MULTILINE)


def markdown(cells: list[dict[str, Any]]) -> str:
    """Return the cells as the table of the page, and a line that names those that are not there."""
    header = ["Python", "dependencies", *SHOWN, "passed", "skipped", "failed"]
    lines = [header, ["---"] * len(header)]
    for cell in cells:
        counts = [f"{cell[name]:,}" for name in ("passed", "skipped", "failed")]
        lines.append([cell["python"], cell["dependencies"], *(cell["versions"][name] for name in SHOWN), *counts])
    run = {(cell["python"], cell["dependencies"]) for cell in cells}
    lacking = [f"{python} {end}" for python in PYTHONS for end in ENDS if (python, end) not in run]
    told = f"Not run yet: {', '.join(lacking)}." if lacking else "All cells were run."
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n*{told}*\n"


def main() -> None:
    """Merge, store, write the page."""
    stored = json.loads(RESULTS.read_text())["cells"] if RESULTS.is_file() else []
    found = [json.loads(file.read_text()) for file in FOUND.glob("*.json")]
    cells = {(cell["python"], cell["dependencies"]): cell for cell in (*stored, *found)}
    ordered = [cells[key] for key in sorted(cells)]
    RESULTS.write_text(json.dumps({"cells": ordered}, indent=1, sort_keys=True) + "\n")
    page = _TABLE.sub(lambda _: markdown(ordered), PAGE.read_text(), count=1)
    PAGE.write_text(page)
    print(markdown(ordered))


if __name__ == "__main__":
    main()
