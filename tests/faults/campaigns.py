"""Run the fault campaigns of the feature store, ``fit`` and ``load_head``, and write their section of a page.

    python -m tests.faults.campaigns [PART ...]  # store, fit, load_head; the others keep their stored results

Each part is a module with ``campaign()``, which returns mode -> the number of cases, and of each outcome.
Results lie in ``benchmarks/results/campaigns.json``; ``docs/reliability.md`` shows them.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import sys

from benchmarks.reliability.campaigns_page import PARTS, RESULT
from benchmarks.reliability.page import PAGE, written
from benchmarks.reliability.page import RESULT as HEAD_FILES
from benchmarks.timing import machine


def main(parts: list[str]) -> None:
    """Run the parts named, or all that there are."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    silent = 0
    for part, (name, _) in PARTS.items():
        if (parts and part not in parts) or not importlib.util.find_spec(name):
            continue
        modes = importlib.import_module(name).campaign()
        stored[part] = modes
        stored.setdefault("measured", {})[part] = {**machine(), "date": datetime.date.today().isoformat()}
        silent += sum(mode["silent"] for mode in modes.values())
        RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.write_text(written(json.loads(HEAD_FILES.read_text())))
    if silent:
        sys.exit(f"{silent} cases are silent")


if __name__ == "__main__":
    main(sys.argv[1:])
