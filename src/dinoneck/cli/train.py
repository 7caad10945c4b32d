"""``dinoneck train``: cross-validated heads from photos or a feature store and a CSV, beside the baselines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dinoneck.cli import text, train_options
from dinoneck.cli.answers import answer
from dinoneck.errors import ConfigError, counted

if TYPE_CHECKING:
    from dinoneck.data.photos import Photo, Preprocessing
    from dinoneck.data.tables import PhotoTable
    from dinoneck.grid import GridSize
    from dinoneck.inference.presets import Preset
    from dinoneck.tasks import Task
    from dinoneck.training.config_file import TrainingConfig
    from dinoneck.training.config_run import ConfiguredRun

HELP = "train cross-validated heads from a training file, or from options: photos (or a store) and a CSV, or a pasture"
EXAMPLE = "dinoneck train run.yaml --out run\n         dinoneck train --csv cover.csv --targets crop weed --out run"

_BENT = 1.02
_MANY_PATCHES = 4096
_ENOUGH_ALONG = 40
_ENOUGH_TO_TELL = 50
_ENOUGH_GROUPS = 10
add_arguments = train_options.add_arguments


def run(options: argparse.Namespace) -> int:
    """Train, print the scores, write the folder."""
    from dinoneck.training.config_run import ConfiguredRun
    from dinoneck.training.experiment import check_folder

    check_folder(options.out, overwrite=options.overwrite)
    config = train_options.config(options)
    config, recipe = _with_preset(config, options.preset)
    inputs = None if recipe is None else recipe.inputs()
    prepared = ConfiguredRun.of(config, _pasture(options, config), inputs)
    data = prepared.table
    print(f"{len(data)} photos, {len(set(data.groups or data.ids))} groups, targets {', '.join(data.targets)}")
    if data.auxiliary:
        print(f"Only helping: {', '.join(data.auxiliary)}.")
    print("\n".join(_told_tokens(prepared)))
    print("".join(_advice(prepared)), end="")
    result, _, report = prepared.train(options.out, overwrite=options.overwrite, resume=options.resume)
    _tell(report, data)
    print("".join(_told_cells(task for head in result.heads[:1] for task in head.tasks)), end="")
    answer(options, out=options.out, report=report)
    print(f"written: {options.out}/heads, logs, out_of_fold.csv, report.json")
    return 0


def _with_preset(config: TrainingConfig, name: str | None) -> tuple[TrainingConfig, Preset | None]:
    """The config with what a preset says where the config says nothing; and the preset."""
    from dinoneck.inference.presets import preset

    if name is None:
        return config, None
    if config.store is not None:
        raise ConfigError(
            "--preset says how photos are prepared; a store's are prepared already. Leave one of them out"
        )
    recipe = preset(name)
    own = {name: getattr(config, name) or getattr(recipe, name) for name in ("backbone", "activation", "tta")}
    return replace(config, **own, recipe={"optimizer": recipe.optimizer, **config.recipe}), recipe


def _pasture(options: argparse.Namespace, config: TrainingConfig) -> Callable[[], PhotoTable] | None:
    """What generates photos, where no table is named."""
    from dinoneck.data.pasture import Pasture

    if config.csv is not None:
        return None
    said = (config.targets, config.group_columns, config.photos, config.label_column, config.minimum, config.store)
    if any(value is not None for value in said):
        raise ConfigError(
            "--targets, --group, --photos, --labels, --store and --minimum describe a CSV; give it with --csv (in a "
            "file dataset.csv)"
        )
    return lambda: Pasture(seed=0).table(range(options.pasture))


def _told_tokens(prepared: ConfiguredRun) -> list[str]:
    """What the head will read."""
    if prepared.source is None:
        return told_size(prepared.preprocess, prepared.table.photos[0]) + told_many(prepared.preprocess, prepared.grid)
    patterns = getattr(prepared.source, "patterns", None)
    return [
        f"Tokens come from {prepared.config.store}: {prepared.record.get('name')}, {prepared.grid.rows}x"
        f"{prepared.grid.cols} patches, {1 if patterns is None else len(patterns)} augmentation patterns."
    ]


def _advice(prepared: ConfiguredRun) -> list[str]:
    """What somebody should know before the work; each with its line break."""
    data, config = prepared.table, prepared.config
    lines = []
    if data.groups is None:
        lines.append("No --group: photos of one place or day may fall into several folds, which flatters every score.")
    if data.minimum is None and all((values >= 0).all() for values in data.targets.values()):
        lines.append("All targets are 0 or more; --minimum 0 keeps predictions so.")
    if config.recipe.get("patience") is not None:
        lines.append("--patience: the photos that a fold is judged by also choose its epoch, which flatters the head.")
    return [f"{line}\n" for line in lines]


def _tell(report: dict[str, Any], data: PhotoTable) -> None:
    """Print the scores."""
    if "cell_scores" in report:
        print(f"R² per cell: {_listed(report['cell_scores'])}")
    if "auxiliary_scores" in report:
        print(f"Helping, R² of values and accuracy of classes: {_listed(report['auxiliary_scores'])}")
    print("\n".join(comparison(report, data)))


def comparison(report: dict[str, Any], data: PhotoTable) -> list[str]:
    """Return the head and the baselines as tables, and in words where the head is better or worse."""
    return [
        text.scores(report["scores"], report["mae"], report["target_sd"]),
        told_overall(data),
        text.differences(report["head_minus"]),
        *verdicts(report, list(data.targets)),
    ]


def _told_cells(tasks: Iterable[Task]) -> list[str]:
    """Which numbers are means over cells."""
    names = [task.name for task in tasks if task.from_cells is not None]
    return [f"{', '.join(names)}: the number of an image is the mean over its cells.\n"] if names else []


def _listed(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'–' if score is None else f'{score:.3f}'}" for name, score in scores.items())


def told_overall(data: PhotoTable) -> str:
    """Say what the last two columns of the scores are."""
    return (
        f"overall: {'weighted R² over all targets' if data.weights else 'mean over targets'}; worst fold: of overall."
    )


def told_size(preprocess: Preprocessing, photo: Photo) -> list[str]:
    """Say what a photo is prepared to, and what is lost on the way: nothing is cropped or bent in silence."""
    from dinoneck.data.photos import photo_size

    before = photo_size(photo)
    prepared = preprocess.prepare(photo)
    after, grid = prepared.images.shape[-2:], prepared.grid
    lines = [
        f"The first photo, {before[0]}x{before[1]} px (height x width), becomes {after[0]}x{after[1]} px, "
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


def told_many(preprocess: Preprocessing, grid: GridSize) -> list[str]:
    """Say so where photos in their own size have so many patches that a backbone takes very long; and what helps."""
    from dinoneck.grid import patch_pair

    if preprocess.size is not None or grid.count <= _MANY_PATCHES:
        return []
    scale = _ENOUGH_ALONG / max(grid)
    rows, cols = (max(1, round(side * scale)) for side in grid)
    down, across = patch_pair(preprocess.patch_size)
    return [
        f"That is {grid.count} patches a photo: slow, and much memory. --size {rows * down}x{cols * across} brings "
        f"photos to {rows * cols}."
    ]


def verdicts(report: dict[str, Any], targets: list[str]) -> list[str]:
    """State in plain words where the head is better or worse than the baselines, as far as the intervals show it."""
    scores, differences = report["scores"], report["head_minus"]
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
