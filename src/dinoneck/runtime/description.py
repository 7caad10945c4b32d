"""What an exported file states of itself: the entries of its metadata, as they are written and read.

The export of heads and that of detectors fill these records; the code that runs the files reads
them. A file of dinoneck 0.3 has format 1, which lacks some entries; what is read of it is stated
where the entry is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from dinoneck.checkpoint.format import strict_json
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.images.recipe import ImageRecipe
from dinoneck.kinds import MAP_KINDS, Kind
from dinoneck.task_facts import TaskFacts, TaskRecord

FORMAT = 2
MODEL_KEY = "dinoneck_export"
"""The entry of a head, alone or with its backbone."""
DETECTOR_KEY = "dinoneck_detector"
"""The entry of a detector."""
MAX_BYTES = 16 << 20
"""Of an entry. That of 21,843 classes with names has 1 MB."""

Content = Literal["task", "map", "classes", "masks", "gate"]
Positive = Annotated[int, Meta(ge=1)]
Record = TypeVar("Record", bound=Struct)
SizeRecord = Annotated[list[Positive], Meta(min_length=2, max_length=2)]


class OutputRecord(Struct, kw_only=True, omit_defaults=True):
    """An output of a model.

    Attributes:
        name: in the file.
        shape: ``["batch", dim]``, or ``["batch", dim, "rows", "cols"]``.
        task: whose output it is; None for a gate.
        of: what it is: a task's prediction, its map, what its queries give, or a gate.
        kind: of the task.
        aggregate: of a ``density`` task, how cells make the value.
        unit: of the task.
        labels: of the task.
        activation: ``unit`` of surface normals: maps that are resized get the length 1 again.
    """

    name: str
    shape: Annotated[list[int | str], Meta(min_length=2)]
    task: str | None
    of: Content
    kind: Kind | None
    aggregate: str | None
    unit: str
    labels: tuple[str, ...]
    activation: Literal["unit"] | None = None


class ImagesInput(Struct, kw_only=True):
    """The input of a model that takes images.

    Attributes:
        name: in the file.
        layout: ``NCHW``.
        channels: ``RGB``, or how many bands.
        dtype: ``float32``.
        range: the lowest and the highest value.
        normalised_inside: whether the model subtracts the mean itself.
        batch: ``free``.
        patch_size: (height, width) in pixels.
        size: the one (height, width) that it takes; None = any.
        smallest: (height, width) below which it was not traced; None of a model of one size.
    """

    name: str
    layout: str
    channels: str
    dtype: str
    range: list[float]
    normalised_inside: bool
    batch: str
    patch_size: SizeRecord
    size: SizeRecord | None
    smallest: SizeRecord | None


class ViewsRecord(Struct, kw_only=True):
    """The views of images whose predictions are averaged.

    Attributes:
        exported: those that the file predicts: ``none``, which is one view.
        recorded: those that the heads record, sorted.
    """

    exported: str
    recorded: list[str]


class ModelRecord(Struct, kw_only=True):
    """The entry ``dinoneck_export`` of a head, alone or with its backbone.

    Attributes:
        format: of this record.
        input: of a model of images an :class:`ImagesInput`; of a head alone what tokens it takes.
        preprocess: how images are prepared, see :meth:`dinoneck.data.Preprocessing.record`; None
            if the head's file does not record it.
        outputs: in the order of the file.
        tasks: what is predicted, compositions among them. Format 1 has none: they are those of
            the outputs, without bounds and sources.
        parity: how far the file is from the eager model; None if that was not checked.
        made_with: package -> version.
        half: whether matrix products are computed in float16.
        views: those of the file and of the heads.
        digests: of the head files that it was exported from. Format 1 has none.
        resamples_queries: whether the head resamples other outputs than its maps to the pixels of
            an image, so that the file has no maps at the size of an image.
    """

    format: int
    input: dict[str, Any]
    preprocess: dict[str, Any] | None
    outputs: list[OutputRecord]
    tasks: tuple[TaskRecord, ...] = ()
    parity: dict[str, Any] | None
    made_with: dict[str, str]
    half: bool
    views: ViewsRecord
    digests: list[str] = []
    resamples_queries: bool = False


class DetectorRecord(Struct, kw_only=True):
    """The entry ``dinoneck_detector`` of a detector.

    Attributes:
        format: of this record; format 1 does not state it.
        classes: names of the labels.
        size: (height, width) of the input.
        detector: its kind.
        half: whether matrix products are computed in float16. Format 1 may not state it.
        parity: how far its boxes are from the detector's, with the tolerance; None if that was not
            checked or is not stated.
        dinoneck: the version that wrote it.
        preprocess: how images are prepared. Format 1: stretched to ``size``, bilinearly.
        min_score: the smallest score of boxes. Format 1 does not state it.
        thresholds: the smallest score of the boxes of each class, in the place of ``min_score``;
            empty: there are none.
        digest: of the head file of the detector. Format 1 has none.
        has_masks: whether it gives a mask for each box, the output ``masks``.
    """

    format: int = 1
    classes: tuple[str, ...]
    size: SizeRecord
    detector: str
    half: bool = False
    parity: dict[str, Any] | None = None
    dinoneck: str
    preprocess: dict[str, Any] | None = None
    min_score: float | None = None
    thresholds: list[float] = []
    digest: str | None = None
    has_masks: bool = False


def to_entry(record: ModelRecord | DetectorRecord) -> dict[str, Any]:
    """Return a record as plain values, of which the metadata hold the JSON."""
    entry: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    for task in entry.get("tasks", ()):
        for interval in task["interval"]:
            del interval["views"]  # the exporter leaves those of the image alone
        if not task["interval"]:  # files without intervals are those of earlier versions
            del task["interval"]
        if not task["thresholds"]:
            del task["thresholds"]
    if isinstance(record, DetectorRecord) and not record.thresholds:
        del entry["thresholds"]
    return entry


def record_task(task: TaskFacts, composed_of: Sequence[str] = ()) -> TaskRecord:
    """Return what a file states of a task.

    Args:
        task: a :class:`dinoneck.Task`.
        composed_of: the tasks that it is composed of.
    """
    return TaskRecord(
        name=task.name,
        dim=task.dim,
        kind=task.kind,
        unit=task.unit,
        labels=task.labels,
        aggregate=task.aggregate,
        from_map=task.from_map,
        shares=task.shares,
        minimum=task.minimum,
        maximum=task.maximum,
        activation=task.activation,
        thresholds=task.thresholds,
        things=tuple(task.things),
        composed_of=tuple(composed_of),
        interval=tuple(task.interval),
    )


def read_model(raw: bytes, name: str) -> ModelRecord:
    """Read the entry of a head with its backbone.

    Args:
        raw: the JSON.
        name: of the file, for messages.

    Raises:
        CheckpointError: if it is damaged or of a later version, or of a head without its backbone.
    """
    entry = _entry(raw, name)
    input_record = entry.get("input")
    if isinstance(input_record, Mapping) and "names" in input_record:
        raise CheckpointError(
            f"{name} holds a head without its backbone, which takes tokens and no images; export "
            "it again with --with-backbone (export_model)",
            step="pairing",
        )
    record = _convert(entry, ModelRecord, name)
    if record.format == 1:
        record.tasks = _tasks_of_outputs(record.outputs)
    return record


def read_detector(raw: bytes, name: str) -> DetectorRecord:
    """Read the entry of a detector; see :func:`read_model`."""
    return _convert(_entry(raw, name), DetectorRecord, name)


def images_input(record: ModelRecord, name: str) -> ImagesInput:
    """Return the input of a model of images.

    Raises:
        CheckpointError: if the record of it is damaged.
    """
    return _convert(record.input, ImagesInput, name)


def recipe_of(record: ModelRecord | DetectorRecord, name: str) -> ImageRecipe:
    """Return how a file's images are prepared.

    Raises:
        CheckpointError: if the file does not state it, or a value is out of range.
    """
    fields = record.preprocess
    if fields is None and isinstance(record, DetectorRecord):
        height, width = record.size
        return ImageRecipe(patch_size=1, size=(height, width), resize="stretch")
    if fields is None:
        raise CheckpointError(
            f"{name} does not state how images are prepared; save the head with preprocess=, and "
            "export it again",
            step="schema",
        )
    try:
        return ImageRecipe.from_record(fields)
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}", step="schema") from None


def _entry(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON of an entry, with a format that is read here."""
    if len(raw) > MAX_BYTES:
        raise CheckpointError(
            f"{name}: its description has {len(raw)} bytes; expected {MAX_BYTES} at most",
            step="json",
        )
    entry, spelt = strict_json(raw, name, "description")
    if not isinstance(entry, dict):
        raise CheckpointError(f"{name}: its description is not a JSON object", step="schema")
    stated_format = entry.get("format", 1)
    if not isinstance(stated_format, int) or not 1 <= stated_format <= FORMAT:
        raise CheckpointError(
            f"{name} has the format {stated_format!r}; this version reads 1 to {FORMAT}: install a newer "
            "dinoneck, or export the head again",
            step="schema",
        )
    # a key that repeats has one value here and may have another one elsewhere
    if stated_format > 1 and spelt.encode("utf-8") != raw:
        raise CheckpointError(
            f"{name}: its description is not canonical JSON; it was edited or damaged. Export it "
            "again",
            step="json",
        )
    return entry


def _convert(entry: Mapping[str, Any], record: type[Record], name: str) -> Record:
    try:
        return msgspec.convert(entry, record)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{name}: its description is damaged: {error}; export it again", step="schema"
        ) from None


def _tasks_of_outputs(outputs: Sequence[OutputRecord]) -> tuple[TaskRecord, ...]:
    """The tasks of a file of format 1."""
    tasks = []
    for output in outputs:
        if output.of != "task" or output.task is None or output.kind is None:
            continue
        dim = output.shape[1]
        tasks.append(
            TaskRecord(
                name=output.task,
                dim=dim if isinstance(dim, int) else 1,
                kind=output.kind,
                unit=output.unit,
                labels=output.labels,
                aggregate="mean" if output.aggregate == "mean" else "sum",
            )
        )
    return tuple(tasks)


def is_map(output: OutputRecord) -> bool:
    """Return whether an output is a map of a task, per patch."""
    return output.of == "map" or (output.of == "task" and output.kind in MAP_KINDS)
