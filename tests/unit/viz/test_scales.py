"""Scales of maps: shares of one whole from 0 to 100 %, amounts from 0, one scale per task, no number twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import Backbone, FPNHead, Predictor, Task
from dinoneck.inference import to_frame
from dinoneck.inference.results import table_row
from dinoneck.viz import style
from dinoneck.viz.scales import outputs, scales, shown_cells

SIZE = (2, 3)  # rows, cols of the maps below
LABELS = ("soil", "crop", "weed")
POSSIBLE = np.random.default_rng(0).dirichlet((8.0, 3.0, 1.0), SIZE).transpose(2, 0, 1)
RAMP = np.linspace(0.187, 0.446, 6).reshape(1, *SIZE)


def shares_task(*labels: str) -> Task:
    """The task that masks of classes give."""
    return Task("cells", len(labels), kind="dense", labels=labels, shares=True)


def result(task: Task, cells: np.ndarray, **numbers: float) -> dict[str, Any]:
    means = cells.mean(axis=(1, 2))
    return {**numbers, task.name: means if task.dim > 1 else float(means[0]), "maps": {task.name: cells}}


@pytest.mark.parametrize(
    "task",
    [shares_task(*LABELS), Task("kind", 3, kind="segmentation", labels=LABELS),
     Task("parts", 3, kind="ratio", labels=LABELS)],
    ids=lambda task: task.kind,
)  # fmt: skip
def test_shares_span_0_to_100_percent_and_impossible_ones_are_drawn_as_possible_ones(task: Task) -> None:
    members = outputs([task])
    assert scales(members, [result(task, POSSIBLE)]) == {task.name: (0.0, 1.0, "")}
    assert shown_cells(members, POSSIBLE) == pytest.approx(POSSIBLE)
    cells = POSSIBLE.copy()
    cells[:, 0, 0], cells[:, 1, 2] = (1.01, -0.043, -0.014), (0.9, 0.6, -0.1)
    predicted = result(task, cells)
    kept, row = cells.copy(), table_row(predicted, [task])
    assert scales(members, [predicted]) == {task.name: (0.0, 1.0, " (clipped, normalised)")}
    shown = shown_cells(members, cells)
    assert shown.sum(axis=0) == pytest.approx(np.ones(SIZE))
    assert shown[:, 0, 0] == pytest.approx([1.0, 0.0, 0.0]) and shown[:, 1, 2] == pytest.approx([0.6, 0.4, 0.0])
    assert shown[:, 0, 1] == pytest.approx(cells[:, 0, 1]), "possible shares stay"
    assert (cells == kept).all() and table_row(predicted, [task]) == row, "predictions stay as they are"


@pytest.mark.parametrize(
    ("task", "cells", "span"),
    [
        (Task("mass", kind="density"), RAMP, (0.0, 0.446)),
        (Task("mass", kind="density", minimum=0, aggregate="mean"), RAMP, (0.0, 0.446)),
        (Task("mass", kind="dense", minimum=0), RAMP, (0.0, 0.446)),
        (Task("mass", kind="dense", minimum=0), 0 * RAMP, (0.0, 1.0)),
        (Task("ndvi", kind="dense"), RAMP, (0.187, 0.446)),
        # cells of a sum are not clipped at the minimum of the sum
        (Task("mass", kind="density", minimum=5), np.linspace(-1.0, 4.0, 6).reshape(1, *SIZE), (0.0, 4.0)),
        (Task("bands", 2, kind="dense"), np.stack([RAMP[0] - 2, RAMP[0] + 7]), (-1.813, 7.446)),
    ],
)
def test_amounts_start_at_0_and_other_numbers_keep_their_ends(
    task: Task, cells: np.ndarray, span: tuple[float, float]
) -> None:
    """One scale for all outputs of a task and all images."""
    low, high, note = scales(outputs([task]), [result(task, cells), result(task, cells)])[task.name]
    assert (low, high) == pytest.approx(span)
    assert bool(note) == (cells.min() < 0 and task.kind == "density")


def test_a_number_that_is_the_mean_of_a_map_appears_once(tiny: Backbone) -> None:
    """In tables, pictures and reports: one column per class, called as the class is."""
    pytest.importorskip("pandas")
    tasks = [Task("soil", from_map="cells"), Task("mass", unit="g"), shares_task(*LABELS)]
    torch.manual_seed(0)
    predictor = Predictor(FPNHead(64, tasks, 1, fpn_dim=8, tower_depth=1), tiny)
    results = predictor([np.full((32, 48, 3), shade, np.uint8) for shade in (40, 160)], maps="patch")
    frame = to_frame(results, predictor.tasks)
    assert list(frame.columns) == ["soil", "mass", "crop", "weed"] == [own.key for own in outputs(predictor.tasks)]
    assert frame["soil"].tolist() == [result["soil"] for result in results]
    assert frame["crop"].tolist() == pytest.approx([result["cells"][1] for result in results])


def test_letters_have_11_px_on_a_phone() -> None:
    sheet = 2 * style.WIDTH_PX + 3 * style.GAP_PX
    sizes = [(style.CAPTION_PX, style.OVERLAY_PX), (style.LABEL_PX, style.SIDE_PX), (style.FONT_PX, sheet)]
    assert all(letters * 390 / width >= 11 for letters, width in sizes)
    assert style.font(style.FONT_PX).getlength("tokens of block 11 (random weights)") <= style.WIDTH_PX
