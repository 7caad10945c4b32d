"""Parameter groups: by module, each parameter once, timm's numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from dinoneck import load_backbone, wrap_backbone
from dinoneck.training import param_groups

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="no peft")

todays_timm = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split(".")[:3] if part.isdigit()) < (1, 0, 31),
    reason="an older timm takes register tokens for the last layer and lets them decay",
)


def model_of(frozen: bool = False) -> nn.ModuleDict:
    """A model whose neck is called like the backbone."""
    backbone = load_backbone("dinoneck_tiny")
    neck = nn.Sequential(nn.Conv2d(64, 8, 1), nn.BatchNorm2d(8), nn.LayerNorm((8, 4, 4)))
    backbone = backbone if frozen else backbone.unfreeze()
    return nn.ModuleDict({"backbone": backbone, "backbone_neck": neck, "head": nn.Linear(64, 1)})


def members(groups: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The group of each parameter; fails if one is in two."""
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        assert set(group) == {"params", "lr", "weight_decay", "name"}
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group
    return found


def ids(module: nn.Module, trainable: bool | None = None) -> set[int]:
    return {id(p) for p in module.parameters() if trainable is None or p.requires_grad == trainable}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_one_group_and_frozen_ones_only_on_request(layer_decay: float | None) -> None:
    model = model_of(frozen=True)
    model.backbone.unfreeze_last(2)
    given = {"lr": 1.0, "layer_decay": layer_decay}
    assert members(param_groups(model, **given)).keys() == ids(model, trainable=True)
    assert members(param_groups(model, **given, include_frozen=True)).keys() == ids(model)
    torch.optim.AdamW(param_groups(model, **given, include_frozen=True))  # refuses a parameter that comes twice


def test_what_weight_decay_leaves_alone() -> None:
    model = model_of()
    found = members(param_groups(model, lr=1.0, weight_decay=0.3, include_frozen=True))
    exempt = {name for name, p in model.named_parameters() if found[id(p)]["weight_decay"] == 0.0}
    stem = "backbone.adapter.model."
    own = [name.removeprefix(stem + "blocks.0.") for name in exempt if name.startswith(stem + "blocks.0.")]
    assert sorted(own) == [
        *("attn.proj.bias", "gamma_1", "gamma_2", "mlp.fc1.bias", "mlp.fc2.bias"),
        *("norm1.bias", "norm1.weight", "norm2.bias", "norm2.weight"),
    ]
    outside = {name.removeprefix(stem) for name in exempt if "blocks." not in name}
    assert outside == {
        *("cls_token", "reg_token", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.bias"),
        *("backbone_neck.0.bias", "backbone_neck.1.weight", "backbone_neck.1.bias"),
        *("backbone_neck.2.weight", "backbone_neck.2.bias"),  # three-dimensional, but a norm's
    }
    assert all(found[id(p)]["weight_decay"] == 0.3 for name, p in model.named_parameters() if name not in exempt)
    assert found[id(model.head.weight)]["weight_decay"] == 0.3  # (1, 64): one output, still a matrix


def test_a_module_may_name_its_own() -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.queries = (nn.Parameter(torch.zeros(4, 8)) for _ in range(2))

        def no_weight_decay(self) -> set[str]:
            return {"positions"}

    model = model_of()
    neck = model.head = Neck()
    found = members(param_groups(model, lr=1.0))
    assert found[id(neck.positions)]["weight_decay"] == 0.0
    assert found[id(neck.queries)]["weight_decay"] == 0.05


def scales_of_timm(model: nn.Module, decay: float, weight_decay: float = 0.05) -> dict[int, tuple[float, float]]:
    exempt = model.no_weight_decay()  # type: ignore[operator]
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=decay)
    return {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def build_tiny() -> nn.Module:
    return load_backbone("dinoneck_tiny").adapter.model.requires_grad_(True)


def build_vit(**options: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", depth=3, reg_tokens=2, pre_norm=True, dynamic_img_size=True, **options
    )


@todays_timm
@pytest.mark.parametrize("build", [build_tiny, lambda: build_vit(num_classes=0)], ids=["eva", "vit"])
def test_layer_decay_gives_timms_numbers(build: Callable[[], nn.Module]) -> None:
    vit = build()
    expected = scales_of_timm(vit, 0.7)
    found = members(param_groups(wrap_backbone(vit), lr=9.0, backbone_lr=2.0, layer_decay=0.7, include_frozen=True))
    assert found.keys() == expected.keys()
    for key, (scale, decay) in expected.items():
        assert found[key]["lr"] == pytest.approx(2.0 * scale, rel=1e-12)
        assert found[key]["weight_decay"] == decay


@needs_peft
def test_lora_weights_are_the_backbones() -> None:
    model = model_of(frozen=True)
    backbone = model.backbone
    backbone.add_lora(2, targets="all")
    groups = param_groups(model, lr=1.0, backbone_lr=0.25, layer_decay=0.5)
    found = members(groups)
    lora = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert lora
    assert found.keys() == {id(p) for p in lora.values()} | ids(model.head) | ids(model.backbone_neck)
    for name, p in lora.items():
        number = int(name.split("blocks.")[1].split(".")[0])
        assert found[id(p)]["name"] == f"backbone.block{number}.decay"
        assert found[id(p)]["lr"] == 0.25 * 0.5 ** (5 - number)
