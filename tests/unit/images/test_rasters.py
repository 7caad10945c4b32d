"""Label files: numbers as they are stored, upright, and the pixels without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from dinoneck import DataError
from dinoneck.images.rasters import read_label

INDICES = np.arange(12, dtype=np.uint8).reshape(3, 4)
GDAL_NODATA = 42113


def palette_image(indices: np.ndarray[Any, Any] = INDICES) -> Image.Image:
    image = Image.fromarray(indices, "L").convert("P")
    image = Image.frombytes("P", image.size, indices.tobytes())
    image.putpalette([n for i in range(256) for n in (i, 255 - i, 7)])
    return image


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_a_palette_gives_indices_and_colours(suffix: str, tmp_path: Path) -> None:
    palette_image().save(tmp_path / f"a.{suffix}")

    raster = read_label(tmp_path / f"a.{suffix}")

    assert raster.values[..., 0].tolist() == INDICES.tolist()
    assert raster.palette is not None
    assert raster.palette[3] == (3, 252, 7)


def test_a_transparent_index_of_a_palette_stays_a_number(tmp_path: Path) -> None:
    palette_image().save(tmp_path / "a.png", transparency=0)

    raster = read_label(tmp_path / "a.png")

    assert raster.values[..., 0].tolist() == INDICES.tolist()
    assert raster.is_hidden is None


def test_a_transparent_grey_has_no_label(tmp_path: Path) -> None:
    Image.fromarray(INDICES).save(tmp_path / "a.png", transparency=5)

    assert read_label(tmp_path / "a.png").unlabelled([]).tolist() == (INDICES == 5).tolist()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_0_has_no_label_and_half_transparency_is_refused(
    mode: str, suffix: str, tmp_path: Path
) -> None:
    image = Image.fromarray(INDICES).convert(mode)
    alpha = np.where(INDICES > 8, 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / f"a.{suffix}")
    image.putalpha(128)
    image.save(tmp_path / f"half.{suffix}")

    raster = read_label(tmp_path / f"a.{suffix}")

    assert raster.values.shape[2] == len(mode) - 1
    assert raster.unlabelled([]).tolist() == (INDICES > 8).tolist()
    with pytest.raises(DataError, match="12 half transparent"):
        read_label(tmp_path / f"half.{suffix}")


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        pytest.param("7", INDICES == 7, id="a number"),
        pytest.param("-9999", INDICES < 0, id="beyond the type"),
        pytest.param("nan", INDICES < 0, id="NaN"),
    ],
)
def test_the_nodata_tag_of_gdal_marks_pixels(tag: str, expected: Any, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[GDAL_NODATA] = tag
    Image.fromarray(INDICES).save(tmp_path / "a.tif", tiffinfo=tags)

    raster = read_label(tmp_path / "a.tif")

    assert raster.unlabelled([]).tolist() == expected.tolist()


def test_a_nodata_tag_that_contradicts_the_caller_is_refused(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[GDAL_NODATA] = "7"
    Image.fromarray(INDICES).save(tmp_path / "a.tif", tiffinfo=tags)

    with pytest.raises(DataError, match=r"GDAL_NODATA marks 7.*\[3\]"):
        read_label(tmp_path / "a.tif").unlabelled([3])


def test_nan_and_masked_values_have_no_label() -> None:
    floats = INDICES.astype(np.float32)
    floats[0, 1] = np.nan
    masked = np.ma.masked_equal(INDICES, 4)

    assert read_label(floats).unlabelled([]).tolist() == np.isnan(floats).tolist()
    assert read_label(masked).unlabelled([]).tolist() == (INDICES == 4).tolist()


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", ">u2"])
def test_a_file_of_numpy_gives_its_array(dtype: str, tmp_path: Path) -> None:
    array = INDICES.astype(dtype)
    np.save(tmp_path / "a.npy", array)

    assert np.array_equal(read_label(tmp_path / "a.npy").values[..., 0], array)


@pytest.mark.parametrize("form", ["objects", "archive", "header", "short", "empty"])
def test_a_file_of_numpy_that_is_no_array_of_numbers_is_refused(form: str, tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, INDICES)
    content = file.read_bytes()
    if form == "objects":
        np.save(file, np.array([[{}]]), allow_pickle=True)
    elif form == "archive":
        with file.open("wb") as opened:
            np.savez(opened, INDICES)
    elif form == "header":
        file.write_bytes(content.replace(b"'descr'", b"('descr", 1))
    else:
        file.write_bytes(content[: {"short": -1, "empty": 0}[form]])

    with pytest.raises(DataError, match=r"a\.npy cannot be read.*expected one array of numbers"):
        read_label(file)


def test_a_tensor_and_a_picture_give_their_numbers() -> None:
    for label in (torch.from_numpy(INDICES), torch.from_numpy(INDICES).bfloat16()):
        assert np.array_equal(read_label(label).values[..., 0], INDICES)
    assert np.array_equal(read_label(Image.fromarray(INDICES)).values[..., 0], INDICES)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_label_is_turned_once_by_its_exif(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(INDICES).save(tmp_path / f"a.{suffix}", exif=exif)

    values = read_label(tmp_path / f"a.{suffix}", (4, 3)).values[..., 0]

    assert values.tolist() == np.rot90(INDICES, -1).tolist()


def test_a_label_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(INDICES).save(tmp_path / "a.png")

    with pytest.raises(DataError, match=r"a\.png is 3x4 px.*4x3 px"):
        read_label(tmp_path / "a.png", (4, 3))


REFUSED = [
    pytest.param("a.jpg", {}, "JPEG", id="jpeg"),
    pytest.param("a.webp", {"lossless": True}, "WEBP", id="webp"),
    pytest.param("a.tif", {"compression": "jpeg"}, "as a photo", id="jpeg in tiff"),
]


@pytest.mark.parametrize(("name", "options", "named"), REFUSED)
def test_formats_that_change_numbers_are_refused(
    name: str, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / name, **options)

    with pytest.raises(DataError, match=named):
        read_label(tmp_path / name)


def test_converted_colours_are_no_numbers(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "a.tif")

    with pytest.raises(DataError, match="CMYK"):
        read_label(tmp_path / "a.tif")


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [palette_image(), palette_image(INDICES[::-1].copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    with pytest.raises(DataError, match="2 frames"):
        read_label(tmp_path / "a.gif")


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    for name in ("gone.png", "gone.npy"):
        with pytest.raises(DataError, match=f"no label .*{name}"):
            read_label(tmp_path / name)
