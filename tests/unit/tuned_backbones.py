"""Ways in which a backbone is changed after it was loaded, for the rule on what of it is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dinoneck import Backbone


def change(weights: Iterable[Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))


def train_blocks(backbone: Backbone) -> None:
    backbone.unfreeze_last(2)
    change(p for p in backbone.parameters() if p.requires_grad)


def train_embeddings(backbone: Backbone) -> None:
    backbone.unfreeze()
    named = backbone.adapter.model.named_parameters()
    change(p for name, p in named if p.requires_grad and "blocks" not in name)


def train_norm(backbone: Backbone) -> None:
    change(backbone.adapter.norms[0].parameters())


def train_lora(backbone: Backbone) -> None:
    backbone.add_lora(2)
    change(p for name, p in backbone.named_parameters() if "lora_" in name)


def train_blocks_then_lora(backbone: Backbone) -> None:
    train_blocks(backbone)
    backbone.freeze()
    train_lora(backbone)


def train_lora_with_blocks(backbone: Backbone) -> None:
    train_lora(backbone)
    backbone.unfreeze_last(1)
    change(p for p in backbone.adapter.blocks[-1].mlp.parameters())


def merge_lora(backbone: Backbone) -> None:
    train_lora(backbone)
    backbone.merge_lora()


def write_through_data(backbone: Backbone) -> None:
    """Change a weight in a way that torch does not count, after its hash was taken."""
    assert backbone.fingerprint is not None
    backbone.adapter.blocks[3].mlp.fc1.weight.data.mul_(1.5)


def replace_parameter(backbone: Backbone) -> None:
    layer = backbone.adapter.blocks[2].mlp.fc1
    layer.bias = nn.Parameter(layer.bias.detach() + 0.3)


CHANGES: dict[str, Callable[[Backbone], None]] = {
    "blocks": train_blocks,
    "embeddings and registers": train_embeddings,
    "norm": train_norm,
    "LoRA": train_lora,
    "blocks, then LoRA": train_blocks_then_lora,
    "LoRA with a block": train_lora_with_blocks,
    "merged LoRA": merge_lora,
    "written through data": write_through_data,
    "a parameter replaced": replace_parameter,
}
