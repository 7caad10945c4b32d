"""Points go where their pixels go: ramps that hold their own place, prepared in every way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.data.test_labels import PLAIN, ramp

from dinoneck.data import Preprocessing, to_image_pixels


@pytest.mark.parametrize("size", [None, (50, 70), (64, 96)])
@pytest.mark.parametrize("resize", ["stretch", "keep", "crop", "pad", "center"])
@pytest.mark.parametrize("shape", [(90, 150), (151, 60), (33, 40)])
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_every_pixel_shows_its_place(size: Any, resize: Any, shape: tuple[int, int], interpolation: Any) -> None:
    if (size, resize) == (None, "keep"):
        pytest.skip("a remainder is refused")
    mode: dict[str, Any] = {"resize": "pad", "pad_to": "center"} if resize == "center" else {"resize": resize}
    recipe = Preprocessing(16, size=size, interpolation=interpolation, **PLAIN, **mode)
    image = recipe(ramp(*shape))[0]
    rows, cols = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    points = torch.stack([x, y], dim=-1).double()
    home = to_image_pixels(points, recipe, shape)
    inside = image[2] > 0.999  # no padding
    shown = torch.stack([image[0] * shape[1], image[1] * shape[0]], dim=-1)
    border = 3.0 * torch.tensor([shape[1] / 50, shape[0] / 50]).clamp_min(1.0)  # where kernels are cut off
    ends = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    inner = inside & ((home > border) & (home < ends - border)).all(dim=-1)
    assert inner.sum() > 0.3 * rows * cols * (0.5 if mode["resize"] == "pad" else 1.0) * inside.float().mean()
    step = max(shape[0] / rows, shape[1] / cols, 1.0)
    gaps = shown[inner] - home[inner]
    assert gaps.abs().max() < (0.25 if interpolation == "area" else 0.1) * step
    assert gaps.mean(dim=0).abs().max() < 0.02 * step
