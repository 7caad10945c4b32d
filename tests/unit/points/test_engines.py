"""Sparse tensors of engines: spconv's own where it is installed, stand-ins for those that are not."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from addict import Dict
from tests.unit.points.plain_unet import C_DINO, cloud, coarsened, pyramid_of
from torch import Tensor, nn

from dinoneck.points import (
    DecoderInjection,
    PlainAdapter,
    PlainSparse,
    PointceptAdapter,
    SparseAdapter,
    SpconvAdapter,
    adapter_of,
)

pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Indexed:
    """What spconv's tensors have: level units, batch first, int32."""

    indices: Tensor
    features: Tensor
    indice_dict: dict[str, Any] = dataclasses.field(default_factory=dict)

    def replace_feature(self, feats: Tensor) -> Indexed:
        return dataclasses.replace(self, features=feats)


class Mapped:
    """A user's engine: base units at every stride, batch first, int32."""

    def __init__(self, feats: Tensor, coordinates: Tensor) -> None:
        self.F, self.C = feats, coordinates


class MappedAdapter:
    """What a user writes for it."""

    def coords(self, x: Mapped, stride: int) -> tuple[Tensor, Tensor]:
        return x.C[:, 1:].long(), x.C[:, 0].long()

    def features(self, x: Mapped) -> Tensor:
        return x.F

    def with_features(self, x: Mapped, feats: Tensor) -> Mapped:
        return Mapped(feats, x.C)


class Point(Dict):
    """What Pointcept's is: an ``addict.Dict``, which has any attribute, in level units, batch or offset."""


STRIDE = 2


def level() -> PlainSparse:
    """Cells of stride 2 of two samples, ordered by sample as all engines have them."""
    cells = coarsened(cloud(), STRIDE)[0]
    return cells.with_feats(torch.randn(len(cells.coords), 5))


def with_batch(x: PlainSparse, divisor: int) -> Tensor:
    return torch.cat((x.batch[:, None], x.coords // divisor), dim=1).int()


def tensors() -> dict[str, tuple[Any, type]]:
    x = level()
    grid, offset = x.coords // STRIDE, x.batch.bincount().cumsum(0)
    sparse = Indexed(with_batch(x, STRIDE), x.feats)
    return {
        "plain": (x, PlainAdapter),
        "spconv": (sparse, SpconvAdapter),
        "own": (Mapped(x.feats, with_batch(x, 1)), MappedAdapter),
        "pointcept": (
            Point(grid_coord=grid, batch=x.batch, feat=x.feats, sparse_conv_feat=sparse),
            PointceptAdapter,
        ),
        "pointcept-offset": (
            Point(grid_coord=grid.int(), offset=offset, feat=x.feats),
            PointceptAdapter,
        ),
    }


@pytest.mark.parametrize("name", tensors())
def test_an_adapter_says_where_voxels_are_and_a_block_is_injected_into(name: str) -> None:
    torch.manual_seed(0)
    x, kind = tensors()[name]
    torch.manual_seed(0)
    expected = level()
    adapter: SparseAdapter = MappedAdapter() if name == "own" else adapter_of(x)
    assert type(adapter) is kind
    coords, batch = adapter.coords(x, STRIDE)
    assert coords.dtype == batch.dtype == torch.int64
    assert torch.equal(coords, expected.coords) and torch.equal(batch, expected.batch)
    again = adapter.with_features(x, adapter.features(x) * 2)
    assert type(again) is type(x)
    assert torch.equal(adapter.features(again), expected.feats * 2)
    assert torch.equal(adapter.features(x), expected.feats)  # the first is as it was
    assert torch.equal(adapter.coords(again, STRIDE)[0], coords)
    injection = DecoderInjection(C_DINO, {STRIDE: 3}, zero_init=False)
    pyramid, model = pyramid_of(cloud()), nn.Sequential(nn.Identity())
    injection.attach(model, {STRIDE: "0"}, adapter=adapter if name == "own" else None)
    with injection.using(pyramid):
        out = adapter.features(model(x))
    injected = injection.inject(
        expected.feats[:, :3], pyramid[STRIDE], expected.coords, expected.batch
    )
    assert torch.equal(out, torch.cat((injected, expected.feats[:, 3:]), dim=1))
    assert injection.stats[STRIDE].hit_rate == pytest.approx(
        pyramid[STRIDE].valid.float().mean().item()
    )


# -- spconv itself
# --------------------------------------------------------------------------------------------


@pytest.fixture
def spconv(monkeypatch: pytest.MonkeyPatch) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it is imported
        pytest.importorskip("spconv")
        import spconv.pytorch as engine
        import spconv.pytorch.ops as ops
    if not torch.cuda.is_available():
        # backward asks for one on CPUs too
        monkeypatch.setattr(ops, "get_current_stream", lambda: 0)
    return engine


def spconv_unet(engine: Any) -> nn.Module:
    """The arrangement of common networks: down by 2, up by its inverse, concatenation, block."""
    options = {"bias": False, "algo": engine.ConvAlgo.Native}

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = engine.SubMConv3d(3, 6, 3, indice_key="s1", **options)
            self.down = engine.SparseConv3d(6, 10, 2, 2, indice_key="d2", **options)
            self.down4 = engine.SparseConv3d(10, 12, 2, 2, indice_key="d4", **options)
            self.up4 = engine.SparseInverseConv3d(12, 8, 2, indice_key="d4", **options)
            self.block2 = engine.SubMConv3d(18, 9, 3, indice_key="s2", **options)
            self.up = engine.SparseInverseConv3d(9, 7, 2, indice_key="d2", **options)
            self.block1 = engine.SubMConv3d(13, 5, 3, indice_key="s1", **options)
            self.edit: Any = lambda up, stride: up.features

        def forward(self, x: Any) -> Any:
            fine = self.stem(x)
            middle = self.down(fine)
            middle = self.block2(self.merged(self.up4(self.down4(middle)), middle, 2))
            return self.block1(self.merged(self.up(middle), fine, 1))

        def merged(self, up: Any, skip: Any, stride: int) -> Any:
            return up.replace_feature(torch.cat((self.edit(up, stride), skip.features), dim=1))

    return UNet()


def test_spconv_hooks_do_what_an_edited_network_does(spconv: Any) -> None:
    x = cloud()
    # indices begin at 0; the shape is a multiple of the stride
    x = dataclasses.replace(x, coords=x.coords + 6)
    indices = torch.cat((x.batch[:, None], x.coords), dim=1).int()
    pyramid, unet = pyramid_of(x, seen=1.1), spconv_unet(spconv)

    def sparse() -> Any:
        return spconv.SparseConvTensor(x.feats, indices, [16, 16, 16], 2)

    injection, before = DecoderInjection(C_DINO, {2: 8, 1: 7}), unet(sparse()).features
    wrapped = injection.wrap(unet, {2: "block2", 1: "block1"})
    assert torch.equal(wrapped(sparse(), pyramid=pyramid).features, before)
    for own in injection.levels.values():
        own.proj.reset_parameters()
    injected = wrapped(sparse(), pyramid=pyramid).features
    assert not torch.equal(injected, before)
    # level units came out as base units
    assert [own.hit_rate for own in injection.stats.values()] == [1.0, 1.0]
    injected.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in wrapped.parameters())
    wrapped.remove()
    unet.edit = lambda up, stride: injection.inject(
        up.features, pyramid[stride], up.indices[:, 1:].long() * stride, up.indices[:, 0].long()
    )
    assert torch.equal(unet(sparse()).features, injected)
