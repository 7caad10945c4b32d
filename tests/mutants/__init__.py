"""Faults in ``src`` that the tests must notice: ``python -m tests.mutants [WORD]``."""

from tests.mutants.masks import MASKS
from tests.mutants.modules import MODULES
from tests.mutants.mutant import Mutant
from tests.mutants.pipelines import PIPELINES
from tests.mutants.published import PUBLISHED

__all__ = ["MUTANTS", "Mutant"]
MUTANTS = (*MODULES, *PIPELINES, *PUBLISHED, *MASKS)
