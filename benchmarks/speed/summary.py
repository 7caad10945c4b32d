"""The page of a measurement: the goal table, the goals that were missed, and a table per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.speed.rows import STEPS
from benchmarks.speed.table import header, markdown, reached, repeated

UNKNOWN = "not measured"
MOST = 0.05  # of its backbone's time a neck may take on a GPU
SHORT = "| row | forward, float32 | forward, bfloat16 | forward + backward, float32 | forward, × layout fixed |"
COLUMNS = "| row | goal | fp32 forward | bf16 forward | fp32 forward + backward | vs layout-fixed | met? |"
WORDS = {"forward": "forward", "step": "forward + backward", "saved": "fewer bytes saved for backward",
         "copy": "of the copy bandwidth where memory binds"}  # fmt: skip
SHOWN = (("forward", "float32"), ("forward", "bfloat16"), ("step", "float32"))
KERNELS = (
    "Kernels of our own: none. One is kept only if it beats `torch.compile` by 1.2 times on a GPU; until such a result "
    "is stored here the decision is open."
)
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def document(report: Mapping[str, Any]) -> str:
    """Return the whole .md file."""
    tables = "\n".join(markdown(name, found) for name, found in report["rows"].items())
    notes = f"{repeated(report)}\n\n{KERNELS}\n\n**Missed goals**\n\n{reasons(report)}"
    return f"{header(report)} `python -m benchmarks.speed`.\n\n{summary(report)}\n{notes}\n\n{tables}"


def summary(report: Mapping[str, Any]) -> str:
    """Return one line per row: ranges over the settings, ours as it comes (not compiled) to the peer's as it comes.

    A goal is met if every setting reaches it, and if at no setting ours is slower than the layout-fixed peer, forward
    and in the steps that have a goal.
    """
    lines = [COLUMNS, "|" + "---|" * (COLUMNS.count(" | ") + 1)]
    for name, found in report["rows"].items():
        cells = [name, aims(found["goals"]), *_ratios(found), verdict(found)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def short(report: Mapping[str, Any]) -> str:
    """Return the same table without goals."""
    lines = [SHORT, "|" + "---|" * (SHORT.count(" | ") + 1)]
    lines += ["| " + " | ".join([name, *_ratios(found)]) + " |" for name, found in report["rows"].items()]
    return "\n".join(lines) + "\n"


def reasons(report: Mapping[str, Any]) -> str:
    """Return one line per row that misses a goal: which, and why."""
    lines = []
    for name, found in report["rows"].items():
        lacks = missed(found)
        if lacks:
            why = f"{found['why']} {ceiling_words(found)}".strip()
            lines.append(f"* **{name}**: {'; '.join(lacks)}. {why}")
    return "\n".join(lines) or "None."


def _ratios(found: Mapping[str, Any]) -> list[str]:
    """The ranges over the settings, against the published peer and against the layout-fixed one."""
    published = [_range(values(found, step, dtype, "ratio")) for step, dtype in SHOWN]
    return [*published, _range(values(found, "forward", None, "fixed_ratio"))]


def ceiling_words(found: Mapping[str, Any]) -> str:
    """Return what share of the measured ceiling ours reaches forward, in words; nothing where none was counted."""
    shares = []
    for title, floor in found["floors"].items():
        own = next(_ours({"results": {title: found["results"][title]}}, "forward", None), None)
        shares += [floor["ms"] / own["ms"]] if own is not None else []
    if not shares:
        return ""
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"Ours runs forward at {low if low == high else f'{low} … {high}'} % of the measured roofline."


def aims(goals: Mapping[str, float]) -> str:
    """Return the goals in words."""
    said = []
    for key, goal in goals.items():
        what, dtype = key.rsplit(" ", 1)
        said.append(f"≥ {goal:g} {WORDS.get(what, what)} {DTYPES[dtype]}")
    return ", ".join(said) or "–"


def verdict(found: Mapping[str, Any]) -> str:
    """Return ``yes``, or ``no`` and what was missed; ``open`` if it was not measured, ``–`` where nothing was asked."""
    lacks = missed(found)
    if lacks and all(lack.endswith(UNKNOWN) for lack in lacks):
        return f"open: {'; '.join(lacks)}"
    if lacks:
        return f"**no**: {'; '.join(lacks)}"
    part = shares(found)
    told = f", {100 * max(part.values()):.1f} % of its backbone's time" if part else ""
    return f"yes{told}" if found["goals"] or part else "–"


def missed(found: Mapping[str, Any]) -> list[str]:
    """Return what a row with goals misses, in words; nothing of what was not measured counts as met."""
    lacks = []
    for key, goal in found["goals"].items():
        what, dtype = key.rsplit(" ", 1)
        got = reached_values(found, what, dtype)
        if not got and what != "copy":
            lacks.append(f"{WORDS.get(what, what)} {DTYPES[dtype]} {UNKNOWN}")
        elif got and not reached(min(got), goal):
            lacks.append(f"{WORDS.get(what, what)} {DTYPES[dtype]} {min(got):.2f}")
    high = max(shares(found).values(), default=0.0)
    if high > MOST:
        lacks.append(f"{100 * high:.1f} % of its backbone's time, at most {100 * MOST:.0f} % is due")
    judged = {"forward", *(key.rsplit(" ", 1)[0] for key in found["goals"])} & set(STEPS) if found["goals"] else set()
    for step in sorted(judged):
        fixed = values(found, step, None, "fixed_ratio")
        if fixed and not reached(min(fixed), 1.0):
            lacks.append(
                f"{min(fixed):.2f} × the layout-fixed peer" + ("" if step == "forward" else f", {WORDS[step]}")
            )
    return lacks


def values(found: Mapping[str, Any], step: str, dtype: str | None, key: str) -> list[float]:
    """Return a number of ours, not compiled, at every setting of a dtype (None = all)."""
    return [row[key] for row in _ours(found, step, dtype) if row[key] is not None]


def reached_values(found: Mapping[str, Any], what: str, dtype: str) -> list[float]:
    """Return what a goal of this kind is held against, one number per setting."""
    if what == "saved":
        return saved_ratios(found, dtype)
    return copy_shares(found, dtype) if what == "copy" else values(found, what, dtype, "ratio")


def copy_shares(found: Mapping[str, Any], dtype: str) -> list[float]:
    """Return the share of the measured copy bandwidth that ours reaches where memory binds, forward."""
    shares = []
    for title, floor in found["floors"].items():
        if title.endswith(f", {dtype}") and floor["bound"] == "memory":
            one = {"results": {title: found["results"][title]}}
            shares += [floor["ms"] / ms for ms in values(one, "forward", None, "ms")]
    return shares


def saved_ratios(found: Mapping[str, Any], dtype: str) -> list[float]:
    """Return how many times fewer bytes are kept for the backward pass than by the peer as published."""
    ratios = []
    for title, steps in found["results"].items():
        if title.endswith(dtype) and "step" in steps:
            rows = steps["step"].values()
            peer = next(row["saved_mib"] for row in rows if row["form"] == "published")
            own = next(row["saved_mib"] for row in rows if row["form"] == "ours")
            ratios.append(peer / own if own else float("inf"))
    return ratios


def _ours(found: Mapping[str, Any], step: str, dtype: str | None) -> Iterator[dict[str, Any]]:
    for title, steps in found["results"].items():
        if dtype is None or title.endswith(f", {dtype}"):
            yield from (row for row in steps.get(step, {}).values() if row["form"] == "ours" and "graphs" not in row)


def _range(found: list[float]) -> str:
    """``1.30`` or ``1.30 … 1.47``."""
    if not found:
        return "–"
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return low if low == high else f"{low} … {high}"


def shares(found: Mapping[str, Any]) -> dict[str, float]:
    """Return setting -> time of ours, forward, over the backbone's, where that was measured."""
    result = {}
    for title, whole in found.get("backbones", {}).items():
        rows = found["results"][title].get("forward", {}).values()
        own = next((row["ms"] for row in rows if row["form"] == "ours" and "graphs" not in row), None)
        if own is not None and whole is not None:
            result[title] = own / whole
    return result
