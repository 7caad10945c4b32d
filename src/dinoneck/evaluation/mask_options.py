"""How the masks of a truth are read: the options of ``evaluate``, completed from the trainings of the models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dinoneck.data.class_colors import Rgb, color_text, parse_colors, read_color_table
from dinoneck.detection.evaluation import HeadModel
from dinoneck.errors import ConfigError, DataError
from dinoneck.evaluation.models import loaded_heads_of
from dinoneck.evaluation.predicted_tasks import PredictedTasks, is_share_map
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.task_facts import TaskFacts
from dinoneck.text import some_of


@dataclass(frozen=True)
class MaskOptions:
    """How masks are read, as of :func:`dinoneck.evaluate`; empty = not given.

    Attributes:
        labels: the table's column of masks.
        nodata: values without a label.
        class_values: the value of each class.
        class_colors: the colour of each class, ``R,G,B`` or three numbers.
        classes: a CSV file of classes and their colours; None = not given.

    Raises:
        ConfigError: if both values and colours, or colours and a file of them, are given, or a
            colour is none.
    """

    labels: str | None = None
    nodata: Sequence[float] = ()
    class_values: Sequence[int] = ()
    class_colors: Sequence[str | Sequence[int]] = ()
    classes: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        given = [
            name for name in ("class_values", "class_colors", "classes") if getattr(self, name)
        ]
        if len(given) > 1:
            raise ConfigError(
                f"{given[0]} and {given[1]} are both given, and each says what the classes of masks "
                "are; leave one of them out"
            )
        parse_colors(self.class_colors)

    def record(self, labels: Sequence[str]) -> MaskRecord:
        """Return what they say, to compare with the records of trainings.

        Args:
            labels: the classes of the models, in their order.

        Raises:
            DataError: if the file of colours cannot be read, or lacks a class.
        """
        class_colors = parse_colors(self.class_colors)
        if self.classes is not None:
            class_colors = self._colors_of_file(self.classes, labels)
        return MaskRecord(
            source="the call",
            class_values=tuple(self.class_values),
            nodata=tuple(self.nodata),
            class_colors=class_colors,
        )

    @staticmethod
    def _colors_of_file(path: str | os.PathLike[str], labels: Sequence[str]) -> tuple[Rgb, ...]:
        """The colours of the classes of the models, by the names in a file."""
        colour_of = read_color_table(path)
        for label in labels:
            if label not in colour_of:
                raise DataError(
                    f"{path} has no class {label!r}, which the models predict; expected one row for "
                    f"each of {some_of(labels, 8)}"
                )
        if len(colour_of) != len(labels):
            others = [name for name in colour_of if name not in labels]
            raise DataError(
                f"{path} has the class {others[0]!r}, which no model predicts; expected one row for "
                f"each of {some_of(labels, 8)}"
            )
        return tuple(colour_of[label] for label in labels)

    def check_not_given(self) -> None:
        """Raise a ConfigError for an option that changes nothing, since the truth has no masks."""
        stated = self._stated()
        if stated:
            name, value = next(iter(stated.items()))
            raise ConfigError(
                f"{name} is {value!r}, which is of masks, and the truth has none; name its column "
                "of masks with labels= (--labels), and leave cells of a table empty where the "
                "value is unknown"
            )

    def check_used(self, predicted: PredictedTasks) -> None:
        """Raise a ConfigError for an option that changes nothing, since no model predicts classes in maps."""
        if predicted.segmentations or predicted.share_maps:
            return
        unused = self._stated()
        if predicted.normals:
            unused.pop("labels", None)  # the column of their files
        if not unused:
            return
        name, value = next(iter(unused.items()))
        if predicted.normals:
            raise ConfigError(
                f"{name} is {value!r}, which is of masks of classes, and the heads predict surface "
                f"normals, {predicted.normals[0].name}, whose unknown pixels are NaN or zero "
                "vectors; leave it out"
            )
        if predicted.number_map_names:
            raise ConfigError(
                f"{name} is {value!r}, which is of masks of classes, and the heads predict maps "
                f"of numbers, {some_of(predicted.number_map_names, 5)}, which are not scored; leave "
                "it out"
            )
        raise ConfigError(
            f"{name} is {value!r}, which is of masks, and the heads predict "
            f"{some_of(predicted.names, 5)}, which no mask shows; leave it out"
        )

    def _stated(self) -> dict[str, object]:
        """Name -> value of the options that are given."""
        stated: dict[str, object] = {}
        if self.labels:
            stated["labels"] = self.labels
        if self.nodata:
            stated["nodata"] = self.nodata
        if self.class_values:
            stated["class_values"] = self.class_values
        if self.class_colors:
            stated["class_colors"] = self.class_colors
        if self.classes is not None:
            stated["classes"] = str(self.classes)
        return stated


def mask_records_of(predictors: Mapping[str, HeadModel]) -> list[MaskRecord]:
    """Return how the trainings of the heads that predict segmentations or maps of shares read their masks.

    A file that records nothing of it has an empty record; modules in memory have none.
    """
    records: list[MaskRecord] = []
    for predictor in predictors.values():
        for loaded_head in loaded_heads_of(predictor):
            if not any(_learns_masks(task) for task in loaded_head.head.tasks):
                continue
            records += loaded_head.mask_records
            recorded = {record.source for record in loaded_head.mask_records}
            records += [MaskRecord(file) for file in loaded_head.files if file not in recorded]
    return records


def _learns_masks(task: TaskFacts) -> bool:
    """Whether a task learns the classes of masks."""
    return task.kind == "segmentation" or is_share_map(task)


def complete_from_training(asked: MaskRecord, records: Sequence[MaskRecord]) -> MaskRecord:
    """Return how masks are read: what the call leaves open is as in the trainings.

    Args:
        asked: what the call says.
        records: of the trainings.

    Raises:
        ConfigError: if trainings differ, or the call contradicts one.
    """
    _check_class_colors(asked, records)
    class_colors = asked.class_colors
    if not class_colors and records:
        class_colors = records[0].class_colors
    if class_colors and asked.class_values:
        raise ConfigError(
            f"class_values is {asked.class_values!r}, and the training of {records[0].source} read "
            "masks of colours; leave it out (--class-values)"
        )
    with_class_values = [record for record in records if record.class_values]
    with_nodata = [record for record in records if record.nodata]
    _check_class_values(asked, with_class_values)
    if not asked.class_values:
        _check_none_without_class_values(with_class_values, records)
    _check_nodata(asked, with_nodata)

    class_values_record = asked
    nodata_record = asked
    if with_class_values and not asked.class_values:
        class_values_record = with_class_values[0]
    if with_nodata and not asked.nodata:
        nodata_record = with_nodata[0]
    _check_disjoint(asked, class_values_record, nodata_record)
    return MaskRecord(
        source=asked.source,
        class_values=class_values_record.class_values,
        nodata=nodata_record.nodata,
        class_colors=class_colors,
    )


def _check_class_colors(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the class colours of trainings differ, or from those of the call."""
    for record in records:
        first = records[0]
        if record.class_colors != first.class_colors:
            raise ConfigError(
                f"the training of {first.source} read masks with {_colors_in_words(first)}, that of "
                f"{record.source} with {_colors_in_words(record)}; evaluate them apart"
            )
        if asked.class_colors and record.class_colors not in ((), asked.class_colors):
            raise ConfigError(
                f"the call names {_colors_in_words(asked)}, and the training of "
                f"{record.source} read masks with {_colors_in_words(record)}; leave class_colors out "
                "(--class-colors, --classes)"
            )


def _colors_in_words(record: MaskRecord) -> str:
    if not record.class_colors:
        return "no class colours"
    return f"the class colours {' '.join(map(color_text, record.class_colors))}"


def _check_class_values(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the class values of trainings differ from another, or from the call."""
    for record in records:
        first = records[0]
        if record.class_values != first.class_values:
            raise ConfigError(
                f"the training of {first.source} read masks with the class values "
                f"{_as_options(first.class_values)}, that of {record.source} with "
                f"{_as_options(record.class_values)}; evaluate them apart"
            )
        if asked.class_values and asked.class_values != record.class_values:
            raise ConfigError(
                f"class_values are {_as_options(asked.class_values)}, and the training of "
                f"{record.source} read masks with the class values {_as_options(record.class_values)}; "
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
        f"{_as_options(values)}, and that of {without[0].source} records none, which is 0, 1, ...; "
        "evaluate them apart, or pass class_values (--class-values) if the masks mean the same to "
        "both"
    )


def _check_nodata(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the nodata of trainings differ, or the call leaves some of it out."""
    for record in records:
        first = records[0]
        if {*record.nodata} != {*first.nodata}:
            raise ConfigError(
                f"the training of {first.source} read masks with nodata {_as_options(first.nodata)}, "
                f"that of {record.source} with {_as_options(record.nodata)}; evaluate them apart"
            )
        if asked.nodata and not {*record.nodata} <= {*asked.nodata}:
            raise ConfigError(
                f"nodata is {_as_options(asked.nodata)}, and the training of {record.source} read "
                f"masks with nodata {_as_options(record.nodata)}; leave nodata out (--nodata), or name "
                f"{_as_options(record.nodata)} among it"
            )


def _check_disjoint(
    asked: MaskRecord, class_values_record: MaskRecord, nodata_record: MaskRecord
) -> None:
    """Raise a ConfigError if a class of one source is nodata of another one."""
    if class_values_record is nodata_record:
        return
    in_both = {*class_values_record.class_values} & {*nodata_record.nodata}
    if not in_both:
        return
    if asked in (class_values_record, nodata_record):
        remedy = "leave the option out that names it"
    else:
        remedy = "evaluate them apart"
    raise ConfigError(
        f"the class values of {class_values_record.source} are "
        f"{_as_options(class_values_record.class_values)}, and {min(in_both):g} is nodata of "
        f"{nodata_record.source}; {remedy}"
    )


def _as_options(values: Sequence[float]) -> str:
    """Values as the command line has them."""
    return " ".join(f"{value:.12g}" for value in values)
