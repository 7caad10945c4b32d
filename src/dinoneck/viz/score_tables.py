"""The scores of a training report as tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dinoneck.errors import DataError, counted
from dinoneck.tasks import MEAN_KEY, OVERALL, OVERALL_MEAN, OVERALL_WEIGHTED

MOST_COLUMNS = 12  # of a confusion matrix
SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
}


class ScoreTable(NamedTuple):
    """A table as text.

    Attributes:
        header: what the table shows, then the headings of the other columns.
        rows: of one cell per column, the first a name.
        is_matrix: whether it is a confusion matrix, a row of counts per true class.
    """

    header: list[str]
    rows: list[list[str]]
    is_matrix: bool = False


def all_tables(report: Mapping[str, Any], held_out: bool = True) -> list[ScoreTable]:
    """Return the tables of a ``report.json`` or of :func:`dinoneck.evaluate`: of values, classes, masks and boxes.

    Args:
        report: as they return it.
        held_out: whether the images are known to be held out, which the headings then state.

    Raises:
        DataError: if it is not such a report.
    """
    try:
        found = value_tables(report, held_out) if "scores" in report else []
        for name, methods in report.get("scores", {}).items():
            found += (
                class_tables(name, methods, held_out)
                if "confusion_matrix" in first_of(methods)
                else []
            )
        if "best" in report:
            best = report["best"]
            found += box_tables(
                {f"best epoch ({best['epoch']})": best, "before training": report["untrained"]}
            )
        for key in ("boxes", "masks", "segments"):
            found += box_tables(report[key], key, held_out) if key in report else []
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"these are not the scores of a training run: {error!r}; expected its report.json"
        ) from error
    return found


def mean_of(report: Mapping[str, Any]) -> str | None:
    """Return what the scores of a report call the mean over the targets; None if they have none."""
    name: str = report.get(MEAN_KEY, OVERALL)
    return name if name in report.get("scores", {}) else None


def value_tables(report: Mapping[str, Any], held_out: bool = True) -> list[ScoreTable]:
    """Return the table of R² with the mean absolute errors, and that of the differences where intervals are known.

    A row is a method, a column a target of numbers; auxiliary targets come last. A report without
    numbers has none.
    """
    scores, auxiliary = report["scores"], report["auxiliary"]
    mean = mean_of(report)
    names = sorted(
        (name for name, methods in scores.items() if "r2" in first_of(methods)),
        key=auxiliary.__contains__,
    )
    if not names:
        return []
    methods = list(dict.fromkeys(method for name in names for method in scores[name]))
    rows = [
        [
            method,
            *(_r2_cell(scores[name].get(method), with_error=name != mean) for name in names),
        ]
        for method in methods
    ]
    if mean is not None:
        for row, method in zip(rows, methods, strict=True):
            row.append(_worst(scores[mean].get(method, {}).get("r2")))
    mean_heading = OVERALL_WEIGHTED if report.get("target_weights") else OVERALL_MEAN
    columns = []
    for name in names:
        if name == mean:
            columns.append(mean_heading)
        elif name in auxiliary:
            columns.append(f"{name} (auxiliary)")
        else:
            unit = report.get("units", {}).get(name)
            columns.append(f"{name} ({unit})" if unit else name)
    header = [f"{'held-out ' * held_out}R² (MAE)", *columns]
    if mean is not None:
        header.append("worst fold")
    rows.append(["images", *(str(first_of(scores[name])["images"]) for name in names)])
    found = [ScoreTable(header, [[*row, *[""] * (len(header) - len(row))] for row in rows])]
    minus = [
        [
            f"{methods[0]} minus {method}",
            *(_interval(_minus(scores[name].get(method)), "+") for name in names),
        ]
        for method in methods
        if any(_minus(scores[name].get(method)) for name in names)
    ]
    return [*found, ScoreTable(["R², 95 % interval", *columns], minus)] if minus else found


def _r2_cell(score: Mapping[str, Any] | None, *, with_error: bool) -> str:
    """R², and the mean absolute error, which the mean over targets of several units has not."""
    if score is None:
        return "-"
    cell = _number(score["r2"]["pooled"])
    error = score["mae"]["pooled"]
    return f"{cell} ({error:.3g})" if with_error and error is not None else cell


def _worst(score: Mapping[str, Any] | None) -> str:
    folds = [] if score is None else [fold for fold in score["folds"] if fold is not None]
    return _number(min(folds, default=None))


def _minus(score: Mapping[str, Any] | None) -> Sequence[float] | None:
    """The interval of the head's R² minus this one."""
    ends: Sequence[float] | None = (score or {}).get("head_minus", {}).get("r2")
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
    head, order = first_of(methods), [*methods]
    scores = {key: heading for key, heading in SCORES.items() if key in head}
    columns = [
        cell for heading in scores.values() for cell in (heading, "95 % interval", "worst fold")
    ]
    rows = [
        [method, *(cell for key in scores for cell in _cells(methods[method][key]))]
        for method in order
    ]
    yield ScoreTable(
        [f"{name}, {counted(head['images'], 'image')}{' held out' * held_out}", *columns], rows
    )
    each = "f1" if "f1" in head else "iou"
    true = [sum(row) for row in head["confusion_matrix"]]
    by_class = [
        [
            label,
            f"{count / max(sum(true), 1):.1%}",
            *(_number(methods[method][each][label]) for method in order),
        ]
        for label, count in zip(head["labels"], true, strict=True)
    ]
    yield ScoreTable(
        [f"{name}, {'F1' if each == 'f1' else 'IoU'} of each class", "share", *order], by_class
    )
    if len(true) <= MOST_COLUMNS:
        name = f"{name}, true (rows) and predicted by the {order[0]}"
        yield matrix_table(name, head["labels"], head["confusion_matrix"])


def box_tables(
    boxes: Mapping[str, Any], what: str = "boxes", held_out: bool = True
) -> list[ScoreTable]:
    """Return the scores of boxes, masks or segments by the name of the model, and by the first one those of a class."""
    of_each = ["AP", "AP50"] if "AP" in first_of(boxes) else ["PQ", "SQ", "RQ"]
    keys = of_each + (["AP75", "AR100"] if "AP" in of_each else ["PQ_things", "PQ_stuff"])
    every = [[name, *(_number(own[key]) for key in keys)] for name, own in boxes.items()]
    rows = [
        [name, *(_number(own[key]) for key in of_each)]
        for name, own in first_of(boxes)["per_class"].items()
    ]
    header = [key.replace("_", " ") for key in keys]
    return [
        ScoreTable([f"{'held-out ' * held_out}{what}", *header], every),
        ScoreTable(["class", *of_each], rows),
    ]


def first_of(methods: Mapping[str, Any]) -> Any:
    """Return the scores of the first method, with which the others are compared."""
    return next(iter(methods.values()))


def matrix_table(name: str, labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> ScoreTable:
    """Return a confusion matrix as a table, a row per true class."""
    rows = [[label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)]
    return ScoreTable([name, *labels], rows, is_matrix=True)


def _cells(score: Mapping[str, Any]) -> list[str]:
    return [_number(score["pooled"]), _interval(score["interval"]), _worst(score)]


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "-" if ends is None else f"{ends[0]:{sign}.2f} ... {ends[1]:{sign}.2f}"


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
