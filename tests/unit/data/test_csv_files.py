"""CSV files as rows of text. What is refused is in tests/refusals/data.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck.data.csv_files import read_csv_file

ROWS = [["ä.png", "1.5"], ["b.png", ""]]
TEXT = "image,y\nä.png,1.5\nb.png,\n"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_and_utf_16_with_a_mark_are_read(tmp_path: Path, codec: str) -> None:
    (tmp_path / "t.csv").write_text(TEXT, encoding=codec)

    file = read_csv_file(tmp_path / "t.csv", ["image", "y"])

    assert file.header == ["image", "y"]
    assert file.rows == ROWS


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TEXT.replace("\n", "\r\n"), id="ends of lines of Windows"),
        pytest.param(TEXT.replace("\n", "\r"), id="ends of lines of old Macs"),
        pytest.param(TEXT.replace(",", ";"), id="semicolons"),
        pytest.param(TEXT.replace(",", "\t"), id="tabs"),
        pytest.param("sep=;\n" + TEXT.replace(",", ";"), id="a line that names the separator"),
        pytest.param("\n" + TEXT.replace("b.png", "\n , \nb.png"), id="blank rows"),
        pytest.param('image,"y"\n"ä.png", 1.5 \n"b.png",\n', id="quotes and blanks"),
    ],
)
def test_the_same_rows_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())

    file = read_csv_file(tmp_path / "t.csv", ["image", "y"])

    assert file.header == ["image", "y"]
    assert file.rows == ROWS


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        pytest.param("image;mass, kg, dry;y", ";", id="commas inside of a name"),
        pytest.param('"image";"a, b, c, d"', ";", id="commas inside of quotes"),
        pytest.param("image,y", ",", id="as many as the columns"),
    ],
)
def test_the_header_tells_the_separator(tmp_path: Path, header: str, separator: str) -> None:
    cells = header.count(separator) * separator
    (tmp_path / "t.csv").write_text(f"{header}\na{cells}\n")

    assert read_csv_file(tmp_path / "t.csv", ["image"]).separator == separator


def test_a_cell_may_hold_separators_quotes_and_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('image,note\na.png,"x, ""y""\nz"\nb.png,\n')

    file = read_csv_file(tmp_path / "t.csv")

    assert file.column("note") == ['x, "y"\nz', ""]
    assert file.lines == [3, 4]


def test_columns_that_are_not_read_may_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,y,,\na.png,1,,\n")

    assert read_csv_file(tmp_path / "t.csv", ["image", "y"]).column("y") == ["1"]
