"""Runs the cases on both sides, each in a process of its own, and compares what they give."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.against.compare import RAISED, Comparison, Difference, is_marked
from tests.against.environment import Side

POLL_SECONDS = 0.2
END_OF_LOG = 2000
"""How many characters of a failed process's output are shown."""


class CannotCompareError(Exception):
    """The two sides could not be compared, so nothing is known about them."""


class Child:
    """The process that runs cases of a group on one side; its files are in a new folder."""

    def __init__(self, side: Side, group: str, cases: Sequence[str], folder: Path) -> None:
        self.title = f"{group} of {side.name}"
        self.log = folder / "log.txt"
        self.result_file = folder / "result.json"
        work = folder / "work"
        work.mkdir(parents=True)
        command = [side.python, "-m", "tests.against.child", group, *cases]
        command += ["--source", side.source, "--folder", work, "--result", self.result_file]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=work,
                env=side.variables(cache=folder / "cache"),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def has_ended(self) -> bool:
        """Whether the process has written its result.

        Raises:
            CannotCompareError: if it failed.
        """
        code = self.process.poll()
        if code is None:
            return False
        if code != 0:
            end = self.log.read_text()[-END_OF_LOG:]
            raise CannotCompareError(f"{self.title} ended with code {code}:\n{end}")
        return True

    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.result_file.read_text())
        return document

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_for(children: Sequence[Child]) -> None:
    """Wait until all processes have ended, or one has failed: then the others are of no use.

    Raises:
        CannotCompareError: if one failed.
    """
    running = list(children)
    while running:
        time.sleep(POLL_SECONDS)
        running = [child for child in running if not child.has_ended()]


def run_group(
    old_side: Side, this_side: Side, group: str, cases: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a group on both sides at once; return what ``child.py`` wrote, for each.

    Raises:
        CannotCompareError: if a process fails, if a case fails in 0.3.0, or if the libraries of the
            two sides differ.
    """
    children: list[Child] = []
    with tempfile.TemporaryDirectory() as parent:
        try:
            children.append(Child(old_side, group, cases, Path(parent) / "old"))
            children.append(Child(this_side, group, cases, Path(parent) / "here"))
            wait_for(children)
            old, here = [child.result() for child in children]
        finally:
            for child in children:
                child.stop()
    if old["libraries"] != here["libraries"]:
        raise CannotCompareError(
            f"{old_side.name} runs with {old['libraries']}, this checkout with "
            f"{here['libraries']}: only with the same ones are results equal to the bit. Delete "
            "the environment, and it is made again"
        )
    for name, result in old["cases"].items():
        # 0.3.0 does not change, so the case does not fit it, or a library is missing
        if is_marked(result, RAISED):
            error = result[RAISED]
            raise CannotCompareError(
                f"{group}/{name} fails in {old_side.name} with {error['class']}: {error['message']}"
            )
    return old, here


def compare_groups(
    old_side: Side, this_side: Side, chosen: Mapping[str, Sequence[str]]
) -> list[Difference]:
    """Compare group after group, and print a line for each; ``chosen``: group -> cases, or none for all.

    Raises:
        CannotCompareError: as :func:`run_group`.
    """
    differences = []
    for group, cases in chosen.items():
        started = time.monotonic()
        old, here = run_group(old_side, this_side, group, cases)
        comparison = Comparison()
        comparison.compare(group, old["cases"], here["cases"])
        for name, categories in old["warnings"].items():
            comparison.compare(f"{group}/{name}/warnings", categories, here["warnings"][name])
        seconds = time.monotonic() - started
        print(
            f"{group:<12} {comparison.compared:>6} values compared, "
            f"{len(comparison.differences):>5} different, {seconds:>4.0f} s",
            flush=True,
        )
        differences += comparison.differences
    return differences
