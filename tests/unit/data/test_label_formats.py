"""Label files of other formats than PNG and TIFF, pictures in colours, and tensors."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.test_label_files import png

from dinoneck import DataError
from dinoneck.data import DenseLabels, Preprocessing, count_classes

ONE_PIXEL = Preprocessing(1)
FEW = np.array([[0, 1, 2, 3, 200, 255]], np.uint8)
COLOURS = [*(0, 0, 0), *(255, 0, 0), *(0, 255, 0), *(0, 0, 255)]


def numbers_of(label: Any, **options: Any) -> list[list[list[float]]]:
    """The values of every pixel, by band."""
    values, _ = DenseLabels(**options).cells(label, ONE_PIXEL)
    return values[0].tolist()


def saved(file: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(file, **options)
    return file


def with_palette(file: Path, array: np.ndarray, palette: list[int]) -> Path:
    image = Image.fromarray(array, "P")
    image.putpalette(palette)
    image.save(file)
    return file


# Formats
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["bmp", "pgm", "gif"])
def test_grey_of_8_bits_is_read(suffix: str, tmp_path: Path) -> None:
    """All grey levels: a GIF of fewer has a palette of its own."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert numbers_of(saved(tmp_path / f"m.{suffix}", every)) == [every.tolist()]


@pytest.mark.parametrize("suffix", ["bmp", "gif"])
def test_the_indices_of_palettes_are_read(suffix: str, tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2, 3, 1, 0]], np.uint8)
    file = with_palette(tmp_path / f"m.{suffix}", stored, COLOURS)
    assert DenseLabels(classes=4).indices(file, ONE_PIXEL)[0].tolist() == stored.tolist()


@pytest.mark.parametrize(
    ("header", "dtype", "stored"),
    [
        pytest.param(b"P5 4 1 65535\n", ">u2", [0, 1, 300, 65535], id="16 bits"),
        pytest.param(b"P5 4 1 4095\n", ">u2", [0, 1, 2049, 4095], id="12 bits"),
        pytest.param(b"P5 4 1 1000\n", ">u2", [0, 1, 500, 999], id="up to 1000"),
        pytest.param(b"P5 4 1 255\n", "u1", [0, 1, 128, 255], id="8 bits"),
        pytest.param(b"P5 4 1 100\n", "u1", [0, 1, 50, 99], id="percent"),
        pytest.param(b"P5 4 1 3\n", "u1", [0, 1, 2, 3], id="four classes"),
        pytest.param(b"Pf 4 1 -1.0\n", "<f4", [0.25, -3.5, 1e-3, 7.0], id="little-endian floats"),
        pytest.param(b"Pf 4 1 1.0\n", ">f4", [0.25, -3.5, 1e-3, 7.0], id="big-endian floats"),
    ],
)
def test_portable_maps_give_the_numbers_that_they_store(
    header: bytes, dtype: str, stored: list[float], tmp_path: Path
) -> None:
    """Pillow scales the numbers of a PGM by the range that it states."""
    (tmp_path / "m.pgm").write_bytes(
        header.replace(b" ", b"\n") + np.array(stored, dtype).tobytes()
    )
    expected = np.array([[stored]], np.float32).tolist()
    assert numbers_of(tmp_path / "m.pgm") == expected


def test_all_numbers_of_a_range_come_back(tmp_path: Path) -> None:
    for largest, dtype in ((3000, ">u2"), (17, "u1"), (254, "u1"), (65534, ">u2")):
        stored = np.arange(largest + 1)
        content = b"P5\n%d\n1\n%d\n" % (largest + 1, largest) + stored.astype(dtype).tobytes()
        (tmp_path / "m.pgm").write_bytes(content)
        assert numbers_of(tmp_path / "m.pgm") == [[stored.tolist()]]


def test_a_plain_pgm_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.pgm").write_text("P2\n# a comment\n3 1\n2\n0 1 2\n")
    assert numbers_of(tmp_path / "m.pgm") == [[[0, 1, 2]]]


def test_the_scale_of_a_pfm_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = b"Pf\n2\n1\n-0.5\n" + np.array([2, 6], "<f4").tobytes()
    (tmp_path / "d.pfm").write_bytes(content)
    assert numbers_of(tmp_path / "d.pfm") == [[[2, 6]]]
    assert "a quantity is stored * 0.5" in caplog.text


def test_a_bitmap_of_1_bit_is_two_classes(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 1, 0]], np.uint8)
    Image.fromarray(stored * 255).convert("1").save(tmp_path / "m.bmp")
    assert DenseLabels(classes=2).indices(tmp_path / "m.bmp", ONE_PIXEL)[0].tolist() == [
        [0, 1, 1, 0]
    ]


@pytest.mark.parametrize("options", [{"quality": 100}, {"quality": 75}])
def test_a_jpeg_is_refused_with_the_reason(options: dict[str, Any], tmp_path: Path) -> None:
    file = saved(tmp_path / "m.jpg", FEW, **options)
    with pytest.raises(DataError, match=r"m.jpg is a JPEG picture, which changes numbers.*PNG"):
        numbers_of(file)


@pytest.mark.parametrize("suffix", ["webp", "tga", "jp2"])
def test_other_formats_are_refused_with_the_conversion(suffix: str, tmp_path: Path) -> None:
    file = saved(tmp_path / f"m.{suffix}", np.repeat(FEW, 16, 0))
    with pytest.raises(DataError, match=rf"m.{suffix}.*save it again.*label.png"):
        numbers_of(file)


def test_a_pbm_is_refused_since_its_1_is_black(tmp_path: Path) -> None:
    (tmp_path / "m.pbm").write_bytes(b"P4\n8 1\n\x0f")
    with pytest.raises(DataError, match=r"m.pbm.*1 is black.*inverts.*PNG"):
        numbers_of(tmp_path / "m.pbm")


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    for largest in (65535, 4095):
        content = b"P6\n2\n1\n%d\n" % largest + bytes(range(12))
        (tmp_path / "m.ppm").write_bytes(content)
        with pytest.raises(DataError, match=r"m.ppm.*16 bits, which Pillow cuts"):
            numbers_of(tmp_path / "m.ppm")


def test_a_gif_whose_greys_are_no_indices_is_refused(tmp_path: Path) -> None:
    """Pillow keeps the grey levels that occur, and numbers them anew."""
    file = saved(tmp_path / "m.gif", np.array([[0, 2, 200, 2]], np.uint8))
    with pytest.raises(DataError, match=r"m.gif.*greys.*index and the grey level differ.*PNG"):
        numbers_of(file)


def test_an_animated_gif_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="m.gif has 2 frames"):
        numbers_of(tmp_path / "m.gif")


BITFIELDS = 3


def bitmap(bits: int, *, palette: bytes = b"", masks: bytes = b"") -> bytes:
    """A BMP file of one row of eight pixels; ``masks`` are those of red, green, blue and alpha."""
    header_bytes = 40 + (68 if masks else 0)
    start = 14 + header_bytes + len(palette)
    row = bytes(range(bits))
    file_header = struct.pack("<2sIHHI", b"BM", start + len(row), 0, 0, start)
    compression = BITFIELDS if masks else 0
    num_colours = len(palette) // 4
    header = struct.pack(
        "<IiiHHIIiiII", header_bytes, 8, 1, 1, bits, compression, len(row), 0, 0, num_colours, 0
    )
    return file_header + header + masks.ljust(header_bytes - 40, b"\0") + palette + row


OF_16_BITS = bitmap(16)
GREYS = b"".join(bytes([i, i, i, 0]) for i in range(16))
OF_4_BITS = bitmap(4, palette=GREYS)
WITH_ALPHA = bitmap(32, masks=struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000))


@pytest.mark.parametrize(
    ("content", "form"),
    [
        pytest.param(OF_16_BITS, r"\(RGB, BGR;15\)", id="colours of 16 bits"),
        pytest.param(OF_4_BITS, r"\(L, L\)", id="grey of 4 bits"),
        pytest.param(WITH_ALPHA, r"\(RGBA, BGRA\)", id="alpha"),
    ],
)
def test_a_bitmap_whose_numbers_pillow_may_change_is_refused(
    content: bytes, form: str, tmp_path: Path
) -> None:
    file = tmp_path / "m.bmp"
    file.write_bytes(content)

    with pytest.raises(DataError, match=rf"m\.bmp is a BMP picture in a form {form} .*as PNG"):
        numbers_of(file)


def test_a_bitmap_with_alpha_that_was_decoded_before_is_refused() -> None:
    image = Image.open(io.BytesIO(WITH_ALPHA))
    image.load()

    with pytest.raises(DataError, match=r"was decoded before, .*pass its path"):
        numbers_of(image)


def gif(array: np.ndarray, palette: list[int]) -> bytes:
    image = Image.fromarray(array, "P")
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "GIF", optimize=False)
    return buffer.getvalue()


def test_a_gif_that_fills_a_part_of_its_frame_is_refused(tmp_path: Path) -> None:
    content = bytearray(gif(FEW % 4, COLOURS))
    content[6:10] = struct.pack("<HH", 8, 2)  # width and height of the frame
    file = tmp_path / "m.gif"
    file.write_bytes(content)

    with pytest.raises(DataError, match=r"m\.gif is a GIF picture that fills a part of its frame"):
        numbers_of(file)


def test_a_gif_of_black_and_white_is_two_classes(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 1, 0]], np.uint8)
    file = tmp_path / "m.gif"
    file.write_bytes(gif(stored, [0, 0, 0, 255, 255, 255]))

    indices = DenseLabels(classes=2).indices(file, ONE_PIXEL)

    assert indices[0].tolist() == stored.tolist()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_of_numpy_is_refused_with_the_way_in(suffix: str, tmp_path: Path) -> None:
    (np.save if suffix == "npy" else np.savez)(tmp_path / f"m.{suffix}", FEW)
    with pytest.raises(DataError, match=rf"m.{suffix} is a file of NumPy.*np.load"):
        numbers_of(tmp_path / f"m.{suffix}")


# Pictures in colours
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_that_was_saved_in_colours_is_one_band(suffix: str, mode: str, tmp_path: Path) -> None:
    if (suffix, mode) == ("bmp", "RGBA"):
        pytest.skip("a BMP of 32 bits has no alpha in Pillow")
    Image.fromarray(FEW).convert(mode).save(tmp_path / f"m.{suffix}")
    assert numbers_of(tmp_path / f"m.{suffix}") == [FEW.tolist()]


def test_a_mask_that_was_saved_in_colours_is_read(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2, 1]], np.uint8)
    Image.fromarray(stored).convert("RGB").save(tmp_path / "m.png")
    assert count_classes([tmp_path / "m.png"]) == 3
    index = DenseLabels(classes=3).indices(tmp_path / "m.png", ONE_PIXEL)
    assert index[0].tolist() == stored.tolist()


def test_grey_beside_grey_in_colours_is_one_band(tmp_path: Path) -> None:
    grey = saved(tmp_path / "grey.png", FEW)
    coloured = saved(tmp_path / "rgb.png", np.dstack([FEW] * 3))
    values, _ = DenseLabels().cells([grey, coloured], ONE_PIXEL)
    assert values.tolist() == [[FEW.tolist()]] * 2


def test_three_bands_of_which_one_label_has_equal_ones_stay_three(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    black = saved(tmp_path / "black.png", np.zeros((1, 2, 3), np.uint8))
    stored = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    coloured = saved(tmp_path / "rgb.png", stored)
    values, _ = DenseLabels().cells([black, coloured], ONE_PIXEL)
    assert values[:, :, 0].tolist() == [[[0, 0]] * 3, [[1, 4], [2, 5], [3, 6]]]
    assert "1 label in colours, such as" in caplog.text
    assert "colour map" in caplog.text


def test_arrays_keep_their_bands(caplog: pytest.LogCaptureFixture) -> None:
    assert numbers_of(np.dstack([FEW] * 3)) == [FEW.tolist()] * 3
    assert "colours" not in caplog.text


# Tensors and stacks
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_are_read_as_arrays(dtype: torch.dtype) -> None:
    label = torch.tensor([[0, 1], [2, 4]], dtype=dtype)
    assert numbers_of(label) == [[[0, 1], [2, 4]]]
    values, _ = DenseLabels().cells(torch.stack([label, label + 1])[..., None], ONE_PIXEL)
    assert values.tolist() == [[[[0, 1], [2, 4]]], [[[1, 2], [3, 5]]]]


@pytest.mark.parametrize("form", [np.zeros, torch.zeros])
def test_a_stack_of_labels_is_not_read_as_one_with_many_bands(form: Any) -> None:
    with pytest.raises(DataError, match=r"\(8, 64, 64\).*8 labels or bands of 64x64 px.*list"):
        DenseLabels().cells(form((8, 64, 64)), ONE_PIXEL)


def test_many_bands_are_read_where_the_size_of_the_image_is_known() -> None:
    values, _ = DenseLabels().cells(np.zeros((16, 20, 24)), ONE_PIXEL, [(16, 20)])
    assert values.shape == (1, 24, 16, 20)


# Infinity
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_infinity_may_be_nodata(dtype: str) -> None:
    label = np.array([[np.inf, -np.inf, 3]], dtype)
    how = DenseLabels(nodata=[math.inf, -math.inf])
    values, weight = how.cells(label, ONE_PIXEL)
    assert values.tolist() == [[[[0, 0, 3]]]]
    assert weight.tolist() == [[[0, 0, 1]]]
    with pytest.raises(DataError, match=r"1 values that are infinite.*--nodata inf -inf"):
        DenseLabels(nodata=math.inf).cells(label, ONE_PIXEL)


@pytest.mark.parametrize("form", ["PGM of few greys", "BMP of colours", "BMP of grey"])
def test_an_opened_picture_is_read_twice_alike(form: str, tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    file = tmp_path / "label.bmp"
    if form == "PGM of few greys":
        file = tmp_path / "label.pgm"
        file.write_bytes(b"P5 4 3 20\n" + numbers.tobytes())
    elif form == "BMP of colours":
        Image.fromarray(np.repeat(numbers[..., None], 3, axis=2)).save(file)
    else:
        Image.fromarray(numbers).save(file)
    with Image.open(file) as opened:
        first = numbers_of(opened)
        second = numbers_of(opened)

    assert first[0] == numbers.tolist()
    assert second == first


def test_a_picture_that_was_decoded_before_names_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "label.pgm"
    file.write_bytes(b"P5 4 3 20\n" + bytes(range(12)))
    with Image.open(io.BytesIO(file.read_bytes())) as opened:
        opened.load()
        with pytest.raises(DataError, match="pass its path"):
            numbers_of(opened)


# Images that Pillow decoded before
# ----------------------------------------------------------------------------------------------------


def decoded(file: Path) -> Image.Image:
    image = Image.open(file)
    image.load()
    return image


def test_a_decoded_image_is_judged_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "four.png").write_bytes(png(4, 0, bytes([0x01, 0x2F]), 4))
    with pytest.raises(DataError, match="stores 4-bit grey"):
        numbers_of(decoded(tmp_path / "four.png"))
    (tmp_path / "deep.png").write_bytes(png(16, 2, bytes(range(12)), 2))
    with pytest.raises(DataError, match="several bands of 16 bits"):
        numbers_of(decoded(tmp_path / "deep.png"))


def test_a_decoded_image_is_read_with_the_range_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "m.pgm").write_bytes(b"P5\n3 1\n20\n" + bytes([0, 7, 20]))
    assert numbers_of(decoded(tmp_path / "m.pgm")) == [[[0, 7, 20]]]


def test_a_decoded_image_whose_file_is_another_one_now_is_not_judged_by_it(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.png", FEW)
    image = decoded(file)
    file.write_bytes(png(4, 0, bytes([0x01, 0x2F]), 4))
    assert numbers_of(image) == [np.asarray(FEW).tolist()]
