"""Maps of surface normals as files of three bands and as colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import kit

from dinoneck import Task
from dinoneck.data import Preprocessing
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
    assert np.array_equal(kit.read_bands(file), vectors, equal_nan=True)


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


def test_without_rasterio_the_maps_are_refused_by_its_extra(tmp_path: Path) -> None:
    with kit.without("rasterio"), pytest.raises(ImportError, match="dinoneck\\[geo\\]"):
        write_maps(tmp_path, "a", {"normals": noise()}, [NORMALS])
    assert not list(tmp_path.iterdir())
