"""The levels that a detection head reads: a neck on an attached backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from dinoneck.interop.encoder import PyramidEncoder
from dinoneck.necks.neck import Neck
from dinoneck.tokens import FeaturePyramid

Target = Mapping[str, Any]


class Levels(nn.Module):
    """The neck, and a backbone that is attached and not a part of it: its weights are not in the head's file."""

    def __init__(self, neck: Neck, features_at: float) -> None:
        super().__init__()
        self.neck, self.features_at = neck, features_at
        self.out_channels = neck.out_channels
        scale = 1.0 if getattr(neck, "grid_from", None) == "image" else features_at
        self.strides = tuple(stride / scale for stride in neck.strides)
        self._encoder: list[PyramidEncoder] = []  # a list is not a submodule

    def attach(self, backbone: Backbone) -> None:
        """Read the tokens of this backbone."""
        self._encoder = [PyramidEncoder(backbone, self.neck, self.features_at)]

    def forward(self, images: Tensor) -> FeaturePyramid:
        """Return the levels of normalised images (B, 3, H, W)."""
        if not self._encoder:
            raise ConfigError("this detection head has no backbone; use Detector(head, backbone, size)")
        pyramid: FeaturePyramid = self._encoder[0](images)
        return pyramid
