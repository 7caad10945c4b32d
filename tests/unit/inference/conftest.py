"""A backbone whose tokens see their own patch only."""

from __future__ import annotations

import pytest
import torch

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
