"""Tables of images: one rule decides which cells are missing, numbers or equal; the generated pasture."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests import kit
from tests.refusals.data import touched

from dinoneck import DataError, PatchMeanHead, Task, Tokens
from dinoneck.data import Pasture, count_classes, read_folders, read_masks, read_table
from dinoneck.data.cells import csv_text
from dinoneck.training import MemoryTokens, fit, group_folds
from dinoneck.training.folds import column_folds

TEXT = """image,Höhe der Narbe (cm),Art,% cover,site,part,count
a.jpg,3.5,Weißklee,0.5,p,x,3
b.jpg,,Gras,1e-3,p,y,1
c.jpg,12,Gras,0,q,x,
d.jpg,NaN,1a,1,q,y,2
"""
ROLES: dict[str, Any] = {
    "targets": ["% cover", "Art"],
    "auxiliary": ["Höhe der Narbe (cm)", "count"],
    "group": "site",
    "fold_column": "part",
}
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "prés") for form in ("NFC", "NFD"))


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def columns(folder: Path, **cells: list[Any]) -> Path:
    """A table of images a.jpg, b.jpg, ... with these columns."""
    names = [f"{sign}.jpg" for sign in "abcdefghijkl"]
    return written(folder, csv_text(["image", *cells], zip(names, *cells.values(), strict=False)))


def partition(labels: Any) -> list[int]:
    """The number of each label's first row."""
    return [list(labels).index(label) for label in labels]


def test_numbers_words_and_gaps(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, TEXT), **ROLES)
    assert table["% cover"].tolist() == [0.5, 0.001, 0.0, 1.0]
    assert table["Art"].cat.categories.tolist() == ["1a", "Gras", "Weißklee"]
    assert table["Art"].tolist() == ["Weißklee", "Gras", "Gras", "1a"]
    np.testing.assert_array_equal(table["Höhe der Narbe (cm)"], [3.5, np.nan, 12.0, np.nan])
    assert (table["group"].tolist(), table["fold"].tolist()) == (
        ["p", "p", "q", "q"],
        ["x", "y", "x", "y"],
    )
    listed = {"Art": ("Weißklee", "Gras", "1a", "Klette"), "count": ("3", "2", "1")}
    table = read_table(tmp_path / "t.csv", targets="Art", auxiliary="count", classes=listed)
    assert table["Art"].cat.codes.tolist() == [0, 1, 1, 2]
    assert table["count"].cat.codes.tolist() == [0, 2, -1, 1]
    assert tuple(table["Art"].cat.categories) == listed["Art"]


def test_files_masks_and_groups_of_several_columns(tmp_path: Path) -> None:
    touched(tmp_path, "a.jpg", "b.jpg", "a.png")
    path = written(tmp_path, "\ufeffimage,mask,y,g,h\na.jpg,a.png,1,p | q,r\nb.jpg,,2,p,q | r\n")
    table = read_table(path, tmp_path, "y", group=["g", "h"], labels="mask")
    assert table.columns.tolist() == ["images", "y", "group", "labels"]
    assert table["images"].tolist() == [tmp_path / name for name in table.index]
    assert table["labels"].tolist() == [tmp_path / "a.png", None]
    assert table["group"].nunique() == 2
    two = read_table(
        columns(tmp_path, y=[1, 2], field=["f1", "f1"], day=[1, 2]),
        targets="y",
        group=["field", "day"],
    )
    assert two["group"].tolist() == ["f1 | 1", "f1 | 2"]


@pytest.mark.parametrize(
    ("separator", "mark"), [(";", ","), (";", "."), ("\t", ","), ("\t", "."), (",", ".")]
)
def test_separators_and_decimal_marks(tmp_path: Path, separator: str, mark: str) -> None:
    cells = [
        ["image", "y", "class"],
        ["a.jpg", "1.5", "x.1"],
        ["b.jpg", "-2e-3", "x.2"],
        ["c.jpg", "", "x.1"],
    ]
    lines = [
        separator.join([row[0], *(cell.replace(".", mark) for cell in row[1:])]) for row in cells
    ]
    table = read_table(written(tmp_path, "\n".join(lines)), targets=["y", "class"])
    np.testing.assert_array_equal(table["y"], [1.5, -0.002, np.nan])
    assert table["class"].tolist() == [f"x{mark}1", f"x{mark}2", f"x{mark}1"]


@pytest.mark.parametrize(
    "text",
    [
        "image,y\ra.jpg,1.5\rb.jpg,2.5\r",
        "image,y\r\na.jpg,1.5\r\nb.jpg,2.5\r\n",
        'image;"height, in cm, of b";y\na.jpg;1;1,5\nb.jpg;2;2,5\n',
        'image,"of; two; lines;\n",y\na.jpg,1,1.5\nb.jpg,2,2.5\n',
    ],
)
def test_line_ends_and_quoted_separators(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "t.csv", targets="y")
    assert (table.index.tolist(), table["y"].tolist()) == (["a.jpg", "b.jpg"], [1.5, 2.5])


def test_a_frame_is_read_as_its_csv(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    frame, expected = pd.read_csv(path), read_table(path, **ROLES)
    for other in (
        frame,
        frame.set_index("image"),
        frame.convert_dtypes(),
        pd.read_csv(path, dtype=str),
    ):
        pd.testing.assert_frame_equal(read_table(other, **ROLES), expected)
    exact = np.random.RandomState(0).randn(50)
    numbers = pd.DataFrame(
        {"image": [f"{i}.jpg" for i in range(50)], "y": exact, "single": exact.astype("f4")}
    )
    table = read_table(numbers, targets=["y", "single"])
    assert (table["y"] == exact).all() and (table["single"] == exact.astype("f4")).all()
    ordered = frame.assign(Art=pd.Categorical(frame["Art"], ["Gras", "Weißklee", "1a", "Klee"]))
    assert read_table(ordered, targets="Art")["Art"].cat.codes.tolist() == [1, 0, 0, 2]
    dated = frame.assign(when=pd.to_datetime(["2020-01-01", "2020-01-02"] * 2))
    assert partition(read_table(dated, targets="Art", group="when")["group"]) == [0, 1, 0, 1]


# Ids
# --------------------------------------------------------------------------------------------------------


def test_ids_stay_text(tmp_path: Path) -> None:
    ids = ("007", "7", "1.0", "1", "1e5", "NA", "None", "null")
    path = written(
        tmp_path, "image,y\n" + "".join(f" {name},{row}\n" for row, name in enumerate(ids))
    )
    source = MemoryTokens(
        ids, Tokens.from_patches(torch.randn(len(ids), 2, 8), grid=(1, 2), patch_size=16)
    )
    frame = pd.DataFrame({"y": range(len(ids))}, index=ids)
    for table in (path, frame, frame.rename_axis("image").reset_index()):
        read = read_table(table, targets="y")
        assert tuple(read.index) == ids
        # an id that changed has no tokens, or two rows
        fit(PatchMeanHead(8, [Task("y")]), source, targets=read, epochs=1)


def test_composed_and_decomposed_names_are_one_image(tmp_path: Path) -> None:
    """File systems exchange the forms; a table finds the file, and training its tokens."""
    composed, decomposed = f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg"
    for there, here in ((composed, decomposed), (decomposed, composed)):
        folder = touched(tmp_path / str(len(there)), there, "b.jpg")
        table = read_table(written(folder, f"image,y\n{here},1\nb.jpg,2\n"), folder, "y")
        assert table.index[0] == composed
        tokens = Tokens.from_patches(torch.randn(2, 2, 8), grid=(1, 2), patch_size=16)
        fit(
            PatchMeanHead(8, [Task("y")]),
            MemoryTokens((there[:-4], "b"), tokens),
            targets=table,
            epochs=1,
        )


# Cells
# ------------------------------------------------------------------------------------------------------

# cells, and for each of them the first cell that means the same
SPELLINGS = [
    pytest.param(
        ["1", "1.0", " 1", "1 ", "01", "2", "2.00"],
        [0, 0, 0, 0, 0, 5, 5],
        id="whole numbers",
    ),
    pytest.param(
        ["1", "1.0", "a", " a", "1", "01"],
        [0, 1, 2, 2, 0, 5],
        id="text beside words stays as it is written",
    ),
    pytest.param(
        ["1e2", "100", "0.10", ".1", "-0", "0"],
        [0, 0, 2, 2, 4, 4],
        id="exponents, fractions and signs",
    ),
    pytest.param(
        ["NA", "None", "NA ", "null", "-"],
        [0, 1, 0, 3, 4],
        id="words for what is missing are groups",
    ),
    pytest.param([COMPOSED, DECOMPOSED, "pres"], [0, 0, 2], id="accents"),
    pytest.param(
        ["1152921504606846977", "1152921504606846978", "1152921504606846977.0"],
        [0, 1, 0],
        id="whole numbers that float64 does not tell apart",
    ),
    pytest.param(
        ["1e999999999999999999999999", "1e400", "1e400"],
        [0, 1, 1],
        id="numbers beyond float64",
    ),
]


@pytest.mark.parametrize(("cells", "expected"), SPELLINGS)
@pytest.mark.parametrize("column", ["group", "fold"])
def test_cells_that_mean_the_same_are_one_group_and_one_fold(
    tmp_path: Path, column: str, cells: list[str], expected: list[int]
) -> None:
    path = columns(tmp_path, y=range(len(cells)), g=cells)

    table = read_table(path, targets="y", group="g", fold_column="g")

    assert partition(table[column]) == expected


@pytest.mark.parametrize(("cells", "expected"), SPELLINGS)
def test_cells_that_mean_the_same_are_one_in_a_group_of_two_columns(
    tmp_path: Path, cells: list[str], expected: list[int]
) -> None:
    path = columns(tmp_path, y=range(len(cells)), g=cells, h=["x"] * len(cells))

    table = read_table(path, targets="y", group=["g", "h"])

    assert partition(table["group"]) == expected


@pytest.mark.parametrize(("cells", "expected"), SPELLINGS)
def test_cells_of_a_frame_that_mean_the_same_are_one_group(
    cells: list[str], expected: list[int]
) -> None:
    images = [f"{row}.jpg" for row in range(len(cells))]
    frame = pd.DataFrame({"y": range(len(cells)), "g": cells}, index=images)

    table = read_table(frame, targets="y", group="g")

    assert partition(table["group"]) == expected


def rows_of_each_group(firsts: list[int]) -> list[list[int]]:
    """The rows of each group, sorted."""
    groups = []
    for own in sorted(set(firsts)):
        groups.append([row for row, first in enumerate(firsts) if first == own])
    return groups


@pytest.mark.parametrize(("cells", "expected"), SPELLINGS)
def test_rows_of_cells_that_mean_the_same_are_held_out_together(
    cells: list[str], expected: list[int]
) -> None:
    groups = rows_of_each_group(expected)

    of_groups = group_folds(cells, len(groups), seed=0)
    of_a_column = column_folds(cells)

    assert sorted(valid.tolist() for _, valid in of_groups) == groups
    assert sorted(valid.tolist() for _, valid in of_a_column) == groups


@pytest.mark.parametrize("role", ["targets", "auxiliary"])
def test_classes_that_mean_the_same_are_one(tmp_path: Path, role: str) -> None:
    other = {"targets": "y"} if role == "auxiliary" else {}

    def classes(cells: list[str], **options: Any) -> tuple[list[int], tuple[str, ...]]:
        path = columns(tmp_path, c=cells, y=list(range(len(cells))))
        table = read_table(path, **{role: "c"}, **other, **options)
        return table["c"].cat.codes.tolist(), tuple(table["c"].cat.categories)

    assert classes([COMPOSED, DECOMPOSED, " pres ", "pres"]) == ([1, 1, 0, 0], ("pres", COMPOSED))
    assert classes(["2", "02", "10.0", "10"], classes={"c": ()}) == ([0, 0, 1, 1], ("2", "10"))
    assert classes(["2", "02", "10.0", "x"], classes={"c": ()}) == (
        [1, 0, 2, 3],
        ("02", "2", "10.0", "x"),
    )
    assert classes(["2.0", "01", " 3"], classes={"c": ("1", "2", "3")}) == (
        [1, 0, 2],
        ("1", "2", "3"),
    )
    assert classes([DECOMPOSED, "x"], classes={"c": ("x", COMPOSED)}) == ([1, 0], ("x", COMPOSED))
    assert classes(["NA", "None", "", "nan"]) == ([0, 1, -1, -1], ("NA", "None"))


def test_only_empty_cells_and_nan_are_missing_numbers(tmp_path: Path) -> None:
    cells = ["1", "", " nan", "NaN ", " 2.5 ", str(2**53), "1e15"]
    table = read_table(columns(tmp_path, y=cells), targets="y")
    np.testing.assert_array_equal(table["y"], [1, np.nan, np.nan, np.nan, 2.5, 2.0**53, 1e15])


def test_words_that_say_missing_are_missing_among_numbers_and_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["1.5", "NA", "n/a", "NULL", "none", "<NA>", "n.a.", "3"])

    table = read_table(path, targets="y")

    np.testing.assert_array_equal(table["y"], [1.5] + [np.nan] * 6 + [3.0])
    [message] = caplog.messages
    assert message == f"{path}: y: <NA>, NA, NULL, n.a., n/a, none in 6 cells read as missing"


def test_a_word_that_says_missing_among_words_is_a_class_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, country=["NA", "DE", "NA", "FR"])

    table = read_table(path, targets="country")

    assert table["country"].cat.categories.tolist() == ["DE", "FR", "NA"]
    [message] = caplog.messages
    assert "'NA'" in message
    assert "2 rows" in message


# What spreadsheets do to tables
# ----------------------------------------------------------------------------------------------------

LOOKALIKES = [
    pytest.param(["True", "TRUE", "FALSE", "FALSE"], ("'TRUE'", "'True'"), id="pandas and Excel"),
    pytest.param(["weed", "Weed", "crop", "crop"], ("'Weed'", "'weed'"), id="case"),
    pytest.param(["tall  grass", "tall grass", "a", "a"], ("'tall  grass'",), id="two blanks"),
    pytest.param(["tall\u00a0grass", "tall grass", "a", "a"], ("'tall grass'",), id="fixed blank"),
    pytest.param(["tall_grass", "tall grass", "a", "a"], ("'tall_grass'",), id="underscore"),
    pytest.param(["A\u2013B", "A-B", "a", "a"], ("'A-B'",), id="dashes"),
    pytest.param(["\uff21", "A", "b", "b"], ("'A'",), id="full width"),
    pytest.param(["so\u00adil", "soil", "b", "b"], ("'soil'",), id="soft hyphen"),
    pytest.param(["STRASSE", "Straße", "b", "b"], ("'STRASSE'", "'Straße'"), id="sharp s"),
    pytest.param(["prés", "pres", "b", "b"], ("'pres'", "'prés'"), id="accents"),
    pytest.param(["A &amp; B", "A & B", "c", "c"], ("'A & B'", "'A &amp; B'"), id="HTML"),
]


@pytest.mark.parametrize(("cells", "named"), LOOKALIKES)
@pytest.mark.parametrize("role", ["targets", "group", "fold_column"])
def test_words_that_look_alike_are_named_and_not_joined(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    cells: list[str],
    named: tuple[str, ...],
    role: str,
) -> None:
    path = columns(tmp_path, c=cells, y=[1, 2, 3, 4])
    roles = {"targets": "y", role: "c"}

    table = read_table(path, **roles)

    values = table[{"targets": "c", "group": "group", "fold_column": "fold"}[role]]
    assert values.tolist() == cells
    [message] = caplog.messages
    for name in named:
        assert f"{name} (1 row)" in message


@pytest.mark.parametrize(
    "cells",
    [["1_11", "11_1", "a"], ["C+", "C-", "C"], ["10", "01", "A1"]],
    ids=["plots", "grades", "numbers"],
)
def test_words_that_do_not_look_alike_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str]
) -> None:
    read_table(columns(tmp_path, g=cells, y=[1, 2, 3]), targets="y", group="g")

    assert caplog.messages == []


def test_blanks_around_a_word_are_left_out_and_stated_where_only_some_rows_have_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, some=["u", "u ", "v"], every=[" u", " u", " v"])

    table = read_table(path, targets=["some", "every"])

    assert table["some"].tolist() == table["every"].tolist() == ["u", "u", "v"]
    [message] = caplog.messages
    assert message.startswith(f"{path}: some: blanks around 'u'")


ONE_WORD = [
    pytest.param(
        ["soil", "soil\u200b"],
        ["invisible characters around 'soil' left out"],
        id="zero width space",
    ),
    pytest.param(
        [COMPOSED, DECOMPOSED],
        [f"letters and their accents in '{COMPOSED}' joined (NFC)"],
        id="decomposed letters",
    ),
    pytest.param(
        ["u", "u ", "u\u200b"],
        ["blanks around 'u' left out", "invisible characters around 'u' left out"],
        id="both",
    ),
]


@pytest.mark.parametrize(("cells", "causes"), ONE_WORD)
def test_what_made_two_spellings_of_a_word_is_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str], causes: list[str]
) -> None:
    path = columns(tmp_path, y=[*cells, "v"])

    table = read_table(path, targets="y")

    assert table["y"].tolist() == [cells[0]] * len(cells) + ["v"]
    [message] = caplog.messages
    for cause in causes:
        assert cause in message
    assert message.count("in some rows only") == len(causes)


@pytest.mark.parametrize("mark", ["?", "--"])
def test_marks_for_unknown_make_no_numbers_of_a_column_of_words(tmp_path: Path, mark: str) -> None:
    path = columns(tmp_path, y=["weed", mark, "soil", mark, mark])

    with pytest.raises(DataError) as refused:
        read_table(path, targets="y")

    assert f"y of 'b.jpg' is {mark!r}; expected an empty cell where it is unknown" in str(
        refused.value
    )
    assert "or one of soil, weed" in str(refused.value)


def test_marks_for_unknown_next_to_numbers_are_refused_as_numbers(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["1.5", "?", "?"])

    with pytest.raises(DataError, match=r"y of 'b.jpg' is '\?'; .* or a number; if the column"):
        read_table(path, targets="y")


def test_marks_that_no_one_sees_are_no_part_of_a_cell(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufeff\ufeffimage,\u200by\u200b,c\n\u202aa.jpg,\u200e1.5,u\u200b\nb.jpg,2\u2060,v\n",
    )

    table = read_table(path, targets=["y", "c"])

    assert table.index.tolist() == ["a.jpg", "b.jpg"]
    assert table["y"].tolist() == [1.5, 2.0]
    assert table["c"].tolist() == ["u", "v"]


def test_all_repairs_of_a_table_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    text = "sep=;\nimage;mass;area\na.jpg;1.234,5;NA\n;;\nb.jpg;20;0,5\n"
    path.write_bytes(text.encode("utf-16"))

    table = read_table(path, targets=["mass", "area"])

    assert table["mass"].tolist() == [1234.5, 20.0]
    np.testing.assert_array_equal(table["area"], [np.nan, 0.5])
    assert caplog.messages == [
        f"{path}: the file is UTF-16; its first line is 'sep=;'; 1 blank row skipped; "
        "mass: '1.234,5' read as 1234.5; area: NA in 1 cell read as missing"
    ]


PLAIN = [
    pytest.param("image,y,c\na,1.5,u\nb,,v\n", id="comma"),
    pytest.param("image;y;c\r\na;1,5;u\r\nb;nan;v\r\n", id="semicolon and decimal comma"),
    pytest.param('"image","y","c"\n"a","1.5","u"\n"b","","v"\n', id="all in quotes"),
    pytest.param("\ufeffimage\ty\tc\na\t1,5\tu\nb\t\tv\n\n", id="mark, tabs, empty line"),
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_table_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    table = read_table(written(tmp_path, text), targets=["y", "c"])

    np.testing.assert_array_equal(table["y"], [1.5, np.nan])
    assert table["c"].tolist() == ["u", "v"]
    assert caplog.messages == []


def test_numbers_in_two_notations_are_an_error_that_names_both_cells(tmp_path: Path) -> None:
    path = columns(tmp_path, mass=["4", "1.5", "3", "2,25"])

    with pytest.raises(DataError, match="mass of 'b.jpg' is '1.5', and of 'd.jpg' '2,25'"):
        read_table(path, targets="mass")


def test_a_dataframe_of_numbers_and_texts_in_two_notations_is_refused() -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "mass": [1.5, "2,25"]})

    with pytest.raises(DataError, match="mass of 'a' is '1.5', and of 'b' '2,25'"):
        read_table(frame, targets="mass")


def test_another_column_of_the_file_shows_that_points_are_between_thousands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "image;mass;height\na;1.500;0,5\nb;750;1,25\n")

    table = read_table(path, targets="mass")

    assert table["mass"].tolist() == [1500.0, 750.0]
    assert caplog.messages == [f"{path}: mass: '1.500' read as 1500"]


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (["5 cm", "10 cm", "5 cm"], "unit"),
        (["0.5 kg", "400 g", "0.5 kg"], "unit"),
        (["01. Mai", "02. Mai", "Jan 05"], "dates"),
    ],
    ids=["one unit", "two units", "dates of German Excel"],
)
def test_classes_that_were_meant_as_numbers_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str], word: str
) -> None:
    table = read_table(columns(tmp_path, c=cells), targets="c")

    assert table["c"].tolist() == cells
    [message] = caplog.messages
    assert word in message
    assert repr(cells[0]) in message


def test_classes_that_begin_with_a_number_are_classes_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_table(columns(tmp_path, c=["1a", "2b", "Gras"], d=["1a", "2b", "3c"]), targets=["c", "d"])

    assert caplog.messages == []


PRINTED = [
    pytest.param(["0x1F", "0x20", "0x1F", "0x20"], "0x1F", "hexadecimal", id="hexadecimal"),
    pytest.param(["1.5D-03", "2D+00", "1.5D-03", "2D+00"], "1.5D-03", "Fortran", id="Fortran"),
    pytest.param(["3", "2.5D-03", "1.5D-03", "4"], "2.5D-03", "Fortran", id="Fortran and others"),
    pytest.param(["tensor(1.)", "tensor(2.)"], "tensor(1.)", "float()", id="tensors"),
    pytest.param(["np.float32(1.5)", "2"], "np.float32(1.5)", "float()", id="NumPy's repr"),
    pytest.param(["1x10^5", "2x10^5"], "1x10^5", "exponent", id="powers of ten"),
    pytest.param(["1.5 kg", "2 kg", "3"], "1.5 kg", "'kg'", id="most with a unit"),
]


@pytest.mark.parametrize(("cells", "named", "cause"), PRINTED)
def test_numbers_that_are_spelled_as_words_are_no_classes(
    tmp_path: Path, cells: list[str], named: str, cause: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_table(columns(tmp_path, y=cells), targets="y")

    assert repr(named) in str(refused.value)
    assert cause in str(refused.value)


@pytest.mark.parametrize("cells", [["0x1F", "0x20", "0x1F"], ["12 %", "13 %", "12 %"]])
def test_the_option_that_the_error_names_makes_classes_of_them(
    tmp_path: Path, cells: list[str]
) -> None:
    path = columns(tmp_path, y=cells)
    with pytest.raises(DataError, match=r"read_table\(classes=\{'y': \(\)\}\)"):
        read_table(path, targets="y")

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].tolist() == cells


def test_numbers_among_words_are_classes_by_the_option_that_the_error_names(
    tmp_path: Path,
) -> None:
    path = columns(tmp_path, y=["grass", "soil", "3", "grass"])
    with pytest.raises(DataError, match=r"one of grass, soil; .* read_table\(classes=\{'y'"):
        read_table(path, targets="y")

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].tolist() == ["grass", "soil", "3", "grass"]


@pytest.mark.parametrize("role", ["target", "group", "fold_column"])
def test_names_that_are_one_number_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    path = columns(tmp_path, p=["1.1", "1.10", "1.2", "1.10"], y=[1, 2, 3, 4])
    options = {"classes": {"p": ()}, "targets": ["p", "y"]}
    if role != "target":
        options = {"targets": "y", role: "p"}

    table = read_table(path, **options)

    values = table[{"target": "p", "group": "group", "fold_column": "fold"}[role]]
    assert values.tolist() == ["1.1", "1.1", "1.2", "1.1"]
    [message] = caplog.messages
    assert "'1.1' and '1.10'" in message


def test_a_letter_before_each_name_keeps_them_apart(tmp_path: Path) -> None:
    path = columns(tmp_path, p=["p1.1", "p1.10", "p1.2"], y=[1, 2, 3])

    table = read_table(path, targets="y", group="p")

    assert table["group"].tolist() == ["p1.1", "p1.10", "p1.2"]


def test_an_image_may_be_called_like_its_column(tmp_path: Path) -> None:
    path = written(tmp_path, "image,y\na,1\nimage,2\n")

    table = read_table(path, targets="y")

    assert table["y"].tolist() == [1, 2]


def test_rows_that_repeat_the_names_of_the_columns_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "image,y\na,1\nb,2\nimage,y\nc,3\n")

    with pytest.raises(DataError, match="row 4 repeats the names of the columns"):
        read_table(path, targets="y")


def test_a_value_for_no_data_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = columns(tmp_path, y=["0.5", "-9999", "3", "-9999.0"])

    table = read_table(path, targets="y")

    assert table["y"].tolist() == [0.5, -9999.0, 3.0, -9999.0]
    [message] = caplog.messages
    assert "-9999 in 2 rows" in message


def test_a_listed_class_without_a_row_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, c=["u", "v", "u"])

    table = read_table(path, targets="c", classes={"c": ("u", "v", "w")})

    assert table["c"].cat.categories.tolist() == ["u", "v", "w"]
    [message] = caplog.messages
    assert "no row of the class 'w'" in message


def test_how_many_values_are_missing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["1", "", "3", ""])

    with caplog.at_level(logging.INFO, "dinoneck"):
        read_table(path, targets="y")

    assert caplog.messages == [f"{path}: y is missing for 2 of 4 images"]


def test_words_in_a_column_that_must_hold_numbers_are_refused(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["0.5 kg", "0.4 kg", "0.5 kg"])

    with pytest.raises(DataError, match="y of 'a.jpg' is '0.5 kg'"):
        read_table(path, targets="y", numbers="y")


def test_words_of_a_categorical_column_that_must_hold_numbers_are_refused() -> None:
    kinds = pd.Categorical(["soil", "crop", "soil"])
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": kinds})

    with pytest.raises(DataError, match="y holds the words 'crop', 'soil'; expected numbers"):
        read_table(frame, targets="y", numbers="y")


def test_numbers_of_a_categorical_column_are_numbers_where_they_must_be() -> None:
    counts = pd.Categorical([2, 10, 2])
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": counts})

    table = read_table(frame, targets="y", numbers="y")

    assert table["y"].dtype == np.float64
    assert table["y"].tolist() == [2.0, 10.0, 2.0]


def test_a_column_with_listed_classes_holds_classes_although_numbers_names_it() -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": [2, 10, 2]})

    table = read_table(frame, targets="y", numbers="y", classes={"y": ()})

    assert table["y"].cat.categories.tolist() == ["2", "10"]


def test_a_mask_that_is_its_image_is_refused(tmp_path: Path) -> None:
    kit.write_images(tmp_path, ["a.png", "b.png", "masks/b.png"])
    path = written(tmp_path, "image,mask\na.png,a.png\nb.png,masks/b.png\n")

    with pytest.raises(DataError, match=r"t\.csv: the label of .*a\.png is the image itself"):
        read_table(path, tmp_path, labels="mask")


def test_truth_values_of_numpy_among_gaps_are_classes() -> None:
    answers = pd.Series([np.bool_(True), None, np.bool_(False)], dtype=object)

    table = read_table(pd.DataFrame({"image": ["a", "b", "c"], "y": answers}), targets="y")

    assert table["y"].tolist()[::2] == ["True", "False"]
    assert table["y"].isna().tolist() == [False, True, False]


def test_booleans_of_a_dataframe_are_classes() -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": pd.array([True, None, False], "boolean")})

    table = read_table(frame, targets="y")

    assert table["y"].tolist() == ["True", np.nan, "False"]


# Folders
# ----------------------------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path: Path) -> None:
    names = (
        "wheat/2.jpg",
        "oats/a/1.PNG",
        "oats /1.jpg",
        f"{COMPOSED}/1.jpg",
        f"{DECOMPOSED}/1.jpg",
    )
    table = read_folders(touched(tmp_path, *names, "wheat/notes.txt", ".cache/x.jpg", "table.csv"))
    assert table["class"].cat.categories.tolist() == ["oats", COMPOSED, "wheat"]
    assert sorted(table.index) == sorted(names)
    assert table["images"].tolist() == [tmp_path / name for name in table.index]
    expected = {"wheat/2.jpg": "wheat", "oats/a/1.PNG": "oats", "oats /1.jpg": "oats"}
    assert table["class"].to_dict() == expected | {
        f"{name}/1.jpg": COMPOSED for name in (COMPOSED, DECOMPOSED)
    }


@pytest.mark.parametrize("labels", ["y", "x/masks"])
def test_masks_match_by_path(tmp_path: Path, labels: str) -> None:
    names = [f"{labels}/{name}" for name in ("a/1.png", "a/2.png", "b/1.tif")]
    touched(tmp_path, "x/b/1.jpg", "x/a/1.jpg", "x/a/2.JPG", *names)
    table = read_masks(tmp_path / "x", tmp_path / labels)
    assert (table.index.tolist(), table.columns.tolist()) == (
        ["a/1.jpg", "a/2.JPG", "b/1.jpg"],
        ["images", "labels"],
    )
    assert table["labels"].tolist() == [tmp_path / name for name in names]


def test_the_number_of_classes(tmp_path: Path) -> None:
    grey = np.zeros((4, 6), np.uint8)
    grey[0, 0] = 2
    palette = Image.fromarray(np.full((3, 5), 4, np.uint8), "L").convert("P")
    palette.putpalette([200, 10, 30] * 256)
    palette.putdata([4] * 15)
    palette.save(tmp_path / "p.png")
    assert (count_classes([grey]), count_classes([grey, tmp_path / "p.png"])) == (3, 5)
    grey[1] = 255
    assert count_classes([grey], nodata=255) == 3


def test_samples_do_not_depend_on_order_or_company() -> None:
    first, second = Pasture(5, (32, 64)), Pasture(5, (32, 64))
    later = second.sample(7)
    assert np.array_equal(first.sample(3).image, second.sample(3).image)
    assert np.array_equal(first.sample(7).image, later.image)
    assert not np.array_equal(first.sample(3).image, first.sample(4).image)
    assert not np.array_equal(first.sample(3).image, Pasture(6, (32, 64)).sample(3).image)


def test_a_sample_is_fixed_for_ever() -> None:
    sample = Pasture(0).sample(0)
    assert sample.grams["GDM_g"] == sample.grams["Dry_Clover_g"] + sample.grams["Dry_Green_g"]
    # Pillow may draw a rim otherwise
    shares = np.bincount(sample.classes.ravel()) / sample.classes.size
    assert abs(shares - (0.6702, 0.1265, 0.2015, 0.0018)).max() < 0.01
    assert abs(sample.image.mean(axis=(0, 1)) - (115.7, 96.7, 73.5)).max() < 1.0
    assert {name: round(grams, 6) for name, grams in sample.grams.items()} == {
        "Dry_Clover_g": 4.429199,
        "Dry_Dead_g": 35.490635,
        "Dry_Green_g": 0.211802,
        "GDM_g": 4.641002,
        "Dry_Total_g": 40.131637,
    }
    assert (sample.state, sample.date, round(sample.height_cm, 6)) == ("Tas", "2015/7/19", 5.611976)


def test_a_written_folder_is_read_as_the_pasture_it_is(tmp_path: Path) -> None:
    pasture = Pasture(3, (32, 64))
    pasture.write(tmp_path, 2)
    names = ["Dry_Clover_g", "GDM_g", "Dry_Total_g"]
    table = read_table(
        tmp_path / "table.csv", tmp_path, ["cover", *names], group="sampling", labels="mask"
    )
    assert table.index.tolist() == ["images/0000.jpg", "images/0001.jpg"]
    for i in range(2):
        sample = pasture.sample(i)
        row = table.iloc[i]
        assert row["group"] == sample.group
        assert all(abs(row[name] - sample.grams[name]) <= 5.1e-5 for name in names)
        mask = np.asarray(Image.open(str(row["labels"])))
        assert np.array_equal(mask, sample.classes)
        assert abs(row["cover"] - (mask > 0).mean()) <= 5.1e-5
        image = np.asarray(Image.open(str(row["images"]))).astype(float)
        # JPEG
        assert (
            abs(image - sample.image).mean() < 0.5 * abs(image - pasture.sample(1 - i).image).mean()
        )


# Masks of other images
# ----------------------------------------------------------------------------------------------------


def test_masks_named_after_other_images_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "im/000.png", "im/001.png", "m01/000.png", "m01/001.png")
    path = written(tmp_path, "image,mask\nim/000.png,m01/001.png\nim/001.png,m01/000.png\n")

    with pytest.raises(DataError) as refused:
        read_table(path, tmp_path, labels="mask")

    assert str(refused.value) == (
        f"{path}: mask of 'im/000.png' is {tmp_path / 'm01/001.png'}, which is named after another "
        "image, 'im/001.png'; expected the labels of 'im/000.png': correct the column, or rename "
        "the files of labels if it is right"
    )


def test_a_mask_of_several_images_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a.jpg", "b.jpg", "m/x.png")
    path = written(tmp_path, "image,mask\na.jpg,m/x.png\nb.jpg,m/x.png\n")

    table = read_table(path, tmp_path, labels="mask")

    assert len(set(table["labels"])) == 1
    assert f"1 file of several images, such as {tmp_path / 'm/x.png'} of 'a.jpg'" in caplog.text


def test_masks_with_other_names_than_all_images_are_read(tmp_path: Path) -> None:
    """Also those of images that have the same name in two folders."""
    names = ["u/1.png", "v/1.png", "mu/1.png", "mv/1.png", "w.png", "w_mask.png"]
    touched(tmp_path, *names)
    path = written(tmp_path, "image,mask\nu/1.png,mu/1.png\nv/1.png,mv/1.png\nw.png,w_mask.png\n")

    table = read_table(path, tmp_path, labels="mask")

    files = [str(file.relative_to(tmp_path)) for file in table["labels"]]
    assert files == ["mu/1.png", "mv/1.png", "w_mask.png"]


def test_a_mark_that_is_refused_among_words_is_not_called_a_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["cat", "dog", "?", "cat"])

    with pytest.raises(DataError, match=r"y of 'c.jpg' is '\?'; expected an empty cell"):
        read_table(path, targets="y")

    assert caplog.messages == []


def test_minus_one_beside_0_and_1_is_named_with_how_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["0", "1", "-1", "1", "-1"])

    table = read_table(path, targets="y")

    assert table["y"].tolist() == [0, 1, -1, 1, -1]
    [line] = caplog.messages
    assert line.startswith(f"{path}: y is -1 in 2 rows and else 0 or 1, and is read as numbers. ")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"numbers": "y"}, id="numbers"),
        pytest.param({"classes": {"y": ()}}, id="classes that the table names"),
    ],
)
def test_minus_one_beside_0_and_1_gives_no_warning_where_the_call_says_what_the_column_holds(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["0", "1", "-1", "1", "-1"])

    read_table(path, targets="y", **options)

    assert caplog.messages == []


def test_minus_one_among_counts_is_named_as_below_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["0", "17", "4", "-1", "9"])

    read_table(path, targets="y")

    [line] = caplog.messages
    assert line.startswith(
        f"{path}: y is -1 in 1 row, below 0 unlike all other values, and is read"
    )


def test_a_value_for_no_data_among_classes_of_numbers_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["0", "1", "2", "-9999", "1"])

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].cat.categories.tolist() == ["-9999", "0", "1", "2"]
    assert caplog.messages == [
        f"{path}: y is -9999 in 1 row, unlike all other values, and is a class. Leave cells empty "
        "where the class is unknown"
    ]


def test_masks_next_to_their_table_are_found_where_the_images_lie_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "images/a.jpg", "images/b.jpg", "table/a_mask.png", "table/b_mask.png")
    table = written(tmp_path / "table", "image,mask\na.jpg,a_mask.png\nb.jpg,b_mask.png\n")
    found = read_table(table, tmp_path / "images", [], labels="mask")
    expected = [tmp_path / "table/a_mask.png", tmp_path / "table/b_mask.png"]
    assert list(found["labels"]) == expected
    assert "are found next to the table" in caplog.text


def test_masks_below_the_images_come_before_those_next_to_the_table(tmp_path: Path) -> None:
    touched(tmp_path, "images/a.jpg", "images/a_mask.png", "table/a_mask.png")
    table = written(tmp_path / "table", "image,mask\na.jpg,a_mask.png\n")
    found = read_table(table, tmp_path / "images", [], labels="mask")
    assert list(found["labels"]) == [tmp_path / "images/a_mask.png"]


def test_names_of_a_number_and_a_letter_are_words_and_no_measures(tmp_path: Path) -> None:
    table = read_table(columns(tmp_path, y=["3c", "2a", "2b", "2a", "3c", "2b"]), targets="y")

    assert table["y"].tolist() == ["3c", "2a", "2b", "2a", "3c", "2b"]


def test_a_number_among_names_of_a_number_and_a_letter_has_the_remedy_of_classes(
    tmp_path: Path,
) -> None:
    path = columns(tmp_path, y=["1", "2a", "2b", "2a", "1", "2b"])
    with pytest.raises(DataError, match=r"one of 2a, 2b; .*read_table\(classes=\{'y': \(\)\}\)"):
        read_table(path, targets="y")

    assert read_table(path, targets="y", classes={"y": ()})["y"].tolist()[0] == "1"


# Numbers that may be something else
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["01", "02", "007"], [1.0, 2.0, 7.0]),
        (["01067", "80331", "04109"], [1067.0, 80331.0, 4109.0]),
        (["01.05", "12.11", "13.1"], [1.05, 12.11, 13.1]),
    ],
    ids=["plots", "postcodes", "days without a year"],
)
def test_numbers_that_begin_with_zero_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str], values: list[float]
) -> None:
    table = read_table(columns(tmp_path, y=cells), targets="y")

    assert table["y"].tolist() == values
    [message] = caplog.messages
    assert f"numbers that begin with 0, such as {cells[0]!r}" in message
    assert "read_table(classes={'y': ()})" in message


def test_numbers_that_begin_with_zero_are_not_named_where_they_are_said_to_be_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_table(columns(tmp_path, y=["05", "10"]), targets="y", numbers="y")

    assert table["y"].tolist() == [5.0, 10.0]
    assert caplog.messages == []


NAMES_OF_DECIMALS = [
    pytest.param(["1.10", "1.20", "1.10"], ["1.10", "1.20"], id="last zeros"),
    pytest.param(["1.0", "1.10", "2.0"], ["1.0", "1.10", "2.0"], id="whole ones among them"),
    pytest.param(["1.10", "1.2", "1.20"], ["1.10", "1.2"], id="in two spellings: the number"),
    pytest.param(["1.0", "2.0", "3"], ["1", "2", "3"], id="whole numbers"),
    pytest.param(["1e3", "1.50", "7"], ["1.50", "7", "1000"], id="a power of ten"),
]


@pytest.mark.parametrize(("cells", "names"), NAMES_OF_DECIMALS)
def test_classes_of_decimals_are_called_as_they_are_written(
    tmp_path: Path, cells: list[str], names: list[str]
) -> None:
    path = columns(tmp_path, y=cells)

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].cat.categories.tolist() == names


def test_classes_as_they_are_written_are_found_in_another_spelling(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["1.1", "1.20", "1.10"])

    table = read_table(path, targets="y", classes={"y": ["1.10", "1.2"]})

    assert table["y"].tolist() == ["1.10", "1.2", "1.10"]


def test_classes_of_codes_keep_their_zeros(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = columns(tmp_path, y=["01067", "80331", "007", "01067"])

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].cat.categories.tolist() == ["007", "01067", "80331"]
    assert table["y"].tolist() == ["01067", "80331", "007", "01067"]
    assert caplog.messages == []


def test_codes_in_two_spellings_are_one_class(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["007", "7", "08"])

    table = read_table(path, targets="y", classes={"y": ()})

    assert table["y"].tolist() == ["7", "7", "08"]


def test_days_in_one_number_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = read_table(columns(tmp_path, y=["20240531", "20240601"]), targets="y")

    assert table["y"].tolist() == [20240531.0, 20240601.0]
    [message] = caplog.messages
    assert "days in one number, such as 20240531" in message


def test_days_that_a_spreadsheet_made_of_numbers_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_table(columns(tmp_path, y=["1.5", "45413", "31.5", "45413"]), targets="y")

    assert table["y"].tolist() == [1.5, 45413.0, 31.5, 45413.0]
    [message] = caplog.messages
    assert "45413 in 2 rows" in message


def test_the_end_of_float32_is_named_as_no_data(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["1.5", "-3.40282346638529e+38"])

    with pytest.raises(DataError) as refused:
        read_table(path, targets="y")

    message = str(refused.value)
    assert "y of 'b.jpg' is '-3.40282346638529e+38'" in message
    assert "expected an empty cell where it is unknown" in message
    assert "for 'no data'" in message
    assert "classes" not in message


def test_percent_next_to_a_share_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = columns(tmp_path, y=["10%", "0.2", "0.3"])

    with pytest.raises(DataError, match=r"y of 'b.jpg' is '0.2', and of 'a.jpg' '10%'; expected"):
        read_table(path, targets="y")


@pytest.mark.parametrize("cells", [["7", "", "", "8", "", "9"], ["u", "", "v", "", "w", ""]])
def test_cells_that_look_merged_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str]
) -> None:
    table = read_table(columns(tmp_path, y=cells), targets="y")

    assert table["y"].isna().tolist() == [cell == "" for cell in cells]
    [message] = caplog.messages
    assert "is filled in 3 rows of 6" in message
    assert "merged cells" in message


@pytest.mark.parametrize("cells", [["", "7", "", "8", "", "9"], ["7", "", "8", "9", "", "6"]])
def test_other_empty_cells_are_missing_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str]
) -> None:
    table = read_table(columns(tmp_path, y=cells), targets="y")

    assert table["y"].isna().tolist() == [cell == "" for cell in cells]
    assert caplog.messages == []


ROWS_WITHOUT_IMAGE = [
    pytest.param("a.jpg,1\nb.jpg,2\nc.jpg,2\nAll plots,5\n", "row 5 is 'All plots'", id="a sum"),
    pytest.param("a,1\nb,2\nTotal:,3\n", "row 4 is 'Total:'", id="Total"),
    pytest.param("a,1\nb,2\nMittelwert,1.5\n", "row 4 is 'Mittelwert'", id="German mean"),
    pytest.param("a,1\nb,2\n# end,\n", "row 4 is '# end'", id="a comment"),
    pytest.param("a,1\nb,2\n* estimated,\n", "row 4 is '* estimated'", id="a footnote"),
    pytest.param("file,0\na.png,1\nb.png,2\n", "row 2 is 'file'", id="a row of kinds"),
]


@pytest.mark.parametrize(("rows", "named"), ROWS_WITHOUT_IMAGE)
def test_rows_that_have_no_image_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str, named: str
) -> None:
    read_table(written(tmp_path, "image,y\n" + rows), targets="y")

    [message] = caplog.messages
    assert f"the image of {named}, unlike those of other rows" in message
    assert "Remove rows that have no image" in message


def test_rows_of_plain_names_are_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_table(written(tmp_path, "image,y\na.png,1\nb,2\nc,3\nd.png,4\n"), targets="y")

    assert caplog.messages == []


TWINS = [
    pytest.param("image,y,Y\na,1,3\nb,2,4\n", "'Y'", id="case"),
    pytest.param("image,y,y.1\na,1,3\nb,2,4\n", "'y.1'", id="pandas"),
    pytest.param("image,y,y...3\na,1,3\nb,2,4\n", "'y...3'", id="tibbles of R"),
]


@pytest.mark.parametrize(("text", "named"), TWINS)
def test_columns_with_nearly_the_same_name_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, named: str
) -> None:
    table = read_table(written(tmp_path, text), targets="y")

    assert table["y"].tolist() == [1.0, 2.0]
    [message] = caplog.messages
    assert f"has {named} next to 'y', with other cells; 'y' is read" in message


def test_columns_with_nearly_the_same_name_of_a_dataframe_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "y": [1.0, 2.0], "Y ": [3.0, 4.0]})

    read_table(frame, targets="y")

    [message] = caplog.messages
    assert "'Y '" in message


@pytest.mark.parametrize("targets", ["y", ["y", "Y"]])
def test_twin_columns_that_are_equal_or_both_read_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, targets: str | list[str]
) -> None:
    other = "1,2" if targets == "y" else "3,4"
    first, second = other.split(",")
    path = written(tmp_path, f"image,y,Y\na,1,{first}\nb,2,{second}\n")

    read_table(path, targets=targets)

    assert caplog.messages == []
