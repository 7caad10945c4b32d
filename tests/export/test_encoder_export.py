"""Necks for detectors, alone and behind a backbone, as one graph for every batch and size; and in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.export import Dim

from dinoneck import Backbone, SpatialTuningAdapter, STAPyramid, load_backbone
from dinoneck.interop import PyramidEncoder
from dinoneck.necks import Neck

pytestmark = pytest.mark.slow
# batch, height, width: none is the traced one; 21 x 29 and 9 x 5 patches are odd, the coarsest level's last cell is
# half outside
SIZES = [(3, 336, 464), (1, 192, 320), (2, 144, 80)]
BOUND = 1e-5


def adapter(**options: Any) -> Callable[[int], Neck]:
    return lambda width: SpatialTuningAdapter(width, 16, detail_dim=8, **options)


NECKS: dict[str, Callable[[int], Neck]] = {
    "aligned": adapter(),
    "image": adapter(grid_from="image", norm="layer"),
    "no detail": adapter(detail=None, norm="group"),
    "sta": lambda width: STAPyramid(width, 16),
}
ENCODERS = {
    "timm, aligned": ("dinoneck_tiny", "timm", "aligned", 1.0),
    "timm, sta": ("dinoneck_tiny", "timm", "sta", 1.0),
    "timm, dual resolution": ("dinoneck_tiny", "timm", "image", 0.5),
}
each_encoder = pytest.mark.parametrize("name", ENCODERS)


class OfImages(nn.Module):
    """Backbone and neck; a tuple of maps, which every exporter knows."""

    def __init__(self, name: str) -> None:
        super().__init__()
        model, source, neck, features_at = ENCODERS[name]
        layers = 1 if neck == "sta" else (0, 1, 2)  # later blocks do not run
        backbone: Backbone = load_backbone(model, source=source, pretrained=False, layers=layers)  # type: ignore[arg-type]
        self.encoder = PyramidEncoder(backbone, NECKS[neck](backbone.embed_dim), features_at)
        awake(self.encoder.neck)
        self.cell = round(16 / features_at)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(images).maps

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor]:
        return (torch.randn(batch, 3, height * self.cell // 16, width * self.cell // 16),)

    def named(self) -> tuple[Any]:
        batch, rows, cols = sides()
        return ({0: batch, 2: self.cell * rows, 3: self.cell * cols},)


def sides() -> tuple[Dim, Dim, Dim]:
    return Dim("batch"), Dim("rows", min=3, max=128), Dim("cols", min=3, max=128)


def awake(module: nn.Module) -> None:
    """Statistics and weights of norms as after training: nothing is 0 or 1."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight, 0.5, 2.0)


def assert_close(found: Any, wanted: Any, bound: float = BOUND) -> None:
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        one, other = torch.as_tensor(one).float(), other.float()
        assert one.shape == other.shape
        assert (one - other).abs().max() <= bound * other.abs().max()


def assert_one_program(module: OfImages, folder: Path) -> None:
    """Export with named sides; the program, a copy from disk and ONNX Runtime agree with eager at every size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.export.export(module, module.inputs(2, 160, 224), dynamic_shapes=module.named())
    torch.export.save(program, folder / "encoder.pt2")
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(folder / "encoder.onnx")
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    exported = torch.export.load(folder / "encoder.pt2").module()  # guards checked
    for size in SIZES:
        inputs = module.inputs(*size)
        wanted = module(*inputs)
        assert_close(exported(*inputs), wanted)
        leaves = dict(zip(program.graph_signature.user_inputs, torch.utils._pytree.tree_leaves(inputs), strict=True))
        feeds = {entry.name: leaves[entry.name].numpy() for entry in session.get_inputs()}
        assert_close(session.run(None, feeds), wanted)


@each_encoder
@torch.no_grad()
def test_an_encoder_with_named_sizes(name: str, tmp_path: Path) -> None:
    assert_one_program(OfImages(name), tmp_path)
