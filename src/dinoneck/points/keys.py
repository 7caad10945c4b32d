"""Morton keys: a batch index and three voxel coordinates in one int64, so that sorting and looking up are 1-D.

From the highest bit: 9 bits of batch, then 18 bits per axis interleaved (x, y, z, x, y, z ...),
each shifted by 131072 so that negative coordinates sort below positive ones. Clearing the lowest
three bits gives the key of the voxel at the corner of its 2x2x2 cell, rounded down for negative
coordinates too; so one order serves every stride.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinoneck.errors import DataError, ShapeError
from dinoneck.points.checks import check_integers

AXIS_BITS = 18
BATCH_BITS = 9
REACH = 1 << (AXIS_BITS - 1)
BATCHES = 1 << BATCH_BITS
MAX_STRIDE = REACH

# (shift, bits that stay): each step doubles the gaps; 18 bits end up three apart
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def encode(coords: Tensor, batch: Tensor | None = None) -> Tensor:
    """Return the keys (N,) of integer coordinates (N, 3) and batch indices (N,); None = all 0.

    Raises:
        ShapeError: for other shapes, or for coordinates that are not integers.
        DataError: for a coordinate outside -131072 ... 131071 or a batch index outside 0 ... 511.
    """
    check_integers("coords", coords, 3)
    _check_range(
        "coords", coords, -REACH, REACH, "take larger voxels, or an origin nearer to the points"
    )
    bits = torch.stack(coords.unbind(1)).long() + REACH  # (3, N), none below 0
    for shift, mask in _SPREAD:
        bits.bitwise_or_(bits << shift).bitwise_and_(mask)
    x, y, z = bits.unbind(0)
    keys = x.bitwise_left_shift_(2).bitwise_or_(y.bitwise_left_shift_(1)).bitwise_or_(z)
    if batch is None:
        return keys
    check_integers("batch", batch, None)
    if batch.shape[0] != coords.shape[0]:
        raise ShapeError(
            f"batch has {batch.shape[0]} entries for {coords.shape[0]} coords; expected one each"
        )
    _check_range("batch", batch, 0, BATCHES, "split the batch")
    return keys.bitwise_or_(batch.long() << 3 * AXIS_BITS)


def distinct(coords: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the distinct keys (M,) of coordinates, rising, and the row of each coordinate (N,).

    Raises:
        ShapeError, DataError: as :func:`encode`.
    """
    ordered, order = torch.sort(encode(coords, batch))  # faster than the hashing of torch.unique
    keys, rows = torch.unique_consecutive(ordered, return_inverse=True)
    return keys, torch.empty_like(order).scatter_(0, order, rows)


def decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates (N, 3) and batch indices (N,) of keys (N,): the exact inverse of :func:`encode`."""
    bits = torch.stack((keys >> 2, keys >> 1, keys)).bitwise_and_(_SPREAD[-1][1])
    bits.bitwise_and_((1 << 3 * AXIS_BITS) - 1)
    masks = [mask for _, mask in reversed(_SPREAD[:-1])] + [(1 << AXIS_BITS) - 1]
    for (shift, _), mask in zip(reversed(_SPREAD), masks, strict=True):
        bits.bitwise_or_(bits >> shift).bitwise_and_(mask)
    return bits.sub_(REACH).T.contiguous(), keys >> 3 * AXIS_BITS


def at_stride(keys: Tensor, stride: int) -> Tensor:
    """Return the keys of the cells of ``stride`` voxels (a power of two) that hold the given voxels; order is kept."""
    if stride == 1:
        return keys
    low = 3 * (stride.bit_length() - 1)
    return keys >> low << low


def _check_range(name: str, values: Tensor, low: int, end: int, remedy: str) -> None:
    """Reject integers (N,) or (N, 3) outside ``low`` ... ``end`` - 1.

    Raises:
        DataError: naming the first row.
    """
    if not values.numel():
        return
    smallest, largest = map(int, torch.aminmax(values))
    if smallest < low or largest >= end:
        is_outside = ((values < low) | (values >= end)).reshape(len(values), -1).any(dim=1)
        row = int(is_outside.nonzero()[0])
        raise DataError(
            f"{name}[{row}] is {values[row].tolist()}; expected {low} ... {end - 1}: {remedy}"
        )
