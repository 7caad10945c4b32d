"""The scores of a training report as tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dinoneck.errors import DataError, counted

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
    """

    header: list[str]
    rows: list[list[str]]


class ConfusionMatrix(ScoreTable):
    """A table of counts, a row per true class."""


def all_tables(report: Mapping[str, Any]) -> list[ScoreTable]:
    """Return the tables of a training run's ``report.json``: of its values, classes, masks and boxes, as it has them.

    Raises:
        DataError: if it is not such a report.
    """
    try:
        found = value_tables(report) if any(report.get("mae", {}).values()) else []
        for name, methods in (*report.get("classes", {}).items(), *report.get("masks", {}).items()):
            found += class_tables(name, methods)
        found += box_tables(report["best"], report["untrained"]) if "best" in report else []
    except (AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"these are not the scores of a training run: {error!r}; expected its report.json") from error
    return found


def value_tables(report: Mapping[str, Any]) -> list[ScoreTable]:
    """Return the table of R², and that of the differences where a 95 % interval is known."""
    minus = report.get("head_minus") or {}
    found = [value_table(report["scores"], report["mae"], report.get("target_sd"), report.get("scored_images"))]
    if any(ends is not None for row in minus.values() for ends in row.values()):
        columns = list(next(iter(minus.values())))
        rows = [[f"head minus {name}", *(_interval(row[c], "+") for c in columns)] for name, row in minus.items()]
        found.append(ScoreTable(["R², 95 % interval", *columns], rows))
    return found


def value_table(
    by_method: Mapping[str, Mapping[str, float | None]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    spread: Mapping[str, Mapping[str, Any]] | None = None,
    images: Mapping[str, int] | None = None,
) -> ScoreTable:
    """Return the R² of several methods, one row per method.

    With ``errors`` (method -> target -> MAE) each R² is followed by the MAE, and with ``spread`` (target -> standard
    deviation over ``all`` rows and in the ``folds``) a last row shows what the MAE compares with. With ``images``
    (target -> count) a row states how many images the scores rest on.
    """
    columns = list(next(iter(by_method.values())))
    rows = []
    for method, row in by_method.items():
        mae = (errors or {}).get(method, {})
        rows.append([method, *(_number(row[c]) + (f" ({mae[c]:.3g})" if c in mae else "") for c in columns)])
    if spread:
        folds = {c: [x for x in own["folds"] if x is not None] for c, own in spread.items()}
        ranges = {c: f"{min(own):.3g} ... {max(own):.3g}" for c, own in folds.items()}
        rows.append(["target sd", *(f"{spread[c]['all']:.3g}" if c in spread else "" for c in columns)])
        rows.append(["  in the folds", *(ranges.get(c, "") for c in columns)])
    if images:
        rows.append(["images", *(str(images.get(c, "")) for c in columns)])
    return ScoreTable(["held-out R² (MAE)" if errors else "held-out R²", *columns], rows)


def class_tables(name: str, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[ScoreTable]:
    """Return the scores over all classes, those of each class, and of a classification the head's confusion matrix.

    Args:
        name: of the target.
        methods: method -> its scores by :mod:`dinoneck.training.scores`; ``"head"`` is one of them.
    """
    head, order = methods["head"], sorted(methods, key=lambda method: method != "head")
    scores = {key: heading for key, heading in SCORES.items() if key in head}
    columns = [cell for heading in scores.values() for cell in (heading, "95 % interval", "worst fold")]
    rows = [[method, *(cell for key in scores for cell in _cells(methods[method][key]))] for method in order]
    yield ScoreTable([f"{name}, {counted(head['images'], 'image')} held out", *columns], rows)
    each = "f1" if "f1" in head else "iou"
    true = [sum(row) for row in head["confusion_matrix"]]
    by_class = [
        [label, f"{count / max(sum(true), 1):.1%}", *(_number(methods[method][each][label]) for method in order)]
        for label, count in zip(head["labels"], true, strict=True)
    ]
    yield ScoreTable([f"{name}, {'F1' if each == 'f1' else 'IoU'} of each class", "share", *order], by_class)
    if len(true) <= MOST_COLUMNS:
        name = f"{name}, true (rows) and predicted by the head"
        yield matrix_table(name, head["labels"], head["confusion_matrix"])


def box_tables(best: Mapping[str, Any], untrained: Mapping[str, Any]) -> list[ScoreTable]:
    """Return the scores of a detector's best epoch and of its first weights, and those of each class."""
    keys = ["AP", "AP50", "AP75", "AR100"]
    runs = ((f"best epoch ({best['epoch']})", best), ("before training", untrained))
    every = ScoreTable(["held-out boxes", *keys], [[name, *(_number(own[key]) for key in keys)] for name, own in runs])
    rows = [[name, _number(own["AP"]), _number(own["AP50"])] for name, own in best["per_class"].items()]
    return [every, ScoreTable(["class", "AP", "AP50"], rows)]


def matrix_table(name: str, labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> ScoreTable:
    """Return a confusion matrix as a table, a row per true class."""
    rows = [[label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)]
    return ConfusionMatrix([name, *labels], rows)


def _cells(score: Mapping[str, Any]) -> list[str]:
    worst = min((fold for fold in score["folds"] if fold is not None), default=None)
    return [_number(score["pooled"]), _interval(score["interval"]), _number(worst)]


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "-" if ends is None else f"{ends[0]:{sign}.2f} ... {ends[1]:{sign}.2f}"


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
