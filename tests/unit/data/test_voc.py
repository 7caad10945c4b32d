"""VOC's XML files become the boxes of COCO: corners count from 1, and the last pixel is inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import kit

from dinoneck import DataError
from dinoneck.data import BoxImages

HEIGHT, WIDTH = 30, 40
Box = tuple[str, int | float, int | float, int | float, int | float]
CAT: Box = ("cat", 1, 1, 40, 30)
DOG: Box = ("dog", 11, 6, 20, 15)


def object_of(box: Box, more: str = "") -> str:
    name, *corners = box
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{bndbox}</bndbox></object>"


def annotation(*objects: str, size: tuple[int, int] | None = (WIDTH, HEIGHT)) -> str:
    stated = ""
    if size is not None:
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>other.png</filename>{stated}{''.join(objects)}</annotation>"


def written(root: Path, texts: dict[str, str], images: str = "JPEGImages") -> Path:
    """Write an XML file and an image for each text; return the folder of the XML files."""
    folder = root / "Annotations"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.xml").write_text(text)
    kit.write_images(root / images, [f"{name}.jpg" for name in texts], height=HEIGHT, width=WIDTH)
    return folder


def test_boxes_are_read_in_pixels(tmp_path: Path) -> None:
    folder = written(tmp_path, {"b": annotation(), "a": annotation(object_of(DOG), object_of(CAT))})

    data = BoxImages(folder)

    assert data.ids == ("a", "b")
    assert data.classes == ("cat", "dog")
    assert data.corners(0).tolist() == [[10, 5, 20, 15], [0, 0, 40, 30]]
    assert data.labels(0).tolist() == [1, 0]
    assert data.numbers == {"a": 2, "b": 0}
    assert data.clipped == 0


def test_difficult_objects_are_crowd_regions(tmp_path: Path) -> None:
    difficult = object_of(DOG, "<difficult>1</difficult>")
    easy = object_of(CAT, "<difficult>0</difficult><truncated>1</truncated>")
    folder = written(tmp_path, {"a": annotation(difficult, easy)})

    data = BoxImages(folder)

    assert data.num_crowds == 1
    assert data.labels(0).tolist() == [0]
    assert BoxImages(folder, crowd="objects").numbers == {"a": 2}


def test_parts_of_an_object_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"

    assert BoxImages(written(tmp_path, {"a": annotation(object_of(CAT, part))})).classes == ("cat",)


@pytest.mark.parametrize("images", ["JPEGImages", "images", "Annotations"])
def test_images_are_found(images: str, tmp_path: Path) -> None:
    folder = written(tmp_path, {"a": annotation(object_of(CAT))}, images=images)

    assert BoxImages(folder).paths[0].samefile(tmp_path / images / "a.jpg")


def test_a_folder_of_images_may_be_passed(tmp_path: Path) -> None:
    folder = written(tmp_path, {"a": annotation(object_of(CAT))}, images="photos")

    assert BoxImages(folder, tmp_path / "photos").paths == (tmp_path / "photos/a.jpg",)


@pytest.mark.parametrize("size", [None, (0, 0)], ids=["missing", "0"])
def test_a_size_that_is_not_stated_is_read_from_the_image(
    size: tuple[int, int] | None, tmp_path: Path
) -> None:
    data = BoxImages(written(tmp_path, {"a": annotation(object_of(CAT), size=size)}))

    assert data.sizes == [(HEIGHT, WIDTH)]


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, {"a": annotation(object_of(CAT), size=(HEIGHT, WIDTH))}))

    with pytest.raises(DataError, match=r"a\.jpg"):
        data[0]


def test_image_sets_are_parts(tmp_path: Path) -> None:
    folder = written(tmp_path, {name: annotation(object_of(CAT)) for name in "abc"})
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "val.txt").write_text("c  1\n")

    assert BoxImages(folder).ids == ("b",)
    assert BoxImages(folder, part="val").ids == ("c",)


def test_an_image_without_an_xml_file_is_counted(tmp_path: Path) -> None:
    folder = written(tmp_path, {"a": annotation(object_of(CAT))})
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages/b.jpg")

    data = BoxImages(folder)

    assert data.ids == ("a",)
    assert data.left_out == {"images without an XML file": 1}


EXPANDING = '<!DOCTYPE a [<!ENTITY e "eeee">]><annotation><object>&e;</object></annotation>'
REFUSED = [
    pytest.param(EXPANDING, "DOCTYPE", id="entities"),
    pytest.param(f"<?xml version='1.0' encoding='cp037'?>{EXPANDING}", "DOCTYPE", id="encoded"),
    pytest.param("<annotation><object>", "no XML", id="cut"),
    pytest.param("<svg></svg>", "svg", id="another kind of XML"),
    pytest.param(annotation("<object><name> </name></object>"), "object 1", id="no name"),
    pytest.param(
        annotation("<object><name>cat</name><robndbox/></object>"), "robndbox", id="a turned box"
    ),
    pytest.param(annotation(object_of(("cat", 5, 5, 2, 9))), "object 1", id="right before left"),
    pytest.param(
        annotation(object_of(("cat", 1, 1, float("nan"), 9))), "xmax 'nan'", id="not a number"
    ),
    pytest.param(annotation(object_of(CAT), size=(-1, 30)), "width", id="a negative side"),
]


@pytest.mark.parametrize(("text", "named"), REFUSED)
def test_a_file_that_cannot_be_read_is_refused(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a\.xml.*{named}"):
        BoxImages(written(tmp_path, {"a": text}))


def test_an_xml_file_without_an_image_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, {"a": annotation(object_of(CAT)), "b": annotation()})
    (tmp_path / "JPEGImages/b.jpg").unlink()

    with pytest.raises(DataError, match=r"b\.xml"):
        BoxImages(folder)


def test_an_xml_file_of_two_images_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, {"a": annotation(object_of(CAT))})
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages/a.png")

    with pytest.raises(DataError, match=r"a\.xml.*a\.jpg.*a\.png"):
        BoxImages(folder)


def test_a_folder_without_xml_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Annotations of VOC"):
        BoxImages(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_supervision_reads_the_same_boxes(seed: int, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    rng = np.random.default_rng(seed)
    texts = {}
    for name in "abc":
        boxes = []
        for _ in range(4):
            left, top = rng.integers(1, 15, 2).tolist()
            width, height = rng.integers(2, 14, 2).tolist()
            boxes.append(
                object_of((str(rng.choice(["cat", "dog"])), left, top, left + width, top + height))
            )
        texts[name] = annotation(*boxes)
    folder = written(tmp_path, texts)

    data = BoxImages(folder)
    theirs = supervision.DetectionDataset.from_pascal_voc(str(tmp_path / "JPEGImages"), str(folder))

    for i, path in enumerate(data.paths):
        boxes = theirs.annotations[str(path)]
        assert data.corners(i).numpy() == pytest.approx(boxes.xyxy, abs=0.5)
        names = [theirs.classes[label] for label in boxes.class_id]
        assert [data.classes[label] for label in data.labels(i).tolist()] == names
