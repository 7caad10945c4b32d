"""Models that are compared predict the same targets in the same units, or that is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests import kit
from tests.unit.training.meadow import rows_of

from dinoneck import (
    Backbone,
    Composition,
    DataError,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    PyramidHead,
    TargetTransform,
    Task,
    evaluate,
)
from dinoneck.data import read_table
from dinoneck.errors import ConfigError
from dinoneck.viz.score_tables import all_tables

metrics = pytest.importorskip("sklearn.metrics")
KINDS = ("bare", "crop", "weedy")


def predictor(tiny: Backbone, *tasks: Task, seed: int = 0) -> Predictor:
    return Predictor(kit.head(*tasks, seed=seed), tiny)


def predicted_by(model: Predictor, table: Path) -> list[dict[str, Any]]:
    return model([table.parent / row["image"] for row in rows_of(table)])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (Task("soil", unit="g"), Task("soil", unit="mg"), ("soil in g", "in mg")),
        (
            Task("soil", transform=TargetTransform(area=0.25)),
            Task("soil", transform=TargetTransform(area=1.0)),
            ("area of 0.25", "of 1"),
        ),
        (
            Task("soil"),
            Task("soil", dim=3, kind="classification", labels=KINDS),
            ("numbers", "classes"),
        ),
    ],
    ids=["units", "areas", "numbers and classes"],
)
def test_models_that_predict_other_things_by_one_name_are_refused(
    meadow: Path, tiny: Backbone, first: Task, second: Task, words: Sequence[str]
) -> None:
    models = {"old": predictor(tiny, first), "new": predictor(tiny, second)}
    with pytest.raises(DataError, match="evaluate them apart") as refused:
        evaluate(models, meadow.parent, meadow)
    for word in ("old", "new", *words):
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "other",
    [Task("soil"), Task("soil", unit="g", transform=TargetTransform(area=0.5))],
    ids=["no unit", "an area"],
)
def test_what_one_model_does_not_state_is_no_difference(
    meadow: Path, tiny: Backbone, other: Task
) -> None:
    models = {"a": predictor(tiny, Task("soil", unit="g")), "b": predictor(tiny, other, seed=1)}
    report = evaluate(models, meadow.parent, meadow)
    assert [*report["scores"]["soil"]] == ["a", "b"]


def test_a_unit_that_one_model_states_is_named_and_stands_not_above_the_scores_of_the_others(
    meadow: Path, tiny: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    models = {
        "stated": predictor(tiny, Task("soil", unit="kg")),
        "silent": predictor(tiny, Task("soil"), seed=1),
    }

    report = evaluate(models, meadow.parent, meadow)

    [line] = [line for line in caplog.messages if "no unit" in line]
    assert line.startswith("silent states no unit of soil, and stated predicts it in kg")
    assert report.get("units", {}).get("soil", "") == ""
    [scores, *_] = all_tables(report)
    assert scores.header[1] == "soil"


def test_two_units_are_refused_also_where_the_first_model_states_none(
    meadow: Path, tiny: Backbone
) -> None:
    models = {
        "silent": predictor(tiny, Task("soil")),
        "heavy": predictor(tiny, Task("soil", unit="kg"), seed=1),
        "light": predictor(tiny, Task("soil", unit="g"), seed=2),
    }

    with pytest.raises(DataError, match="heavy predicts soil in kg, and light in g"):
        evaluate(models, meadow.parent, meadow)


def test_units_stand_in_the_table(meadow: Path, tiny: Backbone) -> None:
    report = evaluate(predictor(tiny, Task("soil", unit="g"), Task("weed")), meadow.parent, meadow)
    [scores, *_] = all_tables(report)
    assert report["units"] == {"soil": "g"}
    assert scores.header[1:3] == ["soil (g)", "weed"]


def test_the_targets_that_both_models_predict_are_compared(meadow: Path, tiny: Backbone) -> None:
    models = {
        "wide": predictor(tiny, Task("soil"), Task("crop"), Task("weed")),
        "narrow": predictor(tiny, Task("weed"), Task("crop"), seed=1),
    }
    report = evaluate(models, meadow.parent, meadow)
    truth = pd.read_csv(meadow)
    for name, model in models.items():
        rows = predicted_by(model, meadow)
        shared = [
            metrics.r2_score(truth[target], [row[target] for row in rows])
            for target in ("crop", "weed")
        ]
        overall = report["scores"]["overall"][name]["r2"]["pooled"]
        assert overall == pytest.approx(np.mean(shared), abs=1e-9)
    assert "head_minus" in report["scores"]["overall"]["narrow"]
    verdict, line = report["verdict"].splitlines()
    assert ": overall R² " in verdict
    assert line == "soil: predicted by wide only, so it is not compared"


def test_models_without_a_shared_number_are_compared_by_their_classes(
    meadow: Path, tiny: Backbone
) -> None:
    kind = Task("kind", dim=3, kind="classification", labels=KINDS)
    models = {
        "a": predictor(tiny, Task("soil"), kind),
        "b": predictor(tiny, Task("weed"), kind, seed=1),
    }
    report = evaluate(models, meadow.parent, meadow)
    verdict, *lines = report["verdict"].splitlines()
    assert ": accuracy of kind " in verdict
    assert [line.partition(":")[0] for line in lines] == ["soil", "weed"]
    assert "overall" not in report["scores"]


def test_models_that_share_nothing_are_not_compared(meadow: Path, tiny: Backbone) -> None:
    models = {"a": predictor(tiny, Task("soil")), "b": predictor(tiny, Task("weed"))}
    report = evaluate(models, meadow.parent, meadow)
    assert report["verdict"].splitlines()[0] == "soil: there is nothing to compare 'a' with"
    assert [*report["scores"]["weed"]] == ["b"]


def test_sums_of_one_name_with_other_members_are_compared_where_they_agree(
    meadow: Path, tiny: Backbone
) -> None:
    parts = [Task("soil", minimum=0), Task("crop", minimum=0), Task("weed", minimum=0)]
    sums: dict[str, dict[str, tuple[str, ...]]] = {
        "a": {"green": ("crop", "weed"), "total": ("soil", "crop", "weed")},
        "b": {"total": ("soil", "crop", "weed")},
    }
    models = {}
    for name, own in sums.items():
        composed = Composition(("soil", "crop", "weed"), own, "masses")
        head = PyramidHead(
            64,
            parts,
            neck={"type": "simple_pyramid", "embed_dim": 64, "patch_size": 16},
            compositions=[composed],
        )
        models[name] = Predictor(head, tiny)
    report = evaluate(models, meadow.parent, meadow)
    assert [*report["scores"]["total"]] == ["a", "b"]
    assert [*report["scores"]["green"]] == ["a"]
    true = pd.read_csv(meadow)["total"]
    rows = predicted_by(models["b"], meadow)
    totals = [row["soil"] + row["crop"] + row["weed"] for row in rows]
    r2 = report["scores"]["total"]["b"]["r2"]["pooled"]
    assert r2 == pytest.approx(metrics.r2_score(true, totals), abs=1e-6)


def test_a_ratio_is_scored_by_the_shares_of_its_parts(meadow: Path, tiny: Backbone) -> None:
    ratio = Task("mix", dim=3, kind="ratio", labels=("soil", "crop", "weed"))
    model = predictor(tiny, ratio)
    report = evaluate(model, meadow.parent, meadow)
    parts = pd.read_csv(meadow)[["soil", "crop", "weed"]].to_numpy(float)
    shares = parts / parts.sum(axis=1, keepdims=True)
    predicted = np.stack([row["mix"] for row in predicted_by(model, meadow)])
    for place, name in enumerate(("soil", "crop", "weed")):
        r2 = report["scores"][name]["head"]["r2"]["pooled"]
        expected = metrics.r2_score(shares[:, place], predicted[:, place])
        assert r2 == pytest.approx(expected, abs=1e-6)


def test_a_part_of_two_ratios_of_one_head_is_scored_by_the_first(
    meadow: Path, tiny: Backbone
) -> None:
    with_crop = Task("with_crop", dim=2, kind="ratio", labels=("soil", "crop"))
    with_weed = Task("with_weed", dim=2, kind="ratio", labels=("soil", "weed"))
    model = predictor(tiny, with_crop, with_weed)

    report = evaluate(model, meadow.parent, meadow)

    table = pd.read_csv(meadow)
    shares = table["soil"] / (table["soil"] + table["crop"])
    predicted = [row["with_crop"][0] for row in predicted_by(model, meadow)]
    r2 = report["scores"]["soil"]["head"]["r2"]["pooled"]
    assert r2 == pytest.approx(metrics.r2_score(shares, predicted), abs=1e-6)


def test_the_shares_of_a_part_in_two_wholes_are_not_compared(meadow: Path, tiny: Backbone) -> None:
    with_crop = Task("with_crop", dim=2, kind="ratio", labels=("soil", "crop"))
    with_weed = Task("with_weed", dim=2, kind="ratio", labels=("soil", "weed"))
    models = {"a": predictor(tiny, with_crop), "b": predictor(tiny, with_weed)}

    with pytest.raises(DataError) as caught:
        evaluate(models, meadow.parent, meadow)

    assert str(caught.value) == (
        "a predicts the share of soil in soil + crop, and b in soil + weed; evaluate them apart"
    )


def test_shares_of_one_whole_are_compared_whatever_their_ratio_is_called(
    meadow: Path, tiny: Backbone
) -> None:
    one = Task("one", dim=2, kind="ratio", labels=("soil", "crop"))
    other = Task("other", dim=2, kind="ratio", labels=("crop", "soil"))
    models = {"a": predictor(tiny, one), "b": predictor(tiny, other, seed=1)}

    report = evaluate(models, meadow.parent, meadow)

    table = pd.read_csv(meadow)
    shares = table["soil"] / (table["soil"] + table["crop"])
    predicted = [row["other"][1] for row in predicted_by(models["b"], meadow)]
    r2 = report["scores"]["soil"]["b"]["r2"]["pooled"]
    assert r2 == pytest.approx(metrics.r2_score(shares, predicted), abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("soil", "weed"), "soil + weed"), ((), "2 parts without names")],
    ids=["other parts", "parts without names"],
)
def test_ratios_of_one_name_and_other_parts_are_evaluated_apart(
    meadow: Path, tiny: Backbone, labels: tuple[str, ...], words: str
) -> None:
    first = Task("mix", dim=2, kind="ratio", labels=("soil", "crop"))
    second = Task("mix", dim=2, kind="ratio", labels=labels)
    models = {"a": predictor(tiny, first), "b": predictor(tiny, second)}

    with pytest.raises(DataError) as caught:
        evaluate(models, meadow.parent, meadow)

    assert str(caught.value) == (
        f"a predicts the ratio mix of soil + crop, and b of {words}; evaluate them apart"
    )


def test_a_ratio_without_labels_has_no_shares_to_score(meadow: Path, tiny: Backbone) -> None:
    ratio = Task("mix", dim=2, kind="ratio")
    model = predictor(tiny, ratio, Task("weed"))

    report = evaluate(model, meadow.parent, meadow)

    assert [*report["scores"]] == ["weed", "overall"]


def test_the_parts_of_a_ratio_that_another_model_predicts_are_no_shares(
    meadow: Path, tiny: Backbone
) -> None:
    ratio = Task("mix", dim=2, kind="ratio", labels=("soil", "crop"))
    models = {"shares": predictor(tiny, ratio), "masses": predictor(tiny, Task("soil"))}
    report = evaluate(models, meadow.parent, meadow)
    assert [*report["scores"]["soil"]] == ["masses"]


def test_shares_that_the_truth_does_not_give_are_not_scored(meadow: Path, tiny: Backbone) -> None:
    ratio = Task("mix", dim=2, kind="ratio", labels=("soil", "stones"))
    table = pd.read_csv(meadow)[["image", "soil", "weed"]]
    report = evaluate(predictor(tiny, ratio, Task("weed")), meadow.parent, table)
    assert [*report["scores"]] == ["weed", "overall"]


def test_a_part_of_words_in_a_ready_made_table_is_refused(meadow: Path, tiny: Backbone) -> None:
    ratio = Task("mix", dim=2, kind="ratio", labels=("soil", "crop"))
    table = read_table(meadow, meadow.parent, targets=["soil", "crop"])
    table["crop"] = pd.Categorical(
        ["much", "little"] * (len(table) // 2) + ["much"] * (len(table) % 2)
    )

    with pytest.raises(DataError, match="crop of .* is 'much', and the heads predict numbers"):
        evaluate(predictor(tiny, ratio), meadow.parent, table)


def test_the_command_names_models_by_their_keys(meadow: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        kit.saved_head(tmp_path / f"{name}.safetensors", kit.head(Task("soil"), seed=number))
    ran = kit.cli(
        "evaluate",
        meadow.parent,
        "--heads",
        f"old={tmp_path / 'a.safetensors'}",
        f"new-2={tmp_path / 'b.safetensors'}",
        "--truth",
        meadow,
        "--json",
    )
    assert ran.code == 0, ran.err
    assert [*ran.json["scores"]["soil"]] == ["old", "new-2"]
    assert [*ran.json["cost"]] == ["old", "new-2"]


@pytest.mark.parametrize(
    ("heads", "word"),
    [
        (["x=a", "x=b"], "the key x twice"),
        (["x=a", "b"], "a key for every head"),
        (["x=a", "y=a"], "names a head twice"),
    ],
)
def test_the_command_refuses_names_that_do_not_tell_models_apart(
    meadow: Path, tmp_path: Path, heads: list[str], word: str
) -> None:
    for number, name in enumerate(("a", "b")):
        kit.saved_head(tmp_path / f"{name}.safetensors", kit.head(Task("soil"), seed=number))
    words = []
    for head in heads:
        key, is_keyed, name = head.rpartition("=")
        words.append(f"{key}{is_keyed}{tmp_path / name}.safetensors")
    ran = kit.cli("evaluate", meadow.parent, "--heads", *words, "--truth", meadow)
    assert ran.code == 1
    assert word in ran.err


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {"minimum": 0.0}, (0.0, None)),
        ({"minimum": 0.0}, {}, (0.0, None)),
        ({"maximum": 9.0}, {"minimum": 0.0}, (0.0, 9.0)),
    ],
)
def test_a_bound_that_one_member_states_holds_for_their_mean(
    first: dict[str, Any], second: dict[str, Any], expected: tuple[float | None, float | None]
) -> None:
    members = [PatchMeanHead(64, [Task("mass", **own)]) for own in (first, second)]
    [task] = HeadEnsemble.from_heads(members).tasks
    assert (task.minimum, task.maximum) == expected


def test_several_heads_with_keys_are_no_single_model(meadow: Path) -> None:
    heads = {"a": kit.head(Task("soil"), seed=0), "b": kit.head(Task("soil"), seed=1)}
    with pytest.raises(ConfigError, match="the model has the keys a, b; give"):
        evaluate({"first": heads}, meadow.parent, meadow)


@pytest.mark.parametrize("bound", ["minimum", "maximum"])
def test_members_with_other_bounds_are_refused(bound: str) -> None:
    bounds: list[dict[str, Any]] = [{bound: 0.5}, {bound: 2.0}]
    members = [PatchMeanHead(64, [Task("mass", **own)]) for own in bounds]
    with pytest.raises(ConfigError, match=f"its {bound} is 0.5 in one and 2 in another"):
        HeadEnsemble.from_heads(members)
