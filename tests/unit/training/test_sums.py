"""Columns of parts and wholes that contradict each other are refused or named before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinoneck import Backbone, DataError
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig
from dinoneck.training.problem import read_problem

LEAF = np.array([30.0, 12.0, 55.0, 20.0, 41.0, 8.0])
STEM = np.array([10.0, 30.0, 25.0, 20.0, 9.0, 52.0])
TASKS = {"mass": {"columns": ["total"]}, "shares": {"kind": "ratio", "columns": ["leaf", "stem"]}}
PARTS_OF_TOTAL = {"masses": {"total": "mass", "ratio": "shares"}}
SUM_OF_TASKS = {"sums": {"sums": {"total": ["leaf", "stem"]}}}


def sort_targets(
    backbone: Backbone, columns: dict[str, Any], tasks: Any = None, compositions: Any = None
) -> None:
    images = [np.zeros((32, 48, 3), np.uint8)] * len(LEAF)
    frame = pd.DataFrame(columns | {"images": pd.Series(images, dtype=object)})
    groups = {"tasks": tasks or {}, "compositions": compositions or {}}
    targets = [] if tasks else ["leaf", "stem"]
    config = TrainConfig.from_dict({"data": {"targets": targets}} | groups)
    read_problem(config, Table.from_frame(frame), backbone.preprocess)


def test_parts_and_sums_that_agree_say_nothing(
    tiny: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    rounded = {"total": np.round(1.03 * (LEAF + STEM)), "leaf": LEAF, "stem": STEM}

    sort_targets(tiny, rounded, TASKS, PARTS_OF_TOTAL)
    sort_targets(tiny, rounded, compositions=SUM_OF_TASKS)

    assert caplog.messages == []


PERCENT = 100 * LEAF / (LEAF + STEM)
CONTRADICTIONS = [
    pytest.param(LEAF + STEM, PERCENT, 100 - PERCENT, "the medians are 46 and 100", id="percent"),
    pytest.param(1.5 * (LEAF + STEM), LEAF, STEM, "the medians are 69 and 46", id="a part missing"),
]


@pytest.mark.parametrize(("total", "leaf", "stem", "medians"), CONTRADICTIONS)
def test_a_total_in_another_unit_than_its_parts_is_refused(
    tiny: Backbone, total: Any, leaf: Any, stem: Any, medians: str
) -> None:
    with pytest.raises(DataError) as refused:
        sort_targets(tiny, {"total": total, "leaf": leaf, "stem": stem}, TASKS, PARTS_OF_TOTAL)

    message = str(refused.value)
    assert (
        "composition 'masses' says that total is leaf + stem, and they differ in 6 of 6" in message
    )
    assert medians in message


def test_a_sum_of_tasks_that_the_table_has_in_another_unit_is_refused(tiny: Backbone) -> None:
    columns = {"total": (LEAF + STEM) / 1000, "leaf": LEAF, "stem": STEM}

    with pytest.raises(DataError, match="'sums' says that total is leaf [+] stem"):
        sort_targets(tiny, columns, compositions=SUM_OF_TASKS)


def test_single_rows_that_do_not_add_up_are_counted(
    tiny: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    total = LEAF + STEM
    total[2] = 800.0
    total[4] = np.nan

    sort_targets(tiny, {"total": total, "leaf": LEAF, "stem": STEM}, TASKS, PARTS_OF_TOTAL)

    assert caplog.messages == [
        "composition 'masses': total is not leaf + stem in 1 image, such as 2 (800 and 80); correct "
        "the rows, or leave their cells empty"
    ]


SHARES = LEAF / (LEAF + STEM)
IN_PERCENT = np.array([1, 1, 1, 1, 100, 100])
SUMS = [
    pytest.param(
        0.6, "leaf + stem is about 0.6 in all images, and is read as 1", id="missing part"
    ),
    pytest.param(1.1, "leaf + stem is about 1.1 in all images, and is read as 1", id="overlap"),
    pytest.param(IN_PERCENT, "leaf + stem is 1 in 4 images and 100 in 2 images", id="two units"),
]


@pytest.mark.parametrize(("factor", "named"), SUMS)
def test_shares_of_another_sum_than_1_are_named(
    tiny: Backbone, caplog: pytest.LogCaptureFixture, factor: Any, named: str
) -> None:
    columns = {"total": LEAF, "leaf": factor * SHARES, "stem": factor * (1 - SHARES)}

    sort_targets(tiny, columns, TASKS)

    [line] = caplog.messages
    assert line.startswith(f"task 'shares': {named}")


SOUND = [
    pytest.param(SHARES, 1 - SHARES, id="shares"),
    pytest.param(np.round(SHARES, 2), np.round(1 - SHARES, 2) + 0.01, id="rounded shares"),
    pytest.param(PERCENT, 100 - PERCENT, id="percent"),
    pytest.param(LEAF, STEM, id="masses"),
    pytest.param(LEAF / 100, STEM / 100, id="masses below 1"),
    pytest.param(np.arange(1.0, 7.0), 49 - np.arange(1.0, 7.0), id="counts of 49 points"),
]


@pytest.mark.parametrize(("leaf", "stem"), SOUND)
def test_shares_percent_masses_and_counts_say_nothing(
    tiny: Backbone, caplog: pytest.LogCaptureFixture, leaf: Any, stem: Any
) -> None:
    sort_targets(tiny, {"total": LEAF, "leaf": leaf, "stem": stem}, TASKS)

    assert caplog.messages == []
