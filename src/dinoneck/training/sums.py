"""Parts and wholes among the columns of a table, which contradict each other where their units differ."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinoneck.errors import DataError, counted
from dinoneck.training.table import column_numbers

# of a whole: parts are weighed and rounded one by one
_TOLERANCE = 0.05
# of the sum of shares, each of which is rounded to two digits
_ROUNDING = 0.02
# a few rows may have one sum by chance
_FEWEST_ROWS = 5

logger = logging.getLogger(__name__)
_Floats = np.ndarray[Any, np.dtype[np.float64]]


def check_sum(composition: str, whole: str, parts: Sequence[str], table: Any) -> None:
    """Compare a column with the sum of others, which a composition says that it is.

    Args:
        composition: its name.
        whole: the column of the sum.
        parts: the columns that are added up.
        table: with these columns; rows in which one is missing are left out.

    Raises:
        DataError: if most rows have another sum. Of fewer a warning counts them.
    """
    total = column_numbers(table, whole)
    added = np.sum([column_numbers(table, part) for part in parts], axis=0)
    is_known = np.isfinite(total) & np.isfinite(added)
    if not is_known.any():
        return
    usual_total = float(np.median(total[is_known]))
    usual_sum = float(np.median(added[is_known]))
    tolerance = _TOLERANCE * np.maximum(np.abs(total), abs(usual_total))
    is_other = is_known & (np.abs(added - total) > tolerance)
    num_other = int(is_other.sum())
    if num_other == 0:
        return
    terms = " + ".join(parts)
    if 2 * num_other > is_known.sum():
        raise DataError(
            f"composition {composition!r} says that {whole} is {terms}, and they differ in "
            f"{num_other} of {counted(int(is_known.sum()), 'image')}: the medians are "
            f"{usual_total:.4g} and {usual_sum:.4g}; expected columns in one unit that add up. Of "
            "percent or shares write their part of the whole, add the column of a part that is "
            "missing, or leave the composition out"
        )
    row = int(np.argmax(is_other))
    logger.warning(
        "composition %r: %s is not %s in %s, such as %r (%.4g and %.4g); correct the rows, or leave "
        "their cells empty",
        composition,
        whole,
        terms,
        counted(num_other, "image"),
        table.index[row],
        total[row],
        added[row],
    )


def warn_of_sums_of_shares(task: str, columns: Sequence[str], values: _Floats) -> None:
    """Name shares that all add up to one number that is not 1, or to 1 and to 100.

    Masses and counts have any sum, of which their shares are taken without a word.

    Args:
        task: the name of the ratio.
        columns: its columns.
        values: (n, columns), not negative; NaN where unknown.
    """
    sums = values.sum(axis=1)
    sums = sums[np.isfinite(sums) & (sums > 0)]
    if len(sums) < _FEWEST_ROWS:
        return
    terms = " + ".join(columns)
    is_one = _are_about(sums, 1.0)
    is_hundred = _are_about(sums, 100.0)
    if is_one.any() and is_hundred.any() and (is_one | is_hundred).all():
        logger.warning(
            "task %r: %s is 1 in %s and 100 in %s; each is read as shares of its sum. Write shares, or "
            "percent, in all rows",
            task,
            terms,
            counted(int(is_one.sum()), "image"),
            counted(int(is_hundred.sum()), "image"),
        )
    usual = float(np.median(sums))
    are_shares = np.nanmax(values) <= 1
    if are_shares and _are_about(sums, usual).all() and not is_one.all():
        logger.warning(
            "task %r: %s is about %.4g in all images, and is read as 1: a share of 0.2 becomes %.4g. "
            "If a part is missing, add its column; parts that overlap are no ratio, but a target each",
            task,
            terms,
            usual,
            0.2 / usual,
        )


def _are_about(sums: _Floats, value: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.isclose(sums, value, rtol=_ROUNDING, atol=0.0)
