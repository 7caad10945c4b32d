"""Two processes under torchrun take the steps that one process takes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.process_group import ROOT, told_by
from tests.unit.training.two_processes import CASES, run

from dinoneck.training.processes import Processes


def test_every_sample_has_one_process_and_no_process_goes_empty() -> None:
    rows = [5, 6, 7, 8, 9]
    pair = [Processes(rank, 2) for rank in range(2)]
    assert [own.share(rows) for own in pair] == [[5, 7, 9], [6, 8]]
    assert pair[0].order(rows) == [5, 7, 9, 6, 8]
    assert Processes(1, 2).share([5]) == [5], "a stand-in, which is not counted"


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    told_by([*command, "-m", "tests.unit.training.two_processes", str(out)], 150, environment)
    return out


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, torchrun: Path, tmp_path: Path) -> None:
    alone, history = run(case, tmp_path)
    first, second = (load_file(torchrun / case / f"rank{rank}.safetensors") for rank in range(2))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # 1 % of one AdamW step (lr 1e-2): where a gradient is almost 0, AdamW scales up its rounding error
        assert (first[name] - value).abs().max() <= (1e-4 if case == "live" else 1e-5), name
    both = [json.loads((torchrun / case / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1]
    for own, other in zip(both[0], history, strict=True):
        assert own.keys() == other.keys()
        assert all(abs(own[key] - other[key]) < 1e-4 * max(1.0, abs(other[key])) for key in own)
    lines = (torchrun / case / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3], "one process writes"
