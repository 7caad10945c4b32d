"""Train as a config describes: cross-validated heads, predictions and a report on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import write_text
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.cells import csv_text
from dinoneck.errors import ConfigError, DataError, counted, some_of
from dinoneck.regular_files import read_regular
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.config import TrainConfig
from dinoneck.training.crossval import CrossValidation, choose_folds, cross_validate, fold_folder, make_folds
from dinoneck.training.engine import Callback
from dinoneck.training.folds import Fold
from dinoneck.training.inputs import Inputs, open_inputs
from dinoneck.training.loggers import loggers_of
from dinoneck.training.report import fold_scores, scores_of
from dinoneck.training.state import LOG, STATE, check_same
from dinoneck.training.table import MISSING_CLASS, Table
from dinoneck.training.targets import check_minimum, check_varies
from dinoneck.training.tasks import Problem
from dinoneck.version import versions

logger = logging.getLogger(__name__)

HEADS, LOGS, REPORT, PREDICTIONS = "heads", "logs", "report.json", "out_of_fold.csv"
UNFINISHED, CONFIG = "unfinished", "config.json"
_OWN_COLUMNS = ("image", "fold")
_FEWEST_OF_A_CLASS = 2


def train(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    table: Any = None,
    backbone: Backbone | None = None,
    folds: Sequence[Fold] | None = None,
    overwrite: bool = False,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    inputs: Inputs | None = None,
) -> CrossValidation:
    """Train one head per fold and write heads, predictions and a report.

    The folder gets ``heads/fold-K.safetensors``, ``logs/fold-K.jsonl`` (a line per epoch), ``out_of_fold.csv`` and,
    last, ``report.json``. Until then ``unfinished`` holds the states: the same call after a kill or an error continues
    the run, trains no finished fold again, and writes what it would have written.

    Args:
        config: the run, see :class:`TrainConfig`.
        out: the folder: a new or empty one, or that of an earlier run.
        table: a pandas DataFrame in the place of ``data.csv``.
        backbone: in the place of the one that the config names; frozen.
        folds: ``(train, valid)`` rows; None = by ``config.folds``.
        overwrite: replace the results of an earlier run in ``out``.
        resume: continue an interrupted run of the same config.
        callbacks: see :func:`dinoneck.training.fit`.
        inputs: of :func:`open_inputs`, where the caller has them.

    Returns:
        The cross-validation; its ``report`` is what ``report.json`` holds.

    Raises:
        DataError: if the data cannot be used, ``out`` holds results and ``overwrite`` is off, or it holds other files
            than those of a run.
        ConfigError: if values contradict each other, or head, tasks and tokens do not fit.
        CheckpointError: if ``out`` holds states of another run; it names the values that differ.
    """
    folder = Path(out)
    check_folder(folder, overwrite=overwrite)
    inputs = inputs or open_inputs(config, table, backbone)
    cells = inputs.cells(config)
    _check_before(config, inputs, folder, cells, folds)
    _keep_config(config, folder / UNFINISHED, resume=resume)
    result = cross_validate(
        config,
        inputs.table,
        inputs.tokens(),
        cells,
        folds=folds,
        out=folder / UNFINISHED,
        resume=resume,
        callback=lambda fold: (*callbacks, *(loggers_of(config.logging, folder, f"fold-{fold}") if _writes() else ())),
    )
    result.report.update({**scores_of(result), **_record(config, inputs)})
    if _writes():
        count = len(make_folds(config, inputs.table) if folds is None else folds)
        _write(folder, result, config, inputs, count, overwrite=overwrite)
    return result


def check_folder(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a folder that holds other files than an earlier run, or results of one that are not to be replaced.

    Hidden files do not count.

    Raises:
        DataError: naming it and some of its files.
    """
    folder = Path(out)
    old = _results(folder)
    if old and not overwrite:
        raise DataError(
            f"{out} holds results of an earlier run ({old[0].name}); choose another folder, or pass overwrite=True "
            "(--overwrite)"
        )
    if old or not folder.is_dir() or (folder / UNFINISHED).is_dir():
        return
    if names := [path.name for path in folder.iterdir() if not path.name.startswith(".")]:
        raise DataError(
            f"{out} holds {counted(len(names), 'file')} or folders that are not of a run: {some_of(names, 3)}. Results "
            "go into a folder of their own; choose a new or empty one"
        )


def _writes() -> bool:
    """Whether this process writes: the first one under torchrun."""
    return os.environ.get("RANK", "0") == "0"


def _keep_config(config: TrainConfig, running: Path, *, resume: bool) -> None:
    """Refuse to continue an interrupted run of another config, naming the keys that differ; write this one."""
    values = config.to_dict()
    for key in ("logging", "imports", "device"):  # these do not change the result
        del values[key]
    del values["folds"]["only"]
    path = running / CONFIG
    if resume and path.exists() and any(running.glob(f"fold-*/{STATE}")):
        check_same(json.loads(read_regular(path)), json.loads(json.dumps(values)), str(running))
    if _writes():
        running.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(values, indent=2) + "\n")


def _record(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "backbone": None if inputs.record is None else dict(inputs.record),
        "inputs": None if inputs.preprocess is None else inputs.preprocess.record(),
        "versions": versions(),
    }


def _check_before(
    config: TrainConfig, inputs: Inputs, folder: Path, cells: CellTargets | None, folds: Sequence[Fold] | None
) -> None:
    """Refuse before the work what would fail after it."""
    table = inputs.table
    problem = Problem.of(config, table, cells)
    if cells is None and not problem.tasks:
        raise ConfigError("which columns are to be predicted? Name them with data.targets (--targets), or data.labels")
    numbers, chosen = choose_folds(config, table, folds)
    masks = {} if cells is None else {config.data.labels or cells.name: cells}
    _check_targets(table, masks)
    if config.folds.column is not None and table.groups is not None:
        _warn_of_split_groups(np.array(table.groups), chosen, config.folds.column)
    for number, fold in zip(numbers, chosen, strict=True):
        _check_fold(table, masks, number, fold)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"the results cannot be written to {folder}: {parent} is not a folder that can be written to")
    loggers_of(config.logging, folder)  # refuses a package that is not installed
    tokens = inputs.first()
    head = problem.head(tokens, np.arange(len(table)), seed=0)  # refuses a head that does not fit
    head.eval().predict(tokens.to(next(head.parameters()).device))


def _check_targets(table: Table, masks: Mapping[str, CellTargets]) -> None:
    """Refuse targets that no fold can learn, and images of which nothing is known; masks by their column."""
    known = {name: _known(values) for name, values in {**table.targets, **table.auxiliary}.items()}
    known |= {name: np.array([file is not None for file in cells.files]) for name, cells in masks.items()}
    if len(nothing := np.flatnonzero(~np.any(list(known.values()), axis=0))):
        names = some_of([repr(table.ids[row]) for row in nothing], 3)
        columns = ", ".join(known)
        raise DataError(f"nothing is known of the images {names} ({columns}); fill in a value, or remove the rows")
    for name, values in table.targets.items():
        if name in _OWN_COLUMNS:
            raise DataError(f"a target named {name!r} would clash with a column of {PREDICTIONS}; rename it")
        check_varies(name, values, "image of the table")
        if values.dtype.kind == "f":
            check_minimum(name, values, table.minimum, table.ids)
            continue
        counts = np.unique(values[known[name]], return_counts=True)[1]
        if counts.sum() < _FEWEST_OF_A_CLASS * len(counts):
            raise DataError(
                f"the target {name!r} has {len(counts)} classes in {counts.sum()} images, {(counts == 1).sum()} of "
                f"them in one image alone; expected {_FEWEST_OF_A_CLASS} images a class or more on average. Merge "
                "classes, or leave the column out"
            )


def _check_fold(table: Table, masks: Mapping[str, CellTargets], number: int, fold: Fold) -> None:
    """Refuse a fold whose training images teach a target nothing; warn of classes that it holds out alone."""
    rows, held_out = fold
    targets: dict[str, Any] = {**table.targets, **table.auxiliary}
    targets |= {name: cells.targets.numpy() for name, cells in masks.items()}
    for name, values in targets.items():
        if not _known(values[rows]).any():
            raise DataError(
                f"no training image of fold {number} has a value of {name!r}; use other folds, or leave {name!r} out"
            )
        if values.dtype.kind == "f":
            check_varies(name, values[rows], f"training image of fold {number}")
        elif new := sorted({*values[held_out].tolist()} - {*values[rows].tolist(), MISSING_CLASS}):
            logger.warning(
                "fold %d holds out images of the %s %s and trains on none: they cannot be predicted right. Use other "
                "folds (--stratify %s), or remove what is too rare",
                number,
                name,
                ", ".join(table.classes[name][k] for k in new),
                name,
            )


def _known(values: Any) -> Any:
    """Which of n values, class indices or maps hold anything, (n,)."""
    if values.dtype.kind != "f":
        return values != MISSING_CLASS
    return np.isfinite(values).reshape(len(values), -1).any(axis=1)


def _warn_of_split_groups(groups: Any, folds: Sequence[Fold], column: str) -> None:
    split = {group for train, valid in folds for group in np.intersect1d(groups[train], groups[valid]).tolist()}
    if split:
        logger.warning(
            "%d groups have images in several folds of the column %r, the first is %r: scores may look better than "
            "they are for new groups",
            len(split),
            column,
            min(split),
        )


def _write(
    folder: Path, result: CrossValidation, config: TrainConfig, inputs: Inputs, count: int, *, overwrite: bool
) -> None:
    """Write everything to a new folder, then replace what an earlier run left; the report goes first and comes last."""
    check_folder(folder, overwrite=overwrite)  # another run may have ended here meanwhile
    new, report = folder / UNFINISHED / "results", result.report
    shutil.rmtree(new, ignore_errors=True)  # of a run that was ended here
    for name in (HEADS, LOGS):
        (new / name).mkdir(parents=True)
        (folder / name).mkdir(exist_ok=True)
    for fold, head, scores in zip(result.numbers, result.heads, fold_scores(report, len(result.folds)), strict=True):
        facts = {"fold": fold, "folds": count, "seed": config.optim.seed, "epochs": config.optim.epochs}
        HeadCheckpoint.from_module(
            head,
            backbone=inputs.record if inputs.backbone is None else inputs.backbone,
            preprocess=inputs.preprocess,
            training={**facts, "metrics": scores},
            tta=config.data.tta,
        ).save(new / HEADS / f"fold-{fold}.safetensors")
        shutil.copyfile(fold_folder(folder / UNFINISHED, fold) / LOG, new / LOGS / f"fold-{fold}.jsonl")
    header, *rows = result.out_of_fold()
    write_text(new / PREDICTIONS, csv_text(header, rows))
    write_text(new / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    for path in _results(folder):
        if path.name == REPORT or not (new / path.relative_to(folder)).exists():
            path.unlink()
    for path in reversed(_results(new)):
        path.replace(folder / path.relative_to(new))
    shutil.rmtree(folder / UNFINISHED)


def _results(folder: Path) -> list[Path]:
    """Files that a run leaves in the folder; the report first, so that a half-removed run has none."""
    found = [folder / REPORT, folder / PREDICTIONS, *sorted((folder / HEADS).glob("fold-*.safetensors"))]
    found += sorted((folder / LOGS).glob("fold-*.jsonl"))
    return [path for path in found if path.exists()]
