"""``train`` of any kind from Python: a table and keywords, nested values, a training file or a config.

The keywords are the names of the flags of ``dinoneck train``, which the classes of configs state.
"""

from __future__ import annotations

import inspect
import keyword
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean
from dinoneck.training.config import (
    TRAININGS,
    AnyConfig,
    TrainConfig,
    config_of,
    head_description,
    merged_values,
    stated_options,
)
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.entrance import run_training
from dinoneck.training.folder import Callback
from dinoneck.training.recipe import Config
from dinoneck.training.result import TrainingResult
from dinoneck.yaml_file import read_yaml

_WHERE = "train"  # what messages call the values of a call
_TRAINING_FILES = (".yaml", ".yml")


def train(
    config: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    table: Any = None,
    heads: Sequence[str | Mapping[str, Any]] = (),
    hidden_dim: int | None = None,
    with_linear: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainingResult:
    """Train heads of numbers, classes, masks or objects, or a detector, and write them with predictions and a report.

    The data decides which training it is, as in ``dinoneck train``: ``boxes=`` a detector,
    ``instances=`` or ``panoptic=`` heads of objects, other data heads of images. For a detector or
    objects the folder holds what :func:`dinoneck.detection.train_detector` or
    :func:`dinoneck.detection.train_instances` writes.

    For heads of images, ``heads/fold-K.safetensors`` and ``baselines/fold-K.safetensors`` are the
    head of a fold and its linear baseline; ``logs/fold-K.jsonl`` has a line per epoch.
    ``head.safetensors`` is what the run predicts with, of all folds as one ensemble.
    ``out_of_fold.csv`` has the held-out predictions. ``trained_on.csv`` lists the images with their
    hashes, and which folds were trained on each. ``data.txt`` and ``data.json`` have what was read,
    and ``data.jpg`` shows some of the images with their labels; they are written before the first
    image is encoded. ``report.json`` is written last. A fold is finished when its head is there: the
    same call after a kill or an error trains no finished fold
    again, and writes what it would have written.

    A run of heads of images predicts with the head if the config names one (``head.type``). Else it
    takes the best of head, linear baseline and their average by the overall score on held-out
    images, among those that have every output of the head. ``predict_with`` overrides the choice.
    On a finished run another ``predict_with`` writes ``head.safetensors`` and the report again, and
    trains nothing.

    Args:
        config: a table (a pandas DataFrame, or the name of its file), the folder of the images, a
            training file (``.yaml``), nested values as such a file holds them, or a config:
            :class:`TrainConfig`, :class:`TrainInstancesConfig` or :class:`TrainDetectorConfig`. None
            = keywords alone.
        out: the folder: a new or empty one, or that of an earlier run.
        table: a pandas DataFrame next to a config, in the place of ``data.csv``.
        heads: heads of images, by name or as ``{"type": NAME, ...}``, to compare on the same tokens
            and folds, each in a folder of its own.
        hidden_dim: width of the head, neck or pyramid.
        with_linear: predict with the average of head and linear baseline, as
            ``predict_with="average"`` does.
        overwrite: replace the results of an earlier run in ``out``; until the new report is written
            they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.
        callbacks: of heads of images: ``callback(epoch, row)`` after every epoch, see
            :func:`dinoneck.training.fit`.
        options: the flags of ``dinoneck train`` with ``_`` in the place of ``-``, such as
            ``targets=["crop"]``, ``backbone="dinov3_vits16"``, ``epochs=20`` and ``folds=3``; and
            the keys that stand in training files alone, such as ``tasks``. They replace values of
            ``config``. ``head`` takes a name, or a dict with the constructor's arguments.

    Returns:
        What ``report.json`` holds, a mapping with ``scores``, ``best``, ``table()`` and
        ``predictor()``. Of heads of images, ``scores`` is target -> method -> scores as by
        :mod:`dinoneck.training.scores`. The ``verdict`` compares the methods, ``choice`` holds the
        scores that choose between them, and ``predicts`` the one that predicts. Counts of images
        and groups, the config and what made the tokens follow. ``peak_memory_mb`` is in MiB: of
        torch on a GPU, else of this process, where the system tells it.

    Raises:
        TypeError: for an unknown keyword, with the nearest known one, or without ``out``.
        DataError: if the data cannot be used, ``out`` holds results and ``overwrite`` is off, or it
            holds other files than those of a run.
        ConfigError: if values contradict each other, or head, tasks and tokens do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other targets,
            or ``data.tta`` names views that the head does not take.
    """
    if out is None:
        raise TypeError("train() needs the argument 'out', the folder of the results")
    if _is_table(config):
        if table is not None:
            raise ConfigError("two tables are given, config and table; leave one of them out")
        table = config
        config = None
    if table is None and not options:
        _check_not_empty(config)
    described, stated = _config(config, _nested(options))
    if with_linear:
        described = _with_average(described)
    data_folder = None
    if table is None and isinstance(described, TrainConfig):
        described, data_folder = of_data_folder(described)
    report = run_training(
        described,
        out,
        table=table,
        data_folder=data_folder,
        heads=heads,
        hidden_dim=hidden_dim,
        overwrite=overwrite,
        resume=resume,
        callbacks=callbacks,
        stated=stated,
    )
    return TrainingResult(report, out)


def keys_of_keywords() -> dict[str, str]:
    """Return keyword of :func:`train` -> the key of training files that it sets, ``GROUP.KEY`` or a key alone."""
    keys: dict[str, str] = {}
    for training in TRAININGS.all:
        keys |= _keys_in(training.config)
    return keys


def _keys_in(config: type[Config], prefix: str = "") -> dict[str, str]:
    """The keywords of a class of configs, which are the names of its flags, and their keys."""
    keys: dict[str, str] = {}
    hints = get_type_hints(config, include_extras=True)
    for field in config.__struct_fields__:
        hint = hints[field]
        if isinstance(hint, type) and issubclass(hint, Config):
            keys |= _keys_in(hint, f"{prefix}{field}.")
            continue
        keys[_keyword_of(field, hint)] = f"{prefix}{field}"
    return keys


def _keyword_of(field: str, hint: Any) -> str:
    """The name of the flag of a field, or that of the field where it is a word of Python, such as ``import``."""
    for annotation in getattr(hint, "__metadata__", ()):
        flag = getattr(annotation, "name", None)  # arg(name="...")
        if flag:
            name: str = flag.replace("-", "_")
            return field if keyword.iskeyword(name) else name
    return field


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as nested values.

    Raises:
        TypeError: for an unknown keyword.
    """
    keys = keys_of_keywords()
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in keys:
            arguments = [*inspect.signature(train).parameters, *keys]
            raise TypeError(
                f"train() has no argument {name!r}.{did_you_mean(name, arguments)} Its keywords are the "
                "flags of 'dinoneck train --help', with _ in the place of -"
            )
        if name == "head" and isinstance(value, str):  # as the flag takes it
            value = head_description(value)
        group, _, key = keys[name].rpartition(".")
        if group:
            values.setdefault(group, {})[key] = value
        else:
            values[key] = value
    return values


def _is_table(config: Any) -> bool:
    """Whether a value is a DataFrame; pandas is not imported to find out."""
    return hasattr(config, "columns") and hasattr(config, "iloc")


def _check_not_empty(config: Any) -> None:
    """Raise ConfigError for nothing at all, which would train on generated images."""
    if config is None or (isinstance(config, Mapping) and not config):
        raise ConfigError(
            f"config is {config!r}, which names no data; name a table (data.csv) or images "
            "(data.images), both with what to learn (data.targets, data.labels, data.boxes, "
            "data.instances or data.panoptic), or data.pasture for generated images"
        )


def _config(config: Any, options: Mapping[str, Any]) -> tuple[AnyConfig, list[str]]:
    """The config that the first argument of :func:`train` and its keywords describe, and what they state.

    Returns:
        The config, and the names of the values of ``optim`` that are stated: a config is not asked,
        which has a value for each.
    """
    if isinstance(config, Config):
        TRAININGS.of_config(config)
        if not options:
            return cast("AnyConfig", config), []
        values = merged_values(config.to_dict(), options)
        return config_of(values, _WHERE), stated_options(options)
    where = _WHERE
    if config is None:
        values = {}
    elif isinstance(config, Mapping):
        values = dict(config)
    elif isinstance(config, str | os.PathLike):
        path = os.fspath(config)
        if Path(path).suffix.lower() in _TRAINING_FILES:
            values = read_yaml(path)
            where = path
        else:
            is_folder = Path(path).is_dir()
            values = {"data": {"images" if is_folder else "csv": path}}
    else:
        raise ConfigError(
            f"config is a {type(config).__name__}; expected a DataFrame, the name of a table, of a "
            "folder of images or of a training file, a dict, or a config such as TrainConfig"
        )
    values = merged_values(values, options)
    return config_of(values, where), stated_options(values)


def _with_average(config: AnyConfig) -> AnyConfig:
    """The config that predicts with the average of head and linear baseline."""
    if not isinstance(config, TrainConfig):
        learns = TRAININGS.of_config(config).learns
        raise ConfigError(f"with_linear has no effect on a training of {learns}; leave it out")
    return config.with_average()
