"""Which training a file and a command line describe, and what earlier versions wrote is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dinoneck import ConfigError
from dinoneck.cli.main import command, main
from dinoneck.training import (
    DataConfig,
    TrainConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
    read_config,
)
from dinoneck.training.config import TRAININGS
from dinoneck.training.trainings import keys_of

FILES = [
    ("data: {csv: a.csv}", TrainConfig),
    ("optim: {epochs: 3}", TrainConfig),
    ("data: {boxes: a.json}", TrainDetectorConfig),
    ("data: {instances: a.json}", TrainInstancesConfig),
    ("data: {panoptic: [a, b]}", TrainInstancesConfig),
    ("data: {boxes: a.json, instances: null}", TrainDetectorConfig),
]
COMMANDS = [
    ("--csv a.csv", TrainConfig),
    ("--boxes a.json", TrainDetectorConfig),
    ("--boxes=a.json", TrainDetectorConfig),
    ("--instances a.json", TrainInstancesConfig),
    ("--panoptic a b", TrainInstancesConfig),
]


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_the_data_of_a_file_decides_which_training_it_describes(
    text: str, expected: type[Any], tmp_path: Path
) -> None:
    assert type(read_config(written(tmp_path, text))) is expected


@pytest.mark.parametrize(("words", "expected"), COMMANDS)
def test_the_data_of_a_command_line_decides_which_training_it_describes(
    words: str, expected: type[Any]
) -> None:
    run = command("train", [*words.split(), "--out", "x"]).keywords["run"]

    assert type(run) is expected


@pytest.mark.parametrize(("words", "expected"), COMMANDS)
def test_a_file_without_data_is_of_the_training_of_the_flags(
    words: str, expected: type[Any], tmp_path: Path
) -> None:
    path = written(tmp_path, "optim: {epochs: 3}")

    run = command("train", [path, *words.split(), "--out", "x"]).keywords["run"]

    assert type(run) is expected
    assert run.optim.epochs == 3


def test_a_file_and_a_flag_of_two_trainings_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {boxes: b.json}")

    with pytest.raises(ConfigError, match=r"of boxes, and --instances one of objects; leave one"):
        command("train", [path, "--instances", "o.json", "--out", "x"])


def test_a_flag_replaces_the_data_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {boxes: b.json, images: i}")

    run = command("train", [path, "--boxes", "other.json", "--out", "x"]).keywords["run"]

    assert (run.data.boxes, run.data.images) == ("other.json", "i")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--boxes b --targets a", "numbers, classes or masks, and has no effect with --boxes"),
        ("--boxes b --no-with-linear", "classes or masks, and has no effect with --boxes"),
        ("--instances o --heads fpn", "and has no effect with --instances or --panoptic"),
        ("--boxes b --instances o", "training of objects, and has no effect with --boxes"),
        ("--detector fcos", "training of boxes, and needs --boxes"),
        (
            "--crowd objects",
            "of boxes and of objects, and needs --boxes or --instances or --panoptic",
        ),
        ("--rho 0.1", "optim.rho stands in the training file alone"),
        ("--optimizer sam", "optim.optimizer stands in the training file alone"),
        ("--blur 5", "data.blur stands in the training file alone"),
        ("--boxes b --features-at 0.5", "detector.features_at stands in the training file alone"),
        ("--tasks a", "tasks stands in the training file alone"),
    ],
)
def test_a_flag_of_another_training_is_refused_with_the_training_that_has_it(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words.split(), "--out", "x"])

    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"boxs": "b.json"}}, "unknown key 'data.boxs'. Did you mean 'boxes'?"),
        ({"detecter": {"name": "fcos"}}, "unknown key 'detecter'. Did you mean 'detector'?"),
        ({"data": {"boxes": "b", "panoptik": 1}}, "'data.panoptik'. Did you mean 'panoptic'?"),
        ({"optim": {"lrr": 1}}, "unknown key 'optim.lrr'. Did you mean 'lr'?"),
        ({3: 4}, "unknown key '3'. Known: data, head,"),
        ({"nothing": {}}, "unknown key 'nothing'"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_of_any_training(
    values: dict[Any, Any], message: str
) -> None:
    config = TRAININGS.of_values(values).config

    with pytest.raises(ConfigError, match=re.escape(message)):
        config.from_dict(values)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--bxes b.json", "Did you mean '--boxes'?"),
        ("--boxes b --instanses o", "Did you mean '--instances'?"),
        ("--boxes b --minimun 0", "Did you mean '--minimum'?"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one_of_any_training(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words.split(), "--out", "x"])

    assert stopped.value.code == 2
    assert hint in capsys.readouterr().err


def test_a_record_of_0_3_is_read_without_the_groups_of_other_trainings() -> None:
    """0.3 wrote the defaults of all trainings into every report."""
    boxes: dict[str, Any] = {"boxes": "b.json", "csv": None, "targets": [], "pasture": 120}
    record = {
        "data": boxes,
        "tasks": {},
        "losses": {"weighting": "fixed", "aux_weight": 0.1},
        "optim": {"epochs": 3, "optimizer": "adamw", "standardise_tokens": True},
        "folds": {"count": 5, "group": [], "only": None},
        "with_ridge": False,
        "hash of images and boxes": "0a1b",
    }

    assert TRAININGS.without_void_keys(record) == {
        "data": {"boxes": "b.json"},
        "optim": {"epochs": 3},
        "folds": {"count": 5},
        "hash of images and boxes": "0a1b",
    }


@pytest.mark.parametrize("content", [{}, None])
def test_an_empty_group_of_another_training_has_no_effect(content: object) -> None:
    heads = TrainConfig.from_dict({"data": {"csv": "a.csv"}, "detector": content})
    boxes = TrainDetectorConfig.from_dict({"data": {"boxes": "b.json"}, "losses": content})

    assert heads.data.csv == "a.csv"
    assert boxes.data.boxes == "b.json"
    with pytest.raises(ConfigError, match="unknown key 'detectors'"):
        TrainConfig.from_dict({"detectors": {}})


def test_a_switch_of_another_training_that_is_off_is_no_default_where_on_is() -> None:
    values = {"data": {"boxes": "b.json"}, "optim": {"standardise_tokens": False}}

    with pytest.raises(ConfigError, match=r"standardise_tokens is False, and has no effect"):
        TrainDetectorConfig.from_dict(values)


def test_the_groups_of_heads_hold_no_key_of_boxes_and_objects() -> None:
    keys = keys_of(TrainConfig).keys()

    assert not {"data.boxes", "data.instances", "data.crowd", "detector.name"} & keys
    assert {f"data.{name}" for name in DataConfig.__struct_fields__} <= keys
    assert TRAININGS.of_data(["csv"]).config is TrainConfig
