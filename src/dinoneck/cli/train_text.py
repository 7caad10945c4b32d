"""What ``dinoneck train`` prints: how images are prepared, advice, scores and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dinoneck.cli.text import table
from dinoneck.errors import counted, printable
from dinoneck.viz.score_tables import SCORES, class_tables, value_tables

if TYPE_CHECKING:
    from dinoneck.data.decoding import ImageInput
    from dinoneck.data.preprocessing import Preprocessing
    from dinoneck.grid import GridSize
    from dinoneck.training.run import Run

_BENT = 1.02
_MANY_PATCHES = 4096
_ENOUGH_ALONG = 40
_ENOUGH_IMAGES, _ENOUGH_GROUPS = 50, 10  # to compare methods


def describe(run: Run) -> list[str]:
    """Return what a run trains on, what the head will read, and what a user should know before the work."""
    from dinoneck.data.cells import GROUP, IMAGES
    from dinoneck.training.table import groups_of, target_columns

    config, table, source = run.config, run.table, run.source
    targets, auxiliary = target_columns(config, table)
    masks = [] if run.problem.maps is None else [run.problem.maps.name]
    groups = len(set(groups_of(table) or table.index))
    lines = [f"{len(table)} images, {groups} groups, targets {', '.join([*targets, *masks])}"]
    lines += [f"Auxiliary: {', '.join(auxiliary)}."] if auxiliary else []
    if source.backbone is None:
        grid = source.first.grid
        lines.append(
            f"Tokens come from {config.data.store}: {source.record.get('name')}, {grid.rows}x{grid.cols} patches."
        )
    else:
        first = table[IMAGES].iloc[0]
        lines += describe_size(source.preprocess, first) + describe_many(source.preprocess, source.first.grid)
    if GROUP not in table and config.folds.column is None and len(run.folds) > 1:
        lines.append(
            "No --group: images of one place or day may fall into several folds, which makes every score look better."
        )
    numbers = [own.truth for own in run.problem.scored.values() if own.kind == "value" and not own.auxiliary]
    if numbers and all(task.minimum is None for task in run.problem.tasks) and not any((x < 0).any() for x in numbers):
        lines.append("All targets are 0 or more; --minimum 0 keeps predictions so.")
    if config.optim.patience is not None:
        lines.append("--patience: the images that score a fold also choose its epoch, which flatters the head.")
    return lines


def comparison(report: Mapping[str, Any]) -> list[str]:
    """Return the scores of the head and the baselines as tables, and in words where the head is better or worse.

    Args:
        report: of :func:`dinoneck.training.train`.
    """
    scores, lines = report["scores"], [table(*each) for each in value_tables(report)]
    if "overall" in scores:
        is_weighted = len(report["target_weights"]) > 0
        mean = "weighted R² over all" if is_weighted else "mean over"
        lines.append(f"overall: {mean} targets; worst fold: of overall.")
    for name, methods in scores.items():
        if name not in report["auxiliary"]:
            lines += _verdicts(printable(name), methods, report["groups_predicted"])
        if "confusion_matrix" in methods["head"]:
            lines += [table(*each) for each in class_tables(name, methods)]
    return [*lines, report["verdict"]]


def describe_size(preprocess: Preprocessing, image: ImageInput) -> list[str]:
    """Return what an image is prepared to, and what is lost on the way."""
    from dinoneck.data.decoding import read_image_size

    before = read_image_size(image)
    prepared = preprocess.prepare(image)
    after, grid = prepared.images.shape[-2:], prepared.grid
    lines = [
        f"The first image, {before[0]}x{before[1]} px (height x width), becomes {after[0]}x{after[1]} px, "
        f"{grid.rows}x{grid.cols} patches."
    ]
    if tuple(after) != (preprocess.size or before):
        lines.append(
            f"The patch of {preprocess.patch_size} px does not divide it: --resize {preprocess.resize} applies."
        )
    if preprocess.size is not None:
        bent = (after[0] / before[0]) / (after[1] / before[1])
        if preprocess.resize == "stretch" and not 1 / _BENT < bent < _BENT:
            lines.append(f"--resize stretch changes its proportions by {abs(bent - 1):.0%}; crop and pad would not.")
    return lines


def describe_many(preprocess: Preprocessing, grid: GridSize) -> list[str]:
    """Return a hint where images in their own size have so many patches that a backbone takes very long."""
    from dinoneck.grid import patch_pair

    if preprocess.size is not None or grid.count <= _MANY_PATCHES:
        return []
    scale = _ENOUGH_ALONG / max(grid)
    rows, cols = (max(1, round(side * scale)) for side in grid)
    down, across = patch_pair(preprocess.patch_size)
    return [
        f"That is {grid.count} patches an image: slow, and much memory. --size {rows * down}x{cols * across} brings "
        f"images to {rows * cols}."
    ]


def _verdicts(name: str, methods: Mapping[str, Any], groups: int) -> list[str]:
    """Which baselines the head of a target is better than, and whether it is of any use."""
    head = methods["head"]
    metrics = [metric for metric in ("r2", *SCORES) if metric in head]
    if head[metrics[0]]["pooled"] is None:
        return [f"{name}: nothing that varies was predicted, so it has no {SCORES.get(metrics[0], 'R²')}."]
    others = {method: own for method, own in methods.items() if method != "head"}
    by_name = {
        name if metric == "r2" else f"{name}, {SCORES[metric]}": {
            method: own["head_minus"][metric] for method, own in others.items()
        }
        for metric in metrics
    }
    lines = _compared(by_name, head["images"], groups, f"{name}, ")
    if metrics[0] == "r2" and head["r2"]["pooled"] <= 0:
        lines.append(f"{name}: R² is not above 0, so the head does not beat the mean of all images.")
    if "confusion_matrix" in head:
        right = "accuracy" if "accuracy" in head else "pixel_accuracy"
        true = [sum(row) for row in head["confusion_matrix"]]
        largest, label = max(true) / sum(true), printable(head["labels"][true.index(max(true))])
        if head[right]["pooled"] <= largest:
            lines.append(
                f"{name}: the {SCORES[right]} of {head[right]['pooled']:.3f} is not above {largest:.3f}, the share of "
                f"{label}, so always predicting {label} is as good as the head."
            )
    return lines


def _compared(
    by_name: Mapping[str, Mapping[str, Sequence[float] | None]], images: int, groups: int, of: str = ""
) -> list[str]:
    """State which baselines the head is better than: where the interval of the difference excludes 0.

    Args:
        by_name: what was scored -> baseline -> 95 % interval of the head's score minus its own.
        images: how many were predicted.
        groups: of how many groups.
        of: stands before the numbers where there are too few.
    """
    by_name = {name: intervals for name, intervals in by_name.items() if intervals}
    for number, what, enough in ((images, "image", _ENOUGH_IMAGES), (groups, "group", _ENOUGH_GROUPS)):
        if number < enough:
            few = f"{of}{counted(number, what)}: too few to tell whether the head or a baseline is better"
            return [f"{few}. About {enough} {what}s are needed."]
    lines = []
    for name, intervals in by_name.items():
        ahead = [method for method, ends in intervals.items() if ends is not None and ends[0] > 0]
        behind = [method for method, ends in intervals.items() if ends is not None and ends[1] < 0]
        even = [method for method in intervals if method not in (*ahead, *behind)]
        parts = [f"the head is better than {', '.join(ahead)}"] if ahead else []
        parts += [f"{', '.join(behind)} {'is' if len(behind) == 1 else 'are'} ahead of the head"] if behind else []
        parts += [f"the head shows no clear difference from {', '.join(even)}"] if even else []
        lines.append(f"{name}: {'; '.join(parts)}.")
    return lines
