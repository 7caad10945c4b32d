"""What messages say of folders that cannot be read: the cause, and a remedy that works."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.data.test_folders import drawn, touched

from dinoneck import DataError
from dinoneck.data import read_folders
from dinoneck.data.folders import describe, table_of_folder
from dinoneck.data.layout import read_data_folder


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        table_of_folder(read_data_folder(root))
    return str(error.value)


def test_masks_of_some_images_alone_are_to_be_named_in_a_table(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "train/good/0.png", "test/good/0.png", "test/broken/0.png")
    drawn(tmp_path, "L", "ground_truth/broken/0_mask.png")
    message = refusal(tmp_path)
    assert "There is 1 mask for 3 images: name the pairs in a table" in message
    assert "--subfolders folds" not in message


def test_images_beside_parts_are_no_folds(tmp_path: Path) -> None:
    names = ["train/0", "val/1", "2"]
    touched(tmp_path, *(f"images/{name}.jpg" for name in names))
    touched(tmp_path, *(f"masks/{name}.png" for name in names))
    message = refusal(tmp_path)
    assert f"If they are one set: --images {tmp_path}/images --labels {tmp_path}/masks" in message
    assert "folds" not in message


@pytest.mark.parametrize("suffix", [".gif", ".heic"])
def test_a_folder_of_another_format_says_so(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "train/0.jpg", "train/1.jpg", f"train_masks/0_mask{suffix}")
    expected = f"train_masks holds no images that are read; its files are {suffix}: convert them"
    assert expected in refusal(tmp_path)
    assert caplog.records == []


def test_lists_beside_images_are_no_boxes(tmp_path: Path) -> None:
    touched(tmp_path, "images/apple/0.jpg", "images/cake/0.jpg", "meta/train.txt")
    message = refusal(tmp_path)
    assert "YOLO" not in message
    assert f"Name the folder of the images: --images {tmp_path}/images; meta holds .txt" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("0.txt", "", id="called like an image"),
        pytest.param("x.txt", "0 0.5 0.5 0.1 0.1\n", id="five numbers"),
    ],
)
def test_boxes_beside_images_are_named(name: str, content: str, tmp_path: Path) -> None:
    touched(tmp_path, "images/0.jpg", "images/1.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / name).write_text(content)
    assert "labels holds .txt files, such as YOLO's boxes" in refusal(tmp_path)


def test_one_folder_without_class_folders_is_no_remedy(tmp_path: Path) -> None:
    touched(tmp_path, "val/images/0.jpg", "val/images/1.jpg")
    message = refusal(tmp_path / "val")
    assert f"{tmp_path}/val/images holds images, without class folders" in message
    assert "or name" not in message


def test_one_folder_of_class_folders_is_to_be_named(tmp_path: Path) -> None:
    touched(tmp_path, "all/wheat/0.jpg", "all/oats/0.jpg")
    assert refusal(tmp_path).endswith(f"; or name {tmp_path}/all")
    assert len(read_folders(tmp_path / "all")) == 2


def test_a_test_part_of_one_class_says_why_it_is_not_read(tmp_path: Path) -> None:
    touched(
        tmp_path, "train/a/0.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/3.jpg", "test/a/4.jpg"
    )
    data = read_data_folder(tmp_path)
    text = describe(data, table_of_folder(data))
    assert (
        f"{tmp_path}/test is not read, and its labels cannot be: {tmp_path}/test has 1 folder"
        in text
    )
    assert "has no labels" not in text


def test_a_test_part_without_class_folders_is_said_to_have_no_labels(tmp_path: Path) -> None:
    touched(tmp_path, "train/a/0.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/3.jpg", "test/4.jpg")
    data = read_data_folder(tmp_path)

    text = describe(data, table_of_folder(data))

    assert text.endswith(f"; {tmp_path}/test has no labels and is not read")


def test_pictures_made_of_images_beside_them_are_the_cause(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "p0_rgb.png", "p1_rgb.png", colours=150)
    drawn(tmp_path, "L", "p0_label.png", "p1_label.png", "p0_fg.png", "p1_fg.png", colours=2)
    message = refusal(tmp_path)
    expected = "holds 2 files called like what programs make of another one, such as p0_fg.png beside p0_rgb.png"
    assert expected in message
    for name in ("p0_fg.png", "p1_fg.png"):
        (tmp_path / name).unlink()
    assert len(table_of_folder(read_data_folder(tmp_path))) == 2


def test_folders_of_one_picture_called_after_theirs_are_samples(tmp_path: Path) -> None:
    for name in ("P0", "P1"):
        touched(tmp_path, f"{name}/{name}_image/{name}.bmp", f"{name}/{name}_lesion/{name}.bmp")
    message = refusal(tmp_path)
    assert (
        "each holds folders of one picture that are called after it (P0: P0_image, P0_lesion)"
        in message
    )
    assert len(read_folders(tmp_path, subfolders="classes")) == 4


def test_days_of_a_class_called_after_it_stay_in_it(tmp_path: Path) -> None:
    for name in ("wheat", "oats"):
        touched(tmp_path, *(f"{name}/{name}_day1/{name}{i}.jpg" for i in range(2)))
    assert len(read_folders(tmp_path)) == 4


def test_samples_with_masks_in_shared_folders_are_the_cause(tmp_path: Path) -> None:
    for patient in ("p0", "p1"):
        for nodule in ("n0", "n1"):
            drawn(tmp_path / patient / nodule, "RGB", "images/s.png")
            drawn(tmp_path / patient / nodule, "L", "mask-0/s.png", "mask-1/s.png")
    message = refusal(tmp_path)
    assert "several hold n0, n1, with images and masks in each" in message
    assert "name the image and one mask of each in the rows of a table" in message


def test_numbered_folders_with_masks_are_named_as_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for patient in ("p0", "p1"):
        drawn(tmp_path / patient, "RGB", f"{patient}a.png", f"{patient}b.png", colours=150)
        drawn(tmp_path / patient / "mask", "L", f"{patient}a.png", f"{patient}b.png")
    table = read_folders(tmp_path)
    assert list(table["class"].cat.categories) == ["p0", "p1"]
    assert "p0 and p1 are read as classes, and hold images and masks" in caplog.text
