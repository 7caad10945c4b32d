"""Tables: files and DataFrames, what is a number, a class, a name, and which file a name means."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.case import Case
from tests.net.files import write_image, write_images, write_mask, write_rows, write_text

NAMES = ("0.png", "1.png", "2.png")
MASSES = {"ids": [*NAMES], "images": [*NAMES], "mass": [1.5, 20.25, 300.0]}
KINDS = {
    "ids": [*NAMES],
    "images": [*NAMES],
    "kind": ["weed", "crop", "weed"],
    "classes of kind": ["crop", "weed"],
}


def rows_of(values: Sequence[Any], name: str = "mass") -> list[tuple[Any, ...]]:
    """A table of one column, and the names of its images."""
    return [("image", name), *((f"{i}.png", value) for i, value in enumerate(values))]


def write(separator: str, encoding: str, values: Sequence[Any], root: Path) -> None:
    write_rows(root / "t.csv", rows_of(values), separator, encoding)


def column(values: Sequence[Any], name: str = "value") -> Callable[[Path], None]:
    """A writer of ``t.csv`` with a column of these cells."""

    def write_column(root: Path) -> None:
        write_rows(root / "t.csv", rows_of(values, name))

    return write_column


def read(root: Path, name: str = "value", **options: Any) -> Any:
    """The values of a column, and its classes if it has some."""
    reading = readers.table(root, "t.csv", [name], **options)
    classes = reading.get(f"classes of {name}")
    return reading[name] if classes is None else (reading[name], classes)


def mass(root: Path, **options: Any) -> Any:
    return readers.table(root, "t.csv", ["mass"], **options)


def data_frame(root: Path) -> Any:
    import pandas as pd

    frame = pd.DataFrame({"image": NAMES, "mass": [1.5, 20.25, 300], "kind": ["a", "b", "a"]})
    return readers.table(root, frame, ["mass", "kind"])


def data_frame_with_index(root: Path) -> Any:
    import pandas as pd

    return readers.table(root, pd.DataFrame({"mass": [1.5, 20.25, 300]}, index=NAMES), ["mass"])


def data_frame_of_categories(root: Path) -> Any:
    import pandas as pd

    kinds = pd.Categorical(["low", "high", "low"], categories=["low", "mid", "high"], ordered=True)
    frame = pd.DataFrame({"image": NAMES, "kind": kinds})
    return readers.table(root, frame, ["kind"])


def parquet(root: Path) -> None:
    import pandas as pd

    write_images(root, NAMES)
    pd.DataFrame({"image": NAMES, "mass": [1.5, 20.25, 300]}).to_parquet(root / "t.parquet")


def xlsx(root: Path) -> None:
    import pandas as pd

    write_images(root, NAMES)
    pd.DataFrame({"image": NAMES, "mass": [1.5, 20.25, 300]}).to_excel(root / "t.xlsx", index=False)


def files_named(names: Sequence[str], files: Sequence[str]) -> Callable[[Path], None]:
    """A writer of ``t.csv`` that names images, and of files that may be called differently."""

    def write_files(root: Path) -> None:
        rows = [("image", "mass"), *((name, i + 0.5) for i, name in enumerate(names))]
        write_rows(root / "t.csv", rows, images=False)
        write_images(root, files)

    return write_files


def files_of(root: Path) -> Any:
    reading = mass(root)
    return dict(zip(reading["ids"], reading["images"], strict=True))


def masks_of_rows(root: Path) -> None:
    write_rows(
        root / "t.csv",
        [("image", "mask", "mass"), ("a.png", "m/a.png", 1.5), ("b.png", "", 2.5)],
    )
    write_mask(root / "m/a.png", [[0, 1], [1, 0]])


def composed_names(root: Path) -> None:
    write_rows(
        root / "t.csv",
        [("image", "kind"), ("café.png", "a"), ("thé.png", "b")],
        images=False,
    )
    write_images(root, [unicodedata.normalize("NFD", name) for name in ("café.png", "thé.png")])


def links(root: Path) -> None:
    write_image(root / "a.png")
    (root / "b.png").symlink_to("a.png")
    write_rows(root / "t.csv", [("image", "mass"), ("a.png", 1), ("b.png", 2)], images=False)


OPTIONS = {
    "comma": (",", "utf-8"),
    "semicolon": (";", "utf-8"),
    "tab": ("\t", "utf-8"),
    "utf-8 with a byte order mark": (",", "utf-8-sig"),
    "utf-16 with tabs, as Excel's Unicode text": ("\t", "utf-16"),
}

FORMS = [
    Case(f"csv: {name}", partial(write, *options, (1.5, 20.25, 300)), mass, MASSES)
    for name, options in OPTIONS.items()
]
FORMS += [
    Case(
        "csv: semicolons and a decimal comma",
        partial(write, ";", "utf-8", ("1,5", "20,25", "300")),
        mass,
        MASSES,
    ),
    Case(
        "csv: utf-16, tabs and a decimal comma that is stated",
        partial(write, "\t", "utf-16", ("1,5", "20,25", "300")),
        partial(mass, decimal=","),
        MASSES,
        since="0.5",
    ),
    Case(
        "csv: tabs and a decimal comma that is not stated",
        partial(write, "\t", "utf-8", ("1,5", "20,25", "300")),
        mass,
        DataError,
        names=("1,5", "0.png"),
        since="0.5",
    ),
    Case(
        "csv: tabs and a decimal comma in every cell, not stated",
        partial(write, "\t", "utf-8", ("1,5", "20,25", "3,0")),
        mass,
        DataError,
        names=("1,5", "decimal"),
        since="0.5",
    ),
    Case(
        "csv: semicolons with a comma in one cell and a point in another",
        partial(write, ";", "utf-8", ("1,5", "20.25", "300")),
        mass,
        DataError,
        names=("1,5",),
    ),
    Case(
        "csv: quoted cells with commas and quotes",
        lambda root: (
            write_text(root / "t.csv", 'image,value\n"0.png","a, b"\n"1.png","say ""c"""\n'),
            write_images(root, NAMES[:2]),
        ),
        read,
        (["a, b", 'say "c"'], ["a, b", 'say "c"']),
    ),
    Case(
        "csv: a line sep=; of Excel, Windows line ends and blank rows at the end",
        lambda root: (
            write_text(
                root / "t.csv", "sep=;\r\nimage;mass\r\n0.png;1,5\r\n1.png;20,25\r\n;\r\n\r\n"
            ),
            write_images(root, NAMES[:2]),
        ),
        lambda root: mass(root)["mass"],
        [1.5, 20.25],
    ),
    Case(
        "csv: a row of another length",
        lambda root: (
            write_text(root / "t.csv", "image,mass\n0.png,1.5\n1.png,2.5,9\n"),
            write_images(root, NAMES[:2]),
        ),
        mass,
        DataError,
        names=("t.csv", "3"),
    ),
    Case(
        "DataFrame",
        lambda root: write_images(root, NAMES),
        data_frame,
        MASSES | {"kind": ["a", "b", "a"], "classes of kind": ["a", "b"]},
    ),
    Case(
        "DataFrame: images in its index",
        lambda root: write_images(root, NAMES),
        data_frame_with_index,
        MASSES,
    ),
    Case(
        "DataFrame: categories keep their order, also one without a row",
        lambda root: write_images(root, NAMES),
        data_frame_of_categories,
        {
            "ids": [*NAMES],
            "images": [*NAMES],
            "kind": ["low", "high", "low"],
            "classes of kind": ["low", "mid", "high"],
        },
    ),
    Case(
        "Parquet",
        parquet,
        lambda root: readers.table(root, "t.parquet", ["mass"]),
        MASSES,
        since="0.5",
        needs="pyarrow",
    ),
    Case(
        "XLSX",
        xlsx,
        lambda root: readers.table(root, "t.xlsx", ["mass"]),
        MASSES,
        since="0.5",
        needs="openpyxl",
    ),
]

VALUES = [
    Case("numbers: float()'s forms", column(["1e3", "-0.5", " 7 "]), read, [1000.0, -0.5, 7.0]),
    Case(
        "numbers: NA, N/A, NaN, NULL, None and an empty cell are missing",
        column(["1", "NA", "N/A", "NaN", "NULL", "None", ""]),
        read,
        [1.0, None, None, None, None, None, None],
    ),
    Case(
        "numbers: a word among them",
        column(["1", "2", "three"]),
        read,
        DataError,
        names=("three", "2.png"),
        since="0.5",
    ),
    Case(
        "numbers: infinity",
        column(["1", "inf", "2"]),
        read,
        DataError,
        names=("inf", "1.png"),
    ),
    Case(
        "numbers: an underscore",
        column(["1", "1_000", "2"]),
        read,
        DataError,
        names=("1_000", "1.png"),
        since="0.5",
    ),
    Case(
        "codes: digits of which a cell begins with 0",
        column(["007", "012", "107"]),
        read,
        (["007", "012", "107"], ["007", "012", "107"]),
        since="0.5",
    ),
    Case("numbers: a single 0, and 0.5", column(["0", "0.5", "10"]), read, [0.0, 0.5, 10.0]),
    Case(
        "codes: read as numbers where that is said",
        column(["007", "012", "107"]),
        partial(read, numbers=["value"]),
        [7.0, 12.0, 107.0],
    ),
    Case(
        "classes: words, with a gap",
        column(["weed", "", "crop"]),
        read,
        (["weed", None, "crop"], ["crop", "weed"]),
    ),
    Case(
        "classes: none beside weed is a class",
        column(["weed", "none", "weed"]),
        read,
        (["weed", "none", "weed"], ["none", "weed"]),
        since="0.5",
    ),
    Case(
        "classes: NA beside EU is a class",
        column(["EU", "NA", "EU"]),
        read,
        (["EU", "NA", "EU"], ["EU", "NA"]),
        since="0.5",
    ),
    Case(
        "classes: compared exactly after blanks are taken off",
        column([" weed", "weed ", "Weed"]),
        read,
        (["weed", "weed", "Weed"], ["Weed", "weed"]),
        since="0.5",
    ),
    Case(
        "classes: a composed é is a decomposed one",
        column(["thé", unicodedata.normalize("NFD", "thé"), "eau"]),
        read,
        (["thé", "thé", "eau"], ["eau", "thé"]),
    ),
    Case(
        "classes: in the order that is given, with one that has no row",
        column(["low", "high", "low"]),
        partial(read, classes={"value": ["low", "mid", "high"]}),
        (["low", "high", "low"], ["low", "mid", "high"]),
    ),
    Case(
        "classes: one that is not in the given list",
        column(["low", "hihg", "low"]),
        partial(read, classes={"value": ["low", "high"]}),
        DataError,
        names=("hihg", "1.png"),
    ),
    Case(
        "classes: numbers where that is said, in the order of numbers",
        column(["10", "2", "10"]),
        partial(read, classes={"value": ()}),
        (["10", "2", "10"], ["2", "10"]),
    ),
    Case(
        "labels: several words in a cell, none of them, and an unknown cell",
        column(["crop;weed", "none", "", "weed"]),
        partial(read, multilabel={"value": ()}),
        [["crop", "weed"], [], None, ["weed"]],
    ),
    Case(
        "labels: separated by |",
        column(["crop|weed", "crop", "none"]),
        lambda root: readers.training(root, {"csv": "./t.csv", "multilabel": ["value"]})["value"],
        [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]],
    ),
    Case(
        "labels: columns of true and false",
        lambda root: write_rows(
            root / "t.csv",
            [("image", "a", "b"), ("0.png", "true", "0"), ("1.png", "False", "1")],
        ),
        lambda root: readers.training(root, {"csv": "./t.csv", "multilabel": ["a", "b"]})["tags"],
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    Case(
        "groups: 1 is 1.0, and a column of words",
        lambda root: write_rows(
            root / "t.csv",
            [("image", "mass", "site"), ("0.png", 1, "1"), ("1.png", 2, "1.0"), ("2.png", 3, "2")],
        ),
        lambda root: (lambda groups: [groups[0] == groups[1], groups[0] == groups[2]])(
            mass(root, group="site")["group"]
        ),
        [True, False],
    ),
    Case(
        "folds: names of a column",
        lambda root: write_rows(
            root / "t.csv",
            [("image", "mass", "part"), ("0.png", 1, "b"), ("1.png", 2, "a"), ("2.png", 3, "b")],
        ),
        lambda root: mass(root, fold_column="part")["fold"],
        ["b", "a", "b"],
    ),
    Case(
        "a column that is not there",
        column([1, 2], "mas"),
        mass,
        DataError,
        names=("mass", "mas"),
    ),
    Case(
        "a column twice",
        lambda root: (
            write_text(root / "t.csv", "image,mass,mass\n0.png,1,2\n"),
            write_images(root, ["0.png"]),
        ),
        mass,
        DataError,
        names=("mass",),
    ),
    Case(
        "an image twice",
        files_named(["a.png", "a.png"], ["a.png"]),
        mass,
        DataError,
        names=("a.png",),
    ),
]

FILES = [
    Case(
        "names: rows in any order",
        files_named(["b.png", "a.png", "c.png"], ["a.png", "b.png", "c.png"]),
        files_of,
        {name: name for name in ("b.png", "a.png", "c.png")},
    ),
    Case(
        "names: ids stay text",
        files_named(["007", "1e5", "1.0", "NA"], ["007.png", "1e5.png", "1.0.png", "NA.png"]),
        files_of,
        {name: f"{name}.png" for name in ("007", "1e5", "1.0", "NA")},
    ),
    Case(
        "names: without a suffix",
        files_named(["a", "b.c"], ["a.jpg", "b.c.png"]),
        files_of,
        {"a": "a.jpg", "b.c": "b.c.png"},
    ),
    Case(
        "names: a suffix in upper case, a photo that begins with _",
        files_named(["_DSC0001.JPG", "b.png"], ["_DSC0001.JPG", "b.PNG"]),
        files_of,
        {"_DSC0001.JPG": "_DSC0001.JPG", "b.png": "b.PNG"},
    ),
    Case(
        "names: a path of another machine, by its last parts",
        files_named(["/data/ann/x/a.png", "/data/ann/b.png"], ["x/a.png", "b.png"]),
        files_of,
        {"/data/ann/x/a.png": "x/a.png", "/data/ann/b.png": "b.png"},
    ),
    Case(
        "names: paths of two other machines",
        files_named(["/data/ann/x/a.png", "C:\\data\\x\\b.png"], ["x/a.png", "x/b.png"]),
        files_of,
        {"/data/ann/x/a.png": "x/a.png", "C:\\data\\x\\b.png": "x/b.png"},
        since="0.5",
    ),
    Case(
        "names: with a backslash",
        files_named(["x\\a.png", "x\\b.png"], ["x/a.png", "x/b.png"]),
        files_of,
        {"x\\a.png": "x/a.png", "x\\b.png": "x/b.png"},
    ),
    Case(
        "names: the name alone, of a file in a folder",
        files_named(["a.png", "b.png"], ["x/a.png", "y/b.png"]),
        files_of,
        {"a.png": "x/a.png", "b.png": "y/b.png"},
    ),
    Case(
        "names: one that fits two files",
        files_named(["a.png", "b.png"], ["x/a.png", "y/a.png", "b.png"]),
        mass,
        DataError,
        names=("a.png",),
    ),
    Case(
        "names: %20 is a blank",
        files_named(["my%20a.png", "b.png"], ["my a.png", "b.png"]),
        files_of,
        {"my%20a.png": "my a.png", "b.png": "b.png"},
    ),
    Case(
        "names: decomposed on the disk, composed in the table",
        composed_names,
        lambda root: sorted(readers.table(root, "t.csv", ["kind"])["ids"]),
        ["café.png", "thé.png"],
    ),
    Case(
        "names: no file",
        files_named(["a.png", "c.png"], ["a.png", "b.png"]),
        mass,
        DataError,
        names=("c.png",),
    ),
    Case(
        "names: train and val have files of equal names",
        files_named(["train/1.png", "val/1.png"], ["train/1.png", "val/1.png"]),
        files_of,
        {"train/1.png": "train/1.png", "val/1.png": "val/1.png"},
    ),
    Case(
        "masks: a column of them, with a gap",
        masks_of_rows,
        lambda root: readers.table(root, "t.csv", ["mass"], labels="mask")["labels"],
        ["m/a.png", None],
    ),
]

CASES = [*FORMS, *VALUES, *FILES]
