"""Pointcept's own SpUNet and Point, from a checkout that DINONECK_POINTCEPT names: opt-in, needs spconv and addict."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.points.plain_unet import C_DINO, cloud, pyramid_of

from dinoneck.points import DecoderInjection, PointceptAdapter, adapter_of

CHECKOUT = Path(os.environ.get("DINONECK_POINTCEPT", ""))
LEVELS = {8: 256, 4: 128, 2: 96, 1: 96}
NAMES = {8: "dec.3", 4: "dec.2", 2: "dec.1", 1: "dec.0"}

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "pointcept").is_dir(), reason="DINONECK_POINTCEPT names no checkout of Pointcept"
)


@pytest.fixture
def pointcept(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import single modules of the checkout: its packages' own __init__ need extensions that are compiled for GPUs."""
    pytest.importorskip("addict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("spconv")
        ops = importlib.import_module("spconv.pytorch.ops")
    if not torch.cuda.is_available():
        monkeypatch.setattr(ops, "get_current_stream", lambda: 0)
    for name in ("pointcept", "pointcept.models", "pointcept.utils", "pointcept.models.sparse_unet"):
        package = types.ModuleType(name)
        package.__path__ = [str(CHECKOUT.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, name, package)
    geometric = types.ModuleType("torch_geometric.utils")
    geometric.scatter = None  # type: ignore[attr-defined]  # of its encoder mode only
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.utils", geometric)
    yield importlib.import_module
    for name in [name for name in sys.modules if name.startswith("pointcept")]:
        monkeypatch.delitem(sys.modules, name)


def inputs() -> tuple[dict[str, torch.Tensor], dict[int, Any]]:
    x = cloud(voxels=300)
    order = x.batch.argsort(stable=True)
    coords = x.coords[order] - x.coords.amin(0)
    x = type(x)(coords, x.batch[order], torch.randn(len(order), 6))
    data = {"grid_coord": x.coords, "feat": x.feats, "offset": x.batch.bincount().cumsum(0)}
    return data, pyramid_of(x, strides=(1, 2, 4, 8), seen=1.1)


def test_the_real_unet_is_unchanged_at_the_start_and_learns_at_every_stride(pointcept: Any) -> None:
    torch.manual_seed(0)
    unet = pointcept("pointcept.models.sparse_unet.spconv_unet_v1m1_base").SpUNetBase(6, 5).eval()
    data, pyramid = inputs()
    before = unet(data)
    wrapped = DecoderInjection(C_DINO, LEVELS).wrap(unet, NAMES)
    assert torch.equal(wrapped(data, pyramid=pyramid), before)
    wrapped.train()(data, pyramid=pyramid).square().mean().backward()
    for stride, level in wrapped.injection.stats.items():
        assert level.hit_rate == 1.0
        assert bool(wrapped.injection.levels[str(stride)].proj.weight.grad.any())


def test_the_real_point_is_known_by_its_type(pointcept: Any) -> None:
    data, pyramid = inputs()
    point = pointcept("pointcept.models.utils.structure").Point(data)
    adapter = adapter_of(point)
    assert isinstance(adapter, PointceptAdapter)
    coords, batch = adapter.coords(point, 1)
    feats, hit = pyramid[1].at(coords, batch)
    assert bool(hit.all())
    assert torch.equal(adapter.with_features(point, feats)["feat"], feats)
    assert torch.equal(point["feat"], data["feat"])
