"""Targets are matched with images by id: no order of a table, a source or an array changes what is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dinoneck import DataError, PatchMeanHead, Task, Tokens
from dinoneck.training import (
    MemoryTokens,
    Recipe,
    fit,
    knn_probe,
    r2,
    ridge_probe,
    weighted_r2,
)

IDS = tuple(f"meadow-{i}" for i in range(12))  # sorted, meadow-10 comes before meadow-2
Y = np.linspace(0.0, 1.0, 12) ** 2
PLAIN = Recipe(ema_decay=None)


def source(order: Any = range(12), suffix: str = "") -> MemoryTokens:
    """Images whose tokens carry the value of their own id, in any order."""
    patches = torch.randn(12, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    patches[:, :, 0] += torch.tensor(Y, dtype=torch.float32)[:, None]
    rows = list(order)
    tokens = Tokens.from_patches(patches[torch.tensor(rows)], grid=(2, 3), patch_size=16)
    return MemoryTokens([IDS[i] + suffix for i in rows], tokens)


def table(order: Any = range(12), suffix: str = "") -> pd.DataFrame:
    rows = list(order)
    return pd.DataFrame({"y": Y[rows]}, index=[IDS[i] + suffix for i in rows])


def weights(tokens: MemoryTokens, targets: Any, **given: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = PatchMeanHead(8, [Task("y")], hidden_dim=4)
    fit(head, tokens, targets=targets, **{"epochs": 3, "batch_size": 4, "lr": 1e-2, "recipe": PLAIN, **given})
    return head.state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def shuffled_forms() -> dict[str, dict[str, Any]]:
    order = np.random.RandomState(0).permutation(12)
    ids, values = [IDS[i] for i in order], Y[order]
    forms: dict[str, dict[str, Any]] = {
        "table": {"targets": table(order)},
        "dict of dicts": {"targets": {"y": dict(zip(ids, values, strict=True))}},
        "array": {"targets": {"y": values}, "target_ids": ids},
        "tensor": {"targets": {"y": torch.tensor(values)[:, None]}, "target_ids": ids},
        "suffixes": {"targets": table(order, ".JPG")},
    }
    return forms


@pytest.mark.parametrize("form", list(shuffled_forms()))
def test_a_shuffled_table_trains_the_same_weights_bit_for_bit(form: str) -> None:
    given = shuffled_forms()[form]
    expected = weights(source(), table())
    assert_equal(weights(source(range(11, -1, -1)), **given), expected)
    some, valid = IDS[3:9], IDS[:3]
    expected = weights(source(), table(), ids=some, val_ids=valid)
    assert_equal(weights(source(range(11, -1, -1)), **given, ids=some, val_ids=valid), expected)


def test_a_pandas_frame_is_matched_by_its_index() -> None:
    pandas = pytest.importorskip("pandas")
    order = np.random.RandomState(1).permutation(12)
    frame = pandas.DataFrame({"y": Y[order]}, index=[IDS[i] for i in order])
    expected = weights(source(), table())
    assert_equal(weights(source(), frame), expected)
    assert_equal(weights(source(), {"y": frame["y"]}), expected)
    with pytest.raises(DataError, match=r"have no tokens in the source: 0, 1, 2\. The ids of the source are such as"):
        weights(source(), frame.reset_index())


@pytest.mark.parametrize("probe", [ridge_probe, knn_probe])
def test_probes_match_by_id(probe: Any) -> None:
    folds, order = [(np.arange(3, 12), np.arange(3))], list(range(3)) + list(range(11, 2, -1))
    expected = probe(source(), table(), folds)
    assert expected.shape == (12, 1)
    other = probe(source(order), table(), folds)
    assert np.allclose(other[:3], expected[:3], rtol=1e-9)
    matrix = probe(source(order), Y[:, None], folds, target_ids=IDS)
    assert np.allclose(matrix[:3], expected[:3], rtol=1e-9)
    with pytest.raises(DataError, match="values without ids"):
        probe(source(), Y[:, None], folds)
    columns = {"y": dict(zip(IDS, Y, strict=True)), "z": dict(zip(IDS[::-1], Y, strict=True))}
    labels = np.arange(12) // 3
    assert probe(source(), columns, folds, groups=labels).shape == (12, 2)
    with pytest.raises(DataError, match="1 id without a row in targets 'y': 'meadow-0'"):
        probe(source(), {**columns, "y": {name: columns["y"][name] for name in IDS[1:]}}, folds)


def test_scores_of_values_with_ids_are_matched() -> None:
    pred, true = dict(zip(IDS, Y + 0.1, strict=True)), dict(zip(IDS[::-1], Y[::-1], strict=True))
    expected = r2(Y, Y + 0.1)
    assert r2(true, pred) == pytest.approx(expected)
    assert weighted_r2({"y": true}, {"y": pred}, {"y": 1.0}) == pytest.approx(expected)
    with pytest.raises(DataError, match="meadow-0.*z.* are not in both"):
        r2({**{name: true[name] for name in IDS[1:]}, "z": 1.0}, pred)
    with pytest.raises(DataError, match="meadow-0"):
        r2(true, Y)
    pandas = pytest.importorskip("pandas")
    one, other = pandas.DataFrame({"y": pandas.Series(pred)}), pandas.DataFrame({"y": pandas.Series(true)})
    assert weighted_r2(other, one, {"y": 1.0}) == pytest.approx(expected)
    plain = pandas.Series(Y)  # 0, 1, ... are positions, not ids
    assert r2(Y, plain) == pytest.approx(1.0)
    assert r2(Y, plain[::-1]) == pytest.approx(1.0)
    for wrong in (one["y"], plain[1:], pandas.concat([plain, plain])):
        with pytest.raises(DataError, match=r"meadow-0|11|twice"):
            r2(Y[: len(wrong)], wrong)
