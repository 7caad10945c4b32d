"""Small models of every kind that has an export, with seeded weights, and how far runtimes are from torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests import kit
from tests.export.runtimes import RUNTIMES, relative_gaps
from tests.unit.detection.rf_detr_files import spread_scores_and_boxes
from tests.unit.detection.test_detector import detector_of
from tests.unit.published.narrow import narrowed
from tests.unit.published.official_files import random_state
from torch import nn

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    DPTHead,
    FPNHead,
    HeadEnsemble,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    PyramidHead,
    Task,
    load_backbone,
)
from dinoneck.detection import Detector
from dinoneck.detection.onnx import MASKS, OUTPUTS, BoxParity, BoxTolerance, compare_boxes
from dinoneck.detection.rf_detr import RfDetr
from dinoneck.export import export_model
from dinoneck.export.models import ImagesModel
from dinoneck.inference.predictor import Predictor
from dinoneck.published import list_published
from dinoneck.published.detectors import DETECTORS
from dinoneck.published.loading import translate
from dinoneck.published.table import row_named

WIDTH = 64  # of dinoneck_tiny
DEPTH = 6
GRIDS = ((1, 7, 9), (3, 5, 12), (2, 16, 6))  # batch, rows, cols; none of them was traced
SIZE = (96, 128)  # of the images of a detector
SIDE = 96  # of the square images of RF-DETR
DETECTOR_NAMES = ("fcos", "retinanet", "dfine", "rtdetrv2", "rf_detr", "rf_detr_seg")
MASS = Task("mass", unit="g", activation="softplus")
STATE = Task("state", dim=3, kind="classification", labels=("a", "b", "c"))
COVER = Task("cover", kind="dense")
CLASSES = Task("class", dim=3, kind="segmentation")
LEAVES = Task("leaf", dim=2, kind="instances")


class ExportedHead(NamedTuple):
    """A head and the number of last layers of the backbone that it reads, with the final norm or without."""

    module: Any
    num_layers: int
    norm: bool = True


def heads() -> dict[str, ExportedHead]:
    """Return a head of every kind, and a pyramid head on every neck that reads tokens alone."""
    values = [MASS, STATE]
    all_tasks = [MASS, STATE, COVER, CLASSES]
    dpt = {
        "type": "dpt_neck",
        "num_layers": 2,
        "out_channels": 8,
        "hidden_sizes": (4, 4),
        "patch_size": 16,
    }
    fpn = {"type": "vit_fpn", "num_layers": 2, "fpn_dim": 8}
    simple = {"type": "simple_pyramid", "out_channels": 8}
    sta = {"type": "sta_pyramid", "out_channels": 8}
    members = [PatchMeanHead(WIDTH, [MASS], 8), DenseHead(WIDTH, [COVER], 8)]
    of_one_layer: dict[str, nn.Module] = {
        "ensemble": HeadEnsemble.from_heads(members),
        "patch_mean": PatchMeanHead(WIDTH, values, hidden_dim=8),
        "cls_gating, query": CLSGatingHead(WIDTH, values, "query", hidden_dim=8),
        "cls_gating, resized": CLSGatingHead(WIDTH, values, "resized", (4, 6), 8),
        "dense": DenseHead(WIDTH, [COVER, CLASSES], 8),
        "pyramid, simple_pyramid": PyramidHead(WIDTH, all_tasks, simple),
        "pyramid, sta_pyramid": PyramidHead(WIDTH, all_tasks, sta),
    }
    of_two_layers: dict[str, nn.Module] = {
        "linear": LinearHead(WIDTH, values, 2),
        "fpn": FPNHead(WIDTH, all_tasks, 2, fpn_dim=8),
        "mask, classes": MaskHead(WIDTH, [CLASSES], 2, 5, 1, 2, 8),
        "mask, instances": MaskHead(WIDTH, [LEAVES], 2, 5, 1, 2),
        "dpt": DPTHead(WIDTH, [COVER], dpt, 4),
        "pyramid, vit_fpn": PyramidHead(WIDTH, all_tasks, fpn),
    }
    exported = {}
    for num_layers, modules in ((1, of_one_layer), (2, of_two_layers)):
        for name, module in modules.items():
            exported[name] = ExportedHead(kit.randomised(module).eval(), num_layers)
    return exported


def published_forms() -> list[str]:
    """Return the first row of every form of published heads; rows of one form differ in the backbone's width alone."""
    forms: dict[str, str] = {}
    for row in list_published():
        if row.name in DETECTORS:
            continue
        narrow, _ = narrowed(row_named(row.name))
        form = json.dumps([narrow.head, narrow.norm, len(narrow.layers)], sort_keys=True)
        forms.setdefault(form, row.name)
    return [*forms.values()]


def published_head(name: str) -> ExportedHead:
    """Return a published head on the width of the tiny backbone, with random weights of its file."""
    row, shapes = narrowed(row_named(name))
    module: Any = row.build()
    tensors = translate(
        random_state(shapes), module.state_dict(), name, rename=row.rename, dtype=torch.float32
    )
    module.load_state_dict(tensors, assign=True)
    return ExportedHead(module.eval(), len(row.layers), row.norm)


def detector_named(name: str) -> Detector:
    """Return a small detector, one of ``DETECTOR_NAMES``."""
    if name not in ("rf_detr", "rf_detr_seg"):
        detector = detector_of(name, size=SIZE)
        kit.randomised(detector.head, std=0.1)
        return detector.eval()
    with_masks = name == "rf_detr_seg"
    torch.manual_seed(0)
    head = RfDetr(
        ("red", "blue"),
        (0, 1),
        2,
        SIDE,
        patch_size=12 if with_masks else 16,
        decoder_layers=2,
        queries=20,
        masks=with_masks,
        encoder_layers=4,
    )
    spread_scores_and_boxes(head)
    return Detector(head, None, (SIDE, SIDE)).eval()


@torch.no_grad()
def head_gaps(head: ExportedHead, file: Path) -> dict[str, float]:
    """Export a head with its backbone, and return how far each runtime is from torch at three sizes.

    Differences are relative to the largest value of an output.
    """
    layers = range(DEPTH - head.num_layers, DEPTH)
    backbone = load_backbone("dinoneck_tiny", layers=layers, norm=head.norm)
    export_model(head.module, file, backbone=backbone, maps=True)
    model = ImagesModel(Predictor(head.module, backbone, "none"), True, None).eval()
    gaps = dict.fromkeys(RUNTIMES, 0.0)
    for runtime, open_file in RUNTIMES.items():
        run = open_file(file)
        for batch, rows, cols in GRIDS:
            generator = torch.Generator().manual_seed(rows)
            images = torch.rand(batch, 3, rows * 16, cols * 16, generator=generator)
            expected = {name: values.numpy() for name, values in model(images).items()}
            of_size = relative_gaps(run({"images": images.numpy()}), expected)
            gaps[runtime] = max(gaps[runtime], *of_size.values())
    return gaps


@torch.no_grad()
def box_parities(
    detector: Detector, file: Path, size: tuple[int, int], tolerance: BoxTolerance
) -> dict[str, BoxParity]:
    """Return how far the boxes of each runtime are from the detector's, on an image that the export has not seen."""
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 3, *size, generator=generator)
    [found] = detector.eval()(image)
    names = list(OUTPUTS)
    if detector.has_masks:
        names.append(MASKS)
        found[MASKS] = found[MASKS].sigmoid()
    expected = [found[name].numpy() for name in names]
    parities = {}
    for runtime, open_file in RUNTIMES.items():
        outputs = open_file(file)({"image": image.numpy()})
        of_file = [outputs[name] for name in names]
        parities[runtime] = compare_boxes([(expected, of_file)], tolerance)
    return parities
