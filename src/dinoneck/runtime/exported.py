"""Exported files as predictors: images in, rows out, without torch."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dinoneck.atomic import read_regular
from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.data.listing import images_below
from dinoneck.errors import CheckpointError, ConfigError, DataError
from dinoneck.images.pixels import Picture, in_threads
from dinoneck.images.recipe import ImageRecipe, Size
from dinoneck.kinds import AnyRuntime, FileRuntime
from dinoneck.runtime import description, maps, onnx_bytes
from dinoneck.runtime.description import (
    DETECTOR_KEY,
    MODEL_KEY,
    DetectorRecord,
    ModelRecord,
)
from dinoneck.runtime.images import RGB, PreparedImage, prepare
from dinoneck.runtime.intervals import check_level, interval_entries
from dinoneck.runtime.least_scores import LeastScores, check_thresholds, checked_score
from dinoneck.runtime.names import (
    IMAGE,
    MOST_BOXES,
    Maps,
    check_maps,
    check_row_names,
    check_runtime,
)
from dinoneck.runtime.session import open_session, run_session
from dinoneck.task_facts import (
    GATE,
    GATE_WEIGHTS,
    ROW_LABELS,
    TaskRecord,
    describe_tasks,
    labels_of,
)
from dinoneck.text import reason_of

Array = np.ndarray[Any, Any]
_BATCH_SIZE = 4
_POSITIONAL = ("backbone", "tta", "device")  # arguments of a Predictor after the heads
_OF_FILES = (
    "runtime",
    "batch_size",
    "bits",
    "interval",
)  # arguments of a Predictor that a file takes
_WITHOUT_EFFECT = (("tta", "none"), ("overlap", 0), ("device", "cpu"), ("probe", False))
_LEAST_PROBABILITY = 1e-7  # of a cell of a mask, whose logit is finite

logger = logging.getLogger(__name__)


def open_exported(
    path: str | os.PathLike[str],
    runtime: AnyRuntime | None = None,
    *,
    batch_size: int | None = None,
    bits: int | None = None,
    min_score: float | None = None,
    num_threads: int | None = None,
    decode_objects: DecodeObjects | None = None,
    interval: float | None = None,
) -> ExportedPredictor | ExportedDetector:
    """Open a file of ``dinoneck export`` for images; nothing of it runs before it is checked.

    Args:
        path: an ONNX file of a head with its backbone, or of a detector.
        runtime: ``"onnxruntime"`` (None) or ``"openvino"``.
        batch_size: images per run of a head; None: 4. A detector takes one.
        bits: how many bits images of 16 bits use, instead of that of the file.
        min_score: the smallest score of boxes, of a detector; None: that of the file.
        num_threads: of the runtime; None: as many as it chooses.
        decode_objects: makes objects (instances, panoptic) of a head's outputs, with torch;
            ``Predictor("file.onnx")`` passes it. None: such files are refused.
        interval: of a head, the level of the intervals in rows, see :class:`dinoneck.Predictor`;
            None: they have none.

    Returns:
        An :class:`ExportedPredictor`, or an :class:`ExportedDetector`.

    Raises:
        CheckpointError: if the file cannot be read, is not one of dinoneck, names other files or
            holds other operators than those of ONNX, or needs what only the head file has.
        ConfigError: for another runtime, or a value out of range.
        ImportError: if the runtime is not installed.
    """
    name = str(path)
    file_runtime = check_runtime(runtime, name)
    if num_threads is not None:
        num_threads = normal(int, num_threads, "num_threads")
        check_minimum(1, num_threads=num_threads)
    try:
        content = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {reason_of(error)}") from error
    facts = onnx_bytes.read_facts(content, name)
    onnx_bytes.check_safe(facts, name)
    if MODEL_KEY in facts.metadata:
        record = description.read_model(facts.metadata[MODEL_KEY], name)
        if min_score is not None:
            raise _no_detector(min_score, name)
        return ExportedPredictor(
            name,
            record,
            content,
            runtime=file_runtime,
            batch_size=batch_size,
            bits=bits,
            num_threads=num_threads,
            decode_objects=decode_objects,
            interval=interval,
        )
    if DETECTOR_KEY in facts.metadata:
        if interval is not None:
            raise ConfigError(
                f"interval is {interval!r}, which is for heads; the detector {name} takes none"
            )
        return ExportedDetector(
            name,
            description.read_detector(facts.metadata[DETECTOR_KEY], name),
            content,
            runtime=file_runtime,
            bits=bits,
            min_score=min_score,
            num_threads=num_threads,
        )
    raise CheckpointError(
        f"{name} was not written by 'dinoneck export': its metadata do not describe it; other "
        "models run in their own programs",
        step="header",
    )


def open_alone(
    path: str | os.PathLike[str],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    *,
    decode_objects: DecodeObjects,
) -> ExportedPredictor | ExportedDetector:
    """Open the exported file that a :class:`dinoneck.Predictor` was asked for.

    Args:
        path: the file.
        arguments: of the Predictor by their place, after the file.
        options: of the Predictor by their names.
        decode_objects: as of :func:`open_exported`.

    Raises:
        ConfigError: for an argument that has no effect on a file, and as :func:`open_exported`.
        TypeError: for more arguments by their place than a Predictor takes.
    """
    if len(arguments) > len(_POSITIONAL):
        raise TypeError(
            f"Predictor() takes at most {1 + len(_POSITIONAL)} positional arguments (heads, "
            f"{', '.join(_POSITIONAL)}); {1 + len(arguments)} were given"
        )
    named = dict(zip(_POSITIONAL, arguments, strict=False)) | dict(options)
    for name, value in named.items():
        text_or_value = str(value) if name == "device" else value  # also a torch.device
        is_default = value is None or (name, text_or_value) in _WITHOUT_EFFECT
        if name not in _OF_FILES and not is_default:
            raise ConfigError(
                f"{name} is {value!r}, and {path} is an exported file, which has its backbone, one "
                f"view and no tiles; leave {name} out, or predict with the head file"
            )
    chosen = {name: value for name, value in named.items() if name in _OF_FILES}
    return open_exported(path, **chosen, decode_objects=decode_objects)


class DecodeObjects(Protocol):
    """Makes the objects of an image of what a head gives for it."""

    def __call__(
        self,
        outputs: Mapping[description.Content, Array],
        task: TaskRecord,
        *,
        size: Size,
        recipe: ImageRecipe,
        min_score: float | None,
    ) -> Any:
        """Return the objects in the pixels of an image, as a row of a :class:`dinoneck.Predictor` has them.

        Args:
            outputs: what the head gives, without batch.
            task: of objects.
            size: (height, width) of the upright image.
            recipe: how it was prepared.
            min_score: leave out objects of a lower score; None = as recorded in the file.
        """


class ExportedPrediction:
    """The prediction of a file for one image; rows and maps are made on request.

    Attributes:
        size: (height, width) of the upright image.
        image: the path of the image, of a folder; None for an image that was passed itself.
    """

    def __init__(
        self,
        *,
        values: Mapping[str, float | Array],
        cells: Mapping[str, Array],
        objects: Mapping[str, Any],
        gate: Array | None,
        file: ExportedPredictor,
        size: Size,
    ) -> None:
        self._values = values
        self._cells = cells
        self._objects = objects
        self._gate = gate
        self._file = file
        self.size = size
        self.image: str | None = None

    def __repr__(self) -> str:
        height, width = self.size
        tasks = describe_tasks(self._file.tasks)
        return f"{type(self).__name__}({tasks}, of {height} x {width} px)"

    def row(self, maps: Maps | None = None, probabilities: bool = False) -> dict[str, Any]:
        """Return the dict that calling the file returns for the image, without :attr:`image`.

        Values and maps are copies. Objects are not copied.

        Args:
            maps: as for calling an :class:`ExportedPredictor`.
            probabilities: as for calling.

        Raises:
            ConfigError: for other ``maps``, or probabilities without ``maps="image"``.
        """
        check_maps(maps, probabilities)
        row = _copied(self._values)
        if self._file.interval is not None:
            row |= interval_entries(self._file.tasks, self._values, self._file.interval)
        labels = labels_of(self._file.tasks, self._values)
        if labels:
            row[ROW_LABELS] = labels
        if maps == "patch":
            row["maps"] = _copied(self._cells)
        elif maps == "image":
            row["maps"] = self.image_maps(probabilities)
        if maps is not None and self._gate is not None:
            row[GATE] = self._gate.copy()
        row.update(self._objects)
        return row

    def image_maps(self, probabilities: bool = False) -> dict[str, Array]:
        """Return the maps in the pixels of the upright image.

        Args:
            probabilities: of a segmentation return the probabilities of the classes instead of the
                most probable class.

        Returns:
            Task name -> (dim, height, width) float32, NaN where the prepared image does not show
            them; for a segmentation (height, width) int64, class indices, there -1.

        Raises:
            ConfigError: if the head makes the maps of an image of other outputs than those of the
                file.
        """
        self._file.check_has_image_maps()
        resized = {}
        for task in self._file.tasks:
            if task.name in self._cells:
                resized[task.name] = maps.at_image_size(
                    self._cells[task.name],
                    task,
                    self.size,
                    self._file.preprocess,
                    probabilities=probabilities,
                )
        return resized

    def image_gate(self) -> Array | None:
        """Return what the head looked at, in the pixels of the upright image.

        Returns:
            (height, width) float32, weights that add up to one over the pixels; to less where
            padding has the rest. NaN where the prepared image does not show pixels. None if the
            file has no gate.
        """
        if self._gate is None:
            return None
        recipe = self._file.preprocess
        shown = maps.shown_weights(self._gate, recipe.placement(self.size))
        gate: Array = maps.at_image_size(shown[None], GATE_WEIGHTS, self.size, recipe)[0]
        return gate


def _copied(arrays: Mapping[str, float | Array]) -> dict[str, Any]:
    """Copies of arrays, so that a caller who changes one does not change the prediction."""
    copies: dict[str, Any] = {}
    for name, value in arrays.items():
        copies[name] = value.copy() if isinstance(value, np.ndarray) else value
    return copies


class ExportedPredictor:
    """A head with its backbone in an exported file, which predicts what its :class:`dinoneck.Predictor` does.

    Made by :func:`open_exported`, or by ``Predictor("cover.onnx")``. Threads may call it at once.

    Attributes:
        source: the file.
        record: what the file states of itself.
        preprocess: how images are prepared.
        tasks: what is predicted.
        runtime: what runs the file.
        batch_size: images per run.
        interval: the level of the intervals in rows; None: they have none.
        tta: ``"none"``: a file predicts one view.
        revisions: empty, as of local heads.

    Raises:
        CheckpointError: if the file predicts objects and nothing decodes them, takes other images
            than RGB, or lacks a record.
    """

    tta = "none"

    def __init__(
        self,
        name: str,
        record: ModelRecord,
        content: bytes,
        *,
        runtime: FileRuntime,
        batch_size: int | None,
        bits: int | None,
        num_threads: int | None,
        decode_objects: DecodeObjects | None = None,
        interval: float | None = None,
    ) -> None:
        if batch_size is not None:
            check_minimum(1, batch_size=normal(int, batch_size, "batch_size"))
        self.source = name
        self.record = record
        self.runtime = runtime
        self.batch_size = batch_size or _BATCH_SIZE
        self.revisions: dict[str, str] = {}
        self.preprocess = _recipe(record, name, bits)
        self.tasks = record.tasks
        self.interval = interval
        if interval is not None:
            check_level(self.tasks, interval, name)
        self._normals = {task.name for task in record.tasks if task.is_unit}
        self._input = description.images_input(record, name)
        _check_outputs(record, name)
        _check_readable(record, self.preprocess, name, decodes_objects=decode_objects is not None)
        self._decode_objects = decode_objects
        recorded = record.views.recorded
        if recorded:
            logger.warning(
                "%s predicts one view; its heads record %s, which the head file averages",
                name,
                ", ".join(recorded),
            )
        self._session = open_session(content, runtime, name, num_threads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}: {describe_tasks(self.tasks)})"

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> list[dict[str, Any]]:
        """Predict.

        Args:
            images: a path, a PIL image or an array (H, W, 3), or several; or the path of a folder:
                all images in it and below.
            maps: ``"patch"`` adds ``"maps": {task: (dim, rows, cols)}`` of the maps that the file
                holds, and ``"gate"``; ``"image"`` gives the maps in the pixels of the upright
                image. See :class:`dinoneck.Predictor`.
            probabilities: with ``maps="image"``, the probabilities of the classes instead of their
                indices.
            min_score: of objects, leave out those of a lower score; None = as recorded in the file.

        Returns:
            One dict per image: task name -> a float, or an array (dim,); of objects as of a
            :class:`dinoneck.Predictor`. The rows of a folder begin with ``"image"``, the path of
            the image.

        Raises:
            ConfigError: for other ``maps``, for a ``min_score`` where no objects are predicted, and
                for a folder if a task is called ``"image"``.
            DataError: if an image cannot be read or has a size that the file does not take, or a
                prediction is not finite.
        """
        check_maps(maps, probabilities)
        if min_score is not None:
            if not any(task.is_masks for task in self.tasks):
                raise _no_detector(min_score, self.source)
            min_score = checked_score(min_score)
        listed, is_folder = _list_images(images)
        if is_folder:
            check_row_names(images, [task.name for task in self.tasks])
        rows = []
        for prediction in self._predict(listed, is_folder, min_score):
            row = prediction.row(maps, probabilities)
            rows.append(row if prediction.image is None else {IMAGE: prediction.image, **row})
        return rows

    def one(
        self,
        image: Picture,
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Return the dict that calling returns in a list, for one image."""
        [row] = self([image], maps, probabilities, min_score=min_score)
        return row

    def predictions(self, images: Picture | Sequence[Picture]) -> list[ExportedPrediction]:
        """Predict, and make rows and maps in the pixels of images later, one image at a time."""
        listed, is_folder = _list_images(images)
        return list(self._predict(listed, is_folder))

    def expect_images(self, count: int) -> None:
        """Do nothing: how many images follow decides the runtime of a backbone, and a file has one."""

    def recipe(self, image: Picture, key: str = "") -> ImageRecipe:
        """Return how an image is prepared."""
        return self.preprocess

    def prepare(self, image: Picture) -> PreparedImage:
        """Decode an image and prepare it.

        Raises:
            DataError: if it cannot be read, or comes to a size that the file does not take.
        """
        prepared = prepare(image, self.preprocess)
        self._check_size(prepared.pixels.shape[1:])
        return prepared

    def predict_prepared(
        self, images: Sequence[PreparedImage], with_maps: bool
    ) -> list[dict[str, Any]]:
        """Return what calling returns for images of :meth:`prepare`, which may have different sizes.

        Args:
            images: prepared.
            with_maps: with maps per patch.
        """
        return [
            prediction.row("patch" if with_maps else None)
            for prediction in self._predict_batch(images)
        ]

    def check_has_image_maps(self) -> None:
        """Raise a ConfigError if the file has no maps at the size of an image."""
        if self.record.resamples_queries:
            raise ConfigError(
                f"{self.source} has maps per patch alone: its head makes those of an image of its "
                "queries; take maps='patch', or the head file"
            )

    def _predict(
        self, listed: Sequence[Any], is_folder: bool, min_score: float | None = None
    ) -> Iterator[ExportedPrediction]:
        """Yield the predictions for every image; threads prepare images ahead of the model."""
        prepared = in_threads(self.prepare, listed)
        paths = iter(listed)
        batch = list(islice(prepared, self.batch_size))
        while batch:
            for prediction in self._predict_batch(batch, min_score):
                path = next(paths)
                if is_folder:
                    prediction.image = str(path)
                yield prediction
            batch = list(islice(prepared, self.batch_size))

    def _predict_batch(
        self, images: Sequence[PreparedImage], min_score: float | None = None
    ) -> list[ExportedPrediction]:
        """The predictions for prepared images; those of one size are run together."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.pixels.shape, []).append(i)
        predictions: dict[int, ExportedPrediction] = {}
        names = [output.name for output in self.record.outputs]
        for places in by_size.values():
            pixels = np.stack([images[i].pixels for i in places])
            arrays = run_session(self._session, names, self._input.name, pixels)
            for row, i in enumerate(places):
                of_image = {name: array[row] for name, array in arrays.items()}
                predictions[i] = self._prediction(of_image, images[i], min_score)
        return [predictions[i] for i in range(len(images))]

    def _prediction(
        self, arrays: Mapping[str, Array], image: PreparedImage, min_score: float | None
    ) -> ExportedPrediction:
        """What the outputs of one image, without their batch, are."""
        values: dict[str, Array] = {}
        cells: dict[str, Array] = {}
        gate = None
        object_tasks = {task.name for task in self.tasks if task.is_masks}
        for output in self.record.outputs:
            array = arrays[output.name]
            if output.task is None:
                gate = array[0]
                continue
            if output.task in object_tasks:
                continue
            if description.is_map(output):
                cells[output.task] = array
            if output.task in self._normals:  # vectors, which have no mean
                if not np.isfinite(array).all():
                    raise DataError(
                        f"the prediction of {output.task!r} is not finite; the head or image is unfit"
                    )
            elif output.of == "task" and array.ndim == 3:
                values[output.task] = maps.mean_of_cells(array, image.placement)
            elif output.of == "task":
                values[output.task] = array
        for task in self.tasks:
            if task.from_map is not None:  # over the cells that show the image
                values[task.name] = _mean_from_map(task, self.tasks, values)
        return ExportedPrediction(
            values={name: _value(name, value) for name, value in values.items()},
            cells=cells,
            objects=self._objects(arrays, image, min_score),
            gate=gate,
            file=self,
            size=image.size,
        )

    def _objects(
        self, arrays: Mapping[str, Array], image: PreparedImage, min_score: float | None
    ) -> dict[str, Any]:
        """Task name -> the objects of an image."""
        objects: dict[str, Any] = {}
        if self._decode_objects is None:
            return objects
        for task in self.tasks:
            if not task.is_masks:
                continue
            outputs = {}
            for output in self.record.outputs:
                if output.task == task.name:
                    outputs[output.of] = arrays[output.name]
            objects[task.name] = self._decode_objects(
                outputs, task, size=image.size, recipe=self.preprocess, min_score=min_score
            )
        return objects

    def _check_size(self, size: Sequence[int]) -> None:
        """Raise a DataError for a prepared image of a size that the file does not take."""
        height, width = size
        only = self._input.size
        smallest = self._input.smallest
        if only is not None and [height, width] != only:
            raise DataError(
                f"an image comes to {height}x{width} px, and {self.source} takes {only[0]}x{only[1]} "
                "alone; export it for another with --size"
            )
        if smallest is None or (height >= smallest[0] and width >= smallest[1]):
            return
        tried = (self.record.parity or {}).get("tried", [])
        if [height, width] not in [shape[1:] for shape in tried]:
            raise DataError(
                f"an image comes to {height}x{width} px, and {self.source} takes "
                f"{smallest[0]}x{smallest[1]} or more; export it for smaller ones with --size"
            )


class ExportedDetector(LeastScores):
    """A detector in an exported file, which predicts what its :class:`dinoneck.detection.Detector` does.

    Made by :func:`open_exported`, or by ``Predictor("detector.onnx")``.

    Attributes:
        source: the file.
        record: what the file states of itself.
        preprocess: how images are prepared.
        classes: names of the labels.
        min_score: the smallest score of boxes. To set it removes the thresholds.
        thresholds: the smallest score of the boxes of each class, in the place of ``min_score``;
            empty: there are none.
        runtime: what runs the file.

    Raises:
        CheckpointError: if it takes other images than RGB.
        ConfigError: if the file is of dinoneck 0.3, which states no smallest score, and none is
            given.
    """

    def __init__(
        self,
        name: str,
        record: DetectorRecord,
        content: bytes,
        *,
        runtime: FileRuntime,
        bits: int | None,
        min_score: float | None,
        num_threads: int | None,
    ) -> None:
        self.source = name
        self.record = record
        self.runtime = runtime
        self.preprocess = _recipe(record, name, bits)
        if self.preprocess.channels != RGB:
            raise _not_rgb(name, self.preprocess.channels)
        smallest = record.min_score if min_score is None else min_score
        if smallest is None:
            raise ConfigError(
                f"{name} was written by dinoneck 0.3 and does not state the smallest score of its "
                "boxes; pass min_score (--min-score), or export it again"
            )
        self.min_score = checked_score(smallest)
        _check_stated_thresholds(record.thresholds, len(self.classes), name)
        if min_score is None:
            self.thresholds = record.thresholds
        self._session = open_session(content, runtime, name, num_threads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}: {', '.join(self.classes)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.record.classes

    @property
    def has_masks(self) -> bool:
        """Whether predictions hold a mask for each box."""
        return self.record.has_masks

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return what :meth:`predict` returns; a detector has no ``maps``.

        Raises:
            ConfigError: for ``maps`` or ``probabilities``, and as :meth:`predict`.
        """
        check_maps(maps, probabilities)
        if maps is not None:
            raise ConfigError(f"maps is {maps!r}, and a detector has no maps; leave maps out")
        return self.predict(images, min_score=min_score)

    def one(
        self,
        image: Picture,
        maps: Maps | None = None,
        probabilities: bool = False,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Return the dict that calling returns in a list, for one image."""
        [row] = self([image], maps, probabilities, min_score=min_score)
        return row

    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        min_score: float | None = None,
        max_boxes: int = MOST_BOXES,
    ) -> list[dict[str, Any]]:
        """Detect objects in images of any size, as :meth:`dinoneck.detection.Detector.predict` does.

        Args:
            images: a path, a PIL image or an array (H, W, 3), or several; or the path of a folder.
            min_score: leave out boxes of a lower score; None = :attr:`thresholds`, without any
                :attr:`min_score`.
            max_boxes: per image, those with the highest scores.

        Returns:
            Per image ``boxes`` (n, 4) float32 XYXY in its own pixels, ``scores`` (n,), ``labels``
            (n,) and ``names``, by falling score, and ``masks`` (n, height, width) bool of a model
            that gives them; of a folder ``image`` first.

        Raises:
            ConfigError: if ``max_boxes`` is below 1, or ``min_score`` is no number 0 ... 1.
            DataError: if an image cannot be read, a score is not finite, or a label is none of
                :attr:`classes`.
        """
        check_minimum(1, max_boxes=max_boxes)
        smallest: float | Sequence[float] = self.thresholds or self.min_score
        if min_score is not None:
            smallest = checked_score(min_score)
        listed, is_folder = _list_images(images)
        read = functools.partial(prepare, recipe=self.preprocess)
        rows = []
        for image, prepared in zip(listed, in_threads(read, listed), strict=True):
            row = self._predict_one(prepared, smallest, max_boxes)
            rows.append({IMAGE: str(image), **row} if is_folder else row)
        return rows

    def expect_images(self, count: int) -> None:
        """Do nothing, see :meth:`ExportedPredictor.expect_images`."""

    def _predict_one(
        self, image: PreparedImage, least_score: float | Sequence[float], max_boxes: int
    ) -> dict[str, Any]:
        names = ["boxes", "scores", "labels"]
        if self.has_masks:
            names.append("masks")
        arrays = run_session(self._session, names, "image", image.pixels[None])
        scores = arrays["scores"].astype(np.float32)
        if not np.isfinite(scores).all():
            raise DataError(f"scores of {self.source} are not finite; expected numbers in 0 ... 1")
        all_labels = arrays["labels"].astype(np.int64)
        rows = self._sure_rows(scores, all_labels, least_score, max_boxes)
        labels = all_labels[rows]
        row: dict[str, Any] = {
            "boxes": _boxes_in_image(arrays["boxes"][rows].astype(np.float32), image),
            "scores": scores[rows],
            "labels": labels,
            "names": [self.classes[label] for label in labels.tolist()],
        }
        if self.has_masks:
            row["masks"] = _masks_in_image(arrays["masks"][rows], image.size)
        return row

    def _sure_rows(
        self,
        scores: Array,
        labels: Array,
        least_score: float | Sequence[float],
        max_boxes: int,
    ) -> Array:
        """The rows of the boxes that are predicted, by falling score.

        Args:
            scores: (rows,) float32.
            labels: (rows,) int64.
            least_score: of a predicted box: one, or one for each class.
            max_boxes: most of them.

        Raises:
            DataError: if the label of a box of that score is none of the classes.
        """
        best = np.argsort(-scores, kind="stable")[:max_boxes]
        lowest = min(least_score) if isinstance(least_score, Sequence) else least_score
        is_candidate = (scores[best] >= lowest) & (scores[best] > 0)  # empty rows have score 0
        rows: Array = best[is_candidate]
        is_unknown = (labels[rows] < 0) | (labels[rows] >= len(self.classes))
        if is_unknown.any():
            raise DataError(
                f"{self.source} gives the label {labels[rows][is_unknown][0]} and states "
                f"{len(self.classes)} classes; export it again"
            )
        if isinstance(least_score, Sequence):
            # in float64: float32 would round the thresholds
            rows = rows[scores[rows] >= np.array(least_score)[labels[rows]]]
        return rows


def _boxes_in_image(boxes: Array, image: PreparedImage) -> Array:
    """Boxes (n, 4) of a canvas in the pixels of its image, cut at its edges."""
    height, width = image.size
    canvas_height, canvas_width = image.placement.canvas
    across = width / canvas_width
    down = height / canvas_height
    scale = np.array([across, down, across, down], np.float32)
    edges = np.array([width, height, width, height], np.float32)
    clipped: Array = np.clip(boxes * scale, 0, edges)
    return clipped


def _masks_in_image(probabilities: Array, size: Size) -> Array:
    """Masks (n, height, width) bool in the pixels of an image, from those of cells (n, h, w)."""
    masks = np.zeros((len(probabilities), *size), bool)
    recipe = ImageRecipe(patch_size=1, size=probabilities.shape[1:], resize="stretch")
    for i, mask in enumerate(probabilities):  # one after the other, for their memory
        shares = np.clip(mask, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        logits = np.log(shares / (1 - shares))
        resized = maps.at_image_size(logits[None], _MASK, size, recipe)
        masks[i] = resized[0] > 0
    return masks


_MASK = TaskRecord(name="mask", kind="dense")


def _recipe(record: ModelRecord | DetectorRecord, name: str, bits: int | None) -> ImageRecipe:
    return description.recipe_of(record, name).changed(bits=bits)


def _check_readable(
    record: ModelRecord, recipe: ImageRecipe, name: str, *, decodes_objects: bool
) -> None:
    """Reject a file of which this package cannot make the rows of its head."""
    objects = [output.task for output in record.outputs if output.of in ("classes", "masks")]
    objects += [task.name for task in record.tasks if task.is_masks]
    # a file of format 1 states no tasks of objects
    if objects and not (decodes_objects and record.format > 1):
        raise CheckpointError(
            f"{name} predicts objects ({objects[0]}), which are decoded with torch; predict with "
            "the head file",
            step="config",
        )
    if recipe.channels != RGB:
        raise _not_rgb(name, recipe.channels)
    if recipe.resize != "pad":
        return
    has_maps = any(task.is_map for task in record.tasks)
    if record.format == 1 and has_maps:
        raise CheckpointError(
            f"{name} was written by dinoneck 0.3 and pads images: it does not state which values "
            "are means of its maps; export the head again",
            step="schema",
        )
    from_map = {task.name for task in record.tasks if task.from_map is not None}
    for task in record.tasks:
        if from_map & {*task.composed_of}:
            raise CheckpointError(
                f"{name} pads images, and {task.name} is composed of means of its maps, which would "
                "count the padding; predict with the head file",
                step="config",
            )


def _check_outputs(record: ModelRecord, name: str) -> None:
    """Reject a file whose outputs do not make the predictions of its tasks."""
    tasks = {task.name: task for task in record.tasks}
    if not record.outputs or len(tasks) < len(record.tasks):
        raise _unfit_outputs(name, "it has no outputs, or two tasks of one name")
    predicted = set()
    for output in record.outputs:
        if output.of == "gate":
            continue
        if output.task is None or output.task not in tasks:
            raise _unfit_outputs(name, f"the output {output.name!r} is of no task that it states")
        task = tasks[output.task]
        if output.of in ("classes", "masks") or task.is_masks:
            continue
        is_map = output.of == "map" or task.is_map
        sizes = 3 if is_map else 1  # (dim, rows, cols), or (dim,)
        has_other_dim = output.of == "task" and output.shape[1] != task.dim
        if output.kind != task.kind or len(output.shape) != 1 + sizes or has_other_dim:
            raise _unfit_outputs(
                name,
                f"the output {output.name!r} of shape {output.shape} and kind {output.kind} does not "
                f"fit its task of kind {task.kind} and {task.dim} outputs",
            )
        if output.of == "task":
            predicted.add(output.task)
    for task in record.tasks:
        _check_stated_thresholds(task.thresholds, len(task.columns), name)
        if task.is_masks:
            _check_object_outputs(task, record, name)
        elif task.name not in predicted:
            raise _unfit_outputs(name, f"no output predicts the task {task.name!r}")
        if task.from_map is None:
            continue
        map_task = tasks.get(task.from_map)
        if map_task is None or not (map_task.is_map and map_task.has_values):
            raise _unfit_outputs(
                name,
                f"the task {task.name!r} is the mean of {task.from_map!r}, which is no map of it",
            )
        if map_task.dim > 1 and task.name not in map_task.labels:
            raise _unfit_outputs(
                name,
                f"the task {task.name!r} is the mean of a channel of {task.from_map!r}, whose labels "
                f"are {', '.join(map_task.labels)}",
            )


def _check_object_outputs(task: TaskRecord, record: ModelRecord, name: str) -> None:
    """Reject a task of objects without the outputs that they are decoded from."""
    shapes = {output.of: output.shape for output in record.outputs if output.task == task.name}
    is_of_centres = task.kind == "instances" and set(shapes) == {"map"}
    if is_of_centres and shapes["map"][1] == task.dim + 4:
        return
    is_of_queries = set(shapes) == {"classes", "masks"}
    if is_of_queries and shapes["classes"][2:] == [task.dim + 1] and len(shapes["masks"]) == 4:
        if set(task.things) <= set(task.labels):
            return
    raise _unfit_outputs(
        name, f"its outputs {shapes} do not give the objects of the task {task.name!r}"
    )


def _unfit_outputs(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: its description is damaged: {reason}; export it again", step="schema"
    )


def _not_rgb(name: str, channels: int) -> CheckpointError:
    return CheckpointError(
        f"{name} takes images of {channels} channels, and exported files run on RGB images alone; "
        "predict with the head file",
        step="config",
    )


def _mean_from_map(
    task: TaskRecord, tasks: Sequence[TaskRecord], values: Mapping[str, Array]
) -> Array:
    """The value of a task that is the mean over a map, from those of the map."""
    [map_task] = [other for other in tasks if other.name == task.from_map]
    channel = 0 if map_task.dim == 1 else map_task.labels.index(task.name)
    mean = values[map_task.name][channel : channel + 1]
    if task.minimum is not None:
        mean = np.maximum(mean, np.float32(task.minimum))
    if task.maximum is not None:
        mean = np.minimum(mean, np.float32(task.maximum))
    return mean


def _value(name: str, value: Array) -> float | Array:
    """A prediction as rows have it: a number, or an array of several.

    Raises:
        DataError: if it is not finite.
    """
    is_finite = np.isfinite(value)
    if not is_finite.all():
        raise DataError(
            f"the prediction of {name!r} is {value[~is_finite][0]}; the head or image is unfit"
        )
    return float(value[0]) if len(value) == 1 else value.copy()


def _no_detector(min_score: Any, name: str) -> ConfigError:
    return ConfigError(
        f"min_score is {min_score!r}, and {name} is no detector; leave it out (--min-score)"
    )


def _check_stated_thresholds(thresholds: Sequence[float], num_labels: int, name: str) -> None:
    """Raise a CheckpointError unless a file states no thresholds, or one for each label, 0 to 1."""
    try:
        check_thresholds(thresholds, num_labels)
    except ConfigError as error:
        raise _unfit_outputs(name, str(error)) from None


def _list_images(images: Any) -> tuple[list[Any], bool]:
    """The images of a call, and whether they are those of a folder.

    Raises:
        DataError: for a folder without images, a folder among several, and what are no images.
    """
    is_path = isinstance(images, str | os.PathLike)
    if is_path and os.path.isdir(images):  # noqa: PTH112 - never raises
        return images_below(Path(images)), True
    is_one_array = isinstance(images, np.ndarray) and images.ndim != 4
    if is_path or is_one_array or isinstance(images, Image.Image):
        return [images], False
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise DataError(
            f"images are {type(images).__name__}; expected paths, PIL images or arrays (H, W, 3)"
        )
    listed = list(images)
    for number, image in enumerate(listed):
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):  # noqa: PTH112
            raise DataError(
                f"images[{number}] is the folder {image}; list its images, or pass the folder "
                "alone, of which every row names its image"
            )
    return listed, False
