"""Pictures that are in a data set twice are named with what follows from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck.data import read_folders
from dinoneck.data.copies import Copy, find_copies, warn_of_changed_copies
from dinoneck.data.folders import table_of_folder
from dinoneck.data.layout import read_data_folder
from dinoneck.training.config import TrainConfig
from dinoneck.training.table import table_of


def photos(root: Path, *names: str) -> Path:
    """Write images of noise, no two alike, and of one size in bytes where they are BMP files."""
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def put(kind: str, source: Path, target: Path) -> None:
    """Copy a file, or link it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "copy":
        shutil.copy(source, target)
    elif kind == "hard link":
        target.hardlink_to(source)
    else:
        target.symlink_to(source)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# Files
# ----------------------------------------------------------------------------------------------------


def test_copies_are_files_of_equal_content(tmp_path: Path) -> None:
    photos(tmp_path, "0.bmp", "1.bmp", "2.png")
    put("copy", tmp_path / "1.bmp", tmp_path / "8.bmp")
    put("hard link", tmp_path / "2.png", tmp_path / "9.png")
    files = sorted(tmp_path.iterdir())
    assert find_copies(files) == [
        Copy(tmp_path / "1.bmp", tmp_path / "8.bmp", is_one_file=False),
        Copy(tmp_path / "2.png", tmp_path / "9.png", is_one_file=True),
    ]


def test_files_that_differ_in_their_first_byte_alone_are_no_copies(tmp_path: Path) -> None:
    content = bytes(200_000)
    (tmp_path / "0").write_bytes(b"a" + content)
    (tmp_path / "1").write_bytes(b"b" + content)
    (tmp_path / "2").write_bytes(b"a" + content)
    assert find_copies(tmp_path / name for name in "012") == [
        Copy(tmp_path / "0", tmp_path / "2", is_one_file=False)
    ]


def test_files_that_are_not_there_and_empty_ones_are_no_copies(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    assert find_copies([*tmp_path.iterdir(), tmp_path / "gone", tmp_path / "gone"]) == []


# Folders
# ----------------------------------------------------------------------------------------------------


def test_copies_in_two_classes_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "a/0.png", "a/1.png", "a/2.png", "b/3.png")
    for name in ("0", "1"):
        put("copy", tmp_path / "a" / f"{name}.png", tmp_path / "b" / f"{name}-copy.png")
    assert len(read_folders(tmp_path)) == 6
    [line] = lines_of(caplog)
    shown = f"{tmp_path}/a/0.png (a) and {tmp_path}/b/0-copy.png (b)"
    assert f"2 pictures twice with two values of the class, such as {shown}" in line


def test_copies_in_two_parts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png")
    put("copy", tmp_path / "train/b/1.png", tmp_path / "val/b/9.png")
    assert len(read_folders(tmp_path)) == 5
    [line] = lines_of(caplog)
    shown = f"{tmp_path}/train/b/1.png (train) and {tmp_path}/val/b/9.png (val)"
    assert f"1 picture in two parts, such as {shown}" in line


@pytest.mark.parametrize("kind", ["copy", "hard link", "symbolic link"])
@pytest.mark.parametrize("classes", [True, False], ids=["class folders", "images alone"])
def test_pictures_of_the_part_that_is_left_are_counted(
    kind: str, classes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = ["test/a", "test/b"] if classes else ["test", "test"]
    photos(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png")
    photos(tmp_path, f"{folders[0]}/t.bmp", f"{folders[1]}/u.bmp")
    put("copy", tmp_path / folders[0] / "t.bmp", tmp_path / folders[0] / "v.bmp")
    put(kind, tmp_path / "train/a/0.png", tmp_path / folders[0] / "9.png")
    table = read_folders(tmp_path)
    assert table["fold"].tolist() == ["train", "train", "val", "val"]
    [line] = lines_of(caplog)
    shown = f"{tmp_path}/train/a/0.png (train) and {tmp_path}/{folders[0]}/9.png (test)"
    assert f"1 picture in two parts, such as {shown}" in line


def test_copies_of_images_with_masks_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "images/0.png", "images/1.png", "masks/0.png")
    put("copy", tmp_path / "images/0.png", tmp_path / "images/2.png")
    for name in ("1", "2"):  # equal masks are no copies of pictures
        put("copy", tmp_path / "masks/0.png", tmp_path / f"masks/{name}.png")
    assert len(table_of_folder(read_data_folder(tmp_path))) == 3
    [line] = lines_of(caplog)
    assert f"1 picture under two names, such as {tmp_path}/images/0.png and" in line


def test_different_pictures_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path, "train/a/0.bmp", "train/b/1.bmp", "val/a/2.bmp", "val/b/3.bmp", "test/a/4.bmp")
    assert len(read_folders(tmp_path)) == 4
    assert lines_of(caplog) == []


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        pytest.param(["0.png", "0_aug_1.png", "0_rot90.png"], "0_aug_1.png of {}/0.png", id="words"),
        pytest.param(["0.rf.1a.png", "0.rf.2b.png", "0.rf.3c.png"], "0.rf.2b.png of {}/0.rf.1a.png", id="rf"),
        pytest.param(["z.png", "z-FLIP.png", "z flipped 2.png"], "z-FLIP.png of {}/z.png", id="other separators"),
    ],
)  # fmt: skip
def test_changed_copies_of_one_picture_are_counted(
    names: list[str], shown: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, *(f"a/{name}" for name in names), "b/0.png")
    assert len(read_folders(tmp_path)) == 4
    [line] = lines_of(caplog)
    assert "2 files called like changed copies of another one, such as " in line
    assert f"{tmp_path}/a/{shown.format(tmp_path / 'a')}" in line


@pytest.mark.parametrize(
    "name",
    [
        "7_90deg.png",
        "7_new30degFlipLR.png",
        "7_flip_lr.png",
        "7_HFlip.png",
        "7_rotate90.png",
        "7_rot1.png",
        "7_mirror.png",
        "7_bright.png",
        "7-edited.png",
        "7-bearbeitet.png",
        "7~2.png",
        "7 copy 2.png",
        "7 - Kopie.png",
        "Copy of 7.png",
        "7-300x200.png",
        "aug_7_1234.png",
        "wheat_original_7.jpg_0b1c2d3e-11aa-22bb.png",
    ],
)
def test_a_changed_copy_beside_its_origin_is_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "a/7.png", f"a/{name}", "b/0.png")

    read_folders(tmp_path)

    [line] = lines_of(caplog)
    shown = f"such as {tmp_path}/a/{name} of {tmp_path}/a/7.png"
    assert line.startswith("1 file called like changed copies of another one, ")
    assert shown in line


def test_a_changed_copy_of_a_changed_copy_is_named_with_the_first_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [tmp_path / name for name in ("7.png", "7_flip.png", "Copy of 7_flip.png")]

    warn_of_changed_copies(files, {files[1]: "train", files[0]: "train", files[2]: "val"})

    [line] = lines_of(caplog)
    assert line.startswith("1 file called like changed copies of another one, ")
    assert f"such as {files[2]} of {files[0]}: " in line


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["feld.png", "feld_rot.png"], id="red in German"),
        pytest.param(["feld_rot_1.png", "feld_rot_2.png"], id="red with a number"),
        pytest.param(["7_bright.png", "7_blur.png"], id="weak words without an origin"),
        pytest.param(["car.png", "car_left.png"], id="a side"),
        pytest.param(["img.png", "img_1.png", "img-2.png"], id="numbers"),
        pytest.param(["7.png", "70.png", "7flip.png"], id="no separator"),
        pytest.param(["7.png", "8_90deg.png", "aug_12.png"], id="another origin"),
        pytest.param(["plot.png", "plot_new_site.png"], id="a word more"),
    ],
)
def test_pictures_that_are_called_otherwise_are_no_changed_copies(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, *(f"a/{name}" for name in names), "b/x.png")
    read_folders(tmp_path)
    assert lines_of(caplog) == []


@pytest.mark.parametrize(
    "names", [["0_flip.png", "1_flip.png"], ["0_jpg.rf.1a.png", "1_jpg.rf.1a.png"]]
)
def test_pictures_whose_original_is_not_there_are_no_changed_copies(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, *(f"a/{name}" for name in names), "b/0.png")
    assert len(read_folders(tmp_path)) == 3
    assert lines_of(caplog) == []


def test_changed_copies_in_a_part_to_train_on_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_train = ["train/a/0.png", "train/a/0_rot90.png", "train/b/1.png"]
    photos(tmp_path, *in_train, "val/a/2.png", "val/b/3.png")
    assert len(read_folders(tmp_path)) == 5
    assert lines_of(caplog) == []


# Tables
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["copy", "hard link"])
def test_rows_of_one_picture_are_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, "0.png", "1.png", "2.png")
    put(kind, tmp_path / "0.png", tmp_path / "3.png")
    put(kind, tmp_path / "1.png", tmp_path / "4.png")
    put(kind, tmp_path / "2.png", tmp_path / "5.png")
    rows = [
        "0.png,1.5,a,x",
        "1.png,2,a,x",
        "2.png,3,b,y",
        "3.png,9,a,x",
        "4.png,2,a,y",
        "5.png,,b,y",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass,kind,place", *rows]) + "\n")
    data = {"csv": str(tmp_path / "t.csv"), "targets": ["mass", "kind"]}
    tasks = {"kind": {"kind": "classification"}}
    config = {"data": data, "tasks": tasks, "folds": {"column": "place"}}
    assert len(table_of(TrainConfig.from_dict(config))) == 6
    parts, values, others = lines_of(caplog)
    assert f"1 picture in two parts, such as {tmp_path}/1.png (x) and {tmp_path}/4.png (y)" in parts
    shown = f"{tmp_path}/0.png (1.5) and {tmp_path}/3.png (9.0)"
    assert f"1 picture twice with two values of mass, such as {shown}" in values
    assert f"1 picture under two names, such as {tmp_path}/2.png and {tmp_path}/5.png" in others


@pytest.mark.parametrize("role", ["group", "column"])
def test_of_copies_in_one_group_or_fold_no_fold_is_said_to_hold_one_out(
    role: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, *(f"{number}.png" for number in range(4)))
    put("copy", tmp_path / "0.png", tmp_path / "4.png")
    rows = ["0.png,2,x", "1.png,3,y", "2.png,9,x", "3.png,2,y", "4.png,2,x"]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass,place", *rows]) + "\n")
    data = {"csv": str(tmp_path / "t.csv"), "targets": ["mass"]}
    place = ["place"] if role == "group" else "place"
    assert len(table_of(TrainConfig.from_dict({"data": data, "folds": {role: place}}))) == 5
    [line] = lines_of(caplog)
    copies = f"{tmp_path}/0.png and {tmp_path}/4.png"
    assert line == f"1 picture under two names, such as {copies}, counts twice; keep one of each"


def test_of_copies_in_two_groups_folds_may_hold_one_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path, *(f"{number}.png" for number in range(4)))
    put("copy", tmp_path / "0.png", tmp_path / "4.png")
    rows = ["0.png,2,x", "1.png,3,y", "2.png,9,x", "3.png,2,y", "4.png,2,y"]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass,place", *rows]) + "\n")
    data = {"csv": str(tmp_path / "t.csv"), "targets": ["mass"]}
    assert len(table_of(TrainConfig.from_dict({"data": data, "folds": {"group": ["place"]}}))) == 5
    [line] = lines_of(caplog)
    assert "counts twice, and folds that are drawn may hold out what they train on" in line


# Formats
# ----------------------------------------------------------------------------------------------------


def shapes(seed: int) -> Image.Image:
    """A picture of large areas, as photos have them."""
    areas = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(areas).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".JPG"])
def test_pictures_in_two_formats_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    for i in range(3):
        shapes(i).save(tmp_path / f"{i}.jpeg", quality=80)
        shapes(i).save(tmp_path / f"{i}{suffix}")
    warn_of_changed_copies(sorted(tmp_path.iterdir()))
    [line] = lines_of(caplog)
    assert line.startswith("3 pictures in two formats, such as ")
    assert f"{tmp_path / '0.jpeg'}" in line
    assert f"{tmp_path / f'0{suffix}'}" in line


def test_other_pictures_of_one_name_and_pairs_of_one_group_are_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        shapes(i).save(tmp_path / f"{i}.jpg")
        shapes(10 + i).save(tmp_path / f"{i}.png")
    warn_of_changed_copies(sorted(tmp_path.iterdir()))
    for i in range(3):
        shapes(i).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    warn_of_changed_copies(files, {file: file.stem for file in files})
    assert not caplog.records


def test_pictures_of_16_bits_are_not_compared_with_those_of_8(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        shapes(i).save(tmp_path / f"{i}.jpg")
        grey = np.asarray(shapes(i).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 257).save(tmp_path / f"{i}.png")

    warn_of_changed_copies(sorted(tmp_path.iterdir()))

    assert not caplog.records


def test_class_folders_name_pictures_in_two_formats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, name in enumerate(("crop", "weed")):
        (tmp_path / name).mkdir()
        shapes(i).save(tmp_path / name / "0.jpg")
        shapes(i).save(tmp_path / name / "0.png")
    assert len(read_folders(tmp_path)) == 4
    assert "2 pictures in two formats" in caplog.text
