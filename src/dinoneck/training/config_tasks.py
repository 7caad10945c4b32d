"""What a training config says about data: the table of photos it names, and the tasks of heads trained on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from dinoneck.data.auxiliary import STATES, read_classes, read_numbers
from dinoneck.data.tables import (
    CSIRO_GROUP,
    CSIRO_WEIGHTS,
    PhotoTable,
    csv_header,
    is_csiro,
    read_column,
    read_csiro,
    read_csv,
)
from dinoneck.errors import ConfigError, DataError, did_you_mean
from dinoneck.tasks import Activation, TargetTransform, Task
from dinoneck.training.config_file import TrainingConfig

logger = logging.getLogger(__name__)

SOURCE_TARGETS = {"Dry_Total_g": 1.0, "GDM_g": 0.6, "Dry_Green_g": 0.3}
"""Main targets of the CLS-gating design source and their weights in its loss."""
SOURCE_AUXILIARY = ("Dry_Dead_g", "Dry_Clover_g")
AUXILIARY_WEIGHT = 0.1


def read_table(config: TrainingConfig) -> PhotoTable:
    """Read the table that a config names; photos must exist unless tokens come from a store.

    Raises:
        ConfigError: if it names no table or no targets, or names targets that its layout does not have.
        DataError: if the table cannot be used; a column that is absent is told with those present.
    """
    if config.csv is None:
        raise ConfigError("which table? Say dataset.csv in the file, or --csv")
    reads = config.store is None or config.label_column is not None
    photos = (config.photos or Path(config.csv).parent) if reads else None
    if is_csiro(config.csv):
        return _csiro(config, config.csv, photos)
    if not config.targets:
        raise ConfigError("which columns are to be predicted? Name them with --targets, or dataset.target_cols")
    table = read_csv(
        config.csv,
        photos,
        config.targets,
        config.group_columns,
        config.image_column,
        config.minimum,
        config.label_column,
    )
    helping = {}
    for name in config.aux_targets or ():
        values = read_numbers(config.csv, table.ids, name, config.image_column, required=True)
        if values is not None:
            helping[name] = values
    sward = _sward(config, table, config.image_column, wanted=False)
    units = dict.fromkeys([*table.targets, *helping], config.unit or "")
    return replace(table, units=units, auxiliary={**helping, **sward})


def _csiro(config: TrainingConfig, csv: str, photos: Any) -> PhotoTable:
    if config.label_column or config.minimum is not None:
        raise ConfigError("the CSIRO layout has its own minimum, 0, and no masks; leave minimum and labels out")
    names = [*_main(config, csiro=True), *_helping(config, csiro=True)]
    for name in names:
        if name not in CSIRO_WEIGHTS:
            raise ConfigError(
                f"the CSIRO layout has no target {name!r}.{did_you_mean(name, CSIRO_WEIGHTS)} It has: "
                f"{', '.join(CSIRO_WEIGHTS)}"
            )
    table = read_csiro(csv, photos, config.group_columns or _full_groups(csv))
    return replace(
        table,
        targets={name: values for name, values in table.targets.items() if name in names},
        weights={name: weight for name, weight in CSIRO_WEIGHTS.items() if name in names},
        auxiliary=_sward(config, table, "image_path", wanted=config.head == "cls_gating"),
    )


def _full_groups(csv: str) -> tuple[str, ...]:
    """The layout's group columns that say something in every row: fewer columns make larger groups, never torn ones."""
    there = [column for column in CSIRO_GROUP if column in csv_header(Path(csv))]
    full = tuple(column for column in there if all(text.strip() for text in read_column(csv, column)))
    if full and full != CSIRO_GROUP:
        lacking = ", ".join(column for column in CSIRO_GROUP if column not in full)
        logger.warning("%s: %s is missing or has gaps; photos are grouped by %s alone", csv, lacking, full[0])
    return full or CSIRO_GROUP


def _sward(config: TrainingConfig, table: PhotoTable, image_column: str, *, wanted: bool) -> dict[str, Any]:
    """The state and the height, where the config gives them a weight or the design source has them."""
    found: dict[str, Any] = {}
    csv, ids = str(config.csv), table.ids
    said = {config.state_column: config.state_weight, config.height_column: config.height_weight}
    for name, weight in said.items():
        if weight == 0 or (weight is None and not wanted):
            continue
        if name in table.targets:
            raise DataError(f"{name!r} is a target and an auxiliary column; give its auxiliary weight as 0")
        if name == config.state_column:
            values: Any = read_classes(csv, ids, name, STATES, image_column)
        else:
            values = read_numbers(csv, ids, name, image_column)
        if values is not None:
            found[name] = values
    return found


def make_tasks(config: TrainingConfig, table: PhotoTable, rows: Sequence[int] | Any) -> list[Task]:
    """Return the tasks of a head: the table's targets, then what only helps.

    Heads of type ``cls_gating`` on the CSIRO layout have the design source's: softplus answers in grams under the
    smooth L1 loss, weights 1.0, 0.6, 0.3 for total, GDM and green, and 0.1 for the dead and clover (together), the
    state and the height. All others have z-scores fitted on ``rows`` unless an activation is said, and squared errors
    unless ``loss.beta`` is. Heads of type ``dense`` answer per cell; the mean counts.

    Args:
        config: the run.
        table: what :func:`read_table` read for it.
        rows: the training rows.
    """
    grams = config.head == "cls_gating" and bool(table.weights)
    activation = cast("Activation | None", config.activation or ("softplus" if grams else None))
    weights = _weights(config, table)
    tasks = []
    for name, values in {**table.targets, **table.auxiliary}.items():
        weight: Any = weights[name]
        if config.label_column and config.main_weights and weight == 1.0 and name in table.targets:
            weight = (1.0,)  # given, not the default: CellTargets.share_task keeps it
        if values.dtype.kind == "i":
            tasks.append(Task(name, dim=len(STATES), kind="classification", weight=weight, labels=STATES))
            continue
        unit = "cm" if name == config.height_column and name in table.auxiliary else table.units.get(name, "")
        minimum = table.minimum if name in table.targets else None
        task = Task(name, unit=unit, minimum=minimum, weight=weight)
        if grams or config.beta is not None:
            task = replace(task, loss="smooth_l1", beta=config.beta or 1.0)
        if config.head == "dense":
            task = replace(task, kind="density", aggregate="mean")
        if activation is not None:
            task = replace(task, activation=activation)
        else:
            task = replace(task, transform=TargetTransform().fit(values[rows]))
        tasks.append(task)
    return tasks


def _main(config: TrainingConfig, *, csiro: bool) -> tuple[str, ...]:
    """The targets: those said; else the layout's, all of which are main ones but for the design source's head."""
    if config.targets:
        return config.targets
    return tuple(SOURCE_TARGETS if csiro and config.head == "cls_gating" else CSIRO_WEIGHTS)


def _helping(config: TrainingConfig, *, csiro: bool) -> tuple[str, ...]:
    if config.aux_targets is not None:
        return config.aux_targets
    return SOURCE_AUXILIARY if csiro and config.head == "cls_gating" and not config.targets else ()


def _weights(config: TrainingConfig, table: PhotoTable) -> dict[str, float]:
    """The weight of every task in the loss; that of the auxiliary targets is shared among them."""
    csiro = bool(table.weights)
    main = config.targets or (_main(config, csiro=True) if csiro else tuple(table.targets))
    if config.main_weights and len(config.main_weights) != len(main):
        raise ConfigError(
            f"loss.main_weights has {len(config.main_weights)} numbers for {len(main)} targets ({', '.join(main)})"
        )
    given = config.main_weights or [
        SOURCE_TARGETS.get(name, 1.0) if csiro and config.head == "cls_gating" else 1.0 for name in main
    ]
    helping = [name for name in _helping(config, csiro=csiro) if name in {**table.targets, **table.auxiliary}]
    shared = _or(config.aux_weight) / max(len(helping), 1)
    return {
        **dict(zip(main, given, strict=True)),
        **dict.fromkeys(helping, shared),
        config.state_column: _or(config.state_weight),
        config.height_column: _or(config.height_weight),
    }


def _or(weight: float | None) -> float:
    return AUXILIARY_WEIGHT if weight is None else weight
