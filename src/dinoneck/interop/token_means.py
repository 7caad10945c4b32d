"""scikit-learn: mean patch tokens of images as a feature matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.codec import at_least
from dinoneck.data.decoding import ImageInput
from dinoneck.errors import ConfigError, DataError
from dinoneck.tokens import Tokens

Features: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class TokenMeans:
    """A scikit-learn transformer: images, or their Tokens, to the mean patch token of every layer.

    It needs no fitting. ``sklearn.base.clone`` shares the backbone instead of copying it; every pass over images runs
    the backbone, so for cross-validation transform once, or pass Tokens.

    Args:
        backbone: gives the tokens of images; None = Tokens only.
        size: (height, width) or one number to which images are resized; None = as ``backbone.preprocess``.
        batch_size: images per pass.

    Shape:
        n images -> (n, L * C) float64, layer by layer.

    Examples:
        >>> from dinoneck import load_backbone
        >>> means = TokenMeans(load_backbone("dinoneck_tiny", layers=[2, 5]), size=(32, 48))
        >>> means.transform([np.zeros((90, 120, 3), np.uint8)]).shape
        (1, 128)
    """

    def __init__(
        self, backbone: Backbone | None = None, size: int | Sequence[int] | None = None, batch_size: int = 8
    ) -> None:
        self.backbone, self.size, self.batch_size = backbone, size, batch_size

    def fit(self, X: Any, y: Any = None) -> TokenMeans:
        """Return self: there is nothing to fit."""
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Features:
        """Return ``transform(X)``."""
        return self.transform(X)

    @torch.no_grad()
    def transform(self, X: Tokens | Tensor | Sequence[ImageInput | Tokens]) -> Features:
        """Return the features (n, L * C).

        Args:
            X: images as ``backbone.preprocess`` takes them (paths, PIL images, arrays, tensors in 0 ... 1), or Tokens.

        Raises:
            DataError: if there are none, or an image cannot be read.
            ConfigError: for images without a backbone.
        """
        at_least(1, batch_size=self.batch_size)
        samples = X if isinstance(X, Tokens | Tensor) else list(X)
        batches = [samples[start : start + self.batch_size] for start in range(0, len(samples), self.batch_size)]
        if not batches:
            raise DataError("there are no images to transform; pass at least one")
        return np.concatenate([self._means(batch) for batch in batches])

    def _means(self, batch: Any) -> Features:
        """The features of one batch."""
        tokens = batch if isinstance(batch, Tokens) else self._tokens(batch)
        # the patch tokens (B, N, C) of every layer -> their means, side by side: (B, L * C)
        means = torch.cat([patches.mean(dim=1, dtype=torch.float64) for patches in tokens.patches], dim=1)
        return means.cpu().numpy()

    def _tokens(self, batch: Any) -> Tokens:
        """Tokens of a list of Tokens or of images."""
        if isinstance(batch[0], Tokens):
            return Tokens.cat(batch)
        if self.backbone is None:
            raise ConfigError(
                "TokenMeans got images and has no backbone; pass TokenMeans(load_backbone(name)), or Tokens"
            )
        device = next(self.backbone.parameters()).device
        tokens: Tokens = self.backbone(self.backbone.preprocess(batch, self.size).to(device))
        return tokens

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {"backbone": self.backbone, "size": self.size, "batch_size": self.batch_size}

    def set_params(self, **params: Any) -> TokenMeans:
        """Set constructor arguments by name."""
        if unknown := set(params) - set(self.get_params()):
            raise ConfigError(
                f"TokenMeans has no parameter {sorted(unknown)[0]!r}; it has {', '.join(self.get_params())}"
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> TokenMeans:
        """A clone for cross-validation, over the same backbone."""
        return TokenMeans(**self.get_params())
