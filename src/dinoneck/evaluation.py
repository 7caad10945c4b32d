"""The scores of finished models on images whose truth is known."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dinoneck.data.arrays import class_codes
from dinoneck.data.cells import (
    FRAME_NAME,
    GROUP,
    IMAGES,
    LABELS,
    OWN_COLUMNS,
    is_missing,
    is_number,
)
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.class_lists import warn_of_class_lists
from dinoneck.data.decoding import read_image_size
from dinoneck.data.folders import read_masks, table_of_folder
from dinoneck.data.label_sets import mask_classes, survey_masks
from dinoneck.data.labels import DenseLabels
from dinoneck.data.layout import DataFolder, Subfolders, read_data_folder
from dinoneck.data.listed_images import Crowd
from dinoneck.data.tables import read_cells, read_truth
from dinoneck.detection.detector import Detector
from dinoneck.detection.evaluation import (
    coco_results,
    mask_results,
    predict_boxes,
    predict_masks,
    score_boxes,
    score_masks,
    score_segments,
)
from dinoneck.detection.paired import precision_intervals
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.ensemble import areas_of
from dinoneck.inference.loaded_head import LoadedHead, MaskRecord
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.results import predict_many
from dinoneck.inference.sources import open_heads
from dinoneck.tasks import Column, Task, columns_of
from dinoneck.text import did_you_mean, some_of
from dinoneck.training.masks import masks_of, reader_of_classes
from dinoneck.training.report import summary
from dinoneck.training.scored import ClassTarget, PixelTarget, ScoredTarget, ValueTarget
from dinoneck.training.table import class_names, column_numbers
from dinoneck.training.trained_images import seen_in_training
from dinoneck.version import versions

logger = logging.getLogger(__name__)

_Objects = Literal["boxes", "masks", "segments"]
"""What is scored of objects, and the key of its scores."""


def evaluate(
    model: Any,
    images: str | os.PathLike[str] | None,
    truth: Any,
    *,
    group: Sequence[str] = (),
    image_column: str = "image",
    labels: str | None = None,
    subfolders: Subfolders | None = None,
    nodata: Sequence[float] = (),
    class_values: Sequence[int] = (),
    crowd: Crowd = "ignore",
) -> dict[str, Any]:
    """Predict images and compare the predictions with the truth.

    Args:
        model: a Predictor, a Detector, what a Predictor takes (a file, the folder of a training, a
            module), or a mapping of names to these: the first is compared with each other one.
        images: their folder; for boxes None = that of the COCO file; for a folder None = those in
            the truth.
        truth: a table (CSV or DataFrame) with the columns of the predictions, numbers or classes; a
            folder of masks, or of images and masks; a folder of class folders; a COCO file of
            boxes, or of masks for instances; or ``(folder, file)`` of panoptic segments.
        group: columns of the table; intervals resample the images of a group together. None = every
            image is its own.
        image_column: the table's column of file names.
        labels: the table's column of masks.
        subfolders: how the folders in a truth of class folders, or of images and masks, are read:
            ``"classes"`` whatever they are called; ``"folds"``, all of which are scored together;
            None = by their names.
        nodata: values in masks without a label; empty = as the head files record of the training.
        class_values: the value of each class in the masks, as ``data.class_values`` of a training;
            empty = as the head files record.
        crowd: of a COCO file: whether entries with ``iscrowd`` count for nothing, or are objects.

    Returns:
        What the ``report.json`` of a training holds of its scores, target -> name -> scores (of one
        model the name is ``"head"``); of objects ``"boxes"``, ``"masks"`` or ``"segments"``: name
        -> scores; of two or more models of boxes or masks the others also have ``head_minus``, the
        95 % intervals over images of the first one's AP and AP50 minus theirs (None for fewer than
        five images). ``trained_on``: name -> how many of the images the model was trained on, if
        any; it is known of models in the folder of their run, by the content of the images.
        ``cost``: name -> seconds per image, and parameters of heads and backbone.

    Raises:
        ConfigError: if detectors and heads are mixed, an option has no effect on this truth, or
            masks were read in training with other class values or nodata than these, or than for
            another head.
        DataError: if the truth has nothing that a model predicts, models predict different things
            for a target of one name, or an image or label cannot be used.
        CheckpointError: if a model cannot be read.

    Examples:
        >>> from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
        >>> from dinoneck.data import Pasture
        >>> table, head = Pasture(seed=0).table(range(8)), PatchMeanHead(64, [Task("GDM_g")])
        >>> evaluate(Predictor(head, load_backbone("dinoneck_tiny")), None, table)["scores"]["GDM_g"]["head"]["images"]
        8
    """
    models = model if isinstance(model, Mapping) else {"head": model}
    predictors, detectors = _open_all(models)
    kind = _kind_of_objects(truth, are_detectors=bool(detectors))
    if kind is not None:
        table_options = {
            "group": group,
            "labels": labels,
            "subfolders": subfolders,
            "nodata": nodata,
            "class_values": class_values,
        }
        _check_not_given(table_options)
        if detectors:
            return _score_objects(kind, detectors, truth, images, crowd)
        return _score_objects(kind, predictors, truth, images, crowd)
    if crowd != "ignore":
        raise ConfigError(
            f"crowd is {crowd!r}, and the truth is no COCO file of objects; leave it out"
        )
    _check_alike(predictors)
    tasks_of_models = [predictor.tasks for predictor in predictors.values()]
    tasks = _tasks_by_name(tasks_of_models)
    table = truth_table(images, truth, tasks_of_models, group, image_column, labels, subfolders)
    mask_options = {"labels": labels, "nodata": nodata, "class_values": class_values}
    _check_mask_options(mask_options, table, tasks)
    asked = MaskRecord("the call", tuple(class_values), tuple(nodata))
    masks = _mask_readers(table, tasks, asked, _mask_records(predictors))
    report = _score_table(predictors, table, tasks, masks)
    return report | _count_seen(predictors, list(table[IMAGES]))


def _open_all(models: Mapping[str, Any]) -> tuple[dict[str, Predictor], dict[str, Detector]]:
    """The models by name: heads, or detectors; one of the two is empty.

    Raises:
        ConfigError: if there is no model, or heads and detectors are mixed.
        CheckpointError: if a model cannot be read.
    """
    predictors: dict[str, Predictor] = {}
    detectors: dict[str, Detector] = {}
    for name, model in models.items():
        opened_model = _opened(model)
        if isinstance(opened_model, Predictor):
            predictors[name] = opened_model
        else:
            detectors[name] = opened_model
    if not predictors and not detectors:
        raise ConfigError("model is an empty mapping; name one model or more")
    if predictors and detectors:
        raise ConfigError(
            f"{some_of([*predictors], 3)} are heads and other models are detectors; evaluate them "
            "apart"
        )
    return predictors, detectors


def _score_table(
    predictors: Mapping[str, Predictor],
    table: Any,
    tasks: Mapping[str, Task],
    masks: Mapping[str, DenseLabels],
) -> dict[str, Any]:
    """Predict the images of a table and score the predictions.

    Args:
        predictors: name -> model.
        table: the truth.
        tasks: of all models, by name.
        masks: segmentation task -> how its masks are read.

    Raises:
        DataError: if the truth has nothing that is predicted.
    """
    tasks_of_models = [predictor.tasks for predictor in predictors.values()]
    columns = _columns_of(tasks_of_models)
    targets_of_models: dict[str, dict[str, ScoredTarget]] = {}
    for name, predictor in predictors.items():
        targets_of_models[name] = _scored_targets(predictor, table, columns, masks)
    _check_shares(predictors, targets_of_models)
    scored = _first_of_each(targets_of_models.values())
    if not scored:
        _check_scorable(table, tasks)
        raise _nothing_to_score([*tasks], list(table.columns))
    class_names_of_targets = {}
    for name, target in scored.items():
        if isinstance(target, ClassTarget):
            class_names_of_targets[name] = target.labels
    predictions: dict[str, dict[str, Any]] = {}
    cost: dict[str, Any] = {}
    for name, predictor in predictors.items():
        begin = time.perf_counter()
        targets = targets_of_models[name]
        predictions[name] = _predictions(predictor, table, targets, class_names_of_targets)
        cost[name] = _cost(predictor, begin, len(table))
    units = _shared_units(tasks_of_models, scored)
    report = summary(table, scored, predictions, [range(len(table))], units)
    lines = _not_shared(predictions)
    if lines:
        report["verdict"] = "\n".join([report["verdict"], *lines])
    return report | {"cost": cost, "versions": versions()}


def _count_seen(
    models: Mapping[str, Predictor | Detector], images: Sequence[Any]
) -> dict[str, dict[str, int]]:
    """``trained_on``: model -> how many of the images it was trained on, which a warning states; empty without any."""
    counts = {}
    for name, model in models.items():
        seen = seen_in_training(_files_of(model), images)
        if seen:
            counts[name] = len(seen)
            logger.warning(
                "%s was trained on %d of the %d images, such as %s: its scores on them are too good. "
                "Scores of held-out images are those that its training printed",
                name,
                len(seen),
                len(images),
                seen[0],
            )
    return {"trained_on": counts} if counts else {}


def _files_of(model: Predictor | Detector) -> list[str]:
    """The files that a model was read from."""
    if isinstance(model, Detector):
        return [model.source] if model.source else []
    files: list[str] = []
    for loaded_head in _loaded_heads(model):
        files += loaded_head.files
    return files


def _loaded_heads(predictor: Predictor) -> list[LoadedHead]:
    """The heads of a model with what their files record, over all of its backbones."""
    loaded_heads: list[LoadedHead] = []
    for backbone_pass in predictor.passes:
        loaded_heads += backbone_pass.heads.values()
    return loaded_heads


def _kind_of_objects(truth: Any, *, are_detectors: bool) -> _Objects | None:
    """What is scored where the truth is of objects; None for a table or a folder of masks or classes."""
    if isinstance(truth, list | tuple):
        return "segments"
    if are_detectors:
        return "boxes"
    if isinstance(truth, str | os.PathLike) and str(truth).endswith(".json"):
        return "masks"
    return None


def _check_not_given(table_options: Mapping[str, Any]) -> None:
    """Raise a ConfigError for an option that means nothing for objects."""
    for name, value in table_options.items():
        if value:
            raise ConfigError(
                f"{name} is {value!r}, which is of tables and folders of masks; leave it out "
                "for objects"
            )


def _check_mask_options(
    mask_options: Mapping[str, Any], table: Any, tasks: Mapping[str, Task]
) -> None:
    """Raise a ConfigError for an option of masks where no masks are scored: it would change nothing."""
    if LABELS in table and any(task.kind == "segmentation" for task in tasks.values()):
        return
    number_maps = [task.name for task in tasks.values() if task.kind == "dense"]
    for name, value in mask_options.items():
        if not value:
            continue
        if LABELS not in table:
            raise ConfigError(
                f"{name} is {value!r}, which is of masks, and the truth has none; name its column "
                "of masks with labels= (--labels), and leave cells of a table empty where the "
                "value is unknown"
            )
        if number_maps:
            raise ConfigError(
                f"{name} is {value!r}, which is of masks of classes, and the heads predict maps of "
                f"numbers, {some_of(number_maps, 5)}, which are not scored; leave it out"
            )
        raise ConfigError(
            f"{name} is {value!r}, which is of masks, and the heads predict "
            f"{some_of([*tasks], 5)}, which no mask shows; leave it out"
        )


def _check_scorable(table: Any, tasks: Mapping[str, Task]) -> None:
    """Raise a DataError where the truth has masks and the heads predict maps of numbers."""
    number_maps = [task.name for task in tasks.values() if task.kind == "dense"]
    if LABELS in table and number_maps:
        raise DataError(
            f"the heads predict maps of numbers, {some_of(number_maps, 5)}, which are not scored "
            "against masks; expected a table with a column of numbers for each image, or heads of "
            "classes"
        )


def _tasks_by_name(tasks_of_models: Sequence[Sequence[Task]]) -> dict[str, Task]:
    """The tasks of all models by name, each that of the first model; :func:`_check_alike` has compared them."""
    tasks: dict[str, Task] = {}
    for tasks_of_model in tasks_of_models:
        for task in tasks_of_model:
            tasks.setdefault(task.name, task)
    return tasks


def _columns_of(tasks_of_models: Sequence[Sequence[Task]]) -> list[Column]:
    """The columns of all models, each name once."""
    columns: dict[str, Column] = {}
    for tasks_of_model in tasks_of_models:
        for column in columns_of(tasks_of_model):
            columns.setdefault(column.name, column)
    return list(columns.values())


def _shared_units(
    tasks_of_models: Sequence[Sequence[Task]], names: Collection[str]
) -> dict[str, str]:
    """Target -> its unit, which all models that predict it state; empty where one of them does not."""
    units_of_name: dict[str, set[str]] = {}
    for tasks_of_model in tasks_of_models:
        for column in columns_of(tasks_of_model):
            if column.name in names:
                units_of_name.setdefault(column.name, set()).add(column.task.unit)
    shared = {}
    for name, units in units_of_name.items():
        if len(units) == 1:
            [shared[name]] = units
        else:  # one states a unit, another one none
            shared[name] = ""
    return shared


@dataclass(frozen=True)
class _Target:
    """What a model predicts for a column of the truth, or for its masks.

    Attributes:
        model: its name.
        what: ``"classes"``, ``"masks"`` or ``"numbers"``, also in messages.
        task: whose output it is.
        area: of the transform of the task; None if it has none.
    """

    model: str
    what: str
    task: Task
    area: float | None


def _targets_of(model: str, predictor: Predictor) -> dict[str, _Target]:
    """Target -> what a model predicts for it."""
    areas: dict[str, float | None] = {}
    for loaded_head in _loaded_heads(predictor):
        areas |= areas_of(loaded_head.head)
    targets = {}
    for column in columns_of(predictor.tasks):
        task = column.task
        if task.kind != "classification":
            targets[column.name] = _Target(model, "numbers", task, areas.get(task.name))
    for task in predictor.tasks:
        if task.kind == "classification":
            targets[task.name] = _Target(model, "classes", task, None)
        elif task.kind == "segmentation":
            targets[task.name] = _Target(model, "masks", task, None)
    return targets


def _check_alike(models: Mapping[str, Predictor]) -> None:
    """Raise a DataError if two models predict different things for a target, or a ratio, of one name.

    A unit or an area that only some of them state is no difference; a warning names the unit.
    """
    targets_of_name: dict[str, list[_Target]] = {}
    for model, predictor in models.items():
        for name, target in _targets_of(model, predictor).items():
            targets_of_name.setdefault(name, []).append(target)
    for name, targets in targets_of_name.items():
        first = targets[0]
        for target in targets[1:]:
            if first.what != target.what:
                raise DataError(
                    f"{first.model} predicts {first.what} for {name}, and {target.model} "
                    f"{target.what}; evaluate them apart"
                )
            if target.what != "numbers":
                _check_classes(name, first, target)
        if first.what == "numbers":
            _check_units(name, targets)
            _check_areas(name, targets)
    _check_ratios(models)


def _check_ratios(models: Mapping[str, Predictor]) -> None:
    """Raise a DataError if two models predict ratios of one name and of other parts."""
    first_ratios: dict[str, tuple[str, Task]] = {}
    for model, predictor in models.items():
        for task in predictor.tasks:
            if task.kind != "ratio":
                continue
            first_model, first = first_ratios.setdefault(task.name, (model, task))
            if {*task.labels} != {*first.labels}:
                raise DataError(
                    f"{first_model} predicts the ratio {task.name} of {_parts_of(first)}, and "
                    f"{model} of {_parts_of(task)}; evaluate them apart"
                )


def _check_shares(
    predictors: Mapping[str, Predictor], targets_of_models: Mapping[str, Mapping[str, ScoredTarget]]
) -> None:
    """Raise a DataError if two models predict a part's shares of other wholes, which differ in their truth.

    Args:
        predictors: name -> model.
        targets_of_models: name -> its targets, see :func:`_scored_targets`.
    """
    first_ratios: dict[str, tuple[str, Task]] = {}  # by part
    for model, targets in targets_of_models.items():
        tasks = {task.name: task for task in predictors[model].tasks}
        for name, target in targets.items():
            ratio = tasks[target.output]
            is_share = ratio.kind == "ratio" and name in ratio.labels
            if not is_share:
                continue
            first_model, first = first_ratios.setdefault(name, (model, ratio))
            if {*ratio.labels} != {*first.labels}:
                raise DataError(
                    f"{first_model} predicts the share of {name} in {_parts_of(first)}, and "
                    f"{model} in {_parts_of(ratio)}; evaluate them apart"
                )


def _parts_of(ratio: Task) -> str:
    """The parts of a ratio, in words."""
    if not ratio.labels:
        return f"{ratio.dim} parts without names"
    return " + ".join(ratio.labels)


def _check_units(name: str, targets: Sequence[_Target]) -> None:
    """Raise a DataError if two models state other units of a target; warn if only some state one."""
    stated = [target for target in targets if target.task.unit]
    for target in stated:
        unit = stated[0].task.unit
        if target.task.unit != unit:
            raise DataError(
                f"{stated[0].model} predicts {name} in {unit}, and {target.model} in "
                f"{target.task.unit}; evaluate them apart, each with the truth in its unit"
            )
    silent = [target.model for target in targets if not target.task.unit]
    if stated and silent:
        logger.warning(
            "%s states no unit of %s, and %s predicts it in %s: if it was trained on another "
            "unit, its scores are wrong; evaluate it apart, or train it with its unit "
            "(--unit)",
            some_of(silent, 3),
            name,
            stated[0].model,
            stated[0].task.unit,
        )


def _check_areas(name: str, targets: Sequence[_Target]) -> None:
    """Raise a DataError if two models state other areas of the images of a target."""
    stated = [target for target in targets if target.area]
    for target in stated:
        area = stated[0].area
        if target.area != area:
            raise DataError(
                f"{stated[0].model} predicts {name} of an area of {area:g}, and "
                f"{target.model} of {target.area:g}; evaluate them apart, each with images of "
                "its area"
            )


def _check_classes(name: str, first: _Target, other: _Target) -> None:
    """Raise a DataError if two models predict other classes, or number them otherwise in masks."""
    first_labels = first.task.labels
    labels = other.task.labels
    is_same = {*first_labels} == {*labels}
    if not is_same or (first_labels != labels and first.what == "masks"):
        raise DataError(
            f"{first.model} predicts the classes {first_labels} of {name}, and {other.model} "
            f"{labels}; evaluate them apart"
        )


def _not_shared(predictions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each target that only some of the models predict."""
    models_of_target: dict[str, list[str]] = {}
    for model, predictions_of_model in predictions.items():
        for name in predictions_of_model:
            models_of_target.setdefault(name, []).append(model)
    lines = []
    for name, models in models_of_target.items():
        if len(models) < len(predictions):
            lines.append(f"{name}: predicted by {', '.join(models)} only, so it is not compared")
    return lines


def _opened(model: Any) -> Predictor | Detector:
    """A model that can be called, of a model or of what it is opened from."""
    if isinstance(model, Detector):
        return model
    if isinstance(model, Predictor):
        if isinstance(model.tasks, Mapping):  # one of several heads has tasks by their keys
            raise ConfigError(
                f"the model has the keys {', '.join(model.tasks)}; give {{name: model}} with a head each"
            )
        return model
    [checkpoints] = open_heads(model).values()
    first: Any = checkpoints[0]
    if getattr(first, "head_type", "") == "detector":
        detector = Detector.from_checkpoint(first)
        detector.source = first.source or ""
        return detector
    return Predictor(checkpoints)


def truth_table(
    images: Any,
    truth: Any,
    tasks_of_models: Sequence[Sequence[Task]],
    group: Any = (),
    image_column: str = "image",
    labels: Any = None,
    subfolders: Subfolders | None = None,
) -> Any:
    """Return the images and their truth: of a table, of class folders, or of a folder of masks.

    Args:
        images: folder of the images; None = those of the truth, whose files are not looked for if
            it is a table.
        truth: a CSV file or a DataFrame, a folder, or a table of :func:`dinoneck.data.read_table`.
        tasks_of_models: the tasks of each model, whose columns are read.
        group: columns of the table.
        image_column: its column of file names.
        labels: its column of masks.
        subfolders: as of :func:`evaluate`.

    Raises:
        ConfigError: for ``group`` or ``labels`` of a folder, or of a table without such a column;
            for ``subfolders`` of a table, or of masks in a folder of their own.
        DataError: if the truth has nothing that is predicted, a cell does not fit, or a column that
            is predicted as numbers holds words or classes.
    """
    tasks = _tasks_by_name(tasks_of_models)
    if isinstance(truth, str | os.PathLike) and Path(truth).is_dir():
        for name, value in {"group": group, "labels": labels}.items():
            if value:
                raise ConfigError(
                    f"{name} is {value!r}, which is a column of a table, and the truth {truth} is "
                    "a folder; leave it out"
                )
        return _truth_of_folder(images, Path(truth), tasks, subfolders)
    if subfolders is not None:
        raise ConfigError(
            f"subfolders is {subfolders!r}, and the truth is a table; expected a folder of class "
            "folders, or leave it out"
        )
    predicted = _columns_of(tasks_of_models)
    if IMAGES in getattr(truth, "columns", ()):
        for role, value in {GROUP: group, LABELS: labels}.items():
            if value and role not in truth:
                raise ConfigError(
                    f"{role} is {value!r}, and the table of read_table() has no column {role!r}; "
                    f"name it with {role}= of read_table(), which makes it"
                )
        _warn_of_missing_parts(tasks, predicted, truth.columns)
        names = _scored_names(predicted)
        if LABELS in truth or not truth.columns.intersection(names).empty:  # else an error
            _warn_of_near_columns(names, truth.columns)
        _check_numbers(truth, _number_columns(truth, tasks, predicted))
        return truth
    return _read_truth(images, truth, predicted, tasks, group, image_column, labels)


def _number_columns(
    table: Any, tasks: Mapping[str, Task], predicted: Sequence[Column]
) -> list[str]:
    """The columns of a table that are scored as numbers: those that are predicted, and parts of ratios."""
    names = [column.name for column in predicted if column.task.kind != "classification"]
    for task in tasks.values():
        if _has_scored_shares(task, predicted) and not _missing_parts(task, table.columns):
            names += task.labels
    return [name for name in dict.fromkeys(names) if name in table]


def _check_numbers(table: Any, columns: Sequence[str]) -> None:
    """Raise a DataError for words in a column that is scored as numbers."""
    for column in columns:
        names = class_names(table, column)
        words = [word for word in names if not is_number(word)]
        if names and not words:
            raise DataError(
                f"{FRAME_NAME}: {column} is categorical, of the classes "
                f"{some_of(map(repr, names), 5)}, and the heads predict numbers; expected a column "
                f"of float64, which table[{column!r}].astype(float) gives"
            )
        if not words:
            continue
        image_id = table.index[table[column].isin(words).to_numpy()][0]
        raise DataError(
            f"{FRAME_NAME}: {column} of {image_id!r} is {table[column][image_id]!r}, and the heads "
            "predict numbers; expected a number in every cell, or an empty one where it is unknown"
        )


def _read_truth(
    images: Any,
    truth: Any,
    predicted: Sequence[Column],
    tasks: Mapping[str, Task],
    group: Any,
    image_column: str,
    labels: Any,
) -> Any:
    """The table of a CSV file or a DataFrame, with the columns that are predicted."""
    cells = truth if hasattr(truth, "columns") else read_cells(truth)
    columns = [str(column) for column in cells.columns]
    classes = {
        name: task.labels
        for name, task in tasks.items()
        if task.kind == "classification" and name in columns
    }
    _warn_of_missing_parts(tasks, predicted, columns)
    names = [column.name for column in predicted if column.task.name not in classes]
    for task in tasks.values():  # shares are computed from the numbers of all parts
        if task.kind == "ratio" and not _missing_parts(task, columns):
            names += [part for part in task.labels if part not in names and part not in classes]
    numbers = [name for name in names if name in columns]
    targets = [*classes, *numbers]
    if not targets and labels is None:
        raise _nothing_to_score(_scored_names(predicted), columns)
    _warn_of_near_columns(_scored_names(predicted), columns)
    return read_truth(
        truth,
        images,
        targets,
        group=group,
        image_column=image_column,
        labels=labels,
        classes=classes,
        numbers=numbers,
    )


def _scored_names(predicted: Sequence[Column]) -> list[str]:
    """The columns that a truth is looked for in: those of numbers, and one for the classes of a task."""
    names = {}
    for column in predicted:
        is_class = column.task.kind == "classification"
        names[column.task.name if is_class else column.name] = True
    return list(names)


def _nothing_to_score(names: Sequence[str], columns: Sequence[str]) -> DataError:
    """The error for a truth without a column of what is predicted."""
    message = (
        f"the truth has none of what is predicted, {some_of(names, 5)}; it has the columns "
        f"{some_of(columns, 5)}"
    )
    for name in names:
        hint = did_you_mean(name, columns)
        if hint:
            message += f".{hint}"
            break
    return DataError(message)


def _warn_of_near_columns(names: Sequence[str], columns: Sequence[str]) -> None:
    """Name predicted columns that the truth has in capitals or small letters alone: they are not scored."""
    column_of = {column.casefold(): column for column in columns}
    for name in names:
        if name not in columns and name.casefold() in column_of:
            logger.warning(
                "the truth has no column %r, which is not scored. Did you mean %r?",
                name,
                column_of[name.casefold()],
            )


def _truth_of_folder(
    images: Any, truth: Path, tasks: Mapping[str, Any], subfolders: Subfolders | None
) -> Any:
    """The images and their truth, of a folder of masks or of class folders."""
    if any(task.is_map for task in tasks.values()):
        if _is_another_folder(images, truth):
            if subfolders is not None:
                raise ConfigError(
                    f"subfolders is {subfolders!r}, and {truth} holds the masks of {images}, whose "
                    "folders say nothing; leave it out"
                )
            return read_masks(images, truth)
        content = read_data_folder(truth, subfolders)
        if content.kind != "masks":
            raise DataError(
                f"{truth} holds no images with masks; name the folder of the images, and that of "
                "the masks as the truth"
            )
        _check_has_no_parts(content)
        return table_of_folder(content)
    classes = [task.name for task in tasks.values() if task.kind == "classification"]
    if len(classes) != 1:
        raise DataError(
            f"the truth {truth} is a folder, whose folders are the classes of one target; the heads "
            f"predict {some_of(tasks, 5)}. Name a CSV with these columns"
        )
    content = read_data_folder(truth, subfolders)
    if content.kind != "classes":
        raise DataError(f"the truth {truth} has no class folders, and the heads predict classes")
    if _is_another_folder(images, truth):
        raise DataError(
            f"the truth {truth} has class folders, which hold the images to predict; name it in the "
            f"place of {images}"
        )
    _check_has_no_parts(content)
    return table_of_folder(content).rename(columns={"class": classes[0]})


def _is_another_folder(images: Any, truth: Path) -> bool:
    """Whether a folder of images is given, and is another one than that of the truth."""
    return images is not None and not Path(images).samefile(truth)


def _check_has_no_parts(content: DataFolder) -> None:
    """Raise a DataError for a folder whose folders are parts such as train and val; folds are none."""
    if content.held_out is not None:
        raise DataError(
            f"{content.root} holds the parts {', '.join(content.parts)}; name the folder of one"
        )


def _scored_targets(
    predictor: Predictor, table: Any, columns: Sequence[Column], masks: Mapping[str, DenseLabels]
) -> dict[str, ScoredTarget]:
    """Target -> its truth in the table and where one model predicts it; what the table does not know is left out.

    Args:
        predictor: the model.
        table: the truth.
        columns: those that all models predict.
        masks: segmentation task -> how its masks are read.
    """
    targets = _column_targets(predictor.tasks, table)
    for task in predictor.tasks:
        if _has_scored_shares(task, columns) and not _missing_parts(task, table.columns):
            for part, target in _share_targets(task, table).items():
                if part not in targets:  # else it is a part of an earlier ratio, which counts
                    targets[part] = target
    if LABELS in table:
        for task in predictor.tasks:
            if task.kind == "segmentation":
                targets[task.name] = _mask_target(task, table, predictor, masks)
    return targets


def _mask_target(
    task: Task, table: Any, predictor: Predictor, masks: Mapping[str, DenseLabels]
) -> PixelTarget:
    """The classes of the pixels of masks, which are read as the model prepares their images."""
    images = list(table[IMAGES])
    files = list(table[LABELS])

    def pixels(row: int) -> torch.Tensor:
        if is_missing(files[row]):
            return torch.full((1, 1, 1), -1)
        size = read_image_size(images[row])
        return masks[task.name].indices([files[row]], predictor.preprocess, [size])

    return PixelTarget(
        task.name,
        num_rows=len(table),
        num_classes=task.dim,
        labels=task.labels,
        pixels=pixels,
    )


def _first_of_each(
    targets_of_models: Iterable[Mapping[str, ScoredTarget]],
) -> dict[str, ScoredTarget]:
    """Target -> that of the first model that predicts it: classes are numbered as by its head."""
    first: dict[str, ScoredTarget] = {}
    for targets in targets_of_models:
        for name, target in targets.items():
            if name not in first:
                first[name] = target
    return first


def _column_targets(tasks: Sequence[Task], table: Any) -> dict[str, ScoredTarget]:
    """The targets that have a column of their own in the table: numbers, and the classes of a task."""
    targets: dict[str, ScoredTarget] = {}
    for column, task, place in columns_of(tasks):
        # the groups of the table are not the truth of a class "group"
        if column in OWN_COLUMNS or task.name in OWN_COLUMNS:
            continue
        if task.kind == "classification":
            # a column per class, and one truth for all of them
            if place == 0 and task.name in table:
                labels = task.labels or tuple(map(str, range(task.dim)))
                codes = class_codes(table[task.name], task.name, labels)
                targets[task.name] = ClassTarget(task.name, truth=np.asarray(codes), labels=labels)
        elif column in table and not class_names(table, column):
            numbers = column_numbers(table, column)[:, None]
            targets[column] = ValueTarget(task.name, columns=(place,), truth=numbers)
    return targets


def _share_targets(task: Task, table: Any) -> dict[str, ScoredTarget]:
    """The shares of a ratio by the columns of its parts, as training scores them.

    Raises:
        DataError: if a part is negative.
    """
    parts = np.stack([column_numbers(table, part) for part in task.labels], axis=1)
    if (parts < 0).any():
        image_id = table.index[(parts < 0).any(axis=1)][0]
        raise DataError(
            f"the parts {some_of(task.labels, 5)} of {task.name} have a negative value of "
            f"{image_id!r}, which has no share; correct it"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = parts / parts.sum(axis=1, keepdims=True)  # of nothing the shares are unknown
    targets: dict[str, ScoredTarget] = {}
    for i, part in enumerate(task.labels):
        targets[part] = ValueTarget(task.name, columns=(i,), truth=shares[:, i : i + 1])
    return targets


def _predictions(
    predictor: Predictor,
    table: Any,
    targets: Mapping[str, ScoredTarget],
    class_names_of_targets: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Target -> the predictions of all images by one model.

    Args:
        predictor: the model.
        table: its images.
        targets: those that the model predicts.
        class_names_of_targets: target -> its classes, in the order in which the truth numbers them.
    """
    has_masks = LABELS in table and any(task.is_map for task in predictor.tasks)
    predict = partial(predictor, maps="patch" if has_masks else None)
    row_of_image = predict_many(predict, list(table[IMAGES]), at_once=4 * predictor.batch_size)
    rows = list(row_of_image.values())
    predictions: dict[str, Any] = {}
    for name, target in targets.items():
        if isinstance(target, ValueTarget):
            outputs = np.stack([np.reshape(row[target.output], -1) for row in rows])
            predictions[name] = outputs[:, list(target.columns)]
        elif isinstance(target, ClassTarget):
            predictions[name] = _classes(target, rows, class_names_of_targets[name])
        else:
            class_maps = [torch.as_tensor(row["maps"][target.output]) for row in rows]
            predictions[name] = target.read(class_maps, range(len(rows)))
    return predictions


def _classes(target: ClassTarget, rows: Sequence[Any], names: Sequence[str]) -> Any:
    """The most probable class of every image (n,), as its number among the names of classes."""
    numbers = []
    for row in rows:
        number = int(np.argmax(row[target.output]))
        if target.labels:  # the head of this model may number its classes otherwise
            number = names.index(target.labels[number])
        numbers.append(number)
    return np.array(numbers)


def _missing_parts(task: Task, columns: Sequence[str]) -> list[str]:
    """The parts of a ratio that the truth lacks."""
    return [part for part in task.labels if part not in columns]


def _has_scored_shares(task: Task, predicted: Sequence[Column]) -> bool:
    """Whether a task is a ratio whose shares are scored: what a model predicts itself is no share."""
    if task.kind != "ratio" or not task.labels:  # without labels the parts have no columns
        return False
    names = {column.name for column in predicted} | {column.task.name for column in predicted}
    return names.isdisjoint(task.labels)


def _warn_of_missing_parts(
    tasks: Mapping[str, Task], predicted: Sequence[Column], columns: Sequence[str]
) -> None:
    """Name the parts that the truth lacks of a ratio of which it has some."""
    for task in tasks.values():
        if not _has_scored_shares(task, predicted):
            continue
        missing = _missing_parts(task, columns)
        if missing and len(missing) < len(task.labels):
            shown = some_of(missing, 5)
            logger.warning("the shares %s are not scored: the truth lacks %s", task.name, shown)


def _mask_records(models: Mapping[str, Predictor]) -> list[MaskRecord]:
    """How the trainings of the heads that predict segmentations read their masks.

    A file that records nothing of it has an empty record; modules in memory have none.
    """
    records: list[MaskRecord] = []
    for model in models.values():
        for loaded_head in _loaded_heads(model):
            if not any(task.kind == "segmentation" for task in loaded_head.head.tasks):
                continue
            records += loaded_head.mask_records
            recorded = {record.source for record in loaded_head.mask_records}
            records += [MaskRecord(file) for file in loaded_head.files if file not in recorded]
    return records


def _as_in_training(asked: MaskRecord, records: Sequence[MaskRecord]) -> MaskRecord:
    """How masks are read: what the call leaves open is as in the trainings, and stated in a log line.

    Raises:
        ConfigError: if trainings differ, or the call contradicts one.
    """
    with_class_values = [record for record in records if record.class_values]
    with_nodata = [record for record in records if record.nodata]
    _check_class_values(asked, with_class_values)
    if not asked.class_values:
        _check_none_without_class_values(with_class_values, records)
    _check_nodata(asked, with_nodata)
    # whose class values and whose nodata are taken
    values_of = asked
    nodata_of = asked
    taken = []
    if with_class_values and not asked.class_values:
        values_of = with_class_values[0]
        taken.append(f"class values {_listed(values_of.class_values)}")
    if with_nodata and not asked.nodata:
        nodata_of = with_nodata[0]
        taken.append(f"nodata {_listed(nodata_of.nodata)}")
    _check_apart(asked, values_of, nodata_of)
    if taken:
        logger.warning("masks are read as in training: %s", ", ".join(taken))
    return MaskRecord(asked.source, values_of.class_values, nodata_of.nodata)


def _check_class_values(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the class values of trainings differ from another, or from the call."""
    for record in records:
        first = records[0]
        if record.class_values != first.class_values:
            raise ConfigError(
                f"the training of {first.source} read masks with the class values "
                f"{_listed(first.class_values)}, that of {record.source} with "
                f"{_listed(record.class_values)}; evaluate them apart"
            )
        if asked.class_values and asked.class_values != record.class_values:
            raise ConfigError(
                f"class_values are {_listed(asked.class_values)}, and the training of "
                f"{record.source} read masks with the class values {_listed(record.class_values)}; "
                "leave class_values out (--class-values), and write the masks with the values of "
                "the training if they have others"
            )


def _check_none_without_class_values(
    with_class_values: Sequence[MaskRecord], records: Sequence[MaskRecord]
) -> None:
    """Raise a ConfigError if one training records class values of its own, and another one records none."""
    without = [record for record in records if not record.class_values]
    if not with_class_values or not without:
        return
    values = with_class_values[0].class_values
    if values == tuple(range(len(values))):  # the classes of masks that nothing is recorded of
        return
    raise ConfigError(
        f"the training of {with_class_values[0].source} read masks with the class values "
        f"{_listed(values)}, and that of {without[0].source} records none, which is 0, 1, ...; "
        "evaluate them apart, or pass class_values (--class-values) if the masks mean the same to "
        "both"
    )


def _check_nodata(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the nodata of trainings differ, or the call leaves some of it out."""
    for record in records:
        first = records[0]
        if {*record.nodata} != {*first.nodata}:
            raise ConfigError(
                f"the training of {first.source} read masks with nodata {_listed(first.nodata)}, "
                f"that of {record.source} with {_listed(record.nodata)}; evaluate them apart"
            )
        if asked.nodata and not {*record.nodata} <= {*asked.nodata}:
            raise ConfigError(
                f"nodata is {_listed(asked.nodata)}, and the training of {record.source} read "
                f"masks with nodata {_listed(record.nodata)}; leave nodata out (--nodata), or name "
                f"{_listed(record.nodata)} among it"
            )


def _check_apart(asked: MaskRecord, values_of: MaskRecord, nodata_of: MaskRecord) -> None:
    """Raise a ConfigError if a class of one source is nodata of another one."""
    if values_of is nodata_of:
        return
    both = {*values_of.class_values} & {*nodata_of.nodata}
    if not both:
        return
    if asked in (values_of, nodata_of):
        remedy = "leave the option out that names it"
    else:
        remedy = "evaluate them apart"
    raise ConfigError(
        f"the class values of {values_of.source} are {_listed(values_of.class_values)}, "
        f"and {min(both):g} is nodata of {nodata_of.source}; {remedy}"
    )


def _listed(values: Sequence[float]) -> str:
    """Values as the command line has them."""
    return " ".join(f"{value:.12g}" for value in values)


def _mask_readers(
    table: Any, tasks: Mapping[str, Task], asked: MaskRecord, records: Sequence[MaskRecord]
) -> dict[str, DenseLabels]:
    """How the masks of a table are read, by segmentation task; a class that they do not show is warned of."""
    if LABELS not in table:
        return {}
    masks = masks_of(table)
    segmentations = [task for task in tasks.values() if task.kind == "segmentation"]
    if not segmentations or not masks.files:
        return {}
    read_as = _as_in_training(asked, records)
    survey = survey_masks(masks.files, read_as.nodata, masks.image_sizes)
    readers = {}
    for task in segmentations:
        names = task.labels or tuple(map(str, range(task.dim)))
        classes = mask_classes(survey, names, read_as.class_values)
        warn_of_class_lists(masks.files, classes.names, classes.stored)
        warn_of_empty_classes(
            classes.pixels,
            "pixel",
            "the masks",
            remedy="Its IoU is unknown, or 0 where the class is predicted",
        )
        readers[task.name] = reader_of_classes(classes, read_as.nodata)
    return readers


def _score_objects(
    kind: _Objects, models: Mapping[str, Any], truth: Any, images: Any, crowd: Crowd
) -> dict[str, Any]:
    """Score models of boxes, masks or segments; of two or more the first is compared with each other one."""
    scores: dict[str, dict[str, Any]] = {}
    cost = {}
    results: dict[str, list[dict[str, Any]]] = {}  # not of panoptic segments
    datasets: dict[str, Any] = {}
    for name, model in models.items():
        begin = time.perf_counter()
        dataset: Any
        if kind == "boxes":
            dataset, boxes = predict_boxes(model, truth, images, crowd=crowd)
            scores[name] = score_boxes(dataset, boxes)
            results[name] = coco_results(boxes, dataset)
        elif kind == "masks":
            dataset, objects = predict_masks(model, truth, images, crowd=crowd)
            scores[name] = score_masks(dataset, objects)
            results[name] = mask_results(objects, dataset)
        else:
            dataset, segments = predict_masks(model, truth, images, crowd=crowd)
            scores[name] = score_segments(dataset, segments)
        datasets[name] = dataset
        cost[name] = _cost(model, begin, scores[name]["images"])
    paths = next(iter(datasets.values())).paths
    report: dict[str, Any] = {kind: scores, "cost": cost, "versions": versions()}
    report |= _count_seen(models, paths)
    if len(results) > 1:
        iou_type = "bbox" if kind == "boxes" else "segm"
        report["verdict"] = _compare_objects(scores, results, datasets, iou_type)
    return report


def _compare_objects(
    scores: dict[str, dict[str, Any]],
    results: Mapping[str, list[dict[str, Any]]],
    datasets: Mapping[str, Any],
    iou_type: str,
) -> str:
    """Add ``head_minus`` to the scores of all models but the first; return the verdict on AP."""
    first, *others = results
    sentences = []
    dataset = datasets[first]
    for name in others:
        if {*datasets[name].classes} != {*dataset.classes}:
            sentences.append(
                f"{first} and {name} predict the classes {dataset.classes} and "
                f"{datasets[name].classes}; their AP is not compared"
            )
            continue
        intervals = precision_intervals(dataset, results[first], results[name], iou_type)
        scores[name]["head_minus"] = intervals
        sentences.append(_verdict(first, name, intervals["AP"], scores[first]["images"]))
    return "\n".join(sentences)


def _verdict(first: str, other: str, ends: list[float] | None, images: int) -> str:
    difference = f"AP of {first} minus AP of {other}"
    if ends is None:
        return f"{difference}: {images} images are too few for an interval"
    clear = "clear: the interval excludes 0"
    if ends[0] <= 0 <= ends[1]:
        clear = "not clear: the interval includes 0"
    return f"{difference} is {ends[0]:+.3f} ... {ends[1]:+.3f} over {images} images, {clear}"


def _cost(model: Predictor | Detector, begin: float, images: int) -> dict[str, float]:
    """Seconds per image since ``begin``, and the parameters of the heads and of the backbone."""
    seconds = (time.perf_counter() - begin) / images
    backbone_parameters = list(model.backbone.parameters())
    backbone_ids = {id(parameter) for parameter in backbone_parameters}
    head_parameters = []
    for head in _heads_of(model):
        for parameter in head.parameters():
            if id(parameter) not in backbone_ids:  # a detector holds its backbone
                head_parameters.append(parameter)
    return {
        "seconds_per_image": seconds,
        "parameters": sum(parameter.numel() for parameter in head_parameters),
        "backbone_parameters": sum(parameter.numel() for parameter in backbone_parameters),
    }


def _heads_of(model: Predictor | Detector) -> list[torch.nn.Module]:
    """What reads the tokens of a model's one backbone: its head, or the whole detector."""
    if isinstance(model, Detector):
        return [model]
    return [loaded_head.head for loaded_head in _loaded_heads(model)]
