"""Photos of unusual forms, all the way to what a backbone is fed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image

from dinoneck import DataError
from dinoneck.data import Preprocessing
from dinoneck.data.decoding import decode, fit_to

RECIPE = Preprocessing(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(32, 48))


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_a_thin_photo_is_never_wide_and_long_at_once(interpolation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows of one pixel must not become a million rows of the model's width on the way."""
    x = torch.rand(1, 3, 5000, 2, generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if interpolation == "area" else interpolation
    resized = functional.interpolate(x, size=(32, 48), mode=mode, align_corners=False, antialias=True)
    sizes: list[tuple[int, ...]] = []
    real = functional.interpolate

    def seen(x: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes.append((*x.shape[-2:], *options["size"]))
        return real(x, **options)

    monkeypatch.setattr(functional, "interpolate", seen)
    assert torch.allclose(fit_to(x, (32, 48), "stretch", interpolation), resized, atol=1e-6)
    assert all(rows * new_cols <= 32 * 5000 for rows, _, _, new_cols in sizes)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rows", [7, 90])
def test_rows_of_one_pixel_stay_in_their_order(interpolation: Any, rows: int) -> None:
    """Torch shows the first row everywhere where a width of 1 stays 1."""
    x = torch.linspace(0, 1, 40).view(1, 1, 40, 1).expand(1, 3, 40, 1)
    wide = fit_to(x.expand(1, 3, 40, 4), (rows, 4), "stretch", interpolation)
    assert torch.allclose(fit_to(x, (rows, 1), "stretch", interpolation), wide[..., :1], atol=1e-6)


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
        with pytest.raises(DataError, match="at most 4095: it seems to be a 12-bit image.*Divide it by"):
            decode(image)
    assert decode(np.zeros((4, 4), np.uint16)).max() == 0, "a black image is a black image"
    assert decode(grey / np.float32(4095)).max() == 1


def png_of_16_bits(values: Any) -> bytes:
    """A PNG of (H, W, 3 or 4) 16-bit colours, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, cols, channels = values.shape
    header = struct.pack(">IIBBBBB", cols, rows, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bit_colours_of_fewer_bits_are_refused(tmp_path: Path) -> None:
    """Pillow keeps their high byte, so they would be nearly black; an opaque alpha channel does not count."""
    rgba = np.full((8, 6, 4), 65535)
    rgba[..., :3] = np.linspace(0, 4095, 8 * 6 * 3).reshape(8, 6, 3)
    for values in (rgba, rgba[..., :3]):
        (tmp_path / "deep.png").write_bytes(png_of_16_bits(values))
        with pytest.raises(DataError, match="deep.png holds 16-bit values of at most 4095: .* 12-bit image"):
            decode(tmp_path / "deep.png")
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(rgba[..., :3] * (65535 // 4095)))
    assert decode(tmp_path / "deep.png").max() > 0.99
    dark = np.full((8, 6, 3), 12, np.uint8)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert decode(tmp_path / "dark.png").max() < 0.05, "8 bits are what they are"
