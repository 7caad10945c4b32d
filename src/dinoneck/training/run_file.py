"""The file that a finished run predicts with: the heads of its folds by one method, as one ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.training_images import NO_IMAGES
from dinoneck.data import run_names
from dinoneck.devices import local_device
from dinoneck.errors import CheckpointError, DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.inference.alike import difference
from dinoneck.kinds import METHOD_NAMES, Method
from dinoneck.registry import import_modules
from dinoneck.training import folder as files
from dinoneck.training.config import TRAININGS, HeadConfig, TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.intervals import (
    intervals_from_record,
    intervals_of_tasks,
    with_configured_intervals,
)
from dinoneck.training.method import Choice, ChosenMethod, metrics_of
from dinoneck.training.processes import join_processes, wait_for_all
from dinoneck.training.report import HEAD, LINEAR
from dinoneck.training.table import of_pasture

PREDICTS_WITH = "predicts_with"
"""The entry ``extra`` of a run's file that names its method."""


def write_run_file(folder: Path, config: TrainConfig, report: Mapping[str, Any]) -> None:
    """Write ``head.safetensors`` of the heads of all folds in a folder, by the method that predicts.

    Raises:
        CheckpointError: if the head of a fold is not there, or a fold has no linear baseline, which
            the method needs.
    """
    choice = Choice.from_record(report.get("choice", {}))
    chosen = ChosenMethod.from_record(report["predicts"])
    folds = _heads_of_folds(folder, config)
    members: list[Head] = []
    images = NO_IMAGES
    for fold in folds:
        members += fold.of_method(chosen.method)
        images |= fold.checkpoint.training_images or NO_IMAGES
    first = folds[0].checkpoint
    training = {name: x for name, x in first.meta["training"].items() if x is not None}
    training.pop("fold")
    tta = first.meta["tta"]
    checkpoint = HeadCheckpoint.from_module(
        members[0] if len(members) == 1 else HeadEnsemble.from_heads(members),
        backbone=_backbone_record(first),
        preprocess=first.preprocess,
        training=training | {"metrics": metrics_of(report["scores"], chosen, choice)},
        training_images=images,
        license=first.meta["license"],
        tta=None if tta is None else tta["ops"],
        extra={PREDICTS_WITH: chosen.method},
    )
    intervals_of_targets = intervals_from_record(report.get("prediction_intervals", {}))
    intervals = intervals_of_tasks(intervals_of_targets, chosen.method, checkpoint.tasks)
    checkpoint = with_configured_intervals(checkpoint, intervals)
    checkpoint = with_thresholds_of(checkpoint, report, chosen.method)
    checkpoint.save(folder / run_names.HEAD_FILE)


def with_thresholds_of(
    checkpoint: HeadCheckpoint, report: Mapping[str, Any], method: Method
) -> HeadCheckpoint:
    """Return the checkpoint with the thresholds of labels that the held-out predictions of a method chose.

    Without such labels it is returned itself. A head of the user's own may state its tasks itself:
    its file has no thresholds of them.
    """
    thresholds = {}
    for target, methods in report["scores"].items():
        by_label = methods.get(method, {}).get("by_label")
        if by_label is not None and target in checkpoint.configured_tasks:
            thresholds[target] = [scores["threshold"] for scores in by_label.values()]
    return checkpoint.with_thresholds(thresholds) if thresholds else checkpoint


def _backbone_record(checkpoint: HeadCheckpoint) -> dict[str, Any]:
    """The record of the backbone of a head, with the licence of its weights, as :class:`HeadCheckpoint` takes it."""
    record = dict(checkpoint.meta["backbone"])
    licence = checkpoint.meta["licences"].get("backbone")
    if licence is not None:
        record["license"] = licence
    return record


@dataclass(frozen=True)
class FoldHeads:
    """The heads that a run keeps of a fold.

    Attributes:
        file: of the head.
        checkpoint: of the head.
        head: the head.
        linear: its linear baseline; None where the run kept none.
    """

    file: Path
    checkpoint: HeadCheckpoint
    head: Head
    linear: Head | None

    @classmethod
    def load(cls, file: Path, config: TrainConfig) -> FoldHeads:
        """Load the heads of a fold.

        A file of 0.3 holds both in an ensemble, if the run had the option ``with_ridge``.

        Args:
            file: of its head.
            config: of the run.
        """
        checkpoint = HeadCheckpoint.load(file)
        head: Any = checkpoint.build()
        linear: Any = None
        if holds_baseline_too(head, config):
            head, linear = head.heads
        baseline_file = file.parent.parent / run_names.BASELINES / file.name
        if baseline_file.exists():
            linear = HeadCheckpoint.load(baseline_file).build()
        return cls(file, checkpoint, head, linear)

    @property
    def num_folds(self) -> int | None:
        """How many folds its run has; None where its file does not state it."""
        num_folds: int | None = self.checkpoint.meta["training"]["folds"]
        return num_folds

    def of_method(self, method: Method) -> list[Head]:
        """Return the heads whose predictions the method averages.

        Raises:
            CheckpointError: if the linear baseline is not there.
        """
        if method == HEAD:
            return [self.head]
        if self.linear is None:
            raise CheckpointError(
                f"{self.file} has no linear baseline in the folder {run_names.BASELINES} next to its "
                f"own, so the run cannot predict with {METHOD_NAMES[method]}: train it again with "
                "overwrite=True (--overwrite), which keeps one for every fold",
                step="pairing",
            )
        return [self.linear] if method == LINEAR else [self.head, self.linear]


def _heads_of_folds(folder: Path, config: TrainConfig) -> list[FoldHeads]:
    """The heads of all folds of a run, in the order of the folds' numbers.

    Raises:
        CheckpointError: if those of a fold are not there.
    """
    files_of_heads = (folder / run_names.HEADS).glob("fold-*.safetensors")
    folds = [FoldHeads.load(file, config) for file in sorted(files_of_heads, key=_fold_number)]
    if not folds:
        raise CheckpointError(
            f"{folder / run_names.HEADS} holds no heads of folds, of which the file of the run is "
            "made; restore them, or train again with overwrite=True (--overwrite)",
            step="pairing",
        )
    num_folds = folds[0].num_folds
    if num_folds is not None and len(folds) < num_folds:
        raise CheckpointError(
            f"{folder / run_names.HEADS} holds the heads of {len(folds)} of {num_folds} folds, and "
            "the file of the run averages all of them; restore the others, or train again with "
            "overwrite=True (--overwrite)",
            step="pairing",
        )
    return folds


def _fold_number(head_file: Path) -> int:
    return int(head_file.stem.removeprefix("fold-"))


def holds_baseline_too(head: object, config: HeadConfig) -> bool:
    """Whether what a fold's file holds is the average of its head and its linear baseline, as files of 0.3 may."""
    return isinstance(head, HeadEnsemble) and config.head.get("type") != "ensemble"


# another method for a finished run


def switch_method(config: TrainConfig, folder: Path) -> dict[str, Any] | None:
    """Let a finished run predict with another of its methods, if that is what a config asks for.

    Nothing is trained: ``head.safetensors`` and then ``report.json`` are written again, each whole
    or not at all. The config is that of the run but for ``predict_with``, or it has no other value.

    Returns:
        The new report; None if the config names no method, the folder holds no finished run, or one
        of this very config.

    Raises:
        DataError: if the run has another config, its report is damaged, or its only head is of
            all images; without other values than the method, if there is no finished run.
        CheckpointError: if the run kept no linear baseline, as those of 0.3.
    """
    if config.predict_with is None:
        return None
    names_method_alone = _without_method(config) == TrainConfig()
    report = _finished_report(folder)
    if report is None:
        if names_method_alone:
            raise DataError(
                f"{folder} holds no finished run of heads of images, which predict_with "
                "(--predict-with) alone could change; name such a folder, or the data to train on"
            )
        return None
    trained = TrainConfig.from_dict(report["config"], f"{folder / run_names.REPORT}")
    if not names_method_alone:
        _check_same_run(trained, config, folder)
        if trained.predict_with == config.predict_with:
            return None
    trained = trained.changed(predict_with=config.predict_with)
    if trained.trains_on_all:
        raise DataError(
            f"{folder} holds one head that was trained on all images, and no other method beside "
            "it; leave --predict-with out"
        )
    import_modules((*trained.imports, *config.imports))
    report["config"] = trained.to_dict()
    if "choice" in report:
        choice = Choice.from_record(report["choice"])
    else:
        choice = Choice.of_report_of_0_3(report)
    report["predicts"] = ChosenMethod.of(trained, choice).record()
    join_processes(local_device(config.device))
    wait_for_all()  # until every process has read the report, which the first one replaces
    if files.writes():
        write_run_file(folder, trained, report)
    return files.write_report(folder, report)


def _finished_report(folder: Path) -> dict[str, Any] | None:
    """The report of the finished training of a head in a folder; None where there is none."""
    report = files.read_report(folder)
    if report is None:
        return None
    config = report.get("config")
    if not isinstance(config, dict):
        return None  # of a comparison of heads
    is_of_heads = TRAININGS.of_values(config).config is TrainConfig
    return report if is_of_heads else None


def _without_method(config: TrainConfig) -> TrainConfig:
    """The values of a config that must be those of the run."""
    backbone = config.backbone.changed(runtime=None)
    return config.changed(predict_with=None, imports=(), device=None, backbone=backbone)


def _check_same_run(trained: TrainConfig, config: TrainConfig, folder: Path) -> None:
    """Reject a config that is not that of the run in a folder."""
    values = _without_method(trained).to_dict()
    if _without_method(config).to_dict() == values:
        return
    present, _ = of_data_folder(config)
    present = _without_method(of_pasture(present))
    values_that_differ = difference(values, present.to_dict(), "run")
    if values_that_differ is not None:
        raise DataError(
            f"{folder} holds the results of another config, its value / yours: "
            f"{values_that_differ}; predict_with (--predict-with) without other options changes what "
            "that run predicts with, and overwrite=True (--overwrite) trains again"
        )
