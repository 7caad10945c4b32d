"""Tasks of several labels per image: the task, its loss, heads, ensembles, files and rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from tests.kit import WIDTH

from dinoneck import (
    CheckpointError,
    CLSGatingHead,
    Composition,
    ConfigError,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    LinearHead,
    PatchMeanHead,
    Predictor,
    Task,
    load_head,
    save_head,
)
from dinoneck.heads.head import Head
from dinoneck.inference.results import table_row
from dinoneck.losses import TaskLoss
from dinoneck.losses.masked import MicroBatch
from dinoneck.tasks import columns_of
from dinoneck.viz.pictures import (
    LabelChip,
    caption,
    class_colours,
    is_known_without_labels,
    label_chips,
)
from dinoneck.viz.scales import outputs

LABELS = ("crack", "rust", "moss")
TAGS = Task("tags", kind="multilabel", labels=LABELS)


def test_the_number_of_outputs_is_that_of_the_labels() -> None:
    assert TAGS.dim == 3
    assert replace(TAGS, thresholds=(0.1, 0.2, 0.3)).dim == 3
    assert Task("tags", kind="multilabel", labels=("crack",)).dim == 1


def test_a_prediction_is_a_probability_of_each_label() -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.log(3)]])
    assert torch.allclose(TAGS.predict(logits), torch.tensor([[0.5, 0.75, 0.25]]))


def test_columns_have_the_name_of_the_label_also_of_a_single_one() -> None:
    assert [column.name for column in columns_of([TAGS])] == [
        "tags:crack",
        "tags:rust",
        "tags:moss",
    ]
    single = Task("tags", kind="multilabel", labels=("crack",))
    assert [column.name for column in columns_of([single])] == ["tags:crack"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the names of one label or more"),
        ({"labels": ("a", "a")}, "names that differ"),
        ({"labels": ("a", "b;c")}, "without ';' and '|', which separate them"),
        ({"labels": ("a", "None")}, "names other than 'none'"),
        ({"labels": ("a", "b"), "dim": 3}, "one for each of 3 outputs"),
        ({"labels": ("a",), "minimum": 0.0}, "are probabilities"),
        ({"labels": ("a",), "unit": "g"}, "have no unit"),
        ({"labels": ("a",), "loss": "mse"}, "binary_cross_entropy"),
        ({"labels": ("a", "b"), "thresholds": (0.5,)}, "one for each of 2 labels"),
        ({"labels": ("a",), "thresholds": (1.5,)}, "probabilities, 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task("tags", kind="multilabel", **options)


def test_thresholds_are_of_labels_and_instances_alone() -> None:
    with pytest.raises(ConfigError, match="only kinds 'multilabel' and 'instances' have them"):
        Task("mass", thresholds=(0.5,))


def test_labels_are_those_that_reach_their_threshold() -> None:
    probabilities = [0.5, 0.49, 0.9]
    assert TAGS.labels_above(probabilities) == ("crack", "moss")
    strict = replace(TAGS, thresholds=(0.6, 0.49, 0.95))
    assert strict.labels_above(probabilities) == ("rust",)


def test_the_loss_is_the_mean_binary_cross_entropy_of_known_labels() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, torch.nan]], requires_grad=True)
    truth = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 1.0, torch.nan]])
    total, _ = TaskLoss(TAGS)({"tags": logits}, {"tags": truth})
    # -log p of each known label, p = 1 / (1 + exp(-logit)) where it is there, else 1 - p
    expected = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log(2)]
    expected.append(math.log1p(math.exp(-3)))
    assert total.item() == pytest.approx(sum(expected) / 4)
    total.backward()
    assert logits.grad is not None
    assert logits.grad[:, 2].tolist() == [0.0, 0.0]
    assert torch.isfinite(logits.grad).all()


def test_micro_batches_add_up_to_the_loss_of_the_batch() -> None:
    logits = torch.randn(4, 3)
    truth = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    truth[1, 0] = torch.nan
    loss = TaskLoss(TAGS)
    whole, _ = loss({"tags": logits}, {"tags": truth})
    counts = loss.counts(["tags"], {"tags": truth})
    assert counts["tags"].tolist() == [3.0, 4.0, 4.0]
    total = torch.zeros(())
    for rows in (slice(0, 1), slice(1, 4)):
        part = MicroBatch(counts, num_samples=rows.stop - rows.start, num_in_batch=4)
        total = total + loss({"tags": logits[rows]}, {"tags": truth[rows]}, None, part)[0]
    assert total.item() == pytest.approx(whole.item())


HEADS: list[Head] = [
    PatchMeanHead(WIDTH, TAGS, hidden_dim=8),
    LinearHead(WIDTH, TAGS, pool="mean"),
    CLSGatingHead(WIDTH, TAGS, "query", hidden_dim=8),
    FPNHead(WIDTH, TAGS, 1, fpn_dim=8, num_levels=1),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_heads_of_values_predict_labels_and_are_saved(head: Head, tmp_path: Path) -> None:
    tokens = kit.tokens()
    probabilities = head.eval().predict(tokens)["tags"]
    assert probabilities.shape == (len(tokens), 3)
    assert bool(((probabilities > 0) & (probabilities < 1)).all())
    with pytest.warns(UserWarning, match="without backbone"):
        save_head(tmp_path / "head.safetensors", head)
    loaded: Any = load_head(tmp_path / "head.safetensors")
    assert torch.equal(loaded.predict(tokens)["tags"], probabilities)
    assert loaded.tasks[0] == TAGS


def test_a_head_of_maps_alone_refuses_labels() -> None:
    with pytest.raises(ConfigError, match="'multilabel'"):
        LinearHead(WIDTH, TAGS, pool=None)


def test_an_ensemble_averages_probabilities() -> None:
    members = [kit.randomised(PatchMeanHead(WIDTH, TAGS, hidden_dim=8), seed=i) for i in (1, 2)]
    ensemble = HeadEnsemble.from_heads(members).eval()
    tokens = kit.tokens()
    mean = (members[0].predict(tokens)["tags"] + members[1].predict(tokens)["tags"]) / 2
    assert torch.allclose(ensemble.predict(tokens)["tags"], mean, atol=1e-6)
    assert torch.allclose(ensemble(tokens)["tags"].sigmoid(), mean, atol=1e-5)


@pytest.mark.parametrize(("others", "expected"), [((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)), ((), ())])
def test_an_ensemble_has_the_thresholds_that_all_members_state(
    others: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    tasks = (replace(TAGS, thresholds=(0.1, 0.2, 0.3)), replace(TAGS, thresholds=others))
    members = [PatchMeanHead(WIDTH, task, hidden_dim=8) for task in tasks]
    assert HeadEnsemble.from_heads(members).tasks[0].thresholds == expected


def test_a_task_without_thresholds_is_written_as_before_there_were_any() -> None:
    config = PatchMeanHead(WIDTH, Task("mass")).config
    assert "thresholds" not in config["tasks"][0]


def test_a_file_gets_thresholds_and_keeps_its_weights(tmp_path: Path) -> None:
    members = [PatchMeanHead(WIDTH, [TAGS, Task("mass")], hidden_dim=8) for _ in range(2)]
    checkpoint = HeadCheckpoint.from_module(HeadEnsemble.from_heads(members))
    thresholds = [0.2, 0.3, 0.4]
    changed = checkpoint.with_thresholds({"tags": thresholds})
    changed.save(tmp_path / "head.safetensors")
    loaded: Any = HeadCheckpoint.load(tmp_path / "head.safetensors").build()
    assert loaded.tasks[0].thresholds == (0.2, 0.3, 0.4)
    assert loaded.heads[1].tasks[0].thresholds == (0.2, 0.3, 0.4)
    tokens = kit.tokens()
    assert torch.equal(loaded.predict(tokens)["tags"], checkpoint.build().predict(tokens)["tags"])
    assert checkpoint.build().tasks[0].thresholds == ()
    with pytest.raises(CheckpointError, match="no multilabel task 'mass'"):
        checkpoint.with_thresholds({"mass": [0.5]})


def test_rows_hold_the_labels_above_their_thresholds() -> None:
    task = replace(TAGS, thresholds=(0.0, 1.0, 0.0))
    predictor = Predictor(PatchMeanHead(64, task, hidden_dim=8), kit.backbone())
    row = predictor.one(kit.images(1)[0])
    assert row["labels"] == {"tags": ["crack", "moss"]}
    assert row["tags"].shape == (3,)
    cells = table_row(row, predictor.tasks, image="a.png")
    assert list(cells) == ["image", "tags", "tags:crack", "tags:rust", "tags:moss"]
    assert cells["tags"] == "crack;moss"


def test_a_row_without_labels_states_so() -> None:
    task = Task("tags", kind="multilabel", labels=("crack",), thresholds=(1.0,))
    row = table_row({"tags": 0.25}, [task])
    assert row == {"tags": "none", "tags:crack": 0.25}


def test_chips_are_the_predicted_labels_and_the_missed_ones() -> None:
    task = replace(TAGS, thresholds=(0.6, 0.2, 0.5))
    result = {"tags": np.array([0.55, 0.25, 0.1])}
    known = {"tags:crack": 1.0, "tags:rust": 0.0}

    rust, crack = label_chips(outputs([task]), result, known)

    colours = class_colours(task)
    assert rust == LabelChip(
        label="rust",
        probability="25 %",
        colour=colours[1],
        is_predicted=True,
        is_right=False,
    )
    assert crack == LabelChip(
        label="crack",
        probability="55 %",
        colour=colours[0],
        is_predicted=False,
        is_right=False,
    )


def test_without_known_labels_no_chip_is_right_or_missed() -> None:
    result = {"tags": np.array([0.9, 0.25, 0.1])}
    is_unknown = {"tags:crack": math.nan}

    for known in ({}, is_unknown):
        [chip] = label_chips(outputs([TAGS]), result, known)
        assert chip == LabelChip(
            label="crack",
            probability="90 %",
            colour=class_colours(TAGS)[0],
            is_predicted=True,
            is_right=None,
        )


@pytest.mark.parametrize(
    ("known", "is_without"),
    [
        pytest.param({}, False, id="nothing is known"),
        pytest.param({"tags:crack": 0.0, "tags:rust": 0.0}, False, id="one label is not known"),
        pytest.param(dict.fromkeys(TAGS.columns, 0.0), True, id="all are known to be absent"),
        pytest.param(
            dict.fromkeys(TAGS.columns, 0.0) | {"tags:moss": 1.0}, False, id="one is present"
        ),
    ],
)
def test_an_image_is_without_labels_only_where_all_are_known(
    known: dict[str, float], is_without: bool
) -> None:
    assert is_known_without_labels(outputs([TAGS]), known) is is_without


def test_the_caption_of_a_label_states_whether_it_is_present() -> None:
    task = replace(TAGS, thresholds=(0.6, 0.2, 0.5))
    listed = outputs([task])
    result = {"tags": np.array([0.55, 0.25, 0.1])}
    known = {"tags:crack": 1.0, "tags:moss": math.nan}
    assert caption(listed[0], result, known) == "tags:crack 55 %, absent (true present)"
    assert caption(listed[2], result, known) == "tags:moss 10 %, absent"


def test_a_task_beside_labels_has_another_name_than_their_entry_in_rows() -> None:
    with pytest.raises(ConfigError, match="'labels', as what predictions state"):
        PatchMeanHead(WIDTH, [TAGS, Task("labels")])


def test_a_composition_beside_labels_has_another_name_than_their_entry_in_rows() -> None:
    composition = Composition(("x", "y"), {"s": ("x", "y")}, name="labels")
    with pytest.raises(ConfigError, match="'labels', as what predictions state"):
        PatchMeanHead(WIDTH, [TAGS, Task("x"), Task("y")], compositions=[composition])


def test_a_threshold_is_compared_in_the_precision_in_which_it_is_stated() -> None:
    task = Task("tags", kind="multilabel", labels=("a",), thresholds=(0.7,))
    rounded_down = np.float32(0.7)
    assert task.labels_above([rounded_down]) == ()
