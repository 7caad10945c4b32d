"""DPTNeck against transformers' and against the formulas written out with plain NCHW operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.kit import WIDTH, same
from tests.kit import tokens as tokens_of
from torch import Tensor

from dinoneck import ConfigError, DPTHead, DPTNeck, Task

HIDDEN = (4, 6, 8, 10)
FACTORS = (4, 2, 1, 0.5)  # by which the levels are larger than the grid of patches
PEER_NAMES = {
    "project": "projection",
    "up": "resize",
    "down": "resize",
    "first": "convolution1",
    "second": "convolution2",
    "lateral": "residual_layer1",
    "unit": "residual_layer2",
}


def small(readout: str = "ignore", layers: int = 4, **more: object) -> DPTNeck:
    return DPTNeck(WIDTH, layers, 8, readout, hidden_sizes=HIDDEN[-layers:], **more)  # type: ignore[arg-type]


def peer_weights(neck: DPTNeck) -> dict[str, Tensor]:
    """The neck's weights under the names and in the shapes of transformers' DPTNeck."""
    weights = {}
    for name, weight in neck.state_dict().items():
        room, position, *parts, kind = name.split(".")
        level = int(position)
        if parts == ["project"] and kind == "weight":
            weight = weight[..., None, None]  # a linear layer is a convolution there
        if parts == ["widen"]:
            peer_name = f"convs.{level}"
        elif parts == ["readout_linear"]:
            peer_name = f"reassemble_stage.readout_projects.{level}.0"
        else:
            stage = f"reassemble_stage.layers.{level}"
            if room == "fusion":
                stage = f"fusion_stage.layers.{neck.num_layers - 1 - level}"
            peer_parts = [PEER_NAMES[part] for part in parts]
            peer_name = ".".join([stage, *peer_parts])
        weights[f"{peer_name}.{kind}"] = weight
    return weights


def peer_of(neck: DPTNeck, readout: str, doubles: bool) -> Any:
    """transformers' neck with the weights of this one."""
    pytest.importorskip("transformers")
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck as Peer

    config = DPTConfig(
        hidden_size=WIDTH,
        readout_type=readout,
        use_bias_in_fusion_residual=not doubles,
        fusion_hidden_size=8,
        neck_hidden_sizes=HIDDEN[-neck.num_layers :],
        reassemble_factors=FACTORS[-neck.num_layers :],
    )
    peer = Peer(config).double()
    for layer in peer.fusion_stage.layers:
        layer.align_corners = doubles
    keys = peer.load_state_dict(peer_weights(neck), strict=False)
    assert not keys.unexpected_keys
    # the peer has a unit for the coarsest level that it never runs
    for key in keys.missing_keys:
        assert key.startswith("fusion_stage.layers.0.residual_layer1.")
    return peer


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize(
    ("upsample", "layers", "grid"),
    [
        pytest.param("next", 2, (4, 6), id="to the next level, two layers"),
        pytest.param("next", 4, (4, 6), id="to the next level, four layers"),
        pytest.param("double", 4, (4, 6), id="doubled, even grid"),
        pytest.param("double", 4, (3, 5), id="doubled, odd grid"),
        pytest.param("double", 4, (1, 3), id="doubled, one row"),
    ],
)
def test_it_is_transformers_neck(
    readout: str, upsample: str, layers: int, grid: tuple[int, int]
) -> None:
    """The published neck doubles its maps; maps resized to the next level are the same on even grids."""
    doubles = upsample == "double"
    neck = small(
        readout, layers, upsample=upsample, align_corners=doubles, unit_bias=not doubles
    ).double()
    peer = peer_of(neck, readout, doubles)
    tokens = tokens_of(2, *grid, registers=0, layers=layers, dtype=torch.float64)

    maps = neck(tokens).maps

    doubled = []
    for level in maps:
        doubled.append(F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=doubles))
    coarse_to_fine = peer(list(tokens.sequence), *grid)
    assert same(doubled, coarse_to_fine[::-1], 1e-11)


@pytest.mark.parametrize("readout", ["ignore", "add"])
def test_an_activation_of_a_readout_that_has_none_is_refused(readout: str) -> None:
    with pytest.raises(ConfigError, match=f"is 'gelu_tanh', and readout='{readout}' has no"):
        small(readout, readout_activation="gelu_tanh")


def test_an_activation_of_a_projection_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="is None, and there is no projection"):
        DPTHead(WIDTH, Task("depth", kind="dense"), small(), projection_activation=None)
