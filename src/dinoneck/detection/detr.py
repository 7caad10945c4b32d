"""D-FINE and RT-DETRv2 of transformers around a neck."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from dinoneck.detection.levels import Levels, Target
from dinoneck.errors import ConfigError
from dinoneck.extras import missing_extra

try:
    from transformers import (
        DFineConfig,
        DFineForObjectDetection,
        RTDetrV2Config,
        RTDetrV2ForObjectDetection,
    )
except ImportError as error:
    raise missing_extra("transformers", "detection") from error

from dinoneck.interop.transformers import DinoneckBackboneConfig, MaskedLevels, register

_LEVELS = 3  # that the hybrid encoder reads
_WIDTH = 256  # channels of the hybrid encoder as published
# million parameters next to ViT and neck: 17.0 of "stock", which is D-FINE-L as published, 3.1 of
# "25m" and 1.9 of "tiny"
_SMALL = {
    "d_model": 160,
    "decoder_layers": 3,
    "decoder_ffn_dim": 512,
    "depth_mult": 0.34,
    "hidden_expansion": 0.34,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "stock": {},
    "25m": _SMALL,
    "tiny": {
        **_SMALL,
        "d_model": 128,
        "decoder_ffn_dim": 256,
        "encoder_ffn_dim": 256,
        "num_queries": 100,
    },
}


def width_of(kind: str, variant: str) -> int:
    """Return the channels of the hybrid encoder, which a neck of as many channels fits best."""
    if kind == "dfine":
        return int(VARIANTS[variant].get("d_model", _WIDTH))
    return _WIDTH


def build_detr(
    kind: str,
    levels: Levels,
    *,
    classes: Sequence[str],
    variant: str,
    queries: int | None,
    encoder_layers: int | None,
) -> nn.Module:
    """Return the detector of transformers, which reads the levels of a neck.

    Args:
        kind: ``dfine`` or ``rtdetrv2``.
        levels: three, each at twice the stride of the one before.
        classes: names of the labels.
        variant: size of D-FINE, one of ``VARIANTS``.
        queries: None = the variant's.
        encoder_layers: None = the variant's.

    Raises:
        ConfigError: if the levels do not fit it.
    """
    strides = levels.strides
    doubles = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if len(strides) != _LEVELS or not doubles:
        raise ConfigError(
            f"the neck gives levels of strides {strides}; {kind} reads {_LEVELS}, each at twice "
            "the stride of the one before: change the neck's arguments"
        )
    register()
    options: dict[str, Any] = {}
    if kind == "dfine":
        width = width_of(kind, variant)
        options = {
            "encoder_hidden_dim": width,
            "decoder_in_channels": [width] * _LEVELS,
            "decoder_n_points": [3, 6, 3],
            **VARIANTS[variant],
        }
    if queries is not None:
        options["num_queries"] = queries
    if encoder_layers is not None:
        options["encoder_layers"] = encoder_layers
    # a backbone is part of their constructors: a tiny one, which the levels replace
    stub = DinoneckBackboneConfig(
        "dinoneck_tiny",
        None,
        "simple_pyramid",
        {"scales": [2.0, 1.0, 0.5], "out_channels": levels.out_channels},
    )
    options["encoder_in_channels"] = [levels.out_channels] * _LEVELS
    options["backbone_config"] = stub
    options["freeze_backbone_batch_norms"] = False
    options["num_labels"] = len(classes)
    model: Any
    if kind == "dfine":
        model = DFineForObjectDetection(DFineConfig(**options))
    else:
        model = RTDetrV2ForObjectDetection(RTDetrV2Config(**options))
    model.model.backbone = MaskedLevels(levels)
    return model  # type: ignore[no-any-return]


def detr_losses(model: nn.Module, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the losses by kind; those of auxiliary and denoising outputs are added to their kind.

    Args:
        model: D-FINE or RT-DETRv2.
        images: normalised, (B, 3, H, W).
        targets: per image ``boxes`` (n, 4) XYXY in pixels of ``images`` and ``labels`` (n,).
    """
    outputs = model(pixel_values=images, labels=labels_of(images, targets))
    losses: dict[str, Tensor] = {}
    for name, value in outputs.loss_dict.items():
        kind = "_".join(name.split("_")[:2])  # loss_vfl of loss_vfl_aux_0, loss_vfl_dn_1, ...
        add_loss(losses, kind, value)
    return losses


def add_loss(losses: dict[str, Tensor], kind: str, value: Tensor) -> None:
    """Add a loss to those of its kind, of which it may be the first."""
    if kind in losses:
        losses[kind] = losses[kind] + value
    else:
        losses[kind] = value


def labels_of(images: Tensor, targets: Sequence[Target]) -> list[dict[str, Tensor]]:
    """Return targets as the detectors of transformers take them.

    Args:
        images: (B, 3, H, W).
        targets: per image ``boxes`` (n, 4) XYXY in pixels of ``images`` and ``labels`` (n,).

    Returns:
        per image ``class_labels`` (n,) and ``boxes`` (n, 4), centre and size in shares of the image.
    """
    height, width = images.shape[-2:]
    scale = images.new_tensor((width, height, width, height))
    labels = []
    for target in targets:
        boxes = box_convert(target["boxes"].float() / scale, "xyxy", "cxcywh")
        labels.append({"class_labels": target["labels"], "boxes": boxes})
    return labels


def detr_detections(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Return as many boxes per image as there are queries, by falling score.

    Args:
        model: D-FINE or RT-DETRv2.
        images: normalised, (B, 3, H, W).

    Returns:
        per image ``boxes`` (Q, 4) XYXY in pixels of ``images``, ``scores`` (Q,) and ``labels`` (Q,).
    """
    outputs = model(pixel_values=images)
    boxes, scores, labels = best_boxes(
        outputs.logits.float(), outputs.pred_boxes.float(), images.shape[-2:]
    )
    detections = []
    for i in range(len(images)):
        detections.append({"boxes": boxes[i], "scores": scores[i], "labels": labels[i]})
    return detections


def best_boxes(
    logits: Tensor, shares: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes of the pairs of query and class with the highest scores, see :func:`best_pairs`.

    Args:
        logits: (B, Q, classes).
        shares: boxes (B, Q, 4) as centre and size, in shares of the image.
        size: (height, width) in pixels.

    Shape:
        boxes (B, Q, 4) XYXY in pixels, scores (B, Q), labels (B, Q).
    """
    scores, queries, labels = best_pairs(logits)
    return boxes_of_queries(shares, queries, size), scores, labels


def best_pairs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return as many pairs of query and class as there are queries, those with the highest scores.

    Args:
        logits: (B, Q, classes).

    Shape:
        scores (B, Q) by falling score, queries (B, Q), labels (B, Q).
    """
    num_queries, num_classes = logits.shape[1:]
    # a pair has the number query * num_classes + class
    pair_scores = logits.sigmoid().flatten(1)
    scores, pairs = pair_scores.topk(num_queries, dim=1)
    queries = torch.div(pairs, num_classes, rounding_mode="floor")
    return scores, queries, pairs % num_classes


def boxes_of_queries(shares: Tensor, queries: Tensor, size: Sequence[int]) -> Tensor:
    """Return the boxes of queries in pixels.

    Args:
        shares: boxes (B, Q, 4) as centre and size, in shares of the image.
        queries: their numbers, (B, n).
        size: (height, width) in pixels.

    Shape:
        boxes (B, n, 4) XYXY.
    """
    height, width = size
    scale = shares.new_tensor([width, height, width, height])
    boxes = box_convert(shares, "cxcywh", "xyxy") * scale
    corners_of_queries = queries[..., None].expand(-1, -1, 4)
    chosen: Tensor = boxes.gather(1, corners_of_queries)
    return chosen
