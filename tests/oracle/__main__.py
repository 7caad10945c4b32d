"""``python -m tests.oracle [FOLDER]``: version 0.1 writes, the present code reads, with the same bits.

Builds the wheel of version 0.1 from git, installs it into an environment that borrows everything else from this one,
and lets it write heads of every contract case, feature stores and trained runs. Both versions then read all of it;
hashes of the outputs are compared, and the times of both are printed. Run it by hand before a change of the file
format, of a module or of the store lands; it is not part of CI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.wheel import ROOT, environment

COMMIT = "910e577562caa160ce9e0ae8ba23f12c378bbe5c"
"""Version 0.1.0; tags may not travel with a clone."""
WORKER = Path(__file__).with_name("worker.py")


def work(python: Path | str, tests: Path, package: Path | None, *arguments: object) -> None:
    """Run the worker with one version's dinoneck and the ``tests`` of the folder ``tests``."""
    path = os.pathsep.join(str(entry) for entry in (package, tests) if entry)
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(part) for part in (python, "-P", WORKER, *arguments)]
    subprocess.run(command, check=True, env={**os.environ, **settings}, cwd=tests)


def source_of(commit: str, folder: Path) -> Path:
    """The files of a commit, in a new folder."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    subprocess.run(["git", "archive", "--output", archive, commit], cwd=ROOT, check=True)
    shutil.unpack_archive(archive, folder, filter="data")
    return folder


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{name}: only one version reads it" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        if old[name]["outputs"] != new[name]["outputs"]:
            lines.append(f"{name}: 0.1 gives {old[name]['outputs']}, the present code {new[name]['outputs']}")
    return lines


def main(folder: Path) -> int:
    """Write with 0.1, read with both; 1 if anything differs."""
    shutil.rmtree(folder, ignore_errors=True)
    source = source_of(COMMIT, folder / "source")
    python = environment(source, folder / "wheel")
    written = folder / "written"
    work(python, source, None, "write", written)
    work(python, ROOT, None, "read", written, folder / "old.json")
    work(sys.executable, ROOT, ROOT / "src", "read", written, folder / "new.json")
    old, new = (json.loads((folder / name).read_text()) for name in ("old.json", "new.json"))
    if not Path(old.pop("package")).is_relative_to(folder) or not Path(new.pop("package")).is_relative_to(ROOT):
        sys.exit("one side did not run its own version of dinoneck")
    print(f"{'':36}{'0.1 ms':>9}{'now ms':>9}")
    for name in sorted(old.keys() & new.keys()):
        print(f"{name:36}{old[name]['ms']:9.2f}{new[name]['ms']:9.2f}")
    different = compare(old, new)
    print("\n".join(different) or f"{len(old)} written by 0.1 give the same bits in both versions")
    return 1 if different else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1]).resolve()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary) / "oracle"))
