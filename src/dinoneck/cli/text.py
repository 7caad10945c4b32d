"""Plain text for the terminal: tables, and lines that quote files of strangers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from dinoneck.errors import counted, printable
from dinoneck.viz.score_tables import SCORES, class_tables, head_first, value_table

_ENOUGH_IMAGES, _ENOUGH_GROUPS = 50, 10  # to compare methods


def show(text: str, stream: TextIO | None = None) -> None:
    """Print one line that a file cannot end, colour or wipe away: signs that steer a terminal are spelled out."""
    print(printable(text), file=stream)


def file_size(size: int) -> str:
    """Return the size of a file in the unit that shows it: 27 kB, 1.4 MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, the first column to the left."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
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
    """Return the R² of several methods as a table; see :func:`dinoneck.viz.score_tables.value_table`."""
    return table(*value_table(by_method, errors, spread))


def class_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the scores of classification and segmentation tasks, and how the head compares, in words.

    Args:
        report: of a training run; ``classes`` and ``masks`` in it hold target -> method -> the scores of
            :mod:`dinoneck.training.scores`, where ``"head"`` is one of the methods.
    """
    lines = []
    for target, methods in {**report.get("classes", {}), **report.get("masks", {})}.items():
        head = methods["head"]
        images = sum(map(sum, head["confusion_matrix"])) if "accuracy" in head else report["predicted"]
        lines += [table(*each) for each in class_tables(target, methods)]
        lines += _verdicts(printable(target), methods, too_few(images, report["groups_predicted"]))
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


def _verdicts(name: str, methods: Mapping[str, Any], few: str | None) -> list[str]:
    head = methods["head"]
    scores = {key: heading for key, heading in SCORES.items() if key in head}
    right = "accuracy" if "accuracy" in head else "pixel_accuracy"
    if head[right]["pooled"] is None:
        return [f"{name}: nothing was predicted whose class is known; there is no {scores[right]}."]
    others = [method for method in head_first(methods) if method != "head"]
    lines = [
        compared(f"{name}, {heading}", {method: methods[method]["head_minus"][key] for method in others})
        for key, heading in scores.items()
    ]
    if not others or few is not None:
        lines = [f"{name}, {few}"] if others else []
    true = [sum(row) for row in head["confusion_matrix"]]
    largest, label = max(true) / sum(true), printable(head["labels"][true.index(max(true))])
    if head[right]["pooled"] <= largest:
        lines.append(
            f"{name}: the {scores[right]} of {head[right]['pooled']:.3f} is not above {largest:.3f}, the share of "
            f"{label}, so always predicting {label} is as good as the head."
        )
    return lines


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
        show(
            f"{', '.join(found)}: the heads predict these numbers by a pooled readout, not as the mean over the cells "
            f"of {', '.join(sorted(set(found.values())))}, so the two may differ; for the mean take that of the maps "
            "(--maps), or train heads whose tasks have from_cells"
        )
