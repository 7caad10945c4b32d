"""Heads that show other maps than those of their values, or the same.

They are registered, so they are in a module that is imported under one name: pytest imports
files of tests, and other tests import them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinoneck import DenseHead, LinearHead, register
from dinoneck.layers.inputs import TokensLike


@register
class TwiceShown(DenseHead):
    """Shows maps of twice its values."""

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        return {name: 2 * cells for name, cells in super().predict_maps(tokens, **plain).items()}


@register
class DoubledMaps(LinearHead):
    """A head whose base has ``predict_outputs`` of its own, and which shows twice its maps."""

    def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        """Return twice the maps of the values."""
        maps = super().predict_maps(tokens, **plain)
        return {name: 2 * cells for name, cells in maps.items()}


@register
class SameMaps(LinearHead):
    """A head whose base has ``predict_outputs`` of its own, and which shows the maps of its values."""
