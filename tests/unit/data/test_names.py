"""The file that a name means: names of other machines and tools are found, and never another image."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dinoneck import DataError
from dinoneck.data.names import contradicts, find_among, find_below
from dinoneck.data.sources import find_files, find_images, refuse_own_labels


def touched(root: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def found(folder: Path, *names: str, outside: bool = False) -> list[str]:
    """The paths of files below the folder that names mean."""
    files = find_files(names, folder, "images of t.csv", outside=outside)
    return [file.relative_to(folder).as_posix() for file in files]


# Names of a folder
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "files", "line"),
    [
        pytest.param(["7.png"], ["7.png"], "", id="as written"),
        pytest.param(["d/7.png"], ["d/7.png"], "", id="in a folder"),
        pytest.param(["./d//7.png"], ["d/7.png"], "", id="a dot and two slashes"),
        pytest.param(["d/../e/7.png"], ["e/7.png"], "", id="up and down"),
        pytest.param([r"d\7.png"], ["d/7.png"], r"names with '\' read as '/'", id="backslash"),
        pytest.param([r"d\7.png", "d/8.png"], ["d/7.png", "d/8.png"], r"'\' read", id="both slashes"),
        pytest.param(["my%20field%2C%201.png"], ["my field, 1.png"], "decoded", id="percent"),
        pytest.param(["%C3%A9t%C3%A9.png"], ["été.png"], "decoded", id="percent of UTF-8"),
        pytest.param([r"d%5C7.png"], ["d/7.png"], "decoded", id="backslash in percent"),
        pytest.param(["d%2F7.png"], ["d/7.png"], "decoded", id="slash in percent"),
        pytest.param(["7.PNG", "8.Png"], ["7.png", "8.png"], "another case of the suffix", id="suffix"),
        pytest.param(["7.jpg", "8.jpg"], ["7.JPG", "8.jpg"], "another case of the suffix", id="suffix of some"),
        pytest.param(["IMG_7.JPG"], ["img_7.jpg"], "another case", id="case"),
        pytest.param(["7", "8"], ["7.jpg", "8.jpeg"], "a suffix added", id="no suffix"),
        pytest.param(["sub.1/7"], ["sub.1/7.tif"], "a suffix added", id="no suffix in a folder"),
        pytest.param(["images/7.png"], ["7.png"], "names without 'images/'", id="images"),
        pytest.param(["/Users/u/x/7.png"], ["7.png"], "names without '/Users/u/x/'", id="POSIX"),
        pytest.param([r"C:\data\x\7.png"], ["7.png"], r"names without 'C:\data\x\'", id="Windows"),
        pytest.param(["C:/data/x/7.png"], ["7.png"], "names without 'C:/data/x/'", id="drive, slashes"),
        pytest.param([r"\\nas\share\7.png"], ["7.png"], r"without '\\nas\share\'", id="share"),
        pytest.param(["~/pics/7.png"], ["7.png"], "names without '~/pics/'", id="home"),
        pytest.param(["file:///a/7.png"], ["7.png"], "names without 'file:///a/'", id="file address"),
        pytest.param(["s3://bucket/a/7.png"], ["7.png"], "names without 's3://bucket/a/'", id="bucket"),
        pytest.param(["/data/local-files/?d=a/7.png"], ["7.png"], "names without", id="Label Studio"),
        pytest.param(["../images/7.png"], ["7.png"], "names without '../images/'", id="up"),
        pytest.param(["/u/a/b/../7.png"], ["a/7.png"], "names without 'u/'", id="up in the end"),
        pytest.param([r"C:%5Cx%5C7.png"], ["7.png"], "names without 'C:/x/'", id="percent separators cut"),
        pytest.param([r"C:\x\d\7.PNG", r"C:\x\e\8.PNG"], ["d/7.png", "e/8.png"], "without", id="all at once"),
        pytest.param(["/u/a%20b/7.png"], ["7.png"], "names without '/u/a%20b/'", id="percent in the prefix"),
        pytest.param(["7.png", "8.png"], ["d/7.png", "d/8.png"], "names below 'd/'", id="a folder before"),
        pytest.param(["e/7.png", "f/7.png"], ["d/e/7.png", "d/f/7.png"], "below 'd/'", id="folders below one"),
        pytest.param(["7.png", "8.png"], ["d/7.png", "e/8.png"], "several subfolders", id="subfolders"),
    ],
)  # fmt: skip
def test_names_find_their_files_and_one_line_says_how(
    names: list[str], files: list[str], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touched(tmp_path / "pics", *files, "other/unrelated.png")
    assert found(folder, *names) == files
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if line else 0)
    assert line in "".join(lines)
    assert not line or f"{len(names)} of {len(names)} found" in lines[0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_are_one_name(form: str, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    file = unicodedata.normalize(other, "Prüfung/Ä.png")
    folder = touched(tmp_path, file)
    assert found(folder, unicodedata.normalize(form, "Prüfung/Ä.png")) == [file]
    name = unicodedata.normalize(form, r"C:\Prüfung\Ä.PNG")
    assert found(folder, name) == [file]


def test_an_exact_name_wins_over_all_other_readings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a%20b.png", r"d\7.png", "8.PNG", "images/9.png"]
    folder = touched(tmp_path, *names, "a b.png", "d/7.png", "8.png", "9.png")
    assert found(folder, *names) == names
    assert not caplog.records


def test_what_is_written_the_same_wins_within_a_reading(tmp_path: Path) -> None:
    folder = touched(tmp_path, "7.png", "7.PNG", "8.png")
    assert found(folder, "7.png", "7.PNG", "8.PNG") == ["7.png", "7.PNG", "8.png"]


def test_a_rule_holds_for_all_names_or_for_none(tmp_path: Path) -> None:
    folder = touched(tmp_path, "d/7.png", "my img.png")
    with pytest.raises(DataError, match=r"2 of 2 images .*not in .* 1 of 2, not 'my_img.png'"):
        found(folder, r"d\7.png", "my_img.png")
    with pytest.raises(DataError, match=r"without 'images/': 1 of 2, not 'images/8.png'"):
        found(touched(tmp_path, "7.png"), "images/7.png", "images/8.png")


def test_numbers_of_a_data_frame_are_names(tmp_path: Path) -> None:
    folder = touched(tmp_path, "7.png", "12.png")
    assert find_files([7.0, 12, np.int64(7)], folder, "images") == [
        folder / "7.png",
        folder / "12.png",
        folder / "7.png",
    ]


def test_a_link_to_the_folder_has_two_names(tmp_path: Path) -> None:
    folder = touched(tmp_path / "field", "7.png")
    (tmp_path / "current").symlink_to("field")
    assert found(tmp_path / "current", "field/7.png") == ["7.png"]
    assert found(tmp_path / "current", "current/7.png") == ["7.png"]
    assert found(folder, "field/7.png") == ["7.png"]


def test_labels_that_are_the_images_are_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "7.png", tmp_path / "8.png"
    refuse_own_labels([file, other], [other, None], "t.csv")
    with pytest.raises(DataError, match=r"t.csv: the label of .*8.png is the image itself"):
        refuse_own_labels([file, other], [None, other], "t.csv")


def test_missing_names_stay_missing(tmp_path: Path) -> None:
    files = find_files(["7.PNG", "", None, float("nan")], touched(tmp_path, "7.png"), "masks")
    assert files == [tmp_path / "7.png", None, None, None]


@pytest.mark.parametrize(
    ("files", "names", "named"),
    [
        pytest.param(["7.png"], ["7.PNG", "7.Png"], ("'7.PNG'", "'7.Png'"), id="two names of one file"),
        pytest.param(["7.png"], ["7.png", "./7.png"], ("'7.png'", "'./7.png'"), id="two exact names of one file"),
        pytest.param(["7.png", "7.PNG"], ["7.Png"], ("7.png", "7.PNG"), id="two suffixes"),
        pytest.param(["7.png", "7.jpg"], ["7"], ("7.png", "7.jpg"), id="no suffix, two files"),
        pytest.param(["d/7.png", "e/7.png"], ["7.png"], ("d/7.png", "e/7.png"), id="two folders"),
        pytest.param(["d/7.png", "e/7.png", "d/8.png"], ["7.png", "9.png"], ("'9.png'",), id="missing"),
        pytest.param(["d/7.png", "e/7.png", "d/8.png"], ["7.png", "8.png"], ("d/7.png",), id="once in another folder"),
        pytest.param(["7.png"], ["7.jpg"], ("'7.jpg'",), id="another suffix"),
        pytest.param(["7.png"], ["field/7.png"], ("field/7.png", "pics/7.png"), id="another folder"),
        pytest.param(["d/7.png"], ["field/7.png"], ("field/7.png",), id="another subfolder"),
        pytest.param(["7.png"], ["3/7.png"], ("3/7.png", "pics/7.png"), id="another number"),
        pytest.param(["1/7.png", "2/7.png"], ["/x/3/7.png"], ("/x/3/7.png",), id="the base name alone"),
        pytest.param([".cache/7.png"], ["7.png"], ("'7.png'",), id="hidden"),
        pytest.param(["7.png"], ["7.png\0"], ("not in",), id="a null byte"),
        pytest.param(["7.png"], ["7" * 300], ("not in",), id="a long name"),
    ],
)  # fmt: skip
def test_names_that_fit_no_file_or_several_are_refused(
    files: list[str], names: list[str], named: tuple[str, ...], tmp_path: Path
) -> None:
    folder = touched(tmp_path / "pics", *files)
    with pytest.raises(DataError) as error:
        found(folder, *names)
    assert all(text in str(error.value) for text in named)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param("7.jpg", "7.png", id="another suffix"),
        pytest.param("Day 1/IMG_7.jpg", "img_7.png", id="another suffix and case"),
        pytest.param("007.jpg", "7", id="zeros that a spreadsheet dropped"),
        pytest.param("plot_07_003.jpg", "plot_7_3.jpg", id="zeros of two numbers"),
        pytest.param("7.jpg", "upload/3f2a1b4c-7.jpg", id="the hash of an upload"),
        pytest.param(
            "7.jpg", "https://example.org/images/7.jpg?w=640", id="an address with a query"
        ),
    ],
)
def test_a_file_that_is_called_much_alike_is_named(file: str, name: str, tmp_path: Path) -> None:
    folder = touched(tmp_path / "pics", "other.jpg", file)
    with pytest.raises(DataError) as error:
        found(folder, "other.jpg", name)
    assert f"('{name}' may be '{file}': write names as the files are called)" in str(error.value)


def test_no_file_is_named_that_has_another_number(tmp_path: Path) -> None:
    folder = touched(tmp_path / "pics", "70.jpg", "17.jpg")
    with pytest.raises(DataError) as error:
        found(folder, "7.png")
    assert "may be" not in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [
        pytest.param("train/", "val", id="relative"),
        pytest.param("/Users/u/train/images/", "ds/val/images", id="absolute, of parts"),
        pytest.param(r"D:\coco\train2017" + "\\", "val2017", id="Windows, with a year"),
        pytest.param("training/", "validation", id="long words"),
        pytest.param("day1/images/", "day2/images", id="days"),
        pytest.param("x/", "y", id="letters"),
    ],
)
def test_the_folder_of_a_name_has_to_be_that_of_the_image(
    prefix: str, folder: str, tmp_path: Path
) -> None:
    images = touched(tmp_path / folder, "000.png", "001.png")
    with pytest.raises(DataError) as error:
        found(images, prefix + "000.png", prefix + "001.png")
    assert prefix + "000.png" in str(error.value) and str(images / "000.png") in str(error.value)


def test_a_prefix_is_not_cut_where_the_name_is_that_of_another_file(tmp_path: Path) -> None:
    touched(tmp_path / "ds", "data/0.png", "pics/0.png", "2023/0.png")
    with pytest.raises(DataError, match="exists"):
        found(tmp_path / "ds" / "pics", "data/0.png")
    with pytest.raises(DataError, match="exists"):
        found(tmp_path / "ds" / "pics", "/Users/other/2023/0.png")
    assert found(tmp_path / "ds" / "pics", "/Users/other/pics/0.png") == ["0.png"]


def test_absolute_names_and_parent_folders_are_opened_only_where_that_is_allowed(
    tmp_path: Path,
) -> None:
    images = touched(tmp_path / "pics", "7.png")
    secret = touched(tmp_path / "elsewhere", "secret.png") / "secret.png"
    for name in (str(secret), "../elsewhere/secret.png", r"..\elsewhere\secret.png"):
        with pytest.raises(DataError, match="secret"):
            found(images, name)
    assert find_files([str(secret)], images, "images", outside=True) == [secret]
    [file] = find_files(["../elsewhere/secret.png"], images, "images", outside=True)
    assert file.samefile(secret)


def test_a_truth_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t.csv has no rows"):
        find_images([], [tmp_path / "7.png"], "t.csv")


def test_a_name_that_is_no_path_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        found(touched(tmp_path, "7.png"), "7" * 9000)
    assert "777..." in str(error.value)
    assert len(str(error.value)) < 1000


def test_missing_folders_empty_files_and_missing_files_have_a_message_each(tmp_path: Path) -> None:
    touched(tmp_path / "pics", "7.png", "8.png")
    touched(tmp_path / "pics", "0.png", content=b"")
    with pytest.raises(DataError, match=r"the folder .*nowhere of the images does not exist"):
        find_files(["7.png"], tmp_path / "nowhere", "images")
    with pytest.raises(DataError, match=r"7.png is a file; expected the folder of the images"):
        find_files(["8.png"], tmp_path / "pics" / "7.png", "images")
    with pytest.raises(DataError, match=r"1 of 2 images of t.csv are empty files in .*'0.png'"):
        found(tmp_path / "pics", "7.png", "0.png")
    with pytest.raises(DataError, match=r"1 of 2 images of t.csv are empty files in .*'0.PNG'"):
        found(tmp_path / "pics", "7.PNG", "0.PNG")
    with pytest.raises(DataError, match=r"1 of 2 images of t.csv are not in .*'9.png'"):
        found(tmp_path / "pics", "7.png", "9.png")


def test_links_and_hard_links_are_files(tmp_path: Path) -> None:
    touched(tmp_path / "pics", "7.png")
    (tmp_path / "pics" / "hard.png").hardlink_to(tmp_path / "pics" / "7.png")
    assert found(tmp_path / "pics", "7.png", "hard.png") == ["7.png", "hard.png"]
    (tmp_path / "pics" / "soft.png").symlink_to("7.png")
    with pytest.raises(DataError, match=r"'7.png' and 'soft.png' are the same file"):
        found(tmp_path / "pics", "7.png", "soft.png")


@pytest.mark.parametrize(
    ("files", "name", "mask"),
    [
        pytest.param(["images/8.png", "masks/7.png", "masks/8.png"], "7.png", "masks/7.png", id="folder"),
        pytest.param(["images/8.png", "masks/7.png", "masks/8.png"], "7.PNG", "masks/7.png", id="case"),
        pytest.param(["8.png", "8_mask.png"], "8_mask", "8_mask.png", id="beside"),
        pytest.param(["train/8.jpg", "trainannot/8.png"], "8.png", "trainannot/8.png", id="annot"),
        pytest.param(["leftImg8bit/8.png", "gtFine/8_gtFine.png"], "8_gtFine.png", "gtFine/8_gtFine.png", id="gt"),
    ],
)  # fmt: skip
def test_a_name_of_an_image_never_becomes_a_mask(
    files: list[str], name: str, mask: str, tmp_path: Path
) -> None:
    folder = touched(tmp_path / "pics", *files)
    with pytest.raises(DataError) as error:
        found(folder, name)
    assert f"'{name}'" in str(error.value)
    assert f"they are masks, such as {folder / mask}" in str(error.value)
    assert found(folder, mask) == [mask]
    assert find_files([name], folder, "labels", of_labels=True) == [folder / mask]


def test_masks_do_not_make_the_name_of_an_image_ambiguous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touched(
        tmp_path / "pics", "images/7.png", "masks/7.png", "images/8.png", "masks/8.png"
    )
    assert found(folder, "7.png", "8.png") == ["images/7.png", "images/8.png"]
    assert "names below 'images/': 2 of 2 found" in caplog.text
    with pytest.raises(DataError, match=r"'7.png' may be .*images/7.png and .*masks/7.png"):
        find_files(["7.png"], folder, "labels", of_labels=True)


def test_one_missing_name_among_thousands_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touched(tmp_path, *(f"{i}.png" for i in range(1200)))
    names = [*(f"{i}.PNG" for i in range(1200)), "gone.PNG"]
    with pytest.raises(
        DataError, match=r"another case of the suffix: 1200 of 1201, not 'gone.PNG'"
    ):
        found(folder, *names)
    assert caplog.text == ""


def test_a_folder_that_is_too_large_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinoneck.data.sources.MOST_FILES", 3)
    folder = touched(tmp_path, *(f"{i}.png" for i in range(5)))
    assert found(folder, "0.png", "4.png") == ["0.png", "4.png"]
    with pytest.raises(DataError, match="too many files"):
        found(folder, "0.PNG")


def test_exact_names_need_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = touched(tmp_path, "d/7.png", "8.png")
    monkeypatch.setattr("dinoneck.data.sources.walk", None)
    assert found(folder, "d/7.png", "8.png") == ["d/7.png", "8.png"]


# Names of images that are given
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "images", "expected"),
    [
        pytest.param(["7.png", "8.png"], ["a/7.png"], {"7.png": "a/7.png"}, id="base names"),
        pytest.param(["a/7.png", "b/7.png"], ["b/7.png"], {"b/7.png": "b/7.png"}, id="folders"),
        pytest.param(["a/7.png", "b/7.png"], ["ds/a/7.png"], {"a/7.png": "ds/a/7.png"}, id="ends"),
        pytest.param(["./a/7.png"], ["a/7.png"], {"./a/7.png": "a/7.png"}, id="a dot"),
        pytest.param([r"a\7.png"], ["a/7.png"], {r"a\7.png": "a/7.png"}, id="backslash"),
        pytest.param(["7.PNG"], ["a/7.png"], {"7.PNG": "a/7.png"}, id="suffix"),
        pytest.param(["7"], ["a/7.png"], {"7": "a/7.png"}, id="no suffix"),
        pytest.param(["/u/a/7.png", "/u/b/7.png"], ["a/7.png"], {"/u/a/7.png": "a/7.png"}, id="absolute"),
        pytest.param([r"C:\p\7.png"], ["a/7.png"], {r"C:\p\7.png": "a/7.png"}, id="Windows"),
        pytest.param(["images/7.png"], ["a/7.png"], {"images/7.png": "a/7.png"}, id="images"),
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
        pytest.param(["x/000.png"], ["y/000.png"], ("x/000.png", "y/000.png"), id="another folder"),
        pytest.param(["x/0.png", "z/0.png"], ["y/0.png"], ("x/0.png", "y/0.png"), id="other folders"),
        pytest.param(["/u/train/0.png"], ["val/0.png"], ("/u/train/0.png", "val/0.png"), id="another part"),
        pytest.param(["0.png"], ["x/0.png", "y/0.png"], ("x/0.png", "y/0.png"), id="two images"),
        pytest.param(["0.png", "x/0.png"], ["x/0.png"], ("'0.png'", "'x/0.png'"), id="two rows"),
        pytest.param(["1.png"], ["x/0.png"], ("1.png", "x/0.png"), id="no row"),
    ],
)  # fmt: skip
def test_rows_of_other_images_are_refused(
    names: list[str], images: list[str], named: tuple[str, str]
) -> None:
    with pytest.raises(DataError) as error:
        find_images(names, [Path(name) for name in images], "t.csv")
    assert all(text in str(error.value) for text in named)


# Readings
# ----------------------------------------------------------------------------------------------------


def parts_from_root(*paths: str) -> dict[Path, tuple[str, ...]]:
    """File -> its parts, of absolute paths."""
    return {Path(path): tuple(path.split("/")[1:]) for path in paths}


def test_the_fewest_folders_that_find_a_file_are_cut_though_more_would_find_more() -> None:
    files = parts_from_root("/data/a/b/1.png", "/data/b/2.png")
    reading = find_among(["x/a/b/1.png", "x/a/b/2.png"], files)
    assert reading.prefix == "x/"
    assert reading.files == {"x/a/b/1.png": Path("/data/a/b/1.png")}
    assert reading.missing == ["x/a/b/2.png"]


def test_of_the_spellings_that_which_finds_most_is_taken() -> None:
    files = parts_from_root("/data/1.png", "/data/2.png")
    reading = find_among(["1.png", "2.PNG"], files)
    assert reading.text == "names with another case of the suffix"
    assert len(reading.files) == 2


def test_names_of_other_files_are_all_missing() -> None:
    reading = find_among(["a/1.png", "a/2.png"], parts_from_root("/data/3.png"))
    assert reading.missing == ["a/1.png", "a/2.png"]
    assert not reading.is_changed


def test_a_way_that_finds_files_for_all_names_wins_over_one_that_finds_most() -> None:
    paths = {
        Path("/data/d/1.png"): ("d", "1.png"),
        Path("/data/e/1.png"): ("e", "1.png"),
        Path("/data/2.png"): ("2.png",),
    }
    reading = find_below(["1.png", "2.png"], paths, [("data",)])
    assert reading.missing == []
    assert reading.several == {"1.png": [Path("/data/d/1.png"), Path("/data/e/1.png")]}


def test_the_nearest_way_counts_the_first_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoneck.data.names.SAMPLE", 2)
    paths = {Path("/data/1.png"): ("1.png",)}
    reading = find_below(["x/1.png", "x/2.png", "x/3.png"], paths, [("data",)])
    assert reading.prefix == "x/"
    assert reading.files == {"x/1.png": Path("/data/1.png")}
    assert reading.missing == ["x/2.png"]


@pytest.mark.parametrize(
    ("prefix", "folder", "expected"),
    [
        pytest.param(("images", "7"), ("data", "photos"), False, id="number of a project"),
        pytest.param(("7",), ("data", "photos"), True, id="number alone"),
        pytest.param(("images", "7"), ("data", "8"), True, id="another number"),
        pytest.param(("train2017",), ("data", "val2017"), True, id="parts with a year"),
        pytest.param(("training",), ("data", "train"), True, id="another name, relative"),
    ],
)
def test_folders_of_names_contradict_those_of_files(
    prefix: tuple[str, ...], folder: tuple[str, ...], expected: bool
) -> None:
    assert contradicts(prefix, folder, from_root=False) is expected
