"""Tables of the speed results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = "| setting | step | variant | ms | × published | × layout fixed | saved or peak MiB | goal |"


def markdown(name: str, found: Mapping[str, Any]) -> str:
    """Return the table of one row; a goal that was missed is bold."""
    lines = [f"### {name}", "", COLUMNS, "|---|---|---|---|---|---|---|---|"]
    for title, steps in found["results"].items():
        dtype = title.rpartition(", ")[2]
        for step, variants in steps.items():
            for variant, row in variants.items():
                goal = found["goals"].get(f"{step} {dtype}") if row["form"] == "ours" else None
                missed = goal is not None and row["ratio"] < goal
                ratio = f"**{row['ratio']:.2f}**" if missed else f"{row['ratio']:.2f}"
                fixed = "–" if row["fixed_ratio"] is None else f"{row['fixed_ratio']:.2f}"
                memory = row.get("saved_mib", row.get("peak_mib"))
                shown = "–" if memory is None else f"{memory:.1f}"
                aim = "–" if goal is None else f"≥ {goal:g}"
                lines.append(
                    f"| {title} | {step} | {variant} | {row['ms']:.2f} | {ratio} | {fixed} | {shown} | {aim} |"
                )
    return "\n".join(lines) + "\n"
