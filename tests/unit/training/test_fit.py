"""fit: it learns and repeats, keeps a log, takes its ids in any form, and another run does not continue a state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.histories import without_times
from tests.unit.training.small_fit import IDS, Y, flat, head, run, tokens
from torch import nn

from dinoneck import CheckpointError, ConfigError, DataError, PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.losses import Composition, CompositionLoss, TaskLoss, UncertaintyWeighting
from dinoneck.training import MemoryTokens, Recipe, fit, r2
from dinoneck.training.engine import TIMES

PARTS = Composition(("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", total="y", ratio="shares")


def test_it_learns_and_repeats_bit_for_bit() -> None:
    """The target is the share of patches of one kind, on tokens with a large common part."""
    random = np.random.RandomState(0)
    kinds = random.rand(48, 24) < random.rand(48, 1)
    sign, y, ids = np.where(kinds[..., None], 0.5, -0.5), kinds.mean(axis=1), [str(i) for i in range(48)]
    patches = 5 * random.randn(16) + sign * random.randn(16) + 0.1 * random.randn(48, 24, 16)
    source = MemoryTokens(ids, Tokens.from_patches(torch.tensor(patches).float(), grid=(4, 6), patch_size=16))
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        module = PatchMeanHead(16, [Task("share", transform=TargetTransform().fit(y[:32]))], hidden_dim=16)
        fit(module, source, {"share": y}, target_ids=ids, ids=ids[:32], lr=1e-3, seed=seed)
        heads.append(module)
    assert r2(y[32:], heads[0].predict(source.batch(ids[32:]))["share"][:, 0].numpy()) > 0.95
    assert not heads[0].training
    assert torch.equal(flat(heads[0]), flat(heads[1])) and not torch.equal(flat(heads[0]), flat(heads[2]))


def test_history_holds_the_losses_also_of_tasks_named_like_other_numbers(tmp_path: Path) -> None:
    module = head(Task("loss"), Task("epoch", weight=0.5))
    split = {"ids": IDS[:4], "val_ids": IDS[4:], "epochs": 5}
    history = run(module, targets={"loss": Y, "epoch": 2 * Y}, out=tmp_path, **split)
    parts = {"loss", "loss/loss", "loss/epoch"}
    validated = {f"val_{name}" for name in parts} | {"val_r2", "val_r2/loss", "val_r2/epoch"}
    assert [set(row) for row in history] == [parts | validated | {*TIMES}] * 5
    assert all(row[name] > 0 for row in history for name in TIMES)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(history[0]["loss/loss"] + history[0]["loss/epoch"], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": epoch, **row} for epoch, row in enumerate(history)]


def test_an_ignored_class_may_be_any_number() -> None:
    trained, classes = {}, np.array([0, 1, 2, 0, 1, 2])
    for ignored in (255, 7):
        trained[ignored] = head(Task("c", dim=3, kind="classification", ignore_index=ignored))
        run(trained[ignored], targets={"c": np.where(classes == 2, ignored, classes).astype(np.uint8)})
    assert torch.equal(flat(trained[255]), flat(trained[7]))
    with pytest.raises(DataError, match="'c'"):
        run(trained[7], targets={"c": classes * 0 + 7})


def test_ids_in_sets_and_numbers_of_numpy_are_taken_and_values_that_are_not_used_may_be_anything() -> None:
    expected = without_times(run(epochs=2, batch_size=3, lr=0.5, seed=3, ids=IDS[:4], val_ids=IDS[4:5]))
    numbers = {"epochs": np.int64(2), "batch_size": np.int32(3), "lr": np.float32(0.5), "seed": np.int64(3)}
    for ids, val_ids in ((np.array(IDS[:4]), np.array(IDS[4:5])), (set(IDS[:4]), frozenset(IDS[4:5]))):
        unused = np.where(np.arange(6) == 5, -np.inf, Y)
        assert without_times(run(**numbers, ids=ids, val_ids=val_ids, targets={"y": unused})) == expected


def changed(freeze: bool) -> dict[str, Any]:
    module = head()
    module.mlps[0].hidden.requires_grad_(not freeze)
    module.extra = None if freeze else nn.Linear(2, 2)
    return {"module": module}


def composed(*terms: Any) -> dict[str, Any]:
    module = head(Task("y"), Task("shares", dim=2, kind="ratio"))
    targets = {"y": Y, "shares": np.stack([Y, 5 - Y], axis=1) / 5}
    return {"module": module, "targets": targets, "loss": TaskLoss(module.tasks, *terms)}


class OtherWeighting(UncertaintyWeighting):
    pass


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (dict, lambda: changed(freeze=False), "trained.extra.weight"),
        (dict, lambda: changed(freeze=True), "trained.mlps.0.hidden.weight"),
        (dict, lambda: {"source": MemoryTokens(IDS, tokens(seed=1))}, "ids and targets"),
        (dict, lambda: {"ids": IDS[:5]}, "ids and targets"),
        (dict, lambda: {"targets": {"y": Y[::-1]}}, "ids and targets"),
        (dict, lambda: {"lr": 2e-3}, "recipe.lr is 0.001 there and 0.002 here"),
        (
            lambda: composed([CompositionLoss(PARTS)]),
            lambda: composed([CompositionLoss(PARTS, (0.2, 0.3, 0.5))]),
            "loss",
        ),
        (
            lambda: composed((), UncertaintyWeighting(["y", "shares"])),
            lambda: composed((), OtherWeighting(["y", "shares"])),
            "OtherWeighting",
        ),
    ],
)
def test_a_changed_head_loss_recipe_or_sample_is_another_run(
    tmp_path: Path, first: Any, second: Any, named: str
) -> None:
    run(**first(), out=tmp_path)
    run(**first(), out=tmp_path)
    content = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(CheckpointError) as refused:
        run(**second(), out=tmp_path)
    assert named in str(refused.value) and "--no-resume" in str(refused.value)
    assert (tmp_path / "state.pt").read_bytes() == content


def test_targets_of_a_composition_are_refused() -> None:
    settings = composed([PARTS])
    settings["targets"]["plant"] = np.ones((6, 3))
    with pytest.raises(ConfigError, match="'plant'"):
        run(**settings)


class Unbounded(PatchMeanHead):
    """Its loss is finite where its gradient is not, as with the square root of 0."""

    def forward(self, tokens: Any, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        outputs = super().forward(tokens, *arguments, **options)
        return {name: x + (x - x).sqrt() for name, x in outputs.items()}


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_weights_that_are_not_finite_are_neither_kept_nor_returned(clip_norm: float | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"loss is nan in epoch 0.* lr 0\.001"):
        run(Unbounded(8, [Task("y")], hidden_dim=4), batch_size=6, recipe=Recipe(clip_norm=clip_norm), out=tmp_path)
    assert not (tmp_path / "state.pt").exists()
