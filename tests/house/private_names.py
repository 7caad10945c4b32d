"""Where code outside the package uses names that the package keeps private.

A private name begins with an underscore. It may be renamed, split and moved without a word, so a
test that uses one breaks although nothing changes for a user.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

PACKAGE = "dinoneck"
# "dinoneck.progress.note", as monkeypatch.setattr and mock.patch take it
ADDRESS = re.compile(rf"{PACKAGE}(\.\w+)+")
# functions that take an object and the name of an attribute of it
ATTRIBUTE_FUNCTIONS = {"getattr", "hasattr", "setattr", "delattr", "object", "attrgetter"}

# documented names of Python's, of a NamedTuple and of the nodes of ast
OF_PYTHON = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore, but for ``_`` alone and ``__len__``."""
    is_dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and name != "_" and not is_dunder


def definitions(trees: Iterable[ast.AST]) -> set[str]:
    """The private names that code defines: functions, classes, constants and attributes."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if is_private(name)} - OF_PYTHON


def uses(tree: ast.AST, private: set[str]) -> list[str]:
    """The lines of a file that use a private name of the package, ``"7: store._files"``.

    Args:
        tree: the file.
        private: the private names that the package defines.
    """
    own = definitions([tree])
    found = []
    for node in ast.walk(tree):
        for name in _names_of_the_package(node, private, own):
            found.append(f"{node.lineno}: {name}")  # type: ignore[attr-defined]
    return found


def _names_of_the_package(node: ast.AST, private: set[str], own: set[str]) -> Iterator[str]:
    """Yield the private names of the package that one node of a file uses.

    Args:
        node: any.
        private: the private names that the package defines.
        own: the private names that the file defines; ``self._x`` may be one of them.
    """
    if isinstance(node, ast.Import):  # import dinoneck._x
        for alias in node.names:
            if _is_private_address(alias.name):
                yield alias.name
    elif isinstance(node, ast.ImportFrom):  # from dinoneck.data import _x
        for alias in node.names:
            address = f"{node.module}.{alias.name}"
            if _is_private_address(address):
                yield address
    elif isinstance(node, ast.Attribute):  # store._x
        owner = ast.unparse(node.value)
        is_of_the_file = owner in ("self", "cls", "super()") and node.attr in own
        if node.attr in private and not is_of_the_file:
            yield f"{owner}.{node.attr}"
    elif isinstance(node, ast.Constant):  # "dinoneck.data._x"
        if isinstance(node.value, str) and _is_private_address(node.value):
            yield node.value
    elif isinstance(node, ast.Call):  # monkeypatch.setattr(store, "_x", ...)
        if _last_name(node.func) in ATTRIBUTE_FUNCTIONS:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and argument.value in private:
                    yield ast.unparse(node)
        for keyword in node.keywords:  # mock.patch.multiple(store, _x=...)
            if keyword.arg in private:
                yield ast.unparse(node)


def _is_private_address(address: str) -> bool:
    """Whether a dotted name begins with the package and has a private part."""
    if not ADDRESS.fullmatch(address):
        return False
    return any(is_private(part) for part in address.split("."))


def _last_name(function: ast.expr) -> str:
    """Return ``setattr`` of ``monkeypatch.setattr``."""
    return ast.unparse(function).rpartition(".")[2]
