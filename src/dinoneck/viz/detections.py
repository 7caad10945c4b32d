"""Boxes in a report: which of the known ones were found and how the detector was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from dinoneck.viz.drawing import Chart, chart, describe, new_figure
from dinoneck.viz.panels import corners_of
from dinoneck.viz.scales import ReportEntry
from dinoneck.viz.score_tables import MOST_COLUMNS, ScoreTable, all_tables, matrix_table
from dinoneck.viz.style import PALETTE

_IOU = 0.5


def pairs(entry: ReportEntry) -> list[tuple[str | None, str | None]]:
    """Return (known class, predicted class) of every object, None for the side that is missing.

    A known and a predicted box are one object if their IoU is 0.5 or more; boxes of one class are paired first, then
    those that overlap most. Without known boxes there are no pairs.
    """
    if "boxes" not in entry.known:
        return []
    predicted, known = list(entry.result["names"]), list(entry.known["names"])
    found, there = (torch.from_numpy(corners_of(side, "boxes")) for side in (entry.result, entry.known))
    overlap = box_iou(found, there).numpy()
    close = [(predicted[i] == known[j], overlap[i, j], i, j) for i, j in np.argwhere(overlap >= _IOU).tolist()]
    partner: dict[int, int] = {}
    for *_, i, j in sorted(close, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    objects = [(known[partner[i]] if i in partner else None, name) for i, name in enumerate(predicted)]
    return objects + [(name, None) for j, name in enumerate(known) if j not in partner.values()]


def agreement_of_boxes(entries: Sequence[ReportEntry]) -> dict[str, dict[str, int]]:
    """Return class -> how many of its boxes are known, predicted, and found, in images with known boxes."""
    objects = [pair for entry in entries for pair in pairs(entry)]
    return {
        name: {
            "known": sum(known == name for known, _ in objects),
            "predicted": sum(predicted == name for _, predicted in objects),
            "found": objects.count((name, name)),
        }
        for name in (_classes(entries) if objects else ())
    }


def box_sections(
    entries: Sequence[ReportEntry], tasks: Any, training: Mapping[str, Any], drawn: Sequence[int]
) -> dict[str, tuple[list[ScoreTable], list[Chart]]]:
    """Return heading -> tables and charts of the sections of a detector's report."""
    objects = [pair for entry in entries for pair in pairs(entry)]
    by_class = ScoreTable(["class", "known", "predicted", "found", "recall", "precision"], [])
    for name, count in agreement_of_boxes(entries).items():
        shares = [f"{count['found'] / count[of]:.2f}" if count[of] else "–" for of in ("known", "predicted")]
        by_class.rows.append([name, *map(str, count.values()), *shares])
    tables, labels = [by_class], [*_classes(entries), None]  # None: the box is missing on that side
    if objects and len(labels) <= MOST_COLUMNS:
        matrix = [[objects.count((row, column)) for column in labels] for row in labels]
        tables.append(matrix_table("known (rows) and predicted", [name or "none" for name in labels], matrix))
    by_image = ScoreTable(["image", "predicted", "known", "found", "wrong class", "missed", "false"], [])
    for entry in entries:
        counts = map(str, _counts(entry)) if "boxes" in entry.known else "–––––"
        by_image.rows.append([entry.name, str(len(entry.result["names"])), *counts])
    return {
        "Held-out scores": (all_tables(training), _curves(training.get("log", []))),
        "Against known values": (tables, []),
        "Predictions": ([by_image], []),
    }


def _curves(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The training loss and the held-out AP of every epoch."""
    charts = []
    for name, keys in (("training loss", ["loss"]), ("held-out AP", ["AP", "AP50", "AP75"])) if log else ():
        figure = new_figure(3.2, 2.4)
        axes = figure.subplots()
        for colour, key in zip(PALETTE, keys, strict=False):
            points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None]
            axes.plot(*np.reshape(points, (-1, 2)).T, color=colour, marker=".", label=key)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.0, framealpha=0.0)
        describe(axes, x="epoch", y=name)
        charts.append(chart(figure, name, "by epoch"))
    return charts


def box_line(entry: ReportEntry) -> str:
    """Return how many boxes of an image are predicted, and what became of the known ones."""
    line = f"{len(entry.result['names'])} predicted"
    if "boxes" not in entry.known:
        return line
    total, found, wrong, missed, false = _counts(entry)
    return f"{line}, {total} known: {found} found, {wrong} of a wrong class, {missed} missed, {false} false"


def _classes(entries: Sequence[ReportEntry]) -> list[str]:
    return sorted({str(n) for entry in entries for n in (*entry.result["names"], *entry.known.get("names", ()))})


def _counts(entry: ReportEntry) -> tuple[int, int, int, int, int]:
    """How many boxes of an image are known, found, of a wrong class, missed and false."""
    objects = pairs(entry)
    found, missed = sum(a == b for a, b in objects), sum(b is None for _, b in objects)
    false = sum(a is None for a, _ in objects)
    return len(entry.known["names"]), found, len(objects) - found - missed - false, missed, false
