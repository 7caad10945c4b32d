"""Every mutant can be put into the code, and is noticed there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, SUBJECTS, Mutant
from tests.process_group import printed_by

ROOT = Path(__file__).resolve().parents[2]
EVERY_MUTANT = [pytest.param(mutant, id=mutant.sentence) for mutant in MUTANTS]
LIMIT_S = 1800  # of a subject; the largest one takes two minutes of a core that does nothing else


@pytest.mark.parametrize("mutant", EVERY_MUTANT)
def test_a_mutant_changes_the_code(mutant: Mutant) -> None:
    source = (ROOT / "src" / "dinoneck" / mutant.file).read_text()
    assert mutant.apply(source) != source


@pytest.mark.parametrize("mutant", EVERY_MUTANT)
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        content = (ROOT / "tests" / file).read_text()
        function = name.partition("[")[0]
        assert not function or f"\ndef {function}(" in content, test


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_mutant_is_noticed(subject: str) -> None:
    # what pytest sets for this process is not meant for those that it starts
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "tests.mutants", subject]
    report = printed_by(command, LIMIT_S, environment)  # a fault that survives fails here

    count = len(SUBJECTS[subject])
    assert f"{count} of {count} faults are noticed" in report
