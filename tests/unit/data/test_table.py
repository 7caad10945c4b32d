"""The dataclass that training and evaluation read of a DataFrame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinoneck.data import Pasture
from dinoneck.data.arrays import class_codes
from dinoneck.data.folders import HELD_OUT
from dinoneck.data.table import Classes, LabelSets, Numbers, Table
from dinoneck.errors import DataError

IDS = ["a", "b", "c"]
FILES = [Path("a.png"), Path("b.png"), Path("c.png")]


def frame_of(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"images": pd.Series(FILES, dtype=object).to_list(), **columns}, index=IDS)


def test_ids_and_images_are_those_of_the_frame() -> None:
    table = Table.from_frame(frame_of())

    assert table.ids == IDS
    assert table.images == FILES
    assert len(table) == 3


def test_a_frame_without_targets_has_no_columns() -> None:
    table = Table.from_frame(frame_of(labels=FILES, group=[1, 1, 2], fold=[0, 1, 0]))
    assert table.columns == {}


def test_columns_keep_their_order() -> None:
    table = Table.from_frame(frame_of(b=[1, 2, 3], group=IDS, a=[4, 5, 6]))
    assert list(table.columns) == ["b", "a"]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0, None, 3.0], id="floats"),
        pytest.param(pd.Series([1, None, 3], IDS, dtype=object), id="objects"),
        pytest.param(pd.Series(["1", None, "3"], IDS, dtype=object), id="texts"),
    ],
)
def test_numbers_are_float64_and_nan_where_missing(values: Any) -> None:
    numbers = Table.from_frame(frame_of(mass=values)).numbers("mass")

    assert numbers.dtype == np.float64
    np.testing.assert_array_equal(numbers, [1.0, np.nan, 3.0])


def test_numbers_are_copies() -> None:
    frame = frame_of(mass=[1.0, 2.0, 3.0])
    table = Table.from_frame(frame)
    frame.loc["a", "mass"] = 9.0
    assert table.numbers("mass")[0] == 1.0


def test_a_column_of_numbers_has_no_classes() -> None:
    table = Table.from_frame(frame_of(mass=[1.0, 2.0, 3.0]))

    assert table.class_names("mass") == ()
    with pytest.raises(DataError, match="'mass'.*no classes"):
        table.classes("mass")


def test_classes_without_a_row_stay() -> None:
    kinds = pd.Categorical(["crop", None, "weed"], categories=["bare", "crop", "weed"])
    classes = Table.from_frame(frame_of(kind=kinds)).classes("kind")

    assert classes.names == ("bare", "crop", "weed")
    assert classes.codes.dtype == np.int64
    assert classes.codes.tolist() == [1, -1, 2]


def test_classes_that_are_numbers_are_read_as_such() -> None:
    table = Table.from_frame(frame_of(grade=pd.Categorical([2, 1, None])))

    assert table.class_names("grade") == (1, 2)
    np.testing.assert_array_equal(table.numbers("grade"), [2.0, 1.0, np.nan])
    assert table.classes("grade").codes_in(["2", "1"], "grade", table.ids).tolist() == [0, 1, -1]


def test_classes_are_numbered_as_those_of_a_head() -> None:
    kinds = pd.Categorical(["crop", None, "weed"], categories=["bare", "crop", "weed"])
    table = Table.from_frame(frame_of(kind=kinds))
    classes = table.classes("kind")

    assert classes.codes_in(["weed", "crop"], "kind", table.ids).tolist() == [1, -1, 0]
    with pytest.raises(DataError, match="kind has the class 'crop'"):
        classes.codes_in(["weed", "bare"], "kind", table.ids)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pd.Categorical(["x", "y", "x"]), id="classes"),
        pytest.param(["x", "y", "x"], id="words"),
        pytest.param(pd.to_datetime(["2024-01-01"] * 3), id="dates"),
        pytest.param(pd.to_timedelta([1, 2, 3], unit="D"), id="times"),
        pytest.param([1 + 2j, 1j, 2j], id="complex"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_needed(values: Any) -> None:
    table = Table.from_frame(frame_of(mass=[1.0, 2.0, 3.0], seen=values))

    assert table.numbers("mass").tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="'seen'"):
        table.numbers("seen")


def test_an_image_without_a_mask_has_none() -> None:
    table = Table.from_frame(frame_of(labels=[FILES[0], None, np.nan]))

    assert table.masks == [FILES[0], None, None]
    assert [table.has_mask(row) for row in range(3)] == [True, False, False]


def test_without_a_column_of_masks_no_image_has_one() -> None:
    table = Table.from_frame(frame_of())

    assert table.masks is None
    assert not table.has_mask(0)


def test_groups_and_folds_are_those_of_the_frame() -> None:
    table = Table.from_frame(frame_of(group=["x", "x", "y"], fold=[1, 0, 1]))

    assert table.has_groups
    assert table.groups == ["x", "x", "y"]
    assert table.folds == [1, 0, 1]


def test_without_groups_every_image_has_its_own() -> None:
    table = Table.from_frame(frame_of())

    assert not table.has_groups
    assert table.groups == [0, 1, 2]
    assert table.folds is None


@pytest.mark.parametrize(
    ("attrs", "has_parts", "held_out"),
    [
        pytest.param({}, False, None, id="no parts"),
        pytest.param({HELD_OUT: None}, True, None, id="each in turn"),
        pytest.param({HELD_OUT: "val"}, True, "val", id="one is held out"),
    ],
)
def test_the_part_that_is_held_out(
    attrs: dict[str, Any], has_parts: bool, held_out: str | None
) -> None:
    frame = frame_of(fold=["train", "val", "train"])
    frame.attrs = attrs

    table = Table.from_frame(frame)

    assert table.has_parts == has_parts
    assert table.held_out == held_out


def test_rows_are_taken_with_everything_that_is_known_of_them() -> None:
    frame = frame_of(
        labels=FILES,
        group=["x", "y", "z"],
        fold=["train", "val", "train"],
        mass=[1.0, 2.0, 3.0],
        kind=pd.Categorical(["crop", "weed", "weed"]),
        day=pd.to_datetime(["2024-01-01"] * 3),
    )
    frame.attrs = {HELD_OUT: "val", "weights": {"mass": 0.5}}

    taken = Table.from_frame(frame).take([2, 0])

    assert taken.ids == ["c", "a"]
    assert taken.images == [FILES[2], FILES[0]]
    assert taken.masks == [FILES[2], FILES[0]]
    assert taken.groups == ["z", "x"]
    assert taken.folds == ["train", "train"]
    assert taken.numbers("mass").tolist() == [3.0, 1.0]
    assert taken.classes("kind").codes.tolist() == [1, 0]
    assert taken.class_names("kind") == ("crop", "weed")
    assert taken.held_out == "val"
    assert taken.weights == {"mass": 0.5}
    with pytest.raises(DataError, match="'day'"):
        taken.numbers("day")


def test_groups_that_are_rows_are_numbered_anew() -> None:
    taken = Table.from_frame(frame_of()).take(np.array([2, 0]))
    assert taken.groups == [0, 1]


def test_a_taken_table_may_have_no_rows() -> None:
    taken = Table.from_frame(frame_of(mass=[1.0, 2.0, 3.0])).take([])

    assert len(taken) == 0
    assert taken.numbers("mass").shape == (0,)


def test_a_frame_without_images_is_refused() -> None:
    frame = pd.DataFrame({"mass": [1.0]})
    with pytest.raises(DataError, match="no column 'images'"):
        Table.from_frame(frame)


def test_two_columns_of_one_name_are_refused() -> None:
    frame = frame_of(mass=[1.0, 2.0, 3.0])
    twice = pd.concat([frame, frame[["mass"]]], axis=1)
    with pytest.raises(DataError, match="'mass'"):
        Table.from_frame(twice)


def test_generated_images_have_masks_groups_and_weights() -> None:
    frame = Pasture(seed=0).table(range(4))

    table = Table.from_frame(frame)

    assert table.ids == list(frame.index)
    assert table.has_groups
    assert all(table.has_mask(row) for row in range(4))
    assert table.weights == frame.attrs["weights"]
    assert all(isinstance(column, Numbers) for column in table.columns.values())


def test_a_class_column_that_the_frame_narrows_keeps_its_names() -> None:
    kinds = pd.Categorical(["crop", "weed", "crop"])
    frame = frame_of(kind=kinds)

    table = Table.from_frame(frame[frame["kind"] == "crop"])

    column = table.columns["kind"]
    assert isinstance(column, Classes)
    assert column.names == ("crop", "weed")


def test_labels_without_stated_names_are_those_that_occur() -> None:
    words = [("rust",), None, ("moss", "rust")]
    frame = pd.DataFrame({"images": ["a.png", "b.png", "c.png"], "damage": words})

    column = Table.from_frame(frame).columns["damage"]

    assert isinstance(column, LabelSets)
    assert column.names == ("moss", "rust")
    assert column.words == tuple(words)


def test_categories_are_numbered_as_they_are_where_no_classes_are_named() -> None:
    values = pd.Series(["weed", "crop", None], dtype="category")

    codes = class_codes(values, "kind", ())

    assert codes.tolist() == [1, 0, -1]
