"""Features as colours: the three directions in which patches differ most become red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.tokens import Tokens
from dinoneck.viz.checked import Floats, numbers

RANGE_PERCENT = (1.0, 99.0)
_COLOURS = 3
_FLAT = 1e-12  # of the total variance: a direction with less holds rounding errors
_NO_RANGE = 1e-6  # of the largest score: a narrower range means that most patches are equal
_DIGITS = 9  # entries of a direction that agree so far are equally large


@dataclass(frozen=True, eq=False)
class PCABasis:
    """Three directions of feature space and what they look like, so that several images share their colours.

    Fit it on one batch (or on several, joined with :meth:`dinoneck.Tokens.cat`) and hand it to
    :func:`pca_rgb` for the others: the same feature then has the same colour in every image, time
    step and crop. The order of directions of almost equal variance is chance; colours of two bases
    do not compare.

    Attributes:
        mean: (C,) of the features.
        axes: (C, 3), unit directions of falling variance, zeros where there is none left.
        low: (3,), the scores that become 0.
        high: (3,), the scores that become 1.
        subject: the first direction over all patches, high on the foreground; None if the basis was
            fitted without a foreground.
        threshold: the share of the subject's range above which a patch is foreground.

    Examples:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]])
        >>> pca_rgb(rows, basis=PCABasis.fit(rows)).tolist()
        [[0.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]
    """

    mean: Floats
    axes: Floats
    low: Floats
    high: Floats
    subject: PCABasis | None = None
    threshold: float = 0.0

    @classmethod
    def fit(
        cls, features: Tokens | Tensor | Floats, *, foreground: float | None = None
    ) -> PCABasis:
        """Find the directions in which these features differ most, over the whole batch, in float64.

        Signs are fixed: the largest entry of a direction is positive. The colour range is that of
        the middle 98 % of the patches. CLS and register tokens are left out.

        Args:
            features: Tokens (of several layers the last), maps (B, C, rows, cols) or rows (M, C).
            foreground: None, or 0 ... 1: leave out patches whose first component is below this
                share of its range, and find the directions among the others. The component is
                turned so that the edges of the images are low on it, which finds the foreground
                where the subject is in the middle.

        Raises:
            ShapeError: if the features have another form, or are rows and a foreground is asked
                for.
            ConfigError: if ``foreground`` is out of range.
            DataError: if features are not finite, or fewer than two patches are foreground.
        """
        rows, shape = _rows(features)
        if foreground is None:
            return cls._fit_components(rows, _COLOURS)
        if not 0 <= foreground < 1:
            raise ConfigError(
                f"foreground is {foreground!r}; expected None or a share of 0 ... 1, such as 0.5"
            )
        is_list_of_rows = len(shape) == 1
        if is_list_of_rows:
            raise ShapeError(
                "a foreground needs the places of patches: Tokens or maps (B, C, rows, cols), not "
                "rows"
            )
        subject = _turn_to_middle(cls._fit_components(rows, 1), rows, shape)
        in_front = rows[subject.shares(rows)[:, 0] > foreground]
        if len(in_front) < 2:
            raise DataError(
                f"{len(in_front)} of {len(rows)} patches are above foreground={foreground:g}; "
                "give less"
            )
        return replace(
            cls._fit_components(in_front, _COLOURS), subject=subject, threshold=float(foreground)
        )

    @classmethod
    def _fit_components(cls, rows: Floats, count: int) -> PCABasis:
        """Find the first ``count`` principal components of rows (M, C), and their ranges."""
        mean = rows.mean(axis=0)

        # directions of falling variance; eigh sorts them upwards
        scatter = (rows - mean).T @ (rows - mean)
        variances, vectors = np.linalg.eigh(scatter)
        has_variance = variances[::-1][:count] > _FLAT * variances.sum()
        directions = vectors[:, ::-1][:, :count] * has_variance
        axes = np.zeros((rows.shape[1], count))
        axes[:, : directions.shape[1]] = directions * np.sign(_largest_entries(directions))

        # ranges of the scores
        scores = (rows - mean) @ axes
        low, high = np.percentile(scores, RANGE_PERCENT, axis=0)
        # most patches are equal, so that their middle 98 % have no range: take that of all patches
        is_narrow = high - low <= _NO_RANGE * np.abs(scores).max(axis=0)
        low = np.where(is_narrow, scores.min(axis=0), low)
        high = np.where(is_narrow, scores.max(axis=0), high)
        return cls(mean, axes, low, high)

    def shares(self, rows: Floats) -> Floats:
        """Return rows (M, C) as shares (M, directions) in 0 ... 1; 0.5 for a direction without range."""
        scores = (rows - self.mean) @ self.axes
        span = self.high - self.low
        has_range = span > 0
        shares = np.clip((scores - self.low) / np.where(has_range, span, 1.0), 0.0, 1.0)
        return np.where(has_range, shares, 0.5)


def _largest_entries(directions: Floats) -> Floats:
    """The entry of each column that is farthest from 0, (1, columns)."""
    indices = np.abs(directions.round(_DIGITS)).argmax(axis=0)
    return np.take_along_axis(directions, indices[None], axis=0)


def _turn_to_middle(subject: PCABasis, rows: Floats, shape: tuple[int, ...]) -> PCABasis:
    """Flip the direction if patches at the edges of the images (B, rows, cols) score higher than the others."""
    shares = subject.shares(rows).reshape(shape)
    is_edge = np.ones(shape, bool)
    is_edge[:, 1:-1, 1:-1] = False
    if not is_edge.all() and shares[is_edge].mean() > shares[~is_edge].mean():
        return replace(subject, axes=-subject.axes, low=-subject.high, high=-subject.low)
    return subject


def pca_rgb(
    features: Tokens | Tensor | Floats,
    *,
    basis: PCABasis | None = None,
    foreground: float | None = None,
) -> Floats:
    """Return patches as colours: their three largest principal components are red, green and blue.

    The components are those of all images of the batch together, so the same colour is the same
    feature in all of them. To compare batches, fit a :class:`PCABasis` once and pass it.

    Args:
        features: Tokens (of several layers the last), maps (B, C, rows, cols), or rows (M, C) such
            as points. CLS and register tokens are left out.
        basis: directions and range to use; None = fitted on these features.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.

    Shape:
        (B, rows, cols, 3), of rows (M, 3); float64 in 0 ... 1. Background is black.

    Raises:
        ShapeError: if the features have another form or width than the basis.
        ConfigError: if ``basis`` and ``foreground`` are both given.
        DataError: if features are not finite.

    Examples:
        >>> import torch
        >>> image = torch.zeros(1, 6, 8)
        >>> image[0, 3:, 0] = 1.0
        >>> tokens = Tokens.from_patches(image, grid=(2, 3), patch_size=16)
        >>> pca_rgb(tokens)[0, :, :, 0].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]

    Reference: Oquab et al., "DINOv2", 2023, figure 1 (with ``foreground``). Deviations: signs and
    range are fixed, and the background is found by the images' edges.
    """
    if basis is not None and foreground is not None:
        raise ConfigError(
            "basis and foreground are both given; give foreground= where the basis is fitted"
        )
    if basis is None:
        basis = PCABasis.fit(features, foreground=foreground)
    rows, shape = _rows(features)
    if rows.shape[1] != len(basis.mean):
        raise ShapeError(
            f"features have {rows.shape[1]} channels; this PCABasis was fitted on {len(basis.mean)}"
        )
    colours = basis.shares(rows)
    if basis.subject is not None:
        is_background = basis.subject.shares(rows)[:, 0] <= basis.threshold
        colours[is_background] = 0.0
    return colours.reshape(*shape, _COLOURS)


def _rows(features: Tokens | Tensor | Floats) -> tuple[Floats, tuple[int, ...]]:
    """Rows (M, C) in float64, and the shape that M is the product of: (B, rows, cols), or (M,) for rows."""
    if isinstance(features, Tokens):
        features = features.maps()[-1]
    axes = "rows, channels"
    if getattr(features, "ndim", 2) == 4:
        axes = "images, channels, rows, cols"
    values = numbers(features, "features", axes)
    channels_last = np.moveaxis(values, 1, -1)  # rows (M, C) stay as they are
    rows = channels_last.reshape(-1, channels_last.shape[-1])
    return np.ascontiguousarray(rows), channels_last.shape[:-1]
