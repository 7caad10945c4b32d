"""Write the frozen files that are missing: ``python -m tests.frozen``.

``tests/fixtures/0.3.0`` was written once, with dinoneck 0.3.0: head files of every type and kind of
task, necks and building blocks, feature stores, finished and unfinished trainings, training files
and exports, all as small as possible, and what they said and gave then. The tests next to this file
show that every later version reads them and computes the same numbers.

Files that are there stay as they are. This program never replaces one: it writes what no version
has written yet, to the folder of the version that is being developed, and adds its record. A head type, kind of
task, dtype or format that is added later gets a row in one of the tables (``heads.py``,
``modules.py``, ``stores.py``, ``runs.py``, ``exports.py``), or a training file by hand, and then
this program is run; a test names what has no file. The rows of files that are there say how they
were made; they need not work with a later version.

If a name in a file is renamed, the file stays: the reader takes both names.
"""

from __future__ import annotations

from tests.frozen import (
    configs,
    detectors,
    exports,
    heads,
    heads_on_backbones,
    modules,
    runs,
    stores,
)
from tests.frozen.folder import FIXTURES, VersionFolder

# the version that is being developed: its files may still change until it is released
VERSION = "0.4.0"
PARTS = (heads, heads_on_backbones, modules, detectors, stores, configs, runs, exports)


def main() -> None:
    """Write what is missing, into the folder of the version that is being developed."""
    folder = VersionFolder(FIXTURES / VERSION)
    for part in PARTS:
        part.freeze(folder)


if __name__ == "__main__":
    main()
