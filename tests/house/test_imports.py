"""What files import: no cycle within a folder, no dependency that is declared and unused or used and undeclared."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.house.source import FILES, ROOT, SOURCE, tree_of


def folders() -> list[Path]:
    return [path.parent for path in FILES if path.name == "__init__.py"]


def runtime_imports(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Modules, and the name taken from each; imports inside functions count, ``TYPE_CHECKING`` ones do not."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from ((node.module, alias.name) for alias in node.names)
    for child in children:
        yield from runtime_imports(child)


def siblings(folder: Path, package: str, homes: dict[str, str]) -> dict[str, set[str]]:
    """File -> the files of its folder that it imports; ``homes`` resolves names that the package re-exports."""
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    graph: dict[str, set[str]] = {}
    for name in names:
        graph[name] = set()
        for module, what in runtime_imports(tree_of(folder / f"{name}.py")):
            full = homes.get(what or "", f"{module}.{what}") if module == package else module
            if full.startswith(f"{package}."):
                graph[name].add(full.removeprefix(f"{package}.").split(".")[0])
        graph[name] &= names - {name}
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Files of one cycle; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.relative_to(SOURCE).as_posix())
def test_files_of_a_folder_do_not_import_each_other_in_circles(folder: Path) -> None:
    parts = folder.relative_to(SOURCE).parts
    package = ".".join(("dinoneck", *parts))
    graph = siblings(folder, package, getattr(importlib.import_module(package), "_HOMES", {}))
    assert not cycle_in(graph)


# -- dependencies -----------------------------------------------------------------------------------------

DEVELOPERS = ("bench", "docs", "lint", "test")  # extras of those who work on dinoneck; dev is their sum
# declared for users and imported by an example, with the folder that imports it
IMPORTED_BY_EXAMPLES = {
    "spconv-cu126": "pointcloud",
}
# declared and imported by no file, with the reason
NOT_IMPORTED = {
    "import-linter": "make layers runs it",
    "lightning": "a page of docs/integrations runs it",
    "mkdocs-material": "make docs runs it",
    "mkdocstrings": "make docs runs it",
    "mypy": "make types runs it",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "make lint runs it",
    "scipy": "transformers' matcher of D-FINE and RT-DETR imports it",
    "types-pyyaml": "mypy reads it",
    "types-tqdm": "mypy reads it",
}
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "spconv-cu126": "spconv"}


def external_imports(path: Path) -> set[str]:
    """Packages from elsewhere that a file imports."""
    modules = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {name.split(".")[0] for name in modules} - {"dinoneck"}


def required(lines: Iterable[str]) -> set[str]:
    """The names of requirements, as an index spells them."""
    names = {re.split(r"[<>=\[;]", line)[0].strip().lower().replace("_", "-") for line in lines}
    return names - {"dinoneck"}


def unused(names: Iterable[str], *folders: str) -> set[str]:
    """Those of the packages that no Python file of these folders imports."""
    texts = {path: path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")}
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in names}
    return {
        name
        for name, module in modules.items()
        # only files that name it are parsed: docstrings name packages too
        if not any(module in external_imports(path) for path, text in texts.items() if module in text)
    }


def declared() -> tuple[set[str], set[str], set[str]]:
    """Packages of the core, of the extras for users, and of the extras for developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = {name for name in extras if name in (*DEVELOPERS, "dev")}
    return (
        required(project["dependencies"]),
        required(line for name in extras.keys() - own for line in extras[name]),
        required(line for name in own for line in extras[name]),
    )


def test_imports_are_declared() -> None:
    core, users, _ = declared()
    owner = metadata.packages_distributions()
    foreign = set().union(*map(external_imports, FILES)) - sys.stdlib_module_names
    foreign -= {"wandb"}  # users who log there have it; WandbLogger names it if it is missing
    assert {owner[name][0].lower().replace("_", "-") for name in foreign} <= core | users


def test_declared_packages_are_imported() -> None:
    """Core and users' extras by the package itself, developers' extras by what they work with."""
    core, users, developers = declared()
    idle = unused(core | users, "src") | unused(developers - core - users, "tests", "docs", "examples", "benchmarks")
    assert idle == NOT_IMPORTED.keys() | IMPORTED_BY_EXAMPLES.keys(), "add an entry with its reason, or remove one"
    for name, folder in IMPORTED_BY_EXAMPLES.items():
        assert not unused({name}, f"examples/{folder}"), f"examples/{folder} does not import {name}"
