"""The package's files and their syntax trees, read once."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "dinoneck"
FILES = sorted(SOURCE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a file imports, also in functions and for annotations alone.

    ``from a.b import c`` yields ``("a.b", "a.b.c")``, and ``import a.b`` yields ``("a.b", "a.b")``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.module, f"{node.module}.{alias.name}"


def lazy_packages() -> dict[str, Any]:
    """The packages whose names are imported on first use, by name."""
    packages = {}
    for path in FILES:
        if path.name == "__init__.py":
            folders = path.parent.relative_to(SOURCE).parts
            name = ".".join(("dinoneck", *folders))
            module = importlib.import_module(name)
            if hasattr(module, "HOMES"):
                packages[name] = module
    return packages


def name_of(path: Path) -> str:
    """A file as messages and tables name it: ``necks/vit_fpn.py``."""
    return path.relative_to(SOURCE).as_posix()
