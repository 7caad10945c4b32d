"""Cells, columns and whole tables: what was written is read, however it was written."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dinoneck.data import read_table
from dinoneck.data.cells import (
    cell_text,
    cell_texts,
    csv_text,
    is_missing,
    is_number,
    number_text,
    same_labels,
    stripped,
)
from dinoneck.data.columns import Column, read_numbers
from dinoneck.data.csv_files import read_csv_file
from dinoneck.data.table import Table

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 6))
# letters in both forms of an accent, marks of CSV files and numbers, blanks, and marks that no one sees
cells = st.text("aN7é\u0301\"';,=.-|\t\n \u00a0\u2009\ufeff\u200b\u200e木", max_size=8)
few_examples = settings(max_examples=25)  # of tests that write a file or read a table for each
words = st.text("abcdxyz", min_size=1, max_size=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written again for every example."""
    return tmp_path_factory.mktemp("tables") / "table.csv"


# cells


@given(cells)
@example("\ufeff nan")
def test_the_text_of_a_cell_is_the_text_of_its_text(cell: str) -> None:
    text = cell_text(cell)

    assert cell_text(text) == text


@given(cells)
def test_a_cell_is_missing_where_its_text_is_empty(cell: str) -> None:
    assert is_missing(cell) == (cell_text(cell) == "")


@given(st.lists(cells, max_size=5) | st.lists(words | st.just("nan"), max_size=5))
def test_a_column_is_read_as_each_of_its_cells(column: list[str]) -> None:
    assert cell_texts(column) == [cell_text(cell) for cell in column]


# labels that are numbers


@given(st.integers(-(10**12), 10**12), st.integers(0, 4), st.integers(0, 3))
def test_spellings_of_a_number_are_one_label(number: int, zeros: int, more_zeros: int) -> None:
    sign = "-" if number < 0 else ""
    spelled = sign + "0" * zeros + str(abs(number))
    with_point = spelled + "." + "0" * more_zeros

    assert number_text(spelled) == number_text(with_point) == str(number)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False))
def test_numbers_are_one_label_only_where_they_are_equal(first: Decimal, second: Decimal) -> None:
    assume(is_number(str(first)))
    assume(is_number(str(second)))

    assert (number_text(str(first)) == number_text(str(second))) == (first == second)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_groups_that_are_numbers_are_compared_as_numbers(
    groups: list[int], data: st.DataObject
) -> None:
    spellings = [data.draw(st.sampled_from([str(i), f"{i}.0", f"0{i}", f" {i}"])) for i in groups]

    labels = same_labels(spellings, row_names=range(len(groups)), what="group")

    assert labels == [str(group) for group in groups]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), words)
def test_next_to_a_word_numbers_are_words(groups: list[int], word: str) -> None:
    spellings = [f"{group}.0" for group in groups]

    labels = same_labels([*spellings, word], row_names=range(len(groups) + 1), what="group")

    assert labels == [*spellings, word]


# numbers


@given(st.lists(numbers, min_size=1, max_size=6))
def test_numbers_of_python_are_read_to_the_bit(column: list[float]) -> None:
    texts = [repr(number) for number in column]

    assert read_numbers(Column("y", "t.csv", texts, texts)) == column


@given(st.lists(numbers, min_size=1, max_size=6))
def test_a_decimal_comma_changes_no_number(column: list[float]) -> None:
    texts = [repr(number).replace(".", ",") for number in column]

    assert read_numbers(Column("y", "t.csv", texts, texts, ",")) == column


# CSV files


@few_examples
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_quoted_cells_are_read_as_they_were_written(
    file: Path, rows: list[tuple[str, str]], separator: str
) -> None:
    quoted = [["image", "note"], *rows]
    lines = []
    for row in quoted:
        lines.append(separator.join('"' + cell.replace('"', '""') + '"' for cell in row))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    # rows without anything are left out
    assume(all(stripped("".join(map(stripped, row))) for row in rows))

    table = read_csv_file(file, columns=["image", "note"])

    assert table.header == ["image", "note"]
    assert table.separator == separator
    assert table.rows == [[stripped(cell) for cell in row] for row in rows]


@few_examples
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_a_table_that_dinoneck_writes_is_the_table_that_it_reads(
    file: Path, rows: list[tuple[str, str]]
) -> None:
    file.write_text(csv_text(["image", "note"], rows), encoding="utf-8")

    table = read_csv_file(file)

    assert table.rows == [list(row) for row in rows]


@few_examples
@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=5),
    st.sampled_from(["utf-16", "utf-8-sig"]),
)
def test_the_encoding_of_a_file_changes_no_cell(
    file: Path, rows: list[tuple[str, str]], encoding: str
) -> None:
    file.write_text(csv_text(["image", "ñ"], rows), encoding=encoding)

    table = read_csv_file(file)

    assert table.header == ["image", "ñ"]
    assert table.rows == [list(row) for row in rows]


# tables of images


@few_examples
@given(st.lists(numbers, min_size=1, max_size=6))
def test_a_target_is_read_to_the_bit(file: Path, column: list[float]) -> None:
    rows = [[f"{row}.png", repr(number)] for row, number in enumerate(column)]
    file.write_text(csv_text(["image", "y"], rows), encoding="utf-8")

    table = read_table(file, targets="y", numbers="y")

    assert table["y"].tolist() == column


@few_examples
@given(st.lists(numbers | st.none(), min_size=1, max_size=6))
def test_a_frame_and_its_file_are_one_table(file: Path, column: list[float | None]) -> None:
    assume(any(number is not None for number in column))
    frame = pd.DataFrame(
        {"image": [f"{row}.png" for row in range(len(column))], "y": np.array(column, float)}
    )
    frame.to_csv(file, index=False)

    of_file = read_table(file, targets="y", numbers="y")
    of_frame = read_table(frame, targets="y", numbers="y")

    pd.testing.assert_frame_equal(of_file, of_frame)


covers = st.lists(st.sampled_from(["bare", "grass", "weed"]), min_size=3, max_size=8)


@few_examples
@given(covers.filter(lambda column: len(set(column)) > 1), st.randoms())
def test_classes_do_not_depend_on_the_order_of_rows(column: list[str], random: object) -> None:
    names = [f"{row}.png" for row in range(len(column))]
    frame = pd.DataFrame({"image": names, "cover": column})
    order = list(range(len(column)))
    random.shuffle(order)  # type: ignore[attr-defined]

    table = read_table(frame, targets="cover")
    shuffled = read_table(frame.iloc[order], targets="cover")

    assert list(shuffled["cover"].cat.categories) == sorted(set(column))
    assert shuffled.loc[table.index, "cover"].tolist() == column


# rows of a table


@pytest.fixture(scope="module")
def table() -> Table:
    """Six images with a number, a class, a group and a fold."""
    frame = pd.DataFrame(
        {
            "images": [f"{row}.png" for row in range(6)],
            "y": [0.5, np.nan, 2.0, 3.0, 4.0, 5.0],
            "cover": pd.Categorical(["bare", "grass", None, "grass", "bare", "weed"]),
            "group": [*"aabbcc"],
            "fold": [*"xyxyxy"],
        },
        index=[f"id {row}" for row in range(6)],
    )
    return Table.from_frame(frame)


rows_of_six = st.lists(st.integers(0, 5), max_size=8)


@given(rows_of_six)
def test_rows_that_are_taken_keep_all_that_is_known_of_them(table: Table, rows: list[int]) -> None:
    taken = table.take(rows)

    assert len(taken) == len(rows)
    assert taken.ids == [f"id {row}" for row in rows]
    assert taken.images == [f"{row}.png" for row in rows]
    assert taken.groups == ["aabbcc"[row] for row in rows]
    assert taken.folds == ["xyxyxy"[row] for row in rows]
    np.testing.assert_array_equal(taken.numbers("y"), table.numbers("y")[rows])


@given(rows_of_six)
def test_classes_without_a_row_stay(table: Table, rows: list[int]) -> None:
    taken = table.take(rows)

    assert taken.class_names("cover") == ("bare", "grass", "weed")


@given(rows_of_six.filter(len), st.data())
def test_taking_twice_is_taking_the_rows_of_the_rows(
    table: Table, rows: list[int], data: st.DataObject
) -> None:
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))

    taken = table.take(rows).take(again)

    at_once = table.take([rows[row] for row in again])
    assert taken.ids == at_once.ids
    assert taken.groups == at_once.groups
    np.testing.assert_array_equal(taken.numbers("y"), at_once.numbers("y"))
