"""Values that some labels of a set mark as unlabelled in their files, while others hold them unmarked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinoneck.codec import LARGEST_FLOAT
from dinoneck.data.label_notes import FileNodata, equals
from dinoneck.data.label_tiffs import Raw
from dinoneck.data.orientation import warn_once
from dinoneck.errors import counted

# values that programs write where nothing was measured
_NINES = (-999.0, -9999.0, -99999.0, 99999.0)
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
_ENDS_OF_FLOATS = (-LARGEST_FLOAT, LARGEST_FLOAT, -3.4e38)
_OF_NETCDF = (1e20, 1e30, 9.969209968386869e36)
_OF_MODIS = (-28672.0,)
SURE_NODATA = _NINES + _ENDS_OF_INTEGERS + _ENDS_OF_FLOATS + _OF_NETCDF + _OF_MODIS
"""Values that no quantity has."""
# of bytes the last ones before 255, as MODIS and Copernicus number water, cloud and what is outside
_LIKELY_BYTES = (-128.0, 127.0, 249.0, 250.0, 251.0, 252.0, 253.0, 254.0)
LIKELY_NODATA = (-1.0, -99.0, -3000.0, 9999.0, *_LIKELY_BYTES, *SURE_NODATA)
"""Values that quantities have too."""


@dataclass(frozen=True, eq=False)
class _Label:
    """What is compared of a label.

    Attributes:
        name: what messages call it.
        nodata: what its file marks; None = nothing.
        values: that may be marks, (n,), each once.
        counts: labelled pixels that have them, (n,).
    """

    name: str
    nodata: FileNodata | None
    values: Raw
    counts: Raw

    def pixels_of(self, value: float) -> int:
        """Return how many labelled pixels have a value."""
        return int(self.counts[equals(self.values, value)].sum())


class MarkCheck:
    """Compares what the files of labels mark as unlabelled with what the others of the set hold.

    Args:
        nodata: stored values that the caller marks.
    """

    def __init__(self, nodata: Sequence[float] = ()) -> None:
        self._nodata = tuple(nodata)
        self._labels: list[_Label] = []

    def add(self, name: str, nodata: FileNodata | None, values: Raw, counts: Raw) -> None:
        """Note a label: what its file marks, and its distinct values with their labelled pixels."""
        self._labels.append(_Label(name, nodata, values, counts))

    def add_numbers(self, name: str, nodata: FileNodata | None, numbers: Raw) -> None:
        """Note a label by its labelled numbers (N, K), of which those that may be marks are counted."""
        values = self._possible_marks(numbers)
        counts = [np.count_nonzero((numbers == value).any(axis=1)) for value in values]
        self.add(name, nodata, values, np.array(counts, np.int64))

    def _possible_marks(self, numbers: Raw) -> Raw:
        """The usual values, those that earlier files mark, and both ends of the numbers."""
        if not numbers.size:
            return numbers.reshape(-1)
        ends = np.array([numbers.min(), numbers.max()])
        low, high = map(float, ends)
        if (
            numbers.dtype.kind == "f"
        ):  # infinite ends enclose numbers that a short float cannot hold
            largest = float(np.finfo(numbers.dtype).max)
            low = max(low, -largest)
            high = min(high, largest)
        usual = [0.0, *LIKELY_NODATA, *self._stated()]
        inside = np.array([value for value in usual if low <= value <= high])
        return np.unique(np.concatenate([ends, inside.astype(numbers.dtype)]))

    def _stated(self) -> list[float]:
        """The values that files mark wherever a band has them, each once."""
        stated: dict[float, None] = {}
        for label in self._labels:
            if label.nodata is not None and not label.nodata.in_all_bands:
                stated |= dict.fromkeys(label.nodata.values)
        return [value for value in stated if value == value]  # NaN is no label anyway

    def report(self) -> None:
        """Warn of values that some files mark, and others hold as labels."""
        for value in self._stated():
            self._report(value)

    def _report(self, value: float) -> None:
        marking = []
        holding = []
        pixels = 0
        for label in self._labels:
            if label.nodata is not None and value in label.nodata.values:
                marking.append(label)
            elif label.pixels_of(value):
                holding.append(label)
                pixels += label.pixels_of(value)
        if not holding:
            return
        first = marking[0]
        options = [f"{number:.12g}" for number in dict.fromkeys([*self._nodata, value])]
        in_python = options[0] if len(options) == 1 else f"({', '.join(options)})"
        warn_once(
            f"{len(marking)} of {counted(len(self._labels), 'label')} mark {value:.12g} as unlabelled "
            f"({first.nodata.source if first.nodata else ''} of {first.name}), and {len(holding)} that "
            f"do not mark it hold it in {counted(pixels, 'pixel')}, such as {holding[0].name}: there it "
            f"is learned. Pass nodata={in_python} (--nodata {' '.join(options)}) if it marks pixels "
            "without a label, or remove it from the files that mark it"
        )
