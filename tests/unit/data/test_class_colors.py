"""Colours of classes: words R,G,B, and tables name,r,g,b."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck.data.class_colors import parse_colors, read_color_table
from dinoneck.errors import ConfigError, DataError
from dinoneck.training.config import DataConfig


def test_words_and_triples_are_colours() -> None:
    assert parse_colors(["0,128,0", (255, 0, 7)]) == ((0, 128, 0), (255, 0, 7))


@pytest.mark.parametrize("word", ["0,128", "0,128,256", "green", "1,2,3,4", "1.5,2,3", "-1,2,3"])
def test_what_is_no_colour_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_colors(["0,0,0", word])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("name,r,g,b\nsky,1,2,3\nroad,4,5,6\n", id="CamVid"),
        pytest.param("name, r, g, b\nsky,1,2,3\nroad,4,5,6\n", id="blanks in the header"),
        pytest.param("id,B,G,R,Name\n0,3,2,1,sky\n1,6,5,4,road\n", id="any order, more columns"),
        pytest.param("name;r;g;b\nsky;1;2;3\nroad;4;5;6\n", id="semicolons"),
    ],
)
def test_a_table_has_the_names_and_colours_of_classes(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)

    colours = read_color_table(tmp_path / "c.csv")

    assert list(colours.items()) == [("sky", (1, 2, 3)), ("road", (4, 5, 6))]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("name,r,g\nsky,1,2\n", "no 'b'", id="column missing"),
        pytest.param("name,r,g,b\nsky,1,2,300\n", "'sky' is 1, 2, 300", id="no colour"),
        pytest.param("name,r,g,b\nsky,1,2,3\nsky,4,5,6\n", "'sky' twice", id="class twice"),
        pytest.param("name,r,g,b\nsky,1,2,3\nroad,1,2,3\n", "1,2,3 to two", id="colour twice"),
        pytest.param("name,r,g,b\n", "no rows", id="no rows"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)

    with pytest.raises(DataError, match=named):
        read_color_table(tmp_path / "c.csv")


def test_a_table_as_classes_is_names_and_colours(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("name,r,g,b\nsky,1,2,3\nroad,4,5,6\n")

    data = DataConfig(labels="masks", classes=(str(tmp_path / "c.csv"),))

    assert (data.classes, data.class_colors) == (("sky", "road"), ("1,2,3", "4,5,6"))
    with pytest.raises(ConfigError, match="leave one of them out"):
        DataConfig(labels="m", classes=(str(tmp_path / "c.csv"),), class_colors=("1,2,3",))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"label_kind": "numbers"}, "label_kind is 'numbers'", id="numbers"),
        pytest.param({"label_kind": "normals"}, "label_kind is 'normals'", id="normals"),
        pytest.param({"class_values": (1, 2)}, "by values or by colours", id="values too"),
        pytest.param({"classes": ("a",)}, "1 classes and 2", id="names"),
        pytest.param({"nodata": (0.0,)}, "grey level 0", id="nodata"),
    ],
)
def test_class_colors_that_contradict_other_options_are_refused(
    options: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        DataConfig(labels="m", class_colors=("0,0,0", "1,2,3"), **options)  # type: ignore[arg-type]
