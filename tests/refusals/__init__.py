"""What every package refuses: one module per package with ROWS of (call, error class, what must be named).

A call that takes an argument gets an empty folder. What must be named is a text or several: values
and names, never a sentence. ``test_refusals.py`` runs all rows of all modules here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = tuple[Callable[..., Any], type[Exception], str | tuple[str, ...]]
