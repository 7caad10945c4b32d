"""Necks as others build them: DEIMv2's and DPT's in transformers without the ViT; a plain pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, nhwc
from dinoneck import Tokens

WIDTH = 384  # of a ViT-S
OUT = 256
DETAIL = 16  # channels of the detail that the adapter reads from the image
DPT_NAMES = {  # parts of a fusion stage's parameters in transformers -> in ours
    "projection": "project",
    "convolution1": "first",
    "convolution2": "second",
    "residual_layer1": "lateral",
    "residual_layer2": "unit",
}


class OneMapPyramid(nn.Module):
    """A plain pyramid of one map: nearest x2 and 1x1; 1x1; 3x3 with stride 2."""

    def __init__(self, width: int = WIDTH, out: int = OUT) -> None:
        super().__init__()
        self.p8 = nn.Conv2d(width, out, kernel_size=1)
        self.p16 = nn.Conv2d(width, out, kernel_size=1)
        self.p32 = nn.Conv2d(width, out, kernel_size=3, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Sequence[Tensor]:
        """(B, C, rows, cols) -> three levels."""
        return (
            self.p8(F.interpolate(maps, scale_factor=2, mode="nearest")),
            self.p16(maps),
            self.p32(maps),
        )


class TokensAsBackbone(nn.Module):
    """Takes the place of a backbone and returns maps of tokens that were computed before."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.feature_maps: Sequence[Tensor] = ()
        self.tokens: Tokens | None = None
        self.to_map: Callable[..., Tensor] | None = None

    def forward(self, pixel_values: Tensor) -> TokensAsBackbone:
        """Ignore the images."""
        if self.tokens is not None and self.to_map is not None:
            maps = []
            for layer in self.tokens.sequence:
                maps.append(self.to_map(layer[:, PREFIX:], self.tokens.grid))
            self.feature_maps = maps
        return self


def deim_encoder(width: int = WIDTH, out: int = OUT, detail: int = DETAIL) -> nn.Module:
    """Build transformers' encoder without its ViT; statistics of norms are drawn, not 0 and 1."""
    from transformers import Deimv2Config, DINOv3ViTConfig
    from transformers.models.deimv2.modeling_deimv2 import Deimv2DINOv3ConvEncoder

    vit = DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=3, intermediate_size=8, out_indices=[1, 2, 3]
    )
    config = Deimv2Config(
        backbone_config=vit, encoder_hidden_dim=out, spatial_tuning_adapter_inplanes=detail
    )
    encoder = Deimv2DINOv3ConvEncoder(config)
    encoder.backbone = TokensAsBackbone(vit)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def dpt_neck(channels: int, widths: Sequence[int], out: int) -> nn.Module:
    """Build transformers' DPTNeck, which doubles with ``align_corners=False`` here as ours does.

    As published it is True.
    """
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck

    config = DPTConfig(
        hidden_size=channels,
        readout_type="project",
        neck_hidden_sizes=list(widths),
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=out,
    )
    neck = DPTNeck(config)
    for layer in neck.fusion_stage.layers:
        layer.align_corners = False
    return neck


def dpt_viewed(neck: nn.Module, layers: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Compute what transformers' DPTNeck does from views of (B, 1 + N, C) instead of NCHW copies."""
    stage: Any = neck.reassemble_stage
    features = []
    for sequence, readout, resize, conv in zip(
        layers, stage.readout_projects, stage.layers, neck.convs, strict=True
    ):
        patches = sequence[:, 1:]
        cls_token = sequence[:, :1].expand_as(patches)
        with_cls = readout(torch.cat((patches, cls_token), dim=-1))
        features.append(conv(resize(nhwc(with_cls, grid))))
    fused: Sequence[Tensor] = neck.fusion_stage(features)
    return fused[-1]


@torch.no_grad()
def dpt_weights(peer: nn.Module, neck: nn.Module) -> None:
    """Copy the weights of transformers' DPTNeck into ours."""
    num_levels = len(neck.fusion)
    values = {}
    for name, value in peer.named_parameters():
        values[_dpt_name(name, num_levels)] = value
    for name, target in neck.state_dict(keep_vars=True).items():
        target.copy_(values[name].reshape(target.shape))


def _dpt_name(name: str, num_levels: int) -> str:
    """Return our name of a parameter of transformers' DPTNeck."""
    parts = name.split(".")
    if parts[0] == "convs":
        return f"reassemble.{parts[1]}.widen.weight"
    if parts[:2] == ["fusion_stage", "layers"]:
        # transformers counts the stages of fusion from coarse to fine, we the levels
        level = num_levels - 1 - int(parts[2])
        unit = [DPT_NAMES.get(part, part) for part in parts[3:]]
        return ".".join(["fusion", str(level), *unit])
    level = parts[2]
    if parts[1] == "readout_projects":
        return f"reassemble.{level}.readout_linear.{parts[-1]}"
    if parts[3] == "resize":
        # the two finest levels are enlarged
        module = "up" if int(level) < 2 else "down"
    else:
        module = "project"
    return f"reassemble.{level}.{module}.{parts[-1]}"
