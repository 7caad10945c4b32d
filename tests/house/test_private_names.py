"""Tests, benchmarks, examples and the site use no private name of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house.private_names import definitions, uses
from tests.house.source import FILES, ROOT, tree_of

FOLDERS = ("tests", "benchmarks", "examples", "docs")
PRIVATE = definitions(tree_of(path) for path in FILES)


def users() -> list[Path]:
    """Every Python file of the repository that is not the package's."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.slow
def test_no_file_outside_the_package_uses_a_private_name_of_it() -> None:
    """Test what a user sees, or drop the underscore: the name is then public within its module."""
    found = []
    for path in users():
        for use in uses(tree_of(path), PRIVATE):
            found.append(f"{path.relative_to(ROOT)}:{use}")
    assert found == []


SOURCE = """
_LIMIT = 3

def _read(): ...

class Store:
    def __init__(self):
        self._files = []
"""


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("import dinoneck._core", id="import of a module"),
        pytest.param("from dinoneck.data import _read", id="import of a name"),
        pytest.param("from dinoneck import _core", id="import of a module from the package"),
        pytest.param("from dinoneck._core import read", id="import from a module"),
        pytest.param("data._read()", id="function of a module"),
        pytest.param("data._LIMIT = 1", id="constant of a module"),
        pytest.param("open_store()._files", id="attribute of an object"),
        pytest.param("self._files", id="attribute that a subclass inherits"),
        pytest.param("monkeypatch.setattr('dinoneck.data._read', None)", id="patch by address"),
        pytest.param("monkeypatch.setattr(data, '_read', None)", id="patch by name"),
        pytest.param("mock.patch.object(data, '_read')", id="patch of an object"),
        pytest.param("mock.patch.multiple(data, _read=None)", id="patch by keyword"),
        pytest.param("getattr(data, '_LIMIT')", id="getattr"),
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    private = definitions([ast.parse(SOURCE)])
    assert len(uses(ast.parse(line), private)) == 1


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("from dinoneck.data import read_table", id="public name"),
        pytest.param("len(store), store.__len__()", id="special method"),
        pytest.param("size._replace(rows=1)", id="name of Python's"),
        pytest.param("torch._dynamo.reset()", id="private name of another package"),
        pytest.param("from huggingface_hub.utils import _http", id="import from another package"),
        pytest.param("class A:\n  def f(self):\n    self._files = []", id="attribute of the file"),
        pytest.param("def _read(): ...\n_read()", id="function of the file"),
        pytest.param("replace('_read(_x)', by='_x')", id="pattern of a mutant"),
    ],
)
def test_other_names_may_be_used(code: str) -> None:
    private = definitions([ast.parse(SOURCE)])
    assert uses(ast.parse(code), private) == []
