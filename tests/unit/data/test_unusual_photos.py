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
from dinoneck.data import Patterns, Preprocessing
from dinoneck.data.decoding import decode
from dinoneck.data.resizing import fit_to

RECIPE = Preprocessing(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(32, 48))


def test_one_pixel_fills_the_image(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[51, 102, 255]]], np.uint8)).save(tmp_path / "one.png")
    image = RECIPE(tmp_path / "one.png")[0]
    assert torch.allclose(image, torch.tensor([0.2, 0.4, 1.0])[:, None, None].expand(3, 32, 48), atol=1e-6)
    changed = Patterns.named("color20").apply(image, 6, "one")
    assert changed.shape == image.shape and changed.std(dim=(1, 2)).max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1)])
def test_a_line_of_pixels_keeps_its_places(shape: tuple[int, int]) -> None:
    ramp = np.linspace(0, 1, 4000, dtype=np.float32).reshape(shape)
    image = RECIPE(ramp)[0, 0]
    along = image.mean(dim=0) if shape[0] == 1 else image.mean(dim=1)
    expected = (torch.arange(len(along)) + 0.5) / len(along)
    assert torch.allclose(along, expected, atol=4e-3)  # the growing side makes it bilinear, which bends the ends


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


def test_one_bad_photo_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    Image.new("RGB", (48, 32)).save(tmp_path / "good.png")
    with pytest.raises(DataError, match=r"empty.jpg \(0 bytes\)"):
        RECIPE([tmp_path / "good.png", tmp_path / "empty.jpg"])


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1000, 10), (4095, 12), (16383, 14)])
def test_sixteen_bit_images_of_fewer_bits_are_refused(largest: int, bits: int, tmp_path: Path) -> None:
    grey = np.linspace(0, largest, 32 * 48).reshape(32, 48).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", grey, torch.from_numpy(grey)[None]):
        with pytest.raises(DataError, match=f"at most {largest}: it seems to be a {bits}-bit image.*Divide it by"):
            decode(image)
    assert decode(np.zeros((4, 4), np.uint16)).max() == 0, "a black image is a black image"
    assert decode(grey / np.float32(largest)).max() == 1


def png_of_16_bits(values: Any) -> bytes:
    """A PNG of (H, W, 3 or 4) 16-bit colours, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, cols, channels = values.shape
    header = struct.pack(">IIBBBBB", cols, rows, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1023, 10), (4095, 12), (16383, 14)])
def test_sixteen_bit_colours_of_fewer_bits_are_refused(largest: int, bits: int, tmp_path: Path) -> None:
    """Pillow keeps their high byte, so they would be nearly black; an opaque alpha channel does not count."""
    rgba = np.full((8, 6, 4), 65535)
    rgba[..., :3] = np.linspace(0, largest, 8 * 6 * 3).reshape(8, 6, 3)
    for values in (rgba, rgba[..., :3]):
        (tmp_path / "deep.png").write_bytes(png_of_16_bits(values))
        with pytest.raises(DataError, match=f"deep.png holds 16-bit values of at most {largest}: .* {bits}-bit image"):
            decode(tmp_path / "deep.png")
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(rgba[..., :3] * (65535 // largest)))
    assert decode(tmp_path / "deep.png").max() > 0.99
    dark = np.full((8, 6, 3), 12, np.uint8)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert decode(tmp_path / "dark.png").max() < 0.05, "8 bits are what they are"
