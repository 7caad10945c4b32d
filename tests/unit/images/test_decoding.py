"""Every road of decoding gives the pixels that Pillow gives, upright: formats, modes, depths and EXIF orientations."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from tests.unit.test_orientation import FORMS, HEIGHT, ORIENTATIONS, WIDTH, scene, write

from dinoneck import DataError
from dinoneck.data import Preprocessing, read_image_size, to_image_pixels
from dinoneck.images import decoding
from dinoneck.images.decoding import fast_decoder, read_pixels

Pixels = np.ndarray[Any, Any]
ROADS = ("torchcodec", "torchvision", "pillow")


def operator_of(road: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The operator of one library, as :func:`fast_decoder` gives it where it is the first one installed."""
    if road == "pillow":
        return None
    if road == "torchcodec":
        pytest.importorskip("torchcodec.decoders")
    with pytest.MonkeyPatch.context() as patch:
        if road == "torchvision":
            patch.setitem(sys.modules, "torchcodec", None)
        return fast_decoder.__wrapped__()


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Decoding by one library; the list names what its operator decoded."""
    used, operator = list[str](), operator_of(request.param)

    def counted(raw: torch.Tensor) -> torch.Tensor:
        used.append("jpeg")
        return operator(raw)  # type: ignore[misc]

    monkeypatch.setattr(decoding, "fast_decoder", lambda: operator and counted)
    yield used
    assert used or request.param == "pillow" or request.node.originalname not in FAST_TESTS


FAST_TESTS = (
    "test_every_form_is_read_as_pillow_reads_it",
    "test_eight_orientations_of_one_scene_are_one_image",
)


def drawn(mode: str, seed: int = 0) -> Image.Image:
    """Smooth colours with noise, 41 x 27 px, in a mode of Pillow."""
    noise = np.random.RandomState(seed).randint(0, 256, (7, 11, 3), np.uint8)
    image = Image.fromarray(noise).resize((41, 27), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        image.putalpha(
            Image.fromarray(np.linspace(0, 255, 27 * 41).reshape(27, 41).astype(np.uint8))
        )
        return image
    return image.convert(mode)


def deep(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 27 * 41).reshape(27, 41).astype(np.uint16))


# name -> mode, suffix, options of saving
EIGHT_BITS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"jpeg {mode}": (mode, "jpg", {"quality": 90}) for mode in ("RGB", "L", "CMYK")},
    "jpeg 4:2:0 progressive": (
        "RGB",
        "jpg",
        {"quality": 85, "subsampling": 2, "progressive": True},
    ),
    **{f"png {mode}": (mode, "png", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")},
    "png 4 bit": ("P", "png", {"bits": 4}),
    "png P with transparency": ("P", "png", {"transparency": b"\x00\x80"}),
    "webp": ("RGB", "webp", {"lossless": True}),
    "webp RGBA": ("RGBA", "webp", {"lossless": True}),
    **{f"tiff {mode}": (mode, "tif", {}) for mode in ("RGB", "L", "1", "P", "CMYK", "RGBA")},
    "tiff LZW": ("RGB", "tif", {"compression": "tiff_lzw"}),
    "bmp": ("RGB", "bmp", {}),
}


@pytest.mark.parametrize("form", EIGHT_BITS)
def test_every_form_is_read_as_pillow_reads_it(form: str, road: list[str], tmp_path: Path) -> None:
    mode, suffix, options = EIGHT_BITS[form]
    file = tmp_path / f"a.{suffix}"
    drawn(mode).save(file, **options)
    with file.open("rb") as opened, Image.open(opened) as image:
        plain = (
            image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        )
        expected = np.asarray(plain.convert("RGB"))
    found = read_pixels(file)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 27, 41))
    assert np.array_equal(found.permute(1, 2, 0), expected)
    assert read_image_size(file) == (27, 41)
    if form not in ("jpeg RGB", "jpeg L", "jpeg 4:2:0 progressive"):
        road.append("by Pillow on purpose")


@pytest.mark.parametrize("form", FORMS)
def test_eight_orientations_of_one_scene_are_one_image(
    form: str, road: list[str], tmp_path: Path
) -> None:
    suffix, options, largest = FORMS[form]
    half, corner = (
        Preprocessing(16, size=(HEIGHT // 2, WIDTH // 2)),
        torch.tensor([WIDTH / 2.0, HEIGHT / 2.0]),
    )
    for i in ORIENTATIONS:
        file = write(tmp_path / f"{i}.{suffix}", scene(), i, options)
        for given in (file, Image.open(file)):
            assert read_image_size(given) == (HEIGHT, WIDTH), i
            found = read_pixels(given).permute(1, 2, 0).numpy().astype(int)
            assert found.shape == (HEIGHT, WIDTH, 3), i
            assert np.abs(found - scene()).max() <= largest, i
            assert to_image_pixels(corner, half, given).tolist() == [WIDTH, HEIGHT], i
            assert read_image_size(given) == (HEIGHT, WIDTH), f"{i}, after it was decoded"
    if form != "JPEG":
        road.append("by Pillow on purpose: the orientation")


def test_an_orientation_in_the_text_of_a_png_counts(road: list[str], tmp_path: Path) -> None:
    """ImageMagick writes EXIF as text, other programs the orientation alone in XMP."""
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = b"Exif\x00\x00" + exif.tobytes().removeprefix(b"Exif\x00\x00")
    as_text, as_xmp = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    as_text.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}")
    as_xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>', zip=True)
    for info in (as_text, as_xmp):
        drawn("RGB").save(tmp_path / "a.png", pnginfo=info)
        assert np.array_equal(
            read_pixels(tmp_path / "a.png").permute(1, 2, 0), np.asarray(drawn("RGB"))[::-1, ::-1]
        )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_files_keep_their_range(suffix: str, road: list[str], tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    deep(0, 65535).save(file)
    expected = np.asarray(deep(0, 65535)).astype(np.float32) / 65535
    assert np.array_equal(read_pixels(file), np.repeat(expected[None], 3, axis=0))


@pytest.mark.parametrize(
    ("suffix", "options"), [(suffix, options) for suffix, options, _ in FORMS.values()]
)
def test_files_that_are_cut_short_are_refused_by_name(
    suffix: str, options: dict[str, Any], road: list[str], tmp_path: Path
) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)).save(
        whole, **options
    )
    content = whole.read_bytes()
    for length in (0, 1, 20, len(content) // 3, len(content) // 2, len(content) - 600):
        cut.write_bytes(content[:length])
        with warnings.catch_warnings(), pytest.raises(DataError, match=rf"cut\.{suffix}"):
            warnings.simplefilter("ignore")  # Pillow warns of damaged TIFF directories
            read_pixels(cut)


def test_a_jpeg_that_states_its_orientation_in_xmp_is_turned(
    road: list[str], tmp_path: Path
) -> None:
    drawn("RGB").save(
        tmp_path / "a.jpg", quality=95, xmp=b'<rdf:Description tiff:Orientation="6"/>'
    )
    drawn("RGB").save(tmp_path / "b.jpg", quality=95)
    assert torch.equal(
        read_pixels(tmp_path / "a.jpg"), torch.rot90(read_pixels(tmp_path / "b.jpg"), -1, (1, 2))
    )


def test_a_jpeg_with_an_appendix_is_read_whole(road: list[str], tmp_path: Path) -> None:
    drawn("RGB").save(tmp_path / "a.jpg")
    expected = read_pixels(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"appendix")
    assert torch.equal(read_pixels(tmp_path / "b.jpg"), expected)


def test_a_decoder_is_chosen_without_a_warning(tmp_path: Path) -> None:
    drawn("RGB").save(tmp_path / "a.jpg")
    assert fast_decoder() is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pixels(tmp_path / "a.jpg").dtype == torch.uint8


def test_an_orientation_that_is_no_number_turns_nothing(tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / "a.webp"
    exif[0x112] = 6
    drawn("RGB").save(path, exif=exif)
    raw, entry = path.read_bytes(), b"\x12\x01\x03\x00"
    little = raw.replace(entry, b"\x12\x01\x07\x00").replace(
        b"\x01\x12\x00\x03", b"\x01\x12\x00\x07"
    )
    path.write_bytes(little)
    assert little != raw
    assert read_image_size(path) == read_pixels(path).shape[-2:] == drawn("RGB").size[::-1]


def test_an_array_with_an_alpha_channel_is_read_without_it() -> None:
    array = np.random.RandomState(0).randint(0, 256, (5, 7, 4), np.uint8)

    pixels = read_pixels(array)

    assert np.array_equal(pixels.permute(1, 2, 0), array[..., :3])


def test_the_size_of_a_tensor_of_many_bands_is_that_of_its_last_axes() -> None:
    assert read_image_size(torch.zeros(5, 8, 9)) == (8, 9)


def test_the_size_of_an_array_of_many_bands_is_that_of_its_first_axes() -> None:
    assert read_image_size(np.zeros((8, 9, 6), np.float32)) == (8, 9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_tensor_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    image = torch.zeros(3, 8, 9, dtype=dtype)

    with pytest.raises(DataError, match=str(dtype)):
        read_pixels(image)


def test_floats_of_more_than_64_bits_are_read() -> None:
    image = np.linspace(0, 1, 3 * 8 * 9).reshape(8, 9, 3).astype(np.longdouble)

    pixels = read_pixels(image)

    assert torch.equal(pixels, read_pixels(image.astype(np.float32)))


def test_a_jpeg_with_bytes_between_its_segments_is_read(road: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "plain.jpg"
    drawn("RGB").save(plain)
    content = plain.read_bytes()
    start = content.index(b"\xff\xdb")
    (tmp_path / "junk.jpg").write_bytes(content[:start] + b"\0\0" + content[start:])

    pixels = read_pixels(tmp_path / "junk.jpg")

    assert torch.equal(pixels, read_pixels(plain))
