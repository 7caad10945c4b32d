"""Tables of images: what is read is what stands there, and what cannot be used is named."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dinoneck import DataError, PatchMeanHead, Task, Tokens
from dinoneck.data import read_table
from dinoneck.data.cells import csv_text
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
}
GOOD = "image,crop,weed,field,day\na.jpg,0.5,0.1,f1,1\nb.jpg,0.25,0,f1,2\nc.jpg,1e-3,0.9,f2,1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_words_and_gaps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        table = read_table(written(tmp_path, TEXT), **ROLES)
    assert table["% cover"].tolist() == [0.5, 0.001, 0.0, 1.0]
    assert table["Art"].cat.categories.tolist() == ["1a", "Gras", "Weißklee"]
    assert table["Art"].tolist() == ["Weißklee", "Gras", "Gras", "1a"]
    np.testing.assert_array_equal(table["Höhe der Narbe (cm)"], [3.5, np.nan, 12.0, np.nan])
    assert (table["group"].tolist(), table["fold"].tolist()) == (["p", "p", "q", "q"], ["x", "y", "x", "y"])
    assert "Höhe der Narbe (cm) is missing for 2 of 4 images" in caplog.text


def test_files_and_groups_of_several_columns(folder: Path) -> None:
    table = read_table(written(folder, GOOD), folder, ["weed", "crop"], group=["field", "day"])
    assert table.index.tolist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert table.columns.tolist() == ["images", "weed", "crop", "group"]
    assert table["images"].tolist() == [folder / name for name in table.index]
    assert table["crop"].tolist() == [0.5, 0.25, 0.001]
    assert table["group"].tolist() == ["f1 | 1", "f1 | 2", "f2 | 1"]
    assert "group" not in read_table(written(folder, "\ufeff" + GOOD), folder, ["crop"])
    path = written(folder, "image,y,g,h\na.jpg,1,p | q,r\nb.jpg,2,p,q | r\n")
    assert read_table(path, folder, ["y"], group=["g", "h"])["group"].nunique() == 2


@pytest.mark.parametrize(("separator", "mark"), [(";", ","), (";", "."), ("\t", ","), ("\t", "."), (",", ".")])
def test_separators_and_decimal_marks(tmp_path: Path, separator: str, mark: str) -> None:
    cells = [["image", "y", "class"], ["a.jpg", "1.5", "x.1"], ["b.jpg", "-2e-3", "x.2"], ["c.jpg", "", "x.1"]]
    lines = [separator.join([row[0], *(cell.replace(".", mark) for cell in row[1:])]) for row in cells]
    table = read_table(written(tmp_path, "\n".join(lines)), targets=["y", "class"])
    np.testing.assert_array_equal(table["y"], [1.5, -0.002, np.nan])
    assert table["class"].tolist() == [f"x{mark}1", f"x{mark}2", f"x{mark}1"]
    assert table.index.tolist() == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "image;y\na;1,5\nb;2.5\n",
        "image;y\na;1.000,5\nb;2,5\n",
        'image,y\na,"1,5"\nb,"2,5"\n',
        "image;y\na;1,5,2\nb;1\n",
    ],
)
def test_decimal_commas_stay_unread_where_they_may_mean_something_else(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="'[ab]' is '[^']*,"):
        read_table(written(tmp_path, text), targets="y")


def test_listed_classes_fix_their_order_and_refuse_others(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    names = ("Weißklee", "Gras", "1a", "Klette")
    table = read_table(path, targets="Art", auxiliary="count", classes={"Art": names, "count": ("3", "2", "1")})
    assert table["Art"].cat.codes.tolist() == [0, 1, 1, 2]
    assert table["count"].cat.codes.tolist() == [0, 2, -1, 1]
    assert tuple(table["Art"].cat.categories) == names
    with pytest.raises(DataError, match=r"Art of 'a\.jpg' is 'Weißklee'.*Weissklee"):
        read_table(path, targets="Art", classes={"Art": ("Weissklee", "Gras", "1a")})
    with pytest.raises(DataError, match="'site'"):
        read_table(path, targets="Art", classes={"site": ("p", "q")})
    with pytest.raises(DataError, match="one of G, r, a, s"):
        read_table(path, targets="Art", classes={"Art": "Gras"})


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["1", "2", "wheat"], "'2.jpg' is 'wheat'"),
        (["oats", "3", "wheat"], "'1.jpg' is '3'"),
        (["oats", "2-3", "wheat"], "'1.jpg' is '2-3'"),
        (["1,5", "2,5", "3,5"], "'0.jpg' is '1,5'"),
        (["1", "inf", "2"], "'1.jpg' is 'inf'"),
        (["1", "1_000", "2"], "'1.jpg' is '1_000'"),
        (["1", "12%", "2"], "'1.jpg' is '12%'"),
        (["1", "٣", "2"], "'1.jpg' is '٣'"),
        (["1", "0x10", "2"], "'1.jpg' is '0x10'"),
        (["1", "1e400", "2"], "'1.jpg' is '1e400'"),
        (["oats", "oats", "oats"], "'oats'"),
        (["", "", "nan"], "'y' is empty"),
    ],
)
def test_a_cell_that_does_not_fit_its_column_is_named(tmp_path: Path, cells: list[str], wrong: str) -> None:
    path = written(tmp_path, csv_text(["image", "y"], [(f"{i}.jpg", cell) for i, cell in enumerate(cells)]))
    with pytest.raises(DataError, match=wrong):
        read_table(path, targets=["y"])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pd.to_timedelta([1, 2], "D"), "timedelta64"),
        (pd.period_range("2020-01", periods=2, freq="M"), "period"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "datetime64"),
        (np.array([1 + 1j, 2]), "complex128"),
        (pd.Series([b"a", b"b"], dtype=object), "bytes"),
    ],
)
def test_a_target_of_another_dtype_is_refused(values: Any, dtype: str) -> None:
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "crop": values})
    for classes in ({}, {"crop": ["1", "2"]}):
        with pytest.raises(DataError, match=rf"crop holds .*{dtype}"):
            read_table(frame, targets="crop", classes=classes)


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
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    table = read_table(path, targets="y")
    assert (table.index.tolist(), table["y"].tolist()) == (["a.jpg", "b.jpg"], [1.5, 2.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("crop", "corp", 1), r"'crop'.*Did you mean 'corp'"),
        (GOOD.replace("a.jpg", "z.jpg"), r"1 of 3 images .*'z.jpg'"),
        (GOOD.replace("b.jpg", "a.jpg"), r"'a.jpg' stands more than once"),
        (GOOD.replace("b.jpg", " "), "image of row 3 is empty"),
        ("image,crop,weed,field,day\n", "no rows"),
        ("", "no column 'image'"),
        (GOOD + "c.jpg,1\n", "row 5"),
        (GOOD + "c.jpg,1,2,3,4,5\n", "row 5"),
        (GOOD.replace("weed", "crop"), "2 columns named 'crop'"),
        (GOOD.replace("f1,1", "nan,1"), r"'field'.*a\.jpg"),
    ],
)
def test_what_cannot_be_used_is_named(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(written(folder, text), folder, ["crop", "weed"] if "weed" in text else ["crop"], group="field")


def test_missing_files_columns_and_roles(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(folder, GOOD)
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("no.csv", (folder / "no.csv", folder, ["crop"]), {}),
        ("no", (path, folder / "no", ["crop"]), {}),
        ("targets", (path, folder, []), {}),
        ("'site'", (path, folder, ["crop"]), {"group": "site"}),
        ("'crop' stands more than once", (path, folder, ["crop"]), {"auxiliary": ["crop"]}),
        ("dict", ({"image": ["a"]}, None, "y"), {}),
    ]
    for message, values, options in wrong:
        with pytest.raises(DataError, match=message):
            read_table(*values, **options)
    own = written(folder, "image,images\na.jpg,1\n")
    with pytest.raises(DataError, match="'images'"):
        read_table(own, targets="images")
    assert "h" not in read_table(written(folder, "image,y,h\na,1,\nb,2,nan\n"), targets="y", auxiliary="h")
    assert "'h' is empty" in caplog.text
    for raw in ("image,größe\n".encode("latin-1"), b"image,y\na.jpg,1\n" + b"x" * 9000 + b"\xff,2\n"):
        (folder / "latin.csv").write_bytes(raw)
        with pytest.raises(DataError, match=r"latin\.csv.*UTF-8"):
            read_table(folder / "latin.csv", folder, ["y"])


def test_masks_are_named_by_a_column(tmp_path: Path) -> None:
    masks = read_table(written(tmp_path, "image,mask\na,a.png\nb,\n"), labels="mask")
    assert masks["labels"].tolist() == [Path("a.png"), None]
    with pytest.raises(DataError, match="'mask'"):
        read_table(written(tmp_path, "image,mask\na,\nb,nan\n"), labels="mask")


def test_one_image_under_two_names_is_refused(folder: Path) -> None:
    (folder / "d.jpg").symlink_to(folder / "a.jpg")
    for other in ("./a.jpg", "d.jpg", f"../{folder.name}/a.jpg"):
        path = written(folder, f"image,y\na.jpg,1\n{other},2\n")
        with pytest.raises(DataError, match="are the same file"):
            read_table(path, folder, ["y"])


def test_a_frame_is_read_as_its_csv(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    frame, expected = pd.read_csv(path), read_table(path, **ROLES)
    for other in (frame, frame.set_index("image"), frame.convert_dtypes()):
        pd.testing.assert_frame_equal(read_table(other, **ROLES), expected)
    counts = {"targets": "% cover", "auxiliary": "count", "classes": {"count": ["1", "2", "3"]}}
    pd.testing.assert_frame_equal(read_table(frame, **counts), read_table(path, **counts))
    exact = np.random.RandomState(0).randn(50)
    numbers = pd.DataFrame({"image": [f"{i}.jpg" for i in range(50)], "y": exact, "single": exact.astype("f4")})
    table = read_table(numbers, targets=["y", "single"])
    assert (table["y"] == exact).all()
    assert (table["single"] == exact.astype("f4").astype("f8")).all()
    for wrong, message in (
        (frame.drop(columns="image"), "'image'"),
        (frame.assign(**{"% cover": ["1", "2", "oops", "3"]}), "'c.jpg' is 'oops'"),
        (pd.concat([frame, frame[["Art"]]], axis=1), "2 columns named 'Art'"),
        (frame.iloc[:0], "no rows"),
    ):
        with pytest.raises(DataError, match=message):
            read_table(wrong, **ROLES)
    ordered = frame.assign(Art=pd.Categorical(frame["Art"], ["Gras", "Weißklee", "1a", "Klee"]))
    assert read_table(ordered, targets="Art")["Art"].cat.codes.tolist() == [1, 0, 0, 2]


def test_a_long_table_comes_by_pivot(tmp_path: Path) -> None:
    rows = [(f"{i}.jpg", name, i + j) for i, (j, name) in itertools.product(range(3), enumerate(("crop", "weed")))]
    (tmp_path / "long.csv").write_text(csv_text(["image", "name", "value"], rows))
    frame = pd.read_csv(tmp_path / "long.csv", dtype=str, keep_default_na=False)
    table = read_table(frame.pivot(index="image", columns="name", values="value"), targets=["crop", "weed"])
    assert table.index.tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert (table["crop"].tolist(), table["weed"].tolist()) == ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])


def test_ids_stay_text(tmp_path: Path) -> None:
    ids = ("007", "7", "1.0", "1", "1e5", "NA", "None", "null")
    path = written(tmp_path, "image,y\n" + "".join(f" {name},{row}\n" for row, name in enumerate(ids)))
    source = MemoryTokens(ids, Tokens.from_patches(torch.randn(len(ids), 2, 8), grid=(1, 2), patch_size=16))
    frame = pd.DataFrame({"y": range(len(ids))}, index=ids)
    for table in (path, frame, frame.rename_axis("image").reset_index()):
        read = read_table(table, targets="y")
        assert tuple(read.index) == ids
        # an id that changed has no tokens, or two rows
        fit(PatchMeanHead(8, [Task("y")]), source, targets=read, epochs=1)


def test_composed_and_decomposed_names_are_one_image(tmp_path: Path) -> None:
    """File systems exchange the forms; a table finds the file, and training its tokens."""
    composed, decomposed = "pr\u00e9s.jpg", "pre\u0301s.jpg"
    for there, here in ((composed, decomposed), (decomposed, composed)):
        folder = tmp_path / ascii(there)[1:-1].replace("\\", "")
        folder.mkdir()
        (folder / there).write_bytes(b"x")
        (folder / "b.jpg").write_bytes(b"x")
        table = read_table(written(folder, f"image,y\n{here},1\nb.jpg,2\n"), folder, "y")
        assert table.index[0] == composed
        assert table["images"].tolist()[0].is_file()
        tokens = Tokens.from_patches(torch.randn(2, 2, 8), grid=(1, 2), patch_size=16)
        fit(PatchMeanHead(8, [Task("y")]), MemoryTokens((there[:-4], "b"), tokens), targets=table, epochs=1)
    with pytest.raises(DataError, match="stands more than once"):
        read_table(written(tmp_path, f"image,y\n{composed},1\n{decomposed},2\n"), targets="y")
