"""DPTHead against the depth heads of transformers, with the same random weights."""

from __future__ import annotations

import torch
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of
from tests.unit.necks.test_dpt import small
from torch import nn

from dinoneck import DPTHead, Task


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
