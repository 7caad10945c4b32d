"""DINO features in a decoder: the formula, and hooks that do what an edited network would."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from tests.unit.points.plain_unet import (
    C_DINO,
    NAMES,
    UP,
    EditedUNet,
    PlainUNet,
    cloud,
    halved,
    injection_of,
    pyramid_of,
)
from torch import Tensor, nn

from dinoneck import ConfigError, DinoneckError, ShapeError
from dinoneck.points import DecoderInjection, PlainSparse, SparseFeatures

GATES = (None, "scalar", "channel", "token")


def awake(injection: DecoderInjection) -> DecoderInjection:
    """Gains and norms away from where they start."""
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return injection


def networks(checkpointing: Any = None) -> tuple[PlainUNet, EditedUNet]:
    """A network and the edited one, with the same weights."""
    plain, edited = PlainUNet(checkpointing), EditedUNet()
    edited.load_state_dict(plain.state_dict())
    return plain, edited


# -- what is computed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["layer", None])
def test_the_formula(gate: Any, norm: Any) -> None:
    injection = awake(DecoderInjection(6, {4: 5}, norm, gate=gate, dtype=torch.float64))
    weights = {key.removeprefix("levels.4."): value for key, value in injection.state_dict().items()}
    x, f, valid = torch.randn(9, 5).double(), torch.randn(9, 6).double(), torch.arange(9) % 3 > 0
    out = injection(x, f, valid)
    for i in range(9):
        row = f[i]
        if norm:
            row = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() * weights["norm.weight"] + weights[
                "norm.bias"
            ]
        factor = weights.get("gains", torch.ones(1).double())
        if gate == "token":
            logit = (
                weights["token_gate.weight"][0] @ row
                + weights["token_gate.bias"]
                + weights["voxel_gate.weight"][0] @ x[i]
            )
            factor = 1 / (1 + torch.exp(-logit))
        expected = x[i] + float(valid[i]) * factor * (weights["proj.weight"] @ row)
        assert torch.allclose(out[i], expected, rtol=0, atol=1e-12)


def test_unseen_voxels_keep_their_bits() -> None:
    x = torch.randn(64, 5)
    x[::7] = -0.0
    injection = awake(DecoderInjection(6, {4: 5}, gate="channel"))
    valid = torch.rand(64) < 0.5
    out = injection(x, torch.randn(64, 6), valid)
    assert torch.equal(out[~valid].view(torch.int32), x[~valid].view(torch.int32))
    assert (out[valid] != x[valid]).all()


def test_features_are_found_wherever_rows_are() -> None:
    """Rows in another order, other rows and voxels that the pyramid lacks."""
    x = cloud()
    level, injection = pyramid_of(x)[2], awake(DecoderInjection(C_DINO, {2: 5}))
    cells = halved(x, 2)[0]
    feats = torch.randn(len(cells.coords), 5)
    rows = {(*place.tolist(), int(b)): i for i, (place, b) in enumerate(zip(level.coords, level.batch, strict=True))}
    coords = torch.cat((cells.coords, torch.tensor([[40, 40, 40]])))
    batch, feats = torch.cat((cells.batch, torch.tensor([0]))), torch.cat((feats, torch.randn(1, 5)))
    out = injection.inject(feats, level, coords, batch)
    for i in range(len(coords)):
        row = rows.get((*coords[i].tolist(), int(batch[i])))
        seen = row is not None and bool(level.valid[row])
        f = level.feats[row if seen else 0]
        expected = injection(feats[i : i + 1], f[None], torch.tensor([seen]))
        assert torch.allclose(out[i], expected[0], atol=1e-6)
    turned = torch.randperm(len(coords))
    assert torch.allclose(injection.inject(feats[turned], level, coords[turned], batch[turned]), out[turned], atol=1e-6)


# -- hooks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("target", ["up", "skip"])
def test_hooks_do_what_an_edited_network_does(target: Any, gate: Any) -> None:
    plain, edited = networks()
    x, injection = cloud(), awake(injection_of(target, gate=gate))
    pyramid = pyramid_of(x)
    expected = edited(x, injection, pyramid)
    with injection.using(pyramid):
        handle = injection.attach(plain, NAMES)
        assert torch.equal(plain(x), expected)
    handle.remove()
    wrapped = injection.wrap(plain, NAMES)
    assert torch.equal(wrapped(x, pyramid=pyramid), expected)


def test_a_trained_network_is_unchanged_at_step_zero_and_learns_after() -> None:
    plain, x = PlainUNet(), cloud()
    before = plain(x)
    wrapped = injection_of(zero_init=True).wrap(plain, NAMES)
    pyramid = pyramid_of(x)
    out = wrapped(x, pyramid=pyramid)
    assert torch.equal(out, before)
    labels = x.coords[:, 0] % 4
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(wrapped(x, pyramid=pyramid), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(level.proj.weight.abs().max() > 0 for level in wrapped.injection.levels.values())


def test_removed_hooks_leave_nothing() -> None:
    plain, x, injection = PlainUNet(), cloud(), injection_of()
    before = plain(x)
    handle = injection.attach(plain, NAMES)
    with injection.using(pyramid_of(x)):
        assert not torch.equal(plain(x), before)
    handle.remove()
    handle.remove()
    assert torch.equal(plain(x), before)
    wrapped = injection.wrap(plain, NAMES)
    wrapped.remove()
    assert torch.equal(plain(x), before)
    assert not any(module._forward_pre_hooks for module in plain.modules())


def test_without_images_it_is_the_3d_network() -> None:
    plain, x, injection = PlainUNet(), cloud(), injection_of()
    before = plain(x)
    injection.attach(plain, NAMES)
    with injection.using(pyramid_of(x)):
        with injection.using(None):
            assert torch.equal(plain(x), before)
        assert not torch.equal(plain(x), before)  # the outer one is back
    with pytest.raises(ConfigError, match=r"'block2' runs without a pyramid.*using\(None\)"):
        plain(x)
    with injection.using(pyramid_of(x, seen=0.0)):
        assert torch.equal(plain(x), before)


# -- activation checkpointing, copies, files, processes -----------------------------------------------------


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_a_wrapped_network_trains_under_checkpointing(kind: Any) -> None:
    x, injection = cloud(), awake(injection_of(gate="token"))
    pyramid, found = pyramid_of(x), []
    torch.manual_seed(3)
    state = PlainUNet().state_dict()
    for checkpointing in (None, kind):
        unet = PlainUNet(checkpointing)
        unet.load_state_dict(state)
        wrapped = copy.deepcopy(injection).wrap(unet, NAMES)
        wrapped(x, pyramid=pyramid).square().mean().backward()
        found.append(gradients(wrapped))
    assert set(found[0]) == set(found[1]) == {name for name, _ in wrapped.named_parameters()}
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_an_attached_network_says_why_it_cannot(kind: Any) -> None:
    x, injection, unet = cloud(), injection_of(), PlainUNet(kind)
    injection.attach(unet, NAMES)
    with injection.using(pyramid_of(x)):
        out = unet(x)
    with pytest.raises(ConfigError, match=r"activation checkpointing recomputes.*injection\.wrap"):
        out.sum().backward()
    with injection.using(pyramid_of(x)), pytest.raises(ConfigError, match=r"injection\.wrap"):
        unet(x).sum().backward()


def test_a_pass_that_is_over_is_not_mixed_up_with_the_last() -> None:
    one, other = cloud(0), cloud(1)
    for clouds in ((one, other), (one, one)):
        wrapped = injection_of().wrap(PlainUNet("non-reentrant"), NAMES)
        first = wrapped(clouds[0], pyramid=pyramid_of(clouds[0]))
        wrapped(clouds[1], pyramid=pyramid_of(clouds[1], seed=1))
        with pytest.raises(ConfigError, match="several pyramids"):
            first.sum().backward()
    wrapped = injection_of().wrap(PlainUNet("non-reentrant"), NAMES)
    for seed in range(2):  # in turns they may differ
        wrapped(one, pyramid=pyramid_of(one, seed)).sum().backward()
    shared = pyramid_of(one)
    (wrapped(one, pyramid=shared) + wrapped(one, pyramid=shared)).sum().backward()  # one pyramid is not ambiguous
    unchecked = injection_of().wrap(PlainUNet(), NAMES)
    total = sum(unchecked(x, pyramid=pyramid_of(x)).sum() for x in (one, other))
    total.backward()  # without checkpointing any order is right


def test_the_network_inside_is_not_called_around_the_wrapper() -> None:
    x = cloud()
    wrapped = injection_of().wrap(PlainUNet(), NAMES)
    wrapped(x, pyramid=pyramid_of(x)).sum().backward()
    with pytest.raises(ConfigError, match=r"wrapped\(x, pyramid"):
        wrapped.unet(x)
    with torch.no_grad():
        wrapped(x, pyramid=(pyramid := pyramid_of(x)))
    level = weakref.ref(pyramid.pop(1))
    assert level() is None  # nothing is held after inference


def test_copies_are_whole_and_independent() -> None:
    x, wrapped = cloud(), injection_of().wrap(PlainUNet(), NAMES)
    learnt = {s: SparseFeatures(p.coords, p.batch, p.feats.clone().requires_grad_() * 2, p.valid, s)
              for s, p in pyramid_of(x).items()}  # fmt: skip
    before = wrapped(x, pyramid=learnt)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(x, pyramid=learnt), before)
        with torch.no_grad():
            for parameter in twin.injection.parameters():
                parameter.mul_(2)
        assert not torch.equal(twin(x, pyramid=learnt), before)
        assert torch.equal(wrapped(x, pyramid=learnt), before)


# -- stats and errors ---------------------------------------------------------------------------------------


def test_stats_of_the_last_pass() -> None:
    plain, x, injection = PlainUNet(), cloud(), awake(injection_of())
    assert injection.stats == {}
    pyramid = pyramid_of(x)
    wrapped = injection.wrap(plain, NAMES)
    wrapped(x, pyramid=pyramid)
    assert list(injection.stats) == [2, 1]
    level = injection.stats[1]
    assert (level.voxels, level.channels) == (len(x.coords), UP[1])
    assert level.hit_rate == pytest.approx(float(pyramid[1].valid.float().mean()))
    xs, f, valid = torch.randn(9, UP[1]), torch.randn(9, C_DINO), torch.arange(9) > 2
    out = injection(xs, f, valid, stride=1)
    assert injection.stats[1].ratio == pytest.approx(((out - xs).norm() / xs.norm()).item(), rel=1e-5)
    injection(torch.zeros(0, UP[1]), torch.zeros(0, C_DINO), torch.zeros(0, dtype=torch.bool), stride=1)
    assert (injection.stats[1].hit_rate, injection.stats[1].ratio) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({2: "blocks2", 1: "block1"}, r"PlainUNet has no module 'blocks2' \(stride 2\). Did you mean 'block2'\?"),
        ({2: "", 1: "block1"}, "no module ''"),
        ({2: "block2"}, "named for strides 2; this injection has levels at 2, 1"),
        ({2: "block2", 1: "block1", 4: "enc4"}, "named for strides 2, 1, 4"),
        ({2: "block1", 1: "block1"}, "named for two strides"),
    ],
)
def test_names_that_are_refused(names: dict[int, str], message: str) -> None:
    plain = PlainUNet()
    with pytest.raises(ConfigError, match=message):
        injection_of().attach(plain, names)
    assert not any(module._forward_pre_hooks for module in plain.modules())


def test_passes_that_are_refused() -> None:
    plain, x, injection = PlainUNet(), cloud(), injection_of()
    pyramid = pyramid_of(x)
    handle = injection.attach(plain, NAMES)
    with pytest.raises(ConfigError, match="'block2' has this injection already"):
        injection.wrap(plain, NAMES)
    handle.remove()
    with pytest.raises(ConfigError, match=r"the pyramid has no stride 2.*it has 1, 4\..*strides=\(1, 2\)"):
        injection.using({1: pyramid[1], 4: pyramid[4]}).__enter__()
    with pytest.raises(ConfigError, match="entry 2 holds features of stride 1"):
        injection.using({1: pyramid[1], 2: pyramid[1]}).__enter__()
    with pytest.raises(ShapeError, match="the features have 5 channels; c_dino is 6"):
        injection.using(pyramid_of(x, channels=5)).__enter__()
    early = injection.attach(plain, {2: "block2", 1: "enc1"})
    with (
        injection.using(pyramid),
        pytest.raises(ShapeError, match=r"'enc1' is given 3 channels, fewer than levels\[1\] = 9"),
    ):
        plain(x)
    early.remove()
    injection.attach(plain, NAMES)
    with injection.using(pyramid), pytest.raises(ConfigError, match="without positional arguments"):
        plain.block1(x=PlainSparse(x.coords, x.batch, torch.randn(len(x.coords), 14)))


def test_tensors_that_are_refused() -> None:
    injection, valid = injection_of(), torch.ones(4, dtype=torch.bool)
    level = pyramid_of(cloud())[1]
    with pytest.raises(ShapeError, match=r"coords \(1, 3\)"):  # not spread over all voxels
        injection.inject(torch.zeros(len(level), 9), level, level.coords[:1], level.batch[:1])
    with pytest.raises(ConfigError, match=r"levels at strides 2, 1; pass stride="):
        injection(torch.randn(4, 10), torch.randn(4, 6), valid)
    with pytest.raises(ConfigError, match="stride 8 is not injected; levels has 2, 1"):
        injection(torch.randn(4, 10), torch.randn(4, 6), valid, stride=8)
    with pytest.raises(ShapeError, match="x has 11 channels; this level adds 10"):
        injection(torch.randn(4, 11), torch.randn(4, 6), valid, stride=2)
    with pytest.raises(ShapeError, match="one row of features and one bool"):
        injection(torch.randn(4, 10), torch.randn(3, 6), valid, stride=2)
    with pytest.raises(ShapeError, match="torch.float32"):
        injection(torch.randn(4, 10), torch.randn(4, 6), valid.float(), stride=2)


def test_a_block_goes_by_all_of_its_names() -> None:
    net: Any = PlainUNet()
    net.alias = net.block2
    net.eval()
    x, injection = cloud(), injection_of()
    pyramid = pyramid_of(x)
    with pytest.raises(ConfigError, match="'alias' is named for two strides"):
        injection.attach(net, {2: "block2", 1: "alias"})
    for level in injection.levels.values():
        nn.init.normal_(level.proj.weight)  # type: ignore[union-attr, arg-type]
    results = []
    for names in ({**NAMES, 2: "alias"}, NAMES):
        handle = injection.attach(net, names)
        with torch.no_grad(), injection.using(pyramid):
            results.append(net(x))
        handle.remove()
    assert torch.equal(*results)


def in_thread(work: Any) -> Any:
    """Run in another thread; return what it gives or raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except DinoneckError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return results[0]


def test_threads_do_not_see_each_others_pyramids() -> None:
    net, injection, x = PlainUNet().eval(), injection_of(), cloud()
    for level in injection.levels.values():
        nn.init.normal_(level.proj.weight)  # type: ignore[union-attr, arg-type]
    injection.attach(net, NAMES)
    pyramid = pyramid_of(x)

    def inferred(network: nn.Module, inject: Any) -> Tensor:
        with torch.no_grad(), inject.using(pyramid):
            found: Tensor = network(x)
        return found

    alone = inferred(net, injection)
    with torch.no_grad(), injection.using(None):
        own = in_thread(lambda: inferred(net, injection))
        refused = in_thread(lambda: net(x))
        without = net(x)
    assert isinstance(refused, ConfigError)
    assert "without a pyramid" in str(refused)
    assert torch.equal(own, alone)
    assert not torch.equal(without, alone)


def test_a_block_of_a_finer_stride_is_named() -> None:
    """Its look-ups would hit, for every voxel lies in some coarse cell, and the network would train on."""
    plain, x = PlainUNet(), cloud()
    injection = DecoderInjection(6, {2: 9, 1: 10})
    pyramid = pyramid_of(x)
    swapped = injection.wrap(plain, {2: "block1", 1: "block2"})
    with pytest.raises(ConfigError, match=r"'block1' has a voxel at \[.*\], not a multiple of 2: it runs at a"):
        DecoderInjection(6, {2: 9}).wrap(PlainUNet(), {2: "block1"})(x, pyramid=pyramid)
    with pytest.raises(ConfigError, match="not a multiple of 2"):
        swapped(x, pyramid=pyramid)
