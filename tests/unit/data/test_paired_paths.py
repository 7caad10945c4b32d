"""Images of one part of a data set, or of one field, are not paired with the masks of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck import DataError
from dinoneck.data import read_masks


def write_pairs(root: Path, images: str, masks: str, *names: str) -> None:
    """Write two images and two masks of equal numbering for each name, which ``{}`` in both folders is."""
    for name in names:
        for number in range(2):
            for file in (f"{images}/{number}.jpg", f"{masks}/{number}.png"):
                path = root / file.format(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(str(path))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("images/{}", "masks/{}", id="parts in folders"),
        pytest.param("{}/images", "{}/masks", id="folders in parts"),
        pytest.param("{}_images", "{}_masks", id="words"),
        pytest.param("{}2017", "masks/{}2017", id="years"),
    ],
)
def test_images_of_val_are_not_paired_with_masks_of_train(
    images: str, masks: str, tmp_path: Path
) -> None:
    write_pairs(tmp_path, images, masks, "train", "val")
    val_masks = tmp_path / masks.format("val")
    with pytest.raises(DataError) as error:
        read_masks(tmp_path / images.format("val"), tmp_path / masks.format("train"))
    assert f"are in {val_masks}. Name the folders of one part" in str(error.value)
    assert len(read_masks(tmp_path / images.format("val"), val_masks)) == 2


def test_the_right_images_are_named_where_the_masks_have_no_other_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}", "masks/{}", "val")
    write_pairs(tmp_path, "images/{}", "unused/{}", "train")
    with pytest.raises(DataError, match="the images of val are in .*images/val"):
        read_masks(tmp_path / "images/train", tmp_path / "masks/val")


def test_names_of_other_parts_without_another_folder_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path / "plots", "{}", "unused", "train")
    write_pairs(tmp_path / "test", "unused", "{}", "masks")
    assert len(read_masks(tmp_path / "plots/train", tmp_path / "test/masks")) == 2
    [record] = caplog.records
    assert "plots/train is called train, and" in record.getMessage()
    assert "test/masks test, and files of one name are read as pairs" in record.getMessage()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("field_A", "field_B", id="letters"),
        pytest.param("day1", "day2", id="numbers"),
        pytest.param("2023-05-01", "2023-06-15", id="dates"),
    ],
)
def test_images_of_one_field_with_masks_of_another_one_are_a_warning(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path, "{}/rgb", "{}/mask", first, second)
    assert len(read_masks(tmp_path / first / "rgb", tmp_path / second / "mask")) == 2
    [record] = caplog.records
    assert f"the masks of {first} are in {tmp_path / first / 'mask'}" in record.getMessage()


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("test/images", "test/masks", id="a folder above both"),
        pytest.param("data/train/rgb", "masks/train", id="one part"),
        pytest.param("train/test_project/rgb", "train/test_project_masks/val/train", id="a part of several"),
        pytest.param("A", "B", id="images and masks by letters"),
        pytest.param("raw/images", "annotated_2/masks", id="other names"),
    ],
)  # fmt: skip
def test_paths_that_agree_say_nothing(
    images: str, masks: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path, images, masks, "")
    assert len(read_masks(tmp_path / images, tmp_path / masks)) == 2
    assert caplog.records == []


def test_the_remedy_for_a_folder_of_parts_is_the_part_of_the_images(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}", "masks/{}", "train", "val")
    with pytest.raises(DataError, match="name that folder, --labels .*masks/val$"):
        read_masks(tmp_path / "images/val", tmp_path / "masks")


def test_the_folder_of_another_part_is_no_remedy(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}", "masks/{}", "train")
    write_pairs(tmp_path, "images/{}", "unused", "val")
    with pytest.raises(DataError) as error:
        read_masks(tmp_path / "images/val", tmp_path / "masks")
    assert "name that folder" not in str(error.value)
    assert "a table pairs other names" in str(error.value)
