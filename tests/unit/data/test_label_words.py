"""Columns with several words in a cell."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dinoneck.data import read_table
from dinoneck.data.table import LabelSets, Table
from dinoneck.errors import DataError


def labels_in(table: pd.DataFrame, column: str = "damage") -> LabelSets:
    labels = Table.from_frame(table).columns[column]
    assert isinstance(labels, LabelSets)
    return labels


def written(tmp_path: Path, *cells: str, separator: str = ",") -> Path:
    rows = [f"image{separator}damage"]
    rows += [f"{number}.png{separator}{cell}" for number, cell in enumerate(cells)]
    path = tmp_path / "damage.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_words_are_separated_by_a_semicolon(tmp_path: Path) -> None:
    path = written(tmp_path, "rust;crack", " crack ; crack;", "none", "")
    labels = labels_in(read_table(path, targets="damage", multilabel={"damage": ()}))
    assert labels.names == ("crack", "rust")
    assert labels.words == (("crack", "rust"), ("crack",), (), None)
    expected = np.array([[1, 1], [1, 0], [0, 0], [np.nan, np.nan]])
    assert np.array_equal(labels.indicators(), expected, equal_nan=True)


@pytest.mark.parametrize("separator", [";", ",", "\t"])
def test_words_are_separated_by_a_bar(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, "rust|crack", "crack", "NONE", separator=separator)
    labels = labels_in(read_table(path, targets="damage", multilabel={"damage": ()}))
    assert labels.words == (("crack", "rust"), ("crack",), ())


def test_labels_that_are_listed_keep_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "rust;crack", "crack")
    table = read_table(path, targets="damage", multilabel={"damage": ("rust", "moss", "crack")})
    assert labels_in(table).names == ("rust", "moss", "crack")
    rows = labels_in(table).take(np.array([1]))
    assert rows.names == ("rust", "moss", "crack")
    assert rows.words == (("crack",),)


def test_a_column_of_0_and_1_holds_numbers(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "1", "0", ""), targets="damage", multilabel={"damage": ()})
    assert table["damage"].tolist()[:2] == [1.0, 0.0]


@pytest.mark.parametrize(
    "cells",
    [["True", "False", "", "True"], ["TRUE", "FALSE", "n/a", "TRUE"], ["true", "False", "", "1"]],
    ids=["pandas", "spreadsheet", "beside numbers"],
)
def test_true_and_false_are_1_and_0_of_a_label(tmp_path: Path, cells: list[str]) -> None:
    path = written(tmp_path, *cells)
    if "1" in cells:
        with pytest.raises(DataError, match="damage of '0.png' is 'true'"):
            read_table(path, targets="damage", indicators="damage")
        return

    table = read_table(path, targets="damage", indicators="damage")
    np.testing.assert_array_equal(table["damage"], [1.0, 0.0, np.nan, 1.0])
    if "n/a" not in cells:  # which is a word, where words are read
        table = read_table(path, targets="damage", multilabel={"damage": ()})
        np.testing.assert_array_equal(table["damage"], [1.0, 0.0, np.nan, 1.0])


def test_booleans_of_a_dataframe_are_1_and_0_of_a_label_and_classes_of_a_target() -> None:
    known = pd.array([True, None, False], dtype="boolean")
    frame = pd.DataFrame({"image": ["a", "b", "c"], "crack": known, "moss": [False, True, True]})

    table = read_table(frame, targets=["crack", "moss"], indicators=["crack"])

    np.testing.assert_array_equal(table["crack"], [1.0, np.nan, 0.0])
    assert table["moss"].tolist() == ["False", "True", "True"]


def test_other_words_in_the_column_of_a_label_are_refused_with_what_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "yes", "no")
    with pytest.raises(DataError, match="holds the words 'no', 'yes'; expected 1 or true where"):
        read_table(path, targets="damage", indicators="damage")


def test_a_column_of_numbers_does_not_take_true_and_false(tmp_path: Path) -> None:
    path = written(tmp_path, "True", "False")
    with pytest.raises(DataError, match="'False', 'True'; expected numbers, as numbers="):
        read_table(path, targets="damage", numbers="damage")


def test_a_dataframe_is_read_as_a_file() -> None:
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "damage": ["crack;rust", None]})
    labels = labels_in(read_table(frame, targets="damage", multilabel={"damage": ()}))
    assert labels.words == (("crack", "rust"), None)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["crack;rust", "crack|moss"], "'1.png' is 'crack|moss', and other cells have ';'"),
        (['"crack, rust"', "moss"], "'0.png' is 'crack, rust'.*no comma in a label"),
        (["crack;none", "rust"], "'0.png' is 'crack;none'.*none alone"),
        (["crack;rust", ";"], "'1.png' is ';', without a word; expected none"),
        (["1", "2", "3"], "holds the numbers 1, 2, 3"),
        (["none", "none"], "has none in every cell"),
    ],
)
def test_doubtful_cells_are_refused(tmp_path: Path, cells: list[str], message: str) -> None:
    path = written(tmp_path, *cells)
    with pytest.raises(DataError, match=message):
        read_table(path, targets="damage", multilabel={"damage": ()})


def test_a_word_that_is_no_label_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "crack", "crak;rust")
    with pytest.raises(DataError, match=r"'1.png' has the word 'crak'.*Did you mean 'crack'"):
        read_table(path, targets="damage", multilabel={"damage": ("crack", "rust")})


def test_rare_words_that_differ_in_a_letter_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, *["crack;rust"] * 20, "crackk")
    with caplog.at_level(logging.WARNING):
        read_table(path, targets="damage", multilabel={"damage": ()})
    assert "'crackk' (1 row) and 'crack' (20 rows)" in caplog.text


def test_a_set_of_labels_or_another_column_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "crack;rust")
    with pytest.raises(DataError, match="expected a list of names"):
        read_table(path, targets="damage", multilabel={"damage": {"crack"}})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="neither a target nor auxiliary"):
        read_table(path, targets="damage", multilabel={"rust": ()})


def test_numbers_are_not_read_of_words(tmp_path: Path) -> None:
    table = Table.from_frame(
        read_table(written(tmp_path, "crack;rust"), targets="damage", multilabel={"damage": ()})
    )
    with pytest.raises(DataError, match="several labels in a row"):
        table.numbers("damage")


def test_labels_of_a_head_are_compared_with_those_of_a_table() -> None:
    labels = LabelSets(("rust",), (("rust",), None))
    expected = [[0.0, 1.0], [np.nan, np.nan]]
    assert np.array_equal(
        labels.indicators_of(("crack", "rust"), "damage", ["a", "b"]), expected, equal_nan=True
    )
    with pytest.raises(DataError, match="damage of 'a' has the word 'rust'"):
        labels.indicators_of(("crack",), "damage", ["a", "b"])
