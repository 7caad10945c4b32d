"""Training in two processes: ranks stay equal, also under a freeze plan."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.process_group import ROOT, printed_by
from tests.unit.training.histories import logged, without_times
from tests.unit.training.small_fit import flat
from tests.unit.training.small_model import Model, learn
from tests.unit.training.two_processes import CASES, run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck import ConfigError
from dinoneck.training import FreezeSchedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
    ),
]

PLAN = {0: "all", 2: "last:1", 3: "last:3", 4: "none", 5: "all", 6: "last:2"}
WORLD, EPOCHS, STEPS = 2, 7, 2


def sgd(schedule: FreezeSchedule, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(schedule.param_groups(model, lr=0.1), momentum=0.9)


def spread(model: nn.Module) -> float:
    """Largest difference of a weight between ranks."""
    own = flat(model)
    others = [torch.empty_like(own) for _ in range(WORLD)]
    dist.all_gather(others, own)
    return max(float((other - own).abs().max()) for other in others)


def scheduled(rank: int) -> dict[str, Any]:
    schedule, inner = FreezeSchedule(PLAN, lr_scale=0.5), Model()
    inner.backbone.unfreeze()  # the documented order: unfreeze, then wrap
    model: nn.Module = DistributedDataParallel(inner, find_unused_parameters=True)
    optimizer, spreads = sgd(schedule, model), []
    for epoch in range(EPOCHS):
        model, optimizer = schedule.start_epoch(epoch, model, optimizer)
        for step in range(STEPS):
            learn(model, optimizer, 1000 * epoch + 10 * step + rank)
        spreads.append(spread(inner))
    return {"spreads": spreads, "weights": flat(inner).tolist()}


def refused(rank: int) -> dict[str, Any]:
    """What cannot be kept in step is refused at the first epoch."""

    def message(model: nn.Module, schedule: FreezeSchedule) -> str:
        with pytest.raises(ConfigError) as caught:
            schedule.start_epoch(0, model, sgd(schedule, model))
        return str(caught.value)

    inner = Model()
    inner.backbone.unfreeze()
    models = {
        "frozen": DistributedDataParallel(Model(), find_unused_parameters=True),
        "inside": torch.compile(DistributedDataParallel(Model(), find_unused_parameters=True)),
        "unused": DistributedDataParallel(inner),
    }
    return {
        name: message(model, FreezeSchedule({0: "all", 3: "last:1"}))
        for name, model in models.items()
    }  # type: ignore[arg-type]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    found = {"scheduled": scheduled(rank), "refused": refused(rank)}
    dist.barrier()  # gloo may abort a process whose peer has gone
    dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found; all cases in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_two_equal_ranks_are_one_process_with_the_joint_batch(found: list[dict[str, Any]]) -> None:
    schedule, model = FreezeSchedule(PLAN, lr_scale=0.5), Model()
    optimizer = sgd(schedule, model)
    for epoch in range(EPOCHS):
        schedule.start_epoch(epoch, model, optimizer)
        for step in range(STEPS):
            learn(model, optimizer, *(1000 * epoch + 10 * step + rank for rank in range(WORLD)))
    for own in (rank["scheduled"] for rank in found):
        assert own["spreads"] == [0.0] * EPOCHS
        assert torch.allclose(torch.tensor(own["weights"]), flat(model), atol=2e-5)


def test_what_cannot_be_kept_in_step_is_refused(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert "call backbone.unfreeze() before" in rank["refused"]["frozen"]
        assert "call backbone.unfreeze() before" in rank["refused"]["inside"]
        assert "find_unused_parameters=True" in rank["refused"]["unused"]


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    printed_by([*command, "-m", "tests.unit.training.two_processes", str(out)], 150, environment)
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case: str, torchrun: Path, tmp_path: Path) -> None:
    alone, history = run(case, tmp_path)
    first, second = (load_file(torchrun / case / f"rank{rank}.safetensors") for rank in range(2))
    num_compared = 0
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # the gradient of the first step; AdamW scales up rounding errors where a gradient is almost
        # 0
        bound = 1e-6 * max(1.0, float(value.abs().max())) if name.startswith("gradient") else 1e-4
        difference = (first[name] - value).abs()
        if name.startswith("weight "):
            # the first step of AdamW is lr * g / (|g| + 1e-8)
            gradient = alone[name.replace("weight", "gradient")].abs()
            difference = difference[gradient > 1e-3]
            num_compared += len(difference)
            bound = 1e-6
        if not case.startswith("live") or name.startswith(("gradient", "weight ")):
            assert (difference <= bound).all(), name
    assert num_compared > 50
    both = [json.loads((torchrun / case / f"rank{rank}.json").read_text()) for rank in range(2)]
    first_rows, second_rows = map(without_times, both)
    assert first_rows == second_rows
    for own, other in zip(first_rows, without_times(history), strict=True):
        assert own.keys() == other.keys()
        assert case.startswith("live") or own == pytest.approx(other, rel=1e-3)
    assert [row["epoch"] for row in logged(torchrun / case / "run" / "log.jsonl")] == [
        *range(len(history))
    ]
