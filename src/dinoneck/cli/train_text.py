"""What ``dinoneck train`` prints: how images are prepared, advice, scores and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dinoneck.cli.text import table
from dinoneck.viz.score_tables import class_tables, value_tables

if TYPE_CHECKING:
    from dinoneck.data.decoding import ImageInput
    from dinoneck.data.preprocessing import Preprocessing
    from dinoneck.training.run import Run

_BENT = 1.02


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
        lines += describe_size(source.preprocess, first)
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
    """Return the scores of the head and the baselines as tables, and whether the head is clearly better.

    Args:
        report: of :func:`dinoneck.training.train`.
    """
    scores, lines = report["scores"], [table(*each) for each in value_tables(report)]
    if "overall" in scores:
        is_weighted = len(report["target_weights"]) > 0
        mean = "weighted R² over all" if is_weighted else "mean over"
        lines.append(f"overall: {mean} targets; worst fold: of overall.")
    for name, methods in scores.items():
        if "confusion_matrix" in methods["head"]:
            lines += [table(*each) for each in class_tables(name, methods)]
    return [*lines, report["verdict"]]


def describe_size(preprocess: Preprocessing, image: ImageInput) -> list[str]:
    """Return what an image is prepared to, and what is lost on the way."""
    from dinoneck.data.decoding import read_image_size

    (height, width), prepared = read_image_size(image), preprocess.prepare(image)
    rows, cols = prepared.images.shape[-2:]
    lines = [
        f"The first image, {height}x{width} px (height x width), becomes {rows}x{cols} px, "
        f"{prepared.grid.rows}x{prepared.grid.cols} patches."
    ]
    if (rows, cols) != (preprocess.size or (height, width)):
        lines.append(
            f"The patch of {preprocess.patch_size} px does not divide it: --resize {preprocess.resize} applies."
        )
    bent = (rows / height) / (cols / width)
    if preprocess.size and preprocess.resize == "stretch" and not 1 / _BENT < bent < _BENT:
        lines.append(f"--resize stretch changes its proportions by {abs(bent - 1):.0%}; crop and pad would not.")
    return lines
