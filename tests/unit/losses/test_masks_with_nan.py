"""A mask that holds NaN decides nothing: it is refused wherever a mask is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import DataError, Task, TokenGrid
from dinoneck.losses import TaskLoss, masked_mse, ratio_mse
from dinoneck.losses.masked import map_cross_entropy, masked_cross_entropy, masked_smooth_l1, scale_invariant_log

X = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 1])

CALLS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "masked_mse": (lambda mask: masked_mse(X, X + 1, mask), (2, 3)),
    "masked_smooth_l1": (lambda mask: masked_smooth_l1(X, X + 1, mask), (2, 3)),
    "ratio_mse": (lambda mask: ratio_mse(X, X, mask), (2,)),
    "scale_invariant_log": (lambda mask: scale_invariant_log(X, X + 1, mask), (2, 3)),
    "masked_cross_entropy": (lambda mask: masked_cross_entropy(X, CLASSES, mask), (2,)),
    "map_cross_entropy": (lambda mask: map_cross_entropy(MAPS, MAPS.argmax(1), mask), (2, 4, 4)),
    "TaskLoss": (lambda mask: TaskLoss([Task("y", dim=3)])({"y": X}, {"y": X + 1}, {"y": mask})[0], (2, 3)),
    "reduce_labels": (lambda mask: TokenGrid(2).reduce_labels(MAPS, mask)[0], (2, 4, 4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_nan_in_a_mask_is_refused_and_numbers_count_as_bool(name: str) -> None:
    call, shape = CALLS[name]
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0] = False
    assert torch.equal(call(mask), call(mask.float()))
    assert torch.equal(call(mask), call(mask.long()))
    unknown = mask.float()
    unknown[1].fill_(float("nan"))
    with pytest.raises(DataError, match="mask.*NaN"):
        call(unknown)


def test_under_compile_nan_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, as on a GPU, reading the mask would wait for the device."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    mask = torch.tensor([[1.0, float("nan"), 0.0]] * 2)
    assert torch.equal(masked_mse(X, 2 * X, mask), X[:, 0].square().mean())
