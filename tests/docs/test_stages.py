"""The stages of five designs: every row of the page is there, and its command prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import DATA, ROOT
from tests.docs.stages import SHARED, Stage, commands, make_folder, stages

STAGES = stages()
# A stage may get another command or print something else, but none may be dropped.
NUMBERED = [
    "A3.1",
    "A3.2",
    "A4.1",
    "A4.1.groups",
    "A4.2",
    "A5.1",
    "A5.2",
    "A6.1",
    "A6.2",
    "A6.3",
    "A6.4",
    "A6.5",
    "A6.5.report",
    "A7",
    "A8.1",
    "A8.2",
    "A8.3",
    "A9.A",
    "A9.B",
    "A9.C",
    "A9.C.tag",
    "A9.processes",
    "A10",
    "B0",
    "B0.time",
    "B1.1",
    "B1.2",
    "B1.2.every",
    "B1.3",
    "B2.1",
    "B2.2",
    "B2.2.nan",
    "B2.2.time",
    "B3.1",
    "B3.2",
    "B3.3",
    "B4.1",
    "B4.2",
    "B4.3",
    "B5",
    "C1",
    "C2",
    "C2.heads",
    "C3",
    "C4",
    "C5",
    "C6",
    "C6.licence",
    "D2.1",
    "D2.2",
    "D2.3",
    "D2.4",
    "D3.1",
    "D3.2",
    "D3.2.map",
    "D5.1",
    "D5.2",
    "D5.3",
    "D5.4",
    "D5.4.share",
    "D5.5",
    "D5.6",
    "D5.7",
    "D5.8",
    "D5.8.average",
    "D5.9",
    "D5.9.shared",
    "D6",
    "D7",
    "D8",
    "E3",
    "E4.1",
    "E4.2",
    "E4.3",
    "E4.4",
    "E4.4.loss",
    "E4.4.run",
    "E4.4.epochs",
    "E4.4.memory",
    "E4.5",
    "E5.1",
    "E5.2",
    "E5.2.parts",
    "E5.3",
    "E5.4",
    "E6.1",
    "E6.2",
    "E6.2.file",
    "E6.3",
    "E6.4",
    "E6.4.published",
    "E7",
    "E8",
    "E8.half",
]


def test_no_stage_was_dropped() -> None:
    assert [stage.name for stage in STAGES] == NUMBERED


def test_every_command_of_a_row_is_on_the_page_and_every_command_has_a_row() -> None:
    assert {stage.command for stage in STAGES} <= set(commands())
    assert set(commands()) == {stage.command for stage in STAGES}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every command prints, run in the order of the page in one folder."""
    missing = [name for name in SHARED if not (DATA / name).is_dir()]
    if missing:
        pytest.skip(f"the shared data lack {', '.join(missing)}; set DINONECK_DATA to their folder")
    folder = tmp_path_factory.mktemp("stages")
    make_folder(folder)
    return {name: run(text, folder) for name, text in commands().items()}


def run(text: str, folder: Path) -> str:
    """Run a command; return its exit code and what it prints."""
    words = shlex.split(text)
    program = {
        "python": [sys.executable],
        "dinoneck": [sys.executable, "-m", "dinoneck"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "cat": ["cat"],
    }
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    result = subprocess.run(
        [*program[words[0]], *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"exit code {result.returncode}\n{result.stdout}{result.stderr}"


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_prints_what_the_page_says(stage: Stage, outputs: dict[str, str]) -> None:
    printed = outputs[stage.command]
    assert printed.startswith("exit code 0\n"), printed[-2000:]
    assert re.search(stage.pattern(), printed), printed[-4000:]
