"""What backbones and the parts around them refuse.

Weights files, LoRA, transformers' configurations, the service and recorded configurations.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import peft
import timm
import torch
import transformers
from torch import nn

from dinoneck import (
    BackboneError,
    ConfigError,
    DataError,
    GridError,
    ShapeError,
    load_backbone,
    wrap_backbone,
)
from dinoneck.interop import DinoneckBackboneConfig
from dinoneck.serve import Settings
from dinoneck.weight_files import read_state
from tests import kit
from tests.refusals import Row
from tests.unit.backbones.official_objects import Dinov2Like
from tests.unit.backbones.test_channels import backbone_of
from tests.unit.backbones.test_forward_check import REFUSED, dinov2, dinov3, negate_positions, vit
from tests.unit.backbones.test_weights import official_dinov3
from tests.unit.test_registry import Example

SMALL, TINY = "vit_small_patch16_dinov3", "vit_tiny_patch16_224"


def seen(*shape: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    return kit.backbone()(torch.full(shape or (1, 3, 32, 32), value, dtype=dtype))


def with_peft() -> Any:
    config = peft.LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    return peft.inject_adapter_in_model(config, kit.backbone().adapter.model)


def lacking_patch_size() -> Any:
    model = Dinov2Like()
    del model.patch_size
    return wrap_backbone(model)


def configured(**changed: Any) -> Any:
    arguments = {"backbone": "dinoneck_tiny", "layers": (1, 3, 5), "pretrained": False}
    return DinoneckBackboneConfig(**{**arguments, "neck": "spatial_tuning_adapter", **changed})


def written(content: Any) -> Any:
    """Read a weights file of these bytes, or of this pickled object."""

    def call(folder: Path) -> Any:
        path = folder / "w.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return read_state(path)

    return call


@cache
def official_state() -> dict[str, torch.Tensor]:
    return official_dinov3(load_backbone(f"{SMALL}_qkvb", pretrained=False))


def official(prefix: str = "", **changed: Any) -> Any:
    """Load a file of the dinov3 repository with changes; None removes a tensor."""

    def call(folder: Path) -> Any:
        state = official_state() | changed
        torch.save(
            {prefix + key: value for key, value in state.items() if value is not None},
            folder / "w.pth",
        )
        return load_backbone(f"{SMALL}_qkvb", checkpoint=folder / "w.pth")

    return call


def checkpoint(content: Any) -> Any:
    """Load a file of this content as the weights of the built-in ViT."""

    def call(folder: Path) -> Any:
        torch.save(content, folder / "w.pth")
        return load_backbone("dinoneck_tiny", checkpoint=folder / "w.pth")

    return call


def written_vit(seeds: dict[str, int]) -> Any:
    """Load a file of several ViTs: what stands before their names, and their seeds."""
    tensors = {}
    for prefix, seed in seeds.items():
        for name, value in kit.backbone(seed=seed).adapter.model.state_dict().items():
            tensors[prefix + name] = value
    return checkpoint(tensors)


def with_lora_weights(folder: Path) -> Any:
    """Load the state dict of a backbone with LoRA weights."""
    return checkpoint(kit.backbone().add_lora(2).state_dict())(folder)


def with_biases(folder: Path, *, of_file: str, of_model: str) -> Any:
    """Load a file of timm's into the architecture with other biases."""
    model = timm.create_model(SMALL + of_file, num_classes=0)
    torch.save(model.state_dict(), folder / "w.pth")
    return load_backbone(SMALL + of_model, checkpoint=folder / "w.pth")


def of_transformers(folder: Path) -> Any:
    """Load a file with the names of the library transformers into timm's model."""
    model = load_backbone(SMALL, pretrained=False, source="transformers")
    torch.save(model.adapter.model.state_dict(), folder / "w.pth")
    return load_backbone(SMALL, checkpoint=folder / "w.pth")


def dcp_folder(folder: Path) -> Any:
    (folder / ".metadata").write_bytes(b"")
    return load_backbone("dinoneck_tiny", checkpoint=folder)


def folder_as_file(folder: Path) -> Any:
    (folder / "config.json").write_text("{}")
    return load_backbone(SMALL, checkpoint=folder)


def named(file: str) -> Any:
    """Load a file of this name."""

    def call(folder: Path) -> Any:
        (folder / file).write_bytes(b"")
        return load_backbone(f"{SMALL}_qkvb", checkpoint=folder / file)

    return call


def oblong_positions(folder: Path) -> Any:
    """Load a DINOv2 whose positions are of 2 x 3 patches."""
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=(28, 42))
    torch.save(model.state_dict(), folder / "w.pth")
    return load_backbone("dinov2_vits14", checkpoint=folder / "w.pth")


def holding_a_model() -> nn.Module:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(1, 1)

    return Holder()


def wrapped(make: Any, change: Any) -> Any:
    model = make()
    change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap_backbone(model)


def quantised() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear})


def negated() -> Any:
    model = vit()
    negate_positions(model)
    return model


def transformers_folder(name: str, content: str) -> Any:
    """Load a folder with this file."""

    def call(folder: Path) -> Any:
        (folder / name).write_text(content)
        return load_backbone(str(folder), source="transformers")

    return call


class Trap:
    """An object whose unpickling would end this process."""

    def __reduce__(self) -> Any:
        return sys.exit, ("code of a file ran",)


MISTYPED: list[tuple[dict[str, Any], str]] = [
    ({"width": 4.0}, "4.0"),
    ({"rate": float("nan")}, "nan"),
    ({"mode": "c"}, "'c'"),
    ({"wide": 1}, "wide"),
    ({"sizes": [1, "2"]}, "[1]"),
    ({"levels": [[8, "a"], [8, "b"]]}, "levels"),
    ({"tasks": [{"name": "a"}]}, "Task"),
    ({"tasks": [{"$": "Task", "name": "a", "colour": 1}]}, "'colour'"),
    ({"anything": object()}, "anything"),
]

ROWS: list[Row] = [
    (lambda: seen(dtype=torch.uint8), DataError, "uint8"),
    (lambda: seen(value=255.0), DataError, "255"),
    (lambda: seen(3, 32, 32), ShapeError, "(3, 32, 32)"),
    (lambda: seen(1, 3, 33, 32), GridError, "33 % 16 = 1"),
    (lambda: kit.backbone()([1, 2]), ShapeError, "list"),  # type: ignore[arg-type]
    *(
        (lambda wrong=wrong: kit.backbone(layers=wrong), BackboneError, "layers")
        for wrong in (0, [])
    ),
    (
        lambda: load_backbone(f"{SMALL}.lvd9", pretrained=False),
        BackboneError,
        ("lvd9", f"{SMALL}.lvd1689m"),
    ),
    (lambda: load_backbone("vit_smal_patch16_dinov3", pretrained=False), BackboneError, SMALL),
    (
        lambda: load_backbone("vit_base_patch16_224", pretrained=False),
        BackboneError,
        "wrap_backbone",
    ),
    (lambda: load_backbone("dinov2_vits14", source="official"), BackboneError, "'official'"),  # type: ignore[arg-type]
    (lambda: load_backbone(SMALL, seed=3), ConfigError, "seed=3"),
    (lambda: load_backbone("dinoneck_tiny", checkpoint=""), BackboneError, "empty"),
    (lambda: kit.backbone(pos_embed="antialias"), ConfigError, "'antialias'"),
    (lambda: wrap_backbone(nn.Linear(1, 1)), BackboneError, "Linear"),
    (lambda: wrap_backbone(kit.backbone()), BackboneError, "with_layers"),  # type: ignore[arg-type]
    (lambda: wrap_backbone("dinov2_vits14"), BackboneError, ("'dinov2_vits14'", "load_backbone")),  # type: ignore[arg-type]
    (lambda: wrap_backbone([1]), BackboneError, "a list"),  # type: ignore[arg-type]
    (lambda: wrap_backbone(holding_a_model()), BackboneError, ("Holder", ".backbone")),
    (lambda: load_backbone(None), ConfigError, "NoneType"),  # type: ignore[arg-type]
    (lambda: load_backbone(nn.Linear(1, 1)), ConfigError, ("Linear", "wrap_backbone")),  # type: ignore[arg-type]
    (lambda: kit.backbone(dtype="float17"), ConfigError, ("'float17'", "'float16'")),
    (lambda: kit.backbone(norm="no"), ConfigError, "norm is 'no'"),
    (lambda: kit.backbone(frozen="false"), ConfigError, "frozen is 'false'"),
    (lambda: kit.backbone(seed=1.5), ConfigError, "seed is 1.5"),
    (lambda: kit.backbone(seed=-1), ConfigError, "seed is -1"),
    (lambda: load_backbone("dinov3_convnext_tiny"), BackboneError, "ConvNeXt"),
    (transformers_folder("config.json", "{"), BackboneError, ("config.json", "JSON")),
    (
        lambda: wrap_backbone(timm.create_model(TINY, global_pool="avg")),
        BackboneError,
        "no final norm",
    ),
    (
        lambda: wrap_backbone(timm.create_model(TINY))(torch.zeros(1, 3, 224, 240)),
        BackboneError,
        "(224, 224)",
    ),
    (lambda: wrap_backbone(with_peft()), BackboneError, "peft"),
    *(
        (lambda make=make, change=change: wrapped(make, change), BackboneError, named)
        for _, make, change, named in REFUSED
    ),
    (lambda: backbone_of(4, mean=None, std=None).preprocess, BackboneError, ("4 chan", "mean=")),
    (lambda: backbone_of(4, mean=[0.5]), ConfigError, ("[0.5]", "4 numbers")),
    (
        lambda: setattr(backbone_of(4), "preprocess", kit.backbone().preprocess),
        ConfigError,
        ("3 channels", "takes 4"),
    ),
    (lambda: wrap_backbone(quantised()), BackboneError, ("dtype", "before it is quantised")),
    (
        lambda: wrap_backbone(timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)),
        BackboneError,
        "hybrid",
    ),
    (
        lambda: wrap_backbone(vit(img_size=(16, 64)), pos_embed="official"),
        BackboneError,
        "2 rows x 8 cols",
    ),
    (lambda: wrap_backbone(negated(), pos_embed="official"), BackboneError, "pos_embed='native'"),
    (
        lambda: wrap_backbone(dinov2(transformers.Dinov2Backbone, out_indices=[0, 3])),
        BackboneError,
        ("[0, 3]", "layers="),
    ),
    (
        lambda: wrap_backbone(dinov2(transformers.Dinov2Backbone, apply_layernorm=False)),
        BackboneError,
        ("blocks [3]", "norm=False"),
    ),
    (
        lambda: wrap_backbone(
            dinov3(transformers.DINOv3ViTBackbone, out_indices=[1, 4], apply_layernorm=False)
        ),
        BackboneError,
        ("[0] without", "[3] with", "layers="),
    ),
    (
        lambda: wrap_backbone(dinov2(transformers.Dinov2Backbone, out_indices=[2, 4]), norm=False),
        BackboneError,
        ("blocks [1, 3]", "norm=True"),
    ),
    (
        lambda: wrap_backbone(nn.DataParallel(Dinov2Like())),
        BackboneError,
        ("DataParallel", ".module"),
    ),
    (lacking_patch_size, BackboneError, "patch_size"),
    (lambda: kit.backbone().unfreeze_last(0), BackboneError, "0"),
    (lambda: kit.backbone().add_lora(0), BackboneError, "0"),
    (lambda: kit.backbone().add_lora(2, alpha=-1), BackboneError, "-1"),
    (lambda: kit.backbone().add_lora(2, alpha="x"), BackboneError, "'x'"),  # type: ignore[arg-type]
    (lambda: kit.backbone().add_lora(2, targets="mlp"), ConfigError, "'mlp'"),
    (lambda: kit.backbone().add_lora(2).add_lora(2), BackboneError, "LoRA"),
    (lambda: kit.backbone().merge_lora(), BackboneError, "LoRA"),
    (
        lambda folder: kit.backbone().save_weights(folder / "no" / "x.safetensors"),
        BackboneError,
        "x.safetensors",
    ),
    (lambda folder: read_state(folder / "no.pth"), BackboneError, "no.pth"),
    (official(**{"norm.weight": None}), BackboneError, "missing from the file: norm.weight"),
    (official(**{"extra.weight": torch.zeros(1)}), BackboneError, "extra.weight"),
    (official(**{"norm.weight": torch.ones(3)}), BackboneError, ("norm.weight", "(3,)", "(384,)")),
    (official(**{"norm.weight": torch.full((384,), torch.nan)}), BackboneError, "not finite"),
    (official(cls_token=torch.zeros(1, 1, 768)), BackboneError, ("ViT-B of 768", "ViT-S of 384")),
    (of_transformers, BackboneError, "source='transformers'"),
    (
        written_vit({"net.a.": 1, "net.b.": 2}),
        BackboneError,
        ("several ViTs", "'net.a.'", "'net.b.'", "name.removeprefix('net.a.')"),
    ),
    (with_lora_weights, BackboneError, ("w.pth", "LoRA weights", "merge_lora()")),
    (
        lambda folder: with_biases(folder, of_file="_qkvb", of_model=""),
        BackboneError,
        ("q_bias", "ends in '_qkvb'"),
    ),
    (
        lambda folder: with_biases(folder, of_file="", of_model="_qkvb"),
        BackboneError,
        ("q_bias", "does not end in '_qkvb'"),
    ),
    (
        checkpoint({"model": {"teacher.backbone._fsdp_wrapped_module._flat_param": torch.ones(3)}}),
        BackboneError,
        ("one GPU's part", "teacher_checkpoint.pth"),
    ),
    (checkpoint({"epoch": 3}), BackboneError, ("no tensors", "epoch")),
    (checkpoint([torch.ones(1)]), BackboneError, ("w.pth", "a list")),
    (
        checkpoint({"args": argparse.Namespace(lr=0.1)}),
        BackboneError,
        ("argparse.Namespace", "torch.save"),
    ),
    (dcp_folder, BackboneError, ("DCP", "dcp_to_torch")),
    (folder_as_file, BackboneError, "--backbone-source"),
    (
        named("dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth"),
        BackboneError,
        ("'vit_base_patch16_dinov3.lvd1689m'", f"'{SMALL}_qkvb'"),
    ),
    (oblong_positions, BackboneError, "no square grid"),
    (written(b"<html>"), BackboneError, ("w.pth", "weights-only loader")),
    (written({"weight": Trap()}), BackboneError, ("w.pth", "sys.exit")),
    (written([1, 2]), BackboneError, "list"),
    (written({"epoch": 3}), BackboneError, "epoch"),
    (lambda: configured(neck="spatial_tuning_adaptor"), ConfigError, "'spatial_tuning_adapter'"),
    (lambda: configured(neck="dense"), ConfigError, ("DenseHead", "Neck")),
    (lambda: configured(neck_config={"chanels": 3}), ConfigError, "chanels"),
    (lambda: configured(out_indices=[3]), ConfigError, ("the level 3", "-3 ... 2", "level2")),
    (lambda: configured(out_indices=[]), ConfigError, ("out_indices=[]", "level2")),
    (lambda: configured(out_indices=[1, 0]), ConfigError, ("[1, 0]", "order")),
    (lambda: configured(out_features=["level3"]), ConfigError, ("'level3'", "level2")),
    (
        lambda: configured(out_features=["level1"], out_indices=[2]),
        ConfigError,
        ("['level1']", "[1]", "[2]"),
    ),
    (lambda: configured(layers="1,3,5"), ConfigError, "'1,3,5'"),
    *(
        (lambda name=name: Settings(**{name: -1}), ConfigError, (name, "-1"))
        for name in ("concurrency", "queue", "timeout", "max_upload_mb", "max_pixels", "batch")
    ),
    *(
        (lambda own=own: Example.from_config({"width": 4, **own}), ConfigError, named)
        for own, named in MISTYPED
    ),
    (lambda: Example.from_config({"widht": 4}), ConfigError, ("'widht'", "'width'")),
    (lambda: Example.from_config({"rate": 1.0}), ConfigError, "width"),
    (lambda: Example.from_config([1]), ConfigError, "[1]"),  # type: ignore[arg-type]
]
