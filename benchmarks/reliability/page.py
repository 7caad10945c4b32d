"""The page ``docs/reliability.md``, written from the stored results alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.reliability import campaigns_page

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
PARTS = {
    "faults": "79 ways to fail",
    "flips": "Every bit of a small file",
    "mutations": "Random damage",
    "kills": "Killed while saving",
    "full_disk": "A full disk",
    "writers": "Many writers at once",
    "peers": "The same faults in other loaders",
    "cost": "What the checks cost",
}
OPENING = """\
# Reliability

What is done to a head file, or around it, and what comes of it: refused with one family of errors
(`dinoneck.CheckpointError`, whose `step` names the check; a sound head that is given tokens it was not made for raises
`ShapeError` or `GridError` instead), or harmless. Every number on head files comes from

```
python -m benchmarks.reliability
```

which writes `benchmarks/results/reliability.json` and this page. [The head file](explanation/head-file.md) says what is
in it and in which order it is checked; what an attacker can and cannot do is in `SECURITY.md`. The last section is
about the [feature store](explanation/feature-store.md), `fit` and `load_head`.
"""


def part_of(name: str) -> ModuleType:
    """The module of a part: ``measure(work, share)`` returns a JSON-able result, ``page(result)`` its Markdown."""
    return importlib.import_module(f"benchmarks.reliability.{name}")


def written(stored: Mapping[str, Any]) -> str:
    """Return the page."""
    sections = [OPENING]
    for name, title in PARTS.items():
        if name not in stored:
            continue
        entry = stored[name]
        sections.append(f"## {title}\n\n{part_of(name).page(entry['result']).strip()}\n\n{_measured_on(entry)}\n")
    return "\n".join([*sections, campaigns_page.section()])


def _measured_on(entry: Mapping[str, Any]) -> str:
    machine = entry["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    short = "" if entry["share"] == 1 else f" A share of {entry['share']} of the full campaign."
    return f"*{entry['date']}, {machine['cpu']}, {machine['system']}; {versions}.*{short}"
