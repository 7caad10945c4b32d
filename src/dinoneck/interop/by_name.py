"""Build an encoder from plain values: the name of a backbone, the name of a neck and its arguments."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dinoneck.backbones.load import Source, load_backbone
from dinoneck.configured import fields_of
from dinoneck.errors import ConfigError
from dinoneck.interop.encoder import PyramidEncoder
from dinoneck.necks.neck import Neck, neck_named

_ANY_WIDTH = 768


@dataclass(frozen=True)
class EncoderByName:
    """The configuration of a :class:`dinoneck.interop.PyramidEncoder` in plain values, as a file holds it.

    Args:
        backbone: name, as in :func:`dinoneck.load_backbone`.
        neck: a registered neck.
        neck_config: its arguments; ``embed_dim``, ``num_layers`` and ``patch_size`` come from the backbone.
        layers: as in ``load_backbone``.
        pretrained: as there.
        seed: as there.
        features_at: as in PyramidEncoder.
        source: as in ``load_backbone``.
        norm: as there.
        frozen: as there.

    Examples:
        >>> EncoderByName("dinoneck_tiny", "vit_fpn", {"fpn_dim": 32}, layers=3).build()(torch.zeros(1, 3, 64, 64))
        FeaturePyramid((1, 32, 4, 4) stride 16, (1, 32, 2, 2) stride 32, (1, 32, 1, 1) stride 64)
    """

    backbone: str
    neck: str
    neck_config: Mapping[str, Any] = field(default_factory=dict)
    layers: int | Sequence[int] | None = None
    pretrained: bool = True
    seed: int | None = None
    features_at: float = 1.0
    source: Source = "timm"
    norm: bool = True
    frozen: bool = True

    def build(self, *, weights: bool = True) -> PyramidEncoder:
        """Return the encoder.

        Args:
            weights: load the published weights if ``pretrained`` is True; else the weights are placeholders.

        Raises:
            ConfigError: if the neck is unknown, or its arguments contradict the backbone or themselves.
            BackboneError: as :func:`dinoneck.load_backbone` does.
        """
        backbone = load_backbone(
            self.backbone,
            source=self.source,
            pretrained=self.pretrained if weights else False,
            layers=self.layers,
            norm=self.norm,
            frozen=self.frozen,
            seed=self.seed,
        )
        return PyramidEncoder(backbone, self._neck(backbone.embed_dim, backbone.patch_size), self.features_at)

    def sketch(self) -> Neck:
        """Return the neck on the meta device for an arbitrary width: its strides and channels are those of the model.

        Raises:
            ConfigError: if the neck is unknown, or its arguments do not fit it.
        """
        return self._neck(_ANY_WIDTH, 16, device=torch.device("meta"))

    def _neck(self, embed_dim: int, patch_size: Any, device: Any = None) -> Neck:
        cls = neck_named(self.neck)
        geometry = {"embed_dim": embed_dim, "num_layers": self._count, "patch_size": patch_size}
        known = fields_of(cls)
        arguments = {key: value for key, value in geometry.items() if key in known} | dict(self.neck_config)
        neck: Neck = cls.from_config(arguments, device=device)
        return neck

    @property
    def _count(self) -> int:
        """The number of layers that the neck gets; the backbone checks whether they exist."""
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            return len(self.layers)
        return self.layers if isinstance(self.layers, int) else 1


def plain_number(value: Any) -> Any:
    """Return an integer of NumPy as one of Python, which JSON can hold; anything else unchanged."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def plain_layers(layers: Any) -> Any:
    """Return layers as they would be read back from a JSON file.

    Raises:
        ConfigError: if ``load_backbone`` does not take their type.
    """
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        return [plain_number(layer) for layer in layers]
    if layers is not None and not isinstance(layers, numbers.Real):
        raise ConfigError(f"layers is {layers!r}; expected None, a number of last blocks, or a list of block indices")
    return plain_number(layers)


def plain_arguments(neck_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a neck's arguments as they would be read back from a JSON file.

    Raises:
        ConfigError: if they are not a dict of plain values.
    """
    if not isinstance(neck_config, Mapping | None):
        raise ConfigError(f"neck_config is {neck_config!r}; expected a dict of the neck's arguments")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(neck_config or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"neck_config is {neck_config!r}; expected plain values: {error}") from None
    return plain
