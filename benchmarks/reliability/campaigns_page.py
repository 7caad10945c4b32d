"""The section on the feature store, ``fit`` and ``load_head``, from the stored results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "results" / "campaigns.json"
PARTS = {
    "store": ("tests.faults.test_store_campaign", "Feature store"),
    "fit": ("tests.faults.test_fit_faults", "fit"),
    "load_head": ("tests.faults.test_load_head_faults", "load_head"),
}
"""Part -> the module that runs it, and its title."""
OUTCOMES = ("refused", "noticed", "harmless", "silent")
OPENING = """\
## Feature store, fit and load_head

Here every case is judged by *predicting* after it. **Refused**: an error of dinoneck that names what is wrong.
**Noticed**: a warning, or `verify` names the image. **Harmless**: the predictions are the right ones, bit for bit.
**Silent**: other predictions, and no word of it. The numbers come from

```
python -m tests.faults.campaigns
```

which writes `benchmarks/results/campaigns.json`. One replacement cannot be seen without reading every image again:
other content of the same size, in the same place, with the old modification time set again."""


def section(result: Path = RESULT) -> str:
    """Return the section, empty if nothing is stored."""
    stored = json.loads(result.read_text()) if result.exists() else {}
    tables = [
        f"### {title}\n\n{_table(stored[part])}\n\n{_measured_on(stored['measured'][part])}\n"
        for part, (_, title) in PARTS.items()
        if part in stored
    ]
    return "\n".join([OPENING, "", *tables]) if tables else ""


def _table(modes: Mapping[str, Mapping[str, int]]) -> str:
    rows = ["| what is done | cases | refused | noticed | harmless | silent |", "|---|--:|--:|--:|--:|--:|"]
    for name, mode in modes.items():
        rows.append(f"| {name} | {' | '.join(str(mode[key]) for key in ('cases', *OUTCOMES))} |")
    totals = [sum(mode[key] for mode in modes.values()) for key in ("cases", *OUTCOMES)]
    return "\n".join([*rows, f"| **all** | {' | '.join(f'**{number}**' for number in totals)} |"])


def _measured_on(entry: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
    return f"*{entry['date']}, {entry['cpu']}, {entry['system']}; {versions}.*"
