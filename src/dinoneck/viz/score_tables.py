"""The scores of a training report as tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dinoneck.errors import DataError
from dinoneck.intervals import LEVELS, fewest_groups
from dinoneck.kinds import predicting_method, present_report
from dinoneck.metrics import FEWEST_POSITIVES, MEAN_AVERAGE_PRECISION
from dinoneck.tasks import MEAN_KEY, OVERALL, OVERALL_MEAN, OVERALL_WEIGHTED
from dinoneck.text import counted, some_of

MOST_COLUMNS = 12  # of a confusion matrix
# the keys of scores over all classes -> their headings
SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mAP": "mAP",
    "F1": "macro F1",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
}


# the keys of scores of surface normals -> their headings
ANGLES = {
    "mean_angle": "mean angle (°)",
    "median_angle": "median angle (°)",
    "within_11": "within 11.25°",
    "within_22": "within 22.5°",
    "within_30": "within 30°",
}
MAIN_ANGLE = "within_11"
"""The score that methods are compared by on surface normals."""
_DEGREES = ("mean_angle", "median_angle")
_NO_SCORE = "-"
_SHOWN = 4  # classes in a note


class ScoreTable(NamedTuple):
    """A table as text.

    Attributes:
        header: what the table shows, then the headings of the other columns.
        rows: of one cell per column, the first a name.
        shares: of a confusion matrix, the share of each cell in its row; empty for other tables.
        note: a sentence to print below it; empty without one.
    """

    header: list[str]
    rows: list[list[str]]
    shares: Sequence[Sequence[float]] = ()
    note: str = ""

    def add_column(self, heading: str, cells: Sequence[str]) -> None:
        """Add a column on the right, a cell per row."""
        self.header.append(heading)
        for row, cell in zip(self.rows, cells, strict=True):
            row.append(cell)

    def add_remark(self, text: str) -> None:
        """Add a row with a text and empty cells."""
        self.rows.append([text, *[""] * (len(self.header) - 1)])


def all_tables(report: Mapping[str, Any], held_out: bool = True) -> list[ScoreTable]:
    """Return the tables of a ``report.json`` or of :func:`dinoneck.evaluate`: of values, classes, masks and boxes.

    Args:
        report: as they return it.
        held_out: whether the images are known to be held out, which the headings then state.

    Raises:
        DataError: if it is not such a report.
    """
    try:
        return _all_tables(present_report(report), held_out)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"these are not the scores of a training run: {error!r}; expected its report.json"
        ) from error


def _all_tables(report: Mapping[str, Any], held_out: bool) -> list[ScoreTable]:
    tables: list[ScoreTable] = []
    if "scores" in report:
        tables += value_tables(report, held_out)
        tables += interval_tables(report)
    for name, methods in report.get("scores", {}).items():
        if "confusion_matrix" in first_of(methods):
            tables += class_tables(name, methods, held_out)
        elif MEAN_AVERAGE_PRECISION in first_of(methods):
            tables += label_tables(name, methods, held_out)
        elif MAIN_ANGLE in first_of(methods):
            tables.append(angle_table(name, methods, held_out))
    if "best" in report:
        best = report["best"]
        untrained = dict(report["untrained"])
        untrained.pop("per_class", None)  # classes are shown of the best epoch
        number = best["epoch"] + 1  # progress counts from 1, files from 0
        models = {f"best epoch ({number})": best, "before training": untrained}
        what = report.get("scored", "boxes")
        tables += box_tables(models, what, held_out, chooses_thresholds=True)
    is_training = "cost" not in report
    for key in ("boxes", "masks", "segments"):
        if key in report:
            tables += box_tables(report[key], key, held_out, chooses_thresholds=is_training)
    return tables


def mean_of(report: Mapping[str, Any]) -> str | None:
    """Return the name under which a report has the mean over the targets; None if it has none."""
    name: str = report.get(MEAN_KEY, OVERALL)
    return name if name in report.get("scores", {}) else None


def value_tables(report: Mapping[str, Any], held_out: bool = True) -> list[ScoreTable]:
    """Return the table of R² with the mean absolute errors, and of several models that of their differences.

    A row is a method or a model, a column a target of numbers; auxiliary targets come last. Next to
    the mean over the targets, or to the only one, are its interval and that of the worst of several
    folds. A report without numbers has no table.
    """
    scores = report["scores"]
    auxiliary = report["auxiliary"]
    mean = mean_of(report)
    names = [name for name, methods in scores.items() if "r2" in first_of(methods)]
    targets_and_mean = [name for name in names if name not in auxiliary]
    if mean in names and len(targets_and_mean) == 2:
        names.remove(mean)  # which is that of the only target
    names.sort(key=lambda name: name in auxiliary)
    if not names:
        return []
    methods: list[str] = []
    for name in names:
        methods += [method for method in scores[name] if method not in methods]
    row_names = [*methods, "standard deviation", "images"]
    table = ScoreTable([f"{'held-out ' * held_out}R² (MAE)"], [[name] for name in row_names])
    main = _main(names, report)
    for name in names:
        _add_value_columns(table, name, methods, report, with_interval=name == main)
    # reports of 0.3 hold no standard deviation
    filled_rows = [row for row in table.rows if any(row[1:])]
    tables = [table._replace(rows=filled_rows)]
    differences = _difference_table(names, methods, report)
    if differences.rows:
        tables.append(differences)
    return tables


def _difference_table(
    names: Sequence[str], methods: Sequence[str], report: Mapping[str, Any]
) -> ScoreTable:
    """The intervals of the first model's R² minus that of each other one, and why there are none."""
    scores = report["scores"]
    headings = [_heading(name, report) for name in names]
    table = ScoreTable(["R², 95 % interval", *headings], [])
    are_models = "cost" in report  # the methods of a run have no costs of their own
    if are_models:
        for method in methods:
            intervals = [_difference(scores[name].get(method)) for name in names]
            if any(intervals):
                cells = [_interval(ends, "+") for ends in intervals]
                table.rows.append([f"{methods[0]} minus {method}", *cells])
    reasons = _reasons({name: scores[name] for name in names})
    if reasons:
        table.add_remark(reasons)
    return table


def interval_tables(report: Mapping[str, Any]) -> Iterator[ScoreTable]:
    """Return the table of prediction intervals of a training, and that of how many images lie within them.

    The first has half widths of the method that predicts, or the smallest probability of the labels
    in the set of a class; where there are too few groups it has their number. The second is of
    :func:`dinoneck.evaluate`, next to the level that is promised.
    """
    method = predicting_method(report)
    rows = []
    for target, by_method in report.get("prediction_intervals", {}).items():
        if method in by_method:
            interval = by_method[method]
            cells = [_half_width(interval, level) for level in LEVELS]
            rows.append([_heading(target, report), *cells, str(interval["groups"])])
    if rows:
        levels = [f"{100 * level:g} %" for level in LEVELS]
        yield ScoreTable(["intervals for new groups", *levels, "from groups"], rows)

    rows = []
    for target, methods in report["scores"].items():
        for model, scores in methods.items():
            for level, coverage in scores.get("coverage", {}).items():
                name = target if len(methods) == 1 else f"{target}, {model}"
                width = scores["width"][level]
                promised = f"{100 * float(level):g} %"
                rows.append([name, promised, f"{100 * coverage:.1f} %", f"{width:.3g}"])
    if rows:
        yield ScoreTable(["intervals", "promised", "coverage", "mean width"], rows)


def _half_width(interval: Mapping[str, Any], level: float) -> str:
    """The cell of a level in the table of intervals."""
    if level not in interval["levels"]:
        return f"needs {fewest_groups(level)} groups"
    half_width = interval["half_widths"][interval["levels"].index(level)]
    if interval["is_class"]:
        return f"p ≥ {1 - half_width:.2f}"
    return f"± {half_width:.3g}"


def _main(names: Sequence[str], report: Mapping[str, Any]) -> str | None:
    """The target whose interval is in the table: the mean over the targets, or the only target."""
    mean = mean_of(report)
    if mean in names:
        return mean
    targets = [name for name in names if name not in report["auxiliary"]]
    return targets[0] if len(targets) == 1 else None


def _add_value_columns(
    table: ScoreTable,
    name: str,
    methods: Sequence[str],
    report: Mapping[str, Any],
    *,
    with_interval: bool,
) -> None:
    """Add the columns of a target: a cell per method, then the standard deviation and the number of images."""
    scores = report["scores"][name]
    cells = []
    intervals = []
    worst = []
    for method in methods:
        score = scores.get(method)
        cells.append(_r2_cell(score, with_error=name != mean_of(report)))
        r2 = {} if score is None else score["r2"]
        intervals.append(_interval(r2.get("interval")))
        worst.append(_worst(r2 or None))
    first = first_of(scores)
    table.add_column(_heading(name, report), [*cells, _deviation(first), str(first["images"])])
    has_interval = any(cell != _NO_SCORE for cell in intervals)
    if with_interval and has_interval:
        table.add_column("its 95 % interval", [*intervals, "", ""])
    if with_interval and len(first["r2"]["folds"]) > 1:
        table.add_column("its worst fold", [*worst, "", ""])


def _reasons(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Why there are no intervals of these scores; empty where it is not stated.

    Targets and methods are named where others have an interval.

    Args:
        scores: target -> method -> its scores.
    """
    targets_of_reason: dict[str, list[str]] = {}
    methods_of_reason: dict[str, list[str]] = {}
    methods = set()
    for target, scores_of_methods in scores.items():
        for method, score in scores_of_methods.items():
            methods.add(method)
            reason = score.get("no_interval")
            if reason is not None:
                targets_of_reason.setdefault(reason, []).append(target)
                methods_of_reason.setdefault(reason, []).append(method)
    texts = []
    for reason, targets in targets_of_reason.items():
        text = "none"
        if {*targets} != {*scores}:
            text += f" of {some_of(dict.fromkeys(targets), 3)}"
        if {*methods_of_reason[reason]} != methods:
            text += f" for {some_of(dict.fromkeys(methods_of_reason[reason]), 3)}"
        texts.append(f"{text}: {reason}")
    return "; ".join(texts)


def _deviation(score: Mapping[str, Any]) -> str:
    """The standard deviation of the known values, which the mean absolute error compares with."""
    deviation = score.get("sd")
    return "" if deviation is None else f"{deviation:.3g}"


def _heading(name: str, report: Mapping[str, Any]) -> str:
    """The heading of the column of a target, or of the mean over the targets."""
    if name == mean_of(report):
        return OVERALL_WEIGHTED if report.get("target_weights") else OVERALL_MEAN
    if name in report["auxiliary"]:
        return f"{name} (auxiliary)"
    unit = report.get("units", {}).get(name)
    return f"{name} ({unit})" if unit else name


def _r2_cell(score: Mapping[str, Any] | None, *, with_error: bool) -> str:
    """R², and the mean absolute error, which the mean over targets of several units does not have."""
    if score is None:
        return _NO_SCORE
    cell = _number(score["r2"]["pooled"])
    error = score["mae"]["pooled"]
    if with_error and error is not None:
        return f"{cell} ({error:.3g})"
    return cell


def _worst(score: Mapping[str, Any] | None) -> str:
    """The lowest score of a fold."""
    if score is None:
        return _number(None)
    folds = [fold for fold in score["folds"] if fold is not None]
    return _number(min(folds, default=None))


def _difference(score: Mapping[str, Any] | None) -> Sequence[float] | None:
    """The interval of the head's R² minus that of another method."""
    if score is None:
        return None
    ends: Sequence[float] | None = score.get("head_minus", {}).get("r2")
    return ends


def class_tables(
    name: str, methods: Mapping[str, Mapping[str, Any]], held_out: bool = True
) -> Iterator[ScoreTable]:
    """Return the scores over all classes, those of each class, and of a classification the head's confusion matrix.

    Args:
        name: of the target.
        methods: method -> its scores by :mod:`dinoneck.training.scores`.
        held_out: as of :func:`all_tables`.
    """
    head = first_of(methods)
    yield _table_over_classes(name, methods, held_out)

    # of each class
    key = "f1" if "f1" in head else "iou"
    heading = "F1" if "f1" in head else "IoU"
    true_counts = [sum(row) for row in head["confusion_matrix"]]
    total = max(sum(true_counts), 1)
    rows = []
    for label, count in zip(head["labels"], true_counts, strict=True):
        cells = [_number(score[key][label]) for score in methods.values()]
        rows.append([label, f"{count / total:.1%}", *cells])
    yield ScoreTable([f"{name}, {heading} of each class", "share", *methods], rows)

    if len(true_counts) <= MOST_COLUMNS:
        first_method = next(iter(methods))
        heading = f"{name}, true (rows) and predicted by the {first_method}"
        yield matrix_table(heading, head["labels"], head["confusion_matrix"])


def label_tables(
    name: str, methods: Mapping[str, Mapping[str, Any]], held_out: bool = True
) -> Iterator[ScoreTable]:
    """Return the scores over all labels of images, and those of each label.

    Args:
        name: of the target.
        methods: method -> its scores by :func:`dinoneck.training.scores.score_labels`.
        held_out: as of :func:`all_tables`.
    """
    head = first_of(methods)
    yield _table_over_classes(name, methods, held_out)
    has_thresholds = "few_positives" in head
    header = [f"{name}, of each label", "images with it"]
    for method in methods:
        header += [f"AP {method}", f"F1 {method}"]
        if has_thresholds:
            header.append(f"threshold {method}")
    rows = []
    for label in head["by_label"]:
        row = [label, str(head["by_label"][label]["positives"])]
        for scores in methods.values():
            of_label = scores["by_label"][label]
            row += [_number(of_label["AP"]), _number(of_label["F1"])]
            if has_thresholds:
                row.append(_number(of_label["threshold"]))
        rows.append(row)
    table = ScoreTable(header, rows)
    few = head.get("few_positives", ())
    if few:
        table.add_remark(
            f"threshold 0.5, as fewer than {FEWEST_POSITIVES} images have it: {some_of(few, 5)}"
        )
    yield table


def _table_over_classes(
    name: str, methods: Mapping[str, Mapping[str, Any]], held_out: bool
) -> ScoreTable:
    """The scores over all classes or labels, a row per method."""
    head = first_of(methods)
    present = {key: heading for key, heading in SCORES.items() if key in head}
    first_key = next(iter(present))
    has_folds = len(head[first_key]["folds"]) > 1
    table = _table_of_methods(name, methods, held_out)
    for key, heading in present.items():
        scores = [score[key] for score in methods.values()]
        table.add_column(heading, [_number(score["pooled"]) for score in scores])
        _add_spread(table, scores, has_folds=has_folds)
    _add_reasons(table, name, methods)
    return table


def _table_of_methods(
    name: str, methods: Mapping[str, Mapping[str, Any]], held_out: bool
) -> ScoreTable:
    """A table with a row per method and no scores yet."""
    images = counted(first_of(methods)["images"], "image")
    return ScoreTable(
        [f"{name}, {images}{' held out' * held_out}"], [[method] for method in methods]
    )


def _add_spread(table: ScoreTable, scores: Sequence[Mapping[str, Any]], *, has_folds: bool) -> None:
    """Add the intervals of scores, one per row, and of several folds the worst."""
    table.add_column("95 % interval", [_interval(score["interval"]) for score in scores])
    if has_folds:
        table.add_column("worst fold", [_worst(score) for score in scores])


def _add_reasons(table: ScoreTable, name: str, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Add why scores have no interval, where that is stated."""
    reasons = _reasons({name: methods})
    if reasons:
        table.add_remark(f"intervals: {reasons}")


def angle_table(
    name: str, methods: Mapping[str, Mapping[str, Any]], held_out: bool = True
) -> ScoreTable:
    """Return the angles between predicted and true surface normals, and the shares of pixels with small ones.

    The interval is that of the score that methods are compared by; with several folds there is that
    of the worst fold too.

    Args:
        name: of the target.
        methods: method -> its scores by :func:`dinoneck.training.scores.score_angles`.
        held_out: as of :func:`all_tables`.
    """
    head = first_of(methods)
    has_folds = len(head[MAIN_ANGLE]["folds"]) > 1
    table = _table_of_methods(name, methods, held_out)
    for key, heading in ANGLES.items():
        scores = [score[key] for score in methods.values()]
        table.add_column(heading, [_angle(key, score["pooled"]) for score in scores])
        if key == MAIN_ANGLE:
            _add_spread(table, scores, has_folds=has_folds)
    _add_reasons(table, name, methods)
    return table


def _angle(key: str, score: float | None) -> str:
    """A score of surface normals: degrees with one digit, shares with three."""
    if score is not None and key in _DEGREES:
        return f"{score:.1f}"
    return _number(score)


def box_tables(
    boxes: Mapping[str, Any],
    what: str = "boxes",
    held_out: bool = True,
    *,
    chooses_thresholds: bool = False,
) -> list[ScoreTable]:
    """Return the scores of boxes, masks or segments, over all classes and of each class.

    Args:
        boxes: name of the model -> its scores.
        what: is scored.
        held_out: as of :func:`all_tables`.
        chooses_thresholds: whether a training takes the thresholds of its classes from these scores:
            classes without one are named.
    """
    if "AP" in first_of(boxes):
        class_keys = ["AP", "AP50"]
        keys = [*class_keys, "AP75", "AR100"]
    else:
        class_keys = ["PQ", "SQ", "RQ"]
        keys = [*class_keys, "PQ_things", "PQ_stuff"]
    by_model = ScoreTable([f"{'held-out ' * held_out}{what}"], [[model] for model in boxes])
    for key in keys:
        scores_of_key = [_number(scores[key]) for scores in boxes.values()]
        by_model.add_column(key.replace("_", " "), scores_of_key)
    _, *others = boxes  # intervals are those of differences from the first model
    _add_reasons(by_model, what, {model: boxes[model] for model in others})
    table_by_class = _table_by_class(boxes, class_keys)
    if chooses_thresholds:
        table_by_class = _with_thresholds_note(table_by_class, first_of(boxes))
    return [by_model, table_by_class]


def _with_thresholds_note(table: ScoreTable, scores: Mapping[str, Any]) -> ScoreTable:
    """The table with a note that also names the classes without a threshold.

    Args:
        table: of the classes.
        scores: of held-out objects. Reports of 0.3, and of segments, have no thresholds.
    """
    thresholds = scores.get("thresholds", {})
    few = [name for name, threshold in thresholds.items() if threshold is None]
    if not few:
        return table
    smallest = "the default smallest score"
    if scores["min_score"] is not None:
        smallest = f"the smallest score of all classes ({scores['min_score']:.3f})"
    line = (
        f"Classes with fewer than {FEWEST_POSITIVES} held-out objects, or of which none is found, keep "
        f"{smallest}: {some_of(few, _SHOWN)}."
    )
    return table._replace(note=f"{table.note} {line}".strip())


def _table_by_class(boxes: Mapping[str, Any], keys: Sequence[str]) -> ScoreTable:
    """The scores of each class by every model that has them, with the names of the models if there are several.

    Classes without any score, of which the truth has no object, are named in the note.
    """
    classes_of_model = {}
    for model, scores in boxes.items():
        if "per_class" in scores:
            classes_of_model[model] = scores["per_class"]
    rows: dict[str, list[str]] = {}
    for classes in classes_of_model.values():
        for name in classes:
            rows.setdefault(name, [name])
    header = ["class"]
    for key in keys:
        for model, classes in classes_of_model.items():
            header.append(key if len(classes_of_model) == 1 else f"{key} {model}")
            for name, row in rows.items():
                row.append(_number(classes[name][key] if name in classes else None))
    without_score = [name for name, row in rows.items() if set(row[1:]) == {_NO_SCORE}]
    scored_rows = [row for name, row in rows.items() if name not in without_score]
    note = ""
    if without_score:
        some_names = some_of(without_score, _SHOWN)
        note = f"Classes without an object in the truth are not scored: {some_names}."
    return ScoreTable(header, scored_rows, note=note)


def first_of(methods: Mapping[str, Any]) -> Any:
    """Return the scores of the first method, with which the others are compared."""
    return next(iter(methods.values()))


def matrix_table(name: str, labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> ScoreTable:
    """Return a confusion matrix as a table, a row per true class: in percent of the row, and as counts."""
    rows = []
    shares = []
    for label, counts in zip(labels, matrix, strict=True):
        total = max(sum(counts), 1)
        shares_of_row = [count / total for count in counts]
        cells = [label]
        for count, share in zip(counts, shares_of_row, strict=True):
            cells.append(f"{share:.1%} ({count})")
        rows.append(cells)
        shares.append(shares_of_row)
    return ScoreTable([f"{name}: % of row (count)", *labels], rows, shares)


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    if ends is None:
        return _NO_SCORE
    low, high = ends
    return f"{low:{sign}.2f} ... {high:{sign}.2f}"


def _number(score: float | None) -> str:
    return _NO_SCORE if score is None else f"{score:.3f}"
