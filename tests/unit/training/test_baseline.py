"""The linear baseline of a run and the probes are ridge, logistic regression and neighbours, written plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dinoneck import HeadEnsemble, LinearHead, TargetTransform, Task, Tokens
from dinoneck.grid import GridSize
from dinoneck.training import MemoryTokens, knn_probe, ridge_probe
from dinoneck.training.baselines import ALPHAS, PENALTIES, baseline_head, knn_path, ridge_path

N, WIDTH, GRID = 40, 6, (2, 3)
TRAIN, FOLDS = np.arange(30), [(np.arange(30), np.arange(30, 40))]
RANDOM = np.random.RandomState(0)
PATCHES = torch.tensor(RANDOM.randn(N, 6, WIDTH) + RANDOM.randn(N, 1, WIDTH), dtype=torch.float32)
MEANS = PATCHES.double().mean(dim=1).numpy()
Z = (MEANS - MEANS[TRAIN].mean(axis=0)) / MEANS[TRAIN].std(axis=0)
GROUPS = [f"g{row // 2}" for row in range(N)]
Y = 100 + 20 * MEANS @ RANDOM.randn(WIDTH) + RANDOM.randn(N)
KINDS = (MEANS @ RANDOM.randn(WIDTH, 3) + RANDOM.randn(N, 3)).argmax(axis=1)
MAPS = 5 + (PATCHES.double().numpy() @ RANDOM.randn(WIDTH)).reshape(N, 1, *GRID)
KIND = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))


def source(patches: torch.Tensor = PATCHES, layers: int = 1) -> MemoryTokens:
    """Tokens whose last layer holds the patches; the layers before it hold noise."""
    noise = [torch.randn_like(patches) for _ in range(layers - 1)]
    tokens = Tokens((*noise, patches), grid=GridSize(*GRID), patch_size=16, layers=tuple(range(layers)))
    return MemoryTokens([f"p{i}" for i in range(N)], tokens)


def fitted(*tasks: Task, of: MemoryTokens | None = None, rows: Any = TRAIN, **targets: Any) -> dict[str, np.ndarray]:
    """What the baseline of these rows predicts for all images."""
    own = of or source()
    head = baseline_head(own, {name: torch.tensor(x) for name, x in targets.items()}, rows, tasks, groups=GROUPS)
    assert all(isinstance(each, LinearHead) for each in (head.heads if isinstance(head, HeadEnsemble) else [head]))
    return {name: x.double().numpy() for name, x in head.eval().predict(own.batch(own.ids)).items()}


def closed_form(alpha: float) -> np.ndarray:
    """Ridge regression on standardised features, by its normal equations."""
    offset = Y[TRAIN].mean()
    w = np.linalg.solve(Z[TRAIN].T @ Z[TRAIN] + alpha * np.eye(WIDTH), Z[TRAIN].T @ (Y[TRAIN] - offset))
    return Z @ w + offset


def test_ridge_is_the_closed_form() -> None:
    every = ridge_path(MEANS[TRAIN], Y[TRAIN, None], MEANS)
    np.testing.assert_allclose(every[..., 0], [closed_form(alpha) for alpha in ALPHAS], rtol=1e-6)
    probe = ridge_probe(source(), {"y": Y}, FOLDS, target_ids=source().ids, groups=GROUPS)
    assert np.isnan(probe[TRAIN]).all()
    assert min(np.abs(own[30:, 0] - probe[30:, 0]).max() for own in every) < 1e-9, "one of the strengths"
    for layers in (1, 3):
        own = source(layers=layers)
        found = fitted(Task("y", transform=TargetTransform().fit(torch.tensor(Y[TRAIN]))), of=own, y=Y)["y"]
        np.testing.assert_allclose(found[30:], probe[30:], rtol=1e-4)


def test_neighbours_are_the_nearest_by_cosine() -> None:
    """A plain double loop; the scale of a channel does not matter, since features are standardised."""
    x = MEANS * [1, 1, 1, 1, 1, 1000]
    (found,) = knn_path(x[TRAIN], Y[TRAIN, None], x[30:], [3])
    for row, predicted in zip(Z[30:], found, strict=True):
        cosine = [row @ z / np.linalg.norm(row) / np.linalg.norm(z) for z in Z[TRAIN]]
        assert predicted[0] == pytest.approx(Y[np.argsort(cosine)[::-1][:3]].mean())
    probe = knn_probe(source(), {"y": Y}, FOLDS, target_ids=source().ids, k=3)
    np.testing.assert_allclose(probe[30:], found, rtol=1e-6)


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_probes_match_ids_and_choose_within_a_single_group_by_rows(probe: Any) -> None:
    """Of noise, the strongest ridge and the most neighbours are right, not the first in the list."""
    ids, noise = source().ids, RANDOM.randn(N, 2)
    expected = probe(source(), {"a": noise[:, 0], "b": noise[:, 1]}, FOLDS, target_ids=ids)
    assert np.abs(expected[30:] - noise[:30].mean(axis=0)).max() < 0.5 * noise.std()
    order = [*range(30, N), *range(30)][::-1]
    shuffled = MemoryTokens([ids[i] for i in order], Tokens.from_patches(PATCHES[order], grid=GRID, patch_size=16))
    np.testing.assert_allclose(probe(shuffled, noise, FOLDS, target_ids=ids)[30:], expected[30:], rtol=1e-6)
    one = probe(source(), noise, FOLDS, target_ids=ids, groups=["a"] * 30 + ["b"] * 10)
    assert np.array_equal(one, expected, equal_nan=True)


def test_each_target_learns_from_the_rows_in_which_it_is_known() -> None:
    gaps, rows = np.where(np.arange(N) % 3, Y, np.nan), [row for row in TRAIN if row % 3]
    np.testing.assert_allclose(fitted(Task("y"), y=gaps)["y"], fitted(Task("y"), y=Y, rows=rows)["y"], rtol=1e-6)
    ids, others = source().ids, np.where(np.arange(N) % 2, Y[::-1], np.nan)
    both = ridge_probe(source(), {"u": gaps, "v": others}, FOLDS, target_ids=ids)
    for column, (values, own) in enumerate(((Y, rows), (Y[::-1], [row for row in TRAIN if row % 2]))):
        alone = ridge_probe(source(), {"x": values}, [(np.array(own), FOLDS[0][1])], target_ids=ids)
        np.testing.assert_allclose(both[30:, column], alone[30:, 0])


def test_classes_are_read_by_logistic_regression() -> None:
    """Probabilities are those of scikit-learn with one of the penalties; rows without a class are left out."""
    labelled = np.where(np.arange(N) % 7, KINDS, -1)
    found, rows = fitted(KIND, kind=labelled)["kind"], TRAIN[labelled[TRAIN] >= 0]
    z = (MEANS - MEANS[rows].mean(axis=0)) / MEANS[rows].std(axis=0)
    each = []
    for penalty in PENALTIES:
        peer = LogisticRegression(C=1 / (2 * penalty * len(rows)), tol=1e-8, max_iter=10_000)
        each.append(np.abs(peer.fit(z[rows], labelled[rows]).predict_proba(z) - found).max())
    assert min(each) < 2e-2, each


def test_maps_are_read_from_every_patch() -> None:
    gaps, classes = MAPS.copy(), (MAPS[:, 0] > 5).astype(np.int64)
    gaps[::2, :, 0] = np.nan
    tasks = [Task("map", kind="dense"), Task("seg", dim=2, kind="segmentation"), Task("y")]
    found = fitted(*tasks, map=gaps, seg=classes, y=Y)
    np.testing.assert_allclose(found["map"][30:], MAPS[30:], atol=0.05)
    assert (found["seg"][30:].argmax(axis=1) == classes[30:]).mean() > 0.95
    assert np.abs(found["y"][30:, 0] - Y[30:]).mean() < 0.2 * Y.std()


def test_held_out_rows_change_nothing() -> None:
    held_out, tasks = np.arange(N) >= 30, [Task("y"), KIND, Task("map", kind="dense")]
    moved = torch.where(torch.tensor(held_out)[:, None, None], 50.0, PATCHES)
    other = {"y": np.where(held_out, -1e4, Y), "kind": np.where(held_out, 0, KINDS)}
    other["map"] = np.where(held_out[:, None, None, None], 7e3, MAPS)
    first = fitted(*tasks, y=Y, kind=KINDS, map=MAPS)
    second = fitted(*tasks, of=source(moved), **other)
    assert all(np.array_equal(x[TRAIN], second[name][TRAIN]) for name, x in first.items())
