"""Masks beside their images in one folder: names and pixels have to agree, and photos stay images."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import read_folders, read_masks
from dinoneck.data.folders import table_of_folder
from dinoneck.data.layout import Content, read_data_folder
from dinoneck.data.masks_beside import masks_beside
from dinoneck.data.sources import list_pictures

NUMBERS = range(3)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def photos(root: Path, name: str, *, size: int = 32, grey: bool = False) -> list[Path]:
    """Write photos of many colours or grey levels; ``{}`` in the name is their number."""
    files = [root / name.format(i) for i in NUMBERS]
    for file in files:
        random = np.random.default_rng(zlib.crc32(file.name.encode()))
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        save(file, pixels[..., 0] if grey else pixels)
    return files


def masks(root: Path, name: str, *, size: int = 32) -> list[Path]:
    """Write masks of three classes; ``{}`` in the name is their number."""
    files = [root / name.format(i) for i in NUMBERS]
    for i, file in enumerate(files):
        pixels = np.zeros((size, size), np.uint8)
        pixels[8:24, 8 : 16 + i] = 1
        pixels[:4] = 2
        save(file, pixels)
    return files


OF_TOOLS = [
    pytest.param("{}.png", "{}_cp_masks.png", id="cellpose"),
    pytest.param("s [x={}].tif", "s [x={}]-labelled.tif", id="QuPath"),
    pytest.param("{}.png", "{}_Simple Segmentation.png", id="ilastik"),
    pytest.param("img{}.tif", "Mask of img{}.tif", id="Fiji"),
    pytest.param("{}.tif", "Classified {}.tif", id="Fiji, Weka"),
    pytest.param("{}.tif", "{}.tif_mask.tif", id="the suffix inside"),
    pytest.param("{}.jpg", "{}_label_ground-truth.png", id="Segments.ai"),
    pytest.param("{}.jpg", "{}.jpg___fuse.png", id="SuperAnnotate"),
    pytest.param("{}_training.tif", "{}_manual1.tif", id="DRIVE"),
    pytest.param("{}.jpg", "{}_ground_truth.png", id="two words"),
    pytest.param("{}.jpg", "{}_Segmentierung.png", id="German"),
    pytest.param("{}.jpg", "{}_binary.png", id="a word that may be one"),
    pytest.param("{}.jpg", "{}GT.png", id="no separator"),
    pytest.param("{}.jpg", "{}Mask.png", id="a capital letter"),
    pytest.param("IMG_{}.jpg", "maskIMG_{}.png", id="a beginning without a separator"),
    pytest.param("IMG_{}.jpg", "IMG_{} (mask).png", id="brackets"),
]


@pytest.mark.parametrize(("image", "mask"), OF_TOOLS)
def test_masks_as_tools_call_them_are_no_pictures(
    image: str, mask: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = photos(tmp_path, image)
    masks(tmp_path, mask)
    [found] = list_pictures([tmp_path]).values()
    assert found == images
    assert "left out: 3 masks beside images" in caplog.text


@pytest.mark.parametrize(("image", "mask"), OF_TOOLS)
def test_a_folder_with_masks_as_tools_call_them_is_trained_on(
    image: str, mask: str, tmp_path: Path
) -> None:
    images = photos(tmp_path, image)
    expected = dict(zip(images, masks(tmp_path, mask), strict=True))
    table = table_of_folder(read_data_folder(tmp_path))
    assert dict(zip(table["images"], table["labels"], strict=True)) == expected


def test_several_kinds_of_masks_of_each_image_are_found(tmp_path: Path) -> None:
    images = photos(tmp_path, "{}.png")
    of_tools = masks(tmp_path, "{}_mask.png")
    of_tools += masks(tmp_path, "{}_color_mask.png")
    of_tools += masks(tmp_path, "{}_watershed_mask.png")
    assert sorted(masks_beside([*images, *of_tools]).masks) == sorted(of_tools)


def test_masks_without_an_image_that_are_called_after_each_other_stay(tmp_path: Path) -> None:
    files = masks(tmp_path, "{}_mask.png") + masks(tmp_path, "{}_maskGT.png")
    [found] = list_pictures([tmp_path]).values()
    assert sorted(found) == sorted(files)


@pytest.mark.parametrize("ending", ["_L", "_matte", "_pixels0", "m"])
def test_files_that_look_like_masks_and_are_not_called_so_are_counted(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [image, *_] = photos(tmp_path, "crop/{}.jpg")
    [mask, *_] = masks(tmp_path, f"crop/{{}}{ending}.png")
    photos(tmp_path, "weed/w{}.jpg")
    assert len(read_folders(tmp_path)) == 9
    expected = f"3 files that look like the mask of another one, such as {mask} beside {image}"
    assert expected in caplog.text


def test_a_folder_of_images_and_what_looks_like_their_masks_is_trained_on(tmp_path: Path) -> None:
    photos(tmp_path, "{}.jpg")
    expected = masks(tmp_path, "{}_L.png")
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["labels"].tolist() == expected


@pytest.mark.parametrize(
    ("image", "other"),
    [
        pytest.param("{}.jpg", "{}-edited.jpg", id="a photo"),
        pytest.param("{}.jpg", "{}_roi.png", id="a photo with a word that may be one"),
        pytest.param("1{}.jpg", "11{}.jpg", id="numbers"),
    ],
)
def test_photos_called_after_others_say_nothing(
    image: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = photos(tmp_path, image) + photos(tmp_path, other)
    [found] = list_pictures([tmp_path]).values()
    assert sorted(found) == sorted(files)
    assert caplog.records == []


def test_flat_pictures_of_another_size_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = photos(tmp_path, "shop{}.jpg") + masks(tmp_path, "shop{}_logo.png", size=24)
    [found] = list_pictures([tmp_path]).values()
    assert sorted(found) == sorted(files)
    assert caplog.records == []


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("word", ["mask", "target"])
def test_photos_called_like_masks_stay_images_of_their_class(
    word: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("faces", "people"):
        photos(tmp_path, f"{name}/{name}{{}}.{suffix}")
        photos(tmp_path, f"{name}/{name}{{}}_{word}.{suffix}")
    assert len(read_folders(tmp_path)) == 12
    assert "6 files called like the mask of another one" in caplog.text


def test_a_grey_photo_of_the_same_name_stays_an_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "crop/{}.jpg")
    photos(tmp_path, "crop/{}.png", grey=True)
    photos(tmp_path, "weed/w{}.jpg")
    assert len(read_folders(tmp_path)) == 9
    assert "3 files called like the mask of another one" in caplog.text


def test_grey_numbers_of_the_same_name_are_the_labels_of_a_folder(tmp_path: Path) -> None:
    photos(tmp_path, "{}.jpg")
    expected = photos(tmp_path, "{}.png", grey=True)
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["labels"].tolist() == expected


# Folders
# ----------------------------------------------------------------------------------------------------


def test_a_class_of_grey_photos_of_the_same_names_stays_one_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "skin/{}.jpg")
    photos(tmp_path, "xray/{}.png", grey=True)
    assert len(read_folders(tmp_path)) == 6
    assert "'xray' is read as a class, and its pictures look like masks" in caplog.text


def test_a_class_of_flat_pictures_of_other_sizes_stays_one_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "shops/{}.jpg")
    masks(tmp_path, "logos/{}.png", size=24)
    assert len(read_folders(tmp_path)) == 6
    assert "'logos' is read as a class, and its pictures look like masks" in caplog.text


def test_a_class_of_flat_pictures_of_the_same_sizes_and_names_is_refused(tmp_path: Path) -> None:
    photos(tmp_path, "shops/{}.jpg")
    masks(tmp_path, "logos/{}.png")
    with pytest.raises(DataError, match="logos has an image like a mask for each of shops"):
        read_folders(tmp_path)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param("roi/{}.png", id="a word"),
        pytest.param("ilastik out/{}_Simple Segmentation.png", id="an ending"),
    ],
)
def test_folders_in_those_of_images_that_may_be_masks_and_look_so_are_masks(
    mask: str, tmp_path: Path
) -> None:
    images = photos(tmp_path, "{}.jpg")
    expected = masks(tmp_path, mask)
    [found] = list_pictures([tmp_path]).values()
    assert found == images
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["labels"].tolist() == expected


def test_a_folder_in_that_of_images_that_looks_like_masks_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "{}.jpg")
    masks(tmp_path, "out/{}.png")
    [found] = list_pictures([tmp_path]).values()
    assert len(found) == 6
    assert f"{tmp_path / 'out'} has an image like a mask for each of {tmp_path}" in caplog.text


@pytest.mark.parametrize(
    ("images", "masks_of_tools"),
    [
        pytest.param("images/{}.tif", "masks/Mask of {}.tif", id="linking words"),
        pytest.param("images/{}.jpg", "masks/{}GT.png", id="no separator"),
        pytest.param("images/img_{}.jpg", "masks/mask_{}.png", id="two beginnings"),
    ],
)
def test_names_of_masks_in_a_folder_may_have_words_more(
    images: str, masks_of_tools: str, tmp_path: Path
) -> None:
    photos(tmp_path, images)
    expected = masks(tmp_path, masks_of_tools)
    table = read_masks(tmp_path / "images", tmp_path / "masks")
    assert table["labels"].tolist() == expected


def test_words_that_may_tell_images_apart_are_not_cut(tmp_path: Path) -> None:
    photos(tmp_path, "images/img_left_{}.jpg")
    masks(tmp_path, "masks/mask_right_{}.png")
    with pytest.raises(DataError, match="has no mask for 3 images"):
        read_masks(tmp_path / "images", tmp_path / "masks")


# Formats of masks alone
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "pgm"])
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        pytest.param("images/{}.jpg", "masks/{}.{suffix}", id="beside each other"),
        pytest.param("{}.jpg", "masks/{}.{suffix}", id="in the folder of the images"),
    ],
)
def test_masks_of_a_folder_may_be_gif_or_pgm(
    image: str, mask: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [first, *_] = photos(tmp_path, image)
    expected = masks(tmp_path, mask.replace("{suffix}", suffix))
    data = read_data_folder(tmp_path)
    assert data.content == Content("masks", first.parent, tmp_path / "masks")
    assert table_of_folder(data)["labels"].tolist() == expected
    assert read_masks(first.parent, tmp_path / "masks")["labels"].tolist() == expected
    assert "other formats" not in caplog.text


def test_gif_masks_of_parts_are_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        photos(tmp_path, f"{part}/{part}{{}}.jpg")
        masks(tmp_path, f"{part}_masks/{part}{{}}_mask.gif")
    data = read_data_folder(tmp_path)
    assert data.parts["val"] == Content("masks", tmp_path / "val", tmp_path / "val_masks")


def test_gif_files_beside_masks_of_another_format_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "images/{}.jpg")
    expected = masks(tmp_path, "masks/{}.png")
    masks(tmp_path, "masks/{}.gif")
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["labels"].tolist() == expected
    assert "left out: 3 files of other formats (.gif)" in caplog.text


def test_two_folders_of_gif_files_that_may_be_masks_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, "images/{}_training.tif")
    masks(tmp_path, "1st_manual/{}_manual1.gif")
    masks(tmp_path, "mask/{}_training_mask.gif")
    with pytest.raises(DataError, match="masks in mask/, and the folders 1st_manual"):
        read_data_folder(tmp_path)
