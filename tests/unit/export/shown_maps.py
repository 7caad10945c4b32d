"""A head that shows other maps than those of its values.

It is registered, so it is in a module that is imported under one name: pytest imports files of
tests, and other tests import them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinoneck import DenseHead, register
from dinoneck.layers.inputs import TokensLike


@register
class TwiceShown(DenseHead):
    """Shows maps of twice its values."""

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        return {name: 2 * cells for name, cells in super().predict_maps(tokens, **plain).items()}
