"""What is a date, as people and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck.data import dates, read_table
from dinoneck.data.dates import is_compact_day, is_date, is_time

DATES = [
    pytest.param("01. Mai", True, id="day and month of German Excel"),
    pytest.param("01.Mai", True, id="German, without a blank"),
    pytest.param("1.Mai.24", True, id="German, without a blank and with a year"),
    pytest.param("1.Mai 2024", True, id="German, with a blank before the year"),
    pytest.param("1.mag", False, id="a number and a short Italian name"),
    pytest.param("1.Maiglocke", False, id="a number and a word that begins like a month"),
    pytest.param("3 septiembre 2024", True, id="Spanish"),
    pytest.param("Ao\u00fbt-24", True, id="French month"),
    pytest.param("2024-05-01 10:30", True, id="with a time"),
    pytest.param("3 marigold", False, id="a word that begins like a month"),
    pytest.param("05-mag", True, id="Italian"),
    pytest.param("5 maggio", True, id="Italian, whole"),
    pytest.param("Mar-05", True, id="month and year of Excel"),
    pytest.param("May 3, 2024", True, id="American"),
    pytest.param("5\u67081\u65e5", True, id="Japanese"),
    pytest.param("F\u00e9v 2024", False, id="a short French name with a blank"),
    pytest.param("Set 1", False, id="numbered sets"),
    pytest.param("gen 12", False, id="numbered generations"),
    pytest.param("mag 3", False, id="numbered magnets"),
    pytest.param("dec 2", False, id="numbered words that are English months"),
    pytest.param("Mar-1", False, id="a month and one digit"),
    pytest.param("2 maize", False, id="another such word"),
    pytest.param("10:30", False, id="a time alone"),
]


@pytest.mark.parametrize(("text", "expected"), DATES)
def test_what_is_a_date(text: str, expected: bool) -> None:
    assert is_date(text) == expected


def test_numbered_sets_are_classes_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,y\na,Set 1\nb,Set 2\nc,Mar 1\n", encoding="utf-8")

    table = read_table(path, targets="y")

    assert table["y"].tolist() == ["Set 1", "Set 2", "Mar 1"]
    assert caplog.messages == []


@pytest.mark.parametrize("language", sorted(dates.MONTHS))
def test_every_language_has_twelve_months(language: str) -> None:
    whole = dates.MONTHS[language].split()

    assert len(whole) == 12 + (language == "Spanish")  # setiembre and septiembre
    for month in whole:
        assert is_date(f"3 {month} 2024")


def test_months_are_recognised_without_accents() -> None:
    assert is_date("3 fevrier 2024")


@pytest.mark.parametrize(
    ("text", "expected"), [("10:30", True), ("1:05:20.5", True), ("9:30 pm", True), ("10", False)]
)
def test_what_is_a_time(text: str, expected: bool) -> None:
    assert is_time(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("20240531", True), ("20241301", False), ("18990101", False)]
)
def test_what_is_a_day_in_one_number(text: str, expected: bool) -> None:
    assert is_compact_day(text) == expected
