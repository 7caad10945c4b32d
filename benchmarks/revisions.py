"""``python -m benchmarks.revisions``: print the commit of every Hub repository of published heads and detectors.

It needs the network and fetches no weights. A commit is pinned by copying it to ``revision=`` of
the rows of its repository, in ``src/dinoneck/published/table.py`` and ``detectors.py``.
"""

from __future__ import annotations

import sys

from dinoneck.published.table import list_published


def repositories() -> list[str]:
    """Return the Hub repositories of the published heads and detectors, sorted."""
    return sorted({row.hub for row in list_published() if row.hub is not None})


def main() -> int:
    """Print a line per repository; return 1 if a commit could not be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    client = HfApi()
    code = 0
    for repository in repositories():
        try:
            commit = client.model_info(repository).sha
        except (HfHubHTTPError, OSError) as error:
            [reason, *_] = str(error).splitlines()
            print(f"{repository}: {reason}", file=sys.stderr)
            code = 1
        else:
            print(f"{repository} {commit}")
    return code


if __name__ == "__main__":
    sys.exit(main())
