"""Masks of classes: which values they hold, and which classes these are."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list
from dinoneck.images.pixels import in_threads
from dinoneck.images.rasters import Colour, LabelRaster, Raw, read_label
from dinoneck.text import counted, some_of

_WHITES = (255, 65535)
_MOST_CLASSES = 256  # without names


@dataclass(frozen=True)
class MaskFile:
    """The values of one mask.

    Attributes:
        name: of the mask in messages.
        pixels: value -> number of labelled pixels that have it.
        unlabelled: number of pixels without a label.
        colours: value -> colour, of a mask with a palette.
    """

    name: str
    pixels: Mapping[int, int]
    unlabelled: int
    colours: Mapping[int, Colour]


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


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a set of masks.

    Attributes:
        names: one per class.
        stored: the value of each class in the masks; None = 0, 1, ...
        pixels: name -> labelled pixels.
        unlabelled: number of pixels without a label.
        unlabelled_values: stored values that mean unlabelled although nobody named them: 255 of 8-bit
            masks, or none.
    """

    names: tuple[str, ...]
    stored: tuple[int, ...] | None
    pixels: Mapping[str, int]
    unlabelled: int
    unlabelled_values: tuple[int, ...] = ()


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
        DataError: if a mask cannot be read, has another size than its image, or holds colours or
            fractions; if two masks have different colours for one index.
    """
    singles = as_list(labels, "labels")
    sizes = [None] * len(singles) if image_sizes is None else image_sizes

    def read(number: int) -> MaskFile:
        return _survey(read_label(singles[number], sizes[number], number), nodata)

    files = list(in_threads(read, range(len(singles))))
    check_palettes(files)
    return MaskSurvey(files)


def _survey(raster: LabelRaster, nodata: Sequence[float]) -> MaskFile:
    is_unlabelled = raster.unlabelled(nodata)
    values, counts = count_values(one_band(raster)[~is_unlabelled])
    check_whole(values, raster.name)
    pixels = dict(zip(map(int, values.tolist()), counts.tolist(), strict=True))
    palette = raster.palette or {}
    colours = {value: palette[value] for value in pixels if value in palette}
    return MaskFile(raster.name, pixels, int(is_unlabelled.sum()), colours)


def one_band(raster: LabelRaster) -> Raw:
    """Return the band of a mask (H, W); of a grey picture that was saved in colours the first one.

    Raises:
        DataError: if its bands differ.
    """
    if (raster.values != raster.values[..., :1]).any():
        raise DataError(
            f"{raster.name} has {raster.values.shape[2]} bands that differ: colours; expected class "
            "indices, grey or with a palette"
        )
    return raster.values[..., 0]


def count_values(values: Raw) -> tuple[Raw, Raw]:
    """Return the distinct values, sorted, and how often each occurs."""
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        indices = np.flatnonzero(counts)
        return indices, counts[indices]
    return np.unique(values, return_counts=True)


def check_whole(values: Raw, name: str) -> None:
    """Refuse fractions and infinite values."""
    broken = values[~np.isfinite(values) | (values != np.floor(values))]
    if broken.size:
        raise DataError(
            f"{name} holds {broken[0]:g}; expected class indices. For numbers per pixel: --label-kind "
            "numbers"
        )


def check_palettes(files: Iterable[MaskFile]) -> None:
    """Refuse masks in which one index has two colours.

    Raises:
        DataError: naming the index and both masks.
    """
    first: dict[int, tuple[Colour, str]] = {}
    for file in files:
        for index, colour in file.colours.items():
            other, name = first.setdefault(index, (colour, file.name))
            if other != colour:
                raise DataError(
                    f"the palettes differ: index {index} is RGB {colour} in {file.name} and {other} in "
                    f"{name}; save all labels with one palette, or as grey indices"
                )


def mask_classes(
    survey: MaskSurvey, names: Sequence[str] = (), class_values: Sequence[int] = ()
) -> MaskClasses:
    """Return which classes the values of masks are.

    Args:
        survey: the values.
        names: of the classes; empty = as many classes as the masks have.
        class_values: the value of each class in the masks; empty = 0, 1, ..., and of two classes
            also 0 and 255 (or 65535), where the masks hold no other value.

    Raises:
        DataError: if a value is no class.
    """
    if not survey.pixels:
        raise DataError("all pixels of the masks are unlabelled; expected class indices")
    names, stored = _choose(survey.pixels, tuple(names), tuple(class_values))
    expected = range(len(names)) if stored is None else stored
    for value in survey.pixels:
        if value not in expected:
            raise DataError(
                f"{survey.holder(value)} holds {value} ({counted(survey.pixels[value], 'pixel')} of all "
                f"masks), and the classes are {some_of(names, 5)} of the values "
                f"{some_of_numbers(expected)}; name all values (--class-values), or it as unlabelled "
                f"(--nodata {value})"
            )
    pixels = {}
    for name, value in zip(names, expected, strict=True):
        pixels[name] = survey.pixels.get(value, 0)
    return MaskClasses(names, stored, pixels, sum(file.unlabelled for file in survey.files))


def _choose(
    pixels: Mapping[int, int], names: tuple[str, ...], class_values: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """The names of the classes and their values; None instead of the values: 0, 1, ..."""
    if class_values:
        if names and len(names) != len(class_values):
            raise DataError(
                f"there are {counted(len(names), 'class name')} and {len(class_values)} class values; "
                "expected one value for each name"
            )
        return names or tuple(map(str, class_values)), class_values
    values = tuple(pixels)
    if is_black_and_white(values) and len(names) in (0, 2):
        return names or tuple(map(str, values)), values
    if names:
        return names, None
    if values[0] < 0 or values[-1] >= _MOST_CLASSES:
        raise DataError(
            f"the masks hold {some_of_numbers(values)}; expected class indices 0, 1, ... below "
            f"{_MOST_CLASSES}: name the values of the classes (--class-values), or read numbers per "
            "pixel (--label-kind numbers)"
        )
    return tuple(map(str, range(values[-1] + 1))), None


def is_black_and_white(values: Iterable[int]) -> bool:
    """Whether values are 0 and the largest number of 8 or 16 bits, as of masks drawn in white."""
    return {*values} in ({0, white} for white in _WHITES)


def some_of_numbers(values: Iterable[int]) -> str:
    """Return a list of numbers for a message."""
    return some_of([f"{value:g}" for value in values], 8)
