"""A ViT of 7,000 parameters, for files that hold a whole backbone: the built-in one has 350,000."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dinoneck import Backbone, wrap_backbone
from tests import kit

WIDTH = 8


def tiny_vit(weights: Mapping[str, Tensor] | None = None) -> Backbone:
    """Return timm's ViT with one block, one register and patches of 16 px; None: random weights of a fixed seed."""
    model = VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=WIDTH,
        depth=1,
        num_heads=1,
        mlp_ratio=2.0,
        num_classes=0,
        reg_tokens=1,
        init_values=0.1,
        dynamic_img_size=True,
    )
    if weights is None:
        with torch.no_grad():
            kit.randomised(model, std=0.1)
    else:
        model.load_state_dict(weights, strict=True)
    return wrap_backbone(model)
