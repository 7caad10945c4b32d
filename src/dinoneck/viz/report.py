"""A report as one HTML file: predictions, maps, residuals and scores, to open anywhere without a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageColor

from dinoneck.codec import at_least
from dinoneck.errors import DataError, printable
from dinoneck.tasks import Task
from dinoneck.version import __version__
from dinoneck.viz.detections import agreement_of_boxes, box_errors, box_sections, drawn_boxes
from dinoneck.viz.drawing import (
    PALETTE,
    Chart,
    Floats,
    Output,
    chart,
    describe,
    minus,
    new_figure,
    numbers,
    outputs,
    outputs_of,
    scales,
    span,
)
from dinoneck.viz.entries import ReportEntry
from dinoneck.viz.panels import as_image, heat
from dinoneck.viz.residuals import agreement_plot, residual_plot, scores
from dinoneck.viz.score_tables import ConfusionMatrix, ScoreTable, all_tables, matrix_table

_LONGEST = 1000  # characters of one text
_MANY = 2000  # points of a chart; more are drawn as pixels
_UNITS = "Numbers in original units; of classes the probability, of a segmentation its mean over the image."
_FOLDER = Path(__file__).parent

Section = tuple[str, list[str], list[ScoreTable], list[Chart]]
Facts = Mapping[str, Mapping[str, str]]


def html_report(
    entries: Sequence[ReportEntry],
    tasks: Sequence[Task],
    *,
    title: str = "Predictions",
    facts: Facts | None = None,
    training: Mapping[str, Any] | None = None,
    unread: Mapping[str, str] | None = None,
    largest_side: int = 640,
    max_bytes: int = 20_000_000,
) -> str:
    """Return a page that holds everything it shows: it loads nothing and runs nothing. All text is escaped.

    Maps are drawn as by :func:`prediction_panels`. Where values are known, images come in the order of their error: the
    mean over outputs of the absolute error divided by the output's RMSE, and of 1 minus the probability of the known
    class; for a detector the number of boxes that are missed, false or of a wrong class.

    Args:
        entries: one per image, at least one.
        tasks: what is predicted, as in ``Predictor.tasks``: names, units and labels; of a detector none.
        title: of the page.
        facts: heading -> term -> text, such as what the head is and how it was run; each becomes a list at the end.
        training: the ``report.json`` of the training run; the scores of its held-out images become a section. Under
            ``"held_out"`` it may hold target -> (known values, predictions), ``"log"`` a detector's ``log.jsonl``.
        unread: name -> reason of the images that could not be read.
        largest_side: of the images in the page, in pixels; maps stay exact, one pixel per cell.
        max_bytes: of all images: the last ones are left out, which the page states.

    Raises:
        DataError: if there are no entries, predictions, known values, maps or colours are missing or not finite, or
            ``training`` is not a report of a training run.
        ShapeError: if maps are not (outputs, rows, cols), a gate not (rows, cols) or colours not (rows, cols, 3).
        ConfigError: if a size is not positive.
        ImportError: if matplotlib is missing, which draws the charts.

    Examples:
        >>> entry = ReportEntry("a.jpg", {"mass": 12.5})
        >>> page = html_report([entry], [Task("mass", unit="g")], title="<Plot> 7")
        >>> "<h1>&lt;Plot&gt; 7</h1>" in page, "12.5" in page, "<script" in page
        (True, True, False)
    """
    if not entries:
        raise DataError("there are no entries; a report needs one image at least")
    at_least(1, largest_side=largest_side, max_bytes=max_bytes)
    drawn = {place: entries[place] for place in worst_first(entries, tasks) if entries[place].image is not None}
    articles = _articles(drawn, tasks, largest_side, max_bytes)
    links = {place: article["id"] for place, article in zip(drawn, articles, strict=False)}
    return _template().render(
        title=title,
        style=(_FOLDER / "report.css").read_text("utf-8"),
        version=__version__,
        count=len(entries),
        unread=unread or {},
        sections=_filled(_sections(entries, tasks, training or {}, links)),
        articles=articles,
        links=links,
        wanted=len(drawn),
        ordered=any(entry.known for entry in entries),
        facts={heading: terms for heading, terms in (facts or {}).items() if terms},
    )


def _filled(sections: Sequence[Section]) -> list[Section]:
    """The sections that show something, without tables that have no rows."""
    shown = [(heading, notes, [t for t in tables if t.rows], charts) for heading, notes, tables, charts in sections]
    return [section for section in shown if section[2] or section[3]]


def agreement(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Return how far every output is from known values, and of known classes the accuracy and confusion matrix.

    Without tasks: of every class of boxes how many are known, predicted and found.

    Raises:
        DataError: if a known value is not finite, or a known class is not one of the task's.
    """
    found: dict[str, dict[str, Any]] = {} if tasks else {**agreement_of_boxes(entries)}
    for output in outputs(tasks):
        pairs = [(output.value(e.result), e.known[output.key]) for e in entries if output.key in e.known]
        if pairs:
            found[output.key] = scores(*numbers(pairs, f"known values of {output.key!r}", "n, 2").T)._asdict()
    for task in filter(_labels, tasks):
        classes = [(_known_class(e, task), _predicted_class(e, task)) for e in entries if task.name in e.known]
        if classes:
            counts = np.zeros((task.dim, task.dim), int)
            np.add.at(counts, tuple(np.transpose(classes)), 1)
            accuracy = float(np.trace(counts) / len(classes))
            found[task.name] = {"images": len(classes), "accuracy": accuracy, "confusion_matrix": counts.tolist()}
    return found


def worst_first(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[int]:
    """Return the places of entries, the largest errors first; those without a known value last, in their order."""
    found = agreement(entries, tasks)

    def error(place: int) -> float:
        entry = entries[place]
        if not tasks:
            return box_errors(entry)
        numeric = [output for output in outputs(tasks) if output.key in entry.known]
        gaps = [abs(o.value(entry.result) - entry.known[o.key]) / (found[o.key]["rmse"] or 1.0) for o in numeric]
        known = [task for task in filter(_labels, tasks) if task.name in entry.known]
        gaps += [1.0 - float(entry.result[task.name][_known_class(entry, task)]) for task in known]
        return sum(gaps) / len(gaps) if gaps else -1.0

    return sorted(range(len(entries)), key=error, reverse=True)


def _labels(task: Task) -> list[str]:
    """The classes of a classification; none for other tasks."""
    return [*map(str, task.labels or range(task.dim))] if task.kind == "classification" else []


def _known_class(entry: ReportEntry, task: Task) -> int:
    known, labels = str(entry.known[task.name]), _labels(task)
    if known not in labels:
        raise DataError(f"the known class of {task.name!r} is {known!r}; expected one of {', '.join(labels)}")
    return labels.index(known)


def _predicted_class(entry: ReportEntry, task: Task) -> int:
    return int(np.argmax([output.value(entry.result) for output in outputs([task])]))


def _sections(
    entries: Sequence[ReportEntry], tasks: Sequence[Task], training: Mapping[str, Any], links: Mapping[int, str]
) -> list[Section]:
    """Heading, notes, tables and charts of every section but that of the images."""
    if not tasks:
        return box_sections(entries, training)
    found, units = agreement(entries, tasks), {task.name: task.unit for task in tasks}
    held_out: list[Chart] = []
    for name, (known, predicted) in training.get("held_out", {}).items():
        held_out += _pair(f"{name}, held out", known, predicted, units.get(name, ""))
    compared = ScoreTable(["output", "images", "R²", "MAE", "RMSE", "bias", "sd of known"], [])
    tables, charts, bars = [compared], [], []
    for task in tasks:
        if _labels(task) and task.name in found:
            name = f"{task.name}, accuracy {found[task.name]['accuracy']:.3f}: true (rows) and predicted"
            tables.append(matrix_table(name, _labels(task), found[task.name]["confusion_matrix"]))
        for output in outputs_of(task, tasks):
            values = np.array([output.value(entry.result) for entry in entries])
            chosen = [place for place, entry in enumerate(entries) if output.key in entry.known]
            truth = [float(entries[place].known[output.key]) for place in chosen]
            if chosen:
                compared.rows.append([output.heading, *(_number(v, 4) for v in found[output.key].values())])
                targets = [f"#{links[place]}" if place in links else None for place in chosen]
                charts += _pair(output.key, truth, values[chosen], output.unit, targets)
            bars += [] if task.is_categorical else [_histogram(output, values, truth)]
    return [
        (
            "Held-out scores",
            ["Each image was predicted by a head that was not trained on it.", *training.get("remarks", ())],
            all_tables(training),
            held_out,
        ),
        (
            "Against known values",
            ["Too good where a head was trained on these images: the held-out scores show what to expect of new ones."],
            tables,
            charts,
        ),
        ("Predictions", [_UNITS], [_predictions(entries, tasks)], []),
        ("Distribution", ["Of the predictions of all images."], [], bars),
    ]


def _predictions(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> ScoreTable:
    """A row per image: every number, for a classification the class before them; each with its known value."""
    columns = [["image", *(entry.name for entry in entries)]]
    for task in tasks:
        labels = _labels(task)
        cells = {task.name: [task.name, *(labels[_predicted_class(e, task)] for e in entries)]} if labels else {}
        for output in outputs_of(task, tasks):
            cells[output.key] = [output.heading, *(_number(output.value(e.result)) for e in entries)]
        for key, column in cells.items():
            known = [entry.known.get(key, math.nan) for entry in entries]
            columns.append(column)
            if any(key in entry.known for entry in entries):
                columns.append(["known", *(value if isinstance(value, str) else _number(value) for value in known)])
    header, *rows = map(list, zip(*columns, strict=True))
    return ScoreTable(header, rows)


def _pair(name: str, known: Any, predicted: Any, unit: str, links: Sequence[str | None] | None = None) -> list[Chart]:
    """The charts of predicted over known values, and of residuals; a point leads to its image."""
    truth, values = numbers(known, f"known {name}", "n"), numbers(predicted, f"predicted {name}", "n")
    charts = []
    for draw, what in ((agreement_plot, "predicted over known"), (residual_plot, "residuals over known")):
        figure = new_figure(3.2, 3.2)
        draw(figure.subplots(), truth, values, [slice(None)], unit)
        figure.axes[0].collections[0].set(urls=links, rasterized=len(truth) > _MANY)
        charts.append(chart(figure, name, what))
    return charts


def _histogram(output: Output, values: Floats, known: Sequence[float]) -> Chart:
    edges = np.linspace(*span([np.array([*values, *known])]), int(np.clip(1.5 * math.sqrt(len(values)), 5, 20)) + 1)
    figure = new_figure(3.2, 2.4)
    axes = figure.subplots()
    axes.hist(values, edges.tolist(), color=PALETTE[0])
    axes.hist(known, edges.tolist(), histtype="step", color=PALETTE[1], linewidth=1.5)
    axes.locator_params(axis="y", integer=True)
    describe(axes, f"mean {minus(f'{values.mean():.4g}')}, sd {values.std():.4g}", output.unit or "predicted", "images")
    return chart(figure, output.key, "predicted (bars) and known (line)" if known else "predicted")


def _template() -> jinja2.Template:
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True)
    page.filters["minus"] = minus
    page.tests["matrix"] = lambda table: isinstance(table, ConfusionMatrix)
    return page.from_string((_FOLDER / "report.html.j2").read_text("utf-8"))


def _articles(
    entries: Mapping[int, ReportEntry], tasks: Sequence[Task], side: int, max_bytes: int
) -> list[dict[str, Any]]:
    """What the page shows of each image: pixels of at most ``side``, tokens, gate and maps as data URIs, and boxes."""
    results = [entry.result for entry in entries.values()]
    listed = outputs(tasks)
    scaled = list(zip(listed, scales(listed, results), strict=True))
    gates = [_gate(entry) for entry in entries.values()]
    top = max((float(gate.max()) for gate in gates if gate is not None), default=1.0)
    articles: list[dict[str, Any]] = []
    room = max_bytes
    for row, (place, entry) in enumerate(entries.items()):
        picture = as_image(entry.image() if callable(entry.image) else entry.image)  # type: ignore[arg-type]
        width, height = picture.size
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        figures = []
        if (gate := gates[row]) is not None:
            figures.append(_map(gate, 0.0, top, "gate", "0", f"{top:.3g} times the mean weight"))
        for task in tasks:
            cells = (entry.result.get("maps") or {}).get(task.name)
            if task.kind == "segmentation" and cells is not None:
                figures.append(_class_map(task, cells))
            for output, scale in scaled:
                if output.map == task.name and (shown := scale.maps[row]) is not None:
                    ends = output.text(scale.low), output.text(scale.high) + scale.note
                    more = {"more": task.is_categorical}
                    figures.append(_map(shown, scale.low, scale.high, output.key, *ends) | more)
        article: dict[str, Any] = {
            "id": f"image-{place}",
            "name": entry.name,
            "width": width,
            "height": height,
            "uri": _uri(picture, "JPEG"),
            "tokens": None if entry.tokens is None else _uri(_pixels(_colours(entry))),
            "values": [line for task in tasks if task.kind != "segmentation" and (line := _values(entry, task, tasks))],
            "figures": figures,
        }
        if "boxes" in entry.result:
            article |= drawn_boxes(entry, [*entries.values()])
        room -= len(article["uri"]) + len(article["tokens"] or "") + sum(len(figure["uri"]) for figure in figures)
        if room < 0 and articles:
            break
        articles.append(article)
    return articles


def _gate(entry: ReportEntry) -> Floats | None:
    """How many times more than in a plain mean every patch counts."""
    if entry.result.get("gate") is None:
        return None
    weights = numbers(entry.result["gate"], f"the gate of {entry.name}", "rows, cols")
    return weights * weights.size


def _colours(entry: ReportEntry) -> Floats:
    return np.clip(numbers(entry.tokens, f"the tokens of {entry.name}", "rows, cols, 3"), 0.0, 1.0)


def _values(entry: ReportEntry, task: Task, tasks: Sequence[Task]) -> str:
    """What was predicted of a task, and what is known, in one line."""
    known = f", known {entry.known[task.name]}" if _labels(task) and task.name in entry.known else ""
    parts = []
    for output in outputs_of(task, tasks):
        value, truth = output.value(entry.result), entry.known.get(output.key)
        off = "" if truth is None else f" (known {_number(truth, 4)}, off by {_number(value - truth, 3)})"
        parts.append(f"{output.key}: {_number(value, 4)} {output.unit}".rstrip() + off)
    if not _labels(task):
        return ", ".join(parts)
    likely = _predicted_class(entry, task)
    return f"{task.name}: {_labels(task)[likely]}, probability {entry.result[task.name][likely]:.2f}{known}"


def _map(cells: Floats, low: float, high: float, name: str, *ends: str) -> dict[str, Any]:
    """A heat map; ``ends`` are the texts at the ends of its colour bar."""
    return {"uri": _uri(heat(cells, low, high)), "name": name, "low": ends[0], "high": ends[1]}


def _class_map(task: Task, maps: Floats) -> dict[str, Any]:
    """The most probable class of every cell, of maps (classes, rows, cols), with colours and shares of cells."""
    hues = [PALETTE[i] if task.dim <= len(PALETTE) else f"hsl({i * 137 % 360}, 70%, 50%)" for i in range(task.dim)]
    colours = np.array([ImageColor.getrgb(hue) for hue in hues]) / 255.0
    labels = task.labels or range(task.dim)
    cells = np.asarray(maps).argmax(axis=0)
    shares = [f"{label} {np.mean(cells == i):.0%}" for i, label in enumerate(labels)]
    uri = _uri(_pixels(colours[cells]))
    return {"uri": uri, "name": f"{task.name}, share of cells", "classes": list(zip(hues, shares, strict=True))}


def _pixels(shares: Floats) -> Image.Image:
    return Image.fromarray((shares * 255.0).round().astype(np.uint8))


def _uri(image: Image.Image, kind: str = "PNG") -> str:
    """A data URI: JPEG for images, PNG where every pixel counts."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _number(value: float, digits: int = 6) -> str:
    """A number as tables show it; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def _plain(value: Any) -> Any:
    """Text with control characters spelled out, of limited length; the template escapes it."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
