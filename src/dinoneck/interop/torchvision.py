"""torchvision's detectors: RetinaNet, FCOS and Faster R-CNN on a DINO backbone."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.errors import ConfigError
from dinoneck.grid import patch_pair
from dinoneck.interop.encoder import PyramidEncoder
from dinoneck.necks.neck import Neck


class TorchvisionBackbone(nn.Module):
    """The backbone argument of torchvision's RetinaNet, FCOS and FasterRCNN: images to levels "0", "1", "2", ...

    The detector's own transform normalises, resizes and pads, so pass it the backbone's ``mean``
    and ``std`` and :attr:`size_divisible`. torchvision computes the stride as ``image // cells``:
    with a smaller multiple its anchors do not match the cells. Pass one tuple of anchor sizes per
    level: as many tuples as :attr:`strides`. FasterRCNN pools with
    ``MultiScaleRoIAlign(featmap_names=["0", "1", "2"], ...)``, which rounds every stride to a power
    of two: for patch 14 use one of the other two.

    Args:
        backbone: as in :class:`dinoneck.interop.PyramidEncoder`.
        neck: as there.
        extra_levels: further levels, each the 2x2 maximum of the one before, at twice its stride
            (P6, P7).
        features_at: as in PyramidEncoder.

    Shape:
        images (B, 3, H, W) -> OrderedDict of (B, out_channels, rows_i, cols_i), fine to coarse.

    Raises:
        ConfigError: as PyramidEncoder does; if extra_levels is not an integer of 0 or more, or a
            stride is not a whole number of pixels.

    Examples:
        >>> import torch
        >>> from torchvision.models.detection import RetinaNet
        >>> from torchvision.models.detection.anchor_utils import AnchorGenerator
        >>> from dinoneck import SimplePyramid, load_backbone
        >>> neck = SimplePyramid(64, 32, scales=(2.0, 1.0, 0.5))
        >>> body = TorchvisionBackbone(load_backbone("dinoneck_tiny"), neck)
        >>> anchors = AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3)  # one tuple per level
        >>> recipe = body.backbone.preprocess
        >>> normalise = {"image_mean": recipe.mean, "image_std": recipe.std}
        >>> model = RetinaNet(body, num_classes=3, anchor_generator=anchors, min_size=64, max_size=96,
        ...                   size_divisible=body.size_divisible, **normalise)
        >>> target = {"boxes": torch.tensor([[4.0, 8.0, 40.0, 60.0]]), "labels": torch.tensor([1])}
        >>> sorted(model([torch.rand(3, 64, 96)], [target]))
        ['bbox_regression', 'classification']
    """

    def __init__(
        self, backbone: Backbone, neck: Neck, extra_levels: int = 0, features_at: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder = PyramidEncoder(backbone, neck, features_at)
        self.extra_levels = normal(int, extra_levels, "extra_levels")
        check_minimum(0, extra_levels=self.extra_levels)
        self.out_channels = self.encoder.out_channels
        coarsest = self.encoder.strides[-1]
        extra_strides = tuple(coarsest * 2 ** (i + 1) for i in range(self.extra_levels))
        self.strides = self.encoder.strides + extra_strides
        if any(stride % 1 for stride in self.strides):
            raise ConfigError(
                f"the levels have strides {self.strides}; torchvision needs whole pixels. Leave "
                "the finest levels out (SimplePyramid(scales=...)), or use a neck with whole "
                "strides"
            )

    @property
    def backbone(self) -> Backbone:
        """The DINO backbone."""
        return self.encoder.backbone

    @property
    def neck(self) -> Neck:
        """The neck."""
        return self.encoder.neck

    @property
    def size_divisible(self) -> int:
        """The detector's ``size_divisible``: the smallest multiple of pixels at which every level fits exactly."""
        height, width = patch_pair(self.backbone.patch_size)
        patch = math.lcm(height, width) * self.encoder.ratio.denominator
        return math.lcm(patch, *(int(stride) for stride in self.strides))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels of normalised images by name."""
        maps = list(self.encoder(images).maps)
        for _ in range(self.extra_levels):
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return OrderedDict((str(level), level_map) for level, level_map in enumerate(maps))
