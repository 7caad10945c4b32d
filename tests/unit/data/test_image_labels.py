"""Labels of images without a table: folders that are labels, and COCO files of image labels."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from tests import kit

from dinoneck.data.image_labels import read_coco_labels, read_label_folders
from dinoneck.errors import DataError


def linked(folder: Path, links: dict[str, list[int]], *, are_copies: bool = False) -> Path:
    """Write four images into ``folder/all``, and links or copies of some into folders of labels."""
    kit.write_images(folder, [f"all/{number}.png" for number in range(4)])
    for label, numbers in links.items():
        (folder / label).mkdir()
        for number in numbers:
            source = folder / "all" / f"{number}.png"
            target = folder / label / f"{number}.png"
            if are_copies:
                shutil.copy(source, target)
            else:
                target.symlink_to(source)
    return folder


LINKS = {"crack": [0, 2], "moss": [2, 3]}
COMPOSED = "caf\u00e9"  # NFC: an é is one character


def rows(table: pd.DataFrame, *labels: str) -> dict[str, list[float]]:
    """Row -> its values of some labels."""
    return {
        str(name): [float(x) for x in values] for name, *values in table[[*labels]].itertuples()
    }


@pytest.mark.parametrize("are_copies", [False, True], ids=["links", "copies"])
def test_an_image_has_the_labels_of_the_folders_that_it_is_in(
    tmp_path: Path, are_copies: bool, caplog: pytest.LogCaptureFixture
) -> None:
    linked(tmp_path, LINKS, are_copies=are_copies)

    table = read_label_folders(tmp_path, ["moss", "crack"])

    expected = {"0.png": [1, 0], "1.png": [0, 0], "2.png": [1, 1], "3.png": [0, 1]}
    assert rows(table, "crack", "moss") == expected
    assert list(table) == ["images", "moss", "crack"]
    for name, file in table["images"].items():
        assert file.samefile(tmp_path / "all" / str(name)) or are_copies
    assert not caplog.records


def test_a_link_may_have_another_name_and_a_folder_that_is_not_named_is_no_label(
    tmp_path: Path,
) -> None:
    linked(tmp_path, {"crack": [0], "rust": [1]})
    (tmp_path / "moss").mkdir()
    (tmp_path / "moss" / "renamed.png").symlink_to(tmp_path / "all" / "0.png")
    kit.write_images(tmp_path, ["beside.png"], seed=9)

    table = read_label_folders(tmp_path, ["crack", "moss"])

    assert rows(table, "crack", "moss") == {
        "0.png": [1, 1],
        "1.png": [0, 0],
        "2.png": [0, 0],
        "3.png": [0, 0],
        "beside.png": [0, 0],
    }


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    linked(tmp_path, {"crack": [0]})
    kit.write_images(tmp_path / "moss", ["0.png"], seed=9)

    with pytest.raises(DataError, match="moss.0.png have one name and are two pictures; .*rename"):
        read_label_folders(tmp_path, ["crack", "moss"])


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    linked(tmp_path, LINKS)
    (tmp_path / "all" / "2.png").unlink()

    with pytest.raises(DataError, match="the link .*crack.2.png leads nowhere"):
        read_label_folders(tmp_path, ["crack", "moss"])


def test_a_label_without_a_folder_is_refused_or_left_out(tmp_path: Path) -> None:
    linked(tmp_path, LINKS)

    with pytest.raises(DataError, match="'crak', .*there are all, crack, moss.*Did you mean 'c"):
        read_label_folders(tmp_path, ["crak", "moss"])
    table = read_label_folders(tmp_path, ["crak", "moss"], needs_all=False)
    assert list(table) == ["images", "moss"]


def test_folders_whose_names_differ_in_their_unicode_form_are_one_label(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", COMPOSED)
    linked(tmp_path, {COMPOSED: [0], decomposed: [1]})
    if len(list(tmp_path.iterdir())) == 2:
        pytest.skip("this file system has one folder for both names")

    table = read_label_folders(tmp_path, [decomposed])

    expected = {"0.png": [1], "1.png": [1], "2.png": [0], "3.png": [0]}
    assert rows(table, decomposed) == expected


def category_entries(*names: str) -> list[dict[str, Any]]:
    """The entries of categories with these names, numbered from 0."""
    return [{"id": number, "name": name} for number, name in enumerate(names)]


def coco(folder: Path, labels: dict[int, list[int]], **changes: Any) -> Path:
    """Write four images and a COCO file with the categories crack, moss and rust of images 0 to 3."""
    kit.write_images(folder, [f"{number}.png" for number in range(4)])
    annotations = []
    for image_id, categories in labels.items():
        for category in categories:
            annotations.append({"image_id": image_id, "category_id": category})
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "annotations": annotations,
        "categories": category_entries("crack", "moss", "rust"),
    }
    file = folder / "damage.json"
    file.write_text(json.dumps(content | changes))
    return file


def test_a_coco_file_gives_the_categories_of_each_image(tmp_path: Path) -> None:
    file = coco(tmp_path, {0: [2, 0, 2], 2: [1], 3: [0, 1, 2]})

    table = read_coco_labels(file, tmp_path)
    some = read_coco_labels(file, None, ["rust", "crack"])

    assert rows(table, "crack", "moss", "rust") == {
        "0.png": [1, 0, 1],
        "1.png": [0, 0, 0],
        "2.png": [0, 1, 0],
        "3.png": [1, 1, 1],
    }
    assert list(table["images"]) == [tmp_path / f"{number}.png" for number in range(4)]
    assert list(some)[1:] == ["rust", "crack"]
    assert some["rust"].tolist() == table["rust"].tolist()


def test_boxes_of_a_coco_file_count_as_labels(tmp_path: Path) -> None:
    file = coco(tmp_path, {})
    content = json.loads(file.read_text())
    box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 4, 4], "iscrowd": 0}
    file.write_text(json.dumps(content | {"annotations": [box]}))

    assert read_coco_labels(file, None, ["crack"])["crack"].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_a_word_that_is_no_category_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path, {0: [0, 1, 2]})

    with pytest.raises(DataError, match="'crak', .*Did you mean 'crack'"):
        read_coco_labels(file, None, ["crak"])


def test_a_label_that_is_called_as_a_column_of_tables_is_refused(tmp_path: Path) -> None:
    linked(tmp_path, {"group": [0, 1]})

    with pytest.raises(DataError, match="is called 'group', as a column of the result; rename it"):
        read_label_folders(tmp_path, ["group"])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_category_is_found_in_both_unicode_forms(
    tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    decomposed = unicodedata.normalize("NFD", COMPOSED)
    file = coco(tmp_path, {0: [0], 1: [1]}, categories=category_entries(decomposed, "moss"))
    label = unicodedata.normalize(form, COMPOSED)

    table = read_coco_labels(file, None, [label, "moss"])

    assert rows(table, label)["0.png"] == [1]
    assert rows(table, "moss")["0.png"] == [0]


def test_categories_whose_names_differ_in_their_unicode_form_are_refused(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", COMPOSED)
    file = coco(tmp_path, {0: [0], 1: [1]}, categories=category_entries(COMPOSED, decomposed))

    with pytest.raises(DataError, match="'café'"):
        read_coco_labels(file, tmp_path)
