"""kill -9 while a head, or a folder of heads, is saved over a good one.

Half of the kills come by the clock, spread evenly over the measured save; half at a chosen disk call: before it, after
it, or with half of its bytes written. Every save is a process of its own, forked from one that has the heads in memory.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.kill_campaign import GOLDEN, Failed, Moment
from benchmarks.kill_campaign_terms import BEGUN, FINISHED, LIMIT_S, MOMENT, MOMENTS, PAGE, PHASE, RUNNING, WAITING
from benchmarks.reliability.kill_targets import MARK, FileTarget, FolderTarget, Target, cleaned
from benchmarks.reliability.processes import CONTEXT
from benchmarks.reliability.save_trace import PHASES, begin, spelled

KILLS = {"file": 1000, "folder": 100}
GO = 8  # a byte of the shared page, beyond those of the other campaign
TRIES, MEASURED, KEPT = 50, 25, 3
_POLL_S = 0.0002


class Saves:
    """Kills saves of one target and judges what they leave.

    Args:
        target: what is saved.
        work: a folder beside it, for the shared page.
    """

    def __init__(self, target: Target, work: Path) -> None:
        self.target, self.path, self.told = target, work / "page", work / f"{target.root.name}.json"
        self.path.write_bytes(bytes(PAGE))
        with self.path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), PAGE)
        self.which = target.found()[0]
        self.seconds = self.measured()
        self.events: list[str] = json.loads(self.told.read_text())
        self.kept: list[Path] = []

    def measured(self) -> float:
        """How long a save takes now: other work on the machine changes it."""
        taken = []
        for _ in range(5):
            if self._run(Moment()) is not None:
                raise Failed("a save that was not to be killed was")
            taken.append(self.took)
            self.which = self.target.found()[0]
        return statistics.median(taken)

    def moments(self, kills: int) -> list[Moment]:
        """Half by the clock, half at disk calls: each kind and moment in turn, at calls spread over the save."""
        clock = kills // 2
        calls: dict[str, list[int]] = {}
        for number, event in enumerate(self.events):
            calls.setdefault(spelled(event), []).append(number)
        rarest = sorted(calls, key=lambda name: len(calls[name]))
        kinds = [(name, moment) for name in rarest for moment in ("before", "halfway", "after")
                 if moment != "halfway" or name == "write"]  # fmt: skip
        aimed = []
        for i in range(kills - clock):
            name, moment = kinds[i % len(kinds)]
            aimed.append(Moment(doom=(calls[name][int(i * GOLDEN % 1 * len(calls[name]))], moment)))
        return [Moment(share=(i + 0.5) / clock) for i in range(clock)] + aimed

    def killed(self, number: int, moment: Moment) -> dict[str, Any]:
        """Kill a save and tell where it fell and what is there."""
        if moment.share is not None and number % MEASURED == 0:
            self.seconds = self.measured()
        for _ in range(TRIES):
            before = self.which
            if (fell := self._run(moment)) is not None:
                break
            self.which = self.target.found()[0]
            self.seconds = 0.5 * (self.seconds + 0.95 * self.took)
        else:
            raise Failed(f"{moment} never came before the end of the save")
        self.which, aside = self.target.found()
        strays = [stray for stray in self.target.strays() if stray not in self.kept]
        for stray in strays:
            if len(self.kept) < KEPT and ".old-" not in stray.name:
                self.kept.append(stray)
            else:
                self.target.clear(stray)
        state = "torn" if self.which < 0 else "old" if self.which == before else "new"
        return {**fell, "state": state, "aside": aside, "strays": len(strays)}

    def _run(self, moment: Moment) -> dict[str, str] | None:
        """Fork a process that saves the other state; None if it came to its end."""
        self.page[:PAGE] = bytes(PAGE)
        pid = os.fork()
        if pid == 0:
            self._child(1 - self.which, moment)
        try:
            self.took = self._watch(pid, moment)
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        if self.page[RUNNING] == FINISHED:
            return None
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL or moment == Moment():
            raise Failed(f"a save ended by itself with status {status}")
        return {"phase": PHASES[self.page[PHASE]], "moment": MOMENTS[self.page[MOMENT]]}

    def _child(self, which: int, moment: Moment) -> None:
        """Never returns."""
        try:
            signal.alarm(LIMIT_S)
            trace = begin(self.path, self.target.root, moment.doom)
            trace.page[RUNNING] = BEGUN
            while not trace.page[GO]:  # until the clock runs
                time.sleep(_POLL_S)
            self.target.save(which)
            if not self.told.exists():
                self.told.write_text(json.dumps(trace.events))
            trace.page[RUNNING] = FINISHED  # its end is not waited for: it may take as long as a small save
        finally:
            os._exit(0 if self.page[RUNNING] == FINISHED else 1)

    def _watch(self, pid: int, moment: Moment) -> float:
        """Wait for the save's end or kill it at its moment; return the seconds since it began."""
        limit = time.monotonic() + LIMIT_S
        wait = math.inf if moment.share is None else moment.share * self.seconds
        begun = 0.0
        while time.monotonic() < limit and self.page[RUNNING] != FINISHED and not _ended(pid):
            if begun == 0.0 and self.page[RUNNING] != WAITING:
                self.page[GO], begun = 1, time.monotonic()
            if self.page[RUNNING] == BEGUN and time.monotonic() - begun >= wait:
                break
            time.sleep(_POLL_S)
        return time.monotonic() - begun


def _ended(pid: int) -> bool:
    """Whether a process has ended; it is not collected yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Count kills by phase, and what they left."""
    phases: dict[str, Counter[str]] = {}
    for case in cases:
        phases.setdefault(case["phase"], Counter()).update(["kills", case["state"], *["stray"] * bool(case["strays"])])
    states = Counter(case["state"] for case in cases)
    return {
        "kills": len(cases),
        **{state: states[state] for state in ("old", "new", "torn")},
        "aside": sum(case["aside"] for case in cases),
        "with_leftovers": sum(case["strays"] > 0 for case in cases),
        "moments": dict(Counter(case["moment"] for case in cases)),
        "phases": {phase: dict(phases[phase]) for phase in PHASES if phase in phases},
    }


def _campaign(work: Path, share: float) -> dict[str, Any]:
    """All kills, in a process that may fork."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name, make in (("file", FileTarget), ("folder", FolderTarget)):
        (work / name).mkdir()
        saves = Saves(make(work / name), work)
        cases = list(_cases(saves, name, max(8, round(KILLS[name] * share))))
        size = sum(path.stat().st_size for path in (work / name).rglob("*.safetensors") if MARK not in str(path))
        cleanup = cleaned(saves.target, saves.kept)
        result[name] = {"bytes": size, "save_ms": round(1e3 * saves.seconds, 1), **summary(cases), "clean_up": cleanup}
    return result


def _cases(saves: Saves, name: str, kills: int) -> Iterator[dict[str, Any]]:
    for number, moment in enumerate(tqdm(saves.moments(kills), desc=f"kills while saving a {name}", disable=None)):
        case = saves.killed(number, moment)
        yield case
        if case["state"] == "torn":
            return


def measure(work: Path, share: float) -> dict[str, Any]:
    """Kill saves of a file and of a folder."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        result = pool.submit(_campaign, work, share).result()
    failed = [f"{name}: torn" for name, row in result.items() if row["torn"]]
    failed += [f"{name}: leftovers of an hour ago stay" for name, row in result.items()
               if row["clean_up"]["kept_after_an_hour"]]  # fmt: skip
    return {"failed": failed, **result}


def page(result: dict[str, Any]) -> str:
    """The section of the page."""
    one, many = result["file"], result["folder"]
    kept, stale = one["clean_up"]["kept_while_fresh"], one["clean_up"]["kept_after_an_hour"]
    return f"""\
A head of {one["bytes"] / 2**20:.1f} MiB is saved over a good file and the process is killed (`kill -9`),
{one["kills"]:,} times in processes of their own: half by the clock, spread over the {one["save_ms"]:.0f} ms that a save
takes, half before, after or halfway through a disk call. Then the file was the old one {one["old"]:,} times and the new
one {one["new"]:,} times, bit for bit; **torn {one["torn"]}**.

{_table(one["phases"])}

{one["with_leftovers"]:,} kills left a temporary file beside it (its name begins with a dot and ends with `{MARK}`).
The next save to the same path clears those that are older than an hour, and only those: of {one["clean_up"]["left"]}
kept for the trial {kept} were there after a save while fresh, {stale} when an hour old.

`EnsembleFolder.save(overwrite=True)` over a good folder, {many["kills"]:,} kills: {many["old"]:,} times the old
folder, {many["new"]:,} times the new one, every file of one of them; **mixed or torn {many["torn"]}**. A folder cannot
be replaced by one rename: {many["aside"]:,} of these kills fell between the two, and the old folder then lay whole
beside its place, as `.NAME.old-*{MARK}`; rename it back. While nothing is in its
place it is never cleared, as it is all there is; else by the next save, when it is older than an hour.

{_table(many["phases"])}
"""


def _table(phases: dict[str, dict[str, int]]) -> str:
    rows = [f"| {phase} | {row['kills']:,} | {row.get('old', 0):,} | {row.get('new', 0):,} | {row.get('torn', 0):,} | "
            f"{row.get('stray', 0):,} |" for phase, row in phases.items()]  # fmt: skip
    return "\n".join(["| killed in | kills | old | new | torn | left something |", "|---|---|---|---|---|---|", *rows])
