"""Point clouds in the colours of their features, seen from above and from the side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from dinoneck.codec import at_least
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.projection import Links
from dinoneck.viz.drawing import SCALE, Floats, colour_bar, describe, new_figure, numbers, span
from dinoneck.viz.pca import PCABasis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Up = Literal["z", "y", "-y"]
_UNSEEN = "0.82"
_SIDE = 4.2
# which axis, and which way along it, is (right, forward, up)
_FRAMES = {"z": ((0, 1), (1, 1), (2, 1)), "y": ((0, 1), (2, -1), (1, 1)), "-y": ((0, 1), (2, 1), (1, -1))}


def points_figure(
    points: Tensor | Floats,
    features_or_colors: Tensor | Floats,
    *,
    links: Links | None = None,
    basis: PCABasis | None = None,
    max_points: int = 20_000,
    up: Up = "z",
    label: str = "",
) -> Figure:
    """Draw a point cloud from above and from the side, without perspective, both with equal axes in metres.

    Nearer points cover farther ones. Of larger clouds a random choice is drawn, the same at every call.

    Args:
        points: (N, 3), metres.
        features_or_colors: what becomes colours. (N, 3): RGB as they are, uint8 or 0 ... 1. (N,) or (N, 1): a value,
            with a colour bar. (N, C) else: features, whose three principal components become RGB, see
            :class:`PCABasis`.
        links: which points an image sees: the others are grey, below, and count for no basis.
        basis: directions and range for features; None = fitted on all of these points that are seen.
        max_points: how many points are drawn at most.
        up: which axis points upwards: ``"z"`` (surveyors), ``"y"`` (OpenGL) or ``"-y"`` (a camera's own axes).
        label: of the colour bar, with its unit.

    Raises:
        ShapeError: if points, features and links differ in number, or features do not fit the basis.
        DataError: if values are not finite, colours are out of range, or no point is seen.
        ConfigError: if ``max_points`` or ``up`` is out of range.

    Examples:
        >>> import torch
        >>> cloud = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
        >>> figure = points_figure(cloud, torch.eye(3)[:2])
        >>> [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
        [('from above, 2 points', 'y [m]'), ('from the side', 'z [m]')]
    """
    places = numbers(points, "points", "n, 3")
    seen = _seen(links, len(places))
    colours = _colours(features_or_colors, seen, len(places), basis)
    drawn, (right, forward, upwards) = _drawn(len(places), max_points), _frame(up)
    title = "from above, " + (f"{len(drawn)} of " if len(drawn) < len(places) else "") + f"{len(places)} points"
    title += "" if links is None else f", {seen.mean():.0%} seen by an image"
    style = {"s": float(np.clip(12_000.0 / len(drawn), 1.5, 30.0)), "linewidths": 0.0, "rasterized": True}
    ends = dict(zip(("vmin", "vmax"), span([colours[seen]]), strict=True)) if colours.ndim == 1 else {}
    figure = new_figure(2 * _SIDE + 0.4, _SIDE + (0.7 if ends else 0.3))
    views = ((title, forward, upwards), ("from the side", upwards, (forward[0], -forward[1])))
    for axes, (heading, vertical, towards) in zip(figure.subplots(1, 2), views, strict=True):
        order = drawn[np.argsort(places[drawn, towards[0]] * towards[1], kind="stable")]  # nearer points last
        unseen, order = order[~seen[order]], order[seen[order]]
        xy = places[:, [right[0], vertical[0]]].T
        axes.scatter(*xy[:, unseen], color=_UNSEEN, **style)
        dots = axes.scatter(*xy[:, order], c=colours[order], cmap=SCALE if ends else None, **ends, **style)
        axes.set_aspect("equal", adjustable="datalim")
        axes.yaxis.set_inverted(vertical[1] < 0)
        describe(axes, heading, f"{'xyz'[right[0]]} [m]", f"{'xyz'[vertical[0]]} [m]")
    if ends:
        colour_bar(dots, figure.axes, label)
    return figure


def _drawn(count: int, most: int) -> Floats:
    """A random choice of at most so many of ``count`` points; fewer are part of more."""
    at_least(1, max_points=most)
    return np.random.default_rng(0).permutation(count)[:most]


def _frame(up: Up) -> tuple[tuple[int, int], ...]:
    if up not in _FRAMES:
        raise ConfigError(f"up is {up!r}; expected one of {', '.join(_FRAMES)}")
    return _FRAMES[up]


def _seen(links: Links | None, count: int) -> Floats:
    """(N,): whether an image sees the point; all of them without links."""
    if links is None:
        return np.ones(count, bool)
    if links.num_points != count:
        raise ShapeError(f"links are of a cloud of {links.num_points} points; this one has {count}")
    seen = np.zeros(count, bool)
    seen[links.point.cpu().numpy()] = True
    if not seen.any():
        raise DataError("no point is seen by an image; check the cameras with dinoneck.points.check_cameras")
    return seen


def _colours(given: Tensor | Floats, seen: Floats, count: int, basis: PCABasis | None) -> Floats:
    """RGB (N, 3), or the values (N,) that become colours."""
    is_bytes = str(getattr(given, "dtype", "")).endswith("uint8")
    axes = f"{count}" if getattr(given, "ndim", 2) == 1 else f"{count}, channels"
    table = numbers(given, "features or colours, one per point,", axes)
    if table.ndim == 1 or table.shape[1] == 1:
        return table.reshape(-1)
    if table.shape[1] != 3 or basis is not None:
        return (basis or PCABasis.fit(table[seen])).apply(table)
    colours = table / 255.0 if is_bytes else table
    if colours.min() < 0 or colours.max() > 1:
        raise DataError(
            f"(N, 3) are colours, uint8 or 0 ... 1; these span {colours.min():.3g} ... {colours.max():.3g}. Three "
            "features become colours by PCABasis.fit(features).apply(features)"
        )
    return colours
