"""Weights of targets in the overall score: where they are read from, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.meadow import a_run

from dinoneck import ConfigError, DataError
from dinoneck.training.config import DataConfig
from dinoneck.training.target_weights import (
    check_target_weights,
    read_target_weights,
    read_words,
)


def test_pairs_a_csv_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    file.write_text("target,weight\ncrop,0.3\n weed ,0.7\n")

    by_words = read_words(["crop=0.3", "weed=0.7"])
    by_file = read_words([str(file)])
    by_config = DataConfig(target_weights=str(file)).target_weights

    assert by_words == by_file == by_config == {"crop": 0.3, "weed": 0.7}


def test_the_name_of_a_target_may_hold_an_equals_sign() -> None:
    assert read_words(["a=b=2"]) == {"a=b": 2.0}


@pytest.mark.parametrize(
    "weights, message",
    [
        pytest.param({"crop": -1.0}, "crop is -1", id="negative"),
        pytest.param({"crop": math.nan}, "crop is nan", id="NaN"),
        pytest.param({"crop": math.inf}, "crop is inf", id="infinite"),
        pytest.param({"crop": "much"}, "crop is much", id="word"),
        pytest.param({"crop": 0.0, "weed": 0}, "are all 0", id="all 0"),
    ],
)
def test_a_weight_that_is_no_share_is_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_target_weights(weights)


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param("target,share\ncrop,1\n", "no column 'weight'", id="column"),
        pytest.param("target,weight\ncrop,1\ncrop,2\n", "'crop' twice", id="twice"),
        pytest.param("target,weight\n", "no rows", id="empty"),
    ],
)
def test_a_file_of_weights_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "weights.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_target_weights(file)


def test_an_unknown_target_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"names 'weeds'.*Did you mean 'weed'\?"):
        check_target_weights({"crop": 1.0, "weeds": 1.0}, ["crop", "weed"])


def test_a_target_without_a_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weight of weed"):
        check_target_weights({"crop": 1.0}, ["crop", "weed"])


def test_a_record_holds_weights_only_where_they_are_set() -> None:
    without = a_run(None, data={"csv": "cover.csv"}).to_dict()["data"]
    with_weights = a_run(None, data={"csv": "cover.csv", "target_weights": {"crop": 1}}).to_dict()

    assert "target_weights" not in without
    assert with_weights["data"]["target_weights"] == {"crop": 1.0}
