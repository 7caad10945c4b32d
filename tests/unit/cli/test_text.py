"""The terminal's tables of scores: numbers, classes and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dinoneck.cli.text import show_scores
from dinoneck.training.scores import Split, method_scores

N, LABELS = 60, ("soil", "weed", "crop")
TRUE = np.arange(N) % 3
HALF = np.where(np.arange(N) % 2, TRUE, 0)  # right in 2 of 3 images
SPLIT = Split([np.arange(30), np.arange(30, 60)], [row % 20 for row in range(N)])


def shown(name: str, methods: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[list[list[str]]]:
    """The tables of a report's target, then its verdict: the words of their lines."""
    show_scores({"scores": {name: methods}, "auxiliary": [], "target_weights": {}, "verdict": "better"})
    lines = capsys.readouterr().out.splitlines()
    starts = [i - 1 for i, line in enumerate(lines) if set(line) == {"-"}]
    parts = [lines[i:j] for i, j in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return [[line.split() for line in part] for part in parts]


def test_classes_are_tables_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"head": method_scores("class", TRUE, TRUE, SPLIT, labels=LABELS)}
    methods["linear"] = method_scores("class", TRUE, HALF, SPLIT, labels=LABELS, head=TRUE)
    means, each, confusions = shown("kind", methods, capsys)
    assert means[2] == ["head", "1.000", "1.00", "...", "1.00", "1.000", "1.000", "1.00", "...", "1.00", "1.000"]
    assert means[3][:2] == ["linear", "0.667"]
    assert each[2] == ["soil", "33.3%", "1.000", f"{40 / 60:.3f}"]
    assert confusions[2:] == [["soil", "20", "0", "0"], ["weed", "0", "20", "0"], ["crop", "0", "0", "20"], ["better"]]


def test_masks_are_tables_that_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    matrices = np.tile(np.array([[90, 10], [40, 60]]), (N, 1, 1))
    own, best = ("soil", "\x1b[31mweed\n"), np.tile(np.diag([100, 100]), (N, 1, 1))
    methods = {
        "head": method_scores("mask", None, best, SPLIT, labels=own),
        "linear": method_scores("mask", None, matrices, SPLIT, labels=own, head=best),
    }
    means, each, matrix = shown("cover", methods, capsys)
    assert [line[-2:] for line in matrix[2:4]] == [["6000", "0"], ["0", "6000"]]
    assert " ".join(means[0]).startswith("cover, 60 images held out mean IoU")
    assert means[3][:2] == ["linear", f"{(90 / 140 + 60 / 110) / 2:.3f}"]
    assert each[3] == [r"\x1b[31mweed\n", "50.0%", "1.000", f"{60 / 110:.3f}"]
