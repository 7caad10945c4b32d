"""Folders of data: what is in them is told by few words, and every ordinary set is read without one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dinoneck import DataError
from dinoneck.data import read_folders, read_masks
from dinoneck.data.folders import describe, read_data_folder, table_of_folder
from dinoneck.data.pairs import Pairing


def touched(root: Path, *names: str) -> Path:
    """Write files that nobody opens: names alone decide."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def classes_of(table: Any) -> dict[str, str]:
    """Id -> class."""
    return dict(zip(table.index, table["class"], strict=True))


def masks_of(table: Any, root: Path) -> dict[str, str]:
    """Id -> mask, relative to a folder."""
    paths = [path.relative_to(root).as_posix() for path in table["labels"]]
    return dict(zip(table.index, paths, strict=True))


def in_each(folders: Iterable[str], *names: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in names]


# Classes
# ----------------------------------------------------------------------------------------------------

CLASSES = [  # the folders, each with two images, what lies there too, and the classes
    pytest.param(["Abyssinian", "american_bulldog"], [], id="pets"),
    pytest.param(["001.Black_footed_Albatross", "002.Laysan_Albatross"], [], id="birds with numbers"),
    pytest.param(["apple_pie", "waffles"], ["meta/classes.txt", "meta/train.json", "license.txt"], id="food with meta"),
    pytest.param(["AnnualCrop", "Forest", "SeaLake"], [], id="land use"),
    pytest.param(["bkl", "mel", "nv"], ["ISIC_metadata.csv"], id="skin lesions"),
    pytest.param(["n01440764", "n02102040"], ["noisy_imagenette.csv"], id="synsets"),
    pytest.param(["0", "1", "2", "3", "4"], [], id="grades of retinopathy"),
    pytest.param(["crack", "good", "mask_damage", "unknown"], [], id="defects"),
    pytest.param(["background", "leaf", "root"], [], id="parts of plants"),
    pytest.param(["copy", "original", "screen"], [], id="photos of screens"),
    pytest.param(["2019", "2020", "2021"], [], id="years"),
    pytest.param(["2015", "2016"], [], id="wines"),
    pytest.param(["rgb", "thermal"], [], id="sensors"),
    pytest.param(["day", "night", "test"], [], id="day, night, test"),
    pytest.param(["no_test", "test"], [], id="test, no_test"),
    pytest.param(["june", "march", "may"], [], id="months"),
    pytest.param(["April", "Juni", "Mai"], [], id="people"),
    pytest.param(["coin", "coin (1)"], [], id="coins"),
    pytest.param(["augmented", "original"], [], id="augmented"),
    pytest.param(["APPLE", "Apple"], [], id="case"),
    pytest.param(["casual", "training"], [], id="shoes"),
    pytest.param(["plot1", "plot2", "plot3"], [], id="plots"),
    pytest.param(["generated", "real"], [], id="generated"),
    pytest.param(["reject", "rejected"], [], id="reject"),
    pytest.param(["T1", "T2", "T3"], [], id="stages"),
    pytest.param(["mask", "no_mask"], [], id="masks on faces"),
    pytest.param(["Maske", "ohne"], [], id="masks on faces, German"),
    pytest.param(["frame", "no_frame"], [], id="frames"),
    pytest.param(["images", "text"], [], id="images and text"),
    pytest.param(["depth", "labels"], [], id="labels of bottles"),
    pytest.param(["dev", "train"], [], id="dev and train are no parts"),
    pytest.param(["test", "tester", "train"], [], id="one more than parts"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "others"), CLASSES)
def test_folders_are_classes_in_sorted_order_and_nothing_is_said(
    names: list[str], others: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *in_each(names, "0.jpg", "1.JPG"), *others)

    table = read_folders(tmp_path)

    expected = {f"{name}/{file}": name for name in names for file in ("0.jpg", "1.JPG")}
    assert classes_of(table) == expected
    assert list(table["class"].cat.categories) == names
    assert not caplog.records


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    touched(tmp_path, "oats/1.jpg", "wheat/a/b/2.jpg", "wheat/3.jpg")
    assert classes_of(read_folders(tmp_path)) == {
        "oats/1.jpg": "oats",
        "wheat/3.jpg": "wheat",
        "wheat/a/b/2.jpg": "wheat",
    }


def test_class_names_are_composed(tmp_path: Path) -> None:
    touched(tmp_path, unicodedata.normalize("NFD", "blé/1.jpg"), "oats/2.jpg")
    table = read_folders(tmp_path)
    assert classes_of(table) == {"blé/1.jpg": "blé", "oats/2.jpg": "oats"}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *in_each("ab", "1.jpg", "2.HEIC", "3.heic", ".hidden.jpg", "_DSC0001.JPG"),
        "_raw/1.jpg",
        ".cache/1.jpg",
        "a/run/report.json",
        "a/run/heads/0.png",
    )

    table = read_folders(tmp_path)

    assert list(table.index) == ["a/1.jpg", "a/_DSC0001.JPG", "b/1.jpg", "b/_DSC0001.JPG"]
    assert table.attrs["left_out"] == {
        "folders called _…": 1,
        "files of other formats (.heic)": 4,
        "folders of runs and stores": 1,
    }


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    touched(tmp_path, "store/b/1.jpg", "classes/a/1.jpg")
    (tmp_path / "classes/b").symlink_to("../store/b")
    assert classes_of(read_folders(tmp_path / "classes")) == {"a/1.jpg": "a", "b/1.jpg": "b"}


# Parts
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        pytest.param("train", "val", None, id="train, val"),
        pytest.param("train", "valid", "test", id="train, valid, test"),
        pytest.param("Training", "validation", "testing", id="training, validation, testing"),
    ],
)
def test_folders_that_are_all_called_parts_are_parts(
    train: str, val: str, test: str | None, tmp_path: Path
) -> None:
    parts = [train, val] if test is None else [train, val, test]
    touched(tmp_path, *in_each(parts, "blue/1.jpg", "red/1.jpg", "red/2.jpg"))

    table = read_folders(tmp_path)

    assert table["fold"].value_counts().to_dict() == {train: 3, val: 3}
    assert classes_of(table)[f"{val}/blue/1.jpg"] == "blue"
    assert table.attrs["held_out"] == val
    left_out = {} if test is None else {f"images of the part {test}": 3}
    assert table.attrs["left_out"] == left_out


def test_folders_without_images_are_neither_parts_nor_classes(tmp_path: Path) -> None:
    touched(tmp_path, *in_each(["train", "val"], "blue/1.jpg", "red/1.jpg"), "vectors/1.npy")
    assert read_folders(tmp_path).attrs["held_out"] == "val"


def test_a_test_part_may_have_no_labels(tmp_path: Path) -> None:
    touched(tmp_path, *in_each(["train", "val"], "blue/1.jpg", "red/1.jpg"), "test/1.jpg")
    assert read_folders(tmp_path).attrs["left_out"] == {"images of the part test": 1}


def test_subfolders_state_how_folders_are_read(tmp_path: Path) -> None:
    touched(tmp_path, *in_each(["train", "val"], "blue/1.jpg", "red/1.jpg"))
    classes = read_folders(tmp_path, subfolders="classes")
    folds = read_folders(tmp_path, subfolders="folds")
    parts = read_folders(tmp_path, subfolders="parts")

    assert list(classes["class"].cat.categories) == ["train", "val"]
    assert list(folds["class"].cat.categories) == ["blue", "red"]
    assert folds.attrs["held_out"] is None
    assert parts.attrs["held_out"] == "val"


@pytest.mark.parametrize("names", [["train", "test"], ["val", "test"], ["train", "training"]])
def test_parts_without_train_or_val_or_with_one_twice_are_refused(
    names: list[str], tmp_path: Path
) -> None:
    touched(tmp_path, *in_each(names, "blue/1.jpg", "red/1.jpg"))
    with pytest.raises(DataError, match=f"{names[0]}.*{names[1]}|{names[1]}.*{names[0]}"):
        read_folders(tmp_path)


# Images and masks
# ----------------------------------------------------------------------------------------------------

PAIRS = [  # files, how they are paired, id -> mask, and what is left out
    pytest.param(["images/1.jpg", "masks/1.png"], {}, {"1.jpg": "masks/1.png"}, {}, id="images, masks"),
    pytest.param(["Images/a/1.jpg", "Labels/a/1.npy"], {}, {"a/1.jpg": "Labels/a/1.npy"}, {}, id="nested, arrays"),
    pytest.param(
        ["images/cat_1.jpg", "annotations/trimaps/cat_1.png", "annotations/list.txt"],
        {},
        {"cat_1.jpg": "annotations/trimaps/cat_1.png"},
        {"files of other formats (.txt)": 1},
        id="pets with trimaps",
    ),
    pytest.param(["imgs/1.jpg", "gt/1.tif"], {}, {"1.jpg": "gt/1.tif"}, {}, id="imgs, gt"),
    pytest.param(
        ["images/ISIC_0000000.jpg", "images/ISIC_0000001.jpg", "masks/ISIC_0000000_segmentation.png",
         "masks/ISIC_0000001_segmentation.png"],
        {},
        {"ISIC_0000000.jpg": "masks/ISIC_0000000_segmentation.png",
         "ISIC_0000001.jpg": "masks/ISIC_0000001_segmentation.png"},
        {},
        id="lesions",
    ),
    pytest.param(
        ["JPEGImages/2007_000032.jpg", "JPEGImages/2007_000033.jpg", "JPEGImages/2007_000039.jpg",
         "SegmentationClass/2007_000032.png", "SegmentationClass/2007_000033.png",
         "SegmentationObject/2007_000032.png", "Annotations/2007_000032.xml", "ImageSets/Main/train.txt"],
        {"skip_unpaired": True},
        {"2007_000032.jpg": "SegmentationClass/2007_000032.png",
         "2007_000033.jpg": "SegmentationClass/2007_000033.png"},
        {"images without a mask": 1, "images in SegmentationObject/": 1},
        id="VOC",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "expected", "left_out"), PAIRS)
def test_images_beside_masks_are_pairs_and_nothing_is_said(
    files: list[str],
    options: dict[str, Any],
    expected: dict[str, str],
    left_out: dict[str, int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    touched(tmp_path, *files)

    table = table_of_folder(read_data_folder(tmp_path), Pairing(**options))

    assert masks_of(table, tmp_path) == expected
    assert table.attrs["left_out"] == left_out
    assert not caplog.records


STREETS = [
    f"{top}/{part}/ulm/ulm_0_{ending}"
    for part in ("train", "val", "test")
    for top, ending in (
        ("leftImg8bit", "leftImg8bit.png"),
        ("gtFine", "gtFine_color.png"),
        ("gtFine", "gtFine_labelTrainIds.png"),
        ("gtFine", "gtFine_polygons.json"),
    )
]
SCENES = [
    f"{top}/{part}/ADE_{part}_1.{suffix}"
    for part in ("training", "validation")
    for top, suffix in (("images", "jpg"), ("annotations", "png"))
]
OUTSIDE = in_each(["train", "val"], "images/1.jpg", "masks/1.png")


@pytest.mark.parametrize(
    ("files", "suffix", "val", "expected"),
    [
        pytest.param(SCENES, None, "validation", {
            "images/training/ADE_training_1.jpg": "annotations/training/ADE_training_1.png",
            "images/validation/ADE_validation_1.jpg": "annotations/validation/ADE_validation_1.png",
        }, id="ADE20k"),
        pytest.param(OUTSIDE, None, "val", {
            "train/images/1.jpg": "train/masks/1.png", "val/images/1.jpg": "val/masks/1.png",
        }, id="parts outside"),
        pytest.param(STREETS, "_gtFine_labelTrainIds", "val", {
            f"leftImg8bit/{part}/ulm/ulm_0_leftImg8bit.png": f"gtFine/{part}/ulm/ulm_0_gtFine_labelTrainIds.png"
            for part in ("train", "val")
        }, id="Cityscapes"),
    ],
)  # fmt: skip
def test_parts_of_images_and_masks_are_parts(
    files: list[str], suffix: str | None, val: str, expected: dict[str, str], tmp_path: Path
) -> None:
    touched(tmp_path, *files)

    folder = read_data_folder(tmp_path)
    table = table_of_folder(folder, Pairing(mask_suffix=suffix))

    assert masks_of(table, tmp_path) == expected
    assert table.attrs["held_out"] == val
    assert f"{val} (1 image); {val} is held out" in describe(folder, table)


def test_files_of_cityscapes_that_are_not_read_are_counted(tmp_path: Path) -> None:
    touched(tmp_path, *STREETS)
    pairing = Pairing(mask_suffix="_gtFine_labelTrainIds")
    table = table_of_folder(read_data_folder(tmp_path), pairing)
    assert table.attrs["left_out"] == {
        "files of other formats (.json)": 2,
        "masks without _gtFine_labelTrainIds": 2,
        "images of the part test": 1,
    }


def test_parts_are_held_out_where_images_and_masks_are_named(tmp_path: Path) -> None:
    touched(tmp_path, *in_each(["x/train", "x/valid", "x/test"], "1.jpg"))
    touched(tmp_path, *in_each(["y/train", "y/val"], "1.png"))

    table = read_masks(tmp_path / "x", tmp_path / "y")

    assert masks_of(table, tmp_path) == {
        "train/1.jpg": "y/train/1.png",
        "valid/1.jpg": "y/val/1.png",
    }
    assert table["fold"].tolist() == ["train", "valid"]
    assert table.attrs == {"held_out": "valid", "left_out": {"images of the part test": 1}}


def test_named_folders_win_over_what_they_are_called(tmp_path: Path) -> None:
    touched(tmp_path, "images/1.jpg", "masks/1.png", "labels/1.png")
    table = read_masks(tmp_path / "images", tmp_path / "labels")
    assert masks_of(table, tmp_path) == {"1.jpg": "labels/1.png"}


# What is refused
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "named"),
    [
        pytest.param(["2750/Forest/1.jpg", "2750/River/1.jpg"], "2750", id="classes one folder below"),
        pytest.param(["a/1.jpg", "b/1.jpg", "2.jpg"], "2.jpg", id="an image beside class folders"),
        pytest.param(["images/1.jpg", "masks/1.png"], "no class folders", id="images and masks"),
        pytest.param(["images/1.jpg", "masks/1.png", "labels/1.png"], "labels and .*masks", id="two of masks"),
        pytest.param(in_each(["COVID", "Normal"], "images/1.png", "masks/1.png"), "COVID holds", id="masks in classes"),
        pytest.param(["train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"], r"val \(images\)", id="a part without classes"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_read_are_refused(
    files: list[str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=named):
        read_folders(touched(tmp_path, *files))


def test_an_image_in_two_classes_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "b/1.jpg").symlink_to("../a/1.jpg")
    with pytest.raises(DataError, match=r"a/1.jpg and .*b/1.jpg are one file"):
        read_folders(tmp_path)


def test_an_image_in_two_parts_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, *in_each(["train", "val"], "a/1.jpg", "b/1.jpg"))
    (tmp_path / "val/a/2.jpg").symlink_to("../../train/a/1.jpg")
    with pytest.raises(DataError, match="'train' and 'val'"):
        read_folders(tmp_path)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "c").symlink_to("gone")
    with pytest.raises(DataError, match=r"link .*/c leads nowhere"):
        read_folders(tmp_path)
