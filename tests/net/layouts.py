"""Layouts of well-known data sets, small, with the folder and column names that their users have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.case import Case
from tests.net.files import (
    bands,
    coco,
    rectangle,
    write_image,
    write_images,
    write_json,
    write_mask,
    write_rows,
    write_text,
)

# black, red, green, and the void of VOC's masks at 255
VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (252 * 3) + [224, 224, 192]
ROW_0 = [1.0, 0.0]  # the shares of a class that fills the first of two patches, in a row of patches
ROW_1 = [0.0, 1.0]
UNKNOWN = None


def shares(*rows: Sequence[float | None]) -> list[list[Sequence[float | None]]]:
    """The targets of one image of 16 x 16 pixels: of each class two equal rows of patches."""
    return [[row, row] for row in rows]


# Classes
# ----------------------------------------------------------------------------------------------------


def pets(root: Path) -> None:
    for breed in ("Abyssinian", "beagle"):
        write_images(root / "images" / breed, [f"{breed}_{i}.jpg" for i in (1, 2)])


def pet_trimaps(root: Path) -> None:
    write_images(root / "images", ["Abyssinian_1.jpg", "beagle_1.jpg"])
    write_mask(root / "annotations/trimaps/Abyssinian_1.png", bands(1, 2))
    write_mask(root / "annotations/trimaps/beagle_1.png", bands(2, 3))


def birds(root: Path) -> None:
    for bird in ("001.Black_footed_Albatross", "002.Laysan_Albatross"):
        name = bird.partition(".")[2]
        write_images(root / "images" / bird, [f"{name}_0001_79.jpg", f"{name}_0002_5.jpg"])
    write_text(root / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")


def run_in_a_class(root: Path) -> None:
    write_images(root / "data/oats", ["1.jpg", "2.jpg"])
    write_images(root / "data/rye", ["3.jpg", "4.jpg"])
    run = root / "data/oats/run"
    write_images(run, ["data.jpg", "heads/0.png"])
    write_text(run / "data.txt", "4 images\n")
    write_text(run / "report.json", "{}")


def one_file_in_two_classes(root: Path) -> None:
    write_images(root / "data/oats", ["1.jpg", "2.jpg"])
    write_images(root / "data/rye", ["3.jpg", "4.jpg"])
    (root / "data/rye/5.jpg").symlink_to("../oats/1.jpg")


def food(root: Path) -> None:
    for dish in ("apple_pie", "waffles"):
        write_images(root / "food-101/images" / dish, ["1005649.jpg", "1011328.jpg"])
    write_text(root / "food-101/meta/classes.txt", "apple_pie\nwaffles\n")
    write_text(root / "food-101/license_agreement.txt", "see above")


def land_use(root: Path) -> None:
    for land in ("AnnualCrop", "SeaLake"):
        write_images(root / "2750" / land, [f"{land}_1.jpg", f"{land}_2.jpg"])


def insects(root: Path) -> None:
    for part, count in (("train", 2), ("val", 1)):
        for kind in ("ants", "bees"):
            names = [f"{i}_{kind}.jpg" for i in range(count)]
            write_images(root / "hymenoptera_data" / part / kind, names)


def eye_folders(root: Path) -> None:
    for grade in "04123":
        write_images(
            root / "gaussian_filtered_images" / grade, [f"0{grade}a.png", f"1{grade}b.png"]
        )


# Tables
# ----------------------------------------------------------------------------------------------------


def eyes(root: Path) -> None:
    names = [f"{i:03}c15866" for i in range(5)]
    rows = [("id_code", "diagnosis"), *((name, i) for i, name in enumerate(names))]
    write_rows(root / "train.csv", rows, images=False)
    write_images(root / "train_images", [f"{name}.png" for name in names])


def plots(root: Path) -> None:
    rows: list[tuple[Any, ...]] = [("image", "plot", "date", "biomass_g", "cover", "crop")]
    rows += [
        ("plots/a1.jpg", "A", "2024-05-03", 412.5, 0.31, "wheat"),
        ("plots/b1.jpg", "B", "2024-05-03", 388, "", "barley"),
        ("plots/a2.jpg", "A", "2024-06-01", 610, 0.62, "wheat"),
        ("plots/b2.jpg", "B", "2024-06-01", 595.25, 0.58, "barley"),
    ]
    write_rows(root / "plots.csv", rows)


def lesions(root: Path) -> None:
    rows: list[tuple[Any, ...]] = [("image", "MEL", "NV", "lesion_id")]
    rows += [("ISIC_0024306", "0.0", "1.0", "HAM_1"), ("ISIC_0024307", "1.0", "0.0", "HAM_2")]
    rows += [("ISIC_0024308", "0.0", "1.0", "HAM_1"), ("ISIC_0024309", "1.0", "0.0", "HAM_3")]
    write_rows(root / "truth.csv", rows, images=False)
    write_images(root / "input", [f"{row[0]}.jpg" for row in rows[1:]])


# Masks
# ----------------------------------------------------------------------------------------------------


def lesion_masks(root: Path) -> None:
    for number in (0, 1):
        name = f"ISIC_000000{number}"
        write_image(root / "ISIC_Input" / f"{name}.jpg")
        write_mask(root / "ISIC_Truth" / f"{name}_segmentation.png", bands(0, 255))


def cells(root: Path) -> None:
    for i in range(2):
        write_image(root / "images" / f"{i}.png")
        write_mask(root / "masks" / f"{i}.png", bands(255, 0) if i else bands(0, 255))


def streets(root: Path) -> None:
    for part, city in (("train", "aachen"), ("val", "lindau")):
        for i in range(2):
            name = f"{city}_{i:06}_000019"
            write_image(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png")
            place = root / "gtFine" / part / city
            write_mask(place / f"{name}_gtFine_labelTrainIds.png", bands(i, 255))
            write_mask(place / f"{name}_gtFine_labelIds.png", bands(7, 8))
            write_mask(place / f"{name}_gtFine_color.png", np.zeros((16, 16, 3)))
            write_json(place / f"{name}_gtFine_polygons.json", {})


def voc_masks(root: Path) -> None:
    voc = root / "VOCdevkit/VOC2012"
    write_images(voc / "JPEGImages", ["2007_000027.jpg", "2007_000032.jpg"])
    for name, mask in (("2007_000027", bands(0, 1)), ("2007_000032", bands(2, 255))):
        write_mask(voc / "SegmentationClass" / f"{name}.png", mask, palette=VOC_PALETTE)


def voc_with_more_images(root: Path) -> None:
    voc_masks(root)
    write_image(root / "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg")


def scenes(root: Path) -> None:
    for part, word, count in (("training", "train", 3), ("validation", "val", 1)):
        for i in range(count):
            name = f"ADE_{word}_{i:08}"
            write_image(root / "ADE/images" / part / f"{name}.jpg")
            write_mask(root / "ADE/annotations" / part / f"{name}.png", bands(i % 2, 2))


SCENE_IDS = [f"training/ADE_train_0000000{i}.jpg" for i in range(3)]
SCENE_IDS += ["validation/ADE_val_00000000.jpg"]
# below the folder that is named
SCENE_IDS_BELOW_IMAGES = [f"images/{name}" for name in SCENE_IDS]


# Objects
# ----------------------------------------------------------------------------------------------------

OBJECTS: list[dict[str, Any]] = [
    {"image_id": 9, "category_id": 18, "bbox": [2, 4, 10, 12]},
    {"image_id": 9, "category_id": 44, "bbox": [20.5, 1.5, 4, 3]},
    {"image_id": 7, "category_id": 18, "bbox": [8, 8, 16, 16]},
]
for _item in OBJECTS:
    _item["segmentation"] = [rectangle(*_item["bbox"])]
CATEGORIES = {18: "dog", 44: "bottle"}
BOXES = {
    "ids": [9, 7, 12],
    "classes": ["dog", "bottle"],
    "images": [f"val2017/{key:012}.jpg" for key in (9, 7, 12)],
    "sizes": [[32, 32]] * 3,
    "boxes": [
        [["dog", 2.0, 4.0, 12.0, 16.0], ["bottle", 20.5, 1.5, 24.5, 4.5]],
        [["dog", 8.0, 8.0, 24.0, 24.0]],
        [],
    ],
}


def coco_objects(root: Path) -> None:
    images = {9: "000000000009.jpg", 7: "000000000007.jpg", 12: "000000000012.jpg"}
    write_images(root / "val2017", images.values(), (32, 32))
    write_json(root / "annotations/instances_val2017.json", coco(images, OBJECTS, CATEGORIES))


def coco_panoptic(root: Path) -> None:
    write_image(root / "val2017/000000000009.jpg", (16, 16))
    ids = bands(0, 70000)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    write_mask(root / "panoptic_val2017/000000000009.png", colours)
    write_json(
        root / "panoptic_val2017.json",
        {
            "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 16, "width": 16}],
            "annotations": [
                {
                    "image_id": 9,
                    "file_name": "000000000009.png",
                    "segments_info": [
                        {
                            "id": 70000,
                            "category_id": 18,
                            "iscrowd": 0,
                            "area": 128,
                            "bbox": [8, 0, 8, 16],
                        }
                    ],
                }
            ],
            "categories": [
                {"id": 18, "name": "dog", "isthing": 1},
                {"id": 149, "name": "floor", "isthing": 0},
            ],
        },
    )


def yolo_images(root: Path, folder: str, names: list[str]) -> None:
    write_images(root / folder, names, (20, 40))


def ultralytics(root: Path) -> None:
    yolo_images(root, "coco8/images/train", ["0.jpg", "1.jpg"])
    yolo_images(root, "coco8/images/val", ["2.jpg"])
    write_text(root / "coco8/labels/train/0.txt", "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.1 0.2\n")
    write_text(root / "coco8/labels/val/2.txt", "0 0.25 0.25 0.5 0.5\n")
    text = "path: ../coco8  # root\ntrain: images/train\nval: images/val\ntest:\n"
    write_text(root / "coco8/data.yaml", f"{text}names:\n  0: person\n  1: dog\n")


def roboflow(root: Path) -> None:
    for part, name in (("train", "0_jpg.rf.a1.jpg"), ("valid", "1_jpg.rf.b2.jpg")):
        yolo_images(root, f"export/{part}/images", [name])
        label = name.removesuffix(".jpg") + ".txt"
        polygon = "1 0.5 0.5 1 0.5 1 1 0.5 1"
        write_text(root / f"export/{part}/labels" / label, f"0 0.5 0.5 0.5 0.5\n{polygon}\n")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
    text += "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: pets\n  version: 1\n"
    write_text(root / "export/data.yaml", text)


VOC_OBJECT = """<object><name>{}</name><pose>Left</pose><truncated>0</truncated>
<difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
</object>"""


def voc_boxes(root: Path) -> None:
    for name, objects in (
        ("000005", [("chair", 0, 1, 1, 8, 10), ("table", 0, 3, 5, 20, 12)]),
        ("000007", [("chair", 0, 11, 2, 40, 20), ("chair", 1, 2, 2, 9, 9)]),
    ):
        write_image(root / "VOC2007/JPEGImages" / f"{name}.jpg", (20, 40))
        items = "".join(VOC_OBJECT.format(*item) for item in objects)
        size = "<size><width>40</width><height>20</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{items}</annotation>"
        write_text(root / "VOC2007/Annotations" / f"{name}.xml", text)


def class_reading(folder: str, files: dict[str, list[str]]) -> dict[str, Any]:
    """What class folders are read as: sorted by folder and file."""
    ids = [f"{name}/{file}" for name, names in files.items() for file in names]
    return {
        "ids": ids,
        "images": [f"{folder}/{image_id}" for image_id in ids],
        "class": [name for name, names in files.items() for _ in names],
        "classes of class": [*files],
    }


CASES = [
    Case(
        "oxford pets: class folders",
        pets,
        lambda root: readers.folders(root, "images"),
        class_reading(
            "images",
            {
                "Abyssinian": ["Abyssinian_1.jpg", "Abyssinian_2.jpg"],
                "beagle": ["beagle_1.jpg", "beagle_2.jpg"],
            },
        ),
    ),
    Case(
        "oxford pets: trimaps of 1, 2 and 3",
        pet_trimaps,
        lambda root: readers.training(
            root,
            {
                "images": "./images",
                "labels": "./annotations/trimaps",
                "classes": ["pet", "background", "border"],
                "class_values": [1, 2, 3],
            },
        ),
        {
            "ids": ["Abyssinian_1.jpg", "beagle_1.jpg"],
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["pet", "background", "border"],
            "segmentation": [
                shares(ROW_0, ROW_1, [0.0, 0.0]),
                shares([0.0, 0.0], ROW_0, ROW_1),
            ],
        },
    ),
    Case(
        "cub: class folders with a number",
        birds,
        lambda root: readers.folders(root, "images"),
        class_reading(
            "images",
            {
                "001.Black_footed_Albatross": [
                    "Black_footed_Albatross_0001_79.jpg",
                    "Black_footed_Albatross_0002_5.jpg",
                ],
                "002.Laysan_Albatross": [
                    "Laysan_Albatross_0001_79.jpg",
                    "Laysan_Albatross_0002_5.jpg",
                ],
            },
        ),
    ),
    Case(
        "food-101: images of one name in two classes, meta/ beside images/",
        food,
        lambda root: readers.folders(root, "food-101/images"),
        class_reading(
            "food-101/images",
            {
                "apple_pie": ["1005649.jpg", "1011328.jpg"],
                "waffles": ["1005649.jpg", "1011328.jpg"],
            },
        ),
    ),
    Case(
        "class folders: a run that was written into one of them, with its sheet",
        run_in_a_class,
        lambda root: readers.folders(root, "data"),
        class_reading("data", {"oats": ["1.jpg", "2.jpg"], "rye": ["3.jpg", "4.jpg"]}),
        since="0.5",
    ),
    Case(
        "class folders: one file in two classes, by a link",
        one_file_in_two_classes,
        lambda root: readers.folders(root, "data"),
        DataError,
        names=("oats", "rye", "1.jpg"),
    ),
    Case(
        "eurosat: class folders",
        land_use,
        lambda root: readers.folders(root, "2750"),
        class_reading(
            "2750",
            {
                "AnnualCrop": ["AnnualCrop_1.jpg", "AnnualCrop_2.jpg"],
                "SeaLake": ["SeaLake_1.jpg", "SeaLake_2.jpg"],
            },
        ),
    ),
    Case(
        "ants and bees: train and val",
        insects,
        lambda root: readers.folders(root, "hymenoptera_data"),
        {
            "ids": [
                "train/ants/0_ants.jpg",
                "train/ants/1_ants.jpg",
                "train/bees/0_bees.jpg",
                "train/bees/1_bees.jpg",
                "val/ants/0_ants.jpg",
                "val/bees/0_bees.jpg",
            ],
            "images": [
                "hymenoptera_data/train/ants/0_ants.jpg",
                "hymenoptera_data/train/ants/1_ants.jpg",
                "hymenoptera_data/train/bees/0_bees.jpg",
                "hymenoptera_data/train/bees/1_bees.jpg",
                "hymenoptera_data/val/ants/0_ants.jpg",
                "hymenoptera_data/val/bees/0_bees.jpg",
            ],
            "class": ["ants", "ants", "bees", "bees", "ants", "bees"],
            "classes of class": ["ants", "bees"],
            "fold": ["train"] * 4 + ["val"] * 2,
            "held out": "val",
        },
    ),
    Case(
        "eyes: class folders 0 to 4",
        eye_folders,
        lambda root: readers.folders(root, "gaussian_filtered_images"),
        class_reading(
            "gaussian_filtered_images",
            {grade: [f"0{grade}a.png", f"1{grade}b.png"] for grade in "01234"},
        ),
    ),
    Case(
        "eyes: a table of names without a suffix, grades 0 to 4",
        eyes,
        lambda root: readers.table(
            root, "train.csv", ["diagnosis"], images="train_images", image_column="id_code"
        ),
        {
            "ids": [f"{i:03}c15866" for i in range(5)],
            "images": [f"train_images/{i:03}c15866.png" for i in range(5)],
            "diagnosis": [0.0, 1.0, 2.0, 3.0, 4.0],
        },
    ),
    Case(
        "eyes: the same grades as classes",
        eyes,
        lambda root: readers.table(
            root,
            "train.csv",
            ["diagnosis"],
            images="train_images",
            image_column="id_code",
            classes={"diagnosis": ()},
        ),
        {
            "ids": [f"{i:03}c15866" for i in range(5)],
            "images": [f"train_images/{i:03}c15866.png" for i in range(5)],
            "diagnosis": ["0", "1", "2", "3", "4"],
            "classes of diagnosis": ["0", "1", "2", "3", "4"],
        },
    ),
    Case(
        "plots: numbers with a gap, classes, groups and folds",
        plots,
        lambda root: readers.table(
            root,
            "plots.csv",
            ["biomass_g", "cover"],
            auxiliary=["crop"],
            group="plot",
            fold_column="date",
        ),
        {
            "ids": ["plots/a1.jpg", "plots/b1.jpg", "plots/a2.jpg", "plots/b2.jpg"],
            "images": ["plots/a1.jpg", "plots/b1.jpg", "plots/a2.jpg", "plots/b2.jpg"],
            "group": ["A", "B", "A", "B"],
            "fold": ["2024-05-03", "2024-05-03", "2024-06-01", "2024-06-01"],
            "biomass_g": [412.5, 388.0, 610.0, 595.25],
            "cover": [0.31, None, 0.62, 0.58],
            "crop": ["wheat", "barley", "wheat", "barley"],
            "classes of crop": ["barley", "wheat"],
        },
    ),
    Case(
        "isic: one column of 0.0 and 1.0 for each class, lesions as groups",
        lesions,
        lambda root: readers.training(
            root,
            {"csv": "./truth.csv", "images": "./input", "multilabel": ["MEL", "NV"]},
            folds={"group": ["lesion_id"]},
        ),
        {
            "ids": ["ISIC_0024306", "ISIC_0024307", "ISIC_0024308", "ISIC_0024309"],
            "groups": ["HAM_1", "HAM_2", "HAM_1", "HAM_3"],
            "kind of tags": "multilabel",
            "classes of tags": ["MEL", "NV"],
            "tags": [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
        },
    ),
    Case(
        "isic: masks of 0 and 255 that end in _segmentation",
        lesion_masks,
        lambda root: readers.training(root, {"images": "./ISIC_Input", "labels": "./ISIC_Truth"}),
        {
            "ids": ["ISIC_0000000.jpg", "ISIC_0000001.jpg"],
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["0", "255"],
            "segmentation": [shares(ROW_0, ROW_1)] * 2,
        },
    ),
    Case(
        "cells: images/ and masks/ of 0 and 255, found by their names",
        cells,
        lambda root: readers.training(root, {"images": "./", "classes": ["background", "cell"]}),
        {
            "ids": ["0.png", "1.png"],
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["background", "cell"],
            "segmentation": [shares(ROW_0, ROW_1), shares(ROW_1, ROW_0)],
        },
    ),
    Case(
        "cityscapes: one of several masks of an image, by its ending; train and val",
        streets,
        lambda root: readers.training(
            root,
            {
                "images": "./leftImg8bit",
                "labels": "./gtFine",
                "mask_suffix": "_gtFine_labelTrainIds",
            },
        ),
        {
            "ids": [
                "train/aachen/aachen_000000_000019_leftImg8bit.png",
                "train/aachen/aachen_000001_000019_leftImg8bit.png",
                "val/lindau/lindau_000000_000019_leftImg8bit.png",
                "val/lindau/lindau_000001_000019_leftImg8bit.png",
            ],
            "folds": ["train", "train", "val", "val"],
            "held out": "val",
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["0", "1"],
            "segmentation": [
                shares([1.0, UNKNOWN], [0.0, UNKNOWN]),
                shares([0.0, UNKNOWN], [1.0, UNKNOWN]),
            ]
            * 2,
        },
        since="0.5",
    ),
    Case(
        "voc: palette masks with 255, by folders",
        voc_masks,
        lambda root: readers.training(
            root,
            {
                "images": "./VOCdevkit/VOC2012/JPEGImages",
                "labels": "./VOCdevkit/VOC2012/SegmentationClass",
            },
        ),
        {
            "ids": ["2007_000027.jpg", "2007_000032.jpg"],
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["0", "1", "2"],
            "segmentation": [
                shares(ROW_0, ROW_1, [0.0, 0.0]),
                shares([0.0, UNKNOWN], [0.0, UNKNOWN], [1.0, UNKNOWN]),
            ],
        },
        since="0.5",
    ),
    Case(
        "voc: the same, with 255 named as nodata",
        voc_masks,
        lambda root: readers.training(
            root,
            {
                "images": "./VOCdevkit/VOC2012/JPEGImages",
                "labels": "./VOCdevkit/VOC2012/SegmentationClass",
                "classes": ["background", "aeroplane", "bicycle"],
                "nodata": [255],
            },
        ),
        {
            "ids": ["2007_000027.jpg", "2007_000032.jpg"],
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["background", "aeroplane", "bicycle"],
            "segmentation": [
                shares(ROW_0, ROW_1, [0.0, 0.0]),
                shares([0.0, UNKNOWN], [0.0, UNKNOWN], [1.0, UNKNOWN]),
            ],
        },
    ),
    Case(
        "voc: images without a mask are left out where that is said",
        voc_with_more_images,
        lambda root: readers.training(
            root,
            {
                "images": "./VOCdevkit/VOC2012/JPEGImages",
                "labels": "./VOCdevkit/VOC2012/SegmentationClass",
                "skip_unpaired": True,
            },
        )["ids"],
        ["2007_000027.jpg", "2007_000032.jpg"],
        since="0.5",
    ),
    Case(
        "ade20k: training and validation below images and annotations, found by their names",
        scenes,
        lambda root: readers.training(root, {"images": "./ADE", "classes": ["a", "b", "c"]}),
        {
            "ids": SCENE_IDS_BELOW_IMAGES,
            "folds": ["training"] * 3 + ["validation"],
            "held out": "validation",
            "kind of segmentation": "segmentation",
            "classes of segmentation": ["a", "b", "c"],
            "segmentation": [
                shares(ROW_0, [0.0, 0.0], ROW_1),
                shares([0.0, 0.0], ROW_0, ROW_1),
                shares(ROW_0, [0.0, 0.0], ROW_1),
                shares(ROW_0, [0.0, 0.0], ROW_1),
            ],
        },
        since="0.5",
    ),
    Case(
        "ade20k: the same folders named, validation is held out",
        scenes,
        lambda root: {
            key: value
            for key, value in readers.training(
                root, {"images": "./ADE/images", "labels": "./ADE/annotations"}
            ).items()
            if key in ("ids", "folds", "held out")
        },
        {
            "ids": SCENE_IDS,
            "folds": ["training"] * 3 + ["validation"],
            "held out": "validation",
        },
        since="0.5",
    ),
    Case(
        "coco: boxes, images in the order of the file",
        coco_objects,
        lambda root: readers.boxes(root, "annotations/instances_val2017.json", "val2017"),
        BOXES,
    ),
    Case(
        "coco: instances, the pixels of each object",
        coco_objects,
        lambda root: readers.object_pixels(root, "annotations/instances_val2017.json", "val2017"),
        [
            {"0": 1024 - 120 - 12, "1000": 120, "2000": 12},
            {"0": 1024 - 256, "1000": 256},
            {"0": 1024},
        ],
        needs="pycocotools",
    ),
    Case(
        "coco: panoptic, an id of three bytes",
        coco_panoptic,
        lambda root: readers.panoptic(root, "panoptic_val2017.json", "panoptic_val2017", "val2017"),
        {
            "ids": [9],
            "classes": ["dog", "floor"],
            "stuff": [1],
            "pixels": [{"-1": 128, "1000": 128}],
        },
    ),
    Case(
        "coco: labels of images, the categories that an image has objects of",
        coco_objects,
        lambda root: readers.training(
            root,
            {
                "images": "./val2017",
                "multilabel": [str(root / "annotations/instances_val2017.json")],
            },
        ),
        {
            "ids": ["000000000009.jpg", "000000000007.jpg", "000000000012.jpg"],
            "kind of tags": "multilabel",
            "classes of tags": ["dog", "bottle"],
            "tags": [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]],
        },
    ),
    Case(
        "yolo: data.yaml of Ultralytics, names as a mapping, an image without a label file",
        ultralytics,
        lambda root: readers.boxes(root, "coco8/data.yaml")["boxes"],
        [[["dog", 15.0, 5.0, 25.0, 15.0], ["person", 2.0, 2.0, 6.0, 6.0]], []],
        since="0.5",
    ),
    Case(
        "yolo: data.yaml of Roboflow, ../train/images, a box and a polygon",
        roboflow,
        lambda root: readers.boxes(root, "export/data.yaml")["boxes"],
        [[["cat", 10.0, 5.0, 30.0, 15.0], ["dog", 20.0, 10.0, 40.0, 20.0]]],
        since="0.5",
    ),
    Case(
        "voc: boxes of Annotations/, pixels counted from 1, difficult ones left out as crowds",
        voc_boxes,
        lambda root: readers.boxes(root, "VOC2007/Annotations")["boxes"],
        [
            [["chair", 0.0, 0.0, 8.0, 10.0], ["table", 2.0, 4.0, 20.0, 12.0]],
            [["chair", 10.0, 1.0, 40.0, 20.0]],
        ],
        since="0.5",
    ),
]
