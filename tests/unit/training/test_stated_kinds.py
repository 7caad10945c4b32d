"""The kind that the file of a training states of a column decides how the column is read."""

from __future__ import annotations

import pandas as pd
import pytest

from dinoneck import DataError
from dinoneck.training import TrainConfig
from dinoneck.training.table import table_of


def config_of(kind: str | None) -> TrainConfig:
    config = TrainConfig.from_dict({"data": {"targets": ["y"]}, "tasks": {"y": {"kind": kind}}})
    return config.changed(data=config.data.changed(store="tokens"))


def frame_of(*cells: str) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{place}.png" for place in range(len(cells))], "y": cells})


def test_codes_are_numbers_where_the_kind_says_so() -> None:
    table = table_of(config_of("regression"), frame_of("05", "10", "07"))

    assert table.numbers("y").tolist() == [5.0, 10.0, 7.0]


@pytest.mark.parametrize("kind", ["classification", None])
def test_codes_are_classes_otherwise(kind: str | None) -> None:
    table = table_of(config_of(kind), frame_of("05", "10", "07"))

    classes = table.classes("y")
    assert [classes.names[code] for code in classes.codes] == ["05", "10", "07"]


def test_a_column_of_words_whose_kind_is_regression_is_refused_with_the_kind() -> None:
    with pytest.raises(DataError, match="y of '0.png' is 'weed'"):
        table_of(config_of("regression"), frame_of("weed", "soil", "weed"))


def test_one_word_in_a_column_whose_kind_is_regression_is_named() -> None:
    with pytest.raises(DataError, match="y of '1.png' is 'weed'"):
        table_of(config_of("regression"), frame_of("1.5", "weed", "2.5"))
