"""Maps of surface normals as files of three bands and as colours."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dinoneck.images.vector_tiffs import encode_vectors, is_vector_tiff, read_vectors
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tests import kit

from dinoneck import Task
from dinoneck.data import Preprocessing
from dinoneck.errors import DataError
from dinoneck.viz import ReportEntry, html_report, overlay_panel, write_maps
from dinoneck.viz.style import NODATA, normal_colours

NORMALS = Task("normals", kind="dense", dim=3, activation="unit")

DIRECTIONS = [
    pytest.param((0.0, 0.0, 1.0), (128, 128, 255), id="faces the camera"),
    pytest.param((0.0, 0.0, -1.0), (128, 128, 0), id="faces away"),
    pytest.param((0.0, 1.0, 0.0), (128, 255, 128), id="a floor"),
    pytest.param((0.0, -1.0, 0.0), (128, 0, 128), id="a ceiling"),
    pytest.param((1.0, 0.0, 0.0), (255, 128, 128), id="a wall on the right"),
    pytest.param((-1.0, 0.0, 0.0), (0, 128, 128), id="a wall on the left"),
]


@pytest.mark.parametrize(("normal", "colour"), DIRECTIONS)
def test_directions_have_the_usual_colours(
    normal: tuple[float, float, float], colour: tuple[int, int, int]
) -> None:
    [[drawn]] = normal_colours(np.array(normal)[:, None, None])
    assert np.abs(drawn - colour).max() <= 0.5


@pytest.mark.parametrize(("normal", "colour"), DIRECTIONS)
def test_a_picture_shows_the_colours_in_place_of_the_image(
    normal: tuple[float, float, float], colour: tuple[int, int, int]
) -> None:
    cells = np.tile(np.array(normal, np.float32)[:, None, None], (1, 4, 6))
    result = {"maps": {"normals": cells}}
    image = Image.new("RGB", (96, 64), "white")
    picture = overlay_panel(image, result, [NORMALS], Preprocessing(16, resize="keep"))
    pixel = picture.getpixel((600, 400))
    assert np.abs(np.subtract(pixel, colour)).max() <= 1


def test_pixels_without_a_normal_show_the_image_and_unseen_ones_are_hatched() -> None:
    cells = np.zeros((3, 2, 2), np.float32)
    image = Image.new("RGB", (160, 32), "white")
    recipe = Preprocessing(16, size=(32, 32), resize="crop")
    picture = overlay_panel(image, {"maps": {"normals": cells}}, [NORMALS], recipe)
    assert picture.getpixel((600, 120)) == (244, 244, 244)
    left = np.asarray(picture)[:240, :100].reshape(-1, 3)
    assert {tuple(pixel) for pixel in left.tolist()} == {(244, 244, 244), NODATA}


def noise() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    vectors[:, 2, 3] = np.nan
    return vectors


def test_a_map_of_normals_is_one_tiff_of_three_bands_of_floats(tmp_path: Path) -> None:
    vectors = noise()
    [file] = write_maps(tmp_path, "a", {"normals": vectors}, [NORMALS])
    assert file == tmp_path / "a.tif"
    assert is_vector_tiff(file)
    stored, orientation = read_vectors(file)
    assert np.array_equal(stored, vectors, equal_nan=True)
    assert orientation == 1


def test_a_report_explains_the_colours_of_normals() -> None:
    cells = np.zeros((3, 2, 4), np.float32)
    cells[2] = 1.0
    entry = ReportEntry("a.jpg", {"maps": {"normals": cells}}, np.full((32, 64, 3), 100, np.uint8))

    page = html_report([entry], [NORMALS])

    assert (
        "Normals are blue where a surface faces the camera, green up and red to the left." in page
    )


def test_other_maps_have_folders_beside_it(tmp_path: Path) -> None:
    depth = Task("depth", kind="dense")
    maps = {"normals": noise(), "depth": np.zeros((1, 7, 5), np.float32)}
    files = write_maps(tmp_path, "a", maps, [NORMALS, depth])
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "normals/a.tif",
        "depth/a.tif",
    ]


def test_the_tags_of_the_file_are_those_of_tiff_6(tmp_path: Path) -> None:
    """As another reader of tags sees them: Pillow's."""
    file = tmp_path / "a.tif"
    file.write_bytes(encode_vectors(noise()))
    contents = file.read_bytes()
    tags = ImageFileDirectory_v2(contents[:8])
    with file.open("rb") as stream:
        stream.seek(tags.next)
        tags.load(stream)
    assert {number: tags[number] for number in (256, 257, 258, 259, 262, 277, 278, 284, 339)} == {
        256: 5,
        257: 7,
        258: (32, 32, 32),
        259: 8,
        262: 2,
        277: 3,
        278: 7,
        284: 1,
        339: (3, 3, 3),
    }
    assert tags.next == 0


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    contents = encode_vectors(np.zeros((3, 64, 64), np.float32))
    file = tmp_path / "a.tif"
    width = contents.index(b"\x00\x01\x04\x00\x01\x00\x00\x00\x40")  # of the tag ImageWidth
    file.write_bytes(contents[: width + 8] + b"\xff" + contents[width + 9 :])
    with pytest.raises(DataError, match=r"a\.tif holds 49152 bytes of 195840: it is cut off"):
        read_vectors(file)


def big_tiff(
    path: Path,
    size: tuple[int, int],
    strip: bytes,
    *,
    offsets: Sequence[int] = (16,),
    byte_counts: Sequence[int] | None = None,
) -> Path:
    """A BigTIFF of three bands of floats, compressed by Deflate, whose one strip begins at byte 16."""
    if byte_counts is None:
        byte_counts = [len(strip)] * len(offsets)
    height, width = size
    entries = {
        256: [width],
        257: [height],
        258: [32, 32, 32],
        259: [8],
        262: [2],
        273: offsets,
        277: [3],
        279: byte_counts,
        284: [1],
        339: [3, 3, 3],
    }
    directory_offset = 16 + len(strip)
    values_offset = directory_offset + 8 + 20 * len(entries) + 8
    directory = struct.pack("<Q", len(entries))
    values = b""
    for tag, numbers in entries.items():
        directory += struct.pack("<HHQ", tag, 16, len(numbers))  # 16: integers of 64 bits
        if len(numbers) == 1:
            directory += struct.pack("<Q", numbers[0])
        else:
            directory += struct.pack("<Q", values_offset + len(values))
            values += struct.pack(f"<{len(numbers)}Q", *numbers)
    header = b"II" + struct.pack("<HHHQ", 43, 8, 0, directory_offset)
    path.write_bytes(header + strip + directory + bytes(8) + values)
    return path


FOUR_PIXELS = zlib.compress(np.ones((2, 2, 3), "<f4").tobytes())
BOMB = zlib.compress(bytes(1 << 22))


def test_a_big_tiff_is_read(tmp_path: Path) -> None:
    stored, _ = read_vectors(big_tiff(tmp_path / "a.tif", (2, 2), FOUR_PIXELS))
    assert np.array_equal(stored, np.ones((3, 2, 2)))


@pytest.mark.parametrize("byte_count", [1 << 62, (1 << 64) - 1], ids=["2^62", "2^64 - 1"])
def test_a_byte_count_beyond_the_file_is_bounded_by_the_file(
    byte_count: int, tmp_path: Path
) -> None:
    file = big_tiff(tmp_path / "a.tif", (2, 2), FOUR_PIXELS, byte_counts=[byte_count])
    stored, _ = read_vectors(file)
    assert np.array_equal(stored, np.ones((3, 2, 2)))


@pytest.mark.parametrize(
    ("size", "offsets", "message"),
    [
        pytest.param(
            (4, 0), [16], r"4 x 0 px \(height x width\); expected 1 or more", id="width 0"
        ),
        pytest.param((0, 4), [16], "0 x 4 px", id="height 0"),
        pytest.param((1 << 20, 1 << 20), [16], "Pillow opens at most", id="too many pixels"),
        pytest.param((2, 2), [1 << 63], f"begins at byte {1 << 63}", id="beyond the file"),
        pytest.param((8000, 8000), [16] * 200, "its strips overlap", id="one strip many times"),
    ],
)
def test_a_small_file_cannot_fill_the_memory(
    size: tuple[int, int], offsets: list[int], message: str, tmp_path: Path
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            read_vectors(big_tiff(tmp_path / "a.tif", size, BOMB, offsets=offsets))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 1 << 26  # each strip has 2^22 bytes, and the files about 2^13


def test_another_form_needs_rasterio(tmp_path: Path) -> None:
    contents = bytearray(encode_vectors(noise()))
    compression = contents.index(b"\x03\x01\x03\x00\x01\x00\x00\x00\x08")
    contents[compression + 8] = 5  # LZW
    file = tmp_path / "a.tif"
    file.write_bytes(bytes(contents))
    error = pytest.raises(DataError, match="in a form that is not read without rasterio")
    with kit.without("rasterio"), error:
        read_vectors(file)
