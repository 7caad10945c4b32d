# ruff: noqa: A005
"""``python -m tests.site FOLDER``: check a built site; 1 if anything is wrong."""

import sys
from pathlib import Path

from tests.site.built_pages import faults, read_pages

if __name__ == "__main__":
    site = Path(sys.argv[1])
    wrong = (
        list(faults(site))
        if read_pages(site)
        else [f"no pages in {site}: mkdocs build --strict -d {site}"]
    )
    print("\n".join(wrong))
    sys.exit(bool(wrong))
