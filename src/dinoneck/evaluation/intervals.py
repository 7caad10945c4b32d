"""How often the truth lies in the intervals of predictions, and intervals for a head file that has none."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.detection.evaluation import HeadModel
from dinoneck.dtypes import dtype_name
from dinoneck.errors import ConfigError, DataError
from dinoneck.evaluation.models import loaded_heads_of
from dinoneck.inference.predictor import Predictor
from dinoneck.kinds import TTA
from dinoneck.metrics import Array
from dinoneck.runtime.exported import ExportedPredictor
from dinoneck.task_facts import TaskFacts
from dinoneck.task_intervals import Interval
from dinoneck.training.intervals import (
    Intervals,
    intervals_of_tasks,
    no_residuals,
    target_intervals,
    targets_with_residuals,
)
from dinoneck.training.report import HEAD
from dinoneck.training.scored import ClassTarget, ScoredTarget, ValueTarget

Row = Mapping[str, Any]
"""What a model predicts from an image."""


def coverages(
    targets: Mapping[str, ScoredTarget], tasks: Sequence[TaskFacts], rows: Sequence[Row]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return target -> ``coverage`` and ``width`` by the levels that its task stores.

    ``coverage`` is the share of the images with a known truth whose truth lies in the interval, or
    whose class is in the prediction set. ``width`` is the mean of the intervals' widths, within
    minimum and maximum, or of the numbers of labels.

    Args:
        targets: what a model predicts.
        tasks: of the model.
        rows: of all images, in the order of the truth.
    """
    task_of_name = {task.name: task for task in tasks}
    by_target: dict[str, dict[str, dict[str, float]]] = {}
    for name, target in targets_with_residuals(targets).items():
        task = task_of_name[target.output]
        coverage = {}
        width = {}
        for level in task.interval_levels:
            if isinstance(target, ClassTarget):
                is_inside, widths = _in_sets(target, task, rows, level)
            else:
                is_inside, widths = _in_bounds(target, task, rows, level)
            if len(widths):
                coverage[f"{level:g}"] = float(is_inside.mean())
                width[f"{level:g}"] = float(widths.mean())
        if coverage:
            by_target[name] = {"coverage": coverage, "width": width}
    return by_target


def _in_bounds(
    target: ValueTarget, task: TaskFacts, rows: Sequence[Row], level: float
) -> tuple[Array, Array]:
    """Whether the known values lie in their intervals, and the widths of these; none without an interval."""
    [column] = target.columns
    is_inside = []
    widths = []
    for row, truth in zip(rows, target.truth[:, 0].tolist(), strict=True):
        lows, highs = task.bounds(row[task.name], level)
        low = lows[column]
        high = highs[column]
        if np.isnan(truth) or np.isnan(low):
            continue
        is_inside.append(low <= truth <= high)
        widths.append(high - low)
    return np.array(is_inside), np.array(widths)


def _in_sets(
    target: ClassTarget, task: TaskFacts, rows: Sequence[Row], level: float
) -> tuple[Array, Array]:
    """Whether the known classes are in their prediction sets, and how many labels these have."""
    is_inside = []
    sizes = []
    for row, truth in zip(rows, target.truth.tolist(), strict=True):
        if truth < 0:
            continue
        labels = task.prediction_set(row[task.name], level)
        is_inside.append(target.labels[truth] in labels)
        sizes.append(len(labels))
    return np.array(is_inside), np.array(sizes)


@dataclass(frozen=True)
class Calibration:
    """Measures the errors of a head, and writes a copy of its file with the intervals that follow.

    Attributes:
        checkpoint: of the head.
        model: the head on its backbone.
        out: the file to write.
    """

    checkpoint: HeadCheckpoint
    model: HeadModel
    out: str | os.PathLike[str]

    @classmethod
    def of(cls, models: Mapping[str, HeadModel], out: str | os.PathLike[str]) -> Calibration:
        """Return the calibration of the one model.

        Raises:
            ConfigError: if there are several models; if the model is of several files, of a module,
                exported or cut into tiles; if its views, its dtype or its preparation of images
                differ from those that its file records; or if the file has intervals.
        """
        if len(models) > 1:
            raise ConfigError(
                f"calibrate is {str(out)!r}, the file of one model with intervals, and there are "
                f"{len(models)} models: {', '.join(models)}; name one (--heads)"
            )
        [model] = models.values()
        if isinstance(model, ExportedPredictor):
            raise ConfigError(
                f"calibrate is {str(out)!r}, and {model.source} is an exported file; calibrate its head "
                "file, and export that"
            )
        if model.tiling is not None:
            raise ConfigError(
                f"calibrate is {str(out)!r}, and tile is {model.tiling.tile}: intervals hold for images "
                "that are not cut; leave one of them out"
            )
        loaded_heads = loaded_heads_of(model)
        checkpoint = loaded_heads[0].checkpoint if len(loaded_heads) == 1 else None
        if checkpoint is None:
            raise ConfigError(
                f"calibrate is {str(out)!r}, which adds intervals to a head file, and the model is "
                "not one head file; name one, and save several heads as one with "
                "HeadEnsemble.from_heads"
            )
        recorded_views = loaded_heads[0].views
        if model.tta != recorded_views:
            raise ConfigError(
                f"calibrate is {str(out)!r}, and tta is {model.tta!r}: the file records the views "
                f"{recorded_views!r}, by which it would predict with intervals of other errors; leave "
                "tta out (--tta)"
            )
        _check_dtype(checkpoint, model, out)
        _check_preparation(checkpoint, model, out)
        for task in checkpoint.tasks:
            if task.interval:
                raise ConfigError(
                    f"calibrate is {str(out)!r}, and {checkpoint.source or 'the head'} holds "
                    f"intervals of {task.name!r} already; leave calibrate out (--calibrate)"
                )
        return cls(checkpoint, model, out)

    def intervals(
        self, targets: Mapping[str, ScoredTarget], rows: Sequence[Row], groups: Sequence[Hashable]
    ) -> Intervals:
        """Return the intervals of the head's tasks, by how far its predictions are off; they name its views.

        Args:
            targets: what it predicts, with the truth.
            rows: its predictions of all images, in the order of the truth.
            groups: one label per image.
        """
        residuals = no_residuals(targets)
        for name, target in targets_with_residuals(targets).items():
            outputs = np.stack([np.reshape(row[target.output], -1) for row in rows])
            if isinstance(target, ValueTarget):
                outputs = outputs[:, list(target.columns)]
            residuals[name] = target.residuals(outputs, range(len(rows)))
        measured = target_intervals(targets, {HEAD: residuals}, groups)
        by_task = intervals_of_tasks(measured, HEAD, self.checkpoint.tasks)
        views = cast(TTA, self.model.tta)  # a Predictor has checked the name
        with_views: dict[str, Sequence[Interval]] = {}
        for name, intervals in by_task.items():
            with_views[name] = [replace(interval, views=views) for interval in intervals]
        return with_views

    def write(self, intervals: Intervals, *, num_images: int, num_trained_on: int) -> None:
        """Write the file with intervals.

        Args:
            intervals: of :meth:`intervals`.
            num_images: on which they rest.
            num_trained_on: how many of these the head was trained on.

        Raises:
            DataError: if it was trained on some of the images, or there are no intervals.
        """
        if num_trained_on > 0:
            raise DataError(
                f"{num_trained_on} of the {num_images} images are those that the head was trained "
                "on, so that intervals of its errors on them would be too narrow; calibrate with "
                "other images"
            )
        if not intervals:
            raise DataError(
                "there are no intervals to write: the truth has no known number of an image, and no "
                "class, that the head predicts"
            )
        self.checkpoint.with_intervals(intervals).save(self.out)


def _check_dtype(checkpoint: HeadCheckpoint, model: Predictor, out: str | os.PathLike[str]) -> None:
    """Raise a ConfigError for a backbone in another dtype than the one that a file is predicted with."""
    record = checkpoint.meta["backbone"]
    if record is None:
        return
    recorded = record.get("dtype") or "float32"
    dtype = dtype_name(model.backbone.dtype)
    if dtype != recorded:
        raise ConfigError(
            f"calibrate is {str(out)!r}, and the backbone computes in {dtype}: the file records "
            f"{recorded}, in which it would predict with intervals of other errors; leave the dtype out "
            "(--precision)"
        )


def _check_preparation(
    checkpoint: HeadCheckpoint, model: Predictor, out: str | os.PathLike[str]
) -> None:
    """Raise a ConfigError for images that are prepared in another way than a file records.

    The bits of the images count where the file records them.
    """
    recorded = checkpoint.preprocess
    if recorded is None:
        return
    names = list(asdict(recorded))
    if recorded.bits is None:
        names.remove("bits")
    for name in names:
        value = getattr(model.preprocess, name)
        if value != getattr(recorded, name):
            raise ConfigError(
                f"calibrate is {str(out)!r}, and {name} of the images is {value!r}: the file records "
                f"{getattr(recorded, name)!r}, by which it would predict with intervals of other errors; "
                "leave preprocess, blur and bits out (--bits)"
            )
