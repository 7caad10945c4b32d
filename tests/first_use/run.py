"""Run a command as a user does, in a process of its own, and take its time."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.first_use.cases import RUNS, WITHOUT_MATPLOTLIB, Case
from tests.first_use.material import write_material

# the packages that are not installed stand before the words; the last line says whether torch is imported
_PROGRAM = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None
from dinoneck.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("torch" in sys.modules)
sys.exit(code)
"""


class Ran(NamedTuple):
    """What a command did.

    Attributes:
        code: the exit code.
        lines: of stderr, then of stdout; empty ones are left out.
        seconds: of processor time.
        imports_torch: whether torch was imported, which takes seconds.
    """

    code: int
    lines: list[str]
    seconds: float
    imports_torch: bool

    def line_with(self, text: str) -> str:
        """Return the first line that holds a text; empty where none does."""
        for line in self.lines:
            if text in line:
                return line
        return ""


def prepare(folder: Path) -> None:
    """Write the material into a folder, and train the runs that the commands name."""
    write_material(folder)
    # torch's cache, which is empty: a download that fails leaves such a folder, and is no result of a command
    _torch_home(folder).joinpath("hub", "checkpoints").mkdir(parents=True)
    for words in RUNS:
        _run_or_raise(words, folder)
    _run_or_raise(WITHOUT_MATPLOTLIB, folder, lacks=("matplotlib",))
    shutil.copyfile(folder / "run_b" / "head.safetensors", folder / "copy.safetensors")


def _run_or_raise(words: str, folder: Path, lacks: tuple[str, ...] = ()) -> None:
    ran = run(words, folder, lacks=lacks)
    if ran.code != 0:
        raise RuntimeError(f"dinoneck {words} failed: {ran.lines[-1]}")


def _torch_home(folder: Path) -> Path:
    return folder / "torch_home"


def run_case(case: Case, folder: Path) -> Ran:
    """Run the command of a case, and remove what it leaves."""
    if case.is_python:
        ran = run_python(case.words, folder)
    else:
        ran = run(case.words, folder, lacks=case.lacks)
    for name in (case.leaves, "p.csv"):
        path = folder / name
        if name and path.is_dir():
            shutil.rmtree(path)
        elif name:
            path.unlink(missing_ok=True)
    return ran


def run(words: str, folder: Path, lacks: tuple[str, ...] = ()) -> Ran:
    """Run ``dinoneck WORDS`` in a folder, as if some packages were not installed."""
    ran = run_python(_PROGRAM, folder, " ".join(lacks), *words.split())
    *lines, imports_torch = ran.lines
    return Ran(ran.code, lines, ran.seconds, imports_torch=imports_torch == "True")


def run_python(program: str, folder: Path, *words: str) -> Ran:
    """Run a program in a folder; whether it imports torch is not looked at."""
    environment = {**os.environ, "DINONECK_RUNTIME": "torch", "HF_HUB_OFFLINE": "1"}
    environment["TORCH_HOME"] = str(_torch_home(folder))  # holds no published heads
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    printed = [*done.stderr.splitlines(), *done.stdout.splitlines()]
    lines = [line for line in printed if line.strip()]
    return Ran(done.returncode, lines, seconds, imports_torch=False)
