"""Rows of epochs and reports without what differs from run to run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinoneck.training.engine import MEMORY, TIMES


def without_times(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without seconds, images per second and memory."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def without_memory(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the peak memory."""
    return {name: value for name, value in report.items() if name != MEMORY}


def logged(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without times."""
    return without_times(map(json.loads, path.read_text().splitlines()))
