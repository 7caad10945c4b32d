"""Train as a config describes: cross-validated heads, a linear baseline, predictions and a report on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from dinoneck.atomic import read_regular
from dinoneck.checkpoint.backbone_part import changed_weights
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.rehearsal import check_views
from dinoneck.checkpoint.training_images import TrainingImages
from dinoneck.data import run_names
from dinoneck.data.cells import csv_text
from dinoneck.data.class_colors import parse_colors
from dinoneck.data.folders import DataFolder
from dinoneck.data.masks import MaskClasses
from dinoneck.data.summary import DataSummary
from dinoneck.data.table import Table
from dinoneck.devices import bytes_of, local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.composition import Composition, CompositionLoss
from dinoneck.losses.task_loss import TaskLoss, UncertaintyWeighting
from dinoneck.progress import note
from dinoneck.registry import import_modules
from dinoneck.training import folder as files
from dinoneck.training import report as reports
from dinoneck.training.config import DataConfig, HeadConfig, TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.data_summary import summary_of_run
from dinoneck.training.engine import highest_memory
from dinoneck.training.epoch_notes import EpochNotes
from dinoneck.training.evaluators import Evaluator, FoldTokens, KeptHead, ValueEvaluator
from dinoneck.training.fitting import fit
from dinoneck.training.folds import Fold, Rows, folds_of
from dinoneck.training.intervals import with_configured_intervals
from dinoneck.training.new_head import (
    default_head_of_masks,
    head_type,
    log_start,
    make_head,
)
from dinoneck.training.problem import (
    Problem,
    read_problem,
    take_rows,
    unlabelled_rows,
    with_fine_maps,
)
from dinoneck.training.processes import join_processes
from dinoneck.training.report import HEAD, LINEAR
from dinoneck.training.run_file import (
    holds_baseline_too,
    with_thresholds_of,
    write_run_file,
)
from dinoneck.training.run_runtime import continued_runtime, with_runtime
from dinoneck.training.run_tokens import RunTokens
from dinoneck.training.table import of_pasture, table_of
from dinoneck.training.target_weights import check_target_weights, read_target_weights
from dinoneck.training.targets import training_targets
from dinoneck.training.token_sources import LiveTokens, MemoryTokens
from dinoneck.training.trained_images import (
    image_hashes,
    images_of_hashes,
    known_training_images,
    warn_of_seen_images,
    write_trained_images,
)
from dinoneck.version import versions

logger = logging.getLogger(__name__)

AnyHeadConfig = TypeVar("AnyHeadConfig", bound=HeadConfig)


def prepare(
    config: TrainConfig,
    out: Path,
    *,
    table: Any = None,
    overwrite: bool = False,
    resume: bool = True,
    like: ImageTrainer | None = None,
    data_folder: DataFolder | None = None,
) -> ImageTrainer:
    """Read the inputs of a run; what may be refused is refused before the first expensive step.

    Args:
        config: the run.
        out: the folder of the results.
        table: a pandas DataFrame in the place of ``data.csv``.
        overwrite: replace the results of an earlier run in ``out``.
        resume: an interrupted run in ``out`` is going to be continued.
        like: of another run of the same data, whose table, tokens and folds are used.
        data_folder: what ``data.images`` holds, if the config is one that
            :func:`dinoneck.training.data_folder.of_data_folder` returned with it.

    Raises:
        DinoneckError: as :func:`dinoneck.train`.
    """
    files.check_folder(out, overwrite=overwrite)
    if table is None and data_folder is None:
        config, data_folder = of_data_folder(config)
    config.check_used(with_table=table is not None)
    import_modules(config.imports)
    head_type(config)  # a name that is not registered is refused before anything is read
    if like is None:
        if resume and config.data.store is None:
            config = continued_runtime(config, out)
        images = table_of(config, table, data_folder)
        tokens = RunTokens.open(config, images)
    else:
        images = like.table
        tokens = like.tokens
    if tokens.runtime is not None:
        config = with_runtime(config, tokens.runtime)
    if table is None:
        config = of_pasture(config)
    if resume:
        config = as_begun(config, [out])
    tokens.check_start(config)
    problem = read_problem(config, images, tokens.preprocess)
    if like is None:
        summary = summary_of_run(config, images, problem)
        files.show_data(summary)
    else:
        summary = like.summary
    labelled = _labelled_rows(problem, images)
    if len(labelled) < len(images):
        images = images.take(labelled)
        tokens = tokens.take(labelled.tolist())
        problem = take_rows(problem, labelled)
    target_weights = read_target_weights(config.data.target_weights)
    if target_weights:
        check_target_weights(target_weights, reports.targets_of_mean(problem.scored))
        images = replace(images, weights=target_weights)
    folds: Sequence[Fold]
    if like is None:
        folds = folds_of(config, images)
    else:
        folds = like.folds
    evaluator = ValueEvaluator(config, images, problem, folds)
    return ImageTrainer(
        config,
        out,
        table=images,
        tokens=tokens,
        problem=problem,
        folds=folds,
        evaluator=evaluator,
        summary=summary,
    )


def as_begun(config: TrainConfig, folders: Sequence[Path]) -> TrainConfig:
    """Return the config with which the runs in these folders go on that 0.3 began.

    0.3 reads a number from a map only where its task has ``from_map``. A line says so.
    """
    data = config.data
    begun = [folder for folder in folders if files.is_begun_by_0_3(folder)]
    if not begun or data.labels is None or not data.numbers_from_maps:
        return config
    logger.warning(
        "%s holds a run that 0.3 began; it goes on with a readout for every number without from_map, "
        "as with --no-numbers-from-maps",
        begun[0],
    )
    return config.changed(data=data.changed(numbers_from_maps=False))


def _labelled_rows(problem: Problem, table: Table) -> Rows:
    """The rows of a table without those whose label files have no labelled pixel, if nothing else is known of them."""
    return np.delete(np.arange(len(table)), unlabelled_rows(problem, table))


class Trainer(ABC, Generic[AnyHeadConfig]):
    """Trains the heads of all folds, and writes them with their predictions and scores.

    ``tta``, ``loss`` and ``record_of_data`` are what images and objects do not share. The inputs fit
    together: heads are built here, and what may be refused is refused before tokens are extracted.

    Args:
        config: the run.
        folder: of the results.
        table: the images and what is known of them.
        tokens: of the images.
        problem: what the heads learn.
        folds: rows of the table, in the order in which they are trained.
        evaluator: predicts and scores the held-out images.
        summary: what was read.

    Attributes:
        problem: the problem, with labels as fine as the maps of the heads.
        heads: name of a fold -> its new head.

    Raises:
        ConfigError: if head, tasks and tokens do not fit.
        DataError: if a fold cannot learn a target.
        CheckpointError: if ``data.tta`` names views that the head does not take.
    """

    def __init__(
        self,
        config: AnyHeadConfig,
        folder: Path,
        *,
        table: Table,
        tokens: RunTokens,
        problem: Problem,
        folds: Sequence[Fold],
        evaluator: Evaluator,
        summary: DataSummary,
    ) -> None:
        self.config = config
        self.folder = folder
        self.summary = summary
        self.table = table
        self.tokens = tokens
        self.folds = folds
        self.evaluator = evaluator
        self.heads = {fold.name: self._new_head(problem, fold) for fold in folds}
        first = self._first_head().eval()
        if config.init is not None and files.writes():
            log_start(first, config.init)
            self._warn_of_seen_images(config.init)
        # refused before the training, as the file of a head refuses it
        check_views(first, tokens.record, tokens.preprocess, self.tta)
        device = next(first.parameters()).device
        self.problem = with_fine_maps(problem, first.predict(tokens.example.to(device)))

    @property
    @abstractmethod
    def tta(self) -> str | None:
        """Views that predictions with the heads average, recorded in their files."""

    @abstractmethod
    def loss(self, head: Head) -> TaskLoss:
        """Return the loss of a head."""

    @abstractmethod
    def record_of_data(self) -> dict[str, Any]:
        """Return how the truth was read and scored, for the files of the heads."""

    def train(
        self, *, resume: bool = True, callbacks: Sequence[files.Callback] = ()
    ) -> dict[str, Any]:
        """Train, predict, score and write; return the report, see :func:`dinoneck.train`."""
        report = self.train_folds(resume=resume, callbacks=callbacks)
        return files.finish(self.folder, report)

    def train_folds(
        self, *, resume: bool = True, callbacks: Sequence[files.Callback] = ()
    ) -> dict[str, Any]:
        """Do the same up to the report, which is returned: until it is written, the run is not finished."""
        self._begin(resume=resume)
        notes = EpochNotes(self.config.optim.epochs)
        for finished, fold in enumerate(self.folds, 1):
            try:
                self._train_fold(fold, notes, callbacks)
            except DataError as error:
                raise DataError(f"{fold.title}: {error}") from error
            note(f"{fold.title} is trained, {finished} of {len(self.folds)}")
        report = self._report()
        if files.writes():
            self._write_head_of_run(report)
            self._write_predictions()
        return report

    def units(self) -> dict[str, str]:
        """Return target -> its unit, empty where it is not stated."""
        unit_of_output = {task.name: task.unit for task in self._first_head().predicted}
        units = {}
        for name, target in self.problem.scored.items():
            units[name] = unit_of_output.get(target.output, "")
        return units

    def logs(self) -> dict[str, list[dict[str, float]]]:
        """Return the rows of every fold's log."""
        logs = {}
        for path in sorted((self.folder / run_names.LOGS).glob("fold-*.jsonl")):
            logs[path.stem] = [json.loads(line) for line in read_regular(path).splitlines()]
        return logs

    # before the training

    def _first_head(self) -> Head:
        return self.heads[self.folds[0].name]

    def _new_head(self, problem: Problem, fold: Fold) -> Head:
        """The head of a fold, which can learn the targets of its rows."""
        optim = self.config.optim
        train_rows = self.tokens.rows_of(fold.train)
        rows = np.concatenate([train_rows, self.tokens.rows_of(fold.valid)])
        targets = {name: values[rows] for name, values in problem.targets.items()}
        weights = {name: weight[rows] for name, weight in problem.weights.items()}
        try:
            head = make_head(
                self.config,
                self.tokens.example,
                problem,
                rows=train_rows,
                seed=fold.seed(optim.seed),
            )
            training_targets(
                self.loss(head),
                targets,
                weights=weights,
                ids=[self.tokens.ids[row] for row in rows],
                train_count=len(train_rows),
                needs_validation=optim.patience is not None and not fold.is_of_all_images,
            )
        except DataError as error:
            raise DataError(f"{fold.title}: {error}") from error
        return head

    def _warn_of_seen_images(self, init: str) -> None:
        """Warn if the earlier head was trained on images that a fold holds out."""
        held_out: set[int] = set()
        for fold in self.folds:
            held_out.update(fold.valid.tolist())
        rows = sorted(held_out)
        images = [self.table.images[row] for row in rows]
        stored = self.tokens.stored
        warn_of_seen_images(init, images, None if stored is None else stored.take(rows))

    def _begin(self, *, resume: bool) -> None:
        """Keep what identifies the run, see :func:`dinoneck.training.folder.begin`; make its folders.

        What was read is written before the first image is encoded, unless the folder holds a run, whose
        files stay until it is known that this one continues or replaces it.
        """
        if files.is_new(self.folder):
            files.write_data(self.folder, self.summary)
        # images that cannot be used are refused before a file is written
        if self.evaluator.has_baseline or not self.config.is_live:
            self.tokens.frozen()
        else:
            self.tokens.check_images()
        join_processes(local_device(self.config.device))
        continues_0_3 = resume and files.is_begun_by_0_3(self.folder)
        identity = self.identity(as_in_0_3=continues_0_3)
        files.begin(self.folder, identity, resume=resume)
        files.write_data(self.folder, self.summary)
        for name in (run_names.HEADS, run_names.LOGS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def identity(self, *, as_in_0_3: bool) -> dict[str, Any]:
        """Return what must be equal in a run and its continuation.

        Args:
            as_in_0_3: with the hash that runs of 0.3 have, for which tokens are extracted.
        """
        targets = {**self.problem.targets}
        for name, weight in self.problem.weights.items():
            targets[f"weight {name}"] = weight
        identity = self.config.to_dict()
        identity["backbone"].pop("runtime", None)
        if self.tokens.runtime is not None:
            identity[files.RUNTIME] = self.tokens.runtime
        identity[files.FROM_MAPS] = {
            task.name: task.from_map for task in self.problem.tasks if task.from_map is not None
        }
        default_head = default_head_of_masks(self.config, self.problem)
        if default_head is not None:
            identity["default head of masks"] = default_head
        identity[files.BACKBONE_RECORD] = self.tokens.record
        identity[files.TARGETS] = self._hash_with_folds(targets)
        identity[files.TOKENS] = self.tokens.digest()
        if as_in_0_3:
            targets_and_tokens = targets | self._tokens_of_0_3()
            identity[files.TARGETS_OF_0_3] = self._hash_with_folds(targets_and_tokens)
            # off in every such run, see as_begun
            identity["data"].pop("numbers_from_maps", None)
        return identity

    def _tokens_of_0_3(self) -> dict[str, Tensor]:
        """Return two tokens of every image in memory, of each layer, which 0.3 has in its hash of targets."""
        tokens = self.tokens.frozen()
        if not isinstance(tokens, MemoryTokens):
            return {}
        tensors = {}
        for layer, sequence in enumerate(tokens.tokens.sequence):
            # a token depends on the whole image
            tensors[f"layer {layer}"] = sequence[:, [0, -1]]
        return tensors

    def _hash_with_folds(self, tensors: Mapping[str, Tensor]) -> str:
        """Return the SHA-256 of the ids, the folds and these tensors."""
        held_out = {fold.number: fold.valid.tolist() for fold in self.folds}
        digest = hashlib.sha256(repr([self.table.ids, held_out]).encode())
        for name, values in sorted(tensors.items()):
            digest.update(f"|{name}|{tuple(values.shape)}|".encode())
            digest.update(bytes_of(values.contiguous()))
        return digest.hexdigest()

    # a fold

    def _train_fold(
        self, fold: Fold, notes: EpochNotes, callbacks: Sequence[files.Callback]
    ) -> None:
        """Train and predict a fold; keep its head, and the linear baseline of the same tokens."""
        paths = FoldPaths.of(self.folder, fold)
        is_finished = files.is_finished_head(self.folder, paths.head)
        trained_backbone = paths.head if is_finished else None
        tokens = FoldTokens(
            of_run=self.tokens, live=self.tokens.live(self.config, trained_backbone)
        )
        if is_finished:
            head = self._finished_head(paths)
        else:
            notes.start_fold(fold.title)
            head = self._fit_head(fold, tokens, paths, [notes, *callbacks])
            notes.end_fold()
        kept = self.evaluator.predict_fold(self.problem, fold, head, tokens)
        if files.writes():
            if LINEAR in kept:
                paths.baseline.parent.mkdir(exist_ok=True)
                self._save(kept[LINEAR], paths.baseline, fold)
            if not is_finished:
                shutil.copyfile(paths.unfinished / files.LOG, paths.log)
                self._save(kept[HEAD], paths.head, fold, tokens.live)
                files.note_finished_head(self.folder, paths.head)
            shutil.rmtree(paths.unfinished, ignore_errors=True)

    def _finished_head(self, paths: FoldPaths) -> Head:
        """The head of a finished fold, out of its file; that of 0.3 may hold its linear baseline too."""
        saved: Any = HeadCheckpoint.load(paths.head).build()
        head: Head = saved.heads[0] if holds_baseline_too(saved, self.config) else saved
        return head

    def _fit_head(
        self,
        fold: Fold,
        tokens: FoldTokens,
        paths: FoldPaths,
        callbacks: Sequence[files.Callback],
    ) -> Head:
        """Train the head of a fold; a training that was stopped goes on from its last epoch."""
        if fold.is_of_all_images:
            problem = self.evaluator.final_problem(self.problem)
            if problem is not self.problem:
                self.heads[fold.name] = self._new_head(problem, fold)
        head = self.heads[fold.name]
        optim = self.config.optim
        recipe = optim.changed(
            seed=fold.seed(optim.seed),
            # an earlier head has the token scale of its training
            standardise_tokens=optim.standardise_tokens and self.config.init is None,
            # of all images none is held out
            patience=None if fold.is_of_all_images else optim.patience,
        )
        source = tokens.of_head
        fit(
            head.to(local_device(self.config.device)),
            source,
            self.problem.targets,
            ids=[source.ids[row] for row in self.tokens.rows_of(fold.train)],
            val_ids=[source.ids[row] for row in self.tokens.rows_of(fold.valid)],
            target_ids=source.ids,
            weights=self.problem.weights,
            loss=self.loss(head),
            recipe=recipe,
            out=paths.unfinished,
            callbacks=callbacks,
            title=fold.title,
        )
        return head

    def _save(self, kept: KeptHead, path: Path, fold: Fold, live: LiveTokens | None = None) -> None:
        """Write a head with the facts of the training, and short hashes of the images of its fold.

        Weights of the backbone of ``live`` that were trained along are written too.
        """
        if live is None:
            backbone = self.tokens.backbone or self.tokens.record
            backbone_weights = None
        else:
            backbone = live.backbone
            backbone_weights = changed_weights(live.backbone)
        num_folds = sum(not fold.is_of_all_images for fold in self.folds)
        optim = self.config.optim
        training: dict[str, Any] = {
            "folds": num_folds,
            "seed": optim.seed,
            "epochs": optim.epochs,
            **self.record_of_data(),
        }
        checkpoint = HeadCheckpoint.from_module(
            kept.head,
            backbone=backbone,
            backbone_weights=backbone_weights,
            preprocess=self.tokens.preprocess,
            training=training | kept.facts,
            training_images=self._training_images(fold),
            license=self.config.license,
            tta=self.tta,
        )
        with_configured_intervals(checkpoint, kept.intervals).save(path)

    def _training_images(self, fold: Fold) -> TrainingImages | None:
        """The images that the head of a fold was trained on; None if the files are to hold nothing of them."""
        if not self.config.record_images:
            return None
        images = images_of_hashes(self._image_hashes[row] for row in fold.train.tolist())
        if self.config.init is not None:
            images |= known_training_images(self.config.init)
        return images

    @cached_property
    def _image_hashes(self) -> list[str]:
        """The hash of every image of the table."""
        return image_hashes(self.table.images, self.tokens.stored)

    # after all folds

    def _report(self) -> dict[str, Any]:
        """What is written as the report."""
        logs = self.logs() if files.writes() else {}
        report = self.evaluator.report(logs, self.units())
        num_parameters = sum(parameter.numel() for parameter in self._first_head().parameters())
        epochs = [row for rows in logs.values() for row in rows]
        return {
            **report,
            "data": self.summary.to_dict(),
            "parameters": num_parameters,
            **highest_memory(epochs, local_device(self.config.device)),
            "config": self.config.to_dict(),
            "backbone": dict(self.tokens.record),
            "inputs": self.tokens.preprocess.record(),
            "versions": versions(),
        }

    def _write_head_of_run(self, report: Mapping[str, Any]) -> None:
        """Write the head that predicts; a head of all images is there already."""
        if len(self.folds) == 1:  # a single fold has no head of all images after it
            only_fold = FoldPaths.of(self.folder, self.folds[0])
            shutil.copyfile(only_fold.head, self.folder / run_names.HEAD_FILE)

    def _replace_head_of_run(self, checkpoint: HeadCheckpoint) -> None:
        """Write the head that predicts again, with what the scores of held-out images chose."""
        head_file = self.folder / run_names.HEAD_FILE
        checkpoint.save(head_file)
        files.note_finished_head(self.folder, head_file)

    def _write_predictions(self) -> None:
        """Write the held-out predictions, and which folds were trained on each image."""
        columns = reports.prediction_rows(
            self.table, self.problem.scored, self.evaluator.methods, self.folds
        )
        write_trained_images(
            self.folder, names=self.table.ids, hashes=self._image_hashes, folds=self.folds
        )
        text = csv_text([*columns], zip(*columns.values(), strict=True))
        files.write_file(self.folder / run_names.PREDICTIONS, text.encode())


class ImageTrainer(Trainer[TrainConfig]):
    """Trains heads of the numbers, classes and masks of images, see :class:`Trainer`."""

    @property
    def tta(self) -> str | None:
        """Those of the config."""
        return self.config.data.tta

    def loss(self, head: Head) -> TaskLoss:
        """Return the loss of a head, whose tasks and composed outputs count by the weights of the config."""
        specs = self.config.compositions
        composed = []
        for composition in head.compositions:
            composed.append(_weighted(composition, specs[composition.name].weights))
        loss = TaskLoss(head.tasks, composed)
        if self.config.losses.weighting == "fixed":
            return loss
        names = [task.name for task in loss.tasks]
        names += [composition.name for composition in loss.compositions]
        return TaskLoss(head.tasks, composed, UncertaintyWeighting(names))

    def record_of_data(self) -> dict[str, Any]:
        """Return how masks are read, and what counts in the overall score."""
        data = self.config.data
        return _mask_record(data, self.problem.mask_classes) | _score_record(self.problem, data)

    def _write_head_of_run(self, report: Mapping[str, Any]) -> None:
        """Write the method that predicts, of all folds as one ensemble; a head of all images is there already."""
        if not self.config.trains_on_all:
            write_run_file(self.folder, self.config, report)
            return
        super()._write_head_of_run(report)
        head_file = self.folder / run_names.HEAD_FILE
        checkpoint = HeadCheckpoint.load(head_file)
        with_thresholds = with_thresholds_of(checkpoint, report, HEAD)
        if with_thresholds is not checkpoint:
            self._replace_head_of_run(with_thresholds)


@dataclass(frozen=True)
class FoldPaths:
    """The files of a fold in the folder of a run.

    Attributes:
        head: of the fold.
        baseline: its linear baseline.
        log: a line per epoch.
        unfinished: the folder of the training that is not finished.
    """

    head: Path
    baseline: Path
    log: Path
    unfinished: Path

    @classmethod
    def of(cls, folder: Path, fold: Fold) -> FoldPaths:
        """Return the files of a fold; the head of all images is that of the run."""
        name = f"fold-{fold.name}"
        if fold.is_of_all_images:
            head = folder / run_names.HEAD_FILE
        else:
            head = folder / run_names.HEADS / f"{name}.safetensors"
        return cls(
            head=head,
            baseline=folder / run_names.BASELINES / f"{name}.safetensors",
            log=folder / run_names.LOGS / f"{name}.jsonl",
            unfinished=folder / run_names.UNFINISHED / name,
        )


def _weighted(
    composition: Composition, weights: Mapping[str, float]
) -> Composition | CompositionLoss:
    """A composition with the weights of its outputs in the loss, if the config has some."""
    if not weights:
        return composition
    if {*weights} != {*composition.names}:
        raise ConfigError(
            f"compositions.{composition.name}.weights has {', '.join(weights)}; expected "
            f"{', '.join(composition.names)}"
        )
    return CompositionLoss(composition, tuple(weights[name] for name in composition.names))


def _score_record(problem: Problem, data: DataConfig) -> dict[str, Any]:
    """What counts in the overall score, for the head files; empty without options, as files of 0.3 are."""
    record: dict[str, Any] = {}
    auxiliary = [target.output for target in problem.scored.values() if target.auxiliary]
    if auxiliary:
        record["auxiliary"] = auxiliary
    target_weights = read_target_weights(data.target_weights)
    if target_weights:
        record["target_weights"] = target_weights
    return record


def _mask_record(data: DataConfig, classes: MaskClasses | None) -> dict[str, Any]:
    """How masks are read, for the head files; empty if the defaults say it all.

    Args:
        data: what is stated.
        classes: of masks of classes: what was decided over all of them.
    """
    if data.labels is None:
        return {}
    record: dict[str, Any] = {}
    class_values = data.class_values
    # JSON has no NaN and no infinity
    nodata = [value for value in data.nodata if math.isfinite(value)]
    if classes is not None:
        class_values = classes.stored or ()
        nodata += [value for value in classes.unlabelled_values if value not in nodata]
    if class_values:
        record["class_values"] = [*class_values]
    if data.class_colors:
        record["class_colors"] = [[*colour] for colour in parse_colors(data.class_colors)]
    if data.scale != 1.0:
        record["scale"] = data.scale
    if data.offset != 0.0:
        record["offset"] = data.offset
    if nodata:
        record["nodata"] = nodata
    return {"masks": record} if record else {}
