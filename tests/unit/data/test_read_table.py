"""One reader: numbers and classes of CSV files and DataFrames, and the layout with a row per image and target."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import DataError, PatchMeanHead, Task, Tokens
from dinoneck.data import Pasture, Table, read_table
from dinoneck.data.sheets import csv_header, csv_rows, csv_text
from dinoneck.training import MemoryTokens, fit

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
    "minimum": 0.0,
    "unit": "%",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def equal(one: Table, other: Table) -> None:
    for name in ("ids", "images", "groups", "labels", "folds", "units", "minimum", "classes", "weights", "sums"):
        assert getattr(one, name) == getattr(other, name), name
    for mine, others in ((one.targets, other.targets), (one.auxiliary, other.auxiliary)):
        assert list(mine) == list(others)
        for name, values in mine.items():
            assert values.dtype == others[name].dtype
            np.testing.assert_array_equal(values, others[name])


def test_numbers_words_and_gaps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        table = read_table(written(tmp_path, TEXT), **ROLES)
    assert table.targets["% cover"].tolist() == [0.5, 0.001, 0.0, 1.0]
    assert table.classes == {"Art": ("1a", "Gras", "Weißklee")}
    assert (table.targets["Art"].tolist(), table.targets["Art"].dtype) == ([2, 1, 1, 0], np.int64)
    np.testing.assert_array_equal(table.auxiliary["Höhe der Narbe (cm)"], [3.5, np.nan, 12.0, np.nan])
    assert (table.groups, table.folds) == (("p", "p", "q", "q"), ("x", "y", "x", "y"))
    assert table.units == dict.fromkeys(("% cover", "Höhe der Narbe (cm)", "count"), "%")
    assert "Höhe der Narbe (cm) is missing for 2 of 4 images" in caplog.text
    part = table.take([3, 0])
    assert (part.folds, part.classes, part.units) == (("y", "x"), table.classes, table.units)
    assert part.targets["Art"].tolist() == [0, 2]
    assert part.auxiliary["count"].tolist() == [2.0, 3.0]


def test_listed_classes_fix_their_order_and_refuse_others(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    names = ("Weißklee", "Gras", "1a", "Klette")
    table = read_table(path, targets="Art", auxiliary="count", classes={"Art": names, "count": ("3", "2", "1")})
    assert table.targets["Art"].tolist() == [0, 1, 1, 2]
    assert table.auxiliary["count"].tolist() == [0, 2, -1, 1]
    assert table.classes == {"Art": names, "count": ("3", "2", "1")}
    with pytest.raises(DataError, match=r"row 2: Art is 'Weißklee'; expected one of Weissklee, Gras, 1a.*Did you mean"):
        read_table(path, targets="Art", classes={"Art": ("Weissklee", "Gras", "1a")})
    with pytest.raises(DataError, match="'site', which is neither a target nor auxiliary"):
        read_table(path, targets="Art", classes={"site": ("p", "q")})
    with pytest.raises(DataError, match="expected a list of names that differ"):
        read_table(path, targets="Art", classes={"Art": "Gras"})


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "2", "wheat"], "row 4: y is 'wheat'; expected a finite number.*unless classes= lists them"),
        (["oats", "3", "wheat"], "row 3: y is '3'; expected a class name. .*List the names with classes="),
        (["oats", "2-3", "wheat"], "row 3: y is '2-3'; expected a class name"),
        (["1,5", "2,5", "3,5"], "row 2: y is '1,5'; expected a finite number.*Write it with a decimal point"),
        (["1", "inf", "2"], "row 3: y is 'inf'; expected a finite number"),
        (["oats", "oats", "oats"], "y holds the class 'oats' alone"),
    ],
)
def test_a_cell_that_does_not_fit_its_column_is_named(tmp_path: Path, cells: list[str], message: str) -> None:
    path = written(tmp_path, csv_text(["image", "y"], [(f"{i}.jpg", cell) for i, cell in enumerate(cells)]))
    with pytest.raises(DataError, match=message):
        read_table(path, targets=["y"])


def test_roles_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, TEXT)
    with pytest.raises(DataError, match="'Art' stands more than once; name it once"):
        read_table(path, targets=["Art"], auxiliary=["Art"])
    with pytest.raises(DataError, match="row 4: h is 'tall'; expected a finite number"):
        read_table(written(tmp_path, "image,y,h\na,1,2\nb,2,3\nc,3,tall\n"), targets=["y"], auxiliary=["h"])
    assert not read_table(written(tmp_path, "image,y,h\na,1,\nb,2,nan\n"), targets="y", auxiliary="h").auxiliary
    assert "column 'h' is empty; training goes without it" in caplog.text
    masks = read_table(written(tmp_path, "image,mask\na,a.png\nb,b.png\n"), labels="mask")
    assert (dict(masks.targets), masks.labels) == ({}, (Path("a.png"), Path("b.png")))
    with pytest.raises(DataError, match="a table is dict; expected the path of a CSV file or a pandas DataFrame"):
        read_table({"image": ["a"]}, targets="y")


def test_a_frame_is_read_as_its_csv(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = written(tmp_path, TEXT)
    frame = pandas.read_csv(path)
    equal(read_table(frame, **ROLES), read_table(path, **ROLES))
    equal(read_table(frame.set_index("image"), **ROLES), read_table(path, **ROLES))
    equal(read_table(frame.convert_dtypes(), **ROLES), read_table(path, **ROLES))
    counts = {"targets": "% cover", "auxiliary": "count", "classes": {"count": ["1", "2", "3"]}}
    equal(read_table(frame, **counts), read_table(path, **counts))
    exact = np.random.RandomState(0).randn(50)
    numbers = pandas.DataFrame({"image": [f"{i}.jpg" for i in range(50)], "y": exact, "single": exact.astype("f4")})
    table = read_table(numbers, targets=["y", "single"])
    assert (table.targets["y"] == exact).all()
    assert (table.targets["single"] == exact.astype("f4").astype("f8")).all()
    with pytest.raises(DataError, match=r"no column 'image' and its index holds no file names. It has: Höhe.*set_"):
        read_table(frame.drop(columns="image"), **ROLES)
    with pytest.raises(DataError, match="row 5: Höhe.*'oops'; expected a finite number"):
        column = "Höhe der Narbe (cm)"
        read_table(frame.assign(**{column: ["1", "2", "oops", "3"]}).rename({2: 5}), targets=[column])
    with pytest.raises(DataError, match="2 columns named 'Art'"):
        read_table(pandas.concat([frame, frame[["Art"]]], axis=1), **ROLES)


def test_ids_stay_text(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    ids = ("007", "7", "1.0", "1", "1e5", "NA", "None", "null")
    path = written(tmp_path, "image,y\n" + "".join(f"{name},{row}\n" for row, name in enumerate(ids)))
    source = MemoryTokens(ids, Tokens.from_patches(torch.randn(len(ids), 2, 8), grid=(1, 2), patch_size=16))
    frame = pandas.DataFrame({"y": range(len(ids))}, index=ids)
    for table in (path, frame, frame.rename_axis("image").reset_index()):
        # an id that changed has no tokens, or two rows
        fit(PatchMeanHead(8, [Task("y")]), source, targets=read_table(table, targets="y"), epochs=1)


def test_a_layout_with_a_row_per_image_and_target(csiro: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = ["Pre_GSHH_NDVI", "Height_Ave_cm", "State"]
    table = read_table(csiro / "train.csv", csiro, auxiliary=more)
    samples = [Pasture(seed=1, size=(32, 64)).sample(i) for i in range(10)]
    assert table.auxiliary["Height_Ave_cm"] == pytest.approx([sample.height_cm for sample in samples], abs=0.05)
    assert table.groups == tuple(sample.group for sample in samples)
    states = table.classes["State"]
    assert states == tuple(sorted({sample.state for sample in samples}))
    assert [states[i] for i in table.auxiliary["State"]] == [sample.state for sample in samples]
    assert (table.minimum, table.units) == (0.0, dict.fromkeys(table.targets, "g"))
    for total, parts in table.sums.items():
        assert table.targets[total] == pytest.approx(sum(table.targets[part] for part in parts), abs=1e-3)
    assert list(table.sums) == ["GDM_g", "Dry_Total_g"]
    some = read_table(csiro / "train.csv", csiro, ["Dry_Total_g", "GDM_g"], auxiliary=["Dry_Dead_g"], group=None)
    assert (list(some.targets), list(some.auxiliary)) == (["Dry_Total_g", "GDM_g"], ["Dry_Dead_g"])
    assert (some.weights, some.sums, some.groups) == ({"Dry_Total_g": 0.5, "GDM_g": 0.2}, {}, None)
    assert not caplog.text
    pandas = pytest.importorskip("pandas")
    equal(read_table(pandas.read_csv(csiro / "train.csv"), csiro, auxiliary=more, group=[]), table)


def test_odd_columns_of_the_layout(csiro: Path, tmp_path: Path) -> None:
    path, header = tmp_path / "t.csv", csv_header(csiro / "train.csv")
    rows = csv_rows(csiro / "train.csv", header)
    state, height = header.index("State"), header.index("Height_Ave_cm")
    cells = [[row[column] for column in header] for row in rows]
    cells[6][height] = "99"
    path.write_text(csv_text(header, cells))
    with pytest.raises(DataError, match="row 8: Height_Ave_cm of train/ID1000001.jpg is '99', and .* before"):
        read_table(path, csiro, auxiliary=["Height_Ave_cm"])
    cells[6][state] = ""
    path.write_text(csv_text(header, cells))
    with pytest.raises(DataError, match=r"row 8: State of train/ID1000001.jpg is ''"):
        read_table(path, csiro)
    for row in cells:
        row[state] = ""
    path.write_text(csv_text(header, cells))
    with pytest.raises(DataError, match="group in column 'State' is missing in 10 rows"):
        read_table(path, csiro)
    assert read_table(path, csiro, group="Sampling_Date").groups == tuple(row["Sampling_Date"] for row in rows[::5])
    with pytest.raises(DataError, match=r"no column or target 'site'.*State \+ Sampling_Date identify the images"):
        read_table(path, csiro, group="site")
    with pytest.raises(DataError, match=r"'Dry_Toal_g'. Did you mean 'Dry_Total_g'\?"):
        read_table(path, csiro, ["Dry_Toal_g"])
