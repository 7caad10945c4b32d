"""What fit cannot work with is refused by name before any work, and another run does not go on from a state."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.histories import without_times
from torch import nn

from dinoneck import CheckpointError, ConfigError, DataError, PatchMeanHead, Task, Tokens
from dinoneck.losses import Composition, CompositionLoss, TaskLoss, UncertaintyWeighting
from dinoneck.training import EMA, MemoryTokens, Recipe, fit, group_folds

IDS = [f"s{i}" for i in range(6)]
Y = np.linspace(0.0, 5.0, 6)
EARLY = np.where(Y > 3, np.nan, Y)
CLASSES = np.array([0, 1, 2, 0, 1, 2])


def tokens(seed: int = 0, channels: int = 8) -> Tokens:
    sequence = torch.randn(6, 7, channels, generator=torch.Generator().manual_seed(seed))
    return Tokens.from_sequence(sequence, image_size=(32, 48), patch_size=16, num_prefix_tokens=1)


def head(*tasks: Task) -> PatchMeanHead:
    torch.manual_seed(0)
    return PatchMeanHead(8, list(tasks) or [Task("y")], hidden_dim=4)


def run(module: Any = None, source: Any = None, **changes: Any) -> list[dict[str, float]]:
    given = {"targets": {"y": Y}, "target_ids": IDS, "epochs": 1, "batch_size": 4, "lr": 1e-3, **changes}
    return fit(module or head(), source or MemoryTokens(IDS, tokens()), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": nn.Linear(2, 2)}, "head is Linear"),
        ({"recipe": {"patience": 2}}, "expected Recipe"),
        ({"lr": "1e-4"}, "lr is '1e-4'"),
    ],
)
def test_arguments_of_another_kind(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": Y}, "targets is ndarray"),
        ({"targets": {"y": ["a"] * 6}}, "'y' are not numbers"),
        ({"targets": {"y": Y * 1e200}}, "1e\\+200"),
        (
            {"targets": {"y": EARLY}, "ids": IDS[:4], "val_ids": IDS[4:], "recipe": Recipe(patience=1)},
            "no validation id has a target",
        ),
        ({"source": [1]}, "source is list"),
        ({"targets": {"y": [[1], [2, 3]]}}, "'y' are not numbers"),
    ],
)
def test_targets_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (Task("c", dim=3, kind="classification"), CLASSES + 1, "reach from 1 to 3; expected classes 0 ... 2"),
        (Task("c", dim=3, kind="classification", ignore_index=255), CLASSES * 0 + 255, "no target value"),
        (Task("c", dim=3, kind="ratio"), -np.eye(3)[CLASSES], "-1.0"),
        (Task("c", dim=3, kind="ratio"), np.eye(3)[CLASSES] * 0.6, "0.6"),
    ],
)
def test_classes_and_shares_out_of_range(task: Task, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(head(task), targets={"c": values})


def test_an_ignored_class_may_be_any_number() -> None:
    trained = {}
    for ignored in (255, 7):
        trained[ignored] = head(Task("c", dim=3, kind="classification", ignore_index=ignored))
        run(trained[ignored], targets={"c": np.where(CLASSES == 2, ignored, CLASSES).astype(np.uint8)})
    for one, other in zip(trained[255].parameters(), trained[7].parameters(), strict=True):
        assert torch.equal(one, other)


def test_ids_and_numbers_of_numpy_are_taken() -> None:
    numbers = {"epochs": np.int64(2), "batch_size": np.int32(3), "lr": np.float32(0.5), "seed": np.int64(3)}
    ids = {"ids": np.array(IDS[:4]), "val_ids": np.array(IDS[4:])}
    expected = run(epochs=2, batch_size=3, lr=0.5, seed=3, ids=IDS[:4], val_ids=IDS[4:])
    assert without_times(run(**numbers, **ids)) == without_times(expected)


def test_the_order_of_a_set_of_ids_does_not_matter() -> None:
    expected = run(ids=IDS[:5], val_ids=IDS[5:], seed=1)
    assert without_times(run(ids=set(IDS[:5]), val_ids=frozenset(IDS[5:]), seed=1)) == without_times(expected)


def test_a_frozen_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="all parameters of this PatchMeanHead are frozen"):
        run(head().requires_grad_(False))


def grown() -> PatchMeanHead:
    module = head()
    module.extra = nn.Linear(2, 2)
    return module


def part_frozen() -> PatchMeanHead:
    module = head()
    module.mlps[0].hidden.requires_grad_(False)
    return module


def others() -> MemoryTokens:
    return MemoryTokens(IDS, tokens(seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": grown}, r"trained\.extra\.weight.* is None there"),
        ({"module": part_frozen}, r"trained\.mlps\.0\.hidden\.weight.* is .* here"),
        ({"source": others}, "ids and targets is"),
    ],
)
def test_a_changed_head_or_sample_is_another_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run(out=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        run(out=tmp_path, **{name: make() for name, make in changes.items()})


class Unbounded(PatchMeanHead):
    """Its loss is finite where its gradient is not, as with the square root of 0."""

    def forward(self, tokens: Any, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        outputs = super().forward(tokens, *arguments, **options)
        return {name: x + (x - x).sqrt() for name, x in outputs.items()}


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(clip_norm=None)])
def test_weights_that_are_not_finite_are_neither_kept_nor_returned(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the norm of the weights is nan in epoch 0: training diverged at lr 0.001"):
        run(Unbounded(8, [Task("y")], hidden_dim=4), batch_size=6, recipe=recipe, out=tmp_path)
    assert not (tmp_path / "state.pt").exists()


def test_runs_in_threads_have_the_results_of_runs_one_after_another() -> None:
    weights: dict[int, torch.Tensor] = {}

    def learn(number: int, module: PatchMeanHead) -> None:
        run(module, epochs=20, seed=number % 2, recipe=Recipe(mixup_alpha=1.0))
        weights[number] = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    heads = [head() for _ in range(5)]
    learn(0, heads[0])
    threads = [threading.Thread(target=learn, args=(i, heads[i])) for i in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[0], weights[4])
    assert torch.equal(weights[1], weights[3]) and not torch.equal(weights[0], weights[1])


PARTS = Composition(("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", total="y", ratio="shares")
RATIO = Task("shares", dim=2, kind="ratio")
SHARES = np.stack([Y, 5 - Y], axis=1) / 5


class OtherWeighting(UncertaintyWeighting):
    pass


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            [[CompositionLoss(PARTS)]],
            [[CompositionLoss(PARTS, (0.2, 0.3, 0.5))]],
            r"compositions.plant.weights is None",
        ),
        ([[CompositionLoss(PARTS)]], [[CompositionLoss(PARTS, beta=2.0)]], r"compositions.plant.beta is 1.0 there"),
        ([(), UncertaintyWeighting(["y", "shares"])], [(), OtherWeighting(["y", "shares"])], "OtherWeighting"),
    ],
)
def test_a_loss_of_other_values_is_another_run(tmp_path: Path, first: Any, second: Any, message: str) -> None:
    def trained(*terms: Any) -> None:
        module = head(Task("y"), RATIO)
        run(module, targets={"y": Y, "shares": SHARES}, loss=TaskLoss(module.tasks, *terms), out=tmp_path)

    trained(*first)
    trained(*first)
    with pytest.raises(CheckpointError, match=rf"loss\..*{message}.*--no-resume"):
        trained(*second)


def test_tied_weights_stay_tied_in_the_average() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    average = EMA(model, 0.5, warmup=False)
    begin = model["a"].weight.detach().clone()
    with torch.no_grad():
        model["a"].weight.add_(1.0)
    average.update(model)
    average.copy_to(model)
    for name in ("a", "b"):
        assert torch.allclose(model[name].weight, begin + 0.5)  # type: ignore[arg-type]


def test_rows_without_a_group_are_refused_and_tensors_are_labels() -> None:
    with pytest.raises(DataError, match="group is missing in 2 rows: row 1"):
        group_folds(np.array([1.0, np.nan, 2.0, np.nan]), 2, 0)  # type: ignore[arg-type]
    expected = group_folds([0, 0, 1, 1], 2, 0)
    for (train, valid), (own, other) in zip(group_folds(torch.tensor([0, 0, 1, 1]), 2, 0), expected, strict=True):  # type: ignore[arg-type]
        assert train.tolist() == own.tolist()
        assert valid.tolist() == other.tolist()
