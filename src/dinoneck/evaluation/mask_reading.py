"""The masks of a truth, read as the trainings of the models read theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinoneck.data.cells import IMAGES, LABELS, is_missing
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.class_lists import warn_of_class_lists
from dinoneck.data.decoding import read_image_size
from dinoneck.data.label_sets import mask_classes, survey_masks
from dinoneck.data.labels import DenseLabels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.table import Table
from dinoneck.evaluation.mask_options import MaskOptions
from dinoneck.evaluation.mask_records import as_in_training
from dinoneck.evaluation.targets import class_labels
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.tasks import Task
from dinoneck.training.masks import masks_of, reader_of_classes


@dataclass(frozen=True)
class MaskReader:
    """Reads the classes of the pixels of each image from its mask.

    Attributes:
        images: of all rows.
        masks: of all rows; some may be missing.
        labels_of_task: segmentation task -> how its classes are read; none if all masks are
            missing.
    """

    images: list[Any]
    masks: list[Any]
    labels_of_task: Mapping[str, DenseLabels]

    def read(self, row: int, *, task: str, preprocess: Preprocessing) -> Tensor:
        """Return the true classes (1, height, width) of the pixels of a prepared image, -1 = unlabelled.

        Without a mask it is one pixel that is unlabelled.
        """
        mask = self.masks[row]
        if is_missing(mask):
            return torch.full((1, 1, 1), -1)
        size = read_image_size(self.images[row])
        return self.labels_of_task[task].indices([mask], preprocess, [size])


def open_masks(
    table: Any,
    tasks: Sequence[Task],
    options: MaskOptions,
    records: Sequence[MaskRecord],
) -> MaskReader:
    """Return what reads the masks of a table; a class that they do not show is warned of.

    Args:
        table: the truth, with masks.
        tasks: the segmentations that are predicted.
        options: of the call.
        records: how the trainings of the models read masks.

    Raises:
        ConfigError: if trainings differ, or the options contradict one.
        DataError: if an image or a mask cannot be read, or holds other values than the classes.
    """
    masks = masks_of(Table.from_frame(table))
    labels_of_task = {}
    if tasks and masks.files:
        record = as_in_training(options.record, records)
        survey = survey_masks(masks.files, record.nodata, masks.image_sizes)
        for task in tasks:
            classes = mask_classes(survey, class_labels(task), record.class_values)
            warn_of_class_lists(masks.files, classes.names, classes.stored)
            warn_of_empty_classes(
                classes.pixels,
                "pixel",
                "the masks",
                remedy="Its IoU is unknown, or 0 where the class is predicted",
            )
            labels_of_task[task.name] = reader_of_classes(classes, record.nodata)
    return MaskReader(
        images=list(table[IMAGES]),
        masks=list(table[LABELS]),
        labels_of_task=labels_of_task,
    )
