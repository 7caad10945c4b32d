"""Masks of classes: which values they hold, and which classes these are.

What a value means is decided over all masks of a run: 0 and 255 are two classes, and 255 beside
other classes is unlabelled.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinoneck.data.class_colors import Rgb, color_text
from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list
from dinoneck.images.pixels import in_threads
from dinoneck.images.rasters import Colour, LabelRaster, Raw, read_label
from dinoneck.text import counted, some_of

WHITE = 255
"""The largest value of 8 bits: one of two classes, or unlabelled."""

_WHITES = (WHITE, 65535)
_MOST_CLASSES = 256  # without names
_GREY = 0x010101  # of a grey level, its number as a colour


@dataclass(frozen=True)
class ClassOptions:
    """What is stated of masks of classes; empty = not stated.

    Attributes:
        names: of the classes.
        values: the stored value of each class.
        colours: the colour of each class.
        nodata: stored values without a label; of masks of colours, grey levels.
    """

    names: Sequence[str] = ()
    values: Sequence[int] = ()
    colours: Sequence[Rgb] = ()
    nodata: Sequence[float] = ()

    def may_be_class(self, value: int) -> bool:
        """Return whether a stored value can be a class."""
        if self.colours:
            return value in map(color_number, self.colours)
        if self.values:
            return value in self.values
        return 0 <= value < max(_MOST_CLASSES, len(self.names)) or value in _WHITES


# One mask
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StoredMask:
    """One mask of classes as it is stored.

    Attributes:
        name: what messages call it.
        values: (H, W), stored values; of a mask of colours their numbers, see :func:`color_number`.
        is_unlabelled: (H, W) bool.
        palette: value -> colour, of a mask with a palette whose indices count.
    """

    name: str
    values: Raw
    is_unlabelled: Raw
    palette: Mapping[int, Colour]

    @property
    def has_8_bits(self) -> bool:
        """Whether the stored values have 8 bits."""
        return bool(self.values.dtype == np.uint8)


def stored_mask(raster: LabelRaster, options: ClassOptions) -> StoredMask:
    """Return the values of a mask.

    Raises:
        DataError: if it holds colours and none are stated, or no colours of 8 bits and some are
            stated.
    """
    if options.colours:
        return _mask_of_colours(raster, options.nodata)
    return StoredMask(
        raster.name,
        values=_one_band(raster),
        is_unlabelled=raster.unlabelled(options.nodata),
        palette=raster.palette or {},
    )


def read_stored_masks(
    labels: Sequence[Any], options: ClassOptions, image_sizes: Sequence[Any] | None
) -> Iterable[tuple[StoredMask, MaskFile]]:
    """Read masks one after another, each with its values counted; decoded by threads."""
    sizes = [None] * len(labels) if image_sizes is None else image_sizes

    def read(number: int) -> tuple[StoredMask, MaskFile]:
        mask = stored_mask(read_label(labels[number], sizes[number], number), options)
        return mask, _count(mask)

    return in_threads(read, range(len(labels)))


def _one_band(raster: LabelRaster) -> Raw:
    """The band of a mask (H, W); of a grey picture that was saved in colours the first one."""
    if (raster.values != raster.values[..., :1]).any():
        raise DataError(
            f"{raster.name} has {raster.values.shape[2]} bands that differ: colours; name the colour "
            "of each class (--class-colors 0,128,0 255,0,0, or --classes with a CSV file of name, r, "
            "g, b)"
        )
    return raster.values[..., 0]


def _mask_of_colours(raster: LabelRaster, nodata: Sequence[float]) -> StoredMask:
    """A mask whose values are numbers of colours."""
    bands = raster.values.shape[2]
    if raster.values.dtype != np.uint8 or bands not in (1, 3):
        raise DataError(
            f"{raster.name} has {bands} bands of the type {raster.values.dtype}; with class colours "
            "expected a picture of 8 bits, grey, with a palette or RGB"
        )
    if raster.palette is not None:
        numbers = np.full(256, -1, np.int32)
        for index, colour in raster.palette.items():
            numbers[index] = color_number(colour)
        values = numbers[raster.values[..., 0]]
    elif bands == 1:
        values = raster.values[..., 0].astype(np.int32) * _GREY
    else:
        values = raster.values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    # a value without a label is a grey level, and not a value of any band
    levels = [*nodata] if raster.nodata is None else [*nodata, raster.nodata]
    is_unlabelled = replace(raster, nodata=None).unlabelled(())
    for level in levels:
        is_unlabelled |= values == level * _GREY
    return StoredMask(raster.name, values, is_unlabelled, palette={})


def color_number(colour: Sequence[int]) -> int:
    """Return a colour as one number, ``0xRRGGBB``."""
    red, green, blue = colour
    return (red << 16) + (green << 8) + blue


def color_of_number(number: int) -> Rgb:
    """Return the colour that :func:`color_number` made a number of."""
    return number >> 16, number >> 8 & 255, number & 255


# The values of a set of masks
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskFile:
    """The values of one mask.

    Attributes:
        name: of the mask in messages.
        pixels: value -> number of labelled pixels that have it.
        unlabelled: number of pixels without a label.
        palette: value -> colour, of the values that occur in a mask with a palette.
        has_8_bits: whether its values have 8 bits.
    """

    name: str
    pixels: Mapping[int, int]
    unlabelled: int
    palette: Mapping[int, Colour]
    has_8_bits: bool


@dataclass(frozen=True)
class MaskSurvey:
    """The values of a set of masks, one by one."""

    files: Sequence[MaskFile]

    @functools.cached_property
    def pixels(self) -> Mapping[int, int]:
        """Value -> labelled pixels of all masks, in the order of the values."""
        pixels: Counter[int] = Counter()
        for file in self.files:
            pixels.update(file.pixels)
        return dict(sorted(pixels.items()))

    def holder(self, value: int) -> str:
        """Return the name of the first mask that has a value."""
        return next(file.name for file in self.files if value in file.pixels)


def survey_masks(
    labels: Any,
    options: ClassOptions = ClassOptions(),
    image_sizes: Sequence[Sequence[int]] | None = None,
) -> MaskSurvey:
    """Read masks of classes and count their values.

    Args:
        labels: one mask or several: paths, PIL images or arrays.
        options: what is stated of them.
        image_sizes: (height, width) in pixels of each upright image; None compares nothing.

    Raises:
        DataError: if a mask cannot be read, has another size than its image, or holds fractions, or
            colours where none are stated.
    """
    masks = read_stored_masks(as_list(labels, "labels"), options, image_sizes)
    return MaskSurvey([file for _, file in masks])


def _count(mask: StoredMask) -> MaskFile:
    values, counts = _count_values(mask.values[~mask.is_unlabelled])
    check_whole(values, mask.name)
    pixels = dict(zip(map(int, values.tolist()), counts.tolist(), strict=True))
    return MaskFile(
        mask.name,
        pixels,
        unlabelled=int(mask.is_unlabelled.sum()),
        palette={value: mask.palette[value] for value in pixels if value in mask.palette},
        has_8_bits=mask.has_8_bits,
    )


def _count_values(values: Raw) -> tuple[Raw, Raw]:
    """The distinct values, sorted, and how often each occurs."""
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        indices = np.flatnonzero(counts)
        return indices, counts[indices]
    return np.unique(values, return_counts=True)


def check_whole(values: Raw, name: str) -> None:
    """Raise a DataError for fractions and infinite values."""
    broken = values[~np.isfinite(values) | (values != np.floor(values))]
    if broken.size:
        raise DataError(
            f"{name} holds {broken[0]:g}; expected class indices. For numbers per pixel: --label-kind "
            "numbers"
        )


# Which classes they are
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassCoding:
    """Which stored values are which classes.

    Attributes:
        count: how many classes there are.
        stored: the value of each class, of colours their numbers; None = 0, 1, ...
        options: what is stated of the masks.
        unlabelled: stored values without a label in masks of 8 bits, beside those stated.
    """

    count: int
    stored: tuple[int, ...] | None
    options: ClassOptions
    unlabelled: tuple[int, ...] = ()

    def index(self, raster: LabelRaster) -> Raw:
        """Return the class of each pixel, (H, W) int64, -1 = unlabelled.

        Raises:
            DataError: if a value is of no class; as :func:`stored_mask`.
        """
        mask = stored_mask(raster, self.options)
        is_unlabelled = mask.is_unlabelled
        if mask.has_8_bits and self.unlabelled:
            is_unlabelled = is_unlabelled | np.isin(mask.values, self.unlabelled)
        if mask.values.dtype in (np.uint8, np.uint16):
            index = self._class_of(np.arange(np.iinfo(mask.values.dtype).max + 1))[mask.values]
        else:
            index = self._class_of(mask.values)
        wrong = mask.values[(index < 0) & ~is_unlabelled]
        if wrong.size:
            check_whole(wrong, mask.name)
            raise DataError(self.misfit(mask.name, Counter(wrong.tolist())))
        index[is_unlabelled] = -1
        return index

    def _class_of(self, values: Raw) -> Raw:
        """The class of each value, int64, -1 = none."""
        if self.stored is None:
            with np.errstate(invalid="ignore"):
                is_class = (values >= 0) & (values < self.count) & (values == np.floor(values))
            return np.where(is_class, values, -1).astype(np.int64)
        order = np.argsort(self.stored)
        ordered = np.array(self.stored)[order]
        position = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
        return np.where(ordered[position] == values, order[position], -1)

    def misfit(self, name: str, pixels: Mapping[int, int]) -> str:
        """Return the message for values of a mask that are no classes.

        Args:
            name: of the mask.
            pixels: value, or number of the colour, -> how many pixels have it.
        """
        value, num_pixels = next(iter(pixels.items()))
        size = counted(num_pixels, "pixel")
        others = ""
        if len(pixels) > 1:
            others = (
                f". {len(pixels)} of its values are of no class: a mask is resized by nearest neighbour, "
                "without smooth edges, and never saved as JPEG"
            )
        if self.options.colours:
            colours = " ".join(color_text(colour) for colour in self.options.colours[:8])
            return (
                f"{name} has the colour {color_text(color_of_number(value))} in {size}, which is of no "
                f"class; expected {colours}: name it too (--class-colors, or --classes with its table)"
                f"{others}"
            )
        expected = range(self.count) if self.stored is None else self.stored
        return (
            f"{name} holds {value} in {size}, which is of no class; expected "
            f"{some_of_numbers(expected)}: name its class (--classes, --class-values), or it as "
            f"unlabelled (--nodata {value}){others}"
        )


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a set of masks.

    Attributes:
        names: one per class.
        stored: the value of each class in the masks; None = 0, 1, ..., or classes are told by
            colours.
        pixels: name -> labelled pixels.
        unlabelled: number of pixels without a label.
        unlabelled_values: stored values that mean unlabelled although nobody named them: 255 of 8-bit
            masks, or none.
        coding: how pixels become classes.
    """

    names: tuple[str, ...]
    stored: tuple[int, ...] | None
    pixels: Mapping[str, int]
    unlabelled: int
    unlabelled_values: tuple[int, ...]
    coding: ClassCoding


def mask_classes(survey: MaskSurvey, options: ClassOptions = ClassOptions()) -> MaskClasses:
    """Return which classes the values of masks are.

    Without class values and colours they are 0, 1, ...; where the masks hold 0 and 255 (or 65535)
    alone and no other number of names is stated, these are two classes. Else 255 is unlabelled in
    masks of 8 bits, unless it is the value of a named class.

    Args:
        survey: the values.
        options: what is stated of them, as in the survey.

    Raises:
        DataError: if a value is no class, or an index has two colours.
    """
    if not survey.pixels:
        raise DataError(
            "all pixels of the masks are unlabelled, by nodata or alpha 0; expected class indices"
        )
    unlabelled_values = _unlabelled_values(survey, options)
    labelled = [value for value in survey.pixels if value not in unlabelled_values]
    if not labelled:
        raise DataError(
            f"the masks hold {some_of_numbers(survey.pixels)} alone, which is unlabelled; expected "
            "class indices, or its class named (--class-values)"
        )
    names, stored = _names_and_values(survey, labelled, options)
    coding = ClassCoding(len(names), stored, options, unlabelled_values)
    expected = range(len(names)) if stored is None else stored
    wrong = [value for value in labelled if value not in expected]
    if wrong:
        holder = next(file for file in survey.files if wrong[0] in file.pixels)
        pixels_of_wrong = {value: holder.pixels[value] for value in wrong if value in holder.pixels}
        raise DataError(coding.misfit(holder.name, pixels_of_wrong))
    _check_palettes(survey.files, unlabelled_values)
    pixels = {}
    for name, value in zip(names, expected, strict=True):
        pixels[name] = survey.pixels.get(value, 0)
    unlabelled = sum(file.unlabelled for file in survey.files)
    unlabelled += sum(survey.pixels[value] for value in unlabelled_values)
    return MaskClasses(
        names,
        stored=None if options.colours else stored,
        pixels=pixels,
        unlabelled=unlabelled,
        unlabelled_values=unlabelled_values,
        coding=coding,
    )


def _unlabelled_values(survey: MaskSurvey, options: ClassOptions) -> tuple[int, ...]:
    """255 of masks of 8 bits that hold it, unless it is one of two classes or named."""
    if options.colours or WHITE in options.values or len(options.names) > WHITE:
        return ()
    holders = [file for file in survey.files if WHITE in file.pixels]
    if not holders or not all(file.has_8_bits for file in holders):
        return ()
    if not options.values and _are_two_classes(survey.pixels, options.names):
        return ()
    return (WHITE,)


def _are_two_classes(values: Iterable[int], names: Sequence[str]) -> bool:
    """Whether values are 0 and the largest number of 8 or 16 bits, as of masks drawn in white."""
    return {*values} in ({0, white} for white in _WHITES) and len(names) in (0, 2)


def _names_and_values(
    survey: MaskSurvey, labelled: Sequence[int], options: ClassOptions
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """The names of the classes and their values; None instead of the values: 0, 1, ..."""
    names = tuple(options.names)
    for stated in (options.colours, options.values):
        if stated and names and len(names) != len(stated):
            raise DataError(
                f"there are {counted(len(names), 'class name')} and {len(stated)} class "
                f"{'colours' if stated is options.colours else 'values'}; expected one for each name"
            )
    if options.colours:
        texts = [color_text(colour) for colour in options.colours]
        return names or tuple(texts), tuple(map(color_number, options.colours))
    if options.values:
        return names or tuple(map(str, options.values)), tuple(options.values)
    if _are_two_classes(labelled, names):
        return names or tuple(map(str, labelled)), tuple(labelled)
    if names:
        return names, None
    if labelled[0] < 0 or labelled[-1] >= _MOST_CLASSES:
        outside = labelled[0] if labelled[0] < 0 else labelled[-1]
        raise DataError(
            f"{survey.holder(outside)} holds {outside}, and the masks {some_of_numbers(labelled)}; "
            f"expected class indices 0, 1, ... below {_MOST_CLASSES}: name the values of the classes "
            "(--class-values), or read numbers per pixel (--label-kind numbers)"
        )
    return tuple(map(str, range(labelled[-1] + 1))), None


def _check_palettes(files: Iterable[MaskFile], unlabelled_values: Sequence[int]) -> None:
    """Raise a DataError for masks in which one index of a class has two colours."""
    first: dict[int, tuple[Colour, str]] = {}
    for file in files:
        for index, colour in file.palette.items():
            if index in unlabelled_values:
                continue
            other, name = first.setdefault(index, (colour, file.name))
            if other != colour:
                raise DataError(
                    f"the palettes differ: index {index} is RGB {color_text(colour)} in {file.name} "
                    f"and {color_text(other)} in {name}; save all labels with one palette, or name "
                    "the colour of each class (--class-colors)"
                )


def some_of_numbers(values: Iterable[int]) -> str:
    """Return a list of numbers for a message."""
    return some_of([f"{value:.12g}" for value in values], 8)
