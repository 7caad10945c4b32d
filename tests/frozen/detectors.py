"""Frozen detectors. RetinaNet is the only one of a few kilobytes: FCOS takes 360, the others take megabytes."""

from __future__ import annotations

import torch
from torch import Tensor

from dinoneck import HeadCheckpoint, SimplePyramid
from dinoneck.detection import DetectionHead, Detector
from tests import kit
from tests.frozen.folder import FrozenFile, VersionFolder, is_frozen
from tests.frozen.heads import describe
from tests.frozen.heads_on_backbones import EVERY_RECORD

FILE = "detectors/retinanet.safetensors"
FOLDER = "detectors"
FROZEN_KINDS = {"retinanet"}
TOO_LARGE = {"fcos", "fasterrcnn", "dfine", "rtdetrv2"}
# types of head files whose smallest file takes 120 MB
TOO_LARGE_TYPES = {"rf_detr"}
SIZE = (32, 64)
IMAGE_SIZE = (24, 40)  # pixels of the image, whose boxes are in its own pixels
LEAST_SCORE = 0.3


def freeze(folder: VersionFolder) -> None:
    """Write the detector if no version has, and record the boxes that it predicts."""
    if is_frozen(FILE):
        return
    neck = SimplePyramid(64, 4, scales=(1.0,))
    head = DetectionHead("retinanet", ("crop", "weed"), neck, min_score=LEAST_SCORE)
    backbone = kit.backbone()
    detector = Detector(kit.randomised(head, std=0.1), backbone, SIZE)
    tune_norm(detector)
    path = folder.new_path(FILE)
    records = {name: EVERY_RECORD[name] for name in ("training", "license", "extra")}
    detector.save(path, **records)
    image = (kit.images(1, *IMAGE_SIZE)[0] * 255).round().to(torch.uint8)
    numbers = {"image": image}
    for name, value in observe(Detector.load(path), image).items():
        numbers[f"result/{name}"] = value
    facts = {
        "classes": list(detector.classes),
        "min_score": detector.min_score,
        **describe(HeadCheckpoint.load(path)),
    }
    folder.record(FILE, facts, numbers)


def tune_norm(detector: Detector) -> None:
    """Change the backbone's final norm, as a training does: the file holds what was trained of the backbone."""
    for name, parameter in detector.backbone.named_parameters():
        if name.endswith("norm.weight") and "blocks" not in name:
            parameter.requires_grad_(True)
            with torch.no_grad():
                parameter.mul_(torch.linspace(-1.0, 2.0, len(parameter)))


def observe_recorded(detector: Detector, file: FrozenFile) -> dict[str, Tensor]:
    """Return what a detector gives for the image that was recorded with its file."""
    return observe(detector, file.numbers()["image"])


def observe(detector: Detector, image: Tensor) -> dict[str, Tensor]:
    """Return boxes, scores and labels in an image (3, height, width), and the backbone's weights that were trained.

    The head's own weights are random, so its scores hardly depend on the backbone.
    """
    [prediction] = detector.predict(image)
    found = {name: prediction[name] for name in ("boxes", "scores", "labels")}
    weights = dict(detector.backbone.named_parameters())
    for name in detector.tuned:
        found[f"backbone/{name}"] = weights[name].detach()
    return found
