"""Tables of images: what is read is what stands there, and what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck import DataError
from dinoneck.data import read_csiro_test, read_table
from dinoneck.data.sheets import read_column


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "image,crop,weed,field,day\na.jpg,0.5,0.1,f1,1\nb.jpg,0.25,0,f1,2\nc.jpg,1e-3,0.9,f2,1\n"


def test_reads_values_and_groups(folder: Path) -> None:
    got = read_table(table(folder, GOOD), folder, ["weed", "crop"], group="field", minimum=0.0)
    assert got.ids == ("a.jpg", "b.jpg", "c.jpg")
    assert list(got.targets) == ["weed", "crop"]
    assert got.targets["crop"].tolist() == [0.5, 0.25, 0.001]
    assert got.groups == ("f1", "f1", "f2")
    assert got.minimum == 0.0
    assert got.images[2] == folder / "c.jpg"
    both = read_table(table(folder, GOOD), folder, ["crop"], group=["field", "day"])
    assert both.groups == ("f1 | 1", "f1 | 2", "f2 | 1")
    assert read_table(table(folder, "\ufeff" + GOOD), folder, ["crop"]).groups is None
    part = got.take([2, 0])
    assert part.ids == ("c.jpg", "a.jpg")
    assert part.targets["weed"].tolist() == [0.9, 0.1]
    assert part.groups == ("f2", "f1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("crop", "corp", 1), r"no column 'crop'. Did you mean 'corp'\? It has: image, corp, weed"),
        (GOOD.replace("a.jpg", "z.jpg"), r"1 of 3 images named in .*'z.jpg'.*remove the rows"),
        (GOOD.replace("0.5", "oats"), r"row 2: crop is 'oats'.*expected a finite number.*class names holds no numbers"),
        (GOOD.replace("b.jpg", "a.jpg"), r"'a.jpg' stands more than once"),
        ("image,crop,weed,field,day\n", "header and no rows"),
        ("", "no column 'image'"),
        (GOOD + "c.jpg,1\n", "row 5 has another number of fields"),
        (GOOD.replace("weed", "crop"), "2 columns named 'crop'"),
    ],
)
def test_what_cannot_be_used_is_named(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(table(folder, text), folder, ["crop", "weed"] if "weed" in text else ["crop"], group="field")


def test_missing_files_and_names(folder: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_table(folder / "no.csv", folder, ["crop"])
    with pytest.raises(DataError, match="does not exist"):
        read_table(table(folder, GOOD), folder / "no", ["crop"])
    with pytest.raises(DataError, match="no target columns"):
        read_table(table(folder, GOOD), folder, [])
    with pytest.raises(DataError, match="no column 'site'"):
        read_table(table(folder, GOOD), folder, ["crop"], group="site")
    (folder / "latin.csv").write_bytes("image,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_table(folder / "latin.csv", folder, ["größe"])
    assert read_column(table(folder, GOOD), "image") == ("a.jpg", "b.jpg", "c.jpg")


def test_csiro_test_rows_keep_their_order(csiro: Path) -> None:
    wanted = read_csiro_test(csiro / "test.csv")
    assert wanted.sample_ids[0] == "ID1000010__Dry_Clover_g"
    assert wanted.images[5:7] == ("test/ID1000011.jpg",) * 2
    assert set(wanted.targets) == {"Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g"}
    assert (csiro / "test.csv").read_text().splitlines()[0] == "sample_id,image_path,target_name"
    assert len((csiro / "sample_submission.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "lacks Dry_Total_g"),
        (lambda rows: [*rows, rows[-1]], "has Dry_Total_g twice"),
        (lambda rows: [rows[0].replace("Dry_Clover_g", "Dry_Clver_g"), *rows[1:]], "'Dry_Clver_g' is none of"),
        (lambda rows: [rows[0].rsplit(",", 1)[0] + ",NA", *rows[1:]], "row 2: target is 'NA'"),
        (lambda rows: [row.replace("train/ID1000000", "train/ID0") for row in rows], "not in"),
    ],
)
def test_csiro_faults_are_named(csiro: Path, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    header, *rows = (csiro / "train.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([header, *change(rows)]) + "\n")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv", csiro)


def test_one_image_under_two_names_is_refused(folder: Path) -> None:
    (folder / "d.jpg").symlink_to(folder / "a.jpg")
    for other in ("./a.jpg", "d.jpg", f"../{folder.name}/a.jpg"):
        path = table(folder, f"image,y\na.jpg,1\n{other},2\n")
        with pytest.raises(DataError, match="are the same image"):
            read_table(path, folder, ["y"])


def test_tables_as_programs_write_them(folder: Path) -> None:
    indexed = read_table(table(folder, ",image,y\n0,a.jpg,1\n1,b.jpg,2\n"), folder, ["y"])
    assert indexed.targets["y"].tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match="save the table with commas"):
        read_table(table(folder, "image;y\na.jpg;1\n"), folder, ["y"])
    (folder / "t.csv").write_bytes(b"image,y\na.jpg,1\n" + b"x" * 9000 + b"\xff,2\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_table(folder / "t.csv", folder, ["y"])
    with pytest.raises(DataError, match="expected a finite number"):
        read_table(table(folder, "image,y\na.jpg,1_000\n"), folder, ["y"])


def test_groups_are_named_and_do_not_collide(folder: Path) -> None:
    with pytest.raises(DataError, match="'g' is missing in 1 row: row 3"):
        read_table(table(folder, "image,y,g\na.jpg,1,p\nb.jpg,2, \n"), folder, ["y"], group="g")
    path = table(folder, "image,y,g,h\na.jpg,1,p | q,r\nb.jpg,2,p,q | r\n")
    groups = read_table(path, folder, ["y"], group=["g", "h"]).groups
    assert groups is not None
    assert len(set(groups)) == 2
