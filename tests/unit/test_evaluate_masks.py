"""Masks of a truth are read as the training of the head read its masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.training.meadow import a_run

from dinoneck import Backbone, CheckpointError, ConfigError, DenseHead, Predictor, Task, evaluate
from dinoneck.checkpoint import HeadCheckpoint
from dinoneck.training import train

SIZE = (32, 48)
NAMES = ("crop", "soil")


def written(folder: Path, masks: list[np.ndarray]) -> Path:
    """Write an image for each mask, green where it holds 1; the folder is returned."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = np.where(mask[..., None] == 1, (30, 200, 30), (150, 110, 80)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    return folder


def columns(left: int, middle: int, right: int) -> np.ndarray:
    """A mask of three columns of patches with these values."""
    return np.repeat(np.array([[left, middle, right]], np.uint8), 16, axis=1).repeat(32, axis=0)


def trained(folder: Path, out: Path, **data: Any) -> Path:
    """Train on the images and masks of a folder, and return the folder of the run."""
    data |= {"images": str(folder / "images"), "labels": str(folder / "masks")}
    config = a_run(
        None,
        data=data,
        head={"type": "dense", "hidden_dim": 8},
        optim={"epochs": 1},
        folds={"count": 2},
    )
    train(config, out)
    return out


def a_file(path: Path, backbone: Backbone, **masks: Any) -> Path:
    """Write an untrained head whose file has this record of its masks, if any."""
    torch.manual_seed(0)
    head = DenseHead(64, [Task("cover", dim=2, kind="segmentation", labels=NAMES)])
    if masks.pop("is_other", False):
        torch.nn.init.normal_(next(head.parameters()))
    training = {"masks": masks} if masks else None
    HeadCheckpoint.from_module(
        head, backbone=backbone, preprocess=backbone.preprocess, training=training
    ).save(path)
    return path


def matrix(report: dict[str, Any]) -> Any:
    [scores] = [own for name, own in report["scores"].items() if name != "overall"]
    return scores["head"]["confusion_matrix"]


def a_field(folder: Path) -> Path:
    return written(folder, [columns(1, 0, 0), columns(0, 1, 0), columns(0, 0, 1), columns(1, 1, 0)])


@pytest.mark.slow
def test_masks_are_read_with_the_class_values_of_the_training(tmp_path: Path) -> None:
    field = a_field(tmp_path / "field")
    run = trained(field, tmp_path / "run", classes=NAMES, class_values=(1, 0))

    without = evaluate(run, field / "images", field / "masks")

    # 5 of 12 columns are crop, of 512 pixels each
    assert np.sum(matrix(without), axis=1).tolist() == [5 * 512, 7 * 512]
    named = evaluate(run, field / "images", field / "masks", class_values=(1, 0))
    assert without["scores"] == named["scores"]
    module = HeadCheckpoint.load(run).build(check_backbone=False)
    by_hand = Predictor(module, HeadCheckpoint.load(run).load_backbone())
    other = evaluate(by_hand, field / "images", field / "masks")
    assert np.sum(matrix(other), axis=1).tolist() == [7 * 512, 5 * 512]


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_masks_are_read_at_the_size_of_an_image_of_tiles(
    tmp_path: Path, tiny: Backbone, resize: Any
) -> None:
    """An image of tiles is predicted whole, whatever the size of one tile is."""
    field = written(tmp_path / "field", [np.eye(64, 96, dtype=np.uint8)])
    head = DenseHead(64, [Task("cover", dim=2, kind="segmentation", labels=NAMES)])
    preprocess = tiny.preprocess.changed(size=(32, 32), resize=resize)
    model = Predictor(head, tiny, preprocess=preprocess, tile=32)

    found = evaluate(model, field / "images", field / "masks")

    # the diagonal alone is of the second class
    assert np.sum(matrix(found), axis=1).tolist() == [64 * 96 - 64, 64]


@pytest.mark.slow
def test_masks_are_read_with_the_nodata_of_the_training(tmp_path: Path) -> None:
    field = written(
        tmp_path / "field",
        [columns(1, 2, 0), columns(2, 1, 1), columns(0, 2, 1), columns(1, 1, 2)],
    )
    names = ("bare", *NAMES)
    run = trained(field, tmp_path / "run", classes=names, nodata=(0,))

    without = evaluate(run, field / "images", field / "masks")

    assert np.sum(matrix(without), axis=1).tolist() == [0, 6 * 512, 4 * 512]
    named = evaluate(run, field / "images", field / "masks", nodata=[0])
    assert without["scores"] == named["scores"]


@pytest.mark.slow
def test_a_mask_of_the_unlabelled_value_of_the_training_is_no_class(tmp_path: Path) -> None:
    """Masks of 0 and 1 alone were read as the classes 0 and 1, though 0 is unlabelled."""
    field = written(tmp_path / "field", [columns(1, 2, 0), columns(2, 1, 1), columns(0, 2, 1)])
    run = trained(field, tmp_path / "run", classes=NAMES, class_values=(1, 2), nodata=(0,))
    truth = a_field(tmp_path / "truth")

    found = evaluate(run, truth / "images", truth / "masks")

    assert np.sum(matrix(found), axis=1).tolist() == [5 * 512, 0]


@pytest.mark.slow
def test_every_head_file_of_a_run_records_how_masks_are_read(tmp_path: Path) -> None:
    field = written(tmp_path / "field", [columns(1, 2, 0), columns(2, 1, 1), columns(0, 2, 1)])
    run = trained(field, tmp_path / "run", classes=NAMES, class_values=(1, 2), nodata=(0,))

    for file in (run / "head.safetensors", *sorted((run / "heads").iterdir())):
        record = HeadCheckpoint.load(file).meta["training"]["masks"]
        assert record == {"class_values": [1, 2], "nodata": [0.0]}


def test_the_head_files_of_numbers_record_their_scale(tmp_path: Path) -> None:
    field = written(tmp_path / "field", [columns(1, 2, 0), columns(2, 1, 1), columns(0, 2, 1)])
    options = {"label_kind": "numbers", "scale": 0.5, "offset": -1.0, "nodata": (0,)}
    run = trained(field, tmp_path / "run", **options)

    record = HeadCheckpoint.load(run / "head.safetensors").meta["training"]["masks"]

    assert record == {"scale": 0.5, "offset": -1.0, "nodata": [0.0]}


@pytest.mark.slow
def test_a_run_without_these_options_records_nothing_of_its_masks(tmp_path: Path) -> None:
    field = a_field(tmp_path / "field")

    run = trained(field, tmp_path / "run", classes=NAMES)

    assert "masks" not in HeadCheckpoint.load(run).meta["training"]


def test_a_head_file_without_a_record_is_read_as_the_options_say(
    tmp_path: Path, tiny: Backbone
) -> None:
    field = a_field(tmp_path / "field")
    file = a_file(tmp_path / "head.safetensors", tiny)

    plain = evaluate(file, field / "images", field / "masks")
    turned = evaluate(file, field / "images", field / "masks", class_values=(1, 0))

    assert np.sum(matrix(plain), axis=1).tolist() == [7 * 512, 5 * 512]
    assert np.sum(matrix(turned), axis=1).tolist() == [5 * 512, 7 * 512]


def test_more_unlabelled_values_than_in_training_are_taken(tmp_path: Path, tiny: Backbone) -> None:
    field = written(tmp_path / "field", [columns(1, 7, 9), columns(9, 0, 0)])
    file = a_file(tmp_path / "head.safetensors", tiny, nodata=[9.0])

    found = evaluate(file, field / "images", field / "masks", nodata=[7, 9])

    assert np.sum(matrix(found), axis=1).tolist() == [2 * 512, 512]


def test_class_values_that_one_of_two_heads_records_do_not_hold_for_the_other(
    tmp_path: Path, tiny: Backbone
) -> None:
    field = a_field(tmp_path / "field")
    models = {
        "without": a_file(tmp_path / "without.safetensors", tiny),
        "turned": a_file(tmp_path / "turned.safetensors", tiny, class_values=[1, 0]),
    }

    with pytest.raises(ConfigError, match=r"turned.* values 1 0, .*without.* records none"):
        evaluate(models, field / "images", field / "masks")


def test_class_values_of_the_call_hold_for_a_head_that_records_none(
    tmp_path: Path, tiny: Backbone
) -> None:
    field = a_field(tmp_path / "field")
    models = {
        "without": a_file(tmp_path / "without.safetensors", tiny),
        "turned": a_file(tmp_path / "turned.safetensors", tiny, class_values=[1, 0]),
    }

    report = evaluate(models, field / "images", field / "masks", class_values=(1, 0))

    scores = report["scores"]["cover"]
    for name in models:
        assert np.sum(scores[name]["confusion_matrix"], axis=1).tolist() == [5 * 512, 7 * 512]


def test_class_values_in_order_are_those_of_a_head_that_records_none(
    tmp_path: Path, tiny: Backbone
) -> None:
    field = a_field(tmp_path / "field")
    models = {
        "without": a_file(tmp_path / "without.safetensors", tiny),
        "in order": a_file(tmp_path / "in_order.safetensors", tiny, class_values=[0, 1]),
    }

    report = evaluate(models, field / "images", field / "masks")

    scores = report["scores"]["cover"]
    for name in models:
        assert np.sum(scores[name]["confusion_matrix"], axis=1).tolist() == [7 * 512, 5 * 512]


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        pytest.param(
            {"class_values": [1, 0]},
            {"class_values": (0, 1)},
            "class_values are 0 1, .*head.safetensors .*class values 1 0; leave",
            id="class values",
        ),
        pytest.param(
            {"nodata": [9.0]},
            {"nodata": [255]},
            "nodata is 255, .*head.safetensors .*nodata 9; leave",
            id="nodata",
        ),
        pytest.param(
            {"nodata": [0.0]},
            {"class_values": (0, 1)},
            "class values of the call are 0 1, and 0 is nodata of .*head.safetensors; leave",
            id="class that was unlabelled",
        ),
        pytest.param(
            {"class_values": [1, 0]},
            {"nodata": [0]},
            "class values of .*head.safetensors are 1 0, and 0 is nodata of the call; leave",
            id="class that is unlabelled",
        ),
    ],
)
def test_an_option_that_contradicts_the_training_is_refused(
    tmp_path: Path, tiny: Backbone, record: Any, options: Any, message: str
) -> None:
    field = a_field(tmp_path / "field")
    file = a_file(tmp_path / "head.safetensors", tiny, **record)

    with pytest.raises(ConfigError, match=message):
        evaluate(file, field / "images", field / "masks", **options)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param(
            {"class_values": []}, "training.masks.class_values is .*length >= 1", id="none"
        ),
        pytest.param({"class_values": ["1"]}, "class_values.*`int`", id="text"),
        pytest.param({"nodata": 255}, "training.masks.nodata is 255.*`array", id="no list"),
        pytest.param({"no_data": [255]}, "training.masks.*no_data", id="unknown"),
    ],
)
def test_a_record_that_says_nothing_of_masks_is_refused(
    tmp_path: Path, tiny: Backbone, record: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        a_file(tmp_path / "head.safetensors", tiny, **record)


@pytest.mark.parametrize("is_ensemble", [False, True], ids=["two models", "one ensemble"])
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        pytest.param(
            {"class_values": [1, 0]},
            {"class_values": [0, 1]},
            "a.safetensors .*values 1 0, .*b.safetensors with 0 1; evaluate them apart",
            id="class values",
        ),
        pytest.param(
            {"nodata": [8.0]},
            {"nodata": [9.0]},
            "a.safetensors .*nodata 8, .*b.safetensors with 9; evaluate them apart",
            id="nodata",
        ),
        pytest.param(
            {"class_values": [0, 1]},
            {"nodata": [0.0]},
            "a.safetensors are 0 1, and 0 is nodata of .*b.safetensors; evaluate them apart",
            id="class of one, unlabelled of the other",
        ),
    ],
)
def test_heads_whose_trainings_read_masks_differently_are_refused(
    tmp_path: Path, tiny: Backbone, one: Any, other: Any, message: str, is_ensemble: bool
) -> None:
    field = a_field(tmp_path / "field")
    folder = tmp_path / "heads"
    folder.mkdir()
    first = a_file(folder / "a.safetensors", tiny, **one)
    second = a_file(folder / "b.safetensors", tiny, is_other=True, **other)
    models: Any = folder if is_ensemble else {"a": first, "b": second}

    with pytest.raises(ConfigError, match=message):
        evaluate(models, field / "images", field / "masks")


def test_the_command_reads_masks_as_the_training_did(tmp_path: Path, tiny: Backbone) -> None:
    field = a_field(tmp_path / "field")
    file = a_file(tmp_path / "head.safetensors", tiny, class_values=[1, 0], nodata=[255.0])
    line = ("evaluate", field / "images", "--heads", file, "--truth", field / "masks", "--json")

    without = kit.cli(*line)
    named = kit.cli(*line, "--class-values", "1", "0", "--nodata", "255")
    wrong = kit.cli(*line, "--class-values", "0", "1")

    assert without.json["scores"] == named.json["scores"]
    assert wrong.code != 0
    assert "class values 1 0" in wrong.out + wrong.err
