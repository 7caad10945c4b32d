"""The linear baseline: exact on linear data, by kind of task, and averaged with a head of the same tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import HeadEnsemble, PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.heads import DenseHead, LinearHead
from dinoneck.losses import Composition
from dinoneck.training import MemoryTokens, ridge_probe
from dinoneck.training.baseline import _minimised, baseline_head

N, C, GRID = 60, 6, (2, 3)
IDS = [f"i{i}" for i in range(N)]
ROWS = [*range(40)]


def source(layers: int = 1) -> MemoryTokens:
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(N, 6, C, generator=generator) + torch.randn(N, 1, C, generator=generator) for _ in range(layers)
    ]
    return MemoryTokens(IDS, Tokens.from_patches(maps, grid=GRID, patch_size=16))


def means(tokens: MemoryTokens) -> torch.Tensor:
    return tokens.tokens.last.patches[0].double().mean(dim=1)


def test_numbers_are_the_ridge_of_the_probe_in_original_units() -> None:
    tokens = source(layers=2)
    random = np.random.default_rng(0)
    y = (means(tokens) @ torch.arange(1.0, C + 1).double()).numpy() * 20 + 300 + random.normal(size=N)
    holes = np.where(np.arange(N) % 5 == 0, np.nan, y)
    tasks = [Task("a", transform=TargetTransform().fit(y)), Task("b", activation="relu")]
    groups = [i // 4 for i in range(N)]
    targets = {"a": torch.tensor(y), "b": torch.tensor(holes)[:, None]}
    head = baseline_head(tokens, targets, ROWS, tasks, (), groups)
    assert isinstance(head, LinearHead)
    found = head.predict(tokens.batch(IDS))
    held_out = (np.array(ROWS), np.arange(40, N))
    kept = np.array([row for row in ROWS if not np.isnan(holes[row])])
    for name, fold, values in (("a", held_out, y), ("b", (kept, held_out[1]), holes)):
        expected = ridge_probe(tokens, values[:, None], [fold], target_ids=IDS, groups=groups)
        assert np.allclose(found[name][40:, 0].numpy(), expected[40:, 0], rtol=1e-4)


def test_classes_and_ratios_are_softmax_regressions() -> None:
    tokens = source()
    logits = means(tokens) @ torch.randn(C, 3, generator=torch.Generator().manual_seed(1)).double() * 4
    classes = logits.argmax(dim=1)
    classes[::7] = -1
    tasks = [Task("kind", dim=3, kind="classification"), Task("parts", dim=3, kind="ratio", labels=("x", "y", "z"))]
    tasks.append(Task("mass"))
    composition = Composition(("x", "y", "z"), {}, "masses", total="mass", ratio="parts")
    targets = {"kind": classes, "parts": logits.softmax(dim=1), "mass": means(tokens)[:, 0] + 5}
    head = baseline_head(tokens, targets, ROWS, tasks, [composition])
    found = head.predict(tokens.batch(IDS))
    known = classes[40:] >= 0
    assert (found["kind"][40:].argmax(dim=1) == classes[40:])[known].double().mean() > 0.7
    assert torch.allclose(found["parts"][40:].double(), logits.softmax(dim=1)[40:], atol=0.2)
    assert torch.allclose(found["masses"].sum(dim=1), found["mass"][:, 0], rtol=1e-4)


def test_softmax_regression_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, classes, penalty = means(source()), torch.arange(N) % 3, 1e-2
    weight, bias = _minimised(x, torch.nn.functional.one_hot(classes).double(), penalty)
    peer = linear_model.LogisticRegression(C=1 / (2 * penalty * N), tol=1e-10, max_iter=1000).fit(x, classes)
    expected = peer.predict_proba(x)
    assert np.allclose((x @ weight.T + bias).softmax(dim=1), expected, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_maps_are_read_from_every_patch(layers: int) -> None:
    tokens = source(layers)
    patches = torch.cat([x.double() for x in tokens.tokens.patches], dim=-1)
    values = (patches @ torch.randn(layers * C, 2, generator=torch.Generator().manual_seed(2)).double()).movedim(1, -1)
    maps = values.reshape(N, 2, *GRID)
    dense = maps.clone()
    dense[3, :, 0, 0] = torch.nan
    mask = (maps[:, :1] > 0)[:, 0].long().repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask[5] = -1
    count = means(tokens)[:, 0] * 3 + 7
    tasks = [
        Task("map", dim=2, kind="dense", transform=TargetTransform(mean=2.0, std=3.0)),
        Task("count", kind="density"),
    ]
    tasks += [Task("mask", dim=2, kind="segmentation")]
    targets = {"map": dense, "mask": mask, "count": count}
    head = baseline_head(tokens, targets, ROWS, tasks, ())
    found = head.predict(tokens.batch(IDS))
    assert torch.allclose(found["map"].double(), maps, atol=0.05)
    assert torch.allclose(found["count"][:, 0].double(), count, atol=0.05)
    right = found["mask"].argmax(dim=1) == (maps[:, 0] > 0)
    assert right[40:].double().mean() > 0.95


def test_only_the_training_rows_are_read() -> None:
    tokens, poisoned = source(), source()
    poisoned.tokens.sequence[0][40:] = torch.nan
    y = means(tokens)[:, 1]
    wrong = torch.where(torch.arange(N) < 40, y, 1e9)
    one, other = (baseline_head(s, {"a": v}, ROWS, [Task("a")], ()) for s, v in ((tokens, y), (poisoned, wrong)))
    assert torch.equal(one.readouts[0].weight, other.readouts[0].weight)


def test_it_is_averaged_with_heads_of_the_same_tasks() -> None:
    tokens, y = source(), means(source())[:, 0]
    task = Task("a", activation="softplus", minimum=0)
    baseline = baseline_head(tokens, {"a": y + 9}, ROWS, [task], ())
    head = PatchMeanHead(C, [task])
    both: Any = HeadEnsemble.from_heads([head, baseline]).predict(tokens.batch(IDS))["a"]
    assert torch.allclose(both, (head.predict(tokens.batch(IDS))["a"] + baseline.predict(tokens.batch(IDS))["a"]) / 2)
    maps = [Task("map", kind="dense"), Task("mean", from_cells="map")]
    dense = baseline_head(tokens, {"map": torch.rand(N, 1, *GRID), "mean": y}, ROWS, maps, ())
    assert HeadEnsemble.from_heads([DenseHead(C, maps), dense]).predict(tokens.batch(IDS))["mean"].shape == (N, 1)
    mixed = baseline_head(tokens, {"map": torch.rand(N, 1, *GRID), "a": y}, ROWS, [maps[0], task], ())
    assert {own.name for own in mixed.tasks} == {"a", "map"}
