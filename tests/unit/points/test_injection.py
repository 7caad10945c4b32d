"""DINO features in a decoder: the formulas, and hooks that do what an edited network would."""

from __future__ import annotations

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.unit.points.plain_unet import (
    C_DINO,
    NAMES,
    PlainUNet,
    cloud,
    coarsened,
    injection_of,
    pyramid_of,
)
from torch import Tensor

from dinoneck import ConfigError
from dinoneck.points import DecoderInjection, GatedFusion, PlainSparse

GATES = (None, "scalar", "channel", "token")


def awake(injection: DecoderInjection) -> DecoderInjection:
    """Gains and norms away from where they start."""
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return injection


# -- what is computed
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["layer", None])
def test_the_formula(gate: Any, norm: Any) -> None:
    injection = awake(DecoderInjection(6, {4: 5}, norm, gate=gate, dtype=torch.float64))
    weights = {
        key.removeprefix("levels.4."): value for key, value in injection.state_dict().items()
    }
    x, f, valid = torch.randn(9, 5).double(), torch.randn(9, 6).double(), torch.arange(9) % 3 > 0
    x[::6] = -0.0
    out = injection(x, f, valid)
    assert torch.equal(out[~valid].view(torch.int64), x[~valid].view(torch.int64))
    for i in range(9):
        row, factor = f[i], weights.get("gains", torch.ones(1).double())
        if norm:
            row = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
            row = row * weights["norm.weight"] + weights["norm.bias"]
        if gate == "token":
            logit = weights["token_gate.weight"][0] @ row + weights["voxel_gate.weight"][0] @ x[i]
            factor = torch.sigmoid(logit + weights["token_gate.bias"])
        expected = x[i] + float(valid[i]) * factor * (weights["proj.weight"] @ row)
        assert torch.allclose(out[i], expected, rtol=0, atol=1e-12)


def test_features_are_found_wherever_rows_are() -> None:
    """Rows in another order, other rows and voxels that the pyramid lacks."""
    level, injection, cells = (
        pyramid_of(cloud())[2],
        awake(DecoderInjection(C_DINO, {2: 5})),
        coarsened(cloud(), 2)[0],
    )
    rows = {
        (*place.tolist(), int(b)): i
        for i, (place, b) in enumerate(zip(level.coords, level.batch, strict=True))
    }
    coords, batch = (
        torch.cat((cells.coords, torch.tensor([[40, 40, 40]]))),
        torch.cat((cells.batch, torch.tensor([0]))),
    )
    feats = torch.randn(len(coords), 5)
    found = [
        rows.get((*place.tolist(), int(b)), -1) for place, b in zip(coords, batch, strict=True)
    ]
    seen = torch.tensor([row >= 0 and bool(level.valid[row]) for row in found])
    out = injection.inject(feats, level, coords, batch)
    assert torch.allclose(out, injection(feats, level.feats[found], seen), atol=1e-6)
    turned = torch.randperm(len(coords))
    assert torch.allclose(
        injection.inject(feats[turned], level, coords[turned], batch[turned]),
        out[turned],
        atol=1e-6,
    )


# -- hooks
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("target", ["up", "skip"])
def test_hooks_do_what_an_edited_network_does(target: Any, gate: Any) -> None:
    net, x, injection = PlainUNet(), cloud(), awake(injection_of(target, gate=gate))
    before, pyramid, plain = net(x), pyramid_of(x), net.edit

    def edited(up: Tensor, skip: PlainSparse, stride: int) -> tuple[Tensor, Tensor]:
        place = pyramid[stride], skip.coords, skip.batch
        return (
            (injection.inject(up, *place), skip.feats)
            if target == "up"
            else (up, injection.inject(skip.feats, *place))
        )

    net.edit = edited
    expected = net(x)
    net.edit = plain
    with injection.using(pyramid):
        handle = injection.attach(net, NAMES)
        assert torch.equal(net(x), expected)
    handle.remove()
    assert torch.equal(net(x), before)
    wrapped = injection.wrap(net, NAMES)
    assert torch.equal(wrapped(x, pyramid=pyramid), expected)
    wrapped.remove()
    assert torch.equal(net(x), before)


# -- activation checkpointing, copies, files, processes
# -----------------------------------------------------


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_a_wrapped_network_trains_under_checkpointing_and_an_attached_one_says_why_it_cannot(
    kind: Any,
) -> None:
    x, injection, unet = cloud(), awake(injection_of(gate="token")), PlainUNet()
    pyramid, found = pyramid_of(x), []
    for checkpointing in (None, kind):
        wrapped = copy.deepcopy(injection).wrap(copy.deepcopy(unet), NAMES)
        wrapped.unet.checkpointing = checkpointing
        wrapped(x, pyramid=pyramid).square().mean().backward()
        found.append([parameter.grad for parameter in wrapped.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    unet.checkpointing = kind
    injection.attach(unet, NAMES)
    with injection.using(pyramid):
        out = unet(x)
    with pytest.raises(ConfigError, match=r"injection\.wrap"):
        out.sum().backward()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pass_that_is_over_is_not_mixed_up_with_the_last(seed: int) -> None:
    x, other = cloud(0), cloud(seed)
    mixed, turns, plain = (
        injection_of().wrap(PlainUNet(kind), NAMES) for kind in ("non-reentrant",) * 2 + (None,)
    )
    first = mixed(x, pyramid=pyramid_of(x))
    mixed(other, pyramid=pyramid_of(other, seed=1))
    with pytest.raises(ConfigError, match="several pyramids"):
        first.sum().backward()
    for own in (0, 1):  # in turns they may differ
        turns(x, pyramid=pyramid_of(x, own)).sum().backward()
    shared = pyramid_of(x)
    # one pyramid is not ambiguous
    (turns(x, pyramid=shared) + turns(x, pyramid=shared)).sum().backward()
    # any order is right
    sum(plain(own, pyramid=pyramid_of(own)).sum() for own in (x, other)).backward()


def test_the_network_inside_is_not_called_around_the_wrapper() -> None:
    x, wrapped = cloud(), injection_of().wrap(PlainUNet(), NAMES)
    with pytest.raises(ConfigError, match=r"wrapped\(x, pyramid"):
        wrapped.unet(x)
    with torch.no_grad():
        wrapped(x, pyramid=(pyramid := pyramid_of(x)))
    level = weakref.ref(pyramid.pop(1))
    assert level() is None  # nothing is held after inference


# -- stats and errors
# ---------------------------------------------------------------------------------------


def test_threads_do_not_see_each_others_pyramids() -> None:
    net, injection, x = PlainUNet(), injection_of(), cloud()
    before = net(x)
    injection.attach(net, NAMES)
    with injection.using(pyramid_of(x, seen=0.0)):
        assert torch.equal(net(x), before)

    def inferred() -> Tensor:
        with torch.no_grad(), injection.using(pyramid_of(x)):
            found: Tensor = net(x)
        return found

    alone = inferred()
    with ThreadPoolExecutor(1) as pool, torch.no_grad(), injection.using(None):
        assert torch.equal(pool.submit(inferred).result(), alone)
        with pytest.raises(ConfigError, match=r"'block2'.*using\(None\)"):
            pool.submit(net, x).result()
        assert torch.equal(net(x), before)
        assert not torch.equal(before, alone)


def test_a_network_called_within_the_pass_of_another_finds_its_own_pyramid() -> None:
    x = cloud()
    first, second = PlainUNet(), PlainUNet()
    first_injection, second_injection = injection_of(), injection_of()
    first_injection.attach(first, NAMES)
    second_injection.attach(second, NAMES)
    with torch.no_grad(), first_injection.using(pyramid_of(x, seed=1)):
        alone = first(x)

    outer = first_injection.using(pyramid_of(x, seed=1))
    inner = second_injection.using(pyramid_of(x, seed=2))
    with torch.no_grad(), outer, inner:
        together = first(x)

    assert torch.equal(together, alone)


def points(count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, 5), torch.randn(count, 6), torch.arange(count) % 3 > 0


def test_before_the_first_pass_a_fusion_has_no_stats() -> None:
    assert GatedFusion(6, 5, 5).stats == {}


def test_the_fusion_is_its_formula() -> None:
    fusion = GatedFusion(6, 5, 5, hidden=4, dtype=torch.float64)
    x3, x2, valid = (value.double() if value.is_floating_point() else value for value in points())
    out, weights = fusion(x3, x2, valid), fusion.state_dict()

    def linear(name: str, row: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]

    gates = []
    for i in range(9):
        h = F.gelu(linear("project", x2[i]))
        gate = 1 / (
            1 + torch.exp(-linear("gate_out", F.gelu(linear("gate_hidden", torch.cat((x3[i], h))))))
        )
        expected = (1 - gate) * x3[i] + gate * linear("read", h) if valid[i] else x3[i]
        gates += [gate.item()] * bool(valid[i])
        assert torch.allclose(out[i], expected, rtol=0, atol=1e-12)
    assert fusion.stats == pytest.approx(
        {"coverage": 2 / 3, "fusion_2d_ratio": sum(gates) / len(gates)}, abs=1e-6
    )
    fusion(x3, x2, torch.zeros_like(valid))
    assert fusion.stats == {"coverage": 0.0, "fusion_2d_ratio": 0.0}
