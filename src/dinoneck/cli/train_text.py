"""What ``dinoneck train`` prints: how images are prepared, advice, scores and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoneck.cli import text
from dinoneck.viz.score_tables import difference_table

if TYPE_CHECKING:
    from dinoneck.data.decoding import Photo
    from dinoneck.data.photos import Preprocessing
    from dinoneck.data.tables import PhotoTable
    from dinoneck.grid import GridSize
    from dinoneck.training.config import TrainConfig
    from dinoneck.training.inputs import Inputs

_BENT = 1.02
_MANY_PATCHES = 4096
_ENOUGH_ALONG = 40


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
            text.table(*difference_table(report["head_minus"])),
            *verdicts(report),
        ]
    return lines + text.class_lines(report)


def describe_size(preprocess: Preprocessing, image: Photo) -> list[str]:
    """Return what an image is prepared to, and what is lost on the way."""
    from dinoneck.data.decoding import photo_size

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
    scores, targets = report["scores"]["head"], list(report["mae"]["head"])
    names = [*targets, "overall"] if len(targets) > 1 else targets
    lines = [f"{name}: it does not vary among the images; there is no R²." for name in names if scores[name] is None]
    too_few = text.too_few(report["predicted"], report["groups_predicted"])
    if too_few is not None:
        lines.append(too_few)
    else:
        intervals = {name: {method: row[name] for method, row in report["head_minus"].items()} for name in names}
        lines += [text.compared(name, ends) for name, ends in intervals.items() if scores[name] is not None]
    useless = [name for name in targets if scores[name] is not None and scores[name] <= 0]
    if useless:
        lines.append(f"{', '.join(useless)}: R² is not above 0, so the head is no better than the mean of all images.")
    return lines


def _listed(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'-' if score is None else f'{score:.3f}'}" for name, score in scores.items())
