"""Patterns of code, written as Python, and where they fit a syntax tree.

A name that begins with an underscore is a wildcard:

* ``_x`` fits any expression; where Python has a bare name, as after a dot, it fits any name:
  ``self._method(_x)``. Where it is repeated, it must fit the same code again.
* ``_`` fits anything, and something else wherever it is repeated.
* ``*_rest`` at the end of arguments or elements, and ``**_rest`` at the end of keyword arguments,
  fit any number of them.
* ``_body`` as the last statement of a block fits one or more statements.

Everything else is literal. Keyword arguments fit in any order, and annotations of variables count
for nothing: ``_x = _y`` also fits ``x: int = 1``.
"""

from __future__ import annotations

import ast
import copy
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# what a wildcard fits: one expression, or several arguments, keyword arguments or statements
Fitted = ast.AST | list[ast.AST]
# ctx: whether a name is read, assigned or deleted; kind: the u of u"text"
_IGNORED_FIELDS = ("ctx", "kind", "type_comment")


@dataclass(frozen=True)
class Match:
    """A place in a tree that a pattern fits.

    Attributes:
        nodes: one expression, or consecutive statements of a block.
        wildcards: name of a wildcard -> the code that it fits.
    """

    nodes: list[ast.AST]
    wildcards: dict[str, Fitted]

    @property
    def line(self) -> int:
        """The first line of the place."""
        return self.nodes[0].lineno  # type: ignore[attr-defined,no-any-return]


def is_private(name: str) -> bool:
    """Return whether a name begins with an underscore and is not Python's, as ``__init__`` is."""
    is_dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not is_dunder


def parse(code: str) -> list[ast.AST]:
    """Return one expression, or the statements of the code."""
    statements = ast.parse(textwrap.dedent(code)).body
    if len(statements) == 1 and isinstance(statements[0], ast.Expr):
        return [statements[0].value]
    return list(statements)


def as_statements(nodes: Sequence[ast.AST]) -> list[ast.AST]:
    """Return the nodes with expressions as statements of their own."""
    return [ast.Expr(node) if isinstance(node, ast.expr) else node for node in nodes]


def find(pattern: Sequence[ast.AST], tree: ast.AST) -> list[Match]:
    """Return every place in a tree that a pattern fits.

    Args:
        pattern: one expression, which fits where a value is read; or statements, which fit
            consecutive statements of a block.
        tree: any node.
    """
    matches = []
    for nodes in _candidates(pattern, tree):
        wildcards: dict[str, Fitted] = {}
        if _fits_each(pattern, nodes, wildcards):
            matches.append(Match(nodes, wildcards))
    return matches


def _candidates(pattern: Sequence[ast.AST], tree: ast.AST) -> Iterator[list[ast.AST]]:
    """Yield every expression, or every run of as many statements as the pattern has."""
    if isinstance(pattern[0], ast.expr):
        for node in ast.walk(tree):
            is_target = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
            if isinstance(node, ast.expr) and not is_target:
                yield [node]
        return
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):  # the body of a lambda is no block
                for begin in range(len(block) - len(pattern) + 1):
                    yield block[begin : begin + len(pattern)]


def _fits(pattern: object, value: object, wildcards: dict[str, Fitted]) -> bool:
    """Return whether a pattern fits a node, or a field of a node; note what its wildcards fit.

    Names, constants, calls and assignments are nodes too: what is special about them is asked
    before what holds for every node.
    """
    # _x fits max(a, b)
    if isinstance(pattern, ast.Name) and is_private(pattern.id):
        return isinstance(value, ast.expr) and _note(pattern.id, value, wildcards)
    # self._method fits self.size: what follows a dot is a str, not a node
    if isinstance(pattern, str) and is_private(pattern):
        return isinstance(value, str) and _note(pattern, ast.Name(value), wildcards)
    # [x, *_rest] fits [x, 1, 2]; arguments and blocks are lists as well
    if isinstance(pattern, list):
        return isinstance(value, list) and _fits_list(pattern, value, wildcards)
    # 1 fits 1, but neither 1.0 nor True
    if isinstance(pattern, ast.Constant):
        return isinstance(value, ast.Constant) and _is_same_constant(pattern, value)
    # sorted(x, key=_f, reverse=True) fits sorted(x, reverse=True, key=len)
    if isinstance(pattern, ast.Call):
        return isinstance(value, ast.Call) and _fits_call(pattern, value, wildcards)
    # _x = 1 fits count: int = 1
    if isinstance(pattern, ast.Assign) and isinstance(value, ast.AnnAssign) and value.value:
        return _fits_node(pattern, ast.Assign([value.target], value.value), wildcards)
    # _x + 1 fits len(y) + 1
    if isinstance(pattern, ast.AST):
        return isinstance(value, ast.AST) and _fits_node(pattern, value, wildcards)
    # a public name after a dot; None where an optional part is absent
    return pattern == value


def _fits_node(pattern: ast.AST, node: ast.AST, wildcards: dict[str, Fitted]) -> bool:
    """Return whether two nodes are of one type and every field of the pattern fits."""
    if type(pattern) is not type(node):
        return False
    for field, part in ast.iter_fields(pattern):
        if field not in _IGNORED_FIELDS:
            if not _fits(part, getattr(node, field, None), wildcards):
                return False
    return True


def _fits_each(
    pattern: Sequence[ast.AST], nodes: Sequence[ast.AST], wildcards: dict[str, Fitted]
) -> bool:
    pairs = zip(pattern, nodes, strict=True)
    return all(_fits(part, node, wildcards) for part, node in pairs)


def _fits_list(pattern: list[ast.AST], nodes: list[ast.AST], wildcards: dict[str, Fitted]) -> bool:
    """Return whether a pattern fits arguments, elements or the statements of a block."""
    rest = _wildcard_for_several(pattern[-1]) if pattern else None
    if rest is None:
        return len(pattern) == len(nodes) and _fits_each(pattern, nodes, wildcards)
    count = len(pattern) - 1
    if len(nodes) < count or not _fits_each(pattern[:-1], nodes[:count], wildcards):
        return False
    return _note(rest, nodes[count:], wildcards)


def _fits_call(pattern: ast.Call, call: ast.Call, wildcards: dict[str, Fitted]) -> bool:
    """Return whether a pattern fits a call: its keyword arguments may be in another order."""
    if not _fits(pattern.func, call.func, wildcards):
        return False
    if not _fits_list(list(pattern.args), list(call.args), wildcards):
        return False
    remaining: list[ast.AST] = list(call.keywords)
    rest = None
    for keyword in pattern.keywords:
        rest = _wildcard_for_several(keyword)
        if rest is None:
            same_name = [node for node in call.keywords if node.arg == keyword.arg]
            if not same_name or not _fits(keyword.value, same_name[0].value, wildcards):
                return False
            remaining.remove(same_name[0])
    if rest is None:
        return not remaining
    return _note(rest, remaining, wildcards)


def _is_same_constant(pattern: ast.Constant, constant: ast.Constant) -> bool:
    """Return whether two constants are equal and of one type: 1 is neither 1.0 nor True."""
    return type(pattern.value) is type(constant.value) and pattern.value == constant.value


def _wildcard_for_several(pattern: ast.AST) -> str | None:
    """Return the name of a wildcard that fits any number of nodes, or None for other patterns."""
    # f(**_rest): a keyword argument without a keyword
    is_double_starred = isinstance(pattern, ast.keyword) and pattern.arg is None
    # f(*_rest), [*_rest]
    is_starred = isinstance(pattern, ast.Starred)
    # _body on a line of its own: a statement that consists of a value
    is_statement = isinstance(pattern, ast.Expr)
    if not (is_double_starred or is_starred or is_statement):
        return None
    content: ast.expr = pattern.value  # type: ignore[attr-defined]
    if isinstance(content, ast.Name) and is_private(content.id):
        return content.id
    return None


def _note(name: str, code: Fitted, wildcards: dict[str, Fitted]) -> bool:
    """Note the code that a wildcard fits; return False if it fitted other code before."""
    if name == "_":
        return True
    known = wildcards.setdefault(name, code)
    return _text(known) == _text(code)


def _text(code: Fitted) -> str:
    nodes = code if isinstance(code, list) else [code]
    return "\n".join(ast.unparse(node) for node in nodes)


def fill(template: Sequence[ast.AST], wildcards: dict[str, Fitted]) -> list[ast.AST]:
    """Return code with the code that each wildcard fits in its place.

    Raises:
        KeyError: for a wildcard that fits nothing.
    """
    filled: list[ast.AST] = []
    for node in copy.deepcopy(list(template)):
        code = _Filler(wildcards).visit(node)
        filled += code if isinstance(code, list) else [code]
    return filled


class _Filler(ast.NodeTransformer):
    def __init__(self, wildcards: dict[str, Fitted]) -> None:
        self.wildcards = wildcards

    def visit(self, node: ast.AST) -> Fitted:
        """Return the code of a wildcard, or the node with its own parts filled."""
        several = _wildcard_for_several(node)
        if several is not None and isinstance(self.wildcards[several], list):
            return copy.deepcopy(self.wildcards[several])
        if isinstance(node, ast.Name) and is_private(node.id):
            return copy.deepcopy(self.wildcards[node.id])
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            name = self.wildcards[node.attr]
            node.attr = name.id  # type: ignore[union-attr]
        return self.generic_visit(node)
