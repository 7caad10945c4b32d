"""Parts of a page that scripts write, each between two markers."""

from __future__ import annotations

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
