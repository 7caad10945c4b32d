"""The entrance of every training: what Python and the command line call once a config describes the run.

The class of the config decides what is trained. How the words of a command line become a config is
in :mod:`dinoneck.cli.train`, and how arguments of Python do, in :mod:`dinoneck.training.from_python`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.folders import DataFolder
from dinoneck.data.summary import DataSummary
from dinoneck.errors import ConfigError
from dinoneck.registry import import_modules
from dinoneck.training.comparison import prepare_heads, train_heads
from dinoneck.training.config import TRAININGS, AnyConfig, TrainConfig
from dinoneck.training.data_summary import read_data
from dinoneck.training.folder import Callback, check_folder, write_data
from dinoneck.training.folder import show_data as print_data
from dinoneck.training.head_arguments import head_with_width
from dinoneck.training.run import ImageTrainer, prepare
from dinoneck.training.run_file import switch_method

Describe = Callable[[ImageTrainer], None]
"""Shows what a run of heads of images is going to do, of which all inputs are read."""


def run_training(
    config: AnyConfig,
    out: str | os.PathLike[str],
    *,
    table: Any = None,
    data_folder: DataFolder | None = None,
    heads: Sequence[str | Mapping[str, Any]] = (),
    hidden_dim: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    stated: Collection[str] = (),
    describe: Describe | None = None,
) -> dict[str, Any]:
    """Train as a config describes, and write the results; return what ``report.json`` holds.

    Arguments and errors are those of :func:`dinoneck.train`.

    Args:
        config: the run; without a table that of
            :func:`dinoneck.training.data_folder.of_data_folder`.
        out: the folder of the results.
        table: a pandas DataFrame in the place of ``data.csv``.
        data_folder: what ``data.images`` holds, of the same function.
        heads: heads of images to compare.
        hidden_dim: width of the head, neck or pyramid.
        overwrite: replace the results of an earlier run.
        resume: continue an interrupted run of the same config.
        callbacks: of heads of images, after every epoch.
        stated: of boxes and objects, see :func:`dinoneck.detection.train_detector`.
        describe: of heads of images, called before the training; of several heads with the first.
    """
    if not isinstance(config, TrainConfig):
        _check_no_options_of_images(config, table=table, heads=heads, callbacks=callbacks)
        if hidden_dim is not None:
            config = config.changed(head=head_with_width(config, hidden_dim))
        train_objects = _function_named(TRAININGS.of_config(config).function)
        report: dict[str, Any] = train_objects(
            config, out, overwrite=overwrite, resume=resume, stated=stated
        )
        return report
    folder = Path(out)
    if heads:
        if table is not None or callbacks:
            raise ConfigError(
                "heads are compared without table and callbacks; name the file of the table, and "
                "leave callbacks out"
            )
        trainers = prepare_heads(
            config,
            heads,
            folder,
            hidden_dim=hidden_dim,
            overwrite=overwrite,
            resume=resume,
            data_folder=data_folder,
        )
        if describe is not None:
            describe(next(iter(trainers.values())))
        return train_heads(trainers, folder, resume=resume)
    if hidden_dim is not None:
        config = config.changed(head=head_with_width(config, hidden_dim))
    if not overwrite:
        switched = switch_method(config, folder)
        if switched is not None:
            return switched
    trainer = prepare(
        config,
        folder,
        table=table,
        overwrite=overwrite,
        resume=resume,
        data_folder=data_folder,
    )
    if describe is not None:
        describe(trainer)
    return trainer.train(resume=resume, callbacks=callbacks)


def show_data(
    config: AnyConfig,
    out: str | os.PathLike[str],
    *,
    data_folder: DataFolder | None = None,
    overwrite: bool = False,
) -> DataSummary:
    """Print what a training reads and write it to its folder; train nothing and load no backbone.

    Args:
        config: the run.
        out: the folder of the run, in which a training may begin afterwards.
        data_folder: as of :func:`run_training`.
        overwrite: as of :func:`run_training`.

    Raises:
        DinoneckError: as :func:`dinoneck.train`.
    """
    folder = Path(out)
    check_folder(folder, overwrite=overwrite)
    if isinstance(config, TrainConfig):
        config.check_used(with_table=False)
        import_modules(config.imports)
        summary = read_data(config, data_folder=data_folder)
    else:
        import_modules(config.imports)
        read_objects = _function_named(TRAININGS.of_config(config).data_reader)
        summary = read_objects(config)
    print_data(summary)
    write_data(folder, summary)
    return summary


def _check_no_options_of_images(
    config: AnyConfig, *, table: Any, heads: Sequence[object], callbacks: Sequence[Callback]
) -> None:
    """Reject arguments that only the training of heads of images has."""
    given = []
    if table is not None:
        given.append("table")
    if heads:
        given.append("heads")
    if callbacks:
        given.append("callbacks")
    if given:
        learns = TRAININGS.of_config(config).learns
        raise ConfigError(f"{given[0]} has no effect on a training of {learns}; leave it out")


def _function_named(path: str) -> Callable[..., Any]:
    """A function of the training of a detector or of objects, in a package that imports this one."""
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)  # noqa: TID251 - of this package
    return function
