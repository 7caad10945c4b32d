"""What loading backbones refuses.

By name, from the Hub, from folders of transformers and from weights files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from timm.models import VisionTransformer
from torch import Tensor

from dinoneck import BackboneError, ConfigError, load_backbone, wrap_backbone
from dinoneck.backbones.weights import load_file
from tests import kit
from tests.hub_server import Hub
from tests.refusals import Row
from tests.refusals.hub import asked
from tests.unit.backbones.official_objects import Dinov2Like
from tests.unit.backbones.test_libraries import tiny_dinov3
from tests.unit.backbones.test_weights import official_dinov3

Call = Callable[[Path], Any]
HUB_NAME = "facebook/dinov2-small"
BIAS = "blocks.0.attn.qkv.bias"
QUERY_BIAS = torch.cat((torch.ones(64), torch.zeros(128)))


def from_transformers(name: object, **options: Any) -> Any:
    return load_backbone(str(name), source="transformers", **options)


# the Hub


def load_from_hub(hub: Hub, folder: Path) -> Any:
    return from_transformers(HUB_NAME)


def load_gated(hub: Hub, folder: Path) -> Any:
    hub.repo(HUB_NAME, {"config.json": b"{}"}, gated=True)
    return from_transformers(HUB_NAME)


# folders of transformers


def text_folder(config: str) -> Call:
    """Load a folder that holds a config.json alone."""

    def call(folder: Path) -> Any:
        (folder / "config.json").write_text(config)
        return from_transformers(folder)

    return call


def folder_of_fewer_blocks(folder: Path) -> Any:
    """Load a folder whose config.json states one block more than the weights hold."""
    tiny_dinov3().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    return from_transformers(folder)


def folder_without_weights(folder: Path) -> Any:
    tiny_dinov3().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return from_transformers(folder)


def folder_and_seed(folder: Path) -> Any:
    tiny_dinov3().save_pretrained(folder)
    return from_transformers(folder, pretrained=False, seed=1)


def folder_without_transformers(folder: Path) -> Any:
    tiny_dinov3().save_pretrained(folder)
    with kit.without("transformers"):
        return from_transformers(folder)


def other_transformer() -> Any:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    return wrap_backbone(transformers.ViTModel(config))


# weights files of the dinov3 repository


@cache
def small_dinov3(name: str = "vit_small_patch16_dinov3_qkvb") -> Any:
    """A DINOv3 of one narrow block; with ``_qkvb`` it has query and value biases."""
    return timm.create_model(name, embed_dim=64, depth=1, num_heads=2)


def official(model: Callable[[], Any] = small_dinov3, **changes: Tensor) -> Call:
    """Load a file of the dinov3 repository with these tensors changed."""

    def call(folder: Path) -> None:
        state = official_dinov3(wrap_backbone(small_dinov3()))
        torch.save(state | changes, folder / "w.pth")
        load_file(model(), folder / "w.pth")

    return call


def without_biases() -> Any:
    return small_dinov3("vit_small_patch16_dinov3")


# models that are wrapped


def oblong_positions() -> Any:
    """Run a model whose trained positions are no square by the recipe for squares."""
    model = VisionTransformer(
        img_size=(32, 48),
        patch_size=16,
        embed_dim=16,
        depth=1,
        num_heads=1,
        num_classes=0,
        dynamic_img_size=True,
    )
    return wrap_backbone(model, pos_embed="official")(torch.zeros(1, 3, 32, 32))


def lora_on_blocks_without_attention() -> Any:
    model = Dinov2Like()
    for block in model.blocks:
        block.attn = None
    return wrap_backbone(model).add_lora(2)


def lora_without_peft() -> Any:
    with kit.without("peft"):
        return kit.backbone().add_lora(2)


ROWS: list[Row] = [
    # the Hub
    (asked(load_from_hub), BackboneError, (HUB_NAME, "hf auth login", "--random-backbone")),
    (asked(load_from_hub, offline=True), BackboneError, (HUB_NAME, "HF_HUB_OFFLINE")),
    (asked(load_gated), BackboneError, (HUB_NAME, "gated")),
    (lambda: from_transformers("my_vit"), BackboneError, "'my_vit'"),
    # folders of transformers
    (from_transformers, BackboneError, "config.json"),
    (text_folder("[]"), BackboneError, "config.json"),
    (text_folder('{"model_type": "bert"}'), BackboneError, ("'bert'", "dinov3_vit")),
    (folder_without_weights, BackboneError, "model.safetensors"),
    (folder_of_fewer_blocks, BackboneError, ("missing keys", "layer.3.")),
    (folder_and_seed, ConfigError, ("seed=", "checkpoint=")),
    (folder_without_transformers, ImportError, "dinoneck[hf]"),
    (other_transformer, BackboneError, ("ViTModel", "Dinov2Model")),
    # weights files of the dinov3 repository
    (official(**{BIAS: torch.zeros(191)}), BackboneError, (BIAS, "(191,)")),
    (
        official(**{f"{BIAS}_mask": torch.ones(7)}),
        BackboneError,
        (f"{BIAS}_mask", "(7,)", "(192,)"),
    ),
    (
        official(**{"blocks.0.norm1.weight": torch.ones(64, dtype=torch.int64)}),
        BackboneError,
        ("blocks.0.norm1.weight", "torch.int64"),
    ),
    (official(**{BIAS: torch.ones(192), f"{BIAS}_mask": torch.ones(192)}), BackboneError, BIAS),
    (official(without_biases, **{BIAS: QUERY_BIAS}), BackboneError, (BIAS, "'_qkvb'")),
    (official(**{"rope_embed.periods": torch.ones(3)}), BackboneError, "(3,)"),
    (official(**{"rope.periods": torch.ones(3)}), BackboneError, ("rope.periods", "(3,)")),
    (official(**{"rope.periods": torch.zeros(8)}), BackboneError, ("rope.periods", "positive")),
    # models that are wrapped
    (oblong_positions, BackboneError, ("2 rows x 3 cols", "pos_embed='native'")),
    (lora_on_blocks_without_attention, BackboneError, "Dinov2Like"),
    (lora_without_peft, ImportError, "dinoneck[lora]"),
]
