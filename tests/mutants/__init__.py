"""Faults in ``src`` that the tests must notice: ``python -m tests.mutants [WORD]``."""

from tests.mutants.masks import MASKS
from tests.mutants.modules import MODULES
from tests.mutants.mutant import Mutant, MutantError
from tests.mutants.pipelines import PIPELINES
from tests.mutants.published import PUBLISHED

__all__ = ["MUTANTS", "SUBJECTS", "Mutant", "MutantError"]
SUBJECTS = {
    "modules": MODULES,
    "pipelines": PIPELINES,
    "published": PUBLISHED,
    "masks": MASKS,
}
MUTANTS = [mutant for mutants in SUBJECTS.values() for mutant in mutants]
