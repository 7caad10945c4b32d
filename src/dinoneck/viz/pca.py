"""Features as colours: the three directions in which patches differ most become red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.tokens import Tokens
from dinoneck.viz.drawing import Floats, numbers

RANGE_PERCENT = (1.0, 99.0)
_COLOURS = 3
_FLAT = 1e-12  # of the total variance: a direction with less holds rounding errors


@dataclass(frozen=True, eq=False)
class _Components:
    """Directions of the largest variance, and the scores that become 0 and 1."""

    mean: Floats
    axes: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, rows: Floats, count: int) -> _Components:
        """Find them in rows (M, C): unit directions of falling variance, zeros where there is none left."""
        mean = rows.mean(axis=0)
        variances, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean))
        axes = np.zeros((rows.shape[1], count))
        kept = vectors[:, ::-1][:, :count] * (variances[::-1][:count] > _FLAT * variances.sum())
        largest = np.take_along_axis(kept, np.abs(kept.round(9)).argmax(axis=0)[None], axis=0)
        axes[:, : kept.shape[1]] = kept * np.sign(largest)
        scores = (rows - mean) @ axes
        low, high = np.percentile(scores, RANGE_PERCENT, axis=0)
        single = high - low <= 1e-6 * np.abs(scores).max(axis=0)  # all but a few patches are equal
        low, high = np.where(single, scores.min(axis=0), low), np.where(single, scores.max(axis=0), high)
        return cls(mean, axes, low, high)

    def shares(self, rows: Floats) -> Floats:
        """(M, C) -> (M, count) in 0 ... 1; one half where a direction holds nothing."""
        scores, span = (rows - self.mean) @ self.axes, self.high - self.low
        clipped: Floats = np.clip((scores - self.low) / np.where(span > 0, span, 1.0), 0.0, 1.0)
        clipped[:, span <= 0] = 0.5
        return clipped


@dataclass(frozen=True, eq=False)
class PCABasis:
    """Three directions of feature space and what they look like, so that several images share their colours.

    Fit it on one batch (or on several, joined with :meth:`dinoneck.Tokens.cat`) and hand it to :func:`pca_rgb` for the
    others: the same feature then has the same colour in every image, time step and crop. The order of
    directions of almost equal variance is chance; colours of two bases do not compare.

    Attributes:
        components: the directions and the range that spans 0 ... 1.
        subject: where a foreground was asked for: the first direction over all patches.
        is_turned: whether the foreground is low on that direction.
        threshold: the share of that direction above which a patch is foreground; None = no foreground.

    Examples:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]])
        >>> PCABasis.fit(rows).apply(rows).tolist()
        [[0.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]
    """

    components: _Components
    subject: _Components | None = None
    is_turned: bool = False
    threshold: float | None = None

    @classmethod
    def fit(cls, features: Tokens | Tensor | Floats, *, layer: int = -1, foreground: float | None = None) -> PCABasis:
        """Find the directions in which these features differ most, over the whole batch, in float64.

        Signs are fixed: the largest entry of a direction is positive. The colour range is that of the middle 98 % of
        the patches. CLS and registers never take part.

        Args:
            features: Tokens, maps (B, C, rows, cols) or rows (M, C).
            layer: which of the tokens' layers, by position; -1 = the last.
            foreground: None, or 0 ... 1: leave out patches whose first component is below this share of its range, and
                find the directions among the others. The component is turned so that the edges of the images are
                low on it, which finds the foreground where the subject is in the middle.

        Raises:
            ShapeError: if the features have another form, or are rows and a foreground is asked for.
            ConfigError: if the layer does not exist, or ``foreground`` is out of range.
            DataError: if features are not finite, or fewer than two patches are foreground.
        """
        rows, shape = _rows(features, layer)
        if foreground is None:
            return cls(_Components.of(rows, _COLOURS))
        if isinstance(foreground, bool) or not isinstance(foreground, int | float) or not 0 <= foreground < 1:
            raise ConfigError(f"foreground is {foreground!r}; expected None or a share of 0 ... 1, such as 0.5")
        if len(shape) != 3:
            raise ShapeError("a foreground needs the places of patches: Tokens or maps (B, C, rows, cols), not rows")
        subject = _Components.of(rows, 1)
        along = subject.shares(rows)[:, 0].reshape(shape)
        inner = along[:, 1:-1, 1:-1]
        edge_sum, edge_count = along.sum() - inner.sum(), along.size - inner.size
        is_turned = bool(inner.size and edge_sum / edge_count > inner.mean())
        in_front = (1.0 - along if is_turned else along).reshape(-1) > foreground
        if in_front.sum() < 2:
            raise DataError(
                f"{int(in_front.sum())} of {len(rows)} patches are above foreground={foreground:g}; give a lower share"
            )
        return cls(_Components.of(rows[in_front], _COLOURS), subject, is_turned, float(foreground))

    def apply(self, features: Tokens | Tensor | Floats, *, layer: int = -1) -> Floats:
        """Return the colours in 0 ... 1: (B, rows, cols, 3), of rows (M, 3); background is black.

        Args:
            features: as for :meth:`fit`, of any number and grid.
            layer: which of the tokens' layers, by position.

        Raises:
            ShapeError: if the features have another width than those that it was fitted on.
            DataError: if features are not finite.
        """
        rows, shape = _rows(features, layer)
        if rows.shape[1] != len(self.components.mean):
            raise ShapeError(
                f"features have {rows.shape[1]} channels; this PCABasis was fitted on {len(self.components.mean)}"
            )
        colours = self.components.shares(rows)
        if self.subject is not None and self.threshold is not None:
            along = self.subject.shares(rows)
            colours = np.where((1.0 - along if self.is_turned else along) > self.threshold, colours, 0.0)
        return colours.reshape(*shape, _COLOURS)


def pca_rgb(
    tokens: Tokens | Tensor | Floats,
    *,
    layer: int = -1,
    basis: PCABasis | None = None,
    foreground: float | None = None,
) -> Floats:
    """Return patches as colours: their three largest principal components are red, green and blue.

    The components are those of all images of the batch together, so the same colour is the same feature in all of
    them. To compare batches, fit a :class:`PCABasis` once and pass it.

    Args:
        tokens: Tokens, or maps (B, C, rows, cols). CLS and registers never take part.
        layer: which of the tokens' layers, by position; -1 = the last.
        basis: directions and range to use; None = fitted on these tokens.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.

    Shape:
        (B, rows, cols, 3), float64 in 0 ... 1.

    Raises:
        ShapeError: if the tokens have another form or width than the basis.
        ConfigError: if the layer does not exist, or ``basis`` and ``foreground`` are both given.
        DataError: if tokens are not finite.

    Examples:
        >>> import torch
        >>> image = torch.zeros(1, 6, 8)
        >>> image[0, 3:, 0] = 1.0
        >>> tokens = Tokens.from_patches(image, grid=(2, 3), patch_size=16)
        >>> pca_rgb(tokens)[0, :, :, 0].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]

    Reference: Oquab et al., "DINOv2", 2023, figure 1 (with ``foreground``). Deviations: signs and range are fixed,
    and the background is found by the images' edges.
    """
    if isinstance(tokens, Tensor | np.ndarray) and tokens.ndim != 4:
        raise ShapeError(f"tokens have shape {tuple(tokens.shape)}; expected Tokens or maps (B, C, rows, cols)")
    if basis is not None and foreground is not None:
        raise ConfigError("basis and foreground are both given; give foreground= where the basis is fitted")
    chosen = PCABasis.fit(tokens, layer=layer, foreground=foreground) if basis is None else basis
    return chosen.apply(tokens, layer=layer)


def _rows(features: Tokens | Tensor | Floats, layer: int) -> tuple[Floats, tuple[int, ...]]:
    """Rows (M, C) in float64 and the shape that M stands for."""
    if isinstance(features, Tokens):
        count = len(features.sequence)
        if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
            raise ConfigError(f"layer is {layer!r}; these tokens hold {count}, by position: {-count} ... {count - 1}")
        features = features.maps()[layer]
    axes = {2: "rows, channels", 4: "images, channels, rows, cols"}.get(getattr(features, "ndim", 0), "rows, channels")
    values = numbers(features, "features", axes)
    table = values if values.ndim == 2 else np.moveaxis(values, 1, -1)
    return np.ascontiguousarray(table.reshape(-1, table.shape[-1])), table.shape[:-1]
