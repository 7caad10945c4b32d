"""The stored measurement as tables of the page on serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "results" / "service.json"


def mixed_table(stored: Mapping[str, Any]) -> str:
    """Return the table of the mixed runs."""
    lines = [
        "| model | requests | answered | refused | wrong | peak memory | first half | second half |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        told = row.get("mixed")
        if told:
            counts = (told["requests"], told["answered"], told["refused"], len(told["wrong"]))
            lines.append(
                f"| {_named(row)} | {' | '.join(map(str, counts))} | "
                f"{told['resident_peak_mb']:.0f} MB | {told['resident_first_half_mb']:.0f} MB | "
                f"{told['resident_second_half_mb']:.0f} MB |"
            )
    return "\n".join(lines)


def paced_table(stored: Mapping[str, Any]) -> str:
    """Return the table of latency and throughput."""
    lines = [
        "| model | images in a pass | clients | p50 | p95 | requests/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        for told in row["paced"]:
            lines.append(
                f"| {_named(row)} | {'1' if row['batch'] == 1 else 'up to ' + str(row['batch'])} | {told['clients']} | "
                f"{told['p50_ms']:.0f} ms | {told['p95_ms']:.0f} ms | {told['per_s']:.1f} | "
                f"{row['peak_mb']:.0f} MB |"
            )
    return "\n".join(lines)


def slow_sentence(stored: Mapping[str, Any]) -> str:
    """Return the sentence on slow clients."""
    slow = stored["slow"]
    return (
        f"`/health` was asked {slow['asked']} times and failed {slow['failed']} times, p50 {slow['p50_ms']:.0f} ms, "
        f"longest {slow['max_ms']:.0f} ms"
    )


def _named(row: Mapping[str, Any]) -> str:
    height, width = row["size"]
    return f"`{row['model'].split('.')[0]}`, {height} × {width} px"
