"""``dinoneck evaluate``: the scores of finished heads or detectors on images whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.cli import arguments as cli
from dinoneck.cli.head_checks import stated_tasks
from dinoneck.cli.predict import list_heads, open_model, read_heads
from dinoneck.cli.text import show, show_scores
from dinoneck.cli.truth import check_truth_columns
from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean, some_of
from dinoneck.training.config import TARGET_WEIGHTS, TILE

if TYPE_CHECKING:
    from dinoneck.task_facts import TaskFacts

_OVERALL_SCORES = (
    "AP",
    "AP50",
    "AP75",
    "AR100",
    "F1",
    "PQ",
    "SQ",
    "RQ",
    "PQ_things",
    "PQ_stuff",
    "overall",
    "overall (mean)",
)
"""What ``--at-least`` may name next to the heads' targets: scores of boxes and objects, and means over all targets."""
_MOST_NAMES = 8  # in a message


def evaluate(
    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None,
    *,
    heads: Annotated[tuple[str, ...], arg(metavar="HEAD ...")],
    truth: Annotated[tuple[Path, ...], arg(metavar="TRUTH ...")],
    group: tuple[str, ...] = (),
    image_column: str = "image",
    labels: str | None = None,
    subfolders: Literal["classes", "folds"] | None = None,
    decimal: Literal[".", ","] | None = None,
    mask_suffix: str | None = None,
    skip_unpaired: bool = False,
    nodata: tuple[float, ...] = (),
    class_values: tuple[int, ...] = (),
    class_colors: tuple[str, ...] = (),
    classes: Annotated[Path | None, arg(metavar="CSV")] = None,
    crowd: Literal["ignore", "objects"] = "ignore",
    target_weights: Annotated[Mapping[str, float], TARGET_WEIGHTS] = {},
    at_least: Annotated[tuple[str, ...], arg(metavar="TARGET=VALUE ...")] = (),
    tile: Annotated[tuple[int, int] | Literal["auto"] | None, TILE] = "auto",
    overlap: Annotated[int | None, cli.whole(0)] = None,
    calibrate: Annotated[Path | None, arg(metavar="OUT.safetensors")] = None,
    options: Annotated[cli.ScoringOptions, arg(name="")] = cli.ScoringOptions(),
    words: cli.Words = (),
) -> dict[str, Any]:
    """Score finished heads or detectors on images whose truth is known; exit 1 if a score is too low.

    Example: dinoneck evaluate images/ --heads run --truth cover.csv --at-least crop=0.8

    Args:
        images: the folder of the images; before the options.
        heads: files, folders of trainings or Hub repositories, or exported files (.onnx); each is one
            model, compared with the first. KEY=HEAD names it in the tables.
        truth: CSV of numbers, classes or labels; a folder of masks, or of folders of classes or
            labels; a COCO file of boxes, objects or labels; a data.yaml of YOLO or a folder of VOC;
            or the folder and the COCO file of panoptic segments.
        group: columns; images of one group are resampled together.
        image_column: column of file names.
        labels: column of masks.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        decimal: with a CSV as truth: the decimal mark of its numbers; without it a point, or in a file
            separated by ; the one that all its numbers have.
        mask_suffix: with a folder of masks as truth: what their names have more than those of the
            images, such as _labelIds, where there are several files for each image.
        skip_unpaired: with a folder of masks as truth: leave out images without a mask, and masks
            without an image.
        nodata: mask values without a label, such as 255; without it as in training.
        class_values: the value of each class in the masks; without it as in training.
        class_colors: the colour of each class in masks of colours, as R,G,B such as 0,128,0; without
            it as in training.
        classes: CSV file with the columns name, r, g, b: the colours of the classes by their names.
        crowd: ignore: objects of a COCO file with iscrowd=1 are ignored; objects: they count as
            objects.
        target_weights: weights of the targets in the overall score: TARGET=WEIGHT pairs, or a CSV
            with the columns target and weight; without them as in training.
        at_least: the smallest R², accuracy, mAP of labels or mean IoU of a target, the smallest share
            of normals within 11.25 degrees, or the smallest AP.
        tile: cut images into tiles of this many pixels, as 'dinoneck predict' does; none: leave
            them whole (default: the tiles of training, for a detector or a head of objects, if it
            has any).
        overlap: smallest number of pixels that neighbouring tiles share (default: 0, for objects a
            fifth of the tile, or the longest box of the training up to half a tile).
        calibrate: write the one head file with intervals from its errors on these images, which it
            was not trained on; name what new images differ in with --group.
        options: how images are predicted.
        words: the command line.
    """
    # refuse what is wrong before torch is imported
    smallest_scores = _read_smallest_scores(at_least)
    cli.check_exist([images, *truth])
    head_by_name = _name_models(heads, has_weights=options.weights is not None)
    if calibrate is not None:
        cli.check_output(
            calibrate,
            [images, *truth, *head_by_name.values()],
            (".safetensors",),
            option="--calibrate",
        )
    tasks_of_models: Sequence[Sequence[TaskFacts]] = ()
    if options.weights is None:
        tasks_of_models = stated_tasks(list(head_by_name.values()))
    if tasks_of_models:
        _check_target_names(smallest_scores, tasks_of_models)
    columns = list(group) if labels is None else [*group, labels]
    scored_tasks = tasks_of_models if labels is None else ()  # else masks are scored
    for path in truth:
        check_truth_columns(path, image_column, columns, scored_tasks)
    from dinoneck.evaluation import evaluate as score_models

    opened_models = {}
    for name, head in head_by_name.items():
        opened_models[name] = open_model(head, options, words, tile=tile, overlap=overlap)
    if not tasks_of_models:
        tasks_of_models = [model.tasks for model in opened_models.values()]
        _check_target_names(smallest_scores, tasks_of_models)
    is_panoptic = len(truth) > 1  # a folder and a COCO file
    report = score_models(
        {name: opened_model.model for name, opened_model in opened_models.items()},
        images,
        truth if is_panoptic else truth[0],
        group=group,
        image_column=image_column,
        labels=labels,
        subfolders=subfolders,
        decimal=decimal,
        mask_suffix=mask_suffix,
        skip_unpaired=skip_unpaired,
        nodata=nodata,
        class_values=class_values,
        class_colors=class_colors,
        classes=classes,
        crowd=crowd,
        target_weights=target_weights,
        calibrate=calibrate,
    )
    for line in report["data"]["lines"]:
        show(line)
    if len(opened_models) == 1:  # a verdict compares models
        show_scores(report | {"verdict": None}, held_out=False)
    else:
        show_scores(report, held_out=False)
    lines_of_low_scores = _lines_of_low_scores(report, smallest_scores)
    for line in lines_of_low_scores:
        show(line)
    if calibrate is not None:
        _show_calibrated(calibrate, has_groups=bool(group))
    return {"ok": not lines_of_low_scores, **report}


def parse_evaluation(words: Sequence[str]) -> partial[Any]:
    """Return the call that a command line of ``evaluate`` describes.

    Raises:
        ConfigError: for an option of predictions that scores do not have.
        SystemExit: as :func:`dinoneck.cli.arguments.parse`.
    """
    cli.refuse_unused(cli.EVALUATE, words)
    return cli.parse(evaluate, "dinoneck evaluate", words)


def _show_calibrated(file: Path, *, has_groups: bool) -> None:
    """Print the intervals of a file that was calibrated, and what they hold for."""
    from dinoneck.checkpoint.format import read_header
    from dinoneck.checkpoint.schema import describe_intervals

    for task in read_header(file).meta["tasks"]:
        for output, interval in describe_intervals(task).items():
            show(f"interval of {output}: {interval}")
    if not has_groups:
        show(
            "No --group: every image counts as a group. If images of one place or day are alike, the "
            "intervals are too narrow for new ones."
        )
    show(f"written with intervals: {file}")


def _name_models(words: Sequence[str], *, has_weights: bool) -> dict[str, str]:
    """Name of a model in the tables -> its head.

    Args:
        words: of ``--heads``: ``HEAD``, or ``KEY=HEAD``.
        has_weights: whether the file of a published head among them is named.

    Raises:
        CheckpointError: if a head file does not exist, or is none.
        ConfigError: if a name or a head occurs twice, or some have a key and some have none.
    """
    heads = read_heads(words, has_weights=has_weights)
    all_heads = list_heads(heads)
    if len(set(all_heads)) < len(all_heads):
        raise ConfigError(f"--heads {' '.join(words)} names a head twice; give each once")
    if isinstance(heads, dict):
        return _one_head_per_key(heads)
    if len(heads) == 1:
        return {"head": heads[0]}
    return {head: head for head in heads}


def _one_head_per_key(heads_by_key: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Key -> its head.

    Raises:
        ConfigError: if a key has several.
    """
    head_by_key = {}
    for key, heads in heads_by_key.items():
        if len(heads) > 1:
            raise ConfigError(
                f"--heads has the key {key} twice, and each value is one model; give each a key of "
                "its own, and an ensemble as its file or folder"
            )
        head_by_key[key] = heads[0]
    return head_by_key


def _read_smallest_scores(words: Iterable[str]) -> dict[str, float]:
    """Return target -> number of every ``--at-least``.

    Raises:
        ConfigError: if a word cannot be read, or a target is named twice.
    """
    smallest_scores: dict[str, float] = {}
    for word in words:
        target, smallest = _read_smallest_score(word)
        if target in smallest_scores:
            raise ConfigError(
                f"--at-least names {target!r} twice, with {smallest_scores[target]:g} and "
                f"{smallest:g}; give one number for it"
            )
        smallest_scores[target] = smallest
    return smallest_scores


def _read_smallest_score(word: str) -> tuple[str, float]:
    """The target and the number of an ``--at-least``."""
    target, _, value = word.rpartition("=")
    if not target:
        raise ConfigError(
            f"--at-least is {word!r}; expected TARGET=VALUE, such as crop=0.8 or AP=0.3"
        )
    try:
        smallest = float(value)
    except ValueError:
        smallest = math.nan
    if not math.isfinite(smallest):
        raise ConfigError(
            f"--at-least is {word!r}, and {value!r} is no finite number; write a number, such as "
            f"{target}=0.8"
        )
    return target, smallest


def _check_target_names(
    smallest_scores: Mapping[str, float], tasks_of_models: Sequence[Sequence[TaskFacts]]
) -> None:
    """Raise a ConfigError if ``--at-least`` names neither an overall score nor a task or column of the heads."""
    from dinoneck.evaluation.predicted_tasks import is_share_map
    from dinoneck.task_facts import cell_target_names, columns_of

    names = set(_OVERALL_SCORES)
    for tasks in tasks_of_models:
        names.update(task.name for task in tasks)
        names.update(column.name for column in columns_of(tasks))
        for task in tasks:
            if is_share_map(task):
                names.update(cell_target_names(task))
    unknown = smallest_scores.keys() - names
    if unknown:
        raise ConfigError(
            f"--at-least names {min(unknown)!r}; expected one of {', '.join(sorted(names))}"
        )


def _lines_of_low_scores(
    report: Mapping[str, Any], smallest_scores: Mapping[str, float]
) -> list[str]:
    """A line for each score of a model that is below its ``--at-least``, or not defined."""
    lines = []
    for target, smallest in smallest_scores.items():
        name = _words_of_score(report, target)
        for model, score in _scores_of_target(report, target).items():
            if score is None:
                lines.append(f"{name} is not defined for {model}; expected {smallest:g} or more")
            elif score < smallest:
                lines.append(f"{name} is {score:.6g} for {model}, below {smallest:g}")
    return lines


def _words_of_score(report: Mapping[str, Any], target: str) -> str:
    """What the score of an ``--at-least`` is called, such as "R² of crop"; those of objects have their own names."""
    from dinoneck.training.verdict import MAIN_METRICS, main_metric

    scores = report.get("scores", {})
    if target not in scores:
        return target
    return f"{MAIN_METRICS[main_metric(scores[target])]} of {target}"


def _scores_of_target(report: Mapping[str, Any], target: str) -> dict[str, float | None]:
    """Return the score of each model that ``--at-least`` compares.

    Args:
        report: of :func:`dinoneck.evaluate`.
        target: of numbers, classes or masks; or a score of objects, such as AP.

    Raises:
        ConfigError: if the report has no such target or score.
    """
    scores: dict[str, float | None] = {}
    names: set[str] = set()
    for kind in ("boxes", "masks", "segments"):
        for model, object_scores in report.get(kind, {}).items():
            names.update(object_scores)
            if target in object_scores:
                scores[model] = object_scores[target]
    value_scores = report.get("scores", {})
    names.update(value_scores)
    if target in value_scores:
        from dinoneck.training.verdict import main_metric

        scores_of_models = value_scores[target]
        metric = main_metric(scores_of_models)  # of surface normals the share within 11.25 degrees
        for model, model_scores in scores_of_models.items():
            scores[model] = model_scores[metric]["pooled"]
    if not scores:
        raise ConfigError(
            f"--at-least names {target!r}; expected one of {some_of(names, _MOST_NAMES)}."
            f"{did_you_mean(target, names)}"
        )
    return scores
