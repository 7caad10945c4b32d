"""compile, export and ONNX: one graph for all grids, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from tests.contract.cases import CASES, Case
from tests.kit import leaves as outputs
from tests.unit.backbones.test_libraries import tiny_dinov3
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dinoneck import Backbone, Tokens, load_backbone, wrap_backbone

pytestmark = pytest.mark.campaign
SHAPES = [(2, 3, 5), (3, 5, 7), (1, 9, 16), (4, 2, 2), (2, 15, 31), (5, 4, 3)]
# generating code takes long: means and MLPs, attention, a pyramid, pixels with tokens, points,
# upsampling
GENERATED = (
    "patch_mean cls_gating_pool-query vit_fpn-one-layer spatial_tuning_adapter "
    "decoder_injection-token dpt"
)
# the first case of a class, and those of options that have code of their own
MAIN = [
    case
    for case in CASES
    if case.name.partition("-")[2] in ("", "maps", "pixel", "query", "resized", "token")
]


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.build().eval()


def assert_same(one: Any, other: Any, atol: float) -> None:
    for a, b in zip(outputs(one), outputs(other), strict=True):
        assert torch.allclose(torch.as_tensor(a), b, atol=atol)


def gradients(module: nn.Module, result: Any) -> Any:
    """The gradients of the sum of squares of all outputs."""
    module.zero_grad()
    sum(tensor.square().sum() for tensor in outputs(result)).backward()  # type: ignore[union-attr]
    return [parameter.grad for parameter in module.parameters()]


def assert_gradients(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    # a bias before a norm has a gradient that cancels to nearly nothing: what is left of it is
    # rounding of large terms
    scale = max(float(gradient.abs().max()) for gradient in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-6 * scale)


@pytest.mark.parametrize(
    "case", [{x.name: x for x in CASES}[name] for name in GENERATED.split()], ids=str
)
def test_inductor_forward_and_backward(case: Case) -> None:
    """One module of each kind of operation; the graphs and gradients of all are compared below, without inductor."""
    module, args = built(case), case.args(case.inputs())
    # fixed sizes: after another test's sizes in this process they would be symbols, for whose
    # backward torch 2.15's inductor raises InductorError ("expected [s49] to have been codegen-ed")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    assert_same(compiled(*args), module(*args), 1e-5)
    assert_gradients(gradients(module, compiled(*args)), gradients(module, module(*args)))


def dynamic(case: Case, inputs: Any) -> Any:
    """The free sizes of every argument: the batch, and the grid unless the module takes only one."""
    free = torch.export.Dim.DYNAMIC
    one = {0: free} if case.grid else {0: free, 1: free}
    if case.takes == "tokens":
        return ([*[one] * case.layers, None, None] if case.grid else inputs.dynamic_spec(),)
    if case.takes == "tokens+images":
        return (inputs[0].dynamic_spec(), {0: free, 2: free, 3: free})
    each = {
        "patches": (one,),
        "layers": ([one] * case.layers,),
        "pair": ({0: free}, one),
        "points": (one,) * 3,
    }
    return each[case.takes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_programs_and_onnx_give_the_same_at_unseen_sizes(case: Case, tmp_path: Path) -> None:
    """The program, a copy from disk and ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module, inputs = (
        built(case),
        case.inputs(batch=3, rows=max(4, case.smallest), cols=max(5, case.smallest + 1)),
    )
    program = torch.export.export(module, case.args(inputs), dynamic_shapes=dynamic(case, inputs))
    torch.export.save(program, tmp_path / "m.pt2")
    programs = program.module(), torch.export.load(tmp_path / "m.pt2").module()
    torch.onnx.export(program, f=tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch, rows, cols in SHAPES:
        other = case.inputs(
            batch=batch, rows=max(rows, case.smallest), cols=max(cols, case.smallest)
        )
        expected = module(*case.args(other))
        leaves = [np.asarray(leaf) for leaf in torch.utils._pytree.tree_leaves(other)]
        named = dict(zip(program.graph_signature.user_inputs, leaves, strict=True))
        feeds = {entry.name: named[entry.name] for entry in session.get_inputs()}
        for found in (
            *(exported(*case.args(other)) for exported in programs),
            session.run(None, feeds),
        ):
            assert_same(found, expected, 1e-5)


SIZES = [(32, 48), (48, 32), (64, 64), (48, 80), (32, 96)]


MAKERS = [
    lambda: load_backbone("dinoneck_tiny", layers=[4, 1]),
    lambda: wrap_backbone(tiny_dinov3(), layers=[2, 0]),
]


@pytest.mark.parametrize("make", MAKERS, ids=["timm", "transformers"])
def test_backbones_compile_once_for_all_sizes_and_give_the_same_tokens(
    make: Callable[[], Backbone],
) -> None:
    torch._dynamo.reset()
    counter, backbone = torch._dynamo.testing.CompileCounterWithBackend("aot_eager"), make()
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    batches = [torch.randn(2, 3, *size) for size in SIZES]
    outputs = [compiled(images) for images in batches]
    assert counter.frame_count <= 2
    for images, one in zip(batches, outputs, strict=True):
        other = backbone(images)
        assert isinstance(one, Tokens)
        assert (one.grid, one.layers) == (other.grid, other.layers)
        assert_same(one.sequence, other.sequence, 1e-5)


def test_a_dinov2_of_timm_is_one_graph_for_all_sizes() -> None:
    """Compiled and exported: its positions are resampled inside the graph."""
    torch._dynamo.reset()
    settings = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
        "reg_tokens": 2,
        "init_values": 0.1,
    }
    backbone = wrap_backbone(
        VisionTransformer(
            img_size=56, patch_size=14, dynamic_img_size=True, no_embed_class=True, **settings
        )  # type: ignore[arg-type]
    )
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    rows, cols = torch.export.Dim("rows", min=3, max=99), torch.export.Dim("cols", min=3, max=99)
    sides = {0: torch.export.Dim("batch"), 2: 14 * rows, 3: 14 * cols}
    exported = torch.export.export(
        backbone, (torch.randn(2, 3, 70, 98),), dynamic_shapes=(sides,)
    ).module()
    for size in ((70, 98), (56, 56), (154, 84)):
        images = torch.randn(3, 3, *size)
        wanted = backbone(images).sequence[0]
        assert torch.allclose(compiled(images).sequence[0], wanted, atol=1e-5)
        assert torch.allclose(exported(images).sequence[0], wanted, atol=1e-5)
    assert counter.frame_count <= 2


# no square maps: where rows, cols and channels are one number, the layouts have the same strides,
# which AOT autograd tells apart, so such a size has a graph of its own
SIX_SHAPES = [(2, 3, 5), (3, 5, 7), (2, 9, 16), (4, 4, 6), (2, 15, 31), (5, 4, 3)]


@pytest.mark.parametrize(
    ("case", "trains"), [(x, True) for x in CASES] + [(x, False) for x in MAIN], ids=str
)
def test_six_sizes_take_at_most_two_graphs_and_give_the_same(case: Case, trains: bool) -> None:
    """Outputs and, in training, gradients: in AOT graphs for the main options, as captured for the others."""
    torch._dynamo.reset()
    module = built(case).train(trains)
    counter = torch._dynamo.testing.CompileCounterWithBackend(
        "aot_eager" if trains and case in MAIN else "eager"
    )
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for seed, (batch, rows, cols) in enumerate(SIX_SHAPES):
        args = case.args(
            case.inputs(batch=batch, rows=max(rows, case.smallest), cols=max(cols, case.smallest))
        )
        results = list[Any]()
        for called in (compiled, module):
            torch.manual_seed(seed)  # of dropout
            with torch.set_grad_enabled(trains):
                results.append(called(*args))
        assert_same(results[0], results[1], 1e-5)
        if trains:
            assert_gradients(*(gradients(module, result) for result in results))
    assert counter.frame_count <= 2
    torch._dynamo.reset()
