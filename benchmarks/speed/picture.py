"""Bars of the ratios: ours and the layout-fixed peer beside the peer as published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"fixed": "#b8b8b8", "ours": "#1f6f8b"}
LABELS = {"fixed": "peer, layout fixed", "ours": "dinoneck"}
DTYPES = ("float32", "bfloat16")
STEPS = {"forward": "forward", "step": "forward + backward, frozen tokens"}
MOST = 4.0  # longer bars are cut and carry their number: most rows lie below


def bars(report: Mapping[str, Any], step: str, dtype: str) -> list[dict[str, Any]]:
    """Return per row and setting its name, the ratios of both forms, not compiled, and the goal."""
    found = []
    for name, row in report["rows"].items():
        titles = [title for title in row["results"] if title.endswith(f", {dtype}") and step in row["results"][title]]
        for title in titles:
            numbers = [x for x in row["results"][title][step].values() if "graphs" not in x]
            ratios = {form: next((x["ratio"] for x in numbers if x["form"] == form), None) for form in COLOURS}
            size = title.removesuffix(f", {dtype}")
            found.append({"name": f"{name}\n{size}", "goal": row["goals"].get(f"{step} {dtype}"), **ratios})
    return found


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write one picture: forward and step, float32 and bfloat16; bars longer than the axis carry their number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    count = max(len(bars(report, step, dtype)) for step in STEPS for dtype in DTYPES)
    figure, axes = pyplot.subplots(2, 2, figsize=(17, 2.5 + 1.1 * count), squeeze=False)
    for across, dtype in enumerate(DTYPES):
        for down, (step, words) in enumerate(STEPS.items()):
            _panel(axes[down][across], bars(report, step, dtype), f"{words}, {dtype}")
    machine = report["machine"]
    place = machine.get("gpu", machine["cpu"])
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    figure.suptitle(f"Times as fast as the peer as published ({place}, {threads})", fontsize=14)
    marks = [Patch(color=COLOURS[form], label=LABELS[form]) for form in COLOURS]
    figure.legend(handles=[*marks, Line2D([], [], color="black", linewidth=2, label="goal")], loc="upper right")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _panel(axis: Any, found: list[dict[str, Any]], title: str) -> None:
    high = max((min(bar[form] or 0, MOST) for bar in found for form in COLOURS), default=1.0)
    for place, bar in enumerate(found):
        goal = bar["goal"]
        for shift, form in ((-0.2, "fixed"), (0.2, "ours")):
            ratio = bar[form]
            if ratio is None:
                continue
            axis.barh(place + shift, min(ratio, MOST), 0.38, color=COLOURS[form])
            marked = goal if form == "ours" and goal is not None else 0.0
            words = f"{ratio:.2f}" + (f" (goal {goal:g})" if marked else "") + (" →" if ratio > MOST else "")
            axis.text(min(max(ratio, marked), MOST) + 0.015 * high, place + shift, words, va="center", fontsize=8)
            if 0 < marked <= MOST:
                axis.plot([marked] * 2, [place, place + 0.4], color="black", linewidth=2)
    axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(found)), [bar["name"] for bar in found], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * max(high, 1.5))
    axis.set_title(title, fontsize=11)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
