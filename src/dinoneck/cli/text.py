"""Plain text for the terminal: tables, and lines that quote files of strangers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from dinoneck.errors import printable


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line that a file cannot end, colour or wipe away: signs that steer a terminal are spelled out."""
    print(printable(text), file=stream)


def told_bytes(size: int) -> str:
    """Return the size of a file in the unit that shows it: 27 kB, 1.4 MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, the first column to the left."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def scores(
    by_method: Mapping[str, Mapping[str, float | None]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    spread: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the R² of several methods as a table, one row per method.

    With ``errors`` (method -> target -> MAE) each R² is followed by the MAE, and with ``spread`` (target -> standard
    deviation over ``all`` rows and in the ``folds``) a last row shows what the MAE compares with.
    """
    columns = list(next(iter(by_method.values())))
    rows = []
    for method, row in by_method.items():
        mae = (errors or {}).get(method, {})
        rows.append([method, *(_number(row[c]) + (f" ({mae[c]:.3g})" if c in mae else "") for c in columns)])
    if spread:
        ranges = {c: f"{min(own['folds']):.3g} ... {max(own['folds']):.3g}" for c, own in spread.items()}
        rows.append(["target sd", *(f"{spread[c]['all']:.3g}" if c in spread else "" for c in columns)])
        rows.append(["  in the folds", *(ranges.get(c, "") for c in columns)])
    return table(["held-out R² (MAE)" if errors else "held-out R²", *columns], rows)


def differences(by_baseline: Mapping[str, Mapping[str, Sequence[float] | None]]) -> str:
    """Return the 95 % intervals of the head's R² minus that of each baseline as a table."""
    columns = list(next(iter(by_baseline.values())))
    rows = [[f"head - {name}", *(_interval(row[c]) for c in columns)] for name, row in by_baseline.items()]
    return table(["R², 95 % interval", *columns], rows)


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:+.2f} ... {ends[1]:+.2f}"


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def tell_pooled(heads: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Print which numbers are not the means of their cells, as in most heads written by version 0.1."""
    found = {}
    for tasks in heads:
        labels = {label: own["name"] for own in tasks if own["kind"] == "dense" for label in own.get("labels") or ()}
        for task in tasks:
            pooled = task["kind"] in ("regression", "density") and task.get("from_cells") is None
            if pooled and task["name"] in labels and not task.get("unit"):
                found[task["name"]] = labels[task["name"]]
    if found:
        say(
            f"{', '.join(found)}: the heads predict these numbers by a pooled readout, not as the mean over the cells "
            f"of {', '.join(sorted(set(found.values())))}, so the two may differ; for the mean take that of the maps "
            "(--maps), or train heads whose tasks have from_cells"
        )
