"""Masks that lie elsewhere on the ground than their images, and images of one ground, are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tests.unit.data.tiff_files import write_tiff

from dinoneck.data import read_folders, read_masks
from dinoneck.data.ground import Place, read_place, warn_of_other_places, warn_of_overlaps
from dinoneck.data.table import Table
from dinoneck.training.config import TrainConfig
from dinoneck.training.masks import masks_of
from dinoneck.training.table import table_of

SIZE = (40, 60)  # height and width of all files, in pixels
DOUBLE = 12
SHORT = 3
TEXT_OF_KEYS = 34737


def geotiff(
    path: Path,
    x: float = 500_000.0,
    y: float = 5_400_000.0,
    *,
    pixel: float = 0.5,
    system: int = 32632,
    is_point: bool = False,
    matrix: Sequence[float] | None = None,
    note: str = "",
) -> Path:
    """Write a GeoTIFF of noise whose upper left corner is at (x, y); ``note`` describes its system in words."""
    tags = ImageFileDirectory_v2()
    if matrix is None:
        tags[33550] = (pixel, pixel, 0.0)
        tags[33922] = (0.0, 0.0, 0.0, x, y, 0.0)
    else:
        tags[34264] = tuple(matrix)
    for tag in (33550, 33922, 34264):
        tags.tagtype[tag] = DOUBLE
    keys = [1025, 0, 1, 2 if is_point else 1]
    if note:
        keys += [1026, TEXT_OF_KEYS, len(note), 0]
        tags[TEXT_OF_KEYS] = note
    keys += [3072, 0, 1, system]
    tags[34735] = (1, 1, 0, len(keys) // 4, *keys)
    tags.tagtype[34735] = SHORT
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 2, SIZE, np.uint8)
    Image.fromarray(pixels).save(path, tiffinfo=tags)
    return path


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    return path


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# Places
# ----------------------------------------------------------------------------------------------------


def test_a_place_is_read_from_the_tags_of_a_geotiff(tmp_path: Path) -> None:
    place = read_place(geotiff(tmp_path / "0.tif", 500_000, 5_400_000, pixel=0.5))
    assert place == Place(0.5, 0, 500_000, 0, -0.5, 5_400_000, "EPSG 32632")


def test_a_place_is_read_beside_a_description_in_words(tmp_path: Path) -> None:
    described = geotiff(tmp_path / "0.tif", note="WGS 84 / UTM zone 32N|")

    place = read_place(described)

    assert place == Place(0.5, 0, 500_000, 0, -0.5, 5_400_000, "EPSG 32632")


def test_a_matrix_and_the_middle_of_a_pixel_are_read_as_its_corner(tmp_path: Path) -> None:
    matrix = (2.0, 0, 0, 101.0, 0, -2.0, 0, 49.0, 0, 0, 0, 0, 0, 0, 0, 1)
    place = read_place(geotiff(tmp_path / "0.tif", matrix=matrix, is_point=True))
    assert place == Place(2, 0, 100, 0, -2, 50, "EPSG 32632")


@pytest.mark.parametrize("name", ["0.pgw", "0.pngw", "0.wld"])
def test_a_world_file_states_the_middle_of_the_first_pixel(tmp_path: Path, name: str) -> None:
    file = png(tmp_path / "0.png")
    (tmp_path / name).write_text("2\n0\n0\n-2\n101\n49\n")
    assert read_place(file) == Place(2, 0, 100, 0, -2, 50)


def test_a_note_of_gdal_states_a_place(tmp_path: Path) -> None:
    file = png(tmp_path / "0.png")
    note = "<PAMDataset><GeoTransform> 1.0e+02, 2.0, 0.0, 50, 0.0, -2.0</GeoTransform></PAMDataset>"
    (tmp_path / "0.png.aux.xml").write_text(note)
    assert read_place(file) == Place(2, 0, 100, 0, -2, 50)


def test_a_note_of_gdal_without_a_place_leaves_the_world_file(tmp_path: Path) -> None:
    file = png(tmp_path / "0.png")
    (tmp_path / "0.png.aux.xml").write_text("<PAMDataset><SRS>EPSG:32632</SRS></PAMDataset>")
    (tmp_path / "0.pgw").write_text("2\n0\n0\n-2\n101\n49\n")

    place = read_place(file)

    assert place == Place(2, 0, 100, 0, -2, 50)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("1\n0\n0\n-1\n0.5\n-0.5\n", id="pixels from 0"),
        pytest.param("0\n0\n0\n0\n500\n600\n", id="pixels without a size"),
        pytest.param("1 2 3", id="three numbers"),
        pytest.param("a b c d e f", id="words"),
    ],
)
def test_files_without_coordinates_or_of_pixels_from_0_have_no_place(
    tmp_path: Path, text: str
) -> None:
    file = png(tmp_path / "0.png")
    (tmp_path / "0.pgw").write_text(text)
    assert read_place(file) is None


# Masks and their images
# ----------------------------------------------------------------------------------------------------

ONE_TILE = {"x": 500_000 + 0.5 * 60}
SOUTH_FIRST = {
    "matrix": (0.5, 0, 0, 500_000, 0, 0.5, 0, 5_400_000 - 20, 0, 0, 0, 0, 0, 0, 0, 1),
}


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (ONE_TILE, "shifted by 60 px against"),
        ({"pixel": 1.0}, "of pixels 2 times as large as those of"),
        ({"system": 32633}, "in EPSG 32633 and not in EPSG 32632 as"),
        (SOUTH_FIRST, "mirrored, its first row south and not north, against"),
    ],
)
def test_a_mask_that_lies_elsewhere_than_its_image_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mask: dict[str, object], words: str
) -> None:
    images = [geotiff(tmp_path / f"images/{i}.tif") for i in range(3)]
    masks = [geotiff(tmp_path / f"masks/{i}.tif") for i in range(2)]
    masks.append(geotiff(tmp_path / "masks/2.tif", **mask))  # type: ignore[arg-type]
    warn_of_other_places(images, masks, [SIZE] * 3, "mask")
    [line] = lines_of(caplog)
    assert line.startswith(
        f"1 of 3 masks with coordinates lie elsewhere than their images, such as {masks[2]}, which "
        f"is {words} {images[2]}"
    )


@pytest.mark.parametrize("mask", [{}, {"x": 500_000.25}, {"is_point": True}])
def test_masks_within_a_pixel_of_their_images_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mask: dict[str, object]
) -> None:
    image = geotiff(tmp_path / "images/0.tif")
    label = geotiff(tmp_path / "masks/0.tif", **mask)  # type: ignore[arg-type]
    warn_of_other_places([image], [label], [SIZE], "mask")
    assert not caplog.records


def test_masks_without_coordinates_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = geotiff(tmp_path / "images/0.tif")
    labels = [png(tmp_path / "masks/0.png"), np.zeros(SIZE, np.uint8)]
    warn_of_other_places([image, image], labels, [SIZE] * 2, "mask")
    assert not caplog.records


def test_training_and_evaluation_compare_the_masks_of_a_table_with_its_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(2):
        geotiff(tmp_path / f"images/{i}.tif", x=500_000 + 30 * i)
        geotiff(tmp_path / f"masks/{i}.tif", x=500_000 + 30 * (1 - i))
    table = read_masks(tmp_path / "images", tmp_path / "masks")
    masks_of(Table.from_frame(table))
    [line] = lines_of(caplog)
    assert line.startswith("2 of 2 masks with coordinates lie elsewhere")


# Images of one ground
# ----------------------------------------------------------------------------------------------------


def tiles(root: Path, step: float) -> list[Path]:
    """Four tiles from west to east, each ``step`` of its width after the one before."""
    return [geotiff(root / f"{i}.tif", x=500_000 + 30 * step * i) for i in range(4)]


def test_images_that_overlap_on_the_ground_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = tiles(tmp_path, step=0.8)
    warn_of_overlaps(files)
    [line] = lines_of(caplog)
    assert line.startswith(
        "3 images show ground that another one shows too, by their coordinates, such as "
        f"{files[0]} and {files[1]}: "
    )


@pytest.mark.parametrize("step", [1.0, 0.95, 1.5])
def test_tiles_that_touch_or_share_an_edge_do_not_overlap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: float
) -> None:
    warn_of_overlaps(tiles(tmp_path, step))
    assert not caplog.records


def test_images_of_other_systems_or_rows_of_tiles_do_not_overlap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [geotiff(tmp_path / "0.tif"), geotiff(tmp_path / "1.tif", system=32633)]
    files.append(geotiff(tmp_path / "2.tif", y=5_400_000 - 20))
    warn_of_overlaps(files)
    assert not caplog.records


def test_turned_images_are_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = (0.4, 0.3, 0, 500_000, 0.3, -0.4, 0, 5_400_000, 0, 0, 0, 0, 0, 0, 0, 1)
    files = [geotiff(tmp_path / f"{i}.tif", matrix=turned) for i in range(2)]

    warn_of_overlaps(files)

    assert not caplog.records


def placed_by_note(file: Path, x: float) -> Path:
    """State the place of a file in the notes of GDAL beside it."""
    note = f"<PAMDataset><GeoTransform>{x}, 0.5, 0, 5400000, 0, -0.5</GeoTransform></PAMDataset>"
    Path(f"{file}.aux.xml").write_text(note)
    return file


def test_images_of_many_bands_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for i in range(2):
        file = write_tiff(tmp_path / f"{i}.tif", np.zeros((*SIZE, 5), np.uint8))
        files.append(placed_by_note(file, x=500_000 + 3 * i))

    warn_of_overlaps(files)

    [line] = lines_of(caplog)
    assert line.startswith("1 image shows ground that another one shows too")


def test_damaged_images_are_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = []
    for i in range(2):
        file = tmp_path / f"{i}.tif"
        file.write_bytes(b"no picture")
        files.append(placed_by_note(file, x=500_000 + 3 * i))

    warn_of_overlaps(files)

    assert not caplog.records


def test_images_of_one_ground_in_one_part_are_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = tiles(tmp_path, step=0.5)
    part_of = {files[0]: "a", files[1]: "a", files[2]: "b", files[3]: "b"}
    warn_of_overlaps(files, part_of)
    [line] = lines_of(caplog)
    assert line.startswith("1 image shows ground that another one shows too")
    assert f"such as {files[1]} and {files[2]}: " in line


@pytest.mark.parametrize("options", [{}, {"labels": "masks"}])
def test_a_training_of_folders_names_images_of_one_ground_and_reading_alone_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, str]
) -> None:
    tiles(tmp_path / "images", step=0.5)
    tiles(tmp_path / "masks", step=0.5)
    read_masks(tmp_path / "images", tmp_path / "masks")
    assert not caplog.records
    images = tmp_path / "images" if options else tmp_path
    data = {"images": str(images)} | {name: str(tmp_path / path) for name, path in options.items()}
    table_of(TrainConfig.from_dict({"data": data, "backbone": {"name": "dinoneck_tiny"}}))
    lines = [line for line in lines_of(caplog) if "show ground" in line]
    assert len(lines) == 1
    assert lines[0].startswith("3 images show ground")


def test_train_and_val_of_one_ground_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "val"):
        for i, name in enumerate(("crop", "weed")):
            geotiff(tmp_path / part / name / f"{part}.tif", y=5_400_000 - 20 * i)
    read_folders(tmp_path)
    lines = [line for line in lines_of(caplog) if "show ground" in line]
    assert len(lines) == 1
    assert lines[0].startswith("2 images show ground")
    assert lines[0].endswith("Move the images of one ground into one part")
