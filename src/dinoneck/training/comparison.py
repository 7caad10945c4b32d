"""Several heads on the same tokens, folds and targets: ``dinoneck train --heads``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.folders import DataFolder
from dinoneck.devices import local_device
from dinoneck.progress import announce, note
from dinoneck.registry import import_modules
from dinoneck.training import folder as files
from dinoneck.training import report as reports
from dinoneck.training.config import TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.head_arguments import compared_heads
from dinoneck.training.new_head import SEVERAL_LAYERS
from dinoneck.training.processes import join_processes
from dinoneck.training.report import HEAD
from dinoneck.training.run import ImageTrainer, as_begun, prepare


def prepare_heads(
    config: TrainConfig,
    heads: Sequence[str | Mapping[str, Any]],
    out: Path,
    *,
    hidden_dim: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    data_folder: DataFolder | None = None,
) -> dict[str, ImageTrainer]:
    """Return a trainer per head, each with the tokens and folds of the first, in the folder ``out / NAME``.

    The arguments and names of the heads are those of
    :func:`dinoneck.training.head_arguments.compared_heads`; a line per head names the arguments of
    the config that it does not have.

    Args:
        config: the run.
        heads: two or more heads: registered names, or ``{"type": NAME, ...}`` with arguments.
        out: the folder of the comparison.
        hidden_dim: width of every head that has one.
        overwrite: replace the results of an earlier run.
        resume: an interrupted comparison in ``out`` is going to be continued.
        data_folder: as of :func:`dinoneck.training.run.prepare`.

    Raises:
        ConfigError: for fewer than two heads, a head that stands twice, or an argument that no head
            has.
        DinoneckError: as :func:`dinoneck.train`.
    """
    import_modules(config.imports)
    compared = compared_heads(heads, config.head, hidden_dim)
    files.check_folder(out, overwrite=overwrite)
    if data_folder is None:
        config, data_folder = of_data_folder(config)
    for entry in compared:
        if entry.left_out and files.writes():
            announce(f"{entry.name} leaves out {', '.join(entry.left_out)}")
    if resume:
        # all heads learn the same, also those that 0.3 has not begun
        config = as_begun(config, [out / entry.name for entry in compared])
    # all heads read the layers of the first one, so one that reads several layers goes first
    reading_several_layers = [entry for entry in compared if entry.head["type"] in SEVERAL_LAYERS]
    others = [entry for entry in compared if entry.head["type"] not in SEVERAL_LAYERS]
    trainers: dict[str, ImageTrainer] = {}
    first = None
    for entry in reading_several_layers + others:
        trainers[entry.name] = prepare(
            config.changed(head=entry.head),
            out / entry.name,
            overwrite=overwrite,
            resume=resume,
            like=first,
            data_folder=data_folder,
        )
        if first is None:
            first = trainers[entry.name]
    return trainers


def train_heads(
    trainers: Mapping[str, ImageTrainer], out: Path, *, resume: bool = True
) -> dict[str, Any]:
    """Train the heads of :func:`prepare_heads` and write ``out / report.json``: target -> head -> scores.

    The first head is compared with each other one, by intervals over groups. ``cost``: head ->
    seconds of training and parameters. ``loss_weights``: head -> its learned weights of the losses,
    as in the report of that head; empty where none are learned.
    """
    first = next(iter(trainers.values()))
    join_processes(local_device(first.config.device))
    files.begin(out, {"heads": [*trainers]}, resume=resume)
    files.write_data(out, first.summary)
    reports_of_heads = {}
    methods = {}
    cost = {}
    loss_weights = {}
    for name, trainer in trainers.items():
        note(f"head {name}")
        reports_of_heads[name] = trainer.train_folds(resume=resume)
        methods[name] = trainer.evaluator.methods[HEAD]
        seconds = 0.0
        for rows in trainer.logs().values():
            seconds += sum(row["seconds"] for row in rows)
        if reports_of_heads[name]["loss_weights"]:
            loss_weights[name] = reports_of_heads[name]["loss_weights"]
        cost[name] = {"parameters": reports_of_heads[name]["parameters"], "seconds": seconds}
    # none is finished before all are, so that the same command continues
    for name, trainer in trainers.items():
        reports_of_heads[name] = files.finish(trainer.folder, reports_of_heads[name])
    # what the report of the last head holds of data, backbone and versions is that of all heads
    last_name, last = list(trainers.items())[-1]
    report = dict(reports_of_heads[last_name])
    for key in ("config", "parameters", "choice", "predicts"):  # of one head
        del report[key]
    report.pop("prediction_intervals", None)
    held_out = [fold.valid for fold in last.folds]
    report |= reports.summary(last.table, last.problem.scored, methods, held_out, last.units())
    report["cost"] = cost
    report["loss_weights"] = loss_weights
    return files.finish(out, report)
