"""``python -m examples.biomass run | train | predict``: from images to predictions of what was weighed or measured.

``run`` is the whole way, every step of it a verb of ``dinoneck``; ``train`` and ``predict`` are two of those verbs.
Everything happens in the library; this is kept here so that it can be read, copied and changed. See README.md.
"""

import sys

from dinoneck.cli import main as cli
from examples.biomass import pipeline

if __name__ == "__main__":
    verbs = ("run", "train", "predict")
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(
            f"usage: python -m examples.biomass {{{','.join(verbs)}}} ...   (--help after the verb tells the rest)"
        )
    sys.exit(pipeline.main(sys.argv[2:]) if sys.argv[1] == "run" else cli.main(sys.argv[1:]))
