"""What the cells of one column are: numbers, classes or labels. What is refused is in tests/refusals/data.py."""

from __future__ import annotations

import math

import pytest

from dinoneck.data.columns import (
    Column,
    DecimalMark,
    decimal_mark,
    read_classes,
    read_indicators,
    read_labels,
    read_numbers,
)
from dinoneck.errors import DataError


def column(*cells: str, decimal: DecimalMark = ".") -> Column:
    ids = [f"{row}.png" for row in range(len(cells))]
    return Column("y", "t.csv", cells, ids, decimal)


@pytest.mark.parametrize("word", ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "None", "none"])
def test_among_numbers_words_that_say_missing_are_missing(word: str) -> None:
    first, second = read_numbers(column("1.5", word))

    assert first == 1.5
    assert math.isnan(second)


@pytest.mark.parametrize("word", ["NA", "nan", "none"])
def test_among_words_they_are_classes(word: str) -> None:
    assert read_classes(column("weed", word, "weed")) == ([1, 0, 1], sorted([word, "weed"]))


@pytest.mark.parametrize(
    ("cells", "has_codes"),
    [
        pytest.param(["007", "12"], True, id="a zero before digits"),
        pytest.param(["007", "NA", ""], True, id="missing cells beside codes"),
        pytest.param(["0", "10"], False, id="the number 0"),
        pytest.param(["0.7", "12"], False, id="a fraction"),
        pytest.param(["007", "1.5"], False, id="other numbers beside digits"),
        pytest.param(["007", "a"], False, id="words"),
    ],
)
def test_digits_alone_that_begin_with_zero_are_codes(cells: list[str], has_codes: bool) -> None:
    assert column(*cells).has_codes() == has_codes


@pytest.mark.parametrize(
    ("cells", "names", "codes", "classes"),
    [
        pytest.param(["b", "", "a"], (), [1, -1, 0], ["a", "b"], id="those that occur, sorted"),
        pytest.param(["b", "a"], ["b", "a", "c"], [0, 1], ["b", "a", "c"], id="those listed"),
        pytest.param(["Weed", "weed"], (), [0, 1], ["Weed", "weed"], id="capitals differ"),
        pytest.param(["10", "2"], (), [1, 0], ["2", "10"], id="numbers by their size"),
        pytest.param(["1.0", "1", "2"], (), [0, 0, 1], ["1", "2"], id="spellings of a number"),
        pytest.param(["1.0", "2.0"], [1, 2], [0, 1], ["1", "2"], id="numbers among listed"),
        pytest.param(["1.1", "1.10"], ["1.1", "1.10"], [0, 1], ["1.1", "1.10"], id="names"),
        pytest.param(["007", "7"], (), [0, 1], ["007", "7"], id="codes are texts"),
        pytest.param(["1", "NA"], (), [0, -1], ["1"], id="a missing word among numbers"),
        pytest.param(["1", "none"], ["none", "1"], [1, 0], ["none", "1"], id="a listed word"),
        pytest.param(["x", "1.0"], (), [1, 0], ["1.0", "x"], id="numbers beside words"),
    ],
)
def test_classes_and_their_order(
    cells: list[str], names: list[object], codes: list[int], classes: list[str]
) -> None:
    assert read_classes(column(*cells), names) == (codes, classes)


@pytest.mark.parametrize(
    ("cells", "separator", "mark"),
    [
        pytest.param(["1,5", "2"], ";", ",", id="a comma"),
        pytest.param(["1.5", "2"], ";", ".", id="a point"),
        pytest.param(["1,5 kg", "a,b"], ";", ".", id="words"),
        pytest.param(["1,5", "2"], "\t", ".", id="another separator"),
    ],
)
def test_a_file_with_semicolons_has_the_decimal_mark_of_its_numbers(
    cells: list[str], separator: str, mark: str
) -> None:
    assert decimal_mark([column("3"), column(*cells)], separator) == mark


def test_two_decimal_marks_in_one_file_are_refused_with_both_cells() -> None:
    columns = [column("1.5", "2"), column("3", "2,25")]

    with pytest.raises(DataError) as refused:
        decimal_mark(columns, ";")

    for cell in ("'1.5'", "'0.png'", "'2,25'", "'1.png'"):
        assert cell in str(refused.value)


def test_true_and_false_are_1_and_0() -> None:
    values = read_indicators(column("TRUE", "false", "1.0", "0"))

    assert values == [1.0, 0.0, 1.0, 0.0]


def test_an_empty_indicator_is_unknown() -> None:
    assert math.isnan(read_indicators(column("1", ""))[1])


@pytest.mark.parametrize(
    ("cells", "names", "labels", "all_names"),
    [
        pytest.param(["b;a", "a"], (), [("a", "b"), ("a",)], ("a", "b"), id="semicolons"),
        pytest.param(["b | a", "a"], (), [("a", "b"), ("a",)], ("a", "b"), id="bars"),
        pytest.param(["a;a;", "b"], (), [("a",), ("b",)], ("a", "b"), id="twice, and nothing"),
        pytest.param(["None", "", "a"], (), [(), None, ("a",)], ("a",), id="none, and unknown"),
        pytest.param(["a;b"], ["b", "c", "a"], [("b", "a")], ("b", "c", "a"), id="listed"),
    ],
)
def test_labels_are_between_semicolons_or_bars(
    cells: list[str],
    names: list[str],
    labels: list[tuple[str, ...] | None],
    all_names: tuple[str, ...],
) -> None:
    assert read_labels(column(*cells), names) == (labels, all_names)
