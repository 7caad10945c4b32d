"""A list of classes beside masks that contradicts the names of their classes is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck.data import read_masks
from dinoneck.data.class_lists import warn_of_class_lists
from dinoneck.data.table import Table
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.training.config import DataConfig
from dinoneck.training.masks import read_maps

NAMES = ("background", "crop", "weed")
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrop:128,0,0::\nweed:0,128,0::\n"
GDAL = (
    "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category>background</Category>"
    "<Category>crop</Category><Category>weed</Category></CategoryNames></PAMRasterBand></PAMDataset>"
)
NNUNET = json.dumps({"labels": {"background": 0, "crop": 1, "weed": 2, "plants": [1, 2]}})
# where programs write their lists, and what is in them
LISTS = {
    "class_names.txt": "_background_\ncrop\nweed\n",
    "masks/classes.txt": "crop\nweed\n",
    "labels.txt": "__ignore__\n_background_\nCrop\nWeed\n",
    "labelmap.txt": CVAT,
    "masks/_classes.csv": "Pixel Value, Class\n0, background\n1, crop\n2, weed\n",
    "dataset.json": NNUNET,
    "masks/0.png.aux.xml": GDAL,
}


def mask_beside(root: Path, name: str, content: str) -> Path:
    """Return a mask beside which, or above which, there is a list."""
    mask = root / "masks/0.png"
    mask.parent.mkdir()
    mask.touch()
    (root / name).write_text(content)
    return mask


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("name", "content"), LISTS.items())
def test_names_in_another_order_than_the_list_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    mask = mask_beside(tmp_path, name, content)
    warn_of_class_lists([mask], ["background", "weed", "crop"], None)
    [line] = lines_of(caplog)
    assert line.startswith(
        f"{tmp_path / name} numbers the classes otherwise than they are named: 'weed' "
    )


@pytest.mark.parametrize(("name", "content"), LISTS.items())
@pytest.mark.parametrize("names", [NAMES, ("Background", "crop", "weed", "new"), ("0", "1", "2")])
def test_names_in_the_order_of_the_list_and_other_names_are_not_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: str,
    names: Sequence[str],
) -> None:
    mask = mask_beside(tmp_path, name, content)
    warn_of_class_lists([mask], names, None)
    assert not caplog.records


def test_the_line_states_both_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = mask_beside(tmp_path, "dataset.json", NNUNET)
    warn_of_class_lists([mask], ["crop", "weed"], None)
    [line] = lines_of(caplog)
    assert "'crop' is read as 0, and is 1 there (background, crop, weed)" in line


def test_of_a_list_without_numbers_the_line_states_the_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = mask_beside(tmp_path, "classes.txt", "weed\ncrop\n")
    warn_of_class_lists([mask], ["soil", "Crop", "Weed"], None)
    [line] = lines_of(caplog)
    order = "'Crop' is read as 1, before 'Weed', and stands after it there (weed, crop)"
    assert order in line


def test_class_values_are_compared_with_the_numbers_of_the_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = mask_beside(tmp_path, "dataset.json", NNUNET)
    warn_of_class_lists([mask], ["weed", "crop"], [2, 1])
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", "[1]"),
        ("dataset.json", "{"),
        ("dataset.json", '{"labels": 1}'),
        ("_classes.csv", "filename,crop,weed\n0.jpg,1,0\n"),
        ("classes.txt", "crop\n"),
        ("classes.txt", "weed\ncrop\nweed\n"),
    ],
)
def test_files_that_are_no_such_list_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    mask = mask_beside(tmp_path, name, content)
    warn_of_class_lists([mask, np.zeros((2, 2))], ["weed", "crop"], None)
    assert not caplog.records


def test_training_compares_its_classes_with_the_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(2):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
        mask = np.arange(32 * 32).reshape(32, 32) % 3
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    (tmp_path / "class_names.txt").write_text(LISTS["class_names.txt"])
    table = Table.from_frame(read_masks(tmp_path / "images", tmp_path / "masks"))
    data = DataConfig(classes=("background", "weed", "crop"))
    maps = read_maps(data, table, Preprocessing(patch_size=16, size=(32, 32)))
    assert maps.names == ("background", "weed", "crop")
    assert [line for line in lines_of(caplog) if "'weed' is read as 1, before 'crop'" in line]


def test_the_numbers_of_nnunet_may_be_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.dumps({"labels": {"0": "background", "1": "crop", "2": "weed"}})
    mask = mask_beside(tmp_path, "dataset.json", content)

    warn_of_class_lists([mask], ["background", "weed", "crop"], None)

    [line] = lines_of(caplog)
    assert "dataset.json numbers the classes otherwise than they are named" in line


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("no notes", id="damaged"),
        pytest.param("<PAMDataset><Metadata/></PAMDataset>", id="without names"),
    ],
)
def test_notes_of_gdal_that_name_no_class_say_nothing(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = mask_beside(tmp_path, "masks/0.png.aux.xml", content)

    warn_of_class_lists([mask], ["background", "weed", "crop"], None)

    assert not caplog.records
