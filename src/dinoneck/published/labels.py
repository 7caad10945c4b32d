"""The class names of the data sets of published heads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any


def labels_of(data: str) -> list[str]:
    """Return the classes of ``imagenet``, ``voc2012`` or ``ade20k``; a name of several is followed by its index."""
    if data == "ade20k":
        return Path(__file__).with_name("ade20k.txt").read_text("utf-8").split("\n")[:-1]
    from torchvision import models

    weights: Any = models.ResNet18_Weights.IMAGENET1K_V1
    if data == "voc2012":
        weights = models.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    names = weights.meta["categories"]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
