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


def saved(name: str, image: Image.Image, classes: int | None = None, **options: Any) -> Call:
    def call(folder: Path) -> Any:
        image.save(folder / name, **options)
        return DenseLabels(classes=classes).cells(folder / name, Preprocessing(1))

    return call


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
MISFITS: list[
    tuple[list[str], str | tuple[str, ...]]
] = [  # cells of a column of numbers or words, and the one that is named
    (["1", "2", "wheat"], ("'wheat'", "2.jpg", "classes=")),
    (["oats", "3", "wheat"], ("'oats'", "0.jpg")),
    (["1,500", "2,500", "3"], ("'1,500'", "--decimal ,")),
    (["1,500", "2,500", "NA"], ("'1,500'", "--decimal ,")),
    (["1", "2", "inf"], "'inf'"),
    (["1", "1_000", "2"], "'1_000'"),
    (["1", "2 %", "3"], "'2 %'"),
    (["", "", ""], "all cells of 'y' are empty"),
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
    (table(GOOD.replace("crop", "corp", 1)), DataError, ("'crop'", "'corp'")),
    (table(GOOD, ("a.jpg", "b.jpg")), DataError, ("1 of 3", "'c.jpg'")),
    (table(GOOD.replace("b.jpg", "a.jpg")), DataError, "'a.jpg'"),
    (
        table(GOOD.replace("b.jpg", "d/../a.jpg"), ("a.jpg", "c.jpg", "d/b.jpg")),
        DataError,
        "'d/../a.jpg'",
    ),
    (table(GOOD.replace("b.jpg", " ")), DataError, "line 3"),
    (table("image,crop\n"), DataError, "t.csv"),
    (table(GOOD + "c.jpg,1\n"), DataError, ("line 5", "2 cells", "5")),
    (table(GOOD + "\n" + 'd.jpg,"1,0,f2,1\n'), DataError, "line 6"),
    (table("image;crop\na.jpg;1;5\n"), DataError, ("line 2", "';'")),
    (table(GOOD.replace("weed", "crop")), DataError, "'crop'"),
    (table(GOOD.replace("image", "file")), DataError, ("'image'", "image_column")),
    (table(GOOD.encode("latin-1").replace(b"f2", b"\xe4")), DataError, ("UTF-8", "line 4")),
    (table(GOOD.encode("utf-16")[:-1]), DataError, "UTF-16"),
    (table(""), DataError, "'image'"),
    (table(GOOD, decimal=","), DataError, ("'0.5'", "'a.jpg'")),
    (table(GOOD, targets=["crop", "crop"]), DataError, "'crop'"),
    (table(GOOD, auxiliary="crop"), DataError, "'crop'"),
    (column("u", "v", classes={"y": "uv"}), DataError, "'uv'"),
    (column("u", "v", classes={"y": ["u", "u"]}), DataError, "'u'"),
    (column("u", "v", classes={"y": {"u", "v"}}), DataError, ("'y'", "a list")),
    (column("5 g", "6 g", numbers="y"), DataError, "'5 g'"),
    (column("NA", "", numbers="y"), DataError, "'y' holds no number"),
    (column("1", "2", "x", indicators="y"), DataError, ("'2'", "true")),
    (column("a;none", "b", multilabel={"y": ()}), DataError, "'a;none'"),
    (column(";", "b", multilabel={"y": ()}), DataError, "';'"),
    (column("none", "", multilabel={"y": ()}), DataError, "none in every row"),
    (column("a;c", "b", multilabel={"y": ["a", "b"]}), DataError, ("'a;c'", "a, b")),
    (column("u", "v", multilabel={"y": "uv"}), DataError, "'uv'"),
    (table(GOOD, group="site"), DataError, "'site'"),
    (table(GOOD.replace("f1,1", ",1"), group="field"), DataError, ("'field'", "a.jpg")),
    (table(GOOD, targets=[]), DataError, "target"),
    (table("image,images\na.jpg,1\n", targets="images"), DataError, "'images'"),
    (table(GOOD, classes={"site": ("p", "q")}), DataError, "'site'"),
    (table("image,mask\na,\nb,\n", targets=(), labels="mask"), DataError, "mask"),
    *(
        (column("oats", "wheat", classes={"y": names}), DataError, named)
        for names, named in ((("oats", "rye"), "'wheat'"), (("oats", ""), "y"))
    ),
    (lambda folder: read_table(folder / "no.csv", targets="y"), DataError, "no.csv"),
    (lambda folder: read_table(FRAME, folder / "no", "y"), DataError, "no"),
    (lambda: read_table({"image": ["a"]}, None, "y"), DataError, "dict"),
    (lambda: read_table(FRAME.drop(columns="image"), targets="y"), DataError, "'image'"),
    # folders
    (folders("a/1.jpg", "b/1.jpg", "2.jpg"), DataError, "2.jpg"),
    (folders("a/1.jpg", "b/notes.txt"), DataError, "a"),
    (folders("train/a/1.jpg", "train/b/1.jpg", "Val/2.jpg"), DataError, "Val (images)"),
    (folders("train/a/1.jpg", "test/a/1.jpg"), DataError, ("train", "test", "--subfolders folds")),
    (folders("images/1.jpg", "masks/1.jpg"), DataError, "images"),
    (folders("images/1.jpg", "masks/1.png", "gt/1.png"), DataError, ("masks", "gt", "--labels")),
    (folders("p/images/1.jpg", "p/masks/1.png"), DataError, ("p holds", "--subfolders folds")),
    (folders("1.jpg", "table.csv"), DataError, "class folders"),
    (lambda folder: read_folders(folder / "absent"), DataError, "absent"),
    (masks(("1.jpg", "2.jpg", "3.jpg"), ("1.png",)), DataError, ("2.jpg, 3.jpg", "2 images")),
    (masks(("1.jpg",), ("1.png", "4.png")), DataError, "4"),
    (masks(("1.jpg", "1.png"), ("1.png",)), DataError, ("1.jpg", "1.png")),
    (masks(("7.jpg",), ("7_gt_color.png", "7_gt_ids.png")), DataError, "--mask-suffix"),
    (masks(("\u00e9.jpg", "e\u0301.jpg"), ("1.png",)), DataError, "\u00e9.jpg"),
    (masks(("1.jpg",), ("notes.txt",)), DataError, "y"),
    (masks((), ("1.png",)), DataError, "x"),
    (lambda folder: read_masks(touched(folder, "1.jpg"), folder), DataError, "--mask-suffix"),
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
    (lambda: backbone_of(4).preprocess("a.png"), DataError, ("a.png", "no image")),
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
    (saved("m.png", Image.fromarray(SEVEN), 3), DataError, ("m.png", "holds 7", "1 pixel")),
    *(
        (
            lambda own=own: DenseLabels(classes=3).cells(np.full((2, 2), own), Preprocessing(1)),
            DataError,
            f"{own:g}",
        )
        for own in (0.5, -1)
    ),
    (saved("rgb.png", COLOURS, 3), DataError, ("rgb.png", "3 bands", "--class-colors")),
    (saved("m.tga", GREY), DataError, ("m.tga", "TGA")),
    (saved("m.pbm", GREY.convert("1")), DataError, ("m.pbm", "PPM")),
    (cells("m.npy"), DataError, ("m.npy", "no label")),
    (cells(np.zeros((16, 16)), bands=3), DataError, ("label 0", "1 band", "bands is 3")),
    (cells(COLOURS.resize((16, 16), 0), bands=1), DataError, ("label 0", "bands is 1")),
    (saved("g.jpg", GREY), DataError, "JPEG"),
    (lambda: count_classes([np.full((4, 6), 255, np.uint8)]), DataError, "255"),
    (lambda: count_classes([np.full((2, 2), 9)], nodata=[9]), DataError, "nodata"),
    (lambda: count_classes([np.array([[0, 999]])]), DataError, ("999", "--label-kind")),
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
            (Image.new("I", (2, 2)), "int32"),
            (Image.new("F", (2, 2), 2.0), "2 ... 2"),
        )
    ),
    (lambda: read_pixels(OFFSET, bits=12), DataError, ("32783", "4095", "bits=12")),
    (lambda: read_pixels(OFFSET, bits=20), ConfigError, "20"),
    (picture("a.jpg", b"text"), DataError, ("a.jpg", "b'text'")),
    (picture("a.jpg", b""), DataError, ("a.jpg", "0 bytes")),
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
    (picture("large.png", header_of_png(20_000, 20_000)), DataError, ("large.png", "178956970")),
]
