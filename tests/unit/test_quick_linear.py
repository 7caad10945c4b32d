"""The quick linear layer, against float64, and where it is what."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinoneck.layers import projection
from dinoneck.layers.projection import linear

C, D = 24, 7
SHAPES = [(1500, C), (3, 700, C), (2, 30, 40, C), (1, 1, 1030, C), (0, 5, C), (2, 3, C)]


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that were convolved."""
    seen: list[torch.dtype] = []
    plain = F.conv2d

    def counted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return plain(x, *rest)

    monkeypatch.setattr(projection.F, "conv2d", counted)
    return seen


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_those_of_a_linear_layer(shape: tuple[int, ...], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).bfloat16() for size in (shape, (D, C), (D,)))
    given = bias if biased else None
    for own in (x, x[..., 2:, :], x.flip(-1).transpose(-1, -2).contiguous().transpose(-1, -2)):
        with torch.no_grad():
            found = linear(own, weight, given)
        truth = F.linear(own.double(), weight.double(), bias.double() if biased else None)
        assert found.shape == truth.shape and found.dtype == torch.bfloat16
        assert (found.double() - truth).norm() <= 3e-3 * truth.norm()


def test_long_half_precision_without_a_graph_is_convolved_and_nothing_else(convolutions: list[torch.dtype]) -> None:
    x, weight = torch.randn(projection.FEW, C), torch.randn(D, C)
    half, narrow = x.bfloat16(), weight.bfloat16()
    with torch.no_grad():
        linear(half, narrow)
    assert convolutions == [torch.bfloat16]
    with torch.no_grad():
        linear(x, weight)
        linear(half[1:], narrow)
        with torch.autocast("cpu"):
            linear(half, weight)
    linear(half, narrow.requires_grad_()).sum().backward()
    assert convolutions == [torch.bfloat16] and narrow.grad is not None
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        linear(half, weight)
