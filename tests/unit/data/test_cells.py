"""One rule for every cell: stripped, missing only if empty or ``nan``, and numbers compared as numbers in labels."""

from __future__ import annotations

import datetime
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoneck import DataError, Task
from dinoneck.data import read_folders, read_table
from dinoneck.data.cells import csv_text
from dinoneck.training import group_folds
from dinoneck.training.table import column_folds

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "prés") for form in ("NFC", "NFD"))


def written(folder: Path, **columns: list[Any]) -> Path:
    """A table of images a.jpg, b.jpg, ... with these columns."""
    count = len(next(iter(columns.values())))
    names = [f"{'abcdefghijkl'[i]}.jpg" for i in range(count)]
    path = folder / "t.csv"
    path.write_text(csv_text(["image", *columns], zip(names, *columns.values(), strict=True)), encoding="utf-8")
    return path


def partition(labels: Any) -> list[int]:
    """The number of each label's first row."""
    return [list(labels).index(label) for label in labels]


SPELLINGS = [
    (["1", "1.0", " 1", "1 ", "01", "2", "2.00"], [0, 0, 0, 0, 0, 5, 5]),
    (["1", "1.0", "a", " a", "1", "01"], [0, 1, 2, 2, 0, 5]),
    (["1e2", "100", "0.10", ".1", "-0", "0"], [0, 0, 2, 2, 4, 4]),
    (["NA", "None", "NA ", "null", "-"], [0, 1, 0, 3, 4]),
    ([COMPOSED, DECOMPOSED, "pres"], [0, 0, 2]),
    (["1152921504606846977", "1152921504606846978", "1152921504606846977.0"], [0, 1, 0]),
    (["1e999999999999999999999999", "1e400", "1e400"], [0, 1, 1]),
]


@pytest.mark.parametrize(("cells", "expected"), SPELLINGS)
def test_groups_and_folds_that_mean_the_same_are_one(tmp_path: Path, cells: list[str], expected: list[int]) -> None:
    path = written(tmp_path, y=list(range(len(cells))), g=cells)
    table = read_table(path, targets="y", group="g", fold_column="g")
    assert partition(table["group"]) == partition(table["fold"]) == expected
    pair = read_table(
        written(tmp_path, y=list(range(len(cells))), g=cells, h=["x"] * len(cells)), targets="y", group=["g", "h"]
    )
    assert partition(pair["group"]) == expected
    count = len(set(expected))
    held_out = [valid.tolist() for _, valid in group_folds(cells, count, seed=0)]
    assert sorted(held_out) == sorted([i for i, first in enumerate(expected) if first == own] for own in {*expected})
    by_label = [valid.tolist() for _, valid in column_folds(cells)]
    assert sorted(by_label) == sorted(held_out)


def test_a_frame_has_the_groups_of_its_csv(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for cells, expected in SPELLINGS:
        frame = pandas.DataFrame(
            {"y": list(range(len(cells))), "g": cells}, index=[f"{i}.jpg" for i in range(len(cells))]
        )
        assert partition(read_table(frame, targets="y", group="g")["group"]) == expected
    frame = pandas.DataFrame({"y": [1, 2, 3], "g": [1.0, "1", 2]}, index=["a.jpg", "b.jpg", "c.jpg"])
    assert partition(read_table(frame, targets="y", group="g")["group"]) == [0, 0, 2]


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", " NAN "])
def test_a_missing_group_or_fold_is_refused_with_its_rows(tmp_path: Path, cell: str) -> None:
    path = written(tmp_path, y=[1, 2, 3, 4], g=["p", cell, "q", cell])
    for role in ("group", "fold_column"):
        with pytest.raises(DataError, match=r"'g'.*b\.jpg, d\.jpg"):
            read_table(path, targets="y", **{role: "g"})
    for call in (lambda labels: group_folds(labels, 2, seed=0), column_folds):
        with pytest.raises(DataError, match="row 1, row 3"):
            call(["p", cell, "q", cell])


def test_objects_that_are_missing_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    for nothing in (pandas.NA, None, float("nan"), pandas.NaT, np.datetime64("NaT"), np.float32("nan")):
        with pytest.raises(DataError, match="row 0, row 1"):
            group_folds([nothing, nothing, "a"], 2, seed=0)
        frame = pandas.DataFrame({"y": [1, 2, 3], "g": ["p", nothing, "q"]}, index=["a.jpg", "b.jpg", "c.jpg"])
        with pytest.raises(DataError, match=r"'g'.*b\.jpg"):
            read_table(frame, targets="y", group="g")
    assert len(group_folds([("field", 1), ("field", 2)], 2, seed=0)) == 2


@pytest.mark.parametrize("role", ["targets", "auxiliary"])
def test_classes_that_mean_the_same_are_one(tmp_path: Path, role: str) -> None:
    other = {"targets": "y"} if role == "auxiliary" else {}

    def classes(cells: list[str], **options: Any) -> tuple[list[int], tuple[str, ...]]:
        path = written(tmp_path, c=cells, y=list(range(len(cells))))
        table = read_table(path, **{role: "c"}, **other, **options)
        return table["c"].cat.codes.tolist(), tuple(table["c"].cat.categories)

    assert classes([COMPOSED, DECOMPOSED, " pres ", "pres"]) == ([1, 1, 0, 0], ("pres", COMPOSED))
    assert classes(["2", "02", "10.0", "10"], classes={"c": ()}) == ([0, 0, 1, 1], ("2", "10"))
    assert classes(["2", "02", "10.0", "x"], classes={"c": ()}) == ([1, 0, 2, 3], ("02", "2", "10.0", "x"))
    assert classes(["2.0", "01", " 3"], classes={"c": ("1", "2", "3")}) == ([1, 0, 2], ("1", "2", "3"))
    assert classes([DECOMPOSED, "x"], classes={"c": ("x", COMPOSED)}) == ([1, 0], ("x", COMPOSED))
    assert classes(["NA", "None", "", "nan"]) == ([0, 1, -1, -1], ("NA", "None"))
    for listed in (("1", "1.0"), (COMPOSED, DECOMPOSED), ("1", "nan"), ("1", "")):
        with pytest.raises(DataError, match="c: the classes are"):
            classes(["1", "1"], classes={"c": listed})


def test_only_empty_cells_and_nan_are_missing_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, y=["1", "", " nan", "NaN ", " 2.5 "])
    np.testing.assert_array_equal(read_table(path, targets="y")["y"], [1, np.nan, np.nan, np.nan, 2.5])
    for word in ("NA", "None", "n/a", "null", "-", "<NA>", "-nan", "inf"):
        with pytest.raises(DataError, match=rf"y of 'c\.jpg' is '{word}'"):
            read_table(written(tmp_path, y=["1", "2", word]), targets="y")
        with pytest.raises(DataError, match=rf"'{word}'|y of 'a\.jpg'"):
            read_table(written(tmp_path, y=["1", word, word, word]), targets="y")


def test_names_of_images_and_masks_are_stripped_and_stay_text(tmp_path: Path) -> None:
    for name in ("007.jpg", "1.0", "m.png"):
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "t.csv"
    path.write_text("image,y,mask\n 007.jpg ,1, m.png\n1.0 ,2,\n")
    table = read_table(path, tmp_path, "y", labels="mask")
    assert table.index.tolist() == ["007.jpg", "1.0"]
    assert table["labels"].tolist() == [tmp_path / "m.png", None]
    path.write_text("image,y\n007.jpg,1\n 007.jpg,2\n")
    with pytest.raises(DataError, match="'007.jpg' stands more than once"):
        read_table(path, tmp_path, "y")


def test_class_folders_of_one_name_are_one_class(tmp_path: Path) -> None:
    for folder in (COMPOSED, DECOMPOSED, "oats", "oats "):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"x")
    table = read_folders(tmp_path)
    assert table["class"].cat.categories.tolist() == ["oats", COMPOSED]
    assert sorted(table["class"].cat.codes.items()) == sorted(
        [(f"{COMPOSED}/1.jpg", 1), (f"{DECOMPOSED}/1.jpg", 1), ("oats/1.jpg", 0), ("oats /1.jpg", 0)]
    )


@pytest.mark.parametrize(
    "times",
    [
        np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[ns]"),
        [datetime.date(2020, 1, day) for day in (1, 2, 3)],
    ],
    ids=["datetime64", "dates"],
)
def test_times_are_neither_numbers_nor_classes(times: Any) -> None:
    pandas = pytest.importorskip("pandas")
    from tests.unit.training.small_fit import IDS, head, run

    ids = ["a.jpg", "b.jpg", "c.jpg"]
    for role in ({"targets": "when"}, {"targets": "y", "auxiliary": "when"}):
        with pytest.raises(DataError, match="when"):
            read_table(pandas.DataFrame({"when": times, "y": [1.0, 2.0, 3.0]}, index=ids), **role)
    grouped = read_table(pandas.DataFrame({"when": times, "y": [1.0, 2.0, 3.0]}, index=ids), targets="y", group="when")
    assert partition(grouped["group"]) == [0, 1, 2]
    with pytest.raises(DataError, match="when"):
        run(
            module=head(Task("when")),
            targets=pandas.DataFrame({"when": [*times, *times]}, index=IDS),
            target_ids=None,
        )
    with pytest.raises(DataError, match="'y'"):
        run(targets={"y": np.concatenate([times, times])})


def test_numbers_that_cannot_be_kept_name_their_row(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from tests.unit.training.small_fit import IDS, run

    for cell in ("1e200", "-1e39"):
        with pytest.raises(DataError, match=rf"'b\.jpg' is '{cell}'"):
            read_table(written(tmp_path, y=["1", cell, "2"]), targets="y")
    exact = [str(2**53), str(2**60), "1e15"]
    assert read_table(written(tmp_path, y=exact), targets="y")["y"].tolist() == [2.0**53, 2.0**60, 1e15]
    with pytest.raises(DataError, match=r"'y' is 1e\+200 for 's3'"):
        run(targets=pandas.DataFrame({"y": [1, 2, 3, 1e200, 5, 6]}, index=IDS), target_ids=None)
