"""Scales of maps: shares of one whole from 0 to 100 %, amounts from 0, one scale per task, no number twice."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dinoneck import Backbone, FPNHead, Predictor, Task
from dinoneck.inference import to_frame
from dinoneck.viz import ReportEntry, html_report
from dinoneck.viz import report as module

SIZE = (2, 3)  # rows, cols of the maps below
IMAGE = np.zeros((32, 48, 3), np.uint8)


class Map(NamedTuple):
    """One heat map as it is drawn."""

    cells: np.ndarray
    span: tuple[float, float]


class Drawn(NamedTuple):
    """What a picture shows."""

    maps: list[Map]
    text: str


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw results of tasks as a report; return the heat maps and the text."""
    pytest.importorskip("matplotlib", reason="the charts need matplotlib, the extra [viz]")
    maps, heat = list[Map](), module.heat

    def spy(cells: Any, low: float, high: float) -> Any:
        if np.shape(cells) == SIZE:
            maps.append(Map(np.asarray(cells), (low, high)))
        return heat(cells, low, high)

    monkeypatch.setattr(module, "heat", spy)

    def run(results: list[dict[str, Any]], tasks: list[Task]) -> Drawn:
        text = html_report([ReportEntry(f"{i}", one, IMAGE) for i, one in enumerate(results)], tasks)
        return Drawn(maps, text)

    return run


def shares_task(*labels: str) -> Task:
    """The task that masks of classes give."""
    return Task("cells", len(labels), kind="dense", labels=labels, shares=True)


def result(task: Task, cells: np.ndarray, **numbers: float) -> dict[str, Any]:
    means = cells.mean(axis=(1, 2))
    return {**numbers, task.name: means if task.dim > 1 else float(means[0]), "maps": {task.name: cells}}


RANDOM = np.random.default_rng(0)
POSSIBLE = RANDOM.dirichlet((8.0, 3.0, 1.0), SIZE).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "task",
    [
        shares_task("soil", "crop", "weed"),
        Task("kind", 3, kind="segmentation", labels=("soil", "crop", "weed")),
        Task("parts", 3, kind="ratio", labels=("soil", "crop", "weed")),
    ],
    ids=lambda task: task.kind,
)
def test_shares_span_0_to_100_percent_in_every_map(draw: Any, task: Task) -> None:
    drawn = draw([result(task, POSSIBLE)], [task])
    assert len(drawn.maps) == 3
    for shown, cells in zip(drawn.maps, POSSIBLE, strict=True):
        assert shown.span == (0.0, 1.0)
        assert shown.cells == pytest.approx(cells)
    assert "100 %" in drawn.text and "clipped" not in drawn.text


def test_outputs_of_one_task_share_one_scale(draw: Any) -> None:
    task = Task("bands", 2, kind="dense", labels=("red", "blue"))
    cells = np.stack([np.linspace(-2.0, 1.0, 6).reshape(SIZE), np.linspace(3.0, 7.0, 6).reshape(SIZE)])
    later = cells + 1.0
    drawn = draw([result(task, cells), result(task, later)], [task])
    assert {shown.span for shown in drawn.maps} == {(-2.0, 8.0)}


def test_impossible_shares_are_drawn_as_possible_ones(draw: Any) -> None:
    task = shares_task("soil", "crop", "weed")
    cells = POSSIBLE.copy()
    cells[:, 0, 0] = 1.01, -0.043, -0.014
    cells[:, 1, 2] = 0.9, 0.6, -0.1
    predicted = result(task, cells)
    kept = {"maps": cells.copy(), "row": to_row(predicted, task)}
    drawn = draw([predicted], [task])
    shown = np.stack([one.cells for one in drawn.maps])
    assert shown.min() >= 0 and shown.max() <= 1
    assert shown.sum(axis=0) == pytest.approx(np.ones(SIZE))
    assert shown[:, 0, 0] == pytest.approx([1.0, 0.0, 0.0])
    assert shown[:, 1, 2] == pytest.approx([0.6, 0.4, 0.0])
    assert shown[:, 0, 1] == pytest.approx(cells[:, 0, 1]), "possible shares stay"
    assert "clipped, normalised" in drawn.text
    assert "1.01" not in drawn.text and "0.043" not in drawn.text
    assert (predicted["maps"]["cells"] == kept["maps"]).all(), "predictions stay as they are"
    assert to_row(predicted, task) == kept["row"]


def to_row(predicted: dict[str, Any], task: Task) -> dict[str, float]:
    from dinoneck.inference.results import table_row

    return table_row(predicted, [task])  # type: ignore[return-value]


@pytest.mark.parametrize(
    "task",
    [
        Task("mass", kind="density", unit="g"),
        Task("mass", kind="density", unit="g", minimum=0),
        Task("mass", kind="density", unit="g", minimum=0, aggregate="mean"),
        Task("mass", kind="dense", unit="g", minimum=0),
    ],
    ids=["density", "density from 0", "mean from 0", "dense from 0"],
)
def test_the_scale_of_an_amount_starts_at_0(draw: Any, task: Task) -> None:
    cells = np.linspace(0.187, 0.446, 6).reshape(1, *SIZE)
    drawn = draw([result(task, cells)], [task])
    assert drawn.maps[0].span == pytest.approx((0.0, 0.446))
    assert drawn.maps[0].cells == pytest.approx(cells[0])


def test_scales_of_other_numbers_keep_their_own_ends(draw: Any) -> None:
    task = Task("ndvi", kind="dense")
    cells = np.linspace(0.2, 0.4, 6).reshape(1, *SIZE)
    assert draw([result(task, cells)], [task]).maps[0].span == pytest.approx((0.2, 0.4))


def test_an_amount_of_nothing_has_a_scale(draw: Any) -> None:
    task = Task("mass", kind="dense", minimum=0)
    assert draw([result(task, np.zeros((1, *SIZE)))], [task]).maps[0].span == (0.0, 1.0)


def test_cells_of_a_sum_are_not_clipped_at_the_minimum_of_the_sum(draw: Any) -> None:
    task = Task("mass", kind="density", unit="g", minimum=5)
    cells = np.linspace(-1.0, 4.0, 6).reshape(1, *SIZE)
    drawn = draw([result(task, cells)], [task])
    assert drawn.maps[0].span == (0.0, 4.0)
    assert drawn.maps[0].cells == pytest.approx(cells[0].clip(0))
    assert "clipped at 0" in drawn.text


def test_a_number_that_is_the_mean_of_a_map_appears_once(tiny: Backbone) -> None:
    """In tables, pictures and reports: one column and one map per class, called as the class is."""
    tasks = [Task("soil", from_map="cells"), Task("mass", unit="g"), shares_task("soil", "crop", "weed")]
    torch.manual_seed(0)
    predictor = Predictor(FPNHead(64, tasks, 1, fpn_dim=8, tower_depth=1), tiny)
    images = [np.full((32, 48, 3), shade, np.uint8) for shade in (40, 160)]
    results = predictor(images, maps="patch")
    pytest.importorskip("pandas")
    frame = to_frame(results, predictor.tasks)
    assert list(frame.columns) == ["soil", "mass", "crop", "weed"]
    assert frame["soil"].tolist() == [result["soil"] for result in results]
    assert frame["crop"].tolist() == pytest.approx([result["cells"][1] for result in results])


def test_pictures_name_each_class_once_and_never_its_map(draw: Any) -> None:
    cells = shares_task("soil", "crop", "weed")
    tasks = [Task("soil", from_map="cells"), Task("mass", unit="g"), cells]
    predicted = result(cells, POSSIBLE, soil=float(POSSIBLE[0].mean()), mass=66.0)
    drawn = draw([predicted], tasks)
    assert len(drawn.maps) == 3
    assert {round(float(one.cells.mean()), 9) for one in drawn.maps} == {
        round(float(own.mean()), 9) for own in POSSIBLE
    }
    assert "cells:" not in drawn.text
    assert "66 g" in drawn.text, "a number without a map is shown too"
    for label in ("soil", "crop", "weed"):
        assert label in drawn.text


def test_known_values_stand_next_to_the_predicted_ones() -> None:
    cells, kind = shares_task("soil", "crop"), Task("kind", 2, kind="classification", labels=("wet", "dry"))
    tasks = [Task("soil", from_map="cells"), Task("mass", unit="g"), kind, cells]
    maps = np.stack([np.full(SIZE, 0.75), np.full(SIZE, 0.25)])
    predicted = result(cells, maps, soil=0.75, mass=-66.0) | {"kind": np.array([0.2, 0.8])}
    known = {"soil": 0.5, "mass": 71.0, "crop": 0.5}
    written = html_report([ReportEntry("a.jpg", predicted, IMAGE, known=known)], tasks)
    for text in ("soil 75 % (true 50 %)", "crop 25 % (true 50 %)", "mass −66 g (true 71 g)", "kind: dry 80 %"):
        assert text in written
