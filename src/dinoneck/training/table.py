"""Step 2 of a run: the table of its images, as a DataFrame of :func:`dinoneck.data.read_table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dinoneck.data.cells import FOLD, GROUP, IMAGES, LABELS, OWN_COLUMNS, is_missing
from dinoneck.data.pasture import Pasture
from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.config import TrainConfig

MAPS = ("dense", "segmentation")


def table_of(config: TrainConfig, frame: Any = None) -> Any:
    """Return the table that a config describes.

    Args:
        config: the run.
        frame: a pandas DataFrame in the place of ``data.csv``; one of :func:`dinoneck.data.read_table` as it is, with
            the columns that the config names.

    Raises:
        ConfigError: if the config names no data, or what belongs to another kind of data.
        DataError: if the table or the folders cannot be used.
    """
    data, folds = config.data, config.folds
    if data.boxes is not None:
        raise ConfigError("data.boxes names boxes; detectors are trained with dinoneck.detection.train_detector")
    if frame is not None and data.csv is not None:
        raise ConfigError(f"data.csv is {data.csv!r} and a table is given; leave one of them out")
    if data.csv is None and frame is None:
        return _without_csv(config)
    targets, auxiliary = _named(config)
    if IMAGES in getattr(frame, "columns", ()):
        return _selected(config, frame, targets, auxiliary)
    from dinoneck.data.tables import read_table

    reads = data.store is None or data.labels is not None or data.images is not None
    return read_table(
        data.csv if frame is None else frame,
        (data.images or Path(data.csv or ".").parent) if reads else None,
        targets,
        auxiliary=auxiliary,
        group=folds.group,
        fold_column=folds.column,
        image_column=data.image_column or "image",
        labels=data.labels,
        classes={
            c: () for k, task in config.tasks.items() if task.kind == "classification" for c in task.columns or (k,)
        },
    )


def target_columns(config: TrainConfig, table: Any) -> tuple[list[str], list[str]]:
    """Return the columns of a table that are scored as targets, and those that only help training."""
    helping = _named(config)[1]
    columns = [name for name in table.columns if name not in OWN_COLUMNS]
    return [name for name in columns if name not in helping], [name for name in columns if name in helping]


def class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the class names of a column; none for numbers."""
    return tuple(table[column].cat.categories) if hasattr(table[column], "cat") else ()


def labels_of(table: Any) -> list[Any] | None:
    """Return the dense label of every image, None where it is unknown; None = the table has none."""
    return [None if is_missing(label) else label for label in table[LABELS]] if LABELS in table else None


def groups_of(table: Any) -> list[str] | None:
    """Return the group of every image; None = every image is its own."""
    return list(table[GROUP]) if GROUP in table else None


def _named(config: TrainConfig) -> tuple[list[str], list[str]]:
    """The columns that the config names as targets, and as auxiliary ones."""
    own = {name: task for name, task in config.tasks.items() if task.kind not in MAPS}
    columns = [(column, task.auxiliary) for name, task in own.items() for column in task.columns or (name,)]
    helping = dict.fromkeys((*config.data.aux_targets, *(column for column, auxiliary in columns if auxiliary)))
    targets = dict.fromkeys((*config.data.targets, *(column for column, auxiliary in columns if not auxiliary)))
    return [name for name in targets if name not in helping], list(helping)


def _selected(config: TrainConfig, table: Any, targets: list[str], auxiliary: list[str]) -> Any:
    """The columns of a table that was read already that the config names; all where it names no targets."""
    named = [*targets, *auxiliary, *(FOLD for _ in [config.folds.column] if _ is not None)]
    named += [GROUP] if config.folds.group else []
    for name in named:
        if name not in table:
            raise ConfigError(
                f"the config names the column {name!r}, and the given table has {', '.join(map(str, table.columns))}."
                f"{did_you_mean(name, map(str, table.columns))}"
            )
    if not config.data.targets:
        return table
    dropped = [name for name in table.columns if name not in (*OWN_COLUMNS, *targets, *auxiliary)]
    return table.drop(columns=dropped)


def _without_csv(config: TrainConfig) -> Any:
    """The table of folders, or of drawn images, where no CSV is named."""
    data, folds = config.data, config.folds
    named: dict[str, Any] = {"targets": data.targets, "aux_targets": data.aux_targets, "minimum": data.minimum}
    named |= {"group": folds.group, "fold_column": folds.column}
    if data.images is None:
        named |= {"labels": data.labels, "store": data.store, "classes": data.classes}
    if given := [name for name, value in named.items() if value not in (None, ())]:
        raise ConfigError(f"{', '.join(given)}: these describe a table; name it with data.csv (--csv)")
    if data.images is None:
        return Pasture(seed=0).table(range(data.pasture))
    from dinoneck.data.tables import read_folders, read_masks

    return read_folders(data.images) if data.labels is None else read_masks(data.images, data.labels)
