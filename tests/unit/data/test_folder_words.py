"""The names of folders and files say in many languages what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import read_folders
from dinoneck.data.folder_words import IMAGE_WORDS, MASK_WORDS, part_of, words_of
from dinoneck.data.sources import list_pictures


def photos(root: Path, *names: str) -> None:
    """Write images of noise, no two alike."""
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(file)


def in_folders(root: Path, names: Sequence[str]) -> None:
    for name in names:
        photos(root, *[f"{name}/{name}{i}.jpg" for i in range(3)])


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("训练集", "验证集", "测试集"),
        ("訓練", "驗證", "測試"),
        ("学習", "検証", "テスト"),
        ("학습", "검증", "테스트"),
        ("Обучение", "проверка", "тест"),
        ("trening", "walidacja", "testowanie"),
        ("Träning", "validering", "test"),
        ("eğitim", "doğrulama", "test"),
        ("εκπαίδευση", "επικύρωση", "δοκιμή"),
    ],
)
def test_parts_are_known_in_other_languages(train: str, val: str, test: str) -> None:
    assert [part_of(name) for name in (train, val, test)] == ["train", "val", "test"]


@pytest.mark.parametrize("names", [("训练", "测试"), ("学習", "検証"), ("обучение", "тест")])
def test_parts_without_classes_in_other_languages_are_no_classes(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    in_folders(tmp_path, names)
    with pytest.raises(DataError, match=r"parts of a data set, or classes|without class folders"):
        read_folders(tmp_path)


def test_parts_with_classes_in_another_language_are_read_as_parts(tmp_path: Path) -> None:
    for part in ("训练集", "验证集"):
        for name in ("猫", "狗"):
            photos(tmp_path, *[f"{part}/{name}/{part}{name}{i}.jpg" for i in range(2)])
    table = read_folders(tmp_path)
    assert table["fold"].value_counts().to_dict() == {"训练集": 4, "验证集": 4}
    assert sorted(table["class"].unique()) == ["狗", "猫"]


@pytest.mark.parametrize(
    ("images", "masks"),
    [("图像", "掩码"), ("画像", "マスク"), ("изображения", "маски"), ("képek", "maszkok")],
)
def test_images_and_masks_are_known_in_other_languages(images: str, masks: str) -> None:
    assert words_of(images) <= IMAGE_WORDS
    assert words_of(masks) <= MASK_WORDS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SegmentationClass_png", {"segmentation", "class", "png"}),
        ("猫 - 副本", {"猫", "副本"}),
        ("Новая папка 2", {"новая", "папка"}),
    ],
)
def test_words_of_a_name_are_those_of_any_script(name: str, words: set[str]) -> None:
    assert words_of(name) == words


@pytest.mark.parametrize("copy", ["猫 - 副本", "кот — копия", "cat - コピー", "cat - kopia"])
def test_copies_of_a_class_are_named_in_other_languages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copy: str
) -> None:
    original = copy.split(" ")[0]
    in_folders(tmp_path, ["dog", original, copy])
    assert len(read_folders(tmp_path)) == 9
    assert f"the class '{copy}' is called like a copy of '{original}'" in caplog.text


@pytest.mark.parametrize(
    "name", ["未分类", "unsortiert", "Papierkorb", "新建文件夹", "Новая папка", "Nowy folder"]
)
def test_folders_that_may_be_no_class_are_named_in_other_languages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    in_folders(tmp_path, ["cat", "dog", name])
    assert len(read_folders(tmp_path)) == 9
    assert f"'{name}' is read as a class; move it away if it is none" in caplog.text


def test_visualizations_of_labels_are_named_as_what_programs_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "JPEGImages/0.jpg", "SegmentationClassVisualization/0.jpg")
    list_pictures([tmp_path])
    expected = f"1 file in folders called like what programs write, such as {tmp_path / 'Segm'}"
    assert expected in caplog.text


@pytest.mark.parametrize("made", ["0_boxes.jpg", "0_visualization.jpg", "thumb_0.jpg"])
def test_files_that_are_made_of_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, made: str
) -> None:
    photos(tmp_path, "0.jpg", "1.jpg", "1.png", made)
    list_pictures([tmp_path])
    assert "1 file called like what programs make of another one" in caplog.text
    assert f"such as {tmp_path / made} beside {tmp_path / '0.jpg'}" in caplog.text


@pytest.mark.parametrize("change", ["gamma1.5", "clahe", "zoom", "mixup", "grayscale"])
def test_changed_copies_of_more_programs_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    for name in ("crop", "weed"):
        photos(tmp_path, f"{name}/{name}.jpg", f"{name}/{name}_{change}.jpg")
    read_folders(tmp_path)
    assert "2 files called like changed copies of another one" in caplog.text
