"""``docs/reliability.md``, written from the stored report alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
REPORT, TEMPLATE = HERE / "report.json", "page.md.j2"
PAGE = HERE.parents[1] / "docs" / "reliability.md"


def total(modes: dict[str, dict[str, int]]) -> dict[str, int]:
    """The sums over all modes of a part."""
    counts: Counter[str] = Counter()
    for mode in modes.values():
        counts.update(mode)
    return dict(counts)


def steps(report: dict[str, Any]) -> str:
    """Steps and how often each refused."""
    return ", ".join(f"`{step}` {count:,}" for step, count in report["steps"].items())


def written(report: dict[str, Any]) -> str:
    """Return the page.

    Raises:
        jinja2.UndefinedError: if a part is missing.
    """
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    environment.filters |= {"total": total, "steps": steps, "number": "{:,}".format}
    return environment.get_template(TEMPLATE).render(report)
