"""Results as files: measured rows are merged into what the same machine measured before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import devices
from benchmarks.sources import store

RESULTS = Path(__file__).parents[1] / "results"
Report = dict[str, Any]


def stem_of(device: str, threads: int, graphs: bool = False) -> str:
    """The name of the result files."""
    if devices.is_gpu(device):
        return devices.stem("speed", device) + ("_graphs" if graphs else "")
    if threads == 1:
        return "speed"
    return f"speed_{threads}_threads"


def stored(folder: Path, stem: str) -> Report | None:
    """Return what lies there, if anything does."""
    path = folder / f"{stem}.json"
    return json.loads(path.read_text()) if path.exists() else None


def merged(old: Report | None, new: Report, *, second: bool = False) -> Report:
    """Return the old report with the new results in place of the old ones, setting by setting.

    Args:
        old: stored; None = there is none.
        new: of this run; a step that it did not measure stays.
        second: keep the old medians and write the new ones next to them, as the second run's.

    Raises:
        SystemExit: if they are of different machines, versions or source files, which one table must not mix.
    """
    if old is None:
        if second:
            raise SystemExit("nothing is stored that this run could repeat: run without --repeat first")
        return new
    if old.get("sources") != new.get("sources"):
        raise SystemExit("stored results measured other source files: choose another --out, or remove them")
    machine = _same(old["machine"], new["machine"])
    rows = dict(old["rows"])
    for name, found in new["rows"].items():
        before = rows.get(name, {"results": {}, "floors": {}})
        results = dict(before["results"])
        for title, steps in found["results"].items():
            known = results.get(title, {})
            results[title] = _beside(known, steps) if second else {**known, **steps}
        floors = {**found["floors"], **before["floors"]} if second else {**before["floors"], **found["floors"]}
        rows[name] = {**found, "results": results, "floors": floors}
        if "backbones" in found:
            rows[name]["backbones"] = {**before.get("backbones", {}), **found["backbones"]}
    limits = {**new["ceilings"], **old["ceilings"]} if second else {**old["ceilings"], **new["ceilings"]}
    return {**new, "machine": machine, "ceilings": limits, "rows": rows}


def _same(old: Report, new: Report) -> Report:
    """The machine with all versions known of, if both are one; a peer may be installed for one run only."""
    known, here = dict(old["versions"]), dict(new["versions"])
    differ = [name for name in known.keys() & here.keys() if known[name] != here[name]]
    if differ or {**old, "versions": None} != {**new, "versions": None}:
        raise SystemExit(f"stored results are of {old}, these of {new}: choose another --out, or remove them")
    return {**new, "versions": {**known, **here}}


def _beside(first: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """The first run's numbers, with the second's medians next to those that both have."""
    for step, variants in again.items():
        for name, numbers in variants.items():
            if name in first.get(step, {}):
                first[step][name]["second"] = {"ms": numbers["ms"], "ratio": numbers["ratio"]}
    return first


def versions_of(machine: Report) -> str:
    """Return name and number of all libraries."""
    return ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def save(report: Report, folder: Path, stem: str, text: str) -> None:
    """Write the .json and the .md file."""
    folder.mkdir(parents=True, exist_ok=True)
    store(folder / f"{stem}.json", report)
    (folder / f"{stem}.md").write_text(text)
