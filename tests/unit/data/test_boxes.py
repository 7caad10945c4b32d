"""Images with boxes: the dataset gives what the JSON holds; what cannot be used is named or counted."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import DATA
from tests.unit.data.box_samples import HEIGHT, WIDTH, content, write
from torchvision import tv_tensors

from dinoneck import DataError
from dinoneck.data import BoxImages

Change = Callable[[dict[str, Any]], Any]


def made(folder: Path, change: Change | None = None, **options: Any) -> BoxImages:
    plain = content()
    if change is not None:
        change(plain)
    return BoxImages(write(folder, plain), **options)


def test_an_item_is_what_the_json_holds(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert (data.classes, data.category_ids) == (("blue", "red"), (2, 5)), "by ascending id, not by the file's order"
    assert (data.ids, len(data), data.without_boxes, data.clipped) == ((10, 11, 12), 3, 1, 0)
    assert not data.skipped
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "0.png")))
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert (boxes.format.value, boxes.canvas_size, boxes.dtype) == ("XYXY", (HEIGHT, WIDTH), torch.float32)
    assert boxes.tolist() == [[2, 3, 12, 11], [20, 10, 32, 22.5]]
    assert target["labels"].tolist() == [1, 0]
    assert target["labels"].dtype == torch.int64
    assert (target["image_id"], target["size"]) == (10, (HEIGHT, WIDTH))
    _, empty = data[2]
    assert (empty["boxes"].shape, empty["labels"].shape) == ((0, 4), (0,))
    assert data[-1][1]["image_id"] == 12
    with pytest.raises(IndexError):
        data[3]


def test_the_transform_sees_image_and_target(tmp_path: Path) -> None:
    data = made(tmp_path, transform=lambda image, target: (image.shape, sorted(target)))
    assert data[1] == ((3, HEIGHT, WIDTH), ["boxes", "image_id", "labels", "size"])
    image, boxes = data.original(1)
    assert image.shape == (3, HEIGHT, WIDTH)
    assert boxes.tolist() == [[0, 0, 40, 30], [5.25, 6, 12.25, 14]]


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([5, 5, 0, 10], "too small"),
        ([40, 5, 10, 10], "outside"),
        ([math.nan, 5, 10, 10], "not finite"),
        ([5, 5, math.inf, 10], "not finite"),
        ([5, 5, 0.5, 10], "too small"),
        ([39.5, 5, 5, 10], "outside"),
    ],
)
def test_boxes_that_show_nothing_are_left_out_and_counted(bbox: list[float], reason: str, tmp_path: Path) -> None:
    data = made(tmp_path, lambda c: c["annotations"][0].update(bbox=bbox))
    assert data.skipped == {reason: 1}
    assert data.clipped == 0
    assert data[0][1]["labels"].tolist() == [0]


def test_boxes_over_the_edge_are_cut_there_and_counted(tmp_path: Path) -> None:
    data = made(tmp_path, lambda c: c["annotations"][0].update(bbox=[-5, 20, 15, 40]))
    assert (data.clipped, data.skipped) == (1, {})
    assert data[0][1]["boxes"][0].tolist() == [0, 20, 10, 30]


def test_what_is_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(c: dict[str, Any]) -> None:
        c["annotations"][0]["iscrowd"] = 1
        c["annotations"][1]["image_id"] = 99

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = made(tmp_path, change)
    assert data.skipped == {"crowd": 1, "unknown image": 1}
    assert "boxes skipped: 1 crowd, 1 unknown image" in caplog.text
    assert (data.without_boxes, data[0][1]["labels"].tolist()) == (2, [])
    truth = data.ground_truth()["annotations"]
    assert [(box["id"], box["bbox"], box["iscrowd"]) for box in truth] == [
        (1, [2, 3, 10, 8], 1),
        (2, [0, 0, 40, 30], 0),
        (3, [5.25, 6, 7, 8], 0),
    ]


def test_classes_choose_and_order(tmp_path: Path) -> None:
    data = made(tmp_path, classes=["red", "blue"])
    assert (data.classes, data.category_ids) == (("red", "blue"), (5, 2))
    assert data[0][1]["labels"].tolist() == [0, 1]
    one = made(tmp_path, classes=("blue",))
    assert (one.classes, one.skipped) == (("blue",), {"other class": 2})
    assert one[0][1]["labels"].tolist() == [0]
    with pytest.raises(DataError, match="has no category 'blu'; it has blue, red. Did you mean 'blue'"):
        made(tmp_path, classes=["blu"])
    for wrong in ([], ["red", "red"]):
        with pytest.raises(DataError, match="classes is"):
            made(tmp_path, classes=wrong)


def test_a_part_keeps_images_and_boxes_together(tmp_path: Path) -> None:
    data = made(tmp_path, lambda c: c["annotations"][3].update(iscrowd=1))
    part = data.take([2, 1])
    assert (part.ids, len(part), part.without_boxes, part.classes) == ((12, 11), 2, 1, data.classes)
    assert part[1][1]["boxes"].tolist() == data[1][1]["boxes"].tolist()
    assert torch.equal(part[1][0], data[1][0])
    assert [box["image_id"] for box in part.ground_truth()["annotations"]] == [11, 11]
    assert len(data) == 3


def test_images_are_found_next_to_the_json_in_images_or_in_the_given_folder(tmp_path: Path) -> None:
    next_to = BoxImages(write(tmp_path / "a", content()))
    (tmp_path / "b").mkdir()
    below = BoxImages(write(tmp_path / "b", content(), tmp_path / "b" / "images"))
    (tmp_path / "c").mkdir()
    shown = BoxImages(write(tmp_path / "c", content(), tmp_path / "d"), tmp_path / "d")
    named = [BoxImages(tmp_path / "c" / "boxes.json", images=tmp_path / "d")]
    assert all(torch.equal(data[0][0], next_to[0][0]) for data in (below, shown, *named))
    assert shown.paths[0] == tmp_path / "d" / "0.png"
    with pytest.raises(DataError, match=r"in .* nor in .*images: '0\.png'"):
        BoxImages(tmp_path / "c" / "boxes.json")
    with pytest.raises(DataError, match="nowhere"):
        BoxImages(tmp_path / "c" / "boxes.json", tmp_path / "nowhere")


def entry(kind: str, place: int, **values: Any) -> Change:
    return lambda c: c[kind][place].update(values)


def without(kind: str, place: int, key: str) -> Change:
    return lambda c: c[kind][place].pop(key)


WRONG: list[tuple[str, Change, str]] = [
    ("no images key", lambda c: c.pop("images"), "images"),
    ("no images", lambda c: c.update(images=[]), "images"),
    ("an image is a word", lambda c: c["images"].append("a.png"), r"images\[3\].*'a.png'"),
    ("no id", without("images", 1, "id"), r"images\[1\] is .*`id`"),
    ("no bbox", without("annotations", 2, "bbox"), r"annotations\[2\] is .*`bbox`"),
    ("text id", entry("images", 1, id="11"), r"images\[1\]\.id is '11'"),
    ("zero width", entry("images", 1, width=0), r"images\[1\]\.width is 0"),
    ("image id twice", entry("images", 1, id=10), "images: the id 10"),
    ("box id twice", entry("annotations", 1, id=0), "annotations: the id 0"),
    ("class id twice", entry("categories", 1, id=5), "categories: the id 5"),
    ("class not listed", entry("annotations", 1, category_id=9), r"annotations\[1\] has the category_id 9"),
    ("three numbers", entry("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\]\.bbox is \[1, 2, 3\].*width"),
    ("bbox is null", entry("annotations", 1, bbox=None), r"annotations\[1\]\.bbox is None.*width and height"),
    ("negative side", entry("annotations", 1, bbox=[1, 2, -3, 4]), r"annotations\[1\].*-3.*negative side"),
    ("up and out", entry("images", 1, file_name="../1.png"), r"images\[1\] has the file_name '\.\./1\.png'"),
    ("an absolute path", entry("images", 1, file_name="/etc/passwd"), "the file_name '/etc/passwd'"),
    ("backslashes out", entry("images", 1, file_name="..\\1.png"), "the file_name"),
    ("no file name", entry("images", 1, file_name=""), "the file_name ''"),
    ("no such image", entry("images", 1, file_name="9.png"), r"1 of the 3 images of .*: '9\.png'"),
    ("one image twice", entry("images", 1, file_name="./0.png"), r"the file_name '0\.png'"),
    ("crowd of two", entry("annotations", 1, iscrowd=2), r"annotations\[1\]\.iscrowd is 2"),
    ("images by name", lambda c: c.update(images={"a": 1}), r"images is \{'a': 1\}"),
    ("no categories", lambda c: c.update(categories=[]), "categories"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_entry_is_named(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        made(tmp_path, change)
    assert len(str(caught.value)) < 500 + 2 * len(str(tmp_path))


def test_a_cut_or_missing_json_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, content())
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"boxes\.json cannot be read as JSON"):
            BoxImages(file)
    file.write_bytes(b"\xff\xfe" + whole[:-5])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        BoxImages(file)
    with pytest.raises(DataError, match="cannot be read"):
        BoxImages("")
    file.unlink()
    with pytest.raises(DataError, match="does not exist"):
        BoxImages(file)
    for wrong in (tmp_path, tmp_path / "a\0.json", tmp_path / ("a" * 5000)):
        with pytest.raises(DataError, match="cannot be read"):
            BoxImages(wrong)


def test_an_image_that_is_not_the_one_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, content())
    data = BoxImages(file)
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png is 40x30 px \(height x width\), .* has 30x40 for image 10; its boxes"):
        data[0]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png cannot be decoded"):
        data[1]
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2\.png cannot be decoded"):
        data[2]
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of the 3 images .*: '2\.png'"):
        BoxImages(file)


def blood_cells(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> BoxImages:
    """The first images of the real data, with their annotations changed."""
    folder = DATA / "blood_cells"
    if not folder.is_dir():
        pytest.skip("the real data are not next to the repository")
    content = json.loads((folder / "val.json").read_text())
    content["images"] = content["images"][:16]
    kept = {entry["id"] for entry in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    change(content)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return BoxImages(tmp_path / "boxes.json", folder / "images")


def as_corners(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]


def as_shares(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["bbox"] = [value / side for value, side in zip(entry["bbox"], (640, 480, 640, 480), strict=True)]


def test_boxes_of_other_forms_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="boxes reach over the edge"):
        blood_cells(tmp_path, as_corners)
    with pytest.raises(DataError, match="too small"):
        blood_cells(tmp_path, as_shares)
    assert blood_cells(tmp_path, lambda content: None).clipped == 0


def many(*bboxes: list[float]) -> Change:
    """Replace the boxes by these, in the first image of 40x30 px (width x height)."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [
            {"id": i, "image_id": 10, "category_id": 5, "bbox": bbox} for i, bbox in enumerate(bboxes)
        ]

    return change


@pytest.mark.parametrize(
    "bboxes",
    [
        [[10.0, 5.0, 35.0, 26.0]],  # a single box over the edge
        [*([[2.0, 4.0, 12.0, 29.0]] * 6), *([[2.0, 4.0, 12.0, 20.0]] * 54)],  # the edge cuts one of ten
        [[1.0, 1.0, 41.0, 31.0]] * 30,  # the whole image, rounded on all sides
        [[25.0, 20.0, 40.0, 30.0], [20.0, 20.0, 38.0, 28.0]],  # two that the edge cuts
    ],
)
def test_boxes_that_may_be_right_are_kept(tmp_path: Path, bboxes: list[list[float]]) -> None:
    assert len(made(tmp_path, many(*bboxes))[0][1]["labels"]) == len(bboxes)


@pytest.mark.parametrize(
    "bboxes",
    [
        [[2.0 + 3 * (i % 12), 4.0, 12.0, 29.0] for i in range(60)],  # over the lower edge
        [[2.0, 3.0, 12.0, 20.0]] * 8 + [[-5.0, 3.0, 12.0, 20.0]] * 2,  # over the left edge
        [[1.0 + 13 * (i % 4), 1.0 + 9 * (i % 4), 14.0, 10.0] for i in range(12)],  # centres in a grid
    ],
)
def test_a_file_whose_boxes_often_leave_their_images_is_refused(tmp_path: Path, bboxes: list[list[float]]) -> None:
    with pytest.raises(DataError, match=rf"of {len(bboxes)} boxes"):
        made(tmp_path, many(*bboxes))


def test_a_file_of_which_no_box_is_left_is_refused(tmp_path: Path) -> None:
    def outside(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["bbox"] = [9000, 9000, 5, 5]

    with pytest.raises(DataError, match=r"\(\d+ outside\)"):
        made(tmp_path, outside)


def segmented(c: dict[str, Any]) -> None:
    """Give each box its mask: polygons, run lengths as counts, run lengths as text, and a triangle."""
    masks = pytest.importorskip("pycocotools.mask")
    plane = np.zeros((HEIGHT, WIDTH), np.uint8)
    plane[10:22, 20:32] = 1
    runs = np.diff(np.flatnonzero(np.diff(plane.T.ravel(), prepend=2, append=2))).tolist()
    whole = np.asfortranarray(np.ones_like(plane))
    shapes = [
        [[2, 3, 12, 3, 12, 11, 2, 11]],
        {"size": [HEIGHT, WIDTH], "counts": runs},
        {"size": [HEIGHT, WIDTH], "counts": masks.encode(whole)["counts"].decode()},
        [[5.25, 6, 12.25, 6, 5.25, 14]],
    ]
    for annotation, shape in zip(c["annotations"], shapes, strict=True):
        annotation["segmentation"] = shape


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11, NumPy 2.4
def test_masks_come_from_polygons_and_run_lengths(tmp_path: Path) -> None:
    data = made(tmp_path, segmented, masks=True)
    masks = data[0][1]["masks"]
    assert isinstance(masks, tv_tensors.Mask)
    assert (masks.dtype, masks.shape) == (torch.uint8, (2, HEIGHT, WIDTH))
    expected = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    expected[0, 3:11, 2:12], expected[1, 10:22, 20:32] = 1, 1
    assert torch.equal(masks, expected)
    assert data[1][1]["masks"].sum(dim=(1, 2)).tolist()[0] == HEIGHT * WIDTH
    assert data[2][1]["masks"].shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "wrong",
    [None, {"size": [3, 4], "counts": [12]}, {"size": [HEIGHT, WIDTH], "counts": [5]}, {"counts": [1200]}, [[1, 2]]],
)
def test_a_mask_that_does_not_fit_is_named(wrong: Any, tmp_path: Path) -> None:
    def change(c: dict[str, Any]) -> None:
        segmented(c)
        c["annotations"][1]["segmentation"] = wrong

    with pytest.raises(DataError, match=r"annotations\[1\]"):
        made(tmp_path, change, masks=True)
    made(tmp_path, change)


@pytest.mark.parametrize("part", ["train", "val"])
def test_boxes_and_labels_of_the_real_data_are_those_of_the_json(part: str) -> None:
    """A plain loop over the JSON, clipped to the image, for all images."""
    file = DATA / "blood_cells" / f"{part}.json"
    if not file.is_file():
        pytest.skip("the real data are not next to the repository")
    data, raw = BoxImages(file), json.loads(file.read_text())
    places = {category["id"]: i for i, category in enumerate(sorted(raw["categories"], key=lambda c: c["id"]))}
    for i, entry in enumerate(raw["images"]):
        boxes, labels = [], []
        for annotation in raw["annotations"]:
            x, y, width, height = annotation["bbox"]
            box = [max(x, 0), max(y, 0), min(x + width, entry["width"]), min(y + height, entry["height"])]
            if annotation["image_id"] == entry["id"] and box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
                boxes.append(box)
                labels.append(places[annotation["category_id"]])
        rows = data._rows[i]
        assert rows.corners.tolist() == boxes
        assert rows.labels.tolist() == labels
