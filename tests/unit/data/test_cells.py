"""What single cells of a table mean."""

from __future__ import annotations

import pytest

from dinoneck.data.cells import is_number, label_of

NUMBERS = [
    pytest.param("0", id="zero"),
    pytest.param("-1.5e3", id="exponent"),
    pytest.param("9.9e307", id="nearly the largest"),
    pytest.param("1e-307", id="the smallest"),
]
NO_NUMBERS = [
    pytest.param("", id="empty"),
    pytest.param("soil", id="word"),
    pytest.param("inf", id="infinite"),
    pytest.param("nan", id="not a number"),
    pytest.param("1_000", id="underscore of Python"),
    pytest.param("\uff11", id="digit of full width"),
    pytest.param("1e308", id="too large"),
    pytest.param("1e-308", id="too small to keep all digits"),
]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_that_float64_holds_is_a_number(text: str) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_other_texts_are_no_numbers(text: str) -> None:
    assert not is_number(text)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        pytest.param("crop", "crop", id="a word"),
        pytest.param("1e999", "1e999", id="no number of float64"),
        pytest.param("2.0", "2", id="a whole number"),
        pytest.param("0.50", "0.5", id="zeros behind"),
        pytest.param("-0", "0", id="minus zero"),
    ],
)
def test_a_label_has_one_spelling_of_a_number(text: str, label: str) -> None:
    assert label_of(text) == label
