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

The files of a released version stay byte for byte: ``SHA256SUMS`` in its folder lists them, and a
test reads it. After a release, set ``VERSION`` to the next one and run this program, which writes
the list of the version that is released.

If a name in a file is renamed, the file stays: the reader takes both names.
"""

from __future__ import annotations

from pathlib import Path

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
from tests.frozen.checksums import seal
from tests.frozen.folder import FIXTURES, VersionFolder

# the version that is being developed: its files may still change until it is released
VERSION = "0.4.0"
PARTS = (heads, heads_on_backbones, modules, detectors, stores, configs, runs, exports)


def released_folders() -> list[Path]:
    """Return the folders of all versions but the one that is being developed."""
    return [folder for folder in sorted(FIXTURES.iterdir()) if folder.name != VERSION]


def main() -> None:
    """Write what is missing into the folder of the version that is being developed; seal the others."""
    folder = VersionFolder(FIXTURES / VERSION)
    for part in PARTS:
        part.freeze(folder)
    for released in released_folders():
        seal(released)


if __name__ == "__main__":
    main()
