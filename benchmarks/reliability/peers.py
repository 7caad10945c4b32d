"""The same faults in dinoneck and in the loaders people use: one script, one table.

Each loader first gives back its own head bit for bit. Then each fault is done to a fresh copy, and the answer of what
was loaded is compared with the answer of what was saved. A warning that nobody has to read counts as silence.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.reliability import forge
from benchmarks.reliability.peers_faults import FAULTS, MARK, Fault, NotApplicable, other_base
from benchmarks.reliability.peers_loaders import LOADERS, OWN, Loader, is_own, quiet
from dinoneck import HeadCheckpoint
from dinoneck.checkpoint import header as headers

SIGNED = "dinoneck, digest made right"
RAISED, REFUSED, WRONG, SAME, NONE = "raised", "refused", "silently wrong", "unchanged", "n/a"
Outcome = dict[str, str]


def measure(work: Path, share: float, only: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Run the table; ``only`` names some loaders. The whole of it takes seconds, so every share does all.

    Raises:
        RuntimeError: if a loader does not give back its own head bit for bit.
    """
    outcomes: dict[str, dict[str, Outcome]] = {}
    versions, missing = {}, {}
    chosen = [make(name) for name, make in LOADERS.items() if only is None or name in only]
    with quiet_warnings():
        for loader in tqdm(chosen, desc="loaders", disable=None):
            if loader.wants:
                missing[loader.name] = loader.wants
                continue
            versions[loader.name] = loader.version
            check_control(loader, fresh(work))
            outcomes[loader.name] = {fault.name: outcome(loader, fault, fresh(work)) for fault in FAULTS}
            if loader.name == OWN:
                outcomes[SIGNED] = {fault.name: signed(loader, fault, fresh(work)) for fault in FAULTS}
    return {
        "outcomes": outcomes,
        "counts": {name: counted(column) for name, column in outcomes.items()},
        "versions": versions,
        "not installed": missing,
        "failed": [
            f"{column}: {fault}: {found['outcome']}"
            for column in (OWN, SIGNED)
            for fault, found in outcomes[column].items()
            if found["outcome"] in (RAISED, WRONG)
        ],
    }


def quiet_warnings() -> Any:
    """Warnings are caught where they are counted."""
    return warnings.catch_warnings(action="ignore")


def fresh(work: Path) -> Path:
    """An empty folder."""
    folder = work / "head"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def check_control(loader: Loader, folder: Path) -> None:
    """Without a fault the answer is the saved head's, bit for bit."""
    with quiet():
        expected = loader.save(folder, 1, False)
        same = torch.equal(loader.load(folder), expected)
    if not same:
        raise RuntimeError(f"{loader.name} does not give back its own head")


def outcome(loader: Loader, fault: Fault, folder: Path) -> Outcome:
    """What comes of a fault."""
    with quiet():
        expected = loader.save(folder, 1, False)
        try:
            replaced = fault.run(loader, folder)
        except NotApplicable:
            return {"outcome": NONE, "detail": ""}
        load = loader.other_base if fault.run is other_base and loader.other_base else loader.load
        return judged(lambda: load(folder), replaced if isinstance(replaced, Tensor) else expected, folder)


def signed(loader: Loader, fault: Fault, folder: Path) -> Outcome:
    """What comes of a fault in a dinoneck file whose digest was made right again."""
    if fault.forged is None:
        return {"outcome": NONE, "detail": ""}
    expected = loader.save(folder, 1, False)
    path = folder / loader.weights
    meta, state = forge.content_of(HeadCheckpoint.load(path))
    fault.forged(meta, state)
    path.write_bytes(spelled(meta, state))
    return judged(lambda: loader.load(folder), expected, folder)


def spelled(meta: dict[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """The file of this content with its digest, of dtypes too that dinoneck's own writer does not know."""
    known = headers.DTYPE_BYTES
    headers.DTYPE_BYTES = {**known, "F8_E4M3": 1}
    try:
        return forge.written(meta, dict(state))
    finally:
        headers.DTYPE_BYTES = known


def judged(load: Callable[[], Tensor], expected: Tensor, folder: Path) -> Outcome:
    """Load, and compare the answer with what it ought to be."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = load()
        except Exception as error:
            if (folder / MARK).exists():
                return {"outcome": WRONG, "detail": "ran code"}
            if is_own(error):
                return {"outcome": REFUSED, "detail": error.step}  # type: ignore[attr-defined]
            return {"outcome": RAISED, "detail": type(error).__name__}
    warned = "a warning" if told else ""
    if (folder / MARK).exists():
        return {"outcome": WRONG, "detail": "ran code"}
    if not bool(found.isfinite().all()):
        return {"outcome": WRONG, "detail": "not finite"}
    return {"outcome": SAME if torch.equal(found, expected) else WRONG, "detail": warned}


def counted(column: Mapping[str, Outcome]) -> dict[str, Any]:
    """How often each outcome came, and how many unrelated types of errors."""
    counts: dict[str, Any] = dict(Counter(found["outcome"] for found in column.values()))
    types = sorted({found["detail"] for found in column.values() if found["outcome"] == RAISED})
    if counts.get(REFUSED):
        types.append("CheckpointError")
    return {**{kind: counts.get(kind, 0) for kind in (RAISED, REFUSED, WRONG, SAME, NONE)}, "types": types}


def page(result: Mapping[str, Any]) -> str:
    """Return the section's Markdown."""
    outcomes, counts = result["outcomes"], result["counts"]
    columns = list(outcomes)
    lines = [f"| fault | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for fault in next(iter(outcomes.values())):
        lines.append(f"| {fault} | {' | '.join(_cell(outcomes[name][fault]) for name in columns)} |")
    sums = {"an error": (REFUSED, RAISED), WRONG: (WRONG,), SAME: (SAME,), NONE: (NONE,)}
    for title, kinds in sums.items():
        cells = (f"**{sum(counts[name][kind] for kind in kinds)}**" for name in columns)
        lines.append(f"| **{title}** | {' | '.join(cells)} |")
    lines.append(f"| types of errors | {' | '.join(str(len(counts[name]['types'])) for name in columns)} |")
    foreign = sorted({kind for name in columns if not name.startswith(OWN) for kind in counts[name]["types"]})
    versions = ", ".join(dict.fromkeys(result["versions"].values()))
    missing = "".join(f" {name}: {why}." for name, why in result["not installed"].items())
    return "\n\n".join(
        [
            f"{len(next(iter(outcomes.values())))} faults, each done to a fresh copy of a small head (for timm a small "
            "ViT, for peft LoRA weights on a small head). Every loader is used as its documentation says and first "
            "gave back its own head bit for bit. *Silently wrong* is another answer than the saved head's, or one "
            "that is not finite; a warning counts as silence. *Unchanged* is accepted with the right answer. Where "
            "the configuration is code (torch.load, plain safetensors) there is no configuration to damage.",
            "\n".join(lines),
            f"The peers raise {len(foreign)} types of errors ({', '.join(foreign)}), dinoneck one, whose `step` stands "
            f"in the table. In the second column the fault is followed by a digest made right; where that would only "
            "make a sound file of another head (other values, other bits) it says nothing.",
            f"{versions}.{missing}",
        ]
    )


def _cell(found: Outcome) -> str:
    kind, detail = found["outcome"], found["detail"]
    if kind == NONE:
        return "–"
    if kind == REFUSED:
        return f"`{detail}`"
    if kind == RAISED:
        return detail
    shown = f"**{kind}**" if kind == WRONG else kind
    return f"{shown} ({detail})" if detail else shown
