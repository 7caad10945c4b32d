"""The operations that put a fault into code: replace, always, never, drop and set_keyword.

Their arguments are Python, with the wildcards of :mod:`tests.mutants.patterns`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from tests.mutants import patterns
from tests.mutants.patterns import Match


@dataclass(frozen=True)
class Edit:
    """A pattern, and the code that replaces what it fits.

    Attributes:
        pattern: an expression, or statements.
        by: an expression, or statements; the pattern's wildcards stand for the code that they fit.
    """

    pattern: str
    by: str

    def parse(self) -> tuple[list[ast.AST], list[ast.AST]]:
        """Return the pattern and its replacement: two expressions, or statements both."""
        pattern = patterns.parse(self.pattern)
        by = patterns.parse(self.by)
        if isinstance(pattern[0], ast.expr) and isinstance(by[0], ast.expr):
            return pattern, by
        return patterns.as_statements(pattern), patterns.as_statements(by)

    def find(self, tree: ast.AST) -> list[Match]:
        """Return every place that the pattern fits."""
        pattern, _ = self.parse()
        return patterns.find(pattern, tree)

    def apply(self, tree: ast.Module, match: Match) -> None:
        """Change the tree at a place that the pattern fits.

        Raises:
            KeyError: if the replacement has a wildcard that the pattern does not have.
        """
        _, by = self.parse()
        _Replacer(match.nodes, patterns.fill(by, match.wildcards)).visit(tree)


class _Replacer(ast.NodeTransformer):
    """Puts new nodes in the place of old ones."""

    def __init__(self, old: list[ast.AST], new: list[ast.AST]) -> None:
        self.old = old
        self.new = new

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST] | None:
        """Return what takes the place of a node; None leaves it out."""
        if node is self.old[0]:
            return self.new[0] if isinstance(node, ast.expr) else self.new
        if any(node is old for old in self.old):
            return None
        return self.generic_visit(node)


def replace(pattern: str, *, by: str) -> Edit:
    """Replace an expression or statements."""
    return Edit(pattern, by)


def always(condition: str) -> Edit:
    """Let a condition hold whatever its values are."""
    return Edit(condition, by="True")


def never(condition: str) -> Edit:
    """Let a condition hold for no values."""
    return Edit(condition, by="False")


def drop(statement: str) -> Edit:
    """Leave out a statement."""
    return Edit(statement, by="pass")


def set_keyword(function: str, keyword: str, value: object) -> Edit:
    """Change a keyword argument of a call: ``set_keyword("_x.var", "correction", 1)``."""
    return Edit(
        f"{function}(*_arguments, {keyword}=_, **_options)",
        by=f"{function}(*_arguments, {keyword}={value!r}, **_options)",
    )
