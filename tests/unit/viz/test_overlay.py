"""Overlays and map files: the colours of a class lie on its pixels, and files read back are the arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from dinoneck import Task
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.viz import overlay_panel, write_maps
from dinoneck.viz.style import CLASSES, NODATA, class_colours

LABELS = ("soil", "crop", "weed")
COVER = Task("cover", dim=3, kind="segmentation", labels=LABELS)
RECIPE = Preprocessing(16)
GREY = np.full((32, 64, 3), 100, np.uint8)


def left_crop_right_weed() -> np.ndarray:
    cells = np.zeros((3, 2, 4))
    cells[1, :, :2], cells[2, :, 2:] = 1, 1
    return cells


def drawn(
    task: Task, cells: np.ndarray, recipe: Preprocessing = RECIPE, image: Any = GREY, **options: Any
) -> np.ndarray:
    values = cells.mean(axis=(1, 2))
    result = {task.name: values if task.dim > 1 else float(values[0]), "maps": {task.name: cells}}
    return np.asarray(overlay_panel(image, result, [task], recipe, **options))


def test_classes_have_their_colours_and_the_ground_has_none() -> None:
    picture = drawn(COVER, left_crop_right_weed())
    assert picture.shape[1] == 1200
    assert picture.shape[0] > 600, "the legend is below"
    ground = 100 * 0.8 + 40
    for x, colour in ((100, CLASSES[0]), (1100, CLASSES[1])):
        expected = ground + 0.85 * (np.array(ImageColor.getrgb(colour)) - ground)
        assert np.abs(picture[300, x] - expected).max() <= 1
    soil = np.zeros((3, 2, 4))
    soil[0] = 1
    assert (drawn(COVER, soil)[:600] == 120).all()


def test_amounts_start_at_zero_and_pixels_that_were_not_seen_are_hatched() -> None:
    recipe = Preprocessing(16, size=(32, 32), resize="crop")
    picture = drawn(
        Task("mass", kind="density", unit="g"), np.ones((1, 2, 2)), recipe, np.zeros((32, 320, 3), np.uint8)
    )
    assert (picture[:120, :400] == NODATA).all(axis=2).mean() > 0.4
    assert not (picture[:120, 560:640] == NODATA).all(axis=2).any()
    assert len(np.unique(picture[:120, 560:640].reshape(-1, 3), axis=0)) == 1, "one amount has one colour"


def test_an_image_without_maps_has_its_numbers() -> None:
    picture = np.asarray(overlay_panel(GREY, {"mass": 3.0}, [Task("mass", unit="g")], RECIPE, known={"mass": 4.0}))
    assert picture[600:].min() < 100
    assert picture.shape[0] > 600


def test_classes_are_written_as_a_palette_png(tmp_path: Path) -> None:
    mask = np.random.RandomState(0).randint(-1, 3, (33, 65))
    [file] = write_maps(tmp_path, "a/1", {"cover": mask}, [COVER])
    assert file == tmp_path / "a" / "1.png"
    with Image.open(file) as image:
        assert image.mode == "P"
        stored, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    assert np.array_equal(stored, np.where(mask == -1, 255, mask))
    for index, colour in enumerate(class_colours(LABELS)):
        assert (colours[mask == index] == (colour or (0, 0, 0))).all()
    assert np.array_equal(DenseLabels(classes=3, nodata=255).indices(file, Preprocessing(1))[0], mask)


def test_values_are_written_as_tiffs_of_32_bits(tmp_path: Path) -> None:
    depth = np.random.RandomState(0).rand(1, 33, 65).astype(np.float32)
    depth[0, 0, 0] = np.nan
    [file] = write_maps(tmp_path / "one", "b", {"depth": depth}, [Task("depth", kind="dense")])
    assert np.array_equal(np.asarray(Image.open(file)), depth[0], equal_nan=True)
    tasks = [Task("depth", kind="dense"), Task("cover/x", dim=2, kind="dense", labels=("a", "b"))]
    shares = np.stack([depth[0], 1 - depth[0]])
    files = write_maps(tmp_path / "two", "b", {"depth": depth, "cover/x": shares}, tasks)
    assert [file.relative_to(tmp_path / "two").as_posix() for file in files] == [
        "depth/b.tif", "cover_x/a/b.tif", "cover_x/b/b.tif",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(files[2])), shares[1], equal_nan=True)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
def test_the_maps_of_a_geotiff_keep_its_position(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    position = {"crs": "EPSG:25832", "transform": rasterio.transform.from_origin(500_000, 5_600_000, 0.1, 0.1)}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=32, width=64, count=3, dtype="uint8", **position
    ):
        pass
    maps = {"cover": np.zeros((32, 64), np.int64), "depth": np.ones((1, 32, 64), np.float32)}
    tasks = [COVER, Task("depth", kind="dense")]
    for file, expected in zip(write_maps(tmp_path / "out", "a", maps, tasks, tmp_path / "a.tif"), (0, 1), strict=True):
        with rasterio.open(file) as written:
            assert (written.crs, written.transform) == (position["crs"], position["transform"])
            assert (written.read(1) == expected).all()


def test_opencv_reads_the_colours_of_the_classes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    mask = np.random.RandomState(0).randint(0, 3, (33, 65))
    [file] = write_maps(tmp_path, "a", {"cover": mask}, [COVER])
    colours = np.array([colour or (0, 0, 0) for colour in class_colours(LABELS)], np.uint8)
    assert np.array_equal(cv2.imread(str(file))[..., ::-1], colours[mask])
