"""Labels are read with the numbers that their files store, or refused with the cause."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.tiff_files import (
    ASCII,
    BYTE,
    DEFLATE,
    GDAL_METADATA,
    GDAL_NODATA,
    LONG,
    NEEDS_PILLOW_13,
    SHORT,
    nodata_tag,
    tiff,
    write_tiff,
)

from dinoneck import DataError
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.images.rasters import read_labels
from dinoneck.data.label_notes import FileScale, Rule

ALPHA = (2,)
PALETTE = {320: (SHORT, [*range(0, 65536, 256)] * 3)}


def pixels(how: DenseLabels, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel as a cell: values (K, H, W) and whether it is labelled (H, W)."""
    values, weight = how.cells(label, Preprocessing(1))
    return values[0].numpy(), weight[0].numpy() > 0


def numbers(dtype: str, bands: int = 1) -> np.ndarray:
    """Numbers (5, 7, bands) over the whole range of a dtype that float32 holds exactly."""
    kind = np.dtype(dtype)
    steps = np.arange(35 * bands)
    if kind.kind == "f":
        return (steps / 8 - 3).astype(kind).reshape(5, 7, bands)
    limits = np.iinfo(kind)
    step = 2 ** (kind.itemsize * 8) // 256
    return (limits.min + (steps * 7 % 256) * step).astype(kind).reshape(5, 7, bands)


READ = [
    pytest.param("u1", 1, {}, id="8 bits"),
    pytest.param("u1", 1, {"big_endian": True, "compression": DEFLATE}, id="8 bits, packed"),
    pytest.param("i1", 1, {}, id="signed 8 bits"),
    pytest.param("i1", 1, {"compression": DEFLATE}, id="signed 8 bits, packed"),
    pytest.param("u2", 1, {}, id="16 bits"),
    pytest.param("u2", 1, {"big_endian": True}, id="16 bits, big-endian"),
    pytest.param("u2", 1, {"big_endian": True, "compression": DEFLATE}, id="16 bits, both"),
    pytest.param("i2", 1, {}, id="signed 16 bits"),
    pytest.param("i2", 1, {"big_endian": True}, id="signed 16 bits, big-endian"),
    pytest.param("i2", 1, {"compression": DEFLATE}, id="signed 16 bits, packed"),
    pytest.param("u4", 1, {}, id="32 bits, above 2 ** 31 too"),
    pytest.param("u4", 1, {"compression": DEFLATE}, id="32 bits, packed"),
    pytest.param("i4", 1, {}, id="signed 32 bits"),
    pytest.param("i4", 1, {"big_endian": True}, id="signed 32 bits, big-endian"),
    pytest.param("f4", 1, {}, id="floats"),
    pytest.param("f4", 1, {"big_endian": True}, id="floats, big-endian, as ImageJ writes them"),
    pytest.param("f4", 1, {"photometric": 0}, id="floats, whose numbers no program inverts"),
    pytest.param("f4", 1, {"planar": 2}, id="floats, one band as one of several"),
    pytest.param("u1", 3, {"photometric": 2}, id="three bands"),
    pytest.param("u1", 3, {"photometric": 2, "planar": 2}, id="three bands, one after another"),
    pytest.param("u1", 4, {"photometric": 5}, id="four bands"),
    pytest.param("u1", 1, {"photometric": 3, "tags": PALETTE}, id="a palette"),
]


@pytest.mark.parametrize(("dtype", "bands", "options"), READ)
def test_a_tiff_gives_the_numbers_that_it_stores(
    dtype: str, bands: int, options: dict[str, Any], tmp_path: Path
) -> None:
    stored = numbers(dtype, bands)
    file = write_tiff(tmp_path / "label.tif", stored, **options)
    values, valid = pixels(DenseLabels(), file)
    assert np.array_equal(values, np.moveaxis(stored, -1, 0).astype(np.float32))
    assert valid.all()


def test_a_label_of_three_thousand_million_keeps_its_value(tmp_path: Path) -> None:
    stored = np.array([[0, 3_000_000_000], [4_294_967_040, 1]], np.uint32)
    values, _ = pixels(DenseLabels(), write_tiff(tmp_path / "ids.tif", stored))
    assert values[0].tolist() == [[0.0, 3_000_000_000.0], [4_294_967_040.0, 1.0]]


def test_twelve_packed_bits_are_read(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 4095, 2730]], np.uint16)
    packed = bytes([0x00, 0x00, 0x01, 0xFF, 0xFA, 0xAA])
    file = write_tiff(tmp_path / "label.tif", stored, bits=12, packed=packed)
    assert pixels(DenseLabels(), file)[0].tolist() == [[[0, 1, 4095, 2730]]]


REFUSED = [
    pytest.param("f2", 1, {}, "16-bit floats.*Float32", id="half floats"),
    pytest.param("f8", 1, {}, "64-bit floats.*Float32", id="double floats"),
    pytest.param("u8", 1, {}, "64-bit unsigned.*Int32", id="64-bit integers"),
    pytest.param("u4", 1, {"big_endian": True}, "32-bit unsigned.*big-endian", id="big uint32"),
    pytest.param("f4", 3, {"extra": (0, 0)}, "3 bands of 32-bit floats", id="bands of floats"),
    pytest.param("u2", 3, {"photometric": 2}, "3 bands of 16-bit", id="16-bit colours"),
    pytest.param(
        *("u2", 3, {"photometric": 2, "planar": 2}, "3 bands of 16-bit"),
        id="16-bit colours, one after another",
    ),
    pytest.param(
        *("u1", 2, {"extra": (0,)}, "2 bands, of which Pillow reads 1"),
        id="two bands",
        marks=NEEDS_PILLOW_13,
    ),
    pytest.param("u1", 4, {"photometric": 2, "extra": (0,)}, "4 bands.* 3", id="RGB and a band"),
    pytest.param("u1", 5, {"photometric": 2, "extra": (0, 0)}, "5 bands.* 3", id="RGB and two"),
    pytest.param("u1", 6, {"photometric": 2, "extra": (2, 0, 0)}, "6 bands", id="RGBA and two"),
    pytest.param("u1", 6, {"extra": (0,) * 5}, "6 bands", id="six grey bands"),
    pytest.param(
        *("u1", 2, {"extra": (0,), "planar": 2, "compression": DEFLATE}, "one after another"),
        id="two bands, one after another",
    ),
    pytest.param(
        *("u2", 2, {"extra": (0,), "planar": 2, "compression": DEFLATE}, "2 bands of 16-bit"),
        id="two 16-bit bands, one after another",
    ),
    pytest.param("i2", 1, {"planar": 2}, "one of several", id="one int16 band of several"),
    pytest.param("u1", 4, {"photometric": 2, "extra": (1,)}, "alpha", id="multiplied by alpha"),
    pytest.param("u1", 1, {"photometric": 0}, "0 is white", id="min is white"),
    pytest.param("u2", 1, {"photometric": 0}, "0 is white", id="min is white, 16 bits"),
    pytest.param("u1", 1, {"photometric": None}, "Photometric", id="nothing says what 0 is"),
    pytest.param("u1", 3, {"photometric": 8}, "Photometric.* 8", id="CIELAB"),
    pytest.param("u1", 3, {"photometric": 6}, "Photometric.* 6", id="YCbCr"),
    pytest.param(
        *("f4", 1, {"big_endian": True, "compression": DEFLATE}, "swaps"),
        id="packed big-endian floats",
    ),
    pytest.param(
        *("i2", 1, {"big_endian": True, "compression": DEFLATE}, "swaps"),
        id="packed big-endian int16",
    ),
    pytest.param(
        *("i4", 1, {"big_endian": True, "compression": DEFLATE}, "swaps"),
        id="packed big-endian int32",
    ),
    pytest.param("u1", 1, {"tags": {273: (LONG, [0])}}, "sparse", id="a strip is not stored"),
    pytest.param(
        *("u1", 1, {"compression": DEFLATE, "tags": {273: (LONG, [0])}}, "sparse"),
        id="a packed strip is not stored",
    ),
    pytest.param("u1", 1, {"tags": {259: (SHORT, [7])}}, "JPEG", id="JPEG in TIFF"),
    pytest.param("u1", 1, {"tags": {259: (SHORT, [50001])}}, "WebP", id="WebP in TIFF"),
    pytest.param("u1", 1, {"tags": {259: (SHORT, [34887])}}, "LERC", id="LERC in TIFF"),
]


@pytest.mark.parametrize(("dtype", "bands", "options", "named"), REFUSED)
def test_a_tiff_that_would_give_other_numbers_is_refused(
    dtype: str, bands: int, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    file = write_tiff(tmp_path / "label.tif", numbers(dtype, bands), **options)
    with pytest.raises(DataError, match=rf"label.tif.*{named}.*array"):
        pixels(DenseLabels(), file)


@pytest.mark.parametrize("bits", [2, 4])
def test_two_and_four_bits_are_read_as_indices_and_refused_as_grey(
    bits: int, tmp_path: Path
) -> None:
    """Pillow scales grey: 1 of 2 bits becomes 85."""
    stored = np.zeros((1, 8 // bits), np.uint8)
    stored[0, -1] = 1
    palette = {320: (SHORT, [0, 65535] * (3 * 2**bits // 2))}
    form: dict[str, Any] = {"bits": bits, "packed": b"\x01"}
    indices = write_tiff(tmp_path / "p.tif", stored, photometric=3, tags=palette, **form)
    grey = write_tiff(tmp_path / "grey.tif", stored, **form)
    assert pixels(DenseLabels(), indices)[0][0].tolist() == stored.tolist()
    with pytest.raises(DataError, match=rf"grey.tif.*{bits}-bit"):
        pixels(DenseLabels(), grey)


# Pages
# ----------------------------------------------------------------------------------------------------


def test_smaller_pages_are_overviews(tmp_path: Path) -> None:
    whole = numbers("u1")
    overview = (whole[::2, ::2], {254: (LONG, [1])})
    thumbnail = (whole[:2, :3], {})
    file = write_tiff(tmp_path / "label.tif", whole, more_pages=[overview, thumbnail])
    assert np.array_equal(pixels(DenseLabels(), file)[0][0], whole[..., 0])


def test_a_second_page_is_refused_also_behind_an_overview(tmp_path: Path) -> None:
    whole = numbers("u1")
    overview = (whole[::2, ::2], {254: (LONG, [1])})
    file = write_tiff(tmp_path / "label.tif", whole, more_pages=[overview, (whole, {})])
    with pytest.raises(DataError, match=r"label.tif holds several pages.* 5x7 px"):
        pixels(DenseLabels(), file)


def test_a_thumbnail_before_the_label_is_refused(tmp_path: Path) -> None:
    whole = numbers("u1")
    file = write_tiff(tmp_path / "label.tif", whole[::2, ::2], more_pages=[(whole, {})])
    with pytest.raises(DataError, match=r"label.tif holds several pages.* 5x7 px"):
        pixels(DenseLabels(), file)


def test_a_preview_before_the_label_is_refused(tmp_path: Path) -> None:
    preview = {254: (LONG, [1])}
    file = write_tiff(tmp_path / "label.tif", numbers("u1"), tags=preview)
    with pytest.raises(DataError, match=r"label.tif begins with a reduced picture of 5x7 px"):
        pixels(DenseLabels(), file)


def test_a_png_that_was_filled_up_with_zeros_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "label.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 3, (40, 50)).astype(np.uint8)).save(file)
    content = file.read_bytes()
    file.write_bytes(content[:-60] + bytes(60))
    with pytest.raises(DataError, match=r"label\.png.*truncated"):
        pixels(DenseLabels(), file)


def test_an_animated_png_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2)]
    frames[0].save(tmp_path / "label.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"label.png has 2 frames"):
        pixels(DenseLabels(), tmp_path / "label.png")


def test_a_mask_of_valid_pixels_is_not_passed_over(tmp_path: Path) -> None:
    whole = numbers("u1")
    mask = (np.ones_like(whole), {254: (LONG, [4])})
    inside = write_tiff(tmp_path / "inside.tif", whole, more_pages=[mask])
    beside = write_tiff(tmp_path / "beside.tif", whole)
    write_tiff(tmp_path / "beside.tif.msk", np.ones_like(whole))
    with pytest.raises(DataError, match=r"inside.tif has a page that masks"):
        pixels(DenseLabels(), inside)
    with pytest.raises(DataError, match=r"beside.tif has a mask.*beside.tif.msk"):
        pixels(DenseLabels(), beside)


# What a file marks as unlabelled
# ----------------------------------------------------------------------------------------------------


def half_marked(dtype: str, value: float) -> np.ndarray:
    """2 everywhere, with the value in the left half."""
    stored = np.full((4, 6), 2, dtype)
    stored[:, :3] = value
    return stored


MARKS = [
    pytest.param("f4", -9999, "-9999", id="a number"),
    pytest.param("f4", -9999, " -9999.0 \0", id="blanks and a zero byte"),
    pytest.param("f4", -9999, "-9.999e+03", id="an exponent"),
    pytest.param("f4", np.nan, "nan", id="NaN"),
    pytest.param("f4", np.nan, "-1.#QNAN", id="NaN of Windows"),
    pytest.param("f4", -np.inf, "-inf", id="infinity"),
    pytest.param("f4", np.finfo(np.float32).min, "-3.4028234663852886e+38", id="lowest float"),
    pytest.param("f4", np.finfo(np.float32).min, "-3.40282e+38", id="lowest float, 6 digits"),
    pytest.param("f4", np.finfo(np.float32).min, "-1.7976931348623157e+308", id="lowest double"),
    pytest.param("f4", -np.inf, "-1.7976931348623157e+308", id="lowest double as infinity"),
    pytest.param("f4", np.finfo(np.float32).max, "3.4028234663852886e+38", id="largest float"),
    pytest.param("f4", np.float32(0.1), "0.1", id="rounded in the file"),
    pytest.param("i2", -32768, "-32768", id="int16"),
    pytest.param("u2", 65535, "65535", id="uint16"),
    pytest.param("u4", 4294967295, "4294967295", id="uint32"),
    pytest.param("i1", -1, "-1", id="int8"),
    pytest.param("u1", 0, "0", id="zero"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), MARKS)
def test_what_gdal_marks_has_no_label(dtype: str, value: float, text: str, tmp_path: Path) -> None:
    stored = half_marked(dtype, value)
    file = write_tiff(tmp_path / "height.tif", stored, tags=nodata_tag(text))
    values, weight = DenseLabels().cells(file, Preprocessing(2))
    assert weight[0].tolist() == [[0, 2, 4], [0, 2, 4]]
    assert values[0, 0].tolist() == [[0, 2, 2], [0, 2, 2]]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [("u1", "-9999"), ("u1", "256"), ("u1", "nan"), ("u1", "0.5"), ("i2", "1e20"), ("u1", "")],
)
def test_a_mark_that_no_pixel_can_have_changes_nothing(
    dtype: str, text: str, tmp_path: Path
) -> None:
    stored = half_marked(dtype, 1)
    file = write_tiff(tmp_path / "height.tif", stored, tags=nodata_tag(text))
    values, valid = pixels(DenseLabels(), file)
    assert np.array_equal(values[0], stored)
    assert valid.all()


def test_a_pixel_that_is_marked_in_one_band_has_no_label(tmp_path: Path) -> None:
    stored = np.full((2, 3, 3), 9, np.uint8)
    stored[0, 0, 1] = 4
    stored[1, 1] = 4
    file = write_tiff(tmp_path / "b.tif", stored, photometric=2, tags=nodata_tag("4"))
    _, valid = pixels(DenseLabels(), file)
    assert (~valid).nonzero()[0].tolist() == [0, 1]
    assert (~valid).nonzero()[1].tolist() == [0, 1]


def test_a_mark_may_differ_by_band(tmp_path: Path) -> None:
    stored = np.full((2, 3, 3), 9, np.uint8)
    stored[0, 0] = (1, 2, 3)
    stored[1, 1] = (2, 3, 1)  # the marks of other bands
    file = write_tiff(tmp_path / "b.tif", stored, photometric=2, tags=nodata_tag("1 2 3"))
    _, valid = pixels(DenseLabels(), file)
    assert np.argwhere(~valid).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param((SHORT, [200]), id="a number"),
        pytest.param((BYTE, list(b"200\0")), id="text as bytes"),
    ],
)
def test_a_mark_is_read_whatever_the_type_of_its_tag(tag: Any, tmp_path: Path) -> None:
    label = np.array([[1, 200, 4]], np.uint8)
    file = write_tiff(tmp_path / "m.tif", label, tags={GDAL_NODATA: tag})

    _, is_labelled = pixels(DenseLabels(), file)

    assert is_labelled.tolist() == [[True, False, True]]


def test_marks_of_bands_may_be_numbers(tmp_path: Path) -> None:
    label = np.full((1, 3, 3), 9, np.uint8)
    label[0, 0, 0] = 1
    label[0, 1, 1] = 1
    tags = {GDAL_NODATA: (SHORT, [1, 2, 3])}
    file = write_tiff(tmp_path / "m.tif", label, photometric=2, tags=tags)

    _, is_labelled = pixels(DenseLabels(), file)

    assert is_labelled.tolist() == [[False, True, True]]


def test_a_class_that_the_file_marks_has_no_label(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [2, 0]], np.uint8)
    file = write_tiff(tmp_path / "classes.tif", stored, tags=nodata_tag("0"))
    index = DenseLabels(classes=3).indices(file, Preprocessing(1))
    assert index[0].tolist() == [[-1, 1], [2, -1]]


def test_two_readings_of_nodata_are_an_error(tmp_path: Path) -> None:
    stored = half_marked("f4", -9999)
    file = write_tiff(tmp_path / "height.tif", stored, tags=nodata_tag("-9999"))
    with pytest.raises(DataError, match=r"height.tif.*-9999.*nodata is 255.*unsetnodata"):
        pixels(DenseLabels(nodata=255), file)
    assert pixels(DenseLabels(nodata=(255, -9999)), file)[1].sum() == 12


def test_nodata_agrees_with_a_file_whose_mark_does_not_occur(tmp_path: Path) -> None:
    stored = half_marked("u1", 7)
    file = write_tiff(tmp_path / "height.tif", stored, tags=nodata_tag("255"))
    assert pixels(DenseLabels(nodata=7), file)[1].sum() == 12


@pytest.mark.parametrize("text", ["none", "-9999,0", "0x10"])
def test_a_mark_that_is_no_number_is_refused(text: str, tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "height.tif", numbers("f4"), tags=nodata_tag(text))
    with pytest.raises(DataError, match=rf"height.tif.*GDAL_NODATA.*{text}"):
        pixels(DenseLabels(), file)


def test_a_mark_for_another_number_of_bands_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "height.tif", numbers("f4"), tags=nodata_tag("0 1"))
    with pytest.raises(DataError, match=r"height.tif.*2 values for 1 band"):
        pixels(DenseLabels(), file)


def sidecar(path: Path, value: str) -> None:
    """Write GDAL's notes on a file next to it."""
    path.with_name(f"{path.name}.aux.xml").write_text(
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <Description>NDVI</Description>\n    '
        f"<NoDataValue>{value}</NoDataValue>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )


def test_the_notes_of_gdal_next_to_a_png_are_honoured(tmp_path: Path) -> None:
    """GDAL writes them for formats that have no tag, such as PNG."""
    Image.fromarray(half_marked("u1", 200)).save(tmp_path / "cover.png")
    sidecar(tmp_path / "cover.png", "2.000000000000E+02")
    values, valid = pixels(DenseLabels(), tmp_path / "cover.png")
    assert valid.sum() == 12
    assert values[0, 0].tolist() == [0, 0, 0, 2, 2, 2]


def test_notes_that_contradict_the_tag_are_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", half_marked("u1", 7), tags=nodata_tag("7"))
    sidecar(file, "2")
    with pytest.raises(DataError, match=r"a.tif.*GDAL_NODATA says 7.*a.tif.aux.xml says 2"):
        pixels(DenseLabels(), file)


def test_notes_that_repeat_the_tag_are_read(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", np.array([[1, 7]], np.uint8), tags=nodata_tag("7"))
    sidecar(file, "7.0")

    _, is_labelled = pixels(DenseLabels(), file)

    assert is_labelled.tolist() == [[True, False]]


def test_notes_without_nodata_change_nothing(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", numbers("u1"))
    file.with_name("a.tif.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
    assert pixels(DenseLabels(), file)[1].all()


# Alpha and masked arrays
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_no_band_of_a_label(mode: str, suffix: str, tmp_path: Path) -> None:
    bands = len(mode) - 1
    stored = np.full((3, 4, bands + 1), 7, np.uint8)
    stored[..., 1:] = 8
    stored[..., -1] = 255
    stored[0, 0, -1] = 0
    Image.fromarray(stored, mode).save(tmp_path / f"label.{suffix}")
    values, valid = pixels(DenseLabels(), tmp_path / f"label.{suffix}")
    assert values.shape == (bands, 3, 4)
    assert np.argwhere(~valid).tolist() == [[0, 0]]
    assert (stored[0, 1, :bands] == values[:, valid].T).all()


@pytest.mark.parametrize("extra", [(), (999,)], ids=["no tag", "Corel Draw"])
def test_a_fourth_band_that_is_opaque_is_alpha(extra: tuple[int, ...], tmp_path: Path) -> None:
    stored = numbers("u1", bands=4)
    stored[..., 3] = 255
    file = write_tiff(tmp_path / "label.tif", stored, photometric=2, extra=extra)
    values, valid = pixels(DenseLabels(), file)
    assert np.array_equal(values, np.moveaxis(stored[..., :3], -1, 0))
    assert valid.all()


def test_a_fourth_band_that_may_be_alpha_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "label.tif", numbers("u1", bands=4), photometric=2)
    with pytest.raises(DataError, match=r"label.tif has a fourth band.*ExtraSamples"):
        pixels(DenseLabels(), file)


def test_alpha_of_a_pil_image_is_no_band(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.new("L", (4, 3), 7), Image.new("L", (4, 3), 255)])
    assert pixels(DenseLabels(), image)[0].shape == (1, 3, 4)


def test_grey_with_alpha_is_a_mask_of_classes(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2]], np.uint8)
    Image.fromarray(np.stack([mask, np.full_like(mask, 255)], -1), "LA").save(tmp_path / "m.png")
    index = DenseLabels(classes=3).indices(tmp_path / "m.png", Preprocessing(1))
    assert index[0].tolist() == [[0, 1, 2]]


def test_a_half_transparent_label_is_refused(tmp_path: Path) -> None:
    stored = np.full((3, 4, 2), 255, np.uint8)
    stored[1, 2, 1] = 128
    Image.fromarray(stored, "LA").save(tmp_path / "label.png")
    with pytest.raises(DataError, match=r"label.png has 1 half transparent pixel \(alpha 128\)"):
        pixels(DenseLabels(), tmp_path / "label.png")


@pytest.mark.parametrize(("mode", "colour"), [("L", 5), ("I;16", 5), ("RGB", (5, 5, 5)), ("1", 1)])
def test_the_transparent_colour_of_a_png_has_no_label(
    mode: str, colour: Any, tmp_path: Path
) -> None:
    image = Image.new(mode, (3, 2))
    image.putpixel((1, 0), colour)
    image.save(tmp_path / "label.png", transparency=colour if mode != "1" else 255)
    values, valid = pixels(DenseLabels(), tmp_path / "label.png")
    assert np.argwhere(~valid).tolist() == [[0, 1]]
    assert not values.any()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_beside_alpha_that_was_put_on_has_no_label(
    mode: str, tmp_path: Path
) -> None:
    stored = Image.fromarray(np.array([[5, 9, 3]], np.uint8)).convert(mode)
    stored.save(tmp_path / "m.png", transparency=9 if mode == "L" else (9, 9, 9))
    label = Image.open(tmp_path / "m.png")
    label.putalpha(Image.fromarray(np.array([[255, 255, 0]], np.uint8)))

    values, valid = pixels(DenseLabels(), label)

    assert valid.tolist() == [[True, False, False]]
    assert values[0, 0, 0] == 5


def test_a_transparent_index_of_a_palette_is_a_class(tmp_path: Path) -> None:
    """Annotation tools draw the background without colour; it is a class all the same."""
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "m.png", transparency=0)
    index = DenseLabels(classes=2).indices(tmp_path / "m.png", Preprocessing(1))
    assert index[0].tolist() == [[0, 1]]


def test_masked_pixels_of_a_numpy_array_have_no_label() -> None:
    """As rasterio's read(masked=True) gives them, with the fill value below the mask."""
    stored = np.full((2, 3), -9999.0, np.float32)
    stored[:, 1:] = 0.5
    label = np.ma.masked_equal(stored, -9999.0)
    values, valid = pixels(DenseLabels(), label)
    assert valid.tolist() == [[False, True, True], [False, True, True]]
    assert values[0].tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


def test_bands_before_rows_are_refused() -> None:
    """Raster libraries give (bands, height, width)."""
    label = np.zeros((3, 32, 48), np.float32)
    with pytest.raises(DataError, match=r"label 0.*\(3, 32, 48\).*moveaxis"):
        pixels(DenseLabels(), [label])


def test_bands_before_rows_are_refused_with_the_size_of_the_image() -> None:
    label = np.zeros((3, 32, 48), np.float32)

    with pytest.raises(DataError, match=r"\(bands, height, width\).*moveaxis\(label, 0, -1\)\)$"):
        next(read_labels(label, [(32, 48)]))


def test_small_bands_before_rows_are_recognised_by_the_size_of_the_image() -> None:
    label = np.zeros((3, 6, 8), np.float32)

    with pytest.raises(DataError, match=r"label 0.*its axes seem to be bands, rows, columns: move"):
        next(read_labels(label, [(6, 8)]))


def test_a_list_of_no_labels_is_refused() -> None:
    with pytest.raises(DataError, match="there are no labels; expected one or more"):
        list(read_labels([]))


def test_a_label_of_another_type_is_refused_with_the_types_that_are_read() -> None:
    with pytest.raises(
        DataError, match=r"label 0 is int; expected a path, a PIL image or an array"
    ):
        list(read_labels([5]))


def test_the_number_of_a_label_of_the_wrong_size_is_named() -> None:
    labels = [np.zeros((16, 32)), np.zeros((32, 16))]
    with pytest.raises(DataError, match=r"label 1 \(an array\) is 32x16.*its image is 16x32"):
        DenseLabels().cells(labels, Preprocessing(16), [(16, 32), (16, 32)])


# PNG
# ----------------------------------------------------------------------------------------------------


def png(bits: int, colour: int, row: bytes, width: int) -> bytes:
    """A PNG of one row, of any bit depth, written by hand."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize(
    ("bits", "colour", "row", "named"),
    [
        pytest.param(2, 0, b"\x1b", "2-bit grey", id="2 bits"),
        pytest.param(4, 0, b"\x01\x2f", "4-bit grey", id="4 bits"),
        pytest.param(16, 2, b"\x01\x02" * 12, "16 bits", id="16-bit colours"),
        pytest.param(16, 4, b"\x01\x02" * 8, "16 bits", id="16-bit grey with alpha"),
    ],
)
def test_a_png_that_pillow_scales_or_cuts_is_refused(
    bits: int, colour: int, row: bytes, named: str, tmp_path: Path
) -> None:
    (tmp_path / "m.png").write_bytes(png(bits, colour, row, 4))
    with pytest.raises(DataError, match=rf"m.png.*{named}.*array"):
        pixels(DenseLabels(), tmp_path / "m.png")


# What a file says of its numbers
# ----------------------------------------------------------------------------------------------------


SCALE = '<Item name="SCALE" sample="0" role="scale">0.0001</Item>'
OF_GDAL = {GDAL_METADATA: (ASCII, f"<GDALMetadata>{SCALE}</GDALMetadata>")}
OF_IMAGEJ = {270: (ASCII, "ImageJ=1.54f\ncf=0\nc0=-32768.0\nc1=1.0\nvunit=m\n")}


@pytest.mark.parametrize(
    ("tags", "rule", "passed"),
    [
        pytest.param(OF_GDAL, "stored * 0.0001 (", {"scale": 0.0001}, id="of GDAL"),
        pytest.param(OF_IMAGEJ, "stored * 1 + -32768 (", {"offset": -32768.0}, id="of ImageJ"),
    ],
)
def test_a_scale_of_the_file_that_is_not_used_is_named(
    tags: Any, rule: str, passed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = numbers("i2")
    file = write_tiff(tmp_path / "ndvi.tif", stored, tags=tags)
    values, _ = pixels(DenseLabels(), file)
    assert np.array_equal(values[0], stored[..., 0])
    [record] = caplog.records
    assert record.getMessage().startswith(f"1 label says that a quantity is {rule}{file})")
    caplog.clear()
    pixels(DenseLabels(**passed), file)
    assert not caplog.text


def test_a_scale_that_is_not_that_of_the_file_is_used_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = numbers("i2")
    file = write_tiff(tmp_path / "ndvi.tif", stored, tags=OF_GDAL)
    values, _ = pixels(DenseLabels(scale=0.01), file)
    assert np.array_equal(values[0], (stored[..., 0] * 0.01).astype(np.float32))
    assert "a quantity is stored * 0.0001 " in caplog.text
    assert "They are read as stored * 0.01, which was passed" in caplog.text


def test_two_scales_in_one_set_are_refused(tmp_path: Path) -> None:
    first = write_tiff(tmp_path / "a.tif", numbers("i2"), tags=OF_GDAL)
    second = write_tiff(tmp_path / "b.tif", numbers("i2"), tags=OF_IMAGEJ)
    third = write_tiff(tmp_path / "c.tif", numbers("i2"), tags=OF_GDAL)
    with pytest.raises(DataError, match=r"two scales: of .*a.tif .*0.0001, of .*b.tif .*-32768"):
        DenseLabels().cells([first, second], Preprocessing(1))
    with pytest.raises(DataError, match="two scales"):
        DenseLabels(scale=0.0001).cells([first, second], Preprocessing(1))
    values, _ = DenseLabels(scale=0.0001).cells([first, third], Preprocessing(1))
    assert np.array_equal(values[0], values[1])


def test_a_scale_of_a_part_of_the_labels_is_named_also_if_it_is_passed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_tiff(tmp_path / "a.tif", numbers("i2"), tags=OF_GDAL)
    second = write_tiff(tmp_path / "b.tif", numbers("i2"))
    DenseLabels(scale=0.0001).cells([second, first], Preprocessing(1))
    assert "1 of 2 labels say that a quantity is stored * 0.0001" in caplog.text
    assert "the others say nothing" in caplog.text


def test_the_scales_of_bands_are_named_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = '<Item sample="1" role="offset" name="OFFSET">5</Item>'
    tags = {GDAL_METADATA: (ASCII, f"<GDALMetadata>{SCALE}{second}</GDALMetadata>")}
    file = write_tiff(tmp_path / "three.tif", numbers("u1", 3), photometric=2, tags=tags)
    DenseLabels().cells(file, Preprocessing(1))
    assert (
        "stored * 0.0001 in band 0, stored * 1 + 5 in band 1, stored * 1 in band 2" in caplog.text
    )


def noted_beside(file: Path, *bands: str) -> None:
    """Write GDAL's notes of the bands of a file next to it."""
    notes = ""
    for number, band in enumerate(bands, start=1):
        notes += f'<PAMRasterBand band="{number}">{band}</PAMRasterBand>'
    Path(f"{file}.aux.xml").write_text(f"<PAMDataset>{notes}</PAMDataset>")


def test_a_scale_that_gdal_noted_next_to_a_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_tiff(tmp_path / "ndvi.tif", numbers("i2"))
    noted_beside(file, "<Offset>5</Offset><Scale>0.01</Scale>")
    values, _ = pixels(DenseLabels(), file)
    assert np.array_equal(values[0], numbers("i2")[..., 0])
    assert "a quantity is stored * 0.01 + 5" in caplog.text


def test_a_scale_next_to_a_file_that_contradicts_its_tag_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "ndvi.tif", numbers("i2"), tags=OF_GDAL)
    noted_beside(file, "<Scale>1.0000000001e-4</Scale>")
    pixels(DenseLabels(), file)
    noted_beside(file, "<Scale>0.01</Scale>")
    with pytest.raises(
        DataError, match=r"stored \* 0.0001, .*ndvi.tif.aux.xml says stored \* 0.01"
    ):
        pixels(DenseLabels(), file)


@pytest.mark.parametrize(
    "description",
    [
        pytest.param("ImageJ=1.54f\nunit=m\n", id="none"),
        pytest.param("ImageJ=1.54f\ncf=1\nc0=3.0\nc1=2.0\nc2=0.5\n", id="no straight line"),
        pytest.param("ImageJ=1.54f\ncf=0\nc0=3.0\n", id="no slope"),
    ],
)
def test_a_calibration_of_imagej_that_is_no_scale_says_nothing(
    description: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = numbers("i2")
    file = write_tiff(tmp_path / "m.tif", stored, tags={270: (ASCII, description)})

    values, _ = pixels(DenseLabels(), file)

    assert np.array_equal(values[0], stored[..., 0])
    assert not caplog.records


def test_notes_of_bands_that_the_file_has_not_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_tiff(tmp_path / "ndvi.tif", numbers("i2"))
    noted_beside(file, "", "<Scale>0.01</Scale>")

    pixels(DenseLabels(), file)

    assert not caplog.records


HALVES = Rule(0.5, 0.0)
TENTHS = Rule(0.1, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param((HALVES,), (HALVES,), True, id="one rule"),
        pytest.param((HALVES,), (TENTHS,), False, id="one rule, another one"),
        pytest.param((HALVES,), (HALVES, HALVES), True, id="one rule, that of all bands"),
        pytest.param((HALVES,), (HALVES, TENTHS), False, id="one rule, rules of bands"),
        pytest.param((HALVES, TENTHS), (HALVES, TENTHS), True, id="rules of bands"),
        pytest.param((HALVES, TENTHS), (TENTHS, HALVES), False, id="rules of other bands"),
        pytest.param((HALVES, TENTHS), (HALVES, TENTHS, TENTHS), False, id="more bands"),
    ],
)
def test_scales_agree_if_every_band_has_the_same_rule(
    first: tuple[Rule, ...], second: tuple[Rule, ...], expected: bool
) -> None:
    of_tag = FileScale(first, source="the tag", removal="remove it")
    of_notes = FileScale(second, source="the notes", removal="remove them")

    assert of_tag.agrees(of_notes) is expected
    assert of_notes.agrees(of_tag) is expected


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "ndvi.tif", numbers("i2"))
    noted_beside(file, "<Scale>0,0001</Scale>")
    with pytest.raises(DataError, match=r"ndvi.tif.aux.xml holds '0,0001', which is no number"):
        pixels(DenseLabels(), file)


BAND = '<PAMRasterBand band="1"><NoDataValue>3</NoDataValue></PAMRasterBand>'
NOTES = f"<PAMDataset>{BAND}</PAMDataset>"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(NOTES.encode("utf-8-sig"), id="UTF-8 with a mark"),
        pytest.param(NOTES.encode("utf-16"), id="UTF-16"),
        pytest.param(NOTES.encode("utf-16-be"), id="UTF-16 without a mark"),
        pytest.param(NOTES.encode("utf-16-le"), id="UTF-16 without a mark, low byte first"),
        pytest.param(
            f'<?xml version="1.0" encoding="ISO-8859-1"?><!-- h\xf6he -->{NOTES}'.encode("latin-1"),
            id="latin-1",
        ),
        pytest.param(NOTES.lower().encode(), id="lower case"),
        pytest.param(NOTES.replace(' band="1"', " type='>' band = '1'").encode(), id="attributes"),
        pytest.param(NOTES.replace("PAMR", "g:PAMR").encode(), id="a prefix"),
        pytest.param(
            NOTES.replace("<No", "<!-- <NoDataValue>1</NoDataValue> --><No").encode(), id="-"
        ),
        pytest.param(NOTES.replace("3", "<![CDATA[ 3 ]]>").encode(), id="verbatim"),
        pytest.param(NOTES.replace("3", "&#51;").encode(), id="a character as number"),
        pytest.param(NOTES.replace(' band="1"', "").encode(), id="no number"),
        pytest.param((" " * (1 << 21) + NOTES).encode(), id="long"),
        pytest.param(f"{'<a>' * 2000}{NOTES}{'</a>' * 2000}".encode(), id="nested deep"),
        pytest.param(
            f'<?xml version="1.0" encoding="idna"?>{NOTES}'.encode(), id="no encoding of texts"
        ),
    ],
)
def test_notes_next_to_a_file_are_read_however_they_are_written(
    content: bytes, tmp_path: Path
) -> None:
    file = write_tiff(tmp_path / "m.tif", np.array([[1, 3, 4]], np.uint8))
    Path(f"{file}.aux.xml").write_bytes(content)
    _, is_labelled = pixels(DenseLabels(), file)
    assert is_labelled.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("no notes", id="no element"),
        pytest.param(NOTES[:-20], id="cut"),
        pytest.param(NOTES.replace("</N", "</M"), id="another end"),
        pytest.param(f"</:>{NOTES}", id="an end without a start"),
    ],
)
def test_notes_that_are_damaged_are_named(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_tiff(tmp_path / "m.tif", np.array([[1, 3, 4]], np.uint8))
    Path(f"{file}.aux.xml").write_text(content)
    _, is_labelled = pixels(DenseLabels(), file)
    assert is_labelled.all()
    assert "m.tif.aux.xml is no XML that can be read" in caplog.text


ALL_BANDS = 'NODATA_VALUES">0 7 9</'


@pytest.mark.parametrize("place", ["tag", "sidecar"])
def test_nodata_of_all_bands_together_marks_no_pixel_that_has_it_in_one(
    place: str, tmp_path: Path
) -> None:
    stored = np.array([[[0, 7, 9], [0, 1, 9], [5, 7, 9]]], np.uint8)
    tags = {GDAL_METADATA: (ASCII, f'<GDALMetadata><Item name="{ALL_BANDS}Item></GDALMetadata>')}
    file = write_tiff(
        tmp_path / "m.tif", stored, photometric=2, tags=tags if place == "tag" else None
    )
    if place == "sidecar":
        notes = f'<PAMDataset><Metadata><MDI key="{ALL_BANDS}MDI></Metadata></PAMDataset>'
        Path(f"{file}.aux.xml").write_text(notes)
    _, is_labelled = pixels(DenseLabels(), file)
    assert is_labelled.tolist() == [[False, True, True]]


def test_nodata_for_another_number_of_bands_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "m.tif", np.array([[1, 2, 3]], np.uint8))
    notes = f'<PAMDataset><Metadata><MDI key="{ALL_BANDS}MDI></Metadata></PAMDataset>'
    Path(f"{file}.aux.xml").write_text(notes)
    with pytest.raises(DataError, match=r"m.tif: .* lists 3 values for 1 band"):
        pixels(DenseLabels(), file)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_damaged_tiffs_are_refused_and_never_end_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged size may be anything
    whole = tiff(numbers("u1"), more_pages=[(numbers("u1")[:2], {})], tags=nodata_tag("-9999 "))
    file = tmp_path / "label.tif"
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(256)
        file.write_bytes(bytes(damaged[: random.integers(8, len(whole) + 1)]))
        try:
            values, _ = pixels(DenseLabels(), file)
        except DataError:
            continue
        assert np.isfinite(values).all()
