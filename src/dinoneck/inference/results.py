"""Predictions of many images, as dictionaries and as rows of a table."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinoneck.errors import ConfigError, DataError, DinoneckError, ShapeError
from dinoneck.extras import missing_extra
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.progress import progress
from dinoneck.runtime.intervals import BOUNDS, PREDICTION_SETS, task_named_as_entry
from dinoneck.runtime.names import IMAGE
from dinoneck.task_facts import NO_LABELS, TaskFacts, as_tasks, columns_of, output_name
from dinoneck.task_intervals import HIGH, LOW, SET
from dinoneck.text import printable, some_of

LABEL_SEPARATOR = ";"
"""What separates the labels of a set in a cell of a table."""

logger = logging.getLogger(__name__)


def coco_objects(objects: Any) -> list[dict[str, Any]]:
    """Return the objects of a row as JSON values: class, score, box and mask, as COCO's run lengths.

    Args:
        objects: what a row of a :class:`dinoneck.Predictor` holds for a task of instances or
            panoptic segments.

    Raises:
        ImportError: naming the extra, if pycocotools is not installed.
        ShapeError: if there are more or fewer masks than objects.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise missing_extra("pycocotools", "masks") from error
    if isinstance(objects, tuple):
        segments, rows = objects
        masks = CroppedMasks.of_segments(np.asarray(segments), [row["id"] for row in rows])
    else:
        rows = []
        masks = objects["masks"]
        scores = objects["scores"].tolist()
        for label, score in zip(objects["labels"].tolist(), scores, strict=True):
            rows.append({"category_id": label, "score": score})
    if len(masks) != len(rows):
        raise ShapeError(f"{len(masks)} masks, and {len(rows)} objects; expected one of each")
    records = []
    for number, row in enumerate(rows):
        if isinstance(masks, CroppedMasks):
            lengths = {"counts": masks.run_lengths(number), "size": masks.size}
            runs = coco.frPyObjects(lengths, *masks.size)
        else:
            runs = coco.encode(np.asfortranarray(masks[number], dtype=np.uint8))
        box = coco.toBbox(runs).tolist()  # (x, y, width, height), as COCO has them
        segmentation = {**runs, "counts": runs["counts"].decode("ascii")}
        records.append({**row, "bbox": box, "segmentation": segmentation})
    return records


def table_row(
    result: Mapping[str, Any], tasks: Sequence[TaskFacts], **known: str
) -> dict[str, float | str]:
    """Return one image's result as column -> value.

    The columns are those of :func:`dinoneck.tasks.columns_of`. A classification has the most
    probable class as ``name``, then a probability per class as ``name:label``. A multilabel task has
    the labels of the image as ``name``, separated by ``;``, or ``none``, then their probabilities.
    Where the result holds intervals, a number is followed by ``name low`` and ``name high``, and the
    class by ``name set``, its labels separated by ``;``.

    Args:
        result: of a :class:`dinoneck.Predictor`.
        tasks: the predictor's.
        **known: columns before those of the tasks.

    Raises:
        ConfigError: if two columns have one name.
        DataError: if the result lacks a task.
    """
    cells = _cells(tasks, result)
    row: dict[str, float | str] = {**known}
    row.update((cell.column, cell.value) for cell in cells)
    names = [*known, *(cell.column for cell in cells)]
    if len(row) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(
            f"several columns are named {', '.join(twice)}; give tasks, labels and sums different "
            "names"
        )
    return row


def to_frame(
    results: Sequence[Mapping[str, Any]],
    tasks: TaskFacts | Sequence[TaskFacts],
    names: Sequence[str] | None = None,
) -> Any:
    """Return results as a ``pandas.DataFrame`` with a row per image and the columns of ``dinoneck predict``.

    Args:
        results: of a :class:`dinoneck.Predictor`.
        tasks: the predictor's, which have the labels.
        names: the index, such as the images' file names; None = the paths that the results of a
            folder hold, else 0, 1, ...

    Raises:
        ConfigError: if two columns have one name.
        DataError: if a result lacks a task.
        ImportError: if pandas is not installed.

    Examples:
        >>> from dinoneck import Task
        >>> frame = to_frame([{"mass": 3.5, "soil": np.array([0.2, 0.8])}], [
        ...     Task("mass"), Task("soil", dim=2, kind="classification", labels=("wet", "dry")),
        ... ], names=["a.jpg"])
        >>> frame.loc["a.jpg"].to_dict()
        {'mass': 3.5, 'soil': 'dry', 'soil:wet': 0.2, 'soil:dry': 0.8}
    """
    tasks = as_tasks(tasks)
    if names is None:
        names = _paths_in(results, tasks)
    rows = [table_row(result, tasks) for result in results]
    return importlib.import_module("pandas").DataFrame(rows, index=names)  # noqa: TID251 - users install pandas


def _paths_in(results: Sequence[Mapping[str, Any]], tasks: Sequence[TaskFacts]) -> list[str] | None:
    """The paths of the images of a folder; None for results of other images."""
    if any(task.name == IMAGE for task in tasks):
        return None  # what results hold under this name is its prediction
    if not results or not all(IMAGE in result for result in results):
        return None
    return [result[IMAGE] for result in results]


class _Cell(NamedTuple):
    """A cell of the row of an image."""

    column: str
    value: float | str


def _cells(tasks: Sequence[TaskFacts], result: Mapping[str, Any]) -> list[_Cell]:
    """The cells of an image: how many objects of each task, then numbers, classes and labels.

    Raises:
        DataError: if the result lacks a task.
    """
    cells = []
    for task in tasks:
        if task.is_unit:
            continue
        if task.name not in result:
            raise DataError(
                f"a result has no {task.name!r}; it holds {some_of(map(str, result), 5) or 'nothing'}"
            )
        if task.is_masks:
            cells.append(_Cell(task.name, _count_objects(result[task.name])))

    values_of_task = {}
    for task in tasks:
        if task.has_values:
            flat = np.asarray(result[task.name]).reshape(-1)
            values_of_task[task.name] = [float(value) for value in flat]
    bounds: Mapping[str, Any] = {}
    prediction_sets: Mapping[str, Any] = {}
    if task_named_as_entry(tasks) is None:
        bounds = result.get(BOUNDS, {})
        prediction_sets = result.get(PREDICTION_SETS, {})
    for column in columns_of(tasks):
        task = column.task
        values = values_of_task[task.name]
        name = column.name
        if task.is_image_class:
            name = f"{task.name}:{output_name(task, column.place)}"
        is_first = column.place == 0
        if is_first and task.is_multilabel:
            labels = LABEL_SEPARATOR.join(task.labels_above(values))
            cells.append(_Cell(task.name, labels or NO_LABELS))
        if is_first and task.is_image_class:
            cells.append(_Cell(task.name, output_name(task, int(np.argmax(values)))))
            if task.name in prediction_sets:
                labels = LABEL_SEPARATOR.join(prediction_sets[task.name])
                cells.append(_Cell(f"{task.name}{SET}", labels))
        cells.append(_Cell(name, values[column.place]))
        if task.name in bounds:
            low, high = (float(np.reshape(ends, -1)[column.place]) for ends in bounds[task.name])
            if not math.isnan(low):
                cells.append(_Cell(f"{name}{LOW}", low))
                cells.append(_Cell(f"{name}{HIGH}", high))
    return cells


def _count_objects(objects: Any) -> int:
    """How many objects an image has; of panoptic segments the things are counted."""
    if isinstance(objects, tuple):
        _, segment_infos = objects
        return sum(info["isthing"] for info in segment_infos)
    return len(objects["scores"])


def predict_many(
    predict: Callable[[list[Path]], list[dict[str, Any]]],
    images: Sequence[Path],
    *,
    at_once: int = 32,
    unusable: dict[int, str] | None = None,
    finish: Callable[[Path, Any], dict[str, Any]] | None = None,
) -> dict[int, dict[str, Any]]:
    """Return place among the images -> prediction.

    Args:
        predict: a predictor or detector, which splits images into batches and decodes ahead of the
            model.
        images: files.
        at_once: images per call; if one of them cannot be used, they are predicted one by one.
        unusable: place -> why the image cannot be used, filled in by this call; None = such an
            image is an error.
        finish: an image and its prediction -> what is kept of it, called before the next images are
            predicted: maps can be written and dropped. Its errors are not those of an image.

    Raises:
        DinoneckError: the first unusable image, if ``unusable`` is None.
    """
    results: dict[int, dict[str, Any]] = {}
    with progress(total=len(images), desc="images", unit="image") as bar:
        for begin in range(0, len(images), at_once):
            batch = [*images[begin : begin + at_once]]
            predictions = _predict_batch(predict, batch, begin, unusable)
            for place, prediction in predictions.items():
                results[place] = prediction if finish is None else finish(images[place], prediction)
            bar.update(len(batch))
    return results


def _predict_batch(
    predict: Callable[[list[Path]], list[dict[str, Any]]],
    batch: list[Path],
    first_place: int,
    unusable: dict[int, str] | None,
) -> dict[int, dict[str, Any]]:
    """Place -> prediction of images whose first one has this place, see :func:`predict_many`."""
    try:
        return dict(enumerate(predict(batch), first_place))
    except (DinoneckError, OSError):
        if unusable is None:
            raise
        logger.info(
            "an image of %d cannot be used; they are predicted one by one",
            len(batch),
            exc_info=True,
        )
    predictions = {}
    for place, image in enumerate(batch, first_place):
        try:
            [predictions[place]] = predict([image])
        except (DinoneckError, OSError) as error:
            unusable[place] = printable(str(error))
    return predictions
