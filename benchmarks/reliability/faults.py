"""The part ``faults``: every case of the 79 failure modes, each in an empty folder of its own."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.reliability import (
    modes_disk,
    modes_file,
    modes_hub,
    modes_pairing,
    modes_schema,
    modes_tensors,
)
from benchmarks.reliability.modes import HARMLESS, Missed, Mode

MODES: list[Mode] = sorted(
    [
        *modes_file.MODES,
        *modes_schema.MODES,
        *modes_tensors.MODES,
        *modes_pairing.MODES,
        *modes_disk.MODES,
        *modes_hub.MODES,
    ],
    key=lambda mode: mode.number,
)
"""The numbered list of everything that may go wrong with a head file."""


OPENING = """\
Each case says beforehand which step refuses it, and is missed if another one does: otherwise the first check that
happens to fail would hide what the others do not see. Faults that lie behind the digest are written with a digest
computed anew, so it is right and something else has to refuse them; `digest` stands where only the digest can tell.
*Harmless* is what loads with exactly the right bits and does nothing else. A folder of heads has its list, an older
schema its own files: they are among the cases of each mode where that makes a difference."""


def measure(work: Path, share: float = 1.0) -> dict[str, Any]:
    """Run every case; the modes that repeat something many times say so in their own parts.

    Args:
        work: an empty folder.
        share: has no meaning here: a case is run or it is not.
    """
    return judged(MODES, work)


def judged(modes: list[Mode], work: Path) -> dict[str, Any]:
    """Run these modes; ``missed`` names each case that passed, or met another step than its own."""
    told = []
    with tqdm(total=sum(len(mode.cases) for mode in modes), desc="faults", disable=None) as bar:
        for mode in modes:
            outcomes: Counter[str] = Counter()
            missed = []
            for place, case in enumerate(mode.cases):
                folder = work / f"{mode.number}-{place}"
                folder.mkdir()
                try:
                    case.check(folder)
                    outcomes[case.outcome] += 1
                except Missed as error:
                    missed.append(str(error).replace(str(work), "..."))
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                bar.update()
            told.append(
                {
                    "number": mode.number,
                    "what": mode.what,
                    "cases": len(mode.cases),
                    "outcomes": dict(sorted(outcomes.items())),
                    "missed": missed,
                }
            )
    return {"modes": told, "failed": sum(len(mode["missed"]) for mode in told)}


def page(result: dict[str, Any]) -> str:
    """The table of all modes."""
    modes, failed = result["modes"], result["failed"]
    cases = sum(mode["cases"] for mode in modes)
    verdict = "all refused or harmless" if not failed else f"{failed} neither refused as they ought to be nor harmless"
    rows = [
        f"| {mode['number']} | {_escaped(mode['what'])} | {mode['cases']} | {_spelled(mode['outcomes'])} |"
        for mode in modes
    ]
    wrong = [f"- {mode['number']}: {_escaped(text)}" for mode in modes for text in mode["missed"]]
    return "\n".join(
        [
            f"**{len(modes)} modes, {cases} cases, {verdict}.**",
            "",
            OPENING,
            "",
            "| | failure | cases | refused by, or harmless |",
            "|--:|---|--:|---|",
            *rows,
            *(["", "Missed:", "", *wrong] if wrong else []),
        ]
    )


def _spelled(outcomes: dict[str, int]) -> str:
    """Steps first, the most frequent one before the others."""
    ordered = sorted(outcomes.items(), key=lambda item: (item[0] == HARMLESS, -item[1], item[0]))
    return ", ".join(f"{f'`{step}`' if step != HARMLESS else step} {count}" for step, count in ordered)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
