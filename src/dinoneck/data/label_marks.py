"""Find values that some label files mark as unlabelled (nodata), while other files hold them as labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinoneck.checks import LARGEST_FLOAT
from dinoneck.data.label_notes import FileNodata, equals
from dinoneck.data.label_tiffs import Raw
from dinoneck.images.orientation import warn_once
from dinoneck.text import counted

# values that programs write where nothing was measured
# the usual codes of tables and of ESRI grids
_NINES = (-999.0, -9999.0, -99999.0, 99999.0)
# the largest and smallest values of integer types; -32767 and -2147483647 are netCDF's NC_FILL_SHORT
# and NC_FILL_INT
_ENDS_OF_INTEGERS = (
    255.0,
    -32768.0,
    -32767.0,
    32767.0,
    65535.0,
    -2147483648.0,
    -2147483647.0,
    2147483647.0,
    4294967295.0,
)
_ENDS_OF_FLOATS = (-LARGEST_FLOAT, LARGEST_FLOAT, -3.4e38)  # of float32, also as a rounded text
_OF_NETCDF = (1e20, 1e30, 9.969209968386869e36)  # missing_value by convention, and NC_FILL_FLOAT
_OF_MODIS = (-28672.0,)  # the fill value of its int16 products
SURE_NODATA = _NINES + _ENDS_OF_INTEGERS + _ENDS_OF_FLOATS + _OF_NETCDF + _OF_MODIS
"""Values that are nodata in any label: no measured quantity has them."""
# both ends of int8, and the last bytes before 255: MODIS and Copernicus number water, cloud and
# pixels outside of the area so
_LIKELY_BYTES = (-128.0, 127.0, 249.0, 250.0, 251.0, 252.0, 253.0, 254.0)
LIKELY_NODATA = (-1.0, -99.0, -3000.0, 9999.0, *_LIKELY_BYTES, *SURE_NODATA)
"""Values that are often nodata, and those of ``SURE_NODATA``. Measured quantities may have them."""


@dataclass(frozen=True, eq=False)
class _Label:
    """The values of a label that may be nodata.

    Attributes:
        name: name of the label in messages.
        nodata: the values that its file marks as unlabelled; None: none.
        values: distinct values of labelled pixels that may be nodata (n,).
        counts: number of labelled pixels with each of them (n,).
    """

    name: str
    nodata: FileNodata | None
    values: Raw
    counts: Raw

    def pixels_of(self, value: float) -> int:
        """Return how many labelled pixels have a value."""
        return int(self.counts[equals(self.values, value)].sum())


class MarkCheck:
    """Compares the values that some label files mark as unlabelled with the labels in other files.

    Args:
        nodata: stored values that the user passed as ``nodata``.
    """

    def __init__(self, nodata: Sequence[float] = ()) -> None:
        self._nodata = tuple(nodata)
        self._labels: list[_Label] = []

    def add(self, name: str, nodata: FileNodata | None, values: Raw, counts: Raw) -> None:
        """Add a label.

        Args:
            name: name of the label in messages.
            nodata: the values that its file marks as unlabelled; None: none.
            values: distinct values of labelled pixels that may be nodata (n,).
            counts: number of labelled pixels with each of them (n,).
        """
        self._labels.append(_Label(name, nodata, values, counts))

    def add_numbers(self, name: str, nodata: FileNodata | None, numbers: Raw) -> None:
        """Add a label of numbers per pixel, and count those that may be nodata.

        Args:
            name: name of the label in messages.
            nodata: the values that its file marks as unlabelled; None: none.
            numbers: the numbers of N labelled pixels in K bands (N, K).
        """
        values = self._possible_nodata(numbers)
        counts = [np.count_nonzero((numbers == value).any(axis=1)) for value in values]
        self.add(name, nodata, values, np.array(counts, np.int64))

    def _possible_nodata(self, numbers: Raw) -> Raw:
        """Return the usual nodata values, those that earlier files mark, and both ends of the numbers."""
        if not numbers.size:
            return numbers.reshape(-1)
        ends = np.array([numbers.min(), numbers.max()])
        low, high = map(float, ends)
        if numbers.dtype.kind == "f":
            # a usual value may be too large for a float16: infinite ends must not include it
            largest = float(np.finfo(numbers.dtype).max)
            low = max(low, -largest)
            high = min(high, largest)
        usual = [0.0, *LIKELY_NODATA, *self._marked_values()]
        in_range = np.array([value for value in usual if low <= value <= high])
        return np.unique(np.concatenate([ends, in_range.astype(numbers.dtype)]))

    def _marked_values(self) -> list[float]:
        """Return the distinct values that files mark, in any one of their bands.

        NaN is left out: it never is a label.
        """
        marked: dict[float, None] = {}  # as an ordered set
        for label in self._labels:
            if label.nodata is not None and not label.nodata.in_all_bands:
                marked |= dict.fromkeys(label.nodata.values)
        return [value for value in marked if not math.isnan(value)]

    def report(self) -> None:
        """Warn of values that some files mark as unlabelled, and others hold as labels."""
        for value in self._marked_values():
            self._report(value)

    def _report(self, value: float) -> None:
        marking = []
        holding = []
        num_pixels = 0
        for label in self._labels:
            if label.nodata is not None and value in label.nodata.values:
                marking.append(label)
            elif label.pixels_of(value):
                holding.append(label)
                num_pixels += label.pixels_of(value)
        if not holding:
            return
        first = marking[0]
        source = first.nodata.source if first.nodata else ""
        options = [f"{number:.12g}" for number in dict.fromkeys([*self._nodata, value])]
        in_python = options[0] if len(options) == 1 else f"({', '.join(options)})"
        warn_once(
            f"{len(marking)} of {counted(len(self._labels), 'label')} mark {value:.12g} as unlabelled "
            f"({source} of {first.name}), and {len(holding)} that "
            f"do not mark it hold it in {counted(num_pixels, 'pixel')}, such as {holding[0].name}: there it "
            f"is learned. Pass nodata={in_python} (--nodata {' '.join(options)}) if it marks pixels "
            "without a label, or remove it from the files that mark it"
        )
