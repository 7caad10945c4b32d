"""Images with different known labels train together, and every score states the images it rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.training.small_fit import IDS, Y, head, run, tokens

from dinoneck.training import MemoryTokens, Recipe


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
