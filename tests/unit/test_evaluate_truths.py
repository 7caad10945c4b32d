"""Truths that fit a model in part: labels of images in each of their forms, unknown cells, shares without a meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests import kit

from dinoneck import (
    ConfigError,
    DataError,
    DenseHead,
    MaskHead,
    PatchMeanHead,
    Predictor,
    Task,
    evaluate,
)
from dinoneck.data import read_table
from dinoneck.tasks import Interval
from dinoneck.viz import write_maps

NAMES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four images."""
    kit.write_images(tmp_path, NAMES, *kit.SIZE)
    return tmp_path


def predictor(*tasks: Task) -> Predictor:
    head = kit.randomised(PatchMeanHead(64, list(tasks), hidden_dim=4))
    return Predictor(head, kit.backbone())


def table(**columns: Any) -> pd.DataFrame:
    """One row per image."""
    return pd.DataFrame({"image": NAMES, **columns})


# labels of images

WEEDS = Task("weeds", dim=2, kind="multilabel", labels=("thistle", "dock"))
THISTLE = Task("thistle", kind="multilabel", labels=("thistle",))


def scores_of(model: Predictor, images: Path, truth: pd.DataFrame) -> dict[str, Any]:
    """The scores of the only target."""
    [by_model] = evaluate(model, images, truth)["scores"].values()
    [scores] = by_model.values()
    return dict(scores)


def test_words_and_columns_of_0_and_1_are_one_truth(images: Path) -> None:
    model = predictor(WEEDS)
    words = table(weeds=["thistle", "none", "thistle;dock", "dock"])
    columns = table(thistle=[1, 0, 1, 0], dock=[0, 0, 1, 1])

    of_words = scores_of(model, images, words)
    of_columns = scores_of(model, images, columns)

    assert of_words == of_columns


def test_the_only_label_may_have_a_column_of_0_and_1_of_the_task_s_name(images: Path) -> None:
    model = predictor(THISTLE)
    words = table(thistle=["thistle", "none", "thistle", "none"])
    numbers = table(thistle=[1, 0, 1, 0])

    of_words = scores_of(model, images, words)
    of_numbers = scores_of(model, images, numbers)

    assert of_numbers == of_words


def test_a_column_of_words_that_is_not_read_as_labels_is_named_with_the_remedy(
    images: Path,
) -> None:
    words = table(weeds=["thistle", "none", "thistle", "dock"])
    read = read_table(words, images, ["weeds"], classes={"weeds": ()})

    with pytest.raises(DataError, match="the column 'weeds' of the truth is not read as labels"):
        evaluate(predictor(WEEDS), None, read)


def test_labels_that_no_column_holds_have_no_score(images: Path) -> None:
    model = predictor(WEEDS, Task("mass"))

    report = evaluate(model, images, table(mass=[1.0, 2.0, 3.0, 5.0]))

    assert "mass" in report["scores"]
    assert "weeds" not in report["scores"]


# folders that are the truth

KIND = Task("kind", dim=2, kind="classification", labels=("soil", "crop"))


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """The images in two folders that are called as their classes."""
    folder = tmp_path / "classes"
    kit.write_images(folder, ["soil/a.png", "crop/b.png", "soil/c.png", "crop/d.png"], *kit.SIZE)
    return folder


def test_class_folders_are_the_truth_of_a_table_with_their_names(class_folders: Path) -> None:
    model = predictor(KIND)
    names = ["soil/a.png", "crop/b.png", "soil/c.png", "crop/d.png"]
    truth = pd.DataFrame({"image": names, "kind": ["soil", "crop", "soil", "crop"]})

    of_folders = evaluate(model, None, class_folders)["scores"]["kind"]["head"]
    of_table = evaluate(model, class_folders, truth)["scores"]["kind"]["head"]

    assert of_folders["labels"] == of_table["labels"]
    assert of_folders["confusion_matrix"] == of_table["confusion_matrix"]
    assert of_folders["accuracy"] == of_table["accuracy"]


def test_class_folders_hold_the_images_themselves(class_folders: Path, images: Path) -> None:
    with pytest.raises(DataError, match="has class folders, which hold the images to predict"):
        evaluate(predictor(KIND), images, class_folders)


def test_class_folders_are_the_classes_of_one_target(class_folders: Path) -> None:
    other = Task("state", dim=2, kind="classification", labels=("dry", "wet"))

    with pytest.raises(DataError, match="are the classes of one target"):
        evaluate(predictor(KIND, other), None, class_folders)


def test_folders_of_none_of_the_labels_are_no_truth(class_folders: Path) -> None:
    with pytest.raises(DataError, match="none of the labels that are predicted, dock, thistle"):
        evaluate(predictor(WEEDS), None, class_folders)


def test_images_without_masks_are_no_truth_of_maps(class_folders: Path) -> None:
    head = DenseHead(64, [Task("cover", dim=2, kind="segmentation")], hidden_dim=4)

    with pytest.raises(DataError, match="holds no images with masks"):
        evaluate(Predictor(head, kit.backbone()), None, class_folders)


def test_masks_beside_the_images_of_a_folder_are_its_truth(tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    both = tmp_path / "both"
    for folder in (apart, both):
        kit.write_images(folder, NAMES, *kit.SIZE)
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, name in enumerate(NAMES):
        classes = Image.fromarray(np.full(kit.SIZE, number % 2, np.uint8))
        classes.save(both / f"{Path(name).stem}_mask.png")
        classes.save(masks / name)
    head = kit.randomised(DenseHead(64, [Task("cover", dim=2, kind="segmentation")], hidden_dim=4))
    model = Predictor(head, kit.backbone())

    report = evaluate(model, both, both, mask_suffix="_mask")

    assert report["scores"]["cover"]["head"]["images"] == 4
    assert report["scores"] == evaluate(model, apart, masks)["scores"]


# options of other truths


def test_subfolders_are_no_option_of_folders_of_labels(class_folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"subfolders is 'split', and the heads predict labels"):
        evaluate(predictor(WEEDS), None, class_folders, subfolders="split")


MAPS = [
    pytest.param(Task("cover", dim=2, kind="segmentation"), id="classes"),
    pytest.param(Task("cover", dim=2, kind="dense", labels=("a", "b"), shares=True), id="shares"),
    pytest.param(Task("cover", dim=3, kind="dense", activation="unit"), id="normals"),
]


@pytest.mark.parametrize("task", MAPS)
def test_a_table_of_maps_whose_column_is_not_named_lists_its_columns(
    task: Task, images: Path
) -> None:
    model = Predictor(DenseHead(64, [task], hidden_dim=4), kit.backbone())

    with pytest.raises(DataError, match=r"columns file, image: name that of the files \(labels="):
        evaluate(model, images, table(file=NAMES))


def test_options_of_masks_of_classes_are_refused_for_normals(images: Path) -> None:
    normals = Task("normals", kind="dense", dim=3, activation="unit")
    model = Predictor(DenseHead(64, [normals], hidden_dim=4), kit.backbone())
    for name in NAMES:
        write_maps(images, name, {"normals": np.zeros((3, *kit.SIZE), np.float32)}, [normals])
    truth = table(file=[f"{name}.tif" for name in NAMES])

    with pytest.raises(ConfigError, match=r"nodata is \[255\], which is of masks of classes"):
        evaluate(model, images, truth, labels="file", nodata=[255])


# shares

COVER = Task("cover", dim=2, kind="ratio", labels=("soil", "crop"))


def test_parts_below_zero_have_no_shares(images: Path) -> None:
    truth = table(soil=[1.0, 2.0, -3.0, 4.0], crop=[1.0, 2.0, 3.0, 4.0])

    with pytest.raises(DataError, match=r"negative value of 'c\.png'"):
        evaluate(predictor(COVER), images, truth)


# intervals of images whose truth is unknown


def intervals(half_width: float) -> tuple[Interval, ...]:
    return (Interval(levels=(0.5,), half_widths=(half_width,), groups=9),)


def test_unknown_numbers_are_neither_inside_nor_outside_of_an_interval(images: Path) -> None:
    model = predictor(Task("mass", interval=intervals(1.0)))
    [first, second, *_] = [row["mass"] for row in model([images / name for name in NAMES])]
    truth = table(mass=[first + 0.5, second + 1.5, np.nan, np.nan])

    report = evaluate(model, images, truth)

    scores = report["scores"]["mass"]["head"]
    assert scores["coverage"] == {"0.5": 0.5}  # one of the two that are known
    assert scores["width"] == {"0.5": pytest.approx(2.0)}


def test_unknown_classes_are_in_no_prediction_set(images: Path) -> None:
    kind = Task(
        "kind",
        dim=2,
        kind="classification",
        labels=("soil", "crop"),
        interval=intervals(1.0),  # a probability of 0 or more: every set holds both classes
    )

    report = evaluate(predictor(kind), images, table(kind=["soil", None, "crop", None]))

    scores = report["scores"]["kind"]["head"]
    assert scores["coverage"] == {"0.5": 1.0}
    assert scores["width"] == {"0.5": 2.0}


# objects

KINDS_OF_OBJECTS = {
    "instances": Task("plant", dim=2, kind="instances", labels=("crop", "weed")),
    "panoptic": Task("plant", dim=2, kind="panoptic", labels=("soil", "crop"), things=("crop",)),
}
REMEDIES = {
    "instances": "name a COCO file of their masks",
    "panoptic": r"name the folder of their PNG files and their COCO file \(--truth FOLDER FILE\)",
}


def predictor_of_objects(kind: str) -> Predictor:
    head = MaskHead(64, [KINDS_OF_OBJECTS[kind]], 1, num_queries=4, num_blocks=1, dim=16)
    return Predictor(head, kit.backbone())


@pytest.mark.parametrize("kind", KINDS_OF_OBJECTS)
def test_a_table_is_no_truth_of_objects_alone(kind: str, images: Path) -> None:
    model = predictor_of_objects(kind)

    with pytest.raises(DataError, match=f"the truth is a table, .*, plant; {REMEDIES[kind]}$"):
        evaluate(model, images, table(plant=[1, 2, 3, 4]))


@pytest.mark.parametrize("kind", KINDS_OF_OBJECTS)
def test_a_folder_is_no_truth_of_objects_alone(kind: str, class_folders: Path) -> None:
    model = predictor_of_objects(kind)

    with pytest.raises(DataError, match=f"the truth is {class_folders}, .*; {REMEDIES[kind]}$"):
        evaluate(model, None, class_folders)


def test_the_file_of_panoptic_segments_alone_is_no_truth_of_them(images: Path) -> None:
    file = images / "segments.json"
    file.write_text("{}")
    model = predictor_of_objects("panoptic")

    with pytest.raises(DataError, match=f"the file {file} alone, .*; {REMEDIES['panoptic']}$"):
        evaluate(model, images, file)


def test_panoptic_segments_are_named_as_such_where_objects_are_predicted(images: Path) -> None:
    file = images / "segments.json"
    model = predictor_of_objects("instances")

    with pytest.raises(DataError, match=f"^{images} and {file} hold panoptic segments, and plant"):
        evaluate(model, images, (images, file))
