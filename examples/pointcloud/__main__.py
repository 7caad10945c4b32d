"""``python -m examples.pointcloud VERB``: checks of frames, features, info files, and the comparison.

See README.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import tyro

from dinoneck.errors import DinoneckError
from examples.pointcloud.checking import check
from examples.pointcloud.comparison import compare
from examples.pointcloud.extraction import extract
from examples.pointcloud.packing import pack

VERBS = {"check": check, "extract": extract, "pack": pack, "compare": compare}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0 done, 1 refused or something is wrong, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="python -m examples.pointcloud",
            args=arguments,
        )
    except (DinoneckError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code or 0  # only check returns one


if __name__ == "__main__":
    sys.exit(main())
