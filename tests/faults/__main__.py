"""Run the fault campaigns at full size, and write the report and ``docs/reliability.md``.

python -m tests.faults                          # everything: about an hour on two cores
python -m tests.faults --parts forge kill       # some parts; the others keep their stored results
python -m tests.faults --share 0.01 --out x     # a glance, written elsewhere; the page is left alone
python -m tests.faults --parts                  # only the page
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from tests.faults import forge, kill, mutate
from tests.faults.page import PAGE, REPORT, written

MUTATIONS, KILLS, LIMITS, SAVES = 1_000_000, 100, 200, 50
CASES = {"store": "test_store_campaign", "fit": "test_fit_faults", "load_head": "test_load_head_faults"}
CONTEXT = multiprocessing.get_context("spawn")


def forged(share: float, workers: int) -> dict[str, Any]:
    """All forgeries, or a random share of them."""
    total = forge.Report()
    with ProcessPoolExecutor(workers, CONTEXT) as pool:
        for report in pool.map(forge.part, [share] * workers, range(workers), [workers] * workers):
            total += report
    return total.as_json()


def mutated(share: float, workers: int) -> dict[str, Any]:
    """A million mutations, and every bit and length of the smallest file."""
    total = {kind: forge.Report() for kind in mutate.KINDS}
    with ProcessPoolExecutor(workers, CONTEXT) as pool, tempfile.TemporaryDirectory() as folder:
        for reports in pool.map(mutate.part, [-(-round(share * MUTATIONS) // workers)] * workers, range(workers)):
            for name, report in reports.items():
                total[name] += report
        bits = mutate.every_bit(Path(folder), max(1, round(1 / share)))
    kinds = {name: report.as_json() for name, report in total.items()}
    every = bits.as_json()
    bad = [line for each in (*kinds.values(), every) for line in each["bad"]]
    return {"tried": sum(each["tried"] for each in kinds.values()), "kinds": kinds, "every_bit": every, "bad": bad}


def alone(module: str, *arguments: object) -> Any:
    """What a module prints as its last line, in a process of its own: it forks."""
    command = [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def killed(share: float, workers: int) -> dict[str, Any]:
    """Kills of every job."""
    jobs = {job: alone("kill", job, max(4, round(share * KILLS))) for job in kill.JOBS}
    return {"jobs": jobs, "bad": [f"{job}: {line}" for job, row in jobs.items() for line in row["bad"]]}


def disk(share: float, workers: int) -> dict[str, Any]:
    """A full disk and many writers."""
    result = alone("disk", max(4, round(share * LIMITS)), max(4, round(share * SAVES)))
    return {**result, "bad": result["full_disk"]["bad"] + result["writers"]["bad"]}


def cases(name: str) -> Callable[[float, int], dict[str, Any]]:
    """The modes of a test module: ``campaign()`` counts cases and outcomes of each."""

    def run(share: float, workers: int) -> dict[str, Any]:
        modes = importlib.import_module(f"tests.faults.{CASES[name]}").campaign()
        return {"modes": modes, "bad": [mode for mode, counts in modes.items() if counts["silent"]]}

    return run


PARTS: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "forge": forged, "mutate": mutated, "kill": killed, "disk": disk, **{name: cases(name) for name in CASES},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of all forgeries, mutations and kills")
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.parts:
        result = PARTS[name](options.share, options.workers)
        measured = {
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "share": 1.0 if name in CASES else options.share,
            "seed": 0,
        }
        report[name] = {**measured, "result": result}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {len(result['bad'])} faults", flush=True)
    if options.out == REPORT:
        PAGE.write_text(written(report))
    if bad := [line for name in options.parts for line in report[name]["result"]["bad"]]:
        sys.exit("\n".join(bad[:50]))


if __name__ == "__main__":
    main()
