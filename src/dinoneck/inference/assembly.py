"""Tiles put together: one answer for the whole image, in which every cell counts exactly once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dinoneck.errors import ShapeError
from dinoneck.heads.readouts import recompute_derived
from dinoneck.inference.answers import Answers, check_finite
from dinoneck.inference.tiles import TileAxis
from dinoneck.tasks import Task


class Assembly:
    """Collects the answers of an image's tiles.

    The weights of the tiles that show a cell add up to one, so that a sum over the blended map counts every cell
    once. Sums are kept in float64.

    Args:
        rows: the tiles' rows on the image's patch grid.
        cols: their columns.
        tasks: what the heads predict.
        by_cells: names of the tasks whose value is the mean (densities that add up: the sum) of their map.
    """

    def __init__(self, rows: TileAxis, cols: TileAxis, tasks: Sequence[Task], by_cells: Collection[str]) -> None:
        self.rows, self.cols, self.tasks, self.by_cells = rows, cols, tasks, by_cells
        self.places = [(i, j) for i in range(len(rows.starts)) for j in range(len(cols.starts))]
        self._windows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._values: dict[str, Tensor] = {}
        self._maps: dict[str, Tensor] = {}

    def cut(self, images: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return the tiles (T, C, h, w) at these places of a prepared image (1, C, H, W)."""
        down, across = images.shape[-2] // self.rows.total, images.shape[-1] // self.cols.total
        tiles = []
        for i, j in places:
            top, left = self.rows.starts[i] * down, self.cols.starts[j] * across
            tiles.append(images[0, :, top : top + self.rows.length * down, left : left + self.cols.length * across])
        return torch.stack(tiles)

    def add(self, places: Sequence[tuple[int, int]], answers: Answers) -> None:
        """Take the answers for the tiles at these places.

        Raises:
            DataError: if a value is not finite.
            ShapeError: if a map has no whole number of cells per patch.
        """
        check_finite(answers.values)
        down, across = self._weights(1, 1)
        area = self.rows.total * self.cols.total
        maps = answers.maps if answers.gate is None else {**answers.maps, _GATE: answers.gate}
        for number, (i, j) in enumerate(places):
            share = down[i].sum() * across[j].sum() / area  # of the image, every cell counted once
            for name, value in answers.values.items():
                self._values[name] = self._values.get(name, 0.0) + share * value[number].double()
            for name, picture in maps.items():
                self._draw(name, picture[number], i, j)

    def whole(self) -> Answers:
        """Return the image's answers, a batch of one."""
        exact = recompute_derived(self.tasks, {task.name: self._value(task)[None] for task in self.tasks})
        values = {name: value.float() for name, value in exact.items()}
        maps = {name: picture[None].float() for name, picture in self._maps.items() if name != _GATE}
        gate = self._maps.get(_GATE)
        return Answers(values, maps, None if gate is None else (gate / gate.sum())[None].float())

    def _value(self, task: Task) -> Tensor:
        if task.name not in self.by_cells:
            return self._values[task.name]
        cells = self._maps[task.name]
        adds_up = task.kind == "density" and task.aggregate == "sum"
        value = cells.sum(dim=(1, 2)) if adds_up else cells.mean(dim=(1, 2))
        return value if task.minimum is None else value.clamp_min(task.minimum)

    def _draw(self, name: str, picture: Tensor, i: int, j: int) -> None:
        """Add a tile's map (dim, rows, cols) to the image's, weighted."""
        finer = self._finer(name, picture)
        down, across = self._weights(*finer)
        if name not in self._maps:
            size = (len(picture), self.rows.total * finer[0], self.cols.total * finer[1])
            self._maps[name] = torch.zeros(size, dtype=torch.float64)
        top, left = self.rows.starts[i] * finer[0], self.cols.starts[j] * finer[1]
        place = self._maps[name][:, top : top + picture.shape[1], left : left + picture.shape[2]]
        place += down[i][:, None] * across[j] * picture.double()

    def _finer(self, name: str, picture: Tensor) -> tuple[int, int]:
        """Cells of a map per patch, down and across."""
        (rows, rows_left), (cols, cols_left) = (
            divmod(picture.shape[1], self.rows.length),
            divmod(picture.shape[2], self.cols.length),
        )
        if rows_left or cols_left or not rows or not cols:
            raise ShapeError(
                f"the map of {name!r} has {picture.shape[1]}x{picture.shape[2]} cells for a tile of "
                f"{self.rows.length}x{self.cols.length} patches; tiles are put together from whole cells per patch. "
                "Predict without tile=, or with a head whose finest map is as fine as the patches or finer"
            )
        return rows, cols

    def _weights(self, down: int, across: int) -> tuple[Tensor, Tensor]:
        if (down, across) not in self._windows:
            self._windows[down, across] = self.rows.windows(down), self.cols.windows(across)
        return self._windows[down, across]


_GATE = ":gate"  # no name of a task holds a colon
