"""A report as one HTML file: predictions, maps, residuals and scores, to open anywhere without a network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from dinoneck.errors import DataError
from dinoneck.images.decoding import ImageInput
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.metrics import (
    accuracy,
    as_number,
    class_counts,
    class_f1,
    confusion_matrix,
    label_precision,
    label_terms,
)
from dinoneck.runtime.intervals import PREDICTION_SETS
from dinoneck.task_facts import (
    GATE,
    NO_LABELS,
    TaskFacts,
    as_tasks,
    labels_of,
    output_name,
    output_names,
)
from dinoneck.text import printable, some_of
from dinoneck.version import __version__
from dinoneck.viz import style
from dinoneck.viz.checked import Floats, minus, numbers
from dinoneck.viz.drawing import (
    Chart,
    agreement_charts,
    curves,
    draws_charts,
    scores,
)
from dinoneck.viz.legends import legend_outputs, rest_of_legend
from dinoneck.viz.objects import ImageObjects, objects_of
from dinoneck.viz.overlay import Array, MapPicture, classes_panel, map_pictures
from dinoneck.viz.panels import coloured, data_uri, small_data_uri
from dinoneck.viz.pictures import (
    LabelChip,
    as_image,
    as_label,
    boxes_panel,
    caption,
    class_caption,
    class_colours,
    corners_of,
    is_known_without_labels,
    is_unknown,
    known_class,
    label_chips,
    likely_class,
    partners,
)
from dinoneck.viz.scales import (
    THE_GATE,
    VALUE_DIGITS,
    IntervalAxis,
    Output,
    PlacedInterval,
    Scale,
    entry_of,
    interval_axes,
    map_colours,
    outputs,
    outputs_by_task,
    place_interval,
    scales,
    with_gate,
)
from dinoneck.viz.score_tables import MOST_COLUMNS, ScoreTable, all_tables, box_tables, matrix_table

_PICTURES_BYTES = 1_500_000  # of all pictures of a page, so that it can be mailed
_SHEET_BYTES = 400_000  # of the sheet of the data that the run was trained on
_TOKENS_WIDTH_PX = 700
_MOST_IN_A_ROW = 4  # pictures of an image
_NO_CHARTS = "Charts are left out: matplotlib draws them, pip install 'dinoneck[train]'."
_FOLDER = Path(__file__).parent
_NOTHING = "–"  # in a cell of a table
_MOST_NAMED = 4  # classes in a sentence
_UNKNOWN_ERROR = -1.0  # of an entry without known values: below all errors


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One image of a report.

    Attributes:
        name: the file, or another name that differs from those of the other images.
        result: the Predictor's result, with intervals if they are to be shown, and with
            ``maps="patch"`` for an image that is drawn; or that of ``Detector.predict``.
        image: the image as the model saw it (``Predictor.picture``), so that maps lie where they
            belong, or a function that returns it, so that many need not be in memory at once; None
            = the image is listed in the table only.
        tokens: (rows, cols, 3) colours in 0 ... 1 of its patches, see :func:`dinoneck.viz.pca_rgb`;
            None = not shown.
        known: column -> known value, where there is one; None, NaN and pandas.NA are left out. Columns are those
            of ``dinoneck predict``: the task's name, or ``task:label``. For a classification the
            task's name -> the known class. For a detector ``boxes`` (n, 4) and ``names``, and
            ``classes`` where boxes of these alone are known.
        classes: returns the known classes of pixels, task -> (height, width), -1 = unlabelled; None
            = they are not known.
    """

    name: str
    result: Mapping[str, Any]
    image: ImageInput | Callable[[], ImageInput] | None = None
    tokens: Floats | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    classes: Callable[[], Mapping[str, Array]] | None = None

    def __post_init__(self) -> None:
        known = {column: value for column, value in self.known.items() if not is_unknown(value)}
        object.__setattr__(self, "known", known)


class Comparison(NamedTuple):
    """What a report shows of all images.

    Attributes:
        tables: of predictions against known values.
        charts: of the same.
        images: the table of all images.
    """

    tables: list[ScoreTable]
    charts: list[Chart]
    images: ScoreTable


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        tables: its tables; those without rows are left out.
        charts: below the tables.
    """

    tables: Sequence[ScoreTable]
    charts: Sequence[Chart]

    @property
    def has_content(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.charts) or any(table.rows for table in self.tables)


def html_report(
    entries: Sequence[ReportEntry],
    tasks: TaskFacts | Sequence[TaskFacts],
    *,
    title: str = "Predictions",
    facts: Mapping[str, Mapping[str, str]] | None = None,
    training: Mapping[str, Any] | None = None,
    unread: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    trained_on: int = 0,
    box_scores: Mapping[str, Any] | None = None,
) -> str:
    """Return a page that holds everything it shows: it loads nothing and runs nothing.

    All text is escaped.

    All images share the scales of their maps. matplotlib draws the charts; without it they are left
    out, and the page states that. Where values are known, images come in the order of their error.
    It is the mean over outputs: of a number the absolute error divided by the output's RMSE, of a
    class 1 minus the probability of the known class. For a detector it is the number of boxes that
    are missed, false or of a wrong class.

    Args:
        entries: one per image, at least one.
        tasks: what is predicted, as in ``Predictor.tasks``: names, units and labels; of a detector
            none.
        title: of the page.
        facts: heading -> term -> text, such as what the head is and how it was run; each becomes a
            list at the end.
        training: the ``report.json`` of the training run; the scores of its held-out images become
            a section, and what it read of its data another one, with the picture ``"sheet"``. Under
            ``"held_out"`` it may hold target -> (known values, predictions),
            ``"log"`` a detector's ``log.jsonl``.
        unread: name -> reason of the images that could not be read.
        classes: of a detector, in its order: each has the colour that it has in other pictures.
        trained_on: how many of the images the model was trained on, which the page then states.
        box_scores: of a detector, by :func:`dinoneck.detection.score_boxes` on the known boxes.

    Raises:
        DataError: if there are no entries, predictions, known values, maps or colours are missing
            or not finite, or ``training`` is not a report of a training run.
        ShapeError: if maps are not (outputs, rows, cols), a gate not (rows, cols) or colours not
            (rows, cols, 3).

    Examples:
        >>> from dinoneck import Task
        >>> entry = ReportEntry("a.jpg", {"mass": 12.5})
        >>> page = html_report([entry], [Task("mass", unit="g")], title="<Plot> 7")
        >>> "<h1>&lt;Plot&gt; 7</h1>" in page, "12.5" in page, "<script" in page
        (True, True, False)
    """
    if not entries:
        raise DataError("there are no entries; a report needs one image at least")
    tasks = as_tasks(tasks)
    training = training or {}
    is_detector = _is_detector(tasks)
    drawn = [i for i in worst_first(entries, tasks) if entries[i].image is not None]
    if is_detector:
        comparison = _compare_boxes(entries)
        if box_scores:
            tables = box_tables({"detector": box_scores}, "known boxes", held_out=False)
            comparison = comparison._replace(tables=[*tables, *comparison.tables])
    else:
        comparison = _compare_numbers(entries, tasks, drawn)

    held_out = Section(all_tables(training), _held_out_charts(training, tasks))
    against_known = Section(comparison.tables, comparison.charts)
    sections: dict[str, Section] = {}
    if held_out.has_content:
        sections["Held-out scores"] = held_out
    if against_known.has_content:
        sections["Against known values"] = against_known
    sections["Predictions"] = Section([comparison.images], charts=[])

    sheet = training.get("sheet")
    remarks = list(training.get("remarks", ()))
    if not draws_charts():
        remarks.append(_NO_CHARTS)
    num_known = sum(bool(entry.known) for entry in entries)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escape_control,
        trim_blocks=True,
    )
    environment.filters["minus"] = minus
    environment.filters["hex"] = style.hex_colour
    page = environment.from_string((_FOLDER / "report.html.j2").read_text("utf-8"))
    return page.render(
        title=title,
        style=(_FOLDER / "report.css").read_text("utf-8"),
        version=__version__,
        count=len(entries),
        unread=unread or {},
        sections=sections,
        remarks=remarks,
        articles=list(_articles(entries, drawn, tasks, classes)),
        data_lines=training.get("data", {}).get("lines", []),
        data_sheet=None if sheet is None else small_data_uri(sheet, _SHEET_BYTES),
        most_in_a_row=_MOST_IN_A_ROW,
        image_notes=_image_notes(entries, drawn, tasks),
        prediction_notes=_prediction_notes(entries, drawn, tasks),
        of_boxes=is_detector,
        trained_on=trained_on,
        drawn=drawn,
        ordered=num_known > 0,
        typical=num_known > len(drawn) > 1,
        facts={heading: terms for heading, terms in (facts or {}).items() if terms},
    )


def _is_detector(tasks: Sequence[TaskFacts]) -> bool:
    """Whether entries hold boxes: heads have tasks, a detector has none."""
    return not tasks


def agreement(
    entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts]
) -> dict[str, dict[str, Any]]:
    """Return how far every output is from known values, and of known classes the accuracy and confusion matrix.

    Without tasks: of every class of boxes how many are known, predicted and found; known and found
    are None of a class that the known boxes do not include.

    Raises:
        DataError: if a known value is not finite, or a known class is not one of the task's.
    """
    if _is_detector(tasks):
        return _box_agreement(entries)
    rows = _predicted_rows(entries, tasks)
    classes = _classes(tasks)
    label_columns = _label_columns(tasks)
    compared: dict[str, dict[str, Any]] = {}
    for column in rows[0]:
        known_and_predicted = []
        for entry, row in zip(entries, rows, strict=True):
            if column not in entry.known:
                continue
            truth = entry.known[column]
            if column in classes:
                truth = as_label(truth, classes[column])
            known_and_predicted.append((truth, row[column]))
        if not known_and_predicted:
            continue
        if column in classes:
            compared[column] = _class_agreement(column, classes[column], known_and_predicted)
            continue
        known, predicted = numbers(known_and_predicted, f"known values of {column!r}", "n, 2").T
        if column in label_columns:
            compared[column] = _label_agreement(known, predicted, label_columns[column])
        else:
            compared[column] = scores(predicted, known)
    return compared


def _box_agreement(entries: Sequence[ReportEntry]) -> dict[str, dict[str, Any]]:
    """Class -> how many of its boxes are known, predicted and found; none without any.

    Of a class that the known boxes do not include, only the predicted ones are counted.
    """
    objects = _all_pairs(entries)
    if not objects:
        return {}
    counts: dict[str, dict[str, Any]] = {}
    for name in _compared_classes(entries):
        counts[name] = {
            "known": sum(known == name for known, _ in objects),
            "predicted": sum(predicted == name for _, predicted in objects),
            "found": objects.count((name, name)),
        }
    for name, num_predicted in _uncompared_classes(entries).items():
        counts[name] = {"known": None, "predicted": num_predicted, "found": None}
    return counts


def _class_agreement(
    name: str, labels: Sequence[str], known_and_predicted: Sequence[tuple[Any, Any]]
) -> dict[str, Any]:
    """The accuracy and the confusion matrix of pairs of a known and a predicted class."""
    for known, _ in known_and_predicted:
        if known not in labels:
            raise DataError(
                f"the known class of {name!r} is {known!r}; expected one of {', '.join(labels)}"
            )
    true_classes = [labels.index(known) for known, _ in known_and_predicted]
    predicted_classes = [labels.index(predicted) for _, predicted in known_and_predicted]
    matrix = confusion_matrix(true_classes, predicted_classes, len(labels))
    return {
        "images": len(known_and_predicted),
        "accuracy": float(accuracy(class_counts(matrix))),
        "confusion_matrix": matrix.tolist(),
    }


def _label_columns(tasks: Sequence[TaskFacts]) -> dict[str, float]:
    """``task:label`` -> the threshold of the label, of multilabel tasks."""
    thresholds: dict[str, float] = {}
    for task in tasks:
        if task.is_multilabel:
            thresholds |= dict(zip(task.columns, task.label_thresholds, strict=True))
    return thresholds


def _label_agreement(known: Floats, predicted: Floats, threshold: float) -> dict[str, Any]:
    """The average precision and the F1 of a label that is known of some images."""
    once = np.ones((1, len(known)))
    [precision] = label_precision(known, predicted, once)
    terms = label_terms(known[:, None], predicted[:, None] >= threshold)
    [f1] = class_f1(terms.sum(axis=0))
    return {
        "images": len(known),
        "positives": int((known == 1).sum()),
        "AP": as_number(precision),
        "F1": as_number(f1),
        "threshold": threshold,
    }


def worst_first(entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts]) -> list[int]:
    """Return the indices of entries, the largest errors first; those without a known value last, in their order."""
    if _is_detector(tasks):
        errors = _box_errors(entries)
    else:
        errors = _errors(entries, tasks)
    return sorted(range(len(entries)), key=lambda i: errors[i], reverse=True)


def _errors(entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts]) -> list[float]:
    """The mean error of each entry over what is known of it."""
    rows = _predicted_rows(entries, tasks)
    classes = _classes(tasks)
    compared = agreement(entries, tasks)
    errors = []
    for entry, row in zip(entries, rows, strict=True):
        gaps = []
        for name, labels in classes.items():
            if name in entry.known:
                true_class = as_label(entry.known[name], labels)
                gaps.append(1.0 - row[f"{name}:{true_class}"])
        for name, score in compared.items():
            if name in entry.known and name not in classes:
                gaps.append(abs(row[name] - entry.known[name]) / (score.get("rmse") or 1.0))
        errors.append(sum(gaps) / len(gaps) if gaps else _UNKNOWN_ERROR)
    return errors


def _box_errors(entries: Sequence[ReportEntry]) -> list[float]:
    """The number of objects of each entry that are missed, false or of a wrong class."""
    errors = []
    for entry in entries:
        if "boxes" in entry.known:
            errors.append(float(sum(known != predicted for known, predicted in pairs(entry))))
        else:
            errors.append(_UNKNOWN_ERROR)
    return errors


def worst_and_typical(
    entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts], most: int
) -> list[int]:
    """Return the indices of ``most`` entries: half with the largest errors, half around the median error."""
    order = worst_first(entries, tasks)
    num_known = sum(bool(entry.known) for entry in entries)
    if num_known <= most:
        return order[:most]
    num_typical = most // 2
    num_worst = most - num_typical
    start = num_known // 2 - num_typical // 2  # so that the median is in the middle
    start = max(start, num_worst)
    start = min(start, num_known - num_typical)
    return [*order[:num_worst], *order[start : start + num_typical]]


def _classes(tasks: Sequence[TaskFacts]) -> dict[str, list[str]]:
    """Name of a classification -> its classes."""
    classes = {}
    for task in tasks:
        if task.is_image_class:
            classes[task.name] = list(output_names(task))
    return classes


def _predicted_rows(
    entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts]
) -> list[dict[str, Any]]:
    """Column -> predicted class or number, of every image; classes come first."""
    listed = outputs(tasks)
    rows = []
    for entry in entries:
        values = {output.key: output.value(entry.result) for output in listed}
        row: dict[str, Any] = {}
        for name, labels in _classes(tasks).items():
            probabilities = [values[f"{name}:{label}"] for label in labels]
            row[name] = labels[int(np.argmax(probabilities))]
        for name, labels in labels_of(tasks, entry.result).items():
            row[name] = ";".join(labels) or NO_LABELS
        rows.append(row | values)
    return rows


def _held_out_charts(training: Mapping[str, Any], tasks: Sequence[TaskFacts]) -> list[Chart]:
    """The epochs of a detector, or the predictions of held-out images over their known values."""
    units = {output.key: output.task.unit for output in outputs(tasks)}
    charts = curves(training.get("log", []))
    for name, (known, predicted) in training.get("held_out", {}).items():
        charts += agreement_charts(f"{name}, held out", known, predicted, units.get(name, ""))
    return charts


def _compare_numbers(
    entries: Sequence[ReportEntry], tasks: Sequence[TaskFacts], drawn: Sequence[int]
) -> Comparison:
    """Predicted numbers and classes against known ones."""
    rows = _predicted_rows(entries, tasks)
    compared = agreement(entries, tasks)
    units = {output.key: output.task.unit for output in outputs(tasks)}
    headings = {}
    for column in rows[0]:
        unit = units.get(column)
        headings[column] = f"{column} ({unit})" if unit else column

    score_table = ScoreTable(["output", "images", "R²", "MAE", "RMSE", "bias", "sd of known"], [])
    label_table = ScoreTable(["label", "images", "with it", "AP", "F1", "threshold"], [])
    class_tables = []
    charts: list[Chart] = []
    for column, score in compared.items():
        if "accuracy" in score:
            heading = f"{column}, accuracy {score['accuracy']:.3f}: true (rows) and predicted"
            matrix = score["confusion_matrix"]
            class_tables.append(matrix_table(heading, _classes(tasks)[column], matrix))
            continue
        # the columns of both tables are in the order of the scores
        cells = [_number(value, digits=4) for value in score.values()]
        if "AP" in score:
            label_table.rows.append([column, *cells])
            continue
        score_table.rows.append([headings[column], *cells])
        charts += _charts_of_column(column, units[column], entries, rows, drawn)

    tables = [score_table]
    if label_table.rows:
        tables.append(label_table)
    tables += [shown for shown in class_tables if shown.rows]
    image_table = _image_table(entries, tasks, rows, headings=headings, compared=compared)
    return Comparison(tables, charts, image_table)


def _charts_of_column(
    column: str,
    unit: str,
    entries: Sequence[ReportEntry],
    rows: Sequence[Mapping[str, Any]],
    drawn: Sequence[int],
) -> list[Chart]:
    """The charts of a number over its known values; points of drawn images link to them."""
    known = []
    predicted = []
    links: list[str | None] = []
    for i, entry in enumerate(entries):
        if column in entry.known:
            known.append(entry.known[column])
            predicted.append(rows[i][column])
            links.append(f"#image-{i}" if i in drawn else None)
    return agreement_charts(column, known, predicted, unit, links)


def _image_table(
    entries: Sequence[ReportEntry],
    tasks: Sequence[TaskFacts],
    rows: Sequence[Mapping[str, Any]],
    *,
    headings: Mapping[str, str],
    compared: Mapping[str, Any],
) -> ScoreTable:
    """What is predicted of all images, with what is known of compared columns, and how many objects there are.

    Args:
        entries: of all images.
        tasks: what is predicted.
        rows: of :func:`_predicted_rows`.
        headings: column -> its heading.
        compared: the columns of which values are known.
    """
    output_of_column = {output.key: output for output in outputs(tasks)}
    table = ScoreTable(["image"], [[entry.name] for entry in entries])
    for column in rows[0]:
        cells = []
        for entry, row in zip(entries, rows, strict=True):
            cells.append(_number(row[column]) + _uncertainty(column, entry, output_of_column))
        table.add_column(headings[column], cells)
        if column in compared:
            known = [_number(entry.known.get(column, math.nan)) for entry in entries]
            table.add_column("known", known)
    for task in tasks:
        if task.is_masks:
            _add_object_columns(table, entries, task)
    return table


def _add_object_columns(table: ScoreTable, entries: Sequence[ReportEntry], task: TaskFacts) -> None:
    """Add a column per class to the table of images: how many objects of it each image has."""
    counts_of_images = [objects_of(entry.result[task.name], task).counts() for entry in entries]
    classes: Sequence[str] = task.labels
    if not classes:
        predicted: set[str] = set()
        for counts in counts_of_images:
            predicted.update(counts)
        classes = sorted(predicted, key=int)  # without labels the names of classes are numbers
    for name in classes:
        table.add_column(name, [str(counts[name]) for counts in counts_of_images])


def _uncertainty(column: str, entry: ReportEntry, output_of_column: Mapping[str, Output]) -> str:
    """What follows the number or class of an image in its cell: the bounds of its interval, or its prediction set."""
    if column not in output_of_column:  # of classes
        labels = entry_of(entry.result, PREDICTION_SETS).get(column)
        return "" if labels is None else f" (among {', '.join(labels)})"
    bounds = output_of_column[column].bounds(entry.result)
    if bounds is None:
        return ""
    low, high = bounds
    return f" ({_number(low)} ... {_number(high)})"


@dataclass(frozen=True)
class _Line:
    """A line of text on what an image has.

    Attributes:
        text: such as ``crop 31 % (true 30 %)``.
        colour: of its class in the picture, as ``#009e73``; empty without one.
        share: 0 ... 1 of the class of an image, which is how long its bar is; None for others.
        is_right: whether the class is the true one, or no label is; None where that is not known.
        chips: the labels of an image, after the text; None of other lines.
        interval: of a number; None without one.
    """

    text: str
    colour: str = ""
    share: float | None = None
    is_right: bool | None = None
    chips: Sequence[LabelChip] | None = None
    interval: PlacedInterval | None = None


class _TitledPicture(NamedTuple):
    """A picture of an image before it is encoded, with the kind and the title of its :class:`_Figure`."""

    kind: str
    title: str
    picture: Image.Image


@dataclass(frozen=True)
class _Figure:
    """A picture of an image.

    Attributes:
        kind: ``image``, ``truth``, ``over``, ``over-2`` or ``tokens``, of its id and its class.
        title: what it shows.
        uri: its data.
    """

    kind: str
    title: str
    uri: str


@dataclass(frozen=True)
class _Article:
    """What the page shows of a drawn image.

    Attributes:
        id: of its element.
        name: of the image.
        lines: what is predicted, and known.
        figures: next to each other: the photo, what is true and what is predicted.
        tokens: the colours of its tokens, folded; None without.
    """

    id: str
    name: str
    lines: Sequence[_Line]
    figures: Sequence[_Figure]
    tokens: _Figure | None


@dataclass(frozen=True)
class _DrawnImages:
    """What the pictures of all drawn images of a page share.

    Attributes:
        tasks: what is predicted; of a detector none.
        mapped_tasks: the tasks whose maps are drawn, the gate among them if there is one.
        scale: name of a map -> how it is drawn.
        axes: column -> the axis of its intervals.
        box_classes: of a detector, in the order of their colours.
    """

    tasks: Sequence[TaskFacts]
    mapped_tasks: Sequence[TaskFacts]
    scale: Mapping[str, Scale]
    axes: Mapping[str, IntervalAxis]
    box_classes: Sequence[str]

    @classmethod
    def of(
        cls,
        entries: Sequence[ReportEntry],
        results: Sequence[Mapping[str, Any]],
        tasks: Sequence[TaskFacts],
        classes: Sequence[str],
    ) -> _DrawnImages:
        """What these images share.

        Args:
            entries: of the images.
            results: theirs, with the gate as a map.
            tasks: what is predicted.
            classes: of a detector.
        """
        mapped_tasks = [*tasks]
        if any(THE_GATE.name in result for result in results):
            mapped_tasks.append(THE_GATE)
        predicted_names: set[str] = set()
        for entry in entries:
            predicted_names.update(entry.result.get("names", ()))
        known = [entry.known for entry in entries]
        return cls(
            tasks=tasks,
            mapped_tasks=mapped_tasks,
            scale=scales(outputs(mapped_tasks), results),
            axes=interval_axes(outputs(tasks), results, known),
            box_classes=[*classes, *sorted(predicted_names.difference(classes))],
        )

    @property
    def object_task(self) -> TaskFacts | None:
        """The task of objects with masks; None without one."""
        for task in self.tasks:
            if task.is_masks:
                return task
        return None


class _PicturesAndLines(NamedTuple):
    """What an article shows of an image: its pictures, and what is predicted in words."""

    pictures: list[_TitledPicture]
    lines: list[_Line]


def _articles(
    entries: Sequence[ReportEntry],
    drawn: Sequence[int],
    tasks: Sequence[TaskFacts],
    classes: Sequence[str],
) -> Iterator[_Article]:
    """What the page shows of each drawn image; all pictures together have :data:`_PICTURES_BYTES`."""
    results = [with_gate(entries[i].result, entries[i].name) for i in drawn]
    shared = _DrawnImages.of([entries[i] for i in drawn], results, tasks, classes)
    for i, result in zip(drawn, results, strict=True):
        entry = entries[i]
        shown = _pictures_and_lines(entry, result, shared)
        most_bytes = _PICTURES_BYTES // (len(drawn) * len(shown.pictures))
        figures = []
        for kind, title, picture in shown.pictures:
            uri = small_data_uri(picture, most_bytes)
            figures.append(_Figure(kind, title, uri))
        tokens = None
        if entry.tokens is not None:
            uri = data_uri(coloured(entry.tokens), _TOKENS_WIDTH_PX, "PNG")
            tokens = _Figure("tokens", "tokens: equal colours are equal features", uri)
        yield _Article(f"image-{i}", entry.name, shown.lines, figures, tokens)


def _pictures_and_lines(
    entry: ReportEntry, result: Mapping[str, Any], shared: _DrawnImages
) -> _PicturesAndLines:
    """The pictures and lines of an image: boxes of a detector, objects with masks, or maps and numbers.

    Args:
        entry: of the image.
        result: its result, with the gate as a map.
        shared: what all drawn images share.
    """
    image_input: Any = entry.image() if callable(entry.image) else entry.image
    image = as_image(image_input)
    if _is_detector(shared.tasks):
        return _PicturesAndLines(
            _pictures_of_boxes(image, entry, shared.box_classes),
            _box_lines(entry, shared.box_classes),
        )
    photo = _TitledPicture("image", "photo", image)
    lines = _lines(shared.tasks, entry, shared.axes)
    task = shared.object_task
    if task is not None:
        objects = objects_of(result[task.name], task)
        over = boxes_panel(image, objects._asdict(), classes=task.labels)
        pictures = [photo, _TitledPicture("over", "predicted", over)]
        return _PicturesAndLines(pictures, [*_object_lines(objects, task), *lines])
    pictures = [photo]
    if entry.classes is not None:
        true = classes_panel(image, entry.classes(), shared.tasks)
        pictures.append(_TitledPicture("truth", "true", true))
    recipe = _patches_of(image, result["maps"])
    maps = map_pictures(image, result, shared.mapped_tasks, recipe, scale=shared.scale)
    return _PicturesAndLines([*pictures, *_titled_maps(maps)], lines)


def _titled_maps(maps: Sequence[MapPicture]) -> list[_TitledPicture]:
    """The maps of an image, with a title that tells them apart."""
    titled = []
    for number, (name, picture) in enumerate(maps, start=1):
        kind = "over" if number == 1 else f"over-{number}"
        title = "predicted" if len(maps) == 1 else f"predicted {name}"
        titled.append(_TitledPicture(kind, title, picture))
    return titled


def _pictures_of_boxes(
    image: Image.Image, entry: ReportEntry, classes: Sequence[str]
) -> list[_TitledPicture]:
    """The known boxes, if they are known, and the predicted ones."""
    pictures = []
    if "boxes" in entry.known:
        true_boxes = {"boxes": entry.known["boxes"], "names": entry.known["names"]}
        true = boxes_panel(image, true_boxes, classes=classes)
        pictures.append(_TitledPicture("truth", "true", true))
    predicted = boxes_panel(image, entry.result, entry.known or None, classes=classes)
    pictures.append(_TitledPicture("over", "predicted", predicted))
    return pictures


def _box_lines(entry: ReportEntry, classes: Sequence[str]) -> list[_Line]:
    """How many boxes of each class an image has, and how many are known, of classes that are."""
    predicted = [str(name) for name in entry.result["names"]]
    known = [str(name) for name in entry.known.get("names", ())]
    colours = style.box_colours(classes)
    lines = []
    for name in dict.fromkeys([*classes, *known]):
        if name not in predicted and name not in known:
            continue
        true = f" (true {known.count(name)})" if _has_known_boxes(entry, name) else ""
        text = f"{name} {predicted.count(name)}{true}"
        lines.append(_Line(text, colours.get(name, "")))
    return lines or [_Line("no boxes")]


def _object_lines(found: ImageObjects, task: TaskFacts) -> list[_Line]:
    """How many objects of each class an image has, in the colours of its picture."""
    colours = style.box_colours([*task.labels, *found.names])
    counts = found.counts()
    lines = []
    for name, colour in colours.items():
        if name in counts:
            lines.append(_Line(f"{name} {counts[name]}", colour))
    return lines or [_Line("no objects")]


def _has_known_boxes(entry: ReportEntry, name: str) -> bool:
    """Whether it is known which boxes of a class an image has."""
    known_classes = entry.known.get("classes", [name])
    return "boxes" in entry.known and name in known_classes


def _lines(
    tasks: Sequence[TaskFacts], entry: ReportEntry, axes: Mapping[str, IntervalAxis]
) -> list[_Line]:
    """The predicted numbers, labels and classes of an image, in the colours of its picture."""
    listed = outputs(tasks)
    maps = entry.result.get("maps") or {}
    colours = _colours_of_lines([output for output in listed if output.map.name in maps])
    lines = []
    for outputs_of_task in outputs_by_task(listed):
        task = outputs_of_task[0].task
        if task.is_image_class:
            lines.append(_class_line(outputs_of_task, entry))
        elif task.is_multilabel:
            lines.append(_labels_line(outputs_of_task, entry))
        else:
            for output in legend_outputs(outputs_of_task, entry.result):
                text = caption(output, entry.result, entry.known)
                interval = None
                if output.key in axes:
                    interval = place_interval(output, entry.result, entry.known, axes[output.key])
                lines.append(_Line(text, colours.get(output.key, ""), interval=interval))
            rest = rest_of_legend(outputs_of_task)
            if rest:
                lines.append(_Line(rest))
    return lines


def _class_line(outputs_of_task: Sequence[Output], entry: ReportEntry) -> _Line:
    """The most probable class of an image."""
    task = outputs_of_task[0].task
    likely = likely_class(outputs_of_task, entry.result)
    true_class = known_class(task, entry.known)
    is_right = None
    if true_class is not None:
        is_right = true_class == output_name(task, likely.place)
    return _Line(
        class_caption(outputs_of_task, entry.result, entry.known),
        style.hex_colour(class_colours(task)[likely.place]),
        share=likely.value(entry.result),
        is_right=is_right,
    )


def _labels_line(outputs_of_task: Sequence[Output], entry: ReportEntry) -> _Line:
    """The labels of an image that reach their thresholds, and the missed ones."""
    task = outputs_of_task[0].task
    chips = label_chips(outputs_of_task, entry.result, entry.known)
    if any(chip.is_predicted for chip in chips):
        return _Line(f"{task.name}:", chips=chips)
    is_right = True if is_known_without_labels(outputs_of_task, entry.known) else None
    return _Line(f"{task.name}: {NO_LABELS}", is_right=is_right, chips=chips)


def _colours_of_lines(mapped: Sequence[Output]) -> dict[str, str]:
    """Column -> the colour of its class or number in a map; those without a colour are left out."""
    colours: dict[str, style.RGB | None] = {}
    for output in mapped:
        task = output.map
        if task.is_share:
            colours[output.key] = map_colours(task)[output.channel]
    numbers_as_shares = [output.key for output in mapped if output.is_number_from_0_to_1]
    if numbers_as_shares:
        number_colours = style.number_colours(numbers_as_shares)
        colours |= dict(zip(numbers_as_shares, number_colours, strict=True))
    return {key: style.hex_colour(rgb) for key, rgb in colours.items() if rgb is not None}


def _image_notes(
    entries: Sequence[ReportEntry], drawn: Sequence[int], tasks: Sequence[TaskFacts]
) -> list[str]:
    """Sentences on what the pictures of a page show."""
    notes = []
    if _is_detector(tasks):
        note = "Predicted boxes are drawn in the colour of their class with their score"
        if any("boxes" in entries[i].known for i in drawn):
            note += (
                ": thick where they find a known box of their class, thin where they are false. Known "
                "boxes that are missed are dashed"
            )
            if any(_has_uncompared_boxes(entries[i]) for i in drawn):
                note += (
                    ". Predicted boxes whose image or class has no known boxes to compare with are "
                    "thick too"
                )
        return [f"{note}."]
    if any(task.is_masks for task in tasks):
        notes.append("Objects are drawn in the colour of their class with their score.")
    mapped = _mapped_outputs(entries, drawn, tasks)
    shares = [output for output in mapped if output.map.is_share or output.is_number_from_0_to_1]
    if shares:
        notes.append(
            "The stronger a colour, the larger the share; the image is grey where there is none."
        )
    has_gate = any(entries[i].result.get(GATE) is not None for i in drawn)
    if len(shares) < len(mapped) or has_gate:
        notes.append("The colour bar gives the range, which is the same in all images.")
    map_names = _map_names(entries, drawn)
    if any(task.is_unit and task.name in map_names for task in tasks):
        notes.append(
            "Normals are blue where a surface faces the camera, green up and red to the left."
        )
    if any(task.is_image_class for task in tasks):
        notes.append("The bar is as long as the class is probable.")
    shown = [entries[i] for i in drawn]
    return [*notes, *_label_notes(shown, tasks), *_interval_notes(shown, tasks)]


def _label_notes(shown: Sequence[ReportEntry], tasks: Sequence[TaskFacts]) -> list[str]:
    """Sentences on the labels of drawn images."""
    of_labels = [output.key for output in outputs(tasks) if output.task.is_multilabel]
    if not of_labels:
        return []
    known_columns: set[str] = set()
    for entry in shown:
        known_columns.update(entry.known)
    if known_columns.isdisjoint(of_labels):
        return ["Labels that reach their thresholds are filled."]
    return ["Labels that reach their thresholds are filled, and missed ones have an outline."]


def _interval_notes(shown: Sequence[ReportEntry], tasks: Sequence[TaskFacts]) -> list[str]:
    """Sentences on the intervals of drawn images."""
    are_truths_known = []  # of every interval
    for entry in shown:
        for output in outputs(tasks):
            if output.bounds(entry.result) is not None:
                are_truths_known.append(output.key in entry.known)
    if not are_truths_known:
        return []
    if any(are_truths_known):
        return [
            "A bar spans the interval of a number, with a dot at the number and a line at the true one."
        ]
    return ["A bar spans the interval of a number, with a dot at the number."]


def _has_uncompared_boxes(entry: ReportEntry) -> bool:
    """Whether an image has predicted boxes that nothing known says to be true or false."""
    return any(not _has_known_boxes(entry, str(name)) for name in entry.result["names"])


def _mapped_outputs(
    entries: Sequence[ReportEntry], drawn: Sequence[int], tasks: Sequence[TaskFacts]
) -> list[Output]:
    """The outputs that a drawn image has a map of; the class of an image has none."""
    map_names = _map_names(entries, drawn)
    mapped = [output for output in outputs(tasks) if output.map.name in map_names]
    return [output for output in mapped if not output.map.is_image_class]


def _map_names(entries: Sequence[ReportEntry], drawn: Sequence[int]) -> set[str]:
    """The names of the maps of drawn images."""
    names: set[str] = set()
    for i in drawn:
        names.update(entry_of(entries[i].result, "maps"))
    return names


def _prediction_notes(
    entries: Sequence[ReportEntry], drawn: Sequence[int], tasks: Sequence[TaskFacts]
) -> list[str]:
    """Sentences on what the table of predictions holds."""
    if _is_detector(tasks):
        return ["Boxes of each image."]
    shares_by_bounds = set()
    for output in _mapped_outputs(entries, drawn, tasks):
        if output.is_number_from_0_to_1:
            shares_by_bounds.add(output.task.name)
    number_tasks = []
    share_tasks = []
    for task in tasks:
        if task.name in shares_by_bounds or (task.is_share and not task.is_image_class):
            share_tasks.append(task)
        elif task.has_values and not (task.is_share or task.is_multilabel):
            number_tasks.append(task)
    texts = []
    if any(task.is_masks for task in tasks):
        texts.append("objects of each class")
    if number_tasks:
        texts.append("numbers in original units")
    if any(task.is_image_class or task.is_multilabel for task in tasks):
        texts.append("probabilities of classes and labels")
    if share_tasks:
        texts.append("shares from 0 to 1")
    note = ", ".join(texts)
    return [f"{note[:1].upper()}{note[1:]}."] if note else []


def _patches_of(image: Image.Image, maps: Mapping[str, Any]) -> Preprocessing:
    """The recipe whose patches are the cells of the maps; without maps one patch per pixel."""
    if not maps:
        return Preprocessing(patch_size=1, resize="crop")
    first_map = next(iter(maps.values()))
    rows, cols = first_map.shape[1:]
    return Preprocessing((image.height // rows, image.width // cols), resize="crop")


def _number(value: float | str | None, digits: int = VALUE_DIGITS) -> str:
    """A number as tables show it; a dash for NaN and for a score that is not defined; a class as it is."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return _NOTHING
    return f"{value:.{digits}g}"


def _escape_control(value: Any) -> Any:
    """Escape the control characters of a text; the template escapes HTML."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def pairs(entry: ReportEntry) -> list[tuple[str | None, str | None]]:
    """Return (known class, predicted class) of every object, None for the side that is missing.

    A known and a predicted box that are :func:`partners` are one object. Without known boxes there
    are no pairs. Predicted boxes of other classes than the known ``classes`` are ignored.
    """
    if "boxes" not in entry.known:
        return []
    known_names = list(entry.known["names"])
    result_names = list(entry.result["names"])
    known_classes = set(entry.known.get("classes", result_names))
    counted = [i for i, name in enumerate(result_names) if name in known_classes]
    predicted_names = [result_names[i] for i in counted]
    partner = partners(
        corners_of(entry.result, "boxes")[counted],
        predicted_names,
        corners_of(entry.known, "boxes"),
        known_names,
    )
    objects: list[tuple[str | None, str | None]] = []
    for i, name in enumerate(predicted_names):
        known_name = known_names[partner[i]] if i in partner else None
        objects.append((known_name, name))
    for j, name in enumerate(known_names):
        if j not in partner.values():
            objects.append((name, None))
    return objects


def _all_pairs(entries: Sequence[ReportEntry]) -> list[tuple[str | None, str | None]]:
    objects = []
    for entry in entries:
        objects += pairs(entry)
    return objects


def _compare_boxes(entries: Sequence[ReportEntry]) -> Comparison:
    """Predicted boxes against known ones."""
    # by class
    uncompared = list(_uncompared_classes(entries))
    note = ""
    if uncompared:
        note = (
            f"The known boxes have no class {some_of(uncompared, _MOST_NAMED)}, so nothing says which of "
            "its boxes are right."
        )
    header = ["class", "known", "predicted", "found", "recall", "precision"]
    class_table = ScoreTable(header, [], note=note)
    for name, counts in _box_agreement(entries).items():
        num_predicted = counts["predicted"]
        if counts["known"] is None:
            unknown = [_NOTHING] * 3
            class_table.rows.append([name, _NOTHING, str(num_predicted), *unknown])
            continue
        num_known = counts["known"]
        num_found = counts["found"]
        recall = _share(num_found, num_known)
        precision = _share(num_found, num_predicted)
        numbers_of_class = [str(num_known), str(num_predicted), str(num_found)]
        class_table.rows.append([name, *numbers_of_class, recall, precision])
    tables = [class_table]

    # classes that are mistaken for each other; None: there is no box on that side
    objects = _all_pairs(entries)
    classes = [*_compared_classes(entries), None]
    if objects and len(classes) <= MOST_COLUMNS:
        matrix = []
        for known in classes:
            matrix.append([objects.count((known, predicted)) for predicted in classes])
        labels = [name or "none" for name in classes]
        tables.append(matrix_table("known (rows) and predicted", labels, matrix))

    # by image
    header = ["image", "predicted", "known", "found", "wrong class", "missed", "false"]
    image_table = ScoreTable(header, [])
    for entry in entries:
        cells = _box_counts(entry)
        image_table.rows.append([entry.name, str(len(entry.result["names"])), *cells])
    return Comparison(tables, charts=[], images=image_table)


def _share(count: int, total: int) -> str:
    return f"{count / total:.2f}" if total else _NOTHING


def _compared_classes(entries: Sequence[ReportEntry]) -> list[str]:
    """The classes whose boxes are compared with known ones, and of which there are some, sorted."""
    names: set[str] = set()
    for pair in _all_pairs(entries):
        names.update(name for name in pair if name is not None)
    return sorted(names)


def _uncompared_classes(entries: Sequence[ReportEntry]) -> dict[str, int]:
    """Class that the known boxes do not include -> how many of its boxes are predicted."""
    counts: Counter[str] = Counter()
    for entry in entries:
        if "boxes" not in entry.known:
            continue
        for name in entry.result["names"]:
            if not _has_known_boxes(entry, str(name)):
                counts[str(name)] += 1
    return {name: counts[name] for name in sorted(counts)}


def _box_counts(entry: ReportEntry) -> list[str]:
    """How many boxes of an image are known, found, of a wrong class, missed and false; dashes if none are known."""
    if "boxes" not in entry.known:
        return [_NOTHING] * 5
    objects = pairs(entry)
    found = sum(known == predicted for known, predicted in objects)
    missed = sum(predicted is None for _, predicted in objects)
    false = sum(known is None for known, _ in objects)
    wrong_class = len(objects) - found - missed - false
    counts = [len(entry.known["names"]), found, wrong_class, missed, false]
    return [str(count) for count in counts]
