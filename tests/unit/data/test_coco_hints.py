"""What entries of a COCO file state a second time is compared with what is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.box_samples import content, write

from dinoneck import DataError
from dinoneck.data import BoxImages, PanopticImages

Change = Callable[[dict[str, Any]], Any]
NAME_OF = {5: "red", 2: "blue"}


def lines_of(folder: Path, change: Change, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of the sample after a change of its content."""
    sample = content()
    change(sample)
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(write(folder, sample))
    # whatever is stated a second time, the objects are those of the sample
    assert data.numbers == {10: 2, 11: 2, 12: 0}
    assert data.class_counts == {"blue": 2, "red": 2}
    return caplog.messages


# Names of classes
# ------------------------------------------------------------------------------------------------


def name_classes(key: str, of_second: str, spell: Callable[[str], Any] = str) -> Change:
    """State the name of every category in its annotations, and another one in the second."""

    def change(sample: dict[str, Any]) -> None:
        for entry in sample["annotations"]:
            entry[key] = spell(NAME_OF[entry["category_id"]])
        sample["annotations"][1][key] = spell(of_second)

    return change


@pytest.mark.parametrize("key", ["category_name", "category"])
@pytest.mark.parametrize("name", ["red", "Red ", "weed"])
def test_a_category_name_that_is_not_that_of_its_id_is_counted(
    name: str, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = lines_of(tmp_path, name_classes(key, name), caplog)

    assert f"1 of 4 objects have a {key} that is not the name of their category_id" in line
    assert f"annotations[1] (id 1) with the category_id 2 ('blue') and the {key} {name!r}" in line


def test_the_name_in_a_dict_of_the_category_is_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = name_classes("category", "red", lambda name: {"name": name})

    [line] = lines_of(tmp_path, change, caplog)

    assert "and the category 'red'" in line


def rename_all(sample: dict[str, Any]) -> None:
    for entry in sample["annotations"]:
        entry["category_name"] = f"old {entry['category_id']}"


SOUND_NAMES: list[tuple[str, Change]] = [
    ("equal", name_classes("category_name", "blue")),
    ("in another case", name_classes("category_name", "BLUE")),
    ("empty", name_classes("category_name", "")),
    ("of renamed categories", rename_all),
]


@pytest.mark.parametrize("change", [row[1] for row in SOUND_NAMES], ids=[r[0] for r in SOUND_NAMES])
def test_category_names_that_may_be_right_are_read_without_a_word(
    change: Change, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not lines_of(tmp_path, change, caplog)


# Names and sizes of images
# ------------------------------------------------------------------------------------------------


def set_images(key: str, values: list[Any]) -> Change:
    def change(sample: dict[str, Any]) -> None:
        for image, value in zip(sample["images"], values, strict=True):
            image[key] = value

    return change


def set_annotations(**values: list[Any]) -> Change:
    def change(sample: dict[str, Any]) -> None:
        for key, entries in values.items():
            for annotation, value in zip(sample["annotations"], entries, strict=True):
                annotation[key] = value

    return change


OTHER_NAMES: list[tuple[str, Change, str]] = [
    (
        "path of another image",
        set_images("path", ["/data/0.png", "/data/0.png", "/data/2.png"]),
        "the path of 1 of 3 entries names another image than its own, such as '/data/0.png' of "
        "images[1] (id 11), whose image is '1.png'",
    ),
    (
        "exchanged paths",
        set_images("path", ["C:\\field\\1.png", "C:\\field\\0.png", "C:\\field\\2.png"]),
        "the path of 2 of 3 entries",
    ),
    (
        "path of no image",
        set_images("path", ["/data/0.png", "/data/weed.png", "/data/2.png"]),
        "'/data/weed.png' of images[1] (id 11)",
    ),
    (
        "exchanged names of Roboflow",
        set_images("extra", [{"name": "1.jpg"}, {"name": "0.jpg"}, {"user_tags": []}]),
        "the extra.name of 2 of 2 entries",
    ),
    (
        "file_name in annotations",
        set_annotations(file_name=["0.png", "0.png", "1.png", "2.png"]),
        "the file_name of 1 of 4 entries names another image than its own, such as '2.png' of "
        "annotations[3] (id 3), whose image is '1.png'",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in OTHER_NAMES]
)
def test_an_entry_that_names_another_image_is_counted(
    change: Change, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = lines_of(tmp_path, change, caplog)

    assert words in line


SOUND_HINTS: list[tuple[str, Change]] = [
    ("paths", set_images("path", ["/data/0.png", "/data/1.png", "data\\2.png"])),
    ("paths of another suffix", set_images("path", ["/data/0.tif", "/data/1.tif", "/data/2.tif"])),
    ("folders", set_images("path", ["/data", "/data/", ""])),
    ("renamed images", set_images("path", ["/a/x.png", "/a/y.png", "/a/z.png"])),
    ("other extras", set_images("extra", [{"name": 1}, None, "0.png"])),
    ("a cut name", set_images("extra", [{"name": "0.jpg"}, {"name": "1.jpg"}, {"name": "2ü.jpg"}])),
    ("file_name", set_annotations(file_name=["0.png", "images/0.png", "1.jpg", "1.png"])),
    ("sizes of images", set_annotations(width=[40, 40, 40, 40], height=[30, 30, 30, 30])),
    ("sizes of boxes", set_annotations(width=[10, 12, 40, 7], height=[8, 13, 30, 8])),
    ("sizes of turned boxes", set_annotations(width=[9, 14, 33, 5], height=[4, 9, 20, 3])),
    ("width of a line", set_annotations(width=[2, 2, 2, 2])),
]


@pytest.mark.parametrize("change", [row[1] for row in SOUND_HINTS], ids=[r[0] for r in SOUND_HINTS])
def test_hints_that_may_be_right_are_read_without_a_word(
    change: Change, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not lines_of(tmp_path, change, caplog)


def test_names_of_roboflow_are_those_before_its_mark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["field-a-1-_jpg.rf.1f0c.png", "field-b_jpg.rf.22aa.png", "2.png"]
    sample = content()
    for image, name in zip(sample["images"], names, strict=True):
        image["file_name"] = name
    for image, name in zip(
        sample["images"], ["field a (1).jpg", "field b.jpg", "2.png"], strict=True
    ):
        image["extra"] = {"name": name}
    file = write(tmp_path, sample)
    for i, name in enumerate(names):
        (tmp_path / f"{i}.png").rename(tmp_path / name)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(file)

    assert not caplog.messages


def test_the_folder_tells_images_of_one_name_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = content()
    for image, folder in zip(sample["images"], "abc", strict=True):
        image["file_name"] = f"{folder}/1.png"
        image["path"] = f"/data/{folder}/1.png"
    sample["images"][2]["path"] = "/data/b/1.png"
    file = write(tmp_path, sample)
    for i, folder in enumerate("abc"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{i}.png").rename(tmp_path / folder / "1.png")

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(file)

    [line] = caplog.messages
    assert "the path of 1 of 3 entries" in line
    assert "'/data/b/1.png' of images[2] (id 12), whose image is 'c/1.png'" in line


OTHER_SIZES: list[tuple[str, list[int], list[int], str]] = [
    ("one", [40, 40, 40, 80], [30, 30, 30, 60], "1 of 4 annotations state another size"),
    ("all", [80, 80, 80, 80], [60, 60, 60, 60], "4 of 4 annotations state another size"),
    ("exchanged", [40, 30, 40, 40], [30, 40, 30, 30], "1 of 4 annotations state another size"),
]


@pytest.mark.parametrize(
    ("widths", "heights", "words"), [pytest.param(*row[1:], id=row[0]) for row in OTHER_SIZES]
)
def test_annotations_of_images_of_another_size_are_counted(
    widths: list[int],
    heights: list[int],
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [line] = lines_of(tmp_path, set_annotations(width=widths, height=heights), caplog)

    assert words in line
    assert "with 40x30 px" in line


def test_sizes_in_annotations_are_not_compared_with_those_that_the_file_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        set_annotations(width=[80, 80, 40, 40], height=[60, 60, 30, 30])(sample)
        del sample["images"][0]["width"]

    lines = lines_of(tmp_path, change, caplog)

    assert not [line for line in lines if "another size" in line]


def test_sizes_in_an_annotation_without_a_box_are_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        set_annotations(width=[10, 40, 40, 40], height=[8, 30, 30, 30])(sample)
        del sample["annotations"][0]["bbox"]
        sample["annotations"][0]["segmentation"] = [[2, 3, 12, 3, 12, 11, 2, 11]]

    lines = lines_of(tmp_path, change, caplog)

    assert not [line for line in lines if "another size" in line]


# The form of boxes
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["xyxy", "XYXY_ABS", "BoxMode.XYXY_ABS", "pascal_voc", "cxcywh"])
def test_another_form_of_boxes_is_refused_by_its_word(word: str, tmp_path: Path) -> None:
    sample = content()
    sample["annotations"][1]["bbox_format"] = word

    with pytest.raises(DataError) as refused:
        BoxImages(write(tmp_path, sample))

    assert f"annotations[1] (id 1) has the bbox_format {word!r}; expected 'xywh'" in str(
        refused.value
    )


def test_another_form_of_boxes_in_info_is_refused(tmp_path: Path) -> None:
    sample = content() | {"info": {"bbox_format": "xyxy"}}

    with pytest.raises(DataError, match="info has the bbox_format 'xyxy'; expected 'xywh'"):
        BoxImages(write(tmp_path, sample))


@pytest.mark.parametrize("word", ["xywh", "XYWH_ABS", "coco", None])
def test_the_form_of_coco_is_read_without_a_word(
    word: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(sample: dict[str, Any]) -> None:
        sample["info"] = {"bbox_format": word}
        sample["annotations"][0]["bbox_format"] = word

    assert not lines_of(tmp_path, change, caplog)


def test_an_unknown_form_of_boxes_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = lines_of(tmp_path, lambda s: s.update(info={"bbox_format": "v2"}), caplog)

    assert "info has the bbox_format 'v2', which is unknown" in line


# Panoptic segments
# ------------------------------------------------------------------------------------------------


def panoptic(folder: Path, **of_second: Any) -> Path:
    """Write an image with two segments, of which the second states more."""
    ids = np.ones((6, 8), np.uint8)
    ids[2:4, 3:6] = 2
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1)).save(folder / "segments.png")
    Image.new("RGB", (8, 6)).save(folder / "image.jpg")
    segments = [{"id": 1, "category_id": 4}, {"id": 2, "category_id": 9, **of_second}]
    sample = {
        "images": [{"id": 3, "file_name": "image.jpg", "width": 8, "height": 6}],
        "annotations": [{"image_id": 3, "file_name": "segments.png", "segments_info": segments}],
        "categories": [
            {"id": 4, "name": "sky", "isthing": 0},
            {"id": 9, "name": "cell", "isthing": 1},
        ],
    }
    file = folder / "segments.json"
    file.write_text(json.dumps(sample))
    return file


HINTS_OF_SEGMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("name", {"category_name": "sky"}, "category_id 9 ('cell') and the category_name 'sky'"),
    (
        "isthing 0",
        {"isthing": 0},
        "that of the segment 2 of annotations[0], 0, with the category_id 9",
    ),
    ("isthing false", {"isthing": False}, "the isthing of 1 of 1 segments is not that of their"),
]


@pytest.mark.parametrize(
    ("stated", "words"), [pytest.param(*row[1:], id=row[0]) for row in HINTS_OF_SEGMENTS]
)
def test_a_segment_that_contradicts_its_category_is_counted(
    stated: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = PanopticImages(panoptic(tmp_path, **stated), tmp_path)

    [line] = caplog.messages
    assert words in line
    assert data.pixels(0)[2, 3] == 2000


def test_a_segment_that_states_its_category_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = panoptic(tmp_path, category_name="cell", isthing=True)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        PanopticImages(file, tmp_path)

    assert not caplog.messages
