"""Plain text for the terminal: tables, and lines that quote files of strangers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from dinoneck.errors import counted, printable

_SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
}
_MOST_COLUMNS = 12  # of a confusion matrix
_ENOUGH_IMAGES, _ENOUGH_GROUPS = 50, 10  # to compare methods


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line that a file cannot end, colour or wipe away: signs that steer a terminal are spelled out."""
    print(printable(text), file=stream)


def told_bytes(size: int) -> str:
    """Return the size of a file in the unit that shows it: 27 kB, 1.4 MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, the first column to the left."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def scores(
    by_method: Mapping[str, Mapping[str, float | None]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    spread: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the R² of several methods as a table, one row per method.

    With ``errors`` (method -> target -> MAE) each R² is followed by the MAE, and with ``spread`` (target -> standard
    deviation over ``all`` rows and in the ``folds``) a last row shows what the MAE compares with.
    """
    columns = list(next(iter(by_method.values())))
    rows = []
    for method, row in by_method.items():
        mae = (errors or {}).get(method, {})
        rows.append([method, *(_number(row[c]) + (f" ({mae[c]:.3g})" if c in mae else "") for c in columns)])
    if spread:
        ranges = {c: f"{min(own['folds']):.3g} ... {max(own['folds']):.3g}" for c, own in spread.items()}
        rows.append(["target sd", *(f"{spread[c]['all']:.3g}" if c in spread else "" for c in columns)])
        rows.append(["  in the folds", *(ranges.get(c, "") for c in columns)])
    return table(["held-out R² (MAE)" if errors else "held-out R²", *columns], rows)


def differences(by_baseline: Mapping[str, Mapping[str, Sequence[float] | None]]) -> str:
    """Return the 95 % intervals of the head's R² minus that of each baseline as a table."""
    columns = list(next(iter(by_baseline.values())))
    rows = [[f"head - {name}", *(_interval(row[c]) for c in columns)] for name, row in by_baseline.items()]
    return table(["R², 95 % interval", *columns], rows)


def class_lines(report: Mapping[str, Any]) -> list[str]:
    """Return accuracy, F1 and confusion matrix of classification targets, and how the head compares, in words.

    Args:
        report: of a training run; ``classes`` in it holds target -> method -> the scores of
            :func:`dinoneck.training.scores.class_scores`, where ``"head"`` is one of the methods.
    """
    lines = []
    for target, methods in report.get("classes", {}).items():
        head, name = methods["head"], printable(target)
        images = sum(map(sum, head["confusion_matrix"]))
        lines += [_means(name, methods), _each_class(name, "F1", methods), _confusions(name, head)]
        lines += _score_verdicts(name, methods, too_few(images, report["groups_predicted"]))
    return lines


def mask_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the mean IoU, IoU per class and pixel accuracy of segmentation tasks, and how the head compares, in words.

    Args:
        report: of a training run; ``masks`` in it holds task -> method -> the scores of
            :func:`dinoneck.training.scores.mask_scores`, where ``"head"`` is one of the methods.
    """
    lines = []
    for task, methods in report.get("masks", {}).items():
        name = printable(task)
        lines += [_means(name, methods), _each_class(name, "IoU", methods)]
        lines += _score_verdicts(name, methods, too_few(report["predicted"], report["groups_predicted"]))
    return lines


def too_few(images: int, groups: int) -> str | None:
    """Return a sentence where images or groups are too few to compare methods, else None."""
    if images < _ENOUGH_IMAGES:
        return (
            f"{counted(images, 'image')}: too few to tell whether the head or a baseline is better. About "
            f"{_ENOUGH_IMAGES} are needed."
        )
    if groups < _ENOUGH_GROUPS:
        return (
            f"{counted(groups, 'group')}: too few groups to tell whether the head or a baseline is better. About "
            f"{_ENOUGH_GROUPS} are needed."
        )
    return None


def compared(name: str, intervals: Mapping[str, Sequence[float] | None]) -> str:
    """Return in words which baselines the head is better than: where the interval of the difference excludes 0.

    Args:
        name: what was scored.
        intervals: baseline -> 95 % interval of the head's score minus its own.
    """
    ahead = [method for method, ends in intervals.items() if ends is not None and ends[0] > 0]
    behind = [method for method, ends in intervals.items() if ends is not None and ends[1] < 0]
    even = [method for method in intervals if method not in (*ahead, *behind)]
    parts = [f"the head is better than {', '.join(ahead)}"] if ahead else []
    parts += [f"{', '.join(behind)} {'is' if len(behind) == 1 else 'are'} ahead of the head"] if behind else []
    parts += [f"the head shows no clear difference from {', '.join(even)}"] if even else []
    return f"{name}: {'; '.join(parts)}."


def _means(name: str, methods: Mapping[str, Any]) -> str:
    """The scores over all classes: pooled, their interval and the worst fold."""
    scores = {key: heading for key, heading in _SCORES.items() if key in methods["head"]}
    rows = []
    for method in _head_first(methods):
        cells = []
        for score in (methods[method][key] for key in scores):
            ends = score["interval"]
            worst = min((fold for fold in score["folds"] if fold is not None), default=None)
            cells += [
                _number(score["pooled"]),
                "-" if ends is None else f"{ends[0]:.2f} ... {ends[1]:.2f}",
                _number(worst),
            ]
        rows.append([method, *cells])
    header = [cell for heading in scores.values() for cell in (heading, "95 % interval", "worst fold")]
    return table([f"{name}, held out", *header], rows)


def _each_class(name: str, score: str, methods: Mapping[str, Any]) -> str:
    """The score of each class by each method, and how much of the truth it is."""
    head, order = methods["head"], _head_first(methods)
    true = [sum(row) for row in head["confusion_matrix"]]
    rows = [
        [printable(label), f"{count / max(sum(true), 1):.1%}"]
        + [_number(methods[method][score.lower()][label]) for method in order]
        for label, count in zip(head["labels"], true, strict=True)
    ]
    return table([f"{name}, {score}", "share", *order], rows)


def _confusions(name: str, head: Mapping[str, Any]) -> str:
    """The head's confusion matrix, if it is not too wide."""
    labels = [printable(label) for label in head["labels"]]
    if len(labels) > _MOST_COLUMNS:
        return f"{name}: the confusion matrix of {len(labels)} classes is in report.json."
    rows = [[label, *map(str, row)] for label, row in zip(labels, head["confusion_matrix"], strict=True)]
    return table([f"{name}, true (rows) and predicted by the head", *labels], rows)


def _score_verdicts(name: str, methods: Mapping[str, Any], too_few: str | None) -> list[str]:
    head = methods["head"]
    scores = {key: heading for key, heading in _SCORES.items() if key in head}
    right = "accuracy" if "accuracy" in head else "pixel_accuracy"
    if head[right]["pooled"] is None:
        return [f"{name}: nothing was predicted whose class is known; there is no {scores[right]}."]
    others = [method for method in _head_first(methods) if method != "head"]
    lines = [
        compared(f"{name}, {heading}", {method: methods[method]["head_minus"][key] for method in others})
        for key, heading in scores.items()
    ]
    if not others or too_few is not None:
        lines = [f"{name}, {too_few}"] if others else []
    true = [sum(row) for row in head["confusion_matrix"]]
    largest, label = max(true) / sum(true), printable(head["labels"][true.index(max(true))])
    if head[right]["pooled"] <= largest:
        lines.append(
            f"{name}: the {scores[right]} of {head[right]['pooled']:.3f} is not above {largest:.3f}, the share of "
            f"{label}, so always predicting {label} is as good as the head."
        )
    return lines


def _head_first(methods: Mapping[str, Any]) -> list[str]:
    return sorted(methods, key=lambda method: method != "head")


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:+.2f} ... {ends[1]:+.2f}"


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def tell_pooled(heads: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Print which numbers are not the means of their cells, as in most heads written by version 0.1."""
    found = {}
    for tasks in heads:
        labels = {label: own["name"] for own in tasks if own["kind"] == "dense" for label in own.get("labels") or ()}
        for task in tasks:
            pooled = task["kind"] in ("regression", "density") and task.get("from_cells") is None
            if pooled and task["name"] in labels and not task.get("unit"):
                found[task["name"]] = labels[task["name"]]
    if found:
        say(
            f"{', '.join(found)}: the heads predict these numbers by a pooled readout, not as the mean over the cells "
            f"of {', '.join(sorted(set(found.values())))}, so the two may differ; for the mean take that of the maps "
            "(--maps), or train heads whose tasks have from_cells"
        )
