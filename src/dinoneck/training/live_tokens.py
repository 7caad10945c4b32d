"""Tokens computed anew for every batch, so that the backbone can learn along."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.photos import Photo, Preprocessing
from dinoneck.errors import DataError
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens
from dinoneck.training.sources import rows_in


class LiveTokens:
    """A token source that runs the backbone for every batch; LoRA weights and unfrozen blocks get gradients.

    :func:`dinoneck.training.fit` trains what is trainable in the backbone along with the head. For a frozen backbone
    take :class:`dinoneck.training.MemoryTokens` or a feature store: the same tokens, computed once.

    Args:
        backbone: with ``add_lora`` or ``unfreeze_last`` called before.
        photos: one per id; all must come to one size.
        ids: one per photo; None = their numbers.
        preprocess: how photos are prepared; None = the backbone's own.

    Raises:
        DataError: if ids and photos differ in number, or an id stands twice.
        ConfigError: if ``backbone`` is no Backbone.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
        >>> source = LiveTokens(backbone, torch.rand(3, 3, 32, 48), ["a", "b", "c"])
        >>> source.batch(["b", "a"]).sequence[0].requires_grad
        True
    """

    def __init__(
        self,
        backbone: Backbone,
        photos: Sequence[Photo],
        ids: Sequence[str] | None = None,
        preprocess: Preprocessing | None = None,
    ) -> None:
        self.backbone, self.photos = checked_backbone(backbone), photos
        self.ids = tuple(str(i) for i in range(len(photos))) if ids is None else tuple(ids)
        self.preprocess = preprocess or backbone.preprocess
        self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        if len(self._rows) != len(self.ids) or len(photos) != len(self.ids) or not self.ids:
            raise DataError(
                f"{len(self.ids)} ids ({len(self._rows)} different) for {len(photos)} photos; expected one id each"
            )

    def images(self, ids: Sequence[str]) -> Tensor:
        """Return the prepared photos (B, 3, H, W), float32, on the backbone's device.

        Raises:
            DataError: if an id is unknown or a photo cannot be used.
        """
        images = self.preprocess([self.photos[row] for row in rows_in(self._rows, ids)])
        return images.to(next(self.backbone.parameters()).device)

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these photos, with a graph where the backbone is trainable and gradients are on.

        Raises:
            DataError: as :meth:`images` does; for a pattern other than 0, the photo as it is.
        """
        if patterns is not None and any(patterns):
            raise DataError(f"live tokens have pattern 0 only; asked for {sorted(set(patterns))}")
        tokens: Tokens = self.backbone(self.images(ids))
        return tokens

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells this source from others: preparation, and the frozen part of the backbone."""
        frozen = hashlib.sha256()
        for name, parameter in sorted(self.backbone.named_parameters()):
            frozen.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|{parameter.requires_grad}|".encode())
            if not parameter.requires_grad:
                frozen.update(bytes_of(parameter))
        return {
            "kind": "live",
            "backbone": self.backbone.name,
            "layers": list(self.backbone.layers),
            "norm": self.backbone.norm,
            "inputs": self.preprocess.record(),
            "frozen_sha256": frozen.hexdigest(),
        }


def trained_backbone(source: object) -> Backbone | None:
    """Return the backbone that learns along with a head on this source; None if there is none."""
    if isinstance(source, LiveTokens) and not source.backbone.frozen:
        return source.backbone
    return None
