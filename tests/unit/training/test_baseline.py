"""The linear baseline of a run is the ridge or logistic regression of the mean token, written plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import HeadEnsemble, LinearHead, TargetTransform, Task, Tokens
from dinoneck.grid import GridSize
from dinoneck.training import MemoryTokens
from dinoneck.training.baselines import PENALTIES, baseline_head, ridge_coefficients

N, WIDTH, GRID = 40, 6, (2, 3)
TRAIN = np.arange(30)
RANDOM = np.random.RandomState(0)
PATCHES = torch.tensor(RANDOM.randn(N, 6, WIDTH) + RANDOM.randn(N, 1, WIDTH), dtype=torch.float32)
MEANS = PATCHES.double().mean(dim=1).numpy()
GROUPS = [f"g{row // 2}" for row in range(N)]


def source(patches: torch.Tensor = PATCHES, layers: int = 1) -> MemoryTokens:
    """Tokens whose last layer holds the patches; the layers before it hold noise."""
    noise = [torch.randn_like(patches) for _ in range(layers - 1)]
    tokens = Tokens((*noise, patches), grid=GridSize(*GRID), patch_size=16, layers=tuple(range(layers)))
    return MemoryTokens([f"p{i}" for i in range(N)], tokens)


def predicted(head: Any, of: MemoryTokens) -> dict[str, np.ndarray]:
    return {name: x.double().numpy() for name, x in head.eval().predict(of.batch(of.ids)).items()}


@pytest.mark.parametrize("layers", [1, 3])
def test_values_are_read_by_ridge_regression(layers: int) -> None:
    y = 100 + 20 * MEANS @ RANDOM.randn(WIDTH) + RANDOM.randn(N)
    task = Task("y", transform=TargetTransform().fit(torch.tensor(y[TRAIN])))
    own = source(layers=layers)
    head = baseline_head(own, {"y": torch.tensor(y)}, TRAIN, [task], groups=GROUPS)
    mean, std, offset = MEANS[TRAIN].mean(axis=0), MEANS[TRAIN].std(axis=0), y[TRAIN].mean()
    z = (MEANS - mean) / std
    found = predicted(head, own)["y"][:, 0]
    each = []
    for alpha in 10.0 ** np.arange(-2, 6):
        w = np.linalg.solve(z[TRAIN].T @ z[TRAIN] + alpha * np.eye(WIDTH), z[TRAIN].T @ (y[TRAIN] - offset))
        each.append(np.abs(z @ w + offset - found).max())
    assert min(each) < 1e-2, "one of the strengths gives these predictions"
    weight, bias = ridge_coefficients(MEANS[TRAIN], y[TRAIN, None], [GROUPS[row] for row in TRAIN])
    np.testing.assert_allclose(found, (MEANS @ weight.T + bias)[:, 0], rtol=1e-4)
    assert np.abs(found[30:] - y[30:]).mean() < 0.2 * y.std()


def test_rows_without_a_value_are_not_fitted() -> None:
    y = MEANS @ RANDOM.randn(WIDTH)
    gaps = y.copy()
    gaps[::3] = np.nan
    rows = [row for row in TRAIN if row % 3]
    whole = baseline_head(source(), {"y": torch.tensor(gaps)}, TRAIN, [Task("y")])
    part = baseline_head(source(), {"y": torch.tensor(y)}, rows, [Task("y")])
    np.testing.assert_allclose(predicted(whole, source())["y"], predicted(part, source())["y"], rtol=1e-6)


def test_classes_are_read_by_logistic_regression() -> None:
    """Probabilities are those of scikit-learn with one of the penalties; rows without a class are left out."""
    linear = pytest.importorskip("sklearn.linear_model")
    classes = (MEANS @ RANDOM.randn(WIDTH, 3) + RANDOM.randn(N, 3)).argmax(axis=1)
    labelled = classes.copy()
    labelled[:30:7] = -1
    task = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))
    found = predicted(baseline_head(source(), {"kind": torch.tensor(labelled)}, TRAIN, [task]), source())["kind"]
    rows = TRAIN[labelled[TRAIN] >= 0]
    z = (MEANS - MEANS[rows].mean(axis=0)) / MEANS[rows].std(axis=0)
    each = []
    for penalty in PENALTIES:
        peer = linear.LogisticRegression(C=1 / (2 * penalty * len(rows)), tol=1e-8, max_iter=10_000)
        each.append(np.abs(peer.fit(z[rows], labelled[rows]).predict_proba(z) - found).max())
    assert min(each) < 2e-2, each


def test_maps_are_read_from_every_patch() -> None:
    maps = 5 + (PATCHES.double().numpy() @ RANDOM.randn(WIDTH)).reshape(N, 1, *GRID)
    gaps = maps.copy()
    gaps[::2, :, 0] = np.nan
    classes = (maps[:, 0] > 5).astype(np.int64)
    y = MEANS @ RANDOM.randn(WIDTH)
    tasks = [Task("map", kind="dense"), Task("seg", dim=2, kind="segmentation"), Task("y")]
    targets = {"map": torch.tensor(gaps), "seg": torch.tensor(classes), "y": torch.tensor(y)}
    head = baseline_head(source(), targets, TRAIN, tasks)
    assert isinstance(head, HeadEnsemble) and all(isinstance(member, LinearHead) for member in head.heads)
    found = predicted(head, source())
    np.testing.assert_allclose(found["map"][30:], maps[30:], atol=0.05)
    assert (found["seg"][30:].argmax(axis=1) == classes[30:]).mean() > 0.95
    np.testing.assert_allclose(found["y"][30:, 0], y[30:], atol=0.2)


def test_held_out_rows_change_nothing() -> None:
    moved, y = PATCHES.clone(), MEANS @ RANDOM.randn(WIDTH)
    moved[30:] = 50.0
    poisoned = np.where(np.arange(N) < 30, y, -1e4)
    classes, maps = np.arange(N) % 2, PATCHES.double().numpy().mean(axis=2).reshape(N, 1, *GRID)
    other = np.where(np.arange(N)[:, None, None, None] < 30, maps, 7e3)
    tasks = [Task("y"), Task("kind", dim=2, kind="classification", labels=("a", "b")), Task("map", kind="dense")]
    states = []
    for patches, values, kinds, dense in ((PATCHES, y, classes, maps), (moved, poisoned, classes * 0, other)):
        kinds = np.where(np.arange(N) < 30, classes, kinds)
        targets = {"y": torch.tensor(values), "kind": torch.tensor(kinds), "map": torch.tensor(dense)}
        states.append(baseline_head(source(patches), targets, TRAIN, tasks, groups=GROUPS).state_dict())
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
