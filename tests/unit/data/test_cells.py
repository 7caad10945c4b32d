"""What a single cell holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dinoneck.data.cells import cell_text, composed, is_missing, number_of, number_text, same_labels


@pytest.mark.parametrize(
    ("text", "number"),
    [
        pytest.param("1", 1.0, id="whole"),
        pytest.param("-1.5e-3", -0.0015, id="exponent"),
        pytest.param(".5", 0.5, id="no digit before the point"),
        pytest.param("1_000", None, id="underscore"),
        pytest.param("1,5", None, id="comma"),
        pytest.param("inf", None, id="infinite"),
        pytest.param("nan", None, id="nan"),
        pytest.param("1 kg", None, id="unit"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_number_is_what_float_reads_and_is_finite(text: str, number: float | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "number"), [("1,5", 1.5), ("1,100", 1.1), ("2", 2.0), ("1.5", None), ("1,2,3", None)]
)
def test_with_a_decimal_comma_a_point_is_no_number(text: str, number: float | None) -> None:
    assert number_of(text, ",") == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(" \ufeffa b\t", "a b", id="blanks and a byte order mark"),
        pytest.param("e\u0301", "é", id="composed"),
        pytest.param(2.0, "2", id="whole float"),
        pytest.param(np.float32(0.1), repr(float(np.float32(0.1))), id="single precision"),
        pytest.param(np.int64(7), "7", id="whole"),
        pytest.param(True, "True", id="truth value"),
        pytest.param("None", "None", id="a word that says missing among numbers"),
        pytest.param(None, "", id="None"),
        pytest.param(np.nan, "", id="nan"),
        pytest.param(pd.NaT, "", id="NaT"),
        pytest.param(pd.NA, "", id="NA"),
    ],
)
def test_a_value_is_what_a_csv_file_holds(value: object, text: str) -> None:
    assert cell_text(value) == text
    assert is_missing(value) == (text == "")


def test_a_text_is_composed_without_blanks_at_its_ends() -> None:
    assert composed(" pre\u0301s ") == "prés"


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        pytest.param(["1", "1.0", "01", "1e2"], ["1", "1", "1", "100"], id="numbers"),
        pytest.param(["1", "1.0", "a"], ["1", "1.0", "a"], id="words beside numbers"),
        pytest.param(["0.10", ".1", "-0", "0"], ["0.1", "0.1", "0", "0"], id="fractions"),
        pytest.param(["NA", "None"], ["NA", "None"], id="words that say missing among numbers"),
        pytest.param(
            ["1152921504606846977", "1152921504606846978"],
            ["1152921504606846977", "1152921504606846978"],
            id="whole numbers that float64 does not tell apart",
        ),
    ],
)
def test_labels_that_mean_the_same_are_equal(texts: list[str], labels: list[str]) -> None:
    assert same_labels(texts, row_names=range(len(texts)), what="group") == labels


def test_a_number_has_one_spelling() -> None:
    assert [number_text(text) for text in ("007", "7.0", "+7")] == ["7", "7", "7"]
