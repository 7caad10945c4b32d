"""Images: the pixels that a model gets, upright, of every mode and depth; and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.case import Case
from tests.net.files import TURN, bands, coco, write_image, write_images, write_json, write_mask
from tests.net.layouts import ROW_0, ROW_1, shares

GREYS = [[0, 255, 128, 51], [10, 20, 30, 40]]
"""A picture of 2 x 4 pixels."""
COLOURS = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 99, 199]]]
RED, GREEN, BLUE = ([[value[band] for value in row] for row in COLOURS] for band in range(3))


def saved(name: str, values: Any, mode: str | None = None, **options: Any) -> Callable[[Path], Any]:
    """A writer of one picture."""

    def write(root: Path) -> None:
        picture = Image.fromarray(np.asarray(values))
        if mode is not None:
            picture = picture.convert(mode)
        picture.save(root / name, **options)

    return write


def pixels(name: str, **options: Any) -> Callable[[Path], Any]:
    return lambda root: readers.pixels(root, name, **options)[0]


def first_band(name: str, **options: Any) -> Callable[[Path], Any]:
    return lambda root: readers.pixels(root, name, **options)[0][0]


def turned(value: int) -> Any:
    exif = Image.Exif()
    exif[TURN] = value
    return exif


def uint8(values: Any) -> Any:
    return np.array(values, np.uint8)


def uint16(values: Any) -> Any:
    return np.array(values, np.uint16)


def turned_pair(root: Path) -> None:
    """A photo that viewers turn clockwise, and its mask with the same tag."""
    write_image(root / "images/0.jpg", (16, 24), turn=6)
    (root / "masks").mkdir()
    mask = np.zeros((16, 24), np.uint8)
    mask[8:] = 1  # the lower half as stored is the left half of the upright mask
    Image.fromarray(mask).save(root / "masks/0.png", exif=turned(6))


def turned_with_upright_mask(root: Path) -> None:
    write_image(root / "images/0.jpg", (16, 24), turn=6)
    write_mask(root / "masks/0.png", bands(1, 0, rows=24))


def turned_with_unturned_mask(root: Path) -> None:
    write_image(root / "images/0.jpg", (16, 24), turn=6)
    write_mask(root / "masks/0.png", bands(0, 1, 0))


def turned_boxes(width: int, height: int) -> Callable[[Path], None]:
    """A photo of 24 x 16 pixels as stored that viewers turn, and a box on the upright one."""

    def write(root: Path) -> None:
        write_image(root / "images/0.jpg", (16, 24), turn=6)
        box = {"image_id": 1, "category_id": 1, "bbox": [2, 4, 10, 18]}
        write_json(root / "o.json", coco({1: "0.jpg"}, [box], {1: "dog"}, (height, width)))

    return write


def mixed_sizes(root: Path) -> None:
    write_image(root / "a.png", (16, 16))
    write_image(root / "b.png", (24, 40))


def sizes(root: Path) -> Any:
    from dinoneck.data import Preprocessing, read_image_size

    preprocess = Preprocessing(patch_size=8, size=(16, 24))
    batch = preprocess([root / "a.png", root / "b.png"])
    return [list(batch.shape), *([*read_image_size(root / name)] for name in ("a.png", "b.png"))]


def learned_segmentation(root: Path) -> Any:
    data = {"images": "./images", "labels": "./masks", "classes": ["soil", "crop"]}
    return readers.training(root, data)["segmentation"]


UPRIGHT = [[[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3]]
"""The shares of an upright mask of 24 x 16 pixels whose left half is of class 1, by class."""
UPRIGHT_MASK = [[UPRIGHT[0][1], UPRIGHT[0][0]]]

CASES = [
    Case(
        "images: RGB",
        saved("a.png", uint8(COLOURS)),
        pixels("a.png"),
        [RED, GREEN, BLUE],
    ),
    Case("images: grey", saved("a.png", uint8(GREYS)), pixels("a.png"), [GREYS] * 3),
    Case(
        "images: a palette",
        saved("a.png", uint8(COLOURS), "P"),
        lambda root: [[round(value / 64) for value in row] for row in pixels("a.png")(root)[0]],
        [[4, 0], [0, 0]],
    ),
    Case(
        "images: CMYK",
        lambda root: Image.new("CMYK", (16, 8), (0, 0, 0, 0)).save(root / "a.jpg"),
        lambda root: np.unique(pixels("a.jpg")(root)).tolist(),
        [255.0],
    ),
    Case(
        "images: an opaque alpha band",
        saved("a.png", uint8(COLOURS), "RGBA"),
        pixels("a.png"),
        [RED, GREEN, BLUE],
    ),
    Case(
        "images: bilevel",
        saved("a.png", uint8([[0, 255], [255, 0]]), "1"),
        pixels("a.png"),
        [[[0, 255], [255, 0]]] * 3,
    ),
    Case("images: BMP", saved("a.bmp", uint8(COLOURS)), pixels("a.bmp"), [RED, GREEN, BLUE]),
    Case("images: GIF", saved("a.gif", uint8(GREYS)), first_band("a.gif"), GREYS),
    Case(
        "images: WebP",
        saved("a.webp", uint8(COLOURS), lossless=True),
        pixels("a.webp"),
        [RED, GREEN, BLUE],
    ),
    Case("images: TIFF", saved("a.tif", uint8(COLOURS)), pixels("a.tif"), [RED, GREEN, BLUE]),
    Case(
        "images: TIFF with LZW",
        saved("a.tif", uint8(COLOURS), compression="tiff_lzw"),
        pixels("a.tif"),
        [RED, GREEN, BLUE],
    ),
    Case(
        "images: 16 bits over the whole range",
        saved("a.png", uint16([[0, 65535], [32768, 257]])),
        first_band("a.png"),
        [[0.0, 255.0], [127.502, 1.0]],
    ),
    Case(
        "images: 12 of 16 bits, stated",
        saved("a.tif", uint16([[0, 4095], [2048, 1000]])),
        first_band("a.tif", bits=12),
        [[0.0, 255.0], [127.531, 62.271]],
    ),
    Case(
        "images: 12 of 16 bits, not stated, are read in the range of the type",
        saved("a.png", uint16([[0, 4095], [2048, 1000]])),
        first_band("a.png"),
        [[0.0, 15.934], [7.969, 3.891]],
        since="0.5",
    ),
    Case(
        "images: turned by EXIF",
        saved("a.png", uint8(GREYS), exif=turned(6)),
        first_band("a.png"),
        [[10, 0], [20, 255], [30, 128], [40, 51]],
    ),
    Case(
        "images: mirrored and turned by EXIF",
        saved("a.tif", uint8(GREYS), exif=turned(5)),
        first_band("a.tif"),
        [[0, 10], [255, 20], [128, 30], [51, 40]],
    ),
    Case(
        "images: floats between 0 and 1 are shares of white",
        saved("a.tif", np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)),
        first_band("a.tif"),
        [[0.0, 63.75], [127.5, 255.0]],
    ),
    Case(
        "images: floats beyond 1 are refused, as their range is not known",
        saved("a.tif", np.array([[0.0, 200.0]], np.float32)),
        pixels("a.tif"),
        DataError,
        names=("a.tif", "0 ... 200", "0 ... 1"),
    ),
    Case(
        "images: of mixed sizes, brought to one",
        mixed_sizes,
        sizes,
        [[2, 3, 16, 24], [16, 16], [24, 40]],
    ),
    Case(
        "images: a text that is called .png",
        lambda root: (root / "a.png").write_text("no picture"),
        pixels("a.png"),
        DataError,
        names=("a.png",),
    ),
    Case(
        "images: a file that was cut",
        lambda root: (
            write_image(root / "b.png"),
            (root / "a.png").write_bytes((root / "b.png").read_bytes()[:400]),
        ),
        pixels("a.png"),
        DataError,
        names=("a.png",),
    ),
    Case("exif: image and mask turn together", turned_pair, learned_segmentation, UPRIGHT_MASK),
    Case(
        "exif: an upright mask of a turned image",
        turned_with_upright_mask,
        learned_segmentation,
        UPRIGHT_MASK,
    ),
    Case(
        "exif: an unturned mask of a turned image",
        turned_with_unturned_mask,
        learned_segmentation,
        DataError,
        names=("0.png", "24x16", "16x24"),
    ),
    Case(
        "exif: boxes are those of the upright image",
        turned_boxes(16, 24),
        lambda root: [
            (reading := readers.boxes(root, "o.json", "images"))["boxes"],
            reading["sizes"],
        ],
        [[[["dog", 2.0, 4.0, 12.0, 22.0]]], [[24, 16]]],
    ),
    Case(
        "grey and colour images with masks in one set",
        lambda root: (
            write_image(root / "images/0.png", mode="L"),
            write_images(root / "images", ["1.jpg"]),
            write_mask(root / "masks/0.png", bands(0, 1)),
            write_mask(root / "masks/1.png", bands(1, 0)),
        ),
        learned_segmentation,
        [shares(ROW_0, ROW_1), shares(ROW_1, ROW_0)],
    ),
]
