"""What detectors, their parts, their scores and their training refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from timm.models import VisionTransformer

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    SimplePyramid,
    SpatialTuningAdapter,
    wrap_backbone,
)
from dinoneck.data import BoxImages
from dinoneck.detection import (
    DetectionHead,
    Detector,
    evaluate_boxes,
    score_boxes,
    train_detector,
    train_instances,
)
from dinoneck.training import TrainConfig
from tests import kit
from tests.refusals import Row
from tests.unit.data.box_samples import content, write
from tests.unit.detection import coloured_boxes
from tests.unit.detection.test_detector import detector_of
from tests.unit.detection.test_train_detector import config_of

NECK, FAST = SpatialTuningAdapter(64, 32), "fasterrcnn"
PARTS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("dfine", SimplePyramid(64, 32), {}, "reads 3"),
    ("fcos", SimplePyramid(64, 48), {}, "48"),
    ("dfine", None, {"features_at": 0.5, "size": (96, 160)}, "64x64"),
    ("rtdetrv2", None, {"queries": 300}, "252 cells"),
    ("fcos", None, {"queries": 30}, "fcos"),
    (FAST, SpatialTuningAdapter(64, 32, patch_size=14), {}, "powers of two"),
]
BOX: dict[str, Any] = {"boxes": [[1.0, 2, 3, 4]], "scores": [0.5], "labels": [0]}
FOUND: list[tuple[dict[Any, Any], str]] = [
    ({99: BOX}, "99"),
    ({10: [BOX]}, "list"),
    ({10: {**BOX, "scores": [0.5, 0.6]}}, "(2,)"),
    ({10: {**BOX, "labels": [2]}}, "label 2"),
    ({10: {**BOX, "labels": [-1]}}, "label -1"),
    ({10: {**BOX, "labels": [0.0]}}, "torch.float32"),
    ({10: {**BOX, "scores": [math.nan]}}, "finite"),
    ({10: {**BOX, "boxes": [[10.0, 20, 3, 4]]}}, "XYXY"),
]
GROUPS: list[tuple[dict[str, dict[str, Any]], str]] = [
    ({"data": {"boxes": None}}, "data.boxes"),
    ({"data": {"csv": "a.csv"}}, "csv is 'a.csv'"),
    ({"optim": {"optimizer": "sam"}}, "optimizer is 'sam'"),
    ({"head": {"type": "patch_mean", "out_channels": 32}}, "Neck"),
]


def trained(folder: Path, groups: dict[str, dict[str, Any]]) -> None:
    train_detector(config_of(coloured_boxes.write(folder / "images"), **groups), folder / "run")


def objects(folder: Path, mask: int = 1, **data: Any) -> None:
    """Train a mask head of two queries; ``mask`` = 0: no image has an object."""
    entries = [
        {**own, "segmentation": [[2, 3, 12, 3, 12, 11]]} for own in content()["annotations"] if mask
    ]
    file = write(folder, content() | {"annotations": entries})
    head = {"type": "mask", "num_queries": 20 if data else 1}
    train_instances(
        TrainConfig.from_dict({"data": {"instances": str(file), **data}, "head": head}),
        folder / "run",
    )


def loaded(folder: Path, saved: Any) -> None:
    """Load a detector of patches of 14 from a file of another one, or of a head."""
    vit = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=64, depth=6, num_heads=2, num_classes=0
    )
    saved(folder / "d.safetensors")
    Detector.load(folder / "d.safetensors", backbone=wrap_backbone(vit, layers=(1, 3, 5)))


def predicted(**options: Any) -> Any:
    return lambda: detector_of("fcos").predict(torch.rand(3, 96, 128), **options)


ROWS: list[Row] = [
    *(
        (lambda kind=kind, neck=neck, own=own: detector_of(kind, neck, **own), ConfigError, named)
        for kind, neck, own, named in PARTS
    ),
    (predicted(batch_size=0), ConfigError, "batch_size is 0"),
    (predicted(max_boxes=0), ConfigError, "max_boxes is 0"),
    (
        lambda: evaluate_boxes(detector_of("fcos"), "no.json", batch_size=-1),
        ConfigError,
        "batch_size is -1",
    ),
    (predicted(min_score=30), ConfigError, "min_score is 30"),
    (
        lambda: DetectionHead("fcos", ("red",), NECK).eval()(torch.rand(1, 3, 96, 128)),
        ConfigError,
        "Detector",
    ),
    (lambda folder: loaded(folder, kit.saved_head), CheckpointError, "'patch_mean'"),
    (lambda folder: detector_of(FAST).export_onnx(folder / "d.onnx"), ConfigError, "second stage"),
    (
        lambda folder: detector_of("fcos").export_onnx(folder / "d.onnx", size=(100, 100)),
        ConfigError,
        "32x32",
    ),
    *(
        (
            lambda folder, own=own: score_boxes(BoxImages(write(folder, content())), own),
            DataError,
            named,
        )
        for own, named in FOUND
    ),
    (
        lambda folder: score_boxes(BoxImages(write(folder, content())).take([2]), {}),
        DataError,
        "1 images",
    ),
    (objects, DataError, ("2 objects", "num_queries")),
    (lambda folder: objects(folder, mask=0), DataError, ("boxes.json", "0 objects")),
    (
        lambda folder: objects(folder, panoptic=["a", "b"]),
        ConfigError,
        ("data.instances", "data.panoptic"),
    ),
    *((lambda folder, own=own: trained(folder, own), ConfigError, named) for own, named in GROUPS),
]
