"""Presets: whole recipes by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.load import load_backbone
from dinoneck.data.photos import Fit, Interpolation, Preprocessing
from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.inference.tta import TTA
from dinoneck.tasks import Activation, Task


@dataclass(frozen=True)
class Preset:
    """A backbone, how photos are prepared for it, the heads on it and the views at prediction.

    Attributes:
        backbone: name for :func:`dinoneck.load_backbone`.
        hub_id: the same weights in the transformers library.
        size: (height, width) of the prepared photos.
        fit: how photos come to that size.
        interpolation: how they are resampled.
        blur: kernel of the Gaussian blur with fixed sigma.
        tta: views at prediction; heads trained with the preset record them.
        optimizer: of the training recipe.
        hidden_dim: hidden units of each head.
        activation: of each head.
        unit: of the targets.
        targets: in the source's order.
    """

    backbone: str
    hub_id: str
    size: tuple[int, int]
    fit: Fit
    interpolation: Interpolation
    blur: int
    tta: TTA
    optimizer: Literal["adamw", "sam"]
    hidden_dim: int
    activation: Activation
    unit: str
    targets: tuple[str, ...]

    def load_backbone(self, **changes: Any) -> Backbone:
        """Load the preset's backbone (last layer, normed); keywords as for :func:`dinoneck.load_backbone`."""
        return load_backbone(self.backbone, **changes)

    def preprocess(self, backbone: Backbone) -> Preprocessing:
        """Return how photos are prepared for this backbone."""
        return backbone.preprocess.changed(**self.inputs())

    def inputs(self) -> dict[str, Any]:
        """Return the fields of :class:`dinoneck.data.Preprocessing` that the preset sets."""
        return {"size": self.size, "fit": self.fit, "interpolation": self.interpolation, "blur": self.blur}

    def heads(self, embed_dim: int) -> list[PatchMeanHead]:
        """Return one new head per target."""
        tasks = (Task(name, activation=self.activation, unit=self.unit) for name in self.targets)
        return [PatchMeanHead(embed_dim, [task], hidden_dim=self.hidden_dim) for task in tasks]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # Design source "DINOv2 dense features, LB 0.66". Its features came from transformers, whose position
        # embeddings at 224 px differ a little from timm's; heads trained there are at home on those features.
        "lb066": Preset(
            backbone="vit_giant_patch14_dinov2.lvd142m",
            hub_id="facebook/dinov2-giant",
            size=(224, 224),
            fit="stretch",
            interpolation="bilinear",
            blur=5,
            tta="d6",
            optimizer="sam",
            hidden_dim=128,
            activation="relu",
            unit="g",
            targets=("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g"),
        ),
    }
)


def preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: if there is none of that name.

    Examples:
        >>> preset("lb066").size
        (224, 224)
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown.{did_you_mean(name, PRESETS)} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
