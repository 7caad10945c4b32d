"""YOLO's data.yaml, images and label files become the boxes and masks of COCO; each line is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tests import kit

from dinoneck import DataError
from dinoneck.data import BoxImages
from dinoneck.data.listed_images import scored_part

HEIGHT, WIDTH = 30, 40
BOX = "1 0.25 0.5 0.1 0.2"  # x 8 ... 12, y 12 ... 18
POLYGON = "0 0.5 0.1 0.75 0.1 0.75 0.5"  # x 20 ... 30, y 3 ... 15
NAMES = ["red", "blue"]


def written(
    root: Path,
    labels: dict[str, str],
    *,
    images: str = "images/train",
    beside: str = "labels/train",
    **values: Any,
) -> Path:
    """Write an image for each label file, the label files, and data.yaml; an empty label has no file."""
    kit.write_images(root / images, [f"{name}.png" for name in labels], height=HEIGHT, width=WIDTH)
    (root / beside).mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        if text:
            (root / beside / f"{name}.txt").write_text(text)
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({"train": images, "names": NAMES} | values))
    return file


def test_boxes_and_polygons_are_read_in_pixels(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, {"a": f"{BOX}\n\n{POLYGON}\n", "b": ""}))

    assert data.ids == ("images/train/a.png", "images/train/b.png")
    assert data.classes == ("red", "blue")
    assert data.corners(0).tolist() == pytest.approx(np.array([[8, 12, 12, 18], [20, 3, 30, 15]]))
    assert data.labels(0).tolist() == [1, 0]
    assert data.numbers == {"images/train/a.png": 2, "images/train/b.png": 0}
    assert not data.skipped
    assert data.clipped == 0


def test_masks_are_those_of_the_polygons(tmp_path: Path) -> None:
    four_points = "0 0.5 0.1 0.75 0.1 0.75 0.5 0.5 0.5"

    data = BoxImages(written(tmp_path, {"a": f"{four_points}\n{BOX}"}), masks=True)

    expected = np.zeros((2, HEIGHT, WIDTH))
    expected[0, 3:15, 20:30] = 1
    expected[1, 12:18, 8:12] = 1  # a box among polygons
    assert np.array_equal(data[0][1]["masks"].numpy(), expected)


def test_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.yaml.*--boxes"):
        BoxImages(written(tmp_path, {"a": BOX}), masks=True)


def test_shares_are_of_the_upright_image(tmp_path: Path) -> None:
    file = written(tmp_path, {"a": BOX})
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying
    (tmp_path / "images/train/a.png").unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/train/a.jpg", exif=exif)

    data = BoxImages(file)

    assert data.sizes == [(WIDTH, HEIGHT)]
    assert data.corners(0)[0].tolist() == pytest.approx([6, 16, 9, 24])
    assert data[0][0].shape == (3, WIDTH, HEIGHT)


PLACES: list[Any] = [
    pytest.param("images/train", "labels/train", {}, id="images and labels"),
    pytest.param("train/images", "train/labels", {}, id="a part with both"),
    pytest.param("train/images", "train/labels", {"train": "../train/images"}, id="roboflow"),
    pytest.param("train", "train", {}, id="labels beside images"),
    pytest.param("images/a", "labels/a", {"train": "a", "path": "images"}, id="below path"),
    pytest.param("images/a", "labels/a", {"path": "/content/data"}, id="another machine's path"),
    pytest.param(
        "x/images", "x/labels", {"train": "/content/x/images"}, id="another machine's part"
    ),
    pytest.param("images/a", "labels/a", {"train": ["images/a"]}, id="a list of folders"),
]


@pytest.mark.parametrize(("images", "labels", "values"), PLACES)
def test_images_and_labels_are_found(
    images: str, labels: str, values: dict[str, Any], tmp_path: Path
) -> None:
    file = written(tmp_path / "set", {"a": BOX}, images=images, beside=labels, **values)
    (tmp_path / "set" / f"{labels}.cache").write_bytes(b"\x80\x04")

    data = BoxImages(file)

    assert data.paths == (tmp_path / "set" / images / "a.png",)
    assert data.labels(0).tolist() == [1]


@pytest.mark.parametrize(
    "line", ["./images/train/a.png", "images/train/a.png", "/content/train/a.png"]
)
def test_a_part_may_be_a_list_of_images(line: str, tmp_path: Path) -> None:
    file = written(tmp_path, {"a": BOX, "b": BOX}, train="train.txt")
    (tmp_path / "train.txt").write_text(f"{line}\n")

    assert BoxImages(file).paths == (tmp_path / "images/train/a.png",)


NAMED: list[Any] = [
    pytest.param({"names": {0: "red", 1: "blue"}}, id="a mapping"),
    pytest.param({"names": {1: "blue", 0: "red"}}, id="a mapping in another order"),
    pytest.param({"nc": 2}, id="their number"),
    pytest.param({"names": None}, id="classes.txt"),
]


@pytest.mark.parametrize("values", NAMED)
def test_names_of_classes_are_read(values: dict[str, Any], tmp_path: Path) -> None:
    file = written(tmp_path, {"a": BOX}, **values)
    (tmp_path / "labels/train/classes.txt").write_text("red\nblue\n")

    assert BoxImages(file).classes == ("red", "blue")


def test_parts_have_their_own_images(tmp_path: Path) -> None:
    written(tmp_path, {"a": BOX}, images="images/val", beside="labels/val")
    file = written(tmp_path, {"a": POLYGON}, val="images/val")

    assert BoxImages(file).paths == (tmp_path / "images/train/a.png",)
    assert BoxImages(file, part="val").paths == (tmp_path / "images/val/a.png",)
    assert scored_part(file) == "val"
    with pytest.raises(DataError, match="'test'.*train, val"):
        BoxImages(file, part="test")


def test_a_box_over_the_edge_is_cut_and_one_that_is_rounded_is_not(tmp_path: Path) -> None:
    over = "0 0.95 0.5 0.2 0.2"
    rounded = "0 0.500000 0.5 1.000000 0.333333"

    data = BoxImages(written(tmp_path, {"a": f"{over}\n{rounded}"}))

    assert data.clipped == 1
    assert data.corners(0)[0].tolist() == pytest.approx([34, 12, 40, 18])


LINES: list[Any] = [
    pytest.param("2 0.5 0.5 0.1 0.1", ["class 2", "0 ... 1"], id="a class without a name"),
    pytest.param("-1 0.5 0.5 0.1 0.1", ["-1"], id="a class below 0"),
    pytest.param("0.5 0.5 0.5 0.1 0.1", ["0.5"], id="half a class"),
    pytest.param("0 20 15 4 6", ["20", "0 ... 1"], id="pixels"),
    pytest.param("0 0.5 -0.1 0.1 0.1", ["-0.1"], id="below 0"),
    pytest.param("0 nan 0.5 0.1 0.1", ["nan"], id="not finite"),
    pytest.param("0 0.5 0.5 0.1 0.1 0.9", ["6 numbers", "score"], id="a score"),
    pytest.param("0 0.5 0.5 0.1 0.1 0.2 0.2 2", ["8 numbers", "keypoints"], id="keypoints"),
    pytest.param("0 0.5 0.5", ["3 numbers"], id="too few"),
    pytest.param("red 0.5 0.5 0.1 0.1", ["red"], id="a word"),
]


@pytest.mark.parametrize(("line", "named"), LINES)
def test_a_line_that_is_no_object_is_refused(line: str, named: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        BoxImages(written(tmp_path, {"a": f"{BOX}\n{line}"}))

    for word in ["a.txt, line 2", *named]:
        assert word in str(error.value)


FILES: list[Any] = [
    pytest.param({"train": None}, "train:", id="no part"),
    pytest.param({"train": "elsewhere"}, "elsewhere", id="no such folder"),
    pytest.param({"train": 3}, "3", id="a number as folder"),
    pytest.param({"names": None}, "names", id="no names"),
    pytest.param({"names": ["red", "red"]}, "red", id="a name twice"),
    pytest.param({"names": ["red", False]}, "False", id="no is a word of YAML"),
    pytest.param({"names": {1: "red", 2: "blue"}}, "class 0", id="numbers with a gap"),
    pytest.param({"nc": 3}, "3", id="another number of classes"),
    pytest.param({"kpt_shape": [17, 3]}, "kpt_shape", id="keypoints"),
]


@pytest.mark.parametrize(("values", "named"), FILES)
def test_a_yaml_file_of_another_form_is_refused(
    values: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"data.yaml.*{named}"):
        BoxImages(written(tmp_path, {"a": BOX}, **values))


def test_a_yaml_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no.yaml"):
        BoxImages(tmp_path / "no.yaml")


def test_images_without_any_label_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels/train/a.txt"):
        BoxImages(written(tmp_path, {"a": "", "b": ""}))


def test_a_label_file_without_an_image_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"a": BOX, "b": BOX})
    (tmp_path / "images/train/b.png").unlink()

    with pytest.raises(DataError, match="labels/train/b.txt"):
        BoxImages(file)


def test_two_images_of_one_label_file_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"a": BOX})
    kit.write_images(tmp_path / "images/train", ["a.jpg"], height=HEIGHT, width=WIDTH)

    with pytest.raises(DataError, match="labels/train/a.txt"):
        BoxImages(file)


@pytest.mark.parametrize("seed", range(3))
def test_supervision_reads_the_same_boxes(seed: int, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    rng = np.random.default_rng(seed)
    labels = {}
    for name in "abc":
        lines = []
        for _ in range(5):
            w, h = rng.uniform(0.1, 0.4, 2)
            x, y = rng.uniform(0.2, 0.8, 2)
            lines.append(f"{rng.integers(2)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}")
        labels[name] = "\n".join(lines)
    file = written(tmp_path, labels)

    data = BoxImages(file)
    theirs = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images/train"), str(tmp_path / "labels/train"), str(file)
    )

    for i, path in enumerate(data.paths):
        boxes = theirs.annotations[str(path)]
        assert data.corners(i).numpy() == pytest.approx(boxes.xyxy, abs=0.5)
        assert data.labels(i).tolist() == boxes.class_id.tolist()
