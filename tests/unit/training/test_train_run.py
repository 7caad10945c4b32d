"""A run's folder: what a stopped run leaves and continues from, what is replaced, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.meadow import a_run, files_of

from dinoneck import CheckpointError, ConfigError, DataError
from dinoneck.data import Pasture
from dinoneck.training import MemoryTokens, engine, open_inputs, run, train
from dinoneck.training.table import Table, table_of

N = 8


class Stopped(Exception):
    """Stands for anything that ends a run."""


@pytest.fixture(scope="module")
def pasture() -> Table:
    table = table_of(Pasture(size=(32, 64)).table(range(N)))
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


@pytest.mark.parametrize("step", [4, 6])
def test_a_stopped_run_continues_to_the_same_files(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first epoch, between epochs, and in the second fold; three steps are an epoch of six images."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = a_run(meadow, ["crop", "kind"], optim={"batch_size": 2, "ema_decay": 0.9})
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 0.5}}, r"optim\.lr is 0.001 there and 0.5 here"),
        ({"head": {"hidden_dim": 5}}, r"head.hidden_dim is None there and 5 here"),
    ],
)
def test_a_changed_config_does_not_continue_a_run(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
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


def test_a_learning_rate_that_is_far_too_high_is_named(pasture: Table, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fold 0: .*diverged.*lower (lr|it)"):
        train(a_run(None, optim={"lr": 1e30}), tmp_path, table=pasture)


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
