"""Point clouds in the colours of their features, seen from above and from the side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.projection import Links
from dinoneck.viz.arrays import numbers
from dinoneck.viz.pca import PCABasis
from dinoneck.viz.sheet import CAPTION_PT, SCALE, TICK_PT, new_figure, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Up = Literal["z", "y", "-y"]
_Floats = np.ndarray[Any, Any]

_UNSEEN = 0.82
_STEP, _WORD = 0x9E3779B97F4A7C15, 64  # Weyl's sequence of the golden ratio: any stretch of it is spread evenly
_SIDE = 4.2
# which axis, and which way along it, is (right, forward, up)
_FRAMES = {
    "z": ((0, 1), (1, 1), (2, 1)),
    "y": ((0, 1), (2, -1), (1, 1)),
    "-y": ((0, 1), (2, 1), (1, -1)),
}


class _View(NamedTuple):
    """Right and upwards on the paper, and what points at the reader: axis and sign each."""

    title: str
    right: tuple[int, int]
    upwards: tuple[int, int]
    towards: tuple[int, int]


def points_figure(
    points: Tensor | _Floats,
    features_or_colors: Tensor | _Floats,
    *,
    links: Links | None = None,
    basis: PCABasis | None = None,
    max_points: int = 20_000,
    up: Up = "z",
    label: str = "",
) -> Figure:
    """Draw a point cloud from above and from the side, without perspective, both with equal axes in metres.

    Nearer points cover farther ones. Of larger clouds an even choice is drawn, the same at every call, and the choice
    of fewer points is part of the choice of more.

    Args:
        points: (N, 3), metres.
        features_or_colors: what becomes colours. (N, 3): RGB as they are, uint8 or 0 ... 1. (N,) or (N, 1): a value,
            with a colour bar. (N, C) else: features, whose three principal components become RGB, see
            :class:`PCABasis`.
        links: which points a photo sees: the others are grey, beneath, and count for no basis; the title says how
            many were seen.
        basis: directions and range for features; None = fitted on these points, all of them that are seen.
        max_points: how many points are drawn at most.
        up: which axis points upwards: ``"z"`` (worlds as surveyors have them), ``"y"`` (OpenGL) or ``"-y"`` (a
            camera's own axes: x right, y down, z forward).
        label: of the colour bar, with its unit.

    Returns:
        a ``matplotlib.figure.Figure`` of two plots, and a colour bar for values.

    Raises:
        ShapeError: if points, features and links are not of one number, or features do not fit the basis.
        DataError: if values are not finite, colours are out of range, or no point is seen.
        ConfigError: if ``max_points`` or ``up`` is out of range.
        ImportError: if matplotlib is missing.

    Examples:
        >>> import torch
        >>> cloud = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
        >>> figure = points_figure(cloud, torch.eye(3)[:2])
        >>> [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
        [('from above, 2 points', 'y [m]'), ('from the side', 'z [m]')]
    """
    views, places = _views(up), numbers(points, "points", "n, 3")
    seen = _seen(links, len(places))
    colours, values = _colours(features_or_colors, seen, len(places), basis)
    drawn = _spread(len(places), max_points)
    figure = new_figure(2 * _SIDE + 0.4, _SIDE + (0.3 if values is None else 0.7), layout="constrained")
    how = {} if values is None else dict(zip(("vmin", "vmax"), span([values[seen]]), strict=True), cmap=SCALE)
    for place, view in enumerate(views):
        axes = figure.add_subplot(1, 2, place + 1)
        order = drawn[np.argsort(places[drawn, view.towards[0]] * view.towards[1], kind="stable")]
        unseen, order = order[~seen[order]], order[seen[order]]
        _scatter(axes, places[unseen], view, len(drawn), color=str(_UNSEEN))
        dots = _scatter(axes, places[order], view, len(drawn), c=colours[order], **how)
        _name_axes(axes, view)
    figure.axes[0].set_title(_title(len(drawn), seen, links), fontsize=CAPTION_PT)
    _bar(figure, dots, label, values)
    return figure


def _views(up: Up) -> tuple[_View, _View]:
    if up not in _FRAMES:
        raise ConfigError(f"up is {up!r}; expected one of {', '.join(get_args(Up))}")
    right, forward, upwards = _FRAMES[up]
    back = (forward[0], -forward[1])
    return _View("from above", right, forward, upwards), _View("from the side", right, upwards, back)


def _scatter(axes: Axes, places: _Floats, view: _View, count: int, **how: Any) -> Any:
    x, y = places[:, view.right[0]], places[:, view.upwards[0]]
    size = float(np.clip(12_000.0 / count, 1.5, 30.0))
    return axes.scatter(x, y, s=size, marker="o", linewidths=0.0, rasterized=True, **how)


def _name_axes(axes: Axes, view: _View) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    if view.right[1] < 0:
        axes.invert_xaxis()
    if view.upwards[1] < 0:
        axes.invert_yaxis()
    axes.set_xlabel(f"{'xyz'[view.right[0]]} [m]", fontsize=CAPTION_PT)
    axes.set_ylabel(f"{'xyz'[view.upwards[0]]} [m]", fontsize=CAPTION_PT)
    axes.set_title(view.title, fontsize=CAPTION_PT)
    axes.tick_params(labelsize=TICK_PT)


def _bar(figure: Figure, dots: Any, label: str, values: _Floats | None) -> None:
    if values is None:
        return
    bar = figure.colorbar(dots, ax=figure.axes, orientation="horizontal", fraction=0.05, aspect=60)
    bar.set_label(label, fontsize=CAPTION_PT, parse_math=False)
    bar.ax.tick_params(labelsize=TICK_PT)


def _title(drawn: int, seen: _Floats, links: Links | None) -> str:
    told = f"from above, {len(seen)} points" if drawn == len(seen) else f"from above, {drawn} of {len(seen)} points"
    return told if links is None else f"{told}, {np.mean(seen):.0%} seen by a photo"


def _seen(links: Links | None, count: int) -> _Floats:
    if links is None:
        return np.ones(count, bool)
    if links.num_points != count:
        raise ShapeError(f"links are of a cloud of {links.num_points} points; this one has {count}")
    found = np.zeros(count, bool)
    found[links.point.cpu().numpy()] = True
    if not found.any():
        raise DataError("no point is seen by a photo; check the cameras with dinoneck.points.check_cameras")
    return found


def _colours(
    given: Tensor | _Floats, seen: _Floats, count: int, basis: PCABasis | None
) -> tuple[_Floats, _Floats | None]:
    """RGB or one value per point to be drawn, and the values if these are such."""
    is_bytes = str(getattr(given, "dtype", "")).endswith("uint8")
    table = numbers(given, "features or colours", "n" if getattr(given, "ndim", 2) == 1 else "n, channels")
    if len(table) != count:
        raise ShapeError(f"there are {count} points and {len(table)} features or colours; expected one of each")
    if table.ndim == 1 or table.shape[1] == 1:
        return table.reshape(-1), table.reshape(-1)
    if table.shape[1] == 3 and basis is None:
        colours = table / 255.0 if is_bytes else table
        if colours.min() < 0 or colours.max() > 1:
            raise DataError(
                f"(N, 3) are colours, uint8 or 0 ... 1; these span {colours.min():.3g} ... {colours.max():.3g}. Three "
                "features become colours by PCABasis.fit(features).apply(features)"
            )
        return colours, None
    chosen = PCABasis.fit(table[seen]) if basis is None else basis
    return chosen.apply(table), None


def _spread(count: int, most: int) -> _Floats:
    """Indices of at most so many of ``count`` points, evenly spread, the same every time."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"max_points is {most!r}; expected 1 or more")
    if count <= most:
        return np.arange(count)
    keys = np.arange(count, dtype=np.uint64) * np.uint64(_STEP % 2**_WORD)  # wraps around, which is the point
    return np.sort(np.argsort(keys, kind="stable")[:most])
