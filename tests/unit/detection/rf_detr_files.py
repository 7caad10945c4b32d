"""RF-DETR files as the Hub has them, with seeded random weights, of rows with few layers."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck.detection.rf_detr import RfDetr
from dinoneck.published import detectors

BOXES = "rf_detr_nano"
MASKS = "rf_detr_seg_small"


class ShortRow(detectors.PublishedDetector):
    """A row whose ViT has four blocks."""

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "encoder_layers": 4}


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Replace two rows of the table by such with few layers and small images."""
    for name, image_size in ((BOXES, 96), (MASKS, 72)):
        row = detectors.DETECTORS[name]
        values = {field.name: getattr(row, field.name) for field in fields(row)}
        short = replace(ShortRow(**values), image_size=image_size, decoder_layers=2, queries=20)
        patch.setitem(detectors.DETECTORS, name, short)


def published_names() -> dict[str, str]:
    """The labels of a published file: COCO's by their category ids, and names for the gaps."""
    labels = {str(i): "N/A" for i in range(91)}
    labels.update((str(i), name) for i, name in detectors.coco_classes().items())
    return labels


def spread_scores_and_boxes(module: RfDetr) -> None:
    """Give a model with random weights some scores above 0.5, and boxes all over the image."""
    model = module.model.model if module.has_masks else module.model
    with torch.no_grad():
        model.class_embed.bias.zero_()
        model.class_embed.weight.mul_(5)
        for parameter in model.bbox_embed.parameters():
            parameter.normal_(std=0.05)


def random_model(name: str, seed: int = 0) -> Any:
    """The model of transformers for a row, with random weights, of which some scores are above 0.5."""
    torch.manual_seed(seed)
    module = RfDetr.from_config(detectors.DETECTORS[name].config).eval()
    spread_scores_and_boxes(module)
    model: Any = module.model
    model.config.id2label = {int(i): label for i, label in published_names().items()}
    return model


def write_folder(folder: Path, name: str, seed: int = 0) -> Any:
    """Write a folder as the Hub has it; return its model."""
    model = random_model(name, seed)
    model.save_pretrained(folder)
    return model
