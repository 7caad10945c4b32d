"""Run the fault campaigns at full size, and write the report and ``docs/reliability.md``.

::

    python -m tests.faults                          # everything: about two hours on two cores
    python -m tests.faults --parts forge kill       # these parts; others keep their results
    python -m tests.faults --parts pairs --modes train   # this mode; others keep their results
    python -m tests.faults --share 0.01 --out x     # a glance; the page is left alone
    python -m tests.faults --parts                  # only the page
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
from tests.faults import known_open
from tests.faults.judge import OUTCOMES
from tests.faults.known_open import OPEN_CASES

from dinoneck.version import versions

PARTS = ("forge", "mutate", "kill", "store", "pairing", "pairs", "exchange", "changes")
HERE = Path(__file__).parent
REPORT, PAGE = HERE / "report.json", HERE.parents[1] / "docs" / "reliability.md"


def campaign(part: str, mode: str, share: str) -> tuple[dict[str, int], list[str]]:
    """The number of cases and of their outcomes, and every fault, which counts as silent."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(
            importlib.import_module(f"tests.faults.{part}").outcomes(
                mode, float(share), Path(folder)
            )
        )
    faults = [f"{mode}: {outcome}" for outcome in found if outcome not in OUTCOMES]
    return {
        "cases": len(found),
        **{kind: found.count(kind) for kind in OUTCOMES},
        "silent": len(faults),
    }, faults


ALONE = (
    "import json, sys; from tests.faults.report import campaign as c; "
    "print(json.dumps(c(*sys.argv[1:])))"
)


def run(part: str, share: float, modes: Sequence[str] = ()) -> dict[str, Any]:
    """Run modes of a part (none named: all), two at a time.

    Each runs in a process of its own: it may fork, and limit the size of files.
    """
    modes = list(modes) or list(importlib.import_module(f"tests.faults.{part}").MODES)

    def alone(mode: str) -> Any:
        words = [sys.executable, "-c", ALONE, part, mode, str(share)]
        return json.loads(
            subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[
                -1
            ]
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(alone, modes))
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    measured = f"{datetime.date.today().isoformat()}; {libraries}."
    counts, faults = zip(*found, strict=True)
    return {
        "measured": measured,
        "share": share,
        "modes": dict(zip(modes, counts, strict=True)),
        "faults": [line for own in faults for line in own],
    }


def merged(earlier: dict[str, Any], new: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Put the modes of a new run into the earlier results of their part; each keeps its share."""
    shares = {mode: share_of(earlier, mode) for mode in earlier["modes"]}
    shares |= dict.fromkeys(new["modes"], new["share"])
    modes = {**earlier["modes"], **new["modes"]}
    starts = tuple(f"{mode}: " for mode in new["modes"])
    kept_faults = [line for line in earlier["faults"] if not line.startswith(starts)]
    return {
        **new,
        "share": max(shares.values()),
        "shares": shares,
        "modes": {mode: modes[mode] for mode in order if mode in modes},
        "faults": [*kept_faults, *new["faults"]],
    }


def share_of(part: dict[str, Any], mode: str) -> float:
    """Return which share of its cases a stored mode has tried."""
    return float(part.get("shares", {}).get(mode, part["share"]))


def total(modes: dict[str, dict[str, int]]) -> Counter[str]:
    """The sums over all modes of a part."""
    return sum(map(Counter, modes.values()), Counter())


def page(report: dict[str, Any]) -> str:
    """``docs/reliability.md``, from the stored report alone."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    pages.filters |= {"total": total, "number": "{:,}".format, "share_of": share_of}
    lines = [line for part in report.values() for line in part["faults"]]
    open_cases = [(case.sentence, known_open.count(case, lines)) for case in OPEN_CASES]
    found = [(sentence, count) for sentence, count in open_cases if count]
    return pages.get_template("page.md.j2").render(report, parts=report, open_cases=found) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of all forgeries, mutations, kills and flipped bits",
    )
    parser.add_argument(
        "--modes", nargs="*", default=[], help="of one part; its others keep their results"
    )
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.modes and len(options.parts) != 1:
        parser.error("--modes are of one part: name it with --parts")
    for part in options.parts:
        result = run(part, options.share, options.modes)
        if options.modes and part in report:
            known = importlib.import_module(f"tests.faults.{part}").MODES
            result = merged(report[part], result, list(known))
        report[part] = result
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        counts = ", ".join(
            f"{count:,} {name}" for name, count in total(report[part]["modes"]).items()
        )
        print(f"{part}: {counts}", flush=True)
    if options.out == REPORT:
        PAGE.write_text(page(report))
    faults = [line for part in options.parts for line in report[part]["faults"]]
    if unknown := known_open.unknown(faults):
        sys.exit("\n".join(unknown[:50]))
