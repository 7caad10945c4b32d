"""Every row of every table: the call raises the error class, and the message names the value."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from tests import refusals
from tests.refusals import Row


def rows() -> list[object]:
    found = []
    for module in pkgutil.iter_modules(refusals.__path__):
        if not module.name.startswith("test_"):
            table: list[Row] = importlib.import_module(f"tests.refusals.{module.name}").ROWS
            found += [
                pytest.param(row, id=f"{module.name}{i}-{row[2]}"[:60])
                for i, row in enumerate(table)
            ]
    return found


@pytest.mark.parametrize("row", rows())
def test_the_call_is_refused_and_the_value_is_named(row: Row, tmp_path: Path) -> None:
    call, error, named = row
    with pytest.raises(error) as refused:
        call(
            *[tmp_path for x in inspect.signature(call).parameters.values() if x.default is x.empty]
        )
    for word in (named,) if isinstance(named, str) else named:
        assert word in str(refused.value)
