"""The levels that a detection head reads, and torchvision's FCOS, RetinaNet and Faster R-CNN on them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from dinoneck.interop.encoder import PyramidEncoder, strides_in_image
from dinoneck.necks.neck import Neck
from dinoneck.tokens import FeaturePyramid

Target = Mapping[str, Any]
ASPECTS = (0.5, 1.0, 2.0)
_FCOS_NORM_GROUPS = 32  # in torchvision's FCOS


class Levels(nn.Module):
    """The neck, and a backbone that is attached and not a part of it: its weights are not in the head's file."""

    def __init__(self, neck: Neck, features_at: float) -> None:
        super().__init__()
        self.neck = neck
        self.features_at = features_at
        self.out_channels = neck.out_channels
        self.strides = strides_in_image(neck, features_at)
        self._encoder: list[PyramidEncoder] = []  # a list is not a submodule

    def attach(self, backbone: Backbone) -> None:
        """Read the tokens of this backbone."""
        self._encoder = [PyramidEncoder(backbone, self.neck, self.features_at)]

    def forward(self, images: Tensor) -> FeaturePyramid:
        """Return the levels of normalised images (B, 3, H, W)."""
        if not self._encoder:
            raise ConfigError(
                "this detection head has no backbone; use Detector(head, backbone, size)"
            )
        pyramid: FeaturePyramid = self._encoder[0](images)
        return pyramid


class _NamedLevels(nn.Module):
    """Levels by name, as torchvision's detectors read them."""

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels
        self.out_channels = levels.out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels, fine to coarse."""
        maps = self.levels(images).maps
        return OrderedDict((str(i), level) for i, level in enumerate(maps))


class _StackImages(nn.Module):
    """In place of torchvision's transform: images come normalised and of one size."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        """Stack the images."""
        size = (images[0].shape[-2], images[0].shape[-1])
        return ImageList(torch.stack(images), [size] * len(images)), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        """Leave the boxes in the pixels of the network's input."""
        return result


def build_torchvision(kind: str, levels: Levels, count: int) -> nn.Module:
    """Return the detector for ``count`` classes.

    Raises:
        ConfigError: if the levels do not fit it.
    """
    strides = levels.strides
    if any(stride % 1 for stride in strides):
        raise ConfigError(
            f"the levels have strides {strides}; {kind} needs whole pixels. Leave the finest "
            "levels out"
        )
    if kind == "fcos":
        model = _build_fcos(levels, count)
    elif kind == "retinanet":
        model = _build_retinanet(levels, count)
    else:
        model = _build_faster_rcnn(levels, count)
    model.transform = _StackImages()
    return model


# images come normalised
_NOT_NORMALISED = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
_ANCHOR_STRIDES = 4  # the side of an anchor in strides of its level, as in the papers


def _build_fcos(levels: Levels, num_classes: int) -> nn.Module:
    """FCOS, with one anchor per cell, as large as the cell."""
    if levels.out_channels % _FCOS_NORM_GROUPS:
        raise ConfigError(
            f"the neck has {levels.out_channels} channels; fcos needs a multiple of {_FCOS_NORM_GROUPS}"
        )
    sizes = [[int(stride)] for stride in levels.strides]
    model: nn.Module = FCOS(
        _NamedLevels(levels),
        num_classes,
        anchor_generator=_anchors(sizes, aspects=(1.0,)),
        **_NOT_NORMALISED,
    )
    return model


def _build_retinanet(levels: Levels, num_classes: int) -> nn.Module:
    """RetinaNet, with anchors of three sizes per octave."""
    sizes = []
    for stride in levels.strides:
        sizes.append([int(_ANCHOR_STRIDES * stride * 2 ** (third / 3)) for third in range(3)])
    model: nn.Module = RetinaNet(
        _NamedLevels(levels),
        num_classes,
        anchor_generator=_anchors(sizes, aspects=ASPECTS),
        **_NOT_NORMALISED,
    )
    return model


def _build_faster_rcnn(levels: Levels, num_classes: int) -> nn.Module:
    """Faster R-CNN; its class 0 is the background."""
    strides = levels.strides
    if not all(math.log2(stride).is_integer() for stride in strides):
        raise ConfigError(
            f"the levels have strides {strides}; fasterrcnn pools as if they were powers of "
            "two. Take fcos or retinanet, or a backbone of patch 16"
        )
    sizes = [[int(_ANCHOR_STRIDES * stride)] for stride in strides]
    level_names = [str(i) for i in range(len(strides))]
    model: nn.Module = FasterRCNN(
        _NamedLevels(levels),
        num_classes + 1,
        rpn_anchor_generator=_anchors(sizes, aspects=ASPECTS),
        box_roi_pool=MultiScaleRoIAlign(level_names, output_size=7, sampling_ratio=2),
        **_NOT_NORMALISED,
    )
    return model


def _anchors(sizes: Sequence[Sequence[int]], aspects: tuple[float, ...]) -> AnchorGenerator:
    """Anchors of these sizes at each level, all with the same aspects."""
    # anchors are plain tensors, which a module on the meta device would lose
    with torch.device("cpu"):
        return AnchorGenerator(
            tuple(tuple(of_level) for of_level in sizes), (aspects,) * len(sizes)
        )
