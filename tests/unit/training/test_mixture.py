"""Mixing of samples: rounding in half precision, and gradients."""

from __future__ import annotations

from dataclasses import replace

import torch

from dinoneck.training.mixup import Mixture

DOUBLE = torch.float64


def mixture_of() -> Mixture:
    return Mixture(torch.tensor([2, 0, 1, 3]), torch.rand(4, dtype=DOUBLE))


def test_shares_are_not_rounded_by_half_precision() -> None:
    mixture, x = mixture_of(), torch.randn(4, 3).bfloat16()
    mixture = replace(mixture, kept=torch.full((4,), 0.7001, dtype=DOUBLE))
    wanted = (0.7001 * x.double() + 0.2999 * x[mixture.partner].double()).bfloat16()
    assert torch.equal(mixture.linear(x), wanted)


def test_a_gradient_goes_back_to_both() -> None:
    mixture = mixture_of()
    x = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(mixture.linear, (x,))
    assert torch.autograd.gradgradcheck(mixture.linear, (x,))
