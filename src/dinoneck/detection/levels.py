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
_ANCHOR_STRIDES = 4  # the side of an anchor in strides of its level, as in the papers
_OCTAVE_SIZES = 3  # sizes of RetinaNet's anchors per octave
# images come normalised
_NOT_NORMALISED = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


class Levels(nn.Module):
    """The neck, and a backbone that is attached and not a part of it: its weights are not in the head's file.

    Args:
        neck: of the backbone's width and patch size.
        features_at: as in :class:`dinoneck.interop.PyramidEncoder`.

    Attributes:
        out_channels: channels of every level.
        strides: pixels of the image per cell of every level, fine to coarse.

    Shape:
        normalised images (B, 3, H, W) -> levels (B, out_channels, rows_i, cols_i).
    """

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
        """Return the levels of normalised images (B, 3, H, W), fine to coarse: ``"0"``, ``"1"``, ..."""
        named = OrderedDict()
        for i, level in enumerate(self.levels(images).maps):
            named[str(i)] = level
        return named


class _StackImages(nn.Module):
    """In place of torchvision's transform: images come normalised and of one size."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        """Stack B images (3, H, W) into (B, 3, H, W)."""
        size = (images[0].shape[-2], images[0].shape[-1])
        sizes = [size] * len(images)
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        """Leave the boxes in the pixels of the network's input."""
        return result


def build_torchvision(kind: str, levels: Levels, num_classes: int) -> nn.Module:
    """Return the detector of torchvision, which reads the levels of a neck.

    Args:
        kind: ``fcos``, ``retinanet`` or ``fasterrcnn``.
        levels: of strides in whole pixels.
        num_classes: without a background.

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
        model = _build_fcos(levels, num_classes)
    elif kind == "retinanet":
        model = _build_retinanet(levels, num_classes)
    else:
        model = _build_faster_rcnn(levels, num_classes)
    model.transform = _StackImages()
    return model


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


def count_fcos_cells(
    model: Any,
    strides: Sequence[float],
    targets: Sequence[Target],
    size: tuple[int, int],
) -> list[float]:
    """Return for each image the number of cells that FCOS assigns an object to.

    Args:
        model: of :func:`build_torchvision`.
        strides: of its levels, in pixels.
        targets: per image ``boxes`` (n, 4) XYXY in pixels and ``labels`` (n,).
        size: (height, width) of the images, in pixels.
    """
    counts = []
    for target in targets:
        boxes = target["boxes"].float()
        grids = []
        for stride in strides:
            grids.append(boxes.new_zeros(1, 1, int(size[0] / stride), int(size[1] / stride)))
        image = ImageList(boxes.new_zeros(1, 3, *size), [size])
        anchors = model.anchor_generator(image, grids)
        counter = _AssignedCells(model.center_sampling_radius)
        num_cells = [grid.numel() for grid in grids]
        counts.append(
            FCOS.compute_loss(counter, [{**target, "boxes": boxes}], {}, anchors, num_cells)
        )
    return counts


class _AssignedCells:
    """In place of an FCOS and of its head: the loss is the number of cells that objects are assigned to."""

    def __init__(self, center_sampling_radius: float) -> None:
        self.center_sampling_radius = center_sampling_radius
        self.head = self

    def compute_loss(
        self, targets: Any, outputs: Any, anchors: Any, objects_of_cells: list[Tensor]
    ) -> float:
        """Return the number of cells of an image with an object; -1 is none."""
        [objects_of_image] = objects_of_cells
        return float((objects_of_image >= 0).sum())


def _build_retinanet(levels: Levels, num_classes: int) -> nn.Module:
    """RetinaNet, with anchors of three sizes per octave."""
    sizes = []
    for stride in levels.strides:
        side = _ANCHOR_STRIDES * stride
        sizes.append([int(side * 2 ** (i / _OCTAVE_SIZES)) for i in range(_OCTAVE_SIZES)])
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
    are_powers_of_two = all(math.log2(stride).is_integer() for stride in strides)
    if not are_powers_of_two:
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
    """Anchors of these sizes at each level, all with the same aspects.

    Args:
        sizes: per level, the sides of its anchors in pixels.
        aspects: height over width.
    """
    sizes_of_levels = tuple(tuple(level_sizes) for level_sizes in sizes)
    aspects_of_levels = (aspects,) * len(sizes)
    # anchors are plain tensors, which a module on the meta device would lose
    with torch.device("cpu"):
        return AnchorGenerator(sizes_of_levels, aspects_of_levels)
