"""``python -m examples.biomass run | train | predict | table``: from images to predictions of measured values.

``run`` is the whole way, every step of it a verb of ``dinoneck``; ``train`` and ``predict`` are two
of those verbs. ``table LONG.csv WIDE.csv`` turns a table with a row per image and target into one
with a row per image. Everything happens in the library; this is kept here so that it can be read,
copied and changed. See README.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dinoneck.cli import main as cli
from examples.biomass import layouts, pipeline

VERBS = ("run", "train", "predict", "table")
NUM_WORDS_OF_TABLE = 3  # the verb, the table that is read and the one that is written
USAGE_OF_TABLE = """usage: python -m examples.biomass table LONG.csv WIDE.csv

Turn LONG.csv, with a row per image and target, into WIDE.csv, with a row per image."""


def main(arguments: Sequence[str]) -> int:
    """Run a verb; return its exit code.

    Raises:
        SystemExit: if the first argument is no verb.
    """
    if not arguments or arguments[0] not in VERBS:
        raise SystemExit(
            f"usage: python -m examples.biomass {{{','.join(VERBS)}}} ...   (--help after the "
            "verb tells the rest)"
        )
    verb = arguments[0]
    if verb == "run":
        return pipeline.main(arguments[1:])
    if verb == "table":
        if arguments[1:] in (["--help"], ["-h"]):
            print(USAGE_OF_TABLE)
            return 0
        if len(arguments) != NUM_WORDS_OF_TABLE:
            raise SystemExit(USAGE_OF_TABLE)
        table = layouts.wide(Path(arguments[1]))
        layouts.write(Path(arguments[2]), table)
        return 0
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
