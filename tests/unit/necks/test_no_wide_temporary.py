"""No neck and no head makes a second set of wide tokens on its way: every single allocation of a forward is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    DPTNeck,
    FPNHead,
    HeadEnsemble,
    LayerGrouper,
    PatchMeanHead,
    PyramidHead,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    Task,
    Tokens,
    ViTFPN,
)
from dinoneck.layers import token_products
from dinoneck.layers.mixture import Mixture

C, D, L, B, SIDE, PREFIX = 384, 8, 4, 2, 32, 5
WIDE = B * SIDE * SIDE * C * 4  # bytes of the patches of one layer
TASK, MAP = Task("mass", activation="softplus"), Task("ndvi", kind="dense")

MODULES: dict[str, Callable[[], nn.Module]] = {
    "grouper": lambda: LayerGrouper(C, L, D, 2),
    "grouper-shared": lambda: LayerGrouper(C, L, D, 1, use_separate_bottlenecks=False, norm=None, fusion="softmax"),
    "grouper-pixel": lambda: LayerGrouper(C, L, D, 2, fusion="pixel"),
    "vit_fpn": lambda: ViTFPN(C, L, D),
    "vit_fpn-linear": lambda: ViTFPN(C, L, D, norm=None, activation=None),
    "vit_fpn-pool": lambda: ViTFPN(C, L, D, downsample="pool", use_cls_context=True, use_coords=True),
    "vit_fpn-interpolate": lambda: ViTFPN(C, L, D, downsample="interpolate", residual_init="zero"),
    "sta-avgpool": lambda: STAPyramid(C, D, downsample="avgpool"),
    "adapter": lambda: SpatialTuningAdapter(C, D, L, detail=None, norm="layer"),
    "adapter-one": lambda: SpatialTuningAdapter(C, D, 1, detail=None, norm="layer"),
    "simple": lambda: SimplePyramid(C, D, (2.0, 1.0, 0.5)),
    "dpt": lambda: DPTNeck(C, L, D, "add", hidden_sizes=(4, 8, 8, 8)),
    "patch_mean": lambda: PatchMeanHead(C, [TASK], 32),
    "ensemble": lambda: HeadEnsemble.from_heads([PatchMeanHead(C, [TASK], 32) for _ in range(3)]),
    "gating": lambda: CLSGatingHead(C, [TASK], "mlp", SIDE * SIDE),
    "gating-query": lambda: CLSGatingHead(C, [TASK], "query"),
    "gating-ensemble": lambda: HeadEnsemble.from_heads([CLSGatingHead(C, [TASK], "query") for _ in range(3)]),
    "dense": lambda: DenseHead(C, [MAP], D, 1),
    "fpn": lambda: FPNHead(C, [TASK, MAP], L, fpn_dim=D),
    "pyramid": lambda: PyramidHead(C, [TASK], {"type": "simple_pyramid", "out_channels": D, "scales": [1, 0.5]}),
}


def largest_allocation(run: Callable[[], Any]) -> int:
    """Bytes of the largest block of memory that a call asks for, inside kernels too."""
    run()  # what is set up once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    largest, waiting = 0, list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            largest = max(largest, event.extra_fields.alloc_size)
    return largest


def tokens_of(batch: int = B, learns: bool = False) -> Tokens:
    xs = [torch.randn(batch, PREFIX + SIDE * SIDE, C, requires_grad=learns) for _ in range(L)]
    return Tokens.from_sequence(xs, image_size=(16 * SIDE, 16 * SIDE), patch_size=16, num_prefix_tokens=PREFIX)


def called(module: nn.Module, tokens: Tokens) -> Any:
    return module(tokens.sequence if isinstance(module, LayerGrouper) else tokens)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("trains", [False, True])
def test_no_second_set_of_wide_tokens_in_a_forward(name: str, trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(token_products.BLOCK_BYTES, "cpu", WIDE // 16)
    torch.manual_seed(0)
    module, tokens = MODULES[name]().train(trains), tokens_of()
    if name == "adapter-one":
        tokens = tokens.last
    with torch.set_grad_enabled(trains):
        assert largest_allocation(lambda: called(module, tokens)) < WIDE / 2


def test_the_count_sees_a_copy() -> None:
    x = tokens_of().patches[0]
    assert largest_allocation(lambda: x.contiguous()) >= WIDE
    assert (
        largest_allocation(lambda: torch.nn.functional.linear(x, torch.ones(D, C, requires_grad=True))) >= WIDE
    )  # hidden


def kept(module: nn.Module, tokens: Tokens) -> int:
    """Bytes kept for the backward pass beside tokens and parameters."""
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *tokens.sequence)}
    found: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        called(module, tokens)
    return sum(storage.nbytes() for place, storage in found.items() if place not in own)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("mode", ["mlp", "query"])
def test_a_gate_keeps_its_weights_alone(mode: Any, learns: bool) -> None:
    """Logits of every place and sample, not tokens: beside what is as wide as one CLS token per sample."""
    head = CLSGatingHead(C, [TASK], mode, SIDE * SIDE, hidden_dim=16, dropout=0.0)
    gates = B * (PREFIX + SIDE * SIDE) * 4
    assert kept(head, tokens_of(learns=learns).last) < 5 * gates + 20 * B * C * 4 < WIDE / 4


@pytest.mark.parametrize("learns", [False, True])
def test_norms_keep_no_tokens_for_the_backward_pass(learns: bool) -> None:
    grouper = LayerGrouper(C, L, D, 1)
    assert kept(grouper, tokens_of(learns=learns)) < 3 * L * C * D * 4 + 4096


@pytest.mark.parametrize("name", ["gating", "gating-query", "patch_mean"])
def test_mixed_samples_need_no_mixed_tokens(name: str) -> None:
    head, tokens = MODULES[name](), tokens_of()
    mixture = Mixture(torch.tensor([1, 0]), torch.rand(B, dtype=torch.float64))
    assert largest_allocation(lambda: head.mixed(tokens, mixture)) < WIDE / 2  # type: ignore[operator]
