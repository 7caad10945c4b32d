"""A training run in a YAML file: the keys of the design sources -> one frozen dataclass of plain values."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dinoneck.errors import ConfigError
from dinoneck.flat_yaml import read_flat_yaml
from dinoneck.training.config_keys import FPN_KEYS, IGNORED, KEYS, RECIPE

logger = logging.getLogger(__name__)

_FLAGS = "the command line"


@dataclass(frozen=True)
class TrainingConfig:
    """One training run in plain values; None = not said, so that what runs it decides.

    Attributes:
        name: of the run, for the report.
        seed: of the split, the first weights and the order of samples.
        backbone: name for :func:`dinoneck.load_backbone`.
        backbone_source: library whose model runs, ``timm`` or ``transformers``.
        backbone_file: official weights on disk.
        backbone_seed: which random weights, where ``pretrained`` is off.
        pretrained: published weights; off = seeded random ones.
        layers: backbone blocks whose tokens the head reads.
        embed_dim: width that the backbone must have.
        num_patches: patches that every image must have.
        csv: the table.
        photos: the folder that its file names are relative to; None = the table's.
        image_column: with the file names.
        targets: columns (CSIRO layout: target names) to predict.
        aux_targets: columns to predict that only help; their loss counts ``aux_weight``.
        state_column: with the state, a class to predict that only helps.
        height_column: with the sward's height in cm, likewise.
        group_columns: rows of equal values stay in one fold.
        label_column: with file names of class masks.
        classes: names of their classes.
        unit: of the targets.
        minimum: the smallest prediction.
        image_size: (height, width) px of the prepared photos.
        fit: how photos come to that size.
        interpolation: how they are resampled.
        policy: what to do where the patch does not divide a photo.
        store: folder of a feature store to train from; None = photos are read.
        patterns: how many of the store's first patterns training draws from; None = all.
        head: ``patch_mean``, ``fpn``, ``cls_gating`` or ``dense``.
        hidden_dim: hidden units of the head, channels of a pyramid.
        dropout: of the ``cls_gating`` head.
        gate: its mode, ``mlp``, ``query`` or ``resized``.
        activation: of every value, in natural units; None = linear answers in z-scores (``cls_gating`` on the CSIRO
            layout: softplus).
        fpn: keys ``model.*`` and ``fpn.*`` of the FPN design source, see :func:`dinoneck.training.read_fpn_yaml`.
        beta: of the smooth L1 loss; None = squared errors.
        main_weights: one per target.
        aux_weight: of every auxiliary target.
        state_weight: of the state.
        height_weight: of the height.
        weighting: ``fixed``, or ``uw`` for uncertainty weighting.
        epochs: passes over the training photos.
        batch_size: photos per step.
        lr: peak learning rate.
        folds: of the cross-validation.
        fold: the only one to train; None = all.
        device: such as ``cuda``.
        tta: views at prediction, ``none``, ``flip4`` or ``d6``.
        recipe: fields of :class:`dinoneck.training.Recipe` that are said; the others keep its defaults.
    """

    name: str | None = None
    seed: int = 42
    backbone: str | None = None
    backbone_source: str | None = None
    backbone_file: str | None = None
    backbone_seed: int | None = None
    pretrained: bool = True
    layers: tuple[int, ...] | None = None
    embed_dim: int | None = None
    num_patches: int | None = None
    csv: str | None = None
    photos: str | None = None
    image_column: str = "image"
    targets: tuple[str, ...] | None = None
    aux_targets: tuple[str, ...] | None = None
    state_column: str = "State"
    height_column: str = "Height_Ave_cm"
    group_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    unit: str | None = None
    minimum: float | None = None
    image_size: tuple[int, int] | None = None
    fit: str | None = None
    interpolation: str | None = None
    policy: str | None = None
    store: str | None = None
    patterns: int | None = None
    head: str = "cls_gating"
    hidden_dim: int | None = None
    dropout: float | None = None
    gate: str | None = None
    activation: str | None = None
    fpn: Mapping[str, Any] = field(default_factory=dict)
    beta: float | None = None
    main_weights: tuple[float, ...] | None = None
    aux_weight: float | None = None
    state_weight: float | None = None
    height_weight: float | None = None
    weighting: str = "fixed"
    epochs: int = 200
    batch_size: int = 32
    lr: float = 1e-4
    folds: int = 5
    fold: int | None = None
    device: str | None = None
    tta: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: str | os.PathLike[str], flags: Mapping[str, Any] | None = None) -> TrainingConfig:
    r"""Read a training file.

    The keys are those of the CLS-gating design source (``backbone``, ``dataset``, ``head``, ``loss``, ``trainer``,
    ``optimization``, ``augmentation``, ``inference``), nested or dotted; those of the FPN design source
    (``model.head``, ``model.backbone_layers``, ``fpn``) describe the head in the place of ``head``. A section
    ``recipe`` takes every field of :class:`dinoneck.training.Recipe` by name. Paths are relative to the working
    folder. Torch is not imported.

    Args:
        path: the file.
        flags: fields of :class:`TrainingConfig`, or ``recipe.NAME``, which win over the file.

    Raises:
        ConfigError: if the file cannot be read, a key is unknown or stands twice, a value is of another kind than
            expected, or values contradict each other.

    Examples:
        >>> from pathlib import Path
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "run.yaml")
        ...     _ = path.write_text("trainer: {num_epochs: 20}\noptimization: {lr: 1e-4, weight_decay: 0}\n")
        ...     config = read_config(path, {"epochs": 3})
        >>> config.epochs, config.lr, config.recipe["weight_decay"], config.batch_size
        (3, 0.0001, 0.0, 32)
    """
    said: dict[str, Any] = {}
    by: dict[str, str] = {}
    given = read_flat_yaml(path, (*KEYS, *FPN_KEYS, *IGNORED))
    for key, value in given.items():
        if key in IGNORED:
            logger.info("%s: %s is %r; %s", path, key, value, IGNORED[key])
            continue
        name, kind = KEYS[key] if key in KEYS else (key, FPN_KEYS[key])
        if value is None and not kind.nullable:
            continue
        if name in by:
            raise ConfigError(f"{path}: {by[name]} and {key} say the same thing; keep one of them")
        said[name], by[name] = kind.read(f"{path}: {key}", value), key
    _check_head(path, given, by)
    fpn = {key: said.pop(key) for key in FPN_KEYS if key in said}
    return config_of({"fpn": fpn, **({"head": "fpn"} if fpn else {}), **said}, flags, str(path))


def config_of(said: Mapping[str, Any], flags: Mapping[str, Any] | None = None, where: str = _FLAGS) -> TrainingConfig:
    """Return the config of values that are read already: ``flags`` over ``said`` over the defaults.

    Raises:
        ConfigError: if the values contradict each other, or a flag is no field.
    """
    known = {item.name for item in fields(TrainingConfig)} - {"recipe"}
    known |= {f"recipe.{name}" for name in RECIPE} | {"mixup", "ema", "freeze"}
    merged = {**said, **(flags or {})}
    if unknown := [name for name in merged if name not in known]:
        raise ConfigError(f"{where}: {unknown[0]!r} is no field of TrainingConfig or recipe.*")
    if merged.pop("freeze", True) is False:
        raise ConfigError(
            f"{where}: backbone.freeze is False; a run from a file trains heads on a frozen backbone. To tune the "
            "backbone too, see Backbone.unfreeze_last, Backbone.add_lora and dinoneck.training.FreezeSchedule"
        )
    for name, switch in (("recipe.mixup_alpha", "mixup"), ("recipe.ema_decay", "ema")):
        if name in (flags or {}):
            merged[switch] = merged[name] is not None
    if merged.get("head") != "fpn":
        merged.pop("fpn", None)
    recipe = _mixing(merged, where)
    config = TrainingConfig(**merged, recipe=recipe)
    _check_together(config, where)
    return config


def _mixing(merged: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the recipe's fields out of the values, the switches of mixup and EMA worked in."""
    recipe = {name: merged.pop(f"recipe.{name}") for name in RECIPE if f"recipe.{name}" in merged}
    mixup, ema = merged.pop("mixup", None), merged.pop("ema", None)
    if mixup and recipe.get("mixup_alpha") is None:
        raise ConfigError(
            f"{where}: augmentation.mixup.enabled is true without an alpha; say augmentation.mixup.alpha (the design "
            "source says 1 in its text and 2.5 in its file, so there is no default)"
        )
    if mixup is False:
        recipe["mixup_alpha"] = None
    if ema is False:
        recipe["ema_decay"] = None
    if ema and recipe.get("ema_decay", 0) is None:
        raise ConfigError(f"{where}: optimization.use_ema is true and ema_decay is null; give a decay such as 0.997")
    return recipe


def _check_head(path: str | os.PathLike[str], given: Mapping[str, Any], by: Mapping[str, str]) -> None:
    """The head is described once: by ``head.*``, or by ``model.*`` and ``fpn.*``."""
    pyramid = next((key for key in given if key in FPN_KEYS), None)
    other = next((key for name in ("head", "hidden_dim", "dropout", "gate") if (key := by.get(name))), None)
    if pyramid and other:
        raise ConfigError(f"{path}: {other} and {pyramid} both describe the head; keep head.* or model.* and fpn.*")


def _check_together(config: TrainingConfig, where: str) -> None:
    if config.fold is not None and config.fold >= config.folds:
        raise ConfigError(
            f"{where}: fold is {config.fold} and there are {config.folds} folds; expected 0 ... {config.folds - 1}, or "
            "null for all"
        )
    if config.main_weights and config.targets and len(config.main_weights) != len(config.targets):
        raise ConfigError(
            f"{where}: loss.main_weights has {len(config.main_weights)} numbers for {len(config.targets)} targets "
            f"({', '.join(config.targets)}); give one for each"
        )
    if both := set(config.targets or ()) & set(config.aux_targets or ()):
        raise ConfigError(f"{where}: {min(both)!r} is among the targets and among the auxiliary ones; name it once")
    if (config.label_column is None) != (config.classes is None):
        raise ConfigError(f"{where}: dataset.label_col names the masks and dataset.classes their classes; give both")
