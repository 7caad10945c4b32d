"""``evaluate``: what it is given decides whether values, masks or objects are scored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dinoneck.data.cells import DecimalMark
from dinoneck.data.coco_entries import Crowd
from dinoneck.data.folders import Subfolders
from dinoneck.data.listed_images import is_yaml
from dinoneck.data.pairs import Pairing
from dinoneck.data.table import Table
from dinoneck.detection.evaluation import NAME_SEGMENTS, BoxModel, HeadModel
from dinoneck.errors import ConfigError, DataError
from dinoneck.evaluation.comparability import check_comparable
from dinoneck.evaluation.mask_options import MaskOptions
from dinoneck.evaluation.masks import evaluate_masks
from dinoneck.evaluation.models import Model, open_models
from dinoneck.evaluation.objects import evaluate_objects
from dinoneck.evaluation.predicted_tasks import PredictedTasks
from dinoneck.evaluation.truth import IMAGE_COLUMN, is_json, stated_image_column, truth_table
from dinoneck.evaluation.values import evaluate_values
from dinoneck.text import some_of
from dinoneck.training.target_weights import TargetWeights, read_target_weights


def evaluate(
    model: Model | Mapping[str, Model],
    images: str | os.PathLike[str] | None,
    truth: Any,
    *,
    group: Sequence[str] = (),
    image_column: str = IMAGE_COLUMN,
    labels: str | None = None,
    subfolders: Subfolders | None = None,
    decimal: DecimalMark | None = None,
    mask_suffix: str | None = None,
    skip_unpaired: bool = False,
    nodata: Sequence[float] = (),
    class_values: Sequence[int] = (),
    class_colors: Sequence[str | Sequence[int]] = (),
    classes: str | os.PathLike[str] | None = None,
    crowd: Crowd = "ignore",
    target_weights: TargetWeights | None = None,
    calibrate: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Predict images and compare the predictions with the truth.

    Args:
        model: a Predictor, a Detector, an exported file of heads or of a detector, the result of a
            training, or what a Predictor takes (a file, the folder of a training, a module). Several
            models are a mapping of names to these: the first is compared with each other one.
        images: their folder; for boxes None = that of the COCO file; for a folder None = those in
            the truth.
        truth: a table (CSV or DataFrame) with the columns of the predictions, numbers or classes; a
            folder of masks, or of images and masks; a folder of class folders; a COCO file or a
            ``data.yaml`` of boxes, or of masks for instances; for boxes also a folder of VOC; or
            ``(folder, file)`` of panoptic segments.
        group: columns of the table; intervals resample the images of a group together. None = every
            image is its own.
        image_column: the table's column of file names.
        labels: the table's column of masks.
        subfolders: how the folders in a truth of class folders, or of images and masks, are read:
            ``"classes"`` whatever they are called; ``"folds"``, all of which are scored together;
            None = by their names.
        decimal: the decimal mark of all numbers of a CSV file; None = a point, or in a file that
            ``;`` separates, the one that its numbers have.
        mask_suffix: of a folder of masks: what their names have more than those of the images, such
            as ``_labelIds``, where there are several files for each image.
        skip_unpaired: of a folder of masks: leave out images without a mask, and masks without an
            image; else they are an error.
        nodata: values in masks without a label; empty = as the head files record of the training.
        class_values: the value of each class in the masks, as ``data.class_values`` of a training;
            empty = as the head files record.
        class_colors: the colour of each class in masks of colours, ``R,G,B`` or three numbers, in the
            order of the model's classes; empty = as the head files record.
        classes: a CSV file with the columns ``name``, ``r``, ``g`` and ``b``, in the place of
            ``class_colors``: the colours of the model's classes by their names.
        crowd: of a COCO file: whether entries with ``iscrowd`` are ignored, or are objects.
        target_weights: target -> its weight in the overall score, which is then one R² over all of
            them, see :func:`dinoneck.training.weighted_r2`; or a CSV file with the columns
            ``target`` and ``weight``. None = as the truth or the head files record; without a
            record the overall score is the mean of the targets' R².
        calibrate: a file to write: that of the model, which is one head file without intervals, with
            intervals from its errors on these images, see :class:`dinoneck.Predictor`. The images
            must be others than those that it was trained on; ``group`` names what is exchangeable,
            such as fields or patients.

    Returns:
        A report of plain values, which JSON can hold.

        Of a table or a folder it is what the ``report.json`` of a training holds of its scores.
        ``scores``: target -> name of the model (``"head"`` for one model alone) -> scores, each
        with ``pooled``, its 95 % ``interval`` over groups and ``folds``.

        Numbers have ``r2``, ``mae`` and ``sd``, the standard deviation of the truth, both in the
        target's unit, which ``units`` has where the models state it. Where an interval is None,
        ``no_interval`` states why. Targets that only helped the training of a model do not count in
        the overall score. The parts of a ratio are scored as shares of their sum, 0 to 1. Classes
        of images have ``accuracy``, ``macro_f1``, and ``f1`` and ``confusion_matrix`` by class.
        Several labels of an image have ``mAP`` and ``F1``, the means of the labels' average precision
        and F1, and both of each label in ``by_label``; a label is predicted where its probability
        reaches the threshold that the model states. Their truth is words in a column of the task's
        name, or 0 and 1 in a column of each label; or folders called like labels, or a COCO file whose
        categories are.
        Classes of pixels have ``mean_iou``, ``pixel_accuracy``, and ``iou`` and
        ``confusion_matrix`` by class.

        A target whose intervals the model's file holds also has ``coverage`` and ``width``, by
        level (``"0.9"``). ``coverage`` is the share of the images whose truth lies in the interval,
        ``width`` the mean width in the target's unit. Of classes they are the share whose class is
        in the set of labels, and the mean number of labels.

        The truth of surface normals is files of three bands in the place of masks. Their scores are
        ``mean_angle`` and ``median_angle`` in degrees over all known pixels, and ``within_11``,
        ``within_22`` and ``within_30``, the shares of pixels less than 11.25, 22.5 and 30 degrees
        off.

        Maps of shares have the scores of numbers over all patches, under ``task label``, and as
        ``task`` those of the classes of pixels, of the most probable class.

        Classes without names are called ``"0"``, ``"1"``, ...

        Of objects it holds ``"boxes"``, ``"masks"`` or ``"segments"``: name -> the scores of
        :func:`dinoneck.detection.score_boxes`, :func:`dinoneck.detection.score_masks` or
        :func:`dinoneck.detection.score_segments`. With two or more models of boxes or masks, all
        but the first also have ``head_minus``: the 95 % intervals over images of the first model's
        AP and AP50 minus theirs (None for fewer than five images).

        ``data``: what was read of the truth, as :meth:`dinoneck.data.DataSummary.to_dict` returns it.
        ``verdict``: which of several models is best, and whether that is clear. ``trained_on``:
        name -> how many of the images the model was trained on, if any; it is known of models in
        the folder of their run, by the content of the images. ``cost``: name -> seconds per image,
        and parameters of heads and backbone.

    Raises:
        ConfigError: if detectors and heads are mixed, an option has no effect on this truth, or
            masks were read in training with other class values or nodata than these, or than for
            another head.
        DataError: if the truth has nothing that a model predicts, models predict different things
            for a target of one name, or an image or label cannot be used.
        CheckpointError: if a model cannot be read.

    Examples:
        >>> from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
        >>> from dinoneck.data import Pasture
        >>> table, head = Pasture(seed=0).table(range(8)), PatchMeanHead(64, [Task("GDM_g")])
        >>> evaluate(Predictor(head, load_backbone("dinoneck_tiny")), None, table)["scores"]["GDM_g"]["head"]["images"]
        8
    """
    models = open_models(model)
    detectors = _detectors_among(models)
    predictors = _predictors_among(models)
    if detectors and predictors:
        raise ConfigError(
            f"{some_of([*predictors], 3)} are heads and other models are detectors; evaluate them "
            "apart"
        )
    weights = read_target_weights(target_weights or {})
    if detectors or (_is_of_objects(truth) and not _is_of_labels(truth, predictors)):
        _check_no_table_options(
            group=group,
            image_column=stated_image_column(image_column),
            labels=labels,
            subfolders=subfolders,
            decimal=decimal,
            mask_suffix=mask_suffix,
            skip_unpaired=skip_unpaired,
            nodata=nodata,
            class_values=class_values,
            class_colors=class_colors,
            classes=None if classes is None else str(classes),
            target_weights=weights,
            calibrate=None if calibrate is None else str(calibrate),
        )
        return evaluate_objects(models, truth, images, crowd=crowd)
    _check_no_crowd(crowd)
    check_comparable(predictors)
    predicted = PredictedTasks.of_models([predictor.tasks for predictor in predictors.values()])
    _check_predicts_more_than_objects(predicted, truth)
    frame = truth_table(
        images,
        truth,
        predicted,
        group=group,
        image_column=image_column,
        labels=labels,
        subfolders=subfolders,
        decimal=decimal,
        pairing=Pairing(mask_suffix, skip_unpaired),
    )
    table = Table.from_frame(frame)
    truth_columns = list(frame.columns)
    mask_options = MaskOptions(
        labels=labels,
        nodata=nodata,
        class_values=class_values,
        class_colors=class_colors,
        classes=classes,
    )
    if table.masks is not None:
        if calibrate is not None:
            raise ConfigError(
                f"calibrate is {str(calibrate)!r}, and intervals are of numbers and classes of "
                "images; the truth has masks: name a table without them"
            )
        return evaluate_masks(
            predictors,
            table,
            predicted,
            options=mask_options,
            truth_columns=truth_columns,
            target_weights=weights,
        )
    mask_options.check_not_given()
    return evaluate_values(
        predictors,
        table,
        predicted,
        truth_columns=truth_columns,
        target_weights=weights,
        calibrate=calibrate,
    )


def _detectors_among(models: Mapping[str, HeadModel | BoxModel]) -> dict[str, BoxModel]:
    return {name: model for name, model in models.items() if isinstance(model, BoxModel)}


def _predictors_among(models: Mapping[str, HeadModel | BoxModel]) -> dict[str, HeadModel]:
    return {name: model for name, model in models.items() if isinstance(model, HeadModel)}


def _is_of_objects(truth: Any) -> bool:
    """Whether the truth is a file of objects, or the folder and the file of panoptic segments."""
    if isinstance(truth, list | tuple):
        return True
    return is_json(truth) or (isinstance(truth, str | os.PathLike) and is_yaml(truth))


def _is_of_labels(truth: Any, predictors: Mapping[str, HeadModel]) -> bool:
    """Whether the truth is a COCO file, and the models predict labels of images and no objects."""
    if not is_json(truth):
        return False
    for predictor in predictors.values():
        has_labels = any(task.is_multilabel for task in predictor.tasks)
        if not has_labels or any(task.is_masks for task in predictor.tasks):
            return False
    return True


def _check_predicts_more_than_objects(predicted: PredictedTasks, truth: Any) -> None:
    """Raise a DataError for a table or a folder as the truth of heads that predict objects alone."""
    if not all(task.is_masks for task in predicted.tasks):
        return
    shown = "a table"
    if isinstance(truth, str | os.PathLike):
        shown = str(truth)
    names = some_of(predicted.names, 5)
    if any(task.kind == "panoptic" for task in predicted.tasks):
        raise DataError(
            f"the truth is {shown}, and the heads predict panoptic segments, {names}; {NAME_SEGMENTS}"
        )
    raise DataError(
        f"the truth is {shown}, and the heads predict objects, {names}; name a COCO file of their "
        "masks"
    )


def _check_no_table_options(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(
                f"{name} is {value!r}, which is of tables and folders of masks; leave it out "
                "for objects"
            )


def _check_no_crowd(crowd: Crowd) -> None:
    if crowd != "ignore":
        raise ConfigError(
            f"crowd is {crowd!r}, and the truth is no COCO file of objects; leave it out"
        )
