"""Masks of the objects of large images, of which only the pixels around every object are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from dinoneck.images.recipe import Size

Array = np.ndarray[Any, Any]
Rectangle = tuple[int, int, int, int]
"""XYXY in pixels of the image."""
# above what allocators take from the memory that they manage themselves: 32 MiB of glibc
_LARGEST_BLOCK = 64 << 20  # bytes
_FIRST_BLOCK = 64 << 10  # bytes: an image of few objects needs no more
ROWS_AT_ONCE = 256
"""Rows of segments that are read at once, where copies of all would take too much memory."""


class CroppedMasks(Sequence[Array]):
    """Masks of the objects of an image; only the pixels around every object are kept in memory.

    A mask of an image of 12,000 x 12,000 px takes 144 MB as it is. ``masks[i]`` makes one of them,
    (height, width) bool, and ``numpy.asarray(masks)`` all of them, (n, height, width).

    Args:
        crops: per object its mask inside a rectangle, (h, w) bool.
        corners: per object (row, column) of the first pixel of the rectangle.
        size: (height, width) of the image.

    Attributes:
        crops: as given.
        corners: as given.
        size: as given.

    Examples:
        >>> masks = CroppedMasks([np.ones((2, 3), bool)], [(4, 1)], size=(8, 6))
        >>> masks.shape, masks[0].sum(), masks.rectangle(0)
        ((1, 8, 6), np.int64(6), (1, 4, 4, 6))
        >>> scores = np.array([0.3])
        >>> masks[scores > 0.5]
        CroppedMasks(0 of 8 x 6 px)
    """

    def __init__(
        self, crops: Sequence[Array], corners: Sequence[tuple[int, int]], *, size: Size
    ) -> None:
        self.crops = list(crops)
        self.corners = list(corners)
        self.size = size

    @classmethod
    def of_masks(
        cls, masks: Iterable[Array], *, size: Size, memory: CropMemory | None = None
    ) -> CroppedMasks:
        """Cut masks to the pixels around their objects.

        Args:
            masks: (height, width) bool each; they are taken one after the other.
            size: (height, width).
            memory: for the crops; None: some of their own.
        """
        if memory is None:
            memory = CropMemory()
        crops = []
        corners = []
        for mask in masks:
            rows = np.flatnonzero(mask.any(axis=1))
            cols = np.flatnonzero(mask.any(axis=0))
            if not len(rows):
                crops.append(np.zeros((0, 0), bool))
                corners.append((0, 0))
                continue
            crops.append(memory.copy(mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]))
            corners.append((int(rows[0]), int(cols[0])))
        return cls(crops, corners, size=size)

    @classmethod
    def of_segments(
        cls, segments: Array, ids: Sequence[int], memory: CropMemory | None = None
    ) -> CroppedMasks:
        """Return the masks of segments.

        Args:
            segments: (height, width), the id of every pixel.
            ids: of the segments, from 1.
            memory: for the crops; None: some of their own.
        """
        if memory is None:
            memory = CropMemory()
        crops = []
        corners = []
        for segment_id, rectangle in zip(ids, _rectangles_of(segments, ids), strict=True):
            left, top, right, bottom = rectangle
            crops.append(memory.copy(segments[top:bottom, left:right] == segment_id))
            corners.append((top, left))
        height, width = segments.shape
        return cls(crops, corners, size=(height, width))

    def __len__(self) -> int:
        return len(self.crops)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Array) -> CroppedMasks: ...

    def __getitem__(self, index: int | slice | Sequence[int] | Array) -> Array | CroppedMasks:
        """Return the mask (height, width) of an object, or the masks of some.

        Args:
            index: a number, a slice, or as of an array a list of numbers or one bool per object, such
                as ``scores > 0.5``.

        Raises:
            IndexError: if there is no such object, or there are more or fewer bools than objects.
        """
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        if not isinstance(index, int | np.integer):
            chosen = np.asarray(index)
            if chosen.shape == (0,) and chosen.dtype != bool:
                chosen = chosen.astype(np.int64)  # NumPy takes an empty list for floats
            if chosen.dtype == bool and chosen.shape != (len(self),):  # NumPy takes an empty one
                raise IndexError(
                    f"{chosen.size} bools choose among {len(self)} masks; give one per mask"
                )
            numbers = np.arange(len(self))[chosen]
            if numbers.ndim == 0:
                return self[int(numbers)]
            return self.take(numbers.tolist())
        left, top, right, bottom = self.rectangle(index)
        mask = np.zeros(self.size, bool)
        mask[top:bottom, left:right] = self.crops[index]
        return mask

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All masks, (n, height, width) bool."""
        masks = np.zeros(self.shape, bool)
        for i, crop in enumerate(self.crops):
            left, top, right, bottom = self.rectangle(i)
            masks[i, top:bottom, left:right] = crop
        return masks if dtype is None else masks.astype(dtype)

    def __repr__(self) -> str:
        height, width = self.size
        return f"CroppedMasks({len(self)} of {height} x {width} px)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, height, width)."""
        return (len(self), *self.size)

    def take(self, numbers: Iterable[int]) -> CroppedMasks:
        """Return the masks of some objects, in this order."""
        chosen = list(numbers)
        crops = [self.crops[number] for number in chosen]
        corners = [self.corners[number] for number in chosen]
        return CroppedMasks(crops, corners, size=self.size)

    def moved(self, corner: tuple[int, int], size: Size) -> CroppedMasks:
        """Return the masks of a tile in the image that it is cut from.

        Args:
            corner: (row, column) of the tile's first pixel.
            size: (height, width) of the image.
        """
        down, right = corner
        corners = [(top + down, left + right) for top, left in self.corners]
        return CroppedMasks(self.crops, corners, size=size)

    def cut(self, rectangle: Rectangle) -> CroppedMasks:
        """Return the masks inside a rectangle of the image, which every object reaches into, as those of an image.

        Args:
            rectangle: in the image.
        """
        x0, y0, x1, y1 = rectangle
        crops = []
        corners = []
        for i, (top, left) in enumerate(self.corners):
            crops.append(self._inside(i, rectangle))
            corners.append((max(0, top - y0), max(0, left - x0)))
        return CroppedMasks(crops, corners, size=(y1 - y0, x1 - x0))

    def rectangle(self, index: int) -> Rectangle:
        """Return XYXY of the pixels around an object."""
        top, left = self.corners[index]
        height, width = self.crops[index].shape
        return (left, top, left + width, top + height)

    def areas(self, rectangle: Rectangle | None = None) -> Array:
        """Return the pixels of every object, (n,) int64; with a rectangle those inside it."""
        areas = np.zeros(len(self), np.int64)
        for i, crop in enumerate(self.crops):
            shown = crop
            if rectangle is not None:
                shown = self._inside(i, rectangle)
            areas[i] = np.count_nonzero(shown)
        return areas

    def shared_area(self, index: int, other: CroppedMasks, other_index: int) -> int:
        """Return how many pixels an object has in common with one of other masks of the same image."""
        shown = self._inside(index, other.rectangle(other_index))
        other_shown = other._inside(other_index, self.rectangle(index))
        return int(np.count_nonzero(shown & other_shown))

    def run_lengths(self, index: int) -> list[int]:
        """Return the mask of an object as COCO's run lengths, column by column, zeros first."""
        height, width = self.size
        top, left = self.corners[index]
        crop = self.crops[index]
        # 1 where a run of a column begins, -1 after its end
        steps = np.diff(np.pad(crop.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        first_cols, first_rows = (steps == 1).nonzero()
        end_cols, end_rows = (steps == -1).nonzero()
        firsts = (left + first_cols.astype(np.int64)) * height + top + first_rows
        ends = (left + end_cols.astype(np.int64)) * height + top + end_rows
        # runs that reach the foot of a column go on at the head of the next one
        goes_on = ends[:-1] == firsts[1:]
        firsts = np.delete(firsts, 1 + goes_on.nonzero()[0])
        ends = np.delete(ends, goes_on.nonzero()[0])
        changes = np.stack([firsts, ends], axis=1).ravel()
        lengths = np.diff(np.concatenate([[0], changes, [height * width]]))
        if len(lengths) > 1 and lengths[-1] == 0:
            lengths = lengths[:-1]
        counts: list[int] = lengths.tolist()
        return counts

    def _inside(self, index: int, rectangle: Rectangle) -> Array:
        """The mask of an object inside a rectangle, as far as both reach."""
        left, top, _, _ = self.rectangle(index)
        x0, y0, x1, y1 = rectangle
        rows = slice(max(0, y0 - top), max(0, y1 - top))
        cols = slice(max(0, x0 - left), max(0, x1 - left))
        return self.crops[index][rows, cols]


class CropMemory:
    """Memory for crops that stay while the arrays of one tile after the other come and go.

    Among those, small arrays that stay take a part of what is freed, so that the next tile's arrays
    do not fit there, and the process grows by them with every tile. Large blocks are memory of their
    own, of which an operating system provides what is written; the first ones are small.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, bool)
        self._used = 0

    def copy(self, crop: Array) -> Array:
        """Return a copy of a crop in this memory."""
        if self._used + crop.size > self._block.size:
            doubled = max(_FIRST_BLOCK, 2 * self._block.size)
            self._block = np.empty(max(min(doubled, _LARGEST_BLOCK), crop.size), bool)
            self._used = 0
        kept = self._block[self._used : self._used + crop.size].reshape(crop.shape)
        kept[:] = crop
        self._used += crop.size
        return kept


def _rectangles_of(segments: Array, ids: Sequence[int]) -> list[Rectangle]:
    """XYXY of the pixels around segments; of one without pixels all are 0."""
    height, width = segments.shape
    # ids are those of COCO, up to 2^24, so that most numbers up to the largest are none
    largest = max([int(segments.max(initial=0)), *ids])
    number_of_id = np.zeros(largest + 1, np.int32)
    number_of_id[list(ids)] = np.arange(1, len(ids) + 1)
    lefts = np.full(len(ids) + 1, width)
    tops = np.full(len(ids) + 1, height)
    rights = np.zeros(len(ids) + 1, np.int64)
    bottoms = np.zeros(len(ids) + 1, np.int64)
    for begin in range(0, height, ROWS_AT_ONCE):
        numbers = number_of_id[segments[begin : begin + ROWS_AT_ONCE]]
        # runs of one number in a row
        is_first = np.ones(numbers.shape, bool)
        is_first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        rows, firsts = is_first.nonzero()
        ends = np.append(firsts[1:], width)
        ends[ends == 0] = width  # the next run is the first of its row
        number = numbers[rows, firsts]
        np.minimum.at(lefts, number, firsts)
        np.minimum.at(tops, number, begin + rows)
        np.maximum.at(rights, number, ends)
        np.maximum.at(bottoms, number, begin + rows + 1)
    is_empty = rights == 0
    lefts[is_empty] = 0
    tops[is_empty] = 0
    rectangles = np.stack([lefts, tops, rights, bottoms], axis=1)[1:]
    return [(left, top, right, bottom) for left, top, right, bottom in rectangles.tolist()]
