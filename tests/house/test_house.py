"""What protects users and the architecture: public names, their documentation, light imports, no machine paths."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dinoneck
from dinoneck import registry
from dinoneck.configured import Configured, fields_of
from tests.house.source import FILES, ROOT, lazy_packages, name_of, tree_of


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that does not stand inside a function."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from outside_functions(child)


def test_everything_public_is_documented() -> None:
    missing = []
    for path in FILES:
        if not ast.get_docstring(tree_of(path)):
            missing.append(str(path))
        for node in outside_functions(tree_of(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                signature_only = any(
                    getattr(how, "id", "") == "overload" for how in node.decorator_list
                )
                if not signature_only and not ast.get_docstring(node):
                    missing.append(f"{path}:{node.name}")
    assert not missing


# parts that serve any data: they name no single data set, competition or notebook
GENERAL = ("layers", "necks", "heads", "losses", "backbones", "interop")
GENERAL_FILES = ("tokens.py", "grid.py", "tasks.py", "registry.py", "codec.py", "configured.py")
SPECIAL = re.compile(r"csiro|\bgdm|dry_\w+_g\b|clover|lb066|design source", re.IGNORECASE)


def test_general_parts_name_no_single_data_set() -> None:
    files = [
        path
        for path in FILES
        if name_of(path) in GENERAL_FILES or name_of(path).split("/")[0] in GENERAL
    ]
    assert len(files) > len(GENERAL) + len(GENERAL_FILES)
    assert not [name_of(path) for path in files if SPECIAL.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("package", lazy_packages())
def test_lazy_names_agree_with_what_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    written = Path(module.__file__ or "").with_suffix(".pyi")
    assert written.read_text() == stub(package), "write it again: python -m tests.house.test_house"
    submodules = {path.stem for path in Path(module.__file__ or "").parent.glob("*.py")}
    assert not submodules & set(module._HOMES), (
        "a name that a submodule has too would give the submodule"
    )
    for name in module._HOMES:
        assert getattr(getattr(module, name), "__name__", name) == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def stub(package: str) -> str:
    """What type checkers read of a package whose names are imported on first use."""
    module = importlib.import_module(package)
    homes = sorted((home, name) for name, home in module._HOMES.items())
    packages = [(package, name) for name in getattr(module, "_PACKAGES", ())]
    lines = [f"from {home} import {name} as {name}" for home, name in (*packages, *homes)]
    version = ["", "__version__: str"] if packages else []
    title = '"""Written by python -m tests.house.test_house from __init__.py."""'
    return "\n".join([title, "", *lines, *version, ""])


def test_subpackages_are_attributes_of_the_package() -> None:
    for name in dinoneck._PACKAGES:
        assert getattr(dinoneck, name).__name__ == f"dinoneck.{name}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import dinoneck.cli.main, dinoneck.registry", {"torch", "numpy", "timm"}),
        # a process that reads a store, or a head on transformers, needs neither: both take about as
        # long as torch
        ("from dinoneck import FeatureStore, Predictor", {"timm", "torchvision"}),
    ],
)
def test_imports_are_light(statement: str, heavy: set[str]) -> None:
    script = f"import sys; {statement}; print({heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def public_api() -> str:
    """Every public name with its signature, one per line."""
    lines = []
    for package, module in sorted(lazy_packages().items()):
        for name in sorted(module._HOMES):
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                lines.append(f"{package}.{name}: {type(thing).__name__}")
                continue
            lines.append(f"{package}.{name}{signature(thing)}")
            if inspect.isclass(thing):
                for own, value in sorted(vars(thing).items()):
                    if own.startswith("_"):
                        continue
                    function = getattr(value, "__func__", value)
                    kind = (
                        ""
                        if inspect.isfunction(function)
                        else ": property"
                        if isinstance(value, property)
                        else None
                    )
                    if kind is not None:
                        lines.append(f"{package}.{name}.{own}{kind or signature(function)}")
    return "\n".join(lines) + "\n"


def signature(thing: object) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"({', '.join(base.__name__ for base in thing.__bases__)})"
    if inspect.isclass(thing) and getattr(thing.__init__, "__module__", "").startswith("torch."):
        return ""  # torch's own, which changes with its version
    found = inspect.signature(thing)  # type: ignore[arg-type]
    plain = [x.replace(annotation=without_notes(x.annotation)) for x in found.parameters.values()]
    return re.sub(r"<factory>|0x[0-9a-f]+", "...", str(found.replace(parameters=plain)))


def without_notes(annotation: Any) -> Any:
    """The type of an ``Annotated`` one: notes for tyro print another text with every version."""
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def test_the_public_api_is_the_stored_one() -> None:
    """After a wanted change: python -m tests.house.test_house, and a line in the CHANGELOG."""
    stored = Path(__file__).with_name("public_api.txt").read_text()
    assert public_api() == stored


def test_every_registered_class_is_configured_and_has_no_hidden_buffers() -> None:
    for name in registry._HOMES:  # those of the package
        cls = registry.resolve(name)
        assert issubclass(cls, Configured)
        home = importlib.import_module(cls.__module__.rpartition(".")[0])
        if home.__name__ != "dinoneck.points":  # whose names stay in their package
            assert getattr(dinoneck, cls.__name__, None) is cls, (
                f"{name}: add {cls.__name__} to dinoneck/__init__.py"
            )
        assert getattr(home, cls.__name__, None) is cls, (
            f"{name}: add {cls.__name__} to {home.__name__}"
        )
        for parameter in fields_of(cls).values():
            assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), (
                name,
                parameter,
            )
            assert parameter.annotation is not parameter.empty, (name, parameter)


def test_texts_name_no_machine() -> None:
    """No registry host, no path of a machine, in anything that git tracks."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    wrong = re.compile(
        r"/(?:home|root|work|farm|mnt)/\w|pypi\.org|pythonhosted|index-url|/simple/|--[\w-]+[ =]/"
    )
    for name in tracked:
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".json", ".cff", ""}
            and path.name != "test_house.py"
        ):
            found = wrong.search(path.read_text(errors="ignore"))
            assert not found, f"{name}: {found}"


if __name__ == "__main__":
    Path(__file__).with_name("public_api.txt").write_text(public_api())
    for package, module in lazy_packages().items():
        Path(module.__file__).with_suffix(".pyi").write_text(stub(package))
