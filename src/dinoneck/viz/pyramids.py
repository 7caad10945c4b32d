"""The levels of a pyramid, one beside the other and as large as the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoneck.data.photos import Photo
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.tokens import FeaturePyramid
from dinoneck.viz.arrays import numbers
from dinoneck.viz.pca import pca_rgb
from dinoneck.viz.sheet import SCALE, Sheet, pictures_of, show, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]


def pyramid_figure(
    pyramid: FeaturePyramid,
    photo: Photo | None = None,
    *,
    how: Literal["pca", "norm"] = "pca",
    sample: int = 0,
) -> Figure:
    """Draw every level of one photo's pyramid, fine to coarse, in the photo's pixels.

    A cell covers the pixels that its stride says; where a level's last cell reaches over the photo's edge, it is cut
    there. Levels have channels of their own: the colours of two levels do not compare, patterns do.

    Args:
        pyramid: what a neck gives.
        photo: the image that went in, as the backbone saw it; None draws the levels alone.
        how: ``"pca"``: three principal components as colours, see :func:`pca_rgb`; ``"norm"``: the length of a cell's
            feature, one colour bar per level.
        sample: which of the batch.

    Returns:
        a ``matplotlib.figure.Figure`` of one row.

    Raises:
        ConfigError: if ``how`` is another word, or there is no such sample.
        ShapeError: if a level is no map, or does not fit the photo's size.
        DataError: if values are not finite.
        ImportError: if matplotlib is missing.

    Examples:
        >>> import torch
        >>> levels = FeaturePyramid((torch.rand(1, 8, 5, 6), torch.rand(1, 8, 3, 3)), (16.0, 32.0))
        >>> figure = pyramid_figure(levels)
        >>> [axes.texts[0].get_text() for axes in figure.axes]
        ['level 0: stride 16 px, 5 x 6 cells', 'level 1: stride 32 px, 3 x 3 cells']
        >>> [float(end) for end in figure.axes[1].images[0].get_extent()]  # left, right, bottom, top
        [0.0, 96.0, 96.0, 0.0]
    """
    if how not in ("pca", "norm"):
        raise ConfigError(f"how is {how!r}; expected 'pca' or 'norm'")
    if not len(pyramid):
        raise ShapeError("this pyramid has no levels")
    levels = _levels(pyramid, sample)
    picture = None if photo is None else pictures_of(photo)[0]
    size = _size(levels[0], pyramid.strides[0]) if picture is None else picture.shape[:2]
    captions = [
        _checked_caption(level, stride, size, place)
        for place, (level, stride) in enumerate(zip(levels, pyramid.strides, strict=True))
    ]
    first = [] if picture is None else ["photo"]
    sheet = Sheet([size], [[*first, *captions]], bars=how == "norm")
    if picture is not None:
        show(sheet.picture(0, 0), picture)
    for place, (level, stride) in enumerate(zip(levels, pyramid.strides, strict=True), start=len(first)):
        _draw(sheet, place, level, stride, how)
    return sheet.figure


def _draw(sheet: Sheet, place: int, level: _Floats, stride: float, how: str) -> None:
    axes = sheet.picture(0, place)
    extent = (0.0, float(level.shape[2] * stride), float(level.shape[1] * stride), 0.0)
    if how == "pca":
        show(axes, pca_rgb(level[None])[0], extent=extent, interpolation="nearest")
        return
    lengths = np.linalg.norm(level, axis=0)
    low, high = span([lengths])
    image = show(axes, lengths, extent=extent, cmap=SCALE, vmin=low, vmax=high, interpolation="nearest")
    sheet.bar(place, image, "length of a feature")


def _levels(pyramid: FeaturePyramid, sample: int) -> list[_Floats]:
    """The maps (channels, rows, cols) of one photo."""
    batch = len(pyramid.maps[0])
    if isinstance(sample, bool) or not isinstance(sample, int) or not -batch <= sample < batch:
        raise ConfigError(f"sample is {sample!r}; this pyramid is of {batch} photos")
    return [
        numbers(level[sample], f"the values of level {place}", "channels, rows, cols")
        for place, level in enumerate(pyramid.maps)
    ]


def _size(level: _Floats, stride: float) -> tuple[int, int]:
    return max(1, round(level.shape[1] * stride)), max(1, round(level.shape[2] * stride))


def _checked_caption(level: _Floats, stride: float, size: tuple[int, ...], place: int) -> str:
    """What to write over a level; one whose cells do not cover the photo, or a cell more than it, is refused."""
    for cells, side in zip(level.shape[1:], size, strict=True):
        if not -1e-6 <= cells * stride - side < stride:
            raise ShapeError(
                f"level {place} has {level.shape[1]} x {level.shape[2]} cells of {stride:g} px, which do not fit a "
                f"photo of {size[0]}x{size[1]} px; give the photo as the backbone saw it (Preprocessing.picture)"
            )
    return f"level {place}: stride {stride:g} px, {level.shape[1]} x {level.shape[2]} cells"
