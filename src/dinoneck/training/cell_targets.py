"""Labels per cell for all images of a table: what dense and segmentation tasks are trained on and scored by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, ShapeError
from dinoneck.tasks import TargetTransform, Task
from dinoneck.training.matching import match_rows
from dinoneck.training.metrics import r2
from dinoneck.training.table import table_of

SHARE_R2 = 0.9
logger = logging.getLogger(__name__)
_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class CellTargets:
    """Targets of n images on their patch grid.

    Attributes:
        values: (n, K, rows, cols) float32 in original units; of classes their shares of the cell.
        weight: (n, rows, cols) float32, how much a cell counts; 0 = not at all.
        labels: names of the K outputs; empty = numbered.
        name: of the task.
        ids: of the n images; empty = unknown, and then no table's rows can be matched with them.
        padded: whether some cells show padding, so that means over all cells are not those of the image.
        kind: of the task, ``dense`` or ``segmentation``.
        files: the n labels that the values were read from, None where there is none; segmentation is scored by their
            pixels.
        how: how they are read.
        preprocess: how the images are prepared.
    """

    values: Tensor
    weight: Tensor
    labels: tuple[str, ...] = ()
    name: str = "cells"
    ids: tuple[str, ...] = ()
    padded: bool = False
    kind: Literal["dense", "segmentation"] = "dense"
    files: tuple[Any, ...] = ()
    how: DenseLabels = field(default_factory=DenseLabels)
    preprocess: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        fits = self.values.ndim == 4 and self.weight.shape == (len(self.values), *self.values.shape[2:])
        if not fits:
            raise ShapeError(
                f"values are {tuple(self.values.shape)} and weights {tuple(self.weight.shape)}; expected "
                "(n, K, rows, cols) and (n, rows, cols)"
            )
        if self.ids and len(self.ids) != len(self.values):
            raise DataError(f"{len(self.ids)} ids for the cells of {len(self.values)} images; expected one each")

    @classmethod
    def read(
        cls,
        table: Any,
        how: DenseLabels,
        preprocess: Preprocessing,
        labels: Sequence[str] = (),
        name: str = "cells",
        kind: Literal["dense", "segmentation"] = "dense",
    ) -> CellTargets:
        """Read the label of every image of a table and average it over the patches; without a label no cell counts.

        Raises:
            DataError: if the table has no labels, or one cannot be used or has another size than its image.
        """
        table = table_of(table)
        if table.labels is None:
            raise DataError("the table has no labels; read it with labels= (--labels on the command line)")
        parts = {}
        for row, (image, label) in enumerate(zip(table.images, table.labels, strict=True)):
            if label is not None:
                parts[row] = how.cells(label, preprocess, [read_image_size(image)])
        shapes = {tuple(values.shape[1:]) for values, _ in parts.values()}
        if len(shapes) != 1:
            raise DataError(f"the labels come to different cells {sorted(shapes)}; give one size to all images (size=)")
        unknown = torch.zeros(1, *(shape := shapes.pop())), torch.zeros(1, *shape[1:])
        every = [parts.get(row, unknown) for row in range(len(table))]
        values, weight = (torch.cat(tensors) for tensors in zip(*every, strict=True))
        padded = preprocess.resize == "pad" and preprocess.size is not None
        return cls(values, weight, tuple(labels), name, table.ids, padded, kind, table.labels, how, preprocess)

    def of(self, ids: Sequence[str]) -> CellTargets:
        """Return the cells of these images, matched by id.

        Raises:
            DataError: if the cells have no ids, lack an image, or have several rows of one.
        """
        if not self.ids:
            raise DataError("the cell targets have no ids to match images by; pass CellTargets(..., ids=table.ids)")
        rows = match_rows(ids, self.ids, ids, "the cell targets")
        files = tuple(self.files[row] for row in rows) if self.files else ()
        return replace(self, values=self.values[rows], weight=self.weight[rows], ids=tuple(ids), files=files)

    @property
    def targets(self) -> Tensor:
        """What is learned, (n, K, rows, cols); cells that do not count are NaN."""
        return self.values.masked_fill(self.weight[:, None] == 0, torch.nan)

    @property
    def known(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images have a cell that counts, (n,)."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = (self.weight > 0).flatten(1).any(dim=1).numpy()
        return found

    def pixels(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
        """Return the classes (m, height, width) of the prepared images of these rows, which have labels; -1 = none."""
        return self.how.indices([self.files[int(row)] for row in rows], self.preprocess)

    def task(self, rows: Sequence[int] | np.ndarray[Any, Any], minimum: float | None = None) -> Task:
        """Return the task, a dense one with z-scores fitted on these images and no prediction below ``minimum``."""
        dim = self.values.shape[1]
        if self.kind == "segmentation":
            return Task(self.name, dim, kind="segmentation", labels=self.labels)
        places = torch.as_tensor(np.asarray(rows))
        cells = self.values[places].movedim(1, -1)[self.weight[places] > 0]
        transform = fitted(self.name, TargetTransform(), cells)
        shares = self.how.classes is not None
        return Task(
            self.name, dim, kind="dense", transform=transform, labels=self.labels, minimum=minimum, shares=shares
        )

    def shares(self, targets: Mapping[str, _Floats]) -> tuple[str, ...]:
        """Return the targets that are the mean over the cells of the output of their name: shares of a class.

        A target of such a name that is something else, such as a mass in grams, is none of them: where known, it must
        follow the labels' means with an R² of at least 0.9. None is one where cells show padding. A warning names
        each target of such a name that keeps its own readout, and why.
        """
        means, found = self.means(self.values), []
        for name, values in targets.items() if self.kind == "dense" else ():
            if name in self.labels and (known := np.isfinite(values) & self.known).any():
                own, true = means[known, self.labels.index(name)], values[known]
                follows = np.square(own - true).sum() <= (1 - SHARE_R2) * np.square(true - true.mean()).sum()
                if follows and not self.padded:
                    found.append(name)
                    continue
                other = "its values are not the shares of that class (0 ... 1; divide per cent by 100)"
                reason = "some cells show padding" if self.padded else other
                logger.warning("target %r keeps a readout of its own, not the mean over its cells: %s", name, reason)
        return tuple(found)

    def share_task(self, task: Task, values: _Floats) -> Task:
        """Return the task with the mean over the cells of the output of its name in place of a readout.

        The cells' own loss trains it: on crop images a loss of the mean as well made the numbers worse. So a weight
        of 1.0, the default, becomes 0; any other stays, also (1.0,), one weight per output. Where ``values`` (n,) are
        known for images without labels, the weight stays too: those images would train nothing.
        """
        transform = task.transform if task.transform is not None and task.transform.is_affine else None
        only_cells = task.weight == 1.0 and bool(self.known[np.isfinite(values)].all())
        weight = (0.0,) if only_cells else task.weight
        plain = replace(task, kind="regression", aggregate="sum", activation=None, transform=transform)
        return replace(plain, from_cells=self.name, weight=weight)

    def scores(
        self, predictions: Tensor, rows: Sequence[int] | np.ndarray[Any, Any] | None = None
    ) -> dict[str, float | None]:
        """Return R² per output over all cells that count, by label (without labels by column of the task).

        It is None where the target is constant.

        Args:
            predictions: (n, K, rows, cols).
            rows: the images that were predicted; None = all.
        """
        counts = self.weight > 0
        if rows is not None:
            predicted = torch.zeros(len(counts), dtype=torch.bool)
            predicted[torch.as_tensor(np.asarray(rows))] = True
            counts = counts & predicted[:, None, None]
        names = self.labels or Task(self.name, self.values.shape[1], kind="dense").columns
        found: dict[str, float | None] = {}
        for i, name in enumerate(names):
            true = self.values[:, i][counts].double().numpy()
            found[name] = r2(true, predictions[:, i][counts].numpy()) if true.size and np.ptp(true) > 0 else None
        return found

    def means(self, values: Tensor) -> _Floats:
        """Return (n, K) float64: weighted means over cells of maps (n, K, rows, cols), the images' own values."""
        weight = self.weight[:, None].double()
        means: Tensor = (values.double() * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1e-12)
        return means.numpy()


def fitted(name: str, transform: TargetTransform, values: Any) -> TargetTransform:
    """Return a transform fitted on training values of a task.

    Raises:
        DataError: as :meth:`TargetTransform.fit` does, naming the task.
    """
    try:
        return transform.fit(values)
    except DataError as error:
        raise DataError(f"task {name!r}: {error}") from None
