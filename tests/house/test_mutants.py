"""The list of faults that the tests must notice never shrinks, and fits the source and the tests as they are."""

from __future__ import annotations

import ast

import pytest

from tests.house.source import ROOT, SOURCE
from tests.mutants import MUTANTS, Mutant


def test_the_list_of_sentences_does_not_shrink() -> None:
    assert len({mutant.sentence for mutant in MUTANTS}) == len(MUTANTS) >= 64


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.old.strip()[:30]}")
def test_a_mutant_changes_one_place_and_names_its_tests(mutant: Mutant) -> None:
    sound = (SOURCE / mutant.file).read_text()
    assert sound.count(mutant.old) == 1, "write this fault again, for the source as it is now"
    assert ast.dump(ast.parse(sound.replace(mutant.old, mutant.new))) != ast.dump(ast.parse(sound))
    assert mutant.tests
    for name in mutant.tests.split():
        file, _, function = name.partition("::")
        assert f"def {function.partition('[')[0]}" in (ROOT / "tests" / file).read_text(), name
