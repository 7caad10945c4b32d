"""``python -m examples.biomass train | predict``: the main job, on photos and a CSV or on a generated pasture.

Everything happens in the library; these are the ``dinoneck train`` and ``dinoneck predict`` verbs, kept here so
that the example can be read, copied and changed. See README.md beside this file.
"""

import sys

from dinoneck.cli.main import main

if __name__ == "__main__":
    verbs = ("train", "predict")
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(
            f"usage: python -m examples.biomass {{{','.join(verbs)}}} ...   (--help after the verb tells the rest)"
        )
    sys.exit(main(sys.argv[1:]))
