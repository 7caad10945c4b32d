"""One fault in ``src``."""

from __future__ import annotations

from typing import NamedTuple

GOLDEN = "golden/test_golden.py::test_outputs_and_gradients_are_those_recorded"


class Mutant(NamedTuple):
    """A fault in behaviour, and a change of the source that causes it.

    Attributes:
        sentence: what a user would suffer from. It outlives every rewrite of the source.
        file: below ``src/dinoneck``.
        old: text that stands in this file exactly once.
        new: the text that replaces it.
        tests: the tests that must notice the fault, below ``tests``, separated by blanks.
    """

    sentence: str
    file: str
    old: str
    new: str
    tests: str
