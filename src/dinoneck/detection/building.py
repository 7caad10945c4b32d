"""From a training config to a detector and its images."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import torch

from dinoneck.configured import fields_of
from dinoneck.data.box_views import box_transforms
from dinoneck.data.boxes import BoxImages
from dinoneck.detection.detector import Detector
from dinoneck.detection.head import DETRS, DetectionHead
from dinoneck.errors import ConfigError
from dinoneck.necks.neck import Neck, neck_named
from dinoneck.training.config import TrainConfig
from dinoneck.training.source import open_backbone
from dinoneck.training.tasks import start_from

logger = logging.getLogger(__name__)

NECK = "spatial_tuning_adapter"
SIZE = (640, 640)
_DATA = {"boxes", "images", "val_boxes", "val_images", "classes", "size"}
_OPTIM = {"epochs", "batch_size", "lr", "backbone_lr", "seed", "weight_decay", "warmup", "ema_decay", "amp"}
_OPTIM |= {"clip_norm", "freeze", "layer_decay"}


def check_config(config: TrainConfig) -> None:
    """Refuse values that have no effect on detectors.

    Raises:
        ConfigError: naming them.
    """
    if config.data.boxes is None:
        raise ConfigError("data.boxes is missing; expected the COCO file of the training images (--boxes)")
    groups: tuple[tuple[Any, set[str]], ...] = ((config.data, _DATA), (config.optim, _OPTIM), (config.folds, {"count"}))
    given: list[tuple[Any, str]] = [(group, name) for group, used in groups for name in _changed(group) - used]
    given += [(config.backbone, name) for name in _changed(config.backbone) & {"lora", "unfreeze_last"}]
    given += [(config, name) for name in _changed(config) & {"tasks", "compositions", "losses"}]
    for group, name in sorted(given, key=lambda pair: pair[1]):
        raise ConfigError(f"{name} is {getattr(group, name)!r}; it has no effect on detectors: leave it out")


def _changed(group: Any) -> set[str]:
    """The fields of a config's group that differ from their defaults."""
    default = type(group)()
    return {name for name in group.__struct_fields__ if getattr(group, name) != getattr(default, name)}


def open_images(config: TrainConfig) -> tuple[BoxImages, BoxImages]:
    """Return the training and the held-out images.

    Raises:
        DataError: if a file or a folder cannot be used, or there are too few images.
    """
    data, augment = config.data, config.detector.augment
    size = data.size or SIZE
    flip = None if augment == "none" else augment
    plain: dict[str, Any] = {"mean": None, "std": None}
    train_views = box_transforms(size, train=True, flip=flip, photometric=augment != "none", **plain)
    val_views = box_transforms(size, train=False, **plain)
    train = BoxImages(str(data.boxes), data.images, transform=train_views, classes=data.classes or None)
    if data.val_boxes is not None:
        folder = data.val_images or data.images
        held_out = BoxImages(data.val_boxes, folder, transform=val_views, classes=train.classes)
        _warn_of_shared(train, held_out)
        return train, held_out
    order = np.random.default_rng(config.optim.seed).permutation(len(train)).tolist()
    count = len(train) // config.folds.count
    if not count:
        raise ConfigError(
            f"{data.boxes} has {len(train)} images, too few to hold out one in {config.folds.count}; name held-out "
            "images with data.val_boxes (--val-boxes)"
        )
    val = train.take(sorted(order[:count]))
    val.transform = val_views
    return train.take(sorted(order[count:])), val


def _warn_of_shared(train: BoxImages, val: BoxImages) -> None:
    both = {path.resolve() for path in train.paths} & {path.resolve() for path in val.paths}
    if both:
        shown = f"{len(both)} of the {len(val)} held-out images of {val.file} are training images too: {min(both)} ..."
        logger.warning("%s; their scores are too high. Leave them out of one of the files", shown)


def build_detector(config: TrainConfig, classes: tuple[str, ...]) -> Detector:
    """Return the detector of a config with its first weights, which the seed decides.

    Raises:
        ConfigError: if its parts do not fit.
        BackboneError: if the backbone cannot be loaded.
    """
    own = config.detector
    arguments = dict(config.head)
    cls = neck_named(arguments.pop("type", NECK))
    known = fields_of(cls)
    backbone = open_backbone(config.backbone, config.device)
    if config.backbone.layers is None and "num_layers" in known:
        count = int(arguments.get("num_layers", 3))
        last = backbone.depth - 1
        backbone = backbone.with_layers([last - i * backbone.depth // (count + 1) for i in reversed(range(count))])
    geometry = {"embed_dim": backbone.embed_dim, "patch_size": backbone.patch_size, "num_layers": len(backbone.layers)}
    arguments = {**{key: value for key, value in geometry.items() if key in known}, **arguments}
    if own.name in DETRS:
        from dinoneck.detection.detr import width_of

        arguments.setdefault("fpn_dim" if "fpn_dim" in known else "out_channels", width_of(own.name, own.variant))
        if "scales" in known:
            arguments.setdefault("scales", (2.0, 1.0, 0.5))
    torch.manual_seed(config.optim.seed)
    neck: Neck = cls.from_config(arguments)
    head = DetectionHead(own.name, classes, neck, own.features_at, own.variant, own.queries, own.encoder_layers)
    if config.init is not None:
        start_from(head, config.init)
    detector = Detector(head, backbone, cast("tuple[int, int]", config.data.size or SIZE))
    if own.checkpointing:
        backbone.set_grad_checkpointing()
    return detector
