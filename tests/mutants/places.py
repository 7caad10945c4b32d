"""Public places in a module, and the private code that they reach."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutants.patterns import is_private

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)


@dataclass(frozen=True)
class Place:
    """A public definition, and the private code behind it.

    Attributes:
        definitions: its statements; several where a property has a setter.
        helpers: private functions, methods, classes and constants of the module that the
            definitions name, and those that these name in turn.
        names: what a pattern may spell out: builtins, what the module imports and defines publicly,
            and the parameters of public functions in the definitions. Every other name may be
            changed without changing what the module does for its users.
    """

    definitions: Sequence[ast.stmt]
    helpers: Sequence[ast.stmt]
    names: set[str]


def find_place(module: ast.Module, name: str) -> Place | None:
    """Return the definition of a dotted name, ``"TokenGrid.size"``, or None if the module has none.

    Args:
        module: its syntax tree.
        name: of a function, class, method or constant; empty for the whole module.
    """
    definitions = module.body
    block = module.body
    parts = name.split(".") if name else []
    # "TokenGrid.size": the class in the block of the module, then the method in that of the class
    for part in parts:
        definitions = [statement for statement in block if part in _defined_names(statement)]
        block = []
        for definition in definitions:
            block += getattr(definition, "body", [])
    if not definitions:
        return None
    return Place(definitions, _helpers(module, definitions), _public_names(module, definitions))


def _defined_names(statement: ast.stmt) -> list[str]:
    """Return the names that a definition or an assignment defines."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    names = [node for target in targets for node in ast.walk(target)]
    return [node.id for node in names if isinstance(node, ast.Name)]


def _helpers(module: ast.Module, definitions: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return the private code that definitions reach by name."""
    private = _private_definitions(module)
    helpers: list[ast.stmt] = []
    names: set[str] = set()
    unread = list(definitions)
    while unread:
        for name in _used_names(unread.pop()) - names:
            names.add(name)
            helpers += private.get(name, [])
            unread += private.get(name, [])
    return helpers


def _private_definitions(module: ast.Module) -> dict[str, list[ast.stmt]]:
    """Return name -> definitions of functions, methods, classes and constants."""
    statements = [node for node in ast.walk(module) if isinstance(node, _DEFINITIONS)]
    constants = [node for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    private: dict[str, list[ast.stmt]] = {}
    for statement in [*statements, *constants]:
        for name in _defined_names(statement):
            if is_private(name):
                private.setdefault(name, []).append(statement)
    return private


def _used_names(node: ast.AST) -> set[str]:
    """Return the names in code, those after a dot too."""
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            names.add(child.id)
        elif isinstance(child, ast.Attribute):
            names.add(child.attr)
    return names


def _public_names(module: ast.Module, definitions: Sequence[ast.stmt]) -> set[str]:
    """Return the names that a rewrite of the module keeps, see :class:`Place`."""
    names = {*dir(builtins), "self", "cls"}
    for statement in module.body:
        names.update(_defined_names(statement))
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                names.add(alias.asname or alias.name.partition(".")[0])
    for definition in definitions:
        for node in ast.walk(definition):
            if isinstance(node, _FUNCTIONS) and not is_private(node.name):
                names.update(
                    child.arg for child in ast.walk(node.args) if isinstance(child, ast.arg)
                )
    return {name for name in names if not is_private(name)}
