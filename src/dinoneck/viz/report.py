"""A report as one HTML file: predictions, maps, residuals and scores, to open anywhere without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, printable
from dinoneck.tasks import Task
from dinoneck.version import __version__
from dinoneck.viz.drawing import (
    Chart,
    agreement_charts,
    curves,
    draws_charts,
    minus,
    numbers,
    scores,
)
from dinoneck.viz.overlay import overlay_panel
from dinoneck.viz.panels import (
    as_image,
    boxes_panel,
    captions,
    coloured,
    corners_of,
    data_uri,
    partners,
)
from dinoneck.viz.scales import ReportEntry, outputs, scales
from dinoneck.viz.score_tables import MOST_COLUMNS, ScoreTable, all_tables, matrix_table

_SIDE = 700  # pixels of the width of a picture
_GATE = "the gate"  # as a map
_NO_CHARTS = "Charts are left out: matplotlib draws them, pip install 'dinoneck[viz]'."
_FOLDER = Path(__file__).parent
# tables and charts of scores, and the table of all images
Compared = tuple[list[ScoreTable], list[Chart], ScoreTable]


def html_report(
    entries: Sequence[ReportEntry],
    tasks: Sequence[Task],
    *,
    title: str = "Predictions",
    facts: Mapping[str, Mapping[str, str]] | None = None,
    training: Mapping[str, Any] | None = None,
    unread: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    trained_on: int = 0,
) -> str:
    """Return a page that holds everything it shows: it loads nothing and runs nothing.

    All text is escaped.

    All images share the scales of their maps. matplotlib draws the charts; without it they are left
    out, and the page states that. Where values are known, images come in the order of their error:
    the mean over outputs of the absolute error divided by the output's RMSE, and of 1 minus the
    probability of the known class; for a detector the number of boxes that are missed, false or of
    a wrong class.

    Args:
        entries: one per image, at least one.
        tasks: what is predicted, as in ``Predictor.tasks``: names, units and labels; of a detector
            none.
        title: of the page.
        facts: heading -> term -> text, such as what the head is and how it was run; each becomes a
            list at the end.
        training: the ``report.json`` of the training run; the scores of its held-out images become
            a section. Under ``"held_out"`` it may hold target -> (known values, predictions),
            ``"log"`` a detector's ``log.jsonl``.
        unread: name -> reason of the images that could not be read.
        classes: of a detector, in its order: each has the colour that it has in other pictures.
        trained_on: how many of the images the model was trained on, which the page then states.

    Raises:
        DataError: if there are no entries, predictions, known values, maps or colours are missing
            or not finite, or ``training`` is not a report of a training run.
        ShapeError: if maps are not (outputs, rows, cols), a gate not (rows, cols) or colours not
            (rows, cols, 3).

    Examples:
        >>> entry = ReportEntry("a.jpg", {"mass": 12.5})
        >>> page = html_report([entry], [Task("mass", unit="g")], title="<Plot> 7")
        >>> "<h1>&lt;Plot&gt; 7</h1>" in page, "12.5" in page, "<script" in page
        (True, True, False)
    """
    if not entries:
        raise DataError("there are no entries; a report needs one image at least")
    drawn = [place for place in worst_first(entries, tasks) if entries[place].image is not None]
    run, (tables, charts, listed) = (
        training or {},
        (_of_numbers if tasks else _of_boxes)(entries, tasks, drawn),
    )
    sections = {
        "Held-out scores": (all_tables(run), _held_out(run, tasks)),
        "Against known values": (tables, charts),
    }
    sections["Predictions"] = [listed], []
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True
    )
    page.filters["minus"] = minus
    return page.from_string((_FOLDER / "report.html.j2").read_text("utf-8")).render(
        title=title,
        style=(_FOLDER / "report.css").read_text("utf-8"),
        version=__version__,
        count=len(entries),
        unread=unread or {},
        sections={h: s for h, s in sections.items() if s[1] or any(table.rows for table in s[0])},
        remarks=[*run.get("remarks", ()), *([] if draws_charts() else [_NO_CHARTS])],
        articles=[*_articles([entries[place] for place in drawn], drawn, tasks, classes)],
        of_boxes=not tasks,
        trained_on=trained_on,
        drawn=drawn,
        ordered=any(entry.known for entry in entries),
        typical=sum(bool(entry.known) for entry in entries) > len(drawn) > 1,
        facts={heading: terms for heading, terms in (facts or {}).items() if terms},
    )


def agreement(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Return how far every output is from known values, and of known classes the accuracy and confusion matrix.

    Without tasks: of every class of boxes how many are known, predicted and found.

    Raises:
        DataError: if a known value is not finite, or a known class is not one of the task's.
    """
    found = dict[str, dict[str, Any]]()
    if not tasks:
        objects = [pair for entry in entries for pair in pairs(entry)]
        for name in _box_classes(entries) if objects else ():
            known, predicted = (sum(pair[side] == name for pair in objects) for side in (0, 1))
            found[name] = {
                "known": known,
                "predicted": predicted,
                "found": objects.count((name, name)),
            }
        return found
    rows, classes = _rows(entries, tasks), _classes(tasks)
    for name in rows[0]:
        both = [
            (e.known[name], row[name])
            for e, row in zip(entries, rows, strict=True)
            if name in e.known
        ]
        if both and name not in classes:
            known, predicted = numbers(both, f"known values of {name!r}", "n, 2").T
            found[name] = scores(predicted, known)
        elif both:
            labels = classes[name]
            if unknown := [known for known, _ in both if known not in labels]:
                raise DataError(
                    f"the known class of {name!r} is {unknown[0]!r}; expected one of "
                    f"{', '.join(labels)}"
                )
            counts = [[both.count((true, label)) for label in labels] for true in labels]
            accuracy = sum(known == predicted for known, predicted in both) / len(both)
            found[name] = {"images": len(both), "accuracy": accuracy, "confusion_matrix": counts}
    return found


def worst_first(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[int]:
    """Return the places of entries, the largest errors first; those without a known value last, in their order."""
    if not tasks:
        wrong = [
            sum(known != found for known, found in pairs(e)) if "boxes" in e.known else -1
            for e in entries
        ]
        return sorted(range(len(entries)), key=wrong.__getitem__, reverse=True)
    rows, classes, found = _rows(entries, tasks), _classes(tasks), agreement(entries, tasks)
    numeric = [name for name in found if name not in classes]

    def error(place: int) -> float:
        known, row = entries[place].known, rows[place]
        gaps = [1.0 - row[f"{name}:{known[name]}"] for name in classes if name in known]
        gaps += [
            abs(row[name] - known[name]) / (found[name]["rmse"] or 1.0)
            for name in numeric
            if name in known
        ]
        return sum(gaps) / len(gaps) if gaps else -1.0

    return sorted(range(len(entries)), key=error, reverse=True)


def worst_and_typical(
    entries: Sequence[ReportEntry], tasks: Sequence[Task], most: int
) -> list[int]:
    """Return the places of at most so many entries: half with the largest errors, half around the median error."""
    order, known = worst_first(entries, tasks), sum(bool(entry.known) for entry in entries)
    if known <= most:
        return order[:most]
    worst = most - most // 2
    begin = min(max(worst, known // 2 - most // 4), known - most // 2)
    return [*order[:worst], *order[begin : begin + most // 2]]


def _classes(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Name of a classification -> its classes."""
    return {
        task.name: [*map(str, task.labels or range(task.dim))]
        for task in tasks
        if task.kind == "classification"
    }


def _rows(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Column -> predicted class or number, of every image."""
    rows = []
    for entry in entries:
        values = {output.key: output.value(entry.result) for output in outputs(tasks)}
        likely = {
            name: labels[int(np.argmax([values[f"{name}:{label}"] for label in labels]))]
            for name, labels in _classes(tasks).items()
        }
        rows.append(likely | values)
    return rows


def _held_out(training: Mapping[str, Any], tasks: Sequence[Task]) -> list[Chart]:
    """The epochs of a detector, or the predictions of held-out images over their known values."""
    units = {output.key: output.task.unit for output in outputs(tasks)}
    charts = curves(training.get("log", []))
    for name, (known, predicted) in training.get("held_out", {}).items():
        charts += agreement_charts(f"{name}, held out", known, predicted, units.get(name, ""))
    return charts


def _of_numbers(
    entries: Sequence[ReportEntry], tasks: Sequence[Task], drawn: Sequence[int]
) -> Compared:
    """What compares numbers and classes with known values, and the table of all of them."""
    rows, units = _rows(entries, tasks), {output.key: output.task.unit for output in outputs(tasks)}
    headings = {name: f"{name} ({unit})" for name, unit in units.items() if unit}
    compared = ScoreTable(["output", "images", "R²", "MAE", "RMSE", "bias", "sd of known"], [])
    tables, charts, found = [compared], list[Chart](), agreement(entries, tasks)
    for name, row in found.items():
        if "accuracy" in row:
            heading = f"{name}, accuracy {row['accuracy']:.3f}: true (rows) and predicted"
            tables.append(matrix_table(heading, _classes(tasks)[name], row["confusion_matrix"]))
        else:
            compared.rows.append(
                [headings.get(name, name), *(_number(value, 4) for value in row.values())]
            )
            places = [place for place, entry in enumerate(entries) if name in entry.known]
            links = [f"#image-{place}" if place in drawn else None for place in places]
            known = [entries[place].known[name] for place in places]
            charts += agreement_charts(
                name, known, [rows[place][name] for place in places], units[name], links
            )
    listed = ScoreTable(["image"], [[entry.name] for entry in entries])
    for name in rows[0]:
        listed.header.extend(
            [headings.get(name, name), "known"] if name in found else [headings.get(name, name)]
        )
        for entry, row, cells in zip(entries, rows, listed.rows, strict=True):
            cells.append(_number(row[name]))
            if name in found:
                cells.append(_number(entry.known.get(name, math.nan)))
    return tables, charts, listed


def _articles(
    entries: Sequence[ReportEntry],
    places: Sequence[int],
    tasks: Sequence[Task],
    classes: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """What the page shows of each image: itself and what is predicted over it, and its tokens, as data URIs."""
    results, drawn = [_with_gate(entry) for entry in entries], [*tasks]
    if any(_GATE in result for result in results):
        drawn.append(
            Task(_GATE, kind="density", aggregate="mean", minimum=0, unit="times the mean weight")
        )
    scale = scales(outputs(drawn), results)
    listed = [output for output in outputs(tasks) if output.task.kind != "segmentation"]
    predicted = {name for entry in entries for name in entry.result.get("names", ())}
    coloured_classes = [*classes, *sorted(predicted.difference(classes))]
    for place, entry, result in zip(places, entries, results, strict=True):
        given: Any = entry.image() if callable(entry.image) else entry.image
        image = as_image(given)
        if tasks:
            rows, cols = next(
                (maps.shape[1:] for maps in result["maps"].values()), image.size[::-1]
            )
            recipe = Preprocessing((image.height // rows, image.width // cols), resize="crop")
            over = overlay_panel(image, result, drawn, recipe, known=entry.known, scale=scale)
        else:
            over = boxes_panel(image, entry.result, entry.known or None, classes=coloured_classes)
        yield {
            "id": f"image-{place}",
            "name": entry.name,
            "over": data_uri(over, _SIDE),
            "image": data_uri(image, _SIDE) if tasks else None,
            "tokens": None
            if entry.tokens is None
            else data_uri(coloured(entry.tokens), _SIDE, "PNG"),
            "values": captions(listed, entry.result, entry.known),
        }


def _with_gate(entry: ReportEntry) -> dict[str, Any]:
    """The result of an entry, with the gate as a map relative to a plain mean."""
    maps = dict(entry.result.get("maps") or {})
    if entry.result.get("gate") is None:
        return {**entry.result, "maps": maps}
    weights = numbers(entry.result["gate"], f"the gate of {entry.name}", "rows, cols")
    return {**entry.result, _GATE: 1.0, "maps": {**maps, _GATE: weights[None] / weights.mean()}}


def _number(value: float | str, digits: int = 6) -> str:
    """A number as tables show it; a dash for none; a class as it is."""
    if isinstance(value, str):
        return value
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def _plain(value: Any) -> Any:
    """Text with control characters spelled out; the template escapes it."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def pairs(entry: ReportEntry) -> list[tuple[str | None, str | None]]:
    """Return (known class, predicted class) of every object, None for the side that is missing.

    A known and a predicted box that are :func:`partners` are one object. Without known boxes there
    are no pairs. Predicted boxes of other classes than the known ``classes`` count for nothing.
    """
    if "boxes" not in entry.known:
        return []
    all_predicted = list(entry.result["names"])
    known = list(entry.known["names"])
    known_classes = {*entry.known.get("classes", all_predicted)}
    counted = [i for i, name in enumerate(all_predicted) if name in known_classes]
    predicted = [all_predicted[i] for i in counted]
    found = corners_of(entry.result, "boxes")[counted]
    there = corners_of(entry.known, "boxes")
    partner = partners(found, predicted, there, known)
    objects: list[tuple[str | None, str | None]] = []
    for i, name in enumerate(predicted):
        objects.append((known[partner[i]] if i in partner else None, name))
    return objects + [(name, None) for j, name in enumerate(known) if j not in partner.values()]


def _of_boxes(entries: Sequence[ReportEntry], tasks: Any, drawn: Sequence[int]) -> Compared:
    """The same of a detector's boxes."""
    objects = [pair for entry in entries for pair in pairs(entry)]
    by_class = ScoreTable(["class", "known", "predicted", "found", "recall", "precision"], [])
    for name, count in agreement(entries, tasks).items():
        shares = [
            f"{count['found'] / count[of]:.2f}" if count[of] else "–"
            for of in ("known", "predicted")
        ]
        by_class.rows.append([name, *map(str, count.values()), *shares])
    # None: the box is missing on that side
    tables, labels = [by_class], [*_box_classes(entries), None]
    if objects and len(labels) <= MOST_COLUMNS:
        matrix = [[objects.count((row, column)) for column in labels] for row in labels]
        tables.append(
            matrix_table("known (rows) and predicted", [name or "none" for name in labels], matrix)
        )
    by_image = ScoreTable(
        ["image", "predicted", "known", "found", "wrong class", "missed", "false"], []
    )
    for entry in entries:
        counts = map(str, _counts(entry)) if "boxes" in entry.known else "–––––"
        by_image.rows.append([entry.name, str(len(entry.result["names"])), *counts])
    return tables, [], by_image


def _box_classes(entries: Sequence[ReportEntry]) -> list[str]:
    return sorted(
        {
            str(n)
            for entry in entries
            for n in (*entry.result["names"], *entry.known.get("names", ()))
        }
    )


def _counts(entry: ReportEntry) -> tuple[int, int, int, int, int]:
    """How many boxes of an image are known, found, of a wrong class, missed and false."""
    objects = pairs(entry)
    found, missed = sum(a == b for a, b in objects), sum(b is None for _, b in objects)
    false = sum(a is None for a, _ in objects)
    return len(entry.known["names"]), found, len(objects) - found - missed - false, missed, false
