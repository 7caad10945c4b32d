"""DPTHead against the depth heads of transformers, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of
from tests.unit.necks.test_dpt import HIDDEN, published_names, small
from torch import Tensor, nn

from dinoneck import DPTHead, DPTNeck, Task

DEPTH = Task("depth", kind="dense", activation="relu", unit="m")
GRIDS = [(3, 5)]


def load(peer: nn.Module, head: DPTHead, names: dict[str, str]) -> None:
    """Give a readout of transformers the weights of ours; its names -> ours."""
    own = head.state_dict()
    state: dict[str, Tensor] = {}
    for key, value in peer.state_dict().items():
        stem, _, kind = key.rpartition(".")
        state[key] = own[f"{names[stem]}.{kind}"].reshape(value.shape)
    peer.load_state_dict(state)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_the_depth_head_of_dpt(grid: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead
    from transformers.models.dpt.modeling_dpt import DPTNeck as Neck

    neck = DPTNeck(WIDTH, 4, 256, "project", hidden_sizes=HIDDEN, upsample="double", align_corners=True)
    head = DPTHead(WIDTH, [DEPTH], neck, hidden_dim=32, add_projection=True).double().eval()
    sizes = {"neck_hidden_sizes": HIDDEN, "reassemble_factors": (4, 2, 1, 0.5), "fusion_hidden_size": 256}
    config = DPTConfig(hidden_size=WIDTH, readout_type="project", add_projection=True, head_in_index=-1, **sizes)
    peer_neck, peer = Neck(config).double(), DPTDepthEstimationHead(config).double()
    peer_neck.load_state_dict(published_names(neck), strict=False)
    names = {"projection": "mix", "head.0": "first", "head.2": "second", "head.4": "out"}
    load(peer, head, {theirs: f"readouts.0.{ours}" if ours != "mix" else ours for theirs, ours in names.items()})
    tokens = tokens_of(2, *grid, registers=0, layers=4, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(peer_neck(list(tokens.sequence), *grid))[:, None]
        [logits] = head.logits(tokens)
        assert logits.shape[-2:] == expected.shape[-2:] == tuple(32 * -(-side // 2) for side in grid)
        assert torch.allclose(logits.relu(), expected, rtol=0, atol=1e-12)
        resized = nn.functional.interpolate(expected, size=tuple(16 * side for side in grid), mode="bilinear")
        assert torch.allclose(head(tokens)["depth"], resized, rtol=0, atol=1e-12)


def test_values_are_bounded_before_and_classes_resized_before_they_are_shares() -> None:
    tokens, classes = tokens_of(1, 3, 5, layers=4), Task("class", dim=3, kind="segmentation")
    free = DPTHead(WIDTH, [Task("depth", kind="dense"), classes], small(upsample="double")).eval()
    with torch.no_grad():
        depth, logits = free.logits(tokens)
        middle = depth.median().item()
        head = DPTHead(WIDTH, [Task("depth", kind="dense", maximum=middle), classes], free.neck).eval()
        head.load_state_dict(free.state_dict())
        found = head.predict(tokens)
    size = (48, 80)
    bounded = nn.functional.interpolate(depth.clamp_max(middle), size=size, mode="bilinear")
    shares = nn.functional.interpolate(logits, size=size, mode="bilinear").softmax(dim=1)
    assert (found["depth"] - bounded).norm() <= 1e-5 * (bounded - bounded.mean()).norm()
    assert torch.allclose(found["class"], shares, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_the_head_of_depth_anything(grid: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    from transformers import DepthAnythingConfig
    from transformers.models.depth_anything.modeling_depth_anything import (
        DepthAnythingDepthEstimationHead,
        DepthAnythingNeck,
    )

    neck = small("ignore", align_corners=True)
    head = DPTHead(WIDTH, [DEPTH], neck, hidden_dim=6).double().eval()
    config = DepthAnythingConfig(
        patch_size=16,
        reassemble_hidden_size=WIDTH,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[*HIDDEN],
        fusion_hidden_size=8,
        head_hidden_size=6,
    )
    peer_neck, peer = DepthAnythingNeck(config).double(), DepthAnythingDepthEstimationHead(config).double()
    found = peer_neck.load_state_dict(published_names(neck), strict=False)
    assert not found.unexpected_keys
    load(peer, head, {f"conv{i + 1}": f"readouts.0.{name}" for i, name in enumerate(("first", "second", "out"))})
    tokens = tokens_of(2, *grid, registers=0, layers=4, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(peer_neck(list(tokens.sequence), *grid), *grid)[:, None]
        assert torch.allclose(head(tokens)["depth"], expected, rtol=0, atol=1e-12)
