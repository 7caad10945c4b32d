"""The samples of a run: ids, targets and weights of cells, matched by id once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.data.arrays import as_array
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of
from dinoneck.training.ids import IdMatcher
from dinoneck.training.optim import Mixup

_Array = np.ndarray[Any, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Targets:
    """Targets of some samples in normalised units, as the loss compares them.

    Attributes:
        values: task -> (n, ...) in float32, NaN = missing, or in int64, -1 = missing.
        cell_weights: dense task -> (n, rows, cols) float32, how much every cell counts; a task that
            is not named here has cells that count alike.
    """

    values: Tensors
    cell_weights: Tensors = field(default_factory=dict)

    def take(self, rows: Sequence[int] | slice) -> Targets:
        """Return the targets of some rows."""
        index = rows if isinstance(rows, slice) else [*rows]
        return Targets(
            values={name: x[index] for name, x in self.values.items()},
            cell_weights={name: x[index] for name, x in self.cell_weights.items()},
        )

    def with_maps(self, maps: Collection[str], change: Callable[[Tensor], Tensor]) -> Targets:
        """Return the targets with changed maps.

        Args:
            maps: names of the tasks whose values are maps.
            change: takes maps (B, ..., rows, cols); the values of these tasks, and all weights of
                cells.
        """
        values = {}
        for name, x in self.values.items():
            values[name] = change(x) if name in maps else x
        cell_weights = {name: change(x) for name, x in self.cell_weights.items()}
        return Targets(values, cell_weights)

    def of_partners(self, mixup: Mixup, unchanged: Collection[str] = ()) -> Targets:
        """Return for every sample the targets of its partner; those of the tasks in ``unchanged`` stay."""
        values = {}
        for name, x in self.values.items():
            values[name] = x if name in unchanged else mixup.of_partners(x)
        cell_weights = {}
        for name, x in self.cell_weights.items():
            cell_weights[name] = x if name in unchanged else mixup.of_partners(x)
        return Targets(values, cell_weights)


@dataclass(frozen=True)
class Samples:
    """The samples of a run; the first ``train_count`` of them are trained on, the others validate.

    Attributes:
        ids: of the samples, n, as the token source spells them.
        train_count: how many are training samples.
        targets: of the samples.
    """

    ids: Sequence[str]
    train_count: int
    targets: Targets


@dataclass(frozen=True)
class MatchedSamples:
    """Samples whose targets are matched by id, in original units.

    Attributes:
        train_ids: as the token source spells them.
        valid_ids: of the validation samples.
        values: column -> (n, ...), in the order of :attr:`ids`; of objects where words or None are
            among them.
        cell_weights: dense task -> (n, rows, cols), in this order.
    """

    train_ids: list[str]
    valid_ids: list[str]
    values: dict[str, _Array]
    cell_weights: dict[str, _Array]

    @property
    def ids(self) -> list[str]:
        """The training ids, then the validation ids."""
        return [*self.train_ids, *self.valid_ids]


def match_samples(
    source_ids: Sequence[str],
    targets: Any,
    weights: Any,
    labels: Mapping[str, Sequence[str]],
    *,
    ids: Iterable[str] | None = None,
    val_ids: Iterable[str] | None = None,
    target_ids: Sequence[Any] | None = None,
) -> MatchedSamples:
    """Return the samples of a run with targets and weights of cells matched by id.

    Args:
        source_ids: all ids of the token source.
        targets: a DataFrame whose index holds the ids, or a mapping column -> ``{id: value}``, a
            Series, or values that ``target_ids`` gives the ids of.
        weights: as ``targets``; None = none.
        labels: column -> the words of its classes in order, empty where there are none, for the
            columns that are used.
        ids: training ids; None = all ids of the columns in ascending order, without ``val_ids``.
        val_ids: validation ids; None = none.
        target_ids: the ids of values that carry none.

    Raises:
        DataError: for ids without a row or without tokens, for several rows of one id, and for
            values without ids.
    """
    matcher = IdMatcher(source_ids)
    columns = matcher.columns(targets, target_ids, labels)
    weight_columns = {}
    if weights is not None:
        weight_columns = matcher.columns(weights, target_ids)
    # the order of a set differs between processes
    if isinstance(ids, set | frozenset):
        ids = sorted(ids)
    if isinstance(val_ids, set | frozenset):
        val_ids = sorted(val_ids)
    valid_ids = [] if val_ids is None else matcher.find_all(val_ids)
    if ids is None:
        ids_with_values: set[Any] = set()
        for column in columns.values():
            ids_with_values.update(column)
        train_ids = sorted(set(matcher.find_all(ids_with_values)) - set(valid_ids))
    else:
        train_ids = matcher.find_all(ids)
    _check_split(train_ids, valid_ids, has_ids_argument=ids is not None)
    sample_ids = [*train_ids, *valid_ids]
    return MatchedSamples(
        train_ids=train_ids,
        valid_ids=valid_ids,
        values=_stack_columns(columns, sample_ids),
        cell_weights=_stack_columns(weight_columns, sample_ids),
    )


def _check_split(
    train_ids: Sequence[str], valid_ids: Sequence[str], *, has_ids_argument: bool
) -> None:
    """Check that there are training ids, and that none of them validates."""
    in_both = {*train_ids} & {*valid_ids}
    if in_both:
        raise DataError(
            f"{counted(len(in_both), 'id')} for training and for validation: "
            f"{some_of(map(repr, in_both), 3)}"
        )
    if train_ids:
        return
    if has_ids_argument:
        raise DataError("there are no training ids: ids= is empty; name some, or leave it out")
    if valid_ids:
        raise DataError(
            "there are no training ids: all ids of the targets are validation ids; leave some out "
            "of val_ids="
        )
    raise DataError("there are no training ids: the targets have no values; pass some")


def _stack_columns(
    columns: Mapping[str, Mapping[Any, Any]], ids: Sequence[str]
) -> dict[str, _Array]:
    """Return column -> the values of these ids (n, ...)."""
    return {name: _stack_column(name, column, ids) for name, column in columns.items()}


def _stack_column(name: str, column: Mapping[Any, Any], ids: Sequence[str]) -> _Array:
    """Return the values of these ids (n, ...); with words or None among them as objects."""
    missing = [repr(image_id) for image_id in ids if image_id not in column]
    if missing:
        raise DataError(
            f"{counted(len(missing), 'id')} without a row in {name!r}: {some_of(missing, 3)}. The "
            f"ids there are such as {some_of(map(repr, column), 3) or 'none'}; missing values are "
            "NaN, of classes -1"
        )
    what = f"the values of {name!r}"
    if any(isinstance(column[image_id], str) or is_none(column[image_id]) for image_id in ids):
        values: _Array = np.empty(len(ids), dtype=object)  # NumPy would make text of all of them
        for row, image_id in enumerate(ids):
            values[row] = column[image_id]
        return values
    try:
        return np.array([as_array(column[image_id], what) for image_id in ids])
    except DataError:  # names the values itself
        raise
    except ValueError as error:
        raise DataError(f"the values of {name!r} are no array: {error}") from error


def is_none(value: Any) -> bool:
    """Return whether this is None or pandas.NA, which NumPy has no number for."""
    return value is None or type(value).__name__ == "NAType"
