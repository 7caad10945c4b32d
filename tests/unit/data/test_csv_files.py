"""CSV files as Excel, LibreOffice, Google Sheets, pandas and R write them: encodings, separators, rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck import DataError
from dinoneck.data.csv_files import read_csv_file

ROWS = [["image", "höhe", "名"], ["a.jpg", "1,5", "小麦"], ["b.jpg", "2", "é"]]


def text_of(separator: str, line_end: str = "\n") -> str:
    return line_end.join(separator.join(row) for row in ROWS) + line_end


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "cells.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ENCODED = [
    pytest.param(text_of(";").encode("utf-8"), "", id="UTF-8"),
    pytest.param(text_of(";", "\r\n").encode("utf-8-sig"), "", id="Excel, CSV UTF-8"),
    pytest.param(text_of("\t", "\r\n").encode("utf-16"), "UTF-16", id="Excel, Unicode text"),
    pytest.param(
        b"\xfe\xff" + text_of("\t", "\r").encode("utf-16-be"), "UTF-16", id="big-endian UTF-16"
    ),
    pytest.param(text_of(";").encode("utf-32"), "UTF-32", id="UTF-32"),
    pytest.param(text_of(";", "\r").encode("utf-8"), "", id="line ends of old Macs"),
    pytest.param(text_of(";", "\r\r\n").encode("utf-8"), "", id="line ends doubled on Windows"),
]


@pytest.mark.parametrize(("content", "stated"), ENCODED)
def test_encodings_with_a_mark_are_read_and_stated(
    tmp_path: Path, content: bytes, stated: str
) -> None:
    file = read_csv_file(write(tmp_path, content))

    assert [file.header, *file.rows] == ROWS
    assert stated in " ".join(file.repairs)
    assert bool(file.repairs) == bool(stated)


NO_CSV = [
    pytest.param("größe\nä\n".encode("latin-1"), ("line 1", "0xf6", "'gr'", "UTF-8"), id="latin-1"),
    pytest.param("a\nb\n写真".encode("cp932"), ("line 3", "UTF-8"), id="Shift-JIS"),
    pytest.param("größe\n".encode("mac-roman"), ("line 1", "UTF-8"), id="Mac Roman"),
    pytest.param("a;b\n".encode("utf-16-le"), ("NUL", "UTF-16"), id="UTF-16 without a mark"),
    pytest.param("a;b\n".encode("utf-16")[:-1], ("UTF-16", "8 bytes"), id="cut UTF-16"),
    pytest.param(b"PK\x03\x04 and more", ("workbook",), id="xlsx, ods, numbers"),
    pytest.param(b"\xd0\xcf\x11\xe0 and more", (".xls",), id="xls"),
    pytest.param(b"PAR1 and more", ("Parquet",), id="Parquet"),
    pytest.param(b"\x1f\x8b and more", ("gzip",), id="gzip"),
    pytest.param(b"ARROW1\0\0 and more", ("Feather",), id="Feather"),
    pytest.param(b"\x89HDF\r\n\x1a\n", ("HDF5",), id="HDF5"),
    pytest.param(b"\x80\x04\x95 and more", ("pickle",), id="pickle"),
    pytest.param(b"\x93NUMPY\x01\0", ("NumPy",), id="NumPy"),
    pytest.param(b"BZh91AY&SY", ("bzip2",), id="bzip2"),
    pytest.param(b"\x89PNG\r\n\x1a\n", ("image",), id="PNG"),
    pytest.param(b'[{"image": "a"}]', ("JSON",), id="list of JSON objects"),
    pytest.param(b'{"images": [], "annotations": []}', ("JSON", "--boxes"), id="COCO"),
    pytest.param(b'\xef\xbb\xbf{"y": 1}\n{"y": 2}\n', ("JSON",), id="lines of JSON"),
    pytest.param(b"[[1, 2], [3, 4]]", ("JSON",), id="JSON lists"),
    pytest.param(b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",), id="LFS"),
    pytest.param(b"\n<html><table><tr>", ("HTML",), id="a page that is called .xls"),
    pytest.param(b"", ("empty",), id="empty"),
    pytest.param(b"\xef\xbb\xbf\r\n;;\r\n", ("empty",), id="blank rows alone"),
]


@pytest.mark.parametrize(("content", "named"), NO_CSV)
def test_other_files_are_refused_by_what_they_are(
    tmp_path: Path, content: bytes, named: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as refused:
        read_csv_file(write(tmp_path, content))

    for word in named:
        assert word in str(refused.value)


def test_only_a_coco_file_has_the_advice_for_coco_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_csv_file(write(tmp_path, '[{"image": "a"}]'))

    assert "COCO" not in str(refused.value)


@pytest.mark.parametrize("first_cell", ["[kg]", "{a}", '"{a}"', "[plot]", "[1]", "[[x]]", "[-]"])
def test_a_name_in_brackets_begins_no_json_file(tmp_path: Path, first_cell: str) -> None:
    file = read_csv_file(write(tmp_path, f"{first_cell},y\na,1\n"))

    assert file.header == [first_cell.strip('"'), "y"]


def test_a_first_line_that_names_another_separator_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "sep=,\nimage;y\na;1,5\n")

    with pytest.raises(DataError, match="first line says that ',' .* separated by ';'"):
        read_csv_file(path, ["image", "y"])


SEPARATED = [
    pytest.param("image,y\na,1\n", ("image", "y"), [["a", "1"]], id="comma"),
    pytest.param("image;y\na;1,5\n", ("image", "y"), [["a", "1,5"]], id="semicolon"),
    pytest.param("image\ty\na\t1,5\n", ("image", "y"), [["a", "1,5"]], id="tab"),
    pytest.param(
        "image;g, dry;h, m, x\na;1,5;2\n",
        ("image", "g, dry"),
        [["a", "1,5", "2"]],
        id="as many commas in names as semicolons",
    ),
    pytest.param("image;y, g\na;1,5\n", ("image", "y, g"), [["a", "1,5"]], id="the columns decide"),
    pytest.param("image;y, g\na;1\nb;2\n", (), [["a", "1"], ["b", "2"]], id="the rows decide"),
    pytest.param('"image";"y;z"\n"a";"1"\n', ("image",), [["a", "1"]], id="all in quotes"),
    pytest.param("image\na\nb\n", ("image",), [["a"], ["b"]], id="one column"),
    pytest.param("sep=;\nimage;y\na;1,5\n", ("image",), [["a", "1,5"]], id="line sep=;"),
    pytest.param("SEP=|\r\nimage|y\r\na|1\r\n", ("image",), [["a", "1"]], id="line SEP=|"),
    pytest.param('"sep=;"\nimage;y\na;1\n', ("image",), [["a", "1"]], id="line sep= in quotes"),
    pytest.param("sep=\t\nimage\ty\na\t1\n", ("image",), [["a", "1"]], id="line sep= with a tab"),
    pytest.param("sep=\\t\nimage\ty\na\t1\n", ("image",), [["a", "1"]], id="line sep=\\t"),
    pytest.param("sep=;;\nimage;y\na;1\n", ("image",), [["a", "1"]], id="sep= saved again"),
]


@pytest.mark.parametrize(("text", "columns", "rows"), SEPARATED)
def test_what_separates_the_cells(
    tmp_path: Path, text: str, columns: tuple[str, ...], rows: list[list[str]]
) -> None:
    file = read_csv_file(write(tmp_path, text), columns)

    assert file.rows == rows
    assert set(columns).issubset(file.header)


def test_blank_rows_are_skipped_and_counted_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    file = read_csv_file(write(tmp_path, ";\nimage;y\n\na;1\n;\nb;2\n ;\n;;;\n\n"))

    assert file.rows == [["a", "1"], ["b", "2"]]
    assert file.row_numbers == [4, 6]
    assert file.repairs == ["4 blank rows skipped"]


def test_empty_cells_after_the_last_column_are_left_out_and_counted(tmp_path: Path) -> None:
    file = read_csv_file(write(tmp_path, "image,y\na,1,,\nb,2\nc,3,\n"))

    assert file.rows == [["a", "1"], ["b", "2"], ["c", "3"]]
    assert file.repairs == ["empty cells after the last column in 2 rows left out"]


TEXT_FORMULAS = [
    pytest.param('="007"', "007", id="as programs write it"),
    pytest.param('"=""007"""', "007", id="as spreadsheets save it again"),
    pytest.param('"=""a """"b"""""""', 'a "b"', id="with quotes inside"),
    pytest.param("=A1", "=A1", id="a formula of another cell stays"),
]


@pytest.mark.parametrize(("cell", "expected"), TEXT_FORMULAS)
def test_texts_that_are_written_as_formulas_are_these_texts(
    tmp_path: Path, cell: str, expected: str
) -> None:
    file = read_csv_file(write(tmp_path, f"image;y\n{cell};1\n"))

    assert file.rows == [[expected, "1"]]
    assert len(file.repairs) == (cell != expected)


MIXED = [
    pytest.param("image,y\na;1,5\nb;2,25\n", ";", id="semicolons"),
    pytest.param("image,y\na\t1,5\nb\t2,25\n", "\t", id="tabs"),
    pytest.param("image,y,z\na;1,5;3\nb;2;4,5\n", ";", id="whole numbers among them"),
    pytest.param("y,image\n1,5;a\n2,25;b\n", ";", id="image last"),
]


@pytest.mark.parametrize(("text", "separator"), MIXED)
def test_names_and_rows_with_two_separators_are_refused(
    tmp_path: Path, text: str, separator: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_csv_file(write(tmp_path, text), ["image", "y"])

    assert f"separated by ',', and the cells by {separator!r}" in str(refused.value)
    assert f"write {separator!r} between the names too" in str(refused.value)


def test_lists_in_a_cell_are_no_second_separator(tmp_path: Path) -> None:
    file = read_csv_file(write(tmp_path, "image,tags\na.png,x;y\nb.png,u;v\n"), ["image"])

    assert file.rows == [["a.png", "x;y"], ["b.png", "u;v"]]


WRONG_ROWS = [
    pytest.param("image,y\na,1,5\n", ("row 2", "3 cells", "decimal comma"), id="decimal comma"),
    pytest.param("image\ty\n1\ta\t1\n", ("row 2", "row.names"), id="row names of R"),
    pytest.param("image,y,z\na,1,2\nb,1\n", ("row 3", "2 cells", "'b'"), id="cut off"),
    pytest.param("image,y\na,1\n\n;\nb,2,3,4\n", ("row 4",), id="after an empty row"),
    pytest.param('image,y\n"a,1\nb,2\n', ("row 2", "quote"), id="a quote that is not closed"),
    pytest.param('image,y\na,1\n"5" pot",2\n', ("row 3", "quote"), id="a quote inside quotes"),
]


@pytest.mark.parametrize(("text", "named"), WRONG_ROWS)
def test_rows_of_another_length_are_named(
    tmp_path: Path, text: str, named: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as refused:
        read_csv_file(write(tmp_path, text), ["image"])

    for word in named:
        assert word in str(refused.value)


FIRST_ROWS = [
    pytest.param("Survey 2024;\n;\nimage;y\na;1\n", ("'Survey 2024'", "above"), id="a title"),
    pytest.param("# by logger 7\nimage,y\na,1\n", ("'# by logger 7'", "above"), id="a comment"),
    pytest.param("image|y\na|1\n", ("'image|y'", "semicolons"), id="bars"),
    pytest.param("image y\na 1\n", ("'image y'", "semicolons"), id="blanks"),
    pytest.param('"image,y"\n"a,1"\n', ("'image,y'", "quotes"), id="quotes around rows"),
]


@pytest.mark.parametrize(("text", "named"), FIRST_ROWS)
def test_a_first_row_that_does_not_hold_the_names_is_quoted(
    tmp_path: Path, text: str, named: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as refused:
        read_csv_file(write(tmp_path, text), ["image", "y"])

    for word in named:
        assert word in str(refused.value)


def test_a_separator_after_the_last_name_needs_none_in_the_rows(tmp_path: Path) -> None:
    file = read_csv_file(write(tmp_path, "image;y;\na;1\nb;2;\n"))

    assert file.rows == [["a", "1", ""], ["b", "2", ""]]


# Decimal commas without quotes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("image,y,note\n0.png,1,5,\n1.png,2,7,\n", id="empty last cell"),
        pytest.param("image,y,\n0.png,1,5\n1.png,2,7\n", id="column without a name"),
        pytest.param("image,y,\n0.png,1,5,\n1.png,2,7,\n", id="both"),
        pytest.param("image,y,note\n0.png,3,\n1.png,-2,7,\n", id="one row of several"),
    ],
)
def test_cells_that_may_be_the_halves_of_a_number_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)

    with pytest.raises(DataError) as refused:
        read_csv_file(tmp_path / "t.csv")

    message = str(refused.value)
    assert "1,5 may be one number with a decimal comma" in message or "-2,7 may be" in message
    assert "write such numbers in quotes, or ';' between the cells" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("image,y,note\n0.png,1,5\n", ["0.png", "1", "5"], id="as many as names"),
        pytest.param("image,y,z,\n0.png,1,5,\n", ["0.png", "1", "5", ""], id="header ends so too"),
        pytest.param("image,y,z\n0.png,1.5,5,\n", ["0.png", "1.5", "5"], id="decimal point"),
        pytest.param("image,y\n0.png,1,,\n", ["0.png", "1"], id="empty cells alone"),
        pytest.param("image;y;z\n0.png;1;5;\n", ["0.png", "1", "5"], id="semicolons"),
    ],
)
def test_whole_numbers_in_two_cells_are_read_where_no_other_reading_fits(
    tmp_path: Path, content: str, expected: list[str]
) -> None:
    (tmp_path / "t.csv").write_text(content)

    file = read_csv_file(tmp_path / "t.csv")

    assert file.rows == [expected]


def test_the_line_that_names_the_separator_is_taken_where_no_column_is_known(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "sep=|\na|b\n1|2\n")

    table = read_csv_file(file)

    assert table.header == ["a", "b"]
    assert table.rows == [["1", "2"]]


def test_a_file_of_the_line_that_names_the_separator_alone_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "sep=;\n")

    with pytest.raises(DataError, match=r"cells\.csv"):
        read_csv_file(file, ["image"])
