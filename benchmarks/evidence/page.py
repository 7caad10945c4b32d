"""The measured part of docs/explanation/results.md, between its two marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "results.md"
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def filled(page: str, report: Mapping[str, Any]) -> str:
    """Return the page with the tables of a report in place of what stands between the marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + tables(report) + END + rest.split(END)[1]


def tables(report: Mapping[str, Any]) -> str:
    """Return the tables of a whole run."""
    steps, machine = report["steps"], report["machine"]
    used = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"Measured with {used}, on {machine.get('gpu', machine['cpu'])} ({machine['cores']} threads)."]
    lines += ["", "| step | minutes | peak memory, GiB |", "|---|---|---|"]
    lines += [f"| `{name}` | {step['wall_minutes']:.0f} | {step['peak_GiB']:.1f} |" for name, step in steps.items()]
    lines += ["", "| parity | pair | difference / largest value |", "|---|---|---|"]
    lines += [f"| `{row['model']}` | {row['pair']} | {row['relative']:.1e} |" for row in steps["parity"]["rows"]]
    lines += [f"\nNot compared: {name} ({reason})." for name, reason in steps["parity"]["missing"].items()]
    cover, cells = steps["cover"]["r2"], steps["cells"]["r2"]
    names = ("soil", "crop", "weed")
    rows = {"PatchMeanHead": [cover[name]["head"] for name in names]}
    rows["FPNHead"] = [cells[name]["head"] for name in names]
    rows |= {method: [cover[name][method] for name in names] for method in cover["soil"] if method != "head"}
    rows["FPNHead, per patch"] = [cells[f"cells {name}"]["head"] for name in names]
    lines += ["", "| held-out R² | soil | crop | weed |", "|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |" for name, row in rows.items()]
    lines += ["", "| held-out boxes | AP | AP50 | AP75 |", "|---|---|---|---|"]
    for name, key in (("FCOS", "best"), ("before training", "untrained")):
        row = steps["detector"][key]
        lines.append(f"| {name} | {row['AP']:.2f} | {row['AP50']:.2f} | {row['AP75']:.2f} |")
    points = steps["points"]
    lines += ["", f"Points found in another view: {points['found']:.0%}; by chance {points['chance']:.0%}."]
    return "\n".join(lines) + "\n"
