"""DPTHead against the depth heads of transformers, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of
from tests.unit.necks.test_dpt import HIDDEN, published_names, small
from torch import nn

from dinoneck import DPTHead, Task

DEPTH = Task("depth", kind="dense", activation="relu", unit="m")


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


def test_it_is_the_head_of_depth_anything() -> None:
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
    for layer, name in ((peer.conv1, "first"), (peer.conv2, "second"), (peer.conv3, "out")):
        own = head.get_submodule(f"readouts.0.{name}").state_dict()
        layer.load_state_dict({key: own[key].reshape(value.shape) for key, value in layer.state_dict().items()})
    tokens = tokens_of(2, 3, 5, registers=0, layers=4, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(peer_neck(list(tokens.sequence), 3, 5), 3, 5)[:, None]
        assert torch.allclose(head(tokens)["depth"], expected, rtol=0, atol=1e-12)
