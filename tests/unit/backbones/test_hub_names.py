"""Names of published models, and what is raised when their weights cannot be downloaded."""

from __future__ import annotations

import pytest
from tests.kit import cli

from dinoneck.backbones.known import KNOWN, resolve_name

SMALL = "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"),
        ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m"),
        ("dinov3_vits16", SMALL),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", SMALL),
        (f"timm/{SMALL}", SMALL),
        (SMALL, SMALL),
        ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("me/my-own-model", "me/my-own-model"),
    ],
)
def test_the_names_people_use_are_those_of_timms_models(name: str, timm_name: str) -> None:
    assert resolve_name(name) == timm_name


def test_every_name_in_torch_hub_is_resolved() -> None:
    dinov2 = {f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")}
    dinov3 = {f"dinov3_vit{size}" for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")}
    assert {model.official for model in KNOWN} - {None} == dinov2 | dinov3
    for model in KNOWN:
        if model.official is not None:
            assert resolve_name(model.official) == f"{model.name}.{next(iter(model.hubs))}"
    ran = cli("list", "backbones", "dinov3_vitl16")
    [row] = [line for line in ran.out.splitlines() if "dinov3_vitl16" in line]
    assert row.startswith("vit_large_patch16_dinov3.lvd1689m ")
