"""A backbone whose tokens see their own patch only, and images whose patches differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dinoneck import Backbone, load_backbone


@pytest.fixture(scope="session")
def blind() -> Backbone:
    """Tokens depend on the mean colour of their own patch and on nothing else."""
    backbone = load_backbone("dinoneck_tiny")
    with torch.no_grad():
        for key, parameter in backbone.adapter.model.named_parameters():
            if "gamma" in key:
                parameter.zero_()
        weight = backbone.adapter.model.patch_embed.proj.weight
        weight.copy_(weight.mean(dim=(2, 3), keepdim=True).expand_as(weight))
    return backbone


@pytest.fixture
def patchwork() -> Callable[[int, int], Tensor]:
    """Images of rows x cols patches of 16 px, each with a colour of its own."""

    def make(rows: int, cols: int) -> Tensor:
        colours = torch.rand(3, rows, cols, generator=torch.Generator().manual_seed(rows * 100 + cols))
        return colours.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)

    return make
