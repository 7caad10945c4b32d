"""Backbone and neck of a detector as one graph for every batch and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from torch import Tensor, nn
from torch.export import Dim

from dinoneck import SpatialTuningAdapter, STAPyramid
from dinoneck.interop import PyramidEncoder

pytestmark = pytest.mark.slow
# batch, height, width: none is the traced one; 21 x 29 and 9 x 5 patches are odd, the coarsest level's last cell is
# half outside
SIZES = [(3, 336, 464), (1, 192, 320), (2, 144, 80)]
ENCODERS: dict[str, Any] = {  # layers, neck, pixels per token
    "aligned": ((0, 1, 2), SpatialTuningAdapter(64, 16, detail_dim=8), 16),
    "sta": (1, STAPyramid(64, 16), 16),
    "dual resolution": ((0, 1, 2), SpatialTuningAdapter(64, 16, detail_dim=8, grid_from="image", norm="layer"), 32),
}


class OfImages(nn.Module):
    """Backbone and neck; a tuple of maps, which every exporter knows."""

    def __init__(self, name: str) -> None:
        super().__init__()
        layers, neck, self.cell = ENCODERS[name]
        self.encoder = PyramidEncoder(kit.backbone(layers=layers), kit.randomised(neck), 16 / self.cell)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(images).maps

    def images(self, batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, 3, height * self.cell // 16, width * self.cell // 16)


def assert_close(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (torch.as_tensor(one) - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder_with_named_sizes(name: str, tmp_path: Path) -> None:
    """The program, a copy from disk and ONNX Runtime agree with eager at every size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = OfImages(name)
    rows, cols = Dim("rows", min=3, max=128), Dim("cols", min=3, max=128)
    sides = {0: Dim("batch"), 2: module.cell * rows, 3: module.cell * cols}
    program = torch.export.export(module, (module.images(2, 160, 224),), dynamic_shapes=(sides,))
    torch.export.save(program, tmp_path / "encoder.pt2")
    exported = torch.export.load(tmp_path / "encoder.pt2").module()  # guards checked
    torch.onnx.export(program, f=tmp_path / "encoder.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES:
        images = module.images(*size)
        wanted = module(images)
        assert_close(exported(images), wanted)
        assert_close(session.run(None, {session.get_inputs()[0].name: images.numpy()}), wanted)
