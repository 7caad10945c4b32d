"""Classes of masks that a fold holds out and trains on none of are named, and masks that count them differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinoneck.data import Preprocessing, read_masks
from dinoneck.data.cells import FOLD
from dinoneck.data.folders import read_data_folder, table_of_folder
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig
from dinoneck.training.folds import folds_of
from dinoneck.training.mask_classes import warn_of_mask_classes
from dinoneck.training.problem import read_problem

SIZE = 48


def written(folder: Path, masks: list[list[int]]) -> Path:
    """Write an image and a mask of vertical stripes for each list of classes."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, classes in enumerate(masks):
        file = f"{folder.name}{number}.png"
        colour = (30 * number, len(folder.name) * 10, 40)
        Image.new("RGB", (SIZE, SIZE), colour).save(folder / "images" / file)
        stripes = np.repeat(np.array(classes, np.uint8), SIZE // len(classes))
        values = np.broadcast_to(stripes, (SIZE, SIZE)).copy()
        Image.fromarray(values).save(folder / "masks" / file)
    return folder


def warnings_of(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture, **config: object
) -> list[str]:
    parts = {"data": {"images": ".", "labels": ".", **config}, "folds": {"count": 2}}
    run = TrainConfig.from_dict(parts)
    table = Table.from_frame(frame)
    problem = read_problem(run, table, Preprocessing(16))
    folds = folds_of(run, table)
    caplog.clear()
    warn_of_mask_classes(problem, table, folds)
    return [record.getMessage() for record in caplog.records]


def parts_of(root: Path, train: list[list[int]], val: list[list[int]]) -> pd.DataFrame:
    written(root / "train", train)
    written(root / "val", val)
    return table_of_folder(read_data_folder(root))


def test_a_class_that_the_held_out_part_alone_shows_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = parts_of(tmp_path, [[0, 1], [0, 1]], [[0, 2], [0]])
    unseen, unscored = warnings_of(table, caplog, classes=("soil", "crop", "weed"))
    assert unseen == (
        "fold 0 holds out masks of the class weed and trains on none: no head can learn it. Move "
        "some such images, or use other folds"
    )
    assert unscored == "the masks of val show nothing of the class crop: it gets no score"


def test_several_classes_that_one_part_alone_shows_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = parts_of(tmp_path, [[0, 1], [0, 2]], [[0, 3], [0, 4]])
    classes = ("soil", "crop", "weed", "tree", "road")
    unseen, unscored = warnings_of(table, caplog, classes=classes)
    assert "of the classes road, tree and trains on none: no head can learn them." in unseen
    assert unscored == "the masks of val show nothing of the classes crop, weed: they get no score"


def test_classes_that_both_parts_show_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = parts_of(tmp_path, [[0, 1], [0, 2]], [[0], [1, 2]])
    assert warnings_of(table, caplog) == []


def test_a_class_of_one_fold_alone_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = parts_of(tmp_path, [[0, 1], [0, 1]], [[0, 2], [0, 2]])
    table = table.assign(**{FOLD: [0, 0, 1, 1]})
    table.attrs["held_out"] = None
    first, second = warnings_of(table, caplog)
    assert "fold 0 holds out masks of the class 1 and trains on none" in first
    assert "fold 1 holds out masks of the class 2 and trains on none" in second


def test_parts_that_count_from_zero_and_from_one_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = parts_of(tmp_path, [[0, 1], [1, 2]], [[1, 2], [2, 3]])
    unseen, unscored = warnings_of(table, caplog)
    assert "the class 3 and trains on none" in unseen
    assert "hold 0, 1, 2, those held out 1, 2, 3: do they count from 0 and from 1?" in unseen
    assert unscored == "the masks of val show nothing of the class 0: it gets no score"


def test_masks_of_one_folder_that_count_from_zero_and_from_one_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "all", [[0, 1, 2], [1, 2, 3]] * 3)
    table = read_masks(folder / "images", folder / "masks")
    warnings = warnings_of(table, caplog)
    assert warnings[0] == (
        "3 masks hold the classes 0 ... 2, and 3 masks hold 1 ... 3: if they count the same "
        "classes from 0 and from 1, save all in one way"
    )


def test_masks_without_some_class_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "all", [[0, 1, 2], [1, 2, 3], [0, 3]] * 3)
    table = read_masks(folder / "images", folder / "masks")
    assert warnings_of(table, caplog) == []
