"""Boxes, instances and segments: the forms of COCO's JSON, what the format forbids, and what is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.case import Case
from tests.net.files import coco, write_image, write_images, write_json, write_mask, write_text
from tests.net.layouts import coco_panoptic, roboflow, ultralytics, voc_boxes

DOG = ["dog", 2.0, 4.0, 12.0, 16.0]
BOX: dict[str, Any] = {"image_id": 1, "category_id": 1, "bbox": [2, 4, 10, 12]}


def boxes(
    *items: dict[str, Any],
    images: dict[Any, str] | None = None,
    files: tuple[str, ...] = (),
    names: dict[Any, str] | None = None,
    **changes: Any,
) -> Callable[[Path], None]:
    """A writer of ``o.json`` and its images; ``changes`` replace the values of all its images."""
    images = images or {1: "a.jpg"}

    def write(root: Path) -> None:
        content = coco(images, items, names or {1: "dog"})
        for image in content["images"]:
            image.update(changes)
        write_json(root / "o.json", content)
        write_images(root / "i", files or images.values(), (32, 32))

    return write


def changed(part: str, **changes: Any) -> Callable[[Path], None]:
    """A writer of one box, with changes of the first entry of a part; None removes a key."""

    def write(root: Path) -> None:
        boxes(BOX)(root)
        content = json.loads((root / "o.json").read_text())
        for key, value in changes.items():
            content[part][0][key] = value
            if value is None:
                del content[part][0][key]
        write_json(root / "o.json", content)

    return write


def read(root: Path, **options: Any) -> Any:
    return readers.boxes(root, "o.json", "i", **options)["boxes"]


def first_image(root: Path) -> Any:
    """Read the pixels of an image too, which its sides are compared with."""
    from dinoneck.data import BoxImages

    return BoxImages(root / "o.json", root / "i")[0]


def read_all(root: Path) -> Any:
    reading = readers.boxes(root, "o.json", "i")
    return {key: reading[key] for key in ("ids", "classes", "boxes")}


def pixels(root: Path) -> Any:
    return readers.object_pixels(root, "o.json", "i")


def runs(counts: Any, size: tuple[int, int] = (32, 32)) -> Any:
    return boxes({**BOX, "segmentation": {"counts": counts, "size": list(size)}})


# a mask of columns 2 ... 11 and rows 4 ... 15: 2 * 32 + 4 zeros, then 12 ones and 20 zeros a column
RUNS = [68, *([12, 20] * 9), 12, 32 * 32 - 68 - 32 * 9 - 12]
BOX_PIXELS = [{"0": 1024 - 120, "1000": 120}]


def panoptic_changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        coco_panoptic(root)
        content = json.loads((root / "panoptic_val2017.json").read_text())
        change(content)
        write_json(root / "panoptic_val2017.json", content)

    return write


def read_panoptic(root: Path) -> Any:
    return readers.panoptic(root, "panoptic_val2017.json", "panoptic_val2017", "val2017")["pixels"]


def png_of_another_size(root: Path) -> None:
    coco_panoptic(root)
    write_mask(root / "panoptic_val2017/000000000009.png", np.zeros((8, 16, 3)))


def opaque(root: Path) -> None:
    coco_panoptic(root)
    file = root / "panoptic_val2017/000000000009.png"
    Image.open(file).convert("RGBA").save(file)


def yolo(text: str, lines: str = "0 0.5 0.5 0.25 0.5\n") -> Callable[[Path], None]:
    """A writer of ``data.yaml`` with one image of 40 x 20 pixels and its label file."""

    def write(root: Path) -> None:
        write_image(root / "images/a.jpg", (20, 40))
        write_text(root / "labels/a.txt", lines)
        write_text(root / "data.yaml", text)

    return write


def read_yolo(root: Path) -> Any:
    return readers.boxes(root, "data.yaml")["boxes"]


YAML = "train: images\nval: images\nnames: [cat, dog]\n"
YOLO_BOX = ["cat", 15.0, 5.0, 25.0, 15.0]


def without_label_files(root: Path) -> None:
    yolo(YAML)(root)
    (root / "labels/a.txt").unlink()


def label_without_image(root: Path) -> None:
    yolo(YAML)(root)
    write_text(root / "labels/b.txt", "0 0.5 0.5 0.25 0.5\n")


def folder_that_is_not_there(root: Path) -> None:
    ultralytics(root)
    write_text(root / "coco8/data.yaml", "train: imgs/train\nval: imgs/val\nnames: [a, b]\n")


def list_of_images(root: Path) -> None:
    yolo("train: train.txt\nval: train.txt\nnames: [cat, dog]\n")(root)
    write_text(root / "train.txt", "./images/a.jpg\n")


def voc_with_parts(root: Path) -> None:
    voc_boxes(root)
    write_text(root / "VOC2007/ImageSets/Main/train.txt", "000005\n")
    write_text(root / "VOC2007/ImageSets/Main/val.txt", "000007\n")


def voc_with_a_missing_image(root: Path) -> None:
    voc_boxes(root)
    (root / "VOC2007/JPEGImages/000007.jpg").unlink()


COCO = [
    Case("coco: one box", boxes(BOX), read, [[DOG]]),
    Case(
        "coco: ids of text, not in order, an empty image and an unused category",
        boxes(
            {"image_id": "b", "category_id": "x", "bbox": [2, 4, 10, 12]},
            {"image_id": "a", "category_id": "z", "bbox": [0, 0, 5, 6]},
            images={"b": "b.jpg", "c": "c.jpg", "a": "a.jpg"},
            names={"z": "cat", "y": "cow", "x": "dog"},
        ),
        read_all,
        {
            "ids": ["b", "c", "a"],
            "classes": ["dog", "cow", "cat"],  # in the order of their ids
            "boxes": [[DOG], [], [["cat", 0.0, 0.0, 5.0, 6.0]]],
        },
    ),
    Case(
        "coco: an id that is a number here and text there",
        changed("annotations", image_id="1"),
        read,
        [[DOG]],
    ),
    Case("coco: an id of 1.0", changed("annotations", image_id=1.0), read, [[DOG]]),
    Case("coco: a category of 1.0", changed("annotations", category_id=1.0), read, [[DOG]]),
    Case("coco: no ids of annotations", changed("annotations", id=None), read, [[DOG]]),
    Case("coco: iscrowd false", changed("annotations", iscrowd=False), read, [[DOG]]),
    Case(
        "coco: no iscrowd and no area",
        changed("annotations", iscrowd=None, area=None),
        read,
        [[DOG]],
    ),
    Case("coco: sides of images are null", boxes(BOX, width=None, height=None), read, [[DOG]]),
    Case("coco: sides of images are 32.0", boxes(BOX, width=32.0, height=32.0), read, [[DOG]]),
    Case(
        "coco: an absolute path of another machine",
        changed("images", file_name="/data/project/images/a.jpg"),
        read,
        [[DOG]],
    ),
    Case(
        "coco: a backslash in the name",
        boxes(BOX, images={1: "x\\a.jpg"}, files=("x/a.jpg",)),
        read,
        [[DOG]],
    ),
    Case("coco: a suffix in upper case", changed("images", file_name="a.JPG"), read, [[DOG]]),
    Case(
        "coco: %20 in the name",
        boxes(BOX, images={1: "my%20a.jpg"}, files=("my a.jpg",)),
        read,
        [[DOG]],
    ),
    Case(
        "coco: a crowd region is no object",
        boxes(BOX, {**BOX, "bbox": [20, 20, 4, 4], "iscrowd": 1}),
        read,
        [[DOG]],
    ),
    Case(
        "coco: chosen classes, in their order",
        boxes(
            BOX,
            {**BOX, "category_id": 2, "bbox": [20, 20, 4, 4]},
            {**BOX, "category_id": 3, "bbox": [24, 2, 4, 4]},
            names={1: "dog", 2: "cat", 3: "cow"},
        ),
        partial(read, classes=["cow", "dog"]),
        [[DOG, ["cow", 24.0, 2.0, 28.0, 6.0]]],
    ),
    Case(
        "coco: a box over the edge is cut",
        boxes(BOX, {**BOX, "bbox": [28, 28, 5, 5]}, {**BOX, "bbox": [10, 20, 3, 3]}),
        read,
        [[DOG, ["dog", 28.0, 28.0, 32.0, 32.0], ["dog", 10.0, 20.0, 13.0, 23.0]]],
    ),
    Case(
        "coco: a box given twice is one",
        boxes(BOX, BOX, {**BOX, "bbox": [20, 20, 4, 4]}),
        read,
        [[DOG, ["dog", 20.0, 20.0, 24.0, 24.0]]],
        since="0.5",
    ),
    Case(
        "coco: an image id that is not listed",
        boxes(BOX, {**BOX, "image_id": 5}),
        read,
        DataError,
        names=("o.json", "5"),
        since="0.5",
    ),
    Case(
        "coco: a category id that is not listed",
        boxes(BOX, {**BOX, "category_id": 5}),
        read,
        DataError,
        names=("o.json", "5"),
    ),
    Case(
        "coco: two images of one id",
        lambda root: (
            boxes(BOX, images={1: "a.jpg", 2: "b.jpg"})(root),
            (root / "o.json").write_text(
                (root / "o.json").read_text().replace('"id": 2, "file', '"id": 1, "file')
            ),
        ),
        read,
        DataError,
        names=("o.json", "1"),
    ),
    Case(
        "coco: a box of a negative width",
        boxes(BOX, {**BOX, "bbox": [20, 20, -4, 4]}),
        read,
        DataError,
        names=("-4",),
    ),
    Case(
        "coco: a box of three numbers",
        boxes(BOX, {**BOX, "bbox": [20, 20, 4, 4]}, {**BOX, "bbox": [20, 20, 4, 4]}),
        lambda root: (
            (root / "o.json").write_text(
                (root / "o.json").read_text().replace("[20, 20, 4, 4]", "[20, 20, 4]")
            ),
            read(root),
        ),
        DataError,
        names=("bbox",),
    ),
    Case(
        "coco: sides that are not those of the image",
        boxes(BOX, width=64, height=48),
        first_image,
        DataError,
        names=("a.jpg", "64", "48", "32"),
    ),
    Case(
        "coco: an image that is not there",
        boxes(BOX, images={1: "a.jpg", 2: "b.jpg"}, files=("a.jpg",)),
        read,
        DataError,
        names=("b.jpg",),
    ),
]
MASKS = [
    Case("coco: run lengths", runs(RUNS), pixels, BOX_PIXELS),
    Case(
        "coco: run lengths that do not add up to the size",
        runs([*RUNS[:-1], RUNS[-1] - 1]),
        pixels,
        DataError,
        names=("1023", "1024"),
    ),
    Case(
        "coco: run lengths of another size",
        runs(RUNS, (16, 64)),
        pixels,
        DataError,
        names=("16",),
    ),
    Case(
        "coco: an object of two polygons",
        boxes(
            {
                **BOX,
                "bbox": [2, 4, 20, 12],
                "segmentation": [[2, 4, 6, 4, 6, 16, 2, 16], [18, 4, 22, 4, 22, 16, 18, 16]],
            }
        ),
        pixels,
        [{"0": 1024 - 96, "1000": 96}],
    ),
    Case(
        "coco: an empty segmentation beside polygons is its box",
        boxes(
            {**BOX, "segmentation": []},
            {**BOX, "bbox": [20, 20, 4, 4], "segmentation": [[20, 20, 24, 20, 24, 24, 20, 24]]},
        ),
        pixels,
        [{"0": 1024 - 136, "1000": 120, "1001": 16}],
    ),
    Case(
        "coco: a mask outside its box",
        boxes({**BOX, "segmentation": [[20, 20, 24, 20, 24, 24, 20, 24]]}),
        pixels,
        DataError,
        names=("annotations[0]",),
    ),
]
PANOPTIC = [
    Case(
        "panoptic: isthing true and iscrowd false",
        panoptic_changed(
            lambda content: (
                content["categories"][0].update(isthing=True),
                content["categories"][1].update(isthing=False),
                content["annotations"][0]["segments_info"][0].update(iscrowd=False),
            )
        ),
        read_panoptic,
        [{"-1": 128, "1000": 128}],
    ),
    Case("panoptic: an opaque alpha band", opaque, read_panoptic, [{"-1": 128, "1000": 128}]),
    Case(
        "panoptic: a crowd segment",
        panoptic_changed(
            lambda content: content["annotations"][0]["segments_info"][0].update(iscrowd=1)
        ),
        read_panoptic,
        [{"-1": 128, "-1000": 128}],
    ),
    Case(
        "panoptic: ids of the PNG that are not listed",
        panoptic_changed(
            lambda content: content["annotations"][0]["segments_info"][0].update(id=70001)
        ),
        read_panoptic,
        DataError,
        names=("000000000009.png", "70000"),
    ),
    Case(
        "panoptic: a PNG of another size",
        png_of_another_size,
        read_panoptic,
        DataError,
        names=("000000000009.png", "8x16", "16x16"),
    ),
]
YOLO_AND_VOC = [
    Case("yolo: names as a list", yolo(YAML), read_yolo, [[YOLO_BOX]], since="0.5"),
    Case("yolo: a list of images as a part", list_of_images, read_yolo, [[YOLO_BOX]], since="0.5"),
    Case(
        "yolo: an empty label file",
        lambda root: (
            yolo(YAML)(root),
            write_image(root / "images/b.jpg", (20, 40)),
            write_text(root / "labels/b.txt", ""),
        ),
        read_yolo,
        [[YOLO_BOX], []],
        since="0.5",
    ),
    Case(
        "yolo: the masks of polygons",
        lambda root: roboflow(root),
        lambda root: readers.object_pixels(root, "export/data.yaml", "export"),
        [{"0": 800 - 350, "1000": 150, "2000": 200}],
        since="0.5",
    ),
    Case(
        "yolo: a class that has no name",
        yolo(YAML, "2 0.5 0.5 0.25 0.5\n"),
        read_yolo,
        DataError,
        names=("a.txt", "2"),
        since="0.5",
    ),
    Case(
        "yolo: pixels instead of shares",
        yolo(YAML, "0 20 10 10 10\n"),
        read_yolo,
        DataError,
        names=("a.txt", "line 1"),
        since="0.5",
    ),
    Case(
        "yolo: a score at the end of a line",
        yolo(YAML, "0 0.5 0.5 0.25 0.5 0.9\n"),
        read_yolo,
        DataError,
        names=("a.txt", "line 1"),
        since="0.5",
    ),
    Case(
        "yolo: keypoints",
        yolo(YAML + "kpt_shape: [17, 3]\n"),
        read_yolo,
        DataError,
        names=("data.yaml", "kpt_shape"),
        since="0.5",
    ),
    Case(
        "yolo: no label file at all",
        without_label_files,
        read_yolo,
        DataError,
        names=("labels",),
        since="0.5",
    ),
    Case(
        "yolo: a label file without an image",
        label_without_image,
        read_yolo,
        DataError,
        names=("b.txt",),
        since="0.5",
    ),
    Case(
        "yolo: the folder of images is not there",
        folder_that_is_not_there,
        lambda root: readers.boxes(root, "coco8/data.yaml"),
        DataError,
        names=("imgs/train",),
        since="0.5",
    ),
    Case(
        "voc: the first part of ImageSets",
        voc_with_parts,
        lambda root: readers.boxes(root, "VOC2007/Annotations")["boxes"],
        [[["chair", 0.0, 0.0, 8.0, 10.0], ["table", 2.0, 4.0, 20.0, 12.0]]],
        since="0.5",
    ),
    Case(
        "voc: an XML file without an image",
        voc_with_a_missing_image,
        lambda root: readers.boxes(root, "VOC2007/Annotations"),
        DataError,
        names=("000007",),
        since="0.5",
    ),
]
CASES = [*COCO, *MASKS, *PANOPTIC, *YOLO_AND_VOC]
