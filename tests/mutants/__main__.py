"""``python -m tests.mutants [WORD]``: put each fault into a copy of ``src`` and run its tests.

WORD is a subject (modules, pipelines, published or masks), or chooses the faults whose sentence,
place, edit or tests contain it; without it all faults are tried.

Exits with 1 if no test notices a fault, if a fault cannot be put into the code, or if the tests
fail without any fault.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import timm  # noqa: F401  with torch, once for all forks; each fork imports dinoneck from the copy

from tests.mutants import MUTANTS, SUBJECTS, Mutant, MutantError

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED = 0, 1  # exit codes of pytest

NOTICED = "noticed"
SURVIVES = "SURVIVES"  # no test fails
BROKEN = "BROKEN"  # the changed code lacks a name: tests fail, but not for the fault


def main(word: str) -> int:
    """Try the chosen mutants and print one line for each; return 1 if not all are noticed."""
    mutants = chosen_by(word)
    if not mutants:
        sys.exit(f"no fault has {word!r} in its sentence, place, edit or tests")
    began = time.monotonic()
    not_noticed = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.egg-info"))
        changed = [changed_module(mutant, source) for mutant in mutants]
        check_sound(mutants, source)
        for mutant, module in zip(mutants, changed, strict=True):
            began_mutant = time.monotonic()
            verdict = try_mutant(mutant, module, source)
            seconds = time.monotonic() - began_mutant
            print(f"{verdict:8} {seconds:4.0f} s  {mutant.where}: {mutant.sentence}", flush=True)
            if verdict != NOTICED:
                not_noticed.append(f"{verdict}: {mutant.sentence} Tests: {', '.join(mutant.tests)}")
    seconds = time.monotonic() - began
    count = len(mutants) - len(not_noticed)
    print(f"{count} of {len(mutants)} faults are noticed ({seconds:.0f} s)", *not_noticed, sep="\n")
    return 1 if not_noticed else 0


def chosen_by(word: str) -> list[Mutant]:
    """Return the mutants of a subject, or those that contain a word."""
    if word in SUBJECTS:
        return SUBJECTS[word]
    return [mutant for mutant in MUTANTS if word in str(mutant)]


def changed_module(mutant: Mutant, source: Path) -> str:
    """Return the text of a mutant's module with the fault."""
    try:
        return mutant.apply((source / "dinoneck" / mutant.file).read_text())
    except MutantError as error:
        sys.exit(str(error))


def check_sound(mutants: Sequence[Mutant], source: Path) -> None:
    """Run the tests of all mutants without any fault; they must pass.

    The modules are written as those with faults are, so that nothing but the fault is different.
    """
    for file in sorted({mutant.file for mutant in mutants}):
        path = source / "dinoneck" / file
        path.write_text(ast.unparse(ast.parse(path.read_text())))
    tests = {test for mutant in mutants for test in mutant.tests}
    code, printed = run_tests(source, sorted(tests))
    if code != PASSED:
        sys.exit(f"the tests fail without any fault; repair that first:\n{printed[-2000:]}")


def try_mutant(mutant: Mutant, changed: str, source: Path) -> str:
    """Put the fault into the copy, run the mutant's tests, and take the fault out again."""
    path = source / "dinoneck" / mutant.file
    sound = path.read_text()
    path.write_text(changed)
    try:
        code, printed = run_tests(source, mutant.tests)
    finally:
        path.write_text(sound)
    if code == PASSED:
        return SURVIVES
    missing_name = re.search(r"(NameError|UnboundLocalError): .*", printed)
    if missing_name:
        print(missing_name[0])
        return BROKEN
    return NOTICED


def run_tests(source: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests on a copy of ``src``; return PASSED or FAILED, and what pytest printed.

    They run in a fork of this process, so that torch is imported once.
    """
    log = source.parent / "log.txt"
    child = os.fork()
    if child == 0:
        code = -1
        try:
            code = run_pytest(source, tests, log)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    printed = log.read_text()
    if code not in (PASSED, FAILED):
        sys.exit(f"pytest ended with code {code}:\n{printed[-2000:]}")
    return code, printed


def run_pytest(source: Path, tests: Iterable[str], log: Path) -> int:
    """Run pytest in this process: it imports dinoneck from ``source`` and prints to the log."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stdout.fileno())
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(source), str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join((str(source), str(ROOT)))
    options = ["-n", "0", "-x", "-m", "", "--assert=plain", "--rootdir", str(ROOT)]
    return pytest.main([*options, *(str(ROOT / "tests" / test) for test in tests)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
