"""``python -m tests.first_prediction FOLDER``: a newcomer's first hour, by script and outside the repository.

The wheel is built and installed with all its dependencies into an empty environment. Then, from an
empty folder: images with a table -> a trained head -> a prediction for an image it never saw, every
command timed; the README's demo. ``--data`` is a folder with ``cover.csv``
(image, soil, ..., group); without it the images are drawn. ``--store`` writes the times to
``benchmarks/results/first_prediction.json``, with the machine and the installed versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import RESULTS, ROOT, processor, write

RESULT = RESULTS / "first_prediction.json"
TITLE = "seconds of each step"
AFTER_INSTALL = "first prediction, after the install"
VERSIONS = """
import json
from dinoneck.version import versions
print(json.dumps(versions()))
"""
BACKBONE = "vit_small_patch16_dinov3.lvd1689m"
IMAGES = 24
DRAW = f"""
from pathlib import Path
from dinoneck.data import Pasture
Pasture(size=(240, 480)).write("drawn", {IMAGES})
Pasture(seed=1, size=(240, 480)).write("mine", 1)
"""


class Terminal:
    """Runs commands as a newcomer would and keeps their times."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder = folder
        self.bin = environment / "bin"
        self.seconds: dict[str, float] = {}
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PYTHON")
        }
        self.environment["PATH"] = f"{self.bin}{os.pathsep}{self.environment['PATH']}"

    def run(self, step: str, *command: object) -> str:
        """Run one command to its end; a failure ends everything."""
        words = [str(word) for word in command]
        print("$", " ".join(words), flush=True)
        begin = time.perf_counter()
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.seconds[step] = round(time.perf_counter() - begin, 1)
        if done.returncode:
            sys.exit(
                f"{step} failed with "
                f"{done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        print(f"  {self.seconds[step]:.1f} s", flush=True)
        return done.stdout


def first_prediction(terminal: Terminal, data: Path | None) -> str:
    """Train on images with a table, predict one that was held back; return the CSV."""
    if data is None:
        terminal.run("draw images", "python", "-c", DRAW)
        own = terminal.folder / "mine" / "images" / "0000.jpg"
        table = [
            "--csv",
            "drawn/table.csv",
            "--targets",
            "GDM_g",
            "--group",
            "sampling",
            "--minimum",
            "0",
        ]
    else:
        own, table = _own_images(data, terminal.folder)
    options = [
        "--backbone",
        BACKBONE,
        "--random-backbone",
        "--size",
        "224x448",
        "--folds",
        "3",
        "--epochs",
        "20",
    ]
    terminal.run("train", "dinoneck", "train", *table, "--out", "run", *options)
    written = ["--out", "mine.csv", "--overlay", "pictures"]
    terminal.run("predict", "dinoneck", "predict", own, "--heads", "run/heads", *written)
    return (terminal.folder / "mine.csv").read_text()


def _own_images(data: Path, folder: Path) -> tuple[Path, list[str]]:
    header, *rows = (data / "cover.csv").read_text().splitlines()
    spread = rows[:: max(1, len(rows) // (IMAGES + 1))]
    (folder / "table.csv").write_text("\n".join([header, *spread[:IMAGES]]) + "\n")
    own = folder / "my image.jpg"
    shutil.copyfile(data / spread[IMAGES].split(",")[header.split(",").index("image")], own)
    return own, [
        "--csv",
        "table.csv",
        "--images",
        str(data),
        "--targets",
        "soil",
        "--group",
        "group",
    ]


def main() -> None:
    """Do it all and store the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="for the wheel and the environment; emptied first"
    )
    parser.add_argument("--data", type=Path, help="folder with cover.csv and its images")
    parser.add_argument("--store", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as outside:
        terminal = Terminal(Path(outside), folder / "env")
        terminal.run(
            "build",
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            folder / "dist",
            ROOT,
        )
        [wheel] = (folder / "dist").glob("*.whl")
        terminal.run("empty environment", sys.executable, "-m", "venv", folder / "env")
        wanted = f"dinoneck[train] @ {wheel.as_uri()}"  # as the README installs it
        terminal.run("install", "python", "-m", "pip", "install", "--quiet", wanted)
        where = terminal.run(
            "import", "python", "-c", "import dinoneck; print(dinoneck.__file__)"
        ).strip()
        if not Path(where).is_relative_to(folder / "env"):
            sys.exit(f"dinoneck came from {where}, not from the wheel")
        answer = first_prediction(terminal, options.data and options.data.resolve())
        steps = ("draw images", "train", "predict")
        after = sum(terminal.seconds.get(step, 0.0) for step in steps)
        terminal.run("demo", "dinoneck", "demo", "--out", "demo")
        seconds = {**terminal.seconds, AFTER_INSTALL: round(after, 1)}
        installed_versions = json.loads(terminal.run("versions", "python", "-c", VERSIONS))
    print(answer.strip(), "\n", f"first prediction {after:.0f} s after the install", sep="")
    if not options.store:
        return
    command = "python -m tests.first_prediction FOLDER --store"
    if options.data is not None:
        command += f" --data {options.data.name}"
    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": "as torch chooses",
        "system": platform.system(),
        "versions": installed_versions,
    }
    rows = {step: {"s": value} for step, value in seconds.items()}
    write(RESULT, "first_prediction", command, machine, {TITLE: rows})


if __name__ == "__main__":
    main()
