"""Boxes in a report: which of the known ones were found, and how the detector was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.ops import box_iou

from dinoneck.viz.boxes import corners_of
from dinoneck.viz.drawing import PALETTE, Chart, chart, describe, new_figure
from dinoneck.viz.score_tables import MOST_COLUMNS, ScoreTable, all_tables, matrix_table

if TYPE_CHECKING:
    from dinoneck.viz.report import ReportEntry

_IOU = 0.5
_SCORES = 10
Pair = tuple[str | None, str | None]


def pairs(entry: ReportEntry) -> list[Pair]:
    """Return (known class, predicted class) of every object, None for the side that is missing.

    A known and a predicted box are one object if their IoU is 0.5 or more; boxes of one class are paired first, then
    those that overlap most. Without known boxes there are no pairs.
    """
    if "boxes" not in entry.known:
        return []
    predicted, known = list(entry.result["names"]), list(entry.known["names"])
    found, there = (torch.from_numpy(corners_of(side["boxes"], "boxes")) for side in (entry.result, entry.known))
    overlap = box_iou(found, there).numpy()
    close = [(predicted[i] == known[j], overlap[i, j], i, j) for i, j in np.argwhere(overlap >= _IOU).tolist()]
    partner: dict[int, int] = {}
    for _, _, i, j in sorted(close, reverse=True):
        if i not in partner and j not in partner.values():
            partner[i] = j
    objects = [(known[partner[i]] if i in partner else None, name) for i, name in enumerate(predicted)]
    return objects + [(name, None) for j, name in enumerate(known) if j not in partner.values()]


def box_errors(entry: ReportEntry) -> float:
    """Return how many objects of an image are missed, invented or of another class; -1 where none are known."""
    return float(sum(known != predicted for known, predicted in pairs(entry))) if "boxes" in entry.known else -1.0


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
    entries: Sequence[ReportEntry], training: Mapping[str, Any]
) -> list[tuple[str, list[str], list[ScoreTable], list[Chart]]]:
    """Return heading, notes, tables and charts of the sections of a detector's report."""
    by_class = ScoreTable(["class", "known", "predicted", "found", "recall", "precision"], [])
    for name, count in agreement_of_boxes(entries).items():
        shares = [f"{count['found'] / count[of]:.2f}" if count[of] else "–" for of in ("known", "predicted")]
        by_class.rows.append([name, *map(str, count.values()), *shares])
    tables, labels = [by_class], [*_classes(entries), None]  # None: the box is missing on that side
    if len(labels) <= MOST_COLUMNS and by_class.rows:
        objects = [pair for entry in entries for pair in pairs(entry)]
        matrix = [[objects.count((row, column)) for column in labels] for row in labels]
        tables.append(matrix_table("known (rows) and predicted", [name or "none" for name in labels], matrix))
    by_image = ScoreTable(["image", "predicted", "known", "found", "wrong class", "missed", "false"], [])
    for entry in entries:
        counts = map(str, _counts(entry)) if "boxes" in entry.known else "–––––"
        by_image.rows.append([entry.name, str(len(entry.result["names"])), *counts])
    return [
        (
            "Held-out scores",
            ["Of images that were not trained on. The epoch with the best AP of them was kept."],
            all_tables(training),
            _curves(training["log"]) if training.get("log") else [],
        ),
        (
            "Against known boxes",
            [
                "A known box is found by a predicted one of its class with an IoU of 0.5 or more.",
                "Too good where the detector was trained on these images.",
            ],
            tables,
            [_by_score(entries)] if by_class.rows else [],
        ),
        ("Predictions", ["Boxes of each image."], [by_image], []),
    ]


def drawn_boxes(entry: ReportEntry, entries: Sequence[ReportEntry]) -> dict[str, Any]:
    """Return what the page shows of an image: rectangles, a line of counts and the colours of the classes."""
    shades = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(_classes(entries))}
    names, line = list(entry.result["names"]), f"{len(entry.result['names'])} predicted"
    if "boxes" in entry.known:
        total, found, wrong, missed, false = _counts(entry)
        line += f", {total} known: {found} found, {wrong} of a wrong class, {missed} missed, {false} false"
    scores = np.asarray(entry.result["scores"], np.float64).tolist()
    boxes = corners_of(entry.result["boxes"], "boxes").tolist()
    return {
        "values": [line],
        "boxes": [(*box, shades[name], f"{score:.2f}") for box, name, score in zip(boxes, names, scores, strict=True)],
        "known": corners_of(entry.known.get("boxes", []), "known boxes").tolist(),
        "classes": [(shade, f"{name}: {names.count(name)}") for name, shade in shades.items()],
    }


def _classes(entries: Sequence[ReportEntry]) -> list[str]:
    return sorted({str(n) for entry in entries for n in (*entry.result["names"], *entry.known.get("names", ()))})


def _counts(entry: ReportEntry) -> tuple[int, int, int, int, int]:
    """How many boxes of an image are known, found, of a wrong class, missed and false."""
    objects = pairs(entry)
    found, missed = sum(a == b for a, b in objects), sum(b is None for _, b in objects)
    false = sum(a is None for a, _ in objects)
    return len(entry.known["names"]), found, len(objects) - found - missed - false, missed, false


def _by_score(entries: Sequence[ReportEntry]) -> Chart:
    """Recall and precision of all classes together, if boxes of lower scores are left out."""
    scores = np.concatenate([np.asarray(entry.result["scores"], np.float64) for entry in entries])
    limits = np.linspace(scores.min(), scores.max(), _SCORES) if len(scores) else np.zeros(0)
    shares = []
    for limit in limits:
        objects = [pair for entry in entries for pair in pairs(_above(entry, limit))]
        found = sum(known == predicted for known, predicted in objects)
        shares.append([found / max(1, sum(pair[side] is not None for pair in objects)) for side in (0, 1)])
    figure = new_figure(3.2, 2.4)
    axes = figure.subplots()
    for place, name in enumerate(("recall", "precision")):
        axes.plot(limits, [pair[place] for pair in shares], color=PALETTE[place], marker=".", label=name)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8.0, framealpha=0.0)
    describe(axes, x="lowest score", y="share of boxes")
    return chart(figure, "recall and precision", "with boxes of a score of this or more")


def _above(entry: ReportEntry, limit: float) -> ReportEntry:
    kept = np.asarray(entry.result["scores"], np.float64) >= limit
    names = [name for name, keep in zip(entry.result["names"], kept, strict=True) if keep]
    return replace(entry, result={"boxes": corners_of(entry.result["boxes"], "boxes")[kept], "names": names})


def _curves(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The training loss and the held-out AP of every epoch."""
    charts: list[Chart] = []
    for name, keys in (("training loss", ["loss"]), ("held-out AP", ["AP", "AP50", "AP75"])):
        figure = new_figure(3.2, 2.4)
        axes = figure.subplots()
        for place, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None]
            axes.plot(*zip(*points, strict=True), color=PALETTE[place], marker=".", label=key) if points else None
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        describe(axes, x="epoch", y=name)
        if len(keys) > 1:
            axes.legend(fontsize=8.0, framealpha=0.0)
        charts.append(chart(figure, name, "by epoch"))
    return charts
