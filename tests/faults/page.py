"""``docs/reliability.md``, written from the stored report alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
REPORT, TEMPLATE = HERE / "report.json", "page.md.j2"
PAGE = HERE.parents[1] / "docs" / "reliability.md"


def total(rows: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums over all kinds of a campaign."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row)
    return dict(counts)


def outcomes(report: Mapping[str, Any]) -> dict[str, int]:
    """Cases by outcome; silent, uncaught and slow ones together."""
    kinds = report["kinds"]
    counts = {name: kinds.get(name, 0) for name in ("refused", "noticed", "harmless")}
    return {"cases": report["tried"], **counts, "silent": len(report["bad"])}


def measured(part: Mapping[str, Any]) -> str:
    """Date, machine and versions."""
    machine = part["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{part['date']}, {machine['cpu']}, {machine['system']}; {versions}."


def written(report: dict[str, Any]) -> str:
    """Return the page.

    Raises:
        jinja2.UndefinedError: if a part is missing.
    """
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    environment.filters |= {"total": total, "outcomes": outcomes, "measured": measured, "number": "{:,}".format}
    return environment.get_template(TEMPLATE).render(report, parts=report)
