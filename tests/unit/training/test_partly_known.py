"""Images with different known labels train together, and every score states the images it rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.training.small_fit import IDS, Y, head, run, tokens

from dinoneck.training import MemoryTokens, Recipe, r2, ridge_probe, weighted_r2
from dinoneck.training.scores import Split, class_scores, mask_scores, value_scores


def test_missing_values_count_for_nothing_in_the_loss() -> None:
    """With all samples in one step, training is that of the known samples alone."""
    recipe = Recipe(ema_decay=None, standardise_tokens=False)
    source, known = MemoryTokens(IDS, tokens()), [0, 1, 3, 5]
    gaps = np.where(np.isin(range(6), known), Y, np.nan)
    whole, part = head(), head()
    one = run(whole, source, targets={"y": gaps}, batch_size=6, epochs=3, recipe=recipe)
    other = run(part, source, ids=[IDS[i] for i in known], batch_size=4, epochs=3, recipe=recipe)
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-5)
    for x, y in zip(whole.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_scores_of_targets_with_different_gaps() -> None:
    random = np.random.RandomState(0)
    true, pred = random.randn(40, 2), random.randn(40, 2)
    known = random.rand(40, 2) < 0.6
    gaps, split = np.where(known, true, np.nan), Split([np.arange(20), np.arange(20, 40)], [*range(40)])
    each = [value_scores(gaps[:, i], pred[:, i], split) for i in range(2)]
    for i, scores in enumerate(each):
        own = known[:, i]
        assert scores["images"] == own.sum()
        assert scores["r2"]["pooled"] == pytest.approx(r2(true[own, i], pred[own, i]))
        assert scores["r2"]["folds"][1] == pytest.approx(r2(true[20:][own[20:], i], pred[20:][own[20:], i]))
        assert scores["mae"]["pooled"] == pytest.approx(np.abs(pred - true)[own, i].mean())
        low, high = scores["r2"]["interval"]
        assert low < scores["r2"]["pooled"] < high
    both = value_scores(gaps, pred, split)
    assert both["images"] == known.any(axis=1).sum()
    assert both["r2"]["pooled"] == pytest.approx(np.mean([scores["r2"]["pooled"] for scores in each]))
    weighted = value_scores(gaps, pred, split, weights=[0.3, 0.7])["r2"]["pooled"]
    w = np.where(known, [0.3, 0.7], 0.0)
    mean = (w * true).sum() / w.sum()
    assert weighted == pytest.approx(1 - (w * (true - pred) ** 2).sum() / (w * (true - mean) ** 2).sum())
    complete = value_scores(true, pred, split, weights=[0.3, 0.7])["r2"]["pooled"]
    assert complete == pytest.approx(weighted_r2(true, pred, [0.3, 0.7]))
    nothing = value_scores(np.full(40, np.nan), pred[:, 0], split)
    assert (nothing["images"], nothing["r2"]["pooled"], nothing["mae"]["pooled"]) == (0, None, None)


def test_scores_of_classes_and_masks_count_their_images() -> None:
    split = Split([np.arange(4)], "abcd")
    assert class_scores([0, -1, 1, 1], [0, 1, 1, 0], ("u", "v"), split)["images"] == 3
    matrices = np.zeros((4, 2, 2), int)
    matrices[1:3] = 5
    assert mask_scores(matrices, ("u", "v"), split)["images"] == 2


def test_ridge_learns_each_target_from_the_images_in_which_it_is_known() -> None:
    source = MemoryTokens(IDS, tokens())
    folds = [(np.arange(1, 6), np.array([0])), (np.arange(5), np.array([5]))]
    first, second = np.where(np.arange(6) == 2, np.nan, Y), np.where(np.arange(6) == 3, np.nan, Y[::-1])
    found = ridge_probe(source, {"u": first, "v": second}, folds, target_ids=IDS)
    for column, (values, gap) in enumerate(((Y, 2), (Y[::-1], 3))):
        kept = [(np.setdiff1d(rows, gap), valid) for rows, valid in folds]
        alone = ridge_probe(source, {"x": values}, kept, target_ids=IDS)
        np.testing.assert_allclose(found[:, column], alone[:, 0])
