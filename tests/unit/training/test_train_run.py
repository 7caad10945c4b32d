"""A run's folder: what a stopped run leaves and continues from, what is replaced, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.training.meadow import a_run, files_of

from dinoneck import CheckpointError, ConfigError, DataError
from dinoneck.data import Pasture
from dinoneck.training import MemoryTokens, engine, run, train

N = 8
FILES = [
    "head.safetensors", "heads/fold-0.safetensors", "heads/fold-1.safetensors", "logs/fold-0.jsonl",
    "logs/fold-1.jsonl", "out_of_fold.csv", "report.json",
]  # fmt: skip


class Stopped(Exception):
    """Stands for anything that ends a run."""


@pytest.fixture(scope="module")
def pasture() -> pd.DataFrame:
    """Eight images in memory with one mass."""
    table = Pasture(size=(32, 64)).table(range(N))[["images", "GDM_g"]]
    table.attrs = {}
    return table


def stop_at(step: int) -> Any:
    """An optimizer's step that ends the run when it is called so often."""
    whole, calls = torch.optim.AdamW.step, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            raise Stopped
        return whole(*arguments, **options)

    return counted


def broken(*_: Any, **__: Any) -> Any:
    raise Stopped


@pytest.mark.parametrize("with_ridge", [False, True])
def test_a_stopped_run_continues_to_the_same_files(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ridge: bool
) -> None:
    """In the first epoch, between epochs, and in the second fold; three steps are an epoch of six images."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    options = {"optim": {"batch_size": 2, "ema_decay": 0.9}, "with_ridge": with_ridge}
    config = a_run(meadow, ["crop", "kind"], **options)  # type: ignore[arg-type]
    whole = train(config, tmp_path / "whole")
    for step in (2, 3, 5):  # counted from the state that the call before left
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", stop_at(step))
            with pytest.raises(Stopped):
                train(config, tmp_path / "parts")
        assert not (tmp_path / "parts" / "report.json").exists()
        assert (tmp_path / "parts" / "unfinished").is_dir()
    assert train(config, tmp_path / "parts") == whole
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert sorted(files_of(tmp_path / "whole")) == FILES


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": {"lr": 0.5}}, "optim"),
        ({"head": {"hidden_dim": 5}}, "head"),
        ({"data": {"targets": ["weed"]}}, "targ"),
    ],
)
def test_a_changed_config_does_not_continue_a_run(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at(3))
        with pytest.raises(Stopped):
            train(a_run(meadow, ["crop"]), tmp_path)
    changes = {**changes, "data": {"csv": str(meadow), "targets": ["crop"], **changes.get("data", {})}}
    with pytest.raises(CheckpointError, match=named):
        train(a_run(None, **changes), tmp_path)
    train(a_run(None, **changes), tmp_path, resume=False)
    assert sorted(files_of(tmp_path)) == FILES


def test_other_images_or_values_do_not_continue_a_run(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_at(3))
        with pytest.raises(Stopped):
            train(a_run(None), tmp_path, table=pasture)
    values, images = pasture.copy(), pasture.copy()
    values.iloc[0, 1] += 1.0
    images["images"] = [255 - image for image in pasture["images"]]
    for table in (values, images, pasture[::-1]):
        with pytest.raises(CheckpointError):
            train(a_run(None), tmp_path, table=table)
    assert train(a_run(None), tmp_path, table=pasture)["images"] == N


def test_results_are_replaced_on_request_only(meadow: Path, tmp_path: Path) -> None:
    train(a_run(meadow, ["crop"], folds={"count": 3}), tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=r"report\.json.*overwrite=True"):
        train(a_run(meadow, ["weed"]), tmp_path)
    assert files_of(tmp_path) == before
    train(a_run(meadow, ["weed"]), tmp_path, overwrite=True)
    assert sorted(files_of(tmp_path)) == FILES


@pytest.mark.parametrize("step", ["scores_of", "fold_metrics", "prediction_rows"])
def test_a_report_that_fails_costs_no_training(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = train(a_run(None), tmp_path / "undisturbed", table=pasture)
    with monkeypatch.context() as patch:
        real, calls = getattr(run.reports, step), []

        def last_call_broken(*arguments: Any, **options: Any) -> Any:
            calls.append(None)
            return broken() if len(calls) > 2 or step == "prediction_rows" else real(*arguments, **options)

        patch.setattr(run.reports, step, last_call_broken)  # each fold calls it, and the report
        with pytest.raises(Stopped):
            train(a_run(None), tmp_path / "run", table=pasture)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: pytest.fail("it is trained again"))
    assert train(a_run(None), tmp_path / "run", table=pasture) == whole
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")


def test_predictions_that_are_not_finite_are_named(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.fit

    def diverged(head: Any, *arguments: Any, **given: Any) -> Any:
        history = real(head, *arguments, **given)
        with torch.no_grad():
            head.mlps[0].out.bias.fill_(3e38)
        return history

    monkeypatch.setattr(run, "fit", diverged)
    with pytest.raises(DataError, match=r"fold 0: .*GDM_g"):
        train(a_run(None), tmp_path, table=pasture)


def test_targets_that_cannot_be_learned_are_refused_before_the_work(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = MemoryTokens.extract
    monkeypatch.setattr(
        MemoryTokens,
        "extract",
        lambda backbone, images, *own, **options: extract(backbone, images, *own, **options)
        if len(images) == 1 else pytest.fail("the work has begun"),
    )  # fmt: skip
    below = pasture["GDM_g"].to_numpy().copy()
    below[2] = -1.5
    places = ["one"] * (N // 2) + ["other"] * (N // 2)
    constant = np.where(np.arange(N) < N // 2, 1.0, np.arange(N))
    gap = np.where(np.arange(N) == 1, np.nan, below)
    low = pasture.assign(GDM_g=below)
    low.attrs["minimum"] = 0.0
    for table, message in (
        (low, r"'GDM_g'.*-1\.5"),
        (pasture.assign(GDM_g=constant, group=places), r"fold .*'GDM_g'.*\(1 "),
        (pasture.assign(GDM_g=np.ones(N)), r"'GDM_g'.*\(1 "),
        (pasture.assign(GDM_g=gap), repr(pasture.index[1])),
        (pasture.assign(GDM_g=np.full(N, np.nan)), "GDM_g"),
        (pasture.iloc[:1], "1 "),
        (pasture[["images"]], "data.targets"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            train(a_run(None), tmp_path / "run", table=table)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file"):
        train(a_run(None), tmp_path / "file" / "run", table=pasture)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
