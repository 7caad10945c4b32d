"""What every package refuses: modules with ROWS of (call, error class, what must be named).

A module has the rows of one package, or of one part of it. A call that takes an argument gets an
empty folder. What must be named is a text or several: values and names, never a sentence.
``test_refusals.py`` runs all rows of all modules here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the call, the class of its error, and what the message must name
Row = tuple[Callable[..., Any], type[Exception], str | tuple[str, ...]]

LONGEST_ID = 60  # characters: pytest then prints the id and the error of a failure on one line


def rows_by_id() -> dict[str, Row]:
    """Every row of every module, by its module and what it must name: ``"data: crop"``.

    Where several rows of a module name the same, the second is ``"data: crop (2)"``, and so on. An
    id changes only when another row that names the same is put before it or removed there.
    """
    rows = {}
    counts: Counter[str] = Counter()
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("test_"):
            continue
        table: list[Row] = importlib.import_module(f"{__name__}.{module.name}").ROWS
        for row in table:
            _call, _error, named = row
            words = named if isinstance(named, str) else ", ".join(named)
            row_id = f"{module.name}: {words}"[:LONGEST_ID]
            counts[row_id] += 1
            if counts[row_id] > 1:
                row_id += f" ({counts[row_id]})"
            rows[row_id] = row
    return rows


def run(call: Callable[..., Any], folder: Path) -> Any:
    """Call a row's function, with the folder if it takes one."""
    parameters = inspect.signature(call).parameters.values()
    if any(parameter.default is parameter.empty for parameter in parameters):
        return call(folder)
    return call()
