"""Random weights that are the same on every machine."""

from __future__ import annotations

import pytest

from dinoneck import load_backbone
from dinoneck.backbones.load import _uniform

# written once; other numbers on another machine or version would break every seeded checkpoint
FIRST = [0.7316123247146606, 0.5151512026786804, 0.8366293907165527]
TINY_SHA256 = "edd4e6176f4b2c50f202b7dc0845d1a9fef27ba257d54990239abaf6bc1e6984"


def test_the_stream_is_fixed_for_ever() -> None:
    assert _uniform("norm.weight", 3, seed=0).tolist() == FIRST
    assert load_backbone("dinoneck_tiny").record()["weights_sha256"] == TINY_SHA256


def test_numbers_are_uniform_and_prefix_stable() -> None:
    unit = _uniform("a", 100_001, seed=1)
    assert unit.shape == (100_001,)
    assert 0 <= unit.min() < unit.max() < 1
    assert unit.mean() == pytest.approx(0.5, abs=0.005)
    assert unit.std() == pytest.approx(12**-0.5, abs=0.005)
    assert not (_uniform("b", 100, seed=1) == unit[:100]).all()
    assert not (_uniform("a", 100, seed=2) == _uniform("a", 100, seed=1)).all()


def test_roles() -> None:
    model = load_backbone("vit_small_patch16_dinov3", pretrained=False).adapter.model
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if "gamma" in name:
            assert 0.1 <= values.min() < values.max() <= 0.3
        elif "norm" in name and name.endswith("weight"):
            assert values.mean() == pytest.approx(1.0, abs=0.03)
        elif values.ndim >= 2 and name.endswith("weight"):
            assert values.std() == pytest.approx(values[0].numel() ** -0.5, rel=0.05), name
        else:
            assert values.abs().max() <= 0.02 * 3**0.5 + 1e-6, name
