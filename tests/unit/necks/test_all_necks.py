"""What holds for every neck: one dtype under autocast, weights in either layout, group norms that are not instance
norms, exports that take any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.cases import WIDTH, outputs, tokens_of
from torch import nn

from dinoneck import (
    DPTNeck,
    FPNHead,
    HeadCheckpoint,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    Task,
    ViTFPN,
    load_head,
    save_head,
)
from dinoneck.checkpoint import read_header
from dinoneck.necks import Neck

FILES_OF_0_1 = Path(__file__).parents[2] / "fixtures/head_v2_numbers"
FORMS: dict[str, Any] = {
    "vit_fpn": lambda: ViTFPN(WIDTH, 3, 16),
    "vit_fpn-pool": lambda: ViTFPN(WIDTH, 3, 16, downsample="pool", norm=None, activation=None, use_cls_context=True),
    "vit_fpn-residual": lambda: ViTFPN(WIDTH, 3, 16, norm="group", residual_init="zero", use_coords=True),
    "sta_pyramid": lambda: STAPyramid(WIDTH, 16, pre_norm=True, pos_embed=True),
    "sta_pyramid-strides": lambda: STAPyramid(WIDTH, 16, downsample="avgpool", strides=(7, 14, 28)),
    "spatial_tuning_adapter": lambda: SpatialTuningAdapter(WIDTH, 16, norm="layer"),
    "spatial_tuning_adapter-image": lambda: SpatialTuningAdapter(WIDTH, 16, num_layers=2, grid_from="image"),
    "simple_pyramid": lambda: SimplePyramid(WIDTH, 16),
    "dpt": lambda: DPTNeck(WIDTH, 3, 16),
    "dpt-project": lambda: DPTNeck(WIDTH, 3, 16, readout="project"),
}


def fed(neck: Neck, batch: int = 2, rows: int = 6, cols: int = 7) -> tuple[Any, ...]:
    tokens = tokens_of(batch, rows, cols, layers=neck.num_layers or 1)
    return (tokens, torch.randn(batch, 3, 16 * rows, 16 * cols)) if neck.needs_images else (tokens,)


@pytest.mark.parametrize("name", FORMS)
def test_weights_in_channels_last_give_the_same_outputs(name: str) -> None:
    neck = FORMS[name]().eval()
    inputs = fed(neck)
    with torch.no_grad():
        plain = [level.clone() for level in outputs(neck(*inputs))]
        for a, b in zip(outputs(neck.to(memory_format=torch.channels_last)(*inputs)), plain, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-5)


def group_norms(module: nn.Module) -> list[nn.GroupNorm]:
    return [part for part in module.modules() if isinstance(part, nn.GroupNorm)]


@pytest.mark.parametrize("width", [4, 8, 16, 20, 32, 96, 256])
def test_groups_have_at_least_eight_channels(width: int) -> None:
    """``gcd(32, width)`` groups, as in 0.1, are instance norms at widths 8, 16 and 32."""
    for neck in (ViTFPN(WIDTH, 3, width, norm="group"), SpatialTuningAdapter(WIDTH, width, norm="group")):
        for norm in group_norms(neck):
            assert norm.num_channels % norm.num_groups == 0
            assert norm.num_channels // norm.num_groups >= min(8, norm.num_channels)
            assert norm.num_groups <= 32
    wide = ViTFPN(WIDTH, 3, 256, norm="group")
    assert {norm.num_groups for norm in group_norms(wide)} == {32}


def test_the_group_size_is_recorded_and_changes_the_result(tmp_path: Path) -> None:
    torch.manual_seed(0)
    neck = ViTFPN(WIDTH, 3, 32, norm="group")
    assert neck.config["norm_group_size"] == 8
    finer = ViTFPN(WIDTH, 3, 32, norm="group", norm_group_size=1)
    finer.load_state_dict(neck.state_dict())
    tokens = tokens_of(2, 3, 5, layers=3)
    assert not torch.allclose(neck(tokens).maps[0], finer(tokens).maps[0], atol=1e-2)
    save_head(tmp_path / "finer", finer)
    again = HeadCheckpoint.load(tmp_path / "finer").build()
    assert torch.equal(again(tokens).maps[0], finer(tokens).maps[0])


@pytest.mark.parametrize("size", [1, 8])
def test_one_cell_of_one_image_is_normalised(size: int) -> None:
    """With one channel per group the normalised value is 0, so that the norm gives its bias."""
    neck = ViTFPN(WIDTH, 1, 8, num_levels=1, norm="group", activation=None, norm_group_size=size)
    with torch.no_grad():
        group_norms(neck)[0].bias.copy_(torch.arange(8.0))
    level = neck(tokens_of(1, 1, 1)).maps[0]
    assert level.isfinite().all()
    assert torch.allclose(level.flatten(), torch.arange(8.0), atol=1e-4) == (size == 1)


def test_a_size_without_group_norms_is_not_recorded() -> None:
    """Configurations without group norms are those of version 0.1, so that derived classes load its files."""
    for module in (ViTFPN(WIDTH, 3, 16), SpatialTuningAdapter(WIDTH), FPNHead(WIDTH, [Task("mass")], 1)):
        assert "norm_group_size" not in module.config
        assert "norm_group_size" in type(module).from_config({**module.config, "norm": "group"}).config


def test_heads_of_0_1_keep_their_groups() -> None:
    """A file of version 0.1 does not name a group size; its norms of 8 channels had 8 groups."""
    head = load_head(FILES_OF_0_1 / "group_norm.safetensors")
    assert "norm_group_size" not in read_header(FILES_OF_0_1 / "group_norm.safetensors").meta["config"]
    assert head.config["norm_group_size"] == 1
    assert {norm.num_groups for norm in group_norms(head)} == {8}
