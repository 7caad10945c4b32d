"""``python -m tests.mutants [WORD]``: put every fault into a copy of ``src`` and run its tests.

Exits 1 if a fault survives, if its old text does not stand there exactly once, or if the tests fail
without any fault. WORD chooses the faults whose sentence, file, text or tests contain it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
import timm  # noqa: F401  imported once, before the forks; dinoneck itself is imported by each

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


def run(source: Path, tests: list[str]) -> int:
    """The exit code of pytest on a copy of src: 0 passed, 1 failed.

    A fork, so that torch is imported once.
    """
    log = source.parent / "log.txt"
    child = os.fork()
    if not child:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.path[:0], sys.dont_write_bytecode = [str(source), str(ROOT)], True
        os.environ["PYTHONPATH"] = os.pathsep.join((str(source), str(ROOT)))
        code, options = 2, ["-n", "0", "-x", "-m", "", "--assert=plain", "--rootdir", str(ROOT)]
        try:
            code = pytest.main([*options, *(f"tests/{name}" for name in tests)])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        sys.exit(f"pytest ended with code {code}:\n{log.read_text()[-2000:]}")
    return code


def survives(mutant: Mutant, source: Path) -> bool:
    """Put the fault into the copy, run its tests, and take it out again."""
    path = source / "dinoneck" / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        sys.exit(
            f"{mutant.file}: {mutant.old!r} stands there {sound.count(mutant.old)} times; "
            "expected once"
        )
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        return run(source, mutant.tests.split()) == 0
    finally:
        path.write_text(sound)


def main(word: str) -> int:
    """Run every chosen mutant; 1 if one survives."""
    chosen = [mutant for mutant in MUTANTS if any(word in part for part in mutant)]
    if not chosen:
        sys.exit(f"no fault has {word!r} in its sentence, file, text or tests")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.egg-info"))
        if run(source, sorted({name for mutant in chosen for name in mutant.tests.split()})):
            sys.exit("the tests fail without any fault; repair that first")
        left, began = [], time.monotonic()
        for mutant in chosen:
            if survives(mutant, source):
                left.append(mutant)
            print(
                f"{'SURVIVES' if mutant in left else 'killed  '} {mutant.file}: {mutant.sentence}",
                flush=True,
            )
    seconds = time.monotonic() - began
    print(f"{len(chosen) - len(left)} of {len(chosen)} faults are noticed ({seconds:.0f} s)")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
