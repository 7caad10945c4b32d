"""Tables of scores: what is said where a threshold, an interval or a method is not there."""

from __future__ import annotations

from typing import Any

import pytest

from dinoneck.viz.score_tables import angle_table, interval_tables, label_tables

FEW_GROUPS = "3 groups; an interval needs 5"


def score(pooled: float) -> dict[str, Any]:
    return {"pooled": pooled, "interval": None, "folds": [pooled]}


def label_scores(**more: Any) -> dict[str, Any]:
    by_label = {"AP": 0.5, "F1": 0.4, "positives": 7, "threshold": 0.5}
    return {
        "images": 20,
        "mAP": score(0.6),
        "by_label": {"rust": {**by_label, "positives": 20}, "mildew": by_label},
        "few_positives": ["mildew"],
        **more,
    }


def test_labels_with_few_images_are_named_with_their_threshold() -> None:
    _, by_label = label_tables("disease", {"head": label_scores()})

    [note, *empty] = by_label.rows[-1]
    assert note.startswith("threshold 0.5, as fewer than")
    assert note.endswith("have it: mildew")
    assert set(empty) == {""}
    assert len(by_label.rows[-1]) == len(by_label.header)


def test_a_table_of_labels_says_why_there_are_no_intervals() -> None:
    over_all, _ = label_tables("disease", {"head": label_scores(no_interval=FEW_GROUPS)})

    assert over_all.rows[-1][0] == f"intervals: none: {FEW_GROUPS}"
    assert len(over_all.rows[-1]) == len(over_all.header)


@pytest.mark.parametrize(
    ("of_linear", "said"),
    [
        pytest.param({"no_interval": FEW_GROUPS}, f"intervals: none: {FEW_GROUPS}", id="both"),
        pytest.param({}, f"intervals: none for head: {FEW_GROUPS}", id="one of two methods"),
    ],
)
def test_a_table_of_angles_says_why_there_are_no_intervals(
    of_linear: dict[str, Any], said: str
) -> None:
    keys = ("mean_angle", "median_angle", "within_11", "within_22", "within_30")
    angles = {"images": 4, **{key: score(0.5) for key in keys}}
    methods = {"head": {**angles, "no_interval": FEW_GROUPS}, "linear": {**angles, **of_linear}}

    table = angle_table("normals", methods)

    assert table.rows[-1][0] == said
    assert len(table.rows[-1]) == len(table.header)


def test_half_widths_of_another_method_are_not_those_of_the_run() -> None:
    half_width = {"half_widths": {"0.8": 1.0, "0.9": 2.0}, "groups": 20}
    report = {
        "predicts": {"method": "linear"},
        "prediction_intervals": {"mass": {"head": half_width}},
        "scores": {},
    }

    assert list(interval_tables(report)) == []
