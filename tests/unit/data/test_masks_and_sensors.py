"""Folders of masks in JPEG or with other names than their images, and pictures of other sensors, are no classes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import read_folders
from dinoneck.data.folders import table_of_folder
from dinoneck.data.layout import read_data_folder
from dinoneck.data.sources import list_pictures

NUMBERS = range(3)


def photos(root: Path, name: str) -> None:
    """Write photos of many colours; ``{}`` in the name is their number."""
    for i in NUMBERS:
        file = name.format(i)
        random = np.random.default_rng(zlib.crc32(file.encode()))
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        save(root / name.format(i), Image.fromarray(pixels))


def black_and_white(root: Path, name: str) -> None:
    """Write pictures of a white square on black."""
    for i in NUMBERS:
        pixels = np.zeros((32, 32), np.uint8)
        pixels[8:24, 8 : 16 + i] = 255
        save(root / name.format(i), Image.fromarray(pixels))


def save(file: Path, image: Image.Image) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("raw/IMG{}.jpg", "masks/mask{}.jpg", id="JPEG, other names"),
        pytest.param("field/{}.jpg", "labels/{}.jpg", id="JPEG, equal names"),
        pytest.param("Bilder/IMG_{}.jpg", "Masken/IMG_{}_mask.png", id="German"),
        pytest.param("imágenes/img{}.jpg", "máscaras/máscara{}.png", id="Spanish"),
        pytest.param("photos/P{}.jpg", "masques/P{}_masque.png", id="French"),
        pytest.param("rgb/P{}_rgb.jpg", "lbl/P{}_lbl.png", id="short words"),
        pytest.param("field/{}.jpg", "masks/{}_mask.png", id="an ending"),
    ],
)
def test_folders_of_masks_are_read_as_masks(images: str, masks: str, tmp_path: Path) -> None:
    photos(tmp_path, images)
    black_and_white(tmp_path, masks)
    table = table_of_folder(read_data_folder(tmp_path))
    expected = [tmp_path / masks.format(i) for i in NUMBERS]
    assert table["labels"].tolist() == expected


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("photos/{}.jpg", "outlines/{}.jpg", id="JPEG, equal names"),
        pytest.param("photos/P{}.jpg", "binary/P{}_bin.png", id="an ending"),
        pytest.param("scans/P{}.jpg", "manual/P{}_manual1.png", id="a word and a number"),
        pytest.param("plots/P{}.jpg", "labelled/P{}_L.png", id="a letter"),
    ],
)
def test_folders_that_may_be_masks_or_a_class_are_refused(
    images: str, masks: str, tmp_path: Path
) -> None:
    photos(tmp_path, images)
    black_and_white(tmp_path, masks)
    image_folder = (tmp_path / images).parent
    mask_folder = (tmp_path / masks).parent
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    expected = f"{mask_folder.name} has an image like a mask for each of {image_folder.name}"
    assert expected in str(error.value)
    assert f"--images {image_folder} --labels {mask_folder}" in str(error.value)
    assert len(read_folders(tmp_path, subfolders="classes")) == 6


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("raw/IMG{}.jpg", "masks/mask{}.jpg", id="beside each other"),
        pytest.param("IMG{}.jpg", "masks/m{}.jpg", id="in the folder of the images"),
    ],
)
def test_masks_in_jpeg_are_no_pictures(images: str, masks: str, tmp_path: Path) -> None:
    photos(tmp_path, images)
    black_and_white(tmp_path, masks)
    [found] = list_pictures([tmp_path]).values()
    assert found == [tmp_path / images.format(i) for i in NUMBERS]


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param("qr_codes/{}.jpg", id="equal names"),
        pytest.param("qr_codes/{}_qr.png", id="an ending"),
    ],
)
def test_a_class_of_black_and_white_pictures_stays_one_with_a_word(
    codes: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "parcels/{}.jpg")
    black_and_white(tmp_path, codes)
    table = read_folders(tmp_path)
    assert list(table["class"].cat.categories) == ["parcels", "qr_codes"]
    [record] = caplog.records
    assert "'qr_codes' is read as a class, and its pictures look like masks" in record.getMessage()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("parcels/a{}.jpg", "qr_codes/b{}.jpg", id="one black and white"),
        pytest.param("parcels/parcels_{}.jpg", "target/target_{}.jpg", id="a word for masks"),
    ],
)
def test_classes_with_names_of_their_own_say_nothing(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, first)
    if "target" in second:
        photos(tmp_path, second)
    else:
        black_and_white(tmp_path, second)
    assert len(read_folders(tmp_path)) == 6
    assert caplog.records == []


def test_classes_that_are_all_black_and_white_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    black_and_white(tmp_path, "0/mask_{}.jpg")
    black_and_white(tmp_path, "target/target_{}.jpg")
    table = read_folders(tmp_path)
    assert list(table["class"].cat.categories) == ["0", "target"]
    assert "look like masks" not in caplog.text


def test_a_folder_called_masks_that_looks_so_is_no_class(tmp_path: Path) -> None:
    photos(tmp_path, "field/IMG{}.jpg")
    black_and_white(tmp_path, "masks/x{}y.jpg")
    with pytest.raises(DataError, match="masks has no mask for 3 images"):
        table_of_folder(read_data_folder(tmp_path))


@pytest.mark.parametrize(
    ("camera", "sensor"),
    [
        pytest.param("color/color_{}.jpg", "depth/depth_{}.jpg", id="a word in each name"),
        pytest.param("rgb/{}.jpg", "ir/{}.jpg", id="equal names"),
        pytest.param("visible/{}.jpg", "thermal/{}.jpg", id="other words"),
        pytest.param("Farbe/{}.jpg", "Tiefe/{}.jpg", id="German"),
        pytest.param("RGB/{}.jpg", "Wärmebild/{}.jpg", id="German with an accent"),
        pytest.param("RGB/{}.jpg", "CIR/{}.jpg", id="colour infrared"),
        pytest.param("RGB/{}.jpg", "NDVI/{}.jpg", id="an index"),
    ],
)
def test_pictures_of_one_scene_by_two_sensors_are_no_classes(
    camera: str, sensor: str, tmp_path: Path
) -> None:
    photos(tmp_path, camera)
    photos(tmp_path, sensor)
    camera_folder = (tmp_path / camera).parent
    sensor_folder = (tmp_path / sensor).parent
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert f"{sensor_folder.name} has a picture for each of {camera_folder.name}" in str(
        error.value
    )
    assert f"Name one folder: --images {camera_folder}" in str(error.value)
    assert len(read_folders(tmp_path, subfolders="classes")) == 6


def test_sensors_whose_pictures_have_other_names_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "rgb/17.{}1.png")
    photos(tmp_path, "depth/18.{}7.png")
    assert len(read_folders(tmp_path)) == 6
    [record] = caplog.records
    assert "depth and rgb are read as classes, and are called like sensors" in record.getMessage()


@pytest.mark.parametrize(
    ("camera", "sensor"),
    [
        pytest.param("crop/{}.jpg", "crop/{}_depth.png", id="an ending"),
        pytest.param("crop/rgb_{}.jpg", "crop/thermal_{}.jpg", id="beginnings"),
        pytest.param("crop/{}_rgb.jpg", "crop/{}_nir.jpg", id="endings"),
        pytest.param("crop/{}/rgb.png", "crop/{}/depth.png", id="whole names"),
        pytest.param(
            "crop/FLIR_{}_RGB.jpg", "crop/FLIR_{}_thermal.jpg", id="a word for both before"
        ),
        pytest.param("crop/DJI_{}_D.jpg", "crop/DJI_{}_MS_NIR.tif", id="a multispectral camera"),
        pytest.param("crop/DJI_{}_V.jpg", "crop/DJI_{}_T.jpg", id="letters of a drone"),
        pytest.param("crop/A{}_f01_ch1.tif", "crop/A{}_f01_ch2.tif", id="channels"),
        pytest.param("crop/w{}_DAPI.tif", "crop/w{}_GFP.tif", id="stains"),
    ],
)
def test_pictures_of_another_sensor_in_a_class_are_counted(
    camera: str, sensor: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, camera)
    photos(tmp_path, sensor)
    photos(tmp_path, "weed/w{}.jpg")
    assert len(read_folders(tmp_path)) == 9
    assert "3 files called like what another sensor took of the scene" in caplog.text
    assert f"{tmp_path / sensor.format(0)} beside {tmp_path / camera.format(0)}" in caplog.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("crop/{}_T.jpg", "crop/{}_V.jpg", id="letters without a drone"),
        pytest.param("crop/{}_color.jpg", "crop/{}_rgb.jpg", id="two words for photos"),
        pytest.param("crop/{}_ch1.jpg", "crop/9{}_ch1.jpg", id="one channel each"),
        pytest.param("crop/{}_B01.jpg", "crop/{}_B02.jpg", id="what may be blocks"),
    ],
)
def test_other_endings_in_a_class_say_nothing(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, first)
    photos(tmp_path, second)
    photos(tmp_path, "weed/w{}.jpg")
    assert len(read_folders(tmp_path)) == 9
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("B02/tile{}.jpg", "B03/tile{}.jpg", id="bands"),
        pytest.param("T1/{}.jpg", "T2/{}.jpg", id="magnetic resonance"),
        pytest.param("DAPI/{}.jpg", "GFP/{}.jpg", id="stains"),
        pytest.param("left/130503145279172{}.jpg", "right/130503145279172{}.jpg", id="times"),
    ],
)
def test_classes_whose_pictures_have_the_same_names_are_named(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, first)
    photos(tmp_path, second)
    assert len(read_folders(tmp_path)) == 6
    [line] = caplog.messages
    assert "are read as classes, and have 3 pictures of the same names" in line


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("left/{}.jpg", "right/{}.jpg", id="counters"),
        pytest.param("oats/IMG_000{}.jpg", "wheat/IMG_000{}.jpg", id="counters of a camera"),
        pytest.param("0/00000_0000{}.jpg", "1/00000_0000{}.jpg", id="two numbers"),
        pytest.param("001/{}.jpg", "002/{}.jpg", id="folders of numbers"),
        pytest.param("plate1/A01_f01_{}.jpg", "plate2/A01_f01_{}.jpg", id="wells of plates"),
        pytest.param("B02/tile{}.jpg", "B03/map{}.jpg", id="bands of other names"),
        pytest.param("oats/2023050112000{}.jpg", "wheat/2024050112000{}.jpg", id="other times"),
    ],
)
def test_classes_whose_pictures_are_counted_alike_say_nothing(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, first)
    photos(tmp_path, second)
    assert len(read_folders(tmp_path)) == 6
    assert caplog.messages == []


def test_classes_that_share_one_name_of_a_picture_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "left/130503145279172{}.jpg")
    photos(tmp_path, "right/240503145279172{}.jpg")
    noise = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "right/1305031452791720.jpg", Image.fromarray(noise))

    table = read_folders(tmp_path)

    assert len(table) == 7
    assert not caplog.records


@pytest.mark.parametrize("ending", ["heatmap", "instance", "superpixels"])
def test_pictures_made_of_others_in_a_class_are_counted(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "crop/{}.jpg")
    photos(tmp_path, f"crop/{{}}_{ending}.png")
    photos(tmp_path, "weed/w{}.jpg")
    assert len(read_folders(tmp_path)) == 9
    assert "3 files called like what programs make of another one" in caplog.text


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("images/{}.jpg", "v1.2/labels/{}.png", id="a folder deeper"),
        pytest.param("images/rgb/{}.jpg", "boundaries/{}.png", id="a folder higher"),
    ],
)
def test_what_looks_like_masks_of_a_folder_elsewhere_is_named(
    images: str, masks: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, images)
    black_and_white(tmp_path, masks)
    [found] = list_pictures([tmp_path]).values()
    assert len(found) == 6
    folder = (tmp_path / masks).parent
    expected = f"{folder} has an image like a mask for each of {(tmp_path / images).parent}"
    assert expected in caplog.text


def test_photos_and_other_names_elsewhere_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "field/a/{}.jpg")
    photos(tmp_path, "{}.png")
    black_and_white(tmp_path, "icons/small/icon{}.png")
    list_pictures([tmp_path])
    assert not caplog.records


def test_masks_of_another_size_below_photos_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "{}.jpg")
    for i in NUMBERS:
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:8] = 255
        save(tmp_path / f"small/{i}.png", Image.fromarray(pixels))

    list_pictures([tmp_path])

    assert not caplog.records


def test_folders_with_the_same_names_are_not_compared_where_there_are_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for day in range(6):
        photos(tmp_path, f"day{day}/field/{{}}.jpg")
    black_and_white(tmp_path, "night/field/{}.png")

    list_pictures([tmp_path])

    assert not caplog.records
