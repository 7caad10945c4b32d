"""Intervals in tasks, compositions, ensembles and head files: what is stored, and which names they take."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import kit

from dinoneck import (
    Composition,
    DenseHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Task,
    load_head,
)
from dinoneck.checkpoint.format import read_header
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.task_intervals import NO_INTERVAL
from dinoneck.tasks import Interval
from dinoneck.training.intervals import with_configured_intervals

MASS = Interval(levels=(0.5, 0.9), half_widths=(1.5, 4.0), groups=12)
WIDER = Interval(levels=(0.5, 0.9), half_widths=(2.5, 6.0), groups=12)
KIND = Interval(levels=(0.5, 0.9), half_widths=(0.25, 0.75), groups=9)
SUMS = {"both": ("leaf", "stem")}


def plant(*intervals: Interval) -> PatchMeanHead:
    """A head of a total and shares, whose composition has the outputs leaf, stem and both."""
    tasks = [Task("total", minimum=0), Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))]
    composition = Composition(
        ("leaf", "stem"), SUMS, "plant", total="total", ratio="shares", interval=intervals
    )
    return PatchMeanHead(64, tasks, hidden_dim=4, compositions=[composition])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(((0.9, 0.5), (1.0, 2.0), 12), "ascending numbers between 0 and 1", id="order"),
        pytest.param(((0.5, 1.0), (1.0, 2.0), 12), "ascending numbers between 0 and 1", id="one"),
        pytest.param(((0.5, 0.9), (1.0,), 12), "expected 2, one for each level", id="length"),
        pytest.param(((0.5, 0.9), (2.0, 1.0), 12), "do not become smaller", id="smaller"),
        pytest.param(((0.5,), (-1.0,), 12), "numbers of 0 or more", id="negative"),
        pytest.param(((0.5, 0.9), (1.0, 2.0), 8), "groups is 8; expected 9 or more", id="groups"),
        pytest.param(((0.5,), (math.inf,), 12), "finite", id="infinite"),
    ],
)
def test_an_interval_that_cannot_be_one_is_refused(values: Any, message: str) -> None:
    levels, half_widths, groups = values
    with pytest.raises(ConfigError, match=message):
        Interval(levels=levels, half_widths=half_widths, groups=groups)


def test_levels_are_those_that_so_many_groups_reach() -> None:
    # ten groups of one image: 0.9 is the 9.9th of eleven masses, so the largest of 10; 0.95 lies beyond
    interval = Interval.of_residuals(np.arange(1.0, 11.0), [*range(10)])

    assert interval == Interval(levels=(0.5, 0.8, 0.9), half_widths=(6.0, 9.0, 10.0), groups=10)
    assert math.isnan(interval.half_width(0.95))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Task("a", dim=2, interval=MASS), "interval is .* expected none, or 2"),
        (
            lambda: Task("a", dim=2, kind="classification", interval=(KIND, KIND)),
            "of a classification one",
        ),
        (lambda: Task("a", kind="dense", interval=MASS), "none for kind 'dense'"),
        (lambda: plant(MASS), r"Composition\(interval=\) has 1 interval for the 3 outputs"),
    ],
    ids=["outputs", "classes", "maps", "composition"],
)
def test_intervals_that_do_not_fit_the_outputs_are_refused(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    "tasks",
    [
        [Task("mass", interval=MASS), Task("mass high")],
        [
            Task("soil", dim=2, kind="classification", interval=KIND),
            Task("soil set"),
        ],
    ],
    ids=["bound", "set"],
)
def test_a_task_that_is_called_as_a_column_of_an_interval_is_refused(tasks: list[Task]) -> None:
    name = tasks[1].name
    with pytest.raises(ConfigError, match=f"'{name}' is a column of predictions, and one of the"):
        PatchMeanHead(64, tasks)


def test_the_same_names_without_intervals_are_those_of_earlier_files() -> None:
    head = PatchMeanHead(64, [Task("mass"), Task("mass high")])

    assert [task.name for task in head.tasks] == ["mass", "mass high"]


def test_bounds_stay_within_minimum_and_maximum_and_shares_within_0_and_1() -> None:
    mass = Task("mass", minimum=0, maximum=5, interval=MASS)
    shares = Task("shares", dim=2, kind="ratio", interval=(KIND, NO_INTERVAL))

    assert mass.bounds(2.0, 0.5) == (0.5, 3.5)
    assert mass.bounds(2.0, 0.9) == (0.0, 5.0)
    low, high = shares.bounds([0.5, 0.5], 0.9)
    np.testing.assert_array_equal(low, [0.0, math.nan])
    np.testing.assert_array_equal(high, [1.0, math.nan])


def test_a_set_holds_labels_of_at_least_the_stored_probability_the_likeliest_first() -> None:
    task = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"), interval=KIND)

    # 0.5: probabilities of 0.75 and more; 0.9: of 0.25 and more
    assert task.prediction_set([0.1, 0.3, 0.6], 0.9) == ["c", "b"]
    assert task.prediction_set([0.1, 0.3, 0.6], 0.5) == ["c"]


def test_a_file_without_intervals_does_not_mention_them_and_one_with_them_keeps_them(
    tmp_path: Path,
) -> None:
    tasks = [
        Task("mass", interval=MASS),
        Task("kind", dim=2, kind="classification", interval=KIND),
    ]
    file_without = kit.saved_head(tmp_path / "without.safetensors", kit.head(Task("mass")))
    file_with = kit.saved_head(tmp_path / "with.safetensors", kit.head(*tasks))

    assert b"interval" not in file_without.read_bytes().lower()
    head: Any = load_head(file_with)
    assert head.tasks == tuple(tasks)
    [record, _] = read_header(file_with).meta["tasks"]
    assert record["interval"] == [
        {"$": "Interval", "levels": [0.5, 0.9], "half_widths": [1.5, 4.0], "groups": 12}
    ]


def test_intervals_are_put_into_a_checkpoint_whose_other_content_stays(tmp_path: Path) -> None:
    head = plant()
    file = kit.saved_head(tmp_path / "head.safetensors", HeadEnsemble([head, plant()]), tta="flip4")
    checkpoint = HeadCheckpoint.load(file)
    intervals = {"total": (WIDER,), "plant": (MASS, NO_INTERVAL, MASS)}

    checkpoint.with_intervals(intervals).save(tmp_path / "with.safetensors")

    changed = HeadCheckpoint.load(tmp_path / "with.safetensors")
    stated = {task.name: task.interval for task in changed.tasks}
    assert stated == {"total": (WIDER,), "shares": (), "plant": (MASS, NO_INTERVAL, MASS)}
    assert kit.same(changed.state_dict, checkpoint.state_dict)
    for entry in ("backbone", "inputs", "training", "tta", "licences", "tensors"):
        assert changed.meta[entry] == checkpoint.meta[entry]
    tokens = kit.tokens(width=64)
    before: Any = checkpoint.build(check_backbone=False)
    after: Any = changed.build(check_backbone=False)
    assert kit.same(before.predict(tokens), after.predict(tokens))


def test_intervals_of_a_task_that_a_head_does_not_have_are_refused() -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(Task("mass")))

    with pytest.raises(CheckpointError, match="has no task 'height' .* it predicts mass"):
        checkpoint.with_intervals({"height": (MASS,)})


def test_a_training_leaves_out_tasks_that_a_head_does_not_have_in_its_configuration() -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(Task("mass")))

    changed = with_configured_intervals(
        checkpoint, {"mass": (MASS,), "stated by the head": (MASS,)}
    )

    assert checkpoint.configured_tasks == {"mass"}
    assert [task.interval for task in changed.tasks] == [(MASS,)]
    assert with_configured_intervals(checkpoint, {"stated by the head": (MASS,)}) is checkpoint


def test_an_ensemble_has_the_intervals_that_its_members_share() -> None:
    same = HeadEnsemble([plant(MASS, MASS, MASS), plant(MASS, MASS, MASS)])
    different = HeadEnsemble([plant(MASS, MASS, MASS), plant(MASS, MASS, WIDER)])
    of_one = HeadEnsemble([plant(MASS, MASS, MASS), plant()])

    assert [task.interval for task in same.predicted] == [(), (), (MASS, MASS, MASS)]
    assert [task.interval for task in different.predicted] == [(), (), ()]
    assert [task.interval for task in of_one.predicted] == [(), (), ()]


def test_a_member_that_predicts_the_parts_alone_takes_the_interval_of_their_sum_away() -> None:
    tasks = [Task("total"), Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))]
    parts_alone = [PatchMeanHead(64, tasks), PatchMeanHead(64, tasks[:1])]
    others = PatchMeanHead(64, [Task("height", interval=MASS)])
    composed = plant(MASS, MASS, MASS)

    # the mean of the totals is another one, so the sum is too
    for head in parts_alone:
        assert HeadEnsemble([composed, head]).predicted[-1].interval == ()
        assert HeadEnsemble([head, composed]).predicted[-1].interval == ()
        of_weight_0 = HeadEnsemble([composed, head], weights=[1.0, 0.0])
        assert of_weight_0.predicted[-1].interval == (MASS, MASS, MASS)
    beside = HeadEnsemble([composed, others])
    intervals = {task.name: task.interval for task in beside.predicted}
    assert intervals == {"total": (), "shares": (), "height": (MASS,), "plant": (MASS, MASS, MASS)}


def test_a_member_that_predicts_the_map_alone_takes_the_interval_of_its_mean_away() -> None:
    cells = Task("cover", dim=2, kind="dense", labels=("soil", "crop"))
    mean = Task("crop", from_map="cover", interval=MASS)
    with_mean = DenseHead(64, [cells, mean])
    of_map = DenseHead(64, [cells])

    same = HeadEnsemble([with_mean, DenseHead(64, [cells, mean])])
    mixed = HeadEnsemble([with_mean, of_map])

    assert [task.interval for task in same.tasks] == [(), (MASS,)]
    assert [task.interval for task in mixed.tasks] == [(), ()]


def test_a_member_that_does_not_run_has_no_part_in_the_interval() -> None:
    members = [kit.head(Task("mass", interval=WIDER)), kit.head(Task("mass", interval=MASS))]

    ensemble = HeadEnsemble(members, weights=[0.0, 1.0])

    assert ensemble.tasks[0].interval == (MASS,)


def test_a_task_with_intervals_is_pickled() -> None:
    task = Task("mass", interval=MASS)

    assert pickle.loads(pickle.dumps(task)) == task
