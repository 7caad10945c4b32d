"""Folds, metrics, schedule, probes, sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinoneck import Backbone, ConfigError, DataError
from dinoneck.training import (
    MemoryTokens,
    cosine_with_warmup,
    group_folds,
    weighted_r2,
)
from dinoneck.training.baselines import knn_path, out_of_fold, ridge_path


def test_folds_keep_groups_whole_and_cover_every_row() -> None:
    random = np.random.RandomState(0)
    groups = [str(g) for g in random.randint(0, 17, 200)]
    folds = group_folds(groups, 5, seed=1)
    assert sorted(np.concatenate([valid for _, valid in folds]).tolist()) == list(range(200))
    for train, valid in folds:
        assert set(train) | set(valid) == set(range(200))
        assert not {groups[i] for i in train} & {groups[i] for i in valid}
        assert 30 <= len(valid) <= 50
    again = group_folds(groups, 5, seed=1)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))
    other = group_folds(groups, 5, seed=2)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))


def test_folds_refuse_too_few_groups() -> None:
    with pytest.raises(DataError, match="2 groups cannot fill 3 folds"):
        group_folds(["a", "b", "a"], 3, 0)
    with pytest.raises(ConfigError, match="n_folds is 1"):
        group_folds(["a", "b"], 1, 0)


def test_weighted_r2_is_the_competitions_formula() -> None:
    random = np.random.RandomState(0)
    true, pred, w = random.rand(30, 5) * 90, random.rand(30, 5) * 90, np.array([0.1, 0.1, 0.1, 0.2, 0.5])
    rows = [(w[j], true[i, j], pred[i, j]) for i in range(30) for j in range(5)]
    mean = sum(a * t for a, t, _ in rows) / sum(a for a, _, _ in rows)
    expected = 1 - sum(a * (t - p) ** 2 for a, t, p in rows) / sum(a * (t - mean) ** 2 for a, t, _ in rows)
    assert weighted_r2(true, pred, w) == pytest.approx(expected, rel=1e-12)
    names = ["c", "d", "g", "gdm", "total"]
    as_dict = [{n: m[:, i] for i, n in enumerate(names)} for m in (pred, true)]
    shuffled = {name: as_dict[0][name] for name in reversed(names)}
    assert weighted_r2(as_dict[1], shuffled, dict(zip(names, w, strict=True))) == pytest.approx(expected, rel=1e-12)
    assert weighted_r2(true, true, w) == 1.0


@pytest.mark.parametrize(
    ("pred", "true", "weights"),
    [
        ([[np.nan]], [[1.0]], [1.0]),
        ([[1.0]], [[np.nan]], [1.0]),
        ([[1.0], [2.0]], [[1.0], [2.0]], [-1.0]),
        ([[1.0], [2.0]], [[2.0], [2.0]], [1.0]),
        ({"a": [1.0]}, {"b": [1.0]}, {"a": 1.0}),
        ({"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0, 3.0], "b": [2.0]}, {"a": 1.0, "b": 1.0}),
    ],
)
def test_scores_of_what_does_not_fit_are_refused(pred: object, true: object, weights: object) -> None:
    with pytest.raises(ValueError):
        weighted_r2(true, pred, weights)  # type: ignore[arg-type]


def test_ridge_is_the_closed_form() -> None:
    random = np.random.RandomState(0)
    x, y = random.randn(40, 6), random.randn(40, 2)
    train, valid = np.arange(30), np.arange(30, 40)
    (got,) = ridge_path(x[train], y[train], x[valid], alphas=[7.0])
    mean, std = x[train].mean(0), x[train].std(0) + 1e-8
    z, offset = (x - mean) / std, y[train].mean(0)
    w = np.linalg.solve(z[train].T @ z[train] + 7.0 * np.eye(6), z[train].T @ (y[train] - offset))
    assert np.allclose(got, z[valid] @ w + offset, atol=1e-9)


def test_one_training_group_alone_chooses_by_rows() -> None:
    """Of noise, the strongest ridge and the most neighbours are right, not the first in the list."""
    random = np.random.RandomState(0)
    x, y = random.randn(60, 10), random.randn(60, 1)
    folds = [(np.arange(40), np.arange(40, 60))]
    for path in (ridge_path, knn_path):
        by_rows, one = (out_of_fold(x, y, folds, groups, path) for groups in (None, ["a"] * 40 + ["b"] * 20))
        assert np.array_equal(one, by_rows, equal_nan=True)
        assert np.abs(one[40:] - y[:40].mean()).max() < 0.5 * y.std()


def test_knn_is_the_mean_of_the_nearest_by_cosine() -> None:
    """A plain double loop; the scale of a channel does not matter, since features are standardised."""
    random = np.random.RandomState(0)
    x, y = random.randn(20, 5) * [1, 1, 1, 1, 1000], random.randn(20, 2)
    train, valid = np.arange(14), np.arange(14, 20)
    (got,) = knn_path(x[train], y[train], x[valid], [3])
    z = (x - x[train].mean(0)) / x[train].std(0)
    for row, predicted in zip(valid, got, strict=True):
        cosine = [z[row] @ z[i] / np.linalg.norm(z[row]) / np.linalg.norm(z[i]) for i in train]
        nearest = np.argsort(cosine)[::-1][:3]
        assert np.allclose(predicted, y[nearest].mean(axis=0))


def test_the_schedule_rises_and_falls_to_0() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 2.0}, {"params": [torch.zeros(1)], "lr": 0.5}])
    schedule = cosine_with_warmup(optimizer, 10, warmup=0.2)
    for step in range(10):
        for group, peak in zip(optimizer.param_groups, (2.0, 0.5), strict=True):
            cosine = 0.5 * peak * (1 + math.cos(math.pi * (step - 2) / 8))
            assert group["lr"] == pytest.approx(peak * (step + 1) / 2 if step < 2 else cosine)
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 0.0])
    with pytest.raises(ConfigError, match="warmup is 3"):
        cosine_with_warmup(optimizer, 10, warmup=3.0)


def test_extraction(tiny: Backbone) -> None:
    images = [np.random.RandomState(i).randint(0, 255, (32, 48, 3), np.uint8) for i in range(5)]
    source = MemoryTokens.extract(tiny, images, list("abcde"), batch_size=2)
    direct = tiny(tiny.preprocess(images))
    assert torch.allclose(source.batch(list("abcde")).sequence[0], direct.sequence[0], atol=2e-3)
    kept = source.batch(["e", "a", "e"]).sequence[0]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, source.tokens.sequence[0][[4, 0, 4]].float())
