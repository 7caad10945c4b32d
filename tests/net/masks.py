"""Masks: indices, palettes, colours, numbers, normals; which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.case import Case
from tests.net.files import bands, write_image, write_images, write_mask, write_rows, write_text
from tests.net.layouts import ROW_0, ROW_1, UNKNOWN, shares

NONE = [0.0, 0.0]
PALETTE = [0, 0, 0, 200, 0, 0, 0, 200, 0]
SOIL, CROP = (120, 80, 40), (20, 220, 30)


def pairs(*masks: Any, **options: Any) -> Callable[[Path], None]:
    """A writer of ``images/`` and ``masks/`` with one pair for each mask."""

    def write(root: Path) -> None:
        for i, values in enumerate(masks):
            write_image(root / "images" / f"{i}.png")
            write_mask(root / "masks" / f"{i}.png", values, **options)

    return write


def learned(**data: Any) -> Callable[[Path], Any]:
    """A reader of what a run learns of ``images/`` and ``masks/``: the classes, and the targets."""

    def read(root: Path) -> Any:
        reading = readers.training(root, {"images": "./images", "labels": "./masks", **data})
        name = "segmentation" if "classes of segmentation" in reading else "masks"
        return reading.get(f"classes of {name}") or None, reading[name]

    return read


def colours(*bands_of_colours: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """A mask of vertical bands of colours."""
    return np.repeat(np.array(bands_of_colours, np.uint8), 8, axis=0)[None].repeat(16, axis=0)


def with_colour_table(root: Path) -> None:
    pairs(colours(SOIL, CROP), colours(CROP, CROP))(root)
    write_text(root / "classes.csv", "name,r,g,b\nsoil,120,80,40\ncrop,20,220,30\n")


def palettes_of_two_orders(root: Path) -> None:
    pairs(bands(0, 1), palette=PALETTE)(root)
    write_image(root / "images/1.png")
    write_mask(root / "masks/1.png", bands(0, 1), palette=[200, 0, 0, 0, 0, 0, 0, 200, 0])


def transparent_palette(root: Path) -> None:
    write_image(root / "images/0.png")
    write_mask(root / "masks/0.png", bands(0, 1), palette=PALETTE)
    picture = Image.open(root / "masks/0.png")
    picture.load()
    picture.save(root / "masks/0.png", transparency=0)


def grey_with_alpha(alpha: int, root: Path) -> None:
    """A mask of 0 and 1 whose first band is more or less transparent."""
    (root / "masks").mkdir()
    values = np.stack([bands(0, 1), bands(alpha, 255)], axis=-1).astype(np.uint8)
    Image.fromarray(values, "LA").save(root / "masks/0.png")


def geo_tiff(root: Path) -> None:
    import rasterio

    (root / "masks").mkdir()
    write_image(root / "images/0.png")
    profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 1, "dtype": "float32"}
    profile |= {"nodata": -9999.0, "crs": "EPSG:32632"}
    profile["transform"] = rasterio.Affine(0.1, 0, 500000, 0, -0.1, 5000000)
    with rasterio.open(root / "masks/0.tif", "w", **profile) as file:
        file.write(bands(0.25, -9999).astype(np.float32), 1)


def arrays(root: Path) -> None:
    write_image(root / "images/0.png")
    (root / "masks").mkdir()
    np.save(root / "masks/0.npy", bands(0, 2).astype(np.int64))


def normals(root: Path) -> None:
    write_image(root / "images/0.png")
    (root / "masks").mkdir()
    vectors = np.zeros((16, 16, 3), np.float32)
    vectors[..., 2] = 1
    np.save(root / "masks/0.npy", vectors)


def float_tiff(root: Path) -> None:
    write_image(root / "images/0.png")
    write_mask(root / "masks/0.tif", bands(0.5, 2.25), dtype=np.float32)


def files(*names: str) -> Callable[[Path], None]:
    """A writer of images, and of masks below a folder that is called ``masks``."""

    def write(root: Path) -> None:
        for i, name in enumerate(names):
            if "masks" in Path(name).parts:
                write_mask(root / name, bands(0, i % 2))
            else:
                write_image(root / name)

    return write


def found(**options: Any) -> Callable[[Path], Mapping[str, str]]:
    """A reader of ``images/`` and ``masks/``: image -> its mask."""

    def read(root: Path) -> Mapping[str, str]:
        reading = readers.masks(root, "images", "masks", **options)
        return dict(zip(reading["images"], reading["labels"], strict=True))

    return read


VALUES = [
    Case(
        "masks: indices",
        pairs(bands(0, 1), bands(1, 2)),
        learned(),
        (["0", "1", "2"], [shares(ROW_0, ROW_1, NONE), shares(NONE, ROW_0, ROW_1)]),
    ),
    Case(
        "masks: a palette",
        pairs(bands(0, 1), bands(1, 2), palette=PALETTE),
        learned(classes=["soil", "crop", "weed"]),
        (["soil", "crop", "weed"], [shares(ROW_0, ROW_1, NONE), shares(NONE, ROW_0, ROW_1)]),
    ),
    Case(
        "masks: palettes that give an index two colours",
        palettes_of_two_orders,
        learned(),
        DataError,
        names=("1.png",),
    ),
    Case(
        "masks: 0 and 255 are two classes",
        pairs(bands(0, 255), bands(255, 0)),
        learned(classes=["soil", "crop"]),
        (["soil", "crop"], [shares(ROW_0, ROW_1), shares(ROW_1, ROW_0)]),
    ),
    Case(
        "masks: 255 beside 0 and 1 is unlabelled",
        pairs(bands(0, 255), bands(255, 1)),
        learned(classes=["soil", "crop"]),
        (
            ["soil", "crop"],
            [shares([1.0, UNKNOWN], [0.0, UNKNOWN]), shares([UNKNOWN, 0.0], [UNKNOWN, 1.0])],
        ),
        since="0.5",
    ),
    Case(
        "masks: 255 is decided over all masks of the run",
        pairs(bands(0, 255), bands(0, 1), bands(2, 2)),
        learned(),
        (
            ["0", "1", "2"],
            [
                shares([1.0, UNKNOWN], [0.0, UNKNOWN], [0.0, UNKNOWN]),
                shares(ROW_0, ROW_1, NONE),
                shares(NONE, NONE, [1.0, 1.0]),
            ],
        ),
        since="0.5",
    ),
    Case(
        "masks: 255 is a class where it is named",
        pairs(bands(0, 255), bands(255, 1)),
        learned(class_values=[0, 1, 255], classes=["soil", "crop", "sky"]),
        (["soil", "crop", "sky"], [shares(ROW_0, NONE, ROW_1), shares(NONE, ROW_1, ROW_0)]),
    ),
    Case(
        "masks: 255 named as nodata",
        pairs(bands(0, 255), bands(0, 1)),
        learned(nodata=[255], classes=["soil", "crop"]),
        (
            ["soil", "crop"],
            [shares([1.0, UNKNOWN], [0.0, UNKNOWN]), shares(ROW_0, ROW_1)],
        ),
    ),
    Case(
        "masks: a value outside the classes",
        pairs(bands(0, 1), bands(0, 7)),
        learned(classes=["soil", "crop"]),
        DataError,
        names=("7",),
    ),
    Case(
        "masks: colours, named in the order of the classes",
        pairs(colours(SOIL, CROP), colours(CROP, CROP)),
        learned(classes=["soil", "crop"], class_colors=["120,80,40", "20,220,30"]),
        (["soil", "crop"], [shares(ROW_0, ROW_1), shares(NONE, [1.0, 1.0])]),
        since="0.5",
    ),
    Case(
        "masks: colours of a table name,r,g,b",
        with_colour_table,
        lambda root: learned(classes=[str(root / "classes.csv")])(root),
        (["soil", "crop"], [shares(ROW_0, ROW_1), shares(NONE, [1.0, 1.0])]),
        since="0.5",
    ),
    Case(
        "masks: a colour without a class",
        pairs(colours(SOIL, CROP), colours(CROP, (1, 2, 3))),
        learned(classes=["soil", "crop"], class_colors=["120,80,40", "20,220,30"]),
        DataError,
        names=("1.png", "1,2,3"),
        since="0.5",
    ),
    Case(
        "masks: a transparent colour of a palette is an index as the others",
        transparent_palette,
        lambda root: readers.values(root, "masks/0.png", classes=2),
        [shares(ROW_0, ROW_1)],
    ),
    Case(
        "masks: transparent pixels are unlabelled",
        partial(grey_with_alpha, 0),
        lambda root: readers.values(root, "masks/0.png", classes=2),
        [shares([UNKNOWN, 0.0], [UNKNOWN, 1.0])],
    ),
    Case(
        "masks: half transparent pixels",
        partial(grey_with_alpha, 128),
        lambda root: readers.values(root, "masks/0.png", classes=2),
        DataError,
        names=("0.png", "128"),
    ),
    Case(
        "masks: of 16 bits",
        pairs(bands(0, 1000), dtype=np.uint16),
        learned(class_values=[0, 1000]),
        (["0", "1000"], [shares(ROW_0, ROW_1)]),
    ),
    Case(
        "masks: .npy",
        arrays,
        lambda root: readers.values(root, "masks/0.npy", classes=3),
        [shares(ROW_0, NONE, ROW_1)],
        since="0.5",
    ),
    Case(
        "masks: of another size than the image",
        lambda root: (
            write_image(root / "images/0.png"),
            write_mask(root / "masks/0.png", bands(0, 1, 0)),
        ),
        learned(classes=["soil", "crop"]),
        DataError,
        names=("0.png", "16x16", "16x24"),
    ),
    Case(
        "numbers per pixel: 8 bits with a scale, an offset and nodata",
        pairs(bands(10, 255)),
        learned(label_kind="numbers", scale=0.1, offset=1.0, nodata=[255]),
        (None, [[[[2.0, UNKNOWN]] * 2]]),
    ),
    Case(
        "numbers per pixel: 16 bits, as they are stored",
        pairs(bands(10, 40000), dtype=np.uint16),
        learned(label_kind="numbers"),
        (None, [[[[10.0, 40000.0]] * 2]]),
    ),
    Case(
        "numbers per pixel: 8 bits, 255 is a number",
        pairs(bands(10, 255)),
        learned(label_kind="numbers"),
        (None, [[[[10.0, 255.0]] * 2]]),
    ),
    Case(
        "numbers per pixel: floats",
        float_tiff,
        learned(label_kind="numbers"),
        (None, [[[[0.5, 2.25]] * 2]]),
    ),
    Case(
        "numbers per pixel: the nodata tag of a GeoTIFF",
        geo_tiff,
        learned(label_kind="numbers"),
        (None, [[[[0.25, UNKNOWN]] * 2]]),
        needs="rasterio",
    ),
]

PAIRS = [
    Case(
        "pairs: by relative path, whatever the suffix",
        files("images/x/a.jpg", "images/b.jpg", "masks/x/a.png", "masks/b.png"),
        found(),
        {"images/b.jpg": "masks/b.png", "images/x/a.jpg": "masks/x/a.png"},
    ),
    Case(
        "pairs: an ending that all masks share",
        files("images/a.jpg", "images/b.jpg", "masks/a_seg.png", "masks/b_seg.png"),
        found(),
        {"images/a.jpg": "masks/a_seg.png", "images/b.jpg": "masks/b_seg.png"},
    ),
    Case(
        "pairs: a beginning that all images share, another one of the masks",
        files("images/img_1.jpg", "images/img_2.jpg", "masks/mask_1.png", "masks/mask_2.png"),
        found(),
        {"images/img_1.jpg": "masks/mask_1.png", "images/img_2.jpg": "masks/mask_2.png"},
    ),
    Case(
        "pairs: an image without a mask",
        files("images/a.jpg", "images/b.jpg", "masks/a.png"),
        found(),
        DataError,
        names=("b.jpg",),
        since="0.5",
    ),
    Case(
        "pairs: a mask without an image",
        files("images/a.jpg", "masks/a.png", "masks/b.png"),
        found(),
        DataError,
        names=("b.png",),
        since="0.5",
    ),
    Case(
        "pairs: what has no partner is left out where that is said",
        files("images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png"),
        found(skip_unpaired=True),
        {"images/a.jpg": "masks/a.png"},
        since="0.5",
    ),
    Case(
        "pairs: one of several files of an image, by its ending",
        files("images/a.jpg", "masks/a_ids.png", "masks/a_view.png"),
        found(mask_suffix="_ids"),
        {"images/a.jpg": "masks/a_ids.png"},
        since="0.5",
    ),
    Case(
        "pairs: two masks of one name",
        lambda root: (
            files("images/a.jpg", "masks/a.png")(root),
            write_mask(root / "masks/a.tif", bands(0, 1)),
        ),
        found(),
        DataError,
        names=("a.png", "a.tif"),
    ),
    Case(
        "parts: images and masks below train and val, files of equal names",
        files(
            "d/train/images/1.png",
            "d/train/masks/1.png",
            "d/val/images/1.png",
            "d/val/masks/1.png",
        ),
        lambda root: {
            key: value
            for key, value in readers.training(
                root, {"images": "./d", "classes": ["soil", "crop"]}
            ).items()
            if key in ("ids", "folds", "held out")
        },
        {
            "ids": ["train/images/1.png", "val/images/1.png"],
            "folds": ["train", "val"],
            "held out": "val",
        },
    ),
    Case(
        "parts: train and val below images and masks that are named, with a test that is left out",
        files(
            "i/train/1.png",
            "i/val/1.png",
            "i/test/1.png",
            "masks/train/1.png",
            "masks/val/1.png",
            "masks/test/1.png",
        ),
        lambda root: {
            key: value
            for key, value in readers.training(
                root, {"images": "./i", "labels": "./masks", "classes": ["soil", "crop"]}
            ).items()
            if key in ("ids", "folds", "held out")
        },
        {"ids": ["train/1.png", "val/1.png"], "folds": ["train", "val"], "held out": "val"},
        since="0.5",
    ),
    Case(
        "a table of images and masks in folders of equal names",
        lambda root: (
            write_rows(
                root / "t.csv",
                [("image", "mask"), ("i/1.png", "m/1.png"), ("i/2.png", "m/2.png")],
                images=False,
            ),
            write_images(root / "i", ["1.png", "2.png"]),
            write_mask(root / "m/1.png", bands(0, 1)),
            write_mask(root / "m/2.png", bands(1, 0)),
        ),
        lambda root: readers.training(root, {"csv": "./t.csv", "labels": "mask"})["segmentation"],
        [shares(ROW_0, ROW_1), shares(ROW_1, ROW_0)],
    ),
    Case(
        "a mask that is the image",
        lambda root: write_rows(
            root / "t.csv", [("image", "mask"), ("1.png", "1.png"), ("2.png", "2.png")]
        ),
        lambda root: readers.table(root, "t.csv", [], labels="mask"),
        DataError,
        names=("1.png",),
    ),
]

CASES = [*VALUES, *PAIRS]
