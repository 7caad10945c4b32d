"""Augmented views: the fixed list of flips, turns and colour changes under which features are extracted once.

A frozen backbone runs once per image and view; a head then trains on the stored tokens, another
view of an image at every epoch. Flips of pixels are not flips of tokens (position embeddings stay
where they are), so every view goes through the backbone of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor

from dinoneck.errors import ConfigError, DataError

Factor = Annotated[float, Meta(ge=0)]
Turn = Annotated[float, Meta(ge=-0.5, le=0.5)]

# torchvision's adjust_..., in this order
CHANGES = ("brightness", "contrast", "saturation", "hue", "gamma")


class View(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A flip, quarter turns, and the ranges (low, high) that colour changes are drawn from; None: no such change.

    The changes are torchvision's ``adjust_brightness`` and so on, in the order of these fields.

    Attributes:
        horizontal: flip left and right.
        vertical: flip top and bottom.
        turns: quarter turns counter-clockwise after the flip, 0 ... 3; an odd number swaps height
            and width.
        brightness: factor of all values, 0 or more.
        contrast: factor of the distance to the image's mean grey, 0 or more.
        saturation: factor of the distance to each pixel's grey, 0 or more.
        hue: added to the hue, as a share of the full turn: -0.5 ... 0.5.
        gamma: every value is raised to this power, 0 or more.
    """

    horizontal: bool = False
    vertical: bool = False
    turns: Literal[0, 1, 2, 3] = 0
    brightness: tuple[Factor, Factor] | None = None
    contrast: tuple[Factor, Factor] | None = None
    saturation: tuple[Factor, Factor] | None = None
    hue: tuple[Turn, Turn] | None = None
    gamma: tuple[Factor, Factor] | None = None

    @property
    def flipped(self) -> list[int]:
        """The axes of (..., H, W) that the view flips."""
        axes = []
        if self.horizontal:
            axes.append(-1)
        if self.vertical:
            axes.append(-2)
        return axes


_OneOrMore = Annotated[tuple[View, ...], Meta(min_length=1)]
_FLIPS4 = (View(), View(horizontal=True), View(vertical=True), View(horizontal=True, vertical=True))
_D6 = (*_FLIPS4, View(turns=1), View(turns=3))
# 20 of the 256 steps of saturation and value and of the 360 degrees of hue
_LITTLE = (1 - 20 / 255, 1 + 20 / 255)
_LITTLE_HUE = (-20 / 360, 20 / 360)
_COLOURS: tuple[dict[str, tuple[float, float]], ...] = (
    {"brightness": (0.8, 1.2)},
    {"contrast": (0.8, 1.2)},
    {"brightness": _LITTLE, "saturation": _LITTLE, "hue": _LITTLE_HUE},
    {"gamma": (0.8, 1.2)},
)


def _with_colours(flips: Sequence[View]) -> list[View]:
    """Every flip with each of the changes of colour."""
    views = []
    for flip in flips:
        for ranges in _COLOURS:
            views.append(msgspec.structs.replace(flip, **ranges))
    return views


_NAMED = {
    "none": (View(),),
    "flips4": _FLIPS4,
    "d6": _D6,
    "color20": (*_FLIPS4, *_with_colours(_FLIPS4)),
}


@dataclass(frozen=True)
class Views:
    """An ordered list of :class:`View`, applied to images in a way that can be repeated.

    Two lists are equal when every flip and range is. What a colour change draws depends on the
    image's id and the view's index alone, so a second extraction sees the same pixels (up to float
    rounding between machines).

    Args:
        views: at least one; also as mappings, the form that :meth:`record` gives.

    Raises:
        ConfigError: if there is none, or a field is unknown or out of range.

    Examples:
        >>> views = Views.named("color20")
        >>> len(views), views.views[6].flipped, views.views[11].flipped
        (20, [], [-1])
        >>> image = torch.rand(3, 32, 48)
        >>> torch.equal(views.apply(image, 1, "field/0001"), image.flip(-1))
        True

    Reference: a published pipeline for pasture biomass stores 20 views per image. Deviation:
    torchvision's changes of colour, so that saturation and value are multiplied.
    """

    views: tuple[View, ...]

    def __init__(self, views: Sequence[View | Mapping[str, Any]]) -> None:
        try:
            checked = msgspec.convert(msgspec.to_builtins(views), _OneOrMore)
        except (TypeError, msgspec.ValidationError) as error:
            raise ConfigError(f"views are {str(views)[:200]}: {error}") from None
        object.__setattr__(self, "views", checked)

    @classmethod
    def named(cls, name: str) -> Self:
        """Return a list by its name.

        Args:
            name: ``"none"`` (the image as it is); ``"flips4"``
                (original, left-right, up-down, both); ``"d6"`` (these and both quarter turns);
                ``"color20"`` (``flips4``, then index 4 + 4 * flip + k with k = brightness,
                contrast, all three of HSV, gamma).

        Raises:
            ConfigError: if the list has another name.
        """
        if name not in _NAMED:
            raise ConfigError(
                f"views is {name!r}; expected {', '.join(_NAMED)}, or Views of your own"
            )
        return cls(_NAMED[name])

    def record(self) -> list[dict[str, Any]]:
        """Return the fields that are set as JSON-able values; equal lists have equal records."""
        return list(msgspec.to_builtins(self.views))

    def __len__(self) -> int:
        return len(self.views)

    @property
    def changes_colours(self) -> bool:
        """Whether any view changes colours, which only RGB images have."""
        return any(_ranges(view) for view in self.views)

    def place(self, x: Tensor, i: int) -> Tensor:
        """Flip and turn (..., H, W) as view i does; the result is a copy."""
        flipped = x.flip(self.views[i].flipped)
        return torch.rot90(flipped, self.views[i].turns, dims=(-2, -1))

    def undo(self, x: Tensor, i: int) -> Tensor:
        """Bring (..., H, W) of view i back upright: the inverse of :meth:`place`."""
        flipped = torch.rot90(x, -self.views[i].turns, dims=(-2, -1))
        return flipped.flip(self.views[i].flipped)

    def place_vectors(self, vectors: Tensor, i: int) -> Tensor:
        """Flip and turn maps of vectors (..., 3, H, W) as :meth:`place`, and the vectors with them.

        Args:
            vectors: in camera axes, x right and y down.
            i: index of the view.
        """
        view = self.views[i]
        x, y, z = self.place(vectors, i).unbind(dim=-3)
        if view.horizontal:
            x = -x
        if view.vertical:
            y = -y
        for _ in range(view.turns):  # by a quarter, counter-clockwise
            x, y = y, -x
        return torch.stack([x, y, z], dim=-3)

    def undo_vectors(self, vectors: Tensor, i: int) -> Tensor:
        """Bring maps of vectors (..., 3, H, W) of view i back upright, as :meth:`undo`, and turn the vectors with them.

        Args:
            vectors: in camera axes, x right and y down, of the image as the view shows it.
            i: index of the view.
        """
        view = self.views[i]
        x, y, z = self.undo(vectors, i).unbind(dim=-3)
        for _ in range(view.turns):  # back by a quarter, clockwise
            x, y = -y, x
        if view.horizontal:
            x = -x
        if view.vertical:
            y = -y
        return torch.stack([x, y, z], dim=-3)

    def apply(self, image: Tensor, i: int, image_id: str) -> Tensor:
        """Return an image under view i.

        Args:
            image: (3, H, W) float RGB in 0 ... 1, before normalisation.
            i: index of the view.
            image_id: the image's id; with ``i`` it decides what is drawn.

        Returns:
            (3, H, W), after an odd number of quarter turns (3, W, H), of the same dtype in 0 ... 1.

        Raises:
            DataError: if view i does not exist, or the image holds other values.
        """
        if not 0 <= i < len(self):
            raise DataError(f"view {i} does not exist; expected one of 0 ... {len(self) - 1}")
        if not image.is_floating_point():
            raise DataError(
                f"the image is {image.dtype}; expected floats in 0 ... 1, such as image / 255"
            )
        low, high = (bound.item() for bound in torch.aminmax(image))
        if not (low >= 0 and high <= 1):  # NaN neither
            raise DataError(
                f"the image holds values {low:g} ... {high:g}; expected 0 ... 1, before normalisation"
            )
        from torchvision.transforms.v2 import functional

        x = self.place(image, i)
        for name, number in draws(self.views[i], i, image_id).items():
            adjust = getattr(functional, f"adjust_{name}")
            x = adjust(x, number)
        return x


def draws(view: View, i: int, image_id: str) -> dict[str, float]:
    """Return what view i draws for an image: name of the change -> number, in the order they are applied."""
    digest = hashlib.sha256(f"{i}\0{image_id}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits
    generator = torch.Generator().manual_seed(seed)
    ranges = _ranges(view)
    shares = torch.rand(len(ranges), generator=generator, dtype=torch.float64).tolist()
    numbers = {}
    for (name, (low, high)), share in zip(ranges.items(), shares, strict=True):
        numbers[name] = low + (high - low) * share
    return numbers


def _ranges(view: View) -> dict[str, tuple[float, float]]:
    """The changes of colour that a view has, in the order they are applied: name -> (low, high)."""
    ranges = {}
    for name in CHANGES:
        if getattr(view, name) is not None:
            ranges[name] = getattr(view, name)
    return ranges
