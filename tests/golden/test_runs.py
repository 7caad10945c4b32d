"""Whole runs give the recorded reports, tables, logs and heads."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.golden.runs import CASES, FILE, differences, measure

STORED: dict[str, Any] = json.loads(FILE.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_gives_what_is_recorded(name: str, tmp_path: Path) -> None:
    measured = measure(name, tmp_path)
    assert differences(STORED[name], measured, name) == [], (
        f"if this is meant: python -m tests.golden.runs {name}"
    )


def test_every_case_is_recorded() -> None:
    assert list(STORED) == list(CASES)


RUN = "training/grouped_folds_patience_ema_linear"
TABLE = f"{RUN}/out_of_fold.csv"


def test_what_is_recorded_equals_itself() -> None:
    for name, stored in STORED.items():
        assert differences(stored, deepcopy(stored), name) == []


def test_a_prediction_that_differs_by_more_than_rounding_is_found() -> None:
    stored = STORED[RUN]["out_of_fold.csv"]
    largest = max(stored["soil (head)"])
    rounded = deepcopy(stored)
    rounded["soil (head)"][3] += 1e-3 * largest
    wrong = deepcopy(stored)
    wrong["soil (head)"][3] += 1e-2 * largest

    assert differences(stored, rounded, TABLE) == []
    assert len(differences(stored, wrong, TABLE)) == 1


def test_another_image_and_another_fold_are_found() -> None:
    stored = STORED[RUN]["out_of_fold.csv"]
    wrong = deepcopy(stored)
    wrong["image"][0] = "07.png"
    wrong["fold"][1] = "0"

    lines = differences(stored, wrong, TABLE)

    assert [line.partition(":")[0] for line in lines] == [f"{TABLE}/image/0", f"{TABLE}/fold/1"]


def test_another_order_of_keys_is_found() -> None:
    stored = STORED[RUN]["report.json"]
    wrong = dict(reversed(stored.items()))
    assert len(differences(stored, wrong, f"{RUN}/report.json")) == 1


def test_a_number_that_the_user_states_is_compared_by_its_own_size() -> None:
    address = f"{RUN}/head.safetensors/header/config"
    assert differences({"weight": 0.001}, {"weight": 0.002}, address) != []


def test_a_number_that_is_missing_or_nan_is_found() -> None:
    stored = {"r2": 0.5}
    assert differences(stored, {"r2": None}, RUN) != []
    assert differences(stored, {"r2": float("nan")}, RUN) != []


def test_a_tensor_of_other_values_or_another_shape_is_found() -> None:
    file = f"{RUN}/head.safetensors"
    stored = STORED[RUN]["head.safetensors"]
    names = list(stored["tensors"])
    wrong = deepcopy(stored)
    wrong["tensors"][names[0]]["shape"] = "float32 1"
    wrong["tensors"][names[1]]["statistics"][0] *= 1.01

    lines = differences(stored, wrong, file)

    expected = [f"{file}/tensors/{names[0]}/shape", f"{file}/tensors/{names[1]}"]
    assert [line.partition(":")[0] for line in lines] == expected
