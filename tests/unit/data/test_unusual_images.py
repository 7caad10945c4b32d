"""Images of unusual forms, all the way to what a backbone is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import DataError
from dinoneck.data import Preprocessing
from dinoneck.data.decoding import decode
from dinoneck.data.resizing import resample

RECIPE = Preprocessing(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(32, 48))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rows", [7, 90])
def test_rows_of_one_pixel_stay_in_their_order(interpolation: Any, rows: int) -> None:
    """Torch shows the first row everywhere where a width of 1 stays 1."""
    x = torch.linspace(0, 1, 40).view(1, 1, 40, 1).expand(1, 3, 40, 1)
    wide = resample(x.expand(1, 3, 40, 4), (rows, 4), interpolation)
    assert torch.allclose(resample(x, (rows, 1), interpolation), wide[..., :1], atol=1e-6)


def test_sixteen_bit_and_cmyk_reach_the_backbone_in_the_same_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 48), 26214, np.uint16)).save(tmp_path / "deep.png")
    assert torch.allclose(RECIPE(tmp_path / "deep.png"), torch.full((1, 3, 32, 48), 0.4), atol=1e-4)
    Image.new("CMYK", (48, 32), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red = RECIPE(tmp_path / "c.jpg")[0]
    assert red[0].min() > 0.98 and red[1:].max() < 0.02


def test_sixteen_bit_images_of_fewer_bits_are_refused(tmp_path: Path) -> None:
    grey = np.linspace(0, 4095, 32 * 48).reshape(32, 48).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", grey, torch.from_numpy(grey)[None]):
        with pytest.raises(DataError, match="at most 4095"):
            decode(image)
    assert decode(np.zeros((4, 4), np.uint16)).max() == 0, "a black image is a black image"
    assert decode(grey / np.float32(4095)).max() == 1
