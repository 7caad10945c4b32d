"""DPTNeck against transformers' and against the formulas written out with plain NCHW operations."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of
from torch import Tensor

from dinoneck import DPTNeck, Tokens

ODD_GRIDS = [(1, 1), (1, 7), (15, 31)]
READOUTS = ["ignore", "add", "project"]
HIDDEN = (4, 6, 8, 10)


def small(readout: str = "ignore", layers: int = 4, **more: object) -> DPTNeck:
    return DPTNeck(WIDTH, layers, 8, readout, hidden_sizes=HIDDEN[-layers:], **more)  # type: ignore[arg-type]


def bilinear(maps: Tensor, rows: int, cols: int) -> Tensor:
    """Half-pixel bilinear resizing as two matrix products."""

    def matrix(out: int, given: int) -> Tensor:
        place = ((torch.arange(out).double() + 0.5) * given / out - 0.5).clamp(0, given - 1)
        return (1 - (place[:, None] - torch.arange(given)).abs()).clamp_min(0).to(maps)

    return matrix(rows, maps.shape[2]) @ maps @ matrix(cols, maps.shape[3]).T


def plain(neck: DPTNeck, tokens: Tokens) -> list[Tensor]:
    """The neck's formula, with [patch, CLS] concatenated and everything in NCHW."""
    weights = dict(neck.named_parameters())

    def conv(maps: Tensor, name: str, stride: int = 1) -> Tensor:
        bias = weights.get(f"{name}.bias")
        return F.conv2d(maps, weights[f"{name}.weight"], bias, stride=stride, padding=1)

    def residual(maps: Tensor, name: str) -> Tensor:
        return maps + conv(conv(maps.clamp_min(0), f"{name}.first").clamp_min(0), f"{name}.second")

    found: list[Tensor] = []
    rows, cols = tokens.grid
    for place in reversed(range(neck.num_layers)):
        patches = tokens.patches[place]
        if neck.readout != "ignore":
            repeated = tokens.cls_token[place][:, None].expand_as(patches)
            if neck.readout == "add":
                patches = patches + repeated
            else:
                both = torch.cat([patches, repeated], dim=-1)
                name = f"reassemble.{place}.readout_linear"
                both = both @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
                patches = both * 0.5 * (1 + torch.erf(both / 2**0.5))
        name = f"reassemble.{place}"
        patches = patches @ weights[f"{name}.project.weight"].T + weights[f"{name}.project.bias"]
        maps = patches.transpose(1, 2).reshape(len(tokens), -1, rows, cols)
        fineness = 4 - neck.num_layers + place
        if fineness < 2:
            side = (4, 2)[fineness]
            maps = F.conv_transpose2d(maps, weights[f"{name}.up.weight"], weights[f"{name}.up.bias"], stride=side)
        elif fineness == 3:
            maps = conv(maps, f"{name}.down", stride=2)
        maps = conv(maps, f"{name}.widen")
        if found:
            maps = bilinear(found[-1], *maps.shape[2:]) + residual(maps, f"fusion.{place}.lateral")
        maps = residual(maps, f"fusion.{place}.unit")
        weight, bias = weights[f"fusion.{place}.project.weight"], weights[f"fusion.{place}.project.bias"]
        found.append(torch.einsum("oc,bcyx->boyx", weight, maps) + bias[:, None, None])
    return found[::-1]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 6)])
def test_it_is_the_formula(readout: str, layers: int, grid: tuple[int, int]) -> None:
    neck = small(readout, layers).double()
    tokens = tokens_of(2, *grid, layers=layers, dtype=torch.float64)
    for ours, wanted in zip(neck(tokens).maps, plain(neck, tokens), strict=True):
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-12)


def published_names(neck: DPTNeck) -> dict[str, Tensor]:
    """The neck's weights under the names and in the shapes of transformers' DPTNeck."""
    last = neck.num_layers - 1
    names = {"project": "projection", "up": "resize", "down": "resize", "first": "convolution1"}
    names |= {"second": "convolution2", "lateral": "residual_layer1", "unit": "residual_layer2"}
    found = {}
    for ours, value in neck.state_dict().items():
        room, place, *parts, kind = ours.split(".")
        if room == "fusion":
            theirs = f"fusion_stage.layers.{last - int(place)}"
        elif parts == ["widen"]:
            theirs, parts = f"convs.{place}", []
        elif parts == ["readout_linear"]:
            theirs, parts = f"reassemble_stage.readout_projects.{place}.0", []
        else:
            theirs = f"reassemble_stage.layers.{place}"
        key = ".".join([theirs, *(names[part] for part in parts), kind])
        found[key] = value[..., None, None] if parts == ["project"] and kind == "weight" else value
    return found


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("layers", [2, 4])
def test_it_is_transformers_neck(readout: str, layers: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck as Peer

    neck = small(readout, layers)
    config = DPTConfig(
        hidden_size=WIDTH,
        readout_type=readout,
        neck_hidden_sizes=HIDDEN[-layers:],
        reassemble_factors=(4, 2, 1, 0.5)[-layers:],
        fusion_hidden_size=8,
    )
    peer = Peer(config)
    for layer in peer.fusion_stage.layers:
        layer.align_corners = False
    answer = peer.load_state_dict(published_names(neck), strict=False)
    assert not answer.unexpected_keys
    assert all(key.startswith("fusion_stage.layers.0.residual_layer1.") for key in answer.missing_keys)
    tokens = tokens_of(2, 4, 6, registers=0, layers=layers)
    theirs = peer(list(tokens.sequence), 4, 6)
    for level, fused in zip(neck(tokens).maps, theirs[::-1], strict=True):
        doubled = F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)
        assert torch.allclose(doubled, fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (4, 6), (1, 3), (7, 9)])
def test_doubling_is_transformers_neck_as_published(grid: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck as Peer

    neck = small("project", upsample="double", align_corners=True, unit_bias=False).double()
    sizes = {"neck_hidden_sizes": HIDDEN, "reassemble_factors": (4, 2, 1, 0.5), "fusion_hidden_size": 8}
    config = DPTConfig(hidden_size=WIDTH, readout_type="project", use_bias_in_fusion_residual=False, **sizes)
    peer = Peer(config).double()
    found = peer.load_state_dict(published_names(neck), strict=False)
    assert not found.unexpected_keys
    tokens = tokens_of(2, *grid, registers=0, layers=4, dtype=torch.float64)
    theirs = peer(list(tokens.sequence), *grid)
    for level, fused in zip(neck(tokens).maps, theirs[::-1], strict=True):
        doubled = F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=True)
        assert torch.allclose(doubled, fused, rtol=0, atol=1e-11)


def position_neck(alive: int) -> DPTNeck:
    """Weights that copy: layer ``alive`` passes through with its position, all others are silent."""
    neck = DPTNeck(4, 4, 2, hidden_sizes=(4, 4, 4, 4)).double()
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.zero_()
        reassemble = neck.reassemble[alive]
        reassemble.project.weight.copy_(torch.eye(4))  # type: ignore[operator,union-attr]
        if reassemble.up is not None:
            side = (4, 2)[alive]
            steps = torch.arange(side).double() / side
            weight = reassemble.up.weight  # type: ignore[union-attr]
            weight.copy_(torch.eye(4)[:, :, None, None].expand_as(weight))  # type: ignore[operator,arg-type]
            weight[2, 0] = steps[:, None]  # type: ignore[index,operator]
            weight[2, 1] = steps[None, :]  # type: ignore[index,operator]
        if reassemble.down is not None:
            reassemble.down.weight[range(4), range(4), 1, 1] = 1.0  # type: ignore[union-attr,index,operator]
        reassemble.widen.weight[range(2), range(2), 1, 1] = 1.0  # type: ignore[union-attr,index,operator]
        for fusion in neck.fusion:
            fusion.project.weight.copy_(torch.eye(2))  # type: ignore[operator,union-attr]
    return neck
