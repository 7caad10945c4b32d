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
from tests.process_group import ROOT, printed_by
from tests.unit.training.histories import logged, without_times
from tests.unit.training.two_processes import CASES, run


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    printed_by([*command, "-m", "tests.unit.training.two_processes", str(out)], 150, environment)
    return out


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, torchrun: Path, tmp_path: Path) -> None:
    alone, history = run(case, tmp_path)
    first, second = (load_file(torchrun / case / f"rank{rank}.safetensors") for rank in range(2))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # the gradient of the first step; AdamW scales up rounding errors where a gradient is almost 0
        bound = 1e-6 * max(1.0, float(value.abs().max())) if name.startswith("gradient") else 1e-4
        if case != "live" or name.startswith("gradient"):
            assert (first[name] - value).abs().max() <= bound, name
    both = [json.loads((torchrun / case / f"rank{rank}.json").read_text()) for rank in range(2)]
    first_rows, second_rows = map(without_times, both)
    assert first_rows == second_rows
    for own, other in zip(first_rows, without_times(history), strict=True):
        assert own.keys() == other.keys()
        assert case == "live" or own == pytest.approx(other, rel=1e-3)
    assert [row["epoch"] for row in logged(torchrun / case / "run" / "log.jsonl")] == [*range(len(history))]
