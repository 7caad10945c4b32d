"""Antialiased resampling by products of matrices equals that of torch, in torch and in the runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.export.runtimes import RUNTIMES, operators_of
from torch import Tensor, nn

from dinoneck.errors import CheckpointError
from dinoneck.export.resampling import DECOMPOSITIONS, resample_bicubic, resample_bilinear

RESAMPLE: dict[str, Callable[..., Tensor]] = {
    "bicubic": resample_bicubic,
    "bilinear": resample_bilinear,
}
SIZES = [
    ((37, 37), (16, 50)),
    ((5, 7), (5, 7)),
    ((8, 8), (3, 20)),
    ((1, 9), (4, 4)),
]


@pytest.mark.parametrize("mode", RESAMPLE)
@pytest.mark.parametrize(("size", "new_size"), SIZES, ids=str)
def test_products_equal_interpolate(
    mode: str, size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64)

    resampled = RESAMPLE[mode](maps, new_size, False, None)

    expected = F.interpolate(maps, new_size, mode=mode, antialias=True)
    torch.testing.assert_close(resampled, expected, rtol=0.0, atol=1e-12)


def test_a_row_of_two_cells_is_halved_and_doubled_by_hand() -> None:
    """Two cells become one, their mean; and four, of which the outer ones have the share of one cell alone."""
    maps = torch.tensor([[[[10.0, 30.0]]]])
    assert resample_bilinear(maps, (1, 1), False, None).flatten().tolist() == [20.0]
    assert resample_bilinear(maps, (1, 4), False, None).flatten().tolist() == [
        10.0,
        15.0,
        25.0,
        30.0,
    ]


@pytest.mark.parametrize(
    "settings", [((2, 2), True, None), (None, False, [2.0, 2.0])], ids=["corners", "scales"]
)
def test_other_settings_are_refused(settings: tuple[Any, ...]) -> None:
    with pytest.raises(CheckpointError, match="expected a size and align_corners=False"):
        resample_bicubic(torch.ones(1, 1, 3, 3), *settings)


class Positions(nn.Module):
    """Adds positions, resampled to the grid of an image of patches of 4 px."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.positions = nn.Parameter(torch.randn(1, 3, 6, 6))

    def forward(self, images: Tensor) -> Tensor:
        grid = (images.shape[2] // 4, images.shape[3] // 4)
        return F.avg_pool2d(images, 4) + F.interpolate(
            self.positions, grid, mode=self.mode, antialias=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("mode", RESAMPLE)
def test_free_sizes_are_resampled_alike_in_both_runtimes(
    mode: str, runtime: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    model = Positions(mode).eval()
    sides = {2: 4 * torch.export.Dim("rows", min=2), 3: 4 * torch.export.Dim("cols", min=2)}
    example = (torch.rand(1, 3, 40, 52),)
    program = torch.export.export(model, example, dynamic_shapes=(sides,), strict=False)
    program = program.run_decompositions(DECOMPOSITIONS)
    file = tmp_path / "positions.onnx"
    torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["image"], output_names=["sum"]
    ).save(file)

    run = RUNTIMES[runtime](file)

    assert "Resize" not in operators_of(onnx.load(file))
    for height, width in [(12, 60), (24, 24), (48, 8)]:
        image = torch.rand(1, 3, height, width)
        expected = model(image).detach()
        outputs = torch.from_numpy(run({"image": image.numpy()})["sum"])
        torch.testing.assert_close(outputs, expected, rtol=0.0, atol=1e-5)
