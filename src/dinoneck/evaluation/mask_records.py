"""How the trainings of models read their masks, and that a truth is read alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from dinoneck.errors import ConfigError
from dinoneck.evaluation.models import loaded_heads_of
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.inference.predictor import Predictor

logger = logging.getLogger(__name__)


def mask_records_of(predictors: Mapping[str, Predictor]) -> list[MaskRecord]:
    """Return how the trainings of the heads that predict segmentations read their masks.

    A file that records nothing of it has an empty record; modules in memory have none.
    """
    records: list[MaskRecord] = []
    for predictor in predictors.values():
        for loaded_head in loaded_heads_of(predictor):
            if not any(task.kind == "segmentation" for task in loaded_head.head.tasks):
                continue
            records += loaded_head.mask_records
            recorded = {record.source for record in loaded_head.mask_records}
            records += [MaskRecord(file) for file in loaded_head.files if file not in recorded]
    return records


def as_in_training(asked: MaskRecord, records: Sequence[MaskRecord]) -> MaskRecord:
    """Return how masks are read: what the call leaves open is as in the trainings, and stated in a log line.

    Args:
        asked: what the call says.
        records: of the trainings.

    Raises:
        ConfigError: if trainings differ, or the call contradicts one.
    """
    with_class_values = [record for record in records if record.class_values]
    with_nodata = [record for record in records if record.nodata]
    _check_class_values(asked, with_class_values)
    if not asked.class_values:
        _check_none_without_class_values(with_class_values, records)
    _check_nodata(asked, with_nodata)

    # whose class values and whose nodata are taken
    values_of = asked
    nodata_of = asked
    taken = []
    if with_class_values and not asked.class_values:
        values_of = with_class_values[0]
        taken.append(f"class values {_listed(values_of.class_values)}")
    if with_nodata and not asked.nodata:
        nodata_of = with_nodata[0]
        taken.append(f"nodata {_listed(nodata_of.nodata)}")
    _check_apart(asked, values_of, nodata_of)
    if taken:
        logger.warning("masks are read as in training: %s", ", ".join(taken))
    return MaskRecord(asked.source, values_of.class_values, nodata_of.nodata)


def _check_class_values(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the class values of trainings differ from another, or from the call."""
    for record in records:
        first = records[0]
        if record.class_values != first.class_values:
            raise ConfigError(
                f"the training of {first.source} read masks with the class values "
                f"{_listed(first.class_values)}, that of {record.source} with "
                f"{_listed(record.class_values)}; evaluate them apart"
            )
        if asked.class_values and asked.class_values != record.class_values:
            raise ConfigError(
                f"class_values are {_listed(asked.class_values)}, and the training of "
                f"{record.source} read masks with the class values {_listed(record.class_values)}; "
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
        f"{_listed(values)}, and that of {without[0].source} records none, which is 0, 1, ...; "
        "evaluate them apart, or pass class_values (--class-values) if the masks mean the same to "
        "both"
    )


def _check_nodata(asked: MaskRecord, records: Sequence[MaskRecord]) -> None:
    """Raise a ConfigError if the nodata of trainings differ, or the call leaves some of it out."""
    for record in records:
        first = records[0]
        if {*record.nodata} != {*first.nodata}:
            raise ConfigError(
                f"the training of {first.source} read masks with nodata {_listed(first.nodata)}, "
                f"that of {record.source} with {_listed(record.nodata)}; evaluate them apart"
            )
        if asked.nodata and not {*record.nodata} <= {*asked.nodata}:
            raise ConfigError(
                f"nodata is {_listed(asked.nodata)}, and the training of {record.source} read "
                f"masks with nodata {_listed(record.nodata)}; leave nodata out (--nodata), or name "
                f"{_listed(record.nodata)} among it"
            )


def _check_apart(asked: MaskRecord, values_of: MaskRecord, nodata_of: MaskRecord) -> None:
    """Raise a ConfigError if a class of one source is nodata of another one."""
    if values_of is nodata_of:
        return
    both = {*values_of.class_values} & {*nodata_of.nodata}
    if not both:
        return
    if asked in (values_of, nodata_of):
        remedy = "leave the option out that names it"
    else:
        remedy = "evaluate them apart"
    raise ConfigError(
        f"the class values of {values_of.source} are {_listed(values_of.class_values)}, "
        f"and {min(both):g} is nodata of {nodata_of.source}; {remedy}"
    )


def _listed(values: Sequence[float]) -> str:
    """Values as the command line has them."""
    return " ".join(f"{value:.12g}" for value in values)
