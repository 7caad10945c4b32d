"""A fold column whose words are all parts, such as train and val, is read as folders of these names are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.training import TrainConfig
from dinoneck.training.folds import folds_of
from dinoneck.training.table import table_of

CONFIG = {"data": {"targets": ["y"]}, "folds": {"column": "split"}}


def folds_by_id(
    words: list[str], *, is_ready_made: bool = False, column: str = "split"
) -> list[tuple[list[str], list[str]]]:
    """The ids that each fold trains on and holds out; images are called 0, 1, ... in memory."""
    ids = [str(number) for number in range(len(words))]
    frame = pd.DataFrame({"image": ids, "y": np.arange(len(words), dtype=float), column: words})
    config = TrainConfig.from_dict(CONFIG)
    if is_ready_made:
        frame = frame.set_index("image").rename(columns={column: "fold"})
        frame["images"] = pd.Series(dtype=object)
    else:
        config = config.changed(data=config.data.changed(store="tokens"))
    table = table_of(config, frame)
    folds = folds_of(config, table)
    ids_of_folds = []
    for fold in folds:
        train_ids = [table.ids[row] for row in fold.train]
        valid_ids = [table.ids[row] for row in fold.valid]
        ids_of_folds.append((train_ids, valid_ids))
    return ids_of_folds


@pytest.mark.parametrize("is_ready_made", [False, True], ids=["frame", "ready-made table"])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["train", "val", "train", "test", "val"], id="train, val, test"),
        pytest.param(["Training", "VALID", "train", "Test", "Validation"], id="other words"),
    ],
)
def test_part_words_are_one_fold_that_holds_val_out_and_leaves_test(
    words: list[str], is_ready_made: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folds = folds_by_id(words, is_ready_made=is_ready_made)

    assert folds == [(["0", "2"], ["1", "4"])]
    assert caplog.messages == [
        "the fold column 'split' names parts: train (2 images) is trained on, val (2 images) is "
        "held out; test (1 image) is left out, for evaluate"
    ]


def test_train_and_val_alone_are_one_fold() -> None:
    assert folds_by_id(["val", "train", "train"]) == [(["1", "2"], ["0"])]


OWN_NAMES = [
    pytest.param(["0", "1", "0"], id="numbers"),
    pytest.param(["a", "b", "a"], id="letters"),
    pytest.param(["essai 1", "essai 2", "essai 1"], id="numbered trials in French"),
    pytest.param(["fold_1", "fold_2", "fold_1"], id="numbered folds"),
    pytest.param(["control plot", "test plot", "control plot"], id="test in the name of a place"),
    pytest.param(["AB", "TE", "AB"], id="a place called TE"),
    pytest.param(["False", "True", "False"], id="truth"),
]


@pytest.mark.parametrize("words", OWN_NAMES)
def test_other_words_are_folds_that_are_held_out_in_turn(
    words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folds = folds_by_id(words)

    assert sorted(folds) == [(["0", "2"], ["1"]), (["1"], ["0", "2"])]
    assert not caplog.messages


UNCLEAR = [
    pytest.param(["train", "dev", "test"], "'dev', 'test', 'train';", id="dev"),
    pytest.param(["train", "val", "tset"], "'train', 'val', and also 'tset';", id="mistyped"),
    pytest.param(["test", "0", "1"], "'test', and also '0', '1';", id="test beside numbers"),
    pytest.param(["holdout", "0", "1"], "'holdout', and also '0', '1';", id="holdout"),
    pytest.param(["trn", "dev", "trn"], "'dev', 'trn';", id="short words"),
    pytest.param(["TR", "TE", "TR"], "'TE', 'TR';", id="two letters"),
    pytest.param(["train_set", "val_set", "train_set"], "'train_set', 'val_set';", id="sets"),
]


@pytest.mark.parametrize(("words", "named"), UNCLEAR)
def test_words_of_which_some_are_no_clear_part_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(DataError) as refused:
        folds_by_id(words)

    assert f"names parts of a data set, {named} expected the words train, val" in str(refused.value)


def test_parts_without_val_are_refused() -> None:
    with pytest.raises(
        DataError, match="'split' has the parts test, train; expected train and val"
    ):
        folds_by_id(["train", "test", "train"])


def changed_copies_of(folder: Path, **roles: list[str]) -> tuple[TrainConfig, pd.DataFrame]:
    """A table of two photos and a turned copy of each, with columns of groups or folds."""
    names = ["a.png", "a_rot90.png", "b.png", "b_rot90.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (32, 32), (20 * number, 10, 0)).save(folder / name)
    table = pd.DataFrame({"images": [folder / name for name in names], "y": [1.0, 1.0, 2.0, 2.0]})
    return TrainConfig.from_dict({"data": {"targets": ["y"]}}), table.assign(**roles)


def test_changed_copies_in_a_table_without_groups_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, table = changed_copies_of(tmp_path)

    table_of(config, table)

    [line] = caplog.messages
    assert line.startswith("2 files called like changed copies of another one, such as ")


@pytest.mark.parametrize("role", ["group", "fold"])
def test_changed_copies_that_are_kept_together_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    config, table = changed_copies_of(tmp_path, **{role: ["0", "0", "1", "1"]})

    table_of(config, table)

    assert not caplog.messages


def test_a_changed_copy_in_another_fold_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, table = changed_copies_of(tmp_path, fold=["0", "0", "0", "1"], group=list("aabb"))

    table_of(config, table)

    [line] = caplog.messages
    assert "1 file called like changed copies" in line
    assert f"{tmp_path}/b_rot90.png of {tmp_path}/b.png: unless both are in one fold" in line


def test_tables_that_were_joined_keep_their_rows_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two tables with one index, of which the second repeats a picture with another value."""
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for shade, file in zip((10, 20, 10), files, strict=True):
        Image.new("RGB", (64, 64), (shade, 5 * shade, 0)).save(file)
    first = pd.DataFrame({"images": files[:2], "y": [1.0, 2.0]}, index=["row 0", "row 1"])
    second = pd.DataFrame({"images": files[2:], "y": [7.0]}, index=["row 0"])
    config = TrainConfig.from_dict({"data": {"targets": ["y"]}})

    table = table_of(config, pd.concat([first, second]))

    assert table.numbers("y").tolist() == [1.0, 2.0, 7.0]
    assert "a.png" in caplog.text
    assert "c.png" in caplog.text
