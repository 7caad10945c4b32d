"""Detectors in a Predictor. Their package imports this one, so the registry finds their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dinoneck import registry
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.errors import ConfigError
from dinoneck.images.decoding import ImageInput
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import Runtime, TileSize


class BoxDetector(Protocol):
    """What a Predictor uses of a :class:`dinoneck.detection.Detector`."""

    preprocess: Preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""

    @property
    def backbone_name(self) -> str:
        """Name of the backbone, or of the detector's own ViT."""

    @property
    def device(self) -> torch.device:
        """Where the detector is."""

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        min_score: float | None = None,
        batch_size: int = 8,
    ) -> list[dict[str, Any]]:
        """Return boxes, scores, labels and names of each image, and masks of some detectors."""

    def use_tiles(self, tile: TileSize, overlap: int | float | None = None) -> None:
        """Cut large images of later predictions into tiles."""

    def expect_images(self, count: int) -> None:
        """State how many images are going to be predicted."""


def find_detector(
    opened: Mapping[str, Sequence[HeadCheckpoint | nn.Module]],
) -> HeadCheckpoint | None:
    """Return the file of a detector, which is alone; None for heads.

    Args:
        opened: of :func:`dinoneck.inference.sources.open_heads`.
    """
    for heads in opened.values():
        for head in heads:
            if isinstance(head, HeadCheckpoint) and head.head_type in registry.DETECTORS:
                return head
    return None


def check_detector_options(keys: Sequence[str], **options: object) -> None:
    """Reject what is of heads for a detector.

    Args:
        keys: of the mapping that it is in; empty without one.
        **options: name -> value; None is not given.

    Raises:
        ConfigError: naming the first one.
    """
    if keys:
        raise ConfigError(
            f"heads have the keys {', '.join(keys)}, a detector among them; pass it alone, without "
            "a key"
        )
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, which is for heads; a detector takes none")


def open_detector(
    file: HeadCheckpoint,
    backbone: Backbone | None,
    *,
    device: torch.device | None,
    runtime: Runtime | None,
    bits: int | None,
) -> BoxDetector:
    """Return the detector of a file that is read already, see :meth:`dinoneck.detection.Detector.from_checkpoint`.

    Args:
        file: of a detector.
        backbone: as of a Predictor.
        device: where to run; None = where the backbone is.
        runtime: as of a Predictor.
        bits: as of a Predictor.

    Raises:
        BackboneError, CheckpointError, ConfigError: as there.
    """
    detector: BoxDetector = registry.detector_class().from_checkpoint(
        file, backbone, device, runtime=runtime
    )
    detector.preprocess = detector.preprocess.changed(bits=bits)
    return detector
