"""The terminal's tables of classes and masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoneck.cli.train_text import comparison
from dinoneck.training.scores import Split, method_scores

N, LABELS = 60, ("soil", "weed", "crop")
TRUE = np.arange(N) % 3
HALF = np.where(np.arange(N) % 2, TRUE, 0)  # right in 2 of 3 images


def split(groups: int) -> Split:
    return Split([np.arange(30), np.arange(30, 60)], [row % groups for row in range(N)])


def classes(head: np.ndarray, *, groups: int = 20, **baselines: np.ndarray) -> dict[str, Any]:
    methods = {"head": method_scores("class", TRUE, head, split(groups), labels=LABELS)}
    for name, pred in baselines.items():
        methods[name] = method_scores("class", TRUE, pred, split(groups), labels=LABELS, head=head)
    return of_target("kind", methods, groups)


def of_target(name: str, methods: dict[str, Any], groups: int = 20) -> dict[str, Any]:
    """The parts of a training report that are shown."""
    shared = {"auxiliary": [], "spread": {}, "target_weights": {}, "verdict": "the verdict"}
    return {"scores": {name: methods}, "groups_predicted": groups, **shared}


def test_classes_are_tables_and_a_verdict() -> None:
    lines = comparison(classes(TRUE, ridge=HALF, knn=TRUE))
    means, each, confusions, last = lines
    assert last == "the verdict"
    head, ridge, knn = (line.split() for line in means.splitlines()[2:])
    assert head == ["head", "1.000", "1.00", "...", "1.00", "1.000", "1.000", "1.00", "...", "1.00", "1.000"]
    assert ridge[:2] == ["ridge", "0.667"] and knn[1:] == head[1:]
    assert each.splitlines()[2].split() == ["soil", "33.3%", "1.000", f"{40 / 60:.3f}", "1.000"]
    assert [line.split() for line in confusions.splitlines()[2:]] == [
        ["soil", "20", "0", "0"],
        ["weed", "0", "20", "0"],
        ["crop", "0", "0", "20"],
    ]


def test_masks_are_tables_and_a_verdict() -> None:
    matrices = np.tile(np.array([[90, 10], [40, 60]]), (N, 1, 1))
    own, best = ("soil", "\x1b[31mweed\n"), np.tile(np.diag([100, 100]), (N, 1, 1))
    methods = {
        name: method_scores("mask", None, x, split(20), labels=own, head=head)
        for name, x, head in (("head", best, None), ("ridge", matrices, best))
    }
    means, each, matrix, _ = comparison(of_target("cover", methods))
    assert [line.split()[-2:] for line in matrix.splitlines()[2:]] == [["6000", "0"], ["0", "6000"]]
    assert "60 images" in means.splitlines()[0]
    assert "mean IoU" in means.splitlines()[0]
    assert "pixel accuracy" in means.splitlines()[0]
    assert means.splitlines()[3].split()[:2] == ["ridge", f"{(90 / 140 + 60 / 110) / 2:.3f}"]
    assert each.splitlines()[3].split() == [r"\x1b[31mweed\n", "50.0%", "1.000", f"{60 / 110:.3f}"]


def test_a_confusion_matrix_of_many_classes_is_left_to_the_report() -> None:
    labels = [f"species {i}" for i in range(30)]
    scores = method_scores("class", TRUE, TRUE, split(20), labels=labels)
    *_, each, _ = comparison(of_target("kind", {"head": scores}))
    assert len(each.splitlines()) == 2 + 30
