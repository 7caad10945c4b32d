"""Compare what two versions read of 300 right data sets that are drawn from seeds.

``python -m tests.net.differential OTHER_SRC`` reads them with the ``src`` folder of another version,
in a process of its own, and with this one, and prints the differences. Each must be one of
:data:`DIFFERENCES`; else the command ends with 1. ``--store`` writes the readings of the other version
to ``readings_0_4.json``, which ``test_readings.py`` compares with this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READINGS = Path(__file__).with_name("readings_0_4.json")
SETS = 300
STORED = 60
DIFFERENCES = {
    "codes": "digits alone of which a cell begins with 0 are classes (0.4: numbers)",
    "void": "255 in masks of other classes is unlabelled (0.4: refused)",
}
"""What may differ from 0.4, and the rule that says so."""


def readings_of(source: Path, sets: int) -> dict[str, Any]:
    """Return what the version in a folder ``src`` reads of the first sets.

    Raises:
        subprocess.CalledProcessError: if it fails otherwise than by a refusal.
    """
    paths = os.pathsep.join([str(source), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-m", "tests.net.generated", "0", str(sets)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    readings: dict[str, Any] = json.loads(ran.stdout)
    return readings


def difference(before: Any, now: Any) -> str:
    """Return how two readings of one set differ where they may not, in words; empty if they do not."""
    if before["reading"] == now["reading"] or before["feature"] in DIFFERENCES:
        return ""
    parts = []
    for key in before["reading"].keys() | now["reading"].keys():
        old = before["reading"].get(key)
        new = now["reading"].get(key)
        if old != new:
            parts.append(f"{key}: {old!s:.200} -> {new!s:.200}")
    return "; ".join(sorted(parts))


def main(source: Path, *, store: bool) -> int:
    """Compare, print, and return the exit code."""
    before = readings_of(source, SETS)
    if store:
        first = {seed: before[seed] for seed in list(before)[:STORED]}
        text = json.dumps(first, separators=(",", ":"), ensure_ascii=False)
        READINGS.write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")
    now = readings_of(ROOT / "src", SETS)
    wrong = 0
    for seed, reading in before.items():
        text = difference(reading, now[seed])
        if text:
            wrong += 1
            print(f"seed {seed}, {reading['kind']}: {text}")
    for feature, rule in DIFFERENCES.items():
        sets = [seed for seed, reading in before.items() if reading["feature"] == feature]
        changed = sum(before[seed]["reading"] != now[seed]["reading"] for seed in sets)
        print(f"{feature}: {changed} of {len(sets)} sets differ: {rule}")
    print(f"{len(before)} sets, {wrong} differ otherwise")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), store="--store" in sys.argv))
