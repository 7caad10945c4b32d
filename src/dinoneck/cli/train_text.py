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
    from dinoneck.training.config import TrainConfig
    from dinoneck.training.inputs import Inputs
    from dinoneck.training.table import Table

_BENT = 1.02
_MANY_PATCHES = 4096
_ENOUGH_ALONG = 40
_ENOUGH_IMAGES, _ENOUGH_GROUPS = 50, 10  # to compare methods


def describe_tokens(config: TrainConfig, inputs: Inputs) -> list[str]:
    """Return what the head will read."""
    if inputs.source is None and inputs.preprocess is not None:
        first = inputs.table.images[0]
        grid = inputs.preprocess.prepare(first).grid
        return describe_size(inputs.preprocess, first) + describe_many(inputs.preprocess, grid)
    if inputs.source is None or inputs.record is None:
        return []
    grid = inputs.source.batch(inputs.source.ids[:1]).grid
    views = getattr(inputs.source, "views", None)
    return [
        f"Tokens come from {config.data.store}: {inputs.record.get('name')}, {grid.rows}x{grid.cols} patches, "
        f"{1 if views is None else len(views)} views."
    ]


def advice(config: TrainConfig, data: Table) -> list[str]:
    """Return what a user should know before the work."""
    lines = []
    if data.groups is None and config.folds.column is None:
        lines.append(
            "No --group: images of one place or day may fall into several folds, which makes every score look better."
        )
    numbers = [values for values in data.targets.values() if values.dtype.kind == "f"]
    if data.minimum is None and numbers and not any((values < 0).any() for values in numbers):
        lines.append("All targets are 0 or more; --minimum 0 keeps predictions so.")
    if config.optim.patience is not None:
        lines.append("--patience: the images that score a fold also choose its epoch, which flatters the head.")
    return lines


def comparison(report: Mapping[str, Any]) -> list[str]:
    """Return the scores of the head and the baselines as tables, and in words where the head is better or worse.

    Args:
        report: of a training run; ``classes`` and ``masks`` in it hold target -> method -> the scores of
            :mod:`dinoneck.training.scores`, where ``"head"`` is one of the methods.
    """
    lines = []
    if "cell_scores" in report:
        lines.append(f"R² per cell of {counted(report['cell_images'], 'image')}: {_listed(report['cell_scores'])}")
    if "auxiliary_scores" in report:
        scores = _listed(report["auxiliary_scores"], report["scored_images"])
        lines.append(f"Auxiliary, R² of values and accuracy of classes: {scores}")
    if "scores" in report:
        is_weighted = set(report["scores"]["head"]) - {"overall", "worst fold"} <= set(report["target_weights"])
        first, *others = [table(*each) for each in value_tables(report)]
        mean = f"overall: {'weighted R² over all' if is_weighted else 'mean over'} targets; worst fold: of overall."
        lines += [first, mean, *others, *_value_verdicts(report)]
    for target, methods in {**report.get("classes", {}), **report.get("masks", {})}.items():
        lines += [table(*each) for each in class_tables(target, methods)]
        lines += _class_verdicts(printable(target), methods, report)
    return lines


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


def _value_verdicts(report: Mapping[str, Any]) -> list[str]:
    scores, targets = report["scores"]["head"], list(report["mae"]["head"])
    names = [*targets, "overall"] if len(targets) > 1 else targets
    lines = [f"{name}: it does not vary among the images, so it has no R²." for name in names if scores[name] is None]
    intervals = {
        name: {method: row[name] for method, row in report["head_minus"].items()}
        for name in names
        if scores[name] is not None
    }
    for images in sorted({report["scored_images"][name] for name in intervals}, reverse=True):
        own = {name: each for name, each in intervals.items() if report["scored_images"][name] == images}
        of = "" if len(own) == len(intervals) else f"{', '.join(own)}, "
        lines += _compared(own, images, report["groups_predicted"], of)
    useless = [name for name in targets if scores[name] is not None and scores[name] <= 0]
    if useless:
        lines.append(f"{', '.join(useless)}: R² is not above 0, so the head does not beat the mean of all images.")
    return lines


def _class_verdicts(name: str, methods: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    head = methods["head"]
    scores = {key: heading for key, heading in SCORES.items() if key in head}
    right = "accuracy" if "accuracy" in head else "pixel_accuracy"
    if head[right]["pooled"] is None:
        return [f"{name}: nothing was predicted whose class is known; there is no {scores[right]}."]
    others = [method for method in methods if method != "head"]
    intervals = {
        f"{name}, {heading}": {method: methods[method]["head_minus"][key] for method in others}
        for key, heading in scores.items()
    }
    true = [sum(row) for row in head["confusion_matrix"]]
    images = head["images"]
    lines = _compared(intervals, images, report["groups_predicted"], f"{name}, ") if others else []
    largest, label = max(true) / sum(true), printable(head["labels"][true.index(max(true))])
    if head[right]["pooled"] <= largest:
        lines.append(
            f"{name}: the {scores[right]} of {head[right]['pooled']:.3f} is not above {largest:.3f}, the share of "
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


def _listed(scores: Mapping[str, float | None], images: Mapping[str, int] = {}) -> str:
    counts = {name: f" ({counted(images[name], 'image')})" for name in scores if name in images}
    return ", ".join(f"{n} {'-' if x is None else f'{x:.3f}'}{counts.get(n, '')}" for n, x in scores.items())
