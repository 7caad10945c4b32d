"""Check that columns of a table add up: the parts to their whole, and shares to 1 or to 100."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinoneck.data.table import Table
from dinoneck.errors import DataError
from dinoneck.text import counted

# relative to the whole: parts are weighed and rounded one by one
_WHOLE_TOLERANCE = 0.05
# relative, of a sum of shares: each of them is rounded to two digits
_SHARES_TOLERANCE = 0.02
# in fewer rows all sums may be equal by chance
_MIN_ROWS = 5

logger = logging.getLogger(__name__)
_Floats = np.ndarray[Any, np.dtype[np.float64]]


def check_sum(composition: str, whole: str, parts: Sequence[str], table: Table) -> None:
    """Check that the parts of a composition add up to its whole.

    If up to half of the rows differ, a warning counts them.

    Args:
        composition: name of the composition.
        whole: the column of the sum.
        parts: the columns that are added up.
        table: a table with these columns. Rows with a missing value are skipped.

    Raises:
        DataError: if more than half of the rows differ.
    """
    total = table.numbers(whole)
    part_sum = np.sum([table.numbers(part) for part in parts], axis=0)
    is_known = np.isfinite(total) & np.isfinite(part_sum)
    if not is_known.any():
        return
    num_known = int(is_known.sum())
    median_total = float(np.median(total[is_known]))
    median_sum = float(np.median(part_sum[is_known]))
    tolerance = _WHOLE_TOLERANCE * np.maximum(np.abs(total), abs(median_total))
    differs = is_known & (np.abs(part_sum - total) > tolerance)
    num_differing = int(differs.sum())
    if num_differing == 0:
        return
    terms = " + ".join(parts)
    if 2 * num_differing > num_known:
        raise DataError(
            f"composition {composition!r} says that {whole} is {terms}, and they differ in "
            f"{num_differing} of {counted(num_known, 'image')}: the medians are "
            f"{median_total:.4g} and {median_sum:.4g}; expected columns in one unit that add up. Of "
            "percent or shares write their part of the whole, add the column of a part that is "
            "missing, or leave the composition out"
        )
    row = int(np.argmax(differs))
    logger.warning(
        "composition %r: %s is not %s in %s, such as %r (%.4g and %.4g); correct the rows, or leave "
        "their cells empty",
        composition,
        whole,
        terms,
        counted(num_differing, "image"),
        table.ids[row],
        total[row],
        part_sum[row],
    )


def warn_of_sums_of_shares(task: str, columns: Sequence[str], values: _Floats) -> None:
    """Warn of shares whose sum is the same in all rows but not 1, or 1 in some and 100 in the others.

    Masses and counts may have any sum: they are divided by it without a warning.

    Args:
        task: name of the ratio task.
        columns: the columns of the shares.
        values: their values (rows, columns), not negative; NaN: unknown.
    """
    sums = values.sum(axis=1)
    sums = sums[np.isfinite(sums) & (sums > 0)]
    if len(sums) < _MIN_ROWS:
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
    median = float(np.median(sums))
    are_shares = np.nanmax(values) <= 1
    have_equal_sums = _are_about(sums, median).all()
    if are_shares and have_equal_sums and not is_one.all():
        logger.warning(
            "task %r: %s is about %.4g in all images, and is read as 1: a share of 0.2 becomes %.4g. "
            "If a part is missing, add its column; parts that overlap are no ratio, but a target each",
            task,
            terms,
            median,
            0.2 / median,
        )


def _are_about(sums: _Floats, value: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.isclose(sums, value, rtol=_SHARES_TOLERANCE, atol=0.0)
