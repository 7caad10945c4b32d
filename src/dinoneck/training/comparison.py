"""Several heads on the same tokens, folds and targets: ``dinoneck train --heads``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.layout import DataFolder
from dinoneck.errors import ConfigError
from dinoneck.progress import note
from dinoneck.training import folder as files
from dinoneck.training import report as reports
from dinoneck.training.config import TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.new_head import SEVERAL_LAYERS
from dinoneck.training.report import HEAD
from dinoneck.training.run import Trainer, prepare


def prepare_heads(
    config: TrainConfig,
    heads: Sequence[str],
    out: Path,
    *,
    overwrite: bool = False,
    data_folder: DataFolder | None = None,
) -> dict[str, Trainer[TrainConfig]]:
    """Return a trainer per head, each with the tokens and folds of the first, in the folder ``out / NAME``.

    Args:
        config: the run.
        heads: names of heads, two or more.
        out: the folder of the comparison.
        overwrite: replace the results of an earlier run.
        data_folder: as of :func:`dinoneck.training.run.prepare`.

    Raises:
        ConfigError: for fewer than two heads, or a head that is named twice.
        DinoneckError: as :func:`dinoneck.train`.
    """
    if len({*heads}) < max(len(heads), 2):
        raise ConfigError(f"heads are {', '.join(heads)}; expected two or more, each once")
    files.check_folder(out, overwrite=overwrite)
    if data_folder is None:
        config, data_folder = of_data_folder(config)
    # all read the layers of the first: a head that reads several goes first
    several = [name for name in heads if name in SEVERAL_LAYERS]
    others = [name for name in heads if name not in SEVERAL_LAYERS]
    trainers: dict[str, Trainer[TrainConfig]] = {}
    first = None
    for name in several + others:
        trainers[name] = prepare(
            config.changed(head={**config.head, "type": name}),
            out / name,
            overwrite=overwrite,
            like=first,
            data_folder=data_folder,
        )
        if first is None:
            first = trainers[name]
    return trainers


def train_heads(
    trainers: Mapping[str, Trainer[TrainConfig]], out: Path, *, resume: bool = True
) -> dict[str, Any]:
    """Train the heads of :func:`prepare_heads` and write ``out / report.json``: target -> head -> scores.

    The first head is compared with each other one, by intervals over groups. ``cost``: head ->
    seconds of training and parameters. ``loss_weights``: head -> its learned weights of the losses,
    as in the report of that head; empty where none are learned.
    """
    files.begin(out, {"heads": [*trainers]}, resume=resume)
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
        report = files.finish(trainer.folder, reports_of_heads[name])
    del report["config"], report["parameters"]
    held_out = [fold.valid for fold in trainer.folds]
    report |= reports.summary(
        trainer.table, trainer.problem.scored, methods, held_out, trainer.units()
    )
    report["cost"] = cost
    report["loss_weights"] = loss_weights
    return files.finish(out, report)
