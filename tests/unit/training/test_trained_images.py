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

from dinoneck import Backbone, DataError, HeadCheckpoint, STAPyramid, evaluate
from dinoneck.checkpoint import training_images as hashes_in_files
from dinoneck.data import BoxImages
from dinoneck.detection import Detector
from dinoneck.detection.head import DetectionHead
from dinoneck.training import train
from dinoneck.training.folds import Fold
from dinoneck.training.trained_images import (
    image_hashes,
    images_of_hashes,
    known_training_images,
    seen_in_training,
    warn_of_seen_images,
    write_trained_images,
)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of the meadow, and a run of two folds on them."""
    folder = tmp_path_factory.mktemp("fields")
    table = write_meadow(folder)
    train(a_run(table, ["weed"]), folder / "run")
    return folder


@pytest.fixture(scope="module")
def unrecorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``fields``, with head files that keep nothing of the images."""
    folder = tmp_path_factory.mktemp("unrecorded")
    table = write_meadow(folder)
    train(a_run(table, ["weed"], record_images=False), folder / "run")
    return folder


def images_in(folder: Path) -> list[Path]:
    """The images of the meadow, without their masks."""
    return [folder / row["image"] for row in rows_of(folder / "t.csv")]


def write_other_meadow(folder: Path) -> Path:
    """Write the table of the meadow with other images of the same names."""
    table = write_meadow(folder)
    for number, file in enumerate(images_in(folder)):
        Image.new("RGB", (64, 32), (9 * number, 3, 40)).save(file)
    return table


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
    assert {Path(file).name for file in seen.paths} == {
        name for name, fold in images.items() if fold == "0"
    }
    assert len(known_training_images(fields / "run" / "head.safetensors").hashes) == COUNT


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
    assert {Path(file).name for file in seen.paths} == {file.name for file in images} - held_out
    assert 0 < len(held_out) < COUNT


@pytest.mark.parametrize("name", ["head", "heads/fold-0", "baselines/fold-0"])
def test_a_copied_head_knows_its_training_images(name: str, fields: Path, tmp_path: Path) -> None:
    """The head of the run was trained on all images, that of a fold on those of the other fold."""
    shutil.copyfile(fields / "run" / f"{name}.safetensors", tmp_path / "copy.safetensors")
    held_out = list(fold_of_image(fields / "run").values()).count("0")
    report = evaluate(tmp_path / "copy.safetensors", fields, fields / "t.csv")
    expected = COUNT if name == "head" else COUNT - held_out
    assert report["trained_on"] == {"head": expected}


def test_a_copied_head_warns_of_no_other_images(fields: Path, tmp_path: Path) -> None:
    """It lies in the folder of another run, whose images it has not seen."""
    write_other_meadow(tmp_path)
    images = images_in(tmp_path)
    everything = [Fold.of_all_images(len(images))]
    write_trained_images(
        tmp_path,
        names=[str(file) for file in images],
        hashes=image_hashes(images),
        folds=everything,
    )
    shutil.copyfile(fields / "run" / "head.safetensors", tmp_path / "head.safetensors")
    report = evaluate(tmp_path / "head.safetensors", tmp_path, tmp_path / "t.csv")
    assert "trained_on" not in report


def test_files_without_hashes_hold_nothing_of_the_images(unrecorded: Path, tmp_path: Path) -> None:
    files = sorted((unrecorded / "run").glob("**/*.safetensors"))
    assert len(files) == 5
    for file in files:
        assert "training_images" not in HeadCheckpoint.load(file).meta
    shutil.copyfile(unrecorded / "run" / "head.safetensors", tmp_path / "head.safetensors")
    copied = evaluate(tmp_path / "head.safetensors", unrecorded, unrecorded / "t.csv")
    assert "trained_on" not in copied
    in_its_run = evaluate(unrecorded / "run", unrecorded, unrecorded / "t.csv")
    assert in_its_run["trained_on"] == {"head": COUNT}


def test_a_copy_with_intervals_keeps_the_hashes(fields: Path) -> None:
    head = HeadCheckpoint.load(fields / "run" / "head.safetensors")
    copy = head.with_intervals({"weed": []})
    assert copy.training_images == head.training_images
    assert head.training_images is not None
    assert len(head.training_images.hashes) == COUNT


def test_of_more_images_than_a_file_holds_it_keeps_a_sample(
    fields: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes_in_files, "MOST_HASHES", 3)
    digests = image_hashes(images_in(fields))
    record = images_of_hashes(digests).record()
    kept = hashes_in_files.TrainingImages.from_record(record)
    assert kept.may_be_sample
    assert [digest in kept for digest in sorted(digests)] == [True] * 3 + [False] * (COUNT - 3)


def test_a_sample_is_said_to_be_one(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the folder of its run all images are known, elsewhere those of the sample."""
    monkeypatch.setattr(hashes_in_files, "MOST_HASHES", 3)
    table = write_meadow(tmp_path)
    train(a_run(table, ["weed"]), tmp_path / "run")
    shutil.copyfile(tmp_path / "run" / "head.safetensors", tmp_path / "copy.safetensors")
    assert evaluate(tmp_path / "run", tmp_path, table)["trained_on"] == {"head": COUNT}
    caplog.clear()
    assert evaluate(tmp_path / "copy.safetensors", tmp_path, table)["trained_on"] == {"head": 3}
    assert f"head was trained on 3 or more of the {COUNT} images" in caplog.text


def test_a_head_that_starts_from_another_one_has_its_images_too(
    fields: Path, tmp_path: Path
) -> None:
    table = write_other_meadow(tmp_path)
    first = fields / "run" / "heads" / "fold-0.safetensors"
    train(a_run(table, ["weed"], init=str(first)), tmp_path / "run")
    later = known_training_images(tmp_path / "run" / "head.safetensors")
    assert later == known_training_images(first) | images_of_hashes(
        image_hashes(images_in(tmp_path))
    )


def test_a_sample_with_images_of_an_earlier_head_is_completed_from_the_run(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fields / "run" / "heads" / "fold-0.safetensors"
    of_first = known_training_images(first).hashes
    table = write_other_meadow(tmp_path)
    of_this_run = images_of_hashes(image_hashes(images_in(tmp_path))).hashes

    # the file of the later head holds the smallest hashes of both trainings
    most = len(of_first) + 1
    smallest = sorted(of_first | of_this_run)[:most]
    monkeypatch.setattr(hashes_in_files, "MOST_HASHES", most)
    train(a_run(table, ["weed"], init=str(first)), tmp_path / "run")

    known = known_training_images(tmp_path / "run" / "head.safetensors").hashes
    assert known >= of_this_run
    assert known >= {*smallest}
    assert known <= of_first | of_this_run


def test_the_name_of_a_published_head_is_no_file_of_the_run_here(
    fields: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(fields / "run")
    warn_of_seen_images("rf_detr_small", images_in(fields), stored=None)
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["", "image,folds\na.png,0\n", "image,folds,blake2b\na.png,0\n"])
def test_a_damaged_record_is_refused(unrecorded: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(unrecorded / "run", tmp_path / "run")
    (tmp_path / "run" / "trained_on.csv").write_text(text)
    with pytest.raises(DataError, match=r"trained_on.csv is damaged.*restore it, or remove it"):
        evaluate(tmp_path / "run", unrecorded, unrecorded / "t.csv")


def test_a_record_that_is_no_text_is_refused(unrecorded: Path, tmp_path: Path) -> None:
    shutil.copytree(unrecorded / "run", tmp_path / "run")
    record = tmp_path / "run" / "trained_on.csv"
    content = bytearray(record.read_bytes())
    content[40] = 0xFF
    record.write_bytes(content)
    with pytest.raises(DataError, match=r"trained_on.csv is damaged: its byte 40 is no UTF-8"):
        evaluate(tmp_path / "run", unrecorded, unrecorded / "t.csv")


@pytest.mark.parametrize("name", ["a\u2028b.png", 'two\nlines, "and a quote".png', "\x0b.png"])
def test_any_name_of_a_file_is_read_back(name: str, unrecorded: Path, tmp_path: Path) -> None:
    images = [tmp_path / name, tmp_path / "other.png"]
    for number, file in enumerate(images):
        Image.new("RGB", (8, 8), (number, 5, 5)).save(file)
    head = shutil.copy(unrecorded / "run" / "head.safetensors", tmp_path)
    write_trained_images(
        tmp_path,
        names=[name, "other.png"],
        hashes=image_hashes(images),
        folds=[Fold.of_all_images(1)],
    )
    assert seen_in_training([head], images).paths == [str(images[0])]


def test_images_in_memory_are_not_compared(fields: Path) -> None:
    pixels: list[Any] = [Image.new("RGB", (64, 32))]
    assert seen_in_training([fields / "run" / "head.safetensors"], pixels).paths == []


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
    write_trained_images(
        run, names=["a", "b"], hashes=image_hashes(trained), folds=[Fold.of_all_images(2)]
    )
    report = evaluate({"mine": run / "detector.safetensors"}, None, truth.file)
    assert report["trained_on"] == {"mine": 2}


def test_a_detector_keeps_the_hashes_of_its_file(tmp_path: Path, tiny: Backbone) -> None:
    """Also where it comes from elsewhere, and when it is saved again."""
    pytest.importorskip("pycocotools")
    truth = BoxImages(box_samples.write(tmp_path, box_samples.content()))
    head = DetectionHead("fcos", truth.classes, STAPyramid(64, 32))
    images = images_of_hashes(image_hashes([truth.paths[0], truth.paths[2]]))
    file = tmp_path / "detector.safetensors"
    Detector(head, tiny, size=(32, 64)).save(file, training_images=images)

    detector = Detector.load(file)
    detector.min_score = 0.4
    detector.save(tmp_path / "again.safetensors")
    detector.source = "user/name"

    assert Detector.load(tmp_path / "again.safetensors").training_images == images
    report = evaluate({"mine": detector}, None, truth.file)
    assert report["trained_on"] == {"mine": 2}
