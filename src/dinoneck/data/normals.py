"""Files of surface normals -> targets: vectors per pixel and per patch, prepared as their image is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dinoneck.data.labels import batch, cell_sums
from dinoneck.errors import DataError
from dinoneck.images.decoding import as_list, read_stated_orientation
from dinoneck.images.orientation import stated_orientation, turn_components
from dinoneck.images.preprocessing import Preprocessing, on_canvas
from dinoneck.images.rasters import read_label

Array = np.ndarray[Any, Any]

_BANDS = 3
_EXPECTED = (
    "expected vectors (x, y, z) of length 1, as numbers, or as colours of 8 bits, 255 * (x + 1) / 2, "
    "or 16 bits, 65535 * (x + 1) / 2"
)
_MIDDLE_GREYS = (127, 128)  # of 8 bits
# vectors of a length outside are unknown: those of pixels that a file marks by a value of its own, and
# means of vectors that nearly cancel, where files were resized
_KNOWN_LENGTHS = (0.5, 1.5)


class NormalLabels:
    """Reads files of surface normals, in the axes and with the sign of :class:`dinoneck.Task`.

    A label belongs to the upright image and has its size. It is a TIFF of three bands of 32-bit
    floats, as ``dinoneck predict --maps`` writes it; a picture of 8 bits in colours, of 255 * (x +
    1) / 2, 255 * (y + 1) / 2 and 255 * (z + 1) / 2; a PNG of 16 bits with 65535 in the place of
    255; or an array or tensor (H, W, 3) of floats, or of uint8 or uint16 as such pictures have
    them. Pixels without a normal are NaN or the zero vector; in pictures black, white, the middle
    grey (127 or 128 of 255) or transparent. Single vectors shorter than 0.5 or longer than 1.5 are
    unknown too.

    Vectors are turned with the pixels by the EXIF orientation of the label. A PIL image of a TIFF
    states none once it is loaded, and is rejected then.

    Examples:
        >>> from dinoneck.data import Preprocessing
        >>> wall = np.zeros((32, 32, 3), np.float32)
        >>> wall[16:, :, 2] = 1.0  # the lower half faces the camera, the upper one is unknown
        >>> values, counts = NormalLabels().cells(wall, Preprocessing(patch_size=16))
        >>> values[0, :, 1, 0].tolist(), counts[0].tolist()
        ([0.0, 0.0, 1.0], [[0.0, 0.0], [256.0, 256.0]])
    """

    def cells(
        self,
        labels: Any,
        preprocess: Preprocessing,
        image_sizes: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Average labels over the patches that ``preprocess`` makes of their images.

        Args:
            labels: one label or several.
            preprocess: how the images are prepared.
            image_sizes: (height, width) in pixels of each upright image, to be checked; None checks
                nothing.

        Returns:
            values (B, 3, rows, cols), the mean vectors over the known pixels with the length 1, 0
            where none is known, and counts (B, rows, cols), how many known pixels a patch has. Both
            float32.

        Raises:
            DataError: if a label cannot be read, has vectors and none of a length near 1, or most of
                them point towards the camera; if labels come to different grids.
        """
        label_values = []
        label_counts = []
        for normals in _read_all(labels, image_sizes):
            is_known = ~normals[0].isnan()
            counts = cell_sums(is_known, preprocess)
            sums = torch.stack([cell_sums(plane.nan_to_num(), preprocess) for plane in normals])
            lengths = sums.square().sum(dim=0).sqrt()
            label_values.append(torch.where(lengths > 0, sums / lengths, 0.0).float())
            label_counts.append(counts.float())
        return batch(label_values), torch.stack(label_counts)

    def pixels(
        self,
        label: Any,
        preprocess: Preprocessing,
        image_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the normals (3, H, W) at the size of the prepared image; NaN where none is known or shown.

        Every prepared pixel takes the vector of the label pixel under its centre.

        Args:
            label: one label.
            preprocess: how its image is prepared.
            image_size: as of :meth:`cells`.

        Raises:
            DataError: as :meth:`cells`.
        """
        [normals] = _read_all([label], None if image_size is None else [image_size])
        placement = preprocess.placement((normals.shape[1], normals.shape[2]))
        shown = F.interpolate(normals[None], placement.resized, mode="nearest-exact")
        is_shown = torch.ones_like(shown[:, :1])
        canvas = on_canvas(shown.nan_to_num(), placement)[0]
        is_known = on_canvas(is_shown * ~shown[:, :1].isnan(), placement)[0]
        return torch.where(is_known > 0, canvas, torch.nan)


def _read_all(labels: Any, image_sizes: Sequence[Sequence[int]] | None) -> Iterator[Tensor]:
    singles = as_list(labels, "labels")
    sizes: Sequence[Any] = [None] * len(singles) if image_sizes is None else image_sizes
    for number, (label, size) in enumerate(zip(singles, sizes, strict=True)):
        yield _read_normals(label, size, number)


def _read_normals(label: Any, size: Sequence[int] | None, number: int) -> Tensor:
    """The normals (3, H, W) of one label, upright and of length 1; NaN where none is known."""
    orientation = _orientation_of(label, number)
    raster = read_label(label, size, number)
    if raster.values.shape[2] != _BANDS or raster.palette is not None:
        raise DataError(
            f"{raster.name} has {raster.values.shape[2]} of the three bands of surface normals; "
            f"{_EXPECTED}"
        )
    values, is_hidden = _decode(raster.values, raster.name)
    if raster.is_hidden is not None:
        is_hidden |= torch.from_numpy(raster.is_hidden)
    # the pixels are upright already
    vectors = torch.from_numpy(turn_components(values.numpy(), orientation))
    return _checked(vectors, is_hidden, raster.name)


def _orientation_of(label: Any, number: int) -> int:
    """The EXIF orientation by which the pixels of a label are turned, and its vectors are to be."""
    if not isinstance(label, Image.Image):
        return read_stated_orientation(label)
    if label.format == "TIFF":
        raise DataError(
            f"label {number} is a PIL image of a TIFF, of which Pillow turns the pixels and forgets how; "
            "pass its path"
        )
    return stated_orientation(label)


def _decode(values: Array, name: str) -> tuple[Tensor, Tensor]:
    """The vectors (3, H, W) of stored numbers (H, W, 3), and the pixels that a colour marks as unknown."""
    planes = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32))
    is_hidden = torch.zeros(planes.shape[1:], dtype=torch.bool)
    if values.dtype.kind == "f":
        return planes, is_hidden
    if values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name} holds numbers of the type {values.dtype}; {_EXPECTED}")
    largest = np.iinfo(values.dtype).max
    is_grey = (planes == planes[:1]).all(dim=0)
    # black, both middle greys and white
    greys = [0, largest // 2, largest // 2 + 1, largest]
    if values.dtype == np.uint16:  # may have been made of 8 bits
        greys += [grey * 257 for grey in _MIDDLE_GREYS]
    for grey in greys:
        is_hidden |= is_grey & (planes[0] == grey)
    return planes * (2.0 / largest) - 1.0, is_hidden


def _checked(vectors: Tensor, is_hidden: Tensor, name: str) -> Tensor:
    """The vectors with the length 1, NaN where there is none, or one of a length far from 1.

    Raises:
        DataError: if all have another length, or most point towards the camera, which the surface
            that a camera sees cannot do.
    """
    lengths = vectors.square().sum(dim=0).sqrt()  # NaN where a component is
    is_known = ~is_hidden & (lengths > 0)
    known_lengths = lengths[is_known]
    if not len(known_lengths):
        return torch.full_like(vectors, torch.nan)
    shortest, longest = _KNOWN_LENGTHS
    is_known &= (lengths > shortest) & (lengths < longest)
    if not is_known.any():
        raise DataError(
            f"{name} holds no surface normals: none of its vectors has a length near 1, the first has "
            f"{known_lengths[0].item():.3g}; {_EXPECTED}"
        )
    share_of_negative = (vectors[2][is_known] < 0).float().mean().item()
    if share_of_negative > 0.5:
        raise DataError(
            f"{name} holds normals that point towards the camera: z is negative in "
            f"{share_of_negative:.0%} of its pixels. Expected x right, y down, z forward and vectors "
            "that point into the surface, so that z is positive; multiply these by -1"
        )
    return torch.where(is_known, vectors / lengths, torch.nan)
