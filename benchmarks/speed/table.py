"""Tables of the speed results, made of the stored JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.speed.results import versions_of

COLUMNS = (
    "| setting | step | variant | ms | images / s | × published | × layout fixed | × fastest peer | saved MiB "
    "| peak MiB | % of roofline | second run | goal |"
)
TOLERANCE = 0.1


def markdown(name: str, found: Mapping[str, Any]) -> str:
    """Return the table of one row; a goal that was missed is bold."""
    lines = [f"### {name}", "", COLUMNS, "|" + "---|" * (COLUMNS.count(" | ") + 1)]
    for title, steps in found["results"].items():
        dtype = title.rpartition(", ")[2]
        floor = found["floors"].get(title)
        for step, variants in steps.items():
            saved_by_peer = next(
                (row.get("saved_mib") for row in variants.values() if row["form"] == "published"), None
            )
            for variant, row in variants.items():
                ours = row["form"] == "ours" and "graphs" not in row
                goal = found["goals"].get(f"{step} {dtype}") if ours else None
                saved = found["goals"].get(f"saved {dtype}") if ours and step == "step" else None
                cells = [title, step, _named(variant, row), f"{row['ms']:.2f}", _rate(title, row["ms"])]
                cells += [_marked(row["ratio"], goal), _number(row["fixed_ratio"], 2), _number(row["best_ratio"], 2)]
                cells += [_saved(row, saved_by_peer, saved), _number(row.get("peak_mib"), 1)]
                cells += [_share(row, floor, step), _second(row), _aim(goal, saved)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _named(variant: str, row: Mapping[str, Any]) -> str:
    notes = [] if row["same"] else ["other function"]
    notes += ["launches replayed as a CUDA graph"] if "replayed" in row else []
    if "graphs" in row:
        graphs = "1 graph" if row["graphs"] == 1 else f"{row['graphs']} graphs"
        notes.append(f"{graphs}, {row['compile_s']:.0f} s to compile")
    return f"{variant} ({'; '.join(notes)})" if notes else variant


def _rate(title: str, ms: float) -> str:
    """Images per second of a setting, whose title begins with the batch."""
    rate = 1e3 * int(title[1:].split(" ", 1)[0]) / ms
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def reached(value: float, goal: float) -> bool:
    """Whether a ratio reaches a goal, to the two digits that are shown."""
    return round(value, 2) >= goal


def _marked(value: float, goal: float | None) -> str:
    return f"{value:.2f}" if goal is None or reached(value, goal) else f"**{value:.2f}**"


def _saved(row: Mapping[str, Any], by_peer: float | None, goal: float | None) -> str:
    own = row.get("saved_mib")
    if own is None or goal is None or by_peer is None:
        return _number(own, 1)
    times = by_peer / own if own else float("inf")
    return f"{own:.1f} ({_marked(times, goal)} × fewer)"


def _share(row: Mapping[str, Any], floor: Mapping[str, Any] | None, step: str) -> str:
    """The least time by the roofline as a share of the time taken, and what binds."""
    if floor is None or step != "forward":
        return "–"
    return f"{100 * floor['ms'] / row['ms']:.0f} % ({floor['bound']})"


def _second(row: Mapping[str, Any]) -> str:
    if "second" not in row:
        return "–"
    again = f"{row['second']['ratio']:.2f}"
    return again if reproduced(row) else f"**{again}**"


def _aim(goal: float | None, saved: float | None) -> str:
    aims = [f"≥ {goal:g}"] if goal is not None else []
    aims += [f"≥ {saved:g} × fewer saved"] if saved is not None else []
    return ", ".join(aims) or "–"


def reproduced(row: Mapping[str, Any]) -> bool:
    """Whether the second run's ratio lies within ± 10 % of the first's."""
    return bool(abs(row["second"]["ratio"] / row["ratio"] - 1) <= TOLERANCE)


def all_numbers(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Yield row, setting, step, variant and its numbers."""
    for name, found in report["rows"].items():
        for title, steps in found["results"].items():
            for step, variants in steps.items():
                for variant, row in variants.items():
                    yield name, title, step, variant, row


def repeated(report: Mapping[str, Any]) -> str:
    """Return how many ratios a second run reproduced, or that there was none."""
    rows = [row for *_, row in all_numbers(report) if "second" in row and row["ratio"] != 1.0]
    if not rows:
        return "No second run is stored."
    good = sum(reproduced(row) for row in rows)
    shown = "`benchmarks/results/speed.md` shows the others in bold"
    return f"A second run reproduced {good} of {len(rows)} ratios within ± 10 %; {shown}."


def header(report: Mapping[str, Any]) -> str:
    """Return what was measured on and how, one paragraph."""
    machine, limits = report["machine"], report["ceilings"]
    place = machine.get("gpu", machine["cpu"])
    products = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in limits.items() if name != "copy")
    rounds = sorted({row["rounds"] for *_, row in all_numbers(report)})
    clock = "CUDA events" if "gpu" in machine else "CPU time" if report["threads"] == 1 else "wall clock"
    return (
        f"Measured on {place}, {report['threads']} thread(s), {clock}, "
        f"{' or '.join(str(n) for n in rounds)} rounds; {versions_of(machine)}. Measured ceilings: copying "
        f"{limits['copy'] / 1e9:.1f} GB/s (read and written), products {products}."
    )
