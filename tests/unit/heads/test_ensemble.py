"""HeadEnsemble against the loop over its members."""

from __future__ import annotations

import pytest
import torch
from tests import kit

from dinoneck import ConfigError, FPNHead, HeadEnsemble, LinearHead, PatchMeanHead, TargetTransform, Task, Tokens


def tokens_of(batch: int = 6, rows: int = 4, cols: int = 8, width: int = 48) -> Tokens:
    return kit.tokens(batch, rows, cols, width=width, registers=0, patch=14)


def test_members_are_averaged_in_natural_units() -> None:
    heads = [
        PatchMeanHead(8, [Task("a", transform=TargetTransform(log1p=True, mean=float(i), std=1.0 + i), minimum=0.5)])
        for i in range(3)
    ]
    tokens = tokens_of(width=8)
    expected = torch.stack([head.predict(tokens)["a"] for head in heads])
    ensemble = HeadEnsemble.from_heads(heads)
    assert torch.allclose(ensemble.predict(tokens)["a"], expected.mean(dim=0), rtol=1e-6)
    assert torch.allclose(ensemble(tokens)["a"], expected.mean(dim=0), rtol=1e-6)
    assert ensemble.tasks[0].transform is None
    median = HeadEnsemble.from_heads(heads, reduce="median")
    assert torch.allclose(median.predict(tokens)["a"], expected.median(dim=0).values, rtol=1e-6)
    four = HeadEnsemble.from_heads([*heads, heads[0]], reduce="median")
    assert torch.allclose(
        four.predict(tokens)["a"], torch.cat((expected, expected[:1])).quantile(0.5, dim=0), rtol=1e-6
    )
    weighted = HeadEnsemble.from_heads(heads, weights=[1.0, 0.0, 3.0])
    assert torch.allclose(weighted.predict(tokens)["a"], (expected[0] + 3 * expected[2]) / 4, rtol=1e-6)


def test_classes_leave_forward_as_logarithms_whose_softmax_is_the_mean() -> None:
    for kind in ("classification", "ratio"):
        heads = [PatchMeanHead(8, [Task("c", dim=3, kind=kind)]) for _ in range(3)]  # type: ignore[arg-type]
        ensemble, tokens = HeadEnsemble.from_heads(heads), tokens_of(width=8)
        mean = torch.stack([head.predict(tokens)["c"] for head in heads]).mean(dim=0)
        assert torch.allclose(ensemble(tokens)["c"].softmax(dim=-1), mean, atol=1e-6)
        assert torch.allclose(
            ensemble.tasks[0].predict(ensemble(tokens)["c"]), ensemble.predict(tokens)["c"], atol=1e-6
        )


def test_members_that_no_tokens_suit_are_refused() -> None:
    """Of different numbers of layers, without the block indices that each reads."""
    task = [Task("a")]
    plain, four, one = PatchMeanHead(8, task), LinearHead(8, task, num_layers=4), LinearHead(8, task)
    named = FPNHead(8, task, num_layers=3, layer_indices=(0, 2, 5), fpn_dim=8)
    for members in ([four, one], [plain, one, four], [HeadEnsemble([four]), one]):
        with pytest.raises(ConfigError, match="layers="):
            HeadEnsemble.from_heads(members)
    for members in ([plain, four], [four, four], [named, plain], [named, four]):
        HeadEnsemble.from_heads(members)
    assert HeadEnsemble.from_heads([four, one], layers=[(0, 1, 2, 3), (3,)]).layer_indices == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match="for 2 members"):
        HeadEnsemble.from_heads([four, one], layers=[(0, 1, 2, 3)])
