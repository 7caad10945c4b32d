"""Where a gated head looked, over the photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dinoneck.data.photos import Photo
from dinoneck.errors import ConfigError, DataError
from dinoneck.viz.arrays import numbers
from dinoneck.viz.sheet import SCALE, Sheet, checked_names, grey, pictures_of, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OFF = 1e-2  # of the sum: half precision over thousands of patches


def gate_figure(
    photos: Photo | Sequence[Photo],
    gates: Tensor | np.ndarray[Any, Any] | Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    alpha: float = 0.65,
) -> Figure:
    """Draw every photo beside its gate: how much each patch counts in what the head pools.

    The colours of all gates span 0 to the largest weight, so rows compare. The caption says how many times more than
    in a plain mean the heaviest patch counts.

    Args:
        photos: what the gates are of, as the backbone saw it (``Preprocessing.picture``).
        gates: (B, rows, cols), or one (rows, cols) per photo: ``CLSGatingHead.gate(tokens)``, or ``"gate"`` of the
            Predictor's results. Every gate adds up to one.
        names: one per photo, shown above it.
        alpha: opacity of the gate over the photo, 0 ... 1.

    Returns:
        a ``matplotlib.figure.Figure``: one row per photo.

    Raises:
        DataError: if there are more or fewer photos than gates, or a gate is negative or does not add up to one.
        ShapeError: if a gate is no map.
        ImportError: if matplotlib is missing.

    Examples:
        >>> gate = np.array([[0.1, 0.2], [0.3, 0.4]])
        >>> figure = gate_figure(np.zeros((32, 32, 3), np.uint8), gate[None])
        >>> [text.get_text() for text in figure.axes[1].texts]
        ['gate, at most 1.6 x the even weight']
    """
    pictures = pictures_of(photos)
    named, opacity = checked_names(names, len(pictures)), checked_alpha(alpha)
    maps = [_gate(gate, i) for i, gate in enumerate(gates)]
    if len(maps) != len(pictures):
        raise DataError(f"{len(pictures)} photos with {len(maps)} gates; expected one of each")
    captions = [
        [name, f"gate, at most {gate.max() * gate.size:.3g} x the even weight"]
        for name, gate in zip(named, maps, strict=True)
    ]
    sheet = Sheet([picture.shape[:2] for picture in pictures], captions, bars=True)
    top = max(float(gate.max()) for gate in maps)
    for row, (picture, gate) in enumerate(zip(pictures, maps, strict=True)):
        show(sheet.picture(row, 0), picture)
        axes = sheet.picture(row, 1)
        show(axes, grey(picture))
        image = show(axes, gate, cmap=SCALE, vmin=0.0, vmax=top, alpha=opacity, interpolation="nearest")
    sheet.bar(1, image, "weight of one patch, one photo adds up to 1")
    return sheet.figure


def checked_alpha(alpha: float) -> float:
    """Return an opacity.

    Raises:
        ConfigError: if it is no number of 0 ... 1.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha!r}; expected an opacity of 0 ... 1")
    return float(alpha)


def _gate(gate: Any, place: int) -> np.ndarray[Any, Any]:
    weights = numbers(gate, f"the weights of gate {place}", "rows, cols")
    total = float(weights.sum())
    if weights.min() < 0 or abs(total - 1.0) > _OFF:
        raise DataError(
            f"gate {place} adds up to {total:.4g} and its smallest weight is {weights.min():.3g}; expected weights of "
            "0 or more that add up to 1"
        )
    return weights
