"""What ``--truth`` says of single images, for pictures and reports: numbers, classes, masks or boxes.

A truth is read as ``dinoneck evaluate`` reads it, see :mod:`dinoneck.evaluation.truth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.data.cells import IMAGES, LABELS
from dinoneck.data.names import is_json_file
from dinoneck.data.pairs import DEFAULT_PAIRING, Pairing
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import some_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from dinoneck.data.boxes import BoxImages
    from dinoneck.data.cells import DecimalMark
    from dinoneck.data.folders import Subfolders
    from dinoneck.evaluation.mask_options import MaskOptions
    from dinoneck.evaluation.masks import MaskReader
    from dinoneck.inference.predictor import Predictor
    from dinoneck.task_facts import TaskFacts
    from dinoneck.tasks import Task
    from dinoneck.viz.scales import Output

    ClassesOfPixels = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class KnownValues:
    """What is known of images.

    Attributes:
        values: image -> column -> known value, or class; of images of which something is known.
        masks: their masks; None = the truth has none.
    """

    values: Mapping[Path, Mapping[str, Any]]
    masks: KnownMasks | None = None


def check_truth_columns(
    truth: Path,
    image_column: str,
    columns: Sequence[str] = (),
    tasks_of_models: Sequence[Sequence[TaskFacts]] = (),
) -> None:
    """Refuse, before torch is imported, a table that cannot be read or lacks columns; folders and objects pass.

    Args:
        truth: the table, folder, COCO file or ``data.yaml``.
        image_column: its column of file names.
        columns: others that it must have.
        tasks_of_models: what the models predict, of which it must have some; empty: that is not
            known.

    Raises:
        DataError: naming the column, or what is wrong with the file.
    """
    from dinoneck.data.listed_images import is_yaml
    from dinoneck.data.tables import read_cells

    if truth.is_dir() or is_json_file(truth) or is_yaml(truth):
        return
    cells = read_cells(truth, [image_column, *columns], image_column)
    header = list(map(str, cells.columns))
    if tasks_of_models and all(tasks_of_models):  # a detector has none
        from dinoneck.evaluation.predicted_tasks import PredictedTasks
        from dinoneck.evaluation.truth_columns import TruthColumns

        predicted = PredictedTasks.of_models(tasks_of_models)
        if predicted.expected_columns:  # heads of objects have none
            TruthColumns.among(header, predicted).check_any()


def check_truths(
    truths: Sequence[Path], image_column: str, decimal: DecimalMark | None = None
) -> None:
    """Refuse, before torch is imported, truths that cannot be read, and two of one kind.

    Args:
        truths: a table or a folder, or both.
        image_column: the table's column of file names.
        decimal: the decimal mark of the table.

    Raises:
        ConfigError: if there are several tables, or several folders, or a decimal mark and no table.
        DataError: naming the file that is missing, or what is wrong with it.
    """
    from dinoneck.cli.arguments import check_exist

    check_exist(truths)
    num_folders = sum(truth.is_dir() for truth in truths)
    num_files = len(truths) - num_folders
    if num_folders > 1 or num_files > 1:
        raise ConfigError(
            f"--truth lists {' '.join(map(str, truths))}; expected one file, one folder of masks, or "
            "both"
        )
    if decimal is not None and all(truth.is_dir() or is_json_file(truth) for truth in truths):
        raise ConfigError(
            f"--decimal is {decimal!r}, and --truth lists no CSV file, whose numbers have a decimal "
            "mark; leave it out"
        )
    for truth in truths:
        check_truth_columns(truth, image_column)


def known_values(
    truths: Sequence[Path],
    images: Sequence[Path],
    files: Sequence[Path],
    predictor: Predictor,
    *,
    image_column: str,
    subfolders: Subfolders | None = None,
    decimal: DecimalMark | None = None,
    pairing: Pairing = DEFAULT_PAIRING,
    mask_options: MaskOptions | None = None,
) -> KnownValues:
    """Return what truths say of image files, for heads without keys.

    Args:
        truths: a CSV with one row per image and columns named like the predictions; a folder of
            masks; or a folder of class folders that hold the images; or the CSV and a folder. The
            CSV wins where both have a number.
        images: the images and folders as they are named.
        files: the image files.
        predictor: the heads.
        image_column: the CSV's column of file names.
        subfolders: how the folders in the truth are read; None: by their names.
        decimal: the decimal mark of the CSV; None: as :func:`dinoneck.data.read_table` finds it.
        pairing: how the masks of a folder are chosen.
        mask_options: how masks are read; None: as in the training of the heads.

    Raises:
        ConfigError: if a task predicts objects or numbers per pixel, which a folder shows; if the
            truth is a folder of masks, and the images are not named by their one folder; or if
            options of masks are given, and the truth has none.
        DataError: if the truth cannot be read, or has nothing that is predicted, see
            :func:`values_of_rows`.
    """
    values: dict[Path, dict[str, Any]] = {}
    masks = None
    folders_first = sorted(truths, key=lambda truth: not truth.is_dir())
    for truth in folders_first:
        known = _values_of_truth(
            truth,
            images,
            files,
            predictor,
            image_column=image_column,
            subfolders=subfolders if truth.is_dir() or len(truths) == 1 else None,
            decimal=None if truth.is_dir() else decimal,
            pairing=pairing if truth.is_dir() or len(truths) == 1 else DEFAULT_PAIRING,
            mask_options=mask_options,
        )
        masks = masks or known.masks
        for file, values_of_file in known.values.items():
            values.setdefault(file, {}).update(values_of_file)
    if mask_options is not None and masks is None:
        mask_options.check_not_given()
    return KnownValues(values, masks)


def _values_of_truth(
    truth: Path,
    images: Sequence[Path],
    files: Sequence[Path],
    predictor: Predictor,
    *,
    image_column: str,
    subfolders: Subfolders | None,
    decimal: DecimalMark | None,
    pairing: Pairing,
    mask_options: MaskOptions | None,
) -> KnownValues:
    """What one truth says of image files."""
    tasks = predictor.tasks
    _check_no_objects(truth, tasks)
    if not truth.is_dir() or not any(task.is_map for task in tasks):
        return KnownValues(
            values_of_rows(
                truth,
                files,
                tasks,
                image_column=image_column,
                subfolders=subfolders,
                decimal=decimal,
                pairing=pairing,
            )
        )
    masks = KnownMasks.open(
        truth,
        images,
        predictor,
        image_column=image_column,
        subfolders=subfolders,
        pairing=pairing,
        mask_options=mask_options,
    )
    values = {}
    for file in masks.files_among(files, truth):
        values[file] = masks.shares(file)
    return KnownValues(values, masks)


def one_truth(truths: Sequence[Path]) -> Path:
    """Return the truth of a detector, which is one file or folder.

    Raises:
        ConfigError: if there are several.
    """
    if len(truths) > 1:
        raise ConfigError(
            f"--truth lists {' '.join(map(str, truths))}, and a detector's boxes are in one file or folder; "
            "name it alone"
        )
    return truths[0]


def _check_no_objects(truth: Path, tasks: Sequence[Task]) -> None:
    """Raise a ConfigError if a task predicts the masks of objects."""
    for task in tasks:
        if task.is_masks:
            raise ConfigError(
                f"--truth {truth} is for numbers and classes, and {task.name} is predicted as masks; "
                "leave it out"
            )


def values_of_rows(
    truth: Path,
    files: Sequence[Path],
    tasks: Sequence[Task],
    *,
    image_column: str = "image",
    subfolders: Subfolders | None = None,
    decimal: DecimalMark | None = None,
    pairing: Pairing = DEFAULT_PAIRING,
) -> dict[Path, dict[str, float | str]]:
    """Return image -> column -> known value, or class, of the images that a CSV or class folders have.

    A row belongs to the image whose path ends like its name, see
    :func:`dinoneck.data.names.find_images`.

    Raises:
        DataError: if class folders have a class that the heads do not, or the truth has none of the
            columns or none of the images. Also if a cell does not fit, or a name stands for several
            rows or images.
    """
    from dinoneck.data.names import find_images
    from dinoneck.evaluation.predicted_tasks import PredictedTasks
    from dinoneck.evaluation.truth import truth_table

    table = truth_table(
        None,
        truth,
        PredictedTasks.of_models([tasks]),
        image_column=image_column,
        subfolders=subfolders,
        decimal=decimal,
        pairing=pairing,
    )
    if truth.is_dir():
        _check_known_classes(truth, table, tasks)
        image_by_row: Mapping[str, Path] = _files_of_rows(table[IMAGES], files, truth)
    else:
        image_by_row = find_images(list(table.index), files, str(truth))
    values = table.drop(columns=[name for name in (IMAGES, LABELS) if name in table])
    known_labels, label_columns = _known_labels(table, tasks)
    values = values.drop(columns=label_columns).astype(object)
    known = {}
    for row, image in image_by_row.items():
        known[image] = values.loc[row].dropna().to_dict() | known_labels.get(row, {})
    return known


def _known_labels(
    table: pd.DataFrame, tasks: Sequence[Task]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Row -> ``task:label`` -> 1 or 0 of what is known of its labels; and the columns that hold them."""
    from dinoneck.data.table import Table
    from dinoneck.evaluation.truth_columns import indicator_columns
    from dinoneck.evaluation.values import label_truth

    known: dict[str, dict[str, float]] = {}
    columns: list[str] = []
    for task in tasks:
        if not task.is_multilabel:
            continue
        truth = label_truth(task, Table.from_frame(table))
        if truth is None:
            continue
        columns += [task.name] if task.name in table else indicator_columns(task, table.columns)
        for row, values in zip(table.index, truth, strict=True):
            of_row = known.setdefault(row, {})
            for column, value in zip(task.columns, values.tolist(), strict=True):
                if value in (0.0, 1.0):
                    of_row[column] = value
    return known, columns


def _check_known_classes(truth: Path, table: pd.DataFrame, tasks: Sequence[Task]) -> None:
    """Raise a DataError if class folders have a class that the heads do not."""
    for task in tasks:
        if not task.is_image_class or not task.labels or task.name not in table:
            continue
        unknown = set(table[task.name].dropna()) - set(task.labels)
        if unknown:
            raise DataError(
                f"--truth {truth} has the class folder {some_of(sorted(map(repr, unknown)), 3)}; the "
                f"heads predict {some_of(task.labels, 8)}. Rename the folder, or name a folder without "
                "it"
            )


def _files_of_rows(
    images_of_rows: pd.Series[Any], files: Sequence[Path], truth: Path
) -> dict[Any, Path]:
    """Row -> image file, of the rows whose image is one of the files.

    Raises:
        DataError: if there is none.
    """
    file_of_path = {file.resolve(): file for file in files}
    file_of_row = {}
    for row, image in images_of_rows.items():
        file = file_of_path.get(image.resolve())
        if file is not None:
            file_of_row[row] = file
    if not file_of_row:
        raise DataError(f"{truth} holds none of the images, such as {some_of(map(str, files), 3)}")
    return file_of_row


class KnownMasks:
    """The masks of images: the classes of their pixels, and the shares of these.

    They are read as in the training of the heads. Make it with :meth:`open`.

    Args:
        images_of_rows: row -> image.
        reader: reads the masks of the rows.
        predictor: the heads, which prepare images.
        outputs: the numbers whose map shows the classes of masks.
    """

    def __init__(
        self,
        images_of_rows: pd.Series[Any],
        reader: MaskReader,
        predictor: Predictor,
        outputs: Sequence[Output],
    ) -> None:
        self.images_of_rows = images_of_rows
        self.row_of_path = {image.resolve(): row for row, image in images_of_rows.items()}
        self.reader = reader
        self.predictor = predictor
        self.outputs = outputs

    @classmethod
    def open(
        cls,
        truth: Path,
        images: Sequence[Path],
        predictor: Predictor,
        *,
        image_column: str,
        subfolders: Subfolders | None,
        pairing: Pairing,
        mask_options: MaskOptions | None = None,
    ) -> KnownMasks:
        """Survey a folder of masks, and pair it with a folder of images.

        Args:
            truth: the folder of masks, or one of images and masks.
            images: the folder of images, alone.
            predictor: the heads.
            image_column: a column of tables, which a folder has not.
            subfolders: how the folders in the truth are read; None: by their names.
            pairing: how masks are chosen.
            mask_options: how masks are read; None: as in the training of the heads.

        Raises:
            ConfigError: if the heads predict no classes of pixels, or the images are not named by
                one folder.
            DataError: if images and masks are no pairs, or a mask cannot be read.
        """
        from dinoneck.data.table import Table
        from dinoneck.evaluation.mask_options import MaskOptions, mask_records_of
        from dinoneck.evaluation.masks import MaskReader
        from dinoneck.evaluation.predicted_tasks import PredictedTasks
        from dinoneck.evaluation.truth import truth_table
        from dinoneck.viz.scales import outputs

        predicted = PredictedTasks.of_models([predictor.tasks])
        tasks_of_classes = [*predicted.segmentations, *predicted.share_maps]
        if not tasks_of_classes and predicted.normals:
            raise ConfigError(
                f"--truth {truth} is a folder, and the heads predict maps, which 'dinoneck evaluate' "
                "compares; here name a CSV of known values"
            )
        if not tasks_of_classes:
            raise ConfigError(
                f"--truth {truth} is a folder, and the heads predict maps of numbers, "
                f"{some_of(predicted.number_map_names, 5)}, which are compared with the number of "
                "each image alone; name a CSV of known values"
            )
        if len(images) != 1 or not images[0].is_dir():
            raise ConfigError(
                f"--truth {truth} is a folder of masks, which belong to a folder of images; name the "
                "one folder that the images are in"
            )
        frame = truth_table(
            images[0],
            truth,
            predicted,
            image_column=image_column,
            subfolders=subfolders,
            pairing=pairing,
        )
        reader = MaskReader.open(
            Table.from_frame(frame),
            tasks_of_classes,
            options=mask_options or MaskOptions(),
            records=mask_records_of({"head": predictor}),
        )
        names = {task.name for task in tasks_of_classes}
        listed = [output for output in outputs(predictor.tasks) if output.map.name in names]
        images_of_rows = frame[IMAGES].reset_index(drop=True)
        return cls(images_of_rows, reader, predictor, listed)

    def files_among(self, files: Sequence[Path], truth: Path) -> list[Path]:
        """Return the image files that have a mask.

        Raises:
            DataError: naming the truth, if none has.
        """
        return list(_files_of_rows(self.images_of_rows, files, truth).values())

    def classes_by_task(self, file: Path) -> dict[str, ClassesOfPixels]:
        """Return task -> :meth:`classes` of an image."""
        return {task.name: self.classes(file, task.name) for task in self._tasks()}

    def classes(self, file: Path, task: str) -> ClassesOfPixels:
        """Return the classes (height, width) of the pixels of an image as the head sees it, -1 = unlabelled."""
        from dinoneck.evaluation.models import preprocessing_for

        preprocess = preprocessing_for(self.predictor, file)
        row = self.row_of_path[file.resolve()]
        classes: ClassesOfPixels = self.reader.read(row, task=task, preprocess=preprocess)[
            0
        ].numpy()
        return classes

    def shares(self, file: Path) -> dict[str, float]:
        """Return column -> the share of a class in the labelled pixels of an image; empty without such pixels."""
        import numpy as np

        shares: dict[str, float] = {}
        for task in self._tasks():
            classes = self.classes(file, task.name)
            counts = np.bincount(classes[classes >= 0], minlength=task.dim)
            if counts.sum() == 0:
                continue
            for output in self.outputs:
                if output.map is task:
                    shares[output.key] = float(counts[output.channel] / counts.sum())
        return shares

    def _tasks(self) -> list[TaskFacts]:
        """The tasks of the classes of masks, each once."""
        return list({output.map.name: output.map for output in self.outputs}.values())


def open_known_boxes(truth: Path, images: Sequence[Path], detector: Any) -> BoxImages:
    """Return the images of a file or folder of boxes, for a detector.

    Args:
        truth: what :class:`dinoneck.data.BoxImages` reads; of parts val is taken, else test.
        images: the one folder that its images are in.
        detector: a Detector; the file may lack some of its classes.

    Raises:
        ConfigError: if the images are not named by one folder.
        DataError: if the file or an image cannot be used.
    """
    from dinoneck.data.boxes import BoxImages
    from dinoneck.data.listed_images import scored_part

    if len(images) != 1 or not images[0].is_dir():
        raise ConfigError(
            f"--truth {truth} names its images itself; name the one folder that they are in"
        )
    return BoxImages(
        truth,
        images[0],
        part=scored_part(truth),
        classes=detector.classes,
        bits=detector.preprocess.bits,
        allow_unlisted=True,
    )


def boxes_of(box_images: BoxImages, index: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return the known boxes of an image, as a report takes them.

    Args:
        box_images: images with boxes.
        index: of the image.
        classes: names of their labels, as the predictions spell them.
    """
    target = box_images[index][1]
    known_classes = []
    for label, name in enumerate(classes):
        if label not in box_images.unlisted:
            known_classes.append(name)
    return {
        "boxes": target["boxes"].numpy(),
        "names": [classes[label] for label in target["labels"].tolist()],
        "classes": known_classes,
    }
