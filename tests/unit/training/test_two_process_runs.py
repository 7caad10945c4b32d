"""Runs of heads in two processes: the files of one process, and no process ahead of the other in their folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from tests.process_group import ROOT, printed_by
from tests.unit.training.histories import logged
from tests.unit.training.two_process_runs import CONFIG

from dinoneck import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
    ),
]

FILES = ("head.safetensors", "heads/fold-0.safetensors", "heads/fold-1.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of runs in two processes, and ``alone``: that of one process in two parts per step."""
    out = tmp_path_factory.mktemp("runs")
    optim = CONFIG["optim"]
    train({**CONFIG, "optim": {**optim, "accumulate": 2}}, out=out / "alone")
    earlier = {**CONFIG, "optim": {**optim, "epochs": 1}}
    train(earlier, out=out / "replaced")
    shutil.copytree(out / "replaced", out / "replaced late")
    train(CONFIG, out=out / "switched")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = "tests.unit.training.two_process_runs"
    printed_by([*torchrun, "--nproc-per-node", "2", "-m", module, str(out)], 150, environment)
    return out


def test_two_processes_write_what_one_writes_that_computes_a_step_in_two_parts(runs: Path) -> None:
    alone = runs / "alone"
    both = runs / "new"
    for name in (*FILES, "out_of_fold.csv"):
        assert (both / name).read_bytes() == (alone / name).read_bytes(), name
    for name in ("logs/fold-0.jsonl", "logs/fold-1.jsonl"):
        # one process adds the losses of both parts in float32, two take the mean of both in float64
        for row, row_alone in zip(logged(both / name), logged(alone / name), strict=True):
            assert row == pytest.approx(row_alone, rel=1e-6), name


@pytest.mark.parametrize("folder", ["replaced", "replaced late"])
def test_results_of_an_earlier_run_are_replaced_by_both_processes(runs: Path, folder: str) -> None:
    for name in FILES:
        assert (runs / folder / name).read_bytes() == (runs / "new" / name).read_bytes(), name
    assert not (runs / folder / "earlier").exists()


def test_another_method_is_chosen_by_both_processes(runs: Path) -> None:
    report = json.loads((runs / "switched" / "report.json").read_text())
    assert report["predicts"]["method"] == "linear"
