# ruff: noqa: A005
"""``python -m tests.site FOLDER``: check a built site; 1 if anything is wrong.

``python -m tests.site --count`` prints the number of pages below ``docs/`` and of their words.
"""

import sys
from pathlib import Path

from tests.site.built_pages import faults, read_pages

DOCS = Path(__file__).resolve().parents[2] / "docs"


def count_words() -> str:
    """Return the number of pages below ``docs/``, and of words between spaces in their sources."""
    pages = list(DOCS.rglob("*.md"))
    words = sum(len(page.read_text(encoding="utf-8").split()) for page in pages)
    return f"{len(pages)} pages, {words:,} words"


if __name__ == "__main__":
    if sys.argv[1:] == ["--count"]:
        print(count_words())
        sys.exit()
    site = Path(sys.argv[1])
    wrong = (
        list(faults(site))
        if read_pages(site)
        else [f"no pages in {site}: mkdocs build --strict -d {site}"]
    )
    print("\n".join(wrong))
    sys.exit(bool(wrong))
