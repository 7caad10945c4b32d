"""The scale of tokens at a head's entrance: two buffers, measured once, that travel with the weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from dinoneck import (
    CLSGatingHead,
    DataError,
    PatchMeanHead,
    Task,
    Tokens,
)
from dinoneck.heads.head import TokenScale

C, LAYERS = 16, 2


def tokens_of(*layers: torch.Tensor) -> Tokens:
    return Tokens.from_sequence(list(layers), image_size=(32, 48), patch_size=16, num_prefix_tokens=5)


def layers(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 11, C, generator=generator, dtype=torch.float64) * (i + 2) + 3 * i for i in range(LAYERS)]


@pytest.mark.parametrize("make", [PatchMeanHead, partial(CLSGatingHead, mode="query")])
def test_a_measured_head_sees_standardised_channels(make: Any) -> None:
    head = make(C, [Task("mass")]).double().eval()
    batches = [tokens_of(*layers(seed)) for seed in range(3)]
    patches = torch.cat([tokens.patches[-1].flatten(0, 1) for tokens in batches])
    mean, std = patches.mean(dim=0), patches.std(dim=0, correction=0)
    expected = head(tokens_of((batches[0].sequence[-1] - mean) / std))["mass"]
    head.calibrate(iter(batches))
    assert torch.allclose(head.scale.mean, mean) and torch.allclose(head.scale.std, std)
    assert torch.allclose(head(batches[0])["mass"], expected, atol=1e-12)
    head.calibrate(iter([tokens_of(*layers(9))]))
    assert torch.allclose(head.scale.mean, mean), "a head that has a scale keeps it"


def test_tokens_pass_an_unmeasured_scale_bit_for_bit() -> None:
    scale, tokens = TokenScale(C), tokens_of(*(x.float() for x in layers()))
    assert not scale.is_measured
    assert torch.equal(scale(tokens).sequence[0], tokens.sequence[-1])
    scale.measure([tokens])
    assert scale.is_measured
    scale.reset_parameters()
    assert not scale.is_measured
    with pytest.raises(DataError, match="not finite"):
        scale.measure([tokens_of(torch.full((1, 11, C), torch.nan))])
