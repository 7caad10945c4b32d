"""What ``dinoneck train`` prints: how images are prepared, advice, scores and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoneck.cli import text
from dinoneck.errors import counted

if TYPE_CHECKING:
    from dinoneck.data.photos import Photo, Preprocessing
    from dinoneck.data.tables import PhotoTable
    from dinoneck.grid import GridSize
    from dinoneck.training.config import TrainConfig
    from dinoneck.training.inputs import Inputs

_BENT = 1.02
_MANY_PATCHES = 4096
_ENOUGH_ALONG = 40
_ENOUGH_TO_TELL = 50
_ENOUGH_GROUPS = 10


def describe_tokens(config: TrainConfig, inputs: Inputs) -> list[str]:
    """Return what the head will read."""
    if inputs.source is None and inputs.preprocess is not None:
        first = inputs.table.images[0]
        grid = inputs.preprocess.prepare(first).grid
        return describe_size(inputs.preprocess, first) + describe_many(inputs.preprocess, grid)
    if inputs.source is None or inputs.record is None:
        return []
    grid = inputs.source.batch(inputs.source.ids[:1]).grid
    views = getattr(inputs.source, "patterns", None)
    return [
        f"Tokens come from {config.data.store}: {inputs.record.get('name')}, {grid.rows}x{grid.cols} patches, "
        f"{1 if views is None else len(views)} views."
    ]


def advice(config: TrainConfig, data: PhotoTable) -> list[str]:
    """Return what a user should know before the work."""
    lines = []
    if data.groups is None and config.folds.column is None:
        lines.append(
            "No --group: images of one place or day may fall into several folds, which makes every score look better."
        )
    numbers = [values for values in data.targets.values() if values.dtype.kind == "f"]
    if data.minimum is None and numbers and all((values >= 0).all() for values in numbers):
        lines.append("All targets are 0 or more; --minimum 0 keeps predictions so.")
    if config.optim.patience is not None:
        lines.append("--patience: the images that score a fold also choose its epoch, which flatters the head.")
    return lines


def comparison(report: dict[str, Any]) -> list[str]:
    """Return the head and the baselines as tables, and in words where the head is better or worse."""
    lines = []
    if "cell_scores" in report:
        lines.append(f"R² per cell: {_listed(report['cell_scores'])}")
    if "auxiliary_scores" in report:
        lines.append(f"Auxiliary, R² of values and accuracy of classes: {_listed(report['auxiliary_scores'])}")
    if "scores" in report:
        is_weighted = set(report["scores"]["head"]) - {"overall", "worst fold"} <= set(report["target_weights"])
        lines += [
            text.scores(report["scores"], report["mae"], report["target_sd"]),
            f"overall: {'weighted R² over all' if is_weighted else 'mean over'} targets; worst fold: of overall.",
            text.differences(report["head_minus"]),
            *verdicts(report),
        ]
    if "classes" in report:
        lines += text.class_lines(report)
    if "masks" in report:
        lines += text.mask_lines(report)
    return lines


def _listed(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'–' if score is None else f'{score:.3f}'}" for name, score in scores.items())


def describe_size(preprocess: Preprocessing, image: Photo) -> list[str]:
    """Return what an image is prepared to, and what is lost on the way."""
    from dinoneck.data.photos import photo_size

    before = photo_size(image)
    prepared = preprocess.prepare(image)
    after, grid = prepared.images.shape[-2:], prepared.grid
    lines = [
        f"The first image, {before[0]}x{before[1]} px (height x width), becomes {after[0]}x{after[1]} px, "
        f"{grid.rows}x{grid.cols} patches."
    ]
    if tuple(after) != (preprocess.size or before):
        lines.append(
            f"The patch of {preprocess.patch_size} px does not divide it: --policy {preprocess.policy} applies."
        )
    if preprocess.size is not None:
        # the policies crop and pad bend nothing, resize does
        height, width = after if preprocess.policy == "resize" else preprocess.size
        bent = (height / before[0]) / (width / before[1])
        if preprocess.fit == "stretch" and not 1 / _BENT < bent < _BENT:
            lines.append(
                f"--fit stretch changes its proportions by {abs(bent - 1):.0%}; --fit crop, pad or keep would not."
            )
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


def verdicts(report: dict[str, Any]) -> list[str]:
    """State in plain words where the head is better or worse than the baselines, as far as the intervals show it."""
    scores, differences, targets = report["scores"], report["head_minus"], list(report["mae"]["head"])
    names = [*targets, "overall"] if len(targets) > 1 else targets
    lines = [
        f"{name}: it does not vary among the images predicted; there is no R²."
        for name in names
        if scores["head"][name] is None
    ]
    if report["predicted"] < _ENOUGH_TO_TELL:
        lines.append(
            f"{counted(report['predicted'], 'image')}: too few to tell whether the head or a baseline is better. About "
            f"{_ENOUGH_TO_TELL} are needed."
        )
    elif report["groups_predicted"] < _ENOUGH_GROUPS:
        lines.append(
            f"{counted(report['groups_predicted'], 'group')}: too few groups to tell whether the head or a baseline is "
            f"better. About {_ENOUGH_GROUPS} are needed."
        )
    else:
        lines += _compared(differences, [name for name in names if scores["head"][name] is not None])
    useless = [name for name in targets if (score := scores["head"][name]) is not None and score <= 0]
    if useless:
        lines.append(f"{', '.join(useless)}: R² is not above 0, so the head is no better than the mean of all images.")
    return lines


def _compared(differences: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    lines, clear = [], True
    for name in names:
        intervals = {method: row[name] for method, row in differences.items()}
        ahead = [method for method, ends in intervals.items() if ends is not None and ends[0] > 0]
        behind = [method for method, ends in intervals.items() if ends is not None and ends[1] < 0]
        even = [method for method in intervals if method not in (*ahead, *behind)]
        parts = [f"the head is better than {', '.join(ahead)}"] if ahead else []
        parts += [f"{', '.join(behind)} {'is' if len(behind) == 1 else 'are'} ahead of the head"] if behind else []
        parts += [f"the head shows no clear difference from {', '.join(even)}"] if even else []
        clear = clear and not (behind or even)
        lines.append(f"{name}: {'; '.join(parts)}.")
    if clear and names:
        return ["The head is better than every baseline on every target: no interval of the difference holds 0."]
    return lines
