"""Goals that other scripts measure: points and the feature store, read from their stored results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

POINT_GOALS = {"lift": ("lift", 10.0), "keys": ("distinct keys", 20.0)}


def lines(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """Return (row, goal, measured, verdict, where from) of what lies in a folder; nothing for what does not."""
    return [*_points(folder), *_store(folder)]


def markdown(folder: Path) -> str:
    """Return one table."""
    rows = ["| row | goal | measured | met? | measured by |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *("| " + " | ".join(line) + " |" for line in lines(folder))]) + "\n"


def _points(folder: Path) -> list[tuple[str, str, str, str, str]]:
    found = _read(folder / "points.json")
    said = []
    for case, (variant, goal) in POINT_GOALS.items():
        if case in found.get("points", {}):
            ratio = found["points"][case][variant]["ratio"]
            said.append((f"points, {case}", f"≥ {goal:g}", f"{ratio:.1f}", _verdict(ratio >= goal),
                         f"`python -m benchmarks.points`, {found['machine']['cpu']}"))  # fmt: skip
    return said


def _store(folder: Path) -> list[tuple[str, str, str, str, str]]:
    found = _read(folder / "feature_store.json")
    said = []
    for goal in found.get("goals", []):
        sign, digits = ("≤", ".1e") if goal["most"] else ("≥", ".1f")
        numbers = f"{sign} {goal['goal']:g}", f"{goal['value']:{digits}}", _verdict(goal["met"])
        source = f"`python -m benchmarks.feature_store`, {found['machine']['cpu']}"
        said.append((f"feature store, {goal['what']}", *numbers, source))
    return said


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
