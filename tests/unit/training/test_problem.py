"""What a run makes of its config and table before it trains: tasks, targets, folds, heads and the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.unit.training.meadow import a_run

from dinoneck import Backbone, DataError, FPNHead, Task
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig
from dinoneck.training.folder import check_folder
from dinoneck.training.folds import folds_of
from dinoneck.training.problem import Problem, read_problem
from dinoneck.training.run import prepare
from dinoneck.training.table import table_of


def problem(config: TrainConfig, table: Table, backbone: Backbone) -> Problem:
    return read_problem(config, table, backbone.preprocess)


def tasks_of(config: TrainConfig, backbone: Backbone) -> dict[str, Task]:
    return {task.name: task for task in problem(config, table_of(config), backbone).tasks}


def with_auxiliary(meadow: Path, **groups: Any) -> TrainConfig:
    """One target, and two columns that only help training."""
    data = {"csv": str(meadow), "targets": ["crop"], "aux_targets": ["height", "weather"]}
    return a_run(meadow, data=data | groups.pop("data", {}), **groups)


def test_auxiliary_targets_share_the_weight_of_the_config(meadow: Path, tiny: Backbone) -> None:
    tasks = tasks_of(with_auxiliary(meadow, losses={"aux_weight": 0.4}), tiny)

    assert tasks["height"].weight == tasks["weather"].weight == pytest.approx(0.2)
    assert tasks["crop"].weight == 1.0


def test_learned_weights_take_no_weight_for_auxiliary_targets(meadow: Path, tiny: Backbone) -> None:
    losses = {"aux_weight": 0.4, "weighting": "uncertainty"}

    tasks = tasks_of(with_auxiliary(meadow, losses=losses), tiny)

    assert tasks["height"].weight == tasks["weather"].weight == 1.0


def test_bounds_and_unit_are_those_of_targets_and_not_of_auxiliary_ones(
    meadow: Path, tiny: Backbone
) -> None:
    """A height may be in other units, and a temperature below 0."""
    data = {"unit": "g", "minimum": 0.0, "maximum": 100.0}

    tasks = tasks_of(with_auxiliary(meadow, data=data), tiny)

    crop = tasks["crop"]
    height = tasks["height"]
    assert (crop.unit, crop.minimum, crop.maximum) == ("g", 0.0, 100.0)
    assert (height.unit, height.minimum, height.maximum) == ("", None, None)


def test_shares_of_nothing_are_unknown_and_not_zero(tiny: Backbone) -> None:
    columns = {"leaf": [1.0, 0.0, 3.0, 2.0], "stem": [3.0, 0.0, 1.0, 2.0], "mass": [4, 0, 4, 4]}
    images = [np.zeros((32, 48, 3), np.uint8)] * 4
    frame = pd.DataFrame(columns | {"images": pd.Series(images, dtype=object)})
    shares = {"kind": "ratio", "columns": ["leaf", "stem"]}
    config = TrainConfig.from_dict({"data": {"targets": ["mass"]}, "tasks": {"shares": shares}})

    targets = problem(config, Table.from_frame(frame), tiny).targets["shares"]

    assert targets[1].isnan().all()
    assert targets[[0, 2, 3]].tolist() == [[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]]


def scored_outputs(tiny: Backbone, **groups: Any) -> dict[str, str]:
    """Scored target -> the output that it is scored on, of a table of masses and a kind."""
    columns: dict[str, Any] = {
        "leaf": [1.0, 2.0, 3.0, 4.0],
        "mass": [5.0, 5.0, 7.0, 9.0],
        "stem": [4.0, 3.0, 4.0, 5.0],
        "kind": pd.Categorical(["grass", "clover"] * 2),
    }
    images = [np.zeros((32, 48, 3), np.uint8)] * 4
    frame = pd.DataFrame(columns | {"images": pd.Series(images, dtype=object)})
    learned = problem(TrainConfig.from_dict(groups), Table.from_frame(frame), tiny)
    return {name: target.output for name, target in learned.scored.items()}


SHARES = {"kind": "ratio", "columns": ["leaf", "stem"]}
OTHER_SHARES = {"kind": "ratio", "columns": ["stem", "leaf"]}
PLANT = {"total": "mass", "ratio": "shares"}


def test_numbers_are_scored_in_the_order_of_the_table_before_classes(tiny: Backbone) -> None:
    scored = scored_outputs(tiny, data={"targets": ["kind", "stem", "leaf"]})

    assert [*scored] == ["leaf", "stem", "kind"]


def test_a_column_is_scored_on_its_own_task_before_a_composition(tiny: Backbone) -> None:
    scored = scored_outputs(
        tiny,
        data={"targets": ["mass", "leaf"]},
        tasks={"shares": SHARES, "leaf": {"columns": ["leaf"]}},
        compositions={"plant": PLANT},
    )

    assert scored == {"leaf": "leaf", "mass": "mass", "stem": "plant"}


def test_a_column_is_scored_on_a_ratio_if_nothing_else_predicts_it(tiny: Backbone) -> None:
    scored = scored_outputs(
        tiny,
        data={"targets": ["mass", "leaf"]},
        tasks={"shares": SHARES, "leaf": {"columns": ["leaf"]}},
    )

    assert scored == {"leaf": "leaf", "mass": "mass", "stem": "shares"}


def test_a_column_of_two_ratios_is_scored_on_the_first(tiny: Backbone) -> None:
    scored = scored_outputs(
        tiny, data={"targets": ["mass"]}, tasks={"shares": SHARES, "others": OTHER_SHARES}
    )

    assert scored == {"leaf": "shares", "mass": "mass", "stem": "shares"}


def test_folds_that_are_stratified_by_a_number_hold_every_fifth_of_it() -> None:
    pytest.importorskip("sklearn")
    cover = np.random.default_rng(0).permutation(40).astype(float)
    ids = [f"image {i}" for i in range(40)]
    frame = pd.DataFrame({"images": ids, "cover": cover}, index=ids)
    config = TrainConfig.from_dict(
        {"data": {"targets": ["cover"]}, "folds": {"count": 4, "stratify": "cover"}}
    )

    folds = folds_of(config, Table.from_frame(frame))

    for fold in folds:
        fifths = np.sort(cover[fold.valid] // 8)
        assert fifths.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_masks_on_one_layer_get_the_default_head_of_masks(meadow: Path, tmp_path: Path) -> None:
    data = {"csv": str(meadow), "labels": "mask", "classes": ["soil", "crop", "weed"]}
    config = a_run(None, data=data, backbone={"name": "dinoneck_tiny", "layers": [5]})

    trainer = prepare(config, tmp_path / "run")

    assert all(isinstance(head, FPNHead) for head in trainer.heads.values())


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    with pytest.raises(DataError, match="cannot be written to .*run.*not a folder that can be"):
        check_folder(tmp_path / "new" / "run", overwrite=False)


def test_a_folder_below_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="file is not a folder that can be written to"):
        check_folder(tmp_path / "file" / "run", overwrite=False)
