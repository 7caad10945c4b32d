"""What detectors, their parts, their scores and their training refuse."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    Predictor,
    SimplePyramid,
    SpatialTuningAdapter,
    load_backbone,
    save_head,
    wrap_backbone,
)
from dinoneck.data import BoxImages
from dinoneck.detection import (
    DetectionHead,
    Detector,
    RfDetr,
    evaluate_boxes,
    score_boxes,
    train_detector,
    train_instances,
)
from dinoneck.detection.evaluation import evaluate_masks, open_objects
from dinoneck.training import TrainInstancesConfig
from tests import kit
from tests.faults import signed
from tests.refusals import Row
from tests.unit.data.box_samples import content, write
from tests.unit.detection import coloured_boxes
from tests.unit.detection.test_detector import detector_of
from tests.unit.detection.test_train_detector import config_of

NECK, FAST = SpatialTuningAdapter(64, 32), "fasterrcnn"
TINY = {"name": "dinoneck_tiny"}
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


def outlined(entry: dict[str, Any]) -> dict[str, Any]:
    """An annotation with its box as mask."""
    left, top, width, height = entry["bbox"]
    right, bottom = left + width, top + height
    return {**entry, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}


def objects(folder: Path, mask: int = 1, **data: Any) -> None:
    """Train a mask head of two queries; ``mask`` = 0: no image has an object."""
    entries = [outlined(own) for own in content()["annotations"] if mask]
    file = write(folder, content() | {"annotations": entries})
    head = {"type": "mask", "num_queries": 20 if data else 1}
    train_instances(
        TrainInstancesConfig.from_dict({"data": {"instances": str(file), **data}, "head": head}),
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


@cache
def detector_file() -> bytes:
    """The file of a detector whose last block was trained along."""
    detector = detector_of("fcos")
    detector.backbone.unfreeze_last(1)
    with torch.no_grad():
        for parameter in detector.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    detector.note_trained()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "d.safetensors")
        detector.save(path)
        return path.read_bytes()


def renamed_weight(folder: Path) -> Any:
    """Load a detector whose file names a weight that no backbone has."""
    meta, chunks = signed.read(detector_file())
    tuned = meta["config"]["tuned"]
    first = min(tuned)
    tuned[f"{first}s"] = tuned.pop(first)
    (folder / "d.safetensors").write_bytes(signed.write(meta, chunks))
    return Detector.load(folder / "d.safetensors")


def rounded_backbone(folder: Path) -> Any:
    """Load a detector that was trained in float32 with a backbone in half precision."""
    (folder / "d.safetensors").write_bytes(detector_file())
    vit = load_backbone("dinoneck_tiny", dtype=torch.bfloat16)
    return Detector.load(folder / "d.safetensors", backbone=vit)


def cropped_images(folder: Path) -> Any:
    """Load a detector from a file whose images are cropped, as no detector does it."""
    detector = detector_of("fcos")
    save_head(
        folder / "d.safetensors",
        detector.head,
        backbone=detector.backbone,
        preprocess=detector.preprocess.changed(resize="crop"),
    )
    return Detector.load(folder / "d.safetensors")


def without_transformers() -> Any:
    with kit.without("transformers"), pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "dinoneck.detection.detr", raising=False)
        return importlib.import_module("dinoneck.detection.detr")


def without_pycocotools(folder: Path) -> Any:
    with kit.without("pycocotools.coco", "faster_coco_eval"):
        return score_boxes(BoxImages(write(folder, content())), {})


def exporter_that_fails(folder: Path) -> Any:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("operator aten::rot90 is not known")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", fail)
        return detector_of("fcos").export_onnx(folder / "d.onnx")


def without_onnxscript(folder: Path) -> Any:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", fail)
        return detector_of("fcos").export_onnx(folder / "d.onnx")


def objects_in_images_of_two_sizes(folder: Path) -> Any:
    """Train on the objects of images that keep their own sizes."""
    polygons = [outlined(own) for own in content()["annotations"]]
    made = content() | {"annotations": polygons}
    made["images"][1] |= {"width": 96, "height": 64}
    file = write(folder, made)
    kit.write_images(folder, ["1.png"], height=64, width=96)
    head = {"type": "mask", "num_queries": 20}
    config = {"data": {"instances": str(file)}, "head": head, "backbone": TINY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools, about NumPy
        return train_instances(TrainInstancesConfig.from_dict(config), folder / "run")


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
    (lambda: detector_of("fcos").checkpoint(tta="d6"), CheckpointError, ("'d6'", "tta=")),
    (rounded_backbone, CheckpointError, ("torch.bfloat16", "dtype=torch.float32")),
    (cropped_images, CheckpointError, ("resize='crop'", "'stretch'", "preprocess=")),
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
    (lambda folder: objects(folder, mask=0), DataError, ("boxes.json", "none of the 3 images")),
    (
        lambda folder: objects(folder, panoptic=["a", "b"]),
        ConfigError,
        ("data.instances", "data.panoptic"),
    ),
    *((lambda folder, own=own: trained(folder, own), ConfigError, named) for own, named in GROUPS),
    # detectors
    (lambda: DetectionHead("fcos", (), NECK), ConfigError, "()"),
    (lambda: DetectionHead("fcos", ("red", "red"), NECK), ConfigError, "('red', 'red')"),
    (
        lambda: detector_of("fcos", SimplePyramid(64, 32, patch_size=14)),
        ConfigError,
        ("3.5", "fcos"),
    ),
    (renamed_weight, CheckpointError, "attn.proj.biass"),
    (without_transformers, ImportError, "dinoneck[detection]"),
    (exporter_that_fails, CheckpointError, "rot90"),
    (without_onnxscript, ImportError, "dinoneck[export]"),
    # truth
    (without_pycocotools, ImportError, "dinoneck[detection]"),
    (lambda: open_objects(["a", "b", "c"]), DataError, "['a', 'b', 'c']"),
    (
        lambda: evaluate_masks(Predictor(kit.head(), kit.backbone()), "objects.json"),
        DataError,
        ("objects.json", "mass", "instances"),
    ),
    (
        lambda: evaluate_masks(Predictor(kit.head(), kit.backbone()), ("folder", "s.json")),
        DataError,
        ("s.json", "mass", "panoptic"),
    ),
    (
        lambda: evaluate_masks(detector_of("fcos"), "objects.json"),
        DataError,
        ("objects.json", "boxes", "instances"),
    ),
    (
        lambda: evaluate_masks(detector_of("fcos"), ("folder", "s.json")),
        DataError,
        ("s.json", "boxes", "panoptic"),
    ),
    (
        lambda: evaluate_masks(
            Predictor({"a": kit.head(), "b": kit.head()}, kit.backbone()), "objects.json"
        ),
        DataError,
        ("tasks of several keys", "instances"),
    ),
    (
        lambda: Detector(DetectionHead("fcos", ("red",), NECK), None, (64, 96)),
        ConfigError,
        "backbone is None",
    ),
    (
        lambda: RfDetr(("red", "blue"), (1, 1), 3, image_size=96),
        ConfigError,
        "outputs are (1, 1); expected 2 different numbers below 3",
    ),
    (
        lambda: RfDetr(("red",), (3,), 3, image_size=96),
        ConfigError,
        "outputs are (3,); expected 1 different numbers below 3",
    ),
    (
        lambda: RfDetr(("red",), (0,), 1, image_size=96, encoder_layers=6),
        ConfigError,
        "encoder_layers is 6",
    ),
    # training
    (
        lambda folder: trained(folder, {"data": {"val_boxes": None}}),
        ConfigError,
        ("3 images", "one in 5", "--val-boxes"),
    ),
    (objects_in_images_of_two_sizes, DataError, ("1.png", "0.png", "--size")),
]
