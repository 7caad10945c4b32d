"""What training takes of a table: arrays by role, made of a DataFrame of :func:`dinoneck.data.read_table`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dinoneck.data.cells import FOLD, GROUP, IMAGES, LABELS, OWN_COLUMNS, is_missing, same_labels
from dinoneck.data.decoding import ImageInput
from dinoneck.errors import DataError
from dinoneck.training.config import TrainConfig
from dinoneck.training.targets import as_numbers

MISSING_CLASS = -1
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Table:
    """Images, their target values and the groups that stay in one fold.

    Attributes:
        ids: one name per image, used once.
        images: one image per id: a path or an image in memory.
        targets: target name -> n values: float64 numbers in original units, NaN = missing; or int64 class indices, -1 =
            missing.
        groups: one group label per image; None = every image is its own group. Where all are numbers, they are compared
            as numbers.
        weights: target name -> its weight in the weighted R²; equal when empty.
        units: target name -> unit, for people.
        minimum: the smallest value a prediction may take; None = any.
        labels: one dense label per image, a path or an array, see :class:`dinoneck.data.DenseLabels`, or None where it
            is unknown; None = none.
        auxiliary: task name -> n values that only help training and are not scored, given as ``targets`` are.
        classes: target or auxiliary name -> its class names; a name that is missing here has numbers.
        folds: the name of each image's fold, compared as groups are; None = folds are drawn.
        sums: target name -> the targets that it is the sum of.
    """

    ids: tuple[str, ...]
    images: tuple[ImageInput, ...]
    targets: Mapping[str, Values]
    groups: tuple[str, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    minimum: float | None = None
    labels: tuple[ImageInput | None, ...] | None = None
    auxiliary: Mapping[str, Values] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: tuple[str, ...] | None = None
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_name in ("targets", "auxiliary"):
            columns = {name: self._checked(name, values) for name, values in getattr(self, field_name).items()}
            object.__setattr__(self, field_name, columns)
        for field_name in ("images", "groups", "labels", "folds"):
            if (column := getattr(self, field_name)) and len(column) != len(self.ids):
                raise DataError(
                    f"Table({field_name}=) has {len(column)} entries for {len(self.ids)} ids; expected one each"
                )
        for field_name in ("groups", "folds"):
            if column := getattr(self, field_name):
                object.__setattr__(self, field_name, tuple(same_labels(column, self.ids, field_name[:-1])))

    def __len__(self) -> int:
        return len(self.ids)

    def _checked(self, name: str, values: Any) -> Values:
        """A column as float64, or int64 where it has class names."""
        names = self.classes.get(name)
        found: Values = (
            as_numbers(f"Table: {name!r}", values, self.ids) if names is None else np.asarray(values, np.int64)
        )
        if found.shape != (len(self.ids),):
            raise DataError(f"Table: {name!r} has the shape {found.shape}; expected ({len(self.ids)},), one per id")
        if names is not None and len(found) and not MISSING_CLASS <= found.min() <= found.max() < len(names):
            raise DataError(
                f"Table: {name!r} holds the classes {found.min()} ... {found.max()}; expected indices of its "
                f"{len(names)} names, or {MISSING_CLASS} where missing"
            )
        return found

    def take(self, rows: Iterable[int]) -> Table:
        """Return the table of these rows."""
        places = list(rows)
        per_image = {name: getattr(self, name) for name in ("ids", "images", "groups", "labels", "folds")}
        chosen: dict[str, Any] = {name: every and tuple(every[i] for i in places) for name, every in per_image.items()}
        return replace(
            self,
            **chosen,
            targets={name: values[places] for name, values in self.targets.items()},
            auxiliary={name: values[places] for name, values in self.auxiliary.items()},
        )


def is_table(source: Any) -> bool:
    """Whether it is a :class:`Table`, or a DataFrame of :func:`dinoneck.data.read_table`."""
    return isinstance(source, Table) or (hasattr(source, "index") and IMAGES in getattr(source, "columns", ()))


def table_of(frame: Any, config: TrainConfig | None = None) -> Table:
    """Return what training takes of a DataFrame of :func:`dinoneck.data.read_table`; a :class:`Table` as it is.

    Args:
        frame: the DataFrame; ``frame.attrs`` may hold the targets' ``weights``, ``units``, ``sums`` and ``minimum``.
        config: states which columns are auxiliary, the minimum and the unit.
    """
    if isinstance(frame, Table):
        return frame
    config = TrainConfig() if config is None else config
    names = [name for name in frame.columns if name not in OWN_COLUMNS]
    classes = {name: tuple(frame[name].cat.categories) for name in names if hasattr(frame[name], "cat")}
    values = {name: np.asarray(frame[name].cat.codes if name in classes else frame[name]) for name in names}
    helping = {*config.data.aux_targets}.union(
        *(task.columns or (name,) for name, task in config.tasks.items() if task.auxiliary)
    )
    targets = {name: own for name, own in values.items() if name not in helping}
    known = frame.attrs
    units = dict.fromkeys((name for name in names if name not in classes), config.data.unit) if config.data.unit else {}
    weights, sums = known.get("weights", {}), known.get("sums", {})
    group, fold, labels = (tuple(frame[name]) if name in frame else None for name in (GROUP, FOLD, LABELS))
    return Table(
        tuple(frame.index),
        tuple(frame[IMAGES]),
        targets,
        group,
        {name: weights[name] for name in targets} if weights.keys() >= targets.keys() else {},
        {**{name: unit for name, unit in known.get("units", {}).items() if name in names}, **units},
        known.get("minimum") if config.data.minimum is None else config.data.minimum,
        None if labels is None else tuple(None if is_missing(label) else label for label in labels),
        {name: own for name, own in values.items() if name in helping},
        classes,
        fold,
        {name: parts for name, parts in sums.items() if {*targets}.issuperset((name, *parts))},
    )
