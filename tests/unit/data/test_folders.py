"""Folders as tables: a folder per class, and masks that match their images by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import count_classes, read_folders, read_masks


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = touched(
        tmp_path, "wheat/2.jpg", "oats/a/1.PNG", "wheat/1.jpg", "wheat/notes.txt", ".cache/x.jpg", "table.csv"
    )
    table = read_folders(root)
    assert table.index.tolist() == ["oats/a/1.PNG", "wheat/1.jpg", "wheat/2.jpg"]
    assert table["images"].tolist() == [root / name for name in table.index]
    assert table["class"].tolist() == ["oats", "wheat", "wheat"]
    assert table["class"].cat.categories.tolist() == ["oats", "wheat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/1.jpg", "b/1.jpg", "2.jpg"), "2.jpg"),
        (("a/1.jpg",), "folders of .* are a; expected two"),
        (("a/1.jpg", "b/notes.txt", "c/1.jpg"), "no images of the class b"),
        (("train/a/1.jpg", "Val/a/2.jpg"), "Val, train"),
    ],
)
def test_folders_that_are_not_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folders(touched(tmp_path, *names))
    with pytest.raises(DataError, match="absent does not exist"):
        read_folders(tmp_path / "absent")


def test_masks_match_by_path(tmp_path: Path) -> None:
    touched(tmp_path, "x/b/1.jpg", "x/a/1.jpg", "x/a/2.JPG", "y/a/1.png", "y/a/2.png", "y/b/1.tif")
    table = read_masks(tmp_path / "x", tmp_path / "y")
    assert table.index.tolist() == ["a/1.jpg", "a/2.JPG", "b/1.jpg"]
    assert table.columns.tolist() == ["images", "labels"]
    assert table["labels"].tolist() == [tmp_path / "y" / name for name in ("a/1.png", "a/2.png", "b/1.tif")]
    touched(tmp_path, "x/masks/a/1.png", "x/masks/a/2.png", "x/masks/b/1.png")
    inside = read_masks(tmp_path / "x", tmp_path / "x/masks")
    assert inside.index.tolist() == table.index.tolist()
    assert inside["labels"].iloc[1] == tmp_path / "x/masks/a/2.png"


def test_files_without_a_partner(tmp_path: Path) -> None:
    x, y = touched(tmp_path / "x", "1.jpg", "2.jpg", "3.jpg"), touched(tmp_path / "y", "1.png")
    with pytest.raises(DataError, match="y lacks 2 files .*: 2, 3"):
        read_masks(x, y)
    touched(y, "2.png", "3.png", "4.png")
    with pytest.raises(DataError, match="x lacks 1 file .*: 4"):
        read_masks(x, y)
    with pytest.raises(DataError, match="'2' stands more than once"):
        read_masks(touched(x, "2.png"), y)
    with pytest.raises(DataError, match="both in"):
        read_masks(x, x)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read_masks(y, tmp_path / "empty")


def test_the_number_of_classes(tmp_path: Path) -> None:
    grey = np.zeros((4, 6), np.uint8)
    grey[0, 0] = 2
    palette = Image.fromarray(np.full((3, 5), 4, np.uint8), "L").convert("P")
    palette.putpalette([200, 10, 30] * 256)
    palette.putdata([4] * 15)
    palette.save(tmp_path / "p.png")
    assert count_classes([grey]) == 3
    assert count_classes([grey, tmp_path / "p.png"]) == 5
    grey[1] = 255
    assert count_classes([grey], nodata=255) == 3
    with pytest.raises(DataError, match="holds 255, which usually marks pixels without a class: pass nodata=255"):
        count_classes([grey])
    with pytest.raises(DataError, match="3 bands"):
        count_classes([np.zeros((4, 6, 3), np.uint8)])
    with pytest.raises(DataError, match="holds the class -1"):
        count_classes([np.full((2, 2), -1)])
    with pytest.raises(DataError, match="all pixels of the masks are nodata"):
        count_classes([grey[1:2]], nodata=[255])
