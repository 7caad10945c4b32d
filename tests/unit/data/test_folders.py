"""What folders hold: classes, images with masks, parts; and files that are no images."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.cli.arguments import list_images
from dinoneck.data import read_folders, read_masks
from dinoneck.data.folder_texts import data_files
from dinoneck.data.folders import table_of_folder
from dinoneck.data.layout import Content, masks_in, read_data_folder
from dinoneck.data.sources import list_pictures
from dinoneck.data.walk import walk
from dinoneck.store import image_ids


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def drawn(root: Path, mode: str, *names: str, colours: int = 1) -> Path:
    """Write small images of about so many colours."""
    pixels = np.arange(12 * 16) % colours
    rgb = np.stack([pixels, 255 - pixels, pixels * 7 % 256], axis=-1).astype(np.uint8)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb.reshape(12, 16, 3)).convert(mode).save(root / name)
    return root


def names_of(files: list[Path], root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files]


# The files below a folder
# ----------------------------------------------------------------------------------------------------


def test_images_are_listed_without_hidden_files_and_those_of_systems(tmp_path: Path) -> None:
    shown = ["B/2.JPG", "a.tiff", "b/c/1.png", "x.jpg/1.webp"]
    hidden = [".a.png", "._b.png", ".thumbs/1.png", "b/.ipynb_checkpoints/1-checkpoint.png"]
    system = ["__MACOSX/a.jpg", "b/@eaDir/1.png/SYNOPHOTO_THUMB.jpg", "$RECYCLE.BIN/1.jpg"]
    touched(tmp_path, *shown, *hidden, *system, "b/notes.txt")
    assert names_of(walk(tmp_path).images, tmp_path) == shown
    assert names_of(walk(tmp_path / ".thumbs").images, tmp_path) == [".thumbs/1.png"]


GREEN = os.fsdecode(b"gr\xfcn")  # as a ZIP archive of Windows leaves it


@pytest.mark.skipif(os.name != "posix", reason="other systems have names in Unicode only")
@pytest.mark.parametrize(
    ("read", "names"),
    [
        pytest.param(read_folders, ["a/1.png", f"b/{GREEN}.png"], id="an image of a class"),
        pytest.param(read_folders, ["a/1.png", f"{GREEN}/2.png"], id="a class"),
        pytest.param(
            lambda folder: read_masks(folder / "images", folder / "masks"),
            [f"images/{GREEN}.png", f"masks/{GREEN}.png"],
            id="an image with a mask",
        ),
        pytest.param(image_ids, ["a/1.png", f"b/{GREEN}.png"], id="an image to extract"),
        pytest.param(
            lambda folder: list_images([folder]), [f"{GREEN}.png"], id="an image to predict"
        ),
    ],
)
def test_a_name_that_is_not_utf8_is_refused(
    read: Callable[[Path], object], names: list[str], tmp_path: Path
) -> None:
    drawn(tmp_path, "L", *names)
    with pytest.raises(DataError, match=r"the name 'gr\\udcfcn.* is not UTF-8.*rename"):
        read(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="other systems have names in Unicode only")
def test_folders_below_one_whose_name_is_not_utf8_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path / GREEN, "L", "a/1.png", "b/2.png")

    # workers of pytest-xdist cannot send log lines with such a name
    with caplog.at_level(logging.CRITICAL, "dinoneck"):
        table = read_folders(tmp_path / GREEN)

    assert list(table.index) == ["a/1.png", "b/2.png"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touched(tmp_path / "pool", "b/1.png", "b/deep/2.png", "3.png")
    touched(tmp_path / "top", "a/0.png")
    (tmp_path / "top" / "b").symlink_to(tmp_path / "pool" / "b")
    (tmp_path / "top" / "3.png").symlink_to("../pool/3.png")
    found = names_of(walk(tmp_path / "top").images, tmp_path / "top")
    assert found == ["3.png", "a/0.png", "b/1.png", "b/deep/2.png"]


def test_loops_of_links_and_links_to_one_folder_add_nothing(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/2.png")
    for link, target in {
        "a/up": "..",
        "a/self": "self",
        "a/other": "../b",
        "b/other": "../a",
        "a0": "a",
    }.items():
        (tmp_path / link).symlink_to(target)
    assert names_of(walk(tmp_path).images, tmp_path) == ["a/1.png", "b/2.png"]


def test_many_links_between_folders_end(tmp_path: Path) -> None:
    for i in range(12):
        touched(tmp_path, f"{i}/{i}.png")
        for j in range(12):
            (tmp_path / str(i) / f"to{j}").symlink_to(f"../{j}")
    assert len(walk(tmp_path).images) == 12


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path, "a/1.png", "b/2.png")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match=r"b cannot be read: Permission denied"):
            walk(tmp_path)


def test_what_is_left_out_is_counted_by_every_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path / "c", "a/1.png", "a/2.HEIC", "b/1.png", "b/2.heic", "b/3.jxl", "b/4.txt")
    touched(tmp_path / "i", "1.png", "2.gif")
    touched(tmp_path / "m", "1.png", "2.npy")
    line = "left out: 3 files of other formats (.heic, .jxl), the first"
    assert len(read_folders(tmp_path / "c")) == 2
    assert line in caplog.text
    caplog.clear()
    assert len(list_pictures([tmp_path / "c"])[tmp_path / "c"]) == 2
    assert line in caplog.text
    caplog.clear()
    touched(tmp_path / "m", "3.nii.gz")
    assert len(read_masks(tmp_path / "i", tmp_path / "m")) == 1
    assert "1 file of other formats (.gif)" in caplog.text
    assert "2 files of other formats (.gz, .npy)" in caplog.text


@pytest.mark.parametrize(
    "suffix", ["", ".jpg_large", ".png~", ".part", ".JPG.1", ".jpg.txt", ".png.json"]
)
def test_pictures_without_the_name_of_one_are_counted(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png", "b/notes", "b/notes.txt")
    kind = "PNG" if "png" in suffix else "JPEG"
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"2{suffix}", kind)

    table = read_folders(tmp_path)

    assert table.index.tolist() == ["a/1.png", "b/1.png"]
    assert f"left out: 1 picture in files that are not named as such, the first {tmp_path}/a/2" in (
        caplog.text
    )


@pytest.mark.parametrize("name", ["2.jpg.txt", "2.JPG.part", "2.png.crdownload", "2.jpeg.zip"])
def test_files_with_the_suffix_of_a_picture_inside_their_name_are_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png", f"a/{name}")
    assert read_folders(tmp_path).index.tolist() == ["a/1.png", "b/1.png"]
    line = f"left out: 1 file called like pictures with one suffix more, which are none, the first {tmp_path}/a/{name}"
    assert line in caplog.text


def test_files_that_belong_to_pictures_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "1.jpg", "1.jpg.txt", "2.TIF", "2.tif.aux.xml", "3.png", "3.PNG.json")
    touched(tmp_path, "ann/1.jpg.json", "ann/2.jpg.json")
    assert len(list_pictures([tmp_path])[tmp_path]) == 3
    assert caplog.records == []


def zipped(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"Iout")


def test_side_files_that_programs_write_beside_images_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "0.tif", "0.tif.aux", "1.tif", "2.tif")
    Image.new("L", (8, 8)).save(tmp_path / "0.tif.ovr", "TIFF")
    Image.new("L", (8, 8)).save(tmp_path / "1.ovr", "TIFF")
    (tmp_path / "1.hdr").write_bytes(b"ENVI\nsamples = 8\n")
    (tmp_path / "2.tif.hdr").write_bytes(b"ENVI\nsamples = 8\n")
    zipped(tmp_path / "RoiSet.zip", "0001-0002.roi", "0003-0004.roi")

    pictures = list_pictures([tmp_path])[tmp_path]

    assert names_of(pictures, tmp_path) == ["0.tif", "1.tif", "2.tif"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("0.hdr", b"#?RADIANCE\n", id="a picture of Radiance"),
        pytest.param("1.hdr", b"ENVI\n", id="a header of data that are not read"),
    ],
)
def test_an_hdr_file_that_is_no_header_of_an_image_is_counted(
    name: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "0.tif")
    (tmp_path / name).write_bytes(content)

    list_pictures([tmp_path])

    [line] = caplog.messages
    assert line.startswith("left out: 1 file of other formats (.hdr), the first ")


def test_an_archive_of_regions_and_an_image_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "0.tif")
    zipped(tmp_path / "RoiSet.zip", "0001-0002.roi", "1.tif")

    list_pictures([tmp_path])

    [line] = caplog.messages
    assert line.startswith(f"left out: 1 archive, the first {tmp_path}/RoiSet.zip")


def test_archives_that_are_not_unpacked_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "oats/1.png", "wheat/1.png", "rye.zip", "more/barley.tar.gz", "Wheat.tar.gz")
    assert list_pictures([tmp_path])[tmp_path] == [
        tmp_path / "oats/1.png",
        tmp_path / "wheat/1.png",
    ]
    [record] = caplog.records
    line = (
        f"left out: 2 archives, the first {tmp_path}/more/barley.tar.gz; if it holds images, unpack"
    )
    assert line in record.getMessage()


def test_links_to_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "1.png")
    (tmp_path / "gone").symlink_to("nowhere")
    assert list_pictures([tmp_path]) == {tmp_path: [tmp_path / "1.png"]}
    assert "left out: 1 link to nothing" in caplog.text


RUNS = pytest.mark.parametrize(
    "files",
    [
        pytest.param(["report.json", "out_of_fold.csv", "heads/fold-0.safetensors"], id="a training"),
        pytest.param(["unfinished/run.json", "unfinished/state.pt"], id="an interrupted training"),
        pytest.param(["report.json", "detector.safetensors", "log.jsonl"], id="a detector"),
        pytest.param(["report.json", "a/report.json", "a/heads/x", "b/unfinished/run.json"], id="several heads"),
        pytest.param(["store.json", "index.sqlite", "w-0/0.safetensors"], id="a store"),
        pytest.param(["report.json", "heads/x", "pictures/1.jpg"], id="with pictures"),
    ],
)  # fmt: skip


@RUNS
def test_trainings_and_stores_among_images_are_left_out_with_a_line(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png", *(f"run/{file}" for file in files))
    for report in tmp_path.glob("run/**/report.json"):
        report.write_text('{"images": 6}')
    assert read_folders(tmp_path).index.tolist() == ["a/1.png", "b/1.png"]
    [record] = caplog.records
    line = f"left out: 1 folder that dinoneck wrote, trainings or stores, the first {tmp_path}/run"
    assert record.getMessage() == line
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == ["a/1.png", "b/1.png"]
    assert data_files(tmp_path) == []


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["finished/1.png", "unfinished/1.png"], id="a word"),
        pytest.param(["a/1.png", "a/report.json", "b/1.png"], id="a report"),
        pytest.param(["a/1.png", "heads/1.png", "report.json"], id="the folder that is named"),
    ],
)
def test_folders_with_some_names_of_a_training_stay(files: list[str], tmp_path: Path) -> None:
    touched(tmp_path, *files)
    expected = sorted(file for file in files if file.endswith(".png"))
    assert read_folders(tmp_path).index.tolist() == expected


def test_trainings_in_a_folder_with_another_file_are_left_out_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png", "runs/notes.txt", "runs/x/heads/0", "runs/y/heads/0")
    for name in ("x", "y"):
        (tmp_path / "runs" / name / "report.json").write_text('{"images": 6}')

    [found] = list_pictures([tmp_path]).values()

    assert names_of(found, tmp_path) == ["a/1.png", "b/1.png"]
    line = "left out: 2 folders that dinoneck wrote, trainings or stores, the first "
    assert f"{line}{tmp_path}/runs/x" in caplog.text


# Masks are no pictures
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        pytest.param(["images/1.jpg"], ["masks/1.png"], id="images and masks"),
        pytest.param(["images/1.jpg", "images/2.jpg"], ["labels/1.png"], id="some labels"),
        pytest.param(["imagesTr/1.jpg"], ["labelsTr/1.png"], id="words"),
        pytest.param(["JPEGImages/1.jpg"], ["SegmentationClass/1.png", "SegmentationObject/1.png"], id="VOC"),
        pytest.param(["leftImg8bit/x/1_leftImg8bit.png"], ["gtFine/x/1_gtFine_color.png"], id="Cityscapes"),
        pytest.param(["train/1.jpg", "val/2.jpg"], ["trainannot/1.png", "valannot/2.png"], id="one word"),
        pytest.param(["train/1.jpg", "test/2.jpg"], ["train_masks/1.png"], id="masks of one part"),
        pytest.param(["a/images/1.jpg", "b/images/2.jpg"], ["a/gt/1.png", "b/gt/2.png"], id="in folders"),
        pytest.param(["images/train/1.jpg"], ["annotations/train/1.png"], id="parts in them"),
        pytest.param(["1.png", "2.png"], ["1_mask.png", "2_mask.png"], id="beside"),
        pytest.param(["1.jpg"], ["1-label.png"], id="beside, another ending"),
        pytest.param(["imagesTr/1.png", "imagesTs/2.png"], ["labelsTr/1.png"], id="masks of some"),
        pytest.param(["rgb/1.jpg", "rgb/2.jpg"], ["depth/1.png", "depth/2.png"], id="depth"),
        pytest.param(["train/ok/1.png", "test/bad/2.png"], ["ground_truth/bad/2_mask.png"], id="MVTec"),
        pytest.param(["a (1).png", "a (2).png"], ["a (1)_mask.png", "a (1)_mask_1.png", "a (2)_mask.png"], id="many"),
        pytest.param(["1.jpg", "2.jpg"], ["masks/1.png"], id="in a folder beside"),
        pytest.param(["d/1.jpg", "e/1.jpg"], ["masks/d/1.png", "masks/e/1.png"], id="of several folders"),
        pytest.param(["1.jpg", "2.jpg"], ["gt/1_gt.png", "gt/2_gt.png"], id="in a folder, with an ending"),
    ],
)  # fmt: skip
def test_masks_beside_images_are_no_pictures(
    pictures: list[str], masks: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path, "RGB", *pictures)
    drawn(tmp_path, "L", *masks)
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == sorted(pictures)
    counted = f"{len(masks)} mask" + ("s" if len(masks) > 1 else "")
    assert f"left out: {counted} beside images" in caplog.text


def test_masks_in_colours_are_told_by_their_few_colours(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "photos/1.png", "photos/2.png", colours=150)
    drawn(tmp_path, "RGB", "cover/1.png", "cover/2.png", colours=5)
    with pytest.raises(DataError, match="cover has an image like a mask for each of photos"):
        read_folders(tmp_path)
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == ["photos/1.png", "photos/2.png"]
    (tmp_path / "cover").rename(tmp_path / "target")
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == ["photos/1.png", "photos/2.png"]


def test_folders_of_any_name_that_may_be_masks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path, "RGB", "x/1.png", "x/2.png", colours=150)
    drawn(tmp_path, "P", "y/1.png", "y/2.png")
    [found] = list_pictures([tmp_path]).values()
    assert len(found) == 4
    assert f"{tmp_path / 'y'} has an image like a mask for each of {tmp_path / 'x'}" in caplog.text


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        pytest.param("1.png", "1_mask.png", id="a word"),
        pytest.param("1_sat.jpg", "1_mask.png", id="two words"),
        pytest.param("1.jpg", "1.png", id="the same name"),
    ],
)
def test_masks_may_lie_beside_their_images(pictures: str, masks: str, tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", f"train/{pictures}", f"val/{pictures}")
    drawn(tmp_path, "L", f"train/{masks}", f"val/{masks}")
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["labels"].to_dict() == {
        f"{part}/{pictures}": tmp_path / part / masks for part in ("train", "val")
    }


def test_masks_in_class_folders_are_no_images_of_the_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path, "RGB", "a/images/1.jpg", "b/images/1.jpg", "c/1.png", "c/2.png")
    drawn(tmp_path, "L", "a/masks/1.png", "b/masks/1.png", "c/1_mask.png", "c/2_mask.png")
    table = read_folders(tmp_path)
    assert table.index.tolist() == ["a/images/1.jpg", "b/images/1.jpg", "c/1.png", "c/2.png"]
    assert "left out: 4 masks beside images" in caplog.text


def test_masks_that_are_named_are_pictures(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "images/1.jpg")
    drawn(tmp_path, "L", "masks/1.png", "masks/2.png")
    named = [tmp_path / "masks", tmp_path / "masks" / "1.png"]
    found = list_pictures(named)
    assert [len(found[path]) for path in named] == [2, 1]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["mask/1.jpg", "no_mask/1.jpg"], id="faces"),
        pytest.param(["with_mask/1.jpg", "without_mask/1.jpg"], id="faces, other words"),
        pytest.param(["mask/1.jpg", "nomask/1.jpg"], id="faces, one word"),
        pytest.param(["labels/1.jpg", "barcodes/1.jpg"], id="labels of parcels"),
        pytest.param(["a/1.jpg", "annotations/1.jpg"], id="a beginning that is no word"),
        pytest.param(["left/1.png", "right/1.png"], id="stereo"),
        pytest.param(["1.jpg", "face_mask.jpg"], id="no image of that name"),
        pytest.param(["1.jpg", "2.jpg", "1_seg.jpg"], id="one of two"),
        pytest.param(["1.jpg", "1.png"], id="two formats of one picture"),
    ],
)
def test_pictures_with_words_for_masks_stay_pictures(names: list[str], tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", *names)
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == sorted(names)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        pytest.param("7.png", "7_mask.png", id="an ending"),
        pytest.param("7.png", "7_mask_0.png", id="an ending with a number"),
        pytest.param("7.jpg", "7_gtFine_color.png", id="two endings"),
        pytest.param("7_sat.jpg", "7_mask.png", id="an image with an ending"),
        pytest.param("7.png", "mask_7.png", id="a beginning"),
        pytest.param("img_7.png", "mask_7.png", id="two beginnings"),
        pytest.param("image7.png", "label7.png", id="beginnings without a separator"),
        pytest.param("7.jpg", "7.png", id="the suffix alone"),
        pytest.param("7.jpg", "7.jpg.png", id="a suffix more"),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_masks_in_one_band_or_few_colours_are_no_pictures_though_some_images_have_none(
    image: str, mask: str, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [image, image.replace("7", "8"), image.replace("7", "9")]
    drawn(tmp_path, "RGB", *pictures, colours=150)
    drawn(tmp_path, mode, mask, mask.replace("7", "8"), colours=2)
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == sorted(pictures)
    assert "left out: 2 masks beside images" in caplog.text


def test_files_that_are_called_masks_and_do_not_look_so_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["1.jpg", "1_mask.jpg", "2.jpg", "2_mask.jpg", "3.jpg"]
    drawn(tmp_path, "RGB", *names, colours=150)
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == names
    [record] = caplog.records
    assert "2 files called like the mask of another one" in record.getMessage()
    assert f"such as {tmp_path}/1_mask.jpg beside {tmp_path}/1.jpg" in record.getMessage()


def test_what_programs_make_of_images_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/0.jpg", "a/0_thumb.jpg", "b/1.png", "b/1_overlay.png", "b/thumbs/1.png")
    assert len(read_folders(tmp_path)) == 5
    files, folders = [record.getMessage() for record in caplog.records]
    assert "2 files called like what programs make of another one" in files
    assert f"such as {tmp_path}/a/0_thumb.jpg beside {tmp_path}/a/0.jpg" in files
    assert (
        f"1 file in folders called like what programs write, such as {tmp_path}/b/thumbs" in folders
    )
    caplog.clear()
    [found] = list_pictures([tmp_path]).values()
    assert len(found) == 5
    assert len(caplog.records) == 2


def test_folders_of_one_image_in_two_kinds_are_no_folds(tmp_path: Path) -> None:
    drawn(
        tmp_path,
        "RGB",
        *(f"{kind}/{i}.png" for kind in ("rgb", "nir") for i in range(3)),
        colours=150,
    )
    drawn(tmp_path, "L", *(f"masks/{i}.png" for i in range(3)))
    for subfolders in (None, "folds"):
        with pytest.raises(DataError) as error:
            read_data_folder(tmp_path, subfolders)
        message = str(error.value)
        assert "holds nir/ and rgb/ with the same masks in masks/, such as 0" in message
        assert f"--images {tmp_path}/nir --labels {tmp_path}/masks" in message
        assert "folds" not in message
    assert len(read_masks(tmp_path / "nir", tmp_path / "masks")) == 3


def test_folds_with_images_of_the_same_names_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{kind}/{name}/{name}1.png" for kind in ("rgb", "nir") for name in "ab"))
    assert list(read_data_folder(tmp_path, "folds").parts) == ["nir", "rgb"]
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "2 names in two folds, such as a/a1 in nir and rgb" in record.getMessage()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["day1/a/0", "day1/b/1", "day2/a/0", "day2/b/1"], id="numbered folds"),
        pytest.param(
            ["2023-05-01/a/0", "2023-05-01/b/1", "2023-06-02/a/0", "2023-06-02/b/1"], id="dates"
        ),
        pytest.param(["x/a/0", "x/b/1", "y/a/0", "y/b/3"], id="half of the names"),
    ],
)
def test_names_that_cameras_give_again_are_a_note_alone(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{name}.png" for name in names))
    caplog.set_level("INFO")
    assert len(read_data_folder(tmp_path, "folds").parts) == 2
    [record] = caplog.records
    assert record.levelname == "INFO"
    assert "in two folds, such as a/0 in" in record.getMessage()


def test_samples_in_folders_of_their_own_are_no_parts(tmp_path: Path) -> None:
    touched(tmp_path, *(f"s{i}/images/x.png" for i in range(3)))
    touched(tmp_path, *(f"s{i}/masks/{mask}.png" for i in range(3) for mask in range(4)))
    with pytest.raises(DataError, match="one folder for each sample, or classes"):
        read_data_folder(tmp_path)


def test_parts_that_are_not_alike_name_the_one_to_train_on(tmp_path: Path) -> None:
    touched(tmp_path, "train/images/1.png", "train/masks/1.png", "val/1.png")
    with pytest.raises(DataError, match=rf"not alike.*--images {tmp_path}/train/images --labels"):
        read_data_folder(tmp_path)


def test_a_mask_of_the_same_name_beside_its_picture_is_none(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "1.jpg", "2.jpg")
    drawn(tmp_path, "P", "1.png")
    [found] = list_pictures([tmp_path]).values()
    assert names_of(found, tmp_path) == ["1.jpg", "2.jpg"]


# What a folder holds
# ----------------------------------------------------------------------------------------------------


def test_a_link_to_a_folder_is_a_class(tmp_path: Path) -> None:
    touched(tmp_path / "pool", "beet/1.png", "beet/2.png")
    touched(tmp_path / "classes", "oats/1.png")
    (tmp_path / "classes" / "beet").symlink_to("../pool/beet")
    table = read_folders(tmp_path / "classes")
    assert table["class"].to_dict() == {
        "beet/1.png": "beet",
        "beet/2.png": "beet",
        "oats/1.png": "oats",
    }


@pytest.mark.parametrize(
    ("link", "target", "named"),
    [
        pytest.param("c", "a", "are one folder", id="another class"),
        pytest.param("c", "../nowhere", "leads to nothing", id="nothing"),
        pytest.param("a/more", "../b", "are one folder", id="images of another class"),
    ],
)
def test_links_that_change_a_class_are_refused(
    link: str, target: str, named: str, tmp_path: Path
) -> None:
    touched(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=named):
        read_folders(tmp_path)


def test_a_link_to_nothing_deep_in_a_class_is_no_class(tmp_path: Path) -> None:
    touched(tmp_path, "a/day/field/1.png", "b/1.png")
    (tmp_path / "a/day/field/gone").symlink_to(tmp_path / "nowhere")

    table = read_folders(tmp_path)

    assert table["class"].tolist() == ["a", "b"]


def test_a_link_to_an_image_of_another_class_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b" / "1.png").symlink_to("../a/1.png")
    with pytest.raises(DataError, match="are one file in two classes"):
        read_folders(tmp_path)


def link(file: Path, target: Path, how: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if how == "hard":
        file.hardlink_to(target)
    else:
        file.symlink_to(target)


HOW = pytest.mark.parametrize("how", ["symbolic", "hard"])


@HOW
def test_one_image_in_two_classes_is_refused(how: str, tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/2.png")
    link(tmp_path / "b" / "9.png", tmp_path / "a" / "1.png", how)
    with pytest.raises(DataError, match=r"a/1\.png and .*b/9\.png are one file in two classes"):
        read_folders(tmp_path)


@HOW
def test_one_image_in_two_parts_is_refused(how: str, tmp_path: Path) -> None:
    touched(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png")
    link(tmp_path / "val" / "a" / "0.png", tmp_path / "train" / "a" / "0.png", how)
    with pytest.raises(DataError, match=r"train/a/0\.png and .*val/a/0\.png are one file in two p"):
        read_folders(tmp_path)


@HOW
def test_one_image_with_masks_in_two_parts_is_refused(how: str, tmp_path: Path) -> None:
    touched(tmp_path, "train/images/0.png", "train/masks/0.png", "val/masks/0.png")
    link(tmp_path / "val" / "images" / "0.png", tmp_path / "train" / "images" / "0.png", how)
    with pytest.raises(DataError, match="are one file in two parts"):
        table_of_folder(read_data_folder(tmp_path))


@HOW
def test_one_image_under_two_names_of_a_class_is_named(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/0.png", "b/1.png")
    link(tmp_path / "a" / "9.png", tmp_path / "a" / "0.png", how)
    assert len(read_folders(tmp_path)) == 3
    [record] = caplog.records
    line = f"1 picture under two names, such as {tmp_path}/a/0.png and {tmp_path}/a/9.png"
    assert line in record.getMessage()


def test_two_links_to_one_image_elsewhere_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = touched(tmp_path / "pool", "x.png")
    top = touched(tmp_path / "top", "images/0.png", *(f"masks/{i}.png" for i in range(3)))
    link(top / "images" / "1.png", pool / "x.png", "symbolic")
    link(top / "images" / "2.png", pool / "x.png", "symbolic")
    assert len(read_masks(top / "images", top / "masks")) == 3
    assert "1 picture under two names" in caplog.text


def test_links_to_different_images_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = touched(tmp_path / "pool", "x.png", "y.png")
    link(tmp_path / "top" / "a" / "0.png", pool / "x.png", "symbolic")
    link(tmp_path / "top" / "b" / "0.png", pool / "y.png", "hard")
    assert read_folders(tmp_path / "top")["class"].tolist() == ["a", "b"]
    assert caplog.text == ""


def test_classes_that_differ_in_case_alone_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "Oats/1.png", "oats/2.png", "rye/1.png")
    assert len(read_folders(tmp_path)["class"].cat.categories) == 3
    assert "'Oats' and 'oats' differ in upper and lower case" in caplog.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sugar beet", "sugar_beet"),
        ("Sugar-Beet", "sugar beet"),
        ("01", "1"),
        ("stage 01", "stage1"),
    ],
)
def test_classes_that_differ_in_separators_or_zeros_alone_are_named(
    first: str, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, f"{first}/1.png", f"{second}/2.png", "10/1.png")
    assert len(read_folders(tmp_path)["class"].cat.categories) == 3
    lines = [record.getMessage() for record in caplog.records]
    expected = f"the classes '{first}' and '{second}' differ in separators or leading zeros alone"
    assert [expected in line for line in lines] == [first != "stage 01"] * len(lines)


def test_classes_of_two_parts_that_differ_in_case_alone_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "train/Wheat/1.png", "train/oats/1.png", "val/wheat/2.png", "val/oats/2.png")
    assert len(read_folders(tmp_path)["class"].cat.categories) == 3
    assert "the classes 'Wheat' and 'wheat' differ in upper and lower case alone" in caplog.text


def test_a_loop_in_a_class_folder_is_harmless(tmp_path: Path) -> None:
    touched(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "again").symlink_to("..")
    assert read_folders(tmp_path)["class"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        pytest.param("train", "val", None, id="train, val"),
        pytest.param("train", "valid", "test", id="valid, test"),
        pytest.param("Training", "Validation", None, id="long words"),
        pytest.param("entrenamiento", "validación", "prueba", id="Spanish"),
        pytest.param("Entraînement", "Validation", "essai", id="French"),
        pytest.param("Training", "Validierung", "Test", id="German"),
        pytest.param("addestramento", "convalida", "prova", id="Italian"),
        pytest.param("treino", "validação", "teste", id="Portuguese"),
        pytest.param("trainen", "validatie", "test", id="Dutch"),
    ],
)
def test_train_and_val_are_parts_in_several_languages(
    train: str, val: str, test: str | None, tmp_path: Path
) -> None:
    for name in filter(None, [train, val, test]):
        touched(tmp_path, f"{name}/oats/1.png", f"{name}/wheat/1.png", f"{name}/wheat/2.png")
    table = read_folders(tmp_path)
    assert table["fold"].tolist() == [train] * 3 + [val] * 3
    assert table["class"].tolist() == ["oats", "wheat", "wheat"] * 2
    assert table.attrs["held_out"] == val
    unread = read_data_folder(tmp_path).unread_part
    assert (None if unread is None else unread.name) == test


def test_flat_parts_of_another_language_are_no_classes(tmp_path: Path) -> None:
    touched(tmp_path, "entrenamiento/1.png", "validacion/2.png")
    with pytest.raises(DataError, match="entrenamiento, validacion, without class folders"):
        read_folders(tmp_path)


def test_parts_know_their_folders_and_share_their_kind(tmp_path: Path) -> None:
    touched(tmp_path, "train/oats/1.png", "train/wheat/1.png", "val/oats/1.png", "val/rye/1.png")
    data = read_data_folder(tmp_path)
    assert data.content is None
    assert data.kind == "classes"
    assert data.classes == ("oats", "rye", "wheat")
    assert data.parts["val"] == Content("classes", tmp_path / "val", classes=("oats", "rye"))


def test_a_class_that_a_part_lacks_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/c/2.png")
    table = read_folders(tmp_path)
    assert table["class"].cat.categories.tolist() == ["a", "b", "c"]
    lines = [record.getMessage() for record in caplog.records]
    assert "train: no image of the class 'c'" in lines[0]
    assert "val: no image of the class 'b'" in lines[1]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["train/images/1.jpg", "train/masks/1.png", "val/images/2.jpg", "val/masks/2.png"], id="inside"),
        pytest.param(["images/train/1.jpg", "gt/train/1.png", "images/val/2.jpg", "gt/val/2.png"], id="outside"),
        pytest.param(["train/1.jpg", "trainannot/1.png", "val/2.jpg", "valannot/2.png"], id="beside"),
        pytest.param(["img_train/1.jpg", "mask_train/1.png", "img_val/2.jpg", "mask_val/2.png"], id="words"),
    ],
)  # fmt: skip
def test_parts_may_have_images_and_masks(names: list[str], tmp_path: Path) -> None:
    data = read_data_folder(touched(tmp_path, *names))
    assert (data.kind, list(data.parts), data.held_out) == ("masks", ["train", "val"], "val")
    table = table_of_folder(data)
    assert table["fold"].tolist() == ["train", "val"]
    assert [file.stem for file in table["labels"]] == ["1", "2"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["train/a/1", "train/b/1", "dev/a/1", "dev/b/1"], id="train, dev"),
        pytest.param(["train_set/a/1", "train_set/b/1", "test_set/a/1"], id="sets"),
        pytest.param(["train/a/1", "train/b/1", "unlabeled/a/1", "unlabeled/b/1"], id="unlabeled"),
        pytest.param(["train/a/1", "train/b/1", "test/a/1", "test/b/1"], id="train, test"),
        pytest.param(["train/a/1", "train/b/1", "rest/1"], id="a part and a flat folder"),
        pytest.param(["train/1", "testing/1"], id="flat parts"),
        pytest.param(["fold1/1", "fold2/1", "fold3/1"], id="flat folds"),
        pytest.param(["cam1/a/1", "cam1/b/1", "cam2/a/1", "cam2/b/1"], id="cameras"),
        pytest.param(["cam1/a/1", "cam1/b/1", "cam2/b/1", "cam2/c/1"], id="some classes in common"),
        pytest.param(["2023/x/a/1", "2023/y/a/1", "2024/x/a/1"], id="deeper"),
        pytest.param(["nut/train/ok/1", "nut/test/bad/1", "bolt/train/ok/1", "bolt/test/bad/1"], id="parts inside"),
        pytest.param(["a/fold1/1", "a/fold2/1", "b/fold1/1", "b/fold2/1"], id="folds inside"),
        pytest.param(["train/a/1", "train/b/1", "val/a/1", "val/b/1", "more/a/1", "more/b/1"], id="one more"),
        pytest.param(["a/1", "b/1", "augmented/a/1", "augmented/b/1"], id="the classes once more"),
        pytest.param(["p/images/1", "p/masks/1", "q/images/1", "q/masks/1"], id="images and masks inside"),
    ],
)  # fmt: skip
def test_folders_that_may_be_parts_are_no_classes_without_a_word(
    names: list[str], tmp_path: Path
) -> None:
    touched(tmp_path, *(f"{name}.png" for name in names))
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert "--subfolders classes" in str(error.value)
    tops = sorted({name.partition("/")[0] for name in names})
    assert all(name in str(error.value) for name in tops)
    table = read_folders(tmp_path, subfolders="classes")
    assert table["class"].cat.categories.tolist() == tops


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["image.png", "mask.png"], id="image and mask"),
        pytest.param(["img.png", "label.png", "label_viz.png"], id="labelme"),
        pytest.param(["image.png", "mask_0.png", "mask_1.png"], id="several masks"),
        pytest.param(["rgb.png"], id="one image alone"),
        pytest.param(["scan.png", "GT.png"], id="an image of another name"),
        pytest.param(["7.png", "7_mask.png"], id="a word at the end"),
        pytest.param(["7.jpg", "mask_7_0.png", "mask_7_1.png"], id="words at the beginning"),
        pytest.param(["rgb.png", "depth.png", "nir.png"], id="one image in several kinds"),
    ],
)
def test_folders_of_one_sample_each_are_no_classes_without_a_word(
    files: list[str], tmp_path: Path
) -> None:
    touched(tmp_path, *(f"s{number}/{file}" for number in range(7) for file in files))
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert "s0, s1" in str(error.value)
    assert "one folder for each sample, or classes?" in str(error.value)
    assert files[0] in str(error.value)
    assert "--csv" in str(error.value)
    assert len(read_folders(tmp_path, subfolders="classes")["class"].cat.categories) == 7


def test_masks_of_samples_are_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touched(tmp_path, "s0/image.png", "s0/mask.png", "s1/img.png", "s1/label.png")
    touched(tmp_path, "s2/7.png", "s2/mask_of_venice.png")
    [found] = list_pictures([tmp_path]).values()
    expected = ["s0/image.png", "s1/img.png", "s2/7.png", "s2/mask_of_venice.png"]
    assert names_of(found, tmp_path) == expected
    assert "left out: 2 masks beside images" in caplog.text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param("test", "'test' is read as a class; move it away", id="test"),
        pytest.param("val", "'val' is read as a class", id="val"),
        pytest.param("unlabeled", "'unlabeled' is read as a class", id="unlabeled"),
        pytest.param("Predictions", "'Predictions' is read as a class", id="predictions"),
        pytest.param("overlay", "'overlay' is read as a class", id="overlay"),
        pytest.param("augmented", "'augmented' is read as a class", id="augmented"),
        pytest.param("unsorted", "'unsorted' is read as a class", id="unsorted"),
        pytest.param("New folder (2)", "'New folder (2)' is read as a class", id="new folder"),
        pytest.param("backup (1)", "'backup (1)' is read as a class", id="backup"),
    ],
)
def test_a_class_that_may_be_none_is_named(
    name: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "wheat/1.png", "oats/1.png", f"{name}/1.png", "tested_positive/1.png")
    assert name in read_folders(tmp_path)["class"].tolist()
    [record] = caplog.records
    assert line in record.getMessage()


def test_several_classes_that_may_be_none_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "wheat/1.png", "oats/1.png", "test/1.png", "val/1.png")
    assert len(read_folders(tmp_path)) == 4
    [record] = caplog.records
    assert f"{tmp_path}: 'test', 'val' are read as classes" in record.getMessage()


def test_a_table_beside_class_folders_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "oats/1.png", "wheat/1.png", "labels.csv")
    assert read_folders(tmp_path)["class"].tolist() == ["oats", "wheat"]
    [record] = caplog.records
    assert f"not read: the table {tmp_path / 'labels.csv'} (--csv)" in record.getMessage()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["bus/1", "train/1", "car/1"], id="a train"),
        pytest.param(["wheat/images/1", "oats/images/1"], id="one folder in each"),
        pytest.param(["wheat/2023/1", "oats/2024/1"], id="other folders in each"),
        pytest.param(["wheat/1", "wheat/day1/1", "oats/2", "oats/day1/1"], id="images beside folders"),
        pytest.param(["healthy/1", "tested_positive/1"], id="a part's word in one name"),
        pytest.param(["photo/1", "sketch/1"], id="photo"),
        pytest.param(["0/1", "1/1", "2/1"], id="numbers"),
    ],
)  # fmt: skip
def test_class_folders_stay_class_folders(names: list[str], tmp_path: Path) -> None:
    touched(tmp_path, *(f"{name}.jpg" for name in names))
    expected = [name.partition("/")[0] for name in sorted(names)]
    assert sorted(read_folders(tmp_path)["class"]) == sorted(expected)


def test_folders_with_one_folder_of_one_name_are_classes_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "day1/wheat/1.png", "day2/wheat/1.png")
    assert read_folders(tmp_path)["class"].tolist() == ["day1", "day2"]
    assert "the folders day1 and day2 are read as classes" in caplog.text
    assert "in wheat/" in caplog.text


@pytest.mark.parametrize(
    ("names", "line"),
    [
        pytest.param(
            ["Quercus/robur/1", "Quercus/rubra/1", "Acer/campestre/1", "Acer/rubrum/1"],
            "the folders Acer and Quercus are read as classes, and their images are in the folders "
            "campestre, robur, rubra and rubrum in them; if these are the classes, move them up",
            id="classes in classes",
        ),
        pytest.param(
            ["Acer/1", "Quercus/robur/1", "Quercus/robur/2", "Quercus/rubra/1"],
            "also read as images of their class: 3 images in 2 folders, such as Quercus/robur, Quercus/rubra;",
            id="classes in one",
        ),
        pytest.param(
            ["wheat/1", "wheat/day1/2", "wheat/val/3", "wheat/rejected/4", "oats/1"],
            "also read as images of their class: 3 images in 3 folders, such as wheat/rejected, wheat/val;",
            id="parts and rejects beside images",
        ),
        pytest.param(
            ["wheat/1", "wheat/augmented/1", "oats/1", "oats/augmented/1"],
            "also read as images of their class: 2 images in 2 folders, such as oats/augmented, wheat/augmented;",
            id="augmented copies",
        ),
        pytest.param(
            ["wheat/good/1", "wheat/rejected/1", "oats/ok/1"],
            "also read as images of their class: 3 images in 3 folders, such as wheat/rejected;",
            id="rejects alone",
        ),
    ],
)
def test_folders_in_class_folders_are_named(
    names: list[str], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{name}.png" for name in names))
    expected = sorted(name.partition("/")[0] for name in names)
    assert sorted(read_folders(tmp_path)["class"]) == expected
    [record] = caplog.records
    assert f"{tmp_path}: {line}" in record.getMessage()


def test_folders_of_images_and_of_masks_in_class_folders_say_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "a/images/1.jpg", "a/masks/1.png", "b/1.jpg", "c/Photos/1.jpg")
    assert read_folders(tmp_path)["class"].tolist() == ["a", "b", "c"]
    [record] = caplog.records
    assert "left out: 1 mask beside images" in record.getMessage()


def test_parts_in_each_class_say_how_to_move_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(
        tmp_path, *(f"{name}/{part}/1.png" for name in ("oats", "rye") for part in ("train", "val"))
    )
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert "train/oats, train/rye, val/oats, val/rye" in str(error.value)
    assert "For one set of classes: --subfolders classes" in str(error.value)
    with pytest.raises(DataError, match="such as oats/train to train/oats"):
        read_folders(tmp_path, subfolders="parts")
    with pytest.raises(DataError, match="to be a fold, and holds the parts train and val"):
        read_folders(tmp_path, subfolders="folds")
    assert (
        read_folders(tmp_path, subfolders="classes")["class"].tolist() == ["oats"] * 2 + ["rye"] * 2
    )
    assert (
        "also read as images of their class: 4 images in 4 folders, such as oats/train"
        in caplog.text
    )


def test_what_the_message_for_parts_in_classes_says_is_read(tmp_path: Path) -> None:
    touched(
        tmp_path, *(f"{part}/{name}/1.png" for name in ("oats", "rye") for part in ("train", "val"))
    )
    assert read_folders(tmp_path)["fold"].tolist() == ["train", "train", "val", "val"]


def test_data_sets_with_parts_beside_each_other_are_to_be_named(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *(f"{name}/{part}/ok/1.png" for name in ("bolt", "nut") for part in ("train", "test")),
    )
    with pytest.raises(DataError, match=rf"several data sets with parts.*--images {tmp_path}/bolt"):
        read_folders(tmp_path)


def test_options_for_the_folders_of_a_part_name_the_part(tmp_path: Path) -> None:
    touched(tmp_path, "train/fold1/1.png", "train/fold2/1.png", "val/a/1.png", "val/b/1.png")
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert f"If they are classes: --images {tmp_path}/train --subfolders classes" in str(
        error.value
    )
    assert len(read_folders(tmp_path / "train", subfolders="classes")) == 2


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["2023-05-01", "2023-05-02"], id="dates"),
        pytest.param(["20230501", "20230502"], id="dates without separators"),
        pytest.param(["01.05.2023", "02.05.23"], id="days first"),
        pytest.param(["2023", "2024"], id="years"),
        pytest.param(["day1", "day2", "day10"], id="days"),
        pytest.param(["Camera_1", "camera-2"], id="cameras"),
        pytest.param(["Parzelle_1", "Parzelle_2"], id="plots in German"),
        pytest.param(["Feld 1", "Feld 2"], id="fields in German"),
        pytest.param(["Fläche 1", "Fläche 2"], id="areas in German"),
        pytest.param(["Juni", "Mai", "März"], id="months"),
        pytest.param(["100CANON", "101CANON"], id="folders of a camera"),
        pytest.param(["100MEDIA", "101_0501"], id="folders of a drone and of a day"),
        pytest.param(["20230501_field", "20230615_field"], id="dates before a word"),
        pytest.param(["field 2023-05-01", "field 2023-06-15"], id="dates after a word"),
        pytest.param(["img1", "img2"], id="numbered images"),
    ],
)
def test_classes_that_say_when_or_where_are_named(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{name}/1.png" for name in names))
    assert read_folders(tmp_path)["class"].tolist() == sorted(names)
    [record] = caplog.records
    assert "are read as classes; if they say when or where images were taken" in record.getMessage()


def test_numbered_folders_of_equal_frames_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "001/00001.jpg", "001/00002.jpg", "002/00001.jpg", "002/00002.jpg")
    assert len(read_folders(tmp_path)) == 4
    [line] = caplog.messages
    assert "the folders 001 and 002 are read as classes; if they say when or where" in line


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["001/00001", "002/00002"], id="other numbers"),
        pytest.param(["0000045/001", "0000099/001"], id="persons"),
        pytest.param(["00000/00000_00001", "00001/00000_00001"], id="names of two numbers"),
    ],
)
def test_numbered_folders_of_other_files_say_nothing(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{file}.jpg" for file in files))
    assert len(read_folders(tmp_path)) == 2
    assert caplog.messages == []


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(["train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"], id="parts"),
        pytest.param(["a/1.png", "b/2.png"], id="classes"),
        pytest.param(["images/1.png", "masks/1.png"], id="images and masks"),
        pytest.param(["1.png", "1_mask.png"], id="masks beside images"),
    ],
)
def test_folders_around_a_data_set_name_it(files: list[str], tmp_path: Path) -> None:
    inside = touched(tmp_path / "archive" / "dataset", *files)
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path)
    assert "has 1 folder (archive)" in str(error.value)
    assert str(error.value).endswith(f"; or name {inside}")
    assert read_data_folder(inside).kind in ("classes", "masks")


def test_a_part_that_lacks_a_class_of_another_part_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png")
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path)
    assert f"{tmp_path}/val has 1 folder (a)" in str(error.value)
    assert str(error.value).endswith("; add images of the others to this part")


@pytest.mark.parametrize("subfolders", [None, "parts"])
@pytest.mark.parametrize(("train", "other"), [("train", "test"), ("train2017", "val2017")])
def test_parts_without_val_have_two_commands(
    train: str, other: str, subfolders: Literal["parts"] | None, tmp_path: Path
) -> None:
    touched(
        tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{other}/a/3.png", f"{other}/b/4.png"
    )
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path, subfolders)
    commands = (
        f"to train on {train} and score {other} after it: --images {tmp_path}/{train}, then "
        f"dinoneck evaluate {tmp_path}/{other} --heads RUN --truth {tmp_path}/{other}"
    )
    assert commands in str(error.value)
    assert read_data_folder(tmp_path / train).classes == ("a", "b")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        pytest.param("{}/images", "{}/masks", id="images and masks in each part"),
        pytest.param("images/{}", "masks/{}", id="parts in images and masks"),
    ],
)
@pytest.mark.parametrize("subfolders", [None, "parts"])
def test_parts_with_masks_without_val_have_two_commands(
    images: str, masks: str, subfolders: Literal["parts"] | None, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        touched(tmp_path / images.format(part), f"{part}.jpg")
        touched(tmp_path / masks.format(part), f"{part}.png")
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path, subfolders)
    trained_on = f"--images {tmp_path}/{images} --labels {tmp_path}/{masks}".format(
        "train", "train"
    )
    scored = f"evaluate {tmp_path}/{images} --heads RUN --truth {tmp_path}/{masks}"
    assert trained_on in str(error.value)
    assert scored.format("test", "test") in str(error.value)


def test_parts_without_class_folders_need_a_table(tmp_path: Path) -> None:
    touched(tmp_path, "train/1.png", "test/2.png")
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path)
    assert "or name the classes of their images in a table (--csv)" in str(error.value)


@pytest.mark.parametrize(
    "names", [("Testdaten", "Trainingsdaten"), ("Lernen", "Prüfen"), ("testset", "trainset")]
)
def test_parts_in_one_word_are_no_classes(names: tuple[str, str], tmp_path: Path) -> None:
    touched(tmp_path, *(f"{name}/{name}1.png" for name in names))
    with pytest.raises(DataError, match="parts of a data set, or classes"):
        read_folders(tmp_path)
    assert len(read_folders(tmp_path, subfolders="classes")) == 2


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["0", "1", "2"], id="numbers"),
        pytest.param(["stage1", "stage2"], id="stages"),
        pytest.param(["day", "night"], id="words alone"),
        pytest.param(["plot1", "wheat"], id="one of two"),
        pytest.param(["type (1)", "type (2)"], id="numbers in brackets"),
        pytest.param(["accepted", "rejected"], id="what is rejected"),
        pytest.param(["copy", "paper"], id="a word for copies, alone"),
        pytest.param(["000", "001", "002"], id="numbers with zeros"),
        pytest.param(["May", "wheat"], id="a month and a class"),
        pytest.param(["20230501_oats", "20230615_wheat"], id="classes with dates"),
        pytest.param(["100METRE", "wheat"], id="a name like that of a camera's folder"),
        pytest.param(["lernen", "schlafen"], id="a verb for a part beside another one"),
    ],
)
def test_other_classes_say_nothing(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, *(f"{name}/1.png" for name in names))
    assert read_folders(tmp_path)["class"].tolist() == sorted(names)
    warned = [
        record.getMessage()
        for record in caplog.records
        if "'copy' is read" not in record.getMessage()
    ]
    assert warned == []


@pytest.mark.parametrize(
    "name",
    [
        "wheat (1)",
        "Wheat - Copy",
        "wheat_aug",
        "wheat-augmented_2",
        "Copy of wheat",
        "wheat backup (2)",
    ],
)
def test_a_class_that_is_called_like_a_copy_of_another_one_is_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, "oats/1.png", "wheat/1.png", f"{name}/2.png")
    assert len(read_folders(tmp_path)) == 3
    [record] = caplog.records
    assert f"the class '{name}' is called like a copy of 'wheat'" in record.getMessage()


def test_lists_of_parts_beside_class_folders_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(
        tmp_path, "oats/1.png", "wheat/1.png", "train.txt", "README.txt", "ImageSets/Main/val.txt"
    )
    assert data_files(tmp_path) == [
        f"the list {tmp_path}/train.txt (as a column of a table: --csv, --fold-column)",
        f"the list {tmp_path}/ImageSets/Main/val.txt (as a column of a table: --csv, --fold-column)",
    ]
    with pytest.raises(DataError, match="no images of the class ImageSets"):
        read_folders(tmp_path)


def test_folders_whose_names_differ_in_blanks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched(tmp_path, " oats/1.png", "oats/2.png", "rye/3.png")
    assert read_folders(tmp_path)["class"].tolist() == ["oats", "oats", "rye"]
    assert f"'{tmp_path}/ oats' and '{tmp_path}/oats' are one class, 'oats'" in caplog.text


def test_many_folders_are_not_all_listed_in_a_message(tmp_path: Path) -> None:
    touched(tmp_path, *(f"k{number}/{name}/1.png" for number in range(40) for name in "ab"))
    with pytest.raises(DataError, match="and 30 more"):
        read_folders(tmp_path)


def test_folds_of_images_and_masks_are_read_on_request(tmp_path: Path) -> None:
    touched(
        tmp_path, *(f"{site}/{kind}/1.png" for site in ("s1", "s2") for kind in ("images", "masks"))
    )
    table = table_of_folder(read_data_folder(tmp_path, "folds"))
    assert table["fold"].to_dict() == {"s1/images/1.png": "s1", "s2/images/1.png": "s2"}
    assert table["labels"].tolist() == [tmp_path / f"{site}/masks/1.png" for site in ("s1", "s2")]


def test_parts_of_images_without_such_parts_of_masks_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "images/train/1.png", "images/val/2.png", "masks/1.png", "masks/2.png")
    with pytest.raises(
        DataError, match=r"folders train and val, and .*masks has no folder of these"
    ):
        read_data_folder(tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "test"),
        ("training", "dev"),
        ("fold1", "fold2"),
        ("train2017", "val2017"),
        ("train", "val", "extra"),
    ],
    ids="-".join,
)
def test_images_and_masks_in_folders_that_may_be_parts_are_refused(
    parts: tuple[str, ...], tmp_path: Path
) -> None:
    touched(tmp_path, *(f"{kind}/{part}/1.png" for part in parts for kind in ("images", "masks")))
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path)
    assert "parts of a data set, or one set?" in str(error.value)
    assert all(part in str(error.value) for part in parts)
    assert f"--images {tmp_path / 'images'} --labels {tmp_path / 'masks'}" in str(error.value)
    folds = read_data_folder(tmp_path, "folds")
    assert list(folds.parts) == sorted(parts)


def test_images_and_masks_in_folders_of_plots_stay_one_set(tmp_path: Path) -> None:
    names = ("plot1", "plot2", "train")
    touched(tmp_path, *(f"{kind}/{name}/1.png" for name in names for kind in ("images", "masks")))
    table = table_of_folder(read_data_folder(tmp_path))
    assert len(table) == 3


def test_images_beside_the_parts_of_images_and_masks_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "images/0.png", "images/train/1.png", "images/val/1.png")
    touched(tmp_path, "masks/0.png", "masks/train/1.png", "masks/val/1.png")
    with pytest.raises(
        DataError, match=r"images next to its folders train and val, such as 0\.png"
    ):
        read_data_folder(tmp_path, "parts")


def test_folds_are_read_on_request(tmp_path: Path) -> None:
    touched(tmp_path, "k2/a/1.png", "k2/b/1.png", "k1/a/1.png", "k1/b/1.png")
    table = read_folders(tmp_path, subfolders="folds")
    assert table["fold"].to_dict() == {
        "k1/a/1.png": "k1",
        "k1/b/1.png": "k1",
        "k2/a/1.png": "k2",
        "k2/b/1.png": "k2",
    }
    assert table.attrs["held_out"] is None


@pytest.mark.parametrize(
    ("names", "subfolders", "named"),
    [
        pytest.param(["a/1.png", "b/1.png"], "parts", "called train and val", id="no parts"),
        pytest.param(["a/c/1.png", "a/d/1.png"], "folds", "two folds or more", id="one fold"),
        pytest.param(["a/1.png", "b/1.png"], "folds", "without class folders", id="folds of images"),
        pytest.param(["train/a/1.png", "train/b/1.png", "val/1.png"], None, "not alike", id="flat val"),
        pytest.param(["train/a/1.png", "val/a/1.png", "0.png"], None, "0.png", id="images beside parts"),
        pytest.param(["train/a/1.png", "val/a/1.png"], None, "1 folder", id="one class"),
        pytest.param(["images/1.png", "masks/1.png", "labels/1.png"], None, "masks", id="two folders of masks"),
        pytest.param(["images/1.png", "masks/1.png", "extra/1.png"], None, "extra", id="one more folder"),
        pytest.param(["images/1.png", "masks/1.png", "0.png"], None, "0.png", id="images beside them"),
    ],
)  # fmt: skip
def test_folders_that_make_no_parts_are_refused(
    names: list[str], subfolders: str | None, named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=named):
        read_data_folder(touched(tmp_path, *names), subfolders)  # type: ignore[arg-type]


def test_masks_in_a_folder_of_any_name_are_no_class(tmp_path: Path) -> None:
    drawn(tmp_path, "RGB", "field/1.png", "field/2.png")
    drawn(tmp_path, "P", "cover/1.png", "cover/2.png")
    with pytest.raises(DataError, match="cover has an image like a mask for each of field"):
        read_folders(tmp_path)


def test_tables_and_coco_files_of_a_folder_are_named(tmp_path: Path) -> None:
    touched(tmp_path, "train/1.jpg", "valid/1.jpg", "train/notes.json")
    for part in ("train", "valid"):
        (tmp_path / part / "_annotations.coco.json").write_text('{"images": []}')
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    assert f"{tmp_path}/train/_annotations.coco.json (--boxes" in str(error.value)
    assert "evaluate takes such files as --truth" in str(error.value)
    assert "notes" not in str(error.value)


# Images and masks in two folders
# ----------------------------------------------------------------------------------------------------


def test_masks_may_lie_in_the_folder_of_their_images(tmp_path: Path) -> None:
    touched(tmp_path, "1.jpg", "2.jpg", "masks/1.png", "masks/2.png")
    data = read_data_folder(tmp_path)
    assert data.content == Content("masks", tmp_path, tmp_path / "masks")
    assert table_of_folder(data).index.tolist() == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("names", "images", "masks"),
    [
        pytest.param(["images/1.jpg", "gt/trimaps/1.png", "gt/xmls/1.xml"], "images", "gt/trimaps", id="Oxford Pets"),
        pytest.param(["images/full/1.jpg", "masks/1.png"], "images/full", "masks", id="a folder of images"),
        pytest.param(["images/rgb/1.jpg", "masks/a/b/1.png"], "images/rgb", "masks/a/b", id="both"),
        pytest.param(["images/rgb/a/1.jpg", "masks/a/1.png"], "images/rgb", "masks", id="up to a shared folder"),
        pytest.param(["images/a/1.jpg", "masks/fine/a/1.png"], "images/a", "masks/fine/a", id="to the files"),
    ],
)  # fmt: skip
def test_masks_may_lie_deeper_in_their_folder(
    names: list[str], images: str, masks: str, tmp_path: Path
) -> None:
    data = read_data_folder(touched(tmp_path, *names))
    assert data.content == Content("masks", tmp_path / images, tmp_path / masks)
    assert table_of_folder(data)["labels"].tolist() == [tmp_path / names[1]]


def test_folders_that_images_and_masks_share_stay(tmp_path: Path) -> None:
    data = read_data_folder(touched(tmp_path, "images/a/1.jpg", "masks/a/1.png"))
    assert data.content == Content("masks", tmp_path / "images", tmp_path / "masks")
    assert table_of_folder(data).index.tolist() == ["images/a/1.jpg"]


def test_images_in_folders_of_copies_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("images", "masks"):
        touched(
            tmp_path,
            f"{kind}/original/1.png",
            f"{kind}/augmented/1_0.png",
            f"{kind}/augmented/1_1.png",
        )
    assert len(table_of_folder(read_data_folder(tmp_path))) == 3
    [record] = caplog.records
    line = f"also read: 2 images in folders called like copies of others, such as {tmp_path}/images/augmented"
    assert line in record.getMessage()


def test_folders_with_masks_beside_them_that_are_no_parts_have_three_readings(
    tmp_path: Path,
) -> None:
    names = ["oats/1.png", "wheat/2.png", "oats_mask/1.png", "wheat_mask/2.png"]
    touched(tmp_path, *names)
    with pytest.raises(DataError) as error:
        read_data_folder(tmp_path)
    assert f"--images {tmp_path}/oats --labels {tmp_path}/oats_mask" in str(error.value)
    assert "--subfolders folds" in str(error.value)
    assert list(read_data_folder(tmp_path, "folds").parts) == ["oats", "wheat"]
    assert "--subfolders classes" in str(error.value)
    assert len(read_data_folder(tmp_path, "classes").classes) == 4


def test_parts_may_lie_deeper_in_their_folders(tmp_path: Path) -> None:
    names = [
        f"{top}_trainvaltest/{top}/{part}/x/1.png"
        for top in ("leftImg8bit", "gtFine")
        for part in ("train", "val")
    ]
    data = read_data_folder(touched(tmp_path, *names))
    assert data.parts["val"].masks == tmp_path / "gtFine_trainvaltest/gtFine/val"
    assert table_of_folder(data)["fold"].tolist() == ["train", "val"]


@pytest.mark.parametrize(
    ("masks", "remedy"),
    [
        pytest.param(
            ["7/0.png", "7/1.png"], "a folder of masks for each image: merge", id="objects"
        ),
        pytest.param(
            ["7_gt_color.png", "7_gt_ids.png"], "end in _gt_color, _gt_ids. Move", id="kinds"
        ),
        pytest.param(
            ["a/7.png", "b/7.png"], "a and b in .*masks have a mask for each image", id="folders"
        ),
        pytest.param(["7.png", "viz/7.png"], "viz has a second mask for each image", id="pictures"),
    ],
)
def test_several_masks_of_each_image_name_what_to_do(
    masks: list[str], remedy: str, tmp_path: Path
) -> None:
    touched(tmp_path / "images", "7.jpg", "8.jpg")
    touched(tmp_path / "masks", *masks, *(mask.replace("7", "8") for mask in masks))
    with pytest.raises(DataError) as error:
        read_masks(tmp_path / "images", tmp_path / "masks")
    assert re.search(remedy, str(error.value))


def test_parts_of_images_may_lie_beside_one_folder_of_masks(tmp_path: Path) -> None:
    touched(tmp_path, "train/1.jpg", "val/2.jpg", "masks/train/1.png", "masks/val/2.png")
    table = table_of_folder(read_data_folder(tmp_path))
    assert table["fold"].to_dict() == {"train/1.jpg": "train", "val/2.jpg": "val"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    touched(tmp_path, "1.png")
    for call in (
        lambda: read_folders(tmp_path / "1.png"),
        lambda: read_masks(tmp_path, tmp_path / "1.png"),
    ):
        with pytest.raises(DataError, match="1.png is a file"):
            call()


def test_the_folder_of_both_may_be_named_for_the_images(tmp_path: Path) -> None:
    touched(tmp_path, "images/a/1.jpg", "masks/a/1.png")
    table = read_masks(tmp_path, tmp_path / "masks")
    assert table["labels"].to_dict() == {"images/a/1.jpg": tmp_path / "masks/a/1.png"}


@pytest.mark.parametrize(
    ("images", "masks", "line"),
    [
        pytest.param(["1.jpg", "a/2.jpg"], ["1_mask.png", "a/2_mask.png"], "masks without '_mask'", id="masks"),
        pytest.param(["1.jpg", "2.jpg"], ["1-a-gt.png", "2-a-gt.png"], "masks without '-a-gt'", id="two words"),
        pytest.param(["1_sat.jpg", "2_sat.jpg"], ["1_mask.png", "2_mask.png"], "images without", id="both"),
        pytest.param(["1_rgb.jpg", "2_rgb.jpg"], ["1.png", "2.png"], "images without '_rgb'", id="images"),
        pytest.param(["1.jpg", "a/2.jpg"], ["mask_1.png", "a/mask_2.png"], "masks without 'mask_'", id="a beginning"),
        pytest.param(["img1.jpg", "img2.jpg"], ["gt1.png", "gt2.png"], "images without 'img', masks", id="beginnings"),
        pytest.param(["1.jpg", "2.jpg"], ["1.jpg.png", "2.jpg.png"], "masks without '.jpg'", id="two suffixes"),
    ],
)  # fmt: skip
def test_one_ending_or_beginning_of_all_masks_is_left_out(
    images: list[str],
    masks: list[str],
    line: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    touched(tmp_path / "x", *images)
    touched(tmp_path / "y", *masks)
    table = read_masks(tmp_path / "x", tmp_path / "y")
    assert table["labels"].to_dict() == {
        image: tmp_path / "y" / mask for image, mask in zip(images, masks, strict=True)
    }
    [message] = [record.getMessage() for record in caplog.records]
    assert line in message and message.endswith(": 2 pairs")


def test_names_of_masks_in_another_case_or_unicode_form_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    composed = unicodedata.normalize("NFC", "é1")
    decomposed = unicodedata.normalize("NFD", "é1")
    touched(tmp_path / "x", f"{composed}.jpg", "IMG_2.jpg", "img_3.jpg")
    touched(tmp_path / "y", f"{decomposed}.png", "img_2.png", "IMG_3.png")
    table = read_masks(tmp_path / "x", tmp_path / "y")
    assert table["labels"].to_dict() == {
        f"{composed}.jpg": tmp_path / "y" / f"{decomposed}.png",
        "IMG_2.jpg": tmp_path / "y" / "img_2.png",
        "img_3.jpg": tmp_path / "y" / "IMG_3.png",
    }
    [record] = caplog.records
    assert record.getMessage().endswith("names in another case: 3 pairs")


@pytest.mark.parametrize(
    ("images", "masks", "words"),
    [
        (
            ["images/a.jpg", "images/b.jpg"],
            ["masks/1f2e3d4c-a.png", "masks/99999999-b.png"],
            "names without the 8 letters of Label Studio in front",
        ),
        (
            ["images/x/my plot 1.jpg", "images/x/my plot 2.jpg"],
            ["masks/x/my%20plot%201.png", "masks/x/my%20plot%202.png"],
            "names with '%20' and the like decoded",
        ),
        (
            ["images/1.jpg", "images/10.jpg", "images/a_02.jpg"],
            ["masks/001.png", "masks/010.png", "masks/a_2.png"],
            "numbers without zeros in front",
        ),
    ],
)
def test_forms_of_names_that_programs_write_pair_images_and_masks(
    images: Sequence[str],
    masks: Sequence[str],
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    touched(tmp_path, *images, *masks)
    table = read_masks(tmp_path / "images", tmp_path / "masks")
    pairs = {row["images"].stem: row["labels"].stem for _, row in table.iterrows()}
    assert pairs == {
        Path(image).stem: Path(mask).stem for image, mask in zip(images, masks, strict=True)
    }
    assert f"{words}: {len(images)} pairs" in caplog.text


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["images/1.05.jpg", "images/2.07.jpg"], ["masks/1.5.png", "masks/2.7.png"]),
        (["images/1.jpg", "images/01.jpg"], ["masks/001.png", "masks/0001.png"]),
        (["images/a.jpg", "images/b.jpg"], ["masks/1f2e3d4c-a.png", "masks/1f2e3d4c-c.png"]),
    ],
)
def test_forms_of_names_that_are_open_pair_nothing(
    images: Sequence[str], masks: Sequence[str], tmp_path: Path
) -> None:
    touched(tmp_path, *images, *masks)
    with pytest.raises(DataError, match="has no mask for"):
        read_masks(tmp_path / "images", tmp_path / "masks")


def test_names_that_differ_in_case_alone_are_two_images(tmp_path: Path) -> None:
    touched(tmp_path / "x", "a.jpg", "A.jpg")
    touched(tmp_path / "y", "a.png", "b.png")
    with pytest.raises(DataError, match="has no mask for 1 image"):
        read_masks(tmp_path / "x", tmp_path / "y")


def test_two_unicode_forms_of_one_name_are_refused(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é1.jpg") for form in ("NFC", "NFD")]
    touched(tmp_path / "x", *names)
    touched(tmp_path / "y", "1.png")
    with pytest.raises(DataError, match=r"differ in their Unicode form \(NFC, NFD\) alone"):
        read_masks(tmp_path / "x", tmp_path / "y")


def test_beginnings_that_may_tell_images_apart_stay(tmp_path: Path) -> None:
    touched(tmp_path / "x", "day1_0.jpg", "day1_1.jpg")
    touched(tmp_path / "y", "day2_0.png", "day2_1.png")
    with pytest.raises(DataError, match="has no mask for 2 images"):
        read_masks(tmp_path / "x", tmp_path / "y")


def test_files_of_the_other_folder_are_named(tmp_path: Path) -> None:
    touched(tmp_path / "x", "1.jpg", "2_a.jpg")
    touched(tmp_path / "y", "2_b.png", "3.png", "1.png")
    with pytest.raises(DataError) as error:
        read_masks(tmp_path / "x", tmp_path / "y")
    message = str(error.value)
    assert f"{tmp_path / 'y'} has no mask for 1 image of {tmp_path / 'x'}: 2_a" in message
    assert f"{tmp_path / 'x'} has no image for 2 masks of {tmp_path / 'y'}: 2_b, 3" in message
    assert "--csv" in message


def test_a_part_of_images_without_masks_is_not_read_as_labelled(tmp_path: Path) -> None:
    names = ["images/train/0.jpg", "images/val/1.jpg", "images/test/2.jpg"]
    masks = ["masks/train/0.png", "masks/val/1.png"]

    data = read_data_folder(touched(tmp_path, *names, *masks))

    assert list(data.parts) == ["train", "val"]
    assert data.unread_part is not None
    assert data.unread_part.content.kind == "images"
    assert data.unread_part.content.images == tmp_path / "images/test"


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        pytest.param("masks", "images", id="of a folder beside"),
        pytest.param("others", None, id="of no folder"),
        pytest.param("images/deeper", None, id="deeper"),
    ],
)
def test_a_folder_of_masks_is_paired_with_the_folder_beside_it(
    masks: str, images: str | None, tmp_path: Path
) -> None:
    drawn(tmp_path, "RGB", "images/0.jpg", "images/1.jpg", colours=150)
    drawn(tmp_path, "L", "masks/0.png", "masks/1.png")
    drawn(tmp_path, "L", "others/a.png")

    found = masks_in(tmp_path, tmp_path / masks)

    assert found == (None if images is None else tmp_path / images)
