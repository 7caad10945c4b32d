"""What is passed to a predictor, and what comes back: images, batches, folders, and one image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import kit

from dinoneck import Backbone, ConfigError, DataError, DenseHead, Predictor, Task
from dinoneck.inference import to_frame

DEPTH = Task("depth", kind="dense", unit="m")


@pytest.fixture
def predictor(tiny: Backbone) -> Predictor:
    return Predictor(kit.head(), tiny)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images that the file system may list in any order."""
    kit.write_images(tmp_path / "plots", ["b.png", "a.png", "deep/c.png"], *kit.SIZE)
    (tmp_path / "plots" / "notes.txt").write_text("of the field")
    return tmp_path / "plots"


# Folders
# ---------------------------------------------------------------------------


def test_a_folder_gives_a_row_per_image_sorted_with_its_path_first(
    predictor: Predictor, folder: Path
) -> None:
    rows = predictor(folder)
    files = [folder / "a.png", folder / "b.png", folder / "deep" / "c.png"]
    assert [row["image"] for row in rows] == [str(file) for file in files]
    assert [list(row) for row in rows] == [["image", "mass"]] * 3
    for row, file in zip(rows, files, strict=True):
        assert row["mass"] == pytest.approx(predictor(file)[0]["mass"], rel=1e-5)


def test_the_paths_of_a_relative_folder_are_relative(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    rows = predictor("plots")
    assert rows[2]["image"] == str(Path("plots", "deep", "c.png"))


def test_the_rows_of_a_folder_hold_maps_in_the_pixels_of_their_images(
    tiny: Backbone, folder: Path
) -> None:
    predictor = Predictor(DenseHead(64, [DEPTH], hidden_dim=8), tiny)
    rows = predictor(folder, maps="image")
    assert list(rows[0]) == ["image", "depth", "maps"]
    expected = predictor(folder / "a.png", maps="image")[0]["maps"]["depth"]
    assert rows[0]["maps"]["depth"].shape == (1, 32, 48)
    assert np.allclose(rows[0]["maps"]["depth"], expected, rtol=1e-4, equal_nan=True)


def test_the_path_stands_beside_the_keys_of_a_mapping(tiny: Backbone, folder: Path) -> None:
    predictor = Predictor({"grass": kit.head(), "field": kit.head(seed=1)}, tiny)
    row = predictor(folder)[0]
    assert list(row) == ["image", "grass", "field"]
    assert list(row["grass"]) == ["mass"]


def test_images_that_are_passed_in_a_list_have_no_path_in_their_rows(
    predictor: Predictor, folder: Path
) -> None:
    """Who passes a list has their order; that of a folder is found."""
    rows = predictor([folder / "b.png", folder / "a.png"])

    assert [list(row) for row in rows] == [["mass"], ["mass"]]


def test_predictions_of_a_folder_name_their_images(predictor: Predictor, folder: Path) -> None:
    predictions = predictor.predictions(folder)
    assert [prediction.image for prediction in predictions] == [
        str(folder / "a.png"),
        str(folder / "b.png"),
        str(folder / "deep" / "c.png"),
    ]


def test_predictions_of_images_that_are_passed_themselves_name_none(
    predictor: Predictor, folder: Path
) -> None:
    [prediction] = predictor.predictions([folder / "a.png"])
    assert prediction.image is None


def test_a_task_called_image_is_refused_for_a_folder_only(tiny: Backbone, folder: Path) -> None:
    predictor = Predictor(kit.head(Task("image")), tiny)
    with pytest.raises(ConfigError, match="'image'"):
        predictor(folder)
    [row] = predictor([folder / "a.png"])
    assert isinstance(row["image"], float)


def test_a_key_called_image_is_refused_for_a_folder(tiny: Backbone, folder: Path) -> None:
    predictor = Predictor({"image": kit.head()}, tiny)
    with pytest.raises(ConfigError, match="'image'"):
        predictor(folder)


def test_a_folder_in_a_list_is_refused_before_any_image_is_read(
    predictor: Predictor, folder: Path
) -> None:
    with pytest.raises(DataError) as refused:
        predictor([folder / "missing.png", folder])
    assert f"images[1] is the folder {folder}" in str(refused.value)


def test_a_folder_without_images_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        predictor(tmp_path)


def test_the_table_of_a_folder_has_the_paths_as_its_index(
    predictor: Predictor, folder: Path
) -> None:
    rows = predictor(folder)
    frame = to_frame(rows, predictor.tasks)
    assert list(frame.index) == [row["image"] for row in rows]
    assert list(frame.columns) == ["mass"]


def test_names_for_the_table_of_a_folder_replace_the_paths(
    predictor: Predictor, folder: Path
) -> None:
    frame = to_frame(predictor(folder), predictor.tasks, names=["x", "y", "z"])
    assert list(frame.index) == ["x", "y", "z"]


def test_the_predictions_of_a_task_called_image_are_no_index(tiny: Backbone, folder: Path) -> None:
    predictor = Predictor(kit.head(Task("image")), tiny)
    frame = to_frame(predictor([folder / "a.png"]), predictor.tasks)
    assert list(frame.index) == [0]


def test_the_rows_of_a_folder_are_json_where_tasks_are_numbers(
    predictor: Predictor, folder: Path
) -> None:
    rows = predictor(folder)
    assert json.loads(json.dumps(rows)) == rows


# One image, several, and a batch
# ---------------------------------------------------------------------------


def test_calling_returns_a_list_also_for_one_image(predictor: Predictor, folder: Path) -> None:
    rows = predictor(folder / "a.png")
    assert isinstance(rows, list)
    assert len(rows) == 1


def test_a_batch_gives_a_row_per_image(predictor: Predictor) -> None:
    assert len(predictor(torch.rand(3, 3, 32, 48))) == 3


def test_one_returns_the_dict_that_calling_has_in_a_list(tiny: Backbone, folder: Path) -> None:
    predictor = Predictor(DenseHead(64, [DEPTH], hidden_dim=8), tiny)
    row = predictor.one(folder / "a.png", maps="patch")
    assert kit.same(row, predictor(folder / "a.png", maps="patch")[0])


def test_one_returns_the_dict_of_keys_of_a_mapping(tiny: Backbone) -> None:
    predictor = Predictor({"grass": kit.head()}, tiny)
    assert list(predictor.one(torch.rand(3, 32, 48))) == ["grass"]


def test_one_refuses_a_folder_and_names_the_call(predictor: Predictor, folder: Path) -> None:
    with pytest.raises(DataError) as refused:
        predictor.one(folder)
    assert f"predictor({str(folder)!r})" in str(refused.value)


def test_one_refuses_a_list_also_of_one_image(predictor: Predictor, folder: Path) -> None:
    with pytest.raises(DataError, match="the image is a list; expected one"):
        predictor.one([folder / "a.png"])  # type: ignore[arg-type]


def test_one_refuses_a_batch_and_names_its_shape(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"a batch of shape \(1, 3, 32, 48\)"):
        predictor.one(torch.rand(1, 3, 32, 48))
