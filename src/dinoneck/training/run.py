"""Train as a config describes: cross-validated heads, a linear baseline, predictions and a report on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import read_regular
from dinoneck.checkpoint.backbone_part import changed_weights
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.rehearsal import check_views
from dinoneck.data.cells import csv_text
from dinoneck.data.layout import DataFolder
from dinoneck.devices import bytes_of, local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.losses.composition import Composition, CompositionLoss
from dinoneck.losses.task_loss import TaskLoss, UncertaintyWeighting
from dinoneck.progress import note
from dinoneck.registry import import_modules
from dinoneck.text import some_of
from dinoneck.training import folder as files
from dinoneck.training import report as reports
from dinoneck.training.baselines import baseline_head
from dinoneck.training.config import PROGRAMS, DataConfig, TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.earlier import log_backbone
from dinoneck.training.fitting import fit
from dinoneck.training.folds import folds_of
from dinoneck.training.mask_classes import warn_of_mask_classes
from dinoneck.training.new_head import SEVERAL_LAYERS, head_type, make_head
from dinoneck.training.problem import (
    Problem,
    read_problem,
    take_rows,
    unlabelled_rows,
    with_fine_maps,
)
from dinoneck.training.report import BOTH, HEAD, LINEAR
from dinoneck.training.source import Source, live_tokens, source_of
from dinoneck.training.table import groups_of, of_pasture, table_of
from dinoneck.training.targets import training_targets
from dinoneck.training.token_sources import LiveTokens, MemoryTokens, TokenSource, digest_of
from dinoneck.training.trained_images import write_images_of_table
from dinoneck.version import versions

logger = logging.getLogger(__name__)

_SHOWN = 5  # images in a message


def train(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    table: Any = None,
    overwrite: bool = False,
    resume: bool = True,
    callbacks: Sequence[files.Callback] = (),
) -> dict[str, Any]:
    """Train one head per fold and write heads, predictions and a report.

    The folder gets ``heads/fold-K.safetensors``, ``logs/fold-K.jsonl`` (a line per epoch),
    ``head.safetensors`` (the heads of all folds as one ensemble), ``out_of_fold.csv``,
    ``trained_on.csv`` (the images, with their hashes, and which folds were trained on each) and,
    last, ``report.json``. A fold is finished when its head is there: the same call after a kill or an
    error trains no finished fold again, and writes what it would have written.

    Args:
        config: the run, see :class:`TrainConfig`.
        out: the folder: a new or empty one, or that of an earlier run.
        table: a pandas DataFrame in the place of ``data.csv``.
        overwrite: replace the results of an earlier run in ``out``; until the new report is
            written they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.
        callbacks: ``callback(epoch, row)`` after every epoch, see :func:`dinoneck.training.fit`.

    Returns:
        What ``report.json`` holds: ``scores`` (target -> method -> scores as by
        :mod:`dinoneck.training.scores`), the ``verdict``, counts of images and groups, the config,
        and what made the tokens.

    Raises:
        DataError: if the data cannot be used, ``out`` holds results and ``overwrite`` is off, or it
            holds other files than those of a run.
        ConfigError: if values contradict each other, or head, tasks and tokens do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other targets,
            or ``data.tta`` names views that the head does not take.
    """
    PROGRAMS.check_class(config, TrainConfig)
    return Run(config, Path(out), table=table, overwrite=overwrite).train(
        resume=resume, callbacks=callbacks
    )


class Run:
    """A run whose inputs fit together; what may be refused is refused before the first expensive step.

    Arguments and errors are those of :func:`train`; ``like`` is another run of the same data, whose
    table, tokens and folds are used. ``data_folder`` is what ``data.images`` holds, if the config is one
    that :func:`dinoneck.training.data_folder.of_data_folder` returned with it.

    Attributes:
        config: its description.
        folder: of the results.
        table: the images and what is known of them.
        source: their tokens, not loaded yet.
        problem: what the heads learn.
        folds: number -> ``(train, valid)`` rows of the table; None = all images, see
            :attr:`TrainConfig.trains_on_all`.
        heads: fold number -> its new head.
        predictions: of the held-out images: method -> target -> values of all rows.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        table: Any = None,
        overwrite: bool = False,
        like: Run | None = None,
        data_folder: DataFolder | None = None,
    ) -> None:
        self.folder = out
        files.check_folder(self.folder, overwrite=overwrite)
        if table is None and data_folder is None:
            config, data_folder = of_data_folder(config)
        if isinstance(config, TrainConfig):  # that of objects is checked by train_instances
            config.check_used(with_table=table is not None)
        import_modules(config.imports)
        head_type(config)  # a name that is not registered is refused before anything is read
        if like is None:
            self.table: Any = table_of(config, table, data_folder)
        else:
            self.table = like.table
        self.config = config if table is not None else of_pasture(config)
        self.source: Source = source_of(config, self.table) if like is None else like.source
        live_tokens(config, self.source, self.table)  # refuses a rank that does not fit
        log_backbone(config, self.source.record)
        problem = self._of_labelled_images(self._problem())
        if like is None:
            self.folds = folds_of(config, self.table)
            warn_of_mask_classes(problem, self.table, self.folds)
        else:
            self.folds = like.folds
        self.heads = {number: self._new_head(problem, number) for number in self.folds}
        first = next(iter(self.heads.values())).eval()
        # refused before the training, as the file of a head refuses it
        check_views(first, self.source.record, self.source.preprocess, config.data.tta)
        self.problem = with_fine_maps(
            problem, first.predict(self.source.first.to(next(first.parameters()).device))
        )
        methods = (HEAD, LINEAR) if config.is_live else (HEAD, LINEAR, BOTH)
        self.predictions = {method: reports.no_predictions(problem.scored) for method in methods}

    def _problem(self) -> Problem:
        """What the heads learn; a run of other targets replaces it, and ``_predict`` and ``_report``."""
        return read_problem(self.config, self.table, self.source.preprocess)

    def _of_labelled_images(self, problem: Problem) -> Problem:
        """Leave the images out whose label files have no labelled pixel, and of which nothing else is known."""
        unlabelled = unlabelled_rows(problem, self.table)
        if not len(unlabelled):
            return problem
        logger.warning(
            "%d of %d images have no labelled pixel in their label files and are left out: %s",
            len(unlabelled),
            len(self.table),
            some_of([repr(self.table.index[row]) for row in unlabelled], _SHOWN),
        )
        labelled = np.delete(np.arange(len(self.table)), unlabelled)
        self.table = self.table.iloc[labelled]
        self.source = source_of(self.config, self.table)
        return take_rows(problem, labelled)

    def train(
        self, *, resume: bool = True, callbacks: Sequence[files.Callback] = ()
    ) -> dict[str, Any]:
        """Train, predict, score and write; return the report, see :func:`train`."""
        return files.finish(self.folder, self.trained(resume=resume, callbacks=callbacks))

    def trained(
        self, *, resume: bool = True, callbacks: Sequence[files.Callback] = ()
    ) -> dict[str, Any]:
        """Do the same up to the report, which is returned: until it is written, the run is not finished."""
        self._begin(resume=resume)
        members = list[Head]()
        for finished, number in enumerate(self.folds, 1):
            try:
                members += self._train_fold(number, callbacks)
            except DataError as error:
                raise DataError(f"fold {number}: {error}") from error
            note(
                f"fold {'all' if number is None else number} is trained, {finished} of "
                f"{len(self.folds)}"
            )
        return self._finish(members)

    def _new_head(self, problem: Problem, number: int | None) -> Head:
        """The head of a fold, which can learn the targets of its rows."""
        (rows, valid), optim = self.folds[number], self.config.optim
        both = np.concatenate([rows, valid])
        targets, weights = (
            {name: x[both] for name, x in of.items()} for of in (problem.targets, problem.weights)
        )
        try:
            head = make_head(
                self.config, self.source.first, problem, rows, optim.seed + (number or 0)
            )
            loss = self._loss(head)
            needs_validation = optim.patience is not None and number is not None
            training_targets(
                loss, targets, weights, self.table.index[both], len(rows), needs_validation
            )
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        return head

    def _begin(self, *, resume: bool) -> None:
        """Keep what identifies the run, see :func:`dinoneck.training.folder.begin`; make its folders."""
        tokens = self.source.load()
        data = {
            "backbone record": self.source.record,
            "hash of images and targets": self._hash(with_tokens=True),
            files.TARGETS: self._hash(with_tokens=False),
            files.TOKENS: digest_of(tokens, tokens.ids),
        }
        files.begin(self.folder, self.config.to_dict() | data, resume=resume)
        for name in (files.HEADS, files.LOGS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _train_fold(self, number: int | None, callbacks: Sequence[files.Callback]) -> list[Head]:
        """Train, predict and keep the head of a fold, and return the members that it brings to the ensemble."""
        path, log, unfinished = self._paths(number)
        is_finished = files.is_finished_head(self.folder, path)
        tokens = self.source.load()
        # the images with the backbone that is trained along with the head of this file
        live = live_tokens(self.config, self.source, self.table, path if is_finished else None)
        if is_finished:
            head = self._finished_head(path)
        else:
            head = self._train_head(number, live or tokens, callbacks)
        members, facts = self._predict(number, head, tokens, live)
        if not is_finished and files.writes():
            shutil.copyfile(unfinished / files.LOG, log)
            self._save(members, path, facts, live)
            files.note_finished_head(self.folder, path)
        if files.writes():
            shutil.rmtree(unfinished, ignore_errors=True)
        return members

    def _predict(
        self, number: int | None, head: Head, tokens: TokenSource, live: LiveTokens | None
    ) -> tuple[list[Head], dict[str, Any]]:
        """Predict the held-out images; return the heads that the fold's file averages, and facts for that file.

        With live tokens the head reads them, and the baseline those of the frozen backbone: no
        average is made.
        """
        config, problem, (rows, valid) = (
            self.config,
            self.problem,
            (side.tolist() for side in self.folds[number]),
        )
        groups, composed = groups_of(self.table), problem.compositions
        linear = baseline_head(
            tokens, problem.targets, rows, head.tasks, groups, composed, config.optim.seed
        )
        heads = {HEAD: head, LINEAR: linear.to(next(head.parameters()).device)}
        if live is None:
            linear.trained_on = head.trained_on
            heads[BOTH] = HeadEnsemble.from_heads([*heads.values()])
        for method, predicting in heads.items():
            source = live if live is not None and method == HEAD else tokens
            reports.write_predictions(
                problem.scored,
                source,
                head=predicting,
                rows=valid,
                predictions=self.predictions[method],
            )
        method = BOTH if config.with_ridge else HEAD
        scores = reports.summary(
            self.table, problem.scored, {method: self.predictions[method]}, [valid]
        )["scores"]
        facts = {"fold": number, "metrics": reports.fold_metrics(scores, method)}
        return [head, linear] if config.with_ridge else [head], facts

    def _loss(self, head: Head) -> TaskLoss:
        """The loss of a head, whose tasks and composed outputs count by the weights of the config."""
        composed: list[Composition | CompositionLoss] = []
        for made in head.compositions:
            weights = self.config.compositions[made.name].weights
            if weights and {*weights} != {*made.names}:
                raise ConfigError(
                    f"compositions.{made.name}.weights has {', '.join(weights)}; expected "
                    f"{', '.join(made.names)}"
                )
            composed.append(
                CompositionLoss(made, tuple(weights[name] for name in made.names))
                if weights
                else made
            )
        loss = TaskLoss(head.tasks, composed)
        if self.config.losses.weighting == "fixed":
            return loss
        names = [task.name for task in loss.tasks] + [made.name for made in loss.compositions]
        return TaskLoss(head.tasks, composed, UncertaintyWeighting(names))

    def _finished_head(self, path: Path) -> Head:
        """The head of a finished fold, out of its file."""
        kept: Any = HeadCheckpoint.load(path).build()
        head: Head = kept.members[0] if self.config.with_ridge else kept
        return head

    def _train_head(
        self, number: int | None, source: TokenSource, callbacks: Sequence[files.Callback]
    ) -> Head:
        """Train the head of a fold; a training that was stopped goes on from its last epoch."""
        _, _, unfinished = self._paths(number)
        config, optim, head = self.config, self.config.optim, self.heads[number]
        # an earlier head has the token scale of its training
        scaled = optim.standardise_tokens and config.init is None
        patience = None if number is None else optim.patience  # of all images none is held out
        recipe = optim.changed(
            seed=optim.seed + (number or 0), standardise_tokens=scaled, patience=patience
        )
        train, held_out = ([source.ids[row] for row in rows] for rows in self.folds[number])
        options: dict[str, Any] = {
            "recipe": recipe,
            "out": unfinished,
            "weights": self.problem.weights,
        }
        options |= {"target_ids": source.ids, "loss": self._loss(head), "callbacks": callbacks}
        fit(
            head.to(local_device(config.device)),
            source,
            self.problem.targets,
            ids=train,
            val_ids=held_out,
            **options,
        )
        return head

    def _finish(self, members: Sequence[Head]) -> dict[str, Any]:
        """Score all folds; write the head of all and the predictions; return the report."""
        config, folder = self.config, self.folder
        report = self._report() | {
            "parameters": sum(parameter.numel() for parameter in members[0].parameters()),
            "config": config.to_dict(),
            "backbone": dict(self.source.record),
            "inputs": self.source.preprocess.record(),
            "versions": versions(),
        }
        if files.writes():
            file = folder / files.HEAD_FILE
            if not config.trains_on_all:
                metrics = reports.fold_metrics(
                    report["scores"], BOTH if config.with_ridge else HEAD
                )
                self._save(members, file, {"metrics": metrics})
            elif None not in self.folds:
                shutil.copyfile(self._paths(*self.folds)[0], file)
            columns = reports.prediction_rows(
                self.table, self.problem.scored, self.predictions, self.folds
            )
            write_images_of_table(folder, self.table, self.source.load(), self.folds)
            text = csv_text([*columns], zip(*columns.values(), strict=True))
            files.write_file(folder / files.PREDICTIONS, text.encode())
        return report

    def _report(self) -> dict[str, Any]:
        """What the report holds of the predictions of all folds."""
        return {**self.scores(self.predictions), "loss_weights": self._learned_weights()}

    def scores(self, predictions: reports.Methods) -> dict[str, Any]:
        """Return what the report holds of the scores of predictions, see :func:`dinoneck.training.report.summary`."""
        return reports.summary(
            self.table,
            self.problem.scored,
            predictions,
            [valid for _, valid in self.folds.values()],
            self._units(),
        )

    def _units(self) -> dict[str, str]:
        """Target -> its unit."""
        heads = [*self.heads.values()]
        unit_of_output = {task.name: task.unit for task in heads[0].predicted}
        return {
            name: unit_of_output.get(target.output, "")
            for name, target in self.problem.scored.items()
        }

    def logs(self) -> dict[str, list[dict[str, float]]]:
        """Return the rows of every fold's log."""
        paths = sorted((self.folder / files.LOGS).glob("fold-*.jsonl"))
        return {path.stem: [*map(json.loads, read_regular(path).splitlines())] for path in paths}

    def _learned_weights(self) -> dict[str, dict[str, float]]:
        """Fold -> loss -> its learned weight after the last epoch, by the logs; empty with fixed weights."""
        learns = self.config.losses.weighting == "uncertainty" and files.writes()
        return {
            name: {
                key.removeprefix("weight/"): x
                for key, x in rows[-1].items()
                if key.startswith("weight/")
            }
            for name, rows in (self.logs() if learns else {}).items()
        }

    def _save(
        self,
        members: Sequence[Head],
        path: Path,
        facts: Mapping[str, Any],
        live: LiveTokens | None = None,
    ) -> None:
        """Write a head, or several as an ensemble, with the facts of the training.

        Weights of the backbone of ``live`` that were trained along are written too.
        """
        optim, source = self.config.optim, self.source
        HeadCheckpoint.from_module(
            members[0] if len(members) == 1 else HeadEnsemble.from_heads(members),
            backbone=live.backbone if live is not None else source.backbone or source.record,
            backbone_weights=None if live is None else changed_weights(live.backbone),
            preprocess=source.preprocess,
            training={
                "folds": len({*self.folds} - {None}),
                "seed": optim.seed,
                "epochs": optim.epochs,
                **_mask_record(self.config.data),
                **facts,
            },
            tta=self.config.data.tta,
        ).save(path)

    def _hash(self, *, with_tokens: bool) -> str:
        """The SHA-256 of ids, targets and folds; with tokens also of two tokens of every image in memory, as in 0.3."""
        tensors = {
            **self.problem.targets,
            **{f"weight {name}": x for name, x in self.problem.weights.items()},
        }
        tokens = self.source.load()
        if with_tokens and isinstance(tokens, MemoryTokens):
            # a token depends on the whole image
            tensors |= {f"layer {i}": x[:, [0, -1]] for i, x in enumerate(tokens.tokens.sequence)}
        folds = {number: valid.tolist() for number, (_, valid) in self.folds.items()}
        data = hashlib.sha256(repr([list(self.table.index), folds]).encode())
        for name, values in sorted(tensors.items()):
            data.update(f"|{name}|{tuple(values.shape)}|".encode() + bytes_of(values.contiguous()))
        return data.hexdigest()

    def _paths(self, number: int | None) -> tuple[Path, Path, Path]:
        """The head's file, the log and the folder of the unfinished training of a fold."""
        name, folder = "fold-all" if number is None else f"fold-{number}", self.folder
        head = (
            folder / files.HEAD_FILE
            if number is None
            else folder / files.HEADS / f"{name}.safetensors"
        )
        return head, folder / files.LOGS / f"{name}.jsonl", folder / files.UNFINISHED / name


def prepare_heads(
    config: TrainConfig,
    heads: Sequence[str],
    out: Path,
    *,
    overwrite: bool = False,
    data_folder: DataFolder | None = None,
) -> dict[str, Run]:
    """Return a run per head, each with the tokens, folds and targets of the first, in the folder ``out / NAME``.

    ``data_folder`` is as of :class:`Run`.

    Raises:
        ConfigError: for fewer than two heads, or a head that is named twice.
        DinoneckError: as :func:`dinoneck.training.train`.
    """
    if len({*heads}) < max(len(heads), 2):
        raise ConfigError(f"heads are {', '.join(heads)}; expected two or more, each once")
    files.check_folder(out, overwrite=overwrite)
    if data_folder is None:
        config, data_folder = of_data_folder(config)
    runs = dict[str, Run]()
    first = None
    # all read the layers of the first
    for name in sorted(heads, key=SEVERAL_LAYERS.__contains__, reverse=True):
        with_head = config.changed(head={**config.head, "type": name})
        runs[name] = Run(
            with_head, out / name, overwrite=overwrite, like=first, data_folder=data_folder
        )
        first = runs[name]
    return runs


def train_heads(runs: Mapping[str, Run], out: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train the runs of :func:`prepare_heads` and write ``out / report.json``: target -> head -> scores.

    The first head is compared with each other one, by intervals over groups. ``cost``: head ->
    seconds of training and parameters.
    """
    cost, done = dict[str, Any](), dict[str, dict[str, Any]]()
    files.begin(out, {"heads": [*runs]}, resume=resume)
    for name, run in runs.items():
        note(f"head {name}")
        done[name] = run.trained(resume=resume)
        seconds = sum(row["seconds"] for rows in run.logs().values() for row in rows)
        cost[name] = {"parameters": done[name]["parameters"], "seconds": seconds}
    # none is finished before all are, so that the same command continues
    for name, run in runs.items():
        report = files.finish(run.folder, done[name])
    del report["config"], report["parameters"]
    report |= run.scores({name: x.predictions[HEAD] for name, x in runs.items()}) | {"cost": cost}
    return files.finish(out, report)


def _mask_record(data: DataConfig) -> dict[str, Any]:
    """How masks are read, for the head files; empty without options, as files of 0.3 are."""
    if data.labels is None:
        return {}
    record: dict[str, Any] = {}
    if data.class_values:
        record["class_values"] = [*data.class_values]
    if data.scale != 1.0:
        record["scale"] = data.scale
    if data.offset != 0.0:
        record["offset"] = data.offset
    # JSON has no NaN and no infinity
    nodata = [value for value in data.nodata if math.isfinite(value)]
    if nodata:
        record["nodata"] = nodata
    return {"masks": record} if record else {}
