"""Tables of images from files and DataFrames. What is refused is in tests/refusals/data.py."""

from __future__ import annotations

import logging
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import kit

from dinoneck import PatchMeanHead, Task, Tokens
from dinoneck.data import read_table
from dinoneck.data.cells import csv_text
from dinoneck.errors import ConfigError, DataError
from dinoneck.training import MemoryTokens, fit, group_folds
from dinoneck.training.folds import column_folds

TEXT = """image,Höhe (cm),Art,% cover,site,part,tags,sun
a.jpg,3.5,Weißklee,0.5,p,x,wet;dry,true
b.jpg,,Gras,1e-3,p,y,none,false
c.jpg,12,Gras,0,q,x,,
d.jpg,NaN,1a,1,q,y,dry,true
"""
ROLES: dict[str, Any] = {
    "targets": ["% cover", "Art", "tags", "sun"],
    "auxiliary": ["Höhe (cm)"],
    "group": "site",
    "fold_column": "part",
    "multilabel": {"tags": ()},
    "indicators": ["sun"],
}


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def columns(folder: Path, **cells: list[Any]) -> Path:
    """Write a table of the images 0.jpg, 1.jpg, ... with these columns."""
    rows = list(zip(*cells.values(), strict=True))
    names = [f"{row}.jpg" for row in range(len(rows))]
    lines = [[name, *row] for name, row in zip(names, rows, strict=True)]
    return written(folder, csv_text(["image", *cells], lines))


def partition(labels: Any) -> list[int]:
    """Return the number of each label's first row."""
    return [list(labels).index(label) for label in labels]


def test_the_columns_of_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dinoneck"):
        table = read_table(written(tmp_path, TEXT), **ROLES)

    assert table.index.tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert table["% cover"].tolist() == [0.5, 0.001, 0.0, 1.0]
    assert table["Art"].tolist() == ["Weißklee", "Gras", "Gras", "1a"]
    assert table["Art"].cat.categories.tolist() == ["1a", "Gras", "Weißklee"]
    assert table["tags"].tolist() == [("dry", "wet"), (), None, ("dry",)]
    assert table.attrs["label_names"] == {"tags": ("dry", "wet")}
    np.testing.assert_array_equal(table["sun"], [1.0, 0.0, np.nan, 1.0])
    np.testing.assert_array_equal(table["Höhe (cm)"], [3.5, np.nan, 12.0, np.nan])
    assert table["group"].tolist() == ["p", "p", "q", "q"]
    assert table["fold"].tolist() == ["x", "y", "x", "y"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frame: frame, id="read by pandas"),
        pytest.param(lambda frame: frame.set_index("image"), id="images in the index"),
        pytest.param(lambda frame: frame.convert_dtypes(), id="nullable columns"),
        pytest.param(lambda frame: frame.astype(object), id="objects"),
        pytest.param(lambda frame: frame.astype({"Höhe (cm)": "float32"}), id="single precision"),
        pytest.param(lambda frame: frame.astype({"site": "category"}), id="categories as groups"),
    ],
)
def test_a_frame_is_read_as_its_csv(tmp_path: Path, change: Any) -> None:
    path = written(tmp_path, TEXT)

    table = read_table(change(pd.read_csv(path)), **ROLES)

    pd.testing.assert_frame_equal(table, read_table(path, **ROLES))


def test_a_parquet_file_is_read_as_its_frame(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(written(tmp_path, TEXT))
    frame.to_parquet(tmp_path / "t.parquet")

    table = read_table(tmp_path / "t.parquet", **ROLES)

    pd.testing.assert_frame_equal(table, read_table(frame, **ROLES))


def test_a_workbook_is_read_as_its_csv(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    path = written(tmp_path, TEXT)
    pd.read_csv(path).to_excel(tmp_path / "t.xlsx", index=False)

    table = read_table(tmp_path / "t.xlsx", **ROLES)

    pd.testing.assert_frame_equal(table, read_table(path, **ROLES))


def test_a_workbook_without_its_engine_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")

    with kit.without("openpyxl"), pytest.raises(ImportError, match="openpyxl"):
        read_table(tmp_path / "t.xlsx", targets="y")


# Numbers and classes


@pytest.mark.parametrize(
    ("text", "options"),
    [
        pytest.param("image;y\na;1,5\nb;2\n", {}, id="a comma between semicolons"),
        pytest.param("image;y\na;1.5\nb;2\n", {}, id="a point between semicolons"),
        pytest.param("image\ty\na\t1,5\nb\t2\n", {"decimal": ","}, id="a comma between tabs"),
        pytest.param('image,y\na,"1,5"\nb,2\n', {"decimal": ","}, id="a comma in quotes"),
        pytest.param(
            "image;y;w\na;1,5;a.5\nb;2;b.5\n", {"targets": ["y", "w"]}, id="points in words"
        ),
    ],
)
def test_decimal_marks(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    table = read_table(written(tmp_path, text), **{"targets": "y", **options})

    assert table["y"].tolist() == [1.5, 2.0]


def test_a_decimal_mark_is_of_csv_files() -> None:
    frame = pd.DataFrame({"image": ["a"], "y": [1.5]})

    with pytest.raises(ConfigError, match="decimal is ','"):
        read_table(frame, targets="y", decimal=",")


def test_codes_are_classes(tmp_path: Path) -> None:
    path = columns(tmp_path, plot=["007", "012", "100"])

    assert read_table(path, targets="plot")["plot"].tolist() == ["007", "012", "100"]
    assert read_table(path, targets="plot", numbers="plot")["plot"].tolist() == [7, 12, 100]


def test_words_beside_a_decimal_comma_are_classes(tmp_path: Path) -> None:
    path = columns(tmp_path, kind=["1,5", "a"])

    assert read_table(path, targets="kind")["kind"].tolist() == ["1,5", "a"]


def test_listed_classes_keep_their_order_and_numbers_may_be_classes(tmp_path: Path) -> None:
    path = columns(tmp_path, c=["b", "a"], n=[2, 10], k=[1, 2])

    table = read_table(
        path, targets=["c", "n", "k"], classes={"c": ["b", "a", "x"], "n": ()}, numbers=["n"]
    )

    assert table["c"].cat.categories.tolist() == ["b", "a", "x"]
    assert table["c"].cat.codes.tolist() == [0, 1]
    assert table["n"].cat.categories.tolist() == ["2", "10"]
    assert table["k"].tolist() == [1.0, 2.0]


def test_a_column_of_indicators_may_be_called_one_of_labels(tmp_path: Path) -> None:
    path = columns(tmp_path, tags=["1", "", "0"])

    table = read_table(path, targets="tags", multilabel={"tags": ("wet",)})

    np.testing.assert_array_equal(table["tags"], [1.0, np.nan, 0.0])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        pytest.param(pd.array([True, None, False], "boolean"), ["True", np.nan, "False"], id="na"),
        pytest.param([True, False, True], ["True", "False", "True"], id="bool"),
        pytest.param(pd.Categorical([2.0, None, 1.0]), ["2", np.nan, "1"], id="categories"),
    ],
)
def test_truth_values_and_categories_of_a_frame_are_classes(values: Any, classes: Any) -> None:
    frame = pd.DataFrame({"image": ["a", "b", "c"], "y": values})

    assert read_table(frame, targets="y")["y"].tolist() == classes


def test_categories_keep_their_order_also_without_a_row() -> None:
    values = pd.Categorical(["b", "a"], categories=["c", "b", "a"])

    table = read_table(pd.DataFrame({"image": ["0", "1"], "y": values}), targets="y")

    assert table["y"].cat.categories.tolist() == ["c", "b", "a"]


def test_categories_that_are_numbers_are_numbers_where_they_must_be() -> None:
    frame = pd.DataFrame({"image": ["a", "b"], "y": pd.Categorical([2, 10])})

    assert read_table(frame, targets="y", numbers="y")["y"].tolist() == [2.0, 10.0]


def test_numbers_of_a_frame_are_read_to_the_bit() -> None:
    exact = np.random.default_rng(0).normal(size=50)
    names = [str(row) for row in range(50)]
    frame = pd.DataFrame({"image": names, "y": exact, "z": exact.astype(np.float32)})

    table = read_table(frame, targets=["y", "z"])

    assert (table["y"] == exact).all()
    assert (table["z"] == exact.astype(np.float32)).all()


# Ids, groups and folds


def test_ids_stay_text(tmp_path: Path) -> None:
    ids = ("007", "7", "1.0", "1", "1e5", "NA", "None", "null", "nan")
    text = "image,y\n" + "".join(f" {name},{row}\n" for row, name in enumerate(ids))
    frame = pd.DataFrame({"y": range(len(ids))}, index=ids)

    for source in (written(tmp_path, text), frame, frame.rename_axis("image").reset_index()):
        assert tuple(read_table(source, targets="y").index) == ids


def test_composed_and_decomposed_names_are_one_image(tmp_path: Path) -> None:
    """File systems exchange the forms; a table finds the file, and training its tokens."""
    composed, decomposed = (unicodedata.normalize(form, "prés") for form in ("NFC", "NFD"))
    tokens = Tokens.from_patches(torch.randn(2, 2, 8), grid=(1, 2), patch_size=16)
    for there, here in ((composed, decomposed), (decomposed, composed)):
        folder = tmp_path / str(len(there))
        kit.write_images(folder, [f"{there}.jpg", "b.jpg"])
        path = written(folder, f"image,y\n{here}.jpg,1\nb.jpg,2\n")

        table = read_table(path, folder, "y")

        assert table.index[0] == f"{composed}.jpg"
        assert table["images"].iloc[0].is_file()
        source = MemoryTokens((there, "b"), tokens)
        fit(PatchMeanHead(8, [Task("y")]), source, targets=table, epochs=1)


def test_images_in_memory_are_called_as_their_rows() -> None:
    images = [np.zeros((2, 2, 3)), np.ones((2, 2, 3))]
    frame = pd.DataFrame({"image": images, "y": [1, 2]}, index=["u", "v"])

    table = read_table(frame, targets="y")

    assert table.index.tolist() == ["u", "v"]
    assert table["images"].iloc[1] is images[1]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        pytest.param(["1", "1.0", "01", "2"], [0, 0, 0, 3], id="numbers"),
        pytest.param(["1", "1.0", "a", " a", "1"], [0, 1, 2, 2, 0], id="numbers beside words"),
    ],
)
def test_cells_that_mean_the_same_are_one_group_and_one_fold(
    tmp_path: Path, cells: list[str], expected: list[int]
) -> None:
    path = columns(tmp_path, y=list(range(len(cells))), g=cells, h=["x"] * len(cells))

    table = read_table(path, targets="y", group="g", fold_column="g")
    of_two = read_table(path, targets="y", group=["g", "h"])

    assert partition(table["group"]) == expected
    assert partition(table["fold"]) == expected
    assert partition(of_two["group"]) == expected


def test_cells_that_mean_the_same_are_held_out_together() -> None:
    cells = ["1", "2", "1.0", "02"]

    for folds in (group_folds(cells, 2, seed=0), column_folds(cells)):
        held_out = sorted(valid.tolist() for _, valid in folds)
        assert held_out == [[0, 2], [1, 3]]


def test_groups_of_two_columns_are_not_taken_for_each_other(tmp_path: Path) -> None:
    path = columns(tmp_path, y=[1, 2], g=["p | q", "p"], h=["r", "q | r"])

    assert read_table(path, targets="y", group=["g", "h"])["group"].nunique() == 2


# Files


def test_masks_may_be_named_relative_to_the_table(tmp_path: Path) -> None:
    """Also where an image of the folder ends with the same parts, as for masks of ``dinoneck paint``."""
    for name in ("photos/a/0.png", "run/masks/a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    path = tmp_path / "run" / "masks.csv"
    path.write_text("image,mask\na/0.png,masks/a/0.png\n")

    table = read_table(path, tmp_path / "photos", labels="mask")

    assert [*table["labels"]] == [tmp_path / "run" / "masks" / "a" / "0.png"]


def test_files_and_masks_are_found_below_the_folder_of_the_images(tmp_path: Path) -> None:
    kit.write_images(tmp_path, ["a.png", "b.png", "masks/a.png"])
    path = written(tmp_path, "image,mask\na.png,masks/a.png\nb.png,\n")

    table = read_table(path, tmp_path, labels="mask")

    assert table["images"].tolist() == [tmp_path / "a.png", tmp_path / "b.png"]
    assert table["labels"].tolist() == [tmp_path / "masks" / "a.png", None]


def test_without_a_folder_files_are_named_and_not_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "image,y\n007.png,1\n")

    assert read_table(path, targets="y")["images"].tolist() == [Path("007.png")]


def test_a_mask_that_is_an_image_of_the_table_is_refused(tmp_path: Path) -> None:
    kit.write_images(tmp_path, ["a.png", "b.png", "masks/b.png"])
    path = written(tmp_path, "image,mask\na.png,a.png\nb.png,masks/b.png\n")

    with pytest.raises(DataError, match=r"a\.png"):
        read_table(path, tmp_path, labels="mask")


def test_a_table_is_read_without_torch() -> None:
    """Its import takes seconds and 600 MB."""
    program = "import sys; from dinoneck.data import read_table; sys.exit('torch' in sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True)
