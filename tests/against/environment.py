"""The two sides of the comparison: 0.3.0 in an environment of its own, and this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.wheel import environment

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.3.0"
COMMIT = "2becf0625b33e67e6f42ba590088c887e7811a8d"
"""The commit of 0.3.0."""
MARK = "commit.txt"
"""The file of an environment that holds the hash of its commit."""


@dataclass(frozen=True)
class Side:
    """A dinoneck that runs the cases.

    Attributes:
        name: what the report calls it.
        python: the interpreter.
        search_path: the folders that the interpreter searches first; the cases come from there.
        source: the folder that dinoneck must be imported from.
    """

    name: str
    python: Path
    search_path: tuple[Path, ...]
    source: Path

    def variables(self, cache: Path) -> dict[str, str]:
        """Return the environment variables of its processes; what they cache goes to a folder."""
        return os.environ | {
            "DINONECK_RUNTIME": "torch",
            "PYTHONPATH": os.pathsep.join(map(str, self.search_path)),
            "PYTHONNOUSERSITE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",  # a GPU sums in another order from run to run
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(cache),
        }


def old_side(folder: Path) -> Side:
    """Return 0.3.0 in the environment of a folder, which is made if the folder does not exist."""
    if not folder.exists():
        print(f"{VERSION} is built and installed in {folder}", flush=True)
        make_environment(folder)
    side = Side(
        name=VERSION,
        python=folder / "env" / "bin" / "python",
        search_path=(ROOT,),  # without src
        source=folder,
    )
    check_environment(side)
    return side


def this_side(source: Path = ROOT / "src") -> Side:
    """Return this checkout, or another copy of its sources."""
    return Side(
        name="this checkout",
        python=Path(sys.executable),
        search_path=(source, ROOT),
        source=source,
    )


def make_environment(folder: Path) -> None:
    """Install the commit of 0.3.0 in a new virtual environment that borrows the dependencies."""
    with tempfile.TemporaryDirectory() as parent:
        archive = Path(parent) / "source.zip"
        command = ["git", "archive", "--format=zip", f"--output={archive}", COMMIT]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            sys.exit("git is not installed; it holds the sources of 0.3.0")
        if done.returncode != 0:
            sys.exit(
                f"git has no commit {COMMIT[:8]} of {VERSION} here: {done.stderr.strip()}. "
                "The comparison needs a clone with history (git fetch --unshallow); a shallow "
                "clone or a source distribution has none"
            )
        source = Path(parent) / "source"
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(source)
        environment(source, folder)
    (folder / MARK).write_text(COMMIT + "\n")


def check_environment(side: Side) -> None:
    """Stop unless the environment of a folder holds 0.3.0."""
    folder = side.source
    mark = folder / MARK
    if not mark.is_file() or mark.read_text().strip() != COMMIT:
        sys.exit(
            f"{folder} is no finished environment of commit {COMMIT[:8]}; name a folder that does "
            "not exist yet, and it is made there"
        )
    script = "import dinoneck; print(dinoneck.__version__); print(dinoneck.__file__)"
    done = subprocess.run(
        [side.python, "-c", script],
        env=side.variables(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"the dinoneck of {folder} cannot be imported:\n{done.stderr[-1000:]}")
    version, file = done.stdout.splitlines()
    if version != VERSION or not Path(file).resolve().is_relative_to(folder):
        sys.exit(f"{folder} gives dinoneck {version} from {file}; expected {VERSION} from there")
