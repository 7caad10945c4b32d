"""``python -m examples.pointcloud VERB``: camera checks, features, training. See README.md."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from dinoneck.errors import DinoneckError

# verb -> module of this folder, with HELP, add_arguments and run
VERBS = {
    "check": "checking",
    "extract": "extraction",
    "compare": "comparison",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m examples.pointcloud", description="DINO features into a 3D U-Net.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        verb = import_module(f"examples.pointcloud.{module}")
        sub = verbs.add_parser(
            name, help=verb.HELP, description=verb.HELP, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0 done, 1 refused or a check that failed, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (DinoneckError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
