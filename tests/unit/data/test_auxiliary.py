"""Columns that only help: states and heights are read as they stand, gaps are gaps, strangers are named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from dinoneck import DataError
from dinoneck.data.auxiliary import read_classes, read_numbers

TABLE = "image,State,Height_Ave_cm\na,Vic,3.5\nb,,\nc,Tas,nan\nd,NSW,1e1\ne,WA,0\n"
IDS = ["e", "a", "b", "c", "d"]


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text)
    return path


def test_states_are_numbered_tas_nsw_wa_vic_and_gaps_are_minus_one(tmp_path: Path) -> None:
    found = read_classes(written(tmp_path, TABLE), IDS, "State")
    assert found is not None
    assert found.tolist() == [2, 3, -1, 0, 1]
    assert found.dtype == np.int64


def test_heights_and_their_gaps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = read_numbers(written(tmp_path, TABLE), IDS, "Height_Ave_cm")
    assert found is not None
    np.testing.assert_array_equal(found, [0.0, 3.5, np.nan, np.nan, 10.0])
    assert "Height_Ave_cm is missing for 2 of 5 photos" in caplog.text


def test_an_absent_or_empty_column_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_classes(written(tmp_path, "image,x\na,1\n"), ["a"], "State") is None
    assert "has no column 'State'; training goes without it" in caplog.text
    assert read_numbers(written(tmp_path, "image,h\na,\nb,nan\n"), ["a", "b"], "h") is None
    assert "column 'h' is empty" in caplog.text
    with pytest.raises(DataError, match="no column 'State'.*It has: image, x"):
        read_numbers(written(tmp_path, "image,x\na,1\n"), ["a"], "State", required=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "image,State\na,Vc\n",
            "State of a is 'Vc'; expected one of Tas, NSW, WA, Vic, or nothing. Did you mean 'Vic'",
        ),
        ("image,State\na,Vic\na,Tas\n", "State of a is 'Vic' in one row and 'Tas' in another"),
        ("image,State\na,vic\n", "State of a is 'vic'"),
    ],
)
def test_a_state_that_cannot_be_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_classes(written(tmp_path, text), ["a"], "State")


@pytest.mark.parametrize("cell", ["tall", "inf", "1,5"])
def test_a_height_that_is_no_number_is_named(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match="h of a is"):
        read_numbers(written(tmp_path, f'image,h\na,"{cell}"\n'), ["a"], "h")
