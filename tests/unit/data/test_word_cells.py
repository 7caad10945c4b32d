"""Words as people and spreadsheets write them: what looks like a mistake is named, and nothing is joined."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dinoneck import DataError
from dinoneck.data import read_table
from dinoneck.data.word_cells import (
    lookalike_key,
    similar_names,
    warn_of_class_names,
    warn_of_dates,
    warn_of_joined_numbers,
    warn_of_thousands,
    warn_of_words,
)

ALIKE = [
    pytest.param("Weed", " weed", id="case and blank"),
    pytest.param("1", "1.0", id="whole numbers"),
    pytest.param("01", "1", id="leading zeros"),
    pytest.param("1,50", "1.5", id="decimal marks"),
    pytest.param("01.05.2024", "1.5.2024", id="days with and without zeros"),
    pytest.param("2024-05-01 00:00:00", "2024-05-01", id="midnight of pandas"),
    pytest.param("2024-05-01T00:00", "2024-05-01", id="midnight of ISO 8601"),
    pytest.param("01-Mai", "1-mai", id="month names"),
    pytest.param("tall-grass", "tall grass", id="dash between letters"),
    pytest.param("'weed'", "weed", id="quotes"),
    pytest.param("spec.", "spec", id="full stop"),
    pytest.param("P01", "P1", id="leading zeros of a name"),
    pytest.param("1 234", "1234", id="blank between thousands"),
    pytest.param("c\u0430t", "cat", id="a letter of Cyrillic"),
    pytest.param("Tr\u00e8fle", "Trefle", id="accents"),
    pytest.param("Gr\u00fcnland", "Gr\u00c3\u00bcnland", id="UTF-8 read as Windows-1252"),
    pytest.param("A &amp; B", "A & B", id="characters of HTML"),
    pytest.param("0.30000000000000004", "0.3", id="last digits of a sum"),
    pytest.param("2.9999999999999996", "3", id="nearly whole"),
    pytest.param("0.30000001192092896", "0.3", id="float32 in float64"),
]
DIFFERENT = [
    pytest.param("1_11", "11_1", id="plots"),
    pytest.param("1.50", "1.05", id="decimals"),
    pytest.param("2024-05-01 10:30", "2024-05-01", id="another time"),
    pytest.param("1-11", "11-1", id="plots with dashes"),
    pytest.param("C-", "C", id="grades"),
    pytest.param("1.05 m", "1.5 m", id="decimals with a unit"),
    pytest.param("P100", "P1", id="zeros at the end of a name"),
    pytest.param("a-1", "a1", id="dash before a digit"),
    pytest.param("plot 1", "plot 10", id="names with numbers"),
    pytest.param("0.123456789012", "0.123456789013", id="12 digits"),
    pytest.param("123456789012345678", "123456789012345679", id="long whole numbers"),
    pytest.param("\u304b\u304d", "\u304c\u304d", id="marks of Japanese letters"),
]


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_words_that_a_reader_takes_for_one_have_one_key(first: str, second: str) -> None:
    assert lookalike_key(first) == lookalike_key(second)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_other_words_have_keys_of_their_own(first: str, second: str) -> None:
    assert lookalike_key(first) != lookalike_key(second)


def test_similar_names_are_grouped_in_the_order_of_their_first_one() -> None:
    names = ["Weed", "soil", "crop", "Soil", "weed", "SOIL"]

    groups = similar_names(names)

    assert groups == [["Weed", "weed"], ["soil", "Soil", "SOIL"]]


def test_the_key_decides_which_names_are_similar() -> None:
    names = ["a b", "A B", "a_b"]

    groups = similar_names(names, key=str.casefold)

    assert groups == [["a b", "A B"]]


TWO_WAYS = [
    pytest.param(["2024-05-01", "02.05.2024"], id="ISO and German"),
    pytest.param(["1.5.24", "02.05.2024"], id="years of two and four digits"),
    pytest.param(["5/1/2024", "2024/05/02"], id="American and Japanese"),
    pytest.param(["2024-05-01 10:30:00", "02.05.2024"], id="with and without time"),
    pytest.param(["2024-05-01T10:30:00Z", "02.05.2024"], id="ISO 8601 with a zone"),
    pytest.param(["2024-05-01", "20240502"], id="in one number"),
    pytest.param(["2024-05-01", "45415"], id="number of Excel"),
    pytest.param(["2024-05-01", "3 May 2024"], id="month in words"),
]
ONE_WAY = [
    pytest.param(["2024-05-01", "2024-05-02", "later"], id="ISO"),
    pytest.param(["1.5.2024", "10.12.2024"], id="without zeros"),
    pytest.param(["2024-05-01 10:30", "2024-05-01 11:00:00"], id="times"),
    pytest.param(["1-2-3", "101-2-33"], id="plots"),
    pytest.param(["0.1.2", "10.0.1"], id="versions"),
    pytest.param(["20240501", "20240502"], id="numbers alone"),
    pytest.param(["45415", "3"], id="numbers of plots"),
    pytest.param(["3-5", "3-6"], id="pairs"),
    pytest.param(["3-May", "4-Jun"], id="days without a year"),
]


@pytest.mark.parametrize("made", ["3-May", "03. Mai", "Mar-05", "2024-05-03 00:00:00"])
def test_dates_that_spreadsheets_make_of_names_are_named_next_to_such_names(
    caplog: pytest.LogCaptureFixture, made: str
) -> None:
    warn_of_dates("t.csv: plot", {"3-6": 4, made: 2}, "groups")

    [message] = caplog.messages
    assert "'3-6'" in message
    assert f"{made!r}, in 2 rows" in message


NAMES_OF_NUMBERS = [
    pytest.param({"1.1": ["1.1", "1.10"]}, "'1.1' and '1.10'", id="plots of a block"),
    pytest.param({"7": ["007", "7"]}, "'007' and '7'", id="leading zeros"),
    pytest.param({"7": ["07.0", "7"]}, "'07.0' and '7'", id="leading zeros and a decimal"),
]


@pytest.mark.parametrize(("spellings", "named"), NAMES_OF_NUMBERS)
def test_numbers_that_may_be_names_of_two_things_are_named(
    caplog: pytest.LogCaptureFixture, spellings: dict[str, list[str]], named: str
) -> None:
    warn_of_joined_numbers("t.csv: plot", spellings, "groups")

    [message] = caplog.messages
    assert named in message


def test_whole_numbers_with_and_without_decimals_are_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_joined_numbers("t.csv: plot", {"7": ["7", "7.0", "7.00", "7e0"]}, "groups")

    assert caplog.messages == []


THOUSANDS = [
    pytest.param(["1.001", "1001"], "'1.001' (1 row) and '1001' (1 row)", id="point"),
    pytest.param(["1001.0", "1,001"], "'1,001' (1 row) and '1001.0' (1 row)", id="comma"),
    pytest.param(["1.010", "1 010"], "'1.010' (1 row) and '1 010' (1 row)", id="blank"),
    pytest.param(["1.001.002", "1001002"], "'1.001.002' (1 row) and", id="millions"),
]


@pytest.mark.parametrize(("names", "named"), THOUSANDS)
def test_names_that_are_one_number_without_marks_between_thousands_are_named(
    caplog: pytest.LogCaptureFixture, names: list[str], named: str
) -> None:
    has_named = warn_of_thousands("t.csv: plot", dict.fromkeys(names, 1), "groups")

    [message] = caplog.messages
    assert named in message
    assert has_named


NO_THOUSANDS = [
    pytest.param(["1.001", "1.002", "999"], id="no other number has these digits"),
    pytest.param(["1.01", "101"], id="two decimals"),
    pytest.param(["0.101", "101"], id="below 1"),
    pytest.param(["1.001,002", "1001002"], id="two marks"),
]


@pytest.mark.parametrize("names", NO_THOUSANDS)
def test_other_names_of_digits_may_be_no_thousands(
    caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    has_named = warn_of_thousands("t.csv: plot", dict.fromkeys(names, 1), "groups")

    assert caplog.messages == []
    assert not has_named


@pytest.mark.parametrize("rows", ["1.001 1001 999", "1.010 1010 999", "1,001 1001 999"])
def test_groups_with_and_without_a_mark_between_thousands_are_named_and_not_joined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str
) -> None:
    first, second, third = rows.split()
    path = write(tmp_path, f"image;plot;y\na;{first};1\nb;{second};2\nc;{third};3\n")

    table = read_table(path, targets="y", group="plot")

    assert table["group"].nunique() == 3
    [message] = caplog.messages
    assert f"plot has groups that may be one number: {first!r} (1 row) and {second!r}" in message


def test_groups_of_a_dataframe_with_a_point_between_thousands_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "y": [1.0, 2.0], "plot": [1.001, 1001.0]})

    read_table(frame, targets="y", group="plot")

    [message] = caplog.messages
    assert "'1.001' (1 row) and '1001' (1 row)" in message


@pytest.mark.parametrize("rows", ["1.001 1.002 999 998", "1,001 1,002 999 998"])
def test_classes_with_a_mark_that_may_be_between_thousands_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str
) -> None:
    names = rows.split()
    lines = [f"{place};{name}\n" for place, name in enumerate(names)]
    path = write(tmp_path, f"image;y\n{''.join(lines)}")

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].tolist() == names
    [message] = caplog.messages
    assert (
        f"y has the class {names[0]!r} next to '999'; if the mark is between thousands" in message
    )


@pytest.mark.parametrize("rows", ["1.1 1.2 999 998", "1.001 1.002 1.003", "a.001 a1 b"])
def test_other_classes_of_numbers_are_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str
) -> None:
    names = rows.split()
    lines = [f"{place},{name}\n" for place, name in enumerate(names)]
    path = write(tmp_path, f"image,y\n{''.join(lines)}")

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].tolist() == names
    assert caplog.messages == []


WITH_LETTERS = [
    pytest.param("1.5 a, 1.2 b, 2.1 ab, 1.1 c, 1.4 bc, 1.7 a", True, id="significance"),
    pytest.param("1.5a, 1.2b", True, id="significance without a blank"),
    pytest.param("47.5N, 48.1S, 49.2N", True, id="latitudes"),
    pytest.param("7.5 E, 8.1 W", True, id="longitudes"),
    pytest.param("1.5 a, 2 b, 2.1 ab", True, id="one without decimals"),
    pytest.param("1a, 2a, 3b", False, id="numbered names"),
    pytest.param("1.5 a, 1.2 b, clover", False, id="a word among them"),
    pytest.param("1.5 grass, 1.2 soil", False, id="words"),
    pytest.param("v1.5a, v1.2b", False, id="versions"),
]


@pytest.mark.parametrize(("column", "is_named"), WITH_LETTERS)
def test_classes_of_decimal_numbers_with_letters_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, is_named: bool
) -> None:
    names = column.split(", ")
    lines = [f"{place},{name}\n" for place, name in enumerate(names)]
    path = write(tmp_path, f"image,y\n{''.join(lines)}")

    table = read_table(path, targets="y")

    assert table["y"].tolist() == names
    assert len(caplog.messages) == is_named
    if is_named:
        assert "numbers with letters after them, such as those of" in caplog.text
        assert repr(names[0]) in caplog.text


def test_numbers_with_letters_that_are_said_to_be_classes_are_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_class_names("t.csv: y", ["1.5a", "1.2b"], may_be_numbers=False)

    assert caplog.messages == []


QUANTITIES = [
    pytest.param(["5 cm", "10 cm", "unknown"], True, id="most with a unit"),
    pytest.param(["1.5 kg/ha", "2 Kg/ha", "3 g/m2"], True, id="several units"),
    pytest.param(["ca. 3", "about 4"], True, id="about"),
    pytest.param(["EUR 3", "EUR 4.50"], True, id="currency before"),
    pytest.param(["1a", "2a", "Gras"], False, id="classes with a letter"),
    pytest.param(["plot 1", "plot 2"], False, id="numbered names"),
    pytest.param(["0N", "50N", "100N"], False, id="levels of a treatment"),
    pytest.param(["2D", "3D"], False, id="names of one letter"),
    pytest.param(["1.5N", "3N"], True, id="decimals with one unit"),
    pytest.param(["5 cm", "grass", "clover"], False, id="one with a unit"),
]


@pytest.mark.parametrize(("names", "is_named"), QUANTITIES)
def test_classes_of_numbers_with_units_or_words_are_named(
    caplog: pytest.LogCaptureFixture, names: list[str], is_named: bool
) -> None:
    warn_of_class_names("t.csv: y", names)

    assert len(caplog.messages) == is_named


def test_numbers_with_units_that_are_said_to_be_classes_are_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_class_names("t.csv: pot", ["5 cm", "10 cm"], may_be_numbers=False)

    assert caplog.messages == []


LISTS = [
    pytest.param(["a", "b", "a;b"], "'a;b'", id="semicolon"),
    pytest.param(["dry", "cold", "dry, cold"], "'dry, cold'", id="comma and blank"),
    pytest.param(["u|v", "u", "v"], "'u|v'", id="bar"),
]


@pytest.mark.parametrize(("names", "named"), LISTS)
def test_a_class_that_joins_others_is_named(
    caplog: pytest.LogCaptureFixture, names: list[str], named: str
) -> None:
    warn_of_class_names("t.csv: y", names)

    [message] = caplog.messages
    assert f"the class {named}" in message


def test_a_class_with_a_mark_between_other_words_is_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_class_names("t.csv: y", ["grass/clover", "grass", "soil"])

    assert caplog.messages == []


@pytest.mark.parametrize("names", TWO_WAYS)
def test_dates_in_two_ways_are_named(caplog: pytest.LogCaptureFixture, names: list[str]) -> None:
    warn_of_dates("t.csv: day", dict.fromkeys(names, 1), "groups")

    [message] = caplog.messages
    for name in names:
        assert repr(name) in message


@pytest.mark.parametrize("names", ONE_WAY)
def test_dates_in_one_way_are_not_named(caplog: pytest.LogCaptureFixture, names: list[str]) -> None:
    warn_of_dates("t.csv: day", dict.fromkeys(names, 1), "groups")

    assert caplog.messages == []


@pytest.mark.parametrize(
    ("names", "is_named"),
    [
        (["WAHR", "FALSCH", "TRUE", "FALSE"], True),
        (["ja", "nein", "Yes"], True),
        (["T", "F", "TRUE"], True),
        (["TRUE", "FALSE"], False),
        (["yes", "no", "unsure"], False),
    ],
    ids=["two languages", "one word of another", "R's letters", "two words", "a third class"],
)
def test_truth_in_several_words_is_named(
    caplog: pytest.LogCaptureFixture, names: list[str], is_named: bool
) -> None:
    warn_of_class_names("t.csv: wet", names)

    assert len(caplog.messages) == is_named


def test_prices_as_classes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_class_names("t.csv: price", ["R$ 5,00", "R$ 7,50"])

    [message] = caplog.messages
    assert "'R$ 5,00'" in message


LOST = [
    pytest.param("Wei\ufffdklee", "'Wei\ufffdklee'", id="a letter was lost"),
    pytest.param(
        "Gr\u00c3\u00bcnland",
        "'Gr\u00c3\u00bcnland', which was 'Gr\u00fcnland'",
        id="UTF-8 as Latin",
    ),
]


@pytest.mark.parametrize(("name", "named"), LOST)
def test_words_in_another_encoding_are_named(
    caplog: pytest.LogCaptureFixture, name: str, named: str
) -> None:
    warn_of_words("t.csv: y", {name: 2, "Gras": 1, "\u00c4hren": 3}, "classes", remedy="")

    [message] = caplog.messages
    assert f"letters of another encoding: {named}. Save the table as UTF-8" in message


@pytest.mark.parametrize("role", ["group", "fold_column"])
def test_numbers_that_differ_in_the_last_digits_of_a_sum_are_named_and_not_joined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    path = write(tmp_path, "image,y,dose\na,1,0.1\nb,2,0.3\nc,3,0.30000000000000004\n")

    table = read_table(path, targets="y", **{role: "dose"})

    names = table["group" if role == "group" else "fold"]
    assert names.tolist() == ["0.1", "0.3", "0.30000000000000004"]
    [message] = caplog.messages
    assert "'0.3' (1 row) and '0.30000000000000004' (1 row)" in message


def write(folder: Path, text: str) -> Path:
    path = folder / "plots.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_groups_as_spreadsheets_write_long_numbers_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "image,plot,y\na,4.05123E+12,1\nb,4.05123E+12,2\nc,7,3\n")

    table = read_table(path, targets="y", group="plot")

    assert table["group"].tolist() == ["4051230000000", "4051230000000", "7"]
    [message] = caplog.messages
    assert "'4.05123E+12', in 2 rows" in message


def test_a_group_that_says_missing_is_to_be_filled_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "image,plot,y\na,P1,1\nb,NA,2\nc,NA,3\n")

    read_table(path, targets="y", group="plot")

    [message] = caplog.messages
    assert "'NA' is one of the groups, in 2 rows" in message
    assert "fill in" in message


def test_error_values_are_no_groups(tmp_path: Path) -> None:
    path = write(tmp_path, "image,plot,y\na,P1,1\nb,#N/A,2\nc,#N/A,3\n")

    with pytest.raises(DataError, match="plot of 'b' is '#N/A'"):
        read_table(path, targets="y", group="plot")


def test_days_of_a_dataframe_and_their_texts_are_named(caplog: pytest.LogCaptureFixture) -> None:
    days = [pd.Timestamp("2024-05-01"), "2024-05-01", "2024-05-02"]
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": [1.0, 2.0, 3.0], "day": days})

    read_table(frame, targets="y", group="day")

    [message] = caplog.messages
    assert "'2024-05-01' (1 row) and '2024-05-01 00:00:00' (1 row)" in message
