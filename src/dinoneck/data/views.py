"""Augmented views: the fixed list of flips, turns and colour changes under which features are extracted once.

A frozen backbone runs once per image and view; a head then trains on the stored tokens, another view of a
image at every epoch. Flips of pixels are not flips of tokens (position embeddings stay where they are), so every
view goes through the backbone of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Self, get_type_hints

import torch
from torch import Tensor

from dinoneck.codec import normal
from dinoneck.data.preprocessing import transforms
from dinoneck.errors import ConfigError, DataError, did_you_mean

Range = tuple[float, float]

ROUNDING = 1e-4
LIMITS: dict[str, Range] = {
    "brightness": (-1.0, 1.0),
    "contrast": (-1.0, 1.0),
    "hue": (-180.0, 180.0),
    "saturation": (-1.0, 1.0),
    "value": (-1.0, 1.0),
    "gamma": (0.01, 100.0),
}


@dataclass(frozen=True)
class View:
    """A flip, quarter turns, and the ranges that colour changes are drawn from, uniformly; None = no such change.

    The changes come in the order of these fields.

    Args:
        horizontal: flip left and right.
        vertical: flip top and bottom.
        turns: quarter turns counter-clockwise after the flip, 0 ... 3; an odd number swaps height and width.
        brightness: (low, high): all values times 1 + the draw.
        contrast: (low, high): the distance to the image's mean grey times 1 + the draw.
        hue: (low, high) in degrees, added to the hue.
        saturation: (low, high), added to the saturation (0 ... 1) of HSV; greys stay grey.
        value: (low, high), added to the value (0 ... 1) of HSV, the largest of R, G and B.
        gamma: (low, high): every value to the power of the draw.

    Raises:
        ConfigError: if a range is reversed or beyond what its change allows.
    """

    horizontal: bool = False
    vertical: bool = False
    turns: int = 0
    brightness: Range | None = None
    contrast: Range | None = None
    hue: Range | None = None
    saturation: Range | None = None
    value: Range | None = None
    gamma: Range | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(View).items():
            object.__setattr__(self, name, normal(kind, getattr(self, name), f"{name} of a view"))
        if self.turns not in range(4):
            raise ConfigError(f"turns of a view is {self.turns}; expected 0 ... 3 quarter turns")
        for name, (lowest, highest) in LIMITS.items():
            low, high = getattr(self, name) or (lowest, highest)
            if not lowest <= low <= high <= highest:
                raise ConfigError(
                    f"{name} of a view is {low:g} ... {high:g}; expected {lowest:g} <= low <= high <= {highest:g}"
                )

    def record(self) -> dict[str, Any]:
        """Return the JSON-able form: flips, turns, and the ranges that are set."""
        ranges = {name: list(getattr(self, name)) for name in LIMITS if getattr(self, name) is not None}
        turns = {"turns": self.turns} if self.turns else {}
        return {"horizontal": self.horizontal, "vertical": self.vertical, **turns, **ranges}


_FLIPS = ((False, False), (True, False), (False, True), (True, True))
_COLOURS = (
    View(brightness=(-0.2, 0.2)),
    View(contrast=(-0.2, 0.2)),
    View(hue=(-20.0, 20.0), saturation=(-20 / 255, 20 / 255), value=(-20 / 255, 20 / 255)),
    View(gamma=(0.8, 1.2)),
)
_FLIPS4 = tuple(View(*flip) for flip in _FLIPS)
_NAMED = {
    "none": _FLIPS4[:1],
    "flips4": _FLIPS4,
    "d6": (*_FLIPS4, View(turns=1), View(turns=3)),
    "color20": (*_FLIPS4, *(replace(colour, horizontal=h, vertical=v) for h, v in _FLIPS for colour in _COLOURS)),
}


@dataclass(frozen=True)
class Views:
    """An ordered list of :class:`View`, applied to images in a way that can be repeated.

    Two lists are equal when every flip and range is. What a colour change draws depends on the image's id and the
    view's index alone, so a second extraction sees the same pixels (up to float rounding between machines).

    Args:
        views: at least one.

    Raises:
        ConfigError: if there is none, or an item is not a View.

    Examples:
        >>> views = Views.named("color20")
        >>> len(views), views.flips(6), views.flips(11)
        (20, (False, False), (True, False))
        >>> image = torch.rand(3, 32, 48)
        >>> torch.equal(views.apply(image, 1, "field/0001"), image.flip(-1))
        True

    Reference: a published pipeline for pasture biomass stores 20 views per image. Deviations: torchvision's
    brightness and contrast, and greys stay grey.
    """

    views: tuple[View, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views or not all(isinstance(view, View) for view in self.views):
            raise ConfigError(f"views are {self.views}; expected one View or more; View() is the image as it is")

    @classmethod
    def named(cls, name: str) -> Self:
        """Return a list by its name.

        Args:
            name: ``"none"`` (the image as it is); ``"flips4"`` (original, left-right, up-down, both); ``"d6"`` (these
                and both quarter turns); ``"color20"`` (``flips4``, then index 4 + 4 * flip + k with k = brightness,
                contrast, hsv, gamma).

        Raises:
            ConfigError: if there is no such list.
        """
        if name not in _NAMED:
            hint = did_you_mean(str(name), _NAMED)
            raise ConfigError(f"views is {name!r}; expected {', '.join(_NAMED)}, or Views of your own.{hint}")
        return cls(_NAMED[name])

    @classmethod
    def from_record(cls, record: Sequence[Mapping[str, Any]]) -> Self:
        """Rebuild from :meth:`record`.

        Raises:
            ConfigError: if it is not a list of mappings with the fields of :class:`View`.
        """
        if not isinstance(record, list | tuple) or not all(isinstance(item, Mapping) for item in record):
            raise ConfigError(f"the record of views is {record!r}; expected a list of mappings")
        known = [field.name for field in fields(View)]
        for key in (key for item in record for key in item):
            if key not in known:
                raise ConfigError(f"the record of views has the unknown key {key!r}.{did_you_mean(key, known)}")
        return cls(tuple(View(**item) for item in record))

    def record(self) -> list[dict[str, Any]]:
        """Return the whole description as plain JSON-able values; equal lists have equal records."""
        return [view.record() for view in self.views]

    def __len__(self) -> int:
        return len(self.views)

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether view i flips (left and right, top and bottom), which labels per cell follow.

        Raises:
            DataError: if view i does not exist.
            ConfigError: if it turns, which labels per cell do not follow.
        """
        view = self._at(i)
        if view.turns:
            raise ConfigError(
                f"view {i} turns images by {90 * view.turns} degrees, and labels per cell follow flips alone; "
                "train tasks with maps on views without turns"
            )
        return view.horizontal, view.vertical

    def turns(self, i: int) -> int:
        """Return the quarter turns of view i; an odd number swaps the rows and columns of its grid."""
        return self._at(i).turns

    def place(self, x: Tensor, i: int) -> Tensor:
        """Flip and turn (..., H, W) as view i does."""
        return torch.rot90(x.flip(self._flipped(i)), self.turns(i), dims=(-2, -1))

    def undo(self, x: Tensor, i: int) -> Tensor:
        """Bring (..., H, W) of view i back upright: the inverse of :meth:`place`."""
        return torch.rot90(x, -self.turns(i), dims=(-2, -1)).flip(self._flipped(i))

    def _flipped(self, i: int) -> list[int]:
        view = self._at(i)
        return [axis for axis, flipped in ((-1, view.horizontal), (-2, view.vertical)) if flipped]

    def apply(self, image: Tensor, i: int, image_id: str) -> Tensor:
        """Return an image under view i.

        Args:
            image: (3, H, W) float RGB in 0 ... 1, before normalisation.
            i: index of the view.
            image_id: the image's id; with ``i`` it decides what is drawn.

        Returns:
            (3, H, W), after an odd number of quarter turns (3, W, H), of the same dtype in 0 ... 1.

        Raises:
            DataError: if view i does not exist, or the image has another shape, dtype or range.
        """
        view = self._at(i)
        _check(image)
        x = self.place(image, i).clamp_(0.0, 1.0)  # flip has made a copy
        for name, draw in draws(view, i, image_id).items():
            x = _CHANGES[name](x, draw).clamp(0.0, 1.0)
        return x

    def _at(self, i: int) -> View:
        if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < len(self.views):
            raise DataError(f"view {i!r} does not exist; these are 0 ... {len(self.views) - 1}")
        return self.views[int(i)]


def draws(view: View, i: int, image_id: str) -> dict[str, float]:
    """Return what view i draws for an image: name of the change -> number, in the order they are applied."""
    digest = hashlib.sha256(f"{i}\0{image_id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    drawn = {}
    for name in LIMITS:
        given: Range | None = getattr(view, name)
        if given is not None:
            share = torch.rand((), generator=generator, dtype=torch.float64).item()
            drawn[name] = min(max(given[0] + (given[1] - given[0]) * share, given[0]), given[1])
    return drawn


def shift_saturation(x: Tensor, shift: float) -> Tensor:
    """Add to the HSV saturation of (3, H, W) RGB, kept in 0 ... 1; hue and value stay, and so do greys."""
    most, least = x.amax(dim=0), x.amin(dim=0)
    spread = most - least
    grey = spread == 0
    saturation = spread / torch.where(grey, 1.0, most)
    ratio = (saturation + shift).clamp(0.0, 1.0) / torch.where(grey, 1.0, saturation)
    return most - (most - x) * ratio


def shift_value(x: Tensor, shift: float) -> Tensor:
    """Add to the HSV value (the largest channel) of (3, H, W) RGB, kept in 0 ... 1; hue and saturation stay."""
    most = x.amax(dim=0)
    black = most == 0
    return torch.where(black, 1.0, x / torch.where(black, 1.0, most)) * (most + shift).clamp(0.0, 1.0)


_CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": lambda x, draw: transforms().adjust_brightness(x, 1.0 + draw),
    "contrast": lambda x, draw: transforms().adjust_contrast(x, 1.0 + draw),
    "hue": lambda x, degrees: transforms().adjust_hue(x, degrees / 360.0),
    "saturation": shift_saturation,
    "value": shift_value,
    "gamma": lambda x, gamma: transforms().adjust_gamma(x, gamma),
}


def _check(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise DataError(f"an image has shape {tuple(image.shape)}; expected (3, height, width)")
    if not image.is_floating_point():
        raise DataError(f"an image holds {image.dtype} values; expected floats in 0 ... 1")
    low, high = (bound.item() for bound in torch.aminmax(image))
    if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):  # also catches NaN
        raise DataError(f"an image has values {low:g} ... {high:g}; expected RGB in 0 ... 1, before normalisation")
