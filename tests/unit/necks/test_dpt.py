"""DPTNeck against transformers' and against the formulas written out with plain NCHW operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.kit import WIDTH, same
from tests.kit import tokens as tokens_of
from torch import Tensor

from dinoneck import ConfigError, DPTHead, DPTNeck, Task

HIDDEN = (4, 6, 8, 10)


def small(readout: str = "ignore", layers: int = 4, **more: object) -> DPTNeck:
    return DPTNeck(WIDTH, layers, 8, readout, hidden_sizes=HIDDEN[-layers:], **more)  # type: ignore[arg-type]


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


SIZED, DOUBLED = (
    [("size", 2, (4, 6)), ("size", 4, (4, 6))],
    [("double", 4, grid) for grid in ((4, 6), (3, 5), (1, 3))],
)


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize(("upsample", "layers", "grid"), SIZED + DOUBLED)
def test_it_is_transformers_neck(
    readout: str, upsample: str, layers: int, grid: tuple[int, int]
) -> None:
    """The published neck doubles its maps; maps resized to the next level are the same on even grids."""
    pytest.importorskip("transformers")
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck as Peer

    double = upsample == "double"
    options = {"upsample": "double", "align_corners": True, "unit_bias": False} if double else {}
    neck = small(readout, layers, **options).double()
    sizes = {"neck_hidden_sizes": HIDDEN[-layers:], "reassemble_factors": (4, 2, 1, 0.5)[-layers:]}
    peer = Peer(
        DPTConfig(
            hidden_size=WIDTH,
            readout_type=readout,
            use_bias_in_fusion_residual=not double,
            fusion_hidden_size=8,
            **sizes,
        )
    ).double()
    for layer in peer.fusion_stage.layers:
        layer.align_corners = double
    found = peer.load_state_dict(published_names(neck), strict=False)
    assert not found.unexpected_keys
    assert all(
        key.startswith("fusion_stage.layers.0.residual_layer1.") for key in found.missing_keys
    )
    tokens = tokens_of(2, *grid, registers=0, layers=layers, dtype=torch.float64)
    theirs = peer(list(tokens.sequence), *grid)
    doubled = [
        F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=double)
        for x in neck(tokens).maps
    ]
    assert same(doubled, theirs[::-1], 1e-11)


@pytest.mark.parametrize("readout", ["ignore", "add"])
def test_an_activation_of_a_readout_that_has_none_is_refused(readout: str) -> None:
    with pytest.raises(ConfigError, match=f"is 'gelu_tanh', and readout='{readout}' has no"):
        small(readout, readout_activation="gelu_tanh")


def test_an_activation_of_a_projection_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="is None, and there is no projection"):
        DPTHead(WIDTH, Task("depth", kind="dense"), small(), projection_activation=None)
