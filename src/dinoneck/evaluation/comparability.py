"""Whether models can be compared: they predict the same classes, units, areas and wholes of shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dinoneck.errors import DataError
from dinoneck.evaluation.models import HeadModel, loaded_heads_of
from dinoneck.heads.ensemble import areas_of
from dinoneck.task_facts import TaskFacts
from dinoneck.tasks import columns_of
from dinoneck.text import some_of
from dinoneck.training.scored import ScoredTarget

logger = logging.getLogger(__name__)


def check_comparable(predictors: Mapping[str, HeadModel]) -> None:
    """Check that models predict the same for each target, and each ratio, that they have in common.

    A unit or an area that only some of them state is no difference; a warning names the unit.

    Raises:
        DataError: naming the target and two models that differ.
    """
    predictions_of_target: dict[str, list[_Prediction]] = {}
    for model, predictor in predictors.items():
        for name, prediction in _predictions_by_target(model, predictor).items():
            predictions_of_target.setdefault(name, []).append(prediction)
    for name, predictions in predictions_of_target.items():
        first = predictions[0]
        for other in predictions[1:]:
            _check_same_content(name, first, other)
        if first.content == "numbers":
            _check_units(name, predictions)
            _check_areas(name, predictions)
    _check_ratios(predictors)


def check_same_wholes(
    predictors: Mapping[str, HeadModel], targets_of_models: Mapping[str, Mapping[str, ScoredTarget]]
) -> None:
    """Check that all models predict a part's share of the same whole: otherwise the truth differs.

    Args:
        predictors: name -> model.
        targets_of_models: name -> its targets.

    Raises:
        DataError: naming the part and two models that differ.
    """
    first_ratios: dict[str, _Ratio] = {}  # by part
    for model, targets in targets_of_models.items():
        tasks = {task.name: task for task in predictors[model].tasks}
        for name, target in targets.items():
            task = tasks[target.output]
            is_share = task.kind == "ratio" and name in task.labels
            if not is_share:
                continue
            ratio = _Ratio(model, task)
            first_ratios.setdefault(name, ratio)
            first = first_ratios[name]
            if ratio.parts != first.parts:
                raise DataError(
                    f"{first.model} predicts the share of {name} in {first.sum_in_words}, and "
                    f"{model} in {ratio.sum_in_words}; evaluate them apart"
                )


@dataclass(frozen=True)
class _Prediction:
    """What a model predicts for a target.

    Attributes:
        model: its name.
        content: what is predicted, also in messages.
        task: whose output it is.
        area: of the transform of the task; None if it has none.
    """

    model: str
    content: Literal["classes", "labels", "masks", "numbers", "surface normals"]
    task: TaskFacts
    area: float | None = None


@dataclass(frozen=True)
class _Ratio:
    """A ratio that a model predicts.

    Attributes:
        model: its name.
        task: the ratio.
    """

    model: str
    task: TaskFacts

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self.task.labels)

    @property
    def sum_in_words(self) -> str:
        if not self.task.labels:
            return f"{self.task.dim} parts without names"
        return " + ".join(self.task.labels)


def _predictions_by_target(model: str, predictor: HeadModel) -> dict[str, _Prediction]:
    """Target -> what a model predicts for it."""
    areas: dict[str, float | None] = {}
    for loaded_head in loaded_heads_of(predictor):
        areas |= areas_of(loaded_head.head)
    predictions = {}
    for column in columns_of(predictor.tasks):
        task = column.task
        if not (task.is_image_class or task.is_multilabel):
            area = areas.get(task.name)
            predictions[column.name] = _Prediction(model, "numbers", task=task, area=area)
    for task in predictor.tasks:
        if task.is_image_class:
            predictions[task.name] = _Prediction(model, "classes", task=task)
        elif task.is_multilabel:
            predictions[task.name] = _Prediction(model, "labels", task=task)
        elif task.kind == "segmentation":
            predictions[task.name] = _Prediction(model, "masks", task=task)
        elif task.is_unit:
            predictions[task.name] = _Prediction(model, "surface normals", task=task)
    return predictions


def _check_same_content(name: str, first: _Prediction, other: _Prediction) -> None:
    """Raise a DataError if one predicts numbers and the other classes, or other classes.

    Masks hold the numbers of classes, so that their order counts.
    """
    if first.content != other.content:
        raise DataError(
            f"{first.model} predicts {first.content} for {name}, and {other.model} "
            f"{other.content}; evaluate them apart"
        )
    if first.content == "numbers":
        return
    first_labels = first.task.labels
    labels = other.task.labels
    if first.content == "masks":
        are_same = labels == first_labels
    else:
        are_same = {*labels} == {*first_labels}
    if not are_same:
        raise DataError(
            f"{first.model} predicts the classes {first_labels} of {name}, and {other.model} "
            f"{labels}; evaluate them apart"
        )


def _check_units(name: str, predictions: Sequence[_Prediction]) -> None:
    """Raise a DataError if two models state other units of a target; warn if only some state one."""
    stated = [prediction for prediction in predictions if prediction.task.unit]
    for other in stated:
        unit = stated[0].task.unit
        if other.task.unit != unit:
            raise DataError(
                f"{stated[0].model} predicts {name} in {unit}, and {other.model} in "
                f"{other.task.unit}; evaluate them apart, each with the truth in its unit"
            )
    silent = [prediction.model for prediction in predictions if not prediction.task.unit]
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


def _check_areas(name: str, predictions: Sequence[_Prediction]) -> None:
    """Raise a DataError if two models state other areas of the images of a target."""
    stated = [prediction for prediction in predictions if prediction.area]
    for other in stated:
        area = stated[0].area
        if other.area != area:
            raise DataError(
                f"{stated[0].model} predicts {name} of an area of {area:g}, and "
                f"{other.model} of {other.area:g}; evaluate them apart, each with images of "
                "its area"
            )


def _check_ratios(predictors: Mapping[str, HeadModel]) -> None:
    """Raise a DataError if two models predict ratios of one name and of other parts."""
    first_ratios: dict[str, _Ratio] = {}
    for model, predictor in predictors.items():
        for task in predictor.tasks:
            if task.kind != "ratio":
                continue
            ratio = _Ratio(model, task)
            first_ratios.setdefault(task.name, ratio)
            first = first_ratios[task.name]
            if ratio.parts != first.parts:
                raise DataError(
                    f"{first.model} predicts the ratio {task.name} of {first.sum_in_words}, and "
                    f"{model} of {ratio.sum_in_words}; evaluate them apart"
                )
