"""Many processes that save to one path at once, and others that read it all the time.

Every process of :data:`PLANS` saves its own head (or folder of heads) again and again. What a reader gets is one of
them whole, or, of a folder that is being replaced, a ``CheckpointError``; never a part of one and a part of another.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.reliability.kill_targets import MARK, ensemble
from benchmarks.reliability.processes import CONTEXT
from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP
from dinoneck.checkpoint import EnsembleFolder

READERS = 2
LIMIT_S, MEET_S = 240.0, 100.0
_SHOWN = 10


@dataclass(frozen=True)
class Plan:
    """How many processes save how often."""

    writers: int
    saves: int


PLANS = {"file": Plan(8, 100), "folder": Plan(4, 25)}


def _saved(kind: str, seed: int) -> HeadCheckpoint | EnsembleFolder:
    if kind == "folder":
        return ensemble(seed)
    torch.manual_seed(seed)
    return HeadCheckpoint.from_module(PatchMeanMLP(256, 64))


def name_of(found: HeadCheckpoint | EnsembleFolder) -> str:
    """What tells one from all others: the digests."""
    if isinstance(found, HeadCheckpoint):
        return str(found.meta["digest"])
    return " ".join(str(member.checkpoint.meta["digest"]) for member in found.members)


def _load(kind: str, path: Path) -> HeadCheckpoint | EnsembleFolder:
    return EnsembleFolder.load(path) if kind == "folder" else HeadCheckpoint.load(path)


def _process(role: str, kind: str, number: int, saves: int, work: Path, barrier: Any) -> None:
    """Save or read, and tell in a file."""
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    target = work / kind
    own = _saved(kind, number) if role == "writer" else None
    barrier.wait(MEET_S)
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit and (found.total() < saves if own else not (work / "done").exists()):
        try:
            if isinstance(own, EnsembleFolder):
                own.save(target, overwrite=True)
            elif own is not None:
                own.save(target)
            found[name_of(own or _load(kind, target))] += 1
        except CheckpointError as error:
            errors[f"{error.step}: {str(error).replace(str(work), '')[:160]}"] += 1
            if own is not None:
                found["refused"] += 1
        except Exception as error:
            errors[f"uncaught {type(error).__name__}: {str(error)[:160]}"] += 1
            if own is not None:
                found["refused"] += 1
    told = {"found": dict(found), "errors": dict(errors)}
    (work / f"{role}-{number}.json").write_text(json.dumps(told))


def campaign(kind: str, plan: Plan, work: Path) -> dict[str, Any]:
    """Let them all run, and judge what they saw."""
    work.mkdir()
    everyone = [_saved(kind, number) for number in range(plan.writers)]
    known = {name_of(one): number for number, one in enumerate(everyone)}
    first = everyone[0]
    first.save(work / kind)
    barrier = CONTEXT.Barrier(plan.writers + READERS + 1)
    roles = [("writer", number) for number in range(plan.writers)] + [("reader", number) for number in range(READERS)]
    processes = [
        CONTEXT.Process(target=_process, args=(role, kind, number, plan.saves, work, barrier), daemon=True)
        for role, number in roles
    ]
    for process in processes:
        process.start()
    try:
        barrier.wait(MEET_S)
        begun = time.monotonic()
        for process in tqdm(processes[: plan.writers], desc=f"writers of a {kind}", disable=None):
            process.join(max(1.0, begun + LIMIT_S - time.monotonic()))
        seconds = time.monotonic() - begun
        (work / "done").touch()
        for process in processes[plan.writers :]:
            process.join(30)
    finally:
        for process in processes:
            process.kill()
            process.join(30)
    return {"seconds": round(seconds, 1), **_judged(kind, plan, work, roles, known)}


def _judged(kind: str, plan: Plan, work: Path, roles: list[tuple[str, int]], known: dict[str, int]) -> dict[str, Any]:
    missing, problems = [], []
    found: dict[str, Counter[str]] = {"writer": Counter(), "reader": Counter()}
    errors: dict[str, Counter[str]] = {"writer": Counter(), "reader": Counter()}
    for role, number in roles:
        path = work / f"{role}-{number}.json"
        if not path.exists():
            missing.append(f"{role} {number} told nothing")
            continue
        told = json.loads(path.read_text())
        found[role].update(told["found"])
        errors[role].update(told["errors"])
    refused = found["writer"].pop("refused", 0)
    strange = sum(count for name, count in found["reader"].items() if name not in known)
    if found["writer"].total() + refused != plan.writers * plan.saves:
        problems.append(f"{found['writer'].total() + refused} saves were done")
    if strange:
        problems.append(f"{strange} reads gave a head that nobody saved")
    problems += [f"uncaught, {role}: {line}" for role in errors for line in errors[role] if line.startswith("uncaught")]
    if kind == "file":  # replaced by one rename: no excuse for anybody
        problems += [f"{role}: {line}" for role in errors for line in errors[role] if not line.startswith("uncaught")]
    if name_of(_load(kind, work / kind)) not in known:
        problems.append("what is there in the end is none that was saved")
    if left := [path.name for path in work.iterdir() if path.name.endswith(MARK)]:
        problems.append(f"{len(left)} temporary files or folders are left")
    return {
        "writers": plan.writers,
        "saves": found["writer"].total(),
        "saves_refused": refused,
        "reads": found["reader"].total(),
        "reads_refused": errors["reader"].total(),
        "different_heads_read": len(found["reader"]),
        "errors": {role: dict(lines.most_common(_SHOWN)) for role, lines in errors.items()},
        "problems": (missing + problems)[:_SHOWN],
    }


def measure(work: Path, share: float) -> dict[str, Any]:
    """Run both plans."""
    result: dict[str, Any] = {}
    for kind, plan in PLANS.items():
        result[kind] = campaign(kind, Plan(plan.writers, max(2, round(plan.saves * share))), work / f"{kind}s")
    return {"failed": [f"{kind}: {line}" for kind, row in result.items() for line in row["problems"]], **result}


def page(result: dict[str, Any]) -> str:
    """The section of the page."""
    rows = [
        f"| {kind} | {row['writers']} | {row['saves']:,} | {row['saves_refused']:,} | {row['reads']:,} | "
        f"{row['reads_refused']:,} | {row['different_heads_read']} | {len(row['problems'])} |"
        for kind, row in ((name, result[name]) for name in PLANS)
    ]
    refused = result["folder"]["errors"]
    steps = sorted({line.split(":")[0] for lines in refused.values() for line in lines})
    told = f" (by the steps {', '.join(f'`{step}`' for step in steps)})" if steps else ""
    troubles = "".join(f"\n- {line}" for line in result["failed"])
    return f"""\
Every writer is a process that saves a head, or an ensemble of three, of its own to one path again and again;
{READERS} other processes read it all the time. *Problems*: a read that gave what nobody saved, an exception that is
no `CheckpointError`, for a file any error at all, a temporary left behind, or something else than one of the saved
there in the end.

| path | writers | saves | refused | reads | refused | different ones read | problems |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

A file is replaced by one rename, so nobody ever waits or is refused. A folder takes two: who reads it in that moment
finds no folder, or a list and heads that do not belong together. It is then read again, up to three times; who meets
such a moment every time gets a `CheckpointError`{told}. These readers do nothing but read while the writers do
nothing but replace. Of several writers the last one's folder stays.{troubles}
"""
