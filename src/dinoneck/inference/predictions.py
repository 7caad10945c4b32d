"""What heads predict from one image: numbers, maps and objects, as values without torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.heads.outputs import recompute_averaged_values
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import Size
from dinoneck.images.views import Views
from dinoneck.inference.resolution import at_image_size, members_at_image_size
from dinoneck.inference.views import AveragedOutputs, MembersOfView
from dinoneck.runtime.intervals import interval_entries
from dinoneck.runtime.maps import shown_weights
from dinoneck.runtime.names import Maps, check_maps
from dinoneck.task_facts import GATE_WEIGHTS, ROW_LABELS, labels_of
from dinoneck.tasks import GATE, Task, describe_tasks

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prediction:
    """What one head, or one ensemble, predicts from an image, in original units.

    Attributes:
        values: task name -> a float, or an array (dim,); none of surface normals.
        maps: task name -> (dim, rows, cols), the prediction of every patch; empty unless asked for.
        gate: (rows, cols), what the head looked at; None if it has none, or if not asked for.
        raw_outputs: those of the members of an ensemble that are resampled to the pixels of the
            image before they are maps, view by view, as a batch of one image; empty for other heads.
        objects: task name -> the objects, in the pixels of the upright image.
        intervals: the entries of :func:`dinoneck.runtime.intervals.interval_entries`; empty unless
            asked for.
        labels: multilabel task -> the labels of the image.
    """

    values: dict[str, float | Array]
    maps: dict[str, Array] = field(default_factory=dict)
    gate: Array | None = None
    raw_outputs: list[MembersOfView] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def to_row(self, with_maps: bool) -> dict[str, Any]:
        """Return the values, objects and intervals, and on request ``"maps"`` per patch and ``"gate"``, in one dict.

        Arrays are copies, but for those of objects.
        """
        row: dict[str, Any] = {}
        for name, value in self.values.items():
            row[name] = value.copy() if isinstance(value, np.ndarray) else value
        if self.labels:
            row[ROW_LABELS] = {name: list(labels) for name, labels in self.labels.items()}
        if with_maps:
            row["maps"] = {name: cells.copy() for name, cells in self.maps.items()}
            if self.gate is not None:
                row[GATE] = self.gate.copy()
        row.update(self.objects)
        row.update(copy.deepcopy(self.intervals))
        return row


def predictions_of(
    outputs: AveragedOutputs,
    *,
    tasks: Sequence[Task],
    with_maps: bool,
    interval: float | None,
    count: int,
) -> list[Prediction]:
    """Return the predictions for every image of a batch.

    Args:
        outputs: of one head on the CPU, averaged over views and tiles.
        tasks: what the head predicts; ``from_map`` values and compositions are recomputed.
        with_maps: whether maps and the gate are asked for.
        interval: the level of the intervals; None: none are asked for.
        count: B, the number of images: a head that predicts only objects has no averaged outputs
            from which it could be read.

    Raises:
        DataError: if a value is not finite.
    """
    values = recompute_averaged_values(tasks, outputs.mean.values)
    for name, batch in values.items():
        is_finite = batch.isfinite()
        if not bool(is_finite.all()):
            raise DataError(
                f"the prediction of {name!r} is {batch[~is_finite][0].item()}; the head or "
                "image is unfit"
            )
    _check_vectors(outputs.mean.maps_to_show, tasks)
    predictions = []
    for i in range(count):
        values_of_image: dict[str, float | Array] = {}
        for name, batch in values.items():
            is_number = batch.shape[1] == 1
            values_of_image[name] = batch[i].item() if is_number else batch[i].numpy()
        intervals = {}
        if interval is not None:
            intervals = interval_entries(tasks, values_of_image, interval)
        labels = labels_of(tasks, values_of_image)
        if with_maps:
            prediction = Prediction(
                values=values_of_image,
                maps={name: cells[i].numpy() for name, cells in outputs.mean.maps_to_show.items()},
                gate=None if outputs.mean.gate is None else outputs.mean.gate[i].numpy(),
                raw_outputs=[of_view.of_image(i) for of_view in outputs.raw_outputs],
                intervals=intervals,
                labels=labels,
            )
        else:
            prediction = Prediction(values=values_of_image, intervals=intervals, labels=labels)
        predictions.append(prediction)
    return predictions


def _check_vectors(maps: Mapping[str, torch.Tensor], tasks: Sequence[Task]) -> None:
    """Check maps of surface normals, which have no value that would show what is not finite."""
    for task in tasks:
        if task.is_unit and task.name in maps and not bool(maps[task.name].isfinite().all()):
            raise DataError(
                f"the prediction of {task.name!r} is not finite; the head or image is unfit"
            )


class ImagePrediction:
    """The prediction of the heads of one key for one image; rows and maps are made on request.

    :meth:`dinoneck.Predictor.predictions` returns them. The maps in the pixels of an image take
    much more memory than those per patch: predict all images, then make and write the maps of one
    image after the other.

    Args:
        prediction: with maps per patch.
        head: that predicted it.
        views: that were averaged.
        size: (height, width) of the upright image.
        preprocess: how the image was prepared.

    Attributes:
        size: (height, width) of the upright image.
        image: the path of the image, of a folder; None for an image that was passed itself.

    Examples:
        >>> import torch
        >>> from dinoneck import DenseHead, Predictor, Task, load_backbone
        >>> head = DenseHead(64, [Task("cover", kind="dense")], hidden_dim=8)
        >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"))
        >>> [prediction] = predictor.predictions(torch.rand(3, 32, 48))
        >>> prediction
        ImagePrediction(cover (dense), of 32 x 48 px)
        >>> sorted(prediction.row()), prediction.image_maps()["cover"].shape
        (['cover'], (1, 32, 48))
    """

    def __init__(
        self,
        *,
        prediction: Prediction,
        head: Head,
        views: Views,
        size: Size,
        preprocess: Preprocessing,
    ) -> None:
        self._prediction = prediction
        self._head = head
        self._views = views
        self._preprocess = preprocess
        self.size = size
        self.image: str | None = None

    def __repr__(self) -> str:
        height, width = self.size
        tasks = describe_tasks(self._head.predicted)
        return f"{type(self).__name__}({tasks}, of {height} x {width} px)"

    def row(self, maps: Maps | None = None, probabilities: bool = False) -> dict[str, Any]:
        """Return the dict that calling the predictor returns for the image, without :attr:`image`.

        A row may be changed: its values and maps are copies. Objects are not copied.

        Args:
            maps: as for calling a :class:`dinoneck.Predictor`.
            probabilities: as for calling.

        Raises:
            ConfigError: for other ``maps``, or probabilities without ``maps="image"``.
        """
        check_maps(maps, probabilities)
        row = self._prediction.to_row(with_maps=maps is not None)
        if maps == "image":
            row["maps"] = self.image_maps(probabilities)
        return row

    @torch.no_grad()
    def image_maps(self, probabilities: bool = False) -> dict[str, Array]:
        """Return the maps in the pixels of the upright image.

        Args:
            probabilities: of a segmentation return the probabilities of the classes instead of the
                most probable class.

        Returns:
            Task name -> (dim, height, width) float32, NaN where the prepared image does not show
            them, up to one patch beyond what it shows, where the nearest cell counts; for a
            segmentation (height, width) int64, class indices, there -1.
        """
        maps = {}
        for task in self._head.predicted:
            if task.name not in self._prediction.maps:
                continue
            cells = self._prediction.maps[task.name]
            # raw outputs of heads of users are not turned upright as vectors
            if self._prediction.raw_outputs and task.is_map and not task.is_unit:
                maps[task.name] = members_at_image_size(
                    self._head,
                    self._prediction.raw_outputs,
                    self._views,
                    cells=cells.shape[1:],
                    task=task,
                    size=self.size,
                    preprocess=self._preprocess,
                    probabilities=probabilities,
                )
            else:
                maps[task.name] = at_image_size(
                    cells,
                    task,
                    size=self.size,
                    preprocess=self._preprocess,
                    probabilities=probabilities,
                )
        return maps

    def image_gate(self) -> Array | None:
        """Return what the head looked at, in the pixels of the upright image.

        Returns:
            (height, width) float32, weights that add up to one over the pixels; to less where
            padding has the rest. NaN where the prepared image does not show pixels. None if the
            head has no gate.
        """
        gate = self._prediction.gate
        if gate is None:
            return None
        weights: np.ndarray
        weights = at_image_size(
            shown_weights(gate, self._preprocess.placement(self.size))[None],
            GATE_WEIGHTS,
            size=self.size,
            preprocess=self._preprocess,
        )
        gate_of_pixels: Array = weights[0]
        return gate_of_pixels
