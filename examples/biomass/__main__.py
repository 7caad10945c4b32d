"""``python -m examples.biomass run | train | predict | table``: from images to predictions of measured values.

``run`` is the whole way, every step of it a verb of ``dinoneck``; ``train`` and ``predict`` are two
of those verbs. ``table LONG.csv WIDE.csv`` turns a table with a row per image and target into one
with a row per image. Everything happens in the library; this is kept here so that it can be read,
copied and changed. See README.md.
"""

import sys
from pathlib import Path

from dinoneck.cli import main as cli
from examples.biomass import layouts, pipeline

if __name__ == "__main__":
    verbs = ("run", "train", "predict", "table")
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(
            f"usage: python -m examples.biomass {{{','.join(verbs)}}} ...   (--help after the "
            "verb tells the rest)"
        )
    if sys.argv[1] == "table":
        layouts.write(Path(sys.argv[3]), layouts.wide(Path(sys.argv[2])))
        sys.exit()
    sys.exit(pipeline.main(sys.argv[2:]) if sys.argv[1] == "run" else cli.main(sys.argv[1:]))
