# ruff: noqa: A005
"""``python -m tests.site FOLDER``: check a built site; 1 if anything is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.site.built_pages import check


def main(site: Path) -> int:
    """Print what was found."""
    found = check(site)
    if not found.pages:
        print(f"no pages in {site}: build them first, mkdocs build --strict -d {site}")
        return 1
    for url in sorted(found.external):
        print(f"external, not fetched: {url}")
    for line in found.faults():
        print(line)
    print(
        f"{found.pages} pages, {found.internal_links} internal links, {len(found.broken)} broken, "
        f"{len(found.remote)} remote assets, {len(found.external)} external links"
    )
    return int(bool(found.faults()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "site")))
