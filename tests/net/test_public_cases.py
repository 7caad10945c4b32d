"""Files of other people that once went wrong: each is read right, refused, or shown by the data summary.

The files are not part of the repository; the tests are skipped without them. What a case shows is
what the summary prints of it: counts, values and classes, as they were read.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoneck.errors import DataError
from tests.net import readers

DATA = Path(
    os.environ.get("DINONECK_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)
FILES = DATA / "public_cases" / "files"
IS_BEFORE_THE_REWRITE = importlib.util.find_spec("dinoneck.images") is None
BLOCK = {"0": 6144 - 800, "1000": 800}  # pixels of a block of 40 x 20 in an image of 96 x 64
PANOPTIC = {
    "ids": [1],
    "classes": ["sky", "cell"],
    "stuff": [0],
    "pixels": [{"1000": 600, "2000": 600}],
}


@dataclass(frozen=True)
class PublicCase:
    """A file of a case.

    Attributes:
        folder: of the case.
        name: of the file, or of the way to read it.
        verdict: "right", "refused" or "shown".
        read: returns what was read of the folder.
        expected: what it returns; of a refusal, what the message names.
        since: the version that does so.
    """

    folder: str
    name: str
    verdict: str
    read: Callable[[Path], Any]
    expected: Any
    since: str = "0.4"


def counts(file: str, **options: Any) -> Callable[[Path], Any]:
    """A reader of the number of objects of each class."""

    def read(root: Path) -> Any:
        from dinoneck.data import BoxImages

        return dict(BoxImages(root / file, root / "images", **options).class_counts)

    return read


def masks(file: str) -> Callable[[Path], Any]:
    """A reader of the pixels of objects."""
    return lambda root: readers.object_pixels(root, file, "images")


def first_box(file: str) -> Callable[[Path], Any]:
    return lambda root: readers.boxes(root, file, "images")["boxes"][0]


def mask_classes(folder: str) -> Callable[[Path], Any]:
    """A reader of the classes that a run takes the values of masks for."""
    return lambda root: readers.training(root, {"images": "./images", "labels": f"./{folder}"})[
        "classes of segmentation"
    ]


def numbers(file: str, **options: Any) -> Callable[[Path], Any]:
    """A reader of the different values of a label, the unknown ones (None) last."""

    def read(root: Path) -> Any:
        cells = np.array(readers.values(root, file, **options), np.float64)
        found = np.unique(cells[~np.isnan(cells)]).tolist()
        return [*found, None] if np.isnan(cells).any() else found

    return read


def grey(file: str) -> Callable[[Path], Any]:
    """A reader of the smallest, the middle and the largest value of an image, of 255."""

    def read(root: Path) -> Any:
        pixels = np.array(readers.pixels(root, file)[0])
        return [round(float(np.percentile(pixels, share)), 1) for share in (0, 50, 100)]

    return read


def band(file: str) -> Callable[[Path], Any]:
    return lambda root: np.array(readers.pixels(root, file)[0])[0].round().tolist()


def same_pixels(root: Path) -> bool:
    return bool(band("white16.tif")(root) == band("white8.tif")(root))


def left_out(root: Path) -> Any:
    from dinoneck.data import read_folders

    table = read_folders(root)
    return len(table), sum(table.attrs["left_out"].values())


def linked_folder(root: Path) -> Any:
    (root / "classes/b").symlink_to("../store/b")
    return readers.folders(root, "classes")["class"]


def table(file: str, **options: Any) -> Callable[[Path], Any]:
    return lambda root: readers.table(root, file, ["mass"], **options)["mass"]


def panoptic(file: str, folder: str) -> Callable[[Path], Any]:
    return lambda root: readers.panoptic(root, file, folder, "images")


def size(file: str) -> Callable[[Path], Any]:
    return lambda root: list(np.shape(readers.pixels(root, file)[0])[1:])


CASES = [
    PublicCase("01_rle_row_by_row", "masks", "refused", masks("objects.json"), ["annotations["]),
    PublicCase(
        "02_box_beside_its_polygon",
        "corners",
        "shown",
        first_box("corners.json"),
        [["block", 8.0, 10.0, 56.0, 40.0]],
        "0.5",
    ),
    PublicCase(
        "02_box_beside_its_polygon",
        "from the bottom",
        "shown",
        first_box("from_bottom.json"),
        [["block", 8.0, 34.0, 48.0, 54.0]],
        "0.5",
    ),
    PublicCase(
        "02_box_beside_its_polygon",
        "masks of corners",
        "shown",
        masks("corners.json"),
        [BLOCK] * 6,
        "0.5",
    ),
    PublicCase(
        "02_box_beside_its_polygon",
        "masks of from the bottom",
        "refused",
        masks("from_bottom.json"),
        ["annotations[0]"],
    ),
    PublicCase("03_tiff_says_nodata", "height", "right", numbers("height.tif"), [0.5, None]),
    PublicCase(
        "03_tiff_says_nodata",
        "classes",
        "right",
        numbers("classes_nodata_0.tif", classes=3),
        [0.0, 1.0, None],
    ),
    PublicCase("04_masks_0_and_255", "masks", "right", mask_classes("masks"), ["0", "255"]),
    PublicCase(
        "05_palettes_in_another_order",
        "masks",
        "refused",
        mask_classes("masks"),
        ["index 0", "masks/0.png", "masks/1.png"],
    ),
    PublicCase("06_iscrowd_of_mask_exports", "all", "shown", counts("all.json"), {"block": 0}),
    PublicCase("06_iscrowd_of_mask_exports", "half", "shown", counts("half.json"), {"block": 3}),
    PublicCase(
        "07_parts_as_classes",
        "folders",
        "shown",
        lambda root: readers.folders(root)["classes of class"],
        ["dev", "train"],
        "0.5",
    ),
    PublicCase(
        "08_instance_id_masks",
        "8 bits",
        "shown",
        mask_classes("ids8"),
        ["0", "1", "2", "3", "4", "5", "6"],
        "0.5",
    ),
    PublicCase(
        "08_instance_id_masks", "16 bits", "refused", mask_classes("ids16"), ["24006"], "0.4"
    ),
    PublicCase("09_heic_in_class_folders", "folders", "shown", left_out, (8, 11), "0.5"),
    PublicCase(
        "10_twelve_bits_in_sixteen",
        "a hot pixel",
        "shown",
        lambda root: grey("hot_pixel.png")(root)[2],
        255.0,
        "0.5",
    ),
    PublicCase(
        "10_twelve_bits_in_sixteen",
        "an offset",
        "shown",
        lambda root: [value // 16 for value in grey("offset.png")(root)],
        [7.0, 8.0, 8.0],  # a sixteenth of the range, from its middle on
        "0.5",
    ),
    PublicCase("11_sixteen_bit_min_is_white", "as of 8 bits", "right", same_pixels, True),
    PublicCase("12_ids_as_text", "all", "right", counts("ids_text.json"), {"block": 2}),
    PublicCase("12_ids_as_text", "of images", "right", counts("image_id_text.json"), {"block": 2}),
    PublicCase("12_ids_as_text", "file names", "right", counts("id_is_name.json"), {"block": 2}),
    *(
        PublicCase("13_flags_and_ids_of_exporters", name, "right", counts(name), {"block": 2})
        for name in (
            "float_image_id.json",
            "float_width.json",
            "iscrowd_false.json",
            "iscrowd_null.json",
            "no_annotation_id.json",
        )
    ),
    *(
        PublicCase("14_file_names_of_exporters", name, "right", counts(name), {"block": 2})
        for name in (
            "absolute.json",
            "backslash.json",
            "prefix.json",
            "project_id.json",
            "upper.json",
            "url.json",
        )
    ),
    PublicCase("15_segmentation_forms", "flat", "right", masks("flat.json"), [BLOCK] * 2),
    PublicCase(
        "15_segmentation_forms", "four numbers", "right", masks("four_numbers.json"), [BLOCK] * 2
    ),
    PublicCase(
        "15_segmentation_forms", "rectangles", "right", masks("rectangles.json"), [BLOCK] * 2
    ),
    PublicCase("15_segmentation_forms", "tiny part", "right", masks("tiny_part.json"), [BLOCK] * 2),
    PublicCase(
        "15_segmentation_forms",
        "missing",
        "shown",
        counts("missing.json", masks=True),
        {"block": 1},
        "0.5",
    ),
    PublicCase("16_no_image_size", "missing", "right", counts("missing.json"), {"block": 2}),
    PublicCase("16_no_image_size", "null", "right", counts("null.json"), {"block": 2}),
    PublicCase(
        "17_class_folder_is_a_link", "folders", "right", linked_folder, ["a"] * 3 + ["b"] * 3
    ),
    PublicCase(
        "18_csv_of_spreadsheets",
        "utf-16, a comma that is not stated",
        "refused",
        table("utf16.txt"),
        ["1,5", "decimal"],
        "0.5",
    ),
    PublicCase(
        "18_csv_of_spreadsheets",
        "utf-16, the comma stated",
        "right",
        table("utf16.txt", decimal=","),
        [1.5, 2.0],
        "0.5",
    ),
    PublicCase("18_csv_of_spreadsheets", "latin-1", "refused", table("latin1.csv"), ["UTF-8"]),
    PublicCase("18_csv_of_spreadsheets", "two marks", "refused", table("mixed.csv"), ["2,25"]),
    PublicCase("18_csv_of_spreadsheets", "sep=;", "right", table("sep_line.csv"), [1.5, 2.0]),
    PublicCase(
        "18_csv_of_spreadsheets", "blank rows", "right", table("blank_rows.csv"), [1.5, 2.0]
    ),
    PublicCase("19_junk_exif", "photo", "right", size("photo.jpg"), [64, 96]),
    PublicCase("20_panoptic_forms", "rgb", "right", panoptic("numbers.json", "rgb"), PANOPTIC),
    PublicCase("20_panoptic_forms", "rgba", "right", panoptic("numbers.json", "rgba"), PANOPTIC),
    PublicCase(
        "20_panoptic_forms",
        "truth values",
        "right",
        panoptic("truth_values.json", "rgb"),
        PANOPTIC,
    ),
    PublicCase("21_uint32_label", "numbers", "right", numbers("ids.tif"), [0.0, 3e9]),
    PublicCase(
        "22_class_without_objects",
        "boxes",
        "shown",
        counts("objects.json"),
        {"blocks": 0, "block": 6},
    ),
    PublicCase("23_same_box_twice", "boxes", "shown", counts("objects.json"), {"block": 6}),
    *(
        PublicCase("24_float_tiffs", f"image {name}", "right", size(name), [30, 40], "0.5")
        for name in ("double.tif", "half.tif", "three_bands.tif")
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}: {case.name}")
def test_public_cases(case: PublicCase, tmp_path: Path) -> None:
    if not FILES.is_dir():
        pytest.skip(f"the public cases are not in {FILES}; set DINONECK_DATA to the folder of them")
    if IS_BEFORE_THE_REWRITE and case.since != "0.4":
        pytest.skip(f"{case.verdict} since {case.since}")
    root = tmp_path / "case"
    shutil.copytree(FILES / case.folder, root)

    if case.verdict == "refused":
        with pytest.raises(DataError) as refusal:
            case.read(root)
        missing = [text for text in case.expected if text not in str(refusal.value)]
        assert not missing, refusal.value
    else:
        assert case.read(root) == case.expected
