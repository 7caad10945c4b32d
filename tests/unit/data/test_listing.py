"""What lies below a folder: images in order, what is left out, and links."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.data.test_folders import touched

from dinoneck import DataError
from dinoneck.data.listing import list_files


def test_images_are_listed_in_the_order_of_the_parts_of_their_paths(tmp_path: Path) -> None:
    files = ["2.png", "_DSC0001.JPG", "a/1.tif", "b/0.webp", "b/c/1.bmp", "b/d.jpeg"]
    folder = touched(tmp_path, *files, ".0.png", ".git/0.png", "_old/0.png", "a/notes.txt")
    assert [file.relative_to(folder).as_posix() for file in list_files(folder).files] == files


def test_a_link_into_a_folder_that_it_lies_in_ends(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    assert list_files(tmp_path).files == [tmp_path / "a" / "1.png"]


@pytest.mark.parametrize(
    ("files", "left"),
    [
        pytest.param(["run/report.json", "run/heads/f0.png", "run/data.jpg"], [], id="a run in it"),
        pytest.param(["run/out_of_fold.csv", "run/report.json", "run/data.jpg"], [], id="a run without heads"),
        pytest.param(["store/store.json", "store/index.sqlite", "store/0.png"], [], id="a store in it"),
        pytest.param(["data.jpg", "data.txt", "report.json"], [], id="the sheet of a run beside"),
        pytest.param(["data.jpg", "data.txt", "data.json"], [], id="the sheet of a dry run"),
        pytest.param(["data.jpg", "data.txt"], ["data.jpg"], id="a photo with a text of its own"),
        pytest.param(["a/report.json", "a/1.png"], ["a/1.png"], id="a report that is no run's"),
    ],
)  # fmt: skip
def test_what_dinoneck_wrote_is_left_out(files: list[str], left: list[str], tmp_path: Path) -> None:
    folder = touched(tmp_path, "0.png", *files)
    found_files = [file.relative_to(folder).as_posix() for file in list_files(folder).files]
    assert found_files == ["0.png", *left]


def test_folders_of_masks_beside_images_are_no_images(tmp_path: Path) -> None:
    touched(tmp_path, "images/1.png", "masks/1.png", "b/imgs/2.png", "b/Labels/2.png", "c/gt/3.png")
    listing = list_files(tmp_path, without_masks=True)
    found = [file.relative_to(tmp_path).as_posix() for file in listing.files]
    assert found == ["b/imgs/2.png", "c/gt/3.png", "images/1.png"]
    assert listing.left_out == {"folders of masks": 2}
    assert len(list_files(tmp_path).files) == 5


def test_other_formats_are_counted_by_suffix(tmp_path: Path) -> None:
    touched(tmp_path, "0.png", "1.HEIC", "a/2.heic", "a/t.csv", "LICENSE")
    assert list_files(tmp_path).left_out == {
        "files of other formats (.heic)": 2,
        "files of other formats (.csv)": 1,
        "files of other formats (no suffix)": 1,
    }


@pytest.mark.parametrize("name", ["1.png", "folder"])
def test_a_dead_link_is_refused(name: str, tmp_path: Path) -> None:
    touched(tmp_path, "0.png")
    (tmp_path / name).symlink_to("gone")
    (tmp_path / ".lock").symlink_to("gone")
    with pytest.raises(DataError, match=f"{name} leads nowhere"):
        list_files(tmp_path)
