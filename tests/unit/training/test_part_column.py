"""A fold column whose words are all parts, such as train and val, is read as folders of these names are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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
    assert not caplog.messages


def test_the_images_of_test_are_counted_as_left_out() -> None:
    frame = pd.DataFrame(
        {"image": [*"abc"], "y": [1.0, 2.0, 3.0], "split": ["train", "val", "test"]}
    )
    config = TrainConfig.from_dict(CONFIG)

    table = table_of(config.changed(data=config.data.changed(store="tokens")), frame)

    assert table.left_out == {"images of the part test": 1}


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
    pytest.param(["train", "dev", "test"], "'test', 'train', and also 'dev';", id="dev"),
    pytest.param(["train", "val", "tset"], "'train', 'val', and also 'tset';", id="mistyped"),
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
