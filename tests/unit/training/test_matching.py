"""Targets are matched with images by id: no order of a table, a source or an array changes what is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dinoneck import DataError, PatchMeanHead, Task, Tokens
from dinoneck.training import MemoryTokens, fit

IDS = tuple(f"meadow-{i}" for i in range(12))  # sorted, meadow-10 comes before meadow-2
Y = np.linspace(0.0, 1.0, 12) ** 2
ORDER = np.random.RandomState(0).permutation(12)
SHUFFLED, VALUES = [IDS[i] for i in ORDER], Y[ORDER]
FRAME = pd.DataFrame({"y": VALUES}, index=SHUFFLED)
FORMS: dict[str, dict[str, Any]] = {
    "frame": {"targets": FRAME},
    "series": {"targets": {"y": FRAME["y"]}},
    "dict of dicts": {"targets": {"y": dict(zip(SHUFFLED, VALUES, strict=True))}},
    "array": {"targets": {"y": VALUES}, "target_ids": SHUFFLED},
    "tensor": {"targets": {"y": torch.tensor(VALUES)[:, None]}, "target_ids": SHUFFLED},
    "suffixes": {"targets": FRAME.set_axis([f"{name}.JPG" for name in SHUFFLED])},
}


def source(order: Any = range(12)) -> MemoryTokens:
    """Images whose tokens carry the value of their own id, in any order."""
    patches = torch.randn(12, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    patches[:, :, 0] += torch.tensor(Y, dtype=torch.float32)[:, None]
    rows = list(order)
    return MemoryTokens([IDS[i] for i in rows], Tokens.from_patches(patches[rows], grid=(2, 3), patch_size=16))


def weights(tokens: MemoryTokens, **given: Any) -> torch.Tensor:
    torch.manual_seed(0)
    head = PatchMeanHead(8, [Task("y")], hidden_dim=4)
    fit(head, tokens, epochs=3, batch_size=4, lr=1e-2, **given)
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


@pytest.mark.parametrize("form", FORMS)
def test_a_shuffled_table_trains_the_same_weights_bit_for_bit(form: str) -> None:
    ordered, given = {"targets": {"y": dict(zip(IDS, Y, strict=True))}}, FORMS[form]
    for chosen in ({}, {"ids": IDS[3:9], "val_ids": IDS[:3]}):
        assert torch.equal(
            weights(source(range(11, -1, -1)), **given, **chosen), weights(source(), **ordered, **chosen)
        )


def test_positions_are_no_ids() -> None:
    with pytest.raises(DataError, match=r"12 ids without tokens in the source: 0, 1, 10 and"):
        weights(source(), targets=FRAME.reset_index())
