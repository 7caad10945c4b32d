"""What tables, folders, boxes, masks, images, their preparation, views and the pasture refuse."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dinoneck import ConfigError, DataError, ShapeError
from dinoneck.data import (
    BoxImages,
    DenseLabels,
    PanopticImages,
    Preprocessing,
    View,
    Views,
    box_transforms,
    collate_boxes,
    count_classes,
    read_folders,
    read_masks,
    read_table,
    to_image_pixels,
    to_original,
    to_prepared_pixels,
)
from dinoneck.images.decoding import read_pixels
from tests import kit
from tests.refusals import Row
from tests.unit.backbones.test_channels import backbone_of
from tests.unit.data import box_samples

GOOD = "image,crop,weed,field,day\na.jpg,0.5,0.1,f1,1\nb.jpg,0.25,0,f1,2\nc.jpg,1e-3,0.9,f2,1\n"
DAYS = np.array([1, 2, 3], "m8[D]")
FRAME = pd.DataFrame({"image": ["a.jpg", "b.jpg", "c.jpg"], "y": [1.0, 2.0, 3.0]})
Call = Callable[[Path], Any]


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def table(content: str | bytes, files: tuple[str, ...] = (), **options: Any) -> Call:
    """Read a CSV file of this content, in a folder of these files where some are named."""

    def call(folder: Path) -> Any:
        (folder / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        images = touched(folder, *files) if files else None
        return read_table(folder / "t.csv", images, **{"targets": "crop", **options})

    return call


def column(*cells: str, **options: Any) -> Call:
    """Read a target ``y`` with these cells, of the images 0.jpg, 1.jpg, ..."""
    rows = "".join(f'{i}.jpg,"{cell}"\n' for i, cell in enumerate(cells))
    return table("image,y\n" + rows, **{"targets": "y", **options})


def folders(*names: str, subfolders: Any = None) -> Call:
    return lambda folder: read_folders(touched(folder, *names), subfolders=subfolders)


def masks(images: tuple[str, ...], labels: tuple[str, ...]) -> Call:
    return lambda folder: read_masks(touched(folder / "x", *images), touched(folder / "y", *labels))


def other_parts(folder: Path) -> Any:
    """The images of val with the masks of train, beside those of val."""
    images = touched(folder / "images/val", "1.jpg")
    touched(folder / "masks/val", "1.png")
    return read_masks(images, touched(folder / "masks/train", "1.png"))


def panoptic(**changes: Any) -> Call:
    """Open an image of 4 x 6 pixels with a disc, id 300, on unknown ground, and decode it.

    ``ids`` are its pixels.
    """

    def call(folder: Path) -> Any:
        ids, kind = changes.get("ids", np.full((4, 6), 300)), changes.get("mode", "RGB")
        Image.new("RGB", (6, 4)).save(folder / "a.png")
        colours = np.stack([ids % 256, ids // 256, 0 * ids], axis=-1).astype(np.uint8)
        Image.fromarray(colours).convert(kind).save(folder / "ids.png")
        segment = {"id": 300, "category_id": 1} | changes.get("segment", {})
        entry = {"image_id": 7, "file_name": "ids.png", "segments_info": [segment]} | changes.get(
            "entry", {}
        )
        image = {"id": 7, "file_name": "a.png", "width": 6, "height": 4} | changes.get("image", {})
        content = {
            "images": [image],
            "annotations": [entry],
            "categories": [{"id": 1, "name": "disc", "isthing": 1} | changes.get("category", {})],
        }
        (folder / "s.json").write_text(json.dumps(content | changes.get("content", {})))
        return PanopticImages(folder / "s.json", folder).pixels(0)

    return call


def spoilt(name: str, content: bytes | Image.Image) -> Call:
    """Take an image whose file was replaced after the dataset was opened."""

    def call(folder: Path) -> Any:
        data = BoxImages(box_samples.write(folder, box_samples.content()))
        (folder / name).write_bytes(content) if isinstance(content, bytes) else content.save(
            folder / name
        )
        return data[int(name[0])]

    return call


def cells(label: Any, **options: Any) -> Callable[[], Any]:
    return lambda: DenseLabels().cells(label, Preprocessing(16), **options)


WHITE_CUT_OUT = Image.new("LA", (8, 6), (255, 255))
WHITE_CUT_OUT.putpixel((0, 0), (255, 0))
BLACK_CUT_OUT = Image.new("LA", (8, 6), (0, 255))
BLACK_CUT_OUT.putpixel((0, 0), (0, 0))


def saved(name: str, image: Image.Image, classes: int | None = None, **options: Any) -> Call:
    def call(folder: Path) -> Any:
        image.save(folder / name, **options)
        return DenseLabels(classes=classes).cells(folder / name, Preprocessing(1))

    return call


def infrared_as_alpha(folder: Path) -> Any:
    """Read an image of which the fourth band holds many values and is tagged as alpha."""
    bands = np.random.RandomState(0).randint(20, 236, (32, 32, 4)).astype(np.uint8)
    Image.fromarray(bands).save(folder / "four.tif")
    return read_pixels(folder / "four.tif")


def of_two_scales(folder: Path) -> Any:
    """Read labels of which the notes next to them state two scales."""
    files = [folder / "a.tif", folder / "b.tif"]
    for number, file in enumerate(files, start=1):
        GREY.save(file)
        notes = f'<PAMRasterBand band="1"><Scale>0.{number}</Scale></PAMRasterBand>'
        Path(f"{file}.aux.xml").write_text(f"<PAMDataset>{notes}</PAMDataset>")
    return DenseLabels().cells(files, Preprocessing(1))


def picture(name: str, content: bytes) -> Call:
    """Read an image file of these bytes."""

    def call(folder: Path) -> Any:
        (folder / name).write_bytes(content)
        return read_pixels(folder / name)

    return call


def header_of_png(width: int, height: int) -> bytes:
    """The beginning of a PNG file of grey pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = struct.pack(">I", 4) + b"IDAT" + bytes(8)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + pixels


OFFSET = np.arange(32768, 32784, dtype=np.uint16).reshape(4, 4)
GREY = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
COLOURS = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
SEVEN = np.zeros((4, 4), np.uint8)
SEVEN[1, 2], SEVEN[3, 3] = 7, 5
POINT = torch.zeros(2)
MISFITS = [  # cells of a column of numbers or words, and the one that is named
    (["1", "2", "wheat"], "'wheat'"),
    (["oats", "3", "wheat"], "'3'"),
    (["1,500", "2,500"], ("'1,500'", "1.5", "1500")),
    (["1.5", "2,5"], ("'1.5'", "'2,5'", "'0.jpg'", "'1.jpg'")),
    (["1", "٣", "2"], "'٣'"),
    (["1", "2", "-"], "'-'"),
    (["1", "2", "?"], "'?'"),
    (["1", "2", "inf"], "'inf'"),
    (["1", "2", "1e39"], ("'1e39'", "3.4e38")),
    (["1", "2 %", "3"], ("'2 %'", "'%'")),
    (["1", "#DIV/0!", "3"], "'#DIV/0!'"),
    (["1", "=A2*2", "3"], "'=A2*2'"),
    (["1", "2", "03. Mai"], "'03. Mai'"),
    (["oats", "#NV", "wheat"], "'#NV'"),
    (["NA", "NA", "NA"], "'NA'"),
    (["oats", "oats", "oats"], "'oats'"),
    (["", "", "nan"], "'y'"),
    (["1", str(2**53 + 1), "2"], str(2**53 + 1)),
    (["1", "1O", "2"], ("'1O'", "'O'")),
    (["1", "10\u00b2", "2"], ("'10\u00b2'", "'\u00b2'")),
    (["1", "47\u00b030'", "2"], "47\u00b030'"),
    (["1", "'2", "3"], "'2"),
    (["1", "2.5 ab", "3"], ("'2.5 ab'", "'ab'")),
]
BOXES: list[tuple[Call, str | tuple[str, ...]]] = [
    (lambda folder: BoxImages(folder / "no.json"), "no.json"),
    (spoilt("0.png", Image.new("RGB", (30, 40))), ("0.png", "40x30", "30x40")),
    (spoilt("1.png", b"no picture"), "1.png"),
    (
        lambda folder: (
            BoxImages(box_samples.write(folder, box_samples.content()))
            .take([2])
            .check_part({"blue": 2, "red": 2}, "box", "the images that are trained on")
        ),
        ("all 4", "--folds"),
    ),
    (
        lambda folder: BoxImages(box_samples.write(folder, box_samples.content()), classes=["blu"]),
        ("'blu'", "'blue'"),
    ),
    (
        lambda folder: BoxImages(box_samples.write(folder, box_samples.content()), classes=[]),
        "classes",
    ),
    (
        lambda folder: BoxImages(box_samples.write(folder, box_samples.content()), part="val"),
        ("boxes.json", "'val'"),
    ),
]

SEGMENTS: list[tuple[Call, Any]] = [
    (panoptic(entry={"segments_info": None}), "segments_info"),
    (panoptic(entry={"file_name": "b.png"}), ("PNG files", "b.png")),
    (panoptic(segment={"category_id": 4}), "category_id 4"),
    (panoptic(segment={"iscrowd": 2}), "iscrowd"),
    (panoptic(segment={"id": 0}), "segments_info[0].id is 0"),
    (panoptic(segment={"id": 301}), ("ids.png", "300")),
    (panoptic(mode="LA"), "ids.png"),
    (
        lambda folder: PanopticImages(box_samples.write(folder, box_samples.content()), folder),
        "file_name",
    ),
    (panoptic(category={"isthing": None}), "'disc'"),
    (panoptic(category={"isthing": 2}), "categories[0].isthing"),
    (panoptic(image={"height": 5}), ("a.png", "5x6")),
]


def without_pandas() -> Any:
    with kit.without("pandas"), pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "dinoneck.data.tables")
        return importlib.import_module("dinoneck.data.tables")


def masked(number: int) -> Any:
    """The content of a COCO file whose first image has so many objects of one class.

    Each lies half a pixel beside the one before, 40 in a row.
    """
    made = box_samples.content()
    first = made["annotations"][0]
    objects = []
    for i in range(number):
        left = i % 40 / 2
        top = i // 40 / 2
        outline = [left, top, left + 10, top, left + 10, top + 8]
        changes = {"id": i, "bbox": [left, top, 10, 8], "segmentation": [outline]}
        objects.append({**first, **changes})
    return made | {"annotations": objects}


def mask_without_pycocotools(folder: Path) -> Any:
    with kit.without("pycocotools"):
        return BoxImages(box_samples.write(folder, masked(1)), masks=True)


def thousand_objects(folder: Path) -> Any:
    return BoxImages(box_samples.write(folder, masked(1000)), masks=True).pixels(0)


ROWS: list[Row] = [
    *((call, DataError, named) for call, named in SEGMENTS),
    # tables
    *((column(*cells), DataError, named) for cells, named in MISFITS),
    (
        lambda: read_table(FRAME.assign(y=pd.to_timedelta([1, 2, 3], "D")), targets="y"),
        DataError,
        ("y", "Timedelta"),
    ),
    (
        table(
            "image,m\na.jpg,m/b.png\nb.jpg,m/a.png\n",
            ("a.jpg", "b.jpg", "m/a.png", "m/b.png"),
            targets=(),
            labels="m",
        ),
        DataError,
        ("'a.jpg'", "b.png", "named after another image, 'b.jpg'"),
    ),
    (
        table("sep=,\nimage;crop\na;1,5\n"),
        DataError,
        ("first line", "','", "';'"),
    ),
    (table(GOOD + GOOD), DataError, ("row 5", "names of the columns")),
    (table('{"images": [], "annotations": []}'), DataError, ("JSON", "--boxes")),
    (table("version https://git-lfs.github.com/spec/v1\noid"), DataError, "git lfs pull"),
    (
        lambda: read_table(FRAME.rename(columns={"image": "image "}), targets="y"),
        DataError,
        ("'image'", "set_index", "'image '"),
    ),
    (
        lambda: read_table(FRAME.assign(y=pd.Series([*DAYS], FRAME.index, object)), targets="y"),
        DataError,
        ("y of", "timedelta64"),
    ),
    (
        lambda: read_table(FRAME.assign(y=pd.Categorical(["1.1", "1.10", "2"])), targets="y"),
        DataError,
        ("'1.1' and '1.10'", "compared as numbers"),
    ),
    (
        table("image,crop,note\na.jpg,1,5,\nb.jpg,2,7,\n"),
        DataError,
        ("row 2", "1,5 may be", "in quotes"),
    ),
    (table(GOOD.replace("crop", "corp", 1)), DataError, ("'crop'", "'corp'")),
    (table(GOOD, ("a.jpg", "b.jpg")), DataError, ("1 of 3", "'c.jpg'")),
    (table(GOOD.replace("b.jpg", "a.jpg")), DataError, "'a.jpg'"),
    (
        table(GOOD.replace("b.jpg", "d/../a.jpg"), ("a.jpg", "c.jpg", "d/b.jpg")),
        DataError,
        "'d/../a.jpg'",
    ),
    (table(GOOD.replace("b.jpg", " ")), DataError, "row 3"),
    (table("image,crop\n"), DataError, "t.csv"),
    (table(GOOD + "c.jpg,1\n"), DataError, "row 5"),
    (table(GOOD.replace("weed", "crop")), DataError, ("2", "'crop'")),
    (table(GOOD.replace("image", "file")), DataError, ("'image'", "image_column")),
    (table(GOOD.encode("utf-16-le")), DataError, "UTF-16"),
    (table(GOOD.encode("utf-16")[:-1]), DataError, ("UTF-16", "bytes")),
    (table(b"PK\x03\x04"), DataError, "workbook"),
    (table("<html>"), DataError, "HTML"),
    (table(""), DataError, "empty"),
    (table(GOOD + 'd.jpg,"1,0,f2,1\n'), DataError, "row 5"),
    (table("image,crop\na.jpg,1,5\n"), DataError, ("row 2", "decimal comma")),
    (table("image;crop\na.jpg;1;5\n"), DataError, ("row 2", "';'")),
    (table("image;crop\na.jpg;1.500\nb.jpg;12\n"), DataError, ("'1.500'", "1500")),
    (table("Survey 2024\n" + GOOD), DataError, ("'Survey 2024'", "above")),
    (table(GOOD.replace(",", "|")), DataError, ("one cell", "semicolons")),
    (table(GOOD.replace("f1", "#REF!"), group="field"), DataError, ("field of", "'#REF!'")),
    (table(GOOD, targets=["crop", "crop"]), DataError, "'crop'"),
    (table(GOOD, auxiliary="crop"), DataError, "'crop'"),
    (column("u", "v", classes={"y": "uv"}), DataError, "'uv'"),
    (column("u", "v", classes={"y": ["u", "u"]}), DataError, "'u' and 'u'"),
    (column("u", "v", classes={"y": {"u", "v"}}), DataError, ("a set for 'y'", "a list")),
    (column("5 g", "6 g", numbers="y"), DataError, ("'5 g'", "'g'")),
    (
        lambda: read_table(FRAME.assign(y=[1.5, "2,5", 3]), targets="y"),
        DataError,
        ("'1.5'", "'2,5'"),
    ),
    (table(GOOD, group="site"), DataError, "'site'"),
    (table(GOOD.replace("f1,1", ",1"), group="field"), DataError, ("'field'", "a.jpg")),
    (table(GOOD, targets=[]), DataError, "target"),
    (table("image,images\na.jpg,1\n", targets="images"), DataError, "'images'"),
    (table(GOOD, classes={"site": ("p", "q")}), DataError, "'site'"),
    (table("image,mask\na,\nb,nan\n", targets=(), labels="mask"), DataError, "'mask'"),
    (table("image,größe\n".encode("latin-1")), DataError, "UTF-8"),
    *(
        (column("oats", "wheat", classes={"y": names}), DataError, named)
        for names, named in ((("oats", "rye"), "'wheat'"), (("oats", "nan"), "y"))
    ),
    (table("image;crop\na;1,5\nb;2.5\n"), DataError, "'1,5'"),  # the comma may mean something else
    (
        lambda: read_table(pd.concat({"table": FRAME}, axis=1), targets="y"),
        DataError,
        ("columns of 2 levels", "('table', 'image')"),
    ),
    (lambda folder: read_table(folder / "no.csv", targets="y"), DataError, "no.csv"),
    (lambda folder: read_table(FRAME, folder / "no", "y"), DataError, "no"),
    (lambda: read_table({"image": ["a"]}, None, "y"), DataError, "dict"),
    (lambda: read_table(FRAME.drop(columns="image"), targets="y"), DataError, "'image'"),
    # folders
    (folders("a/1.jpg", "b/1.jpg", "2.jpg"), DataError, "2.jpg"),
    (folders("a/1.jpg"), DataError, "a"),
    (folders("a/1.jpg", "b/notes.txt", "c/1.jpg"), DataError, "b"),
    (folders("train/1.jpg", "Val/2.jpg"), DataError, "Val"),
    (
        folders("train/a/1.jpg", "train/b/1.jpg", "Val/2.jpg"),
        DataError,
        ("train holds", "Val holds"),
    ),
    (folders("train/a/1.jpg", "dev/a/2.jpg"), DataError, ("train", "dev", "--subfolders classes")),
    (
        folders("s0/image.png", "s0/mask.png", "s1/image.png", "s1/mask.png"),
        DataError,
        ("s0 and s1", "one folder for each sample", "--subfolders classes", "--csv"),
    ),
    (folders("k1/a/1.jpg", "k1/b/1.jpg", "k2/a/2.jpg"), DataError, ("k1", "k2", "a, b")),
    (folders("images/1.jpg", "masks/1.jpg"), DataError, "read_masks"),
    (folders("images/1.jpg", "labels/1.txt"), DataError, ("labels", ".txt")),
    (folders("images/1.jpg", "depth/1.tif"), DataError, ("images", "depth")),
    (folders("images/1.jpg", "annotations/1.xml"), DataError, ("annotations", ".xml")),
    (
        folders("p/images/1.jpg", "p/masks/1.png", "q/images/1.jpg", "q/masks/1.png"),
        DataError,
        ("p and q", "images and masks", "--subfolders classes", "--subfolders folds"),
    ),
    (
        folders("images/train/1.jpg", "images/val/2.jpg", "masks/1.png", "masks/2.png"),
        DataError,
        ("images", "train and val", "masks"),
    ),
    (
        folders("images/train/1.jpg", "images/dev/2.jpg", "masks/train/1.png", "masks/dev/2.png"),
        DataError,
        ("dev and train", "one set", "--subfolders folds", "--labels"),
    ),
    (
        folders(
            "train/images/train/1.jpg",
            "train/images/val/2.jpg",
            "train/masks/train/1.png",
            "train/masks/val/2.png",
            "val/images/3.jpg",
            "val/masks/3.png",
        ),
        DataError,
        "parts in its turn",
    ),
    (
        folders("rgb/1.jpg", "photos/1.jpg", "masks/1.png"),
        DataError,
        ("photos/ and rgb/", "one image in two kinds", "photos --labels"),
    ),
    (
        folders("p/images/1.jpg", "p/masks/2.png", "q/images/1.jpg", "q/masks/2.png"),
        DataError,
        ("p and q", "one folder for each sample", "--csv"),
    ),
    (
        table("image,crop\n7.png,1\n", ("images/8.png", "masks/7.png")),
        DataError,
        ("'7.png'", "they are masks", "masks/7.png"),
    ),
    (
        folders("rye/train/1.jpg", "rye/val/2.jpg", "oats/train/1.jpg", "oats/val/2.jpg"),
        DataError,
        ("oats and rye", "train/oats, train/rye", "--subfolders classes"),
    ),
    (
        folders("rye/train/1.jpg", "rye/val/2.jpg", "oats/3.jpg", subfolders="parts"),
        DataError,
        ("rye holds", "rye/train to train/rye"),
    ),
    (
        folders("x/train/1.jpg", "x/val/2.jpg", "y/a/3.jpg", "y/b/4.jpg", subfolders="folds"),
        DataError,
        ("x is to be a fold", "train and val"),
    ),
    (
        folders(
            "nut/train/ok/1.jpg", "nut/test/ok/2.jpg", "nail/train/ok/1.jpg", "nail/test/ok/1.jpg"
        ),
        DataError,
        ("nail and nut", "several data sets", "nail."),
    ),
    (
        folders("rgb/1.jpg", "depth/1.png"),
        DataError,
        ("depth and rgb", "several sensors", "--label-kind numbers", "--subfolders classes"),
    ),
    (folders("a/1.jpg", "b/1.heic"), DataError, ("/b", ".heic", "convert them to PNG")),
    (
        folders("p0/p0_image/1.bmp", "p0/p0_roi/1.bmp", "p1/p1_image/1.bmp", "p1/p1_roi/1.bmp"),
        DataError,
        ("p0 and p1", "p0_image, p0_roi", "--subfolders classes", "--csv"),
    ),
    (
        folders(
            *("p0/n0/images/1.png", "p0/n0/masks/1.png", "p0/n1/images/1.png", "p0/n1/masks/1.png"),
            *("p1/n0/images/1.png", "p1/n0/masks/1.png", "p1/n1/images/1.png", "p1/n1/masks/1.png"),
        ),
        DataError,
        ("n0, n1", "one mask of each", "--csv"),
    ),
    (masks(("1.jpg", "1_fg.png"), ("1.png",)), DataError, ("1_fg.png beside 1.jpg", "elsewhere")),
    (folders("images/1.jpg", "table.csv"), DataError, ("images", "table.csv")),
    (folders("1.jpg", "table.csv"), DataError, ("class folders", "table.csv")),
    (lambda folder: read_folders(folder / "absent"), DataError, "absent"),
    (masks(("1.jpg", "2.jpg", "3.jpg"), ("1.png",)), DataError, ("2, 3", "2 images")),
    (masks(("1.jpg",), ("1.png", "4.png")), DataError, "4"),
    (masks(("1.jpg", "1.png"), ("1.png",)), DataError, ("1.jpg", "1.png")),
    (masks(("7.jpg",), ("7_gt_color.png", "7_gt_ids.png")), DataError, ("_gt_color", "--labels")),
    (
        masks(("7.jpg",), ("a/7.png", "b/7.png")),
        DataError,
        ("a/7", "folders a and b", "name the one", "y/a"),
    ),
    (masks(("7.jpg",), ("7.png", "viz/7.png")), DataError, ("viz/7", "a second mask", "y/viz")),
    (masks(("\u00e9.jpg", "e\u0301.jpg"), ("1.png",)), DataError, ("\u00e9.jpg", "NFC, NFD")),
    (masks(("1.jpg",), ("notes.txt",)), DataError, ("y", ".txt")),
    (masks((), ("1.png",)), DataError, "x"),
    (lambda folder: read_masks(touched(folder, "1.jpg"), folder), DataError, "of their own"),
    (other_parts, DataError, ("val is called val", "masks of val are in", "one part", "--csv")),
    # boxes
    *((call, DataError, named) for call, named in BOXES),
    (lambda: box_transforms(64, train=True, flip="vertical"), ConfigError, "'vertical'"),  # type: ignore[arg-type]
    (lambda: box_transforms(64, train=True, mean=None), ConfigError, "None"),
    (lambda: box_transforms(64, train=True, min_box_px=0.5), ConfigError, "min_box_px is 0.5"),
    (lambda: box_transforms(64, train=True, std=None), ConfigError, "None"),
    (lambda: box_transforms(None, train=True), ConfigError, "size is None"),  # type: ignore[arg-type]
    (lambda: box_transforms(0, train=True), ConfigError, "size is (0, 0)"),
    (lambda: box_transforms((32.5, 64), train=True), ConfigError, "32.5"),  # type: ignore[arg-type]
    (lambda: box_transforms(64, train=True, mean=(0, 0), std=(1, 1)), ConfigError, "(0.0, 0.0)"),
    (lambda: backbone_of(4).preprocess(Image.new("RGB", (8, 8))), DataError, ("Image", "4 chan")),
    (lambda: backbone_of(4).preprocess(np.zeros((8, 8, 3))), DataError, ("(8, 8, 3)", "width, 4)")),
    (lambda: backbone_of(4).preprocess("a.png"), DataError, ("a.png", "GeoTIFF")),
    (lambda: backbone_of(4).preprocess("a.tif"), DataError, ("a.tif", "no image")),
    (lambda: backbone_of(4).preprocess(torch.zeros(3, 8, 8)), DataError, "(3, 8, 8)"),
    (lambda: backbone_of(2).preprocess(np.ma.masked_all((8, 8, 2))), DataError, "128 masked"),
    (lambda: backbone_of(1).preprocess(np.eye(3)[None]), DataError, "grey"),
    (lambda: to_original(torch.ones(1, 5), (64, 224), (30, 40)), ShapeError, "(1, 5)"),
    (
        lambda: to_original(torch.ones(1, 4), (3, 64, 64), (30, 40)),
        ShapeError,
        "size is (3, 64, 64)",
    ),
    (lambda: to_original(torch.ones(1, 4), (64, 64), (0, 40)), ShapeError, "original is (0, 40)"),
    (lambda: collate_boxes([]), ShapeError, "empty"),
    (
        lambda: collate_boxes([(torch.zeros(3, 4, side), {}) for side in (5, 6)]),
        ShapeError,
        ("2 sizes", "(3, 4, 5), (3, 4, 6)", "box_transforms"),
    ),
    # masks
    *(
        (lambda own=own: DenseLabels(**own), ConfigError, named)
        for own, named in (
            ({"scale": 0}, "scale is 0"),
            ({"nodata": "255"}, "'255'"),
            ({"classes": 0}, "classes is 0"),
        )
    ),
    (cells("missing.png"), DataError, "missing.png"),
    (cells(np.zeros((0, 4))), DataError, "(0, 4)"),
    (cells(np.full((2, 2), np.inf)), DataError, "4"),
    (cells([np.zeros((16, 32)), np.zeros((32, 32))]), DataError, "1x1x2, 1x2x2"),
    (cells(np.zeros((16, 32)), image_sizes=[(32, 16)]), DataError, ("16x32", "32x16")),
    (cells(np.zeros((16, 32)), image_sizes=[]), DataError, ("1", "0")),
    (lambda: DenseLabels().indices(SEVEN, Preprocessing(1)), ConfigError, "classes="),
    (saved("m.png", Image.fromarray(SEVEN), 3), DataError, ("m.png", "5, 7", "2 pixels")),
    *(
        (
            lambda own=own: DenseLabels(classes=3).cells(np.full((2, 2), own), Preprocessing(1)),
            DataError,
            f"{own:g}",
        )
        for own in (0.5, -1)
    ),
    (saved("rgb.png", COLOURS, 3), DataError, ("rgb.png", "3 bands")),
    (saved("part.gif", GREY.point([9] * 256)), DataError, ("part.gif", "greys")),
    (saved("m.tga", GREY), DataError, ("m.tga", "TGA", "label.png")),
    (saved("m.pbm", GREY.convert("1")), DataError, ("m.pbm", "1 is black")),
    (cells("m.npy"), DataError, ("m.npy", "np.load")),
    (cells(np.zeros((8, 32, 32))), DataError, ("(8, 32, 32)", "8 labels", "image_sizes=[(8, 32)]")),
    (cells(np.zeros((3, 32, 32))), DataError, ("(3, 32, 32)", "moveaxis", "image_sizes=[(3, 32)]")),
    (cells(np.zeros((16, 16)), bands=3), DataError, ("label 0", "1 band", "bands is 3")),
    (cells(COLOURS.resize((16, 16), 0), bands=1), DataError, ("label 0", "bands is 1")),
    (of_two_scales, DataError, ("a.tif", "0.1", "b.tif", "0.2", "-unscale")),
    (saved("g.jpg", GREY), DataError, "JPEG"),
    (saved("inverted.tif", GREY, tiffinfo={262: 0}), DataError, "inverted.tif"),
    (lambda: count_classes([np.full((4, 6), 255, np.uint8)]), DataError, "255"),
    (lambda: count_classes([np.full((2, 2), 9)], nodata=[9]), DataError, "nodata"),
    (lambda: count_classes([np.eye(9) * 128]), DataError, ("0, 128", "grey levels", "0 128")),
    (lambda: count_classes([WHITE_CUT_OUT]), DataError, ("255 alone", "transparent", "'A'")),
    (lambda: count_classes([BLACK_CUT_OUT]), DataError, ("0 alone", "transparent", "'A'")),
    (lambda: count_classes([np.arange(99)[None]]), DataError, ("99, 0 ... 98", "--label-kind")),
    # images and their preparation
    *(
        (lambda image=image: read_pixels(image), DataError, named)
        for image, named in (
            ("missing.jpg", "missing.jpg"),
            ("", "folder"),
            (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
            (torch.zeros(4, 5, 5), "(4, 5, 5)"),
            (np.zeros(3, np.uint8), "(3,)"),
            (np.zeros((1, 4, 4, 3), np.uint8), "(1, 4, 4, 3)"),
            (np.full((4, 4, 3), 2.0), "2 ... 2"),
            (np.zeros((4, 4, 3), np.int64), "int64"),
            (np.ma.masked_equal(np.eye(4, dtype=np.uint8), 1), "4 masked"),
            (3, "int"),
            (Image.new("I", (2, 2)), "'I'"),
            (Image.new("F", (2, 2)), "'F'"),
            (np.full((4, 4), 9, np.uint16), ("at most 9", "bits=8")),
            (OFFSET, ("32768 to 32783", "bits=16")),
        )
    ),
    (lambda: read_pixels(OFFSET, bits=12), DataError, ("32783", "4095", "bits=12")),
    (lambda: read_pixels(OFFSET, bits=20), ConfigError, "20"),
    (picture("a.jpg", b"text"), DataError, ("a.jpg", "b'text'")),
    (picture("a.jpg", b""), DataError, ("a.jpg", "empty")),
    (infrared_as_alpha, DataError, ("four.tif", "20 ... 235", "ExtraSamples")),
    *(
        (lambda own=own: Preprocessing(**own), ConfigError, next(iter(own)))
        for own in (
            {"resize": "squash"},
            {"pad_to": "center"},
            {"mean": (1, 2)},
            {"std": (1, 2, 3, 4)},
            {"std": (1, 0, 1)},
            {"bits": 7},
            {"size": (0, 4)},
            {"size": (1.5, 2)},
            {"blur": 4},
            {"patch_size": 0},
        )
    ),
    (lambda: Preprocessing.from_record({}), ConfigError, "record"),
    (lambda: Preprocessing(2)([np.zeros((6, 8, 3)), np.zeros((4, 8, 3))]), DataError, "4x8, 6x8"),
    (lambda: Preprocessing(2)([]), DataError, "no images"),
    (lambda: Preprocessing(2)(3), DataError, "int"),
    (lambda: Preprocessing(2)({"a": GREY}), DataError, "dict"),
    (lambda: Preprocessing(2).changed(fitt="crop"), ConfigError, "fitt"),
    (lambda: Preprocessing(2, blur=9)(np.zeros((4, 8, 3))), DataError, ("9", "4")),
    (lambda: to_image_pixels(torch.zeros(4, 3), Preprocessing(), (16, 16)), ShapeError, "(4, 3)"),
    (lambda: to_image_pixels(POINT, Preprocessing(), (10,)), DataError, "(10,)"),
    (
        lambda folder: to_image_pixels(POINT, Preprocessing(), folder / "no.jpg"),
        DataError,
        "no.jpg",
    ),
    (lambda: to_prepared_pixels(torch.zeros(3), Preprocessing(), (16, 16)), ShapeError, "(3,)"),
    (lambda: to_prepared_pixels(POINT, Preprocessing(), (0, 16)), DataError, "(0, 16)"),
    # views and the pasture
    *(
        (lambda own=own: Views(own), ConfigError, named)
        for own, named in (
            ([{"brightnes": [0, 1]}], "brightnes"),
            ([View(gamma=(-1, 1))], "gamma"),
            ([{"hue": [0, 1]}], "hue"),
            ([], "length >= 1"),
            ([object()], "object"),
        )
    ),
    (lambda: Views.named("color21"), ConfigError, ("'color21'", "color20")),
    *(
        (lambda i=i: Views.named("color20").apply(torch.rand(3, 4, 4), i, "a"), DataError, str(i))
        for i in (-1, 20)
    ),
    (
        lambda: Views.named("none").apply(torch.zeros(3, 4, 4, dtype=torch.uint8), 0, "a"),
        DataError,
        ("torch.uint8", "floats"),
    ),
    (
        lambda: Views.named("none").apply(torch.full((3, 4, 4), 255.0), 0, "a"),
        DataError,
        ("255", "0 ... 1"),
    ),
    (
        lambda: Views.named("none").apply(torch.full((3, 4, 4), torch.nan), 0, "a"),
        DataError,
        ("nan", "0 ... 1"),
    ),
    # what is missing, too dark or too many
    (without_pandas, ImportError, "dinoneck[train]"),
    (mask_without_pycocotools, ImportError, "dinoneck[masks]"),
    (thousand_objects, DataError, ("0.png", "1000")),
    (
        lambda: read_pixels(np.full((4, 6), 4095, np.uint16)),
        DataError,
        ("4095", "65535"),
    ),
    (picture("large.png", header_of_png(20_000, 20_000)), DataError, ("large.png", "178956970")),
]
