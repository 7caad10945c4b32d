"""Dense labels -> cells: pixel targets on the patch grid, prepared as their image is.

A dense head predicts once per patch. :class:`DenseLabels` reads NDVI rasters, depth maps and class
masks. It resizes, cuts and pads them exactly as :class:`dinoneck.data.Preprocessing` does the
image. So cell (r, c) of the label covers what patch (r, c) of the prepared image shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.checks import LARGEST_FLOAT
from dinoneck.codec import normalize_fields
from dinoneck.data.class_colors import parse_colors
from dinoneck.data.masks import (
    WHITE,
    ClassCoding,
    ClassOptions,
    MaskClasses,
    MaskFile,
    MaskSurvey,
    StoredMask,
    color_number,
    mask_classes,
    read_stored_masks,
    survey_masks,
)
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import patch_pair
from dinoneck.images.preprocessing import Preprocessing, on_canvas, resample
from dinoneck.images.rasters import LabelRaster, Raw, read_label, read_labels
from dinoneck.images.recipe import Interpolation
from dinoneck.text import counted, some_of

_MOST_PIXELS = 4096  # of a mask whose numbers are kept for quartiles


@dataclass(frozen=True)
class DenseLabels:
    """How stored label rasters become targets for the cells of a patch grid.

    A label belongs to the upright image and has its size. It is a path (PNG, TIFF, BMP, GIF,
    of a palette the indices, or ``.npy``), a PIL image, or an array or tensor (H, W) or (H, W, K).

    Pixels without a label weigh nothing. They are NaN, the values ``nodata``, what the tag
    GDAL_NODATA of the file marks, alpha 0, and masked pixels of a NumPy masked array.

    Args:
        scale: target units per stored unit, e.g. 1 / 65535, or 0.001 for millimetres as metres.
        offset: added after scaling: target = stored * scale + offset.
        nodata: stored value(s) of pixels without a label; a pixel with one in any band is ignored.
            NaN always marks such pixels. Infinity is kept as the largest float32, and a nodata
            value near that marks all larger numbers, infinity among them.
        classes: the label holds class indices 0 ... classes - 1, and its values are one-hot, so
            that cells are cover fractions. None: the label holds quantities.
        class_values: the stored value of each class, such as (0, 255) for masks drawn in white or
            (1, 2, 3) for classes that are numbered from 1. None: 0, 1, ...; with it ``classes`` may
            be left out.
        class_colors: the colour (r, g, b) of each class, 0 to 255, of pictures in colours; in place
            of ``class_values``. With it ``nodata`` are grey levels.

    Raises:
        ConfigError: if a value is out of range, classes are given a scale or an offset, or a class
            value or colour occurs twice or is nodata.

    Examples:
        >>> from dinoneck.data import Preprocessing
        >>> mask = np.zeros((32, 48), np.uint8)
        >>> mask[:, 40:] = 1
        >>> mask[:16, :16] = 255
        >>> values, weight = DenseLabels(nodata=255, classes=2).cells(mask, Preprocessing(patch_size=16))
        >>> values[0, 1].tolist(), weight[0].tolist()
        ([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]], [[0.0, 256.0, 256.0], [256.0, 256.0, 256.0]])
    """

    scale: float = 1.0
    offset: float = 0.0
    nodata: float | Sequence[float] | None = None
    classes: int | None = None
    class_values: Sequence[int] | None = None
    class_colors: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        nodata: Any = self.nodata
        if not isinstance(nodata, list | tuple | set | frozenset | range | np.ndarray):
            nodata = [nodata]
        if isinstance(nodata, np.ndarray):
            nodata = np.ravel(nodata)
        nodata_values: list[Any] = []
        for value in nodata:
            is_nan = value != value  # NaN is no label anyway
            if value is None or is_nan:
                continue
            is_infinite = isinstance(value, float | np.floating) and np.isinf(value)
            nodata_values.append(np.copysign(LARGEST_FLOAT, value) if is_infinite else value)
        class_values = self.class_values
        if class_values is not None:
            class_values = [*class_values]
        class_colors = None
        if self.class_colors is not None:
            class_colors = parse_colors([*self.class_colors])
        normalize_fields(
            self, nodata=nodata_values, class_values=class_values, class_colors=class_colors
        )
        self._check_classes()
        if self.scale == 0:
            raise ConfigError("scale is 0; expected a number other than 0")

    def _check_classes(self) -> None:
        if self.class_colors is not None:
            self._check_colors(self.class_colors)
        if self.class_values is not None:
            if self.classes is None:
                object.__setattr__(self, "classes", len(self.class_values))
            if len(self.class_values) != self.classes:
                raise ConfigError(
                    f"classes is {self.classes} and there are {len(self.class_values)} "
                    "class_values; expected one value for each class"
                )
            if len({*self.class_values}) < len(self.class_values):
                raise ConfigError(
                    f"class_values are {[*self.class_values]}; expected each value once"
                )
            both = {*self.class_values} & {*self._nodata}
            if both:
                raise ConfigError(
                    f"{min(both):g} is among class_values and nodata; name it in one of them"
                )
        if self.classes is None:
            return
        if self.classes < 1:
            raise ConfigError(
                f"classes is {self.classes}; expected how many there are, 1 or more, or None"
            )
        if (self.scale, self.offset) != (1.0, 0.0):
            raise ConfigError(
                f"classes is {self.classes}, and scale is {self.scale:g} and offset "
                f"{self.offset:g}; class indices are taken as they are stored: leave scale and "
                "offset out"
            )

    def _check_colors(self, class_colors: Sequence[Sequence[int]]) -> None:
        if self.class_values is not None:
            raise ConfigError("class_values and class_colors are both given; leave one of them out")
        if self.classes is None:
            object.__setattr__(self, "classes", len(class_colors))
        if len(class_colors) != self.classes:
            raise ConfigError(
                f"classes is {self.classes} and there are {len(class_colors)} class_colors; expected "
                "one colour for each class"
            )
        for level in self._nodata:
            if (level, level, level) in class_colors:
                raise ConfigError(
                    f"the grey level {level:g} is nodata, and its colour one of class_colors; name "
                    "it in one of them"
                )

    @property
    def class_options(self) -> ClassOptions:
        """What the record states of masks of classes, whose names are their numbers."""
        return ClassOptions(
            names=tuple(map(str, range(self.classes or 0))),
            values=tuple(self.class_values or ()),
            colours=parse_colors(self.class_colors or ()),
            nodata=self._nodata,
        )

    @property
    def _nodata(self) -> tuple[float, ...]:
        nodata: Any = self.nodata  # a tuple, since it was set
        return tuple(nodata)

    def cells(
        self,
        labels: Any,
        preprocess: Preprocessing,
        image_sizes: Sequence[Sequence[int]] | None = None,
        *,
        bands: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Average labels over the patches that ``preprocess`` makes of their images.

        The size, ``resize``, ``pad_to`` and interpolation are the image's; bicubic becomes
        bilinear, since a label that shoots over is wrong, and no blur is applied. Invalid pixels
        and padding weigh nothing at any stage.

        Args:
            labels: one label or several; an array or tensor (B, H, W, K) is a batch of them.
            preprocess: how the images are prepared.
            image_sizes: (height, width) in pixels of each upright image, to be checked; None checks
                nothing.
            bands: K of labels of numbers, to be checked; None checks nothing.

        Returns:
            values (B, K, rows, cols), 0 where nothing is valid, and weight (B, rows, cols): how
            many valid prepared pixels a cell holds (a fraction where resizing mixes them). Both
            float32.

        Raises:
            DataError: if a label cannot be read, holds colours where class indices are expected, a
                value that is no class and not nodata, or an infinite value, naming the file; if it
                has another size than its image; if labels come to different grids or numbers of
                bands.
            GridError: if the patch leaves a remainder that ``resize="keep"`` refuses.
        """
        label_values = []
        label_weights = []
        for raster in read_labels(labels, image_sizes):
            if self.classes is None:
                planes, valid = self._quantities(raster)
                values, weight = _mean_cells(planes, valid, preprocess)
            else:
                index = torch.from_numpy(self._coding.index(raster))
                values, weight = class_cells(index, self.classes, preprocess)
            label_values.append(values)
            label_weights.append(weight)
        if bands is not None:
            _check_bands(label_values, bands)
        return batch(label_values), torch.stack(label_weights)

    def indices(
        self,
        labels: Any,
        preprocess: Preprocessing,
        image_sizes: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Return class maps (B, H, W), int64, at the size of the prepared images; -1 where invalid or padded.

        Every prepared pixel takes the class of the label pixel under its centre, through all steps
        at once.

        Raises:
            ConfigError: if this record has no ``classes``.
            DataError: as :meth:`cells`.
            GridError: if the patch leaves a remainder that ``resize="keep"`` refuses.
        """
        if self.classes is None:
            raise ConfigError(
                "indices are for class labels; make the record with DenseLabels(classes=...)"
            )
        maps = []
        for raster in read_labels(labels, image_sizes):
            index = torch.from_numpy(self._coding.index(raster))
            maps.append(prepared_classes(index, preprocess))
        return batch(maps)

    def stored_numbers(self, label: Any) -> Raw:
        """Return the numbers of one label in target units, (H, W, K) float32 at its own size, NaN = unlabelled."""
        planes, valid = self._quantities(read_label(label))
        return planes.masked_fill(~valid, torch.nan).permute(1, 2, 0).numpy()

    @property
    def _coding(self) -> ClassCoding:
        """Which stored values are which classes."""
        colours = parse_colors(self.class_colors or ())
        options = ClassOptions(colours=colours, nodata=self._nodata)
        stored = None if self.class_values is None else tuple(self.class_values)
        if colours:
            stored = tuple(map(color_number, colours))
        return ClassCoding(self.classes or 0, stored, options)

    def _quantities(self, raster: LabelRaster) -> tuple[Tensor, Tensor]:
        """The bands (K, H, W), 0 where invalid, and the valid pixels."""
        unlabelled = raster.unlabelled(self._nodata)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = raster.values.astype(np.float64) * self.scale + self.offset
            values = np.where(unlabelled[..., None], 0.0, exact).astype(np.float32)
        broken = int(np.isinf(values).sum())
        if broken:
            raise DataError(
                f"{raster.name} holds {broken} values that are infinite or beyond "
                f"{LARGEST_FLOAT:.2g}, the largest float32; name what it stores as nodata, such as "
                "nodata=(math.inf, -math.inf) (--nodata inf -inf), which marks both"
            )
        planes = torch.from_numpy(values).permute(2, 0, 1).contiguous()
        return planes, torch.from_numpy(~unlabelled)


@dataclass(frozen=True)
class ClassLabels:
    """Reads masks of classes as they were decided over a set of masks.

    Args:
        coding: how pixels become classes.
    """

    coding: ClassCoding

    def stored_indices(self, label: Any, image_size: Sequence[int] | None = None) -> Raw:
        """Return the class of each pixel of one mask, (H, W) int64 at its own size, -1 = unlabelled."""
        return self.coding.index(read_label(label, image_size))


@dataclass(frozen=True)
class ClassCells:
    """Masks of classes, averaged over the patches of their images; B masks, K classes.

    Attributes:
        survey: the values that each mask holds.
        classes: which classes they are.
        values: (B, K, rows, cols) float32, shares of the labelled pixels, 0 where there are none.
        weight: (B, rows, cols) float32, how many labelled pixels a patch has.
    """

    survey: MaskSurvey
    classes: MaskClasses
    values: Tensor
    weight: Tensor


def read_class_cells(
    labels: Sequence[Any],
    preprocess: Preprocessing,
    options: ClassOptions,
    image_sizes: Sequence[Sequence[int]] | None = None,
) -> ClassCells:
    """Decide which classes masks hold, and average them over patches; every mask is decoded once.

    What a value means is known when all masks are read. Until then the patches of every value that
    may be a class are kept.

    Args:
        labels: the masks.
        preprocess: how the images are prepared.
        options: what is stated of the masks.
        image_sizes: (height, width) in pixels of each upright image, to be checked; None checks
            nothing.

    Raises:
        DataError: as :func:`dinoneck.data.masks.survey_masks` and
            :func:`dinoneck.data.masks.mask_classes`; if masks come to different grids.
    """
    files = []
    cells = []
    for mask, file in read_stored_masks(labels, options, image_sizes):
        files.append(file)
        cells.append(_ValueCells.of(mask, file, preprocess, options))
    survey = MaskSurvey(files)
    classes = mask_classes(survey, options)
    values = []
    weights = []
    for cells_of_mask in cells:
        shares, weight = cells_of_mask.of_classes(classes)
        values.append(shares)
        weights.append(weight)
    return ClassCells(survey, classes, batch(values), torch.stack(weights))


@dataclass(frozen=True)
class _ValueCells:
    """How many pixels of each stored value the patches of one mask have.

    Attributes:
        sums: value -> (rows, cols) float64, of the values that may be a class.
        weight: labelled pixels (rows, cols) float64.
        weight_without_white: the same if 255 is unlabelled; None = no pixel has it.
    """

    sums: Mapping[int, Tensor]
    weight: Tensor
    weight_without_white: Tensor | None

    @classmethod
    def of(
        cls, mask: StoredMask, file: MaskFile, preprocess: Preprocessing, options: ClassOptions
    ) -> _ValueCells:
        sums = {}
        for value in file.pixels:
            if options.may_be_class(value):
                has_value = (mask.values == value) & ~mask.is_unlabelled
                sums[value] = cell_sums(torch.from_numpy(has_value), preprocess)
        weight = cell_sums(torch.from_numpy(~mask.is_unlabelled), preprocess)
        weight_without_white = None
        if mask.has_8_bits and WHITE in file.pixels:
            is_class = ~mask.is_unlabelled & (mask.values != WHITE)
            weight_without_white = cell_sums(torch.from_numpy(is_class), preprocess)
        return cls(sums, weight, weight_without_white)

    def of_classes(self, classes: MaskClasses) -> tuple[Tensor, Tensor]:
        """The shares (K, rows, cols) and the labelled pixels (rows, cols) of classes, float32."""
        weight = self.weight
        if classes.unlabelled_values and self.weight_without_white is not None:
            weight = self.weight_without_white
        stored = classes.coding.stored
        if stored is None:
            stored = tuple(range(len(classes.names)))
        nothing = torch.zeros_like(weight)
        sums = torch.stack([self.sums.get(value, nothing) for value in stored])
        return torch.where(weight > 0, sums / weight, 0.0).float(), weight.float()


@dataclass(frozen=True, eq=False)
class MaskNumbers:
    """The numbers of one mask in target units.

    Attributes:
        labelled: pixels that have a number.
        unlabelled: other pixels.
        low, high: the smallest and the largest number; NaN without a labelled pixel.
        sample: numbers of up to 4,096 pixels at equal distances: those of all would fill the memory.
    """

    labelled: int
    unlabelled: int
    low: float
    high: float
    sample: Raw

    @classmethod
    def of(cls, values: Raw) -> MaskNumbers:
        """Look at numbers of any shape, NaN = unlabelled."""
        numbers = values[~np.isnan(values)]
        unlabelled = values.size - len(numbers)
        if not len(numbers):
            return cls(0, unlabelled, low=np.nan, high=np.nan, sample=numbers)
        step = math.ceil(len(numbers) / _MOST_PIXELS)
        return cls(
            labelled=len(numbers),
            unlabelled=unlabelled,
            low=float(numbers.min()),
            high=float(numbers.max()),
            sample=numbers[::step].copy(),
        )


@dataclass(frozen=True)
class NumberCells:
    """Masks of numbers, averaged over the patches of their images; B masks.

    Attributes:
        masks: what each mask holds.
        values: (B, K, rows, cols) float32, means of the labelled pixels, 0 where there are none.
        weight: (B, rows, cols) float32, how many labelled pixels a patch has.
    """

    masks: Sequence[MaskNumbers]
    values: Tensor
    weight: Tensor


def read_number_cells(
    labels: Sequence[Any],
    preprocess: Preprocessing,
    reader: DenseLabels,
    image_sizes: Sequence[Sequence[int]] | None = None,
) -> NumberCells:
    """Average masks of numbers over patches, and look at all their pixels; every mask is decoded once.

    Args:
        labels: the masks.
        preprocess: how the images are prepared.
        reader: how the numbers are stored.
        image_sizes: (height, width) in pixels of each upright image, to be checked; None checks
            nothing.

    Raises:
        DataError: as :meth:`DenseLabels.cells`.
    """
    masks = []
    values = []
    weights = []
    for raster in read_labels(labels, image_sizes):
        planes, valid = reader._quantities(raster)
        masks.append(MaskNumbers.of(planes.masked_fill(~valid, torch.nan).numpy()))
        means, weight = _mean_cells(planes, valid, preprocess)
        values.append(means)
        weights.append(weight)
    return NumberCells(masks, batch(values), torch.stack(weights))


def count_classes(labels: Any, nodata: float | Sequence[float] | None = None) -> int:
    """Return how many classes masks have: 1 + their largest index.

    Args:
        labels: masks, one band of class indices or a palette each.
        nodata: stored values that are no class.

    Raises:
        DataError: if a mask cannot be read, or its values are no class indices below 256; for masks of
            0 and 255 alone, and of 8 bits with 255 beside other values, which are no indices.
    """
    options = ClassOptions(nodata=DenseLabels(nodata=nodata)._nodata)
    survey = survey_masks(labels, options)
    classes = mask_classes(survey, options)
    if classes.stored is not None:
        white = classes.stored[-1]
        raise DataError(
            f"{survey.holder(white)} holds {white}, and the masks no other value but 0: two classes, "
            f"which DenseLabels(class_values=(0, {white})) reads"
        )
    if classes.unlabelled_values:
        raise DataError(
            f"{survey.holder(WHITE)} holds {WHITE} beside other values: pass nodata={WHITE} here and to "
            "DenseLabels if it marks pixels without a class, or the value of each class as "
            "DenseLabels(class_values=...)"
        )
    return len(classes.names)


def cell_sums(plane: Tensor, recipe: Preprocessing) -> Tensor:
    """Prepare one plane (H, W) as the recipe does images and add up every patch: (rows, cols), float64."""
    placement = recipe.placement((plane.shape[0], plane.shape[1]))
    how: Interpolation = "area" if recipe.interpolation == "area" else "bilinear"
    x = on_canvas(resample(plane.double()[None, None], placement.resized, how), placement)
    return F.avg_pool2d(x, patch_pair(recipe.patch_size), divisor_override=1)[0, 0]


def class_cells(index: Tensor, num_classes: int, recipe: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return the shares (K, rows, cols) of classes (H, W), -1 = unlabelled, and the labelled pixels (rows, cols)."""
    planes = (index == k for k in range(num_classes))
    return _mean_cells(planes, index >= 0, recipe)


def prepared_classes(index: Tensor, recipe: Preprocessing) -> Tensor:
    """Return the class (H, W) of the label pixel under every prepared pixel's centre; -1 where there is none."""
    placement = recipe.placement((index.shape[0], index.shape[1]))
    shown = F.interpolate(index[None, None].double() + 1, placement.resized, mode="nearest-exact")
    return on_canvas(shown, placement)[0, 0].long() - 1


def batch(tensors: Sequence[Tensor]) -> Tensor:
    """Stack labels of one size.

    Raises:
        DataError: if their sizes differ.
    """
    sizes = {"x".join(map(str, x.shape)) for x in tensors}
    if len(sizes) > 1:
        raise DataError(
            f"the labels come to different sizes: {some_of(sizes, 5)}; give preprocess a size="
        )
    return torch.stack([*tensors])


def _mean_cells(
    planes: Iterable[Tensor], valid: Tensor, recipe: Preprocessing
) -> tuple[Tensor, Tensor]:
    """The means (K, rows, cols) of planes over the valid pixels of patches, and how many these are; float32."""
    weight = cell_sums(valid, recipe)
    sums = torch.stack([cell_sums(plane, recipe) for plane in planes])
    return torch.where(weight > 0, sums / weight, 0.0).float(), weight.float()


def _check_bands(label_values: Sequence[Tensor], bands: int) -> None:
    for number, values in enumerate(label_values):
        if len(values) != bands:
            raise DataError(
                f"label {number} has {counted(len(values), 'band')}, and bands is {bands}; expected "
                "labels of so many bands"
            )
