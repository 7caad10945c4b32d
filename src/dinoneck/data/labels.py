"""Dense labels -> cells: pixel targets on the patch grid, prepared as their image is.

A dense head predicts once per patch. :class:`DenseLabels` reads NDVI rasters, depth maps and class
masks, and resizes, cuts and pads them exactly as :class:`dinoneck.data.Preprocessing` does the
image, so that cell (r, c) of the label covers what patch (r, c) of the prepared image shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dinoneck.codec import normalize_fields
from dinoneck.data.decoding import as_list, read_picture, upright
from dinoneck.data.preprocessing import Interpolation, Preprocessing, resample
from dinoneck.errors import ConfigError, DataError, some_of
from dinoneck.grid import patch_pair

Raw = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DenseLabels:
    """How stored label rasters become targets for the cells of a patch grid.

    A label belongs to the upright image and has its size. It is a path (PNG or TIFF: grey of 1 to
    16 bit, 32-bit integers or floats, several bands of 8 bit, or a palette, whose indices count), a
    PIL image, or an array (H, W) or (H, W, K). What Pillow cannot read whole, such as several bands
    of floats, is refused: read it with a raster library and pass the array.

    Args:
        scale: target units per stored unit, e.g. 1 / 65535, or 0.001 for millimetres as metres.
        offset: added after scaling: target = stored * scale + offset.
        nodata: stored value(s) of pixels without a label; a pixel with one in any band counts for
            nothing. NaN always marks such pixels.
        classes: the label holds class indices 0 ... classes - 1, and its values are one-hot, so
            that cells are cover fractions. None: the label holds quantities.

    Raises:
        ConfigError: if a value is out of range, or classes are given a scale or an offset.

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

    def __post_init__(self) -> None:
        nodata = self.nodata if isinstance(self.nodata, list | tuple) else (self.nodata,)
        # no NaN
        normalize_fields(
            self, nodata=[value for value in nodata if value is not None and value == value]
        )
        converts = (self.scale, self.offset) != (1.0, 0.0)
        if self.scale == 0 or (self.classes is not None and (self.classes < 1 or converts)):
            values = (
                f"classes is {self.classes}, scale is {self.scale:g} and offset is {self.offset:g}"
            )
            raise ConfigError(
                f"{values}; expected 1 class or more without the others, or a scale that is not 0"
            )

    def cells(
        self,
        labels: Any,
        preprocess: Preprocessing,
        image_sizes: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Average labels over the patches that ``preprocess`` makes of their images.

        The size, ``resize``, ``pad_to`` and interpolation are the image's; bicubic becomes
        bilinear, since a label that shoots over is wrong, and no blur is applied. Invalid pixels
        and padding weigh nothing at any stage.

        Args:
            labels: one label or several; an array or tensor with four axes is a batch of them.
            preprocess: how the images are prepared.
            image_sizes: (height, width) in pixels of each upright image, to be checked; None checks
                nothing.

        Returns:
            values (B, K, rows, cols), 0 where nothing is valid, and weight (B, rows, cols): how
            many valid prepared pixels a cell holds (a fraction where resizing mixes them). Both
            float32.

        Raises:
            DataError: if a label cannot be read, holds colours where class indices are expected, an
                index outside 0 ... classes - 1 that is not nodata, or an infinite value, naming the
                file; if it has another size than its image, or labels come to different grids or
                numbers of bands.
            GridError: if the patch leaves a remainder that ``resize="keep"`` refuses.
        """
        every_values, every_weight = [], []
        for raw, name in all_stored(labels, image_sizes):
            planes, valid = self._planes(raw, name)
            weight = _cell_sums(valid, preprocess)
            sums = torch.stack([_cell_sums(plane, preprocess) for plane in planes])
            every_values.append(torch.where(weight > 0, sums / weight, 0.0).float())
            every_weight.append(weight.float())
        return _batch(every_values), torch.stack(every_weight)

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
        return _batch(
            [_nearest(self._index(*own), preprocess) for own in all_stored(labels, image_sizes)]
        )

    def _planes(self, raw: Raw, name: str) -> tuple[Iterable[Tensor], Tensor]:
        """One (H, W) tensor per band or class, 0 where invalid, and the valid pixels."""
        if self.classes is not None:
            index = self._index(raw, name)
            return (index == k for k in range(self.classes)), index >= 0
        valid = ~self._is_unlabelled(raw)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = raw.astype(np.float64) * self.scale + self.offset
            values = np.where(valid[..., None], exact, 0.0).astype(np.float32)
        if broken := np.isinf(values).sum():
            raise DataError(
                f"{name} holds {broken} values that are infinite in float32; name what it stores "
                "as nodata"
            )
        return torch.from_numpy(values).permute(2, 0, 1).contiguous(), torch.from_numpy(valid)

    def _index(self, raw: Raw, name: str) -> Tensor:
        """Class indices (H, W), int64; -1 where invalid."""
        if self.classes is None:
            raise ConfigError(
                "indices are for class labels; make the record with DenseLabels(classes=...)"
            )
        expected = f"expected one band of class indices 0 ... {self.classes - 1}"
        if raw.shape[2] != 1:
            raise DataError(
                f"{name} holds {raw.shape[2]} bands; {expected}: turn a mask of colours into "
                "numbers first"
            )
        unlabelled, raw = self._is_unlabelled(raw), raw[..., 0]
        if (
            wrong := ~unlabelled & ~((raw >= 0) & (raw < self.classes) & (raw == np.floor(raw)))
        ).any():
            found = some_of([f"{value:.12g}" for value in np.unique(raw[wrong]).tolist()], 5)
            raise DataError(
                f"{name} holds the class {found} ({wrong.sum()} pixels); {expected}, or name it "
                "as nodata"
            )
        return torch.from_numpy(np.where(unlabelled, 0, raw).astype(np.int64) - unlabelled)

    def _is_unlabelled(self, raw: Raw) -> Raw:
        """Where any band of a pixel is nodata or NaN, (H, W) bool."""
        # the lowest double, GDAL's habit, is -inf in a float32 file
        with np.errstate(over="ignore"):
            marked: Any = [raw == value for value in self.nodata]  # type: ignore[union-attr]
        return np.any([np.isnan(raw), *marked], axis=(0, 3))  # type: ignore[no-any-return]


def count_classes(labels: Any, nodata: float | Sequence[float] | None = None) -> int:
    """Return how many classes masks have: 1 + their largest index.

    Args:
        labels: masks, one band of class indices or a palette each.
        nodata: stored values that are no class.

    Raises:
        DataError: if a mask cannot be read, or its values are not class indices: colours,
            fractions, negative numbers, or 255 as the only index above 253.
    """
    how, largest = DenseLabels(nodata=nodata, classes=1 << 16), -1
    for raw, name in all_stored(labels, None):
        index = how._index(raw, name)
        if (index == 255).any() and not (index == 254).any():
            raise DataError(
                f"{name} holds 255, which usually marks pixels without a class: pass nodata=255"
            )
        largest = max(largest, int(index.max()))
    if largest < 0:
        raise DataError("all pixels of the masks are nodata; expected class indices")
    return largest + 1


def all_stored(
    labels: Any, image_sizes: Sequence[Sequence[int]] | None
) -> Iterator[tuple[Raw, str]]:
    """Read label after label and compare each with its image's size."""
    single = as_list(labels, "labels")
    sizes = [None] * len(single) if image_sizes is None else [*image_sizes]
    if not single or len(sizes) != len(single):
        raise DataError(
            f"there are {len(single)} labels and {len(sizes)} image sizes; expected one for each"
        )
    for label, size in zip(single, sizes, strict=True):
        name, raw = f"a label {type(label).__name__}", label
        if isinstance(label, str | os.PathLike):
            name, raw = str(label), read_picture(Path(label), _from_pil, "label")
        elif isinstance(label, Image.Image):
            raw = _from_pil(label, name)
        if not (
            isinstance(raw, np.ndarray)
            and raw.ndim in (2, 3)
            and raw.size
            and raw.dtype.kind in "buif"
        ):
            held = f"{getattr(raw, 'shape', raw)!s:.60} {getattr(raw, 'dtype', '')}"
            raise DataError(
                f"{name} is {held}; expected a path, a PIL image or an array (H, W) or (H, W, K)"
            )
        if size is not None and raw.shape[:2] != tuple(size):
            raise DataError(
                f"the label {name} has the size {raw.shape[:2]} (height, width), its image "
                f"{tuple(size)}"
            )
        yield raw.astype(raw.dtype.newbyteorder("="), copy=False).reshape(*raw.shape[:2], -1), name


def _from_pil(image: Image.Image, name: str) -> Raw:
    """The numbers (H, W) or (H, W, K) as they are stored in the file, turned upright."""
    if image.format not in (None, "PNG", "TIFF"):
        raise DataError(
            f"{name} is a {image.format} picture; labels are PNG or TIFF, which keep every number"
        )
    # the tile is gone once the image is decoded
    first, bits = image.size, str(getattr(image, "tile", ()))
    is_other = image.mode[0] not in "IF" and re.search("[L1];|;16", bits) is not None
    if getattr(image, "n_frames", 1) > 1:
        image.seek(1)
        is_other |= image.size == first  # smaller pages are overviews
        image.seek(0)
    if is_other:
        raise DataError(
            f"{name} has numbers that Pillow changes, or several pages; pass one as an array (H, "
            "W, K)"
        )
    return np.asarray(upright(image))


def _cell_sums(plane: Tensor, recipe: Preprocessing) -> Tensor:
    """Prepare one plane (H, W) as the recipe does images and add up every patch: (rows, cols), float64."""
    placement = recipe.placement((plane.shape[0], plane.shape[1]))
    how: Interpolation = "area" if recipe.interpolation == "area" else "bilinear"
    x = placement.on_canvas(resample(plane.double()[None, None], placement.resized, how))
    return F.avg_pool2d(x, patch_pair(recipe.patch_size), divisor_override=1)[0, 0]


def _nearest(index: Tensor, recipe: Preprocessing) -> Tensor:
    """Look up the label pixel under every prepared pixel's centre; -1 where there is none."""
    placement = recipe.placement((index.shape[0], index.shape[1]))
    shown = F.interpolate(index[None, None].double() + 1, placement.resized, mode="nearest-exact")
    return placement.on_canvas(shown)[0, 0].long() - 1


def _batch(tensors: list[Tensor]) -> Tensor:
    sizes = {"x".join(map(str, x.shape)) for x in tensors}
    if len(sizes) > 1:
        raise DataError(
            f"the labels come to different sizes: {some_of(sizes, 5)}; give preprocess a size="
        )
    return torch.stack(tensors)
