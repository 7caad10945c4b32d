"""Classes of which a fold holds out images and trains on none are named in the log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinoneck import DataError
from dinoneck.data.cells import FOLD
from dinoneck.data.folders import HELD_OUT
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig
from dinoneck.training.folds import Fold, folds_of

KINDS = ["bare", "crop", "bare", "crop", "bare", "weedy"]


def frame_of(kinds: list[Any] = KINDS) -> pd.DataFrame:
    """Six images in two folds; the only weedy one is in the second."""
    ids = [f"image {i}" for i in range(6)]
    columns = {"kind": pd.Categorical(kinds), "cover": range(6), FOLD: [0, 0, 0, 1, 1, 1]}
    return pd.DataFrame({"images": ids, **columns}, index=ids)


def table(kinds: list[Any] = KINDS) -> Table:
    return Table.from_frame(frame_of(kinds))


def config(**data: Any) -> TrainConfig:
    named = data or {"targets": ["kind", "cover"]}
    return TrainConfig.from_dict({"data": named, "folds": {"column": "part"}})


@pytest.mark.parametrize("role", ["targets", "aux_targets"])
def test_a_class_that_a_fold_holds_out_and_does_not_train_on_is_named(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "aux_targets" if role == "targets" else "targets"

    folds_of(config(**{role: ["kind"], other: ["cover"]}), table())

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "fold 1 holds out images of the kind weedy and trains on none: they cannot be predicted "
        "right. Use other folds (--stratify kind), or remove what is too rare"
    )


def test_classes_that_every_fold_trains_on_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    folds_of(config(), table(["bare", "crop", "weedy", "weedy", "crop", "bare"]))

    assert not caplog.records


def test_images_without_a_class_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    folds_of(config(), table(["bare", "crop", "bare", "crop", "bare", None]))

    assert not caplog.records


def test_one_head_on_all_images_holds_out_none(caplog: pytest.LogCaptureFixture) -> None:
    one = TrainConfig.from_dict({"data": {"targets": ["kind"]}, "folds": {"count": 1}})

    folds_of(one, table())

    assert not caplog.records


@pytest.mark.parametrize(
    ("groups", "num_named"),
    [(list("abcdef"), 1), (list("aabbcc"), 0), (list("aabcde"), 0)],
    ids=["each its own", "pairs", "one pair"],
)
def test_groups_that_keep_nothing_together_are_named(
    groups: list[str], num_named: int, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = TrainConfig.from_dict({"data": {"targets": ["cover"]}, "folds": {"count": 2}})

    frame = frame_of().drop(columns=FOLD).assign(group=groups)

    folds_of(drawn, Table.from_frame(frame))

    named = [
        line for line in caplog.messages if "each of the 6 images has a group of its own" in line
    ]
    assert len(named) == num_named


def test_parts_without_a_column_of_folds_are_refused() -> None:
    frame = frame_of().drop(columns=FOLD)
    frame.attrs = {HELD_OUT: "val"}
    drawn = TrainConfig.from_dict({"data": {"targets": ["cover"]}})

    with pytest.raises(DataError, match="has no column of folds; keep the column, or clear"):
        folds_of(drawn, Table.from_frame(frame))


def test_a_rare_value_of_the_column_to_stratify_by_is_in_every_fold() -> None:
    """Three of 24 rows have a 0: more than four in five have a 1, and all quantiles are 1."""
    rare_rows = [1, 5, 6]
    ids = [f"image {i}" for i in range(24)]
    values = [0.0 if i in rare_rows else 1.0 for i in range(24)]
    frame = pd.DataFrame({"images": ids, "damaged": values}, index=ids)
    run = TrainConfig.from_dict(
        {"data": {"targets": ["damaged"]}, "folds": {"count": 3, "stratify": "damaged"}}
    )

    folds = folds_of(run, Table.from_frame(frame))

    assert [len({*fold.valid} & {*rare_rows}) for fold in folds] == [1, 1, 1]


def test_a_fold_is_named_in_messages_as_people_call_it() -> None:
    rows = np.arange(2)
    assert Fold(number=0, train=rows[:1], valid=rows[1:]).title == "fold 0"
    assert Fold.of_all_images(2).title == "the head of all images"
