"""Parts of a page that scripts write, each between two markers, and numbers in them."""

from __future__ import annotations

import math

END = "<!-- end -->"


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with a text between ``<!-- table: name -->`` and the ``<!-- end -->`` behind it.

    Raises:
        SystemExit: if the page lacks one of them.
    """
    mark = f"<!-- table: {name} -->"
    before, found, rest = page.partition(mark)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"the page has no {mark} ... {END}")
    return f"{before}{mark}\n\n{text.strip()}\n\n{END}{after}"


def pending(command: str) -> str:
    """What stands in the place of results that are not stored."""
    return f"Not measured yet: `python -m {command}`."


def amount(value: float) -> str:
    """Three digits, without an exponent, thousands apart."""
    if value >= 999.5:
        digits = max(0, math.floor(math.log10(value)) - 2)
        return f"{round(value / 10**digits) * 10**digits:,.0f}".replace(",", " ")
    return f"{value:.3g}"
