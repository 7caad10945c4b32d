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
    """Modules and ``module.name`` that a file imports, also in functions and for annotations alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, f"{node.module}.{alias.name}") for alias in node.names)


def lazy_packages() -> dict[str, Any]:
    """The packages whose names are imported on first use, by name."""
    folders = [path.parent for path in FILES if path.name == "__init__.py"]
    names = [".".join(("dinoneck", *folder.relative_to(SOURCE).parts)) for folder in folders]
    return {
        name: module for name in names if hasattr(module := importlib.import_module(name), "HOMES")
    }


def name_of(path: Path) -> str:
    """A file as messages and tables name it: ``necks/vit_fpn.py``."""
    return path.relative_to(SOURCE).as_posix()
