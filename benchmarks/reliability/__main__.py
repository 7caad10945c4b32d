"""Measure what head files withstand, and write ``docs/reliability.md``.

    python -m benchmarks.reliability                       # everything: about half an hour on two cores
    python -m benchmarks.reliability --parts faults peers  # some parts; the others keep their stored results
    python -m benchmarks.reliability --parts               # only write the page anew

Results with machine, versions and date lie in ``benchmarks/results/reliability.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.reliability.page import PAGE, PARTS, RESULT, part_of, written
from benchmarks.timing import machine


def measured(name: str, work: Path, share: float) -> dict[str, Any]:
    """Measure one part in a folder of its own."""
    folder = work / name
    folder.mkdir()
    result = part_of(name).measure(folder, share)
    return {"machine": machine(), "date": datetime.date.today().isoformat(), "share": share, "result": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of all mutations, kills and saves; 1 = as published")
    parser.add_argument("--out", type=Path, default=RESULT, help="the results; another file leaves the page alone")
    parser.add_argument("--work", type=Path, help="where files are made and removed; default: the temporary folder")
    options = parser.parse_args()
    stored = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.parts:
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            stored[name] = measured(name, Path(work), options.share)
        options.out.write_text(json.dumps(stored, indent=1) + "\n")
        print(part_of(name).page(stored[name]["result"]), flush=True)
    if options.out == RESULT:
        PAGE.write_text(written(stored))
    failed = [name for name in options.parts if stored[name]["result"]["failed"]]
    if failed:
        sys.exit(f"not as it ought to be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
