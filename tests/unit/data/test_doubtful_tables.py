"""Tables that have one meaning to their author and another one to a reader: each is named, and none is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import read_table
from dinoneck.data.sheet_checks import warn_of_rows_without_image


def warnings_of(
    values: list[Any], caplog: pytest.LogCaptureFixture, name: str = "y", **columns: list[Any]
) -> list[str]:
    """What is logged of a table with these cells, which are read as they are."""
    names = [f"{i}.png" for i in range(len(values))]
    frame = pd.DataFrame({"image": names, name: values, **columns})
    with caplog.at_level(logging.WARNING, "dinoneck"):
        table = read_table(frame, None, name)
    assert list(table[name].astype(str)) == [
        str(value) for value in table_values(values, table[name])
    ]
    return caplog.messages


def table_values(values: list[Any], column: pd.Series) -> list[Any]:
    return values if column.dtype == "category" else [float(value) for value in values]


# Classes
# ------------------------------------------------------------------------------------------------

LABELS = [
    pytest.param(["scab rust", "scab", "rust"], "'scab rust', next to 'rust', 'scab'", id="blank"),
    pytest.param(["cat and dog", "cat", "dog"], "'cat and dog', next to 'cat', 'dog'", id="and"),
    pytest.param(["a;b", "a;c", "b;c"], "'a;c', next to 'a;b'", id="parts in two names"),
    pytest.param(["['a']", "['a', 'b']", "['b']"], "3 of 3, such as \"['a', 'b']\"", id="lists"),
    pytest.param(['{"c": 1}', "b", "a"], "1 of 3, such as '{\"c\": 1}'", id="an object"),
]


@pytest.mark.parametrize(("values", "expected"), LABELS)
def test_several_labels_in_a_cell_are_named(
    values: list[str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = warnings_of(values, caplog)
    assert expected in line
    assert (
        "If it means several labels, write a column of 0 and 1 for each label (--multilabel)"
        in line
    )


SINGLE_LABELS = [
    pytest.param(["clay", "loam", "clay loam", "sandy loam"], id="soils"),
    pytest.param(["Poa annua", "Poa trivialis", "Poa"], id="species"),
    pytest.param(["north", "east", "north-east"], id="directions"),
    pytest.param(["a;b", "c;d", "e"], id="names with a semicolon"),
    pytest.param(["dry (old)", "dry (new)", "wet"], id="brackets"),
]


@pytest.mark.parametrize("values", SINGLE_LABELS)
def test_classes_of_several_words_are_single_labels(
    values: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(values, caplog) == []


@pytest.mark.parametrize("name", ["weed;", "weed,", "weed?", "weed*"])
def test_a_mark_after_a_class_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    [line] = warnings_of(["weed", name, "crop"], caplog)
    assert f"may be one: 'weed' (1 row) and {name!r} (1 row)" in line


TYPOS = [
    pytest.param("wede", id="exchanged"),
    pytest.param("wead", id="another letter"),
    pytest.param("weedd", id="a letter more"),
    pytest.param("Weeds", id="the plural"),
]


@pytest.mark.parametrize("typo", TYPOS)
def test_a_rare_class_that_differs_from_a_common_one_in_a_letter_is_named(
    typo: str, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = warnings_of([typo, *["weed"] * 20, *["crop"] * 20], caplog)
    assert f"{typo!r} (1 row) and 'weed' (20 rows)" in line


@pytest.mark.parametrize(
    ("rare", "rows"),
    [("need", 1), ("weed", 3), ("wheat", 1), ("wde", 1)],
    ids=["another initial", "not rare", "another word", "short"],
)
def test_other_classes_are_no_typing_errors(
    rare: str, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    values = [rare] * rows + ["wede"] * 20 + ["crop"] * 20
    assert warnings_of(values, caplog) == []


MEASURED = [
    pytest.param(["058Y", "057Y", "061Y", "012M"], id="ages of DICOM"),
    pytest.param(["3 of 10", "4 of 10", "9 of 10"], id="counts"),
    pytest.param(["3\u516c\u65a4", "4\u516c\u65a4", "5\u516c\u65a4"], id="kilograms in Chinese"),
    pytest.param(["48\u00b012'30\"N", "48\u00b013'30\"N", "48\u00b014'30\"N"], id="degrees"),
    pytest.param([f"{i:03d}Y" for i in range(20, 45)] * 4, id="many rows of each"),
]


@pytest.mark.parametrize("values", MEASURED)
def test_numbers_before_one_text_are_named(
    values: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    [line] = warnings_of(values, caplog)
    assert "has numbers with a unit, or a word before them, as classes" in line


@pytest.mark.parametrize(
    "values",
    [["10x", "20x", "40x"] * 3, ["2a", "2b", "3a"], ["1st", "2nd", "3rd"]],
    ids=["magnifications", "letters", "ordinals"],
)
def test_classes_that_begin_with_a_number_are_not_named(
    values: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(values, caplog) == []


@pytest.mark.parametrize("name", ["label", "Label", "class_id", "species_id", "Category"])
def test_whole_numbers_in_a_column_of_labels_are_named(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = warnings_of([0, 1, 2, 3, 0, 1], caplog, name)
    assert "is called as classes are, holds 4 whole numbers and is read as numbers" in line
    assert f"read_table(classes={{{name!r}: ()}})" in line


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("biomass", [0, 1, 2, 3, 0, 1]),
        ("label_count", [0, 1, 2, 3, 0, 1]),
        ("class", [0.5, 1.5, 0.5]),
        ("label", [10, 20, 30]),
        ("classified", [0, 1, 0, 1]),
    ],
    ids=["another name", "a count", "decimals", "none twice", "a longer word"],
)
def test_other_numbers_are_no_labels(
    name: str, values: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(values, caplog, name) == []


@pytest.mark.parametrize("option", [{"classes": {"label": ()}}, {"numbers": "label"}])
def test_a_column_of_labels_of_which_the_kind_is_said_is_not_named(
    option: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "label": [0, 1, 0]})
    read_table(frame, None, "label", **option)
    assert caplog.messages == []


# Numbers
# ------------------------------------------------------------------------------------------------


def test_days_among_numbers_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    [line] = warnings_of([1.5, 45413, 2.5, 45414, 45413], caplog)
    assert "y is 45413, 45414 in 3 rows" in line


# Parts
# ------------------------------------------------------------------------------------------------


def test_parts_that_are_not_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    [line] = warnings_of([1.5, 2.5, 3.5], caplog, split=["train", "Test", "train"])
    assert "the column 'split' names the parts Test and train, and is not read" in line
    assert "fold_column= (--fold-column)" in line


def test_parts_of_a_file_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "t.csv"
    file.write_text("image,y,set\na,1.5,train\nb,2.5,val\n")
    read_table(file, None, "y")
    [line] = caplog.messages
    assert "the column 'set' names the parts train and val, and is not read" in line


def test_parts_that_are_read_as_folds_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "y": [1, 2], "split": ["train", "val"]})
    read_table(frame, None, "y", fold_column="split")
    assert caplog.messages == []


@pytest.mark.parametrize(
    "cells",
    [
        ["train", "train", "train"],
        ["train", "car", "train"],
        ["test", "val", "val"],
        [["train"]] * 3,
    ],
    ids=["one part", "vehicles", "nothing to train on", "lists"],
)
def test_other_columns_are_no_parts(cells: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of([1.5, 2.5, 3.5], caplog, split=cells) == []


# Labels
# ------------------------------------------------------------------------------------------------


def labelled(folder: Path, order: list[int]) -> Path:
    """Write images ``img_0`` ..., masks ``mask_0`` ..., and a table with the masks in this order."""
    lines = ["image,mask"]
    for i, other in enumerate(order):
        Image.fromarray(np.full((4, 6, 3), 40 * i, np.uint8)).save(folder / f"img_{i}.png")
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(folder / f"mask_{i}.png")
        lines.append(f"img_{i}.png,mask_{other}.png")
    file = folder / "t.csv"
    file.write_text("\n".join(lines))
    return file


def test_labels_that_are_called_as_those_of_other_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_table(labelled(tmp_path, [1, 0, 2]), tmp_path, labels="mask")
    [line] = caplog.messages
    assert (
        "mask: 2 of 3 files are called as those of other images, such as 'mask_1' of 'img_0'"
        in line
    )
    assert [file.name for file in table["labels"]] == ["mask_1.png", "mask_0.png", "mask_2.png"]


def test_labels_of_their_own_images_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_table(labelled(tmp_path, [0, 1, 2]), tmp_path, labels="mask")
    assert caplog.messages == []


@pytest.mark.parametrize("word", ["NA", "None", "."])
def test_words_for_missing_labels_are_missing(
    word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = labelled(tmp_path, [0, 1])
    file.write_text(file.read_text().replace("mask_1.png", word))
    table = read_table(file, tmp_path, labels="mask")
    assert caplog.messages == [f"{file}: mask: {word} in 1 cell read as missing"]
    assert table["labels"].iloc[0].name == "mask_0.png"
    assert table["labels"].iloc[1] is None


# Numbers that are missing, and messages
# ------------------------------------------------------------------------------------------------


def test_the_point_of_sas_is_a_missing_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "t.csv"
    file.write_text("image,y\na,1.5\nb,.\nc,2.5\n")
    table = read_table(file, None, "y")
    assert caplog.messages == [f"{file}: y: . in 1 cell read as missing"]
    assert table["y"].tolist() == pytest.approx([1.5, float("nan"), 2.5], nan_ok=True)


def test_points_of_sas_alone_are_no_column() -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "y": [".", "."]})
    with pytest.raises(DataError, match="holds no number; leave the column out"):
        read_table(frame, None, "y")


def test_a_long_table_is_refused_with_what_makes_it_wide() -> None:
    frame = pd.DataFrame({"image": ["a", "a"], "name": ["h", "w"], "value": [1, 2]})
    with pytest.raises(DataError, match=r"DataFrame.pivot\(\) makes columns of a long table"):
        read_table(frame, None, "value")


def test_columns_of_several_levels_are_refused_as_such() -> None:
    columns = pd.MultiIndex.from_tuples([("image", ""), ("y", "mean")])
    frame = pd.DataFrame([["a", 1], ["b", 2]], columns=columns)
    with pytest.raises(DataError, match=r"has columns of 2 levels, such as \('image', ''\)"):
        read_table(frame, None, "y")


# Groups
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "is_named"),
    [
        (["1.2E+11", "P1", "P2"], True),
        (["1E5", "100", "7"], True),
        (["16e6", "03d1", "7a2b"], False),
    ],
    ids=["of a spreadsheet", "among numbers", "hexadecimal digits"],
)
def test_powers_of_ten_among_groups_are_named_unless_they_are_hexadecimal(
    groups: list[str], is_named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": [1, 2, 3], "g": groups})
    read_table(frame, None, "y", group="g")
    assert any("leave digits out" in line for line in caplog.messages) == is_named


@pytest.mark.parametrize("role", ["group", "fold_column"])
def test_minus_one_among_groups_and_folds_is_named(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": [1, 2, 3], "g": [-1, 0, 1]})
    read_table(frame, None, "y", **{role: "g"})
    [line] = caplog.messages
    assert "g: -1 is one of the" in line
    assert "in 1 row, unlike the others below 0" in line


@pytest.mark.parametrize("groups", [[-2, -1, 0], ["-1", "a", "b"], [-1, -1, -1]])
def test_other_negative_groups_are_not_named(
    groups: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": [1, 2, 3], "g": groups})
    read_table(frame, None, "y", group="g")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        pytest.param(["# units"], "is '# units', unlike those of other rows. Remove", id="one"),
        pytest.param(["# units", "* sum"], "unlike those of other rows, and 1 more. ", id="two"),
    ],
)
def test_rows_of_comments_are_named_with_their_number(
    odd: list[str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.png", "b.png", "c.png", *odd]

    warn_of_rows_without_image("t.csv", names, range(2, 2 + len(names)))

    [record] = caplog.records
    assert record.getMessage().startswith("t.csv: the image of row 5 is '# units'")
    assert words in record.getMessage()
