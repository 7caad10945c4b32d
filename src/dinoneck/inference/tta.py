"""Test-time augmentation: views of an image, and the way back for maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TTA = Literal["none", "flip4", "d6"]


@dataclass(frozen=True)
class View:
    """A flip followed by a rotation, exact on pixels and cells.

    Attributes:
        name: for people.
        flip: axes flipped first: -1 left-right, -2 up-down.
        turns: quarter turns counter-clockwise after that.
    """

    name: str
    flip: tuple[int, ...] = ()
    turns: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """Return this view of images (B, C, H, W); a quarter turn swaps H and W."""
        return torch.rot90(images.flip(self.flip), self.turns, dims=(-2, -1))

    def undo(self, maps: Tensor) -> Tensor:
        """Bring maps (B, C, rows, cols) of the view back to the original orientation."""
        return torch.rot90(maps, -self.turns, dims=(-2, -1)).flip(self.flip)


ORIGINAL = View("original")
_FLIPS = (ORIGINAL, View("hflip", (-1,)), View("vflip", (-2,)), View("hvflip", (-2, -1)))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (ORIGINAL,),
    "flip4": _FLIPS,
    "d6": (*_FLIPS, View("rot90", turns=1), View("rot270", turns=3)),
}
"""The views behind each value of ``tta``: none, the four flips, and those with both quarter turns."""
