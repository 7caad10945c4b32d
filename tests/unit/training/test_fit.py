"""fit: it learns, repeats, masks, and leaves the head's function to training alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dinoneck import ConfigError, DataError, PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.training import MemoryTokens, Recipe, fit, r2
from dinoneck.training.engine import TIMES

PLAIN = Recipe(ema_decay=None)
QUICK = {"epochs": 40, "batch_size": 8, "lr": 1e-3, "recipe": PLAIN}


def problem(n: int = 48) -> tuple[MemoryTokens, np.ndarray]:
    """Images whose target is the share of patches of one kind, on tokens with a large common part."""
    random = np.random.RandomState(0)
    common = random.randn(16) * 5
    kinds = random.rand(n, 24) < random.rand(n, 1)
    sign = np.where(kinds[..., None], 0.5, -0.5)
    patches = common + sign * np.random.RandomState(1).randn(16) + 0.1 * random.randn(n, 24, 16)
    sequence = np.concatenate((np.zeros((n, 1, 16)), patches), axis=1)
    tokens = Tokens.from_sequence(
        torch.tensor(sequence, dtype=torch.float32), image_size=(64, 96), patch_size=16, num_prefix_tokens=1
    )
    return MemoryTokens([str(i) for i in range(n)], tokens), kinds.mean(axis=1)


def trained(source: MemoryTokens, y: np.ndarray, seed: int = 0, **arguments: object) -> PatchMeanHead:
    torch.manual_seed(0)
    head = PatchMeanHead(16, [Task("share", transform=TargetTransform().fit(y[:32]))], hidden_dim=16)
    fit(
        head,
        source,
        targets={"share": y},
        target_ids=source.ids,
        ids=source.ids[:32],
        seed=seed,
        **{**QUICK, **arguments},
    )  # type: ignore[arg-type]
    return head


def predictions(head: PatchMeanHead, source: MemoryTokens) -> np.ndarray:
    return head.predict(source.batch(source.ids[32:]))["share"][:, 0].numpy()


def test_it_learns_and_repeats_bit_for_bit() -> None:
    source, y = problem()
    head, again, other = trained(source, y), trained(source, y), trained(source, y, seed=1)
    assert r2(y[32:], predictions(head, source)) > 0.95
    assert not head.training
    for one, two in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(head.mlps[0].hidden.weight, other.mlps[0].hidden.weight)


def test_history_holds_the_losses_also_of_tasks_named_like_other_numbers(tmp_path: Path) -> None:
    source, y = problem()
    torch.manual_seed(0)
    head = PatchMeanHead(16, [Task("loss"), Task("epoch", weight=0.5)])
    given = {"target_ids": source.ids, "ids": source.ids[:32], "val_ids": source.ids[32:], "out": tmp_path}
    history = fit(head, source, targets={"loss": y, "epoch": 2 * y}, **given, **QUICK | {"epochs": 5})
    parts = {"loss", "loss/loss", "loss/epoch"}
    validated = {f"val_{name}" for name in parts} | {"val_r2", "val_r2/loss", "val_r2/epoch"}
    assert [set(row) for row in history] == [parts | validated | {*TIMES}] * 5
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 and row["peak_memory_mb"] > 0 for row in history)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(history[0]["loss/loss"] + history[0]["loss/epoch"], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": epoch, **row} for epoch, row in enumerate(history)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": []}, ConfigError, "0 ids to train on"),
        ({"targets": {}}, DataError, "no targets for 'share'"),
        ({"targets": {"share": np.zeros(3)}}, DataError, r"targets 'share' has shape \(3,\) for 48 ids"),
    ],
)
def test_impossible_calls(change: dict, error: type[Exception], message: str) -> None:
    source, y = problem()
    arguments = {"targets": {"share": y}, "target_ids": source.ids} | change
    with pytest.raises(error, match=message):
        fit(PatchMeanHead(16, [Task("share")]), source, **arguments)


def test_targets_an_activation_cannot_reach_are_refused() -> None:
    source, y = problem()
    scored = Task("share", activation="relu", transform=TargetTransform().fit(y))
    with pytest.raises(DataError, match=r"'relu' cannot reach targets of -.*leave the activation out"):
        fit(PatchMeanHead(16, [scored]), source, targets={"share": y}, target_ids=source.ids)
    with pytest.raises(DataError, match="sigmoid"):
        fit(PatchMeanHead(16, [Task("x", activation="sigmoid")]), source, targets={"x": y * 5}, target_ids=source.ids)
    fit(PatchMeanHead(16, [Task("x", activation="relu")]), source, targets={"x": y}, target_ids=source.ids, epochs=1)


def test_training_that_cannot_work_is_refused() -> None:
    source, y = problem()
    head = PatchMeanHead(16, [Task("x")])
    with pytest.raises(DataError, match=r"training diverged at lr 1e\+30; lower it"):
        fit(head, source, targets={"x": y}, target_ids=source.ids, lr=1e30, epochs=3)
    with pytest.raises(DataError, match="inf"):
        fit(head, source, targets={"x": np.where(y > y.mean(), np.inf, y)}, target_ids=source.ids)
    with pytest.raises(DataError, match="'x' has no target value among the 48 training ids"):
        fit(head, source, targets={"x": np.full(48, np.nan)}, target_ids=source.ids)
    for wrong in ({"epochs": 1.5}, {"batch_size": 0}, {"lr": float("inf")}, {"seed": 1.5}, {"lr": float("nan")}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is "):
            fit(head, source, targets={"x": y}, target_ids=source.ids, **wrong)  # type: ignore[arg-type]


def test_values_that_cannot_be_learnt_are_named() -> None:
    source, y = problem()
    given = {"target_ids": source.ids, "epochs": 1}
    below = np.where(np.arange(48) == 7, -3.0, y)
    with pytest.raises(DataError, match=r"1 image with targets of 'x' below the minimum of 0: '7' \(-3\)"):
        fit(PatchMeanHead(16, [Task("x", minimum=0)]), source, targets={"x": below}, **given)
    unused = [image_id for image_id in source.ids if image_id != "7"]
    fit(PatchMeanHead(16, [Task("x", minimum=0)]), source, targets={"x": below}, ids=unused, **given)
    constant = Task("x", transform=TargetTransform(mean=2.5, std=1.0))
    with pytest.raises(DataError, match=r"'x' are 2.5 for every training image; there is nothing to learn"):
        fit(PatchMeanHead(16, [constant]), source, targets={"x": np.full(48, 2.5)}, **given)
    with pytest.raises(DataError, match="for every training image"):
        fit(PatchMeanHead(16, [Task("x")]), source, targets={"x": y}, ids=["3"], **given)


def test_where_gradients_are_off_nothing_is_trained() -> None:
    source, y = problem()
    with (
        torch.inference_mode(),
        pytest.raises(ConfigError, match="no_grad"),
    ):
        trained(source, y)


def test_class_labels_have_one_per_image() -> None:
    source, _ = problem()
    head = PatchMeanHead(16, [Task("kind", dim=3, kind="classification")])
    with pytest.raises(DataError, match=r"expected \(48,\)"):
        fit(head, source, targets={"kind": np.zeros((48, 3), int)}, target_ids=source.ids)
    with pytest.raises(DataError, match="float64; expected integer class indices"):
        fit(head, source, targets={"kind": np.full(48, 2.7)}, target_ids=source.ids)
