"""Morton keys: a batch index and three voxel coordinates in one int64, so that sorting and looking up are 1-D.

From the highest bit: 9 bits of batch, then 18 bits per axis interleaved (x, y, z, x, y, z ...), each shifted by
131072 so that negative coordinates sort below positive ones. Clearing the lowest three bits gives the key of the voxel
at the corner of its 2x2x2 cell, rounded down for negative coordinates too; so one order serves every stride.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from dinoneck.errors import DataError, ShapeError

AXIS_BITS, BATCH_BITS = 18, 9
REACH = 1 << (AXIS_BITS - 1)
BATCHES = 1 << BATCH_BITS
MAX_STRIDE = REACH

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

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
        ShapeError: for other shapes, or for coordinates that are no integers.
        DataError: for a coordinate outside -131072 ... 131071 or a batch index outside 0 ... 511.
    """
    axes, _ = _checked(coords, batch)
    return _encoded(axes, batch)


def distinct(coords: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the distinct keys (M,) of coordinates, rising, and the row of each coordinate (N,).

    Sorting beats hashing here, and half the bits sort twice as fast: where all coordinates are near the origin, the
    bits between an axis' sign and its low ones are constant, and are left out.

    Raises:
        ShapeError, DataError: as :func:`encode`.
    """
    axes, (low, samples) = _checked(coords, batch)
    if 3 * (low + 1) + samples.bit_length() > 31:
        return _distinct(_encoded(axes, batch))
    spread = _spread(torch.arange(2 << low, device=axes.device)).to(torch.int32)
    short = _interleaved(spread, axes.add_(1 << low))
    if batch is not None:
        short |= batch.to(torch.int32) << 3 * (low + 1)
    found, rows = _distinct(short)
    return _lengthened(found, low, samples), rows


def _lengthened(short: Tensor, low: int, samples: int) -> Tensor:
    """Put the bits between the signs and the ``low`` lowest ones of each axis back."""
    octant = torch.arange(8, device=short.device)
    signs = torch.stack((octant >> 2, octant >> 1, octant)).bitwise_and_(1)
    corners = _encoded(((signs - 1) << low).to(torch.int32), None)  # the lowest cells, at -2^low or 0
    first = torch.arange(samples + 1, device=short.device)[:, None] << 3 * AXIS_BITS
    cells: Tensor = (first | corners).flatten().index_select(0, short >> 3 * low)
    return cells.bitwise_or_(short & (1 << 3 * low) - 1)


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered, order = torch.sort(keys)
    found, rows = torch.unique_consecutive(ordered, return_inverse=True)
    return found, torch.empty_like(order).scatter_(0, order, rows)


def _checked(coords: Tensor, batch: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
    """Return coordinates int32 (3, N), the bits that they need next to a sign, and the last sample."""
    check_integers("coords", coords, 3)
    axes = torch.stack(coords.unbind(1))
    lowest, highest = _range(axes)
    if lowest < -REACH or highest >= REACH:
        _refuse("coords", coords, -REACH, REACH, "take larger voxels, or an origin nearer to the points")
    needed = max(highest, ~lowest).bit_length()
    if batch is None:
        return axes.to(torch.int32), (needed, 0)
    check_integers("batch", batch, None)
    if batch.shape[0] != coords.shape[0]:
        raise ShapeError(f"batch has {batch.shape[0]} entries for {coords.shape[0]} coords; expected one each")
    first, last = _range(batch)
    if first < 0 or last >= BATCHES:
        _refuse("batch", batch, 0, BATCHES, "split the batch")
    return axes.to(torch.int32), (needed, last)


def _encoded(axes: Tensor, batch: Tensor | None) -> Tensor:
    """Return the keys of int32 (3, N), which move half the bytes."""
    half = AXIS_BITS // 2
    bits = axes + REACH
    spread = _spread(torch.arange(1 << half, device=bits.device)).to(torch.int32)
    upper, lower = (_interleaved(spread, part) for part in (bits >> half, bits.bitwise_and_((1 << half) - 1)))
    keys = upper.to(torch.int64).bitwise_left_shift_(3 * half).bitwise_or_(lower)
    return keys if batch is None else keys.bitwise_or_(batch.to(torch.int64) << 3 * AXIS_BITS)


def _spread(bits: Tensor) -> Tensor:
    """Move the bits of small numbers three apart; the numbers are written over."""
    for shift, mask in _SPREAD:
        bits.bitwise_or_(bits << shift).bitwise_and_(mask)
    return bits


def _interleaved(spread: Tensor, numbers: Tensor) -> Tensor:
    """Return one number (N,) of three small ones (3, N), bit by bit."""
    x, y, z = spread.index_select(0, numbers.flatten()).view_as(numbers).unbind(0)
    return x.bitwise_left_shift_(2).bitwise_or_(y.bitwise_left_shift_(1)).bitwise_or_(z)


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


def check_tensor(name: str, value: object) -> None:
    """Refuse arrays, lists and None where a tensor is taken.

    Raises:
        ShapeError: naming the value's type.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} is a {type(value).__name__}; expected a tensor (torch.from_numpy makes one)")


def check_integers(name: str, values: Tensor, columns: int | None) -> None:
    """Refuse anything but integers (N, columns), or (N,) for None.

    Raises:
        ShapeError: naming shape and dtype.
    """
    check_tensor(name, values)
    wanted = "(N,)" if columns is None else f"(N, {columns})"
    fits = values.ndim == (1 if columns is None else 2) and (columns is None or values.shape[1] == columns)
    if not fits or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ShapeError(f"{name} are {values.dtype} of shape {tuple(values.shape)}; expected integers {wanted}")
    if values.dtype in _UNSIGNED:
        raise ShapeError(f"{name} are {values.dtype}, which torch cannot compare; expected signed ones: {name}.long()")


def _range(values: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest; 0 and 0 of nothing."""
    if not values.numel():
        return 0, 0
    smallest, largest = torch.aminmax(values)
    return int(smallest), int(largest)


def _refuse(name: str, values: Tensor, low: int, end: int, remedy: str) -> NoReturn:
    row = int(((values < low) | (values >= end)).reshape(values.shape[0], -1).any(dim=1).nonzero()[0])
    raise DataError(f"{name}[{row}] is {values[row].tolist()}; expected {low} ... {end - 1}: {remedy}")
