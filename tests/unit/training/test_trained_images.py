"""``evaluate`` says when, and only when, images were trained on: by their content, whatever their names."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from tests.unit.data import box_samples
from tests.unit.training.meadow import COUNT, a_run, rows_of, write_meadow

from dinoneck import Backbone, DataError, STAPyramid, evaluate
from dinoneck.data import BoxImages
from dinoneck.detection import Detector
from dinoneck.detection.head import DetectionHead
from dinoneck.training import train
from dinoneck.training.folds import Fold
from dinoneck.training.trained_images import (
    hashes_of_trained_images,
    seen_in_training,
    write_trained_images,
)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of the meadow, and a run of two folds on them."""
    folder = tmp_path_factory.mktemp("fields")
    table = write_meadow(folder)
    train(a_run(table, ["weed"]), folder / "run")
    return folder


def fold_of_image(run: Path) -> dict[str, str]:
    return {row["image"]: row["fold"] for row in rows_of(run / "out_of_fold.csv")}


def test_a_run_records_which_folds_were_trained_on_each_image(fields: Path) -> None:
    held_out = fold_of_image(fields / "run")
    rows = rows_of(fields / "run" / "trained_on.csv")
    assert len(rows) == COUNT
    for row in rows:
        other = {"0": "1", "1": "0"}[held_out[row["image"]]]
        assert row["folds"] == other


def test_images_of_the_training_are_named(
    fields: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the images are copies of training images by other names, the others are new."""
    rows = pd.read_csv(fields / "t.csv")[["image", "weed"]].head(6)
    for number, name in enumerate(rows["image"]):
        if number % 2:
            shutil.copyfile(fields / name, tmp_path / f"new-{number}.png")
        else:
            Image.new("RGB", (64, 32), (number, 99, 7)).save(tmp_path / f"new-{number}.png")
    rows["image"] = [f"new-{number}.png" for number in range(6)]
    with caplog.at_level(logging.WARNING):
        report = evaluate({"mine": fields / "run"}, tmp_path, rows)
    assert report["trained_on"] == {"mine": 3}
    assert "mine was trained on 3 of the 6 images, such as" in caplog.text
    assert "new-1.png" in caplog.text


def test_other_images_of_the_same_names_are_not_taken_for_them(
    fields: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pd.read_csv(fields / "t.csv")[["image", "weed"]]
    for number, name in enumerate(rows["image"]):
        Image.new("RGB", (64, 32), (9 * number, 120, 40)).save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        report = evaluate(fields / "run", tmp_path, rows)
    assert "trained_on" not in report
    assert "trained on" not in caplog.text


def test_held_out_images_of_a_fold_were_not_trained_on_by_its_head(fields: Path) -> None:
    images = fold_of_image(fields / "run")
    head = fields / "run" / "heads" / "fold-1.safetensors"
    seen = seen_in_training([head], [fields / name for name in images])
    assert {Path(file).name for file in seen} == {
        name for name, fold in images.items() if fold == "0"
    }
    assert len(hashes_of_trained_images(fields / "run" / "head.safetensors")) == COUNT


def test_the_images_of_both_folds_count_for_an_ensemble_of_their_heads(fields: Path) -> None:
    heads = [fields / "run" / "heads" / f"fold-{number}.safetensors" for number in (0, 1)]
    report = evaluate({"both": heads}, fields, fields / "t.csv")
    assert report["trained_on"] == {"both": COUNT}


def test_the_held_out_images_of_the_only_fold_are_new_to_the_run(tmp_path: Path) -> None:
    table = write_meadow(tmp_path)
    train(a_run(table, ["weed"], folds={"count": 3, "only": 2}), tmp_path / "run")
    held_out = {*fold_of_image(tmp_path / "run")}
    images = [tmp_path / row["image"] for row in rows_of(table)]
    seen = seen_in_training([tmp_path / "run" / "head.safetensors"], images)
    assert {Path(file).name for file in seen} == {file.name for file in images} - held_out
    assert 0 < len(held_out) < COUNT


def test_of_a_head_file_alone_nothing_is_known(fields: Path, tmp_path: Path) -> None:
    shutil.copyfile(fields / "run" / "head.safetensors", tmp_path / "head.safetensors")
    report = evaluate(tmp_path / "head.safetensors", fields, fields / "t.csv")
    assert "trained_on" not in report


@pytest.mark.parametrize("text", ["", "image,folds\na.png,0\n", "image,folds,blake2b\na.png,0\n"])
def test_a_damaged_record_is_refused(fields: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(fields / "run", tmp_path / "run")
    (tmp_path / "run" / "trained_on.csv").write_text(text)
    with pytest.raises(DataError, match=r"trained_on.csv is damaged.*restore it, or remove it"):
        evaluate(tmp_path / "run", fields, fields / "t.csv")


def test_a_record_that_is_no_text_is_refused(fields: Path, tmp_path: Path) -> None:
    shutil.copytree(fields / "run", tmp_path / "run")
    record = tmp_path / "run" / "trained_on.csv"
    content = bytearray(record.read_bytes())
    content[40] = 0xFF
    record.write_bytes(content)
    with pytest.raises(DataError, match=r"trained_on.csv is damaged: its byte 40 is no UTF-8"):
        evaluate(tmp_path / "run", fields, fields / "t.csv")


@pytest.mark.parametrize("name", ["a\u2028b.png", 'two\nlines, "and a quote".png', "\x0b.png"])
def test_any_name_of_a_file_is_read_back(name: str, tmp_path: Path) -> None:
    images = [tmp_path / name, tmp_path / "other.png"]
    for number, file in enumerate(images):
        Image.new("RGB", (8, 8), (number, 5, 5)).save(file)
    (tmp_path / "head.safetensors").touch()
    write_trained_images(tmp_path, images, [name, "other.png"], None, [Fold.of_all_images(1)])
    assert seen_in_training([tmp_path / "head.safetensors"], images) == [str(images[0])]


def test_images_in_memory_are_not_compared(fields: Path) -> None:
    pixels: list[Any] = [Image.new("RGB", (64, 32))]
    assert seen_in_training([fields / "run" / "head.safetensors"], pixels) == []


def test_a_detector_is_said_to_have_been_trained_on_images_of_its_run(
    tmp_path: Path, tiny: Backbone
) -> None:
    pytest.importorskip("pycocotools")
    truth = BoxImages(box_samples.write(tmp_path, box_samples.content()))
    head = DetectionHead("fcos", truth.classes, STAPyramid(64, 32))
    run = tmp_path / "run"
    run.mkdir()
    Detector(head, tiny, size=(32, 64)).save(run / "detector.safetensors")
    trained = [truth.paths[0], truth.paths[2]]
    write_trained_images(run, trained, ["a", "b"], None, [Fold.of_all_images(2)])
    report = evaluate({"mine": run / "detector.safetensors"}, None, truth.file)
    assert report["trained_on"] == {"mine": 2}
