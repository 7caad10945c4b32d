"""Measure the rows of the speed table.

    OMP_NUM_THREADS=1 python -m benchmarks.speed [--rows NAME ...] [--dtypes float32 bfloat16] [--threads 1]
                                                 [--device cpu] [--rounds 15] [--short] [--no-compile]

Variants of a row share weights and tokens, are first checked equal in float64 (1e-9) and in the dtype measured, and
take turns. Quoted are medians of the rounds' ratios. Writes benchmarks/results/speed.json (speed_2_threads.json,
speed_cuda.json) and the table beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import rows_heads, rows_pyramids, rows_tokens
from benchmarks.speed.measure import measured
from benchmarks.speed.table import markdown
from benchmarks.timing import machine

RESULTS = Path(__file__).parents[1] / "results"
ROWS = [*rows_tokens.ROWS, *rows_pyramids.ROWS, *rows_heads.ROWS]


def stem_of(device: str, threads: int) -> str:
    """The name of the result files."""
    if device.startswith("cuda"):
        return "speed_cuda"
    return "speed" if threads == 1 else f"speed_{threads}_threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="names, or parts of them; default: all")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--short", action="store_true", help="the first setting of every row only")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False
    rows = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "rows": {}}
    if options.device.startswith("cuda"):
        report["machine"]["gpu"] = torch.cuda.get_device_name()
    for row in rows:
        found = report["rows"][row.name] = {"goals": dict(row.goals), "results": {}}
        for setting in row.settings[: 1 if options.short else None]:
            for dtype in options.dtypes:
                here = setting.of(dtype=getattr(torch, dtype), device=options.device)
                numbers = measured(row, here, rounds=options.rounds, compiled=not options.no_compile)
                found["results"][f"{setting.title}, {dtype}"] = numbers
        print(markdown(row.name, found), flush=True)
    options.out.mkdir(exist_ok=True)
    stem = stem_of(options.device, options.threads)
    (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text("\n".join(markdown(name, found) for name, found in report["rows"].items()))


if __name__ == "__main__":
    main()
