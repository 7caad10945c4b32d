"""What the labels of one set have in common: palettes, and the classes of masks.

A mask alone cannot tell whether 255 is a class, whether its numbers are objects, or which of two
palettes is the right one. Together with the other masks of the set it mostly can. What stays open
is refused with both readings.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.folder_words import words_of
from dinoneck.data.label_files import Colour, LabelRaster, read_label, sizes_of, without_alpha
from dinoneck.data.label_formats import BLACK_AND_WHITE
from dinoneck.data.label_marks import MarkCheck
from dinoneck.data.label_notes import FileNodata, equals
from dinoneck.data.label_tiffs import Raw
from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list
from dinoneck.images.orientation import warn_once
from dinoneck.images.pixels import in_threads
from dinoneck.text import counted, some_of

logger = logging.getLogger(__name__)

_WHITES = (255, 65535)  # the largest numbers of 8 and of 16 bits: white, or "no class"
_WHITE_FIRST = {0: (255, 255, 255), 1: (0, 0, 0)}  # a palette of drawings in black on white
_DARKEST = 63  # grey levels up to it are numbers of classes; colours to look at are brighter
_SHOWN = 5  # values in a message

# Codes of classes, such as 10, 20, ..., 95, 100 of ESA's land cover: multiples of one number
_FEWEST_CODES = 3
_LEAST_STEP = 5
_MOST_LISTED = 50  # values in an option to be copied

# Grey levels for people to look at, such as 0, 127, 255 or 0, 128: few values, and the largest one
# beside white is far above their number
_LEAST_BRIGHT = 100  # the largest value is at least this
_LARGEST_GREY = 250  # 251 ... 254 are the last of 256 classes
_LEAST_GREYS_PER_CLASS = 20  # the largest value is at least this times their number

# Object ids. A mask of classes rarely has more than 256 of them, and a set of masks shows most of
# its classes: ids of instances (24001, 24002, ...) leave more than three of four numbers out.
_MOST_CLASSES_WITH_GAPS = 256
_LEAST_SHARE_OF_NUMBERS = 0.25
# words in the names of masks that VOC, Cityscapes, COCO and Cellpose write for objects
_WORDS_OF_OBJECTS: Sequence[set[str]] = (
    {"instance"},
    {"instances"},
    {"panoptic"},
    {"segmentation", "object"},
    {"cp", "masks"},
)
_LEAST_MASKS = 3  # fewer masks of one class each are no pattern
# numbers 1 ... n in every mask: up to this n they may be classes that happen to occur in order
_MOST_CLASSES_IN_ORDER = 4
# of fewer values, most border on the next ones anyway
_FEWEST_STACKED = 3
_TOPS_OF_AN_OBJECT = 2.0  # a blob has one top, a class that is spread over an image has dozens

# Masks of numbers per pixel with many values. Even with 150 classes, hardly any mask shows 50 of them
_LEAST_VALUES_OF_NUMBERS = 50
# tops per value, see _mean_tops: an object with a rough outline has a few
_TOPS_OF_NUMBERS = 10.0
# tops per pixel: in fine-grained numbers hardly two neighbours are equal, so that most pixels are tops
_LEAST_TOPS_PER_PIXEL = 0.2

# Masks of numbers per pixel with fewer values, such as heights in whole metres. Neighbouring pixels
# often differ, and then by one step or a few. Classes have large areas instead, and if there are many
# of them, each borders on any other. Layers of a tissue are in order too, but dozens of pixels wide.
_FEWEST_GRADUAL_VALUES = 10
_LEAST_SHARE_OF_BORDERS = 0.04  # of all pairs of neighbouring pixels differ
_STEPS_PER_NEAR_STEP = 10  # of n values, those up to n // 10 steps apart are near: 3 of 30
_LEAST_SHARE_OF_NEAR_STEPS = 0.8  # of the differing neighbours of a value are near, as a mean

# Smoothed masks: most pixels are near black or near white, and both ends have grey levels
_END = 15  # grey levels that count as near an end
_LEAST_LEVELS_PER_END = 3
_LEAST_SHARE_AT_ENDS = 0.8


@dataclass(frozen=True)
class UsedColours:
    """The colours of a label with a palette, or of 1 bit.

    Attributes:
        of_index: index -> colour, of the indices that occur; empty if there is no palette.
        unique: those of them whose colour no other index of the palette has.
    """

    of_index: Mapping[int, Colour]
    unique: frozenset[int]


class PaletteCheck:
    """Compares the palettes of labels that are added one after another."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[Colour, str]] = {}
        self._first_of_colour: dict[Colour, tuple[int, str]] = {}
        self._white_first: list[str] = []
        self._grey_of_two: list[str] = []
        self._first_of_value: dict[int, str] = {}
        self._greys_of_palettes: list[tuple[str, dict[int, int]]] = []

    def add_grey(self, name: str, values: Iterable[int]) -> None:
        """Note the values of a label without a palette."""
        distinct = {*values}
        if distinct == {0, 1}:
            self._grey_of_two.append(name)
        for value in distinct:
            self._first_of_value.setdefault(value, name)

    def report(self) -> None:
        """Compare the palettes with the labels that have none.

        Warn of palettes in which 0 is white and 1 is black, and of palettes of dark greys that are
        other numbers than their indices.

        Raises:
            DataError: if a palette has grey levels that are values of labels without a palette.
        """
        for name, levels in self._greys_of_palettes:
            self._check_levels(name, levels)
        if self._white_first and self._grey_of_two:
            warn_once(
                f"{_have(self._white_first)} a palette in which 0 is white and 1 is black, such as "
                f"{self._white_first[0]}, and {_have(self._grey_of_two)} 0 and 1 without a palette, "
                f"such as {self._grey_of_two[0]}: check that 1 is one class in both. The indices are "
                "read, and not the colours"
            )
        elif self._white_first:
            warn_once(
                f"{_have(self._white_first)} a palette in which 0 is white and 1 is black, such as "
                f"{self._white_first[0]}: the indices are read, so that white is the first class and "
                "black the second. Name the classes in this order (--classes)"
            )

    def _check_levels(self, name: str, levels: Mapping[int, int]) -> None:
        """Check a palette of greys: programs that shrink PNG files number grey levels anew."""
        renumbered = [index for index, level in levels.items() if index != level]
        index = renumbered[0]
        level = levels[index]
        if all(grey in self._first_of_value for grey in levels.values()):
            raise DataError(
                f"{name} has a palette in which index {index} is grey {level}, and "
                f"{self._first_of_value[level]} holds {level} without a palette: a program seems to "
                "have numbered the grey levels anew. Save them as grey "
                "(Image.open(file).convert('L').save('label.png'))"
            )
        if max(levels.values()) <= _DARKEST:
            warn_once(
                f"{name} has a palette in which index {index} is grey {level}; the indices are read. "
                "If a program that shrinks files numbered the grey levels anew, save them as grey "
                "(Image.open(file).convert('L').save('label.png'))"
            )

    def add(self, name: str, used: UsedColours, nodata: Sequence[float] = ()) -> None:
        """Compare the colours of the indices of a label with those of earlier labels.

        Args:
            name: of the label, for messages.
            used: its colours.
            nodata: indices that may have several colours.

        Raises:
            DataError: if an index that occurs in two labels has different colours in them, or a
                colour different indices.
        """
        self._note(name, used.of_index)
        for index, colour in used.of_index.items():
            if index in nodata:
                continue
            first_colour, first_name = self._first.setdefault(index, (colour, name))
            if first_colour != colour:
                raise DataError(
                    f"the palettes differ: index {index} is {_colour_words(colour)} in "
                    f"{name} and {_colour_words(first_colour)} in {first_name}; save all "
                    "labels with one palette, or as grey indices"
                )
            if index in used.unique:
                self._compare_index(name, index, colour)

    def _note(self, name: str, colours: Mapping[int, Colour]) -> None:
        """Note a palette for the comparison with labels that have none."""
        if colours == _WHITE_FIRST:
            self._white_first.append(name)
        levels = grey_levels(colours)
        if levels and not colours.items() <= BLACK_AND_WHITE.items():
            self._greys_of_palettes.append((name, levels))

    def _compare_index(self, name: str, index: int, colour: Colour) -> None:
        """Compare the index of a colour, which is that of one index alone, with that of earlier labels."""
        first_index, first_name = self._first_of_colour.setdefault(colour, (index, name))
        if first_index != index:
            raise DataError(
                f"the palettes differ: {_colour_words(colour)} is index {index} in {name} and index "
                f"{first_index} in {first_name}; save all labels with one palette, or as grey indices"
            )


def grey_levels(colours: Mapping[int, Colour]) -> dict[int, int]:
    """Return index -> grey level of colours that are greys; none if one is no grey, or all are their indices."""
    levels = {}
    for index, colour in colours.items():
        if len({*colour}) > 1:
            return {}
        levels[index] = colour[0]
    if all(index == level for index, level in levels.items()):
        return {}
    return levels


def _have(masks: Sequence[Any]) -> str:
    """Return ``1 mask has``, ``2 masks have`` and so on."""
    verb = "has" if len(masks) == 1 else "have"
    return f"{counted(len(masks), 'mask')} {verb}"


def used_colours(raster: LabelRaster) -> UsedColours:
    """Return the colours of the indices that occur in a label."""
    if raster.palette is None:
        return UsedColours({}, frozenset())
    uses = Counter(raster.palette.values())
    indices, _ = count_values(raster.values[..., 0])
    colours = {}
    unique = set()
    for index in indices.tolist():
        if index not in raster.palette:
            continue
        colours[index] = raster.palette[index]
        if uses[colours[index]] == 1:
            unique.add(index)
    return UsedColours(colours, frozenset(unique))


def _colour_words(colour: Colour) -> str:
    names: dict[Colour, str] = {
        (0, 0, 0): "black",
        (255, 255, 255): "white",
        (255, 0, 0): "red",
        (0, 255, 0): "green",
        (0, 0, 255): "blue",
    }
    return names.get(colour, f"RGB {colour}")


def count_values(values: Raw) -> tuple[Raw, Raw]:
    """Return the distinct values, sorted, and how often each occurs."""
    if values.dtype.kind == "b" or values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel().astype(np.int64, copy=False))
        indices = np.flatnonzero(counts)
        return indices, counts[indices]
    return np.unique(values, return_counts=True)


# Masks of classes
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """What makes pixels of a mask unlabelled.

    Attributes:
        values: that it marks; empty = it marks pixels by their place.
        source: where it comes from, such as ``the tag GDAL_NODATA``.
        removal: what to do if the pixels are of a class.
        is_by_file: the file says so, not the caller.
    """

    values: tuple[float, ...]
    source: str
    removal: str
    is_by_file: bool

    def words(self) -> str:
        """Return what it marks, such as ``the tag GDAL_NODATA (0)``."""
        if not self.values:
            return self.source
        return f"{self.source} ({', '.join(f'{value:.12g}' for value in self.values)})"


@dataclass(frozen=True, eq=False)
class MaskFile:
    """The values of one mask.

    Attributes:
        name: name of the mask in messages.
        pixels: value -> number of labelled pixels that have it.
        marked: mark -> number of pixels that it marks as unlabelled.
        tops: mean number of tops of the values above 0, see :func:`_mean_tops`. 1: each value is one
            blob. None: not counted, as the values above 0 are neither 1 ... n nor many.
        is_in_order: whether the values above 0 are 1 ... n.
        is_stacked: whether these are three or more, and mostly border on the ones before and after
            them, as layers and zones do; objects border on the background.
        is_gradual: whether there are 10 to 49 values that change in small steps from pixel to pixel,
            as heights do, see :func:`_changes_gradually`.
    """

    name: str
    pixels: Mapping[int, int]
    marked: Mapping[Mark, int]
    tops: float | None
    is_in_order: bool
    is_stacked: bool
    is_gradual: bool

    def has_many_values(self) -> bool:
        """Return whether there are more values than masks of classes usually have."""
        return len(self.pixels) >= _LEAST_VALUES_OF_NUMBERS

    def is_of_numbers(self) -> bool:
        """Return whether there are many values, each in more or smaller areas than an object has."""
        if self.tops is None or not self.has_many_values():
            return False
        positive_values = [value for value in self.pixels if value > 0]
        num_pixels = sum(self.pixels[value] for value in positive_values)
        tops_per_pixel = self.tops * len(positive_values) / num_pixels
        return self.tops > _TOPS_OF_NUMBERS or tops_per_pixel >= _LEAST_TOPS_PER_PIXEL


@dataclass(frozen=True, eq=False)
class MaskSurvey:
    """The numbers of a set of masks.

    Attributes:
        files: one by one.
    """

    files: Sequence[MaskFile]

    @functools.cached_property
    def pixels(self) -> Mapping[int, int]:
        """Value -> labelled pixels of all masks, in the order of the values."""
        pixels: Counter[int] = Counter()
        for file in self.files:
            pixels.update(file.pixels)
        return dict(sorted(pixels.items()))

    @functools.cached_property
    def marked(self) -> Mapping[Mark, int]:
        """Mark -> unlabelled pixels of all masks."""
        marked: Counter[Mark] = Counter()
        for file in self.files:
            marked.update(file.marked)
        return dict(marked)

    def holder(self, value: int) -> str:
        """Return the name of the first mask that has a value."""
        return next(file.name for file in self.files if value in file.pixels)

    def marked_words(self) -> str:
        """Return what is unlabelled, as a sentence that follows another one; "" = nothing."""
        parts = []
        for mark, count in self.marked.items():
            remedy = f"{mark.removal} if they are of a class"
            parts.append(f"{counted(count, 'pixel')} by {mark.words()}: {remedy}")
        return f". Unlabelled are {'; '.join(parts)}" if parts else ""


def survey_masks(
    labels: Any,
    nodata: Sequence[float] = (),
    image_sizes: Sequence[Sequence[int]] | None = None,
) -> MaskSurvey:
    """Read masks of classes and count their values.

    Args:
        labels: one mask or several: paths, PIL images or arrays.
        nodata: stored values that are no class.
        image_sizes: (height, width) in pixels of each upright image; None compares nothing.

    Raises:
        DataError: if a mask cannot be read, has another size than its image, or holds colours,
            fractions or infinite values; if two masks have different colours for one index.
    """
    singles = as_list(labels, "labels")
    sizes = sizes_of(singles, image_sizes)

    def read(number: int) -> _ReadMask:
        raster = without_alpha(read_label(singles[number], sizes[number], number))
        colours = None if raster.palette is None else used_colours(raster)
        return _ReadMask(_mask_file(raster, nodata), colours, raster.nodata)

    palettes = PaletteCheck()
    marks = MarkCheck(nodata)
    files = []
    for mask in in_threads(read, range(len(singles))):
        file = mask.file
        values = np.array(list(file.pixels))
        counts = np.array(list(file.pixels.values()))
        marks.add(file.name, mask.nodata, values, counts)
        if mask.colours is None:
            palettes.add_grey(file.name, file.pixels)
        else:
            palettes.add(file.name, mask.colours, nodata)
        files.append(file)
    palettes.report()
    marks.report()
    return MaskSurvey(files)


@dataclass(frozen=True)
class _ReadMask:
    """What is read of a mask.

    Attributes:
        file: its values.
        colours: those of its values; None = it has no palette.
        nodata: the values that the file marks as unlabelled; None = none.
    """

    file: MaskFile
    colours: UsedColours | None
    nodata: FileNodata | None


def _mask_file(raster: LabelRaster, nodata: Sequence[float]) -> MaskFile:
    unlabelled = raster.unlabelled(nodata)
    index = one_band(raster)
    values, counts = count_values(index[~unlabelled])
    check_whole(values, counts, raster.name)
    pixels = dict(zip(map(int, values.tolist()), counts.tolist(), strict=True))
    marked = {}
    for mark, is_marked in marks_of(raster, nodata):
        if is_marked.any():
            marked[mark] = int(is_marked.sum())

    positive_values = [value for value in pixels if value > 0]
    num_positive = len(positive_values)
    is_in_order = positive_values == [*range(1, num_positive + 1)]
    tops = None
    if num_positive == 0:
        tops = 1.0
    elif is_in_order or len(pixels) >= _LEAST_VALUES_OF_NUMBERS:
        tops = _mean_tops(np.where(unlabelled, 0, index), num_positive)
    is_stacked = False
    if is_in_order and num_positive >= _FEWEST_STACKED:
        neighbours = _neighbours(index, ~unlabelled, values)
        is_stacked = neighbours.share_of_near >= _LEAST_SHARE_OF_NEAR_STEPS
    is_gradual = False
    if _FEWEST_GRADUAL_VALUES <= len(values) < _LEAST_VALUES_OF_NUMBERS:
        is_gradual = _changes_gradually(index, ~unlabelled, values)
    return MaskFile(
        name=raster.name,
        pixels=pixels,
        marked=marked,
        tops=tops,
        is_in_order=is_in_order,
        is_stacked=is_stacked,
        is_gradual=is_gradual,
    )


def marks_of(raster: LabelRaster, nodata: Sequence[float]) -> Iterator[tuple[Mark, Raw]]:
    """Yield what makes pixels of a raster unlabelled, and which pixels these are."""
    for number in nodata:
        passed = Mark((number,), "nodata", "leave it out", is_by_file=False)
        yield passed, np.any(equals(raster.values, number), axis=2)
    if raster.nodata is not None:
        noted = raster.nodata
        values = tuple(dict.fromkeys(noted.values))
        mark = Mark(values, noted.source, noted.removal, is_by_file=True)
        yield mark, noted.pixels(raster.values)
    if raster.is_hidden is not None:
        hidden = Mark((), "transparency or a mask", "save it without", is_by_file=True)
        yield hidden, raster.is_hidden


def log_marks(marked: Mapping[Mark, int], classes: Sequence[int] = ()) -> None:
    """Log which pixels the files themselves mark as unlabelled.

    It is a warning where they would be of a class otherwise.
    """
    for mark, count in marked.items():
        if not mark.is_by_file:
            continue
        takes_class = not mark.values or any(value in classes for value in mark.values)
        level = logging.WARNING if takes_class and classes else logging.INFO
        logger.log(
            level,
            "%s of the labels have none, by %s: %s if they have one",
            counted(count, "pixel"),
            mark.words(),
            mark.removal,
        )


def one_band(raster: LabelRaster) -> Raw:
    """Return the only band of a mask of classes, (H, W).

    A grey picture that was saved in colours has three equal bands, which count as one.

    Raises:
        DataError: if there are several bands, as a mask of colours has.
    """
    bands = raster.values.shape[2]
    if bands == 1 or raster.is_grey_picture:
        return raster.values[..., 0]
    hint = "turn a mask of colours into numbers first"
    if (raster.values == raster.values[..., :1]).all():  # of a file that is no picture
        hint = "they are equal: save one of them as a grey mask"
    raise DataError(
        f"{raster.name} holds {bands} bands; expected one band of class indices: {hint}"
    )


def check_whole(values: Raw, counts: Raw, name: str) -> None:
    """Refuse values of a mask that are no whole numbers.

    Raises:
        DataError: naming them.
    """
    if values.dtype.kind != "f":
        return
    is_broken = ~np.isfinite(values) | (values != np.floor(values))
    if is_broken.any():
        shown = some_of([f"{value:.12g}" for value in values[is_broken].tolist()], _SHOWN)
        raise DataError(
            f"{name} holds {shown} ({counted(int(counts[is_broken].sum()), 'pixel')}); expected "
            "class indices, which are whole numbers. Numbers per pixel are labels of another kind: "
            "DenseLabels without classes, --label-kind numbers"
        )


def _mean_tops(index: Raw, num_positive: int) -> float:
    """How many tops the areas of a value have, as a mean over the values above 0.

    A top is a run of equal pixels in a row with no pixel of its value above it. An object is a blob
    and has one; a class that is spread over the image has many. Here 1 has one top and 2 has three,
    which are in brackets, so that the mean is 2::

         . [1  1] .  . [2]
         1  1  1  .  .  2
        [2] .  .  .  2  2
         .  . [2] .  .  .
    """
    starts = np.ones(index.shape, bool)
    starts[:, 1:] = index[:, 1:] != index[:, :-1]
    has_same_above = np.zeros(index.shape, bool)
    has_same_above[1:] = index[1:] == index[:-1]
    first = np.flatnonzero(starts.ravel())
    is_joined = np.logical_or.reduceat(has_same_above.ravel(), first)
    run_values = index.ravel()[first]
    num_tops = int(((run_values > 0) & ~is_joined).sum())
    return num_tops / num_positive


def _changes_gradually(index: Raw, is_labelled: Raw, values: Raw) -> bool:
    """Return whether neighbouring pixels often differ, and values mostly border on near ones.

    Args:
        index: the values of a mask (H, W).
        is_labelled: (H, W) bool.
        values: the distinct values of the labelled pixels, sorted.
    """
    neighbours = _neighbours(index, is_labelled, values)
    if neighbours.share_of_borders <= _LEAST_SHARE_OF_BORDERS:
        return False
    return neighbours.share_of_near >= _LEAST_SHARE_OF_NEAR_STEPS


@dataclass(frozen=True)
class _Neighbours:
    """What labelled pixels of a mask have beside and below them.

    Attributes:
        share_of_borders: how many pairs of neighbours differ, 0 to 1.
        share_of_near: of the differing neighbours of a value, how many have one of the next values:
            the mean over the values that have any, 0 to 1.
    """

    share_of_borders: float
    share_of_near: float


def _neighbours(index: Raw, is_labelled: Raw, values: Raw) -> _Neighbours:
    """Compare the neighbouring pixels of a mask, see :func:`_changes_gradually`."""
    right_and_left = (np.s_[:, 1:], np.s_[:, :-1])
    below_and_above = (np.s_[1:, :], np.s_[:-1, :])
    num_neighbours = 0
    first_values = []
    second_values = []
    for first, second in (right_and_left, below_and_above):
        are_labelled = is_labelled[first] & is_labelled[second]
        is_border = are_labelled & (index[first] != index[second])
        num_neighbours += int(are_labelled.sum())
        first_values.append(index[first][is_border])
        second_values.append(index[second][is_border])
    # of each border, the ranks of both values among all values
    first_ranks = np.searchsorted(values, np.concatenate(first_values))
    second_ranks = np.searchsorted(values, np.concatenate(second_values))
    num_borders = len(first_ranks)
    if not num_borders:
        return _Neighbours(share_of_borders=0.0, share_of_near=0.0)
    largest_near_step = max(1, len(values) // _STEPS_PER_NEAR_STEP)
    is_near = np.abs(first_ranks - second_ranks) <= largest_near_step
    ranks = np.concatenate([first_ranks, second_ranks])
    borders = np.bincount(ranks)
    near_borders = np.bincount(ranks, weights=np.concatenate([is_near, is_near]))
    has_border = borders > 0
    near_shares = near_borders[has_border] / borders[has_border]
    return _Neighbours(num_borders / num_neighbours, float(near_shares.mean()))


# Which classes they are
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a set of masks.

    Attributes:
        names: one per class.
        stored: the value of each class in the masks; None = 0, 1, ...
        pixels: name -> labelled pixels.
    """

    names: tuple[str, ...]
    stored: tuple[int, ...] | None
    pixels: Mapping[str, int]


def mask_classes(
    survey: MaskSurvey, names: Sequence[str] = (), class_values: Sequence[int] = ()
) -> MaskClasses:
    """Return which classes the values of masks are.

    Args:
        survey: the values.
        names: of the classes, where they are known; empty = as many classes as the masks have.
        class_values: the value of each class in the masks; empty = 0, 1, ..., and of two classes
            also 0 and 255 (or 65535), where the masks hold no other value.

    Raises:
        DataError: if a value is no class, or it is open what the values mean.
    """
    if not survey.pixels:
        raise DataError(
            f"all pixels of the masks are unlabelled; expected class indices{survey.marked_words()}"
        )
    names, stored = _choose_classes(survey, tuple(names), tuple(class_values))
    expected = range(len(names)) if stored is None else stored
    outside = [value for value in survey.pixels if value not in expected]
    if outside:
        check_not_in_alpha(survey)
        why_numbers = ""
        why_object_ids = ""
        if stored is None:
            why_numbers = reason_for_numbers(survey)
            why_object_ids = reason_for_object_ids(survey)
        misfit = describe_misfit(
            survey.pixels,
            len(names),
            stored,
            first=survey.holder(outside[0]),
            why_numbers=why_numbers,
            why_object_ids=why_object_ids,
        )
        raise DataError(f"the masks hold {misfit}")
    log_marks(survey.marked, expected)
    pixels = {}
    for name, value in zip(names, expected, strict=True):
        pixels[name] = survey.pixels.get(value, 0)
    return MaskClasses(names, stored, pixels)


def _choose_classes(
    survey: MaskSurvey, names: tuple[str, ...], class_values: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """The names of the classes and their values; None instead of the values: 0, 1, ..."""
    if class_values:
        if names and len(names) != len(class_values):
            raise DataError(
                f"there are {counted(len(names), 'class name')} and {len(class_values)} class "
                "values; expected one value for each name"
            )
        return names or tuple(map(str, class_values)), class_values
    _check_one_form(survey)
    values = tuple(survey.pixels)
    if is_black_and_white(values) and len(names) in (0, 2):
        names = names or tuple(map(str, values))
        logger.warning(
            "the masks hold %d and %d alone: they are read as the classes %r and %r",
            values[0],
            values[1],
            names[0],
            names[1],
        )
        return names, values
    if names:
        return names, None
    check_indices(survey)
    return tuple(map(str, range(values[-1] + 1))), None


def is_black_and_white(values: Iterable[int]) -> bool:
    """Whether values are 0 and the largest number of 8 or 16 bits, as of masks drawn in white."""
    return {*values} in ({0, white} for white in _WHITES)


def check_indices(survey: MaskSurvey) -> None:
    """Refuse masks whose values are no class indices 0, 1, ..., for a reader without class names.

    Raises:
        DataError: naming what they seem to be, and the way to read them.
    """
    values = [*survey.pixels]
    if _is_smoothed(survey.pixels):
        raise DataError(
            f"{survey.holder(values[-1])} and others hold {len(values)} grey levels, most of them "
            "near black or white: the masks were smoothed, by resizing or JPEG. Make them again by "
            "nearest neighbour, or set a threshold"
        )
    check_not_in_alpha(survey)
    why_numbers = reason_for_numbers(survey)
    if why_numbers:
        raise DataError(
            f"the masks seem to hold numbers per pixel, not classes: {why_numbers}. Read numbers without "
            "classes: DenseLabels(), --label-kind numbers. If these are classes, name them (--classes); "
            "objects are learned from COCO files (--instances, --panoptic)"
        )
    if values[0] < 0:
        raise DataError(
            f"{survey.holder(values[0])} holds {values[0]} "
            f"({counted(survey.pixels[values[0]], 'pixel')}); expected class indices 0, 1, ...: "
            f"pass nodata={values[0]} (--nodata {values[0]}) if it marks pixels without a class"
        )
    if _are_grey_levels(values) and not reason_for_object_ids(survey):
        raise DataError(
            f"the masks hold {some_of_numbers(values)}, which seem to be grey levels to look at and no "
            f"indices 0, 1, ...: pass the grey level of each class{_values_option(values)}, and as nodata "
            "one that marks pixels without a class. If they are indices, name all classes (--classes)"
        )
    for white in _WHITES:
        others = [value for value in values if value != white]
        if white in values and (not others or others[-1] < white - 1):
            raise DataError(
                f"{survey.holder(white)} holds {white}, which usually marks pixels without a "
                f"class: pass nodata={white} (--nodata {white}), or name the classes with their "
                f"values: class_values= (--classes, --class-values)"
            )
    if has_codes(values):
        raise DataError(
            f"the masks hold {some_of_numbers(values)}, which seem to be codes of classes and no "
            f"indices 0, 1, ...: pass the code of each class{_values_option(values)}. If they are "
            f"indices, and the masks show {len(values)} of more classes, name all of them (--classes)"
        )
    why_object_ids = reason_for_object_ids(survey)
    if why_object_ids:
        raise DataError(
            f"the masks seem to hold object ids, not classes: {why_object_ids}. Learn objects from COCO "
            "files with --instances or --panoptic; if these are classes, name them (--classes), "
            f"with their values{_values_option(values)}"
        )
    called = next((file.name for file in survey.files if _is_called_objects(file.name)), None)
    if called is not None and values[-1] > 1:
        logger.warning(
            "%s is called like a mask of objects, whose numbers count objects: they are read as the "
            "classes %s. Learn objects from COCO files (--instances, --panoptic), or name the masks of "
            "classes",
            called,
            some_of_numbers(values),
        )


def _is_called_objects(name: str) -> bool:
    """Whether a mask or its folder is called so: ``SegmentationObject/0.png``, ``0_cp_masks.png``."""
    path = Path(name)
    words = words_of(path.stem) | words_of(path.parent.name)
    return any(of_objects <= words for of_objects in _WORDS_OF_OBJECTS)


def check_not_in_alpha(survey: MaskSurvey) -> None:
    """Raise a DataError for masks that are in the alpha channel, as tools that cut out objects write them.

    In such files all pixels that are not transparent have one colour.

    Raises:
        DataError: with the way to save the alpha channel as the mask.
    """
    # a mark without values is transparency
    hidden = sum(count for mark, count in survey.marked.items() if not mark.values)
    if not hidden or len(survey.pixels) > 1:
        return
    [value] = survey.pixels
    if value not in (0, *_WHITES):
        return
    raise DataError(
        f"{survey.holder(value)} and all others hold {value} alone, and {counted(hidden, 'pixel')} are "
        "transparent: the mask seems to be in the alpha. Save that as the mask "
        "(Image.open(file).convert('RGBA').getchannel('A').save('mask.png'))"
    )


def _values_option(values: Sequence[int]) -> str:
    """The argument for the values of all classes, to follow what it is for."""
    if len(values) > _MOST_LISTED:
        return ": class_values= (--class-values)"
    return f": class_values=({_in_python(values)}) (--class-values {_on_shell(values)})"


def _in_python(values: Sequence[int]) -> str:
    """Values as a tuple lists them; many are cut."""
    shown = ", ".join(map(str, values[:_MOST_LISTED]))
    return f"{shown}, ..." if len(values) > _MOST_LISTED else shown


def _on_shell(values: Sequence[int]) -> str:
    """Values as an option lists them; many are cut."""
    shown = " ".join(map(str, values[:_MOST_LISTED]))
    return f"{shown} ..." if len(values) > _MOST_LISTED else shown


def _check_one_form(survey: MaskSurvey) -> None:
    """Refuse masks of two classes of which some have 0 and 1, others 0 and 255 or 65535."""
    foregrounds = [value for value in survey.pixels if value != 0]
    if len(foregrounds) < 2 or not {*foregrounds} <= {1, *_WHITES}:
        return
    for file in survey.files:
        if sum(value in file.pixels for value in foregrounds) > 1:
            return
    holders = [f"{survey.holder(value)} holds 0 and {value}" for value in foregrounds]
    number_of_forms = "two" if len(foregrounds) == 2 else "three"
    remedy = "save all in one form"
    if 1 in foregrounds and len(foregrounds) == 2:
        white = foregrounds[-1]
        remedy += f", or pass nodata={white} (--nodata {white}) if it marks pixels without a class"
    raise DataError(
        f"{', '.join(holders)}, and no mask has two of these numbers above 0: they seem to be one mask "
        f"in {number_of_forms} forms; {remedy}"
    )


def _is_smoothed(pixels: Mapping[int, int]) -> bool:
    near_black = [value for value in pixels if 0 < value <= _END]
    near_white = [value for value in pixels if 255 - _END <= value < 255]
    if min(len(near_black), len(near_white)) < _LEAST_LEVELS_PER_END or max(pixels) > 255:
        return False
    at_ends = sum(pixels[value] for value in (0, *near_black, *near_white, 255) if value in pixels)
    return at_ends >= _LEAST_SHARE_AT_ENDS * sum(pixels.values())


def reason_for_numbers(survey: MaskSurvey) -> str:
    """Return why the values of masks seem to be numbers per pixel; "" if they do not."""
    labelled = [file for file in survey.files if file.pixels]
    candidates = [file for file in labelled if file.is_gradual or file.has_many_values()]
    if 2 * len(candidates) <= len(labelled):
        return ""
    # many values may also be ids of objects, unless the areas of most masks speak against it
    of_numbers = [file for file in candidates if file.is_of_numbers()]
    is_clear = 2 * len(of_numbers) > len(candidates)
    if not is_clear and reason_for_object_ids(survey):
        return ""
    first = candidates[0]
    value_range = f"{min(first.pixels)} ... {max(first.pixels)}"
    example = f"such as {first.name} with {len(first.pixels)}, {value_range}"
    if any(file.is_gradual for file in candidates):
        num_masks = counted(len(candidates), "mask")
        return f"the values of {num_masks} change from pixel to pixel by small steps, {example}"
    return f"{_have(candidates)} {_LEAST_VALUES_OF_NUMBERS} different values or more, {example}"


def reason_for_object_ids(survey: MaskSurvey) -> str:
    """Return why the values of masks seem to be ids of objects; "" = they do not."""
    objects = [value for value in survey.pixels if value > 0]
    with_objects = [file for file in survey.files if any(value > 0 for value in file.pixels)]
    if not objects or {*objects} <= {*_WHITES}:
        return ""
    largest = objects[-1]
    share = len(objects) / largest
    if largest >= _MOST_CLASSES_WITH_GAPS and share < _LEAST_SHARE_OF_NUMBERS:
        if len(objects) == 1:
            return f"the number {largest}"
        return f"{len(objects)} numbers up to {largest}, with gaps"
    if len(with_objects) < _LEAST_MASKS:
        return ""
    numbers_of_all_masks = 0
    for file in with_objects:
        numbers_of_all_masks += sum(value > 0 for value in file.pixels)
    if numbers_of_all_masks == len(objects):
        first, second = with_objects[:2]
        return (
            f"each of {len(with_objects)} masks has numbers of its own, such as "
            f"{max(first.pixels)} in {first.name} and {max(second.pixels)} in {second.name}"
        )
    tops = [file.tops for file in with_objects if file.is_in_order and file.tops is not None]
    numbers = {max(file.pixels) for file in with_objects}
    in_order = len(tops) == len(with_objects) and len(numbers) > 1
    several = [file for file in with_objects if max(file.pixels) >= _FEWEST_STACKED]
    if 2 * sum(file.is_stacked for file in several) > len(several):
        return ""  # layers and zones, of which the last ones are missing in some masks
    if in_order and largest > _MOST_CLASSES_IN_ORDER and np.median(tops) <= _TOPS_OF_AN_OBJECT:
        return (
            f"each of {len(with_objects)} masks has the numbers 1 ... n, with n from "
            f"{min(numbers)} to {max(numbers)}, and one area for each"
        )
    return ""


def describe_misfit(
    pixels: Mapping[int, int],
    classes: int,
    stored: Sequence[int] | None = None,
    *,
    first: str = "",
    why_numbers: str = "",
    why_object_ids: str = "",
) -> str:
    """Return which values of masks are no class, and what may help, to follow "it holds".

    Args:
        pixels: value -> labelled pixels, in the order of the values; one or more is no class.
        classes: how many there are.
        stored: the value of each class; None = 0, 1, ...
        first: the name of the first mask that has one of them; "" = there is one mask.
        why_numbers: why the values seem to be numbers per pixel; "" = they do not.
        why_object_ids: why the values seem to be object ids; "" = they do not.
    """
    expected = range(classes) if stored is None else stored
    outside = [value for value in pixels if value not in expected]
    count = sum(pixels[value] for value in outside)
    where = f", first in {first}" if first else ""
    refused = f"{some_of_numbers(outside)} ({counted(count, 'pixel')}{where}); expected"
    if stored is not None:
        return f"{refused} the class values {some_of_numbers(stored)}, or name it as nodata"
    refused += f" class indices 0 ... {classes - 1}"
    hint = (
        _hint_for_smoothed(pixels)
        or _hint_for_numbers(why_numbers)
        or _hint_for_object_ids(why_object_ids)
        or _hint_for_black_and_white([*pixels])
        or _hint_for_classes_from_one([*pixels], classes)
        or _hint_for_negative(outside)
        or _hint_for_gaps([*pixels], classes)
        or _hint_for_unlabelled_zero([*pixels], classes)
        or _hint_for_white([*pixels], outside, classes)
    )
    if hint:
        return f"{refused}. {hint}"
    return f"{refused}: raise classes, or name it as nodata"


def _hint_for_numbers(reason: str) -> str:
    if not reason:
        return ""
    return f"They seem to be numbers per pixel (--label-kind numbers): {reason}"


def _hint_for_object_ids(reason: str) -> str:
    if not reason:
        return ""
    return f"They seem to be object ids (--instances, --panoptic): {reason}"


def _hint_for_smoothed(pixels: Mapping[int, int]) -> str:
    if not _is_smoothed(pixels):
        return ""
    return "The mask was smoothed, by resizing or JPEG: make it by nearest neighbour"


def _hint_for_black_and_white(values: Sequence[int]) -> str:
    if not is_black_and_white(values):
        return ""
    return (
        f"{values[0]} and {values[1]} alone are two classes: pass class_values=({values[0]}, "
        f"{values[1]}), or two class names (--classes)"
    )


def _hint_for_classes_from_one(values: Sequence[int], classes: int) -> str:
    if values[0] != 1 or values[-1] != classes:
        return ""
    return (
        f"If the classes are numbered from 1, pass class_values=range(1, {classes + 1}) "
        f"(--class-values {_first_to_last(classes)})"
    )


def _hint_for_unlabelled_zero(values: Sequence[int], classes: int) -> str:
    """The hint for one class more than there are names, where 0 may be none."""
    if values[0] != 0 or values[-1] != classes:
        return ""
    return (
        f"If the classes are numbered from 1 and 0 marks pixels without a class, pass nodata=0 and "
        f"class_values=range(1, {classes + 1}) (--nodata 0 --class-values {_first_to_last(classes)}); "
        f"if 0 is a class, name {classes + 1} classes"
    )


def _first_to_last(classes: int) -> str:
    """The numbers 1 ... classes as an option has them."""
    if classes <= _SHOWN:
        return " ".join(map(str, range(1, classes + 1)))
    return f"1 2 ... {classes}"


def _hint_for_negative(outside: Sequence[int]) -> str:
    if outside[-1] >= 0:
        return ""
    option = " ".join(map(str, outside[:_SHOWN]))
    return f"Pass --nodata {option} (nodata=) if it marks pixels without a class"


def _hint_for_gaps(values: Sequence[int], classes: int) -> str:
    """The hint for codes of classes, such as 10, 20, ...: as many as there are classes, or fewer."""
    if len(values) == classes:
        return (
            f"If these are the classes in their order, pass class_values=({_in_python(values)}) "
            f"(--class-values {_on_shell(values)})"
        )
    if values[0] == 0 and len(values) == classes + 1 and has_codes(values):
        codes = values[1:]
        return (
            f"If 0 marks pixels without a class, pass nodata=0 and class_values=({_in_python(codes)}) "
            f"(--nodata 0 --class-values {_on_shell(codes)})"
        )
    if has_codes(values) and len(values) < classes:
        return (
            f"They seem to be codes of classes, and the masks show {len(values)} of {classes}: pass "
            f"the code of every class, in the order of the names: class_values= (--class-values "
            f"{_on_shell(values)} ...)"
        )
    return ""


def has_codes(values: Sequence[int]) -> bool:
    """Return whether values of masks are codes in steps, such as 10, 20, 30, 95 of land cover."""
    codes = [value for value in values if value > 0]
    return len(codes) >= _FEWEST_CODES and math.gcd(*codes) >= _LEAST_STEP


def _are_grey_levels(values: Sequence[int]) -> bool:
    """Return whether the sorted values without white are few, and the largest is far above their number."""
    levels = [value for value in values if value not in _WHITES]
    if not levels or levels[-1] > _LARGEST_GREY or has_codes(values):
        return False
    least_largest = max(_LEAST_BRIGHT, _LEAST_GREYS_PER_CLASS * len(levels))
    return levels[-1] >= least_largest


def _hint_for_white(values: Sequence[int], outside: Sequence[int], classes: int) -> str:
    """The hint for 255 (or 65535) as the only number that is no class, where one of two is free."""
    is_white = len(outside) == 1 and outside[0] in _WHITES
    if not is_white or classes != 2 or 1 in values:
        return ""
    return (
        f"Pass class_values=(0, {outside[0]}) (--class-values 0 {outside[0]}) if it is a class, "
        "nodata if it marks pixels without one"
    )


def some_of_numbers(values: Iterable[int]) -> str:
    """Return the first numbers in their order as text, and how many more there are: ``1, 2, 3, 4, 5 and 2 more``."""
    ordered = [*values]
    shown = ", ".join(map(str, ordered[:_SHOWN]))
    rest = len(ordered) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
