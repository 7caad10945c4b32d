"""One fault in ``src``: what users would suffer from, what causes it, and which tests notice it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutants.edits import Edit
from tests.mutants.patterns import Match, is_private
from tests.mutants.places import Place, find_place

GOLDEN = "golden/test_golden.py::test_outputs_and_gradients_are_those_recorded"


class MutantError(Exception):
    """A mutant that cannot be put into the code as it is now."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault in behaviour.

    Attributes:
        sentence: what a user would suffer from. It outlives every rewrite of the source.
        where: a public place in ``dinoneck``: a module ``"data.coco"``, or a function, class,
            method or constant of one, ``"grid:TokenGrid.size"``.
        edit: the change. Its pattern must fit once in the place and the private code of the module
            that the place uses.
        tests: the tests that must notice the fault, below ``tests``.

    Raises:
        MutantError: if ``where`` has a private name.
    """

    sentence: str
    where: str
    edit: Edit
    tests: Sequence[str]

    def __post_init__(self) -> None:
        private = [name for name in self.where.replace(":", ".").split(".") if is_private(name)]
        if private:
            raise MutantError(
                f"{self.sentence!r} is in {self.where}, and {private[0]} is private; name a public "
                "function or class that uses it"
            )

    @property
    def file(self) -> str:
        """The file of the module, below ``src/dinoneck``."""
        module = self.where.partition(":")[0]
        return module.replace(".", "/") + ".py"

    def apply(self, source: str) -> str:
        """Return the text of the module with the fault.

        Args:
            source: the text of the module.

        Raises:
            MutantError: if the place is not there, the pattern does not fit exactly once, it spells
                out a name that is not public, or the changed code is no Python or the same as
                before.
        """
        module = ast.parse(source)
        sound = ast.unparse(module)
        place = find_place(module, self.where.partition(":")[2])
        if place is None:
            raise self._error(f"there is no {self.where}")
        self._check_names(place)
        match = self._find(place)
        try:
            self.edit.apply(module, match)
        except KeyError as error:
            raise self._error(
                f"the replacement {self.edit.by!r} has the wildcard {error}, which the pattern "
                f"{self.edit.pattern!r} does not have"
            ) from None
        changed = ast.unparse(module)
        if changed == sound:
            raise self._error("the changed code is the same as before")
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise self._error(f"the changed code is no Python: {error}") from None
        return changed

    def _check_names(self, place: Place) -> None:
        """Refuse a pattern that breaks when a variable or a private function gets another name."""
        pattern, _ = self.edit.parse()
        nodes = [node for part in pattern for node in ast.walk(part)]
        spelled_out = {node.id for node in nodes if isinstance(node, ast.Name)}
        for name in sorted(spelled_out - place.names):
            if not is_private(name):
                raise self._error(
                    f"the pattern {self.edit.pattern!r} spells out {name}, which is not public in "
                    f"{self.where}; write the wildcard _{name}"
                )

    def _find(self, place: Place) -> Match:
        """Return the only match in the place and its helpers."""
        matches = {}
        for statement in [*place.definitions, *place.helpers]:
            # in a block, so that a pattern of statements can fit the whole of it
            block = ast.Module([statement], type_ignores=[])
            for match in self.edit.find(block):
                # a helper that is defined in another helper is searched twice
                matches[id(match.nodes[0])] = match
        if len(matches) == 1:
            return matches.popitem()[1]
        problem = (
            f"the pattern {self.edit.pattern!r} fits {len(matches)} times in {self.where} and the "
            "private code that it uses; expected once"
        )
        if matches:
            lines = sorted(match.line for match in matches.values())
            problem += f". It fits in lines {', '.join(map(str, lines))} of {self.file}"
        raise self._error(problem)

    def _error(self, problem: str) -> MutantError:
        return MutantError(f"{self.sentence!r}: {problem}")
