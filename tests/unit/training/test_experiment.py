"""A run's heads are on disk before anything is computed from them, and results that cannot be are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import DataError, load_backbone, load_head
from dinoneck.cli.train import told_size
from dinoneck.data import Pasture, Preprocessing, Table
from dinoneck.training import CellTargets, MemoryTokens, Plan, RunOptions, experiment, fold_training, run_experiment

N = 8


@pytest.fixture(scope="module")
def meadow() -> tuple[Table, Any, MemoryTokens]:
    table = Pasture(size=(32, 64)).table(range(N))
    table = replace(table, targets={"GDM_g": table.targets["GDM_g"]}, weights={}, groups=None)
    backbone = load_backbone("dinoneck_tiny")
    return table, backbone, MemoryTokens.extract(backbone, table.photos, table.ids)


def run(meadow: Any, out: Path, plan: Plan, cells: CellTargets | None = None, **changes: Any) -> dict[str, Any]:
    table, backbone, source = meadow
    table = replace(table, **changes)
    options = RunOptions(source=source)
    return run_experiment(table, backbone, backbone.preprocess, out, plan, cells=cells, options=options)[2]


def test_one_fold_with_labels_is_scored_on_its_own_images(meadow: Any, tmp_path: Path) -> None:
    values = torch.rand(N, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    cells = CellTargets(values, torch.ones(N, 2, 4), ("a", "b"), ids=meadow[0].ids)
    report = run(meadow, tmp_path, Plan(folds=2, fold=1, epochs=1, head="fpn", hidden_dim=8), cells)
    assert set(report["cell_scores"]) == {"a", "b"}
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["fold-1.safetensors"]
    assert not (tmp_path / "unfinished").exists()


def test_a_report_that_fails_costs_no_training(
    meadow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(folds=2, epochs=2)
    expected = run(meadow, tmp_path / "undisturbed", plan)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("in the report")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_report", broken)
        with pytest.raises(ZeroDivisionError):
            run(meadow, tmp_path / "run", plan)
    assert "the heads are trained and kept in" in caplog.text
    kept = [tmp_path / "run" / "unfinished" / f"fold-{fold}" / "head.safetensors" for fold in range(2)]
    _, _, source = meadow
    before = [load_head(path).predict(source.batch(source.ids))["GDM_g"] for path in kept]

    def no_step(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("dinoneck.training.loop.Loop._step", no_step)
    assert run(meadow, tmp_path / "run", plan)["scores"] == expected["scores"]
    after = [load_head(tmp_path / "run" / "heads" / f"fold-{fold}.safetensors") for fold in range(2)]
    for values, head in zip(before, after, strict=True):
        assert torch.equal(values, head.predict(source.batch(source.ids))["GDM_g"])
    assert not (tmp_path / "run" / "unfinished").exists()


def test_a_fold_that_diverged_is_named(meadow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fold_training.fit

    def diverged(head: Any, *arguments: Any, **given: Any) -> Any:
        history = real(head, *arguments, **given)
        with torch.no_grad():
            head.mlps[0].out.bias.fill_(3e38)
        return history

    monkeypatch.setattr(fold_training, "fit", diverged)
    with pytest.raises(DataError, match=r"fold 0: the predictions of GDM_g are not finite.*at lr 0.001; lower it"):
        run(meadow, tmp_path, Plan(folds=2, epochs=1))


@pytest.mark.parametrize("lr", [1e9, 1e30])
def test_a_learning_rate_that_is_far_too_high_is_named(meadow: Any, tmp_path: Path, lr: float) -> None:
    with pytest.raises(DataError, match=r"fold 0: .*diverged.*lower (lr|it)"):
        run(meadow, tmp_path, Plan(folds=2, epochs=2, lr=lr))


def test_targets_that_cannot_be_learnt_are_refused_before_the_work(meadow: Any, tmp_path: Path) -> None:
    values = meadow[0].targets["GDM_g"].copy()
    values[2] = -1.5
    with pytest.raises(DataError, match=r"'GDM_g' below the minimum of 0: '.*' \(-1.5\)"):
        run(meadow, tmp_path, Plan(folds=2), targets={"GDM_g": values}, minimum=0.0)
    groups = ("one",) * (N // 2) + ("other",) * (N // 2)
    constant = np.where(np.arange(N) < N // 2, 1.0, np.arange(N))
    with pytest.raises(DataError, match=r"'GDM_g' are 1 for every training image of fold [01]"):
        run(meadow, tmp_path, Plan(folds=2), targets={"GDM_g": constant}, groups=groups)
    assert not any(tmp_path.iterdir())


def test_a_crop_changes_no_proportions() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    cropped = told_size(Preprocessing(patch_size=16, size=(360, 480), policy="crop"), image)
    assert not any("proportions" in line for line in cropped)
    bent = told_size(Preprocessing(patch_size=16, size=(320, 480), policy="crop"), image)
    assert any("changes its proportions" in line for line in bent)
