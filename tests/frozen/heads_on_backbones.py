"""Frozen head files with what travels with a head: its backbone's record, LoRA or all weights, and the facts.

They predict from images, as users do, so the numbers that are recorded are those of a Predictor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    CLSGatingHead,
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    LinearHead,
    PatchMeanHead,
    Predictor,
)
from tests import kit
from tests.frozen.folder import FrozenFile, VersionFolder, is_frozen
from tests.frozen.heads import (
    CLASSES,
    FOLDER,
    HEIGHT,
    LEAF,
    MASS,
    SHARES,
    STATE,
    describe,
)
from tests.frozen.tiny_vit import WIDTH as TINY_VIT_WIDTH
from tests.frozen.tiny_vit import tiny_vit

WIDTH = 64  # channels of the built-in backbone


@dataclass(frozen=True)
class HeadOnBackbone:
    """A head that is written once, with its backbone.

    Attributes:
        name: of its file, without the suffix.
        build: returns it; its parameters are drawn afterwards.
        backbone: returns the backbone.
        preprocess: what is changed of the backbone's.
        records: further arguments of ``HeadCheckpoint.from_module``.
        with_backbone_weights: whether the file holds all weights of the backbone.
    """

    name: str
    build: Callable[[], nn.Module]
    backbone: Callable[[], Backbone]
    preprocess: dict[str, Any] = field(default_factory=lambda: {"size": kit.SIZE})
    records: dict[str, Any] = field(default_factory=dict)
    with_backbone_weights: bool = False

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}.safetensors"


def with_lora() -> Backbone:
    """Return the first block of the built-in backbone, with LoRA weights that are not zero on all its layers."""
    backbone = kit.backbone(layers=[0]).add_lora(1, alpha=2.0, targets="all", seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return backbone


def ensemble_of_layers() -> HeadEnsemble:
    """Return an ensemble whose members read different layers of the backbone."""
    shallow_and_deep = LinearHead(WIDTH, [HEIGHT], num_layers=2)
    deep = PatchMeanHead(WIDTH, [HEIGHT, SHARES], hidden_dim=2)
    return HeadEnsemble([shallow_and_deep, deep], layers=[(2, 5), (5,)])


EVERY_RECORD = {
    "training": {
        "seed": 7,
        "folds": 5,
        "fold": 2,
        "epochs": 40,
        "data": {"name": "pasture", "revision": "2024-10"},
        "metrics": {"R2": {"mean": 0.71, "sd": 0.03}, "mae": 12.5},
    },
    "license": "CC-BY-4.0",
    "tta": "flip4",
    "extra": {"note": "spring", "sensor": {"height_m": 1.5, "bands": ["red", "green", "blue"]}},
}

HEADS_ON_BACKBONES = (
    HeadOnBackbone(
        "on-backbone-every-record",
        lambda: PatchMeanHead(WIDTH, [MASS, STATE], hidden_dim=2),
        kit.backbone,
        preprocess={
            "size": (48, 64),
            "resize": "pad",
            "pad_to": "center",
            "interpolation": "bicubic",
            "blur": 3,
        },
        records=EVERY_RECORD,
    ),
    HeadOnBackbone(
        "on-backbone-own-size",
        lambda: DenseHead(WIDTH, [CLASSES, LEAF], hidden_dim=4, depth=0),
        kit.backbone,
        preprocess={"resize": "crop", "interpolation": "area"},
        records={"tta": "d6", "training": {"data": {"name": "field"}}},
    ),
    HeadOnBackbone(
        "on-backbone-12-bits",
        lambda: PatchMeanHead(WIDTH, [MASS], hidden_dim=2),
        kit.backbone,
        preprocess={"size": kit.SIZE, "bits": 12},
    ),
    HeadOnBackbone(
        "on-backbone-gate",
        lambda: CLSGatingHead(WIDTH, [MASS], "query", hidden_dim=2),
        lambda: kit.backbone(seed=3),
        records={"tta": "none"},
    ),
    HeadOnBackbone(
        "on-backbone-layers-without-norm",
        lambda: FPNHead(
            WIDTH, [MASS, CLASSES], 2, layer_indices=(1, 4), fpn_dim=4, num_levels=1, tower_depth=0
        ),
        lambda: kit.backbone(layers=[1, 3, 4], norm=False),
    ),
    HeadOnBackbone(
        "on-backbone-ensemble-layers", ensemble_of_layers, lambda: kit.backbone(layers=[2, 5])
    ),
    HeadOnBackbone(
        "on-backbone-lora",
        lambda: PatchMeanHead(WIDTH, [MASS], hidden_dim=2),
        with_lora,
    ),
    HeadOnBackbone(
        "on-backbone-all-weights",
        lambda: PatchMeanHead(TINY_VIT_WIDTH, [MASS], hidden_dim=2),
        tiny_vit,
        with_backbone_weights=True,
    ),
)


def freeze(folder: VersionFolder) -> None:
    """Write the heads that no version has written, and record what they predict."""
    for entry in HEADS_ON_BACKBONES:
        if is_frozen(entry.file):
            continue
        backbone = entry.backbone()
        records = dict(entry.records)
        if entry.with_backbone_weights:
            records["backbone_weights"] = backbone.adapter.model.state_dict()
        checkpoint = HeadCheckpoint.from_module(
            kit.randomised(entry.build()).eval(),
            backbone=backbone,
            preprocess=backbone.preprocess.changed(**entry.preprocess),
            **records,
        )
        path = folder.new_path(entry.file)
        checkpoint.save(path)
        record(folder, entry.file)


def record(folder: VersionFolder, name: str) -> None:
    """Record what a head file says, and what it predicts."""
    checkpoint = HeadCheckpoint.load(folder.path / name)
    images = images_to_predict()
    numbers = {"images": images}
    for key, value in predict(checkpoint, images).items():
        numbers[f"result/{key}"] = value
    folder.record(name, describe(checkpoint), numbers)


def images_to_predict() -> Tensor:
    """Return a random image (1, 3, height, width) of 8 bits, of the size that most of the heads take."""
    return (kit.images(1) * 255).round().to(torch.uint8)


def predict_recorded(checkpoint: HeadCheckpoint, file: FrozenFile) -> dict[str, Tensor]:
    """Return what a head predicts from the images that were recorded with its file."""
    return predict(checkpoint, file.numbers()["images"])


def predict(checkpoint: HeadCheckpoint, images: Tensor) -> dict[str, Tensor]:
    """Return what a Predictor gives for images: ``IMAGE/TASK``, ``IMAGE/map/TASK`` and ``IMAGE/gate``."""
    weights = checkpoint.backbone_weights
    # a ViT without a name cannot be built from its record
    backbone = None if weights is None else tiny_vit(weights)
    predictor = Predictor(checkpoint, backbone)
    results = {}
    for image, row in enumerate(predictor(list(images), maps="patch")):
        maps = row.pop("maps", {})
        for name, value in row.items():
            results[f"{image}/{name}"] = torch.as_tensor(np.asarray(value, np.float32))
        for name, cells in maps.items():
            results[f"{image}/map/{name}"] = torch.as_tensor(np.asarray(cells, np.float32))
    return results
