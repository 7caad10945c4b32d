"""The operators of exported ONNX files, and how far the runtimes that read them are from torch.

    python -m benchmarks operators [--only operators sampling]

Small models of every kind with seeded weights: the operators do not depend on widths and depths.
Every file runs in ONNX Runtime and OpenVINO on images that the export has not seen, of a head at
three sizes. ``sampling`` times D-FINE with gathers next to the same file with ``GridSample``, in
turn. The exit code is 1 if a file holds an operator that exports may not hold, or differs too much.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import onnx
import torch
from tests import kit
from tests.export.runtimes import ALLOWED_OPERATORS, RUNTIMES, operators_of, relative_gaps
from tests.unit.detection.rf_detr_files import spread_scores_and_boxes
from tests.unit.detection.test_detector import detector_of
from torch import nn

from benchmarks.measure import Row, ratios, turns
from dinoneck import (
    CLSGatingHead,
    DenseHead,
    DPTHead,
    FPNHead,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    PyramidHead,
    Task,
    load_backbone,
)
from dinoneck.detection import Detector
from dinoneck.detection.onnx import (
    DECOMPOSITIONS,
    FLOAT32_TOLERANCE,
    MASKS,
    OUTPUTS,
    OneImage,
    compare_boxes,
    exported_model,
)
from dinoneck.detection.rf_detr import RfDetr
from dinoneck.export import export_model
from dinoneck.export.models import ImagesModel
from dinoneck.inference.predictor import Predictor

ROUNDS = 9
WIDTH = 64  # of dinoneck_tiny
BOUND = 1e-4  # of a difference, relative to the largest value of an output
GRIDS = ((1, 7, 9), (3, 5, 12), (2, 16, 6))  # batch, rows, cols; none of them was traced
SIZE = (96, 128)  # of the images of a detector
SIDE = 96  # of the square images of RF-DETR
TIMED_SIZE = (640, 640)
MASS = Task("mass", unit="g", activation="softplus")
STATE = Task("state", dim=3, kind="classification", labels=("a", "b", "c"))
COVER = Task("cover", kind="dense")
CLASSES = Task("class", dim=3, kind="segmentation")
LEAVES = Task("leaf", dim=2, kind="instances")


class ExportedHead(NamedTuple):
    """A head and the layers of the backbone that it reads."""

    module: nn.Module
    num_layers: int


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
    of_one_layer: dict[str, nn.Module] = {
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


def detectors() -> dict[str, Detector]:
    """Return a small detector of every kind that has an export."""
    modules = {}
    for kind in ("fcos", "retinanet", "dfine", "rtdetrv2"):
        modules[kind] = detector_of(kind, size=SIZE)
        kit.randomised(modules[kind].head, std=0.1)
    for name, with_masks in (("rf_detr", False), ("rf_detr_seg", True)):
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
        modules[name] = Detector(head, None, (SIDE, SIDE))
    return {name: detector.eval() for name, detector in modules.items()}


def _counts(file: Path) -> Row:
    """The nodes of a file, and its operators."""
    counts = operators_of(onnx.load(file, load_external_data=False))
    return {"nodes": sum(counts.values()), "operators": ", ".join(sorted(counts))}


@torch.no_grad()
def head_row(head: ExportedHead, folder: Path) -> tuple[Row, Row]:
    """Return the operators of a head's file with its backbone, and the differences of the runtimes."""
    backbone = load_backbone("dinoneck_tiny", layers=range(head.num_layers))
    file = folder / "head.onnx"
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
    return _counts(file), {**gaps, "bound": BOUND}


@torch.no_grad()
def detector_row(detector: Detector, folder: Path) -> tuple[Row, Row]:
    """Return the operators of a detector's file, and the differences of the runtimes."""
    file = folder / "detector.onnx"
    detector.export_onnx(file, check=False)
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 3, *detector.size, generator=generator)
    [found] = detector(image)
    names = list(OUTPUTS)
    if detector.has_masks:
        names.append(MASKS)
        found[MASKS] = found[MASKS].sigmoid()
    expected = [found[name].numpy() for name in names]
    differences: Row = {}
    for runtime, open_file in RUNTIMES.items():
        outputs = open_file(file)({"image": image.numpy()})
        parity = compare_boxes([(expected, [outputs[name] for name in names])], FLOAT32_TOLERANCE)
        if parity.unmatched:
            raise SystemExit(f"{runtime} gives other boxes: {parity.first_unmatched}")
        differences["boxes"] = parity.compared
        differences[f"{runtime}, px"] = parity.box_px
        differences[f"{runtime}, score"] = parity.score
    return _counts(file), differences


def sampling(rounds: int, size: tuple[int, int]) -> dict[str, dict[str, Row]]:
    """Return the times of D-FINE's file with gathers next to one with GridSample, by runtime."""
    detector = detector_of("dfine", size=size, variant="25m", queries=300).eval()
    image = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    without_gathers = dict(DECOMPOSITIONS)
    del without_gathers[torch.ops.aten.grid_sampler.default]
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        gathers = Path(folder, "gathers.onnx")
        onnx.save(exported_model(OneImage(detector), size), gathers)
        grid_sample = Path(folder, "grid_sample.onnx")
        with mock.patch("dinoneck.detection.onnx.DECOMPOSITIONS", without_gathers):
            onnx.save(exported_model(OneImage(detector), size), grid_sample)
        for runtime, open_file in RUNTIMES.items():
            variants = {
                "`GridSample`": partial(open_file(grid_sample), {"image": image}),
                "gathers": partial(open_file(gathers), {"image": image}),
            }
            seconds = turns(variants, rounds=rounds)
            tables[runtime] = ratios(seconds, "`GridSample`", "× GridSample")
    return tables


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the operators, the differences, and the times of sampling.

    Raises:
        SystemExit: for an operator that exports may not hold, or a difference above its bound.
    """
    only = options.only or ("operators", "sampling")
    if "operators" in only:
        yield from _files(options.short)
    if "sampling" in only:
        size = SIZE if options.short else TIMED_SIZE
        for runtime, table in sampling(options.rounds, size).items():
            yield f"sampling, {runtime}", table


def _files(short: bool) -> Iterator[tuple[str, dict[str, Row]]]:
    operators: dict[str, Row] = {}
    of_heads: dict[str, Row] = {}
    of_detectors: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, head in heads().items():
            if short and name != "patch_mean":
                continue
            operators[name], of_heads[name] = head_row(head, Path(folder))
        for name, detector in detectors().items():
            if short and name != "dfine":
                continue
            operators[name], of_detectors[name] = detector_row(detector, Path(folder))
    yield "operators", operators
    yield "heads", of_heads
    yield "detectors", of_detectors
    for name, row in operators.items():
        others = sorted({*row["operators"].split(", ")} - ALLOWED_OPERATORS)
        if others:
            raise SystemExit(f"{name} holds {', '.join(others)}")
    for name, row in of_heads.items():
        if not max(row[runtime] for runtime in RUNTIMES) <= BOUND:
            raise SystemExit(f"{name} differs by more than {BOUND:g}")
