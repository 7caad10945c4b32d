"""Confusion matrices and the mean IoU, counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import DataError
from dinoneck.training import confusion_matrix, mean_iou


def test_the_matrix_counts_truth_in_rows_and_predictions_in_columns() -> None:
    true = torch.randint(0, 4, (3, 5, 7))
    pred = torch.randint(0, 4, (3, 5, 7))
    mask = torch.rand(3, 5, 7) > 0.3
    true[0, 0] = 255
    by_hand = [[0] * 4 for _ in range(4)]
    for t, p, m in zip(true.flatten().tolist(), pred.flatten().tolist(), mask.flatten().tolist(), strict=True):
        if m and t != 255:
            by_hand[t][p] += 1
    matrix = confusion_matrix(pred, true, 4, ignore_index=255, mask=mask)
    assert matrix.tolist() == by_hand
    assert matrix.dtype == np.int64
    as_arrays = confusion_matrix(pred.numpy().astype(np.uint8), true.numpy(), 4, 255, mask.numpy())
    assert as_arrays.tolist() == by_hand
    halves = sum(confusion_matrix(pred[i], true[i], 4, 255, mask[i]) for i in range(3))
    assert np.array_equal(halves, matrix)
    assert confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist() == [[1, 0], [1, 1]]
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_values_under_the_mask_may_be_anything() -> None:
    pred, true, mask = np.array([0, 77, 1]), np.array([0, -5, 1]), np.array([1, 0, 1])
    assert confusion_matrix(pred, true, 2, mask=mask).tolist() == [[1, 0], [0, 1]]
    assert confusion_matrix(np.array([0, 77]), np.array([0, -1]), 2, ignore_index=-1).tolist() == [[1, 0], [0, 0]]


def test_iou_is_the_overlap_of_sets() -> None:
    true, pred = torch.randint(0, 3, (40,)), torch.randint(0, 3, (40,))
    true[true == 1] = 2  # class 1 is predicted and never true
    score, each = mean_iou(confusion_matrix(pred, true, 5))
    ious = []
    for k in range(3):
        own, text = set((true == k).nonzero().flatten().tolist()), set((pred == k).nonzero().flatten().tolist())
        ious.append(len(own & text) / len(own | text))
    assert each == [pytest.approx(ious[0]), 0.0, pytest.approx(ious[2]), None, None]
    assert score == pytest.approx(sum(ious) / 3)
    assert mean_iou(torch.eye(3) * 7) == (1.0, [1.0, 1.0, 1.0])
    assert mean_iou([[0, 0], [4, 0]]) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0], 2), r"predictions \(2,\), targets \(1,\)"),
        (([0, 2], [0, 1], 2), r"predictions reach from 0 to 2; expected 0 to 1"),
        (([0, 1], [0, 255], 2), r"targets reach from 0 to 255.*ignore_index="),
        (([0.0, 1.0], [0, 1], 2), r"predictions are float64.*argmax"),
        (([0, 1], [0, 1], 0), "num_classes is 0"),
    ],
)
def test_misfits_of_a_confusion_matrix(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        confusion_matrix(*arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 2)),
        [[1, -1], [0, 1]],
    ],
)
def test_misfits_of_a_mean(wrong: Any) -> None:
    with pytest.raises(DataError, match="confusion matrix"):
        mean_iou(wrong)
