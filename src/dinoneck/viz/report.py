"""A report as one HTML file: predictions, maps, residuals and scores, to open anywhere without a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_segmentation_masks

from dinoneck.errors import DataError, printable
from dinoneck.tasks import Task
from dinoneck.version import __version__
from dinoneck.viz.detections import agreement_of_boxes, box_line, box_sections, pairs
from dinoneck.viz.drawing import Chart, Floats, agreement_charts, minus, numbers, scores
from dinoneck.viz.panels import as_image, boxes_panel, captions, coloured, heat
from dinoneck.viz.scales import ReportEntry, outputs, scales
from dinoneck.viz.score_tables import ConfusionMatrix, ScoreTable, all_tables, matrix_table
from dinoneck.viz.style import PALETTE

_LONGEST = 1000  # characters of one text
_SIDE = 800  # pixels of the longer side of an image at most; maps stay exact, one pixel per cell
_FOLDER = Path(__file__).parent


def html_report(
    entries: Sequence[ReportEntry],
    tasks: Sequence[Task],
    *,
    title: str = "Predictions",
    facts: Mapping[str, Mapping[str, str]] | None = None,
    training: Mapping[str, Any] | None = None,
    unread: Mapping[str, str] | None = None,
) -> str:
    """Return a page that holds everything it shows: it loads nothing and runs nothing. All text is escaped.

    All images share the scales of their maps. Where values are known, images come in the order of their error: the
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

    Raises:
        DataError: if there are no entries, predictions, known values, maps or colours are missing or not finite, or
            ``training`` is not a report of a training run.
        ShapeError: if maps are not (outputs, rows, cols), a gate not (rows, cols) or colours not (rows, cols, 3).
        ImportError: if matplotlib is missing, which draws the charts.

    Examples:
        >>> entry = ReportEntry("a.jpg", {"mass": 12.5})
        >>> page = html_report([entry], [Task("mass", unit="g")], title="<Plot> 7")
        >>> "<h1>&lt;Plot&gt; 7</h1>" in page, "12.5" in page, "<script" in page
        (True, True, False)
    """
    if not entries:
        raise DataError("there are no entries; a report needs one image at least")
    drawn = [place for place in worst_first(entries, tasks) if entries[place].image is not None]
    sections = (_sections if tasks else box_sections)(entries, tasks, training or {}, drawn)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True)
    page.filters["minus"] = minus
    page.tests["matrix"] = lambda table: isinstance(table, ConfusionMatrix)
    return page.from_string((_FOLDER / "report.html.j2").read_text("utf-8")).render(
        title=title,
        style=(_FOLDER / "report.css").read_text("utf-8"),
        version=__version__,
        count=len(entries),
        unread=unread or {},
        sections={h: s for h, s in sections.items() if s[1] or any(table.rows for table in s[0])},
        remarks=(training or {}).get("remarks", ()),
        articles=[*_articles([entries[place] for place in drawn], drawn, tasks)],
        of_boxes=not tasks,
        drawn=drawn,
        ordered=any(entry.known for entry in entries),
        facts={heading: terms for heading, terms in (facts or {}).items() if terms},
    )


def agreement(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Return how far every output is from known values, and of known classes the accuracy and confusion matrix.

    Without tasks: of every class of boxes how many are known, predicted and found.

    Raises:
        DataError: if a known value is not finite, or a known class is not one of the task's.
    """
    if not tasks:
        return {**agreement_of_boxes(entries)}
    rows, classes, found = _rows(entries, tasks), _classes(tasks), dict[str, dict[str, Any]]()
    for name in rows[0]:
        both = [(e.known[name], row[name]) for e, row in zip(entries, rows, strict=True) if name in e.known]
        if both and name not in classes:
            known, predicted = numbers(both, f"known values of {name!r}", "n, 2").T
            found[name] = scores(predicted, known)
        elif both:
            labels = classes[name]
            if unknown := [known for known, _ in both if known not in labels]:
                raise DataError(f"the known class of {name!r} is {unknown[0]!r}; expected one of {', '.join(labels)}")
            counts = [[both.count((true, label)) for label in labels] for true in labels]
            accuracy = sum(known == predicted for known, predicted in both) / len(both)
            found[name] = {"images": len(both), "accuracy": accuracy, "confusion_matrix": counts}
    return found


def worst_first(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[int]:
    """Return the places of entries, the largest errors first; those without a known value last, in their order."""
    if not tasks:
        wrong = [sum(known != found for known, found in pairs(e)) if "boxes" in e.known else -1 for e in entries]
        return sorted(range(len(entries)), key=wrong.__getitem__, reverse=True)
    rows, classes, found = _rows(entries, tasks), _classes(tasks), agreement(entries, tasks)
    numeric = [name for name in found if name not in classes]

    def error(place: int) -> float:
        known, row = entries[place].known, rows[place]
        gaps = [1.0 - row[f"{name}:{known[name]}"] for name in classes if name in known]
        gaps += [abs(row[name] - known[name]) / (found[name]["rmse"] or 1.0) for name in numeric if name in known]
        return sum(gaps) / len(gaps) if gaps else -1.0

    return sorted(range(len(entries)), key=error, reverse=True)


def _classes(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Name of a classification -> its classes."""
    return {task.name: [*map(str, task.labels or range(task.dim))] for task in tasks if task.kind == "classification"}


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


def _sections(
    entries: Sequence[ReportEntry], tasks: Sequence[Task], training: Mapping[str, Any], drawn: Sequence[int]
) -> dict[str, tuple[list[ScoreTable], list[Chart]]]:
    """Heading -> tables and charts, of every section but that of the images."""
    rows, units = _rows(entries, tasks), {output.key: output.task.unit for output in outputs(tasks)}
    headings = {name: f"{name} ({unit})" for name, unit in units.items() if unit}
    held_out: list[Chart] = []
    for name, (known, predicted) in training.get("held_out", {}).items():
        held_out += agreement_charts(f"{name}, held out", known, predicted, units.get(name, ""))
    compared = ScoreTable(["output", "images", "R²", "MAE", "RMSE", "bias", "sd of known"], [])
    tables, charts, found = [compared], list[Chart](), agreement(entries, tasks)
    for name, row in found.items():
        if "accuracy" in row:
            heading = f"{name}, accuracy {row['accuracy']:.3f}: true (rows) and predicted"
            tables.append(matrix_table(heading, _classes(tasks)[name], row["confusion_matrix"]))
        else:
            compared.rows.append([headings.get(name, name), *(_number(value, 4) for value in row.values())])
            places = [place for place, entry in enumerate(entries) if name in entry.known]
            links = [f"#image-{place}" if place in drawn else None for place in places]
            known = [entries[place].known[name] for place in places]
            charts += agreement_charts(name, known, [rows[place][name] for place in places], units[name], links)
    listed = ScoreTable(["image"], [[entry.name] for entry in entries])
    for name in rows[0]:
        listed.header.extend([headings.get(name, name), "known"] if name in found else [headings.get(name, name)])
        for entry, row, cells in zip(entries, rows, listed.rows, strict=True):
            cells.append(_number(row[name]))
            if name in found:
                cells.append(_number(entry.known.get(name, math.nan)))
    return {
        "Held-out scores": (all_tables(training), held_out),
        "Against known values": (tables, charts),
        "Predictions": ([listed], []),
    }


def _articles(entries: Sequence[ReportEntry], places: Sequence[int], tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """What the page shows of each image: pixels or boxes, tokens, gate and maps as data URIs."""
    listed = [output for output in outputs(tasks) if output.task.kind != "segmentation"]
    classes = sorted({name for entry in entries for name in entry.result.get("names", ())})
    for place, entry, figures in zip(places, entries, _figures(entries, tasks), strict=True):
        image: Any = entry.image() if callable(entry.image) else entry.image
        picture = as_image(image) if tasks else boxes_panel(image, entry.result, entry.known or None, classes=classes)
        width, height = picture.size
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        yield {
            "id": f"image-{place}",
            "name": entry.name,
            "width": width,
            "height": height,
            "uri": _uri(picture, "JPEG"),
            "tokens": None if entry.tokens is None else _uri(coloured(entry.tokens)),
            "values": captions(listed, entry.result, entry.known) if tasks else [box_line(entry)],
            "figures": figures,
        }


def _figures(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[list[dict[str, Any]]]:
    """The gate, the most probable classes and the maps of each image; all images share the scales."""
    found: list[list[dict[str, Any]]] = [[] for _ in entries]
    gates = {}
    for i, entry in enumerate(entries):
        if entry.result.get("gate") is not None:  # relative to a plain mean
            weights = numbers(entry.result["gate"], f"the gate of {entry.name}", "rows, cols")
            gates[i] = weights / weights.mean()
    top = max((float(gate.max()) for gate in gates.values()), default=1.0)
    for i, gate in gates.items():
        ends = {"low": "0", "high": f"{top:.3g} times the mean weight"}
        found[i].append({"uri": _uri(heat(gate, 0.0, top)), "name": "gate", **ends})
    drawn = scales(outputs(tasks), [entry.result for entry in entries])
    for output in outputs(tasks):
        scale, task = drawn[output.map.name], output.map
        for i, maps in scale.maps.items():
            if task.kind == "segmentation" and output.channel == 0:
                found[i].append(_class_map(task, maps))
            uri = _uri(heat(maps[output.channel], scale.low, scale.high))
            ends = {"low": output.text(scale.low), "high": output.text(scale.high) + scale.note}
            found[i].append({"uri": uri, "name": output.key, "more": task.is_categorical, **ends})
    return found


def _class_map(task: Task, maps: Floats) -> dict[str, Any]:
    """The most probable class of every cell, of maps (classes, rows, cols), with colours and shares of cells."""
    hues = [PALETTE[i] if task.dim <= len(PALETTE) else f"hsl({i * 137 % 360}, 70%, 50%)" for i in range(task.dim)]
    chosen = torch.from_numpy(maps).argmax(dim=0) == torch.arange(task.dim)[:, None, None]
    ground = torch.zeros(3, *maps.shape[1:], dtype=torch.uint8)
    picture = to_pil_image(draw_segmentation_masks(ground, chosen, alpha=1.0, colors=hues))
    shares = chosen.double().mean(dim=(1, 2)).tolist()
    texts = [f"{label} {share:.0%}" for label, share in zip(task.labels or range(task.dim), shares, strict=True)]
    return {"uri": _uri(picture), "name": f"{task.name}, share of cells", "classes": [*zip(hues, texts, strict=True)]}


def _uri(image: Image.Image, kind: str = "PNG") -> str:
    """A data URI: JPEG for images, PNG where every pixel counts."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _number(value: float | str, digits: int = 6) -> str:
    """A number as tables show it; a dash for none; a class as it is."""
    if isinstance(value, str):
        return value
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def _plain(value: Any) -> Any:
    """Text with control characters spelled out, of limited length; the template escapes it."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
