"""Necks as others build them: DEIMv2's and DPT's in transformers, without the ViT, and a plain pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, nhwc
from dinoneck import Tokens

WIDTH, OUT, DETAIL = 384, 256, 16


class Source(nn.Module):
    """A plain pyramid of one map: nearest x2 and 1x1; 1x1; 3x3 with stride 2."""

    def __init__(self, width: int = WIDTH, out: int = OUT) -> None:
        super().__init__()
        self.p8, self.p16 = nn.Conv2d(width, out, 1), nn.Conv2d(width, out, 1)
        self.p32 = nn.Conv2d(width, out, 3, 2, padding=1)

    def forward(self, maps: Tensor) -> Sequence[Tensor]:
        """Levels of a token map."""
        return (
            self.p8(F.interpolate(maps, scale_factor=2, mode="nearest")),
            self.p16(maps),
            self.p32(maps),
        )


class Given(nn.Module):
    """Stands where a backbone does: hands out maps, made of tokens if it has any."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.feature_maps = config, ()
        self.tokens: Tokens | None = None
        self.to_map: Callable[..., Tensor] | None = None

    def forward(self, pixel_values: Tensor) -> Given:
        """Ignore the images."""
        if self.tokens is not None and self.to_map is not None:
            self.feature_maps = [
                self.to_map(x[:, PREFIX:], self.tokens.grid) for x in self.tokens.sequence
            ]
        return self


def deim_encoder(width: int = WIDTH, out: int = OUT, detail: int = DETAIL) -> nn.Module:
    """Transformers' encoder without its ViT; weights and statistics are drawn so that nothing is trivial."""
    from transformers import Deimv2Config, DINOv3ViTConfig
    from transformers.models.deimv2.modeling_deimv2 import Deimv2DINOv3ConvEncoder

    vit = DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=3, intermediate_size=8, out_indices=[1, 2, 3]
    )
    config = Deimv2Config(
        backbone_config=vit, encoder_hidden_dim=out, spatial_tuning_adapter_inplanes=detail
    )
    encoder = Deimv2DINOv3ConvEncoder(config)
    encoder.backbone = Given(vit)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def dpt_neck(channels: int, widths: Sequence[int], out: int) -> nn.Module:
    """Transformers' DPTNeck; its doublings with ``align_corners=False``, as ours has them (published: True)."""
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
    """What transformers' DPTNeck computes, from views of (B, 1 + N, C) in place of its NCHW copies."""
    stage, features = neck.reassemble_stage, []
    for x, readout, layer, conv in zip(
        layers, stage.readout_projects, stage.layers, neck.convs, strict=True
    ):  # type: ignore[union-attr,arg-type]
        patches = x[:, 1:]
        read = readout(torch.cat((patches, x[:, :1].expand_as(patches)), dim=-1))
        features.append(conv(layer(nhwc(read, grid))))
    found: Tensor = neck.fusion_stage(features)[-1]  # type: ignore[operator]
    return found


@torch.no_grad()
def dpt_weights(peer: nn.Module, neck: nn.Module) -> None:
    """Copy the weights of transformers' DPTNeck into ours."""
    renamed = {"projection": "project", "convolution1": "first", "convolution2": "second"}
    renamed |= {"residual_layer1": "lateral", "residual_layer2": "unit"}
    theirs, own = dict(peer.named_parameters()), neck.state_dict(keep_vars=True)
    last = len(neck.fusion) - 1  # type: ignore[arg-type]
    found = {}
    for name, value in theirs.items():
        parts = name.split(".")
        if parts[0] == "convs":
            key = f"reassemble.{parts[1]}.widen.weight"
        elif parts[:2] == ["fusion_stage", "layers"]:
            key = ".".join(
                [
                    "fusion",
                    str(last - int(parts[2])),
                    *(renamed.get(part, part) for part in parts[3:]),
                ]
            )
        elif parts[1] == "readout_projects":
            key = f"reassemble.{parts[2]}.readout_linear.{parts[-1]}"
        else:
            resize = "up" if int(parts[2]) < 2 else "down"
            key = ".".join(
                ["reassemble", parts[2], {"resize": resize}.get(parts[3], "project"), parts[-1]]
            )
        found[key] = value
    for name, target in own.items():
        target.copy_(found[name].reshape(target.shape))
