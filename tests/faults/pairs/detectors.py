"""Pairs of options of ``Detector.save`` and ``Detector.load``; the reference is the detector in memory.

The backbone that is handed to a load belongs to others: it must be as it was afterwards.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests import kit
from tests.faults.pairs.options import (
    Differs,
    Option,
    Settings,
    check_same,
    name_of,
    pairs,
    raise_refusal,
    verdict,
)
from tests.unit import tuned_backbones
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
)
from dinoneck.detection import DetectionHead, Detector

OPTIONS = (
    Option("detector", "retinanet", ["fcos", "dfine"]),
    Option("neck", "simple_pyramid", ["sta_pyramid", "spatial_tuning_adapter"]),
    Option("features_at", 1.0, [0.5]),
    Option("layers", None, [(2,), (1, 3, 4)]),
    Option("norm", True, [False]),
    Option("dtype", "float32", ["bfloat16", "backbone in bfloat16", "bfloat16 and back"]),
    Option("weights", None, [*tuned_backbones.CHANGES]),
    Option("trained", "before", ["after", "after a prediction, noted"]),
    Option("frozen", False, [True]),
    Option("lora", "on", ["switched off"]),
    Option("record", None, ["of the base", "of the present weights"]),
    Option("min_score", 0.0, [0.06]),
    Option("bits", None, [12]),
    Option("size", (64, 96), [(64, 64)]),
    Option("wrapped", None, ["in DataParallel", "compiled"]),
)
CASES = [*pairs(OPTIONS)]
HALF_TOLERANCE, TOLERANCE = 4e-2, 1e-5
TABLE_PX = 6e-3  # tables have hundredths of a pixel: half of one, and a margin
TABLE_SCORE = 6e-5  # and four digits of a score


@dataclass(frozen=True)
class Saved:
    """A detector that was saved, and the boxes that it gave."""

    path: Path
    settings: Settings
    detector: Detector
    image: Any
    boxes: dict[str, Any]


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: save once, load and predict in all ways."""
    for settings in cases:
        name = name_of(settings, OPTIONS)
        saved: list[Saved] = []

        def build(settings: Settings = settings, saved: list[Saved] = saved) -> None:
            saved.append(save(settings, folder / "detector.safetensors"))

        result = verdict(name, build)
        if not saved:
            yield result
            continue
        for way, load in WAYS.items():

            def run(load: Callable[[Saved], Any] = load, saved: list[Saved] = saved) -> None:
                tolerance = TOLERANCE if saved[0].settings["dtype"] == "float32" else HALF_TOLERANCE
                check_same(load(saved[0]), saved[0].boxes, "boxes", tolerance)

            yield verdict(f"{name}; {way}", run)


def save(settings: Settings, path: Path) -> Saved:
    """Build and train a detector, predict, and save it."""
    backbone = load_base(settings)
    change = tuned_backbones.CHANGES.get(settings["weights"], lambda backbone: None)
    image = picture(settings)
    if settings["trained"] == "before":
        change(backbone)
    detector = build_detector(settings, backbone)
    if settings["trained"] == "after":
        change(backbone)
    elif settings["trained"] == "after a prediction, noted":
        detector.predict(image)
        change(backbone)
        detector.note_trained()
    if settings["frozen"]:
        backbone.freeze()
    if settings["dtype"] == "bfloat16":
        detector.to(torch.bfloat16)
    elif settings["dtype"] == "backbone in bfloat16":
        backbone.to(torch.bfloat16)
    elif settings["dtype"] == "bfloat16 and back":
        detector.to(torch.bfloat16).to(torch.float32)
    has_lora = any("lora_" in name for name, _ in backbone.named_parameters())
    is_off = settings["lora"] == "switched off" and has_lora
    with backbone.lora_disabled() if is_off else contextlib.nullcontext():
        detector.save(path)
        [boxes] = detector.predict(image)
    if len(boxes["boxes"]) == 0:
        raise AssertionError("the case has no boxes to compare")
    return Saved(path, settings, detector, image, listed(boxes))


def listed(boxes: dict[str, Any]) -> dict[str, Any]:
    """Boxes as plain values."""
    return {
        "boxes": boxes["boxes"].tolist(),
        "scores": boxes["scores"].tolist(),
        "names": list(boxes["names"]),
    }


def build_detector(settings: Settings, backbone: Backbone) -> Detector:
    """A detector with random weights whose scores are high enough to see boxes."""
    torch.manual_seed(0)
    count = len(settings["layers"] or (5,))
    kind = settings["detector"]
    if settings["dtype"] == "bfloat16" and kind == "retinanet":
        kind = "dfine"  # torchvision has no suppression of boxes in bfloat16 on a CPU
    is_detr = kind == "dfine"
    if settings["neck"] == "sta_pyramid" or is_detr:
        neck: Any = STAPyramid(64, 16)
    elif settings["neck"] == "spatial_tuning_adapter":
        neck = SpatialTuningAdapter(64, 16, num_layers=count)
    else:
        neck = SimplePyramid(64, 16, scales=(1.0,))
    head = DetectionHead(
        kind,
        ("red", "blue"),
        neck,
        features_at=settings["features_at"],
        variant="tiny" if is_detr else "25m",
        queries=12 if is_detr else None,
        min_score=settings["min_score"],
    )
    tuned_backbones.change(head.parameters())
    record = None
    if settings["record"] == "of the base":
        record = load_base(settings).record()
    elif settings["record"] == "of the present weights":
        record = backbone.record()
    given: Any = backbone
    if settings["wrapped"] == "in DataParallel":
        given = nn.DataParallel(backbone)
    elif settings["wrapped"] == "compiled":
        given = torch.compile(backbone, backend="eager")
    return Detector(head, given, settings["size"], record=record, bits=settings["bits"]).eval()


def load_base(settings: Settings) -> Backbone:
    """The backbone before its training."""
    layers = settings["layers"]
    return kit.backbone(layers=None if layers is None else list(layers), norm=settings["norm"])


def picture(settings: Settings) -> Any:
    """An image (80, 100, 3) of 8 bits, or of 12 where the detector is for these."""
    levels = 256 if settings["bits"] is None else 2 ** settings["bits"]
    coarse = np.random.default_rng(0).integers(0, levels, (8, 10, 3))
    pixels = coarse.repeat(10, axis=0).repeat(10, axis=1)
    return pixels.astype(np.uint8 if levels == 256 else np.uint16)


def boxes_of(detector: Detector, saved: Saved) -> dict[str, Any]:
    [boxes] = detector.predict(saved.image)
    return listed(boxes)


def alone(saved: Saved) -> Any:
    return boxes_of(Detector.load(saved.path), saved)


def on_the_base(saved: Saved) -> Any:
    return _on(saved, load_base(saved.settings))


def on_the_base_of_other_layers(saved: Saved) -> Any:
    return _on(saved, load_base(saved.settings).with_layers([0, 2, 5]))


def on_its_own_backbone(saved: Saved) -> Any:
    return _on(saved, saved.detector.backbone)


def on_another_backbone(saved: Saved) -> Any:
    return _on(saved, kit.backbone(seed=1, layers=[*(saved.settings["layers"] or (5,))]))


def _on(saved: Saved, backbone: Any) -> Any:
    """Predict on a backbone of the caller, which must be as it was afterwards."""
    before = _state_of(backbone)
    try:
        found = boxes_of(Detector.load(saved.path, backbone=backbone), saved)
    finally:
        after = _state_of(backbone)
        if before.keys() != after.keys():
            raise Differs("the backbone of the caller has other tensors")
        for name, value in before.items():
            if not torch.equal(value, after[name]):
                raise Differs(f"{name} of the backbone of the caller was written to")
    return found


def _state_of(backbone: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def saved_again(saved: Saved) -> Any:
    copy = saved.path.with_name("copy.safetensors")
    Detector.load(saved.path).save(copy)
    return boxes_of(Detector.load(copy), saved)


def by_the_command(saved: Saved) -> Any:
    """``dinoneck predict``; its CSV is rounded, so values are compared with those of the reference."""
    if saved.settings["bits"] is not None:
        return alone(saved)  # PNG files of 16 bits and RGB cannot be written by Pillow
    image, table = saved.path.with_name("image.png"), saved.path.with_name("boxes.csv")
    Image.fromarray(saved.image).save(image)
    ran = kit.cli("predict", image, "--heads", saved.path, "--out", table)
    raise_refusal(ran)
    rows = [*csv.DictReader(table.open())]
    corners = ("x0", "y0", "x1", "y1")
    names = []
    boxes = []
    scores = []
    for row in rows:
        names.append(row["name"])
        boxes.append([float(row[key]) for key in corners])
        scores.append(float(row["score"]))
    check_same(names, saved.boxes["names"], "names")
    tolerance = HALF_TOLERANCE
    if saved.settings["dtype"] == "float32":
        tolerance = TOLERANCE
    for what, found, rounding in (("boxes", boxes, TABLE_PX), ("scores", scores, TABLE_SCORE)):
        right = np.asarray(saved.boxes[what])
        difference = np.abs(np.asarray(found) - right).max()
        if difference > rounding + tolerance * np.abs(right).max():
            raise Differs(f"{what} of the table differ by {difference:.3g}")
    return saved.boxes


WAYS: dict[str, Callable[[Saved], Any]] = {
    "alone": alone,
    "on the base": on_the_base,
    "on the base of other layers": on_the_base_of_other_layers,
    "on its own backbone": on_its_own_backbone,
    "on another backbone": on_another_backbone,
    "saved again": saved_again,
    "by the command": by_the_command,
}
