"""A detector's report: known boxes are found, missed or of another class, and drawn where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.viz.test_report import MARKED, Page

from dinoneck.viz import ReportEntry, html_report
from dinoneck.viz.report import agreement, worst_first

pytest.importorskip("matplotlib", reason="the charts need matplotlib, the extra [viz]")

A, B, FAR = [10.0, 10.0, 30.0, 30.0], [12.0, 10.0, 32.0, 30.0], [60.0, 5.0, 70.0, 9.0]  # the IoU of A and B is 0.82


def entry(name: str, found: list[tuple[list[float], str, float]], known: list[tuple[list[float], str]] | None) -> Any:
    result = {
        "boxes": np.array([box for box, _, _ in found]).reshape(-1, 4),
        "names": [label for _, label, _ in found],
        "scores": np.array([score for _, _, score in found]),
    }
    truth = {} if known is None else {"boxes": np.array([b for b, _ in known]).reshape(-1, 4)}
    truth |= {} if known is None else {"names": [label for _, label in known]}
    return ReportEntry(name, result, np.zeros((50, 100, 3), np.uint8), known=truth)


ENTRIES = [
    entry("good.jpg", [(B, "cell", 0.9)], [(A, "cell")]),
    # twice the same cell, a clot taken for a cell, and a box of nothing
    entry("bad.jpg", [(A, "cell", 0.8), (B, "cell", 0.7), (FAR, "cell", 0.5)], [(A, "cell"), (FAR, "clot")]),
    # the box of the same class is the cell's, although that of the other class overlaps more
    entry("both.jpg", [(A, "clot", 0.6), (B, "cell", 0.4)], [(A, "cell"), (B, "clot")]),
    entry("missed.jpg", [], [(A, "cell")]),
    entry("unknown.jpg", [(A, "cell", 0.9)], None),
]
LOG = [{"epoch": 0, "loss": 2.0, "AP": 0.1, "AP50": 0.2, "AP75": None}, {"epoch": 1, "loss": 1.0}]
BEST = {"epoch": 0, "AP": 0.1, "AP50": 0.2, "AP75": None, "AR100": 0.3, "per_class": {"cell": {"AP": 0.1, "AP50": 0.2}}}


def test_boxes_are_paired_by_class_and_overlap() -> None:
    assert agreement(ENTRIES, ()) == {
        "cell": {"known": 4, "predicted": 5, "found": 3},
        "clot": {"known": 2, "predicted": 1, "found": 1},
    }
    assert worst_first(ENTRIES, ()) == [1, 3, 0, 2, 4]
    page = Page(html_report(ENTRIES, ()))
    rows = [page.by_tag["td"][i : i + 5] for i in (0, 5)]
    assert rows == [["4", "5", "3", "0.75", "0.60"], ["2", "1", "1", "0.50", "1.00"]]
    # rows are the known classes cell, clot and none: the double box is of no object
    assert page.by_tag["td"][10:19] == ["3", "0", "1", "1", "1", "0", "1", "0", "0"]
    assert page.by_tag["td"][19:31] == ["1", "1", "1", "0", "0", "0", "3", "2", "1", "1", "0", "1"]
    assert page.by_tag["td"][-6:] == ["1", "–", "–", "–", "–", "–"]
    assert page.by_tag["h3"] == ["bad.jpg", "missed.jpg", "good.jpg", "both.jpg", "unknown.jpg"]


def test_the_training_of_the_detector_is_a_section() -> None:
    training = {"best": BEST, "untrained": BEST | {"AP": 0.0}, "log": LOG}
    page = Page(html_report(ENTRIES[-1:], (), training=training))
    assert page.by_tag["h2"][:3] == ["Images", "Held-out scores", "Predictions"], "nothing is compared"
    assert page.by_tag["td"][:10] == ["0.100", "0.200", "-", "0.300", "0.000", "0.200", "-", "0.300", "0.100", "0.200"]
    assert {"training loss: by epoch", "held-out AP: by epoch"} <= set(page.by_tag["figcaption"])


def test_classes_stay_text() -> None:
    hostile = html_report([entry("a", [(A, MARKED, 0.5)], [(A, MARKED)])], ())
    assert "<img src=x" not in hostile
    assert MARKED in Page(hostile).by_tag["th"]
