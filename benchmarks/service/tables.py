"""The stored measurement as tables of the page on serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "results" / "service.json"


def mixed_table(stored: Mapping[str, Any]) -> str:
    """Return the table of the mixed runs."""
    lines = [
        "| model | requests | answered | refused | wrong | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in stored["mixed"]["rows"]:
        counts = (row["requests"], row["answered"], row["refused"], len(row["wrong"]))
        lines.append(f"| {_named(row)} | {' | '.join(map(str, counts))} | {row['resident_peak_mb']:.0f} MB |")
    return "\n".join(lines)


def paced_table(stored: Mapping[str, Any]) -> str:
    """Return the table of latency and throughput, of the fewest and the most clients."""
    lines = [
        "| model | images in a pass | clients | p50 | requests/s |",
        "|---|---|---|---|---|",
    ]
    for row in stored["paced"]["rows"]:
        batch = "1" if row["batch"] == 1 else f"up to {row['batch']}"
        lines += [
            f"| {_named(row)} | {batch} | {run['clients']} | {run['p50_ms']:.0f} ms | {run['per_s']:.1f} |"
            for run in (row["paced"][0], row["paced"][-1])
        ]
    return "\n".join(lines)


def slow_sentence(stored: Mapping[str, Any]) -> str:
    """Return the sentence on slow clients."""
    [slow] = stored["slow"]["rows"]
    return (
        f"`/health` was requested {slow['asked']} times and failed {slow['failed']} times; "
        f"p50 {slow['p50_ms']:.0f} ms, the longest {slow['max_ms']:.0f} ms."
    )


def _named(row: Mapping[str, Any]) -> str:
    height, width = row["size"]
    return f"`{row['model'].split('.')[0]}`, {height} × {width} px"
