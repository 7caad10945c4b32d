"""Run the fault campaigns at full size, and write the report and ``docs/reliability.md``.

python -m tests.faults                          # everything: about an hour on two cores python -m
tests.faults --parts forge kill       # some parts; the others keep their stored results python -m
tests.faults --share 0.01 --out x     # a glance, written elsewhere; the page is left alone python
-m tests.faults --parts                  # only the page
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
from tests.faults.judge import OUTCOMES

from dinoneck.version import versions

PARTS = ("forge", "mutate", "kill", "store", "pairing")
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


def run(part: str, share: float) -> dict[str, Any]:
    """All modes of a part, two at a time, each in a process of its own: it may fork, and limit the size of files."""
    modes = list(importlib.import_module(f"tests.faults.{part}").MODES)

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
    modes = dict(zip(modes, counts, strict=True))
    return {
        "measured": measured,
        "share": share,
        "modes": modes,
        "faults": [line for own in faults for line in own],
    }


def total(modes: dict[str, dict[str, int]]) -> Counter[str]:
    """The sums over all modes of a part."""
    return sum(map(Counter, modes.values()), Counter())


def page(report: dict[str, Any]) -> str:
    """``docs/reliability.md``, from the stored report alone."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    pages.filters |= {"total": total, "number": "{:,}".format}
    return pages.get_template("page.md.j2").render(report, parts=report) + "\n"


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
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        report[part] = run(part, options.share)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        counts = ", ".join(
            f"{count:,} {name}" for name, count in total(report[part]["modes"]).items()
        )
        print(f"{part}: {counts}", flush=True)
    if options.out == REPORT:
        PAGE.write_text(page(report))
    if faults := [line for part in options.parts for line in report[part]["faults"]]:
        sys.exit("\n".join(faults[:50]))
