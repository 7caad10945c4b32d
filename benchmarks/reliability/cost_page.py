"""The section of the page that :mod:`benchmarks.reliability.cost` fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PEERS = ("safetensors", "safetensors, mapped", "safetensors, in memory")


def page(result: Mapping[str, Any]) -> str:
    """Return the section's Markdown."""
    missed = [row for row in result["goals"] if not row["met"]]
    return "\n\n".join(
        [
            _goals(result["goals"]),
            "Every goal in the table is met."
            if not missed
            else f"**Missed: {'; '.join(row['what'] for row in missed)}.**",
            "### Loading",
            _load_words(),
            _load(result["load"]),
            _ratios(result["load"]),
            "### The header alone",
            _inspect(result["inspect"]),
            "### Saving and verifying",
            _save_words(),
            _save(result["save"]),
        ]
    )


def _load_words() -> str:
    return (
        "`safetensors` is what its documentation shows: build the module, `load_file`, `load_state_dict(strict=True)`, "
        "`eval()`; building draws random weights that are then overwritten. `mapped` is its quickest form: the module "
        "on the meta device, tensors assigned. It maps the file and reads no byte of it: the pages come when the "
        "weights are first used, and change if the file does. `in memory` is the same from bytes that were read, as "
        "dinoneck reads them. `dinoneck` is `load_head(path)`, `checkpoint kept` is `HeadCheckpoint.load(path)` and "
        "`.build()`, whose module has its own copy of the weights. Milliseconds by the process's own clock, "
        "medians of rounds in turn, the file in the page cache."
    )


def _load(rows: Mapping[str, Any]) -> str:
    columns = list(dict.fromkeys(way for row in rows.values() for way in row["ms"]))
    lines = [f"| head | bytes | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = [f"{row['ms'][way]:.2f}" if way in row["ms"] else "" for way in columns]
        lines.append(f"| {name} | {row['bytes']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(rows: Mapping[str, Any]) -> str:
    lines = [
        "What `load_head` takes, as a multiple of each (quartiles), and in brackets with the time of SHA-256 over the "
        "same bytes taken off:",
        "",
        "| head | " + " | ".join(f"x {peer}" for peer in _PEERS) + " |",
        "|---|" + "---|" * len(_PEERS),
    ]
    for name, row in rows.items():
        cells = []
        for peer in _PEERS:
            if peer not in row["ratio"]:
                cells.append("")
                continue
            low, middle, high = row["ratio"][peer]
            aside = row["ratio, hash aside"][peer][1]
            cells.append(f"{middle:.2f} ({low:.2f} … {high:.2f}) [{aside:.2f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _goals(goals: list[Mapping[str, Any]]) -> str:
    lines = ["| | goal | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {row['what']} | {row['goal']} | {row['measured']} | {'met' if row['met'] else '**missed**'} |"
        for row in goals
    ]
    return "\n".join(lines)


def _inspect(look: Mapping[str, Any]) -> str:
    header = look["header ms"]
    lines = ["| whole process | least s | median s |", "|---|---|---|"]
    lines += [f"| `{name}` | {value:.3f} | {look['median s'][name]:.3f} |" for name, value in look["least s"].items()]
    return (
        "\n".join(lines)
        + f"\n\nIn a process that runs, `read_header` takes {header['read_header']:.2f} ms with all its "
        f"checks; safetensors' `safe_open` {header['safe_open']:.2f} ms."
    )


def _save_words() -> str:
    return (
        "`save_file` writes beside the target and renames, without flushing to disk: after a power cut the new name "
        "may hold nothing. dinoneck copies the weights, computes the digest, writes, flushes, reads the file back "
        "through every check of a load, renames and flushes the folder. Milliseconds by the wall, medians of rounds in "
        "turn."
    )


def _save(rows: Mapping[str, Any]) -> str:
    names = list(rows)
    ways = list(next(iter(rows.values()))["ms"])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [f"| {way} | " + " | ".join(f"{rows[name]['ms'][way]:.1f}" for name in names) + " |" for way in ways]
    return "\n".join(lines)
