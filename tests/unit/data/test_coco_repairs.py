"""COCO files as tools write them: what has one exact reading is read, whatever its spelling."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.data.box_samples import HEIGHT, WIDTH, content, write

from dinoneck import DataError
from dinoneck.data import BoxImages, PanopticImages
from dinoneck.data.coco_entries import name_entry

# pycocotools 2.0.11 with NumPy 2
Change = Callable[[dict[str, Any]], Any]
CORNERS = [[[2, 3, 12, 11], [20, 10, 32, 22.5]], [[0, 0, 40, 30], [5.25, 6, 12.25, 14]], []]
LABELS = [[1, 0], [1, 0], []]


def opened(folder: Path, change: Change, **options: Any) -> BoxImages:
    """Open the sample after a change of its content."""
    sample = content()
    change(sample)
    return BoxImages(write(folder, sample), **options)


def set_all(part: str, key: str, convert: Callable[[Any], Any]) -> Change:
    """Give a key of all entries of a part the converted value."""

    def change(sample: dict[str, Any]) -> None:
        for entry in sample[part]:
            entry[key] = convert(entry.get(key))

    return change


def remove(part: str, *keys: str) -> Change:
    def change(sample: dict[str, Any]) -> None:
        for entry in sample[part]:
            for key in keys:
                del entry[key]

    return change


def both(first: Change, second: Change) -> Change:
    def change(sample: dict[str, Any]) -> None:
        first(sample)
        second(sample)

    return change


REPAIRED: list[tuple[str, Change, str, int]] = [
    ("image ids as text", set_all("images", "id", str), "ids written as text", 3),
    ("image_id as text", set_all("annotations", "image_id", str), "ids written as text", 4),
    ("category_id as text", set_all("annotations", "category_id", str), "ids written as text", 4),
    ("text 10.0", set_all("annotations", "image_id", "{}.0".format), "ids written as text", 4),
    ("blanks", set_all("annotations", "image_id", " {} ".format), "ids written as text", 4),
    ("image_id 10.0", set_all("annotations", "image_id", float), "whole numbers written", 4),
    ("category id 5.0", set_all("categories", "id", float), "whole numbers written", 2),
    ("width 40.0", set_all("images", "width", float), "whole numbers written", 3),
    ("height as text", set_all("images", "height", str), "numbers written as text", 3),
    ("iscrowd false", set_all("annotations", "iscrowd", bool), "flags", 4),
    ("iscrowd null", set_all("annotations", "iscrowd", lambda _: None), "flags", 4),
    ("iscrowd 0.0", set_all("annotations", "iscrowd", float), "flags", 4),
    ("iscrowd '0'", set_all("annotations", "iscrowd", str), "flags", 4),
    ("iscrowd 'False'", set_all("annotations", "iscrowd", lambda _: "False"), "flags", 4),
    ("no annotation id", remove("annotations", "id"), "annotations without an id", 4),
    ("id null", set_all("annotations", "id", lambda _: None), "annotations without an id", 4),
    ("no size", remove("images", "width", "height"), "image sizes read from the images", 3),
    ("no width", remove("images", "width"), "image sizes read from the images", 3),
    ("width null", set_all("images", "width", lambda _: None), "image sizes read", 3),
    (
        "bbox as text",
        set_all("annotations", "bbox", lambda bbox: [str(number) for number in bbox]),
        "numbers written as text",
        16,
    ),
]


@pytest.mark.parametrize(
    ("change", "kind", "count"), [pytest.param(*row[1:], id=row[0]) for row in REPAIRED]
)
def test_a_spelling_with_one_reading_is_read_and_counted(
    change: Change, kind: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, change)

    assert data.ids == (10, 11, 12)
    assert data.category_ids == (2, 5)
    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert [data[i][1]["labels"].tolist() for i in range(3)] == LABELS
    [repair] = data.repaired
    assert repair.startswith(kind)
    assert data.repaired[repair] == count
    [line] = caplog.messages
    assert "boxes.json: repaired: " in line
    assert f"{repair}: {count}" in line


def test_all_repairs_of_a_file_are_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = both(set_all("images", "id", str), set_all("annotations", "iscrowd", bool))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, change)

    [line] = caplog.messages
    assert "ids written as text: 3" in line
    assert "flags written as true, false, null or text: 4" in line


def test_a_file_as_coco_writes_it_has_no_repairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, lambda sample: None)

    assert not data.repaired
    assert not caplog.messages


def test_ids_that_are_no_numbers_stay_texts(tmp_path: Path) -> None:
    names = {10: "north/a.png", 11: "007", 12: "12"}

    def change(sample: dict[str, Any]) -> None:
        for image in sample["images"]:
            image["id"] = names[image["id"]]
        for entry in sample["annotations"]:
            entry["image_id"] = names[entry["image_id"]]

    data = opened(tmp_path, change)

    assert data.ids == ("north/a.png", "007", "12")
    assert not data.repaired
    assert data[1][1]["image_id"] == "007"
    assert data.numbers == {"north/a.png": 2, "007": 2, "12": 0}
    assert data.ground_truth()["annotations"][0]["image_id"] == "north/a.png"


def test_numbers_are_compared_as_text_where_other_ids_are_texts(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["images"][0]["id"] = "a"
        for entry in sample["annotations"]:
            if entry["image_id"] == 10:
                entry["image_id"] = "a"

    data = opened(tmp_path, change)

    assert data.numbers == {"a": 2, "11": 2, "12": 0}
    assert data.repaired == {"ids written as numbers among texts": 4}


def test_category_ids_may_be_words(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        for part, key in (("categories", "id"), ("annotations", "category_id")):
            for entry in sample[part]:
                entry[key] = {5: "r", 2: "b"}[entry[key]]

    data = opened(tmp_path, change)

    assert data.classes == ("blue", "red")
    assert data.category_ids == ("b", "r")
    assert data[0][1]["labels"].tolist() == [1, 0]


def test_a_flag_that_is_true_marks_a_crowd_region(tmp_path: Path) -> None:
    data = opened(tmp_path, lambda sample: sample["annotations"][0].update(iscrowd=True))

    assert data.skipped == {"crowd": 1}


def test_categories_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"categories.*name"):
        opened(tmp_path, remove("categories", "name"))


def test_category_names_may_be_numbers(tmp_path: Path) -> None:
    data = opened(tmp_path, set_all("categories", "name", {"red": 1, "blue": 2}.get))

    assert data.classes == ("2", "1")
    assert data.repaired == {"category names that are numbers": 2}


def test_sizes_are_read_from_the_upright_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "turned"
    file = write(folder, content())
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "0.png", exif=exif)  # stored on its side
    sample = content()
    for image in sample["images"]:
        del image["width"], image["height"]
    file.write_text(json.dumps(sample))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(file)

    assert data[0][1]["size"] == (HEIGHT, WIDTH)
    assert "1 images that are turned by their EXIF tag" in caplog.text
    assert "0.png" in caplog.text


def test_a_size_that_contradicts_the_image_is_refused_though_the_other_side_is_read(
    tmp_path: Path,
) -> None:
    def change(sample: dict[str, Any]) -> None:
        del sample["images"][0]["height"]
        sample["images"][0]["width"] = WIDTH + 1

    data = opened(tmp_path, change)

    with pytest.raises(DataError, match=rf"{HEIGHT}x{WIDTH} px .* {HEIGHT}x{WIDTH + 1} for image"):
        data[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_of_any_unicode_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    file = write(tmp_path, content())
    file.write_bytes(file.read_text().encode(encoding))

    assert BoxImages(file).ids == (10, 11, 12)


def test_nan_in_a_box_leaves_the_box_out(tmp_path: Path) -> None:
    data = opened(
        tmp_path, lambda sample: sample["annotations"][0].update(bbox=[float("nan"), 1, 5, 5])
    )

    assert data.skipped == {"not finite": 1}


SIMILAR = [
    ("red", " Red"),
    ("red", "red\u200b"),
    ("big leaf", "big_leaf"),
    ("big leaf", "Big-Leaf"),
    ("bl\u00e4tt", "blatt"),
    ("bl\u00e4tt", "bl\u00c3\u00a4tt"),
    ("soil", "s\u043eil"),
    ("a.0", "a 0"),
    ("a 0", "a0"),
]


@pytest.mark.parametrize("names", SIMILAR, ids=map(ascii, SIMILAR))
def test_categories_that_seem_to_be_one_are_named(
    names: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["categories"][0]["name"] = names[0]
        sample["categories"].append({"id": 9, "name": names[1]})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, change)

    assert data.classes == ("blue", *names)
    [line] = caplog.messages
    assert f"{names[0]!r}, {names[1]!r}" in line


@pytest.mark.parametrize(
    "names", [("1.1", "11"), ("2-3", "23"), ("leaf 1", "leaf 10"), ("1 11", "11 1"), ("5", "-5")]
)
def test_categories_of_other_names_are_not_taken_for_one(
    names: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["categories"][0]["name"] = names[0]
        sample["categories"].append({"id": 9, "name": names[1]})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, change)

    assert not caplog.messages


def test_categories_whose_names_differ_in_their_unicode_form_are_one_name(tmp_path: Path) -> None:
    def name_twins(sample: dict[str, Any]) -> None:
        sample["categories"][0]["name"] = "bl\u00e4tt"
        sample["categories"][1]["name"] = "bla\u0308tt"

    with pytest.raises(
        DataError, match="the name 'bl\u00e4tt' stands more than once; give its obj"
    ):
        opened(tmp_path, name_twins)


def test_a_class_is_found_whose_umlaut_is_written_in_two_characters(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["categories"][0]["name"] = "bla\u0308tt"

    data = opened(tmp_path, change, classes=["bl\u00e4tt"])

    assert data.classes == ("bl\u00e4tt",)
    assert data.category_ids == (5,)


# Boxes without a box, and boxes that are there twice
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bbox", [None, []], ids=["null", "empty"])
def test_an_annotation_without_box_takes_that_of_its_polygon(bbox: Any, tmp_path: Path) -> None:
    polygon = [[4, 6, 14, 6, 14, 18, 4, 18]]

    data = opened(
        tmp_path, lambda sample: sample["annotations"][0].update(bbox=bbox, segmentation=polygon)
    )

    assert data[0][1]["boxes"][0].tolist() == [4, 6, 14, 18]
    assert data.repaired == {"boxes taken from their masks": 1}


def test_a_box_of_zeros_takes_that_of_its_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    polygon = [[4, 6, 14, 6, 14, 18, 4, 18]]
    change = {"bbox": [0, 0, 0, 0], "segmentation": polygon}

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, lambda sample: sample["annotations"][0].update(change))

    assert data[0][1]["boxes"][0].tolist() == [4, 6, 14, 18]
    [line] = caplog.messages
    assert "repaired: boxes taken from their masks: 1" in line


@pytest.mark.parametrize("segmentation", [[], [[4, 6, 14]], "?"])
def test_a_box_of_zeros_without_a_mask_is_too_small(segmentation: Any, tmp_path: Path) -> None:
    change = {"bbox": [0, 0, 0, 0], "segmentation": segmentation}

    data = opened(tmp_path, lambda sample: sample["annotations"][0].update(change))

    assert data.skipped == {"too small": 1}


def test_an_annotation_without_box_and_mask_is_left_out(tmp_path: Path) -> None:
    data = opened(
        tmp_path, lambda sample: sample["annotations"][0].update(bbox=[], segmentation=[])
    )

    assert data.skipped == {"without box": 1}
    assert len(data[0][1]["boxes"]) == 1


def repeat(sample: dict[str, Any], **changes: Any) -> None:
    """Add the first annotation again, with another id."""
    sample["annotations"].append(sample["annotations"][0] | {"id": 99} | changes)


def test_the_same_box_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, repeat)

    assert data.skipped == {"twice": 1}
    assert data.numbers[10] == 2
    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert "boxes left out: 1 twice (of 5)" in caplog.text


POLYGON = [[2, 3, 12, 3, 12, 11, 2, 11]]
TRIANGLE = [[2, 3, 12, 3, 12, 11]]
REPEATS: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("one mask each, equal", {"segmentation": POLYGON}, {"segmentation": POLYGON}, 1),
    ("other masks", {"segmentation": POLYGON}, {"segmentation": TRIANGLE}, 0),
    ("a mask once", {"segmentation": POLYGON}, {"segmentation": []}, 1),
    ("a mask the second time", {"segmentation": []}, {"segmentation": POLYGON}, 1),
    ("another class", {}, {"category_id": 2}, 0),
    ("another image", {}, {"image_id": 12}, 0),
    ("a box beside", {}, {"bbox": [2, 3, 10, 9]}, 0),
    ("a crowd region around", {}, {"iscrowd": 1}, 0),
]


@pytest.mark.parametrize(
    ("first", "second", "dropped"), [pytest.param(*row[1:], id=row[0]) for row in REPEATS]
)
def test_boxes_are_twice_the_same_by_image_class_box_and_mask(
    first: dict[str, Any], second: dict[str, Any], dropped: int, tmp_path: Path
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["annotations"][0].update(first)
        repeat(sample, **second)

    data = opened(tmp_path, change)

    assert data.skipped["twice"] == dropped


def test_of_equal_boxes_that_with_a_mask_stays(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")

    def change(sample: dict[str, Any]) -> None:
        sample["annotations"] = sample["annotations"][:1]
        sample["annotations"][0]["segmentation"] = []
        repeat(sample, segmentation=TRIANGLE)

    data = opened(tmp_path, change, masks=True)

    assert not data.repaired
    assert 0 < int(data[0][1]["masks"].sum()) < 10 * 8


# What is refused
# ------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Change, list[str]]] = [
    (
        "half a pixel",
        lambda sample: sample["images"][1].update(width=40.5),
        ["images[1].width", "11", "40.5"],
    ),
    (
        "an id between numbers",
        lambda sample: sample["annotations"][2].update(image_id=11.5),
        ["annotations[2].image_id", "11.5"],
    ),
    (
        "an id that lost digits",
        lambda sample: sample["annotations"][2].update(image_id=1e17),
        ["annotations[2].image_id", "1e+17"],
    ),
    (
        "no class",
        lambda sample: sample["annotations"][1].update(category_id=None),
        ["annotations[1].category_id", "None"],
    ),
    (
        "the name of a class as its id",
        lambda sample: sample["annotations"][1].update(category_id="red"),
        ["annotations[1]", "'red'", "category 5"],
    ),
    (
        "ids that are equal as numbers",
        lambda sample: sample["images"][1].update(id="10"),
        ["images", "10"],
    ),
    (
        "a decimal comma",
        lambda sample: sample["annotations"][1].update(bbox=["1,5", 2, 3, 4]),
        ["annotations[1].bbox[0]", "'1,5'"],
    ),
    (
        "a box that is a dict",
        lambda sample: sample["annotations"][1].update(bbox={"x": 1}),
        ["annotations[1].bbox", "{'x': 1}", "four numbers"],
    ),
    (
        "null in a box",
        lambda sample: sample["annotations"][1].update(bbox=[1, None, 3, 4]),
        ["annotations[1].bbox[1]", "None"],
    ),
    (
        "a flag of neither",
        lambda sample: sample["annotations"][1].update(iscrowd="maybe"),
        ["annotations[1].iscrowd", "'maybe'"],
    ),
    (
        "corners, by detectron2's word",
        lambda sample: sample["annotations"][1].update(bbox_mode=0),
        ["annotations[1]", "bbox_mode 0", "expected 1"],
    ),
    (
        "a name of blanks",
        lambda sample: sample["categories"][1].update(name="  "),
        ["categories[1]", "'  '", "name of a class"],
    ),
    ("no annotations", lambda sample: sample.pop("annotations"), ["annotations"]),
    ("no file_name", lambda sample: sample["images"][1].pop("file_name"), ["images[1]", "11"]),
    (
        "an entry that is a number",
        lambda sample: sample["annotations"].append(7),
        ["annotations[4]", "7"],
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_what_has_no_exact_reading_is_refused_with_its_value(
    change: Change, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        opened(tmp_path, change)

    for word in ["boxes.json", *words]:
        assert word in str(refused.value)


TEXTS: list[tuple[str, bytes, str]] = [
    (
        "results",
        b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]',
        "results",
    ),
    ("labelme", b'{"shapes": [], "imagePath": "a.png"}', "labelme"),
    ("VIA", b'{"_via_img_metadata": {}}', "VIA"),
    ("GeoJSON", b'{"type": "FeatureCollection", "features": []}', "GeoJSON"),
    ("Label Studio", b'[{"data": {}, "annotations": []}]', "Label Studio"),
    ("annotations alone", b'[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "a list of annotations"),
    ("detectron2", b'[{"file_name": "a.png", "annotations": []}]', "detectron2"),
    ("Datumaro", b'{"items": [], "categories": {}}', "Datumaro"),
    ("Supervisely", b'{"objects": [], "size": {}}', "Supervisely"),
    ("a number", b"3", "images, annotations and categories"),
    ("latin-1", '{"images": "ä"}'.encode("latin-1"), "UTF-8"),
    ("nested", b"[" * 100_000, "JSON"),
    ("nothing", b"", "is empty"),
    ("blanks", b" \n\n", "is empty"),
    ("gzip", gzip.compress(json.dumps(content()).encode()), r"compressed \(gzip\)"),
    ("bzip2", bz2.compress(b"{}"), r"compressed \(bzip2\)"),
    ("xz", lzma.compress(b"{}"), r"compressed \(xz\)"),
    ("ZIP", b"PK\x03\x04\x14\0", "ZIP archive"),
    ("XML", b"\n<annotation><object/></annotation>", "Pascal VOC"),
    ("JSON lines", b'{"image": "a.png"}\n{"image": "b.png"}\n', "JSON lines"),
    ("a line and a half", b'{"image": "a.png"}\n{"image"', "complete COCO JSON"),
    ("VIA, annotations", b'{"a.png90": {"filename": "a.png", "regions": []}}', "VIA in its own"),
    ("FiftyOne", b'{"classes": [], "labels": {}}', "FiftyOne"),
    ("Darwin", b'{"version": "2", "item": {}, "annotations": []}', "Darwin"),
    ("JSON-MIN", b'[{"image": "a.png", "id": 1, "annotation_id": 2}]', "JSON-MIN"),
    ("a list", b'[{"x": 1}, {"x": 2}]', "holds a list of 2 entries; expected a COCO JSON"),
    ("a number of 5000 digits", b'{"images": ' + b"7" * 5000 + b"}", "JSON"),
    (
        "a list twice",
        json.dumps(content()).replace('"categories"', '"annotations": [], "categories"').encode(),
        "annotations more than once",
    ),
]


@pytest.mark.parametrize(("text", "word"), [pytest.param(*row[1:], id=row[0]) for row in TEXTS])
def test_other_files_are_refused_by_what_they_are(text: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)

    with pytest.raises(DataError, match=word):
        BoxImages(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        pytest.param("boxes.csv", "file,x,y,w,h\n0.png,1,2,3,4\n", "a table", id="CSV"),
        pytest.param("0.txt", "0 0.5 0.5 0.1 0.1\n", "text, as YOLO's boxes are", id="YOLO"),
        pytest.param(
            "data.YAML", "names: [red]\n", "YAML, as YOLO's list of classes is", id="YAML"
        ),
    ],
)
def test_files_of_boxes_that_are_no_json_name_the_page_that_converts_them(
    name: str, text: str, form: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)

    with pytest.raises(DataError) as error:
        BoxImages(file)

    remedy = "convert it to COCO JSON (docs/how-to/boxes.md)"
    assert str(error.value) == f"{file} is {form}, not JSON; {remedy}"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param("0.txt", ".txt files, such as YOLO's boxes; convert them to", id="YOLO"),
        pytest.param("0.xml", ".xml files, such as Pascal VOC's boxes; convert them to", id="VOC"),
    ],
)
def test_folders_of_boxes_name_the_page_that_converts_them(
    name: str, form: str, tmp_path: Path
) -> None:
    (tmp_path / name).touch()

    with pytest.raises(DataError) as error:
        BoxImages(tmp_path)

    assert str(error.value) == (
        f"{tmp_path} is a folder of {form} COCO JSON (docs/how-to/boxes.md)"
    )


def test_a_json_in_a_folder_is_proposed(tmp_path: Path) -> None:
    file = write(tmp_path, content())

    with pytest.raises(DataError, match="is a folder; pass a JSON file in it, such as") as error:
        BoxImages(tmp_path)

    assert str(error.value).endswith(f" {file}")


@pytest.mark.parametrize(
    ("classes", "word"),
    [("red", "'red'"), ([], r"\[\]"), (["red", "red"], "'red'"), (["rad"], "Did you mean 'red'")],
    ids=["a text", "none", "twice", "unknown"],
)
def test_classes_that_cannot_be_chosen_are_refused(classes: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=word):
        opened(tmp_path, lambda sample: None, classes=classes)


@pytest.mark.parametrize("rows", [[], [0, 0], [-1], [3]], ids=["none", "twice", "negative", "more"])
def test_rows_are_taken_once_each(rows: list[int], tmp_path: Path) -> None:
    data = opened(tmp_path, lambda sample: None)

    with pytest.raises(DataError, match="rows are"):
        data.take(rows)


# Crowd regions
# ------------------------------------------------------------------------------------------------


def test_crowd_regions_are_objects_where_it_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = set_all("annotations", "iscrowd", lambda _: 1)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, change, crowd="objects")

    assert data.numbers == {10: 2, 11: 2, 12: 0}
    assert [entry["iscrowd"] for entry in data.ground_truth()["annotations"]] == [0, 0, 0, 0]
    assert not data.skipped
    assert not caplog.messages


def test_objects_marked_as_crowd_are_counted_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, set_all("annotations", "iscrowd", lambda _: 1))

    assert data.numbers == {10: 0, 11: 0, 12: 0}
    assert "4 of 4 objects are marked iscrowd=1" in caplog.text
    assert "--crowd objects" in caplog.text


# Values that other programs read
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "value"),
    [
        ("ignore", 1),
        ("ignore", True),
        ("ignore", "1"),
        ("ignore", "True"),
        ("ignore", "yes"),
        ("is_crowd", 1),
        ("isCrowd", 1),
        ("IsGroupOf", True),
        ("ignored", 1),
        ("deleted", True),
        ("difficult", 1),
        ("is_group_of", 1),
    ],
)
def test_objects_that_are_marked_as_no_plain_ones_are_named(
    mark: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, lambda sample: sample["annotations"][1].update({mark: value}))

    [line] = caplog.messages
    assert f"1 of 4 boxes have {mark}={value}, such as annotations[1]" in line
    assert data.numbers[10] == 2


def test_marks_among_the_attributes_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attributes = {"ignore": True, "occluded": False, "rotation": 0.0}

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, lambda sample: sample["annotations"][1].update(attributes=attributes))

    [line] = caplog.messages
    assert "1 of 4 boxes have ignore=True, such as annotations[1]" in line


@pytest.mark.parametrize("ignore", [0, False, None, "0", "False", 0.0])
def test_objects_that_are_not_marked_ignore_have_no_line(
    ignore: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, set_all("annotations", "ignore", lambda _: ignore))

    assert not caplog.messages


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_images_of_which_only_some_classes_are_annotated_are_named(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["images"][1][key] = [5]
        sample["images"][2][key] = []

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, change)

    [line] = caplog.messages
    assert "1 of 3 images state that only some classes are annotated in them" in line
    assert f"({key}), such as '1.png'" in line
    assert data.numbers == {10: 2, 11: 2, 12: 0}


@pytest.mark.parametrize("mode", [1, None, "BoxMode.XYWH_ABS"])
def test_the_box_mode_of_coco_is_read(mode: Any, tmp_path: Path) -> None:
    data = opened(tmp_path, set_all("annotations", "bbox_mode", lambda _: mode))

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS


@pytest.mark.parametrize("step", [-1, 1], ids=["from 0", "from 2"])
def test_images_and_boxes_that_are_counted_differently_are_named(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        for entry in sample["annotations"]:
            entry["image_id"] += step
        outer = sample["annotations"][-1] | {"id": 98, "image_id": 11 + 2 * step}
        sample["annotations"].append(outer)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, change)

    assert "the images have the ids 10 ... 12. If one is counted from 0" in caplog.text


def test_boxes_of_images_that_are_not_listed_are_left_out_without_a_guess(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        for image_id in (9, 13, 4000):
            entry = sample["annotations"][0] | {"id": image_id, "image_id": image_id}
            sample["annotations"].append(entry)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, change)

    [line] = caplog.messages
    assert "3 unknown image" in line


# Contradictions within a file
# ------------------------------------------------------------------------------------------------


def spelled(folder: Path, old: str, new: str) -> Path:
    """Write the sample with a part of its text replaced."""
    text = json.dumps(content())
    assert old in text
    return write(folder, text.replace(old, new, 1))


TWICE: list[tuple[str, str, str, list[str]]] = [
    ("a box", '"bbox": [2, 3', '"bbox": [9, 9, 5, 5], "bbox": [2, 3', ["id 0", "bbox", "[9, 9"]),
    (
        "a class",
        '"category_id": 5',
        '"category_id": 5, "category_id": 2',
        ["category_id", "5 and 2"],
    ),
    ("a file", '"file_name": "0.png"', '"file_name": "0.png", "file_name": "1.png"', ["id 10"]),
    ("a name", '"name": "red"', '"name": "red", "name": "rose"', ["'red' and 'rose'"]),
    ("a side", '"width": 40', '"width": 40, "width": 30', ["width", "40 and 30"]),
]


@pytest.mark.parametrize(
    ("old", "new", "words"), [pytest.param(*row[1:], id=row[0]) for row in TWICE]
)
def test_a_key_that_an_entry_has_twice_is_refused_with_both_values(
    old: str, new: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        BoxImages(spelled(tmp_path, old, new))

    assert "twice" in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    assert str(refused.value).count("boxes.json") == 1
    assert str(refused.value).endswith("keep the right one")


def test_a_key_that_repeats_its_value_or_is_not_read_may_occur_twice(tmp_path: Path) -> None:
    file = spelled(
        tmp_path,
        '"bbox": [2, 3, 10, 8]',
        '"bbox": [2, 3, 10, 8], "bbox": [2, 3, 10, 8], "attributes": {"id": 3, "x": 1, "x": 2}',
    )

    data = BoxImages(file)

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('"images"', '"info": {"a": 1}, "info": {"b": 2}, "images"', id="of the file"),
        pytest.param('"iscrowd": 0', '"iscrowd": 0, "note": 1, "note": 2', id="of a box"),
    ],
)
def test_a_key_that_is_not_read_may_have_two_values(old: str, new: str, tmp_path: Path) -> None:
    data = BoxImages(spelled(tmp_path, old, new))

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS


def test_run_lengths_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    segmentation = '"segmentation": {"size": [30, 40], "counts": [1200], "counts": [0, 1200]}'

    with pytest.raises(DataError, match=r"has counts twice, .*; keep the right one"):
        BoxImages(spelled(tmp_path, '"iscrowd": 0', f'"iscrowd": 0, {segmentation}'))


def test_a_name_that_licences_have_twice_is_not_read(tmp_path: Path) -> None:
    licence = '"licenses": [{"id": 1, "name": "a", "name": "b"}], "categories"'
    file = spelled(tmp_path, '"categories"', licence)

    assert BoxImages(file).classes == ("blue", "red")


def test_a_list_that_is_there_twice_and_equal_is_read_once(tmp_path: Path) -> None:
    categories = json.dumps(content()["categories"])
    file = spelled(tmp_path, '"categories"', f'"categories": {categories}, "categories"')

    assert BoxImages(file).classes == ("blue", "red")


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_entry_that_repeats_another_one_is_dropped(part: str, tmp_path: Path) -> None:
    data = opened(
        tmp_path, lambda sample: sample[part].append({**sample[part][0], "note": "again"})
    )

    assert data.ids == (10, 11, 12)
    assert data.classes == ("blue", "red")
    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.repaired == {"entries that repeat an earlier one, dropped": 1}


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("images", {"width": WIDTH + 1}),
        ("images", {"file_name": "9.png"}),
        ("categories", {"name": "rose"}),
    ],
)
def test_two_entries_of_one_id_are_refused(
    part: str, change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"{part}: the id .* more than once"):
        opened(tmp_path, lambda sample: sample[part].append({**sample[part][0], **change}))


def test_ids_of_annotations_may_be_there_twice(tmp_path: Path) -> None:
    data = opened(tmp_path, set_all("annotations", "id", lambda _: 7))

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.repaired == {"annotations with the id of an earlier one": 3}


def test_two_classes_of_one_box_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["annotations"].append({**sample["annotations"][3], "id": 77, "category_id": 5})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, change)

    [line] = caplog.messages
    assert "1 of 5 boxes are in the place of a box of another class" in line
    assert "annotations[3] (id 3), 'blue', and annotations[4] (id 77), 'red'" in line
    assert "both [5.25, 6.0, 7.0, 8.0] in image 11" in line
    assert data.numbers[11] == 3


def test_equal_boxes_with_masks_of_their_own_are_two_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        first = sample["annotations"][0]
        first["segmentation"] = [[2, 3, 12, 3, 12, 11]]
        other = {"id": 77, "category_id": 2, "segmentation": [[2, 3, 12, 11, 2, 11]]}
        sample["annotations"].append({**first, **other})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, change)

    assert not caplog.messages


# Everyday files of exporters
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("super_id", [0, 9])
def test_a_super_category_of_equal_name_without_objects_is_dropped(
    super_id: int, tmp_path: Path
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["categories"].insert(0, {"id": super_id, "name": "red", "supercategory": "none"})

    data = opened(tmp_path, change)

    assert data.classes == ("blue", "red")
    assert data.category_ids == (2, 5)
    assert [data[i][1]["labels"].tolist() for i in range(3)] == LABELS
    kind = "categories without objects that have the name of another one, dropped"
    assert data.repaired == {kind: 1}


def test_two_categories_of_one_name_that_both_have_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the name 'red' stands more than once; give its objects"):
        opened(tmp_path, set_all("categories", "name", lambda _: "red"))


@pytest.mark.parametrize("keys", [("width", "height"), ("width",)], ids=["both", "one"])
@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_size_of_0_is_read_from_the_image(
    zero: float, keys: tuple[str, ...], tmp_path: Path
) -> None:
    def change(sample: dict[str, Any]) -> None:
        for image in sample["images"]:
            image.update(dict.fromkeys(keys, zero))

    data = opened(tmp_path, change)

    assert data[0][1]["size"] == (HEIGHT, WIDTH)
    assert data.repaired == {"image sizes read from the images": 3}


def test_names_relative_to_the_file_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = content()
    for image in sample["images"]:
        image["file_name"] = f"../images/{image['file_name']}"
    file = write(tmp_path / "annotations", sample, images=tmp_path / "images")

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(file)
        from_folder = BoxImages(file, tmp_path / "images")

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert [path.name for path in from_folder.paths] == ["0.png", "1.png", "2.png"]
    assert not caplog.messages


@pytest.mark.parametrize("part", ["", "default"], ids=["images", "images/default"])
def test_images_next_to_the_folder_of_annotations_are_found(part: str, tmp_path: Path) -> None:
    images = tmp_path / "images" / part

    data = BoxImages(write(tmp_path / "annotations", content(), images=images))

    assert data.paths == tuple(images / f"{i}.png" for i in range(3))
    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS


def test_the_option_of_the_folder_is_named_where_images_are_not_found(tmp_path: Path) -> None:
    file = write(tmp_path / "a", content(), images=tmp_path / "b")

    with pytest.raises(DataError, match=r"3 of 3 images .* images= \(--images\)"):
        BoxImages(file)
    assert BoxImages(file, tmp_path / "b").ids == (10, 11, 12)


def test_a_folder_that_was_named_has_no_second_option(tmp_path: Path) -> None:
    file = write(tmp_path, content())
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError) as refused:
        BoxImages(file, images=tmp_path / "empty")

    assert "The option for it" not in str(refused.value)
    assert str(tmp_path / "empty") in str(refused.value)


def test_an_entry_is_named_by_its_place_and_its_id() -> None:
    assert name_entry("annotations", 3) == "annotations[3]"
    assert name_entry("annotations", 3, 69) == "annotations[3] (id 69)"


def test_annotations_inside_of_images_are_refused(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["images"][0]["annotations"] = sample["annotations"][:2]
        sample["annotations"] = []

    with pytest.raises(DataError, match="annotations of 1 of 3 images inside of their entries"):
        opened(tmp_path, change)


def test_names_are_taken_from_addresses_where_there_are_none(tmp_path: Path) -> None:
    sample = content()
    for image in sample["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.example.org/train2017/{name}"
    file = write(tmp_path, sample, images=tmp_path / "train2017")

    data = BoxImages(file)

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.repaired == {"file names taken from coco_url": 3}


def test_a_file_may_lack_classes_without_objects_where_it_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = ["blue", "green", "red"]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, lambda sample: None, classes=classes, allow_unlisted=True)

    assert data.classes == ("blue", "green", "red")
    assert data.category_ids == (2, None, 5)
    assert [data[i][1]["labels"].tolist() for i in range(3)] == [[2, 0], [2, 0], []]
    assert data.class_counts == {"blue": 2, "green": 0, "red": 2}
    assert "lists no category 'green'" in caplog.text


@pytest.mark.parametrize(
    ("classes", "word"),
    [
        (["blue", "read"], "Did you mean 'red'"),
        (["green", "rye"], "none of the classes, such as 'green'"),
    ],
    ids=["another spelling", "none of them"],
)
def test_classes_that_a_file_may_not_lack_are_refused(
    classes: list[str], word: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=word):
        opened(tmp_path, lambda sample: None, classes=classes, allow_unlisted=True)


def stem_of(image_id: int) -> str:
    return str(image_id - 10)


def name_of(image_id: int) -> str:
    return f"{image_id - 10}.png"


@pytest.mark.parametrize("convert", [name_of, stem_of], ids=["file name", "without suffix"])
def test_annotations_may_name_the_files_of_their_images(
    convert: Callable[[int], str], tmp_path: Path
) -> None:
    data = opened(tmp_path, set_all("annotations", "image_id", convert))

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.ids == (10, 11, 12)
    assert data.repaired == {"image_id written as the name of the file": 4}


def test_annotations_may_name_some_of_their_images_and_number_others(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["annotations"][0]["image_id"] = "0.png"

    data = opened(tmp_path, change)

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.repaired == {"image_id written as the name of the file": 1}


def test_names_of_images_are_not_looked_for_where_an_image_has_none(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        set_all("annotations", "image_id", name_of)(sample)
        del sample["images"][2]["file_name"]

    with pytest.raises(DataError, match="file_name"):
        opened(tmp_path, change)


SHUFFLED = {10: "12.png", 11: "10.png", 12: "11.png"}


@pytest.mark.parametrize("form", ["{}", "{:04}"], ids=["plain", "with zeros"])
def test_an_image_id_that_is_an_id_and_the_name_of_another_image_is_refused(
    form: str, tmp_path: Path
) -> None:
    sample = content()
    for image in sample["images"]:
        image["file_name"] = f"{form.format(int(SHUFFLED[image['id']][:-4]))}.png"
    for entry in sample["annotations"]:
        entry["image_id"] = form.format(entry["image_id"])
    file = write(tmp_path, sample)

    with pytest.raises(DataError) as refused:
        BoxImages(file)

    name = form.format(10)
    assert f"image_id '{name}' is the id of the image '{form.format(12)}.png'" in str(refused.value)
    assert f"the name of '{name}.png'" in str(refused.value)


def test_an_image_id_that_is_the_id_and_the_name_of_one_image_is_read(tmp_path: Path) -> None:
    sample = content()
    for i, image in enumerate(sample["images"]):
        image["id"] = i
    for entry in sample["annotations"]:
        entry["image_id"] = str(entry["image_id"] - 10)

    data = BoxImages(write(tmp_path, sample))

    assert data.ids == (0, 1, 2)
    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS


@pytest.mark.parametrize(("part", "key"), [("images", "id"), ("annotations", "image_id")])
def test_zeros_before_numbers_are_cut_where_the_other_side_has_none(
    part: str, key: str, tmp_path: Path
) -> None:
    data = opened(tmp_path, set_all(part, key, "{:06}".format))

    assert [data[i][1]["boxes"].tolist() for i in range(3)] == CORNERS
    assert data.ids == (10, 11, 12)


def test_zeros_before_numbers_stay_where_both_sides_have_them(tmp_path: Path) -> None:
    change = both(
        set_all("images", "id", "{:06}".format), set_all("annotations", "image_id", "{:06}".format)
    )

    data = opened(tmp_path, change)

    assert data.ids == ("000010", "000011", "000012")
    assert not data.repaired


SCORED: list[tuple[str, dict[str, Any], str]] = [
    ("a number", {"score": 0.25}, "score"),
    ("a text", {"score": "0.25"}, "score"),
    ("a confidence", {"confidence": 0.25}, "confidence"),
    ("of attributes", {"attributes": {"confidence": 0.25}}, "confidence"),
]


@pytest.mark.parametrize(("values", "key"), [pytest.param(*row[1:], id=row[0]) for row in SCORED])
def test_boxes_with_a_score_are_named(
    values: dict[str, Any], key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = opened(tmp_path, lambda sample: sample["annotations"][2].update(values))

    [line] = caplog.messages
    assert f"1 of 4 boxes have a {key}, as predictions have, such as annotations[2] (id 2)" in line
    assert "with 0.25" in line
    assert data.numbers[11] == 2


@pytest.mark.parametrize("score", [None, "", "high", True])
def test_what_is_no_number_is_no_score(
    score: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        opened(tmp_path, lambda sample: sample["annotations"][2].update(score=score))

    assert not caplog.messages


# Files of another kind
# ------------------------------------------------------------------------------------------------


def test_a_panoptic_file_in_the_place_of_boxes_is_named_with_its_option(tmp_path: Path) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["annotations"] = [{"image_id": 10, "file_name": "0.png", "segments_info": []}]

    with pytest.raises(DataError, match=r"holds panoptic segments.*--panoptic FOLDER FILE"):
        opened(tmp_path, change)


def test_a_file_of_boxes_in_the_place_of_segments_is_named_with_its_option(tmp_path: Path) -> None:
    file = write(tmp_path, content())

    with pytest.raises(DataError, match=r"holds boxes or masks.*--boxes or --instances"):
        PanopticImages(file, tmp_path)


def test_boxes_in_the_place_of_masks_are_named_with_their_option(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")

    with pytest.raises(DataError, match=r"none of the 4 objects has a mask.*\(--boxes\)"):
        opened(tmp_path, lambda sample: None, masks=True)


# EXIF
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "size", "is_named"),
    [
        (1, (WIDTH, HEIGHT), False),
        (3, (WIDTH, HEIGHT), True),
        (2, (WIDTH, HEIGHT), True),
        (6, (HEIGHT, WIDTH), False),
        (6, (WIDTH, WIDTH), True),
        (8, (WIDTH, WIDTH), True),
        (1, (WIDTH, WIDTH), False),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_of_which_exif_hides_the_frame_are_counted(
    suffix: str,
    orientation: int,
    size: tuple[int, int],
    is_named: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / f"0.{suffix}", exif=exif)
    width, height = size[::-1] if orientation in (6, 8) else size
    sample = content()
    sample["images"] = [{"id": 10, "file_name": f"0.{suffix}", "width": width, "height": height}]
    sample["annotations"] = sample["annotations"][:2]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(sample))
    data = BoxImages(file)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data.warn_of_turned_images()

    if is_named:
        [line] = caplog.messages
        assert "1 image with objects turned or mirrored by the EXIF tag" in line
        assert "read as those of the upright image" in line
    else:
        assert not caplog.messages
