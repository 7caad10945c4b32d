"""What is scored: numbers, classes and labels of images, classes of pixels and surface normals.

A target of each kind selects what predicts it from the outputs of a head, reads its predictions,
scores them, and writes them into the cells of ``out_of_fold.csv``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from dinoneck.intervals import class_residuals
from dinoneck.metrics import NUM_ANGLE_TERMS, Array, angle_terms, map_confusion
from dinoneck.task_facts import TaskFacts, cell_target_names
from dinoneck.training.scores import (
    Split,
    score_angles,
    score_classes,
    score_labels,
    score_pixels,
    score_values,
)


@dataclass(frozen=True, eq=False)
class ValueTarget:
    """Numbers of images, or of patches; its predictions have the shape of the truth, NaN = none.

    Attributes:
        output: its key in the outputs of ``head.predict``.
        columns: which of the output's columns predict it, t.
        truth: (n, t) in original units, or per patch (n, t, rows, cols); NaN = missing.
        auxiliary: whether it only helps training: it does not count in the overall score.
    """

    output: str
    columns: tuple[int, ...]
    truth: Array
    auxiliary: bool = False

    @property
    def is_per_patch(self) -> bool:
        """Whether it has a value per patch."""
        return self.truth.ndim > 2

    @property
    def has_columns(self) -> bool:
        """Whether ``out_of_fold.csv`` has columns of it."""
        return not self.auxiliary and not self.is_per_patch

    def take(self, rows: Array) -> ValueTarget:
        """Return the target of these rows alone."""
        return replace(self, truth=self.truth[rows])

    def no_predictions(self) -> Array:
        """Return the predictions of all rows where none is known."""
        return np.full_like(self.truth, np.nan)

    def select(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return what predicts it, (B, t) or (B, t, rows, cols), from the outputs of a head."""
        return outputs[self.output][:, list(self.columns)]

    def read(self, selected: Tensor, rows: Sequence[int]) -> Array:
        """Return the predictions of these rows from what :meth:`select` returned."""
        return selected.numpy()

    def residuals(self, predictions: Array, rows: Sequence[int]) -> Array:
        """Return the absolute errors (b,) of a target of one column, NaN where the truth is missing.

        Args:
            predictions: of these rows (b, 1).
            rows: b of them.
        """
        errors: Array = np.abs(self.truth[rows].astype(np.float64) - predictions)
        return errors[:, 0]

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one method, see :func:`dinoneck.training.scores.score_values`.

        Args:
            predictions: of all rows.
            split: the folds and groups of the rows.
            reference: predictions of another method, to compare with.
        """
        return score_values(self.truth, predictions, split, reference=reference)

    def cells(self, values: Array) -> list[float | None]:
        """Return values (n, 1) as numbers with six digits; None for those that are not known."""
        cells: list[float | None] = []
        for value in values[:, 0]:
            if np.isnan(value):
                cells.append(None)
            else:
                cells.append(float(f"{value:.6g}"))
        return cells


def cell_targets(task: TaskFacts, truth: Array) -> dict[str, ValueTarget]:
    """Return the targets of a dense task, a number per patch, by their names in reports.

    Args:
        task: of the map.
        truth: (n, outputs, rows, cols) in original units, NaN = missing.
    """
    names = cell_target_names(task)
    targets = {}
    for i, name in enumerate(names):
        targets[name] = ValueTarget(task.name, columns=(i,), truth=truth[:, i : i + 1])
    return targets


@dataclass(frozen=True, eq=False)
class LabelledTarget:
    """What probabilities of K labels predict: the base of :class:`ClassTarget` and :class:`LabelsTarget`.

    Attributes:
        output: its key in the outputs of ``head.predict``.
        truth: of n images.
        labels: names of the K labels.
        auxiliary: whether it only helps training.
    """

    output: str
    truth: Array
    labels: tuple[str, ...]
    auxiliary: bool = False

    @property
    def has_columns(self) -> bool:
        """Whether ``out_of_fold.csv`` has columns of it."""
        return not self.auxiliary

    def take(self, rows: Array) -> Self:
        """Return the target of these rows alone."""
        return replace(self, truth=self.truth[rows])

    def select(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the probabilities of its labels, (B, K), from the outputs of a head."""
        return outputs[self.output]


@dataclass(frozen=True, eq=False)
class ClassTarget(LabelledTarget):
    """One class per image; its predictions are class indices (n,), -1 = none.

    The truth is class indices (n,), -1 = missing.
    """

    def no_predictions(self) -> Array:
        """Return the predictions of all rows where none is known."""
        return np.full_like(self.truth, -1)

    def read(self, selected: Tensor, rows: Sequence[int]) -> Array:
        """Return the most probable classes of these rows from what :meth:`select` returned."""
        return selected.argmax(dim=1).numpy()

    def residuals(self, probabilities: Array, rows: Sequence[int]) -> Array:
        """Return 1 - the probability of the true class (b,), NaN where the truth is missing.

        Args:
            probabilities: of the classes of these rows (b, K).
            rows: b of them.
        """
        return class_residuals(probabilities, self.truth[rows])

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one method, see :func:`dinoneck.training.scores.score_classes`.

        Args:
            predictions: of all rows.
            split: the folds and groups of the rows.
            reference: predictions of another method, to compare with.
        """
        return score_classes(self.truth, predictions, split, self.labels, reference=reference)

    def cells(self, classes: Array) -> list[str | None]:
        """Return the names of class indices (n,); None for those that are not known."""
        cells: list[str | None] = []
        for index in classes:
            if index < 0:
                cells.append(None)
            else:
                cells.append(self.labels[index])
        return cells


@dataclass(frozen=True, eq=False)
class LabelsTarget(LabelledTarget):
    """Any number of labels per image; its predictions are probabilities (n, K), NaN = none.

    The truth is (n, K): 1 where an image has a label, 0 where it has not, NaN = missing.
    """

    def no_predictions(self) -> Array:
        """Return the predictions of all rows where none is known."""
        return np.full_like(self.truth, np.nan)

    def read(self, selected: Tensor, rows: Sequence[int]) -> Array:
        """Return the probabilities of these rows from what :meth:`select` returned."""
        return selected.numpy()

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one method, see :func:`dinoneck.training.scores.score_labels`.

        Args:
            predictions: of all rows.
            split: the folds and groups of the rows.
            reference: predictions of another method, to compare with.
        """
        return score_labels(
            self.truth,
            predictions,
            split,
            self.labels,
            reference=reference,
        )

    def by_label(self, name: str) -> dict[str, ValueTarget]:
        """Return the columns of ``out_of_fold.csv``: ``name:label`` -> the numbers of a label."""
        targets = {}
        for k, label in enumerate(self.labels):
            targets[f"{name}:{label}"] = ValueTarget(
                self.output, columns=(k,), truth=self.truth[:, k : k + 1]
            )
        return targets


@dataclass(frozen=True, eq=False)
class MapTarget(ABC):
    """What is scored pixel by pixel, and has no columns: the base of :class:`PixelTarget` and :class:`VectorTarget`.

    Attributes:
        output: its key in the outputs of ``head.predict``.
        num_rows: n.
        read_pixels: returns the truth (channels, height, width) of the pixels of a row.
    """

    output: str
    num_rows: int
    read_pixels: Callable[[int], Tensor]
    # maps are never learned for the sake of other targets alone
    auxiliary: ClassVar[bool] = False

    def take(self, rows: Array) -> Self:
        """Return the target of these rows alone."""

        def read_pixels(row: int) -> Tensor:
            return self.read_pixels(int(rows[row]))

        return replace(self, num_rows=len(rows), read_pixels=read_pixels)

    def select(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return its maps (B, channels, rows, cols) from the outputs of a head."""
        return outputs[self.output]

    def read(self, selected: Iterable[Tensor], rows: Sequence[int]) -> Array:
        """Return the predictions of these rows.

        Args:
            selected: what :meth:`select` returned, or maps (channels, rows, cols) of any size.
            rows: one for each map.
        """
        predictions = [
            self.compare([predicted], row)[0] for row, predicted in zip(rows, selected, strict=True)
        ]
        return np.stack(predictions)

    def compare(self, predicted: Sequence[Tensor], row: int) -> list[Array]:
        """Return the predictions of one row by several methods, whose truth is read once.

        Args:
            predicted: a map (channels, rows, cols) of each method.
            row: of all of them.
        """
        truth = self.read_pixels(row)
        return [self.terms(truth, of_method) for of_method in predicted]

    @abstractmethod
    def terms(self, truth: Tensor, predicted: Tensor) -> Array:
        """Return what a map (channels, rows, cols) adds to the scores, with its truth (channels, height, width)."""


@dataclass(frozen=True, eq=False)
class PixelTarget(MapTarget):
    """One class per pixel; its predictions are confusion matrices (n, K, K), 0 = none.

    The matrices hold what their scores need of the truth, which is classes (1, height, width), -1 =
    missing. A map has a channel for each class.

    Attributes:
        num_classes: K.
        labels: names of the K classes; may be empty.
    """

    num_classes: int
    labels: tuple[str, ...]

    def no_predictions(self) -> Array:
        """Return the predictions of all rows where none is known."""
        return np.zeros((self.num_rows, self.num_classes, self.num_classes), np.int64)

    def terms(self, truth: Tensor, predicted: Tensor) -> Array:
        """Return the confusion matrix (K, K) of a map."""
        return map_confusion(truth, predicted[None])

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one method, see :func:`dinoneck.training.scores.score_pixels`.

        Args:
            predictions: of all rows.
            split: the folds and groups of the rows.
            reference: predictions of another method, to compare with.
        """
        return score_pixels(predictions, split, self.labels, reference=reference)


@dataclass(frozen=True, eq=False)
class VectorTarget(MapTarget):
    """Surface normals per pixel; its predictions are :func:`dinoneck.metrics.angle_terms` (n, terms), 0 = none.

    The truth is normals (3, height, width), NaN = missing.
    """

    def no_predictions(self) -> Array:
        """Return the predictions of all rows where none is known."""
        return np.zeros((self.num_rows, NUM_ANGLE_TERMS))

    def terms(self, truth: Tensor, predicted: Tensor) -> Array:
        """Return the terms of the angles of a map (terms,)."""
        return angle_terms(truth, predicted)

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one method, see :func:`dinoneck.training.scores.score_angles`.

        Args:
            predictions: of all rows.
            split: the folds and groups of the rows.
            reference: predictions of another method, to compare with.
        """
        return score_angles(predictions, split, reference=reference)


ScoredTarget = ValueTarget | ClassTarget | LabelsTarget | PixelTarget | VectorTarget
