"""Train as a config describes: cross-validated heads, a linear baseline, predictions and a report on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import write_text
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.cells import csv_text
from dinoneck.devices import bytes_of, local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss, UncertaintyWeighting
from dinoneck.progress import note
from dinoneck.registry import import_modules
from dinoneck.regular_files import read_regular
from dinoneck.training import folder as files
from dinoneck.training import report as reports
from dinoneck.training.baselines import baseline_head
from dinoneck.training.config import TrainConfig, check_used
from dinoneck.training.fitting import fit
from dinoneck.training.report import BOTH, HEAD, LINEAR, Methods
from dinoneck.training.source import Source, live_tokens, source_of, trained_weights
from dinoneck.training.sources import LiveTokens, MemoryTokens, TokenSource
from dinoneck.training.table import Fold, folds_of, groups_of, of_pasture, read_maps, table_of
from dinoneck.training.tasks import (
    SEVERAL_LAYERS,
    Problem,
    check_targets,
    head_type,
    make_head,
    problem_of,
    with_fine_maps,
)
from dinoneck.version import versions


@dataclass(frozen=True)
class Run:
    """A run whose inputs fit together; nothing expensive has happened yet.

    Attributes:
        config: its description.
        folder: of the results.
        table: the images and what is known of them.
        source: their tokens, not loaded yet.
        problem: what the heads learn.
        folds: the folds to train by number, ``(train, valid)`` rows of the table.
        callbacks: ``callback(epoch, row)`` after every epoch of a fold.
    """

    config: TrainConfig
    folder: Path
    table: Any
    source: Source
    problem: Problem
    folds: Mapping[int, Fold]
    callbacks: Sequence[files.Callback]


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

    The folder gets ``heads/fold-K.safetensors``, ``logs/fold-K.jsonl`` (a line per epoch), ``head.safetensors`` (the
    heads of all folds as one ensemble), ``out_of_fold.csv`` and, last, ``report.json``. A fold is finished when its
    head is there: the same call after a kill or an error trains no finished fold again, and writes what it would have
    written.

    Args:
        config: the run, see :class:`TrainConfig`.
        out: the folder: a new or empty one, or that of an earlier run.
        table: a pandas DataFrame in the place of ``data.csv``.
        overwrite: replace the results of an earlier run in ``out``; they are removed when training begins.
        resume: continue an interrupted run of the same config.
        callbacks: ``callback(epoch, row)`` after every epoch, see :func:`dinoneck.training.fit`.

    Returns:
        What ``report.json`` holds: ``scores`` (target -> method -> scores as by :mod:`dinoneck.training.scores`), the
        ``verdict``, counts of images and groups, the config, and what made the tokens.

    Raises:
        DataError: if the data cannot be used, ``out`` holds results and ``overwrite`` is off, or it holds other files
            than those of a run.
        ConfigError: if values contradict each other, or head, tasks and tokens do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other targets.
    """
    run = prepare(config, out, table=table, overwrite=overwrite, callbacks=callbacks)
    return train_folds(run, resume=resume)[0]


def prepare(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    table: Any = None,
    overwrite: bool = False,
    source: Source | None = None,
    callbacks: Sequence[files.Callback] = (),
) -> Run:
    """Take steps 2 to 6 of a run: everything that may be refused before the first expensive step.

    Arguments and errors are those of :func:`train`; ``source`` is that of another run with the same images.
    """
    folder = Path(out)
    files.check_folder(folder, overwrite=overwrite)
    check_used(config, with_table=table is not None)
    import_modules(config.imports)
    head_type(config)  # a name that is not registered is refused before anything is read
    frame = table_of(config, table)
    if table is None:
        config = of_pasture(config)
    source = source or source_of(config, frame)
    live_tokens(config, source, frame, folder / files.HEAD_FILE)  # refuses a rank that does not fit
    problem = problem_of(config, frame, read_maps(config, frame, source.preprocess))
    folds = folds_of(config, frame)
    check_targets(problem, frame, folds)
    head = make_head(config, source.first, problem, next(iter(folds.values()))[0], config.optim.seed)
    outputs = head.eval().predict(source.first.to(next(head.parameters()).device))
    return Run(config, folder, frame, source, with_fine_maps(problem, outputs), folds, callbacks)


def train_folds(run: Run, *, tokens: TokenSource | None = None, resume: bool = True) -> tuple[dict[str, Any], Methods]:
    """Take steps 7 to 9 of a run: train, predict and score; see :func:`train`.

    Args:
        run: of :func:`prepare`.
        tokens: of the table's images, where another run has loaded them.
        resume: as of :func:`train`.

    Returns:
        The report, and the held-out predictions: method -> target -> values of all rows.
    """
    tokens = run.source.load() if tokens is None else tokens
    _begin(run, tokens, resume=resume)
    is_live = run.config.is_live
    methods = (HEAD, LINEAR) if is_live else (HEAD, LINEAR, BOTH)
    predictions = reports.no_predictions(run.problem, len(run.table), methods)
    members: list[Head] = []
    folds: dict[int | None, Fold] = dict(run.folds.items())
    if is_live and len(folds) > 1:  # heads of several backbones are no ensemble
        folds[None] = np.arange(len(run.table)), np.arange(0)
    for place, (number, fold) in enumerate(folds.items(), 1):
        try:
            members += _train_fold(run, tokens, number, fold, predictions)
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        note(f"{_name(number).replace('-', ' ')} is trained, {place} of {len(folds)}")
    return _finish(run, members, predictions), predictions


def prepare_heads(config: TrainConfig, heads: Sequence[str], out: Path, *, overwrite: bool = False) -> dict[str, Run]:
    """Return a run per head, each with the tokens, folds and targets of the first, in the folder ``out / NAME``.

    Raises:
        ConfigError: for fewer than two heads, or a head that is named twice.
        DinoneckError: as :func:`dinoneck.training.train`.
    """
    if len({*heads}) < max(len(heads), 2):
        raise ConfigError(f"heads are {', '.join(heads)}; expected two or more, each once")
    heads = sorted(heads, key=SEVERAL_LAYERS.__contains__, reverse=True)  # all heads read the layers of the first
    runs: dict[str, Run] = {}
    for name in heads:
        source = next((run.source for run in runs.values()), None)
        own = config.changed(head={**config.head, "type": name})
        runs[name] = prepare(own, out / name, overwrite=overwrite, source=source)
    return runs


def train_heads(runs: dict[str, Run], out: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train the runs of :func:`prepare_heads` and write ``out / report.json``: target -> head -> scores.

    The first head is compared with each other one, by intervals over groups. ``cost``: head -> seconds of training and
    parameters.
    """
    first = next(iter(runs.values()))
    tokens, predictions, cost, report = first.source.load(), dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for name, run in runs.items():
        note(f"head {name}")
        report, found = train_folds(run, tokens=tokens, resume=resume)
        predictions[name] = found[HEAD]
        logs = [line for path in (run.folder / files.LOGS).glob("*.jsonl") for line in read_regular(path).splitlines()]
        seconds = sum(json.loads(line)["seconds"] for line in logs)
        cost[name] = {"parameters": report["parameters"], "seconds": seconds}
    shared = {key: value for key, value in report.items() if key not in ("config", "parameters")}
    held_out = [valid for _, valid in first.folds.values()]
    whole = shared | reports.summary(first.table, first.problem.scored, predictions, held_out) | {"cost": cost}
    write_text(out / files.REPORT, json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return whole


def _begin(run: Run, tokens: TokenSource, *, resume: bool) -> None:
    """Keep what identifies the run; remove the results of another one that is to be replaced.

    Raises:
        CheckpointError: if the folder holds an unfinished run of another config, other images or other targets.
    """
    folder, path = run.folder, run.folder / files.UNFINISHED / files.RUN
    identity = run.config.to_dict() | {"backbone": run.source.record, "hash of images and targets": _hash(run, tokens)}
    identity = {name: value for name, value in identity.items() if name not in ("imports", "device")}
    text = json.dumps(identity, indent=2) + "\n"
    unfinished = resume and path.exists() and not (folder / files.REPORT).exists()
    if unfinished:
        files.check_same(json.loads(read_regular(path)), json.loads(text), str(folder))
    elif _writes():
        for old_file in files.results_in(folder):
            old_file.unlink()
        shutil.rmtree(folder / files.UNFINISHED, ignore_errors=True)
        for name in (files.HEADS, files.LOGS, files.UNFINISHED):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _train_fold(run: Run, tokens: TokenSource, number: int | None, fold: Fold, predictions: Methods) -> list[Head]:
    """Train, predict and keep the heads of a fold, and return the members that it brings to the ensemble.

    A finished head comes from its file. With live tokens the head reads them, and the baseline those of the frozen
    backbone: no average is made.
    """
    config, problem, path = run.config, run.problem, _fold_file(run, number)
    live, (rows, valid) = live_tokens(config, run.source, run.table, path), (side.tolist() for side in fold)
    is_new = not path.exists()
    if is_new:
        head = _fitted_head(run, live or tokens, number, rows, valid)
    else:
        kept: Any = HeadCheckpoint.load(path).build()
        head = kept.members[0] if config.with_ridge else kept
    own, groups = problem.compositions, groups_of(run.table)
    linear = baseline_head(tokens, problem.targets, rows, head.tasks, own, groups, config.optim.seed)
    heads = {HEAD: head, LINEAR: linear.to(next(head.parameters()).device)}
    if live is None:
        linear.trained_on = head.trained_on
        heads[BOTH] = HeadEnsemble.from_heads([*heads.values()])
    for method, each in heads.items():
        source = live if live is not None and method == HEAD else tokens
        reports.write_predictions(problem, source, each, valid, predictions[method])
    unfinished = run.folder / files.UNFINISHED / _name(number)
    if is_new and _writes():
        method = BOTH if config.with_ridge else HEAD
        scores = reports.summary(run.table, problem.scored, {method: predictions[method]}, [valid])["scores"]
        shutil.copyfile(unfinished / files.LOG, _log_file(run, number))
        _save(run, heads[method], path, {"fold": number, "metrics": reports.fold_metrics(scores, method)}, live)
    if _writes():
        shutil.rmtree(unfinished, ignore_errors=True)
    return [head, linear] if config.with_ridge else [head]


def _fitted_head(run: Run, source: TokenSource, number: int | None, rows: Any, valid: Any) -> Head:
    """The new head of a fold, trained."""
    config, problem, seed = run.config, run.problem, run.config.optim.seed + (number or 0)
    head = make_head(config, run.source.first, problem, rows, seed).to(local_device(config.device))
    # an earlier head has the token scale of its training
    recipe = config.optim.changed(seed=seed, standardise_tokens=config.optim.standardise_tokens and config.init is None)
    loss = TaskLoss(head.tasks, head.compositions)
    if config.losses.weighting == "uncertainty":
        names = [task.name for task in head.tasks] + [own.name for own in loss.compositions]
        loss = TaskLoss(head.tasks, head.compositions, UncertaintyWeighting(names))
    train, held_out = ([source.ids[row] for row in own] for own in (rows, valid))
    options: dict[str, Any] = {"recipe": recipe, "out": run.folder / files.UNFINISHED / _name(number)}
    options |= {"target_ids": source.ids, "weights": problem.weights, "loss": loss, "callbacks": run.callbacks}
    fit(head, source, problem.targets, ids=train, val_ids=held_out, **options)
    return head


def _finish(run: Run, members: Sequence[Head], predictions: Methods) -> dict[str, Any]:
    """Score all folds; write the ensemble, the predictions and, last, the report."""
    config, table, scored, folder = run.config, run.table, run.problem.scored, run.folder
    report: dict[str, Any] = {
        **reports.summary(table, scored, predictions, [valid for _, valid in run.folds.values()]),
        "loss_weights": _learned_weights(run),
        "parameters": sum(parameter.numel() for parameter in members[0].parameters()),
        "config": config.to_dict(),
        "backbone": dict(run.source.record),
        "inputs": run.source.preprocess.record(),
        "versions": versions(),
    }
    text = json.dumps(report, indent=2, allow_nan=False)
    if _writes():
        file = folder / files.HEAD_FILE
        if not config.is_live:
            whole = members[0] if len(members) == 1 else HeadEnsemble.from_heads(members)
            metrics = reports.fold_metrics(report["scores"], BOTH if config.with_ridge else HEAD)
            _save(run, whole, file, {"metrics": metrics})
        elif len(run.folds) == 1:
            shutil.copyfile(_fold_file(run, *run.folds), file)
        columns = reports.prediction_rows(table, scored, predictions, run.folds)
        write_text(folder / files.PREDICTIONS, csv_text([*columns], zip(*columns.values(), strict=True)))
        write_text(folder / files.REPORT, text + "\n")
        shutil.rmtree(folder / files.UNFINISHED)
    plain: dict[str, Any] = json.loads(text)
    return plain


def _learned_weights(run: Run) -> dict[str, dict[str, float]]:
    """Fold -> loss -> its learned weight after the last epoch, by the logs; empty with fixed weights."""
    found = {}
    for number in run.folds if run.config.losses.weighting == "uncertainty" and _writes() else ():
        last = json.loads(read_regular(_log_file(run, number)).splitlines()[-1])
        found[_name(number)] = {key.partition("/")[2]: x for key, x in last.items() if key.startswith("weight/")}
    return found


def _save(run: Run, head: Head, path: Path, facts: Mapping[str, Any], live: LiveTokens | None = None) -> None:
    """Write a head with the facts of its training, and the weights of the backbone that were trained along."""
    optim, source = run.config.optim, run.source
    HeadCheckpoint.from_module(
        head,
        backbone=live.backbone if live is not None else source.backbone or source.record,
        backbone_weights=None if live is None else trained_weights(run.config, live.backbone),
        preprocess=source.preprocess,
        training={"folds": len(run.folds), "seed": optim.seed, "epochs": optim.epochs, **facts},
        tta=run.config.data.tta,
    ).save(path)


def _hash(run: Run, tokens: TokenSource) -> str:
    """The SHA-256 of ids, targets and folds, and of two tokens of every image in memory."""
    tensors = {**run.problem.targets, **{f"weight {name}": x for name, x in run.problem.weights.items()}}
    if isinstance(tokens, MemoryTokens):  # a token depends on the whole image
        tensors |= {f"layer {i}": x[:, [0, -1]] for i, x in enumerate(tokens.tokens.sequence)}
    folds = {number: valid.tolist() for number, (_, valid) in run.folds.items()}
    data = hashlib.sha256(repr([list(run.table.index), folds]).encode())
    for name, values in sorted(tensors.items()):
        data.update(f"|{name}|{tuple(values.shape)}|".encode() + bytes_of(values.contiguous()))
    return data.hexdigest()


def _name(number: int | None) -> str:
    """What files call a fold; None = all images."""
    return "fold-all" if number is None else f"fold-{number}"


def _fold_file(run: Run, number: int | None) -> Path:
    folder = run.folder
    return folder / files.HEAD_FILE if number is None else folder / files.HEADS / f"{_name(number)}.safetensors"


def _log_file(run: Run, number: int | None) -> Path:
    return run.folder / files.LOGS / f"{_name(number)}.jsonl"


def _writes() -> bool:
    """Whether this process writes: the first one under torchrun."""
    return os.environ.get("RANK", "0") == "0"
