"""What pixels say of files: which look like masks, which like photos; unreadable and huge files say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck.data.mask_pixels import (
    are_flat,
    are_of_one_size,
    has_few_colours,
    has_many_colours,
    is_black_and_white,
    looks_like_photo,
)

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
QUESTIONS = pytest.mark.parametrize(
    "question",
    [
        pytest.param(has_few_colours, id="few colours"),
        pytest.param(has_many_colours, id="many colours"),
        pytest.param(is_black_and_white, id="black and white"),
    ],
)


def save(file: Path, pixels: Pixels) -> Path:
    """Write a picture, a JPEG with many grey levels at its edges."""
    options = {"quality": 50} if file.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(file, **options)
    return file


def noise(*shape: int) -> Pixels:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def drawing() -> Pixels:
    """A white disc on black, whose edge JPEG blurs to many grey levels."""
    rows, columns = np.mgrid[:256, :256]
    is_inside = (rows - 120) ** 2 + (columns - 130) ** 2 < 70**2
    return (255 * is_inside).astype(np.uint8)


@QUESTIONS
def test_a_damaged_file_looks_like_nothing(
    question: Callable[[Path], bool], tmp_path: Path
) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(b"no picture")

    answer = question(file)

    assert answer is False


@QUESTIONS
def test_the_colours_of_a_huge_file_are_not_counted(
    question: Callable[[Path], bool], tmp_path: Path
) -> None:
    file = tmp_path / "0.png"
    Image.new("1", (7_100, 7_100)).save(file, compress_level=1)

    answer = question(file)

    assert answer is False


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((16, 16), np.uint8), id="black"),
        pytest.param(np.full((16, 16), 255, np.uint8), id="white"),
    ],
)
def test_a_picture_of_black_or_white_alone_is_not_black_and_white(
    pixels: Pixels, tmp_path: Path
) -> None:
    file = save(tmp_path / "0.png", pixels)

    assert not is_black_and_white(file)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("0.png", np.uint16, id="PNG of 16 bits"),
        pytest.param("0.tif", np.uint16, id="TIFF of 16 bits"),
        pytest.param("0.tif", np.int32, id="TIFF of 32 bits"),
        pytest.param("0.tif", np.float32, id="TIFF of floats"),
    ],
)
def test_classes_in_wide_numbers_are_few_colours(name: str, dtype: type, tmp_path: Path) -> None:
    classes = np.zeros((32, 32), dtype)
    classes[8:] = 1
    classes[16:] = 300
    file = save(tmp_path / name, classes)

    assert has_few_colours(file)
    assert not has_many_colours(file)


def test_heights_in_floats_are_many_colours(tmp_path: Path) -> None:
    heights = np.linspace(0.0, 5.0, 1024, dtype=np.float32).reshape(32, 32)
    file = save(tmp_path / "0.tif", heights)

    assert has_many_colours(file)
    assert not has_few_colours(file)


def test_jpeg_drawings_beside_photos_are_flat(tmp_path: Path) -> None:
    masks = [save(tmp_path / "mask.jpg", drawing())]
    photos = [save(tmp_path / "photo.png", noise(64, 64, 3))]

    assert are_flat(masks, photos)


def test_jpeg_drawings_beside_jpeg_drawings_are_not_flat(tmp_path: Path) -> None:
    drawings = [save(tmp_path / "0.jpg", drawing())]
    others = [save(tmp_path / "1.jpg", drawing().T.copy())]

    assert has_many_colours(others[0])
    assert not are_flat(drawings, others)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((32, 48), True, id="the same"),
        pytest.param((48, 32), True, id="turned"),
        pytest.param((32, 32), False, id="another"),
    ],
)
def test_sizes_are_compared_up_to_a_turn(
    size: tuple[int, int], expected: bool, tmp_path: Path
) -> None:
    image = save(tmp_path / "image.png", noise(32, 48))
    mask = save(tmp_path / "mask.png", noise(*size))

    assert are_of_one_size([mask], [image]) is expected


def test_a_damaged_mask_has_not_the_size_of_its_image(tmp_path: Path) -> None:
    image = save(tmp_path / "image.png", noise(32, 32))
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"no picture")

    assert not are_of_one_size([mask], [image])


@pytest.mark.parametrize(
    ("name", "shape", "image_shape", "expected"),
    [
        pytest.param("0_1.jpg", (32, 32, 3), (32, 32, 3), True, id="colours"),
        pytest.param("0_1.jpg", (32, 32), (32, 32), True, id="grey JPEG, grey image"),
        pytest.param("0_1.jpg", (32, 32), (32, 32, 3), False, id="grey JPEG, image of colours"),
        pytest.param("0_1.png", (32, 32), (32, 32), False, id="grey PNG, grey image"),
    ],
)
def test_a_grey_file_is_a_photo_only_if_it_is_lossy_and_its_image_is_grey(
    name: str,
    shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    expected: bool,
    tmp_path: Path,
) -> None:
    file = save(tmp_path / name, noise(*shape))
    image = save(tmp_path / "0.png", noise(*image_shape))

    assert looks_like_photo(file, image) is expected
