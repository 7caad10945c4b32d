"""Mixing behind the first linear layer, and pooling before mixing, against mixing the tokens, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.contract.cases import MAPS, TASKS, WIDTH, tokens_of
from torch import Tensor, nn

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    FeaturePyramid,
    FPNHead,
    PatchMeanHead,
    PyramidHead,
    Tokens,
    ViTFPN,
)
from dinoneck.heads.head import Head
from dinoneck.layers.mixture import Mixture
from dinoneck.training import manifold_mixup
from dinoneck.training.learner import Learner
from dinoneck.training.mixup import drawn_mixup

DOUBLE = torch.float64
FREE: dict[str, Any] = {"fpn_dim": 8, "norm": None, "dtype": DOUBLE}
HEADS = {
    "patch_mean": (lambda: PatchMeanHead(WIDTH, TASKS, 8, dtype=DOUBLE), True),
    "cls_gating": (lambda: CLSGatingHead(WIDTH, TASKS, "mlp", 15, 8, dtype=DOUBLE), True),
    "cls_gating-query": (lambda: CLSGatingHead(WIDTH, TASKS, "query", hidden_dim=8, dtype=DOUBLE), True),
    "cls_gating-resized": (lambda: CLSGatingHead(WIDTH, TASKS, "resized", (2, 4), 8, dtype=DOUBLE), True),
    "fpn": (lambda: FPNHead(WIDTH, TASKS, 5, **FREE), True),
    "fpn-softmax": (lambda: FPNHead(WIDTH, TASKS, 5, fusion="softmax", residual_init="zero", **FREE), True),
    "fpn-linear": (lambda: FPNHead(WIDTH, (*TASKS, *MAPS), 5, downsample="pool", activation=None, **FREE), True),
    "fpn-pooled": (lambda: FPNHead(WIDTH, TASKS, 5, use_cls_context=True, activation=None, **FREE), True),
    "fpn-pixel": (lambda: FPNHead(WIDTH, TASKS, 5, fusion="pixel", **FREE), False),
    "fpn-normed": (lambda: FPNHead(WIDTH, TASKS, 5, fpn_dim=8, dtype=DOUBLE), False),
    "pyramid": (lambda: PyramidHead(WIDTH, TASKS, {"type": "sta_pyramid", "out_channels": 8}, dtype=DOUBLE), False),
    "dense": (lambda: DenseHead(WIDTH, MAPS, 8, 1, dtype=DOUBLE), False),
}


def mixture_of(batch: int = 4) -> Mixture:
    return Mixture(torch.tensor([2, 0, 1, 3][:batch]), torch.rand(batch, dtype=DOUBLE))


def built(name: str) -> Head:
    torch.manual_seed(0)
    head = HEADS[name][0]()
    with torch.no_grad():
        for part, parameter in head.named_parameters():
            if "gains" in part or "fusion_weights" in part:
                parameter.normal_()
    return head


@pytest.mark.parametrize("name", HEADS)
def test_it_is_the_head_of_mixed_tokens(name: str) -> None:
    head, mixture = built(name), mixture_of()
    tokens = tokens_of(4, 3, 5, layers=5, dtype=DOUBLE)
    for x in tokens.sequence:
        x.requires_grad_()
    leaves = [*tokens.sequence, *head.parameters()]
    results = []
    for run in (lambda: head.mixed(tokens, mixture), lambda: head(mixture.of(tokens))):
        torch.manual_seed(3)  # dropout
        outputs = run()
        torch.manual_seed(4)
        total = sum((x * torch.randn_like(x)).sum() for x in outputs.values())
        results.append((outputs, torch.autograd.grad(total, leaves, allow_unused=True)))  # type: ignore[arg-type]
    (one, gradients), (other, wanted) = results
    assert one.keys() == other.keys()
    for key, x in one.items():
        assert (x - other[key]).abs().max() < 1e-12
    for a, b in zip(gradients, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 1e-11


@pytest.mark.parametrize("name", HEADS)
def test_tokens_are_mixed_only_where_they_must_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[Tokens] = []
    own = Mixture.of
    monkeypatch.setattr(Mixture, "of", lambda self, tokens: (mixed.append(tokens), own(self, tokens))[1])
    built(name).mixed(tokens_of(4, 3, 5, layers=5, dtype=DOUBLE), mixture_of())
    assert bool(mixed) != HEADS[name][1]


def test_the_random_numbers_are_those_of_manifold_mixup() -> None:
    tokens, targets = tokens_of(4), {"mass": torch.rand(4, 1)}
    seen = [
        function(tokens, targets, 0.4, masks={}, generator=torch.Generator().manual_seed(5))
        for function in (manifold_mixup, drawn_mixup)
    ]
    (mixed, one, _), (mixture, other, _) = seen
    assert torch.equal(one["mass"], other["mass"])
    assert torch.equal(mixed.sequence[0], mixture.of(tokens).sequence[0])


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
    weights = torch.randn(4, 2, 5, dtype=DOUBLE, requires_grad=True)
    tokens = torch.randn(4, 5, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(mixture.weighed, (weights, tokens))
    assert torch.allclose(mixture.weighed(weights, tokens), weights @ mixture.linear(tokens), atol=1e-13)


def test_weighed_shares_are_not_rounded_by_half_precision() -> None:
    mixture = replace(mixture_of(), kept=torch.full((4,), 0.7001, dtype=DOUBLE))
    tokens = torch.zeros(4, 5, 3)
    tokens[:, 0] = torch.tensor([1.0, -1.0, 0.0, 2.0])[:, None]
    weights = torch.zeros(4, 1, 5)
    weights[..., 0] = 1
    wanted = mixture.linear(tokens.double())[:, :1].bfloat16()
    assert torch.equal(mixture.weighed(weights.bfloat16(), tokens.bfloat16()), wanted)


@pytest.mark.parametrize("name", ["patch_mean", "fpn-linear"])
def test_layers_that_somebody_put_something_around_are_called(name: str) -> None:
    """With mixed samples too: what stands around a layer need not be linear."""
    head, mixture, tokens = built(name), mixture_of(), tokens_of(4, 3, 5, layers=5, dtype=DOUBLE)
    layers = [layer for layer in head.modules() if type(layer) is nn.Linear and layer.in_features == WIDTH]
    quiet = head.mixed(tokens, mixture)
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: torch.tanh(3 * output))
    heard = head.mixed(tokens, mixture)
    for key, x in head(mixture.of(tokens)).items():
        assert (x - heard[key]).abs().max() < 1e-12
        assert (x - quiet[key]).abs().max() > 1e-4


class Louder(PatchMeanHead):
    """Somebody's head: more than it inherits."""

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        return {name: 2 * x for name, x in super().forward(tokens).items()}


def test_a_head_whose_call_says_more_is_called() -> None:
    tokens, mixture = tokens_of(4, dtype=DOUBLE), mixture_of()
    louder = Louder(WIDTH, TASKS[:1], 8, dtype=DOUBLE)
    hooked = copy.deepcopy(louder)
    hooked.__class__ = PatchMeanHead
    heard: list[nn.Module] = []
    hooked.register_forward_hook(lambda module, args, output: heard.append(module))
    quiet, loud = (Learner(head).outputs(tokens, mixture)["mass"] for head in (hooked, louder))
    assert heard == [hooked]
    assert torch.allclose(loud, 2 * quiet, atol=1e-12)
    assert torch.equal(Learner(louder).outputs(tokens)["mass"], louder(tokens)["mass"])


class LouderNeck(ViTFPN):
    """Somebody's neck: more than it inherits."""

    def forward(self, tokens: Tokens, images: Tensor | None = None) -> FeaturePyramid:
        found = super().forward(tokens, images)
        return replace(found, maps=tuple(2 * x for x in found.maps))


def test_a_neck_whose_call_says_more_is_called() -> None:
    head = FPNHead(WIDTH, MAPS, 5, **FREE)
    tokens, mixture = tokens_of(4, layers=5, dtype=DOUBLE), mixture_of()
    quiet = head(mixture.of(tokens))
    head.neck.__class__ = LouderNeck
    for name, x in head.mixed(tokens, mixture).items():
        assert torch.allclose(x, head(mixture.of(tokens))[name], atol=1e-12)
        assert not torch.allclose(x, quiet[name])
