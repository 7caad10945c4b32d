"""What protects users and the architecture.

Public names, light imports, no machine paths. That every public name has a docstring is ruff's rule
D, that the package neither asserts nor prints its rules S101 and T20 (``make lint``).
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dinoneck
from dinoneck import registry
from dinoneck.configured import Configured, fields_of
from tests.house import public_api
from tests.house.source import FILES, ROOT, lazy_packages, name_of

# names of single data sets, competitions and notebooks
DATA_SETS = re.compile(r"csiro|\bgdm|dry_\w+_g\b|clover|lb066|design source", re.IGNORECASE)
# the generated pasture, which demonstrations without a download use, has the columns of one table
PASTURE = {"demo/pasture.py", "evaluation/dispatch.py"}


def test_no_data_set_is_named_outside_the_generated_pasture() -> None:
    naming = {name_of(path) for path in FILES if DATA_SETS.search(path.read_text(encoding="utf-8"))}
    assert naming <= PASTURE


@pytest.mark.parametrize("package", lazy_packages())
def test_lazy_names_agree_with_what_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    written = Path(module.__file__ or "").with_suffix(".pyi")
    assert written.read_text() == stub(package), "write it again: python -m tests.house.test_house"
    submodules = {path.stem for path in Path(module.__file__ or "").parent.glob("*.py")}
    assert not submodules & set(module.HOMES), (
        "a name that a submodule has too would give the submodule"
    )
    for name in module.HOMES:
        assert getattr(getattr(module, name), "__name__", name) == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def stub(package: str) -> str:
    """What type checkers read of a package whose names are imported on first use."""
    module = importlib.import_module(package)
    homes = sorted((home, name) for name, home in module.HOMES.items())
    packages = [(package, name) for name in getattr(module, "PACKAGES", ())]
    lines = [f"from {home} import {name} as {name}" for home, name in (*packages, *homes)]
    version = ["", "__version__: str"] if packages else []
    title = '"""Written by python -m tests.house.test_house from __init__.py."""'
    return "\n".join([title, "", *lines, *version, ""])


def test_subpackages_are_attributes_of_the_package() -> None:
    for name in dinoneck.PACKAGES:
        assert getattr(dinoneck, name).__name__ == f"dinoneck.{name}"


@pytest.mark.slow
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


def test_the_public_api_is_the_stored_one() -> None:
    """After a wanted change: python -m tests.house.test_house, and a line in the CHANGELOG."""
    assert public_api.public_api() == public_api.FILE.read_text()


class Container:
    """A class with a method, a special method and a part that is private."""

    def __contains__(self, name: str) -> bool:
        return name in self._names()

    def _names(self) -> list[str]:
        return ["a"]

    def names(self) -> list[str]:
        return self._names()


def test_a_special_method_is_public_and_a_private_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Container, "__module__", "dinoneck.store")
    lines = public_api.class_lines("Container", Container, {Container})
    assert lines == [
        "Container()",
        "Container.__contains__(self, name: 'str') -> 'bool'",
        "Container.names(self) -> 'list[str]'",
    ]


def test_what_a_class_inherits_from_a_class_that_is_not_public_is_listed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Store(Container):
        """Inherits all its methods."""

    monkeypatch.setattr(Container, "__module__", "dinoneck.store")
    monkeypatch.setattr(Store, "__module__", "dinoneck.store")
    alone = public_api.class_lines("Store", Store, {Store})
    next_to_its_base = public_api.class_lines("Store", Store, {Store, Container})
    assert [line.partition("(")[0] for line in alone] == [
        "Store",
        "Store.__contains__",
        "Store.names",
    ]
    assert next_to_its_base == ["Store() of Container"]


def test_every_registered_class_is_configured_and_has_no_hidden_buffers() -> None:
    for name in registry.HOMES:  # those of the package
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
    public_api.FILE.write_text(public_api.public_api())
    for package, module in lazy_packages().items():
        Path(module.__file__).with_suffix(".pyi").write_text(stub(package))
