"""The file that a name means: names of other machines are found, and never another image."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tests.unit.data.test_folders import touched

from dinoneck import DataError
from dinoneck.data import names as module
from dinoneck.data.listing import MASK_SUFFIXES
from dinoneck.data.names import find_files, find_images


def found(folder: Path, *names: str) -> list[str]:
    """The paths of files below the folder that names mean."""
    files = find_files(names, folder, "images of t.csv")
    return [file.relative_to(folder).as_posix() for file in files]


# Names of a folder
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("7.png", "7.png", id="as written"),
        pytest.param("./d//7.png", "d/7.png", id="a dot and two slashes"),
        pytest.param(" 7.png ", "7.png", id="blanks at the ends"),
        pytest.param(r"d\7.png", "d/7.png", id="backslash"),
        pytest.param(r".\d\7.png", "d/7.png", id="a dot and backslashes"),
        pytest.param("my%20field.png", "my field.png", id="%20"),
        pytest.param("7.PNG", "7.png", id="suffix in capitals"),
        pytest.param("7.jpg", "7.JPG", id="suffix of the file in capitals"),
        pytest.param("d/7", "d/7.tif", id="no suffix"),
        pytest.param("plot.1", "plot.1.jpg", id="no suffix, and a point"),
        pytest.param("images/7.png", "7.png", id="a folder more"),
        pytest.param("7.png", "d/7.png", id="a folder less"),
        pytest.param("/Users/u/x/7.png", "7.png", id="POSIX"),
        pytest.param(r"C:\data\x\7.PNG", "7.png", id="Windows"),
        pytest.param("/old/d/7", "d/7.png", id="absolute without a suffix"),
        pytest.param("/data/local-files/?d=a/7.png", "7.png", id="a path in a query"),
        pytest.param("../images/7.png", "7.png", id="up"),
        pytest.param("S2A.B04", "S2A.B04.tif", id="no suffix, and a point before capitals"),
    ],
)
def test_a_name_finds_its_file_and_nothing_is_said(
    name: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touched(tmp_path / "pics", file, "other/unrelated.png")
    assert found(folder, name) == [file]
    assert not caplog.records


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_are_one_name(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    file = unicodedata.normalize(other, "Prüfung/Ä.png")
    folder = touched(tmp_path, file)
    assert found(folder, unicodedata.normalize(form, "Prüfung/Ä.png")) == [file]


def test_an_exact_name_wins_over_all_other_readings(tmp_path: Path) -> None:
    names = ["a%20b.png", r"d\7.png", "8.PNG", "images/9.png", "7"]
    folder = touched(tmp_path, *names, "a b.png", "d/7.png", "8.png", "9.png", "7.png")
    assert found(folder, *names) == names


def test_the_most_last_parts_tell_files_apart(tmp_path: Path) -> None:
    folder = touched(tmp_path / "pics", "d/7.png", "e/7.png", "7.png")
    assert found(folder, "/old/d/7.png", "/old/pics/7.png") == ["d/7.png", "7.png"]


def test_numbers_of_a_data_frame_are_names(tmp_path: Path) -> None:
    folder = touched(tmp_path, "7.png", "12.png")
    files = find_files([7.0, 12, np.int64(7)], folder, "images")
    assert files == [folder / "7.png", folder / "12.png", folder / "7.png"]


def test_files_that_are_no_images_make_no_name_ambiguous(tmp_path: Path) -> None:
    folder = touched(tmp_path, "7.jpg", "7.npy", "8.npy")
    assert found(folder, "7") == ["7.jpg"]
    assert find_files(["8"], folder, "labels", MASK_SUFFIXES) == [folder / "8.npy"]


def test_images_in_memory_are_kept(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3))
    [image] = find_files([pixels], tmp_path, "images")
    assert image is pixels


def test_names_that_are_paths_need_no_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = touched(tmp_path, "d/7.png", "8.png")
    monkeypatch.setattr(module, "list_files", None)
    assert found(folder, "d/7.png", "8.png") == ["d/7.png", "8.png"]


@pytest.mark.parametrize(
    ("files", "names", "named"),
    [
        pytest.param(["7.png"], ["7.PNG", "7.Png"], ["'7.PNG'", "'7.Png'"], id="two names of one file"),
        pytest.param(["7.png"], ["7.png", "./7.png"], ["'7.png'", "'./7.png'"], id="two paths of one file"),
        pytest.param(["7.png", "7.PNG"], ["7.Png"], ["7.png", "7.PNG"], id="two suffixes"),
        pytest.param(["7.png", "7.jpg"], ["7"], ["7.png", "7.jpg"], id="no suffix, two files"),
        pytest.param(["d/7.png", "e/7.png"], ["7.png"], ["d/7.png", "e/7.png"], id="two folders"),
        pytest.param(["1/7.png", "2/7.png"], ["/x/3/7.png"], ["/x/3/7.png", "1/7.png"], id="a third folder"),
        pytest.param(["7.png"], ["7.png", "9.png"], ["1 of 2", "'9.png'", "7.png"], id="missing"),
        pytest.param(["7.png"], ["7.jpg"], ["'7.jpg'"], id="another suffix"),
        pytest.param(["IMG_7.png"], ["img_7.png"], ["'img_7.png'"], id="another case"),
        pytest.param([".cache/7.png"], ["7.png"], ["'7.png'"], id="hidden"),
        pytest.param(["7.png"], ["7.png\0"], ["not in"], id="a null byte"),
        pytest.param(["7.png"], ["7" * 9000], ["777 ..."], id="a long name"),
        pytest.param(["7.png"], [""], ["row 1"], id="no name"),
        pytest.param(["7.png"], ["https://a.org/7.png"], ["'https://a.org/7.png' is a URL"], id="URL"),
        pytest.param(["7.png"], ["s3://bucket/7.png"], ["'s3://bucket/7.png' is a URL"], id="bucket"),
    ],
)  # fmt: skip
def test_names_that_fit_no_file_or_several_are_refused(
    files: list[str], names: list[str], named: list[str], tmp_path: Path
) -> None:
    folder = touched(tmp_path / "pics", *files)
    with pytest.raises(DataError) as error:
        found(folder, *names)
    assert all(text in str(error.value) for text in named)


def test_a_link_has_no_name_of_its_own_and_a_hard_link_has(tmp_path: Path) -> None:
    touched(tmp_path, "7.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "7.png")
    (tmp_path / "soft.png").symlink_to("7.png")
    assert found(tmp_path, "7.png", "hard.png") == ["7.png", "hard.png"]
    with pytest.raises(DataError, match="'7.png' and 'soft.png' are the same file"):
        found(tmp_path, "7.png", "soft.png")


def test_the_folder_of_names_has_to_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_files(["7.png"], tmp_path / "nowhere", "images")
    with pytest.raises(DataError, match=r"7.png is a file"):
        find_files(["7.png"], touched(tmp_path, "7.png") / "7.png", "images")


# Names of images that are given
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [
        pytest.param(["7.png", "8.png"], ["a/7.png"], {"7.png": "a/7.png"}, id="base names"),
        pytest.param(["a/7.png", "b/7.png"], ["b/7.png"], {"b/7.png": "b/7.png"}, id="folders"),
        pytest.param(["a/7.png", "b/7.png"], ["ds/a/7.png"], {"a/7.png": "ds/a/7.png"}, id="ends"),
        pytest.param([r"a\7.png"], ["a/7.png"], {r"a\7.png": "a/7.png"}, id="backslash"),
        pytest.param(["7.PNG"], ["a/7.png"], {"7.PNG": "a/7.png"}, id="suffix"),
        pytest.param(["7"], ["a/7.png"], {"7": "a/7.png"}, id="no suffix"),
        pytest.param(["/u/a/7.png", "/u/b/7.png"], ["a/7.png"], {"/u/a/7.png": "a/7.png"}, id="absolute"),
    ],
)  # fmt: skip
def test_images_that_are_given_find_their_rows(
    names: list[str], images: list[str], expected: dict[str, str]
) -> None:
    paths = find_images(names, [Path(name) for name in images], "t.csv")
    assert {name: path.as_posix() for name, path in paths.items()} == expected


@pytest.mark.parametrize(
    ("names", "images", "named"),
    [
        pytest.param(["x/0.png", "z/0.png"], ["y/0.png"], ["x/0.png", "z/0.png"], id="two rows"),
        pytest.param(["0.png"], ["x/0.png", "y/0.png"], ["x/0.png", "y/0.png"], id="two images"),
        pytest.param(["1.png"], ["x/0.png"], ["1.png", "x/0.png"], id="no row"),
        pytest.param([], ["x/0.png"], ["no rows"], id="no rows at all"),
    ],
)
def test_rows_that_do_not_tell_images_apart_are_refused(
    names: list[str], images: list[str], named: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        find_images(names, [Path(name) for name in images], "t.csv")
    assert all(text in str(error.value) for text in named)
