"""What files import and what the project declares; addresses and versions agree in all files."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from dinoneck.version import __version__
from tests.house.source import FILES, ROOT, SOURCE, imports, lazy_packages, tree_of
from tests.wheel import package_page, targets


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package, of the benchmarks and of the examples, without ``__init__``."""
    roots = {SOURCE: SOURCE.parent, ROOT / "benchmarks": ROOT, ROOT / "examples": ROOT}
    return {
        ".".join(path.relative_to(base).with_suffix("").parts): path
        for folder, base in roots.items()
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    }


def cycles_in(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of files that import each other in a circle, sorted."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        reached[name], waiting = set(), [name]
        while waiting:
            new = graph[waiting.pop()] - reached[name]
            reached[name] |= new
            waiting += new
    return sorted(
        {
            tuple(sorted(other for other in reached[name] if name in reached[other]))
            for name in graph
        }
        - {()}
    )


def test_files_do_not_import_each_other_in_circles() -> None:
    files = modules()
    # public names, with their packages -> the modules that define them
    homes = {
        f"{name}.{own}": home
        for name, module in lazy_packages().items()
        for own, home in module.HOMES.items()
    }
    graph = {}
    for name, path in files.items():
        found = ({homes.get(full, full), module} for module, full in imports(tree_of(path)))
        graph[name] = set().union(*found) & files.keys() - {name}
    assert cycles_in(graph) == []


# -- dependencies
# -----------------------------------------------------------------------------------------

# extras of those who work on dinoneck; dev is their sum
DEVELOPERS = ("bench", "docs", "lint", "test")
# declared for users and imported by an example, with the folder that imports it
IMPORTED_BY_EXAMPLES: dict[str, str] = {}
# declared and imported by no file, with the reason
NOT_IMPORTED = {
    "spconv-cu126": "networks of users run on it, and dinoneck.points reads their tensors",
    "supervision": "the page on boxes reads and writes VOC and YOLO with it",
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
    """Packages from elsewhere that a file imports."""
    return {module.split(".")[0] for module, _ in imports(tree_of(path))} - {"dinoneck"}


def required(lines: Iterable[str]) -> set[str]:
    """The names of requirements, as an index spells them."""
    names = {re.split(r"[<>=\[;]", line)[0].strip().lower().replace("_", "-") for line in lines}
    return names - {"dinoneck"}


def unused(names: Iterable[str], *folders: str) -> set[str]:
    """Those of the packages that no Python file of these folders imports."""
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in names}
    return {
        name
        for name, module in modules.items()
        # only files that name it are parsed: docstrings name packages too
        if not any(
            module in external_imports(path) for path, text in texts.items() if module in text
        )
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
    assert {
        owner.get(name, [name])[0].lower().replace("_", "-") for name in foreign
    } <= core | users


def test_declared_packages_are_imported() -> None:
    """Core and users' extras by the package itself, developers' extras by what they work with."""
    core, users, developers = declared()
    idle = unused(core | users, "src") | unused(
        developers - core - users, "tests", "docs", "examples", "benchmarks"
    )
    assert idle == NOT_IMPORTED.keys() | IMPORTED_BY_EXAMPLES.keys(), (
        "add an entry with its reason, or remove one"
    )
    for name, folder in IMPORTED_BY_EXAMPLES.items():
        assert not unused({name}, f"examples/{folder}"), f"examples/{folder} does not import {name}"


HOME = "https://github.com/dinoneck/dinoneck"


BLOB = f"{HOME}/blob/v{__version__}/"


RAW = f"https://raw.githubusercontent.com/dinoneck/dinoneck/v{__version__}/"


def test_every_link_of_the_package_page_is_absolute_and_leads_to_a_file() -> None:
    page = package_page((ROOT / "README.md").read_text(), __version__)
    assert targets(page)
    assert not [
        target
        for target in targets(page)
        if not target.startswith(("https://", "http://", "mailto:"))
    ]
    here = [
        target.removeprefix(BLOB).removeprefix(RAW)
        for target in targets(page)
        if target.startswith((BLOB, RAW))
    ]
    assert not [path for path in here if not (ROOT / path.split("#")[0]).exists()]


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


# -- CITATION.cff names this version and this licence


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
    needed = [re.findall(r"[\w-]+|[<>=].*", line) for line in project["project"]["dependencies"]]
    assert sorted(run) == sorted([["python", project["project"]["requires-python"]], *needed])
    assert recipe["context"]["version"] == __version__
    tools = [line.replace(">=", " >=") for line in project["build-system"]["requires"]]
    assert {*tools} <= {*recipe["requirements"]["host"]}
