"""TIFF files: every band, page and number of the file is read, or the file is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.tiff_files import (
    ASCII,
    DEFLATE,
    LONG,
    NEEDS_PILLOW_13,
    SUBFILE_TYPE,
    write_tiff,
)

from dinoneck import DataError
from dinoneck.data import read_image_size
from dinoneck.images.decoding import read_pixels

Pixels = np.ndarray[Any, Any]
RGB, CMYK, LAB = 2, 5, 8
DESCRIPTION, STRIP_PLACES, IMAGE_DEPTH = 270, 273, 32997
UNSPECIFIED, PREMULTIPLIED, ALPHA, COREL = 0, 1, 2, 999
ORDERS = pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def opaque(pixels: Pixels) -> Pixels:
    """The image with 255 in its last band."""
    changed = pixels.copy()
    changed[..., -1] = 255
    return changed


# bands -> photometric interpretation, meanings of the bands behind the colours
READ = [
    pytest.param(1, 1, (), id="grey"),
    pytest.param(2, 1, (ALPHA,), id="grey, alpha"),
    pytest.param(2, 1, (PREMULTIPLIED,), id="grey, premultiplied alpha", marks=NEEDS_PILLOW_13),
    pytest.param(3, RGB, (), id="RGB"),
    pytest.param(4, RGB, (), id="RGBA without its tag"),
    pytest.param(4, RGB, (ALPHA,), id="RGBA"),
    pytest.param(4, RGB, (PREMULTIPLIED,), id="RGBA premultiplied"),
    pytest.param(4, RGB, (COREL,), id="RGBA of Corel Draw"),
]
REFUSED = [
    pytest.param(2, 1, (), id="two bands"),
    pytest.param(2, 1, (UNSPECIFIED,), id="grey and one"),
    pytest.param(3, 1, (UNSPECIFIED,) * 2, id="three bands that are no RGB"),
    pytest.param(4, RGB, (UNSPECIFIED,), id="RGB and infrared"),
    pytest.param(5, RGB, (UNSPECIFIED,) * 2, id="RGB and two"),
    pytest.param(5, RGB, (ALPHA, UNSPECIFIED), id="RGBA and one"),
    pytest.param(5, RGB, (PREMULTIPLIED, UNSPECIFIED), id="RGBA premultiplied and one"),
    pytest.param(6, RGB, (UNSPECIFIED,) * 3, id="RGB and three"),
    pytest.param(7, RGB, (UNSPECIFIED,) * 4, id="RGB and four"),
    pytest.param(5, 1, (UNSPECIFIED,) * 4, id="five bands"),
    pytest.param(12, 1, (UNSPECIFIED,) * 11, id="twelve bands"),
    pytest.param(5, CMYK, (UNSPECIFIED,), id="CMYK and one"),
    pytest.param(2, 3, (UNSPECIFIED,), id="palette and one"),
]


@ORDERS
@pytest.mark.parametrize("compression", [1, DEFLATE], ids=["raw", "deflate"])
@pytest.mark.parametrize(("bands", "photometric", "extra"), READ)
def test_colours_are_read_without_alpha(
    bands: int,
    photometric: int,
    extra: tuple[int, ...],
    compression: int,
    big_endian: bool,
    tmp_path: Path,
) -> None:
    pixels = noise(5, 6, bands)
    if bands in (2, 4):
        pixels = opaque(pixels)
    file = write_tiff(
        tmp_path / "a.tif",
        pixels,
        photometric=photometric,
        extra=extra,
        big_endian=big_endian,
        compression=compression,
    )
    colours = pixels[..., :3] if bands > 2 else pixels[..., [0, 0, 0]]
    assert np.array_equal(read_pixels(file).permute(1, 2, 0), colours)
    assert read_image_size(file) == (5, 6)


@ORDERS
@pytest.mark.parametrize("planar", [1, 2], ids=["interleaved", "planar"])
@pytest.mark.parametrize(("bands", "photometric", "extra"), REFUSED)
def test_bands_that_are_not_read_are_counted_and_refused(
    bands: int,
    photometric: int,
    extra: tuple[int, ...],
    planar: int,
    big_endian: bool,
    tmp_path: Path,
) -> None:
    file = write_tiff(
        tmp_path / "a.tif",
        noise(5, 6, bands),
        photometric=photometric,
        extra=extra,
        big_endian=big_endian,
        planar=planar,
    )
    with pytest.raises(DataError, match=rf"a\.tif.*{bands} bands.*array"):
        read_pixels(file)


def test_the_colours_below_transparent_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = noise(5, 6, 4)
    pixels[..., 3] = 0
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(pixels).save(
            tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {})
        )
        assert np.array_equal(read_pixels(tmp_path / name).permute(1, 2, 0), pixels[..., :3])


@pytest.mark.parametrize("compression", [1, DEFLATE], ids=["raw", "deflate"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_infrared_behind_rgb_is_refused_also_without_a_tag(
    kind: str, compression: int, tmp_path: Path
) -> None:
    pixels = np.random.RandomState(0).randint(0, np.iinfo(kind).max + 1, (20, 30, 4)).astype(kind)
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, compression=compression)
    with pytest.raises(DataError, match=r"a\.tif is a TIFF of 4 bands.*fourth.*no alpha.*array"):
        read_pixels(file)


def test_a_black_picture_that_is_opaque_is_read(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", opaque(np.zeros((5, 6, 4), np.uint8)), photometric=RGB)

    assert not read_pixels(file).any()


def test_a_fourth_band_of_a_black_picture_that_is_no_alpha_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[..., 3] = noise(20, 30)
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB)

    with pytest.raises(DataError, match=r"4 bands that does not say what the fourth is"):
        read_pixels(file)


def test_infrared_is_no_alpha_where_most_of_the_picture_is_a_black_border(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(20, 220, (20, 30, 4)).astype("u1")
    pixels[:14] = 0
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB)

    with pytest.raises(DataError, match="no alpha"):
        read_pixels(file)


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_cut_out_without_a_tag_for_its_alpha_is_read(kind: str, tmp_path: Path) -> None:
    """As OpenCV writes it: transparent around, opaque inside, and a soft edge."""
    top = np.iinfo(kind).max
    pixels = np.random.RandomState(0).randint(0, top + 1, (20, 30, 4)).astype(kind)
    pixels[..., 3] = 0
    pixels[5:15, 5:25, 3] = top // 2
    pixels[6:14, 6:24, 3] = top
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB)
    expected = pixels[..., :3] if kind == "u1" else pixels[..., :3] >> 8
    assert np.array_equal(read_pixels(file).permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [("u1", ALPHA), ("u1", PREMULTIPLIED), ("u1", COREL), ("u2", ALPHA), ("u2", PREMULTIPLIED)],
)
def test_infrared_that_is_tagged_as_alpha_is_refused(
    kind: str, meaning: int, tmp_path: Path
) -> None:
    """rasterio and GDAL tag any fourth band of 8 bits so. A few pixels are saturated."""
    pixels = np.random.RandomState(0).randint(20, 236, (40, 50, 4)).astype("u1")
    pixels[0, :, 3] = 255
    if kind == "u2":
        pixels = pixels.astype("u2") * 257
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(meaning,))

    with pytest.raises(DataError, match=r"a\.tif.*tagged as alpha.*20 \.\.\. 255 are no alpha"):
        read_pixels(file)


@pytest.mark.parametrize(
    "alpha",
    [
        pytest.param(np.full(2000, 128), id="one value"),
        pytest.param(np.linspace(0, 255, 2000), id="a gradient"),
        pytest.param(np.linspace(-200, 300, 2000).clip(0, 255), id="a soft edge"),
        pytest.param(np.linspace(-200, 200, 2000).clip(0), id="smoke"),
        pytest.param(np.linspace(40, 300, 2000).clip(0, 255), id="a vignette"),
        pytest.param(np.linspace(100, 110, 2000), id="few values"),
    ],
)
def test_soft_alpha_that_is_tagged_so_is_left_out(alpha: Pixels, tmp_path: Path) -> None:
    pixels = noise(40, 50, 4)
    pixels[..., 3] = alpha.reshape(40, 50)
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(ALPHA,))

    assert np.array_equal(read_pixels(file).permute(1, 2, 0), pixels[..., :3])


def textured_infrared() -> Pixels:
    """Four bands as of a field: large areas, and noise."""
    areas = np.linspace(60, 230, 80).astype(int)[None, :, None]
    texture = np.random.RandomState(0).randint(-15, 16, (60, 80, 4))
    return (areas + texture).clip(1, 254).astype(np.uint8)


@pytest.mark.parametrize("width", [4, 60], ids=["narrow", "wide"])
def test_infrared_with_a_black_border_is_refused_though_it_is_tagged_as_alpha(
    width: int, tmp_path: Path
) -> None:
    pixels = textured_infrared()
    pixels[:, :width] = 0
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(ALPHA,))

    with pytest.raises(DataError, match="tagged as alpha"):
        read_pixels(file)


@pytest.mark.parametrize("end", [0, 255], ids=["water", "saturated crops"])
def test_infrared_of_which_a_part_is_at_an_end_is_refused_though_it_is_tagged_as_alpha(
    end: int, tmp_path: Path
) -> None:
    pixels = textured_infrared()
    pixels[:20, :, 3] = end
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(ALPHA,))

    with pytest.raises(DataError, match="tagged as alpha"):
        read_pixels(file)


def test_thin_blades_with_soft_edges_over_black_are_read(tmp_path: Path) -> None:
    """Most pixels that are shown are half transparent, in strips of three pixels."""
    shades = np.random.RandomState(0).randint(1, 255, (60, 80))
    pixels = np.zeros((60, 80, 4), np.uint8)
    for column in (10, 11, 12, 40, 41, 42, 70, 71, 72):
        pixels[:, column] = shades[:, column, None]
    pixels[:, 11, 3] = 255
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(ALPHA,))

    assert np.array_equal(read_pixels(file).permute(1, 2, 0), pixels[..., :3])


def test_smoke_that_is_dithered_by_one_level_is_read(tmp_path: Path) -> None:
    distance = np.abs(np.arange(80) - 40)
    smoke = (200 - 6 * distance).clip(0)
    dither = np.random.RandomState(0).randint(-1, 2, (60, 80))
    pixels = noise(60, 80, 4)
    pixels[..., 3] = np.where(smoke > 0, smoke + dither, 0).clip(0, 255)
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, extra=(ALPHA,))

    assert np.array_equal(read_pixels(file).permute(1, 2, 0), pixels[..., :3])


# Planes


@ORDERS
@pytest.mark.parametrize("compression", [1, DEFLATE], ids=["raw", "deflate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_one_after_another_are_read_or_refused(
    kind: type, compression: int, big_endian: bool, tmp_path: Path
) -> None:
    """Pillow takes each byte of an uncompressed plane of 16 bits for a pixel."""
    pixels = np.random.RandomState(0).randint(0, np.iinfo(kind).max + 1, (20, 30, 3)).astype(kind)
    file = write_tiff(
        tmp_path / "a.tif",
        pixels,
        photometric=RGB,
        planar=2,
        compression=compression,
        big_endian=big_endian,
    )
    if kind is np.uint16 and compression == 1:
        with pytest.raises(DataError, match=r"a\.tif.*16 bits.*interleaved"):
            read_pixels(file)
        return
    expected = pixels if kind is np.uint8 else pixels >> 8
    assert np.array_equal(read_pixels(file).permute(1, 2, 0), expected)


def test_planes_of_16_bits_have_no_low_bytes(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 4096, (20, 30, 3)).astype(np.uint16)
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=RGB, planar=2, compression=DEFLATE)
    with pytest.raises(DataError, match=r"a\.tif.*bits=12.*interleaved"):
        read_pixels(file, bits=12)


def planes_of_16_bits(file: Path, pixels: Pixels) -> Path:
    """Bands one after another, of which Pillow gives the high bytes alone."""
    return write_tiff(
        file, pixels.astype(np.uint16), photometric=RGB, planar=2, compression=DEFLATE
    )


def test_planes_of_16_bits_of_most_of_the_range_are_read(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(20_000, 50_000, (20, 30, 3))
    file = planes_of_16_bits(tmp_path / "a.tif", pixels)

    read = read_pixels(file)

    assert np.array_equal(read.permute(1, 2, 0), pixels >> 8)


def test_planes_of_8_bits_in_16_are_refused(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3))
    file = planes_of_16_bits(tmp_path / "a.tif", pixels)

    with pytest.raises(DataError, match=r"16-bit values whose high bytes are 0 or 255; pass them"):
        read_pixels(file)


@pytest.mark.parametrize("compression", [1, DEFLATE], ids=["raw", "deflate"])
def test_planes_of_cielab_are_refused(compression: int, tmp_path: Path) -> None:
    """Pillow does not shift the signed values of a plane."""
    file = write_tiff(
        tmp_path / "a.tif", noise(5, 6, 3), photometric=LAB, planar=2, compression=compression
    )
    with pytest.raises(DataError, match=r"a\.tif.*interleaved"):
        read_pixels(file)


# Numbers


@ORDERS
@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        pytest.param(noise(5, 6).astype(np.int8), "signed 8-bit", id="int8"),
        pytest.param(
            np.arange(-9, 21, dtype=np.int16).reshape(5, 6), "16-bit integers of -9", id="int16"
        ),
        pytest.param(
            np.arange(30, dtype=np.int32).reshape(5, 6), "32-bit integers of 0 ... 29", id="int32"
        ),
        pytest.param(np.arange(30, dtype=np.uint32).reshape(5, 6), "32-bit", id="uint32"),
        pytest.param(np.full((5, 6), 0.5, np.float16), "1 band of 16-bit floats", id="float16"),
        pytest.param(np.full((5, 6), 0.5, np.float32), "32-bit floats of 0.5", id="float32"),
        pytest.param(np.full((5, 6), 0.5, np.float64), "1 band of 64-bit floats", id="float64"),
        pytest.param(np.full((5, 6), 1j, np.complex64), "64-bit complex numbers", id="complex"),
        pytest.param(
            np.full((5, 6, 3), 0.5, np.float32), "3 bands of 32-bit floats", id="3 x float32"
        ),
        pytest.param(np.zeros((5, 6), np.uint64), "64-bit unsigned integers", id="uint64"),
    ],
)
def test_numbers_that_are_no_colours_are_named_with_the_way_out(
    pixels: Pixels, named: str, big_endian: bool, tmp_path: Path
) -> None:
    photometric = RGB if pixels.ndim == 3 else 1
    file = write_tiff(tmp_path / "a.tif", pixels, photometric=photometric, big_endian=big_endian)
    with pytest.raises(DataError, match=rf"a\.tif.*{named}.*array"):
        read_pixels(file)


def test_a_compression_that_pillow_does_not_know_is_named(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", noise(5, 6), compression=34887)
    with pytest.raises(DataError, match=r"a\.tif.*1 band of 8-bit.*compression 34887"):
        read_pixels(file)


@pytest.mark.parametrize(
    ("bands", "photometric"), [pytest.param(2, 1, id="grey"), pytest.param(4, RGB, id="RGB")]
)
def test_uncompressed_planes_with_premultiplied_alpha_are_named(
    bands: int, photometric: int, tmp_path: Path
) -> None:
    pixels = opaque(noise(5, 6, bands))
    file = write_tiff(
        tmp_path / "a.tif", pixels, photometric=photometric, planar=2, extra=(PREMULTIPLIED,)
    )

    with pytest.raises(
        DataError, match=rf"a\.tif is a TIFF of {bands} bands of 8-bit .*Pillow does"
    ):
        read_pixels(file)


def test_a_grey_tiff_that_does_not_say_whether_zero_is_black_is_refused(tmp_path: Path) -> None:
    """Libraries take it for white or for black."""
    file = write_tiff(tmp_path / "a.tif", noise(5, 6), photometric=None)
    with pytest.raises(DataError, match=r"a\.tif.*PhotometricInterpretation"):
        read_pixels(file)


# Pages


def write_pages(file: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    pages = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    return write_tiff(file, pages[0], more_pages=[(page, {}) for page in pages[1:]])


def test_overviews_are_not_read(tmp_path: Path) -> None:
    file = write_pages(tmp_path / "a.tif", [(16, 24), (8, 12), (4, 6)])
    assert np.array_equal(read_pixels(file)[0], noise(16, 24))


def test_a_page_that_is_called_reduced_is_passed_over_also_in_the_full_size(tmp_path: Path) -> None:
    reduced = {SUBFILE_TYPE: (LONG, [1])}
    pixels = noise(8, 9)
    file = write_tiff(tmp_path / "a.tif", pixels, more_pages=[(noise(8, 9, seed=1), reduced)])

    read = read_pixels(file)

    assert np.array_equal(read[0], pixels)


def test_the_size_of_many_bands_is_read(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", noise(8, 9, 5))

    assert read_image_size(file) == (8, 9)


def test_a_mask_of_the_same_size_is_not_a_second_image(tmp_path: Path) -> None:
    """GDAL stores which pixels are valid in a page of its own."""
    pixels = noise(16, 24)
    stack = tmp_path / "a.tif"
    write_tiff(stack, pixels, more_pages=[(pixels, {SUBFILE_TYPE: (LONG, [4])})])
    assert np.array_equal(read_pixels(stack)[0], pixels)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(16, 24)] * 2, id="two"),
        pytest.param([(16, 24)] * 5, id="five channels as pages"),
        pytest.param([(16, 24), (8, 12), (16, 24)], id="an overview between"),
        pytest.param([(16, 24), (20, 12)], id="a taller one"),
        pytest.param([(16, 24), (160, 240)], id="a preview first"),
    ],
)
def test_pages_that_are_no_overviews_are_refused(
    sizes: Sequence[tuple[int, int]], tmp_path: Path
) -> None:
    file = write_pages(tmp_path / "a.tif", sizes)
    with pytest.raises(DataError, match=r"a\.tif holds several pages.* 16x24 px.*array"):
        read_pixels(file)


def test_the_preview_of_a_raw_file_is_not_read_for_the_picture(tmp_path: Path) -> None:
    """DNG and NEF files are TIFFs whose first page is small; the picture is no page of its own."""
    file = write_tiff(tmp_path / "a.dng", noise(16, 24), tags={SUBFILE_TYPE: (LONG, [1])})
    with pytest.raises(DataError, match=r"a\.dng begins with a reduced picture of 16x24 px"):
        read_pixels(file)


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param({IMAGE_DEPTH: (LONG, [5])}, id="volume"),
        pytest.param({DESCRIPTION: (ASCII, "ImageJ=1.54f\nimages=5\nslices=5\n")}, id="ImageJ"),
    ],
)
def test_several_images_in_one_page_are_refused(tags: Any, tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "a.tif", noise(16, 24), tags=tags)
    with pytest.raises(DataError, match=r"a\.tif holds 5 images of 16x24 px.*array"):
        read_pixels(file)


def test_one_image_of_imagej_is_read(tmp_path: Path) -> None:
    note = {DESCRIPTION: (ASCII, "ImageJ=1.54f\nunit=micron\n")}
    file = write_tiff(tmp_path / "a.tif", noise(16, 24), tags=note)
    assert np.array_equal(read_pixels(file)[0], noise(16, 24))


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """Pillow reads the header of the file for a strip that is not stored."""
    file = write_tiff(tmp_path / "a.tif", noise(16, 24), tags={STRIP_PLACES: (LONG, [0])})
    with pytest.raises(DataError, match=r"a\.tif.*sparse.*gdal_translate"):
        read_pixels(file)


def test_the_page_of_an_opened_image_is_the_one_that_was_chosen(tmp_path: Path) -> None:
    file = write_pages(tmp_path / "a.tif", [(16, 24)] * 3)
    with Image.open(file) as image:
        image.seek(2)
        assert np.array_equal(read_pixels(image)[0], noise(16, 24, seed=2))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_read_and_the_others_are_counted(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Image.fromarray(noise(16, 24)).convert("P" if suffix == "gif" else "RGB")
    others = [Image.fromarray(noise(16, 24, seed=k)).convert(first.mode) for k in (1, 2)]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    file = tmp_path / f"a.{suffix}"
    first.save(file, save_all=True, append_images=others, **options)
    expected = torch.from_numpy(np.array(first.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_pixels(file), expected)
    assert f"a.{suffix} is an animation of 3 frames, of which the first is read" in caplog.text
    caplog.clear()
    read_pixels(file)  # of the next epoch
    assert not caplog.text


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_picture_of_one_frame_is_no_animation(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(noise(16, 24)).save(tmp_path / f"a.{suffix}")
    read_pixels(tmp_path / f"a.{suffix}")
    assert not caplog.text
