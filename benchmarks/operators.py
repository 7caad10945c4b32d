"""The operators of exported ONNX files, and how far the runtimes that read them are from torch.

    python -m benchmarks operators [--only operators published runtimes sampling]

Small models of every kind with seeded weights: the operators do not depend on widths and depths.
Every file runs in ONNX Runtime and OpenVINO on images that the export has not seen, of a head at
three sizes. ``published`` does so with every form of published heads. ``runtimes`` times torch and
both runtimes on a ViT-S with a head, and on D-FINE, in turn; ``sampling`` D-FINE with gathers next
to the same file with ``GridSample``. The exit code is 1 if a file holds an operator that exports may
not hold, or differs too much.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from tests.export.exported_models import (
    DETECTOR_NAMES,
    MASS,
    SIZE,
    ExportedHead,
    box_parities,
    detector_named,
    head_gaps,
    heads,
    published_forms,
    published_head,
)
from tests.export.runtimes import ALLOWED_OPERATORS, RUNTIMES, operators_of
from tests.unit.detection.test_detector import detector_of

from benchmarks.measure import Row, ratios, turns
from dinoneck import PatchMeanHead, Predictor, load_backbone
from dinoneck.detection import Detector
from dinoneck.detection.onnx import (
    DECOMPOSITIONS,
    FLOAT32_TOLERANCE,
    OneImage,
    exported_model,
)
from dinoneck.export import export_model
from dinoneck.export.models import ImagesModel

ROUNDS = 9
BOUND = 1e-4  # of a difference, relative to the largest value of an output
TIMED_SIZE = (640, 640)
VIT_SIZE = (224, 224)


def _counts(file: Path) -> Row:
    """The nodes of a file, and its operators."""
    counts = operators_of(onnx.load(file, load_external_data=False))
    return {"nodes": sum(counts.values()), "operators": ", ".join(sorted(counts))}


def head_rows(head: ExportedHead, folder: Path) -> tuple[Row, Row]:
    """Return the operators of a head's file with its backbone, and the differences of the runtimes."""
    file = folder / "head.onnx"
    gaps = head_gaps(head, file)
    return _counts(file), {**gaps, "bound": BOUND}


def detector_rows(detector: Detector, folder: Path) -> tuple[Row, Row]:
    """Return the operators of a detector's file, and the differences of the runtimes.

    Raises:
        SystemExit: if a runtime gives other boxes.
    """
    file = folder / "detector.onnx"
    detector.export_onnx(file, check=False)
    differences: Row = {}
    parities = box_parities(detector, file, detector.size, FLOAT32_TOLERANCE)
    for runtime, parity in parities.items():
        if parity.unmatched:
            raise SystemExit(f"{runtime} gives other boxes: {parity.first_unmatched}")
        differences["boxes"] = parity.compared // 2  # of both
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


def published(names: Iterable[str]) -> dict[str, Row]:
    """Return the differences of the runtimes for forms of published heads, by the name of a row of each."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            gaps = head_gaps(published_head(name), Path(folder, "head.onnx"))
            rows[name] = {**gaps, "bound": BOUND}
    return rows


@torch.no_grad()
def times_of_runtimes(rounds: int, short: bool) -> dict[str, dict[str, Row]]:
    """Return the times of torch and of both runtimes on one image: of a head with its ViT, and of a detector."""
    name = "dinoneck_tiny" if short else "vit_small_patch16_dinov3"
    backbone = load_backbone(name, pretrained=False)
    head = PatchMeanHead(backbone.embed_dim, [MASS])
    model = ImagesModel(Predictor(head, backbone, "none"), False, VIT_SIZE).eval()
    detector_size = SIZE if short else TIMED_SIZE
    detector = detector_of("dfine", size=detector_size, variant="25m", queries=300).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *VIT_SIZE, generator=generator)
    photo = torch.rand(1, 3, *detector_size, generator=generator)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head_file = Path(folder, "head.onnx")
        export_model(head, head_file, backbone=backbone, size=VIT_SIZE, check=False)
        detector_file = Path(folder, "detector.onnx")
        detector.export_onnx(detector_file, check=False)
        of_head = {"torch": partial(model, image)}
        of_detector = {"torch": partial(detector, photo)}
        for runtime, open_file in RUNTIMES.items():
            of_head[runtime] = partial(open_file(head_file), {"images": image.numpy()})
            of_detector[runtime] = partial(open_file(detector_file), {"image": photo.numpy()})
        tables = {}
        for title, variants in (("head", of_head), ("D-FINE", of_detector)):
            tables[title] = ratios(turns(variants, rounds=rounds), "torch", "× torch")
    return tables


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the operators, the differences, and the times of runtimes and of sampling.

    Raises:
        SystemExit: for an operator that exports may not hold, or a difference above its bound.
    """
    only = options.only or ("operators", "published", "runtimes", "sampling")
    if "operators" in only:
        yield from _files(options.short)
    if "published" in only:
        names = published_forms()
        of_published = published(names[:1] if options.short else names)
        yield "published", of_published
        _check_within_bound(of_published)
    if "runtimes" in only:
        for model, table in times_of_runtimes(options.rounds, options.short).items():
            yield f"runtimes, {model}", table
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
            operators[name], of_heads[name] = head_rows(head, Path(folder))
        for name in ("dfine",) if short else DETECTOR_NAMES:
            detector = detector_named(name)
            operators[name], of_detectors[name] = detector_rows(detector, Path(folder))
    yield "operators", operators
    yield "heads", of_heads
    yield "detectors", of_detectors
    for name, row in operators.items():
        others = sorted({*row["operators"].split(", ")} - ALLOWED_OPERATORS)
        if others:
            raise SystemExit(f"{name} holds {', '.join(others)}")
    _check_within_bound(of_heads)


def _check_within_bound(rows: Mapping[str, Row]) -> None:
    """Raise SystemExit for a head whose outputs differ too much."""
    for name, row in rows.items():
        if not max(row[runtime] for runtime in RUNTIMES) <= BOUND:
            raise SystemExit(f"{name} differs by more than {BOUND:g}")
