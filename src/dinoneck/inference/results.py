"""Predictions of many images, as dictionaries and as rows of a table."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.errors import ConfigError, DataError, DinoneckError, ShapeError
from dinoneck.extras import missing_extra
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.progress import progress
from dinoneck.runtime.intervals import BOUNDS, PREDICTION_SETS, task_named_as_entry
from dinoneck.runtime.names import IMAGE
from dinoneck.task_facts import NO_LABELS, TaskFacts, as_tasks, columns_of
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
    rows: list[dict[str, Any]] = []
    if isinstance(objects, tuple):
        segments, rows = objects
        masks = CroppedMasks.of_segments(np.asarray(segments), [row["id"] for row in rows])
    else:
        masks = objects["masks"]
        scores = objects["scores"].tolist()
        for label, score in zip(objects["labels"].tolist(), scores, strict=True):
            rows.append({"category_id": label, "score": score})
    records = []
    if len(masks) != len(rows):
        raise ShapeError(f"{len(masks)} masks, and {len(rows)} objects; expected one of each")
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
    pairs = [*known.items(), *_cells(tasks, result)]
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
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


def _cells(
    tasks: Sequence[TaskFacts], result: Mapping[str, Any]
) -> Iterator[tuple[str, float | str]]:
    for task in tasks:
        if task.is_unit:
            continue
        if task.name not in result:
            raise DataError(
                f"a result has no {task.name!r}; it holds {some_of(map(str, result), 5) or 'nothing'}"
            )
        if task.is_masks:
            found = result[task.name]
            is_segments = isinstance(found, tuple)  # of which things are counted
            yield (
                task.name,
                sum(own["isthing"] for own in found[1]) if is_segments else len(found["scores"]),
            )
    numbers = {
        task.name: [float(value) for value in np.asarray(result[task.name]).reshape(-1)]
        for task in tasks
        if task.has_values
    }
    bounds: Mapping[str, Any] = {}
    prediction_sets: Mapping[str, Any] = {}
    if task_named_as_entry(tasks) is None:
        bounds = result.get(BOUNDS, {})
        prediction_sets = result.get(PREDICTION_SETS, {})
    for name, task, place in columns_of(tasks):
        if task.is_multilabel and place == 0:
            yield (
                task.name,
                LABEL_SEPARATOR.join(task.labels_above(numbers[task.name])) or NO_LABELS,
            )
        if task.is_image_class:
            labels = task.labels or tuple(map(str, range(task.dim)))
            if place == 0:
                yield task.name, labels[int(np.argmax(numbers[task.name]))]
                if task.name in prediction_sets:
                    yield f"{task.name}{SET}", LABEL_SEPARATOR.join(prediction_sets[task.name])
            name = f"{task.name}:{labels[place]}"
        yield name, numbers[task.name][place]
        if task.name in bounds:
            low, high = (float(np.reshape(bound, -1)[place]) for bound in bounds[task.name])
            if not math.isnan(low):
                yield f"{name}{LOW}", low
                yield f"{name}{HIGH}", high


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
            predictions: dict[int, Any] = {}
            try:
                predictions |= enumerate(predict(batch), begin)
            except (DinoneckError, OSError):
                if unusable is None:
                    raise
                logger.info(
                    "an image of %d cannot be used; they are predicted one by one",
                    len(batch),
                    exc_info=True,
                )
                for place, image in enumerate(batch, begin):
                    try:
                        [predictions[place]] = predict([image])
                    except (DinoneckError, OSError) as error:
                        unusable[place] = printable(str(error))
            for place, prediction in predictions.items():
                results[place] = prediction if finish is None else finish(images[place], prediction)
            bar.update(len(batch))
    return results
