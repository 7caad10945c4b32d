"""What files import and what the project declares; addresses and versions agree in all files."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import dinoneck
from dinoneck.version import __version__
from tests.house.source import FILES, ROOT, SOURCE, imports, lazy_packages, tree_of
from tests.wheel import package_page, targets


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package, the benchmarks and the examples.

    A package has no entry: its ``__init__`` imports nothing before a name is used.
    """
    # folder -> where the names of its modules begin
    roots = {SOURCE: SOURCE.parent, ROOT / "benchmarks": ROOT, ROOT / "examples": ROOT}
    files = {}
    for folder, base in roots.items():
        for path in sorted(folder.rglob("*.py")):
            if path.name != "__init__.py":
                parts = path.relative_to(base).with_suffix("").parts
                files[".".join(parts)] = path
    return files


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The names that a chain of edges leads to; ``start`` only if a circle leads back to it."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        new = graph[name] - reached
        reached |= new
        waiting += new
    return reached


def cycles_in(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of names that reach each other, sorted."""
    reached = {name: reachable(graph, name) for name in graph}
    cycles: list[list[str]] = []
    for name in sorted(graph):
        cycle = sorted(other for other in reached[name] if name in reached[other])
        if cycle and cycle not in cycles:
            cycles.append(cycle)
    return cycles


def import_graph() -> dict[str, set[str]]:
    """Name of a module -> the modules of :func:`modules` that it imports.

    ``from dinoneck import Task`` imports ``dinoneck.tasks``, which defines the name.
    """
    homes = {}
    for package, module in lazy_packages().items():
        for name, home in module.HOMES.items():
            homes[f"{package}.{name}"] = home
    files = modules()
    graph = {}
    for importer, path in files.items():
        imported = set()
        for module_name, full_name in imports(tree_of(path)):
            imported.add(module_name)
            imported.add(homes.get(full_name, full_name))
        imported.discard(importer)
        graph[importer] = imported & files.keys()
    return graph


@pytest.mark.slow
def test_files_do_not_import_each_other_in_circles() -> None:
    assert cycles_in(import_graph()) == []


def test_every_circle_is_found_once() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set(), "f": {"f"}}
    assert cycles_in(graph) == [["a", "b", "c"], ["f"]]


# Dependencies

# extras of those who work on dinoneck; dev is their sum
DEVELOPERS = ("bench", "docs", "lint", "test")
# declared for users and imported by an example, with the folder that imports it
IMPORTED_BY_EXAMPLES: dict[str, str] = {}
# declared and imported by no file, with the reason
NOT_IMPORTED = {
    "spconv-cu126": "networks of users run on it, and dinoneck.points reads their tensors",
    "crepes": "a test of intervals compares with it where it is installed",
    "supervision": "tests of YOLO and VOC compare with its readers where it is installed",
    "import-linter": "make layers runs it",
    "lightning": "a page of docs/integrations runs it",
    "mkdocs-material": "make docs runs it",
    "mkdocstrings": "make docs runs it",
    "mypy": "make types runs it",
    "prometheus-client": "the page on the service runs it",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "make lint runs it",
    "types-pyyaml": "mypy reads it",
    "types-tqdm": "mypy reads it",
}
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "spconv-cu126": "spconv"}


def external_imports(path: Path) -> set[str]:
    """Packages from elsewhere that a file imports, by the names that it imports."""
    packages = {module.split(".")[0] for module, _ in imports(tree_of(path))}
    return packages - {"dinoneck"}


def as_on_index(name: str) -> str:
    """The name of a package as an index spells it: ``types-PyYAML`` is ``types-pyyaml``."""
    return name.strip().lower().replace("_", "-")


def required(requirements: Iterable[str]) -> set[str]:
    """The names of the packages in requirements such as ``torch>=2.6`` and ``dinoneck[train]``."""
    names = set()
    for requirement in requirements:
        name = re.split(r"[<>=\[;]", requirement)[0]
        names.add(as_on_index(name))
    return names - {"dinoneck"}


def imported_in(folders: Iterable[str]) -> set[str]:
    """Packages from elsewhere that the Python files of these folders import."""
    packages = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            packages |= external_imports(path)
    return packages


def unused(names: Iterable[str], *folders: str) -> set[str]:
    """Those of the packages that no Python file of these folders imports."""
    imported = imported_in(folders)
    unused_names = set()
    for name in names:
        module = MODULES.get(name, name.replace("-", "_"))
        if module not in imported:
            unused_names.add(name)
    return unused_names


@dataclass
class Declared:
    """The packages that ``pyproject.toml`` declares.

    Attributes:
        core: dependencies of every installation.
        users: those of the extras for users.
        developers: those of the extras for people who work on dinoneck.
    """

    core: set[str]
    users: set[str]
    developers: set[str]


def declared() -> Declared:
    """Read the packages that ``pyproject.toml`` declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = Declared(core=required(project["dependencies"]), users=set(), developers=set())
    for extra, requirements in project["optional-dependencies"].items():
        if extra in DEVELOPERS or extra == "dev":
            packages.developers |= required(requirements)
        else:
            packages.users |= required(requirements)
    return packages


@pytest.mark.slow
def test_imports_are_declared() -> None:
    packages = declared()
    distributions = metadata.packages_distributions()
    undeclared = set()
    for path in FILES:
        for name in external_imports(path) - sys.stdlib_module_names:
            distribution = distributions.get(name, [name])[0]
            if as_on_index(distribution) not in packages.core | packages.users:
                undeclared.add(f"{path}: {name}")
    assert undeclared == set()


@pytest.mark.slow
def test_declared_packages_are_imported() -> None:
    """Core and users' extras by the package itself, developers' extras by what they work with."""
    packages = declared()
    for_users = packages.core | packages.users
    for_developers = packages.developers - for_users
    not_imported = unused(for_users, "src")
    not_imported |= unused(for_developers, "tests", "docs", "examples", "benchmarks")
    assert not_imported == NOT_IMPORTED.keys() | IMPORTED_BY_EXAMPLES.keys(), (
        "add an entry with its reason, or remove one"
    )
    for name, folder in IMPORTED_BY_EXAMPLES.items():
        assert not unused({name}, f"examples/{folder}"), f"examples/{folder} does not import {name}"


# Addresses

HOME = "https://github.com/dinoneck/dinoneck"
BLOB = f"{HOME}/blob/v{__version__}/"
RAW = f"https://raw.githubusercontent.com/dinoneck/dinoneck/v{__version__}/"


def test_every_link_of_the_package_page_is_absolute_and_leads_to_a_file() -> None:
    page = package_page((ROOT / "README.md").read_text(), __version__)
    assert targets(page)
    for target in targets(page):
        assert target.startswith(("https://", "http://", "mailto:")), target
        if target.startswith((BLOB, RAW)):
            name = target.removeprefix(BLOB).removeprefix(RAW).split("#")[0]
            assert (ROOT / name).exists(), target


@pytest.mark.parametrize(
    ("written", "built"),
    [
        ("[a](docs/x.md#y)", f"[a]({BLOB}docs/x.md#y)"),
        ("[a](#install)", f"[a]({BLOB}README.md#install)"),
        ("![a](docs/images/x.png)", f"![a]({RAW}docs/images/x.png)"),
        ("[![a](docs/x.png)](docs/x.md)", f"[![a]({RAW}docs/x.png)]({BLOB}docs/x.md)"),
        ('<img src="docs/x.png">', f'<img src="{RAW}docs/x.png">'),
        ("heads[0](tokens)", "heads[0](tokens)"),
    ],
)
def test_relative_targets_become_absolute_and_code_stays(written: str, built: str) -> None:
    assert package_page(written, __version__) == built


def test_all_files_name_the_same_addresses() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    site = (ROOT / "mkdocs.yml").read_text()
    assert urls["Homepage"] == urls["Repository"] == citation["repository-code"] == HOME
    assert urls["Documentation"] == citation["url"]
    assert f"repo_url: {HOME}\n" in site and f"site_url: {urls['Documentation']}/" in site
    for page in ("SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        assert f"{HOME}/security/advisories/new" in (ROOT / page).read_text()


# Versions


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all(
        reference["url"].startswith("https://arxiv.org/abs/")
        for reference in citation["references"]
    )


def test_the_conda_recipe_builds_this_version_with_the_requirements_of_the_package() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # on conda-forge -> on the index of Python
    names = {"pytorch": "torch", "python-xxhash": "xxhash"}
    run = [
        [names.get(name, name), bounds]
        for name, bounds in map(str.split, recipe["requirements"]["run"])
    ]
    needed = []
    for line in project["project"]["dependencies"]:
        # the recipe is for every Python, so it cannot have the bound of a single one
        if "; python_version" not in line:
            needed.append(re.findall(r"[\w-]+|[<>=].*", line))
    assert sorted(run) == sorted([["python", project["project"]["requires-python"]], *needed])
    assert recipe["context"]["version"] == __version__
    tools = [line.replace(">=", " >=") for line in project["build-system"]["requires"]]
    assert {*tools} <= {*recipe["requirements"]["host"]}


def test_the_package_offers_its_public_names_alone() -> None:
    offered = [name for name in dir(dinoneck) if not name.startswith("__")]

    assert offered == sorted({*dinoneck.HOMES, *dinoneck.PACKAGES})
