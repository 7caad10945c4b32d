"""Dense labels cover what the patches of their image show; what is unknown weighs nothing."""

from __future__ import annotations

import itertools
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import DataError
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.data.labels import count_classes

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
MODES: list[dict[str, Any]] = [
    *({"resize": word} for word in ("stretch", "keep", "crop", "pad")),
    {"resize": "pad", "pad_to": "center"},
]


def pixels(how: DenseLabels, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pixel as a cell: values (K, H, W) and whether it is labelled (H, W)."""
    values, weight = how.cells(label, Preprocessing(1))
    return values[0], weight[0] > 0


def ramp(height: int, width: int) -> np.ndarray:
    """Every pixel holds its place: x / width, y / height, and 1 where there is an image at all."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return np.stack([x / width, y / height, np.ones_like(x)], axis=-1).astype(np.float32)


def patch_sums(images: torch.Tensor, patch: int) -> torch.Tensor:
    cells = images.double().unfold(2, patch, patch).unfold(3, patch, patch)
    return cells.sum(dim=(-1, -2))


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("mode", MODES)
def test_a_cell_covers_what_its_patch_shows(patch: int, mode: dict[str, Any]) -> None:
    sizes = [(64, 64), (45, 71), (120, 90), *([None] if mode["resize"] != "keep" else [])]
    for interpolation, shape, size in itertools.product(
        ("area", "bilinear"), [(61, 97), (97, 53)], sizes
    ):
        recipe = Preprocessing(patch, size=size, interpolation=interpolation, **mode, **PLAIN)  # type: ignore[arg-type]
        place = ramp(*shape)
        shown = patch_sums(recipe(place), patch)[0]
        values, weight = DenseLabels().cells(place, recipe)
        assert values.shape[1:] == shown.shape, (interpolation, shape, size)
        assert torch.allclose(weight[0].double(), shown[2], atol=1e-3)
        means = torch.where(shown[2] > 0, shown / shown[2], 0.0)
        assert torch.allclose(values[0].double(), means, atol=1e-4), (interpolation, shape, size)


def test_nodata_weighs_nothing_through_an_area_resize() -> None:
    raw = np.random.RandomState(0).randint(1, 200, (64, 96)).astype(np.int16)
    rim = np.zeros(raw.shape, bool)
    rim[:5], rim[:, -9:], rim[30:34, 40:70] = True, True, True
    rim[32:, :32] = True  # one whole cell of 16 prepared pixels = 32 stored ones
    raw[rim] = -9999
    labels = DenseLabels(scale=0.01, offset=-1.0, nodata=-9999)
    values, weight = labels.cells(raw, Preprocessing(16, size=(32, 48), interpolation="area"))
    kept = np.where(rim, 0.0, raw * 0.01 - 1.0).reshape(2, 32, 3, 32).sum(axis=(1, 3))
    count = (~rim).reshape(2, 32, 3, 32).sum(axis=(1, 3))
    assert np.allclose(weight[0], count / 4, atol=1e-4)
    assert np.allclose(values[0, 0], kept / np.maximum(count, 1), atol=1e-5)
    assert count[1, 0] == 0


# Reading
# ----------------------------------------------------------------------------------------------------


def test_every_form_of_a_label_gives_the_same_values(tmp_path: Path) -> None:
    deep = (np.arange(48).reshape(6, 8) * 1365).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    Image.fromarray(deep).save(tmp_path / "d.tif", compression="tiff_lzw")
    expected = torch.tensor(deep.astype(np.float64) / 65535).float()[None]
    forms = [
        tmp_path / "d.png",
        str(tmp_path / "d.png"),
        tmp_path / "d.tif",
        Image.fromarray(deep),
        deep,
        deep[..., None],
        deep.astype(">u2"),
        deep.astype(np.float32),
    ]
    for form in forms:
        values, valid = pixels(DenseLabels(scale=1 / 65535), form)
        assert values.dtype == torch.float32
        assert torch.allclose(values, expected, atol=1e-7), type(form)
        assert valid.all()
        assert valid.shape == (6, 8)


def test_float_tiffs_and_bands(tmp_path: Path) -> None:
    ndvi = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
    ndvi[0, 0], ndvi[1, 1], ndvi[2, 2], ndvi[3, 3] = (
        np.nan,
        -9999.0,
        np.finfo(np.float32).min,
        -np.inf,
    )
    Image.fromarray(ndvi).save(tmp_path / "n.tif")
    lowest = float(np.finfo(np.float64).min)  # what GDAL notes; float32 holds it as -inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, valid = pixels(
            DenseLabels(nodata=(-9999, float(ndvi[2, 2]), lowest)), tmp_path / "n.tif"
        )
    assert (~valid).nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert values[0][~valid].tolist() == [0, 0, 0, 0]
    assert torch.equal(values[0][valid], torch.from_numpy(ndvi)[valid])
    bands = np.random.RandomState(0).randint(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(bands).save(tmp_path / "b.png")
    values, valid = pixels(DenseLabels(offset=-1, nodata=bands[0, 0, 1].item()), tmp_path / "b.png")
    assert torch.equal(valid, torch.from_numpy((bands != bands[0, 0, 1]).all(axis=2)))
    assert torch.equal(
        values, torch.where(valid, torch.from_numpy(bands).permute(2, 0, 1).float() - 1, 0)
    )


def png(bits: int, colour: int, rows: list[bytes], width: int) -> bytes:
    """A PNG of any bit depth, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_one_bit_and_overviews_are_read_and_what_pillow_changes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(1, 0, [b"\xa0"], 4))
    assert pixels(DenseLabels(), tmp_path / "one.png")[0].tolist() == [[[1, 0, 1, 0]]]
    for bits, colour, row in ((2, 0, b"\x1b"), (4, 0, b"\x01\x2f"), (16, 2, b"\x01\x02" * 12)):
        (tmp_path / "few.png").write_bytes(png(bits, colour, [row], 4))
        with pytest.raises(DataError, match="few.png.*array"):
            pixels(DenseLabels(), tmp_path / "few.png")
    whole, smaller = (Image.fromarray(np.full((size, size), size, np.uint8)) for size in (4, 2))
    whole.save(tmp_path / "overview.tif", save_all=True, append_images=[smaller])
    assert pixels(DenseLabels(), tmp_path / "overview.tif")[0].tolist() == [[[4.0] * 4] * 4]


# Classes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_prepared_pixel_takes_the_class_under_its_centre(mode: dict[str, Any]) -> None:
    sizes = [(64, 64), (120, 90), *([None] if mode["resize"] != "keep" else [])]
    for (height, width), size in itertools.product([(61, 97), (97, 53)], sizes):
        columns = np.tile(np.arange(width), (height, 1))
        lines = np.tile(np.arange(height)[:, None], (1, width))
        recipe = Preprocessing(16, size=size, **mode, **PLAIN)  # type: ignore[arg-type]
        shown = recipe(ramp(height, width))[0]
        real = shown[2] > 0.999
        inner = torch.zeros_like(real)
        inner[4:-4, 4:-4] = True  # resampling bends the image's ramp at its borders
        inner[:-4, :-4] &= real[4:, 4:]
        inner[4:, 4:] &= real[:-4, :-4]
        for index, channel, side in ((columns, 0, width), (lines, 1, height)):
            got = DenseLabels(classes=side).indices(index, recipe)
            assert got.shape == (1, *shown.shape[1:])
            assert got.dtype == torch.int64
            off = (shown[channel] * side - (got[0] + 0.5)).abs()
            assert off[inner & real].max() < 0.55
            assert (got[0][shown[2] < 1e-6] == -1).all()
            assert (got[0][real] >= 0).all()
            assert (inner & real).sum() > 100


def test_indices_keep_nodata_and_exact_sizes(tmp_path: Path) -> None:
    """Also of a palette, which counts by its indices."""
    mask = np.random.RandomState(0).randint(0, 3, (32, 48), np.uint8)
    mask[3, 5] = 9
    palette = Image.frombytes("P", (48, 32), mask.tobytes())
    palette.putpalette([200, 0, 0] * 3 + [7] * 21)
    palette.save(tmp_path / "p.png")
    labels, recipe = DenseLabels(classes=3, nodata=9), Preprocessing(16)
    expected = torch.from_numpy(mask.astype(np.int64))
    expected[3, 5] = -1
    assert torch.equal(
        labels.indices([mask, tmp_path / "p.png"], recipe), expected.expand(2, -1, -1)
    )
    values, valid = pixels(labels, tmp_path / "p.png")
    assert torch.equal(valid, expected >= 0)
    assert torch.equal(values, torch.stack([expected == k for k in range(3)]).float())
    doubled = labels.indices(mask, recipe.changed(size=(64, 96)))[0]
    assert torch.equal(doubled, expected.repeat_interleave(2, 0).repeat_interleave(2, 1))
    thirds = labels.indices(
        np.kron(mask, np.ones((3, 3), np.uint8)), recipe.changed(size=(32, 48))
    )[0]
    assert torch.equal(thirds, expected)


def test_labels_of_bicubic_images_never_shoot_over() -> None:
    """A share above 1 or below 0 is wrong: labels are resized bilinearly."""
    step = np.zeros((32, 32), np.float32)
    step[:, 16:] = 1.0
    recipe = Preprocessing(1, size=(96, 96), interpolation="bicubic", **PLAIN)

    values, _ = DenseLabels().cells(step, recipe)

    assert (values.min(), values.max()) == (0.0, 1.0)
    bilinear, _ = DenseLabels().cells(step, recipe.changed(interpolation="bilinear"))
    assert torch.equal(values, bilinear)


def test_an_index_of_255_next_to_254_is_a_class() -> None:
    """Alone it usually marks pixels without a class."""
    mask = np.array([[0, 254, 255]], np.uint8)

    assert count_classes([mask]) == 256
    with pytest.raises(DataError, match="holds 255, which usually marks pixels without a class"):
        count_classes([np.array([[0, 253, 255]], np.uint8)])
