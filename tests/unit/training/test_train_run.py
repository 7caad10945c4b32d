"""A run's folder: what a stopped run leaves and continues from, what is replaced, and what is refused by name."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.meadow import a_run, files_of, one_image_only

from dinoneck import Backbone, CheckpointError, ConfigError, DataError
from dinoneck.data import Pasture, Table
from dinoneck.training import CellTargets, MemoryTokens, TrainConfig, cross_validate, open_inputs, run, train

N = 8


class Stopped(Exception):
    """Stands for anything that ends a run."""


@pytest.fixture(scope="module")
def pasture() -> Table:
    table = Pasture(size=(32, 64)).table(range(N))
    return replace(table, targets={"GDM_g": table.targets["GDM_g"]}, weights={}, sums={}, groups=None)


def stop_at(step: int) -> Any:
    """An optimizer's step that ends the run when it is called so often."""
    whole, calls = torch.optim.AdamW.step, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            raise Stopped
        return whole(*arguments, **options)

    return counted


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_stopped_run_continues_to_the_same_files(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first epoch, between epochs, and in the second fold; three steps are an epoch of six images."""
    config = a_run(meadow, ["crop", "kind"], optim={"batch_size": 2, "save_steps": 1, "ema_decay": 0.9})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at(step))
        with pytest.raises(Stopped):
            train(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "report.json").exists()
    assert not (tmp_path / "parts" / "heads").exists()
    train(config, tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert sorted(files_of(tmp_path / "whole")) == [
        "heads/fold-0.safetensors", "heads/fold-1.safetensors", "logs/fold-0.jsonl", "logs/fold-1.jsonl",
        "out_of_fold.csv", "report.json",
    ]  # fmt: skip


KILLED = """
import os, signal, sys, torch
from dinoneck.cli.main import main
whole, calls = torch.optim.AdamW.step, []
def step(*arguments, **options):
    calls.append(None)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **options)
torch.optim.AdamW.step = step
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_files(meadow: Path, tmp_path: Path) -> None:
    config = a_run(meadow, ["crop"], optim={"batch_size": 2}, folds={"count": 3})
    train(config, tmp_path / "whole")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-c", KILLED, "train", str(path), "--out", str(tmp_path / "parts")]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == -signal.SIGKILL
    assert (tmp_path / "parts" / "unfinished").exists()
    train(TrainConfig.read(path), tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 0.5}}, r"optim\.lr is 0.001 there and 0.5 here"),
        ({"optim": {"epochs": 3}}, r"optim\.epochs is 2 there and 3 here"),
        ({"optim": {"ridge_blend": 0.25}}, r"optim\.ridge_blend is 0.5 there and 0.25 here"),
        ({"head": {"hidden_dim": 5}}, r"head.hidden_dim is None there and 5 here"),
        ({"losses": {"weighting": "uncertainty"}}, r"losses\.weighting is 'fixed' there and 'uncertainty' here"),
        ({"folds": {"count": 3}}, r"folds\.count is 2 there and 3 here"),
    ],
)
def test_a_changed_config_does_not_continue_a_run(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at(3))
        with pytest.raises(Stopped):
            train(a_run(meadow, ["crop"]), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        train(a_run(meadow, ["crop"], **changes), tmp_path)
    train(a_run(meadow, ["crop"], **changes), tmp_path, resume=False)
    assert (tmp_path / "report.json").exists()


def test_callbacks_see_every_epoch_of_every_fold(meadow: Path, tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    train(a_run(meadow, ["crop"]), tmp_path, callbacks=[lambda epoch, row: rows.append((epoch, dict(row)))])
    logs = [(tmp_path / "logs" / f"fold-{fold}.jsonl").read_text() for fold in range(2)]
    logged = [json.loads(line) for log in logs for line in log.splitlines()]
    assert [epoch for epoch, _ in rows] == [line["epoch"] for line in logged] == [0, 1, 0, 1]
    assert [row["val_r2"] for _, row in rows] == [line["val_r2"] for line in logged]


def test_results_are_replaced_on_request_only(meadow: Path, tmp_path: Path) -> None:
    train(a_run(meadow, ["crop"], folds={"count": 3}), tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=r"holds results of an earlier run \(report\.json\).*overwrite=True"):
        train(a_run(meadow, ["weed"]), tmp_path)
    assert files_of(tmp_path) == before
    train(a_run(meadow, ["weed"]), tmp_path, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == ["fold-0.safetensors", "fold-1.safetensors"]


def test_a_report_that_fails_costs_no_training(pasture: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = open_inputs(a_run(None), pasture)
    train(a_run(None), tmp_path / "undisturbed", inputs=inputs)

    def broken(*_: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run, "scores_of", broken)
        with pytest.raises(Stopped):
            train(a_run(None), tmp_path / "run", inputs=inputs)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: pytest.fail("it is trained again"))
    train(a_run(None), tmp_path / "run", inputs=inputs)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("lr", [1e9, 1e30])
def test_a_learning_rate_that_is_far_too_high_is_named(pasture: Table, tmp_path: Path, lr: float) -> None:
    with pytest.raises(DataError, match=r"fold 0: .*diverged.*lower (lr|it)"):
        train(a_run(None, optim={"lr": lr}), tmp_path, table=pasture)


def test_predictions_that_are_not_finite_are_named(
    pasture: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinoneck.training import crossval

    real = crossval.fit

    def diverged(head: Any, *arguments: Any, **given: Any) -> Any:
        history = real(head, *arguments, **given)
        with torch.no_grad():
            head.mlps[0].out.bias.fill_(3e38)
        return history

    monkeypatch.setattr(crossval, "fit", diverged)
    with pytest.raises(DataError, match=r"fold 0: the predictions of GDM_g are not finite.*at lr 0.001; lower it"):
        train(a_run(None), tmp_path, table=pasture)


def test_targets_that_cannot_be_learned_are_refused_before_the_work(
    pasture: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryTokens, "extract", lambda *_, **__: pytest.fail("the work has begun"))
    values = pasture.targets["GDM_g"].copy()
    values[2] = -1.5
    places = ("one",) * (N // 2) + ("other",) * (N // 2)
    constant = np.where(np.arange(N) < N // 2, 1.0, np.arange(N))
    for table, message in (
        (replace(pasture, targets={"GDM_g": values}, minimum=0.0), r"'GDM_g' below the minimum of 0: '.*' \(-1.5\)"),
        (
            replace(pasture, targets={"GDM_g": constant}, groups=places),
            "'GDM_g' are 1 for every training image of fold",
        ),
        (replace(pasture, targets={"GDM_g": np.ones(N)}), "'GDM_g' are 1 for every image of the table"),
        (replace(pasture, targets={"fold": pasture.targets["GDM_g"]}), "'fold' would clash with a column of out_of"),
        (pasture.take([0]), "1 groups cannot fill 2 folds"),
        (replace(pasture, targets={}), "which columns are to be predicted"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            train(a_run(None), tmp_path / "run", table=table)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is not a folder that can be written to"):
        train(a_run(None), tmp_path / "file" / "run", table=pasture)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_fold_with_labels_is_scored_on_its_own_images(pasture: Table, tiny: Backbone) -> None:
    values = torch.rand(N, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    cells = CellTargets(values, torch.ones(N, 2, 4), ("a", "b"), ids=pasture.ids)
    source = MemoryTokens.extract(tiny, pasture.images, pasture.ids)
    config = a_run(None, optim={"epochs": 1}, folds={"only": 1}, head={"type": "fpn", "fpn_dim": 8})
    result = cross_validate(config, pasture, source, cells)
    assert result.cells is not None
    is_predicted = result.cells.isfinite().all(dim=(1, 2, 3))
    assert torch.equal(is_predicted.nonzero()[:, 0], torch.as_tensor(result.rows))
    assert len(result.rows) == N // 2
    assert set(cells.scores(result.cells, result.rows)) == {"a", "b"}


@pytest.mark.parametrize(("logger", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_loggers_that_are_not_installed_are_refused(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if logger == "tensorboard" else "wandb", None)
    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    config = a_run(meadow, ["crop"], logging={logger: True if logger == "tensorboard" else "project"})
    with pytest.raises(ImportError, match=re.escape(f"pip install {package}")):
        train(config, tmp_path)
