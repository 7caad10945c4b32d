"""Group folds, the learning-rate schedule, and tokens that are extracted once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinoneck import Backbone, ConfigError, DataError
from dinoneck.training import MemoryTokens, cosine_with_warmup, group_folds


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


def test_extraction(tiny: Backbone) -> None:
    images = [np.random.RandomState(i).randint(0, 255, (32, 48, 3), np.uint8) for i in range(5)]
    source = MemoryTokens.extract(tiny, images, list("abcde"), batch_size=2)
    direct = tiny(tiny.preprocess(images))
    assert torch.allclose(source.batch(list("abcde")).sequence[0], direct.sequence[0], atol=2e-3)
    kept = source.batch(["e", "a", "e"]).sequence[0]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, source.tokens.sequence[0][[4, 0, 4]].float())
