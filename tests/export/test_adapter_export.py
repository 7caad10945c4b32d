"""SpatialTuningAdapter under export with named sizes: images of 16 g x 16 h pixels, alone and behind a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.cases import WIDTH
from tests.unit.backbones.test_libraries import tiny_dinov3
from torch import Tensor, nn
from torch.export import Dim

from dinoneck import Backbone, SpatialTuningAdapter, Tokens, wrap_backbone

pytestmark = pytest.mark.slow
GRIDS = [(21, 29), (30, 40), (4, 3)]  # none is the traced one; odd, even, small
BATCH, ROWS, COLS = Dim("b", max=64), Dim("g", min=3, max=256), Dim("h", min=3, max=256)


class OnMaps(nn.Module):
    """The neck for images and maps, one for all layers."""

    def __init__(self, neck: SpatialTuningAdapter) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, images: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        patches = [maps.permute(0, 2, 3, 1).flatten(1, 2)] * self.neck.num_layers
        grid = (maps.shape[-2], maps.shape[-1])
        return self.neck(Tokens.from_patches(patches, grid=grid, patch_size=16), images).maps


class Encoder(nn.Module):
    """Backbone and neck as one module of the images."""

    def __init__(self, backbone: Backbone, neck: SpatialTuningAdapter) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(images), images).maps


def assert_runs_anywhere(module: nn.Module, program: Any, inputs: Any, tmp_path: Path) -> None:
    """The exported program and ONNX give what the module gives, at three sizes that were not traced."""
    import onnxruntime

    torch.onnx.export(program, f=tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for grid in GRIDS:
        given = inputs(*grid)
        feeds = {entry.name: np.asarray(x) for entry, x in zip(session.get_inputs(), given, strict=True)}
        with torch.no_grad():
            wanted = module(*given)
        for a, b, c in zip(program.module()(*given), session.run(None, feeds), wanted, strict=True):
            assert torch.allclose(a, c, atol=1e-5)
            assert torch.allclose(torch.from_numpy(b), c, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"detail": "deimv2"}, {"grid_from": "image"}], ids=str)
def test_named_sizes(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OnMaps(SpatialTuningAdapter(WIDTH, 8, detail_dim=4, **options)).eval()

    def inputs(rows: int, cols: int) -> tuple[Tensor, Tensor]:
        return torch.randn(2, 3, 16 * rows, 16 * cols), torch.randn(2, WIDTH, rows, cols)

    program = torch.export.export(
        module, inputs(20, 24), dynamic_shapes=({0: BATCH, 2: 16 * ROWS, 3: 16 * COLS}, {0: BATCH, 2: ROWS, 3: COLS})
    )
    assert_runs_anywhere(module, program, inputs, tmp_path)


def test_backbone_and_neck_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = wrap_backbone(tiny_dinov3(), layers=[0, 1, 2])
    module = Encoder(backbone, SpatialTuningAdapter(backbone.embed_dim, 8, detail_dim=4)).eval()

    def inputs(rows: int, cols: int) -> tuple[Tensor]:
        return (torch.randn(1, 3, 16 * rows, 16 * cols),)

    program = torch.export.export(module, inputs(6, 8), dynamic_shapes=({2: 16 * ROWS, 3: 16 * COLS},))
    assert_runs_anywhere(module, program, inputs, tmp_path)
