"""What labels of numbers hold that may be no quantities: values that mark pixels without a label, and scales.

Programs write -9999, the ends of a dtype or 0 where nothing was measured, and a file need not say
so. Such values lie apart from all others and repeat. They are named in a warning; a quantity may
have them too, so they are never left out without being asked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dinoneck.checks import LARGEST_FLOAT
from dinoneck.data.label_files import LabelRaster
from dinoneck.data.label_marks import LIKELY_NODATA, SURE_NODATA, MarkCheck
from dinoneck.data.label_notes import NO_CHANGE, FileScale, Rule, equals
from dinoneck.data.label_sets import Mark, count_values, log_marks, marks_of, used_colours
from dinoneck.data.label_storage import storage_problem
from dinoneck.data.label_tiffs import Raw
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

logger = logging.getLogger(__name__)

_SHOWN = 5  # values in a message

_MOST_ENDS = 8  # MODIS has seven fill values, 249 ... 255
# how far a value is from all others before it is named, as a share of the range of the others
_FAR_IF_SURE = 0.5  # of SURE_NODATA, however often it occurs
_FAR_IF_LIKELY = 0.05  # of LIKELY_NODATA, if it repeats far more often than the others
_FAR = 1.0  # any other value, if it repeats as often
_LEAST_SHARE = 0.001
_TIMES_AS_OFTEN = 3.0
# fewer distinct numbers are classes or counts, of which each may lie apart
_LEAST_DISTINCT = 20
_SAMPLES = 1000  # numbers of a label that stand for its distribution
# zeros: quantities that reach down to 0, such as shares, are as dense below their 0.1 % quantile as
# above it; those of a sensor that needs a distance are not
_LOW_QUANTILE = 0.001
_TIMES_AS_DENSE = 10
_LEAST_DISTINCT_ABOVE = 10
# two units in one set, such as millimetres and centimetres: two groups of labels, each of this many,
# whose numbers are alike within a group and differ between them by about one of these factors
_LEAST_LABELS_OF_A_UNIT = 3
_MOST_SPREAD_OF_A_UNIT = 3.0  # largest by smallest upper end within a group
_LEAST_GAP_OF_UNITS = 4.0  # smallest upper end of one group by the largest of the other
_UNIT_FACTORS = (10.0, 100.0, 255.0, 1000.0)  # 255: shares, and the same as grey levels
_OFF_FACTOR = 1.5  # of the upper ends, a share or its inverse; twice as much of the middles
_UPPER_END = 0.9  # quantile of the numbers that are not 0
# whole numbers beyond it are rounded as float32, by half a unit and more
_LARGEST_EXACT = 1 << 24
# float32 may round by so much of the range of the numbers: 1000 steps are left
_MOST_ROUNDING = 0.001


class NumberCheck:
    """Notes what the labels of numbers of one set say of themselves, for one log line of a kind.

    Args:
        nodata: stored values that mark pixels without a label.
        rule: by which stored numbers are converted.
    """

    def __init__(self, nodata: Sequence[float] = (), rule: Rule = NO_CHANGE) -> None:
        self._nodata = tuple(nodata)
        self._rule = rule
        self._num_labels = 0
        self._scale: FileScale | None = None
        self._with_scale: list[str] = []
        self._rounded = _Rounded()
        self._num_stored: Counter[float] = Counter()
        self._num_converted: Counter[float] = Counter()
        self._kinds: dict[str, list[str]] = {}
        self._coloured: list[str] = []
        self._with_palette: list[str] = []
        self._stored_otherwise: dict[str, list[str]] = {}
        self._bands: list[_BandNumbers] = []
        self._marked: Counter[Mark] = Counter()
        self._marks = MarkCheck(nodata)

    def add(self, raster: LabelRaster, unlabelled: Raw) -> None:
        """Note a label and which of its pixels have none.

        Raises:
            DataError: if two labels note different scales.
        """
        self._num_labels += 1
        for mark, is_marked in marks_of(raster, ()):
            self._marked[mark] += int(is_marked.sum())
        if self._rule != NO_CHANGE:
            self._count_nodata(raster.values)
        if raster.scale is not None:
            self._add_scale(raster.name, raster.scale)
        kind = "bool" if raster.is_bool else str(raster.values.dtype)
        self._kinds.setdefault(kind, []).append(raster.name)
        labelled = raster.values[~unlabelled]
        self._marks.add_numbers(raster.name, raster.nodata, labelled)
        self._rounded.add(raster.name, labelled, self._rule)
        problem = storage_problem(labelled)
        if problem:
            self._stored_otherwise.setdefault(problem, []).append(raster.name)
        if raster.is_grey_picture:
            labelled = labelled[:, :1]
        elif raster.is_colour:
            self._coloured.append(raster.name)
        if _has_other_colours(raster):
            self._with_palette.append(raster.name)
        for band in range(labelled.shape[1]):
            if band == len(self._bands):
                self._bands.append(_BandNumbers())
            self._bands[band].add(labelled[:, band], raster.name)

    def _add_scale(self, name: str, scale: FileScale) -> None:
        if self._scale is not None and not scale.agrees(self._scale):
            raise DataError(
                f"the labels have two scales: of {self._with_scale[0]} a quantity is "
                f"{self._scale.words()}, of {name} {scale.words()} ({scale.source}); write all "
                "with one (gdal_translate -unscale -ot Float32), or remove a scale that is wrong"
            )
        self._scale = self._scale or scale
        self._with_scale.append(name)

    def _count_nodata(self, values: Raw) -> None:
        """Count the pixels that have a nodata value, as it is stored and as the scale converts it."""
        for number in self._nodata:
            self._num_stored[number] += int(equals(values, number).sum())
            stored = self._rule.stored(number)
            self._num_converted[number] += int(equals(values, stored).sum())

    def _report_nodata(self) -> None:
        """Warn of nodata values that are converted ones, of which no pixel is stored so."""
        for number, count in self._num_converted.items():
            if count and not self._num_stored[number]:
                logger.warning(
                    "no label holds the nodata value %s, and %s hold %s, which the scale makes %s: "
                    "nodata is compared with the stored numbers; pass nodata=%s (--nodata %s) if it "
                    "marks pixels without a label",
                    _exact(number),
                    counted(count, "pixel"),
                    _exact(self._rule.stored(number)),
                    _exact(number),
                    _exact(self._rule.stored(number)),
                    _exact(self._rule.stored(number)),
                )

    def report(self) -> None:
        """Log what may be read wrongly."""
        log_marks(self._marked)
        self._marks.report()
        self._report_nodata()
        self._rounded.report()
        self._report_scale()
        for number, band in enumerate(self._bands):
            where = f" in band {number}" if len(self._bands) > 1 else ""
            self._report_values(band, where)
        if self._coloured:
            logger.warning(
                "%s in colours, such as %s: red, green and blue are read as three quantities. Numbers "
                "that were drawn through a colour map are none: save the numbers themselves",
                counted(len(self._coloured), "label"),
                self._coloured[0],
            )
        for problem, names in self._stored_otherwise.items():
            logger.warning(
                "%s, such as %s: the numbers seem to be %s",
                counted(len(names), "label"),
                names[0],
                problem,
            )
        if self._with_palette:
            logger.warning(
                "%s with a palette, such as %s, whose colours are other numbers than their indices: the "
                "indices are read. If the colours show the numbers, save the numbers as grey",
                counted(len(self._with_palette), "label"),
                self._with_palette[0],
            )
        if len(self._kinds) > 1:
            examples = [f"{kind} ({names[0]})" for kind, names in self._kinds.items()]
            logger.warning(
                "the labels hold numbers of %d kinds: %s. Check that they have one unit",
                len(examples),
                some_of(examples, _SHOWN),
            )

    def _report_scale(self) -> None:
        """Warn of a scale in the files that is not the one by which they are read."""
        if self._scale is None:
            return
        num_stating = len(self._with_scale)
        subject = f"{num_stating} of {counted(self._num_labels, 'label')} say"
        if self._num_labels == 1:
            subject = "1 label says"
        if self._rule == NO_CHANGE:
            logger.warning(
                "%s that a quantity is %s (%s). The numbers are read as they are stored; pass "
                "scale= and offset= (--scale, --offset) to convert them",
                subject,
                self._scale.words(),
                self._with_scale[0],
            )
        elif not self._scale.agrees(FileScale((self._rule,), "", "")):
            logger.warning(
                "%s that a quantity is %s (%s). They are read as %s, which was passed: is that the "
                "unit that you want?",
                subject,
                self._scale.words(),
                self._with_scale[0],
                self._rule.words(),
            )
        elif num_stating < self._num_labels:
            logger.warning(
                "%s that a quantity is %s (%s), and the others say nothing. All are read so: check "
                "that their numbers have one unit",
                subject,
                self._scale.words(),
                self._with_scale[0],
            )

    def _report_values(self, band: _BandNumbers, where: str) -> None:
        """Warn of values of a band that may mark pixels without a label."""
        units = band.two_units()
        if units is not None:
            logger.warning(
                "the labels fall into two groups%s whose numbers differ by a factor of about %.0f: %d "
                "have numbers up to about %.6g, such as %s, and %d up to about %.6g, such as %s. Check "
                "that all have one unit",
                where,
                units.factor(),
                len(units.small),
                units.small[-1].upper,
                units.small[0].name,
                len(units.large),
                units.large[-1].upper,
                units.large[0].name,
            )
        values = band.values_apart()
        if values:
            pixels = sum(band.counts[value] for value in values)
            logger.warning(
                "%s of the labels (%s)%s hold %s, all others %.6g ... %.6g. If %s pixels without a "
                "label, pass %s",
                counted(pixels, "pixel"),
                _share_in_words(pixels / band.total),
                where,
                _listed(values),
                band.low_without(values),
                band.high_without(values),
                "it marks" if len(values) == 1 else "they mark",
                self._options(values),
            )
        if 0.0 not in values and band.has_zeros_apart(values):
            pixels = band.counts[0.0]
            logger.warning(
                "%s of the labels (%s)%s hold 0, all others %.6g ... %.6g. If 0 says that nothing was "
                "measured, as in depth maps, pass %s",
                counted(pixels, "pixel"),
                _share_in_words(pixels / band.total),
                where,
                band.low_without([*values, 0.0]),
                band.high_without(values),
                self._options([*values, 0.0]),
            )

    def _options(self, values: Sequence[float]) -> str:
        """The arguments that leave out values, with those that are left out already."""
        numbers = [_exact(value) for value in dict.fromkeys([*self._nodata, *values])]
        in_python = numbers[0] if len(numbers) == 1 else f"({', '.join(numbers)})"
        return f"nodata={in_python} (--nodata {' '.join(numbers)})"


def _listed(values: Sequence[float]) -> str:
    return some_of([_exact(value) for value in values], _SHOWN)


def _exact(value: float) -> str:
    """A number as a text that is read as the same number."""
    short = f"{value:.12g}"
    return short if float(short) == value else repr(value)


def _share_in_words(share: float) -> str:
    return f"{share:.1%}" if share >= _LEAST_SHARE else f"{share:.2g} of all"


@dataclass
class _Rounded:
    """The numbers that float32 does not hold.

    Attributes:
        codes: pixels of whole numbers that are rounded to others.
        code: the first of them.
        code_label: the label that has it.
        close_label: the first label whose numbers differ by little more than the rounding.
    """

    codes: int = 0
    code: float = 0.0
    code_label: str = ""
    close_label: str = ""

    def add(self, name: str, numbers: Raw, rule: Rule) -> None:
        """Note the numbers (N, K) of a label as ``rule`` converts them."""
        is_short_integer = numbers.dtype.kind != "f" and numbers.dtype.itemsize < 4
        is_short_float = numbers.dtype.kind == "f" and numbers.dtype.itemsize <= 4
        if not numbers.size or is_short_integer or is_short_float:
            return
        numbers = numbers[~_is_likely_nodata(numbers)]
        with np.errstate(over="ignore", invalid="ignore"):
            exact = numbers.astype(np.float64) * rule.factor + rule.offset
            exact = exact[np.abs(exact) <= LARGEST_FLOAT]
            error = np.abs(exact - exact.astype(np.float32))
        if not error.any():
            return
        is_code = (np.abs(exact) > _LARGEST_EXACT) & (exact == np.floor(exact)) & (error > 0)
        if is_code.any():
            self.codes += int(is_code.sum())
            self.code = self.code or float(exact[is_code][0])
            self.code_label = self.code_label or name
        elif error.max() > _MOST_ROUNDING * (exact.max() - exact.min()) > 0:
            self.close_label = self.close_label or name

    def report(self) -> None:
        """Log them."""
        if self.codes:
            logger.warning(
                "%s of the labels hold whole numbers that float32 rounds, such as %.0f as %.0f (%s). "
                "As quantities they are near enough; as dates, codes or identifiers they are others: "
                "subtract a number with offset= (--offset), or make classes of them",
                counted(self.codes, "pixel"),
                self.code,
                np.float32(self.code),
                self.code_label,
            )
        if self.close_label:
            logger.warning(
                "the numbers of %s differ by little more than float32 rounds them: subtract a number "
                "with offset= (--offset)",
                self.close_label,
            )


@dataclass
class _BandNumbers:
    """The numbers of a band of all labels, as far as they matter for values that lie apart.

    Attributes:
        total: labelled pixels.
        counts: number -> pixels, of the outermost numbers of each label.
        low: the lowest of the numbers that are not in ``counts``.
        high: the highest of them.
        samples: numbers of every label that has some.
        names: of these labels.
    """

    total: int = 0
    counts: Counter[float] = field(default_factory=Counter)
    low: float = np.inf
    high: float = -np.inf
    samples: list[Raw] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, numbers: Raw, name: str) -> None:
        """Note the numbers of a label, (N,)."""
        if not numbers.size:
            return
        self.total += numbers.size
        self.names.append(name)
        step = max(1, numbers.size // _SAMPLES)
        self.samples.append(numbers[::step].astype(np.float64))
        if numbers.dtype.kind == "f":
            rest = self._count_ends_of_floats(numbers)
        else:
            rest = self._count_ends_of_integers(numbers)
        if rest.size:
            self.low = min(self.low, float(rest.min()))
            self.high = max(self.high, float(rest.max()))

    def _count_ends_of_integers(self, numbers: Raw) -> Raw:
        """Count the outermost integers, and return the other distinct ones."""
        distinct, counts = count_values(numbers)
        is_end = np.zeros(distinct.shape, bool)
        is_end[:_MOST_ENDS] = True
        is_end[-_MOST_ENDS:] = True
        for value, count in zip(distinct[is_end].tolist(), counts[is_end].tolist(), strict=True):
            self.counts[float(value)] += count
        return np.asarray(distinct[~is_end])

    def _count_ends_of_floats(self, numbers: Raw) -> Raw:
        """Count the outermost numbers as far as they repeat, and return the others."""
        for take_end in (np.min, np.max):
            for _ in range(_MOST_ENDS):
                if not numbers.size:
                    return numbers
                end = take_end(numbers)
                is_end = numbers == end
                count = int(is_end.sum())
                if count < 2 and not _is_among(float(end), SURE_NODATA):
                    break
                self.counts[float(end)] += count
                numbers = numbers[~is_end]
        return numbers

    def low_without(self, values: Sequence[float]) -> float:
        """Return the lowest number that is none of the values."""
        return min([self.low, *(value for value in self.counts if value not in values)])

    def high_without(self, values: Sequence[float]) -> float:
        """Return the highest number that is none of the values."""
        return max([self.high, *(value for value in self.counts if value not in values)])

    def values_apart(self) -> list[float]:
        """Return the values at the ends that lie apart from all other numbers, sorted."""
        apart: list[float] = []
        while True:
            more = self._outermost_apart(apart, is_low=True)
            if not more:
                more = self._outermost_apart(apart, is_low=False)
            if not more:
                return sorted(apart)
            apart += more

    def _outermost_apart(self, apart: Sequence[float], *, is_low: bool) -> list[float]:
        """The lowest or the highest numbers that lie apart, without those that are known to; none if there are none."""
        ends = sorted((value for value in self.counts if value not in apart), reverse=not is_low)
        for place in reversed(range(min(len(ends), _MOST_ENDS))):
            innermost = ends[place]
            outer = [*apart, *ends[: place + 1]]
            if is_low:
                gap = self.low_without(outer) - innermost
            else:
                gap = innermost - self.high_without(outer)
            if self._is_apart(innermost, gap, outer):
                return ends[: place + 1]
        return []

    def _is_apart(self, value: float, gap: float, outer: Sequence[float]) -> bool:
        """Whether a number is far from all numbers that are not ``outer``, of which the next is at ``gap``."""
        low = self.low_without(outer)
        value_range = self.high_without(outer) - low
        if not value_range > 0 or gap <= 0:
            return False
        if _is_among(value, SURE_NODATA) and gap >= _FAR_IF_SURE * value_range:
            return True
        # a whole negative number is far from numbers without a sign, however near it is
        is_only_negative = value <= -1 and value == np.floor(value) and low >= 0
        least_share = _FAR_IF_LIKELY if _is_among(value, LIKELY_NODATA) else _FAR
        is_far = is_only_negative or gap >= least_share * value_range
        return is_far and self._repeats(value, outer)

    def _repeats(self, value: float, outer: Sequence[float]) -> bool:
        """Whether a number occurs far more often than others of a quantity with many distinct ones."""
        samples = self._samples_without(outer)
        distinct = np.unique(samples).size
        count = self.counts[value]
        if distinct < _LEAST_DISTINCT or count < 2 or count < _LEAST_SHARE * self.total:
            return False
        return count >= _TIMES_AS_OFTEN * self.total / distinct

    def _samples_without(self, values: Sequence[float]) -> Raw:
        samples = np.concatenate(self.samples)
        return np.asarray(samples[~np.isin(samples, list(values))])

    def two_units(self) -> _TwoUnits | None:
        """Return the two groups into which the labels fall if their units differ by a usual factor."""
        sizes = []
        for name, samples in zip(self.names, self.samples, strict=True):
            size = _size_of(name, samples)
            if size is not None:
                sizes.append(size)
        sizes.sort(key=lambda size: size.upper)
        for split in range(_LEAST_LABELS_OF_A_UNIT, len(sizes) - _LEAST_LABELS_OF_A_UNIT + 1):
            units = _TwoUnits(sizes[:split], sizes[split:])
            if units.is_clear():
                return units
        return None

    def has_zeros_apart(self, apart: Sequence[float]) -> bool:
        """Return whether 0 is the lowest number and nothing lies near it.

        Args:
            apart: numbers that are no quantities.
        """
        outer = [*apart, 0.0]
        if not self.counts[0.0] or self.low_without(outer) <= 0 or not self._repeats(0.0, outer):
            return False
        samples = np.sort(self._samples_without(outer))
        num_below = int(len(samples) * _LOW_QUANTILE)
        low = samples[num_below]
        above = samples[num_below : int(np.searchsorted(samples, 2 * low, side="right"))]
        is_dense = len(above) >= _TIMES_AS_DENSE * max(1, num_below)
        return is_dense and np.unique(above).size >= _LEAST_DISTINCT_ABOVE


@dataclass(frozen=True)
class _Size:
    """How large the numbers of a label are, without their sign: their middle and their upper end."""

    name: str
    middle: float
    upper: float


def _size_of(name: str, samples: Raw) -> _Size | None:
    """The size of a label's numbers; None if all are 0 or infinite, or may be marks."""
    is_quantity = np.isfinite(samples) & (samples != 0) & ~_is_likely_nodata(samples)
    if not is_quantity.any():
        return None
    middle, upper = np.quantile(np.abs(samples[is_quantity]), [0.5, _UPPER_END])
    return _Size(name, float(middle), float(upper))


@dataclass(frozen=True)
class _TwoUnits:
    """Labels in two groups, sorted by the upper ends of their numbers."""

    small: list[_Size]
    large: list[_Size]

    def is_clear(self) -> bool:
        """Whether the groups are narrow, far apart, and differ by a usual factor."""
        for group in (self.small, self.large):
            if group[-1].upper > _MOST_SPREAD_OF_A_UNIT * group[0].upper:
                return False
        if self.large[0].upper < _LEAST_GAP_OF_UNITS * self.small[-1].upper:
            return False
        return self.factor() > 0

    def factor(self) -> float:
        """The usual factor between the groups; 0 = there is none."""
        upper = _ratio_of_medians(
            [size.upper for size in self.large], [size.upper for size in self.small]
        )
        middle = _ratio_of_medians(
            [size.middle for size in self.large], [size.middle for size in self.small]
        )
        for factor in _UNIT_FACTORS:
            is_upper = 1 / _OFF_FACTOR <= upper / factor <= _OFF_FACTOR
            is_middle = 0.5 / _OFF_FACTOR <= middle / factor <= 2 * _OFF_FACTOR
            if is_upper and is_middle:
                return factor
        return 0.0


def _ratio_of_medians(numbers: Sequence[float], others: Sequence[float]) -> float:
    """The median of numbers by that of others."""
    return float(np.median(numbers) / np.median(others))


def _has_other_colours(raster: LabelRaster) -> bool:
    """Whether a label has a palette in which an index that occurs is not its own grey level."""
    if raster.palette is None or raster.is_bool:
        return False
    for index, colour in used_colours(raster).of_index.items():
        if colour != (index, index, index):
            return True
    return False


def _is_among(value: float, usual_values: Sequence[float]) -> bool:
    """Whether a number is one of several, as far as float32 can tell."""
    with np.errstate(over="ignore"):  # float64 beyond float32
        return any(np.float32(value) == np.float32(usual) for usual in usual_values)


def _is_likely_nodata(numbers: Raw) -> Raw:
    """Which numbers may mark pixels without a label, by their value alone."""
    return np.isin(numbers.astype(np.float64), LIKELY_NODATA)
