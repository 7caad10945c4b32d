"""kill -9 at many moments of an extraction and of a training run; each must end as if nothing had happened.

    python -m benchmarks.kill_campaign [--kills 100] [--out FILE]

Half of the kills come by the clock, spread evenly over the measured run; half at a chosen disk call: before it, after
it, or with half of its bytes written. Every fourth run is killed once more while it is taken up. Every run and every
resumption is a process of its own. Writes benchmarks/results/kill_campaign.json and prints the tables of
docs/explanation/killed.md.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import kill_campaign_terms as terms

RESULTS = Path(__file__).with_name("results")
GOLDEN = (math.sqrt(5) - 1) / 2
TRIES = 10
MEASURED = 10  # after so many kills by the clock the run is measured anew
SECOND = 4  # every so many runs are killed twice
WRITES = ("write", "append", "rename", "link")
CONTEXT = multiprocessing.get_context("forkserver")  # new processes that need not import torch again


@dataclass(frozen=True)
class Moment:
    """When to kill: at a share of the time that the run takes, or at a disk call."""

    share: float | None = None
    doom: tuple[int, str] | None = None


@dataclass
class Kill:
    """Where a kill fell."""

    phase: str
    moment: str
    seconds: float
    done: int


@dataclass
class Case:
    """One run that was killed, once or twice, and taken up; ``lost`` photos or steps were done once more."""

    kills: list[Kill] = field(default_factory=list)
    lost: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        fell = "; then ".join(f"{k.phase}, {k.moment}, {k.seconds:.3f} s, {k.done} done" for k in self.kills)
        return f"{fell}; lost {self.lost}; {', '.join(self.problems) or 'identical'}"


class Failed(RuntimeError):
    """A process ended by itself, with an error."""


class Campaign:
    """All runs of one job.

    Args:
        job: ``extraction`` or ``training``.
        data: photos and uninterrupted runs; cases are made in it and removed.
    """

    def __init__(self, job: str, data: Path) -> None:
        self.job, self.data = job, data
        self.whole, _ = self._run(data / job, 0, Moment(), digests=True)
        self.seconds = self.measured()

    def measured(self) -> float:
        """Return how long the run takes now: other work on the machine changes it."""
        folder = self.data / f"{self.job}-timed"
        _, seconds = self._run(folder, 0, Moment())
        shutil.rmtree(folder)
        return seconds

    def moments(self, kills: int) -> list[Moment]:
        """Half by the clock, half at disk calls."""
        clock = kills // 2
        by_clock = [Moment(share=(i + 0.5) / clock) for i in range(clock)]
        return by_clock + self._aimed(kills - clock)

    def _aimed(self, count: int) -> list[Moment]:
        """Every kind of disk call and moment in turn, at calls spread over the run."""
        calls: dict[str, list[int]] = {}
        for number, name in enumerate(self.whole["events"]):
            calls.setdefault(name, []).append(number)
        kinds = [(name, moment) for moment in ("halfway", "before", "after") for name in calls
                 if moment != "halfway" or name.startswith(("write", "append"))]  # fmt: skip
        chosen = []
        for i in range(count):
            name, moment = kinds[i % len(kinds)]
            places = calls[name]
            chosen.append(Moment(doom=(places[int(i * GOLDEN % 1 * len(places))], moment)))
        return chosen

    def case(self, number: int, moment: Moment) -> Case:
        """Kill a run at a moment, take it up in a new process, and compare."""
        if moment.share is not None and number % MEASURED == MEASURED - 1:
            self.seconds = self.measured()
        folder = self.data / f"{self.job}-{number}"
        case = self._killed(folder, moment)
        try:
            self._take_up(folder, case, number)
        except Failed as error:
            case.problems.append(str(error))
        shutil.rmtree(folder)
        return case

    def _take_up(self, folder: Path, case: Case, number: int) -> None:
        """Go on with a killed run, in every fourth case after one more kill, and judge its end."""
        if number % SECOND == SECOND - 1:
            told, kill = self._attempt(folder, 1, Moment(share=0.5 * (number * GOLDEN % 1)))
            case.kills += [kill] if kill else []
            case.problems += told.get("problems", [])
        told, _ = self._run(folder, 2, Moment(), digests=True)
        case.problems += told["problems"]
        case.left = told["left"]
        first = told["before"].get("step", 0) if self.job == "training" else told["kept"]
        case.lost = max(0, case.kills[-1].done - first) if len(case.kills) == 1 else 0
        limit = terms.SAVE_STEPS if self.job == "training" else terms.SHARD_PHOTOS
        if case.lost > limit:
            case.problems.append(f"{case.lost} were lost, at most {limit} may be")

    def _killed(self, folder: Path, moment: Moment) -> Case:
        """A kill by the clock that comes too late is tried again, by the time that the run took now."""
        for _ in range(TRIES):
            told, kill = self._attempt(folder, 0, moment)
            if kill is not None:
                return Case([kill])
            shutil.rmtree(folder)
            self.seconds = 0.95 * told["seconds"]
        raise RuntimeError(f"{moment} never came before the end of the run")

    def _attempt(self, folder: Path, number: int, moment: Moment) -> tuple[dict[str, Any], Kill | None]:
        told, seconds = self._run(folder, number, moment)
        if told:
            return {**told, "seconds": seconds}, None
        page = (folder / "page").read_bytes()
        phase, decoding = terms.PHASES[page[terms.PHASE]], page[terms.DECODING]
        name = terms.PHASES[decoding] if phase == "between" and decoding else phase
        done = int.from_bytes(page[terms.COUNT], "little")
        return {}, Kill(name, terms.MOMENTS[page[terms.MOMENT]], seconds, done)

    def _run(self, folder: Path, number: int, moment: Moment, digests: bool = False) -> tuple[dict[str, Any], float]:
        """Run a process to its end or its kill; return what it told, nothing if killed, and its seconds."""
        folder.mkdir(exist_ok=True)
        (folder / "page").write_bytes(bytes(terms.PAGE))
        arguments = (self.job, folder, self.data, number, moment.doom, digests)
        process = CONTEXT.Process(target=_child, args=arguments, daemon=True)
        process.start()
        try:
            seconds = self._watch(process, folder / "page", moment)
        finally:
            process.kill()
            process.join(terms.LIMIT_S)
        told = folder / f"told-{number}.json"
        if told.exists():
            return json.loads(told.read_text()), seconds
        if process.exitcode != -9 or moment == Moment():
            raise Failed(f"a process of {folder.name} ended with {process.exitcode}")
        return {}, seconds

    def _watch(self, process: Any, page: Path, moment: Moment) -> float:
        """Wait for the run's end, or kill it at the moment; return the seconds since it began."""
        limit = time.monotonic() + terms.LIMIT_S
        wait = math.inf if moment.share is None else moment.share * self.seconds
        with page.open("rb") as file, mmap.mmap(file.fileno(), terms.PAGE, prot=mmap.PROT_READ) as shared:
            while shared[terms.RUNNING] == terms.WAITING and process.is_alive() and time.monotonic() < limit:
                time.sleep(0.0005)
            begun = time.monotonic()
            while shared[terms.RUNNING] == terms.BEGUN and process.is_alive() and time.monotonic() < limit:
                if time.monotonic() - begun >= wait:
                    process.kill()
                    return time.monotonic() - begun
                time.sleep(0.0005)
            seconds = time.monotonic() - begun
            process.join(max(0.0, limit - time.monotonic()))
        return seconds


def _child(*arguments: Any) -> None:
    from benchmarks.kill_campaign_child import child  # imported by the server of new processes

    child(*arguments)


def summary(job: str, cases: list[Case]) -> dict[str, Any]:
    """Count kills by phase."""
    first = [case.kills[0] for case in cases]
    table: dict[str, dict[str, int]] = {}
    for case in cases:
        for kill in case.kills:
            row = table.setdefault(kill.phase, {"kills": 0, "identical": 0})
            row["kills"] += 1
            row["identical"] += not case.problems
    result = {
        "runs": len(cases),
        "identical": sum(not case.problems for case in cases),
        "killed_twice": sum(len(case.kills) > 1 for case in cases),
        "in_a_write_or_rename": sum(kill.phase.startswith(WRITES) for kill in first),
        "moments": dict(Counter(kill.moment for kill in first)),
        "most_done_again": max(case.lost for case in cases),
        "most_hidden_files_left": max(case.left for case in cases),
        "phases": {phase: table[phase] for phase in terms.PHASES if phase in table},
    }
    if job == "training":
        result["in_the_middle_of_an_epoch"] = sum(kill.done % terms.STEPS != 0 for kill in first)
    return result


def markdown(result: dict[str, Any]) -> str:
    """One table: phase -> kills -> identical."""
    rows = [f"| {phase} | {row['kills']} | {row['identical']} |" for phase, row in result["phases"].items()]
    return "\n".join(["| phase | kills | identical in the end |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each of the two runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_campaign.json")
    parser.add_argument("--jobs", nargs="+", choices=terms.JOBS, default=list(terms.JOBS))
    parser.add_argument("--work", type=Path, help="where the runs are made and removed; default: the temporary folder")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    CONTEXT.set_forkserver_preload(["benchmarks.kill_campaign_child"])
    report: dict[str, Any] = {"machine": {}, "runs": {}, "cases": {}}
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        for job in terms.JOBS:  # the training reads the store of the uninterrupted extraction
            campaign = Campaign(job, Path(place))
            report["machine"] = campaign.whole["machine"]
            if job not in options.jobs:
                continue
            moments = campaign.moments(options.kills)
            cases = [campaign.case(i, moment) for i, moment in enumerate(tqdm(moments, desc=job, disable=None))]
            report["runs"][job] = {"seconds": round(campaign.seconds, 3), **summary(job, cases)}
            report["cases"][job] = [str(case) for case in cases]
            print(f"**{job}**\n\n{markdown(report['runs'][job])}\n", flush=True)
            print({name: value for name, value in report["runs"][job].items() if name != "phases"}, flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    if any(row["identical"] != row["runs"] for row in report["runs"].values()):
        sys.exit("a run that was killed did not end like the uninterrupted one")


if __name__ == "__main__":
    main()
