"""What folds need: images, groups, a number that is there, a column; neither numpy nor torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from dinoneck.errors import ConfigError, DataError
from dinoneck.text import counted


def check_enough_groups(num_groups: int, num_folds: int) -> None:
    """Raise a DataError if there are fewer groups than folds."""
    if num_groups < num_folds:
        raise DataError(
            f"{counted(num_groups, 'group')} cannot fill {num_folds} folds; use fewer folds (--folds) or a finer "
            "group column"
        )


def check_enough_images(num_images: int, num_folds: int) -> None:
    """Raise a DataError if there are fewer images than folds, where no column names groups."""
    if num_images < num_folds:
        raise DataError(
            f"{counted(num_images, 'image')} cannot fill {num_folds} folds; use fewer folds (--folds)"
        )


def check_fold_number(only: int | None, num_folds: int) -> None:
    """Raise a ConfigError if no fold has the number that is to be trained alone; None = all are."""
    if only is not None and only >= num_folds:
        raise ConfigError(
            f"fold is {only} and there are {num_folds} folds; expected 0 ... {num_folds - 1}"
        )


def check_stratify(column: str | None, targets: Sequence[str]) -> None:
    """Raise a ConfigError if the column that is spread evenly over the folds is no target; None = there is none."""
    if column is not None and column not in targets:
        raise ConfigError(
            f"folds.stratify is {column!r}; expected one of the targets {', '.join(targets)}"
        )
